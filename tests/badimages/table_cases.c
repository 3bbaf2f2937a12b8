/* SPDX-License-Identifier: MIT */
/*
 * table_cases.c: images whose L1, refcount or snapshot table lies where it cannot, is too long, or is
 * cut off, and images whose refcounts lie.
 */
#include "bad.h"

#include <string.h>

#define L1_BYTES (5 * 8)

static void field32(struct image *img, uint64_t at, uint64_t v)
{
	set32(img, at, v);
}

static void field64(struct image *img, uint64_t at, uint64_t v)
{
	set64(img, at, v);
}

/* One header offset becomes what another field holds, plus @delta. */
static void alias(struct image *img, uint64_t field, uint64_t other)
{
	set64(img, field, get64(img, other));
}

static void move_past_end(struct image *img, uint64_t field, uint64_t delta)
{
	set64(img, field, end_cluster(img) + delta);
}

static void add_to(struct image *img, uint64_t field, uint64_t delta)
{
	set64(img, field, get64(img, field) + delta);
}

static void move_table(struct image *img, uint64_t field, uint64_t len)
{
	uint64_t at = append_cluster(img);

	memcpy(img->data + at, img->data + get64(img, field), len);
	set64(img, field, at);
}

/* The L1 table is the last thing in the file, and @missing bytes of it are not there. */
static void cut_l1(struct image *img, uint64_t missing, uint64_t unused)
{
	move_table(img, F_L1_OFFSET, GOOD_CLUSTER);
	resize(img, get64(img, F_L1_OFFSET) + L1_BYTES - missing);
}

static void cut_refcount_table(struct image *img, uint64_t missing, uint64_t unused)
{
	move_table(img, F_RT_OFFSET, GOOD_CLUSTER);
	resize(img, img->len - missing);
}

/* Valid: longer than the disk needs, as after a VM state was saved; sparse up to QEMU's limit. */
static void long_l1(struct image *img, uint64_t entries, uint64_t unused)
{
	uint64_t at = end_cluster(img);

	resize(img, at + (entries * 8 + GOOD_CLUSTER - 1) / GOOD_CLUSTER * GOOD_CLUSTER);
	use_range(img, at, entries * 8);
	memcpy(img->data + at, img->data + get64(img, F_L1_OFFSET), L1_BYTES);
	set16(img, refcount_at(img, get64(img, F_L1_OFFSET)), 0);
	set64(img, F_L1_OFFSET, at);
	set32(img, F_L1_SIZE, entries);
}

static void long_refcount_table(struct image *img, uint64_t clusters, uint64_t unused)
{
	uint64_t at = end_cluster(img), old = get64(img, F_RT_OFFSET);

	resize(img, at + clusters * GOOD_CLUSTER);
	use_range(img, at, clusters * GOOD_CLUSTER);
	set16(img, refcount_at(img, old), 0);
	memcpy(img->data + at, img->data + old, GOOD_CLUSTER);
	set64(img, F_RT_OFFSET, at);
	set32(img, F_RT_CLUSTERS, clusters);
}

static void snapshots(struct image *img, uint64_t count, uint64_t at)
{
	set32(img, F_NB_SNAPSHOTS, count);
	set64(img, F_SNAPSHOTS_OFFSET, at);
}

static void refcount_table_entry(struct image *img, uint64_t index, uint64_t v)
{
	set64(img, rt_at(img, index), v);
}

static void refcount_table_bits(struct image *img, uint64_t index, uint64_t bits)
{
	set64(img, rt_at(img, index), get64(img, rt_at(img, index)) | bits);
}

/* Two entries share one block. */
static void shared_refblock(struct image *img, uint64_t a, uint64_t b)
{
	set64(img, rt_at(img, a), refblock(img, b));
}

enum { R_HEADER, R_L1, R_L2, R_RT, R_RB, R_ALL };

/* The cluster's refcount says that it is free. */
static void no_refcount(struct image *img, uint64_t what, uint64_t unused)
{
	uint64_t at[] = {
		[R_HEADER] = 0, [R_L1] = get64(img, F_L1_OFFSET), [R_L2] = l2_table(img, 0),
		[R_RT] = get64(img, F_RT_OFFSET), [R_RB] = refblock(img, 0),
	};

	if (what == R_ALL)
		memset(img->data + refblock(img, 0), 0, GOOD_CLUSTER);
	else
		set16(img, refcount_at(img, at[what]), 0);
}

