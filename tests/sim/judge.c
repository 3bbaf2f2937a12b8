/* SPDX-License-Identifier: MIT */
/*
 * judge.c: see judge.h. Count every reference, then compare with the refcounts stored, then look at
 * each COPIED flag; the order and the verdicts are qemu-img's.
 */
#include "judge.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/math.h"
#include "bits.h"

#define OFFSET_MASK 0x00fffffffffffe00ull
#define COPIED	    (1ull << 63)
#define COMPRESSED  (1ull << 62)
#define ZERO	    1ull
#define L1_RESERVED 0x7f000000000001ffull
#define L2_RESERVED 0x3f000000000001feull
#define EXT_LUKS    0x0537be77u

const char *const judge_kind_names[JUDGE_KINDS] = {
	"free", "header", "refcount table", "refcount block", "L1", "L2", "data", "compressed",
	"snapshot table", "LUKS header", "bitmap",
};

__attribute__((format(printf, 2, 3))) static void corrupt(struct judge *j, const char *fmt, ...)
{
	va_list ap;

	if (j->corruptions++)
		return;
	va_start(ap, fmt);
	vsnprintf(j->text, sizeof(j->text), fmt, ap);
	va_end(ap);
}

/* Big endian, at a multiple of its size; past the end of the file there are zeros. */
static uint64_t be_at(const struct sim_map *m, uint64_t offset, unsigned bytes)
{
	const uint8_t *p = sim_map_get(m, offset / SECTOR_BYTES) + offset % SECTOR_BYTES;
	uint64_t v = 0;

	if (offset >= m->size_bytes)
		return 0;
	for (unsigned i = 0; i < bytes; i++)
		v = v << 8 | p[i];
	return v;
}

static uint64_t be64_at(const struct sim_map *m, uint64_t offset)
{
	const uint8_t *p;
	uint64_t v;

	if (offset >= m->size_bytes)
		return 0;
	p = sim_map_get(m, offset / SECTOR_BYTES);
	if (p == sim_zero_sector)
		return 0;
	memcpy(&v, p + offset % SECTOR_BYTES, 8);
	return __builtin_bswap64(v);
}

/* Counts @bytes at @offset; false, and a corruption, where they cannot be. */
static bool count(struct judge *j, uint64_t offset, uint64_t bytes, enum judge_kind kind,
		  uint64_t from)
{
	uint64_t cluster = (uint64_t)1 << j->cluster_bits;

	if (offset + bytes > j->map->size_bytes && offset + bytes - j->map->size_bytes >= cluster) {
		corrupt(j,
			"%s at %#" PRIx64 " (from %#" PRIx64 ") lies past the file's end %#" PRIx64,
			judge_kind_names[kind], offset, from, j->map->size_bytes);
		return false;
	}
	for (uint64_t c = offset >> j->cluster_bits; c << j->cluster_bits < offset + bytes; c++) {
		if (c >= j->refs.n)
			return false;
		/* compressed ones share clusters; another L1 table may refer to the same L2 tables and data */
		if (j->refs.at[c]++ &&
		    (j->kinds.at[c] != kind ||
		     (kind != JUDGE_COMPRESSED &&
		      ((kind != JUDGE_L2 && kind != JUDGE_DATA) || j->walkers.at[c] == j->walker))))
			corrupt(j, "cluster %#" PRIx64 " is both %s and %s (from %#" PRIx64 ")",
				c << j->cluster_bits, judge_kind_names[j->kinds.at[c]],
				judge_kind_names[kind], from);
		j->kinds.at[c] = kind;
		j->walkers.at[c] = j->walker;
	}
	return true;
}

static uint64_t refcount_at(struct judge *j, uint64_t rt_offset, uint64_t cluster)
{
	unsigned bits = 1u << j->refcount_order;
	unsigned per_block_bits = j->cluster_bits + 3 - j->refcount_order;
	uint64_t table_bytes = be_at(j->map, 56, 4) << j->cluster_bits, block = 0;
	uint64_t index = cluster & (((uint64_t)1 << per_block_bits) - 1);

	/* a device may be longer than what the table counts */
	if ((cluster >> per_block_bits) * 8 < table_bytes)
		block = be64_at(j->map, rt_offset + (cluster >> per_block_bits) * 8);
	block &= ~511ull;
	if (!block)
		return 0;
	if (bits < 8)
		return be_at(j->map, block + index * bits / 8, 1) >> (index * bits % 8) &
		       ((1u << bits) - 1);
	return be_at(j->map, block + index * (bits / 8), bits / 8);
}

