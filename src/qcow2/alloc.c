/* SPDX-License-Identifier: MIT */
/*
 * alloc.c: see alloc.h.
 *
 * Where clusters come from: first from *groups* known to have free ones (a group is what one slice of
 * refcounts covers), lowest first, else from the end of the file. Which groups of an image have free
 * clusters is found out in the background, after the first allocation, so that neither opening nor the
 * first write reads through all refcounts. A device's end does not move, so there every group is a
 * candidate from the start.
 *
 * Clusters past zero_hcluster were never written since the file got there: they read as zeros, and a
 * partial write to one needs no filling.
 *
 * Invariants:
 *  1. The file is at least as long as every cluster that was handed out (rule 3): it is extended, in
 *     steps, before.
 *  2. A refcount block lies in the range that it counts, and counts itself. Its cluster was written
 *     with zeros before the entry in the refcount table was made.
 *  3. Nothing is handed out that metadata lies in, whatever its refcount says.
 *  4. A pass never waits for alloc_lock.
 */
#include "qcow2/alloc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/image.h"
#include "qcow2/inflate.h"

#define EXTEND_STEP_BYTES ((uint64_t)16 << 20)

static uint64_t group_entries(const struct qcow2_image *img)
{
	return (uint64_t)1 << img->rc_slice_bits;
}

static bool group_candidate(const struct qcow2_image *img, uint64_t group)
{
	return group < img->groups && img->group_free[group];
}

static void group_mark(struct qcow2_image *img, uint64_t group, bool has_free)
{
	if (group >= img->groups)
		return; /* past what is remembered: found again at the next open */
	img->group_free[group] = has_free;
	if (has_free && group < img->group_hint)
		img->group_hint = group;
}

int alloc_init(struct qcow2_image *img, struct error *err)
{
	uint64_t file_clusters = div_up(img->st->size_bytes, img->cluster_bytes);
	uint64_t guest_clusters = div_up(img->size_bytes, img->cluster_bytes);
	uint64_t groups;

	co_mutex_init(&img->alloc_lock);
	img->opened_bytes = img->extended_bytes = img->st->size_bytes;
	img->end_hcluster = UINT64_MAX;
	img->append_hcluster = img->zero_hcluster = file_clusters;
	/* metadata of a full image: an eighth at the very most, with 512-byte clusters */
	groups = ((max_of(file_clusters, guest_clusters) * 9 / 8) >> img->rc_slice_bits) + 16;
	img->group_free = calloc(groups, 1);
	if (!img->group_free)
		return error_set(err, -ENOMEM, "no memory for the allocator");
	img->groups = groups;
	img->group_hint = groups;
	if (img->st->fixed_size) {
		img->end_hcluster = img->st->size_bytes >> img->cluster_bits;
		img->append_hcluster = img->end_hcluster;
		img->zero_hcluster = UINT64_MAX;
		img->scan_started = true; /* nothing to find out */
		for (uint64_t g = 0; g <= img->end_hcluster >> img->rc_slice_bits; g++)
			group_mark(img, g, true);
	}
	return 0;
}

void alloc_destroy(struct qcow2_image *img)
{
	free(img->group_free);
	img->group_free = NULL;
}

/* ---- refcount slices ---- */

/* Where the slice of @hcluster's refcount lies; 0: there is no block, all its counts are 0. */
static int refcount_slice_offset(struct qcow2_image *img, uint64_t hcluster, uint64_t *hoff)
{
	uint64_t index = hcluster >> img->rb_bits;
	uint64_t entry, in_block;

	*hoff = 0;
	if (index >= img->rt.entries)
		return 0;
	entry = table_get(&img->rt, index);
	if (!entry)
		return 0;
	if (entry & (img->cluster_bytes - 1)) {
		image_corrupt(img, "refcount table entry %llu (%#llx) is not cluster aligned",
			      (unsigned long long)index, (unsigned long long)entry);
		return -EIO;
	}
	in_block = hcluster & (((uint64_t)1 << img->rb_bits) - 1);
	*hoff = entry + (in_block >> img->rc_slice_bits) * img->slice_bytes;
	return 0;
}

/* The pinned slice of @hcluster's refcount; *@out NULL where there is no block. */
static int refcount_slice_get(struct qcow2_image *img, uint64_t hcluster, struct slice **out)
{
	uint64_t hoff;
	int ret = refcount_slice_offset(img, hcluster, &hoff);

	*out = NULL;
	if (ret || !hoff)
		return ret;
	return cache_get(&img->rc_cache, hcluster >> img->rc_slice_bits, hoff, false, out);
}