static void block_is(struct image *img, uint64_t what, uint64_t unused)
{
	uint64_t at[] = {
		[R_HEADER] = 0, [R_L1] = get64(img, F_L1_OFFSET), [R_L2] = l2_table(img, 0),
		[R_RT] = get64(img, F_RT_OFFSET),
	};

	set64(img, rt_at(img, 0), at[what]);
}

/* All refcounts are at their largest: nothing is free below the end of what the block describes. */
static void all_used(struct image *img, uint64_t v, uint64_t unused)
{
	for (unsigned i = 0; i < GOOD_CLUSTER / 2; i++)
		if (!get16(img, refblock(img, 0) + i * 2))
			set16(img, refblock(img, 0) + i * 2, v);
}

static void cut_cluster(struct image *img, uint64_t at, uint64_t unused)
{
	resize(img, at);
}

/* A field of the first snapshot's entry. */
static void snapshot64(struct image *img, uint64_t at, uint64_t v)
{
	set64(img, get64(img, F_SNAPSHOTS_OFFSET) + at, v);
}

static void snapshot32(struct image *img, uint64_t at, uint64_t v)
{
	set32(img, get64(img, F_SNAPSHOTS_OFFSET) + at, (uint32_t)v);
}

#define BIG ((uint64_t)1 << 62)

