/* SPDX-License-Identifier: MIT */
/* reclaim.c: see reclaim.h: the steps, and when they are made. */
#include "qcow2/reclaim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/alloc.h"
#include "qcow2/copied.h"
#include "qcow2/image.h"
#include "qcow2/map.h"

/* Reads take at most this part of the time: one in five. */
#define PAUSE_FACTOR   4
#define PAUSE_MAX_NS   20000000u
#define CLUSTERS_A_GO  1024 /* counts looked at between two pauses */
#define L1_BUF_BYTES   4096u

/* Whether what may refer to clusters can be known: not with features that nobody here has heard of. */
static bool may_be_known(const struct qcow2_image *img)
{
	const struct qcow2_header *h = &img->hdr;

	return !img->read_only && !(h->incompatible & QCOW2_INCOMPAT_CORRUPT) &&
	       !(h->compatible & ~QCOW2_COMPAT_KNOWN) &&
	       !(h->autoclear & ~QCOW2_AUTOCLEAR_KNOWN);
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
	bool whole;
	int ret;

	*rc = (struct reclaim){.delay_ns = (delay_ms ? delay_ms : RECLAIM_DELAY_MS_DEFAULT) * 1000000};
	if (img->read_only)
		return 0;
	rc->unclean = storage_mark_get(img->st) != 0;
	if (!rc->unclean || !may_be_known(img) || div_up(hclusters, 8) > RECLAIM_MAX_BYTES)
		return 0;
	rc->hclusters = hclusters;
	rc->keep = calloc(div_up(hclusters, 64), sizeof(*rc->keep));
	rc->seen = calloc(div_up(hclusters, 64), sizeof(*rc->seen));
	rc->refs = calloc(min_of(hclusters, RECLAIM_WINDOW), sizeof(*rc->refs));
	rc->buf = aligned_alloc(4096, max_of(img->cluster_bytes, 4096u));
	rc->l1_buf = aligned_alloc(4096, L1_BUF_BYTES);
	if (!rc->keep || !rc->seen || !rc->refs || !rc->buf || !rc->l1_buf)
		return error_set(err, -ENOMEM, "no memory to look for leaks");
	ret = reclaim_known(img, &whole, err);
	if (!ret && !whole)
		reclaim_destroy(rc);
	return ret;
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
	for (uint64_t i = 0; i < img->rt.entries; i++)
		if (table_get(&img->rt, i))
			reclaim_touch(rc, table_get(&img->rt, i) >> img->cluster_bits, 1);
}

void reclaim_closed(struct qcow2_image *img)
{
	if (!img->reclaim.unclean || img->reclaim.done)
		(void)!storage_mark_set(img->st, false);
}

void reclaim_destroy(struct reclaim *rc)
{
	free(rc->keep);
	free(rc->seen);
	free(rc->refs);
	free(rc->snapshots);
	free(rc->buf);
	free(rc->l1_buf);
	rc->keep = rc->seen = NULL;
	rc->refs = NULL;
	rc->snapshots = NULL;
	rc->buf = rc->l1_buf = NULL;
}

void reclaim_missed(struct qcow2_image *img)
{
	img->reclaim.unclean = true;
	img->reclaim.done = false;
}

static bool given_up(const struct qcow2_image *img)
{
	return img->reclaim.stop || img->wb.sync_failed || img->corruption_reports;
}

/* So that what was done since @since_ns is a fifth of the time at most. */
static void pause_since(struct qcow2_image *img, uint64_t since_ns)
{
	uint64_t took = loop_now_ns(img->meta_loop) - since_ns;

	co_sleep_ns(min_of(took * PAUSE_FACTOR, (uint64_t)PAUSE_MAX_NS));
}

/* ---- what is referred to ---- */

static void refer(struct reclaim *rc, uint64_t hcluster)
{
	uint64_t at = hcluster - rc->window_first;

	if (hcluster >= rc->hclusters)
		return;
	if (!rc->counting)
		rc->seen[hcluster / 64] |= (uint64_t)1 << (hcluster % 64);
	else if (hcluster >= rc->window_first && at < RECLAIM_WINDOW && rc->refs[at] < UINT16_MAX)
		rc->refs[at]++;
}

