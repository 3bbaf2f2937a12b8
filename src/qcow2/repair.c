/* SPDX-License-Identifier: MIT */
/*
 * repair.c: the order of a repair, and what is repaired in place.
 *
 * Each step leaves an image that is no worse than before it, whatever part of its writes survives a
 * crash, and is durable before the next one relies on it:
 *
 * 1. Autoclear bits that nobody here knows are cleared.
 * 2. All references are counted; L2 entries that point nowhere sensible and hold no data become
 * zeros.
 * 3. Refcounts: raised or lowered in place to the counts (what lowers them is already gone from the
 *    durable tables); or, if blocks are missing or broken, new ones are built (repair_rebuild.c).
 * 4. A snapshot table with incomplete entries is replaced (repair_snapshots.c).
 * 5. COPIED flags, by the refcounts that are now durable.
 * 6. The dirty and corrupt bits are cleared, if nothing is left wrong.
 *
 * With QCOW2_REPAIR_LEAKS only counts that are too high are lowered, and flags are repaired only if
 * all else is right.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check_internal.h"

/* ---- writing ---- */

int repair_write(struct check *c, uint64_t offset, const void *data, uint64_t len_bytes)
{
	uint64_t block = max_of(c->st->block_bytes, 512u);
	uint64_t start = align_down(offset, block);
	uint64_t len = align_up(offset + len_bytes, block) - start;
	uint8_t *buf;
	int ret = 0;

	buf = aligned_alloc(4096, align_up(len, 4096));
	if (!buf)
		return error_set(c->err, -ENOMEM, "%s: no memory for a repair", c->st->name);
	if (start != offset || len != len_bytes)
		ret = storage_pread(c->st, start, buf, len);
	memcpy(buf + (offset - start), data, len_bytes);
	if (!ret)
		ret = storage_pwrite(c->st, start, buf, len);
	free(buf);
	if (ret)
		return error_set(c->err, ret, "%s: cannot write the repair at %" PRIu64 ": %s",
				 c->st->name, offset, strerror(-ret));
	if (c->whole && offset + len_bytes <= c->whole_bytes)
		memmove(c->whole + offset, data, len_bytes);
	return 0;
}

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a_len && b_len && a < b + b_len && b < a + a_len;
}

static int places_compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* There may be a million blocks, and as many entries to repair. */
static int places_make(struct check *c)
{
	uint32_t n = 0;

	if (c->block_places)
		return 0;
	c->block_places = check_alloc(c, c->rt_entries * sizeof(uint64_t), "the refcount blocks");
	if (!c->block_places)
		return -ENOMEM;
	for (uint32_t i = 0; i < c->rt_entries; i++) {
		uint64_t hoff = be64_get(c->rt[i]) & QCOW2_RT_OFFSET_MASK;

		if (hoff && hoff < c->file_bytes)
			c->block_places[n++] = hoff;
	}
	c->nr_block_places = n;
	if (n)
		qsort(c->block_places, n, sizeof(uint64_t), places_compare);
	return 0;
}

void repair_places_forget(struct check *c)
{
	check_free(c, c->block_places, c->rt_entries * sizeof(uint64_t));
	c->block_places = NULL;
	c->nr_block_places = 0;
}

/* They are all equally long: the last one that begins before the end is the one to look at. */
static bool overlaps_block(const struct check *c, uint64_t offset, uint64_t len)
{
	uint32_t low = 0, high = c->nr_block_places;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (c->block_places[mid] < offset + len)
			low = mid + 1;
		else
			high = mid;
	}
	return low && overlap(offset, len, c->block_places[low - 1], c->h->cluster_bytes);
}

static const char *overlapped_table(const struct check *c, uint64_t offset, uint64_t len,
				    enum repair_target target)
{
	const struct qcow2_header *h = c->h;

	if (offset < h->cluster_bytes)
		return "header";
	if (target != REPAIR_L1 &&
	    overlap(offset, len, h->l1_offset, (uint64_t)h->l1_entries * sizeof(be64_t)))
		return "L1 table";
	if (overlap(offset, len, h->rt_offset, (uint64_t)h->rt_clusters << h->cluster_bits))
		return "refcount table";
	if (overlap(offset, len, h->snapshots_offset, c->snapshot_table_bytes))
		return "snapshot table";
	if (target != REPAIR_BLOCK && overlaps_block(c, offset, len))
		return "refcount blocks";
	return NULL;
}

int repair_table_write(struct check *c, uint64_t offset, const void *data, uint64_t len_bytes,
		       enum repair_target target)
{
	const char *other;
	int ret = places_make(c);

	if (ret)
		return ret;
	other = overlapped_table(c, offset, len_bytes, target);
	if (!other)
		return repair_write(c, offset, data, len_bytes);
	check_finding(c, QCOW2_FINDING_ERROR, "the repair at 0x%" PRIx64 " would hit the %s",
		      offset, other);
	return error_set(c->err, -EIO, "%s: the repair at %" PRIu64 " would hit the %s",
			 c->st->name, offset, other);
}