static uint32_t slice_index(const struct qcow2_image *img, uint64_t hcluster)
{
	return (uint32_t)(hcluster & (group_entries(img) - 1));
}

static uint64_t slice_count_get(const struct qcow2_image *img, const struct slice *s, uint32_t index)
{
	return qcow2_refcount_get(s->data, index, img->refcount_order);
}

/* Sets entries [@index, @index + @n); slice_begin_change() was called. */
static void slice_count_set(struct qcow2_image *img, struct slice *s, uint32_t index, uint32_t n,
			    uint64_t value)
{
	uint32_t first = (uint32_t)(((uint64_t)index << img->refcount_order) / 8);
	uint32_t last = (uint32_t)((((uint64_t)(index + n) << img->refcount_order) + 7) / 8);

	for (uint32_t i = 0; i < n; i++)
		qcow2_refcount_set(s->data, index + i, img->refcount_order, value);
	if (!mutant(MUTANT_RECLAIM_IN_USE))
		reclaim_touch(&img->reclaim, (s->key << img->rc_slice_bits) + index, n);
	slice_mark_dirty(&img->rc_cache, s, first, last - first);
}

/* Lowers one group's part of a run, with @logged in the log as well; returns how many clusters it was. */
static uint64_t lower_in_group(struct qcow2_image *img, uint64_t hcluster, uint64_t count, bool logged)
{
	uint32_t index = slice_index(img, hcluster);
	uint64_t n = min_of(count, group_entries(img) - index);
	struct slice *s;
	bool freed = false;
	int ret = refcount_slice_get(img, hcluster, &s);

	if (ret || !s) {
		/* They stay counted: a leak. */
		if (!s && !ret)
			image_corrupt(img, "host cluster %#llx was in use but has no refcount block",
				      (unsigned long long)(hcluster << img->cluster_bits));
		return n;
	}
	if (slice_begin_change(&img->rc_cache, s)) {
		cache_put(&img->rc_cache, s);
		return n; /* likewise */
	}
	for (uint32_t i = 0; i < n; i++) {
		uint64_t value = slice_count_get(img, s, index + i);

		if (!value) {
			image_corrupt(img, "host cluster %#llx was in use with refcount 0",
				      (unsigned long long)((hcluster + i) << img->cluster_bits));
			continue;
		}
		if (logged)
			reclog_table(img, RECLOG_REFCOUNT, hcluster + i, value, value - 1);
		slice_count_set(img, s, index + i, 1, value - 1);
		if (value > 1)
			continue;
		freed = true;
		inflate_drop(img->inflate, img, hcluster + i); /* rule 4 */
		pack_forget(img, hcluster + i, 1);
		/* it may have been a snapshot's table */
		metaset_remove(&img->snapset, hcluster + i);
	}
	if (freed)
		group_mark(img, hcluster >> img->rc_slice_bits, true);
	cache_put(&img->rc_cache, s);
	return n;
}

void refcount_lower(struct qcow2_image *img, uint64_t hcluster, uint64_t count)
{
	while (count) {
		uint64_t n = lower_in_group(img, hcluster, count, false);

		hcluster += n;
		count -= n;
	}
}

void refcount_subtract(struct qcow2_image *img, uint64_t hcluster, uint64_t by)
{
	uint32_t index = slice_index(img, hcluster);
	struct slice *s;

	/* where it cannot be read it stays: a leak */
	if (refcount_slice_get(img, hcluster, &s) || !s)
		return;
	if (!slice_begin_change(&img->rc_cache, s)) {
		uint64_t value = slice_count_get(img, s, index);

		if (value > by)
			slice_count_set(img, s, index, 1, value - by);
	}
	cache_put(&img->rc_cache, s);
}

/*
 * Whether the reference to @hcluster is its last one (*@last), and for how many clusters from there on,
 * at most @count, the answer is the same.
 */
static uint64_t run_of_last_references(struct qcow2_image *img, uint64_t hcluster, uint64_t count,
				       bool *last)
{
	uint32_t index = slice_index(img, hcluster);
	uint64_t n = min_of(count, group_entries(img) - index), i;
	struct slice *s;

	*last = false;
	if (refcount_slice_get(img, hcluster, &s) || !s)
		return n;
	*last = slice_count_get(img, s, index) == 1;
	for (i = 1; i < n && (slice_count_get(img, s, index + (uint32_t)i) == 1) == *last; i++)
		;
	cache_put(&img->rc_cache, s);
	return i;
}

