/* SPDX-License-Identifier: MIT */
/*
 * copied.c: see copied.h.
 *
 * What an entry of the active tables refers to with a count of 1, nothing else refers to: a raised count
 * comes before what needs it. The count may be lower than what is on disk: a pass writes refcounts before
 * entries, so a set flag is never on disk beside a count above 1. A flag needs no record in the recovery
 * log: replay takes entries that differ in nothing else for the same, and a cluster that the log has with
 * the flag gets the count 1.
 *
 * Entries are judged and set under their lock (rule 8): who copies a cluster has looked at its entry
 * under the same lock, and holds it until the link. They are set under l1_lock as well: who copies their table
 * has found it shared, which it may have been until just now, and copies what is in the file.
 */
#include "qcow2/copied.h"

#include <errno.h>

#include "qcow2/alloc.h"
#include "qcow2/image.h"
#include "qcow2/map.h"

/* Entries under one lock. */
#define BATCH 64

struct batch {
	uint64_t gcluster;
	uint32_t count;
	uint64_t words[BATCH];
	bool set[BATCH]; /* the flag is to be set */
};

static bool could_be_copied(uint64_t word)
{
	return word & QCOW2_L2_OFFSET_MASK && !(word & (QCOW2_COMPRESSED | QCOW2_COPIED));
}

/* Which flags are to be set; no slice is pinned while counts are read. */
static int batch_judge(struct qcow2_image *img, struct batch *b, bool *any)
{
	uint32_t index = map_slice_index(img, b->gcluster);
	struct slice *s;
	int ret = map_slice_get(img, b->gcluster, &s);

	*any = false;
	if (ret || !s)
		return ret;
	for (uint32_t i = 0; i < b->count; i++)
		b->words[i] = map_entry_is_bad(s, index + i) ? 0 : map_entry_load(img, s, index + i).word;
	cache_put(&img->l2_cache, s);
	for (uint32_t i = 0; i < b->count && !ret; i++) {
		uint64_t value = 0;

		if (could_be_copied(b->words[i]))
			ret = refcount_get(img, (b->words[i] & QCOW2_L2_OFFSET_MASK) >> img->cluster_bits,
					   &value);
		b->set[i] = value == 1;
		*any |= b->set[i];
	}
	return ret;
}

/* Under the entries' lock: nobody else changes them, or has looked at them to copy what they refer to. */
static int batch_set(struct qcow2_image *img, const struct batch *b)
{
	uint32_t index = map_slice_index(img, b->gcluster);
	struct slice *s;
	int ret = map_slice_get(img, b->gcluster, &s);

	if (ret || !s)
		return ret;
	ret = slice_begin_change(&img->l2_cache, s);
	for (uint32_t i = 0; i < b->count && !ret; i++) {
		struct map_entry entry = map_entry_load(img, s, index + i);

		if (!b->set[i] || entry.word != b->words[i])
			continue;
		entry.word |= QCOW2_COPIED;
		map_entry_store(img, s, index + i, entry);
	}
	cache_put(&img->l2_cache, s);
	return ret;
}

static int batch_run(struct qcow2_image *img, uint64_t gcluster, uint32_t count)
{
	struct batch b = {.gcluster = gcluster, .count = count};
	struct cluster_lock lock;
	bool any;
	int ret;

	cluster_lock(&img->locks, &lock, gcluster, gcluster + count - 1);
	ret = batch_judge(img, &b, &any);
	if (!ret && any) {
		co_lock(&img->l1_lock); /* nobody is copying the table */
		ret = batch_set(img, &b);
		co_unlock(&img->l1_lock);
	}
	cluster_unlock(&img->locks, &lock);
	return ret;
}

/* The L1 entry itself; its table is ours alone. */
static int l1_flag(struct qcow2_image *img, uint64_t index)
{
	uint64_t entry, value = 0;
	int ret;

	co_lock(&img->l1_lock); /* nobody is copying it */
	entry = table_get(&img->l1, index);
	ret = refcount_get(img, (entry & QCOW2_L1_OFFSET_MASK) >> img->cluster_bits, &value);
	if (!ret && value == 1 && !(entry & QCOW2_COPIED) && table_get(&img->l1, index) == entry)
		table_set(&img->l1, img, index, entry | QCOW2_COPIED);
	co_unlock(&img->l1_lock);
	return ret;
}

static int table_flags(struct qcow2_image *img, uint64_t index,
		       bool (*between)(struct qcow2_image *img, uint64_t since_ns))
{
	uint32_t count = min_of((uint32_t)BATCH, 1u << img->l2_slice_bits);
	uint64_t first = index << img->l2_bits, end = (index + 1) << img->l2_bits;
	int ret = 0;

	/* in a data file each cluster is the guest's own */
	for (uint64_t g = first; g < end && !ret && !image_has_data_file(img); g += count) {
		uint64_t since_ns = img->meta_loop ? loop_now_ns(img->meta_loop) : 0;

		ret = batch_run(img, g, count);
		if (!between(img, since_ns))
			ret = -ECANCELED;
	}
	return ret ? ret : l1_flag(img, index);
}

int copied_restore(struct qcow2_image *img,
		   bool (*between)(struct qcow2_image *img, uint64_t since_ns))
{
	int ret = 0;

	for (uint64_t i = 0; i < img->l1.entries && !ret; i++) {
		uint64_t entry = table_get(&img->l1, i), value = 0;
		uint64_t hoff = entry & QCOW2_L1_OFFSET_MASK;

		if (!hoff || entry & L1_BROKEN)
			continue;
		ret = refcount_get(img, hoff >> img->cluster_bits, &value);
		/* What a shared table refers to is shared. */
		if (!ret && value == 1)
			ret = table_flags(img, i, between);
	}
	return ret;
}
