/* SPDX-License-Identifier: MIT */
/*
 * compressed_cases.c: images whose compressed clusters are wrong: the descriptor, or what it leads to. The
 * image opens, what cannot be inflated gives EIO, within bounds, and the rest of the disk is served.
 */
#include "bad.h"

#include <assert.h>
#include <string.h>

#define VICTIM	     ((uint64_t)2 * GOOD_CLUSTER)
#define VICTIM_RANGE VICTIM, GOOD_CLUSTER
/* The last that qemu-img wrote: behind it the file ends. */
#define LAST	     ((uint64_t)4 * GOOD_L2_COVERS)
#define LAST_RANGE   LAST, 1536
#define FAR	     ((uint64_t)1 << 50)
#define SECTORS_MAX  15

static uint64_t descriptor(const struct image *img, uint64_t guest)
{
	uint64_t v = get64(img, l2_at(img, guest));

	assert(v & COMPRESSED);
	return v;
}

static void descriptor_set(struct image *img, uint64_t guest, uint64_t host, uint64_t sectors)
{
	set64(img, l2_at(img, guest), COMPRESSED | DESCRIPTOR_SECTORS(sectors) | host);
}

static void leads_to(struct image *img, uint64_t host, uint64_t sectors)
{
	descriptor_set(img, VICTIM, host, sectors);
}

static void or_bits(struct image *img, uint64_t bits, uint64_t unused)
{
	set64(img, l2_at(img, VICTIM), descriptor(img, VICTIM) | bits);
}

/* As far as the first sector goes, where it has more. */
static void cut_short(struct image *img, uint64_t a, uint64_t b)
{
	uint64_t v = descriptor(img, VICTIM);

	assert(v & DESCRIPTOR_SECTORS(SECTORS_MAX));
	descriptor_set(img, VICTIM, v & DESCRIPTOR_OFFSET_MASK, 0);
}

/* More sectors than it has, past the end of the file. */
static void too_long(struct image *img, uint64_t a, uint64_t b)
{
	descriptor_set(img, LAST, descriptor(img, LAST) & DESCRIPTOR_OFFSET_MASK, SECTORS_MAX);
}

enum { AT_HEADER, AT_L1, AT_L2_SELF, AT_L2_OTHER, AT_RT, AT_RB, AT_END };

static uint64_t place_of(const struct image *img, uint64_t what)
{
	switch (what) {
	case AT_HEADER: return 0;
	case AT_L1: return get64(img, F_L1_OFFSET);
	case AT_L2_SELF: return l2_table(img, 0);
	case AT_L2_OTHER: return l2_table(img, 2);
	case AT_RT: return get64(img, F_RT_OFFSET);
	case AT_RB: return refblock(img, 0);
	default: return end_cluster(img);
	}
}

static void overlaps(struct image *img, uint64_t what, uint64_t before)
{
	descriptor_set(img, VICTIM, place_of(img, what) - before, 2);
}

/* A place of its own for what the victim is to hold. */
static uint64_t own_place(struct image *img, const void *data, size_t len)
{
	uint64_t at = append_cluster(img);

	assert(len <= GOOD_CLUSTER);
	memcpy(img->data + at, data, len);
	descriptor_set(img, VICTIM, at, GOOD_CLUSTER / 512 - 1);
	return at;
}

static void holds_byte(struct image *img, uint64_t byte, uint64_t unused)
{
	uint8_t data[GOOD_CLUSTER];

	memset(data, (int)byte, sizeof(data));
	own_place(img, data, sizeof(data));
}

/* Too few or too many bytes, @length of them: stored blocks of deflate. */
static void deflate_of(struct image *img, uint64_t length, uint64_t final)
{
	uint8_t data[GOOD_CLUSTER] = {(uint8_t)final, (uint8_t)length, (uint8_t)(length >> 8),
				      (uint8_t)~length, (uint8_t)(~length >> 8)};

	own_place(img, data, sizeof(data));
}

/* A stream that goes back further than it has come. */
static void deflate_distance(struct image *img, uint64_t a, uint64_t b)
{
	static const uint8_t data[] = {0x03, 0x02, 0xff, 0xff, 0xff, 0xff};

	own_place(img, data, sizeof(data));
}

/*
 * A frame of @blocks blocks, each 128 KiB of one byte (RFC 8878): what a cluster of 4 KiB can hold of them
 * is 128 MiB. The frame says that it has @content bytes.
 */
static void zstd_bomb(struct image *img, uint64_t blocks, uint64_t content)
{
	uint8_t data[GOOD_CLUSTER] = {0x28, 0xb5, 0x2f, 0xfd, 0xe0};
	size_t at = 5;

	for (unsigned i = 0; i < 8; i++)
		data[at++] = (uint8_t)(content >> (8 * i));
	for (uint64_t i = 0; i < blocks; i++) {
		uint32_t block = (i + 1 == blocks) | 1 << 1 | (128 << 10) << 3;

		data[at++] = (uint8_t)block;
		data[at++] = (uint8_t)(block >> 8);
		data[at++] = (uint8_t)(block >> 16);
		data[at++] = 'x';
	}
	own_place(img, data, at);
}

/* Frames that say nothing, one after the other. */
static void zstd_skippable(struct image *img, uint64_t payload, uint64_t unused)
{
	uint8_t data[GOOD_CLUSTER] = {0};

	for (size_t at = 0; at + 8 + payload <= sizeof(data); at += 8 + payload) {
		memcpy(data + at, "\x50\x2a\x4d\x18", 4);
		data[at + 4] = (uint8_t)payload;
	}
	own_place(img, data, sizeof(data));
}