void refcount_release(struct qcow2_image *img, uint64_t hcluster, uint64_t count)
{
	while (count) {
		bool last;
		uint64_t n = run_of_last_references(img, hcluster, count, &last);

		if (last) /* before it is punched, and before anything suspends */
			pack_forget(img, hcluster, n);
		if (last && img->st->can_punch && !img->discard_ignore &&
		    storage_punch(img->st, hcluster << img->cluster_bits, n << img->cluster_bits))
			log_debug("%s: a hole was not punched", img->st->name);
		refcount_lower(img, hcluster, n);
		hcluster += n;
		count -= n;
	}
}

/* Raises one group's part of a run: *@n clusters, fewer where it fails. */
static int raise_in_group(struct qcow2_image *img, uint64_t hcluster, uint64_t count, uint64_t *n)
{
	uint32_t index = slice_index(img, hcluster);
	uint64_t want = min_of(count, group_entries(img) - index);
	struct slice *s;
	int ret = refcount_slice_get(img, hcluster, &s);

	*n = 0;
	if (ret || !s)
		return ret ? ret : -EIO;
	ret = slice_begin_change(&img->rc_cache, s);
	for (; !ret && *n < want; *n += !ret) {
		uint64_t value = slice_count_get(img, s, index + (uint32_t)*n);

		if (!value)
			ret = -EIO;
		else if (value == img->refcount_max)
			ret = -EFBIG;
		else
			slice_count_set(img, s, index + (uint32_t)*n, 1, value + 1);
	}
	cache_put(&img->rc_cache, s);
	return ret;
}

int refcount_raise(struct qcow2_image *img, uint64_t hcluster, uint64_t count, uint64_t *done)
{
	int ret = 0;

	*done = 0;
	while (!ret && *done < count) {
		uint64_t n;

		ret = raise_in_group(img, hcluster + *done, count - *done, &n);
		*done += n;
	}
	return ret;
}

int refcount_get(struct qcow2_image *img, uint64_t hcluster, uint64_t *value)
{
	struct slice *s;
	int ret = refcount_slice_get(img, hcluster, &s);

	*value = 0;
	if (ret || !s)
		return ret;
	*value = slice_count_get(img, s, slice_index(img, hcluster));
	cache_put(&img->rc_cache, s);
	return 0;
}

int refcount_share(struct qcow2_image *img, uint64_t hcluster,
		   bool (*still)(struct qcow2_image *img, uint64_t arg), uint64_t arg)
{
	uint32_t index = slice_index(img, hcluster);
	struct slice *s;
	uint64_t value;
	int ret = refcount_slice_get(img, hcluster, &s);

	if (ret || !s)
		return ret ? ret : -EIO;
	ret = slice_begin_change(&img->rc_cache, s);
	value = slice_count_get(img, s, index);
	if (!ret && (!still(img, arg) || !value))
		ret = -EAGAIN;
	if (!ret && value == img->refcount_max)
		ret = -ERANGE;
	if (!ret) {
		if (!mutant(MUTANT_COUNTS_NOT_LOGGED))
			reclog_table(img, RECLOG_REFCOUNT, hcluster, value, value + 1);
		slice_count_set(img, s, index, 1, value + 1);
	}
	cache_put(&img->rc_cache, s);
	return ret;
}

void refcount_undo(struct qcow2_image *img, uint64_t hcluster, uint64_t count)
{
	while (count) {
		uint64_t n = lower_in_group(img, hcluster, count, true);

		hcluster += n;
		count -= n;
	}
}

uint64_t refcount_read(struct qcow2_image *img, uint64_t hcluster)
{
	struct slice *s;
	uint64_t value;

	if (refcount_slice_get(img, hcluster, &s) || !s)
		return 0;
	value = slice_count_get(img, s, slice_index(img, hcluster));
	cache_put(&img->rc_cache, s);
	return value;
}

static int count_between(struct qcow2_image *img, uint64_t hcluster, uint64_t least, uint64_t most)
{
	uint32_t index = slice_index(img, hcluster);
	struct slice *s;
	uint64_t value;
	int ret = refcount_slice_get(img, hcluster, &s);

	if (ret || !s)
		return ret ? ret : -ESTALE;
	value = slice_count_get(img, s, index);
	if (value < least || value > most) {
		ret = slice_begin_change(&img->rc_cache, s);
		if (!ret)
			slice_count_set(img, s, index, 1, value < least ? least : most);
	}
	cache_put(&img->rc_cache, s);
	return ret;
}