/* What the table in rc->buf refers to. */
static void entries_see(struct qcow2_image *img, bool active)
{
	struct reclaim *rc = &img->reclaim;
	const be64_t *entries = rc->buf;
	unsigned words = img->extended_l2 ? 2 : 1;

	for (uint64_t i = 0; i < img->cluster_bytes / sizeof(be64_t); i += words) {
		uint64_t word = be64_get(entries[i]), count;
		uint64_t first = map_entry_hclusters(img, word, &count);

		rc->shared |= count && (word & QCOW2_COMPRESSED || !(word & QCOW2_COPIED));
		rc->unflagged |= active && count && !(word & (QCOW2_COPIED | QCOW2_COMPRESSED));
		while (count)
			refer(rc, first + --count);
	}
}

static int table_read_raw(struct qcow2_image *img, uint64_t hoff)
{
	if (!is_aligned(hoff, img->cluster_bytes))
		return -EINVAL;
	return storage_pread(img->st, hoff, img->reclaim.buf, img->cluster_bytes);
}

/* False: something is in the way, and nothing is known. */
static bool active_see(struct qcow2_image *img)
{
	struct reclaim *rc = &img->reclaim;

	for (uint64_t i = 0; i < img->l1.entries; i++) {
		uint64_t entry = table_get(&img->l1, i), since_ns = loop_now_ns(img->meta_loop);
		uint64_t hoff = entry & QCOW2_L1_OFFSET_MASK;

		if (!hoff)
			continue;
		if (entry & L1_BROKEN || table_read_raw(img, hoff) || given_up(img))
			return false;
		if ((table_get(&img->l1, i) & QCOW2_L1_OFFSET_MASK) != hoff) {
			i--; /* invariant 2 */
			continue;
		}
		rc->shared |= !(entry & QCOW2_COPIED);
		rc->unflagged |= !(entry & QCOW2_COPIED);
		refer(rc, hoff >> img->cluster_bits);
		entries_see(img, true);
		pause_since(img, since_ns);
	}
	return !given_up(img);
}

static bool snapshot_see(struct qcow2_image *img, const struct reclaim_l1 *l1)
{
	struct reclaim *rc = &img->reclaim;
	const be64_t *l1_entries = rc->l1_buf;
	uint64_t per_buf = L1_BUF_BYTES / sizeof(be64_t);

	for (uint64_t i = 0; i < l1->entries; i++) {
		uint64_t since_ns = loop_now_ns(img->meta_loop), entry, hoff;

		if (i % per_buf == 0 &&
		    storage_pread(img->st, l1->hoff + i * sizeof(be64_t), rc->l1_buf, L1_BUF_BYTES))
			return false;
		entry = be64_get(l1_entries[i % per_buf]);
		hoff = entry & QCOW2_L1_OFFSET_MASK;
		if (entry & QCOW2_L1_RESERVED)
			return false;
		if (!hoff)
			continue;
		if (table_read_raw(img, hoff) || given_up(img))
			return false;
		refer(rc, hoff >> img->cluster_bits);
		entries_see(img, false);
		pause_since(img, since_ns);
	}
	return true;
}

static bool references_see(struct qcow2_image *img)
{
	struct reclaim *rc = &img->reclaim;

	for (uint32_t i = 0; i < rc->nr_snapshots && !mutant(MUTANT_RECLAIM_BLIND); i++)
		if (!snapshot_see(img, &rc->snapshots[i]))
			return false;
	return active_see(img);
}

/* ---- what is counted all the same ---- */

static bool is_kept(const struct reclaim *rc, uint64_t hcluster)
{
	return rc->keep[hcluster / 64] >> (hcluster % 64) & 1;
}

static bool is_seen(const struct reclaim *rc, uint64_t hcluster)
{
	return rc->seen[hcluster / 64] >> (hcluster % 64) & 1;
}