static uint64_t entry_bytes(const struct judge *j)
{
	return j->extended ? 16 : 8;
}

/* Each host cluster that it touches has one reference for it, and may have more for others. */
static void walk_compressed(struct judge *j, uint64_t at, uint64_t entry)
{
	unsigned offset_bits = 62 - (j->cluster_bits - 8);
	uint64_t offset = entry & (((uint64_t)1 << offset_bits) - 1);
	uint64_t sectors = (entry & ~(COMPRESSED | COPIED)) >> offset_bits;

	if (entry & COPIED)
		corrupt(j, "L2 entry at %#" PRIx64 " is compressed and COPIED: %#" PRIx64, at, entry);
	else
		count(j, offset, (sectors + 1) * 512 - offset % 512, JUDGE_COMPRESSED, at);
}

/* Guest data at @offset, or none if it is 0; the guest has it at @goff. */
static void count_data(struct judge *j, uint64_t at, uint64_t entry, uint64_t goff)
{
	uint64_t cluster = (uint64_t)1 << j->cluster_bits, offset = entry & OFFSET_MASK;

	if (!j->data_file && offset)
		count(j, offset, cluster, JUDGE_DATA, at);
	else if (j->data_file && (offset || entry & COPIED) && offset != goff)
		corrupt(j, "L2 entry at %#" PRIx64 " is %#" PRIx64 ", guest offset %#" PRIx64
			" of a data file", at, entry, goff);
}

/* @goff is the guest offset of the table's first entry. */
static void walk_l2(struct judge *j, uint64_t l2_offset, uint64_t goff)
{
	uint64_t cluster = (uint64_t)1 << j->cluster_bits;

	for (uint64_t at = l2_offset; at < l2_offset + cluster; at += entry_bytes(j), goff += cluster) {
		uint64_t entry = be64_at(j->map, at);
		uint64_t offset = entry & OFFSET_MASK;
		uint64_t bitmap = j->extended ? be64_at(j->map, at + 8) : 0;

		if (bitmap & bitmap >> 32 & 0xffffffff ||
		    (bitmap & 0xffffffff && !offset && !(j->data_file && entry & COPIED)) ||
		    (j->extended && entry & ZERO && !(entry & COMPRESSED)) ||
		    (bitmap && entry & COMPRESSED))
			corrupt(j, "L2 entry at %#" PRIx64 " is %#" PRIx64 " with bitmap %#" PRIx64, at,
				entry, bitmap);
		if (!entry)
			continue;
		if (entry & COMPRESSED && j->data_file)
			corrupt(j, "L2 entry at %#" PRIx64 " is compressed, in a data file", at);
		else if (entry & COMPRESSED)
			walk_compressed(j, at, entry);
		else if (entry & L2_RESERVED || (j->version < 3 && entry & ZERO))
			corrupt(j, "L2 entry at %#" PRIx64 " has reserved bits: %#" PRIx64, at,
				entry);
		else if (offset & (cluster - 1))
			corrupt(j, "L2 entry at %#" PRIx64 " is not aligned: %#" PRIx64, at, entry);
		else
			count_data(j, at, entry, goff);
	}
}

static void walk_l1(struct judge *j, uint64_t l1_offset, uint64_t l1_size)
{
	uint64_t cluster = (uint64_t)1 << j->cluster_bits;
	uint64_t per_table = cluster / entry_bytes(j) * cluster; /* guest bytes */

	j->walker++;
	count(j, l1_offset, l1_size * 8, JUDGE_L1, 40);
	for (uint64_t i = 0; i < l1_size; i++) {
		uint64_t entry = be64_at(j->map, l1_offset + i * 8);
		uint64_t offset = entry & OFFSET_MASK;

		if (!offset)
			continue;
		if (entry & L1_RESERVED)
			corrupt(j, "L1 entry %" PRIu64 " has reserved bits: %#" PRIx64, i, entry);
		if (offset & (cluster - 1)) {
			corrupt(j, "L1 entry %" PRIu64 " is not aligned: %#" PRIx64, i, entry);
			continue;
		}
		if (count(j, offset, cluster, JUDGE_L2, l1_offset + i * 8))
			walk_l2(j, offset, i * per_table);
	}
}

