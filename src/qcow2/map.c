/* SPDX-License-Identifier: MIT */
/* map.c: see map.h. */
#include "qcow2/map.h"

#include <errno.h>
#include <string.h>

#include "qcow2/alloc.h"

/* ---- validation ---- */

static bool entry_is_broken(const struct qcow2_image *img, uint64_t entry)
{
	uint64_t hoff = entry & QCOW2_L2_OFFSET_MASK;

	if (entry & QCOW2_COMPRESSED) {
		uint64_t count, first = map_entry_hclusters(img, entry, &count);

		/* what it holds is judged when it is read; freeing it must not reach metadata */
		if (entry & QCOW2_COPIED || first + count > img->hclusters_max)
			return true;
		for (uint64_t i = 0; i < count; i++)
			if (metaset_has(&img->metaset, first + i))
				return true;
		return false;
	}
	if (entry & QCOW2_L2_RESERVED)
		return true;
	if (img->hdr.version < 3 && entry & QCOW2_ZERO)
		return true;
	if (!hoff)
		return entry & QCOW2_COPIED;
	if (hoff & (img->cluster_bytes - 1))
		return true;
	return hoff >> img->cluster_bits >= img->hclusters_max ||
	       metaset_has(&img->metaset, hoff >> img->cluster_bits);
}

void map_slice_validate(struct qcow2_image *img, struct slice *s)
{
	uint32_t n = 1u << img->l2_slice_bits;
	bool any = false;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t entry = map_entry_load(s, i);

		if (!entry || !entry_is_broken(img, entry))
			continue;
		s->bad[i / 64] |= (uint64_t)1 << (i % 64);
		any = true;
		image_corrupt(img, "L2 entry of guest offset %#llx (%#llx) is invalid",
			      (unsigned long long)(((s->key << img->l2_slice_bits) + i)
						   << img->cluster_bits),
			      (unsigned long long)entry);
	}
	atomic_store_explicit(&s->has_bad, any, memory_order_relaxed);
}

/* ---- looking up ---- */

/* Whether the entry @next goes on where @n clusters from @first ended. */
static bool entry_continues(const struct qcow2_image *img, uint64_t first, uint64_t next, uint64_t n)
{
	enum map_kind kind = map_entry_kind(first);

	if (map_entry_kind(next) != kind || (first ^ next) & QCOW2_COPIED)
		return false;
	if (kind != MAP_DATA && kind != MAP_ZERO_ALLOC)
		return kind != MAP_COMPRESSED;
	return (next & QCOW2_L2_OFFSET_MASK) ==
	       (first & QCOW2_L2_OFFSET_MASK) + (n << img->cluster_bits);
}

/* The extent at @goff as the entries of one slice give it. */
static void slice_extent(struct qcow2_image *img, const struct slice *s, uint64_t goff,
			 uint64_t max_bytes, struct map_extent *ext)
{
	uint32_t in_cluster = (uint32_t)(goff & (img->cluster_bytes - 1));
	uint32_t index = map_slice_index(img, goff >> img->cluster_bits);
	uint32_t end = 1u << img->l2_slice_bits;
	uint64_t entry = map_entry_load(s, index);
	uint64_t len = img->cluster_bytes - in_cluster;

	*ext = (struct map_extent){.kind = map_entry_kind(entry),
				   .copied = entry & QCOW2_COPIED,
				   .hoff = (entry & QCOW2_L2_OFFSET_MASK) + in_cluster,
				   .entry = entry,
				   .img = img,
				   .st = img->st};
	if (map_entry_is_bad(s, index)) {
		ext->kind = MAP_BROKEN;
	} else {
		for (uint32_t i = index + 1; len < max_bytes && i < end; i++) {
			if (map_entry_is_bad(s, i) ||
			    !entry_continues(img, entry, map_entry_load(s, i), i - index))
				break;
			len += img->cluster_bytes;
		}
	}
	ext->len_bytes = min_of(len, max_bytes);
}

/* The extent where a whole L2 table is missing. */
static void no_table_extent(struct qcow2_image *img, uint64_t goff, uint64_t max_bytes,
			    struct map_extent *ext)
{
	uint64_t span = (uint64_t)img->cluster_bytes << img->l2_bits;

	*ext = (struct map_extent){.kind = MAP_UNALLOCATED,
				   .img = img,
				   .st = img->st,
				   .len_bytes = min_of(span - (goff & (span - 1)), max_bytes)};
}

