/* SPDX-License-Identifier: MIT */
/*
 * format.h: the on-disk format: structures, masks, limits, and the arithmetic between offsets and
 * indices. Nothing here does I/O or fails.
 *
 * Everything on disk is big endian and of a be*_t type; where a structure lies inside the file only
 * by byte alignment (snapshot entries, extensions) it is to be copied out before use.
 *
 * Guest and host are two address spaces, and no function takes one for the other: a guest offset is
 * `goff` (a byte of the disk), a host offset `hoff` (a byte of the image file); cluster numbers are
 * `gcluster` and `hcluster`.
 *
 * Limits are QEMU's, so that whatever opens here opens there and the other way round.
 */
#ifndef QCOW2_FORMAT_H
#define QCOW2_FORMAT_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/byteorder.h"
#include "base/math.h"

/* ---- the header (qcow2: "Header") ---- */

#define QCOW2_MAGIC		  0x514649fbu
#define QCOW2_V2_HEADER_BYTES	  72
#define QCOW2_V3_MIN_HEADER_BYTES 104
#define QCOW2_HEADER_BYTES	  112 /* what create writes for version 3 */

struct qcow2_disk_header {
	be32_t magic;
	be32_t version;
	be64_t backing_file_offset;
	be32_t backing_file_size;
	be32_t cluster_bits;
	be64_t size;
	be32_t crypt_method;
	be32_t l1_size;
	be64_t l1_table_offset;
	be64_t refcount_table_offset;
	be32_t refcount_table_clusters;
	be32_t nb_snapshots;
	be64_t snapshots_offset;
	/* version 3 */
	be64_t incompatible_features;
	be64_t compatible_features;
	be64_t autoclear_features;
	be32_t refcount_order;
	be32_t header_length;
	uint8_t compression_type;
	uint8_t padding[7];
};

static_assert(sizeof(struct qcow2_disk_header) == QCOW2_HEADER_BYTES, "layout");
static_assert(offsetof(struct qcow2_disk_header, cluster_bits) == 20, "layout");
static_assert(offsetof(struct qcow2_disk_header, l1_table_offset) == 40, "layout");
static_assert(offsetof(struct qcow2_disk_header, refcount_table_offset) == 48, "layout");
static_assert(offsetof(struct qcow2_disk_header, snapshots_offset) == 64, "layout");
static_assert(offsetof(struct qcow2_disk_header, incompatible_features) == QCOW2_V2_HEADER_BYTES,
	      "layout");
static_assert(offsetof(struct qcow2_disk_header, refcount_order) == 96, "layout");
static_assert(offsetof(struct qcow2_disk_header, compression_type) == QCOW2_V3_MIN_HEADER_BYTES,
	      "layout");

enum {
	QCOW2_CRYPT_NONE = 0,
	QCOW2_CRYPT_AES = 1,
	QCOW2_CRYPT_LUKS = 2,
};

enum {
	QCOW2_COMPRESSION_DEFLATE = 0,
	QCOW2_COMPRESSION_ZSTD = 1,
};

#define QCOW2_INCOMPAT_DIRTY	   ((uint64_t)1 << 0)
#define QCOW2_INCOMPAT_CORRUPT	   ((uint64_t)1 << 1)
#define QCOW2_INCOMPAT_DATA_FILE   ((uint64_t)1 << 2)
#define QCOW2_INCOMPAT_COMPRESSION ((uint64_t)1 << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 ((uint64_t)1 << 4)
#define QCOW2_INCOMPAT_KNOWN	   ((uint64_t)0x1f)

#define QCOW2_COMPAT_LAZY_REFCOUNTS ((uint64_t)1 << 0)
#define QCOW2_COMPAT_KNOWN	    ((uint64_t)1)

#define QCOW2_AUTOCLEAR_BITMAPS	      ((uint64_t)1 << 0)
#define QCOW2_AUTOCLEAR_DATA_FILE_RAW ((uint64_t)1 << 1)
#define QCOW2_AUTOCLEAR_KNOWN	      ((uint64_t)3)

/* qcow2: "Header extensions" */
struct qcow2_disk_extension {
	be32_t type;
	be32_t len_bytes; /* of the data, which is padded to 8 */
};

