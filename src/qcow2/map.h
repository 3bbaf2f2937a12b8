/* SPDX-License-Identifier: MIT */
/*
 * map.h: from guest clusters to host clusters.
 *
 * map_peek() is for any thread and takes no lock: it looks into the cached slices. Everything else
 * runs on the metadata loop.
 */
#ifndef QCOW2_MAP_H
#define QCOW2_MAP_H

#include "qcow2/image.h"

enum map_kind {
	MAP_UNALLOCATED,
	MAP_ZERO,	/* reads as zeros, no host cluster */
	MAP_ZERO_ALLOC, /* reads as zeros, has a host cluster */
	MAP_DATA,
	MAP_COMPRESSED,
	MAP_BROKEN, /* the entry is not to be trusted */
};

/* A run of guest bytes that lie together. */
struct map_extent {
	enum map_kind kind;
	bool copied;	    /* DATA, ZERO_ALLOC: exclusively this image's, so written in place */
	uint64_t hoff;	    /* DATA, ZERO_ALLOC: of the first byte */
	uint64_t entry;	    /* COMPRESSED: the descriptor; the extent ends with its cluster */
	uint64_t len_bytes; /* at least 1 */
	/* What the host offset or descriptor is in: @img's file, or where NULL the raw file @st. */
	struct qcow2_image *img;
	struct storage *st;
};

static inline be64_t *map_entry_at(const struct slice *s, uint32_t index)
{
	return (be64_t *)s->data + index;
}

static inline uint64_t map_entry_load(const struct slice *s, uint32_t index)
{
	be64_t v = {__atomic_load_n(&map_entry_at(s, index)->raw, __ATOMIC_ACQUIRE)};

	return be64_get(v);
}

static inline bool map_entry_is_bad(const struct slice *s, uint32_t index)
{
	return atomic_load_explicit(&s->has_bad, memory_order_relaxed) &&
	       s->bad[index / 64] >> (index % 64) & 1;
}

static inline enum map_kind map_entry_kind(uint64_t entry)
{
	if (entry & QCOW2_COMPRESSED)
		return MAP_COMPRESSED;
	if (entry & QCOW2_ZERO)
		return entry & QCOW2_L2_OFFSET_MASK ? MAP_ZERO_ALLOC : MAP_ZERO;
	return entry & QCOW2_L2_OFFSET_MASK ? MAP_DATA : MAP_UNALLOCATED;
}

/* The host clusters that an entry refers to: *@count of them, 0 if none. */
static inline uint64_t map_entry_hclusters(const struct qcow2_image *img, uint64_t entry,
					   uint64_t *count)
{
	uint64_t from, bytes;

	if (!(entry & QCOW2_COMPRESSED)) {
		*count = entry & QCOW2_L2_OFFSET_MASK ? 1 : 0;
		return (entry & QCOW2_L2_OFFSET_MASK) >> img->cluster_bits;
	}
	from = qcow2_compressed_host(entry, img->cluster_bits);
	bytes = qcow2_compressed_bytes(entry, img->cluster_bits);
	*count = ((from + bytes - 1) >> img->cluster_bits) - (from >> img->cluster_bits) + 1;
	return from >> img->cluster_bits;
}

/* As many as a compressed cluster of two clusters' bytes can touch. */
#define MAP_ENTRY_HCLUSTERS_MAX 3

/*
 * What @entry referred to is not referred to by it any more: on the way to the allocator, out of the
 * reservation (MAP_ENTRY_HCLUSTERS_MAX for each entry).
 */
void map_entry_unref(struct qcow2_image *img, uint64_t entry, unsigned *reserved);

static inline uint64_t map_slice_key(const struct qcow2_image *img, uint64_t gcluster)
{
	return gcluster >> img->l2_slice_bits;
}

static inline uint32_t map_slice_index(const struct qcow2_image *img, uint64_t gcluster)
{
	return (uint32_t)(gcluster & (((uint64_t)1 << img->l2_slice_bits) - 1));
}

/*
 * Any thread: the extent at @goff, @max_bytes long at most. -EAGAIN: not cached, ask map_lookup().
 */
int map_peek(struct qcow2_image *img, uint64_t goff, uint64_t max_bytes, struct map_extent *ext);

/* The same on the metadata loop, reading what is not cached. */
int map_lookup(struct qcow2_image *img, uint64_t goff, uint64_t max_bytes,
	       struct map_extent *ext) must_check;

/*
 * The pinned slice that maps @gcluster; *@out NULL if there is no L2 table (with @create, one is made).
 * -EIO if the table is broken.
 */
int map_slice_get(struct qcow2_image *img, uint64_t gcluster, bool create,
		  struct slice **out) must_check;

/* Sets entries; slice_begin_change() was called. */
void map_entry_store(struct qcow2_image *img, struct slice *s, uint32_t index, uint64_t entry);

/* For the cache: marks what is not to be trusted in an L2 slice that was just read. */
void map_slice_validate(struct qcow2_image *img, struct slice *s);

#endif
