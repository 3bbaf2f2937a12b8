/* SPDX-License-Identifier: MIT */
/*
 * check_compare.c: the refcount blocks: what they say, and where that differs from the counts.
 *
 * A cluster without a block, or past the table, has the refcount 0. A block that cannot be followed
 * (it is not aligned, or absurdly far away) makes the refcounts in it unknown: each counts as an
 * error, and the COPIED flags of such clusters are not judged.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check_internal.h"

bool check_block_offset(const struct check *c, uint64_t index, uint64_t *offset, bool *bad)
{
	uint64_t hoff;

	*bad = false;
	if (index >= c->rt_entries)
		return false;
	hoff = be64_get(c->rt[index]) & QCOW2_RT_OFFSET_MASK;
	if (!hoff)
		return false;
	*offset = hoff;
	/* No file reaches that far, and asking for it is an error, not zeros. */
	*bad = !is_aligned(hoff, c->h->cluster_bytes) || hoff > INT64_MAX;
	return true;
}

/* ---- blocks in order ---- */

struct blocks {
	struct check *c;
	uint64_t index;
	uint64_t end; /* blocks that say something about the file */
};

static bool next_block(void *arg, uint64_t *offset, uint64_t *tag)
{
	struct blocks *b = arg;

	for (; b->index < b->end; b->index++) {
		bool bad;

		if (!check_block_offset(b->c, b->index, offset, &bad) || bad)
			continue;
		*tag = b->index++;
		return true;
	}
	return false;
}

static uint64_t blocks_for(const struct check *c)
{
	return div_up(c->hclusters, (uint64_t)1 << c->h->rb_bits);
}

/* Clusters of block @index that there are. */
static uint64_t clusters_in(const struct check *c, uint64_t index, uint64_t limit)
{
	uint64_t first = index << c->h->rb_bits;

	return min_of((uint64_t)1 << c->h->rb_bits, limit - first);
}

/* ---- where the refcount is 1 ---- */

static void set_ones(struct check *c, const void *block, uint64_t index)
{
	unsigned order = c->h->refcount_order;
	uint64_t first = index << c->h->rb_bits;
	uint64_t n = clusters_in(c, index, c->capacity);
	const be16_t *narrow = block;
	be16_t one = be16_make(1);

	uint64_t i = 0;

	for (; order == 4 && first % 64 == 0 && i + 64 <= n; i += 64) {
		uint64_t word = 0;

		for (unsigned j = 0; j < 64; j++)
			word |= (uint64_t)(narrow[i + j].raw == one.raw) << j;
		c->ones[(first + i) / 64] = word;
	}
	for (; i < n; i++)
		if (qcow2_refcount_get(block, (uint32_t)i, order) == 1)
			c->ones[(first + i) / 64] |= (uint64_t)1 << ((first + i) % 64);
}

int check_load_refcounts(struct check *c)
{
	struct blocks b = {.c = c, .end = div_up(c->capacity, (uint64_t)1 << c->h->rb_bits)};
	struct table_iter *it = NULL;
	uint64_t offset, index;
	void *block;
	int ret;

	memset(c->ones, 0, div_up(c->capacity, 64) * sizeof(uint64_t));
	c->bad_blocks = false;
	c->block_index = UINT64_MAX;
	for (uint64_t i = 0; i < c->rt_entries; i++) {
		bool bad;

		if (check_block_offset(c, i, &offset, &bad) && bad)
			c->bad_blocks = true;
	}
	ret = tables_begin(&it, c, next_block, &b);
	while (!ret && (ret = tables_next(it, &block, &offset, &index)) > 0) {
		set_ones(c, block, index);
		ret = 0;
	}
	tables_end(it);
	return ret;
}

/* ---- one refcount ---- */

static bool block_is_bad(const struct check *c, uint64_t index)
{
	uint64_t offset;
	bool bad;

	return check_block_offset(c, index, &offset, &bad) && bad;
}

/* Random access, for messages and for clusters past the end of the file; keeps the last block. */
uint64_t check_refcount(struct check *c, uint64_t hcluster)
{
	uint64_t index = qcow2_hcluster_to_rt_index(hcluster, c->h->rb_bits);
	uint64_t offset;
	bool bad;

	if (!check_block_offset(c, index, &offset, &bad) || bad)
		return 0;
	if (!c->block) {
		c->block = aligned_alloc(4096, align_up(c->h->cluster_bytes, 4096));
		if (!c->block)
			return 0;
	}
	if (c->block_index != index) {
		c->block_index = UINT64_MAX;
		if (check_read(c, offset, c->block, c->h->cluster_bytes))
			return 0;
		c->block_index = index;
	}
	return qcow2_refcount_get(c->block, qcow2_hcluster_to_rb_index(hcluster, c->h->rb_bits),
				  c->h->refcount_order);
}