int refcount_ensure(struct qcow2_image *img, uint64_t hcluster, uint64_t least)
{
	return count_between(img, hcluster, least, UINT64_MAX);
}

int refcount_assign(struct qcow2_image *img, uint64_t hcluster, uint64_t value)
{
	return count_between(img, hcluster, value, value);
}

void alloc_undo(struct qcow2_image *img, uint64_t hcluster, uint64_t count)
{
	refcount_lower(img, hcluster, count);
}

/* ---- growing the refcount structures ---- */

/* Makes the file at least @end_bytes long; under alloc_lock. */
static int extend_file(struct qcow2_image *img, uint64_t end_bytes)
{
	uint64_t unit = max_of(img->cluster_bytes, FILE_BLOCK_BYTES), to;
	int ret;

	if (end_bytes <= img->extended_bytes)
		return 0;
	if (img->st->fixed_size)
		return -ENOSPC;
	/* a quarter more, so that small files do not grow by the whole step */
	to = align_up(end_bytes + min_of(EXTEND_STEP_BYTES, end_bytes / 4), unit);
	/* Writes through entries of a broken image may have made it longer: never cut them off. */
	if (img->st->size_bytes > img->extended_bytes)
		img->foreign_bytes = img->st->size_bytes;
	to = max_of(to, img->foreign_bytes);
	ret = storage_truncate(img->st, to);
	if (ret == -EFBIG) { /* longer than files may be here; maybe what is needed is not */
		to = max_of(align_up(end_bytes, unit), img->foreign_bytes);
		ret = storage_truncate(img->st, to);
	}
	if (!ret)
		img->extended_bytes = to;
	return ret;
}

/*
 * Makes the block that counts @hcluster, at @hcluster itself: there is no block, so all of its range is
 * free. Under alloc_lock.
 */
static int refcount_block_create(struct qcow2_image *img, uint64_t hcluster)
{
	uint64_t index = hcluster >> img->rb_bits;
	uint64_t hoff = hcluster << img->cluster_bits, slice_hoff;
	struct slice *s;
	int ret;

	if (metaset_has(&img->metaset, hcluster)) {
		image_corrupt(img, "host cluster %#llx holds metadata, but no refcount block counts it",
			      (unsigned long long)hoff);
		return -EIO;
	}
	ret = extend_file(img, hoff + img->cluster_bytes);
	if (!ret)
		ret = image_write_zeros(img, hoff, img->cluster_bytes);
	if (!ret)
		ret = metaset_add(&img->metaset, hcluster);
	if (ret)
		return ret;
	slice_hoff = hoff + ((hcluster & (((uint64_t)1 << img->rb_bits) - 1)) >> img->rc_slice_bits) *
				    img->slice_bytes;
	ret = cache_get(&img->rc_cache, hcluster >> img->rc_slice_bits, slice_hoff, true, &s);
	if (!ret) {
		ret = slice_begin_change(&img->rc_cache, s);
		if (ret)
			cache_drop(&img->rc_cache, s);
	}
	if (ret) {
		metaset_remove(&img->metaset, hcluster);
		return ret;
	}
	/* From here on nothing suspends: no pass may take the table's entry without the block's count. */
	slice_count_set(img, s, slice_index(img, hcluster), 1, 1);
	reclog_table(img, RECLOG_RT, index, 0, hoff);
	table_set(&img->rt, img, index, hoff);
	cache_put(&img->rc_cache, s);
	img->append_hcluster = max_of(img->append_hcluster, hcluster + 1);
	if (img->zero_hcluster != UINT64_MAX)
		img->zero_hcluster = max_of(img->zero_hcluster, hcluster + 1);
	return 0;
}

/* Where a larger refcount table goes: new blocks, which count themselves and it, and the table. */
struct rt_plan {
	uint64_t first;	       /* host cluster; a multiple of what a block counts */
	uint64_t blocks, clusters;
	uint64_t entries, first_block;
};

