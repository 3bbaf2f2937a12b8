/* SPDX-License-Identifier: MIT */
/*
 * bitmap_cases.c: images whose persistent dirty bitmaps are no good: the header extension, the directory,
 * its entries, the bitmaps' tables, and what these refer to.
 *
 * The good image has two: the first is enabled, has granules of 64 KiB and some bits set; the second is
 * disabled.
 */
#include "bad.h"

#include <assert.h>
#include <string.h>

#define EXT_BITMAPS 0x23852875

/* In the extension. */
enum { X_NB = 0, X_RESERVED = 4, X_SIZE = 8, X_OFFSET = 16, X_LEN = 24 };
/* In an entry of the directory. */
enum { E_TABLE = 0, E_ENTRIES = 8, E_FLAGS = 12, E_TYPE = 16, E_GRANULARITY = 17, E_NAME_LEN = 18,
       E_EXTRA_LEN = 20, E_NAME = 24 };
enum { FLAG_IN_USE = 1, FLAG_AUTO = 2, FLAG_EXTRA_COMPAT = 4 };

static uint64_t extension(const struct image *img)
{
	uint64_t at = get32(img, F_HEADER_LENGTH);

	while (get32(img, at) != EXT_BITMAPS) {
		assert(get32(img, at));
		at += 8 + (get32(img, at + 4) + 7) / 8 * 8;
	}
	return at + 8;
}

static uint64_t directory(const struct image *img)
{
	return get64(img, extension(img) + X_OFFSET);
}

static uint64_t entry_len(const struct image *img, uint64_t at)
{
	return (E_NAME + get32(img, at + E_EXTRA_LEN) + get16(img, at + E_NAME_LEN) + 7) / 8 * 8;
}

static uint64_t second(const struct image *img)
{
	return directory(img) + entry_len(img, directory(img));
}

/* The first one's table. */
static uint64_t table(const struct image *img)
{
	return get64(img, directory(img) + E_TABLE);
}

/* ---- the extension ---- */

static void ext32(struct image *img, uint64_t at, uint64_t v)
{
	set32(img, extension(img) + at, (uint32_t)v);
}

static void ext64(struct image *img, uint64_t at, uint64_t v)
{
	set64(img, extension(img) + at, v);
}

static void ext_add(struct image *img, uint64_t at, uint64_t delta)
{
	resize(img, end_cluster(img));
	ext64(img, at, get64(img, extension(img) + at) + delta);
}

static void ext_past_end(struct image *img, uint64_t delta, uint64_t unused)
{
	ext64(img, X_OFFSET, end_cluster(img) + delta);
}

/* The rest of the header goes on where the extension ends now, or inside of it. */
static void ext_len(struct image *img, uint64_t len, uint64_t unused)
{
	set32(img, extension(img) - 4, (uint32_t)len);
}

static void not_ours(struct image *img, uint64_t v, uint64_t unused)
{
	set64(img, F_AUTOCLEAR, v);
	ext64(img, X_OFFSET, 512);
	ext32(img, X_NB, 0);
}

/* The directory lies where something else does. */
enum { AT_L1, AT_L2, AT_RT, AT_RB, AT_DATA, AT_TABLE, AT_DIRECTORY, AT_HEADER };

static uint64_t place(const struct image *img, uint64_t what)
{
	switch (what) {
	case AT_L1:
		return get64(img, F_L1_OFFSET);
	case AT_L2:
		return l2_table(img, 0);
	case AT_RT:
		return get64(img, F_RT_OFFSET);
	case AT_RB:
		return refblock(img, 0);
	case AT_DATA:
		return get64(img, l2_at(img, 0)) & OFFSET_MASK;
	case AT_TABLE:
		return table(img);
	case AT_DIRECTORY:
		return directory(img);
	default:
		return 0;
	}
}

static void directory_at(struct image *img, uint64_t what, uint64_t unused)
{
	ext64(img, X_OFFSET, place(img, what));
}

/* A good directory, and there is nothing wrong with it but where it lies. */
static void directory_over(struct image *img, uint64_t what, uint64_t unused)
{
	memcpy(img->data + place(img, what), img->data + directory(img), get64(img, extension(img) + X_SIZE));
	directory_at(img, what, 0);
}

