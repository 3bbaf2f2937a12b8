/* SPDX-License-Identifier: MIT */
/*
 * bitmaps_save.c: what was recorded is merged into the bitmaps in the file; see bitmaps.h for the order.
 *
 * Each bitmap is prepared by itself: its clusters are read, merged and written, in place or to new ones; a
 * table that has become too short gets another place. A bitmap that fails there is left out, what was
 * allocated for it is given back, and it stays inconsistent. The steps after that are for all at once; an
 * error there leaves all of them inconsistent.
 *
 * Until in_use is cleared nothing that is done here can be taken for a bitmap, so that clusters and table
 * entries are changed in place; still each state in between is whole: a table entry is written after its
 * cluster's count, the place of a longer table before its length, and the length together with in_use, which
 * is in the same aligned word. What is not needed any more is free when all that is durable.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"
#include "qcow2/image.h"

/* ---- clusters ---- */

static uint64_t table_clusters(const struct qcow2_image *img, uint64_t entries)
{
	return div_up(entries * sizeof(be64_t), img->cluster_bytes);
}

/* Adjacent clusters, with room in the log for what that changes. */
static int clusters_get(struct qcow2_image *img, uint64_t clusters, uint64_t *hcluster)
{
	uint64_t records = 2 * (clusters >> img->rb_bits) + 16;
	int ret;

	if (img->reclog.header)
		records = min_of(records, img->reclog.capacity / 4);
	ret = reclog_reserve(img, records);
	if (ret)
		return ret;
	ret = alloc_contiguous(img, clusters, hcluster);
	reclog_unreserve(img, records);
	return ret;
}

/* Sets bits [@first, @end) of @buf, least significant first; whether any was clear. */
static bool bits_set(uint8_t *buf, uint64_t first, uint64_t end)
{
	bool any = false;

	while (first < end) {
		unsigned from = (unsigned)(first % 8), n = (unsigned)min_of(end - first, (uint64_t)8 - from);
		uint8_t mask = (uint8_t)((0xffu >> (8 - n)) << from);

		any |= (buf[first / 8] & mask) != mask;
		buf[first / 8] |= mask;
		first += n;
	}
	return any;
}

/* Clears all bits from @first on, of @bits; whether any was set. */
static bool tail_clear(uint8_t *buf, uint64_t first, uint64_t bits)
{
	bool any = false;

	for (; first < bits && first % 8; first++) {
		uint8_t mask = (uint8_t)(1u << (first % 8));

		any |= buf[first / 8] & mask;
		buf[first / 8] &= (uint8_t)~mask;
	}
	for (; first < bits; first += 8) {
		any |= buf[first / 8];
		buf[first / 8] = 0;
	}
	return any;
}

static int cluster_read(struct qcow2_image *img, uint64_t entry, uint8_t *buf)
{
	uint64_t hoff = entry & QCOW2_BITMAP_ENTRY_OFFSET;

	if (hoff)
		return storage_pread(img->st, hoff, buf, img->cluster_bytes);
	memset(buf, entry & QCOW2_BITMAP_ENTRY_ALL_ONES ? 0xff : 0, img->cluster_bytes);
	return 0;
}

/* Merges what was recorded into cluster @i of a bitmap's. */
static int cluster_merge(struct qcow2_image *img, const struct bitmap_entry *e, struct bitmap_state *s,
			 uint32_t i, uint8_t *buf)
{
	const struct bitmaps *b = &img->bitmaps;
	unsigned g = e->granularity_bits;
	uint64_t bits = (uint64_t)img->cluster_bytes * 8, disk_bits = div_up(img->size_bytes, (uint64_t)1 << g);
	uint64_t base = i * bits, last = min_of(bits, disk_bits - base), at = base << g;
	uint64_t to = min_of((base + last) << g, img->size_bytes), first, end, hcluster;
	bool enabled = e->flags & QCOW2_BITMAP_AUTO, cut = b->resized && last < bits, changed;
	int ret;

	if (!cut && !(enabled && bitmaps_any(b, at, to)))
		return 0;
	ret = cluster_read(img, s->next[i], buf);
	if (ret)
		return ret;
	changed = last < bits && tail_clear(buf, last, bits);
	for (; enabled && bitmaps_next(b, at, to, &first, &end); at = end)
		changed |= bits_set(buf, (first >> g) - base, ((end - 1) >> g) + 1 - base);
	if (!changed)
		return 0;
	if (!(s->next[i] & QCOW2_BITMAP_ENTRY_OFFSET)) {
		ret = clusters_get(img, 1, &hcluster);
		if (ret)
			return ret;
		s->next[i] = hcluster << img->cluster_bits;
	}
	img->wb.meta_writes++;
	return storage_pwrite(img->st, s->next[i], buf, img->cluster_bytes);
}

/* ---- one bitmap ---- */

