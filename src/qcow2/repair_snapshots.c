/* SPDX-License-Identifier: MIT */
/*
 * repair_snapshots.c: a snapshot table whose entries lack what version 3 asks for is written anew.
 *
 * Entries become longer, so the new table goes to clusters that are free. Order, with a sync between the
 * steps (rule 3): their counts raised, and the table; the header's first sector; the old table's counts
 * lowered. A crash in between leaves clusters that are counted too high.
 *
 * It comes after the refcounts were repaired: then what is counted is what is in use.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check_internal.h"
#include "qcow2/snapshot.h"

static bool is_free(struct check *c, uint64_t hcluster)
{
	uint64_t index = qcow2_hcluster_to_rt_index(hcluster, c->h->rb_bits), offset;
	bool bad;

	return !counts_get(&c->counts, hcluster) && check_block_offset(c, index, &offset, &bad) &&
	       !bad && !check_refcount(c, hcluster);
}

/* The first of @clusters free ones in a row that a block counts; 0: there are none. */
static uint64_t find_free(struct check *c, uint64_t clusters)
{
	uint64_t run = 0;

	c->block_index = UINT64_MAX; /* it may have been repaired since */
	for (uint64_t i = 1; i < c->capacity; i++) {
		run = is_free(c, i) ? run + 1 : 0;
		if (run == clusters)
			return i - run + 1;
	}
	return 0;
}

static bool fix_count(struct check *c, uint64_t hcluster, uint64_t refcount, uint64_t count, void *block)
{
	return block && repair_refcount_set(c, hcluster, count, block);
}

/* The refcounts follow the counts again. */
static int write_counts(struct check *c)
{
	struct qcow2_check_result before = *c->res;
	int ret;

	c->quiet = true;
	ret = check_compare(c, fix_count);
	c->quiet = false;
	before.image_end_offset = c->res->image_end_offset;
	*c->res = before;
	return ret;
}

static void raise_range(struct check *c, uint64_t first, uint64_t clusters)
{
	for (uint64_t i = first; i < first + clusters && i < c->capacity; i++)
		counts_set(&c->counts, i, counts_get(&c->counts, i) + 1);
	c->hclusters = max_of(c->hclusters, min_of(first + clusters, c->capacity));
}

/*
 * A table that went past the end of the file was not counted. Where a count could not say how many references
 * there are it stays: some of them are somebody else's.
 */
static void lower_range(struct check *c, uint64_t first, uint64_t clusters)
{
	for (uint64_t i = first; i < first + clusters && i < c->capacity; i++) {
		uint64_t count = counts_get(&c->counts, i);

		if (count && !(count == c->counts.max && c->saturated))
			counts_set(&c->counts, i, count - 1);
	}
}

static int switch_table(struct check *c, uint64_t first)
{
	int ret = qcow2_header_set_snapshots(c->st, c->h, first << c->h->cluster_bits, c->nb_snapshots);

	return ret ? error_set(c->err, ret, "%s: cannot write the header: %s", c->st->name,
			       strerror(-ret))
		   : repair_sync(c);
}

static int table_replace(struct check *c, struct snapshot_list *l, const void *table, uint64_t bytes)
{
	unsigned bits = c->h->cluster_bits;
	uint64_t old_first = c->h->snapshots_offset >> bits;
	uint64_t old_clusters = div_up(c->snapshot_table_bytes, c->h->cluster_bytes);
	uint64_t clusters = bytes >> bits, first = find_free(c, clusters);
	int ret;

	if (!first) {
		check_finding(c, QCOW2_FINDING_ERROR, "there is no room for a new snapshot table");
		return 0;
	}
	check_finding(c, QCOW2_FINDING_REPAIR, "the snapshot table is completed");
	raise_range(c, first, clusters);
	ret = write_counts(c);
	if (!ret)
		ret = repair_write(c, first << bits, table, bytes);
	if (!ret)
		ret = repair_sync(c);
	if (!ret)
		ret = switch_table(c, first);
	if (ret)
		return ret;
	c->snapshot_table_bytes = l->table_bytes;
	c->res->corruptions -= min_of(c->res->corruptions, c->snapshots_incomplete);
	c->res->corruptions_fixed += c->snapshots_incomplete;
	c->snapshots_incomplete = 0;
	lower_range(c, old_first, old_clusters);
	ret = write_counts(c);
	return ret ? ret : repair_sync(c);
}

int repair_snapshots(struct check *c)
{
	struct snapshot_list l;
	uint64_t bytes;
	void *table;
	int ret;

	if (!c->snapshots_incomplete || c->opts->repair != QCOW2_REPAIR_ALL || c->res->errors)
		return 0;
	ret = snapshot_list_read(&l, c->st, c->h, c->err);
	if (ret)
		return ret;
	ret = snapshot_list_encode(&l, c->h, c->h->cluster_bytes, &table, &bytes, c->err);
	if (!ret) {
		ret = table_replace(c, &l, table, bytes);
		free(table);
	}
	snapshot_list_free(&l);
	return ret;
}