static int rt_plan(struct qcow2_image *img, struct rt_plan *p)
{
	uint64_t per_cluster = img->cluster_bytes / sizeof(be64_t);
	uint64_t rb_entries = (uint64_t)1 << img->rb_bits;
	uint64_t max_clusters = QCOW2_MAX_REFCOUNT_TABLE_BYTES / img->cluster_bytes;
	uint64_t needed;

	p->first = img->rt.entries << img->rb_bits;
	if (!img->st->fixed_size) /* a device is searched from its start: there this is free */
		p->first = align_up(max_of(img->append_hcluster, p->first), rb_entries);
	p->first_block = p->first >> img->rb_bits;
	p->blocks = 1;
	for (;;) {
		needed = p->first_block + p->blocks + 1;
		p->clusters = min_of(div_up(needed + needed / 2, per_cluster), max_clusters);
		if (p->clusters * per_cluster < needed)
			return -EFBIG;
		if (p->blocks + p->clusters <= p->blocks * rb_entries)
			break;
		p->blocks++;
	}
	p->entries = p->clusters * per_cluster;
	if (p->entries <= img->rt.entries)
		return -EFBIG;
	if (p->first + p->blocks + p->clusters > img->end_hcluster)
		return -ENOSPC;
	for (uint64_t c = p->first; c < p->first + p->blocks + p->clusters; c++) {
		if (!metaset_has(&img->metaset, c))
			continue;
		image_corrupt(img, "host cluster %#llx holds metadata, but no refcount block counts it",
			      (unsigned long long)(c << img->cluster_bits));
		return -EIO;
	}
	return 0;
}

/* Writes the new blocks and the new table, whose entries are in img->rt.live already, and syncs. */
static int rt_write_new(struct qcow2_image *img, const struct rt_plan *p)
{
	uint64_t rb_entries = (uint64_t)1 << img->rb_bits, used = p->blocks + p->clusters;
	uint64_t per_cluster = img->cluster_bytes / sizeof(be64_t);
	int ret = extend_file(img, (p->first + used) << img->cluster_bits);

	for (uint64_t b = 0; !ret && b < p->blocks; b++) {
		uint64_t counted = used > b * rb_entries ? used - b * rb_entries : 0;

		memset(img->scratch, 0, img->cluster_bytes);
		for (uint64_t i = 0; i < min_of(counted, rb_entries); i++)
			qcow2_refcount_set(img->scratch, (uint32_t)i, img->refcount_order, 1);
		ret = storage_pwrite(img->st, (p->first + b) << img->cluster_bits, img->scratch,
				     img->cluster_bytes);
	}
	for (uint64_t c = 0; !ret && c < p->clusters; c++) {
		be64_t *entries = img->scratch;

		for (uint64_t i = 0; i < per_cluster; i++)
			entries[i] = be64_make(table_get(&img->rt, c * per_cluster + i));
		ret = storage_pwrite(img->st, (p->first + p->blocks + c) << img->cluster_bits,
				     img->scratch, img->cluster_bytes);
	}
	return ret ? ret : writeback_sync(img);
}

/* Switches the header over, durably. Where that fails, the header has the old table again. */
static int rt_switch(struct qcow2_image *img, const struct rt_plan *p)
{
	uint64_t old_offset = img->hdr.rt_offset;
	uint32_t old_clusters = img->hdr.rt_clusters;
	int ret = qcow2_header_set_refcount_table(img->st, &img->hdr,
						  (p->first + p->blocks) << img->cluster_bits,
						  (uint32_t)p->clusters);

	if (!ret)
		return writeback_sync(img);
	if (!img->hdr.update_wrote)
		return ret;
	/*
	 * The sector may be the old one or the new one. Both are right as long as neither table
	 * changes, so nothing goes on before it is known to be the old one.
	 */
	if (qcow2_header_set_refcount_table(img->st, &img->hdr, old_offset, old_clusters) ||
	    writeback_sync(img))
		writeback_give_up(img, ret);
	return ret;
}

/*
 * Moves the refcount table to a larger place at the end of the file (rules 3 and 17): a full pass, new
 * blocks and new table written and synced, then one write in the header's first sector, synced; only
 * then the old one is free. Under alloc_lock.
 */
static int refcount_table_grow(struct qcow2_image *img)
{
	struct table *t = &img->rt;
	uint64_t old_first = t->offset_bytes >> img->cluster_bits;
	uint64_t old_entries = t->entries, old_clusters = img->hdr.rt_clusters;
	struct rt_plan p;
	int ret = rt_plan(img, &p);

	if (!ret)
		ret = writeback_run(img);
	if (ret)
		return ret;
	for (uint64_t b = 0; b < p.blocks; b++)
		atomic_store(&t->live[p.first_block + b], (p.first + b) << img->cluster_bits);
	if (img->zero_hcluster != UINT64_MAX)
		img->zero_hcluster = max_of(img->zero_hcluster, p.first + p.blocks + p.clusters);
	reclaim_touch(&img->reclaim, p.first, p.blocks + p.clusters);
	ret = rt_write_new(img, &p);
	if (!ret)
		ret = rt_switch(img, &p);
	if (ret) {
		for (uint64_t b = 0; b < p.blocks; b++)
			atomic_store(&t->live[p.first_block + b], 0);
		return ret;
	}
	table_move(t, (p.first + p.blocks) << img->cluster_bits, p.entries, img->st->block_bytes);
	metaset_set_range(&img->metaset, METASET_RT, p.first + p.blocks, p.clusters);
	for (uint64_t b = 0; !ret && b < p.blocks; b++)
		ret = metaset_add(&img->metaset, p.first + b);
	img->append_hcluster = max_of(img->append_hcluster, p.first + p.blocks + p.clusters);
	refcount_lower(img, old_first, old_clusters);
	log_debug("%s: refcount table grown from %llu to %llu entries", img->st->name,
		  (unsigned long long)old_entries, (unsigned long long)p.entries);
	return ret;
}

