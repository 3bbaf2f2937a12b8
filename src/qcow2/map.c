/* SPDX-License-Identifier: MIT */
/* map.c: see map.h. */
#include "qcow2/map.h"

#include <errno.h>
#include <string.h>

#include "qcow2/alloc.h"

/* ---- validation ---- */

static bool hclusters_are_broken(const struct qcow2_image *img, uint64_t word)
{
	uint64_t count, first = map_entry_hclusters(img, word, &count);

	if (first + count > img->hclusters_max)
		return true;
	for (uint64_t i = 0; i < count; i++)
		if (metaset_has(&img->metaset, first + i))
			return true;
	return false;
}

static bool bitmap_is_broken(struct map_entry e)
{
	uint64_t alloc = e.bitmap & QCOW2_SUBCLUSTERS_ALLOC_MASK;

	/* bit 0, the zero flag of a standard entry, says nothing here; QEMU does not look at it either */
	return alloc & e.bitmap >> QCOW2_SUBCLUSTERS || (alloc && !(e.word & MAP_PLACED));
}

static bool entry_is_broken(const struct qcow2_image *img, uint64_t gcluster, struct map_entry e)
{
	uint64_t hoff = e.word & QCOW2_L2_OFFSET_MASK;

	/*
	 * What a compressed one holds is judged when it is read; freeing it must not reach metadata. COPIED
	 * is wrong there, and means nothing: QEMU reads it, and so do we.
	 */
	if (e.word & QCOW2_COMPRESSED)
		return image_has_data_file(img) || hclusters_are_broken(img, e.word);
	if (e.word & QCOW2_L2_RESERVED || (img->hdr.version < 3 && e.word & QCOW2_ZERO))
		return true;
	if (img->extended_l2 && bitmap_is_broken(e))
		return true;
	if (image_has_data_file(img))
		return e.word & MAP_PLACED && hoff != gcluster << img->cluster_bits;
	if (!hoff)
		return e.word & QCOW2_COPIED;
	return hoff & (img->cluster_bytes - 1) || hclusters_are_broken(img, e.word);
}

void map_slice_validate(struct qcow2_image *img, struct slice *s)
{
	uint32_t n = 1u << img->l2_slice_bits;
	bool any = false;

	for (uint32_t i = 0; i < n; i++) {
		struct map_entry entry = map_entry_load(img, s, i);

		if (map_entry_is_empty(entry) ||
		    !entry_is_broken(img, (s->key << img->l2_slice_bits) + i, entry))
			continue;
		s->bad[i / 64] |= (uint64_t)1 << (i % 64);
		any = true;
		image_corrupt(img, "L2 entry of guest offset %#llx (%#llx) is invalid",
			      (unsigned long long)(((s->key << img->l2_slice_bits) + i)
						   << img->cluster_bits),
			      (unsigned long long)entry.word);
	}
	atomic_store_explicit(&s->has_bad, any, memory_order_relaxed);
}

/* ---- looking up ---- */

/* Whether the word @next goes on where @n clusters from @first ended. */
static bool word_continues(const struct qcow2_image *img, uint64_t first, uint64_t next, uint64_t n)
{
	enum map_kind kind = map_word_kind(first);

	if (map_word_kind(next) != kind || (first ^ next) & QCOW2_COPIED)
		return false;
	if (kind != MAP_DATA && kind != MAP_ZERO_ALLOC)
		return kind != MAP_COMPRESSED;
	return (next & QCOW2_L2_OFFSET_MASK) ==
	       (first & QCOW2_L2_OFFSET_MASK) + (n << img->cluster_bits);
}

/* How many bytes from the start of cluster @index on are like the ones there; standard entries. */
static uint64_t standard_run(const struct qcow2_image *img, const struct slice *s, uint32_t index,
			     uint64_t want_bytes)
{
	uint32_t end = 1u << img->l2_slice_bits;
	uint64_t first = map_word_load(s, index), len = img->cluster_bytes;

	for (uint32_t i = index + 1; len < want_bytes && i < end; i++) {
		if (map_entry_is_bad(s, i) ||
		    !word_continues(img, first, map_word_load(s, i), i - index))
			break;
		len += img->cluster_bytes;
	}
	return len;
}