static_assert(sizeof(struct qcow2_disk_extension) == 8, "layout");

#define QCOW2_EXT_END		 0x00000000u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_NAMES	 0x6803f857u
#define QCOW2_EXT_BITMAPS	 0x23852875u
#define QCOW2_EXT_LUKS		 0x0537be77u
#define QCOW2_EXT_DATA_FILE	 0x44415441u

struct qcow2_disk_feature_name {
	uint8_t type; /* 0 incompatible, 1 compatible, 2 autoclear */
	uint8_t bit;
	char name[46]; /* NUL-padded, without a NUL where it is full */
};

static_assert(sizeof(struct qcow2_disk_feature_name) == 48, "layout");

struct qcow2_disk_bitmaps_ext {
	be32_t nb_bitmaps;
	be32_t reserved;
	be64_t directory_size; /* bytes */
	be64_t directory_offset;
};

static_assert(sizeof(struct qcow2_disk_bitmaps_ext) == 24, "layout");

struct qcow2_disk_luks_ext {
	be64_t offset;
	be64_t length;
};

static_assert(sizeof(struct qcow2_disk_luks_ext) == 16, "layout");

/* ---- snapshots and bitmaps ---- */

/* Entries are padded to 8 bytes: this, extra data, id, name (qcow2: "Snapshots"). */
struct qcow2_disk_snapshot {
	be64_t l1_table_offset;
	be32_t l1_size;
	be16_t id_len;
	be16_t name_len;
	be32_t date_sec;
	be32_t date_nsec;
	be64_t vm_clock_ns;
	be32_t vm_state_size;
	be32_t extra_len;
};

static_assert(sizeof(struct qcow2_disk_snapshot) == 40, "layout");
static_assert(offsetof(struct qcow2_disk_snapshot, extra_len) == 36, "layout");

/* Entries are padded to 8 bytes: this, extra data, name (qcow2: "Bitmap directory"). */
struct qcow2_disk_bitmap {
	be64_t table_offset;
	be32_t table_entries;
	be32_t flags;
	uint8_t type;
	uint8_t granularity_bits;
	be16_t name_len;
	be32_t extra_len;
};

static_assert(sizeof(struct qcow2_disk_bitmap) == 24, "layout");

#define QCOW2_BITMAP_IN_USE	    ((uint32_t)1 << 0)
#define QCOW2_BITMAP_AUTO	    ((uint32_t)1 << 1)
#define QCOW2_BITMAP_EXTRA_COMPAT   ((uint32_t)1 << 2)
#define QCOW2_BITMAP_FLAGS_RESERVED (~(uint32_t)7)
#define QCOW2_BITMAP_TYPE_DIRTY	    1
#define QCOW2_BITMAP_ENTRY_OFFSET   ((uint64_t)0x00fffffffffffe00)
#define QCOW2_BITMAP_ENTRY_RESERVED ((uint64_t)0xff000000000001fe)
#define QCOW2_BITMAP_ENTRY_ALL_ONES ((uint64_t)1 << 0)

/* ---- limits ---- */

#define QCOW2_MIN_CLUSTER_BITS		   9
#define QCOW2_MAX_CLUSTER_BITS		   21
#define QCOW2_MIN_EXTENDED_L2_CLUSTER_BITS 14
#define QCOW2_MAX_REFCOUNT_ORDER	   6
#define QCOW2_MAX_L1_BYTES		   ((uint64_t)32 << 20)
#define QCOW2_MAX_REFCOUNT_TABLE_BYTES	   ((uint64_t)8 << 20)
#define QCOW2_MAX_SNAPSHOTS		   65536
#define QCOW2_MAX_SNAPSHOT_EXTRA_BYTES	   1024
#define QCOW2_MAX_SNAPSHOT_TABLE_BYTES	   ((uint64_t)1024 * QCOW2_MAX_SNAPSHOTS)
#define QCOW2_MAX_BACKING_NAME_BYTES	   1023
#define QCOW2_MAX_BACKING_FORMAT_BYTES	   15
#define QCOW2_MAX_BITMAPS		   65535
#define QCOW2_MAX_BITMAP_DIRECTORY_BYTES   ((uint64_t)1024 * QCOW2_MAX_BITMAPS)
#define QCOW2_MAX_BITMAP_TABLE_ENTRIES	   0x8000000u
#define QCOW2_MAX_BITMAP_BYTES		   ((uint64_t)0x20000000)
#define QCOW2_MIN_BITMAP_GRANULARITY_BITS  9
#define QCOW2_MAX_BITMAP_GRANULARITY_BITS  31
#define QCOW2_MAX_BITMAP_NAME_BYTES	   1023
/* An offset in a table entry has 56 bits. */
#define QCOW2_MAX_HOST_BYTES ((uint64_t)1 << 56)

