/* SPDX-License-Identifier: MIT */
/*
 * resize.c: another size for the disk.
 *
 * Growing:
 *   1. An L1 table that is too short is replaced (rules 3 and 17): the new one's clusters are allocated; a
 *      full pass; its contents are written and synced; the header is switched by one write, synced;
 *      then the old one's clusters are free. Longer than the disk needs is no harm.
 *   2. What lies past the old end (the rest of its last cluster; what a backing file has there; entries
 *      that somebody left) is made to read as zeros, with the disk grown in memory only.
 *   3. A full pass; then the header's size, synced.
 * A crash before the end of 3 leaves the old disk, with things past its end that nobody can see.
 *
 * Shrinking: the header's size, synced; then clusters past the new end are unlinked, L2 tables that
 * have none left included; when that is durable they are free (rule 4); then the file is cut behind
 * its last cluster in use. A crash on the way leaves the new disk, and clusters in use past its end.
 *
 * The L1 table is never shortened, and entries past the old end of the disk are left alone when it
 * shrinks: the state of a virtual machine may lie there (qcow2: "Snapshots").
 *
 * An external data file goes along: it is made longer before 3 of growing, and cut when a shrink is over. A
 * raw one is read without the map as well, so what is gained has to be zeros in the file itself: whatever it
 * had past the disk's end is cut off first. It stays unmapped until it is written to, and reads as zeros
 * either way.
 *
 * Threads: the metadata loop. Where no loop runs, one is made for the time.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/alloc.h"
#include "qcow2/map.h"
#include "qcow2/request.h"
#include "qcow2/snapshot.h"

/* Entries that are unlinked between two reservations. */
#define SHRINK_BATCH 128

/* ---- the header ---- */

/*
 * Writes the header with another L1 table or size, and syncs. Where that fails the sector may be the
 * old one or the new one; nothing goes on before it is known to be the old one again.
 */
static int header_switch(struct qcow2_image *img, uint64_t l1_offset, uint64_t l1_entries,
			 uint64_t size_bytes)
{
	const struct qcow2_header old = {.l1_offset = img->hdr.l1_offset,
					 .l1_entries = img->hdr.l1_entries,
					 .size_bytes = img->hdr.size_bytes};
	int ret = qcow2_header_set_disk(img->st, &img->hdr, l1_offset, (uint32_t)l1_entries, size_bytes);

	if (!ret)
		return writeback_sync(img);
	if (img->hdr.update_wrote &&
	    (qcow2_header_set_disk(img->st, &img->hdr, old.l1_offset, old.l1_entries, old.size_bytes) ||
	     writeback_sync(img)))
		writeback_give_up(img, ret);
	return ret;
}

static int size_switch(struct qcow2_image *img, uint64_t size_bytes)
{
	int ret;

	reclog_resize(img, size_bytes);
	ret = header_switch(img, img->hdr.l1_offset, img->hdr.l1_entries, size_bytes);
	/* given up: which of the two it is may never be known */
	if (!img->wb.sync_failed)
		reclog_resize(img, 0);
	return ret;
}

/* ---- the L1 table ---- */

static int l1_write_new(struct qcow2_image *img, uint64_t hcluster, uint64_t clusters)
{
	uint64_t old_bytes = img->l1.entries * sizeof(be64_t);
	uint8_t *buf = aligned_alloc(4096, max_of(img->cluster_bytes, 4096u));
	int ret = buf ? 0 : -ENOMEM;

	for (uint64_t c = 0; !ret && c < clusters; c++) {
		uint64_t at = c << img->cluster_bits;
		uint64_t n = at < old_bytes ? min_of(old_bytes - at, (uint64_t)img->cluster_bytes) : 0;

		memset(buf, 0, img->cluster_bytes);
		memcpy(buf, (uint8_t *)img->l1.disk + at, n);
		ret = storage_pwrite(img->st, (hcluster + c) << img->cluster_bits, buf,
				     img->cluster_bytes);
		img->wb.meta_writes++;
	}
	free(buf);
	return ret;
}

