/* SPDX-License-Identifier: MIT */
/*
 * repair_rebuild.c: new refcount structures, where the old ones are not worth repairing.
 *
 * 1. Everything is counted but the old refcount table and its blocks, which are to go.
 *    What goes past the end of the file is not counted, but kept clear of.
 * 2. Places for new blocks and a new table are chosen among clusters that nothing refers to, the
 * old structures included: until the switch the old ones stay as they are. Choosing a place makes
 * it counted, which may need one more block, and so on until nothing changes. If the file must
 * grow, all of this is done again for the longer file.
 * 3. File extended if need be; blocks and table written; sync; switched by one write of the header;
 *    sync.
 * 4. Counted and compared anew: what is found now is what is left.
 *
 * The bitmap that said where refcounts are 1 is used for "nothing may be put here" meanwhile.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check_internal.h"

/* So far past the end tables are looked for that lie there by mistake: as many clusters as the largest. */
#define KEEP_AHEAD 65536

struct plan {
	struct check *c;
	be64_t *rt;	    /* the new table */
	uint64_t rt_room;   /* entries it is allocated for */
	uint64_t rt_needed; /* entries in use */
	uint64_t rt_hcluster;
	uint64_t rt_clusters; /* 0: no place yet */
	uint64_t cursor;      /* no free cluster before this */
	uint64_t end;	      /* past the highest cluster that was given out */
};

static bool occupied(const struct check *c, uint64_t hcluster)
{
	return (c->ones[hcluster / 64] >> (hcluster % 64) & 1) || counts_get(&c->counts, hcluster);
}

/* Room for the counts of @n clusters. */
static int reserve(struct check *c, uint64_t n)
{
	struct counts wider = c->counts;
	uint64_t room = max_of(n, c->capacity + c->capacity / 8 + 64);
	uint64_t *bits;

	if (n <= c->capacity)
		return 0;
	wider.v = check_alloc(c, room * wider.width_bytes, "the counts");
	if (!wider.v)
		return -ENOMEM;
	bits = check_alloc(c, div_up(room, 64) * sizeof(uint64_t), "the refcounts");
	if (!bits) {
		check_free(c, wider.v, room * wider.width_bytes);
		return -ENOMEM;
	}
	memcpy(wider.v, c->counts.v, c->capacity * wider.width_bytes);
	memcpy(bits, c->ones, div_up(c->capacity, 64) * sizeof(uint64_t));
	check_free(c, c->counts.v, c->capacity * wider.width_bytes);
	check_free(c, c->ones, div_up(c->capacity, 64) * sizeof(uint64_t));
	c->counts = wider;
	c->ones = bits;
	c->capacity = room;
	return 0;
}

/* @n clusters in a row, the lowest there are. */
static int place(struct plan *p, uint64_t n, uint64_t *hcluster)
{
	struct check *c = p->c;
	uint64_t at = p->cursor, found = 0;
	int ret;

	while (found < n) {
		ret = reserve(c, at + found + 1);
		if (ret)
			return ret;
		if (occupied(c, at + found)) {
			at += found + 1;
			found = 0;
		} else {
			found++;
		}
	}
	if (at + n > QCOW2_MAX_HOST_BYTES >> c->h->cluster_bits)
		return error_set(c->err, -EFBIG, "%s: no place for new refcounts", c->st->name);
	for (uint64_t i = 0; i < n; i++)
		counts_set(&c->counts, at + i, 1);
	if (n == 1)
		p->cursor = at + 1;
	p->end = max_of(p->end, at + n);
	*hcluster = at;
	return 0;
}

static bool any_count(const struct check *c, uint64_t first, uint64_t end)
{
	for (uint64_t i = first; i < end; i++)
		if (counts_get(&c->counts, i))
			return true;
	return false;
}