int check_refcount_is_one(struct check *c, uint64_t hcluster)
{
	if (c->bad_blocks && block_is_bad(c, qcow2_hcluster_to_rt_index(hcluster, c->h->rb_bits)))
		return -1;
	if (hcluster < c->capacity)
		return c->ones[hcluster / 64] >> (hcluster % 64) & 1;
	return check_refcount(c, hcluster) == 1;
}

/* ---- comparing ---- */

struct compare {
	struct check *c;
	compare_fix_fn fix;
	uint64_t next; /* the first block that was not looked at */
	uint64_t end;  /* past the highest cluster with a refcount or a count */
};

static void mismatch(struct compare *p, uint64_t hcluster, uint64_t refcount, uint64_t count,
		     void *block)
{
	struct check *c = p->c;

	if (!refcount)
		c->rebuild = true;
	if (p->fix && p->fix(c, hcluster, refcount, count, block))
		return;
	check_finding(c, refcount < count ? QCOW2_FINDING_CORRUPTION : QCOW2_FINDING_LEAK,
		      "%s cluster %" PRIu64 ": refcount %" PRIu64 ", references %" PRIu64,
		      refcount < count ? "referenced" : "leaked", hcluster, refcount, count);
}

/* The first of @n that differ; @n if none does. 16 bits in the file, 8 in memory: the common case.
 */
static uint64_t same_until(const be16_t *refcounts, const uint8_t *counts, uint64_t i, uint64_t n)
{
	while (i < n && be16_get(refcounts[i]) == counts[i])
		i++;
	return i;
}

static void compare_block(struct compare *p, void *block, uint64_t index)
{
	struct check *c = p->c;
	unsigned order = c->h->refcount_order;
	uint64_t first = index << c->h->rb_bits;
	uint64_t n = clusters_in(c, index, c->hclusters);
	bool common = order == 4 && c->counts.width_bytes == 1;
	const uint8_t *counts = (const uint8_t *)c->counts.v + first;
	uint64_t end = n;

	while (end && !counts_get(&c->counts, first + end - 1) &&
	       !qcow2_refcount_get(block, (uint32_t)end - 1, order))
		end--;
	if (end)
		p->end = first + end;
	for (uint64_t i = 0; i < end; i++) {
		uint64_t refcount, count;

		if (common)
			i = same_until(block, counts, i, end);
		if (i == end)
			break;
		refcount = qcow2_refcount_get(block, (uint32_t)i, order);
		count = counts_get(&c->counts, first + i);
		if (refcount != count)
			mismatch(p, first + i, refcount, count, block);
	}
}

/* Clusters of blocks that do not exist, or cannot be followed. */
static void compare_without(struct compare *p, uint64_t index, uint64_t index_end)
{
	struct check *c = p->c;

	for (; index < index_end; index++) {
		uint64_t first = index << c->h->rb_bits;
		uint64_t end = first + clusters_in(c, index, c->hclusters);

		if (c->bad_blocks && block_is_bad(c, index)) {
			check_finding(c, QCOW2_FINDING_ERROR,
				      "the refcounts of clusters %" PRIu64 " to %" PRIu64
				      " are unknown",
				      first, end - 1);
			c->res->errors += end - 1 - first;
			continue;
		}
		for (uint64_t i = first; i < end; i++) {
			uint64_t count = counts_get(&c->counts, i);

			if (!count)
				continue;
			p->end = i + 1;
			mismatch(p, i, 0, count, NULL);
		}
	}
}

int check_compare(struct check *c, compare_fix_fn fix)
{
	struct blocks b = {.c = c, .end = blocks_for(c)};
	struct compare p = {.c = c, .fix = fix};
	struct table_iter *it = NULL;
	uint64_t offset, index;
	void *block;
	int ret;

	ret = tables_begin(&it, c, next_block, &b);
	while (!ret && (ret = tables_next(it, &block, &offset, &index)) > 0) {
		compare_without(&p, p.next, index);
		c->fix_first = c->fix_end = 0;
		compare_block(&p, block, index);
		p.next = index + 1;
		check_progress(c, 1);
		ret = 0;
		if (c->fix_first != c->fix_end)
			ret = repair_table_write(c, offset + c->fix_first,
						 (uint8_t *)block + c->fix_first,
						 c->fix_end - c->fix_first, REPAIR_BLOCK);
	}
	tables_end(it);
	if (ret)
		return ret;
	compare_without(&p, p.next, b.end);
	c->res->image_end_offset =
		qcow2_hcluster_to_host(max_of(p.end, (uint64_t)1), c->h->cluster_bits);
	return 0;
}