/* ---- L1 and L2 entries (qcow2: "Cluster mapping") ---- */

#define QCOW2_COPIED	 ((uint64_t)1 << 63)
#define QCOW2_COMPRESSED ((uint64_t)1 << 62)
#define QCOW2_ZERO	 ((uint64_t)1 << 0)

#define QCOW2_L1_OFFSET_MASK ((uint64_t)0x00fffffffffffe00)
#define QCOW2_L1_RESERVED    ((uint64_t)0x7f000000000001ff)

/* Of a normal (not compressed) entry. Bit 0 is QCOW2_ZERO, and reserved with extended L2 entries.
 */
#define QCOW2_L2_OFFSET_MASK ((uint64_t)0x00fffffffffffe00)
#define QCOW2_L2_RESERVED    ((uint64_t)0x3f000000000001fe)

/* Refcount table entry: the offset of a refcount block; the rest is reserved. */
#define QCOW2_RT_OFFSET_MASK ((uint64_t)0xfffffffffffffe00)
#define QCOW2_RT_RESERVED    ((uint64_t)0x00000000000001ff)

/* Extended L2 (qcow2: "Extended L2 Entries"): 32 subclusters, two bits each in the second word. */
#define QCOW2_SUBCLUSTERS	     32
#define QCOW2_SUBCLUSTER_BITS	     5
#define QCOW2_SUBCLUSTERS_ALLOC_MASK ((uint64_t)0x00000000ffffffff)
#define QCOW2_SUBCLUSTERS_ZERO_MASK  ((uint64_t)0xffffffff00000000)

/* ---- guest offsets ---- */

/* log2 of the entries of one L2 table. */
static inline unsigned qcow2_l2_bits(unsigned cluster_bits, bool extended_l2)
{
	return cluster_bits - (extended_l2 ? 4 : 3);
}

static inline uint64_t qcow2_guest_to_gcluster(uint64_t goff, unsigned cluster_bits)
{
	return goff >> cluster_bits;
}

static inline uint64_t qcow2_gcluster_to_guest(uint64_t gcluster, unsigned cluster_bits)
{
	return gcluster << cluster_bits;
}

static inline uint32_t qcow2_guest_in_cluster(uint64_t goff, unsigned cluster_bits)
{
	return (uint32_t)(goff & (((uint64_t)1 << cluster_bits) - 1));
}

static inline uint64_t qcow2_guest_to_l1_index(uint64_t goff, unsigned cluster_bits,
					       unsigned l2_bits)
{
	return goff >> (cluster_bits + l2_bits);
}

static inline uint32_t qcow2_guest_to_l2_index(uint64_t goff, unsigned cluster_bits,
					       unsigned l2_bits)
{
	return (uint32_t)((goff >> cluster_bits) & (((uint64_t)1 << l2_bits) - 1));
}

/* L1 entries that cover a disk of @size_bytes. */
static inline uint64_t qcow2_l1_entries_for(uint64_t size_bytes, unsigned cluster_bits,
					    unsigned l2_bits)
{
	return div_up(size_bytes, (uint64_t)1 << (cluster_bits + l2_bits));
}

/* ---- host offsets and refcounts ---- */

static inline uint64_t qcow2_host_to_hcluster(uint64_t hoff, unsigned cluster_bits)
{
	return hoff >> cluster_bits;
}

static inline uint64_t qcow2_hcluster_to_host(uint64_t hcluster, unsigned cluster_bits)
{
	return hcluster << cluster_bits;
}

static inline uint32_t qcow2_host_in_cluster(uint64_t hoff, unsigned cluster_bits)
{
	return (uint32_t)(hoff & (((uint64_t)1 << cluster_bits) - 1));
}