/* ---- allocating ---- */

/*
 * The first run of free clusters in a slice from @index on, at most @want long. What a device's end
 * cuts off the group is not free.
 */
static bool find_run(const struct qcow2_image *img, const struct slice *s, uint32_t index,
		     uint64_t want, uint32_t *first, uint32_t *count)
{
	uint64_t group_first = s->key << img->rc_slice_bits;
	uint32_t n = (uint32_t)min_of(group_entries(img), img->end_hcluster - group_first), i;

	if (group_first >= img->end_hcluster)
		return false;
	while (index < n && slice_count_get(img, s, index))
		index++;
	if (index >= n)
		return false;
	for (i = index; i < n && i - index < want && !slice_count_get(img, s, i); i++)
		;
	*first = index;
	*count = i - index;
	return true;
}

/*
 * Takes a run from @hcluster's group, from @hcluster on. *@got is 0 if there is none. Makes the group's
 * refcount block if there is none and @may_create.
 */
static int take_from_group(struct qcow2_image *img, uint64_t hcluster, uint64_t want, bool may_create,
			   uint64_t *first, uint64_t *got)
{
	uint64_t group_first = align_down(hcluster, group_entries(img));
	struct slice *s;
	uint32_t index, count;
	int ret = 0;

	*got = 0;
	if (hcluster >> img->rb_bits >= img->rt.entries) {
		if (!may_create)
			return 0;
		ret = refcount_table_grow(img);
		/* its own clusters came from the end of the file, and so does what follows */
		return ret ? ret : -EAGAIN;
	}
	ret = refcount_slice_get(img, hcluster, &s);
	if (!ret && !s) {
		if (!may_create)
			return 0;
		ret = refcount_block_create(img, hcluster);
		return ret ? ret : -EAGAIN;
	}
	if (ret)
		return ret;
	if (!find_run(img, s, slice_index(img, hcluster), want, &index, &count)) {
		cache_put(&img->rc_cache, s);
		return 0;
	}
	ret = slice_begin_change(&img->rc_cache, s);
	if (!ret && find_run(img, s, slice_index(img, hcluster), want, &index, &count)) {
		for (uint32_t i = 0; i < count; i++) {
			if (!metaset_has(&img->metaset, group_first + index + i))
				continue;
			image_corrupt(img, "host cluster %#llx holds metadata but has refcount 0",
				      (unsigned long long)((group_first + index + i)
							   << img->cluster_bits));
			cache_put(&img->rc_cache, s);
			return -EIO;
		}
		slice_count_set(img, s, index, count, 1);
		*first = group_first + index;
		*got = count;
	}
	cache_put(&img->rc_cache, s);
	return ret;
}

static int take_reused(struct qcow2_image *img, uint64_t want, uint64_t *first, uint64_t *got)
{
	*got = 0;
	for (;;) {
		uint64_t from;
		int ret = 0;

		while (img->group_hint < img->groups && !group_candidate(img, img->group_hint))
			img->group_hint++;
		if (img->group_hint == img->groups)
			return 0;
		from = img->group_hint << img->rc_slice_bits;
		if (img->reuse_hcluster >> img->rc_slice_bits == img->group_hint)
			from = max_of(from, img->reuse_hcluster);
		/* On a device a group may have no block yet. */
		if (from < img->end_hcluster)
			ret = take_from_group(img, from, want, img->st->fixed_size, first, got);
		if (ret == -EAGAIN)
			continue;
		if (ret)
			return ret;
		if (*got) {
			img->reuse_hcluster = *first + *got;
			return 0;
		}
		/* What was freed behind the search is found by starting the group over. */
		if (from == img->group_hint << img->rc_slice_bits)
			group_mark(img, img->group_hint, false);
		img->reuse_hcluster = 0;
	}
}