/* The same from subcluster @sub of that cluster on; extended entries. */
static uint64_t subcluster_run(const struct qcow2_image *img, const struct slice *s, uint32_t index,
			       unsigned sub, uint64_t want_bytes)
{
	uint32_t end = 1u << img->l2_slice_bits;
	struct map_entry first = map_entry_load(img, s, index), e = first;
	enum map_kind kind = map_subcluster_kind(first, sub);
	bool placed = kind == MAP_DATA || kind == MAP_ZERO_ALLOC;
	uint64_t len = 0, hoff = first.word & QCOW2_L2_OFFSET_MASK;

	if (kind == MAP_COMPRESSED)
		return (uint64_t)(QCOW2_SUBCLUSTERS - sub) << img->subcluster_bits;
	for (;;) {
		for (; sub < QCOW2_SUBCLUSTERS; sub++) {
			if (map_subcluster_kind(e, sub) != kind)
				return len;
			len += (uint64_t)1 << img->subcluster_bits;
		}
		sub = 0;
		hoff += img->cluster_bytes;
		if (len >= want_bytes || ++index == end || map_entry_is_bad(s, index))
			return len;
		e = map_entry_load(img, s, index);
		if (placed && ((e.word & QCOW2_L2_OFFSET_MASK) != hoff ||
			       (e.word ^ first.word) & QCOW2_COPIED))
			return len;
	}
}

/* The extent at @goff as the entries of one slice give it. */
static void slice_extent(struct qcow2_image *img, const struct slice *s, uint64_t goff,
			 uint64_t max_bytes, struct map_extent *ext)
{
	uint32_t in_cluster = (uint32_t)(goff & (img->cluster_bytes - 1));
	uint32_t index = map_slice_index(img, goff >> img->cluster_bits);
	struct map_entry e = map_entry_load(img, s, index);
	unsigned sub = in_cluster >> img->subcluster_bits;
	uint64_t len, skip = in_cluster;

	*ext = (struct map_extent){
		.kind = img->extended_l2 ? map_subcluster_kind(e, sub) : map_word_kind(e.word),
		.copied = e.word & QCOW2_COPIED,
		.hoff = (e.word & QCOW2_L2_OFFSET_MASK) + in_cluster,
		.entry = e.word,
		.img = img,
		.st = img->data,
	};
	if (mutant(MUTANT_IN_PLACE_RELOCATED) && cluster_is_locked(&img->locks, goff >> img->cluster_bits))
		ext->copied = true;
	if (map_entry_is_bad(s, index)) {
		ext->kind = MAP_BROKEN;
		len = img->cluster_bytes;
	} else if (!img->extended_l2) {
		len = standard_run(img, s, index, max_bytes + skip);
	} else {
		skip &= ((uint32_t)1 << img->subcluster_bits) - 1;
		len = subcluster_run(img, s, index, sub, max_bytes + skip);
	}
	/* two words may have been read while they changed: then this is thrown away, but must be sane */
	ext->len_bytes = min_of(max_of(len, skip + 1) - skip, max_bytes);
}

/* The extent where a whole L2 table is missing. */
static void no_table_extent(struct qcow2_image *img, uint64_t goff, uint64_t max_bytes,
			    struct map_extent *ext)
{
	uint64_t span = (uint64_t)img->cluster_bytes << img->l2_bits;

	*ext = (struct map_extent){.kind = MAP_UNALLOCATED,
				   .img = img,
				   .st = img->data,
				   .len_bytes = min_of(span - (goff & (span - 1)), max_bytes)};
}

static uint64_t l1_index(const struct qcow2_image *img, uint64_t gcluster)
{
	return gcluster >> img->l2_bits;
}

