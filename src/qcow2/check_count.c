/* SPDX-License-Identifier: MIT */
/*
 * check_count.c: what refers to which host cluster.
 *
 * Counted are the header, the L1 tables and all that hangs on them, the snapshot table, the
 * refcount table and its blocks, the LUKS header, and the bitmaps. A reference that goes past the
 * end of the file by a cluster or more is a corruption and not counted; less than a cluster is
 * fine, since the last cluster may be partly there.
 *
 * The loop over an L2 table has a short way for what nearly all entries are (nothing, or a normal
 * cluster inside the file); everything else goes through check_entry(). Both come to the same
 * result.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check_internal.h"

/* ---- counts ---- */

uint64_t counts_get(const struct counts *k, uint64_t i)
{
	switch (k->width_bytes) {
	case 1:
		return ((const uint8_t *)k->v)[i];
	case 2:
		return ((const uint16_t *)k->v)[i];
	case 4:
		return ((const uint32_t *)k->v)[i];
	default:
		return ((const uint64_t *)k->v)[i];
	}
}

void counts_set(const struct counts *k, uint64_t i, uint64_t value)
{
	switch (k->width_bytes) {
	case 1:
		((uint8_t *)k->v)[i] = (uint8_t)value;
		break;
	case 2:
		((uint16_t *)k->v)[i] = (uint16_t)value;
		break;
	case 4:
		((uint32_t *)k->v)[i] = (uint32_t)value;
		break;
	default:
		((uint64_t *)k->v)[i] = value;
		break;
	}
}

int check_count_init(struct check *c)
{
	c->counts.width_bytes = 1;
	c->counts.max = qcow2_refcount_max(c->h->refcount_order);
	if (c->capacity > c->memory_left) /* also: no overflow below */
		return check_charge(c, c->capacity, "the counts");
	c->counts.v = check_alloc(c, c->capacity, "the counts");
	if (!c->counts.v)
		return -ENOMEM;
	c->ones = check_alloc(c, div_up(c->capacity, 64) * sizeof(uint64_t), "the refcounts");
	return c->ones ? 0 : -ENOMEM;
}

static int widen(struct check *c)
{
	struct counts *k = &c->counts;
	struct counts wide = {.width_bytes = k->width_bytes * 2, .max = k->max};

	wide.v = check_alloc(c, c->capacity * wide.width_bytes, "the counts");
	if (!wide.v)
		return -ENOMEM;
	for (uint64_t i = 0; i < c->capacity; i++)
		counts_set(&wide, i, counts_get(k, i));
	check_free(c, k->v, c->capacity * k->width_bytes);
	*k = wide;
	return 0;
}

static int count_slow(struct check *c, uint64_t hcluster)
{
	struct counts *k = &c->counts;
	uint64_t value;
	int ret;

	assert(hcluster < c->capacity);
	c->hclusters = max_of(c->hclusters, hcluster + 1);
	value = counts_get(k, hcluster);
	if (value == k->max) {
		c->saturated = true;
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "cluster at 0x%" PRIx64 " has more references than %u bits can count",
			      qcow2_hcluster_to_host(hcluster, c->h->cluster_bits),
			      c->h->refcount_bits);
		return 0;
	}
	if (k->width_bytes < 8 && value == ((uint64_t)1 << (8 * k->width_bytes)) - 1) {
		ret = widen(c);
		if (ret)
			return ret;
	}
	counts_set(k, hcluster, value + 1);
	return 0;
}

void check_keep_range(struct check *c, uint64_t offset, uint64_t len)
{
	uint64_t first = offset >> c->h->cluster_bits, end;

	if (!checked_add(offset, len, &end))
		end = UINT64_MAX;
	end = min_of(div_up(end, c->h->cluster_bytes), c->capacity);
	for (uint64_t i = first; i < end; i++)
		c->ones[i / 64] |= (uint64_t)1 << (i % 64);
}