/* What was made for a bitmap that fails: nothing refers to it. */
static void give_back(struct qcow2_image *img, const struct bitmap_entry *e, struct bitmap_state *s)
{
	for (uint32_t i = 0; s->next && i < s->next_entries; i++) {
		uint64_t old = i < e->table_entries ? s->table[i] & QCOW2_BITMAP_ENTRY_OFFSET : 0;

		if (!old && s->next[i] & QCOW2_BITMAP_ENTRY_OFFSET)
			alloc_undo(img, s->next[i] >> img->cluster_bits, 1);
	}
	if (s->next && s->next_offset != e->table_offset)
		alloc_undo(img, s->next_offset >> img->cluster_bits, table_clusters(img, s->next_entries));
	free(s->next);
	s->next = NULL;
	s->next_entries = 0;
	s->next_offset = e->table_offset;
}

/* Where the bitmap's parts are to lie: as far as that is known before they are merged. */
static int bitmap_lay_out(struct qcow2_image *img, const struct bitmap_entry *e, struct bitmap_state *s,
			  uint64_t entries)
{
	uint64_t hcluster;
	int ret;

	s->next_offset = e->table_offset;
	s->next = calloc(entries, sizeof(*s->next));
	if (!s->next)
		return -ENOMEM;
	s->next_entries = (uint32_t)entries;
	memcpy(s->next, s->table, min_of(entries, (uint64_t)e->table_entries) * sizeof(*s->next));
	if (table_clusters(img, entries) <= table_clusters(img, e->table_entries))
		return 0;
	ret = clusters_get(img, table_clusters(img, entries), &hcluster);
	if (!ret)
		s->next_offset = hcluster << img->cluster_bits;
	return ret;
}

/* May be done several times, with more to be merged each time: what it has got it keeps. */
static int bitmap_prepare(struct qcow2_image *img, const struct bitmap_entry *e, struct bitmap_state *s)
{
	uint64_t entries = bitmap_entries_for(img->size_bytes, e->granularity_bits, img->cluster_bits);
	uint8_t *buf;
	int ret = 0;

	if (s->next && s->next_entries != entries) /* the disk has been resized since */
		give_back(img, e, s);
	if (!entries || entries << img->cluster_bits > QCOW2_MAX_BITMAP_BYTES)
		return -EFBIG; /* no bitmap has that length */
	buf = aligned_alloc(4096, max_of(img->cluster_bytes, 4096u));
	if (!buf)
		return -ENOMEM;
	if (!s->next)
		ret = bitmap_lay_out(img, e, s, entries);
	for (uint32_t i = 0; !ret && i < entries; i++)
		ret = cluster_merge(img, e, s, i, buf);
	free(buf);
	return ret;
}

/* ---- tables ---- */

/* Whether entries [@first, @end) are not in the file as they are to be. */
static bool entries_differ(const struct bitmap_entry *e, const struct bitmap_state *s, uint32_t first,
			   uint32_t end)
{
	for (uint32_t i = first; i < end; i++)
		if (i >= e->table_entries || s->next[i] != s->table[i])
			return true;
	return s->next_offset != e->table_offset;
}

/* In place block by block, or to its new place whole. */
static int table_save(struct qcow2_image *img, const struct bitmap_entry *e, const struct bitmap_state *s,
		      bool *wrote)
{
	bool whole = s->next_offset != e->table_offset;
	uint32_t unit = whole ? img->cluster_bytes : max_of(img->st->block_bytes, 512u);
	uint32_t per_unit = unit / sizeof(be64_t);
	be64_t *buf = aligned_alloc(4096, max_of(unit, 4096u));
	int ret = buf ? 0 : -ENOMEM;

	for (uint32_t first = 0; !ret && first < s->next_entries; first += per_unit) {
		uint32_t end = min_of(first + per_unit, s->next_entries);

		if (!entries_differ(e, s, first, end))
			continue;
		memset(buf, 0, unit);
		for (uint32_t i = first; i < end; i++)
			buf[i - first] = be64_make(s->next[i]);
		ret = storage_pwrite(img->st, s->next_offset + first * sizeof(be64_t), buf, unit);
		img->wb.meta_writes++;
		*wrote = true;
	}
	free(buf);
	return ret;
}

/* What the file had and does not need any more. */
static void release_old(struct qcow2_image *img, const struct bitmap_state *s, uint64_t old_offset,
			uint32_t old_entries)
{
	uint64_t old = table_clusters(img, old_entries), next = table_clusters(img, s->next_entries);

	for (uint32_t i = s->next_entries; i < old_entries; i++)
		if (s->table[i] & QCOW2_BITMAP_ENTRY_OFFSET)
			refcount_release(img, s->table[i] >> img->cluster_bits, 1);
	if (s->next_offset != old_offset)
		refcount_release(img, old_offset >> img->cluster_bits, old);
	else if (next < old)
		refcount_release(img, (old_offset >> img->cluster_bits) + next, old - next);
}

/* ---- all of them ---- */

static bool is_to_be_saved(const struct bitmaps *b, uint32_t i)
{
	return b->v[i].role == BITMAP_OURS && b->dir.v[i].flags & QCOW2_BITMAP_IN_USE && !b->v[i].failed;
}