/* Under l1_lock, so that no entry is made meanwhile. */
static int l1_replace(struct qcow2_image *img, uint64_t entries)
{
	uint64_t clusters = div_up(entries * sizeof(be64_t), img->cluster_bytes), hcluster;
	uint64_t old_first = img->l1.offset_bytes >> img->cluster_bits;
	uint64_t old_clusters = div_up(img->l1.entries * sizeof(be64_t), img->cluster_bytes);
	int ret = alloc_contiguous(img, clusters, &hcluster);

	if (ret)
		return ret;
	ret = writeback_run(img);
	if (!ret)
		ret = l1_write_new(img, hcluster, clusters);
	if (!ret && !mutant(MUTANT_L1_SWITCH_UNSYNCED))
		ret = writeback_sync(img);
	if (!ret)
		ret = header_switch(img, hcluster << img->cluster_bits, entries, img->hdr.size_bytes);
	if (ret) {
		/* where the header is unknown, they stay counted */
		if (!img->wb.sync_failed)
			alloc_undo(img, hcluster, clusters);
		return ret;
	}
	table_move(&img->l1, hcluster << img->cluster_bits, entries, img->st->block_bytes);
	metaset_set_range(&img->metaset, METASET_L1, hcluster, clusters);
	refcount_release(img, old_first, old_clusters);
	return 0;
}

/* Records for the refcount blocks that an L1 table of @entries may need (rule 13): see alloc_contiguous(). */
static uint64_t l1_records(const struct qcow2_image *img, uint64_t entries)
{
	uint64_t clusters = div_up(entries * sizeof(be64_t), img->cluster_bytes);

	return 2 * (clusters >> img->rb_bits) + 16;
}

static int l1_grow(struct qcow2_image *img, uint64_t entries, struct error *err)
{
	uint64_t records = l1_records(img, entries);
	int ret = 0;

	for (uint64_t i = 0; i < img->l1.entries; i++)
		if (table_get(&img->l1, i) & L1_BROKEN)
			return error_set(err, -EIO, "L1 entry %" PRIu64 " is invalid: repair the image first",
					 i);
	/* who waits for room holds no lock; one that a small log can never have is not waited for */
	if (img->reclog.header && records > img->reclog.capacity / 4)
		ret = -ENOSPC;
	else
		ret = reclog_reserve(img, records);
	if (ret)
		return error_set(err, ret, "no room in the recovery log to move the L1 table: %s",
				 error_text(NULL, ret));
	co_lock(&img->l1_lock);
	if (entries > img->l1.entries)
		ret = l1_replace(img, entries);
	co_unlock(&img->l1_lock);
	reclog_unreserve(img, records);
	return ret ? error_set(err, ret, "cannot move the L1 table: %s", error_text(NULL, ret)) : 0;
}

/* ---- growing ---- */

/* A request of our own, since it may have to copy, compress or encrypt. */
struct errand {
	struct blk_request req;
	struct co *waiter;
	bool done;
	int ret;
};

static void errand_complete(struct blk_request *req, int ret)
{
	struct errand *e = container_of(req, struct errand, req);

	e->ret = ret;
	e->done = true;
	if (e->waiter)
		co_resume(e->waiter);
}

static int errand_run(struct qcow2_queue *q, void *priv, enum blk_op op, uint64_t goff,
		      uint64_t len_bytes, void *buf)
{
	struct errand e = {.req = {.op = op,
				   .offset_bytes = goff,
				   .len_bytes = len_bytes,
				   .buf = {.base = buf},
				   .priv = priv,
				   .complete = errand_complete}};

	memset(priv, 0, qcow2_request_bytes());
	qcow2_submit(q, &e.req);
	while (!e.done) {
		e.waiter = co_self();
		co_suspend();
	}
	return e.ret;
}

/*
 * Storage takes whole blocks. One that the old end lies inside of is read and written back: no request can
 * be writing there, since its end would have to lie inside of a block as well.
 */
