/* SPDX-License-Identifier: MIT */
/*
 * map_cases.c: images whose L1 or L2 entries are wrong. The image opens; what the entry maps gives EIO
 * and the rest of the disk is served.
 */
#include "bad.h"

#include <string.h>

#define L1_RANGE  GOOD_L2_COVERS, GOOD_L2_COVERS /* of L1 entry 1 */
#define VICTIM	  ((uint64_t)2 * GOOD_CLUSTER)	 /* the guest cluster whose L2 entry is spoilt */
#define L2_RANGE  VICTIM, GOOD_CLUSTER

static void l1_set(struct image *img, uint64_t v, uint64_t unused)
{
	set64(img, l1_at(img, 1), v);
}

static void l1_or(struct image *img, uint64_t bits, uint64_t unused)
{
	set64(img, l1_at(img, 1), get64(img, l1_at(img, 1)) | bits);
}

enum { AT_HEADER, AT_L1, AT_L2_SELF, AT_L2_OTHER, AT_RT, AT_RB, AT_DATA, AT_END };

static uint64_t place_of(struct image *img, uint64_t what)
{
	switch (what) {
	case AT_HEADER: return 0;
	case AT_L1: return get64(img, F_L1_OFFSET);
	case AT_L2_SELF: return l2_table(img, 0);
	case AT_L2_OTHER: return l2_table(img, 2);
	case AT_RT: return get64(img, F_RT_OFFSET);
	case AT_RB: return refblock(img, 0);
	case AT_DATA: return get64(img, l2_at(img, 3 << 20)) & OFFSET_MASK;
	default: return end_cluster(img);
	}
}

static void l1_points_to(struct image *img, uint64_t what, uint64_t flags)
{
	set64(img, l1_at(img, 1), place_of(img, what) | flags);
}

/* The second L2 table is the last thing in the file, and all of it from @bytes on is not there. */
static void cut_l2(struct image *img, uint64_t bytes, uint64_t unused)
{
	uint64_t at = append_cluster(img);

	memcpy(img->data + at, img->data + l2_table(img, 1), GOOD_CLUSTER);
	set64(img, l1_at(img, 1), at | COPIED);
	resize(img, at + bytes);
}

static void l2_set(struct image *img, uint64_t v, uint64_t unused)
{
	set64(img, l2_at(img, VICTIM), v);
}

static void l2_or(struct image *img, uint64_t bits, uint64_t unused)
{
	uint64_t at = l2_at(img, VICTIM);

	set64(img, at, get64(img, at) | bits);
}

static void l2_points_to(struct image *img, uint64_t what, uint64_t flags)
{
	set64(img, l2_at(img, VICTIM), place_of(img, what) | flags);
}

/* Zero flag and a host offset that cannot be. */
static void l2_zero_unaligned(struct image *img, uint64_t a, uint64_t b)
{
	l2_or(img, 512 | 1, 0);
}

static void l2_all_ones(struct image *img, uint64_t first, uint64_t count)
{
	memset(img->data + l2_table(img, 1), 0xff, GOOD_CLUSTER);
}

/* COPIED is clear though the refcount is 1: a write has to copy, or may not trust the refcount. */
static void l2_not_copied(struct image *img, uint64_t a, uint64_t b)
{
	uint64_t at = l2_at(img, VICTIM);

	set64(img, at, get64(img, at) & ~COPIED);
}

static void l1_not_copied(struct image *img, uint64_t a, uint64_t b)
{
	set64(img, l1_at(img, 1), get64(img, l1_at(img, 1)) & ~COPIED);
}

#define FAR ((uint64_t)1 << 50)