static uint64_t l1_index(const struct qcow2_image *img, uint64_t gcluster)
{
	return gcluster >> img->l2_bits;
}

int map_peek(struct qcow2_image *img, uint64_t goff, uint64_t max_bytes, struct map_extent *ext)
{
	uint64_t gcluster = goff >> img->cluster_bits;
	struct slice *s = cache_peek(&img->l2_cache, map_slice_key(img, gcluster));

	if (s) {
		slice_extent(img, s, goff, max_bytes, ext);
		return 0;
	}
	if (table_get(&img->l1, l1_index(img, gcluster)))
		return -EAGAIN;
	no_table_extent(img, goff, max_bytes, ext);
	return 0;
}

int map_lookup(struct qcow2_image *img, uint64_t goff, uint64_t max_bytes, struct map_extent *ext)
{
	struct slice *s;
	int ret = map_slice_get(img, goff >> img->cluster_bits, false, &s);

	if (ret)
		return ret;
	if (!s) {
		no_table_extent(img, goff, max_bytes, ext);
		return 0;
	}
	slice_extent(img, s, goff, max_bytes, ext);
	cache_put(&img->l2_cache, s);
	return 0;
}

/* ---- L2 tables ---- */

static int l2_table_offset(struct qcow2_image *img, uint64_t index, uint64_t *hoff)
{
	uint64_t entry = table_get(&img->l1, index);

	*hoff = entry & QCOW2_L1_OFFSET_MASK;
	if (!entry)
		return 0;
	if (entry & L1_BROKEN || !*hoff) {
		image_corrupt(img, "L1 entry %llu (%#llx) is invalid", (unsigned long long)index,
			      (unsigned long long)be64_get(img->l1.disk[index]));
		return -EIO;
	}
	return 0;
}

/* Makes the table of L1 entry @index, empty; under l1_lock. */
static int l2_table_create(struct qcow2_image *img, uint64_t index)
{
	uint64_t hcluster, got, entry;
	bool zeroed;
	int ret = alloc_clusters(img, 1, &hcluster, &got, &zeroed);

	if (ret)
		return ret;
	entry = hcluster << img->cluster_bits | QCOW2_COPIED;
	if (mutant(MUTANT_L1_BEFORE_L2)) /* a pass may now write the entry before the table's zeros */
		table_set(&img->l1, img, index, entry);
	ret = image_write_zeros(img, hcluster << img->cluster_bits, img->cluster_bytes);
	if (!ret)
		ret = metaset_add(&img->metaset, hcluster);
	if (ret) {
		alloc_undo(img, hcluster, 1);
		return ret;
	}
	reclog_table(img, RECLOG_L1, index, 0, entry);
	table_set(&img->l1, img, index, entry);
	return 0;
}

int map_slice_get(struct qcow2_image *img, uint64_t gcluster, bool create, struct slice **out)
{
	uint64_t index = l1_index(img, gcluster), hoff;
	uint64_t in_table = gcluster & (((uint64_t)1 << img->l2_bits) - 1);
	int ret;

	*out = NULL;
	ret = l2_table_offset(img, index, &hoff);
	if (ret)
		return ret;
	if (!hoff) {
		if (!create)
			return 0;
		co_lock(&img->l1_lock);
		if (!table_get(&img->l1, index))
			ret = l2_table_create(img, index);
		co_unlock(&img->l1_lock);
		if (!ret)
			ret = l2_table_offset(img, index, &hoff);
		if (ret)
			return ret;
	}
	return cache_get(&img->l2_cache, map_slice_key(img, gcluster),
			 hoff + (in_table >> img->l2_slice_bits) * img->slice_bytes, false, out);
}

void map_entry_unref(struct qcow2_image *img, uint64_t entry, unsigned *reserved)
{
	uint64_t count, first = map_entry_hclusters(img, entry, &count);

	for (uint64_t i = 0; i < count; i++)
		frees_add(img, first + i, reserved);
}

void map_entry_store(struct qcow2_image *img, struct slice *s, uint32_t index, uint64_t entry)
{
	__atomic_store_n(&map_entry_at(s, index)->raw, be64_make(entry).raw, __ATOMIC_RELEASE);
	slice_mark_dirty(&img->l2_cache, s, index * (uint32_t)sizeof(be64_t), sizeof(be64_t));
}