static int zero_in_block(struct qcow2_queue *q, void *priv, uint64_t from, uint32_t block)
{
	uint64_t start = align_down(from, block);
	uint8_t *buf = aligned_alloc(4096, align_up(block, 4096));
	int ret = buf ? errand_run(q, priv, BLK_READ, start, block, buf) : -ENOMEM;

	if (!ret) {
		memset(buf + (from - start), 0, block - (from - start));
		ret = errand_run(q, priv, BLK_WRITE, start, block, buf);
	}
	free(buf);
	return ret;
}

static int zero_past_end(struct qcow2_image *img, uint64_t from, uint64_t to, struct error *err)
{
	uint32_t block = max_of(img->st->block_bytes, img->data->block_bytes);
	uint64_t whole = align_up(from, block);
	void *priv = aligned_alloc(64, align_up(qcow2_request_bytes(), 64));
	struct qcow2_queue *q = NULL;
	int ret;

	if (!priv)
		return error_set(err, -ENOMEM, "out of memory");
	ret = qcow2_queue_create(&q, img, img->meta_loop, err);
	if (ret)
		goto out;
	if (whole > from)
		ret = zero_in_block(q, priv, from, block);
	if (!ret && to > whole)
		ret = errand_run(q, priv, BLK_WRITE_ZEROES, whole, to - whole, NULL);
	if (ret)
		error_set(err, ret, "cannot make what is gained read as zeros: %s", error_text(NULL, ret));
out:
	qcow2_queue_destroy(q);
	free(priv);
	return ret;
}

/* ---- an external data file ---- */

/* Zeros in a device; see zero_in_block(). */
static int device_zero(struct storage *st, uint64_t from, uint64_t to)
{
	uint64_t start = align_down(from, st->block_bytes), whole = align_up(from, st->block_bytes);
	uint8_t *buf;
	int ret = 0;

	if (whole > from) {
		buf = aligned_alloc(4096, 4096);
		ret = buf ? storage_pread(st, start, buf, st->block_bytes) : -ENOMEM;
		if (!ret) {
			memset(buf + (from - start), 0, whole - from);
			ret = storage_pwrite(st, start, buf, st->block_bytes);
		}
		free(buf);
	}
	return ret || to == whole ? ret : storage_zero(st, whole, to - whole);
}

/*
 * As long as the disk is to be. Cutting and extending a file whose end lies inside of a block must not meet
 * a direct write to that block (image.c), so writes are held back for the moment.
 */
static int data_file_extend(struct qcow2_image *img, uint64_t size_bytes)
{
	uint64_t old_bytes = img->size_bytes, bytes = image_data_file_bytes(img, size_bytes);
	struct storage *data = img->data;
	int ret = 0;

	if (data->fixed_size && data->size_bytes < size_bytes)
		return -ENOSPC;
	if (data->fixed_size && !img->data_raw)
		return 0; /* zero_past_end() does what there is to do, by the map */
	image_hold(img, HOLD_WRITES);
	if (data->fixed_size) {
		ret = device_zero(data, old_bytes, size_bytes);
	} else {
		if (img->data_raw && data->size_bytes > old_bytes)
			ret = storage_truncate(data, old_bytes);
		if (!ret && data->size_bytes < bytes)
			ret = storage_truncate(data, bytes);
	}
	image_release(img);
	img->wb.meta_writes++; /* the next pass syncs it */
	return ret;
}

/* After a shrink: nothing durable refers to what is cut off. */
static int data_file_cut(struct qcow2_image *img)
{
	uint64_t bytes = image_data_file_bytes(img, img->size_bytes);
	int ret = 0;

	if (!image_has_data_file(img) || img->data->fixed_size)
		return 0;
	if (img->data->size_bytes > bytes)
		ret = storage_truncate(img->data, bytes);
	return ret ? ret : storage_sync(img->data);
}