const struct bad_case table_cases[] = {
	/* L1 */
	{"l1_offset_0", "v3", UNSERVED, "L1 table.*header", field64, F_L1_OFFSET, 0},
	{"l1_unaligned", "v3", REFUSE, "l1_table_offset", add_to, F_L1_OFFSET, 512},
	{"l1_unaligned_8", "v3", REFUSE, "l1_table_offset", add_to, F_L1_OFFSET, 8},
	{"l1_past_end", "v3", UNSERVED, "L1 table.*outside", move_past_end, F_L1_OFFSET, 0},
	{"l1_far", "v3", UNSERVED, "L1 table.*outside", field64, F_L1_OFFSET, BIG},
	{"cve_2014_0143_l1_wraps", "v3", UNSERVED, "L1 table.*outside", field64, F_L1_OFFSET,
	 (uint64_t)0 - GOOD_CLUSTER},
	{"l1_is_refcount_table", "v3", UNSERVED, "(L1|refcount) table.*overlaps", alias, F_L1_OFFSET,
	 F_RT_OFFSET},
	{"l1_cut_8", "v3", UNSERVED, "L1 table.*outside", cut_l1, 8},
	{"l1_cut_1", "v3", UNSERVED, "L1 table.*outside", cut_l1, 1},
	{"l1_cut_all", "v3", UNSERVED, "L1 table.*outside", cut_l1, L1_BYTES},
	{"cut_after_header", "v3", UNSERVED, "outside", cut_cluster, GOOD_CLUSTER},
	{"l1_long_overlaps", "v3", UNSERVED, "(overlaps|outside)", field32, F_L1_SIZE, 4 << 20},
	{"l1_long", "v3", SERVED, "", long_l1, 600},
	{"cve_2015_5162_l1_limit", "v3", SERVED, "", long_l1, 4 << 20},

	/* refcount table */
	{"rt_offset_0", "v3", UNSERVED, "refcount table.*header", field64, F_RT_OFFSET, 0},
	{"rt_unaligned", "v3", REFUSE, "refcount_table_offset", add_to, F_RT_OFFSET, 512},
	{"rt_past_end", "v3", UNSERVED, "refcount table.*outside", move_past_end, F_RT_OFFSET, 0},
	{"rt_far", "v3", UNSERVED, "refcount table.*outside", field64, F_RT_OFFSET, BIG},
	{"cve_2014_0143_rt_wraps", "v3", UNSERVED, "refcount table.*outside", field64, F_RT_OFFSET,
	 (uint64_t)0 - GOOD_CLUSTER},
	{"rt_clusters_0", "v3", UNSERVED, "refcount_table_clusters is 0", field32, F_RT_CLUSTERS, 0},
	{"rt_clusters_many", "v3", UNSERVED, "(outside|overlaps)", field32, F_RT_CLUSTERS, 2048},
	{"cve_2014_0144_rt_clusters", "v3", REFUSE, "refcount_table_clusters is 2049", field32,
	 F_RT_CLUSTERS, 2049},
	{"rt_clusters_max", "v3", REFUSE, "refcount_table_clusters", field32, F_RT_CLUSTERS, 0xffffffff},
	{"rt_cut", "v3", UNSERVED, "refcount table.*outside", cut_refcount_table, 512},
	{"rt_limit", "v3", SERVED, "", long_refcount_table, 2048},

	/* snapshots */
	{"snapshots", "snap", SERVED, "", field64, F_AUTOCLEAR, 0},
	{"snapshot_l1_unaligned", "snap", READ_ONLY, "no valid L1 table", snapshot64, 0, 512},
	{"cve_2014_0143_snapshot_l1_far", "snap", READ_ONLY, "no valid L1 table", snapshot64, 0, BIG},
	{"cve_2014_0147_snapshot_l1_long", "snap", READ_ONLY, "no valid L1 table", snapshot32, 8,
	 0xffffffff},
	{"snapshot_extra_long", "snap", READ_ONLY, "extra data", snapshot32, 36, 0xffffffff},
	{"snapshot_extra_1025", "snap", READ_ONLY, "extra data", snapshot32, 36, 1025},
	{"snapshot_extra_none", "snap", SERVED, "", snapshot32, 36, 0},
	{"snapshots_unaligned", "v3", UNSERVED, "snapshot", snapshots, 1, 512},
	{"snapshots_in_header", "v3", UNSERVED, "snapshot", snapshots, 1, 0},
	{"snapshots_far", "v3", UNSERVED, "snapshot", snapshots, 1, BIG},
	{"cve_2014_0143_snapshots_wrap", "v3", UNSERVED, "snapshot", snapshots, 1,
	 (uint64_t)0 - GOOD_CLUSTER},
	{"cve_2014_0144_nb_snapshots", "v3", UNSERVED, "snapshot", snapshots, 65537,
	 GOOD_CLUSTER * 16},
	{"nb_snapshots_max", "v3", UNSERVED, "snapshot", snapshots, 0xffffffff,
	 GOOD_CLUSTER * 16},

	/* refcount blocks */
	{"rb_missing", "v3", ALLOC, "", refcount_table_entry, 0, 0},
	{"rb_unaligned", "v3", READ_ONLY, "refcount table entry 0", refcount_table_bits, 0, 512},
	{"rb_reserved_bits", "v3", READ_ONLY, "refcount table entry 0", refcount_table_bits, 0, 3},
	{"cve_2014_0147_rb_far", "v3", READ_ONLY, "refcount table entry 0", refcount_table_entry, 0, BIG},
	{"rb_top_bit", "v3", READ_ONLY, "refcount table entry 0", refcount_table_bits, 0, (uint64_t)1 << 63},
	{"rb_past_end", "v3", READ_ONLY, "refcount table entry 0", refcount_table_entry, 0, 1 << 30},
	{"rb_shared", "v3", READ_ONLY, "refcount block 1", shared_refblock, 1, 0},
	{"rb_is_header", "v3", ALLOC, "", block_is, R_HEADER},
	{"rb_is_l1", "v3", READ_ONLY, "refcount block 0", block_is, R_L1},
	{"rb_is_l2", "v3", READ_ONLY, "(L2 table|refcount block)", block_is, R_L2},
	{"rb_is_refcount_table", "v3", READ_ONLY, "refcount block 0", block_is, R_RT},
	{"cve_2014_0147_all_used", "v3", ALLOC, "", all_used, 1},
	{"refcounts_max", "v3", ALLOC, "", all_used, 0xffff},

	/* used clusters that look free */
	{"rc0_header", "v3", ALLOC, "", no_refcount, R_HEADER},
	{"rc0_l1", "v3", ALLOC, "", no_refcount, R_L1},
	{"rc0_l2", "v3", ALLOC, "", no_refcount, R_L2},
	{"rc0_refcount_table", "v3", ALLOC, "", no_refcount, R_RT},
	{"rc0_refcount_block", "v3", ALLOC, "", no_refcount, R_RB},
	{"rc0_everything", "v3", ALLOC, "", no_refcount, R_ALL},
};

const size_t table_case_count = sizeof(table_cases) / sizeof(table_cases[0]);