/* Lowers a run of leaks from @hcluster on; where to go on. */
static uint64_t leaks_lower(struct qcow2_image *img, uint64_t hcluster, uint64_t count)
{
	struct reclaim *rc = &img->reclaim;
	uint64_t end = min_of(hcluster + CLUSTERS_A_GO, rc->hclusters), n = 1;

	/* the bit is looked at last: while the count was read, a free one may have been allocated */
	while (hcluster + n < end && !is_seen(rc, hcluster + n) &&
	       refcount_read(img, hcluster + n) == count && !is_kept(rc, hcluster + n))
		n++;
	log_debug("%s: %llu clusters from %llu on were leaked", img->st->name, (unsigned long long)n,
		  (unsigned long long)hcluster);
	rc->reclaimed += n;
	for (uint64_t i = 0; count > 1 && i < n; i++)
		refcount_subtract(img, hcluster + i, count - 1);
	refcount_release(img, hcluster, n);
	return hcluster + n;
}

/* The same word of bits for 64 clusters that need no look. */
static bool word_is_done(const struct reclaim *rc, uint64_t hcluster)
{
	return (rc->keep[hcluster / 64] | (rc->shared ? 0 : rc->seen[hcluster / 64])) == UINT64_MAX;
}

/* Lowers what was not seen; and notes the windows where references have to be counted. */
static bool leaks_find(struct qcow2_image *img)
{
	struct reclaim *rc = &img->reclaim;
	uint64_t looked = 0, since_ns = loop_now_ns(img->meta_loop);

	for (uint64_t h = 0; h < rc->hclusters;) {
		uint64_t count;

		if (!(h % 64) && word_is_done(rc, h)) {
			h += 64;
			continue;
		}
		if (is_kept(rc, h) || (is_seen(rc, h) && !rc->shared)) {
			h++;
			continue;
		}
		count = refcount_read(img, h);
		if (is_seen(rc, h))
			rc->windows[h >> RECLAIM_WINDOW_BITS] |= count > 1;
		if (count && !is_seen(rc, h) && !is_kept(rc, h))
			h = leaks_lower(img, h, count);
		else
			h++;
		if (++looked % CLUSTERS_A_GO == 0) {
			pause_since(img, since_ns);
			since_ns = loop_now_ns(img->meta_loop);
		}
		if (given_up(img))
			return false;
	}
	return true;
}

/* What is counted more often than it is referred to, in one window. */
static bool window_lower(struct qcow2_image *img)
{
	struct reclaim *rc = &img->reclaim;
	uint64_t n = min_of(rc->hclusters - rc->window_first, RECLAIM_WINDOW);
	uint64_t looked = 0, since_ns = loop_now_ns(img->meta_loop);

	for (uint64_t i = 0; i < n; i++) {
		uint64_t h = rc->window_first + i, count;

		/* none: it was seen, so it has changed hands since */
		if (is_kept(rc, h) || !rc->refs[i] || rc->refs[i] == UINT16_MAX)
			continue;
		count = refcount_read(img, h);
		if (count > rc->refs[i] && !is_kept(rc, h)) {
			refcount_subtract(img, h, count - rc->refs[i]);
			rc->reclaimed++;
			rc->unflagged = true;
		}
		if (++looked % CLUSTERS_A_GO == 0) {
			pause_since(img, since_ns);
			since_ns = loop_now_ns(img->meta_loop);
		}
		if (given_up(img))
			return false;
	}
	return true;
}

/* Step 2. */
static bool shared_find(struct qcow2_image *img)
{
	struct reclaim *rc = &img->reclaim;

	for (unsigned w = 0; w < RECLAIM_WINDOWS_MAX; w++) {
		if (!rc->windows[w])
			continue;
		rc->counting = true;
		rc->window_first = (uint64_t)w << RECLAIM_WINDOW_BITS;
		memset(rc->refs, 0, min_of(rc->hclusters, RECLAIM_WINDOW) * sizeof(*rc->refs));
		if (!references_see(img) || !window_lower(img))
			return false;
	}
	return true;
}

/* ---- running ---- */

static bool pause_and_go_on(struct qcow2_image *img, uint64_t since_ns)
{
	pause_since(img, since_ns);
	return !given_up(img);
}

/* Step 3. */
static bool flags_set(struct qcow2_image *img)
{
	return !img->reclaim.unflagged || !copied_restore(img, pause_and_go_on);
}

static void reclaim_task(struct co_task *task)
{
	struct reclaim *rc = container_of(task, struct reclaim, task);
	struct qcow2_image *img = container_of(rc, struct qcow2_image, reclaim);

	rc->done = !given_up(img) && references_see(img) && leaks_find(img) &&
		   shared_find(img) && flags_set(img);
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