/* One reference to each cluster that [offset, offset + len) touches. */
int check_count_range(struct check *c, uint64_t offset, uint64_t len, const char *what)
{
	unsigned bits = c->h->cluster_bits;
	uint64_t end;
	int ret = 0;

	if (!len)
		return 0;
	if (!checked_add(offset, len, &end) ||
	    (end > c->file_bytes && end - c->file_bytes >= c->h->cluster_bytes)) {
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "the %s at 0x%" PRIx64 ", %" PRIu64
			      " bytes long, goes past the end of the file",
			      what, offset, len);
		/* Part of it may be in the file, and be all that is left of a table. */
		if (c->planning)
			check_keep_range(c, offset, len);
		return 0;
	}
	for (uint64_t i = offset >> bits; !ret && i <= (end - 1) >> bits; i++)
		ret = count_slow(c, i);
	return ret;
}

/* ---- L2 tables ---- */

/* Of the L1 table, that a repair changes by one write. */
#define L1_REPAIR_ENTRIES 64u

struct walk {
	struct check *c;
	bool count, copied, repair;
	bool active; /* the disk's own tables, not a snapshot's */
	const be64_t *l1;
	uint64_t l1_entries;
	uint64_t l1_next;
	uint64_t next_contiguous; /* where an unfragmented file would go on */
	uint64_t copied_fixed;	  /* entries of the present table */
	bool changed;
	uint32_t changed_first, changed_end; /* bytes of the table */
	/* of the L1 table: repaired entries that are not written yet, and what lies between them */
	uint64_t l1_first, l1_end;
	be64_t l1_repaired[L1_REPAIR_ENTRIES];
};

/* Entries that the short way does not take. The low offset bits are those of unaligned clusters. */
static uint64_t slow_bits(const struct check *c)
{
	return QCOW2_COMPRESSED | QCOW2_L2_RESERVED | QCOW2_ZERO |
	       (QCOW2_L2_OFFSET_MASK & (c->h->cluster_bytes - 1));
}

bool check_has_data_file(const struct check *c)
{
	return c->h->incompatible & QCOW2_INCOMPAT_DATA_FILE;
}

static void mark_changed(struct walk *w, uint32_t first, uint32_t len)
{
	if (!w->changed) {
		w->changed_first = first;
		w->changed_end = first + len;
	}
	w->changed = true;
	w->changed_first = min_of(w->changed_first, first);
	w->changed_end = max_of(w->changed_end, first + len);
}

static int check_compressed(struct walk *w, uint64_t entry, uint64_t bitmap)
{
	struct check *c = w->c;
	uint64_t hoff = qcow2_compressed_host(entry, c->h->cluster_bits);
	int ret;

	if (entry & QCOW2_COPIED)
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "compressed cluster at 0x%" PRIx64 " has the COPIED flag", hoff);
	if (check_has_data_file(c)) {
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "compressed cluster at 0x%" PRIx64 " in an image with a data file",
			      hoff);
		return 0;
	}
	if (bitmap) {
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "compressed cluster at 0x%" PRIx64 " has subclusters", hoff);
		return 0;
	}
	ret = check_count_range(c, hoff, qcow2_compressed_bytes(entry, c->h->cluster_bits),
				"compressed cluster");
	if (ret || !w->active)
		return ret;
	c->res->allocated_clusters++;
	c->res->compressed_clusters++;
	c->res->fragmented_clusters++;
	return 0;
}

static void count_fragment(struct walk *w, uint64_t hoff)
{
	struct qcow2_check_result *res = w->c->res;

	if (!w->active)
		return;
	res->allocated_clusters++;
	if (w->next_contiguous && hoff != w->next_contiguous)
		res->fragmented_clusters++;
	w->next_contiguous = hoff + w->c->h->cluster_bytes;
}

/* Nothing is lost where an entry that should not be there holds no data: it becomes plain zeros. */
static void repair_to_zeros(struct walk *w, be64_t *slot, uint64_t bitmap, uint32_t byte)
{
	struct check *c = w->c;

	if (qcow2_header_extended_l2(c->h)) {
		slot[0] = be64_make(0);
		slot[1] = be64_make((bitmap | bitmap << 32) & QCOW2_SUBCLUSTERS_ZERO_MASK);
		mark_changed(w, byte, 16);
	} else {
		slot[0] = be64_make(QCOW2_ZERO);
		mark_changed(w, byte, 8);
	}
	c->res->corruptions--;
	c->res->corruptions_fixed++;
}