static void walk_snapshots(struct judge *j)
{
	uint64_t n = be_at(j->map, 60, 4), from = be64_at(j->map, 64), at = from;

	for (uint64_t i = 0; i < n; i++) {
		at = align_up(at, 8);
		walk_l1(j, be64_at(j->map, at), be_at(j->map, at + 8, 4));
		at += 40 + be_at(j->map, at + 12, 2) + be_at(j->map, at + 14, 2) +
		      be_at(j->map, at + 36, 4);
	}
	if (n)
		count(j, from, at - from, JUDGE_TABLE, 64);
}

static void walk_bitmaps(struct judge *j)
{
	struct bits b;

	bits_read(&b, j->map);
	j->bitmaps = b.n;
	if (b.n)
		count(j, b.directory, b.directory_bytes, JUDGE_BITMAP, 0);
	for (unsigned i = 0; i < b.n; i++) {
		count(j, b.at[i].table, b.at[i].entries * 8, JUDGE_BITMAP, b.directory);
		for (uint64_t at = b.at[i].table, n = b.at[i].entries; n; at += 8, n--) {
			uint64_t entry = be64_at(j->map, at);

			if (entry & ~OFFSET_MASK && entry != 1)
				corrupt(j, "bitmap table entry at %#" PRIx64 " is %#" PRIx64, at, entry);
			else if (entry & OFFSET_MASK)
				count(j, entry, (uint64_t)1 << j->cluster_bits, JUDGE_BITMAP, at);
		}
	}
}

static void walk_refcounts(struct judge *j, uint64_t rt_offset, uint64_t rt_clusters)
{
	uint64_t cluster = (uint64_t)1 << j->cluster_bits;

	count(j, rt_offset, rt_clusters << j->cluster_bits, JUDGE_REFTABLE, 48);
	for (uint64_t i = 0; i < (rt_clusters << j->cluster_bits) / 8; i++) {
		uint64_t entry = be64_at(j->map, rt_offset + i * 8);

		if (!entry)
			continue;
		if (entry & (cluster - 1))
			corrupt(j, "refcount table entry %" PRIu64 " is bad: %#" PRIx64, i, entry);
		else if (entry >> j->cluster_bits >= j->clusters)
			corrupt(j, "refcount block %#" PRIx64 " lies past the file's end %#" PRIx64,
				entry, j->map->size_bytes);
		else
			count(j, entry, cluster, JUDGE_REFBLOCK, rt_offset + i * 8);
	}
}

static void compare(struct judge *j, uint64_t rt_offset)
{
	for (uint64_t c = 0; c < j->clusters; c++) {
		uint64_t stored = refcount_at(j, rt_offset, c);

		if (stored < j->refs.at[c])
			corrupt(j, "cluster %#" PRIx64 " (%s): refcount %" PRIu64 ", references %u",
				c << j->cluster_bits, judge_kind_names[j->kinds.at[c]], stored,
				j->refs.at[c]);
		else if (stored > j->refs.at[c])
			j->leaks++;
		j->shared |= j->kinds.at[c] == JUDGE_COMPRESSED ||
			     (stored > j->refs.at[c] && stored > 1);
	}
}

/* @data: the entry is of guest data, of which a data file has each cluster once. */
static void copied(struct judge *j, uint64_t rt_offset, uint64_t at, bool data, const char *what)
{
	uint64_t entry = be64_at(j->map, at);
	uint64_t offset = entry & OFFSET_MASK;
	uint64_t stored = 1;

	if (!offset || entry & COMPRESSED)
		return;
	if (!data || !j->data_file)
		stored = refcount_at(j, rt_offset, offset >> j->cluster_bits);
	j->flags += stored == 1 && !(entry & COPIED);
	if ((stored == 1) != !!(entry & COPIED))
		corrupt(j, "%s entry at %#" PRIx64 " is %#" PRIx64 " with refcount %" PRIu64, what,
			at, entry, stored);
}

static void compare_copied(struct judge *j, uint64_t rt_offset, uint64_t l1_offset,
			   uint64_t l1_size)
{
	for (uint64_t i = 0; i < l1_size; i++) {
		uint64_t l2 = be64_at(j->map, l1_offset + i * 8) & OFFSET_MASK;

		copied(j, rt_offset, l1_offset + i * 8, false, "L1");
		if (!l2 || l2 >> j->cluster_bits >= j->clusters)
			continue;
		for (uint64_t k = 0; k < (uint64_t)1 << j->cluster_bits; k += entry_bytes(j))
			copied(j, rt_offset, l2 + k, true, "L2");
	}
}