const struct bad_case map_cases[] = {
	/* L1 entries */
	{"l1_entry_reserved_low", "v3", RANGE_EIO, "", l1_or, 1, 0, L1_RANGE},
	{"l1_entry_reserved_56", "v3", RANGE_EIO, "", l1_or, (uint64_t)1 << 56, 0, L1_RANGE},
	{"l1_entry_reserved_62", "v3", RANGE_EIO, "", l1_or, (uint64_t)1 << 62, 0, L1_RANGE},
	{"l1_entry_unaligned", "v3", RANGE_EIO, "", l1_or, 512, 0, L1_RANGE},
	{"l1_entry_far", "v3", READ_ONLY, "outside the file", l1_set, FAR | COPIED, 0, L1_RANGE},
	{"l1_entry_all_ones", "v3", RANGE_EIO, "", l1_set, UINT64_MAX, 0, L1_RANGE},
	/* QEMU takes offset 0 for "no table", whatever the other bits are */
	{"l1_entry_copied_only", "v3", READ_ANY, "", l1_set, COPIED, 0, L1_RANGE},
	{"l1_entry_is_l1", "v3", READ_ONLY, "L2 table of L1 entry 1", l1_points_to, AT_L1, COPIED, L1_RANGE},
	{"l1_entry_is_rt", "v3", READ_ONLY, "L2 table of L1 entry 1", l1_points_to, AT_RT, COPIED, L1_RANGE},
	{"l1_entry_is_rb", "v3", READ_ONLY, "L2 table of L1 entry 1", l1_points_to, AT_RB, COPIED, L1_RANGE},
	{"l1_entry_is_end", "v3", READ_ONLY, "outside the file", l1_points_to, AT_END, COPIED, L1_RANGE},
	{"l1_entry_duplicate", "v3", READ_ONLY, "L2 table of L1 entry 2", l1_points_to, AT_L2_OTHER,
	 COPIED, GOOD_L2_COVERS, 2 * GOOD_L2_COVERS},
	{"l1_entry_is_data", "v3", READ_ANY, "", l1_points_to, AT_DATA, COPIED, L1_RANGE},
	{"l1_entry_not_copied", "v3", SERVED, "", l1_not_copied},
	{"l2_table_cut_0", "v3", READ_ONLY, "outside the file", cut_l2, 0, 0, L1_RANGE},
	{"l2_table_cut_8", "v3", READ_ONLY, "outside the file", cut_l2, 8, 0, L1_RANGE},
	{"l2_table_cut_511", "v3", READ_ONLY, "outside the file", cut_l2, 511, 0, L1_RANGE},
	{"l2_table_cut_4095", "v3", READ_ONLY, "outside the file", cut_l2, GOOD_CLUSTER - 1, 0, L1_RANGE},
	{"l2_table_all_ones", "v3", RANGE_EIO, "", l2_all_ones, 0, 0, L1_RANGE},

	/* L2 entries */
	{"l2_entry_reserved_1", "v3", RANGE_EIO, "", l2_or, 2, 0, L2_RANGE},
	{"l2_entry_reserved_8", "v3", RANGE_EIO, "", l2_or, 256, 0, L2_RANGE},
	{"l2_entry_reserved_56", "v3", RANGE_EIO, "", l2_or, (uint64_t)1 << 56, 0, L2_RANGE},
	{"l2_entry_reserved_61", "v3", RANGE_EIO, "", l2_or, (uint64_t)1 << 61, 0, L2_RANGE},
	{"l2_entry_bit0_v2", "v2", RANGE_EIO, "", l2_or, 1, 0, L2_RANGE},
	{"l2_entry_unaligned", "v3", RANGE_EIO, "", l2_or, 512, 0, L2_RANGE},
	{"l2_entry_zero_unaligned", "v3", RANGE_EIO, "", l2_zero_unaligned, 0, 0, L2_RANGE},
	{"l2_entry_copied_only", "v3", READ_ANY, "", l2_set, COPIED, 0, L2_RANGE},
	{"l2_entry_all_ones", "v3", RANGE_EIO, "", l2_set, UINT64_MAX, 0, L2_RANGE},
	{"l2_entry_compressed", "v3", RANGE_EIO, "", l2_set, COMPRESSED | GOOD_CLUSTER, 0, L2_RANGE},
	{"l2_entry_compressed_far", "v3", RANGE_EIO, "", l2_set, COMPRESSED | FAR, 0, L2_RANGE},
	{"l2_entry_far", "v3", READ_ANY, "", l2_set, FAR | COPIED, 0, L2_RANGE},
	{"l2_entry_past_end", "v3", READ_ANY, "", l2_set, (1 << 29) | COPIED, 0, L2_RANGE},
	{"l2_entry_is_header_zero", "v3", READ_ANY, "", l2_points_to, AT_HEADER, 1 | COPIED, L2_RANGE},
	{"l2_entry_is_l1", "v3", READ_ANY, "", l2_points_to, AT_L1, COPIED, L2_RANGE},
	{"l2_entry_is_l2_self", "v3", READ_ANY, "", l2_points_to, AT_L2_SELF, COPIED, L2_RANGE},
	{"l2_entry_is_l2_other", "v3", READ_ANY, "", l2_points_to, AT_L2_OTHER, COPIED, L2_RANGE},
	{"l2_entry_is_rt", "v3", READ_ANY, "", l2_points_to, AT_RT, COPIED, L2_RANGE},
	{"l2_entry_is_rb", "v3", READ_ANY, "", l2_points_to, AT_RB, COPIED, L2_RANGE},
	{"l2_entry_not_copied", "v3", SERVED, "", l2_not_copied},
};

const size_t map_case_count = sizeof(map_cases) / sizeof(map_cases[0]);
