/* SPDX-License-Identifier: MIT */
/* reclaim.c: see reclaim.h. */
#include "qcow2/reclaim.h"

#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "qcow2/alloc.h"
#include "qcow2/image.h"
#include "qcow2/map.h"

/* Reads take at most this part of the time: one in five. */
#define PAUSE_FACTOR   4
#define PAUSE_MAX_NS   20000000u
#define CLUSTERS_A_GO  1024 /* counts looked at between two pauses */

/* Whether everything that may refer to clusters is known here. */
static bool all_is_known(const struct qcow2_image *img)
{
	const struct qcow2_header *h = &img->hdr;
	uint64_t odd = QCOW2_INCOMPAT_DATA_FILE | QCOW2_INCOMPAT_CORRUPT;

	return !img->read_only && !h->nb_snapshots && !h->has_bitmaps_ext && !(h->incompatible & odd);
}

/* All that can be counted: a crash may have left the file shorter than what it had counted. */
static uint64_t counted_hclusters(const struct qcow2_image *img)
{
	uint64_t last = img->rt.entries;

	while (last && !table_get(&img->rt, last - 1))
		last--;
	return last << img->rb_bits;
}

int reclaim_init(struct qcow2_image *img, uint64_t delay_ms, struct error *err)
{
	struct reclaim *rc = &img->reclaim;
	uint64_t hclusters = counted_hclusters(img);

	*rc = (struct reclaim){.delay_ns = (delay_ms ? delay_ms : RECLAIM_DELAY_MS_DEFAULT) * 1000000};
	if (img->read_only)
		return 0;
	rc->unclean = storage_mark_get(img->st) != 0;
	if (!rc->unclean || !all_is_known(img) || div_up(hclusters, 8) > RECLAIM_MAX_BYTES)
		return 0;
	rc->keep = calloc(div_up(hclusters, 64), sizeof(*rc->keep));
	rc->buf = aligned_alloc(4096, RECLAIM_READ_BYTES);
	rc->hclusters = hclusters;
	return rc->keep && rc->buf ? 0 : error_set(err, -ENOMEM, "no memory to look for leaks");
}

void reclaim_ready(struct qcow2_image *img)
{
	struct reclaim *rc = &img->reclaim;

	if (img->read_only)
		return;
	/* Where there are no marks an image is looked through each time. */
	(void)!storage_mark_set(img->st, true);
	for (int i = 0; i < METASET_RANGES; i++)
		reclaim_touch(rc, img->metaset.ranges[i].first, img->metaset.ranges[i].count);
	for (uint64_t i = 0; i <= img->metaset.mask; i++)
		if (img->metaset.slots[i])
			reclaim_touch(rc, img->metaset.slots[i] - 1, 1);
	if (rc->keep && img->hdr.has_luks_ext)
		reclaim_touch(rc, img->hdr.luks_offset >> img->cluster_bits,
			      div_up(img->hdr.luks_bytes, img->cluster_bytes) + 1);
}

void reclaim_closed(struct qcow2_image *img)
{
	if (!img->reclaim.unclean || img->reclaim.done)
		(void)!storage_mark_set(img->st, false);
}

void reclaim_destroy(struct reclaim *rc)
{
	free(rc->keep);
	free(rc->buf);
	rc->keep = NULL;
	rc->buf = NULL;
}

static bool given_up(const struct qcow2_image *img)
{
	return img->reclaim.stop || img->wb.sync_failed || img->corruption_reports;
}

static void pause_after(struct qcow2_image *img, uint64_t since_ns)
{
	uint64_t took = loop_now_ns(img->meta_loop) - since_ns;

	co_sleep_ns(min_of(took * PAUSE_FACTOR, (uint64_t)PAUSE_MAX_NS));
}

/* ---- what is referred to ---- */

static bool table_see(struct qcow2_image *img, uint64_t hoff)
{
	struct reclaim *rc = &img->reclaim;
	const be64_t *entries = rc->buf;
	unsigned words = img->extended_l2 ? 2 : 1;

	for (uint64_t at = 0; at < img->cluster_bytes; at += RECLAIM_READ_BYTES) {
		uint64_t len = min_of(RECLAIM_READ_BYTES, (uint64_t)img->cluster_bytes - at);
		uint64_t since_ns = loop_now_ns(img->meta_loop);

		if (storage_pread(img->st, hoff + at, rc->buf, len) || given_up(img))
			return false;
		for (uint64_t i = 0; i < len / sizeof(be64_t); i += words) {
			uint64_t count, first = map_entry_hclusters(img, be64_get(entries[i]), &count);

			reclaim_touch(rc, first, count);
		}
		pause_after(img, since_ns);
	}
	return !given_up(img);
}

