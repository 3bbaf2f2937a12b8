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

/* One reference to each cluster that [offset, offset + len) touches. */
static int count_range(struct check *c, uint64_t offset, uint64_t len, const char *what)
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
		return 0;
	}
	for (uint64_t i = offset >> bits; !ret && i <= (end - 1) >> bits; i++)
		ret = count_slow(c, i);
	return ret;
}

/* ---- L2 tables ---- */

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
};

/* Entries that the short way does not take. The low offset bits are those of unaligned clusters. */
static uint64_t slow_bits(const struct check *c)
{
	return QCOW2_COMPRESSED | QCOW2_L2_RESERVED | QCOW2_ZERO |
	       (QCOW2_L2_OFFSET_MASK & (c->h->cluster_bytes - 1));
}

static bool has_data_file(const struct check *c)
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
	if (has_data_file(c)) {
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
	ret = count_range(c, hoff, qcow2_compressed_bytes(entry, c->h->cluster_bits),
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
	return has_data_file(c) ? 0 : count_range(c, hoff, c->h->cluster_bytes, "data cluster");
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
	if ((entry & QCOW2_L2_OFFSET_MASK) ||
	    (has_data_file(c) && (entry & QCOW2_COPIED) && (extended || !(entry & QCOW2_ZERO))))
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
	if (!hoff && (zero || !has_data_file(c) || !(entry & QCOW2_COPIED)))
		return;
	if (!has_data_file(c))
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

/* True if the short way did all that is to do for this entry of 8 bytes. */
static inline bool check_entry_fast(struct walk *w, uint64_t entry, uint64_t slow)
{
	struct check *c = w->c;
	uint64_t hcluster = (entry & QCOW2_L2_OFFSET_MASK) >> c->h->cluster_bits;
	uint8_t *count = (uint8_t *)c->counts.v + hcluster;

	if ((entry & slow) || !hcluster || (entry & QCOW2_L2_OFFSET_MASK) >= c->file_bytes ||
	    c->counts.width_bytes != 1 || *count >= min_of(c->counts.max, (uint64_t)UINT8_MAX))
		return false;
	if (w->copied && (c->ones[hcluster / 64] >> (hcluster % 64) & 1) != entry >> 63)
		return false;
	if (w->count) {
		++*count;
		count_fragment(w, entry & QCOW2_L2_OFFSET_MASK);
	}
	return true;
}

static int check_l2(struct walk *w, be64_t *table)
{
	struct check *c = w->c;
	uint32_t n = c->h->cluster_bytes / sizeof(be64_t);
	uint32_t step = qcow2_header_extended_l2(c->h) ? 2 : 1;
	bool fast = step == 1 && !has_data_file(c) && !c->bad_blocks;
	uint64_t slow = slow_bits(c);
	int ret = 0;

	w->next_contiguous = 0;
	w->changed = false;
	w->copied_fixed = 0;
	for (uint32_t i = 0; !ret && i < n; i += step) {
		uint64_t entry = be64_get(table[i]);

		if (step == 1 && !entry)
			continue;
		if (fast && check_entry_fast(w, entry, slow))
			continue;
		ret = check_entry(w, &table[i], i * (uint32_t)sizeof(be64_t));
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
	return count_range(c, hoff, c->h->cluster_bytes, "L2 table");
}

/* False if the flags of the table's entries cannot be judged either. */
static bool copied_l1_entry(struct walk *w, uint64_t index, int *ret)
{
	struct check *c = w->c;
	uint64_t entry = be64_get(w->l1[index]);
	uint64_t hoff = entry & QCOW2_L1_OFFSET_MASK;
	be64_t repaired;
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
	repaired = be64_make(one ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED);
	*ret = repair_table_write(c, c->h->l1_offset + index * sizeof(repaired), &repaired,
				  sizeof(repaired), REPAIR_L1);
	if (!*ret)
		c->res->corruptions_fixed++;
	return true;
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
	if (!ret)
		ret = check_l2(w, table);
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
	if (w->count) {
		ret = count_range(c, offset, len, "L1 table");
		if (ret)
			return ret;
	}
	if (offset >= c->file_bytes)
		return 0;
	len = min_of(len, align_up(c->file_bytes - offset, sizeof(be64_t)));
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

int check_copied(struct check *c, bool repair)
{
	struct walk w = {.c = c, .copied = true, .repair = repair, .active = true};

	return walk_l1_at(&w, c->h->l1_offset, c->h->l1_entries);
}

/* ---- snapshots ---- */

/* Reads the table front to back through a buffer, since its entries have no fixed length. */
struct table_reader {
	struct check *c;
	uint64_t base; /* of buf, in the file */
	uint8_t buf[64 * 1024];
	bool filled;
};

static int reader_get(struct table_reader *r, uint64_t offset, void *out, size_t len)
{
	int ret;

	if (!r->filled || offset < r->base || offset + len > r->base + sizeof(r->buf)) {
		r->base = align_down(offset, 512);
		ret = check_read(r->c, r->base, r->buf, sizeof(r->buf));
		if (ret)
			return check_read_error(r->c, ret, "snapshot table", offset);
		r->filled = true;
	}
	memcpy(out, r->buf + (offset - r->base), len);
	return 0;
}

static int read_snapshot_entries(struct check *c, struct table_reader *r)
{
	uint64_t at = c->h->snapshots_offset;
	struct qcow2_disk_snapshot d;

	for (uint32_t i = 0; i < c->h->nb_snapshots; i++) {
		struct snapshot_ref *s = &c->snapshots[i];
		int ret;

		at = align_up(at, 8);
		ret = reader_get(r, at, &d, sizeof(d));
		if (ret)
			return ret;
		s->l1_offset = be64_get(d.l1_table_offset);
		s->l1_entries = be32_get(d.l1_size);
		s->extra_len = be32_get(d.extra_len);
		if (s->extra_len > QCOW2_MAX_SNAPSHOT_EXTRA_BYTES)
			return error_set(c->err, -EFBIG,
					 "%s: snapshot %u has %u bytes of extra data, more than %u",
					 c->st->name, i, s->extra_len,
					 QCOW2_MAX_SNAPSHOT_EXTRA_BYTES);
		at += sizeof(d) + s->extra_len + be16_get(d.id_len) + be16_get(d.name_len);
		if (at - c->h->snapshots_offset > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
			return error_set(c->err, -EFBIG, "%s: the snapshot table is too big",
					 c->st->name);
		c->nb_snapshots = i + 1;
	}
	c->snapshot_table_bytes = at - c->h->snapshots_offset;
	return 0;
}

int check_read_snapshots(struct check *c)
{
	struct table_reader *r;
	int ret;

	if (!c->h->nb_snapshots)
		return 0;
	if (c->h->nb_snapshots > QCOW2_MAX_SNAPSHOTS ||
	    !is_aligned(c->h->snapshots_offset, c->h->cluster_bytes) ||
	    c->h->snapshots_offset > QCOW2_MAX_HOST_BYTES)
		return error_set(c->err, -EINVAL,
				 "%s: the snapshot table of %u entries at %" PRIu64
				 " is too big or not aligned",
				 c->st->name, c->h->nb_snapshots, c->h->snapshots_offset);
	c->snapshots = check_alloc(c, c->h->nb_snapshots * sizeof(*c->snapshots), "the snapshots");
	r = calloc(1, sizeof(*r));
	if (!c->snapshots || !r) {
		free(r);
		return error_set(c->err, -ENOMEM, "%s: no memory for the snapshots", c->st->name);
	}
	r->c = c;
	ret = read_snapshot_entries(c, r);
	free(r);
	/* State size and disk size are in the extra data, which version 3 must have. */
	for (uint32_t i = 0; !ret && c->h->version >= 3 && i < c->nb_snapshots; i++)
		if (c->snapshots[i].extra_len < 16)
			c->snapshots_incomplete++;
	return ret;
}

static int count_snapshots(struct check *c)
{
	uint64_t l1_max = QCOW2_MAX_L1_BYTES / sizeof(be64_t);
	int ret = 0;

	for (uint64_t i = 0; i < c->snapshots_incomplete; i++)
		check_finding(c, QCOW2_FINDING_CORRUPTION, "a snapshot table entry is incomplete");
	if (has_data_file(c) && c->nb_snapshots)
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "%u snapshots in an image with a data file", c->nb_snapshots);
	for (uint32_t i = 0; !ret && i < c->nb_snapshots; i++) {
		const struct snapshot_ref *s = &c->snapshots[i];
		struct walk w = {.c = c, .count = true};

		if (!is_aligned(s->l1_offset, c->h->cluster_bytes))
			check_finding(c, QCOW2_FINDING_CORRUPTION,
				      "snapshot %u: L1 table at 0x%" PRIx64
				      " is not aligned to a cluster",
				      i, s->l1_offset);
		else if (s->l1_entries > l1_max)
			check_finding(c, QCOW2_FINDING_CORRUPTION,
				      "snapshot %u: L1 table of %u entries is too large", i,
				      s->l1_entries);
		else
			ret = walk_l1_at(&w, s->l1_offset, s->l1_entries);
	}
	if (ret)
		return ret;
	return count_range(c, c->h->snapshots_offset, c->snapshot_table_bytes, "snapshot table");
}

/* ---- bitmaps ---- */

static int bitmaps_broken(struct check *c, const char *what)
{
	check_finding(c, QCOW2_FINDING_CORRUPTION, "%s", what);
	return error_set(c->err, -EINVAL, "%s: %s", c->st->name, what);
}

static bool bitmap_valid(const struct check *c, const struct qcow2_disk_bitmap *d)
{
	uint64_t entries = be32_get(d->table_entries);
	uint64_t bytes = entries << c->h->cluster_bits;
	unsigned granularity = d->granularity_bits;

	if (!entries || entries > QCOW2_MAX_BITMAP_TABLE_ENTRIES || !be64_get(d->table_offset) ||
	    !is_aligned(be64_get(d->table_offset), c->h->cluster_bytes) ||
	    granularity < QCOW2_MIN_BITMAP_GRANULARITY_BITS ||
	    granularity > QCOW2_MAX_BITMAP_GRANULARITY_BITS ||
	    (be32_get(d->flags) & QCOW2_BITMAP_FLAGS_RESERVED) ||
	    be16_get(d->name_len) > QCOW2_MAX_BITMAP_NAME_BYTES ||
	    d->type != QCOW2_BITMAP_TYPE_DIRTY || bytes > QCOW2_MAX_BITMAP_BYTES)
		return false;
	/* One that was being written need not cover the disk. */
	return (be32_get(d->flags) & QCOW2_BITMAP_IN_USE) ||
	       c->h->size_bytes <= (bytes * 8) << granularity;
}

static int count_bitmap_table(struct check *c, uint64_t offset, uint64_t entries)
{
	uint64_t len = entries * sizeof(be64_t);
	be64_t *table = check_alloc(c, len, "a bitmap table");
	int ret;

	if (!table)
		return -ENOMEM;
	ret = check_read(c, offset, table, len);
	if (ret)
		ret = check_read_error(c, ret, "bitmap table", offset);
	for (uint64_t i = 0; !ret && i < entries; i++) {
		uint64_t entry = be64_get(table[i]);
		uint64_t hoff = entry & QCOW2_BITMAP_ENTRY_OFFSET;

		if ((entry & QCOW2_BITMAP_ENTRY_RESERVED) ||
		    (hoff && (entry & QCOW2_BITMAP_ENTRY_ALL_ONES)) ||
		    !is_aligned(hoff, c->h->cluster_bytes))
			ret = bitmaps_broken(c, "a bitmap table has a broken entry");
	}
	for (uint64_t i = 0; !ret && i < entries; i++) {
		uint64_t hoff = be64_get(table[i]) & QCOW2_BITMAP_ENTRY_OFFSET;

		if (hoff)
			ret = count_range(c, hoff, c->h->cluster_bytes, "bitmap cluster");
	}
	check_free(c, table, len);
	return ret;
}

static int next_bitmap(struct check *c, const uint8_t *dir, uint64_t *at,
		       struct qcow2_disk_bitmap *d)
{
	uint64_t left = c->h->bitmap_directory_bytes - *at;
	uint64_t len;

	if (left < sizeof(*d))
		return bitmaps_broken(c, "the bitmap directory ends inside an entry");
	memcpy(d, dir + *at, sizeof(*d));
	len = align_up(sizeof(*d) + (uint64_t)be32_get(d->extra_len) + be16_get(d->name_len), 8);
	if (len > left)
		return bitmaps_broken(c, "the bitmap directory ends inside an entry");
	if (be32_get(d->extra_len))
		return bitmaps_broken(c, "a bitmap has extra data, which is not known");
	if (!bitmap_valid(c, d))
		return bitmaps_broken(c, "a bitmap directory entry is not valid");
	*at += len;
	return 0;
}

static int count_bitmaps_of(struct check *c, const uint8_t *dir)
{
	struct qcow2_disk_bitmap d;
	uint32_t n = 0;
	int ret = 0;

	/* All entries are judged before the first one counts. */
	for (uint64_t at = 0; !ret && at < c->h->bitmap_directory_bytes; n++)
		ret = next_bitmap(c, dir, &at, &d);
	if (ret)
		return ret;
	if (n != c->h->nb_bitmaps)
		return bitmaps_broken(
			c, "the bitmap directory has not as many entries as the header says");
	for (uint64_t at = 0; !ret && at < c->h->bitmap_directory_bytes;) {
		uint64_t offset, entries;

		ret = next_bitmap(c, dir, &at, &d);
		offset = be64_get(d.table_offset);
		entries = be32_get(d.table_entries);
		if (!ret)
			ret = count_range(c, offset, entries * sizeof(be64_t), "bitmap table");
		if (!ret)
			ret = count_bitmap_table(c, offset, entries);
	}
	return ret;
}

static int count_bitmaps(struct check *c)
{
	uint64_t len = c->h->bitmap_directory_bytes;
	uint8_t *dir;
	int ret;

	/* With the bit clear somebody wrote without knowing bitmaps, and nothing of them holds. */
	if (!c->h->has_bitmaps_ext || !(c->h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	ret = count_range(c, c->h->bitmap_directory_offset, len, "bitmap directory");
	if (ret)
		return ret;
	if (!len)
		return bitmaps_broken(c, "the bitmap directory is empty");
	dir = check_alloc(c, len, "the bitmap directory");
	if (!dir)
		return -ENOMEM;
	ret = check_read(c, c->h->bitmap_directory_offset, dir, len);
	ret = ret ? check_read_error(c, ret, "bitmap directory", c->h->bitmap_directory_offset)
		  : count_bitmaps_of(c, dir);
	check_free(c, dir, len);
	return ret;
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
	int ret = count_range(c, 0, c->h->cluster_bytes, "header");

	if (!ret)
		ret = walk_l1_at(&active, c->h->l1_offset, c->h->l1_entries);
	if (!ret)
		ret = count_snapshots(c);
	if (!ret && c->h->has_luks_ext)
		ret = count_range(c, c->h->luks_offset, c->h->luks_bytes, "LUKS header");
	return ret ? ret : count_bitmaps(c);
}

int check_count_all(struct check *c, bool copied)
{
	int ret = count_data(c, copied);

	if (!ret)
		ret = count_range(c, c->h->rt_offset,
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