/* A normal cluster, or a zero cluster with a host cluster of its own. */
static int check_allocated(struct walk *w, be64_t *slot, uint64_t entry, uint64_t bitmap,
			   uint32_t byte)
{
	struct check *c = w->c;
	uint64_t hoff = entry & QCOW2_L2_OFFSET_MASK;
	bool extended = qcow2_header_extended_l2(c->h);
	bool data = extended ? bitmap & QCOW2_SUBCLUSTERS_ALLOC_MASK : !(entry & QCOW2_ZERO);

	if (bitmap >> 32 & bitmap)
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "cluster at 0x%" PRIx64
			      " has subclusters that are both allocated and zero",
			      hoff);
	if (!is_aligned(hoff, c->h->cluster_bytes)) {
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "%s cluster at 0x%" PRIx64 " is not aligned to a cluster",
			      data ? "data" : "preallocated", hoff);
		if (!data && c->repairing && !c->quiet) {
			repair_to_zeros(w, slot, bitmap, byte);
			return 0;
		}
	}
	count_fragment(w, hoff);
	return check_has_data_file(c)
		       ? 0
		       : check_count_range(c, hoff, c->h->cluster_bytes, "data cluster");
}

static int count_entry(struct walk *w, be64_t *slot, uint64_t entry, uint64_t bitmap, uint32_t byte)
{
	struct check *c = w->c;
	bool extended = qcow2_header_extended_l2(c->h);

	if (entry & QCOW2_COMPRESSED)
		return check_compressed(w, entry, bitmap);
	if (entry & QCOW2_L2_RESERVED)
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "L2 entry 0x%" PRIx64 " has reserved bits set", entry);
	if ((entry & QCOW2_L2_OFFSET_MASK) || (check_has_data_file(c) && (entry & QCOW2_COPIED) &&
					       (extended || !(entry & QCOW2_ZERO))))
		return check_allocated(w, slot, entry, bitmap, byte);
	if (bitmap & QCOW2_SUBCLUSTERS_ALLOC_MASK)
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "a cluster without a place in the file has allocated subclusters");
	return 0;
}

static void copied_mismatch(struct walk *w, be64_t *slot, uint64_t entry, bool one, uint32_t byte)
{
	struct check *c = w->c;

	if (!w->repair) {
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "L2 entry 0x%" PRIx64
			      ": the COPIED flag is %s, but the refcount is %s",
			      entry, entry & QCOW2_COPIED ? "set" : "clear", one ? "1" : "not 1");
		return;
	}
	check_finding(c, QCOW2_FINDING_REPAIR, "L2 entry 0x%" PRIx64 ": the COPIED flag is %s",
		      entry, one ? "set" : "cleared");
	*slot = be64_make(one ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED);
	mark_changed(w, byte, 8);
	w->copied_fixed++;
}

static void copied_entry(struct walk *w, be64_t *slot, uint32_t byte)
{
	struct check *c = w->c;
	uint64_t entry = be64_get(*slot);
	uint64_t hoff = entry & QCOW2_L2_OFFSET_MASK;
	bool zero = (entry & QCOW2_ZERO) && !qcow2_header_extended_l2(c->h);
	int one = 1;

	if (entry & QCOW2_COMPRESSED)
		return;
	if (!hoff && (zero || !check_has_data_file(c) || !(entry & QCOW2_COPIED)))
		return;
	if (!check_has_data_file(c))
		one = check_refcount_is_one(c, qcow2_host_to_hcluster(hoff, c->h->cluster_bits));
	if (one >= 0 && one != !!(entry & QCOW2_COPIED))
		copied_mismatch(w, slot, entry, one, byte);
}

static int check_entry(struct walk *w, be64_t *slot, uint32_t byte)
{
	bool extended = qcow2_header_extended_l2(w->c->h);
	int ret = 0;

	if (w->count)
		ret = count_entry(w, slot, be64_get(slot[0]), extended ? be64_get(slot[1]) : 0,
				  byte);
	if (!ret && w->copied)
		copied_entry(w, slot, byte);
	return ret;
}