static int take_appended(struct qcow2_image *img, uint64_t want, uint64_t *first, uint64_t *got)
{
	for (;;) {
		uint64_t from = img->append_hcluster;
		int ret;

		if (from >= img->end_hcluster)
			return -ENOSPC;
		if (from >= img->hclusters_max)
			return -EFBIG;
		ret = take_from_group(img, from, want, true, first, got);
		if (ret == -EAGAIN)
			continue;
		if (ret)
			return ret;
		if (*got) {
			img->append_hcluster = *first + *got;
			return 0;
		}
		img->append_hcluster = align_down(from, group_entries(img)) + group_entries(img);
	}
}

/*
 * A device that the image has filled may have become larger, for this very reason: hosts with logical volumes
 * do that. What is behind its former end was never used; of the group that this was in, the rest is free now.
 * Under alloc_lock.
 */
static bool device_grown(struct qcow2_image *img)
{
	uint64_t before = img->end_hcluster, end;

	if (!img->st->fixed_size)
		return false;
	storage_look(img->st);
	end = img->st->size_bytes >> img->cluster_bits;
	if (end <= before)
		return false;
	log_info("%s: is larger now, and goes on to %llu bytes", img->st->name,
		 (unsigned long long)img->st->size_bytes);
	img->end_hcluster = end;
	img->extended_bytes = img->st->size_bytes;
	img->append_hcluster = before;
	return true;
}

static void scan_start(struct qcow2_image *img);

int alloc_clusters(struct qcow2_image *img, uint64_t want, uint64_t *hcluster, uint64_t *got,
		   bool *zeroed)
{
	int ret;

	assert(want);
	co_lock(&img->alloc_lock);
	ret = take_reused(img, want, hcluster, got);
	if (!ret && !*got)
		ret = take_appended(img, want, hcluster, got);
	if (ret == -ENOSPC && device_grown(img))
		ret = take_appended(img, want, hcluster, got);
	if (!ret) {
		*zeroed = *hcluster >= img->zero_hcluster;
		if (img->zero_hcluster != UINT64_MAX)
			img->zero_hcluster = max_of(img->zero_hcluster, *hcluster + *got);
		/* A group that is reused may reach past the end of the file. */
		img->append_hcluster = max_of(img->append_hcluster, *hcluster + *got);
		ret = extend_file(img, (*hcluster + *got) << img->cluster_bits);
		if (ret)
			refcount_lower(img, *hcluster, *got);
	}
	co_unlock(&img->alloc_lock);
	if (!ret)
		scan_start(img);
	/* The end of what a refcount table counts, or of what a file may be, is an end of space. */
	return ret == -EFBIG ? -ENOSPC : ret;
}

/* ---- adjacent clusters for a table ---- */

/* A run inside of one group: from the end of a file, on a device from anywhere. Under alloc_lock. */
static int take_run(struct qcow2_image *img, uint64_t clusters, uint64_t *hcluster)
{
	uint64_t from = img->st->fixed_size ? 0 : img->append_hcluster;

	while (from < img->hclusters_max && from < img->end_hcluster) {
		uint64_t first, got;
		int ret = take_from_group(img, from, clusters, true, &first, &got);

		if (ret == -EAGAIN) {
			if (!img->st->fixed_size)
				from = max_of(from, img->append_hcluster);
			continue;
		}
		if (ret)
			return ret;
		*hcluster = first;
		if (got == clusters)
			return 0;
		if (got)
			refcount_lower(img, first, got);
		from = got ? first + got : align_down(from, group_entries(img)) + group_entries(img);
	}
	return -ENOSPC;
}

/* The first of @blocks adjacent blocks that do not exist; past the table's end none does. */
static uint64_t find_uncounted(const struct qcow2_image *img, uint64_t blocks)
{
	uint64_t index = 0, run = 0;

	if (!img->st->fixed_size)
		index = div_up(img->append_hcluster, (uint64_t)1 << img->rb_bits);
	for (; index < img->rt.entries && run < blocks; index++)
		run = table_get(&img->rt, index) ? 0 : run + 1;
	return index - run;
}