/* log2 of the entries of one refcount block. */
static inline unsigned qcow2_rb_bits(unsigned cluster_bits, unsigned refcount_order)
{
	return cluster_bits + 3 - refcount_order;
}

static inline uint64_t qcow2_hcluster_to_rt_index(uint64_t hcluster, unsigned rb_bits)
{
	return hcluster >> rb_bits;
}

static inline uint32_t qcow2_hcluster_to_rb_index(uint64_t hcluster, unsigned rb_bits)
{
	return (uint32_t)(hcluster & (((uint64_t)1 << rb_bits) - 1));
}

static inline uint64_t qcow2_refcount_max(unsigned refcount_order)
{
	return refcount_order == 6 ? UINT64_MAX : ((uint64_t)1 << (1u << refcount_order)) - 1;
}

/* Entry @index of a refcount block; narrow ones are least significant bits first. */
static inline uint64_t qcow2_refcount_get(const void *block, uint32_t index,
					  unsigned refcount_order)
{
	const uint8_t *bytes = block;

	switch (refcount_order) {
	case 0:
		return bytes[index / 8] >> (index % 8) & 1;
	case 1:
		return bytes[index / 4] >> (index % 4 * 2) & 3;
	case 2:
		return bytes[index / 2] >> (index % 2 * 4) & 15;
	case 3:
		return bytes[index];
	case 4:
		return be16_get(((const be16_t *)block)[index]);
	case 5:
		return be32_get(((const be32_t *)block)[index]);
	default:
		return be64_get(((const be64_t *)block)[index]);
	}
}

/* @value must fit. */
static inline void qcow2_refcount_set(void *block, uint32_t index, unsigned refcount_order,
				      uint64_t value)
{
	uint8_t *bytes = block;
	unsigned shift;

	assert(value <= qcow2_refcount_max(refcount_order));
	switch (refcount_order) {
	case 0:
		shift = index % 8;
		bytes[index / 8] = (uint8_t)((bytes[index / 8] & ~(1u << shift)) | value << shift);
		break;
	case 1:
		shift = index % 4 * 2;
		bytes[index / 4] = (uint8_t)((bytes[index / 4] & ~(3u << shift)) | value << shift);
		break;
	case 2:
		shift = index % 2 * 4;
		bytes[index / 2] = (uint8_t)((bytes[index / 2] & ~(15u << shift)) | value << shift);
		break;
	case 3:
		bytes[index] = (uint8_t)value;
		break;
	case 4:
		((be16_t *)block)[index] = be16_make((uint16_t)value);
		break;
	case 5:
		((be32_t *)block)[index] = be32_make((uint32_t)value);
		break;
	default:
		((be64_t *)block)[index] = be64_make(value);
		break;
	}
}

/* ---- compressed clusters (qcow2: "Compressed Clusters Descriptor") ---- */

/* Bits of the descriptor that hold the host offset, byte granular. */
static inline unsigned qcow2_compressed_offset_bits(unsigned cluster_bits)
{
	return 62 - (cluster_bits - 8);
}

static inline uint64_t qcow2_compressed_host(uint64_t l2_entry, unsigned cluster_bits)
{
	return l2_entry & (((uint64_t)1 << qcow2_compressed_offset_bits(cluster_bits)) - 1);
}

/* Length from that host offset to the end of the last 512-byte sector that the data touches. */
static inline uint64_t qcow2_compressed_bytes(uint64_t l2_entry, unsigned cluster_bits)
{
	unsigned bits = qcow2_compressed_offset_bits(cluster_bits);
	uint64_t sectors = (l2_entry >> bits & (((uint64_t)1 << (cluster_bits - 8)) - 1)) + 1;

	return sectors * 512 - (qcow2_compressed_host(l2_entry, cluster_bits) & 511);
}

/* The entry of a compressed cluster of @bytes at @hoff, which fits. */
static inline uint64_t qcow2_compressed_entry(uint64_t hoff, uint32_t bytes, unsigned cluster_bits)
{
	uint64_t sectors = (hoff + bytes - 1) / 512 - hoff / 512;

	assert(bytes && sectors < (uint64_t)1 << (cluster_bits - 8));
	return QCOW2_COMPRESSED | sectors << qcow2_compressed_offset_bits(cluster_bits) | hoff;
}

#endif