/*
 * The short way: takes entries of 8 bytes from @i on for as long as nothing is special about them,
 * and returns the first that it has not dealt with. Everything it needs is in locals: counts are
 * bytes, and a store to a byte may be a store to anything.
 */
static uint32_t check_plain(struct walk *w, const be64_t *table, uint32_t i, uint32_t n)
{
	struct check *c = w->c;
	uint8_t *counts = c->counts.v;
	const uint64_t *ones = c->ones;
	uint64_t limit = min_of(c->counts.max, (uint64_t)UINT8_MAX);
	uint64_t slow = slow_bits(c), file_bytes = c->file_bytes,
		 cluster_bytes = c->h->cluster_bytes;
	uint64_t next = w->next_contiguous, allocated = 0, fragmented = 0;
	unsigned bits = c->h->cluster_bits;
	bool count = w->count, copied = w->copied;

	if (c->counts.width_bytes != 1)
		return i;
	for (; i < n; i++) {
		uint64_t entry = be64_get(table[i]);
		uint64_t hoff = entry & QCOW2_L2_OFFSET_MASK;
		uint64_t hcluster = hoff >> bits;

		if (!entry)
			continue;
		if ((entry & slow) || !hoff || hoff >= file_bytes || counts[hcluster] >= limit)
			break;
		if (copied && (ones[hcluster / 64] >> (hcluster % 64) & 1) != entry >> 63)
			break;
		if (!count)
			continue;
		counts[hcluster]++;
		allocated++;
		fragmented += next && hoff != next;
		next = hoff + cluster_bytes;
	}
	w->next_contiguous = next;
	if (w->active) {
		c->res->allocated_clusters += allocated;
		c->res->fragmented_clusters += fragmented;
	}
	return i;
}

static int check_l2(struct walk *w, be64_t *table)
{
	struct check *c = w->c;
	uint32_t n = c->h->cluster_bytes / sizeof(be64_t);
	uint32_t step = qcow2_header_extended_l2(c->h) ? 2 : 1;
	bool plain = step == 1 && !check_has_data_file(c) && !c->bad_blocks;
	uint32_t i = 0;
	int ret = 0;

	w->next_contiguous = 0;
	w->copied_fixed = 0;
	while (!ret) {
		if (plain)
			i = check_plain(w, table, i, n);
		if (i >= n)
			break;
		ret = check_entry(w, &table[i], i * (uint32_t)sizeof(be64_t));
		i += step;
	}
	return ret;
}

/* ---- L1 tables ---- */

static bool next_l2(void *arg, uint64_t *offset, uint64_t *tag)
{
	struct walk *w = arg;

	for (; w->l1_next < w->l1_entries; w->l1_next++) {
		uint64_t entry = be64_get(w->l1[w->l1_next]);

		/* Only counting follows an entry that has flags and no offset. */
		if (!entry || (!w->count && !(entry & QCOW2_L1_OFFSET_MASK)))
			continue;
		*offset = entry & QCOW2_L1_OFFSET_MASK;
		*tag = w->l1_next++;
		return true;
	}
	return false;
}

static int count_l1_entry(struct walk *w, uint64_t entry)
{
	struct check *c = w->c;
	uint64_t hoff = entry & QCOW2_L1_OFFSET_MASK;

	if (entry & QCOW2_L1_RESERVED)
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "L1 entry 0x%" PRIx64 " has reserved bits set", entry);
	if (!is_aligned(hoff, c->h->cluster_bytes))
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "L2 table at 0x%" PRIx64 " is not aligned to a cluster", hoff);
	return check_count_range(c, hoff, c->h->cluster_bytes, "L2 table");
}

/* Writes what is repaired of the L1 table. */
static int l1_write(struct walk *w)
{
	struct check *c = w->c;
	uint64_t first = w->l1_first, n = w->l1_end - first, fixed = 0;
	int ret;

	if (!n)
		return 0;
	for (uint64_t i = 0; i < n; i++)
		fixed += w->l1_repaired[i].raw != w->l1[first + i].raw;
	w->l1_end = first;
	ret = repair_table_write(c, c->h->l1_offset + first * sizeof(be64_t), w->l1_repaired,
				 n * sizeof(be64_t), REPAIR_L1);
	if (!ret)
		c->res->corruptions_fixed += fixed;
	return ret;
}

