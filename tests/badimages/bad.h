/* SPDX-License-Identifier: MIT */
/*
 * bad.h: a good image in memory, to be spoilt, and the list of the ways to do it.
 *
 * The good images are made by `corpus` (a script beside this file), in one layout: GOOD_CLUSTER bytes a
 * cluster, GOOD_SIZE bytes of disk, the clusters written that are listed there. Guest offsets below
 * name places in that disk.
 */
#ifndef TESTS_BAD_H
#define TESTS_BAD_H

#include <stddef.h>
#include <stdint.h>

#define GOOD_CLUSTER 4096
#define GOOD_L2_COVERS (2u << 20)		/* guest bytes of one L2 table */
#define GOOD_SIZE    (4 * GOOD_L2_COVERS + 1536) /* the last of 5 L1 entries is for part of a cluster */

struct image {
	uint8_t *data;
	size_t len, cap;
};

/* What must happen. */
enum outcome {
	REFUSE,	   /* nobody opens it, info included: one line that matches the pattern */
	UNSERVED,  /* info shows it; opening it is refused by a line that matches the pattern */
	READ_ONLY, /* opens for reading only; the range, if there is one, reads as anything or EIO */
	RANGE_EIO, /* opens; the range gives EIO to reads and writes; all else is served */
	READ_EIO,  /* opens; the range gives EIO to reads, writes may fail; all else is served */
	READ_ANY,  /* opens; the range reads as anything or EIO, writes may fail; all else is served */
	ALLOC,	   /* reads right; allocating writes may fail, and never damage what is there */
	SERVED,	   /* unusual, but valid: everything works */
	/* The disk is served whatever its dirty bitmaps are like. When it is opened for writing: */
	BITMAPS_KEPT,	 /* no word, or of another one, and the first bitmap is kept up to date */
	BITMAP_SPOILED,	 /* a warning that matches, and before the first write it is marked as in use */
	BITMAPS_BROKEN,	 /* a warning that matches, and before the first write the autoclear bit is cleared */
	BITMAPS_IGNORED, /* no word: the autoclear bit is clear */
};

struct bad_case {
	const char *name;
	/* which good image: v3, v2, snap, bits (with dirty bitmaps); full of compressed clusters: zlib, zstd */
	const char *base;
	enum outcome outcome;
	const char *pattern; /* an extended regular expression for the message */
	void (*spoil)(struct image *img, uint64_t a, uint64_t b);
	uint64_t a, b;
	uint64_t range_offset, range_len; /* of RANGE_EIO and its kin; guest bytes */
};

/* Most cases need only the first few members; the others are zero. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

extern const struct bad_case header_cases[], table_cases[], map_cases[], compressed_cases[],
	bitmap_cases[];
extern const size_t header_case_count, table_case_count, map_case_count, compressed_case_count,
	bitmap_case_count;

/* ---- image.c: access to the image in memory; out of range access aborts ---- */

uint16_t get16(const struct image *img, uint64_t at);
uint32_t get32(const struct image *img, uint64_t at);
uint64_t get64(const struct image *img, uint64_t at);
void set8(struct image *img, uint64_t at, uint8_t v);
void set16(struct image *img, uint64_t at, uint16_t v);
void set32(struct image *img, uint64_t at, uint32_t v);
void set64(struct image *img, uint64_t at, uint64_t v);
/* Makes the file @len bytes long, either way. */
void resize(struct image *img, size_t len);
/* A new cluster at the end of the file, with refcount 1; its offset. */
uint64_t append_cluster(struct image *img);
uint64_t end_cluster(const struct image *img); /* where that would be */
/* Gives these clusters refcount 1, and appends the refcount blocks that this takes. */
void use_range(struct image *img, uint64_t at, uint64_t len);

/* Header fields, by offset. */
enum {
	F_MAGIC = 0, F_VERSION = 4, F_BACKING_OFFSET = 8, F_BACKING_SIZE = 16, F_CLUSTER_BITS = 20,
	F_SIZE = 24, F_CRYPT = 32, F_L1_SIZE = 36, F_L1_OFFSET = 40, F_RT_OFFSET = 48,
	F_RT_CLUSTERS = 56, F_NB_SNAPSHOTS = 60, F_SNAPSHOTS_OFFSET = 64, F_INCOMPATIBLE = 72,
	F_COMPATIBLE = 80, F_AUTOCLEAR = 88, F_REFCOUNT_ORDER = 96, F_HEADER_LENGTH = 100,
	F_COMPRESSION = 104, F_EXTENSIONS = 112,
};

/* Where things are in the file. */
uint64_t l1_at(const struct image *img, unsigned index);       /* of the entry */
uint64_t l2_table(const struct image *img, unsigned l1_index); /* of the table; must be there */
uint64_t l2_at(const struct image *img, uint64_t guest);       /* of the entry for a guest offset */
uint64_t rt_at(const struct image *img, unsigned index);
uint64_t refblock(const struct image *img, unsigned index);
uint64_t refcount_at(const struct image *img, uint64_t host); /* of the 16-bit refcount */

#define COPIED	   ((uint64_t)1 << 63)
#define COMPRESSED ((uint64_t)1 << 62)
/* Of a compressed cluster's descriptor, in clusters of GOOD_CLUSTER bytes. */
#define DESCRIPTOR_OFFSET_MASK (((uint64_t)1 << 58) - 1)
#define DESCRIPTOR_SECTORS(n)  ((uint64_t)(n) << 58)
#define OFFSET_MASK ((uint64_t)0x00fffffffffffe00)

#endif