/* One whose length leads past everything. */
static void zstd_skip_far(struct image *img, uint64_t a, uint64_t b)
{
	static const uint8_t data[] = {0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff};

	own_place(img, data, sizeof(data));
}

/* Needs a window of 2 GiB or more. */
static void zstd_window(struct image *img, uint64_t a, uint64_t b)
{
	static const uint8_t data[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x03, 0x00, 0x10, 'x'};

	own_place(img, data, sizeof(data));
}

const struct bad_case compressed_cases[] = {
	/* the descriptor */
	{"descriptor_offset_0", "zlib", RANGE_EIO, "", leads_to, 0, 0, VICTIM_RANGE},
	{"descriptor_far", "zlib", RANGE_EIO, "", leads_to, DESCRIPTOR_OFFSET_MASK, SECTORS_MAX, VICTIM_RANGE},
	{"descriptor_all_ones", "zlib", RANGE_EIO, "", or_bits, UINT64_MAX, 0, VICTIM_RANGE},
	{"descriptor_past_end", "zlib", READ_EIO, "", leads_to, (uint64_t)1 << 29, 3, VICTIM_RANGE},
	{"descriptor_past_end_zstd", "zstd", READ_EIO, "", leads_to, (uint64_t)1 << 29, 3, VICTIM_RANGE},
	{"descriptor_at_end", "zlib", READ_EIO, "", overlaps, AT_END, 1, VICTIM_RANGE},
	{"descriptor_size_0", "zlib", READ_EIO, "", cut_short, 0, 0, VICTIM_RANGE},
	{"descriptor_size_0_zstd", "zstd", READ_EIO, "", cut_short, 0, 0, VICTIM_RANGE},
	{"descriptor_size_max", "zlib", READ_ANY, "", too_long, 0, 0, LAST_RANGE},
	{"descriptor_size_max_zstd", "zstd", READ_ANY, "", too_long, 0, 0, LAST_RANGE},
	/* QEMU reads it, and its check says that the flag must never be set */
	{"descriptor_copied", "zlib", SERVED, "", or_bits, COPIED, 0},
	{"descriptor_copied_zstd", "zstd", SERVED, "", or_bits, COPIED, 0},
	{"descriptor_is_header", "zlib", RANGE_EIO, "", overlaps, AT_HEADER, 0, VICTIM_RANGE},
	{"descriptor_is_l1", "zlib", RANGE_EIO, "", overlaps, AT_L1, 0, VICTIM_RANGE},
	{"descriptor_is_l2_self", "zlib", RANGE_EIO, "", overlaps, AT_L2_SELF, 0, VICTIM_RANGE},
	{"descriptor_is_l2_other", "zlib", RANGE_EIO, "", overlaps, AT_L2_OTHER, 0, VICTIM_RANGE},
	{"descriptor_is_rt", "zlib", RANGE_EIO, "", overlaps, AT_RT, 0, VICTIM_RANGE},
	{"descriptor_is_rb", "zlib", RANGE_EIO, "", overlaps, AT_RB, 0, VICTIM_RANGE},
	{"descriptor_into_l2", "zlib", RANGE_EIO, "", overlaps, AT_L2_OTHER, 700, VICTIM_RANGE},
	{"descriptor_into_rb", "zlib", RANGE_EIO, "", overlaps, AT_RB, 1, VICTIM_RANGE},

	/* what is compressed */
	{"deflate_zeros", "zlib", READ_EIO, "", holds_byte, 0, 0, VICTIM_RANGE},
	{"deflate_ones", "zlib", READ_EIO, "", holds_byte, 0xff, 0, VICTIM_RANGE},
	{"deflate_text", "zlib", READ_EIO, "", holds_byte, 'x', 0, VICTIM_RANGE},
	{"deflate_too_little", "zlib", READ_EIO, "", deflate_of, GOOD_CLUSTER - 512, 1, VICTIM_RANGE},
	{"deflate_ends_early", "zlib", READ_EIO, "", deflate_of, GOOD_CLUSTER, 0, VICTIM_RANGE},
	{"deflate_distance", "zlib", READ_EIO, "", deflate_distance, 0, 0, VICTIM_RANGE},
	{"zstd_zeros", "zstd", READ_EIO, "", holds_byte, 0, 0, VICTIM_RANGE},
	{"zstd_ones", "zstd", READ_EIO, "", holds_byte, 0xff, 0, VICTIM_RANGE},
	{"zstd_bomb", "zstd", READ_EIO, "", zstd_bomb, 1000, (uint64_t)1000 << 17, VICTIM_RANGE},
	{"zstd_bomb_huge", "zstd", READ_EIO, "", zstd_bomb, 1000, (uint64_t)1 << 62, VICTIM_RANGE},
	{"zstd_bomb_in_disguise", "zstd", READ_EIO, "", zstd_bomb, 1000, GOOD_CLUSTER, VICTIM_RANGE},
	{"zstd_skippable", "zstd", READ_EIO, "", zstd_skippable, 0, 0, VICTIM_RANGE},
	{"zstd_skippable_40", "zstd", READ_EIO, "", zstd_skippable, 40, 0, VICTIM_RANGE},
	{"zstd_skip_far", "zstd", READ_EIO, "", zstd_skip_far, 0, 0, VICTIM_RANGE},
	{"zstd_window", "zstd", READ_EIO, "", zstd_window, 0, 0, VICTIM_RANGE},
};

const size_t compressed_case_count = sizeof(compressed_cases) / sizeof(compressed_cases[0]);