/* Entry @index, which comes after all that were repaired before, is to be @value. */
static int l1_repair(struct walk *w, uint64_t index, uint64_t value)
{
	int ret = 0;

	if (w->l1_end > w->l1_first && index - w->l1_first >= L1_REPAIR_ENTRIES)
		ret = l1_write(w);
	if (w->l1_end == w->l1_first)
		w->l1_first = w->l1_end = index;
	for (; w->l1_end < index; w->l1_end++)
		w->l1_repaired[w->l1_end - w->l1_first] = w->l1[w->l1_end];
	w->l1_repaired[w->l1_end++ - w->l1_first] = be64_make(value);
	return ret;
}

/* False if the flags of the table's entries cannot be judged either. */
static bool copied_l1_entry(struct walk *w, uint64_t index, int *ret)
{
	struct check *c = w->c;
	uint64_t entry = be64_get(w->l1[index]);
	uint64_t hoff = entry & QCOW2_L1_OFFSET_MASK;
	int one;

	if (!hoff)
		return false;
	one = check_refcount_is_one(c, qcow2_host_to_hcluster(hoff, c->h->cluster_bits));
	if (one < 0)
		return false;
	if (one == !!(entry & QCOW2_COPIED))
		return true;
	if (!w->repair) {
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "L1 entry %" PRIu64 ": the COPIED flag is %s, but the refcount is %s",
			      index, one ? "clear" : "set", one ? "1" : "not 1");
		return true;
	}
	check_finding(c, QCOW2_FINDING_REPAIR, "L1 entry %" PRIu64 ": the COPIED flag is %s", index,
		      one ? "set" : "cleared");
	*ret = l1_repair(w, index, one ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED);
	return true;
}

/* A table that is read from a disk takes as long as so much of it at least. */
#define TABLE_COST_BYTES 16384u

int check_spend(struct check *c, uint64_t bytes)
{
	if (c->work_left < bytes)
		return error_set(c->err, -E2BIG,
				 "%s: checking would take too long: the same tables are used again "
				 "and again",
				 c->st->name);
	c->work_left -= bytes;
	return 0;
}

static int walk_table(struct walk *w, void *table, uint64_t offset, uint64_t index)
{
	struct check *c = w->c;
	bool copied = w->copied;
	int ret = 0;

	if (w->count)
		ret = count_l1_entry(w, be64_get(w->l1[index]));
	if (!ret && copied)
		w->copied = copied_l1_entry(w, index, &ret);
	w->changed = false;
	/* Past the end of the file is nothing. */
	if (!ret && offset < c->stored_bytes) {
		ret = check_spend(c, c->whole ? c->h->cluster_bytes
					      : max_of(c->h->cluster_bytes, TABLE_COST_BYTES));
		if (!ret)
			ret = check_l2(w, table);
	}
	if (!ret && w->changed) {
		ret = repair_table_write(c, offset + w->changed_first,
					 (uint8_t *)table + w->changed_first,
					 w->changed_end - w->changed_first, REPAIR_L2);
		if (!ret)
			c->res->corruptions_fixed += w->copied_fixed;
	}
	w->copied = copied;
	return ret;
}

/* @l1_bytes: what of it is in the file; the rest is zeros, and so nothing to do. */
static int walk_l1(struct walk *w, const be64_t *l1, uint64_t entries)
{
	struct check *c = w->c;
	struct table_iter *it = NULL;
	uint64_t offset, index, before = 0;
	void *table;
	int ret;

	w->l1 = l1;
	w->l1_entries = entries;
	w->l1_next = 0;
	ret = tables_begin(&it, c, next_l2, w);
	if (ret)
		goto out;
	while ((ret = tables_next(it, &table, &offset, &index)) > 0) {
		ret = walk_table(w, table, offset, index);
		if (ret)
			break;
		if (index - before >= 32) {
			check_progress(c, index - before);
			before = index;
		}
	}
	if (!ret)
		ret = l1_write(w);
out:
	tables_end(it);
	return ret;
}