static int grow_table(struct plan *p, uint64_t entries)
{
	struct check *c = p->c;
	uint64_t room = align_up(entries, c->h->cluster_bytes / sizeof(be64_t));
	be64_t *rt;

	if (room * sizeof(be64_t) > QCOW2_MAX_REFCOUNT_TABLE_BYTES)
		return error_set(c->err, -EFBIG,
				 "%s: the refcount table would be larger than %" PRIu64 " bytes",
				 c->st->name, QCOW2_MAX_REFCOUNT_TABLE_BYTES);
	rt = calloc(room, sizeof(*rt));
	if (!rt)
		return error_set(c->err, -ENOMEM, "%s: no memory for a refcount table",
				 c->st->name);
	if (p->rt)
		memcpy(rt, p->rt, p->rt_needed * sizeof(*rt));
	free(p->rt);
	p->rt = rt;
	p->rt_room = room;
	return 0;
}

/* A block for each part of the file that has something in it. */
static int place_blocks(struct plan *p, bool *changed)
{
	struct check *c = p->c;
	uint64_t end = max_of(c->hclusters, p->end);

	for (uint64_t index = 0; index << c->h->rb_bits < end; index++) {
		uint64_t first = index << c->h->rb_bits;
		uint64_t last = min_of(first + ((uint64_t)1 << c->h->rb_bits), end);
		uint64_t hcluster;
		int ret;

		if (index < p->rt_needed && be64_get(p->rt[index]))
			continue;
		if (!any_count(c, first, min_of(last, c->capacity)))
			continue;
		ret = index < p->rt_room ? 0 : grow_table(p, index + 1);
		if (!ret)
			ret = place(p, 1, &hcluster);
		if (ret)
			return ret;
		p->rt[index] = be64_make(qcow2_hcluster_to_host(hcluster, c->h->cluster_bits));
		p->rt_needed = max_of(p->rt_needed, index + 1);
		end = max_of(end, p->end);
		*changed = true;
	}
	return 0;
}

static int place_table(struct plan *p, bool *changed)
{
	struct check *c = p->c;
	uint64_t need = div_up(p->rt_needed * sizeof(be64_t), c->h->cluster_bytes);

	if (p->rt_clusters >= need)
		return 0;
	/* What was chosen for a smaller table is still empty. */
	for (uint64_t i = 0; i < p->rt_clusters; i++)
		counts_set(&c->counts, p->rt_hcluster + i, 0);
	p->rt_clusters = need;
	*changed = true;
	return place(p, need, &p->rt_hcluster);
}

static void plan_reset(struct plan *p)
{
	free(p->rt);
	*p = (struct plan){.c = p->c};
}

static int plan_once(struct plan *p)
{
	bool changed;
	int ret;

	plan_reset(p);
	ret = reserve(p->c, p->c->hclusters + KEEP_AHEAD);
	if (!ret)
		ret = check_count_data(p->c);
	do {
		changed = false;
		if (!ret)
			ret = place_blocks(p, &changed);
		if (!ret)
			ret = place_table(p, &changed);
	} while (!ret && changed);
	return ret;
}

/*
 * A broken reference past the end of the file comes to lie inside a longer one, and then it counts,
 * and nothing may be put there. So the plan is made again for the longer file, until it fits.
 */
static int make_plan(struct plan *p)
{
	struct check *c = p->c;

	for (uint64_t i = 0; i < c->capacity; i++) {
		uint64_t bit = (uint64_t)1 << (i % 64);

		if (counts_get(&c->counts, i))
			c->ones[i / 64] |= bit;
		else
			c->ones[i / 64] &= ~bit;
	}
	check_keep_range(c, c->h->rt_offset, (uint64_t)c->h->rt_clusters << c->h->cluster_bits);
	for (;;) {
		int ret = plan_once(p);

		if (ret || p->end <= c->hclusters)
			return ret;
		c->file_bytes = qcow2_hcluster_to_host(p->end, c->h->cluster_bits);
		c->hclusters = p->end;
	}
}

/* ---- writing ---- */

static int extend_file(struct plan *p)
{
	struct check *c = p->c;
	uint64_t end = c->file_bytes; /* as planned */
	int ret;

	if (end <= c->st->size_bytes)
		return 0;
	ret = c->st->fixed_size
		      ? -ENOSPC
		      : storage_truncate(c->st, align_up(end, max_of(c->st->block_bytes, 512u)));
	return ret ? error_set(c->err, ret, "%s: cannot extend the file to %" PRIu64 " bytes: %s",
			       c->st->name, end, strerror(-ret))
		   : 0;
}