int repair_sync(struct check *c)
{
	int ret = storage_sync(c->st);

	return ret ? error_set(c->err, ret, "%s: cannot sync: %s", c->st->name, strerror(-ret)) : 0;
}

/* ---- refcounts in place ---- */

bool repair_refcount_set(struct check *c, uint64_t hcluster, uint64_t value, void *block)
{
	uint32_t index = qcow2_hcluster_to_rb_index(hcluster, c->h->rb_bits);
	uint32_t byte = (uint32_t)(((uint64_t)index << c->h->refcount_order) / 8);
	uint32_t width = max_of(c->h->refcount_bits / 8, 1u);

	qcow2_refcount_set(block, index, c->h->refcount_order, value);
	if (c->fix_first == c->fix_end)
		c->fix_first = byte;
	c->fix_end = byte + width;
	return true;
}

static bool fix_refcount(struct check *c, uint64_t hcluster, uint64_t refcount, uint64_t count,
			 void *block)
{
	if (!block || (refcount < count && c->opts->repair != QCOW2_REPAIR_ALL))
		return false;
	check_finding(c, QCOW2_FINDING_REPAIR,
		      "cluster %" PRIu64 ": refcount %" PRIu64 " becomes %" PRIu64, hcluster,
		      refcount, count);
	if (refcount > count)
		c->res->leaks_fixed++;
	else
		c->res->corruptions_fixed++;
	return repair_refcount_set(c, hcluster, count, block);
}

static int repair_refcounts(struct check *c)
{
	struct qcow2_check_result before = *c->res;
	int ret;

	c->quiet = true;
	ret = check_compare(c, NULL);
	c->quiet = false;
	if (ret)
		return ret;
	if (c->rebuild && c->opts->repair == QCOW2_REPAIR_ALL)
		return repair_rebuild(c);
	if (!c->res->leaks && !c->res->corruptions && !c->rebuild)
		return 0;
	*c->res = before;
	if (!c->rebuild)
		return check_compare(c, fix_refcount);
	ret = check_compare(c, NULL);
	if (ret)
		return ret;
	check_finding(c, QCOW2_FINDING_ERROR, "the refcount structures need to be rebuilt");
	return error_set(
		c->err, -EIO,
		"%s: the refcount structures need to be rebuilt, which a repair of leaks does not",
		c->st->name);
}

/* ---- the whole ---- */

static int clear_unknown_autoclear(struct check *c)
{
	struct qcow2_header *h = c->h;
	int ret;

	if (!(h->autoclear & ~QCOW2_AUTOCLEAR_KNOWN))
		return 0;
	ret = qcow2_header_set_features(c->st, h, h->incompatible, h->compatible,
					h->autoclear & QCOW2_AUTOCLEAR_KNOWN);
	if (ret)
		return error_set(c->err, ret, "%s: cannot write the header: %s", c->st->name,
				 strerror(-ret));
	return repair_sync(c);
}

static int mark_clean(struct check *c)
{
	struct qcow2_header *h = c->h;
	uint64_t bits = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
	int ret;

	if (!(h->incompatible & bits) || c->res->errors || c->res->corruptions)
		return 0;
	ret = qcow2_header_set_features(c->st, h, h->incompatible & ~bits, h->compatible,
					h->autoclear);
	if (ret)
		return error_set(c->err, ret, "%s: cannot write the header: %s", c->st->name,
				 strerror(-ret));
	return repair_sync(c);
}

static bool flags_are_repaired(const struct check *c)
{
	const struct qcow2_check_result *res = c->res;

	if (c->opts->repair == QCOW2_REPAIR_ALL)
		return true;
	return !res->errors && !res->corruptions && !res->leaks;
}

int repair_run(struct check *c)
{
	int ret = clear_unknown_autoclear(c);

	if (!ret)
		ret = check_count_all(c, false);
	if (!ret)
		ret = repair_sync(c);
	if (!ret)
		ret = repair_refcounts(c);
	if (!ret)
		ret = repair_sync(c);
	if (!ret)
		ret = repair_snapshots(c);
	if (!ret)
		ret = check_load_refcounts(c);
	if (!ret)
		ret = check_copied(c, flags_are_repaired(c));
	if (!ret)
		ret = repair_sync(c);
	return ret ? ret : mark_clean(c);
}

int qcow2_repair_dirty(struct storage *st, struct qcow2_header *h, struct error *err)
{
	/* Attaching takes bounded time, whatever the image. */
	const struct qcow2_check_options opts = {
		.repair = QCOW2_REPAIR_ALL,
		.work_bytes = 8 * GiB + 64 * min_of(st->size_bytes, (uint64_t)1 << 50),
	};
	struct qcow2_check_result res;
	int ret = qcow2_check(st, &opts, &res, err);

	if (ret)
		return ret;
	if (res.errors || res.corruptions)
		return error_set(err, -EIO,
				 "%s: was not closed cleanly, and %" PRIu64
				 " corruptions and %" PRIu64 " errors could not be repaired",
				 st->name, res.corruptions, res.errors);
	ret = qcow2_header_read(st, h, err);
	assert(ret || !(h->incompatible & QCOW2_INCOMPAT_DIRTY));
	return ret;
}