/* The blocks @p says, which count themselves and what is behind them; under alloc_lock. */
static int write_fresh_blocks(struct qcow2_image *img, const struct rt_plan *p)
{
	uint64_t rb_entries = (uint64_t)1 << img->rb_bits, used = p->blocks + p->clusters;
	int ret = extend_file(img, (p->first + used) << img->cluster_bits);

	for (uint64_t b = 0; !ret && b < p->blocks; b++) {
		uint64_t counted = used > b * rb_entries ? used - b * rb_entries : 0;

		memset(img->scratch, 0, img->cluster_bytes);
		for (uint64_t i = 0; i < min_of(counted, rb_entries); i++)
			qcow2_refcount_set(img->scratch, (uint32_t)i, img->refcount_order, 1);
		ret = storage_pwrite(img->st, (p->first + b) << img->cluster_bits, img->scratch,
				     img->cluster_bytes);
		img->wb.meta_writes++;
	}
	return ret;
}

/*
 * A run too long for one group, in a range that no block counts yet: the blocks come first, and the run
 * behind them is not interrupted by any. Under alloc_lock.
 */
static int take_fresh(struct qcow2_image *img, uint64_t clusters, uint64_t *hcluster)
{
	struct rt_plan p = {.clusters = clusters, .blocks = 1};
	int ret = 0;

	while (p.blocks + clusters > p.blocks << img->rb_bits)
		p.blocks++;
	for (;;) {
		p.first_block = find_uncounted(img, p.blocks);
		if (p.first_block + p.blocks <= img->rt.entries)
			break;
		ret = refcount_table_grow(img);
		if (ret)
			return ret;
	}
	p.first = p.first_block << img->rb_bits;
	if (p.first + p.blocks + clusters > min_of(img->end_hcluster, img->hclusters_max))
		return -ENOSPC;
	for (uint64_t c = p.first; c < p.first + p.blocks + clusters; c++)
		if (metaset_has(&img->metaset, c))
			return -EIO; /* in use, and counted by nothing */
	reclaim_touch(&img->reclaim, p.first, p.blocks + clusters);
	ret = write_fresh_blocks(img, &p);
	for (uint64_t b = 0; !ret && b < p.blocks; b++) {
		ret = metaset_add(&img->metaset, p.first + b);
		if (ret)
			break;
		reclog_table(img, RECLOG_RT, p.first_block + b, 0,
			     (p.first + b) << img->cluster_bits);
		table_set(&img->rt, img, p.first_block + b, (p.first + b) << img->cluster_bits);
	}
	*hcluster = p.first + p.blocks;
	return ret;
}

int alloc_contiguous(struct qcow2_image *img, uint64_t clusters, uint64_t *hcluster)
{
	int ret;

	assert(clusters);
	co_lock(&img->alloc_lock);
	/* the group's own block may be in the way */
	do
		ret = clusters < group_entries(img) ? take_run(img, clusters, hcluster)
						    : take_fresh(img, clusters, hcluster);
	while (ret == -ENOSPC && device_grown(img));
	if (!ret) {
		uint64_t end = *hcluster + clusters;

		img->append_hcluster = max_of(img->append_hcluster, end);
		if (img->zero_hcluster != UINT64_MAX)
			img->zero_hcluster = max_of(img->zero_hcluster, end);
		ret = extend_file(img, end << img->cluster_bits);
		if (ret)
			refcount_lower(img, *hcluster, clusters);
	}
	co_unlock(&img->alloc_lock);
	return ret == -EFBIG ? -ENOSPC : ret;
}

/* ---- finding free clusters in the background ---- */

static void scan_task(struct co_task *task)
{
	struct qcow2_image *img = container_of(task, struct qcow2_image, scan_task);
	uint64_t end = div_up(img->opened_bytes, img->cluster_bytes) >> img->rc_slice_bits;

	for (uint64_t g = 0; g <= end && !img->scan_stop; g++) {
		uint64_t used_clusters = div_up(img->opened_bytes, img->cluster_bytes);
		struct slice *s;
		uint32_t first, count;

		if (refcount_slice_get(img, g << img->rc_slice_bits, &s))
			break;
		if (!s)
			continue;
		if (find_run(img, s, 0, 1, &first, &count) &&
		    (g << img->rc_slice_bits) + first < used_clusters)
			group_mark(img, g, true);
		cache_put(&img->rc_cache, s);
		co_yield();
	}
	img->scan_running = false;
	co_wake_all(&img->idle);
}

static void scan_start(struct qcow2_image *img)
{
	if (img->scan_started || !img->meta_loop)
		return;
	img->scan_started = true;
	img->scan_running = true;
	img->scan_task.fn = scan_task;
	loop_spawn(img->meta_loop, &img->scan_task);
}

void alloc_stop_scan(struct qcow2_image *img)
{
	img->scan_stop = true;
	while (img->scan_running)
		co_wait(&img->idle);
}