/* False: something is in the way, and nothing is known. */
static bool references_see(struct qcow2_image *img)
{
	for (uint64_t i = 0; i < img->l1.entries; i++) {
		uint64_t entry = table_get(&img->l1, i);

		if (entry & L1_BROKEN)
			return false;
		if (entry && !table_see(img, entry & QCOW2_L1_OFFSET_MASK))
			return false;
	}
	return true;
}

/* ---- what is counted all the same ---- */

static bool is_kept(const struct reclaim *rc, uint64_t hcluster)
{
	return rc->keep[hcluster / 64] >> (hcluster % 64) & 1;
}

/* Lowers a run of leaks from @hcluster on, if there is one; where to go on. */
static uint64_t leaks_lower(struct qcow2_image *img, uint64_t hcluster, uint64_t count)
{
	struct reclaim *rc = &img->reclaim;
	uint64_t end = min_of(hcluster + CLUSTERS_A_GO, rc->hclusters), n = 1;

	/* the bit is looked at last: while the count was read, a free one may have been allocated */
	while (hcluster + n < end && refcount_read(img, hcluster + n) == count &&
	       !is_kept(rc, hcluster + n))
		n++;
	log_debug("%s: %llu clusters from %llu on were leaked", img->st->name, (unsigned long long)n,
		  (unsigned long long)hcluster);
	rc->reclaimed += n;
	while (count-- > 1)
		refcount_lower(img, hcluster, n);
	refcount_release(img, hcluster, n);
	return hcluster + n;
}

static bool leaks_find(struct qcow2_image *img)
{
	struct reclaim *rc = &img->reclaim;
	uint64_t looked = 0, since_ns = loop_now_ns(img->meta_loop);

	for (uint64_t h = 0; h < rc->hclusters;) {
		uint64_t count;

		if (!(h % 64) && rc->keep[h / 64] == UINT64_MAX) {
			h += 64;
			continue;
		}
		if (is_kept(rc, h)) {
			h++;
			continue;
		}
		count = refcount_read(img, h);
		/* what a wrong count says is not a crash's leak */
		if (count && count <= MAP_ENTRY_HCLUSTERS_MAX && !is_kept(rc, h))
			h = leaks_lower(img, h, count);
		else
			h++;
		if (++looked % CLUSTERS_A_GO == 0) {
			pause_after(img, since_ns);
			since_ns = loop_now_ns(img->meta_loop);
		}
		if (given_up(img))
			return false;
	}
	return true;
}

/* ---- running ---- */

static void reclaim_task(struct co_task *task)
{
	struct reclaim *rc = container_of(task, struct reclaim, task);
	struct qcow2_image *img = container_of(rc, struct qcow2_image, reclaim);

	rc->done = !given_up(img) && references_see(img) && leaks_find(img);
	if (rc->reclaimed)
		log_info("%s: %llu leaked clusters of a crash were reclaimed", img->st->name,
			 (unsigned long long)rc->reclaimed);
	rc->running = false;
	co_wake_all(&img->idle);
}

static void timer_fired(struct loop_timer *timer)
{
	struct reclaim *rc = container_of(timer, struct reclaim, timer);
	struct qcow2_image *img = container_of(rc, struct qcow2_image, reclaim);

	rc->armed = false;
	rc->running = true;
	rc->task.fn = reclaim_task;
	loop_spawn(img->meta_loop, &rc->task);
}

void reclaim_begin(struct qcow2_image *img)
{
	struct reclaim *rc = &img->reclaim;

	if (!rc->keep)
		return;
	rc->armed = true;
	loop_timer_init(&rc->timer, timer_fired);
	loop_timer_arm(img->meta_loop, &rc->timer, rc->delay_ns);
}

void reclaim_end(struct qcow2_image *img)
{
	struct reclaim *rc = &img->reclaim;

	rc->stop = true;
	if (rc->armed)
		loop_timer_cancel(img->meta_loop, &rc->timer);
	rc->armed = false;
	while (rc->running)
		co_wait(&img->idle);
}