static uint32_t count_to_be_saved(const struct bitmaps *b)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < b->dir.count; i++)
		n += is_to_be_saved(b, i);
	return n;
}

static void prepare_all(struct qcow2_image *img)
{
	struct bitmaps *b = &img->bitmaps;

	for (uint32_t i = 0; i < b->dir.count; i++) {
		int ret;

		if (!is_to_be_saved(b, i))
			continue;
		ret = bitmap_prepare(img, &b->dir.v[i], &b->v[i]);
		if (!ret)
			continue;
		give_back(img, &b->dir.v[i], &b->v[i]);
		b->v[i].failed = true;
		bitmaps_warn(img, i, "could not be saved, and stays marked as inconsistent: %s",
			     error_text(NULL, ret));
	}
}

/* Whether an error goes away when there is more space. */
static bool is_full(int ret)
{
	return ret == -ENOSPC || ret == -EDQUOT;
}

int bitmaps_get_room(struct qcow2_image *img)
{
	struct bitmaps *b = &img->bitmaps;
	int ret = 0;

	for (uint32_t i = 0; !is_full(ret) && i < b->dir.count; i++) {
		if (!is_to_be_saved(b, i))
			continue;
		ret = bitmap_prepare(img, &b->dir.v[i], &b->v[i]);
		if (ret)
			give_back(img, &b->dir.v[i], &b->v[i]);
	}
	return is_full(ret) ? ret : 0;
}

static int save_tables(struct qcow2_image *img)
{
	struct bitmaps *b = &img->bitmaps;
	bool wrote = false;
	int ret = 0;

	for (uint32_t i = 0; !ret && i < b->dir.count; i++)
		if (is_to_be_saved(b, i))
			ret = table_save(img, &b->dir.v[i], &b->v[i], &wrote);
	return ret || !wrote ? ret : writeback_sync(img);
}

/* Tables that lie elsewhere now are as good as the old ones, of which they are a continuation. */
static int save_places(struct qcow2_image *img)
{
	struct bitmaps *b = &img->bitmaps;
	bool any = false;
	int ret;

	for (uint32_t i = 0; i < b->dir.count; i++) {
		struct bitmap_entry *e = &b->dir.v[i];

		if (!is_to_be_saved(b, i) || b->v[i].next_offset == e->table_offset)
			continue;
		bitmap_dir_set(&b->dir, e, e->flags, b->v[i].next_offset, e->table_entries);
		any = true;
	}
	if (!any)
		return 0;
	ret = bitmaps_write_dir(img);
	return ret ? ret : writeback_sync(img);
}

/* They are valid from here on. */
static int save_lengths(struct qcow2_image *img)
{
	struct bitmaps *b = &img->bitmaps;
	int ret;

	for (uint32_t i = 0; i < b->dir.count; i++) {
		struct bitmap_entry *e = &b->dir.v[i];

		if (is_to_be_saved(b, i))
			bitmap_dir_set(&b->dir, e, e->flags & ~QCOW2_BITMAP_IN_USE, e->table_offset,
				       b->v[i].next_entries);
	}
	ret = bitmaps_write_dir(img);
	return ret ? ret : writeback_sync(img);
}

/* What each entry's table was before, for release_old(); by now the entries say what they are to be. */
struct old_table {
	uint32_t bitmap, entries;
	uint64_t offset;
};

static uint32_t remember(const struct bitmaps *b, struct old_table *old)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < b->dir.count; i++)
		if (is_to_be_saved(b, i))
			old[n++] = (struct old_table){.bitmap = i,
						      .entries = b->dir.v[i].table_entries,
						      .offset = b->dir.v[i].table_offset};
	return n;
}

static int save_all(struct qcow2_image *img)
{
	int ret = mutant(MUTANT_BITMAP_VALID_EARLY) ? save_lengths(img) : 0;

	/* refcounts, and a sync for the clusters */
	if (!ret)
		ret = writeback_run(img);
	if (!ret)
		ret = save_tables(img);
	if (!ret)
		ret = save_places(img);
	return ret ? ret : save_lengths(img);
}

int bitmaps_save(struct qcow2_image *img)
{
	struct bitmaps *b = &img->bitmaps;
	struct old_table *old;
	uint32_t n;
	int ret;

	if (!count_to_be_saved(b))
		return 0;
	prepare_all(img);
	old = calloc(b->dir.count, sizeof(*old));
	n = old ? remember(b, old) : 0;
	if (n) {
		ret = save_all(img);
		if (ret)
			log_warn("%s: the dirty bitmaps could not be saved, and stay marked as inconsistent: %s",
				 img->st->name, error_text(NULL, ret));
		for (uint32_t i = 0; !ret && i < n; i++)
			release_old(img, &b->v[old[i].bitmap], old[i].offset, old[i].entries);
	}
	free(old);
	/* counts that were lowered; where they cannot be written something is leaked */
	if (!img->wb.sync_failed && image_settle(img))
		log_warn("%s: what the dirty bitmaps do not need any more is not given back",
			 img->st->name);
	return img->wb.sync_failed;
}