static int grow(struct qcow2_image *img, uint64_t size_bytes, struct error *err)
{
	uint64_t old_bytes = img->size_bytes;
	uint64_t entries = qcow2_l1_entries_for(size_bytes, img->cluster_bits, img->l2_bits);
	int ret = 0;

	if (entries > img->l1.entries)
		ret = l1_grow(img, entries, err);
	if (!ret && image_has_data_file(img)) {
		ret = data_file_extend(img, size_bytes);
		if (ret)
			error_set(err, ret, "cannot make the data file longer: %s", error_text(NULL, ret));
	}
	if (ret)
		return ret;
	bitmaps_make_room(img, size_bytes);
	img->size_bytes = size_bytes;
	if (!img->data_raw)
		ret = zero_past_end(img, old_bytes, size_bytes, err);
	if (!ret) {
		ret = writeback_run(img);
		if (!ret)
			bitmaps_resize(img, size_bytes);
		if (!ret)
			ret = size_switch(img, size_bytes);
		if (ret)
			error_set(err, ret, "cannot write the new size: %s", error_text(NULL, ret));
	}
	if (ret)
		img->size_bytes = old_bytes;
	return ret;
}

/* ---- shrinking ---- */

/* Unlinks what [@first, @end) map, which lie in one slice; and the entries are gone. */
static int unlink_in_slice(struct qcow2_image *img, uint64_t first, uint64_t end, unsigned *reserved)
{
	struct slice *s;
	bool any = false;
	int ret = map_slice_get(img, first, &s);

	if (ret || !s)
		return ret;
	for (uint64_t g = first; g < end; g++)
		any |= !map_entry_is_empty(map_entry_load(img, s, map_slice_index(img, g)));
	cache_put(&img->l2_cache, s);
	if (!any) /* a table that is shared with a snapshot stays so */
		return 0;
	ret = map_slice_own(img, first, reserved, &s);
	if (ret)
		return ret;
	ret = slice_begin_change(&img->l2_cache, s);
	for (uint64_t g = first; !ret && g < end; g++) {
		uint32_t index = map_slice_index(img, g);
		struct map_entry entry = map_entry_load(img, s, index);

		if (map_entry_is_empty(entry) || map_entry_is_bad(s, index))
			continue;
		map_entry_store(img, s, index, (struct map_entry){0});
		map_entry_unref(img, entry.word, reserved);
	}
	cache_put(&img->l2_cache, s);
	return ret;
}

static int unlink_range(struct qcow2_image *img, uint64_t first, uint64_t end)
{
	uint64_t per_slice = (uint64_t)1 << img->l2_slice_bits;
	int ret = 0;

	while (!ret && first < end) {
		uint64_t to = min_of(end, align_down(first, per_slice) + per_slice);
		unsigned reserved = SHRINK_BATCH * MAP_ENTRY_HCLUSTERS_MAX + 1; /* and a table */

		to = min_of(to, first + SHRINK_BATCH);
		ret = frees_reserve(img, reserved);
		if (ret)
			return ret;
		ret = unlink_in_slice(img, first, to, &reserved);
		frees_unreserve(img, reserved);
		first = to;
	}
	return ret;
}

/* Whether the L2 table of L1 entry @i maps nothing. */
static int table_is_empty(struct qcow2_image *img, uint64_t i, bool *empty)
{
	uint64_t g = i << img->l2_bits, end = (i + 1) << img->l2_bits;
	uint64_t per_slice = (uint64_t)1 << img->l2_slice_bits;

	*empty = true;
	for (; *empty && g < end; g += per_slice) {
		struct slice *s;
		int ret = map_slice_get(img, g, &s);

		if (ret || !s)
			return ret;
		for (uint32_t n = 0; n < per_slice; n++)
			*empty &= map_entry_is_empty(map_entry_load(img, s, n));
		cache_put(&img->l2_cache, s);
	}
	return 0;
}

/*
 * The L2 tables of [@first, @end) L1 entries, where they are empty now. Their slices are written, empty, before they are unlinked,
 * and nothing looks at them afterwards.
 */
