/* SPDX-License-Identifier: MIT */
/*
 * check_lists.c: the snapshot table and the bitmap directory, whose entries have no fixed length,
 * and what they refer to.
 *
 * A snapshot whose L1 table cannot be one is a corruption, and left out. A bitmap directory with a
 * broken entry ends the check: nothing after that entry can be found, and what it refers to would
 * be called leaked.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check_internal.h"
#include "qcow2/snapshot.h"

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
		at += snapshot_entry_bytes(&d);
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

int check_count_snapshots(struct check *c)
{
	uint64_t l1_max = QCOW2_MAX_L1_BYTES / sizeof(be64_t);
	int ret = 0;

	for (uint64_t i = 0; i < c->snapshots_incomplete; i++)
		check_finding(c, QCOW2_FINDING_CORRUPTION, "a snapshot table entry is incomplete");
	if (check_has_data_file(c) && c->nb_snapshots)
		check_finding(c, QCOW2_FINDING_CORRUPTION,
			      "%u snapshots in an image with a data file", c->nb_snapshots);
	for (uint32_t i = 0; !ret && i < c->nb_snapshots; i++) {
		const struct snapshot_ref *s = &c->snapshots[i];

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
			ret = check_count_l1(c, s->l1_offset, s->l1_entries);
	}
	if (ret)
		return ret;
	return check_count_range(c, c->h->snapshots_offset, c->snapshot_table_bytes,
				 "snapshot table");
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
			ret = check_count_range(c, hoff, c->h->cluster_bytes, "bitmap cluster");
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
			ret = check_spend(c, entries * sizeof(be64_t));
		if (!ret)
			ret = check_count_range(c, offset, entries * sizeof(be64_t),
						"bitmap table");
		if (!ret)
			ret = count_bitmap_table(c, offset, entries);
	}
	return ret;
}

int check_count_bitmaps(struct check *c)
{
	uint64_t len = c->h->bitmap_directory_bytes;
	uint8_t *dir;
	int ret;

	/* With the bit clear somebody wrote without knowing bitmaps, and nothing of them holds. */
	if (!c->h->has_bitmaps_ext || !(c->h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	ret = check_count_range(c, c->h->bitmap_directory_offset, len, "bitmap directory");
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