/* Rule 12: what was read counts if no entry of the slice changed meanwhile. */
static int peek_changing(struct qcow2_image *img, const struct slice *s, uint64_t goff,
			 uint64_t max_bytes, struct map_extent *ext)
{
	for (unsigned n = 0; n < 4; n++) {
		uint32_t before = atomic_load_explicit(&s->changes, memory_order_acquire);

		/* words are loaded with acquire, so the count after them */
		slice_extent(img, s, goff, max_bytes, ext);
		if (!(before & 1) &&
		    before == atomic_load_explicit(&s->changes, memory_order_relaxed))
			return 0;
	}
	return -EAGAIN;
}

int map_peek(struct qcow2_image *img, uint64_t goff, uint64_t max_bytes, struct map_extent *ext)
{
	uint64_t gcluster = goff >> img->cluster_bits;
	struct slice *s = cache_peek(&img->l2_cache, map_slice_key(img, gcluster));

	if (s && img->extended_l2)
		return peek_changing(img, s, goff, max_bytes, ext);
	if (s) {
		slice_extent(img, s, goff, max_bytes, ext);
		return 0;
	}
	if (table_get(&img->l1, l1_index(img, gcluster)))
		return -EAGAIN;
	no_table_extent(img, goff, max_bytes, ext);
	return 0;
}

/* *@hoff is 0 where there is no table. -EIO: what the table should be is not to be trusted. */
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