/* So many, of which the first one is enabled; with @room each has a table of its own. */
static void many(struct image *img, uint64_t count, uint64_t room)
{
	uint64_t at = end_cluster(img), len = 32, good = directory(img);

	resize(img, at + (count * len + GOOD_CLUSTER - 1) / GOOD_CLUSTER * GOOD_CLUSTER);
	use_range(img, at, count * len);
	for (uint64_t i = 0; i < count; i++) {
		uint64_t to = at + i * len, own;

		memcpy(img->data + to, img->data + good, E_NAME);
		set16(img, to + E_NAME_LEN, 8);
		memset(img->data + to + E_NAME, 'a', 8);
		for (uint64_t k = 0, n = i; k < 8; k++, n /= 26)
			set8(img, to + E_NAME + k, 'a' + n % 26);
		set32(img, to + E_FLAGS, i ? 0 : FLAG_AUTO);
		if (!room) /* they share the first one's table */
			continue;
		own = end_cluster(img);
		resize(img, own + GOOD_CLUSTER);
		use_range(img, own, GOOD_CLUSTER);
		set64(img, to + E_TABLE, own);
	}
	set16(img, refcount_at(img, good), 0);
	ext64(img, X_OFFSET, at);
	ext64(img, X_SIZE, count * len);
	ext32(img, X_NB, count);
}

static void cut_directory(struct image *img, uint64_t missing, uint64_t unused)
{
	uint64_t at = append_cluster(img), len = get64(img, extension(img) + X_SIZE);

	memcpy(img->data + at, img->data + directory(img), len);
	set16(img, refcount_at(img, directory(img)), 0);
	ext64(img, X_OFFSET, at);
	resize(img, at + len - missing);
}

/* ---- an entry ---- */

static void entry8(struct image *img, uint64_t at, uint64_t v)
{
	set8(img, directory(img) + at, (uint8_t)v);
}

static void entry16(struct image *img, uint64_t at, uint64_t v)
{
	set16(img, directory(img) + at, (uint16_t)v);
}

static void entry32(struct image *img, uint64_t at, uint64_t v)
{
	set32(img, directory(img) + at, (uint32_t)v);
}

static void entry64(struct image *img, uint64_t at, uint64_t v)
{
	set64(img, directory(img) + at, v);
}

static void table_past_end(struct image *img, uint64_t delta, uint64_t unused)
{
	entry64(img, E_TABLE, end_cluster(img) + delta);
}

static void table_at(struct image *img, uint64_t what, uint64_t unused)
{
	entry64(img, E_TABLE, place(img, what));
}

static void same_table(struct image *img, uint64_t unused, uint64_t unused_too)
{
	set64(img, second(img) + E_TABLE, table(img));
}

static void flags_are(struct image *img, uint64_t which, uint64_t flags)
{
	set32(img, (which ? second(img) : directory(img)) + E_FLAGS, (uint32_t)flags);
}

/* The name of the first is as long as it was. */
static void name_byte(struct image *img, uint64_t at, uint64_t v)
{
	entry8(img, E_NAME + at, v);
}

static void no_name(struct image *img, uint64_t unused, uint64_t unused_too)
{
	uint64_t at = directory(img), len = entry_len(img, at), size = get64(img, extension(img) + X_SIZE);

	memmove(img->data + at + E_NAME, img->data + at + len, size - len);
	entry16(img, E_NAME_LEN, 0);
	ext64(img, X_SIZE, size - len + E_NAME);
}

static void same_name(struct image *img, uint64_t unused, uint64_t unused_too)
{
	assert(get16(img, directory(img) + E_NAME_LEN) == get16(img, second(img) + E_NAME_LEN));
	memcpy(img->data + second(img) + E_NAME, img->data + directory(img) + E_NAME,
	       get16(img, second(img) + E_NAME_LEN));
}

/* Extra data of 8 bytes comes before the first one's name. */
static void extra(struct image *img, uint64_t flags, uint64_t unused)
{
	uint64_t at = directory(img), len = get64(img, extension(img) + X_SIZE);

	resize(img, end_cluster(img));
	memmove(img->data + at + E_NAME + 8, img->data + at + E_NAME, len - E_NAME);
	memset(img->data + at + E_NAME, 0x5a, 8);
	entry32(img, E_EXTRA_LEN, 8);
	entry32(img, E_FLAGS, get32(img, at + E_FLAGS) | flags);
	ext64(img, X_SIZE, len + 8);
}

/* ---- a table ---- */

static void bits_are(struct image *img, uint64_t v, uint64_t unused)
{
	set64(img, table(img), v);
}

static void bits_or(struct image *img, uint64_t v, uint64_t unused)
{
	assert(get64(img, table(img)) & OFFSET_MASK);
	set64(img, table(img), get64(img, table(img)) | v);
}

static void bits_past_end(struct image *img, uint64_t delta, uint64_t unused)
{
	set64(img, table(img), end_cluster(img) + delta);
}