/* An L1 table at @offset, which is aligned. */
static int walk_l1_at(struct walk *w, uint64_t offset, uint64_t entries)
{
	struct check *c = w->c;
	uint64_t len = entries * sizeof(be64_t);
	be64_t *l1;
	int ret;

	if (!entries)
		return 0;
	/* of many snapshots it may be one and the same */
	ret = check_spend(c, len);
	if (!ret && w->count)
		ret = check_count_range(c, offset, len, "L1 table");
	if (ret)
		return ret;
	if (offset >= c->stored_bytes)
		return 0;
	len = min_of(len, align_up(c->stored_bytes - offset, sizeof(be64_t)));
	if (c->whole)
		return walk_l1(w, (const be64_t *)(c->whole + offset), len / sizeof(be64_t));
	l1 = check_alloc(c, len, "an L1 table");
	if (!l1)
		return -ENOMEM;
	ret = check_read(c, offset, l1, len);
	ret = ret ? check_read_error(c, ret, "L1 table", offset)
		  : walk_l1(w, l1, len / sizeof(be64_t));
	check_free(c, l1, len);
	return ret;
}

int check_count_l1(struct check *c, uint64_t offset, uint64_t entries)
{
	struct walk w = {.c = c, .count = true};

	return walk_l1_at(&w, offset, entries);
}

int check_copied(struct check *c, bool repair)
{
	struct walk w = {.c = c, .copied = true, .repair = repair, .active = true};

	return walk_l1_at(&w, c->h->l1_offset, c->h->l1_entries);
}

/* ---- refcount structures ---- */

static int count_blocks(struct check *c)
{
	unsigned bits = c->h->cluster_bits;

	for (uint64_t i = 0; i < c->rt_entries; i++) {
		uint64_t entry = be64_get(c->rt[i]);
		uint64_t hoff = entry & QCOW2_RT_OFFSET_MASK;
		uint64_t hcluster = qcow2_host_to_hcluster(hoff, bits);
		const char *wrong = NULL;
		bool outside = false;
		int ret;

		if (!entry)
			continue;
		if (entry & QCOW2_RT_RESERVED)
			wrong = "has reserved bits set";
		else if (!is_aligned(hoff, c->h->cluster_bytes))
			wrong = "is not aligned to a cluster";
		else if ((outside = hcluster >= c->hclusters))
			wrong = "is outside the file";
		if (!wrong) {
			ret = count_slow(c, hcluster);
			if (ret)
				return ret;
			if (counts_get(&c->counts, hcluster) != 1)
				wrong = "is used for something else, too";
		}
		if (wrong) {
			check_finding(c, QCOW2_FINDING_CORRUPTION,
				      "refcount block %" PRIu64 " at 0x%" PRIx64 " %s", i, hoff,
				      wrong);
			/* A block outside that says nothing about the file does no harm to other
			 * repairs. */
			c->rebuild |= !outside || c->repairing;
		}
	}
	return 0;
}

static int count_data(struct check *c, bool copied)
{
	struct walk active = {.c = c, .count = true, .copied = copied, .active = true};
	int ret = check_count_range(c, 0, c->h->cluster_bytes, "header");

	if (!ret)
		ret = walk_l1_at(&active, c->h->l1_offset, c->h->l1_entries);
	if (!ret)
		ret = check_count_snapshots(c);
	if (!ret && c->h->has_luks_ext)
		ret = check_count_range(c, c->h->luks_offset, c->h->luks_bytes, "LUKS header");
	return ret ? ret : check_count_bitmaps(c);
}

int check_count_all(struct check *c, bool copied)
{
	int ret = count_data(c, copied);

	if (!ret)
		ret = check_count_range(c, c->h->rt_offset,
					(uint64_t)c->h->rt_clusters << c->h->cluster_bits,
					"refcount table");
	return ret ? ret : count_blocks(c);
}

int check_count_data(struct check *c)
{
	struct qcow2_check_result saved = *c->res;
	bool quiet = c->quiet;
	int ret;

	memset(c->counts.v, 0, c->capacity * c->counts.width_bytes);
	c->quiet = true;
	ret = count_data(c, false);
	c->quiet = quiet;
	*c->res = saved;
	return ret;
}