static int unlink_tables(struct qcow2_image *img, uint64_t first, uint64_t end)
{
	int ret = writeback_run(img);

	for (uint64_t i = first; !ret && i < end; i++) {
		uint64_t entry = table_get(&img->l1, i), hcluster;
		unsigned reserved = 1;
		bool empty;

		if (!entry || entry & L1_BROKEN)
			continue;
		ret = table_is_empty(img, i, &empty);
		if (ret || !empty)
			continue;
		ret = frees_reserve(img, reserved);
		if (ret)
			break;
		hcluster = (entry & QCOW2_L1_OFFSET_MASK) >> img->cluster_bits;
		table_set(&img->l1, img, i, 0);
		metaset_remove(&img->metaset, hcluster);
		frees_add(img, hcluster, &reserved);
		frees_unreserve(img, reserved);
	}
	return ret;
}

/* Unlinks guest clusters [@first, @end). */
static int unlink_past_end(struct qcow2_image *img, uint64_t first, uint64_t end)
{
	uint64_t per_table = (uint64_t)1 << img->l2_bits;
	int ret = 0;

	for (uint64_t g = first; !ret && g < end;) {
		uint64_t to = min_of(end, align_down(g, per_table) + per_table);

		if (table_get(&img->l1, g >> img->l2_bits) & ~L1_BROKEN)
			ret = unlink_range(img, g, to);
		g = to;
	}
	if (!ret)
		ret = unlink_tables(img, div_up(first, per_table), div_up(end, per_table));
	return ret;
}

/* The host cluster past all that the tables refer to, all of which are in the file; UINT64_MAX: that is not known. */
static uint64_t referred_end(struct qcow2_image *img)
{
	struct snapshot_refs refs;
	uint64_t end = UINT64_MAX;

	if (snapshot_refs_active(&refs, img, NULL))
		return UINT64_MAX;
	if (snapshot_refs_end(&refs, &end, NULL))
		end = UINT64_MAX;
	snapshot_refs_free(&refs);
	return end;
}

/*
 * Behind the last cluster that is in use nothing is kept. Counts may be wrong, and what they say is free be
 * in use all the same.
 */
static int cut_file(struct qcow2_image *img)
{
	uint64_t hcluster = div_up(img->st->size_bytes, img->cluster_bytes), end, count = 0;
	uint64_t least = img->st->fixed_size ? UINT64_MAX : referred_end(img);
	int ret = 0;

	if (hcluster <= least)
		return 0;
	while (!ret && hcluster > least && !count && !metaset_has(&img->metaset, hcluster - 1)) {
		ret = refcount_get(img, hcluster - 1, &count);
		hcluster -= !count;
	}
	if (ret)
		return ret;
	end = align_up(hcluster << img->cluster_bits, FILE_BLOCK_BYTES);
	if (end < img->st->size_bytes)
		ret = storage_truncate(img->st, end);
	if (!ret)
		img->opened_bytes = img->extended_bytes = end;
	img->append_hcluster = hcluster;
	return ret ? ret : writeback_sync(img);
}

static int shrink(struct qcow2_image *img, uint64_t size_bytes, struct error *err)
{
	uint64_t old_gclusters = div_up(img->size_bytes, img->cluster_bytes);
	int ret;

	assert(!img->reclog.header);
	ret = writeback_run(img);
	if (!ret && mutant(MUTANT_UNLINK_BEFORE_SHRINK))
		ret = unlink_past_end(img, div_up(size_bytes, img->cluster_bytes), old_gclusters);
	if (!ret && mutant(MUTANT_UNLINK_BEFORE_SHRINK))
		ret = writeback_run(img);
	if (!ret)
		ret = size_switch(img, size_bytes);
	if (ret)
		return error_set(err, ret, "cannot write the new size: %s", error_text(NULL, ret));
	img->size_bytes = size_bytes;
	bitmaps_resize(img, size_bytes);
	ret = unlink_past_end(img, div_up(size_bytes, img->cluster_bytes), old_gclusters);
	if (!ret)
		ret = image_settle(img);
	if (!ret)
		ret = cut_file(img);
	if (!ret)
		ret = data_file_cut(img);
	return ret ? error_set(err, ret,
			       "has the new size, but what is past its end could not be given back: %s",
			       error_text(NULL, ret))
		   : 0;
}

/* ---- both ---- */