static void bits_at(struct image *img, uint64_t what, uint64_t unused)
{
	set64(img, table(img), place(img, what));
}

enum { COUNT_OF_DIRECTORY, COUNT_OF_TABLE, COUNT_OF_BITS };

static void count_is(struct image *img, uint64_t what, uint64_t v)
{
	uint64_t at[] = {
		[COUNT_OF_DIRECTORY] = directory(img),
		[COUNT_OF_TABLE] = table(img),
		[COUNT_OF_BITS] = get64(img, table(img)) & OFFSET_MASK,
	};

	set16(img, refcount_at(img, at[what]), (uint16_t)v);
}

/* Bits past the disk's end. */
static void bits_behind(struct image *img, uint64_t unused, uint64_t unused_too)
{
	memset(img->data + (get64(img, table(img)) & OFFSET_MASK) + 17, 0xff, GOOD_CLUSTER - 17);
}

#define BIG	 ((uint64_t)1 << 62)
#define DIRECTORY_MAX (65535 * 1024)
#define VALUE	 "a value that none can have"
#define INSIDE	 "ends inside an entry"
#define OUTSIDE	 "outside the file"
#define ELSEWHERE "something else lies there"

const struct bad_case bitmap_cases[] = {
	{"bitmaps_good", "bits", BITMAPS_KEPT, "", flags_are, 0, FLAG_AUTO},

	/* the extension */
	{"bitmaps_none", "bits", REFUSE, "nb_bitmaps is 0", ext32, X_NB, 0},
	{"bitmaps_65536", "bits", REFUSE, "nb_bitmaps is 65536", ext32, X_NB, 65536},
	{"bitmaps_max", "bits", REFUSE, "nb_bitmaps is 4294967295", ext32, X_NB, 0xffffffff},
	{"bitmaps_more", "bits", BITMAPS_BROKEN, INSIDE, ext32, X_NB, 3},
	{"bitmaps_65535", "bits", BITMAPS_BROKEN, "more than 1024", ext32, X_NB, 65535},
	{"bitmaps_fewer", "bits", BITMAPS_BROKEN, "not as many entries", ext32, X_NB, 1},
	{"bitmaps_reserved", "bits", REFUSE, "reserved field", ext32, X_RESERVED, 1},
	{"bitmaps_size_0", "bits", BITMAPS_BROKEN, "is empty", ext64, X_SIZE, 0},
	{"bitmaps_size_short", "bits", BITMAPS_BROKEN, INSIDE, ext_add, X_SIZE, (uint64_t)-8},
	{"bitmaps_size_long", "bits", BITMAPS_BROKEN, "not as many entries", ext_add, X_SIZE, 8},
	{"bitmaps_size_limit", "bits", BITMAPS_BROKEN, "1 MiB", ext64, X_SIZE, DIRECTORY_MAX},
	{"bitmaps_size_over", "bits", REFUSE, "bitmap_directory_size", ext64, X_SIZE, DIRECTORY_MAX + 8},
	{"bitmaps_size_max", "bits", REFUSE, "bitmap_directory_size", ext64, X_SIZE, UINT64_MAX},
	{"bitmaps_at_0", "bits", BITMAPS_BROKEN, OUTSIDE, directory_at, AT_HEADER},
	{"bitmaps_unaligned", "bits", REFUSE, "bitmap_directory_offset", ext_add, X_OFFSET, 512},
	{"bitmaps_past_end", "bits", BITMAPS_BROKEN, OUTSIDE, ext_past_end, 0},
	{"bitmaps_far", "bits", BITMAPS_BROKEN, OUTSIDE, ext64, X_OFFSET, BIG},
	{"bitmaps_wrap", "bits", BITMAPS_BROKEN, OUTSIDE, ext64, X_OFFSET, (uint64_t)0 - GOOD_CLUSTER},
	{"bitmaps_at_l1", "bits", BITMAPS_BROKEN, "directory is broken", directory_at, AT_L1},
	{"bitmaps_at_l2", "bits", BITMAPS_BROKEN, "directory is broken", directory_at, AT_L2},
	{"bitmaps_at_refcount_table", "bits", BITMAPS_BROKEN, "directory is broken", directory_at, AT_RT},
	{"bitmaps_at_refcount_block", "bits", BITMAPS_BROKEN, "directory is broken", directory_at, AT_RB},
	{"bitmaps_at_data", "bits", BITMAPS_BROKEN, "directory is broken", directory_at, AT_DATA},
	{"bitmaps_over_table", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", directory_over, AT_TABLE},
	{"bitmaps_cut", "bits", BITMAPS_BROKEN, OUTSIDE, cut_directory, 8},
	{"bitmaps_ext_16", "bits", REFUSE, "bitmaps header extension has 16 bytes", ext_len, 16},
	{"bitmaps_ext_32", "bits", REFUSE, "bitmaps header extension has 32 bytes", ext_len, 32},
	{"bitmaps_ext_0", "bits", REFUSE, "bitmaps header extension has 0 bytes", ext_len, 0},
	{"bitmaps_ext_long", "bits", REFUSE, "only .* are left", ext_len, 0xfffffff0},
	{"bitmaps_not_ours", "bits", BITMAPS_IGNORED, "", not_ours, 0},
	{"bitmaps_1024", "bits", BITMAPS_KEPT, "", many, 1024, 1},
	{"bitmaps_1025", "bits", BITMAPS_BROKEN, "more than 1024", many, 1025, 0},

	/* an entry */
	{"bitmap_table_0", "bits", BITMAPS_BROKEN, VALUE, entry64, E_TABLE, 0},
	{"bitmap_table_unaligned", "bits", BITMAPS_BROKEN, VALUE, entry64, E_TABLE, GOOD_CLUSTER + 512},
	{"bitmap_table_past_end", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", table_past_end, 0},
	{"bitmap_table_far", "bits", BITMAPS_BROKEN, VALUE, entry64, E_TABLE, BIG},
	{"bitmap_table_limit", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", entry64, E_TABLE,
	 ((uint64_t)1 << 56) - GOOD_CLUSTER},
	{"bitmap_table_wraps", "bits", BITMAPS_BROKEN, VALUE, entry64, E_TABLE, (uint64_t)0 - GOOD_CLUSTER},
	{"bitmap_table_at_l1", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", table_at, AT_L1},
	{"bitmap_table_at_l2", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", table_at, AT_L2},
	{"bitmap_table_at_refcount_table", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", table_at, AT_RT},
	{"bitmap_table_at_refcount_block", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", table_at, AT_RB},
	{"bitmap_table_at_data", "bits", BITMAP_SPOILED, "is broken", table_at, AT_DATA},
	{"bitmap_table_at_directory", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", table_at, AT_DIRECTORY},
	{"bitmap_entries_0", "bits", BITMAPS_BROKEN, VALUE, entry32, E_ENTRIES, 0},
	{"bitmap_entries_more", "bits", BITMAP_SPOILED, "not as long as the disk", entry32, E_ENTRIES, 2},
	{"bitmap_entries_limit", "bits", BITMAPS_BROKEN, "two bitmaps have the same table", entry32, E_ENTRIES, 0x20000},
	{"bitmap_entries_over", "bits", BITMAPS_BROKEN, VALUE, entry32, E_ENTRIES, 0x20001},
	{"bitmap_entries_max", "bits", BITMAPS_BROKEN, VALUE, entry32, E_ENTRIES, 0xffffffff},
	{"bitmap_flags_reserved", "bits", BITMAPS_BROKEN, VALUE, flags_are, 0, 8 | FLAG_AUTO},
	{"bitmap_flags_all", "bits", BITMAPS_BROKEN, VALUE, flags_are, 0, 0xffffffff},
	{"bitmap_in_use", "bits", BITMAP_SPOILED, "is inconsistent, and stays so", flags_are, 0,
	 FLAG_AUTO | FLAG_IN_USE},
	{"bitmap_disabled_in_use", "bits", BITMAPS_KEPT, "is inconsistent, and stays so", flags_are, 1, FLAG_IN_USE},
	{"bitmap_extra_compat_alone", "bits", BITMAPS_KEPT, "", flags_are, 0, FLAG_AUTO | FLAG_EXTRA_COMPAT},
	{"bitmap_type_0", "bits", BITMAPS_BROKEN, VALUE, entry8, E_TYPE, 0},
	{"bitmap_type_2", "bits", BITMAPS_BROKEN, VALUE, entry8, E_TYPE, 2},
	{"bitmap_type_max", "bits", BITMAPS_BROKEN, VALUE, entry8, E_TYPE, 255},
	{"bitmap_granularity_0", "bits", BITMAPS_BROKEN, VALUE, entry8, E_GRANULARITY, 0},
	{"bitmap_granularity_8", "bits", BITMAPS_BROKEN, VALUE, entry8, E_GRANULARITY, 8},
	{"bitmap_granularity_9", "bits", BITMAPS_KEPT, "", entry8, E_GRANULARITY, 9},
	{"bitmap_granularity_31", "bits", BITMAPS_KEPT, "", entry8, E_GRANULARITY, 31},
	{"bitmap_granularity_32", "bits", BITMAPS_BROKEN, VALUE, entry8, E_GRANULARITY, 32},
	{"bitmap_granularity_64", "bits", BITMAPS_BROKEN, VALUE, entry8, E_GRANULARITY, 64},
	{"bitmap_granularity_max", "bits", BITMAPS_BROKEN, VALUE, entry8, E_GRANULARITY, 255},
	{"bitmap_name_long", "bits", BITMAPS_BROKEN, INSIDE, entry16, E_NAME_LEN, 0xffff},
	{"bitmap_name_longer", "bits", BITMAPS_BROKEN, ".", entry16, E_NAME_LEN, 30},
	{"bitmap_name_none", "bits", BITMAPS_KEPT, "", no_name},
	{"bitmap_name_controls", "bits", BITMAPS_KEPT, "", name_byte, 1, 0x1b},
	{"bitmap_name_newline", "bits", BITMAPS_KEPT, "", name_byte, 1, '\n'},
	{"bitmap_name_high", "bits", BITMAPS_KEPT, "", name_byte, 1, 0xff},
	{"bitmap_name_nul", "bits", BITMAPS_KEPT, "", name_byte, 1, 0},
	{"bitmap_name_twice", "bits", BITMAPS_BROKEN, "two bitmaps have the same name", same_name},
	{"bitmap_extra_long", "bits", BITMAPS_BROKEN, INSIDE, entry32, E_EXTRA_LEN, 0xffffffff},
	{"bitmap_extra_wraps", "bits", BITMAPS_BROKEN, INSIDE, entry32, E_EXTRA_LEN, 0xffffffe8},
	{"bitmap_extra", "bits", BITMAP_SPOILED, "extra data of an unknown kind", extra, 0},
	{"bitmap_extra_compat", "bits", BITMAPS_KEPT, "", extra, FLAG_EXTRA_COMPAT},

	/* a table, and what it refers to */
	{"bitmap_bits_none", "bits", BITMAPS_KEPT, "", bits_are, 0},
	{"bitmap_bits_ones", "bits", BITMAPS_KEPT, "", bits_are, 1},
	{"bitmap_bits_reserved_low", "bits", BITMAP_SPOILED, "is broken", bits_or, 2},
	{"bitmap_bits_reserved_high", "bits", BITMAP_SPOILED, "is broken", bits_or, (uint64_t)1 << 56},
	{"bitmap_bits_and_ones", "bits", BITMAP_SPOILED, "is broken", bits_or, 1},
	{"bitmap_bits_unaligned", "bits", BITMAP_SPOILED, "is broken", bits_or, 512},
	{"bitmap_bits_past_end", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", bits_past_end, 0},
	{"bitmap_bits_far", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", bits_are, ((uint64_t)1 << 56) - GOOD_CLUSTER},
	{"bitmap_bits_at_l1", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", bits_at, AT_L1},
	{"bitmap_bits_at_l2", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", bits_at, AT_L2},
	{"bitmap_bits_at_refcount_table", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", bits_at, AT_RT},
	{"bitmap_bits_at_refcount_block", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", bits_at, AT_RB},
	/* with the right count for one of the two: neither may write there */
	{"bitmap_bits_at_data", "bits", READ_ANY, "", bits_at, AT_DATA, 0, 0, GOOD_CLUSTER},
	{"bitmap_bits_at_table", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", bits_at, AT_TABLE},
	{"bitmap_bits_at_directory", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", bits_at, AT_DIRECTORY},
	{"bitmap_bits_behind", "bits", BITMAPS_KEPT, "", bits_behind},
	{"bitmap_tables_shared", "bits", BITMAPS_BROKEN, "two bitmaps have the same table", same_table},
	{"bitmaps_count_0", "bits", BITMAPS_BROKEN, ELSEWHERE, count_is, COUNT_OF_DIRECTORY, 0},
	{"bitmaps_count_2", "bits", BITMAPS_BROKEN, ELSEWHERE, count_is, COUNT_OF_DIRECTORY, 2},
	{"bitmap_table_count_0", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", count_is, COUNT_OF_TABLE, 0},
	{"bitmap_bits_count_0", "bits", BITMAPS_BROKEN, "\"first0\" lies where it cannot", count_is, COUNT_OF_BITS, 0},
};

const size_t bitmap_case_count = sizeof(bitmap_cases) / sizeof(bitmap_cases[0]);