/* The LUKS header, which a header extension says the place of. */
static void walk_luks(struct judge *j)
{
	uint64_t at = j->version == 3 ? be_at(j->map, 100, 4) : 72;

	while (be_at(j->map, at, 4) && be_at(j->map, at, 4) != EXT_LUKS && at < 4096)
		at += 8 + align_up(be_at(j->map, at + 4, 4), 8);
	if (be_at(j->map, at, 4) == EXT_LUKS)
		count(j, be64_at(j->map, at + 8), be64_at(j->map, at + 16), JUDGE_LUKS, at);
	else
		corrupt(j, "encrypted, and there is no LUKS header");
}

static bool read_header(struct judge *j)
{
	const struct sim_map *m = j->map;
	uint64_t incompatible;

	j->version = be_at(m, 4, 4);
	j->cluster_bits = be_at(m, 20, 4);
	if (be_at(m, 0, 4) != 0x514649fb || j->version < 2 || j->version > 3 ||
	    j->cluster_bits < 9 || j->cluster_bits > 21) {
		corrupt(j, "the header is broken");
		return false;
	}
	j->size_bytes = be64_at(m, 24);
	j->refcount_order = j->version == 3 ? be_at(m, 96, 4) : 4;
	incompatible = j->version == 3 ? be64_at(m, 72) : 0;
	j->dirty = incompatible & 1;
	j->data_file = incompatible & 4;
	j->extended = incompatible & 16;
	if (j->refcount_order > 6 || incompatible & ~29ull || be_at(m, 60, 4) > 64 ||
	    be_at(m, 32, 4) & ~2ull) {
		corrupt(j, "the header has features that no workload makes");
		return false;
	}
	return true;
}

void judge_run(struct judge *j, const struct sim_map *map)
{
	uint64_t l1_offset, l1_size, rt_offset, rt_clusters;

	j->corruptions = j->leaks = j->flags = 0;
	j->shared = false;
	j->text[0] = 0;
	j->refs.n = j->kinds.n = j->walkers.n = j->walker = 0;
	j->map = map;
	if (!read_header(j))
		return;
	j->clusters = div_up(map->size_bytes, (uint64_t)1 << j->cluster_bits);
	while (j->refs.n < j->clusters) {
		vec_push(&j->refs, 0);
		vec_push(&j->kinds, JUDGE_FREE);
		vec_push(&j->walkers, 0);
	}
	l1_size = be_at(map, 36, 4);
	l1_offset = be64_at(map, 40);
	rt_offset = be64_at(map, 48);
	rt_clusters = be_at(map, 56, 4);
	count(j, 0, (uint64_t)1 << j->cluster_bits, JUDGE_HEADER, 0);
	walk_l1(j, l1_offset, l1_size);
	walk_snapshots(j);
	if (be_at(map, 32, 4))
		walk_luks(j);
	walk_bitmaps(j);
	walk_refcounts(j, rt_offset, rt_clusters);
	compare(j, rt_offset);
	compare_copied(j, rt_offset, l1_offset, l1_size);
}

void judge_print_mapping(struct judge *j, uint64_t goff)
{
	unsigned l2_bits = j->cluster_bits - (j->extended ? 4 : 3);
	uint64_t l1_at = be64_at(j->map, 40) + (goff >> (j->cluster_bits + l2_bits)) * 8;
	uint64_t l1 = be64_at(j->map, l1_at);
	uint64_t rt = be64_at(j->map, 48);
	uint64_t l2_at, l2;

	printf("  guest %#" PRIx64 ": L1[%#" PRIx64 "] = %#" PRIx64, goff, l1_at, l1);
	if (l1 & OFFSET_MASK) {
		l2_at = (l1 & OFFSET_MASK) +
			(goff >> j->cluster_bits & (((uint64_t)1 << l2_bits) - 1)) * entry_bytes(j);
		l2 = be64_at(j->map, l2_at);
		printf(", L2[%#" PRIx64 "] = %#" PRIx64, l2_at, l2);
		if (l2 & OFFSET_MASK)
			printf(", refcount %" PRIu64,
			       refcount_at(j, rt, (l2 & OFFSET_MASK) >> j->cluster_bits));
	}
	printf(", file %#" PRIx64 " bytes\n", j->map->size_bytes);
}

void judge_free(struct judge *j)
{
	vec_free(&j->refs);
	vec_free(&j->kinds);
	vec_free(&j->walkers);
}