static int check(const struct qcow2_image *img, uint64_t size_bytes, struct error *err)
{
	uint64_t l1_max = QCOW2_MAX_L1_BYTES / sizeof(be64_t);
	uint32_t block = max_of(img->st->block_bytes, img->data->block_bytes);

	if (img->read_only)
		return error_set(err, -EROFS, "is open read-only");
	if (!is_aligned(size_bytes, 512))
		return error_set(err, -EINVAL, "the new size is not a multiple of 512 bytes");
	if (!is_aligned(size_bytes, block))
		return error_set(err, -EINVAL, "the new size is not a multiple of its blocks of %" PRIu32 " bytes",
				 block);
	if (size_bytes > INT64_MAX ||
	    qcow2_l1_entries_for(size_bytes, img->cluster_bits, img->l2_bits) > l1_max)
		return error_set(err, -EFBIG, "the new size is more than clusters of %" PRIu32
					      " bytes can map",
				 img->cluster_bytes);
	if (!img->hdr.nb_snapshots)
		return 0;
	/* the disk's size is not part of a version 2 snapshot; and what one uses cannot be cut off */
	if (size_bytes < img->size_bytes)
		return error_set(err, -ENOTSUP, "cannot shrink: the image has snapshots");
	if (img->hdr.version < 3)
		return error_set(err, -ENOTSUP, "cannot be resized: the image is of version 2 and has "
						"snapshots");
	return 0;
}

static int resize_locked(struct qcow2_image *img, uint64_t size_bytes, bool growing, struct error *err)
{
	/* what was asked for before, and has just been done, may have made another disk of it */
	int ret = check(img, size_bytes, err);

	if (ret || size_bytes == img->size_bytes)
		return ret;
	if (growing && size_bytes < img->size_bytes)
		return error_set(err, -EBUSY, "has been made larger than that meanwhile");
	ret = image_first_write(img);
	if (!ret)
		ret = bitmaps_claim(img);
	if (ret)
		return error_set(err, ret, "cannot be written: %s", error_text(NULL, ret));
	return size_bytes > img->size_bytes ? grow(img, size_bytes, err) : shrink(img, size_bytes, err);
}

static int resize_on_loop(struct qcow2_image *img, uint64_t size_bytes, struct error *err)
{
	bool growing = size_bytes > img->size_bytes;
	int ret;

	co_lock(&img->barrier);
	ret = resize_locked(img, size_bytes, growing, err);
	co_unlock(&img->barrier);
	return ret;
}

struct resizing {
	struct co_task task;
	struct loop *loop;
	struct qcow2_image *img;
	uint64_t size_bytes;
	struct error *err;
	int ret;
	bool done;
};

static void resize_task(struct co_task *task)
{
	struct resizing *r = container_of(task, struct resizing, task);

	r->ret = resize_on_loop(r->img, r->size_bytes, r->err);
	qcow2_detach_loop(r->img);
	r->done = true;
	loop_stop(r->loop);
}

static int resize_with_loop(struct qcow2_image *img, uint64_t size_bytes, struct error *err)
{
	struct loop_params params = {
		.name = "resize", .sq_entries = 64, .coroutines = QCOW2_EXTRA_COROUTINES + 8};
	struct resizing r = {
		.task = {.fn = resize_task}, .img = img, .size_bytes = size_bytes, .err = err};
	int ret = loop_create(&r.loop, &params, err);

	if (ret)
		return ret;
	ret = qcow2_set_metadata_loop(img, r.loop, err);
	if (!ret) {
		list_init(&r.task.list);
		loop_spawn(r.loop, &r.task);
		ret = r.done ? 0 : loop_run(r.loop);
		ret = ret ? error_set(err, ret, "the event loop failed") : r.ret;
	}
	loop_destroy(r.loop);
	return ret;
}

int qcow2_resize(struct qcow2_image *img, uint64_t size_bytes, struct error *err)
{
	int ret = check(img, size_bytes, err);

	if (ret || size_bytes == img->size_bytes)
		return ret;
	return img->meta_loop ? resize_on_loop(img, size_bytes, err)
			      : resize_with_loop(img, size_bytes, err);
}