int map_lookup(struct qcow2_image *img, uint64_t goff, uint64_t max_bytes, struct map_extent *ext)
{
	uint64_t gcluster = goff >> img->cluster_bits, hoff;
	struct slice *s;
	int ret;

	if (l2_table_offset(img, l1_index(img, gcluster), &hoff)) {
		no_table_extent(img, goff, max_bytes, ext);
		ext->kind = MAP_BROKEN;
		return 0;
	}
	ret = map_slice_get(img, gcluster, &s);
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

/* The keys of the slices of the table of L1 entry @index: the first of @per_table. */
static uint64_t first_key(const struct qcow2_image *img, uint64_t index, uint64_t *per_table)
{
	*per_table = (uint64_t)1 << (img->l2_bits - img->l2_slice_bits);
	return index * *per_table;
}

uint64_t map_slice_locate(struct qcow2_image *img, uint64_t key)
{
	uint64_t per_table, index = key >> (img->l2_bits - img->l2_slice_bits);
	uint64_t hoff = table_get(&img->l1, index) & QCOW2_L1_OFFSET_MASK;

	return hoff + (key - first_key(img, index, &per_table)) * img->slice_bytes;
}

/*
 * Until this returns 0 nothing of the table is being read or waits to be written; a slice that has
 * changed belongs to an operation that stopped half way (snapshot_ops.c).
 */
static int settle_slices(struct qcow2_image *img, uint64_t first, uint64_t count)
{
	for (;;) {
		int ret;

		cache_wait_loaded(&img->l2_cache, first, count);
		if (!cache_any_dirty(&img->l2_cache, first, count))
			return 0;
		ret = writeback_run(img);
		if (ret)
			return ret;
	}
}

/* Writes a copy of the table at @from to host cluster @hcluster; under l1_lock. */
static int l2_table_copy(struct qcow2_image *img, uint64_t from, uint64_t hcluster)
{
	int ret = storage_pread(img->st, from, img->l2_scratch, img->cluster_bytes);

	if (ret)
		return ret;
	ret = storage_pwrite(img->st, hcluster << img->cluster_bits, img->l2_scratch,
			     img->cluster_bytes);
	img->wb.meta_writes++;
	return ret;
}

/*
 * Gives the image a copy of the table of L1 entry @index, which it shares with a snapshot; under l1_lock.
 * The copy is in the file before the entry (rule 1: a pass syncs it with its first step), and the old
 * table loses a reference when the entry is durable (rule 4). The slices in the cache go along.
 */
static int l2_table_unshare(struct qcow2_image *img, uint64_t index, unsigned *reserved)
{
	uint64_t old = table_get(&img->l1, index), entry, hcluster, got, count;
	uint64_t first = first_key(img, index, &count);
	uint64_t from = old & QCOW2_L1_OFFSET_MASK;
	bool zeroed;
	int ret = refcount_get(img, from >> img->cluster_bits, &got);

	/* Only the flag is missing: a crash during an operation on a snapshot may leave it so. */
	if (!ret && got == 1) {
		reclog_table(img, RECLOG_L1, index, old, old | QCOW2_COPIED);
		table_set(&img->l1, img, index, old | QCOW2_COPIED);
	}
	if (ret || got == 1)
		return ret;
	ret = alloc_clusters(img, 1, &hcluster, &got, &zeroed);
	if (ret)
		return ret;
	entry = hcluster << img->cluster_bits | QCOW2_COPIED;
	ret = settle_slices(img, first, count);
	if (!ret)
		ret = l2_table_copy(img, from, hcluster);
	if (!ret)
		ret = metaset_add(&img->metaset, hcluster);
	if (ret) {
		alloc_undo(img, hcluster, 1);
		return ret;
	}
	/* Who was let in meanwhile has read what was copied. From here on nothing suspends. */
	cache_wait_loaded(&img->l2_cache, first, count);
	cache_move(&img->l2_cache, first, count, entry & QCOW2_L1_OFFSET_MASK);
	reclog_table(img, RECLOG_L1, index, old, entry);
	table_set(&img->l1, img, index, entry);
	metaset_remove(&img->metaset, from >> img->cluster_bits);
	frees_add(img, from >> img->cluster_bits, reserved);
	return 0;
}

int map_slice_get(struct qcow2_image *img, uint64_t gcluster, struct slice **out)
{
	uint64_t hoff;
	int ret = l2_table_offset(img, l1_index(img, gcluster), &hoff);

	*out = NULL;
	if (ret || !hoff)
		return ret;
	return cache_get(&img->l2_cache, map_slice_key(img, gcluster), 0, false, out);
}

int map_slice_own(struct qcow2_image *img, uint64_t gcluster, unsigned *reserved,
		  struct slice **out)
{
	uint64_t index = l1_index(img, gcluster), hoff;
	int ret = l2_table_offset(img, index, &hoff);

	*out = NULL;
	if (!ret && !(table_get(&img->l1, index) & QCOW2_COPIED)) {
		co_lock(&img->l1_lock);
		hoff = table_get(&img->l1, index);
		if (!hoff)
			ret = l2_table_create(img, index);
		else if (!(hoff & QCOW2_COPIED))
			ret = l2_table_unshare(img, index, reserved);
		co_unlock(&img->l1_lock);
	}
	return ret ? ret : map_slice_get(img, gcluster, out);
}

void map_entry_unref(struct qcow2_image *img, uint64_t word, unsigned *reserved)
{
	uint64_t count, first = map_entry_hclusters(img, word, &count);

	for (uint64_t i = 0; i < count; i++)
		frees_add(img, first + i, reserved);
}

static void word_store(struct slice *s, uint32_t word_index, uint64_t value)
{
	__atomic_store_n(&((be64_t *)s->data)[word_index].raw, be64_make(value).raw, __ATOMIC_RELEASE);
}

void map_entry_store(struct qcow2_image *img, struct slice *s, uint32_t index, struct map_entry entry)
{
	uint32_t bytes = sizeof(be64_t);

	if (!img->extended_l2) {
		assert(!entry.bitmap);
		word_store(s, index, entry.word);
	} else {
		uint32_t changes = s->changes;

		bytes *= 2;
		/* words are stored with release, so the count before them */
		atomic_store_explicit(&s->changes, changes + 1, memory_order_relaxed);
		word_store(s, 2 * index, entry.word);
		word_store(s, 2 * index + 1, entry.bitmap);
		atomic_store_explicit(&s->changes, changes + 2, memory_order_release);
	}
	slice_mark_dirty(&img->l2_cache, s, index * bytes, bytes);
}