static int write_blocks(struct plan *p)
{
	struct check *c = p->c;
	uint8_t *block = malloc(c->h->cluster_bytes);
	int ret = 0;

	if (!block)
		return error_set(c->err, -ENOMEM, "%s: no memory for a refcount block",
				 c->st->name);
	for (uint64_t index = 0; !ret && index < p->rt_needed; index++) {
		uint64_t first = index << c->h->rb_bits;
		uint64_t n = min_of((uint64_t)1 << c->h->rb_bits, c->capacity - first);

		if (!be64_get(p->rt[index]))
			continue;
		memset(block, 0, c->h->cluster_bytes);
		for (uint64_t i = 0; i < n; i++)
			qcow2_refcount_set(block, (uint32_t)i, c->h->refcount_order,
					   counts_get(&c->counts, first + i));
		ret = repair_write(c, be64_get(p->rt[index]), block, c->h->cluster_bytes);
	}
	free(block);
	return ret;
}

static int write_plan(struct plan *p)
{
	struct check *c = p->c;
	uint64_t rt_offset = qcow2_hcluster_to_host(p->rt_hcluster, c->h->cluster_bits);
	int ret = extend_file(p);

	if (!ret)
		ret = write_blocks(p);
	if (!ret)
		ret = repair_write(c, rt_offset, p->rt, p->rt_clusters << c->h->cluster_bits);
	if (!ret)
		ret = storage_sync(c->st);
	if (!ret)
		ret = qcow2_header_set_refcount_table(c->st, c->h, rt_offset,
						      (uint32_t)p->rt_clusters);
	if (!ret)
		ret = storage_sync(c->st);
	return ret ? error_set(c->err, ret, "%s: cannot write new refcounts: %s", c->st->name,
			       strerror(-ret))
		   : 0;
}

/* ---- the whole ---- */

/* The new structures are what counts from here on. */
static int adopt(struct check *c, struct plan *p)
{
	repair_places_forget(c);
	free(c->rt);
	c->rt = p->rt;
	c->rt_entries = (uint32_t)(p->rt_clusters * (c->h->cluster_bytes / sizeof(be64_t)));
	p->rt = NULL;
	c->file_bytes = c->stored_bytes = c->st->size_bytes;
	c->hclusters = div_up(c->file_bytes, c->h->cluster_bytes);
	c->rebuild = false;
	free(c->whole);
	c->whole = NULL;
	c->whole_bytes = 0;
	return check_view_open(c);
}

/*
 * What referred to something by the old header's bytes, taken for a table by a broken reference,
 * refers to something else by the new one's. What that leaks is nobody's; it is lowered without a
 * word.
 */
static bool lower(struct check *c, uint64_t hcluster, uint64_t refcount, uint64_t count,
		  void *block)
{
	return block && refcount > count && repair_refcount_set(c, hcluster, count, block);
}

static int count_again(struct check *c)
{
	struct qcow2_check_result old = *c->res;
	struct qcow2_check_result *res = c->res;
	bool repairing = c->repairing;
	int ret = reserve(c, c->hclusters + 1);

	if (ret)
		return ret;
	memset(c->counts.v, 0, c->capacity * c->counts.width_bytes);
	*res = (struct qcow2_check_result){
		.errors = old.errors,
		.corruptions_fixed = old.corruptions_fixed,
		.leaks_fixed = old.leaks_fixed,
		.total_clusters = old.total_clusters,
	};
	c->repairing = false;
	ret = check_count_all(c, false);
	if (!ret)
		ret = check_compare(c, lower);
	c->repairing = repairing;
	if (old.corruptions > res->corruptions)
		res->corruptions_fixed += old.corruptions - res->corruptions;
	if (old.leaks > res->leaks)
		res->leaks_fixed += old.leaks - res->leaks;
	return ret;
}

int repair_rebuild(struct check *c)
{
	struct plan p = {.c = c};
	int ret;

	check_finding(c, QCOW2_FINDING_REPAIR, "the refcount structures are built anew");
	c->planning = true;
	ret = make_plan(&p);
	c->planning = false;
	if (!ret)
		ret = write_plan(&p);
	if (!ret)
		ret = adopt(c, &p);
	free(p.rt);
	return ret ? ret : count_again(c);
}
