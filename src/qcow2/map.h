/* SPDX-License-Identifier: MIT */
/*
 * map.h: from guest clusters to host clusters.
 *
 * map_peek() is for any thread and takes no lock: it looks into the cached slices. Everything else
 * runs on the metadata loop.
 *
 * With extended L2 entries the map is one of subclusters: an extent begins and ends at any of them.
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
	/* What the host offset is in; and whose it is, or a descriptor is: @img, or where NULL a raw file. */
	struct qcow2_image *img;
	struct storage *st;
};

/* What DATA is encrypted with; NULL: it is not. */
static inline struct crypto *map_extent_crypto(const struct map_extent *ext)
{
	return ext->img ? ext->img->crypto : NULL;
}

/* An L2 entry. @bitmap is that of an extended one, else 0 (qcow2: "Extended L2 Entries"). */
struct map_entry {
	uint64_t word, bitmap;
};

static inline bool map_entry_equal(struct map_entry a, struct map_entry b)
{
	return a.word == b.word && a.bitmap == b.bitmap;
}

static inline bool map_entry_is_empty(struct map_entry e)
{
	return !(e.word | e.bitmap);
}

static inline uint64_t map_word_load(const struct slice *s, uint32_t word_index)
{
	be64_t v = {__atomic_load_n(&((be64_t *)s->data)[word_index].raw, __ATOMIC_ACQUIRE)};

	return be64_get(v);
}

/*
 * On the metadata loop. Any other thread may see one word of an extended entry before a change and the
 * other after it, and has to look at slice->changes.
 */
static inline struct map_entry map_entry_load(const struct qcow2_image *img, const struct slice *s,
					      uint32_t index)
{
	if (!img->extended_l2)
		return (struct map_entry){map_word_load(s, index), 0};
	return (struct map_entry){map_word_load(s, 2 * index), map_word_load(s, 2 * index + 1)};
}

static inline bool map_entry_is_bad(const struct slice *s, uint32_t index)
{
	return atomic_load_explicit(&s->has_bad, memory_order_relaxed) &&
	       s->bad[index / 64] >> (index % 64) & 1;
}

/*
 * Set in the word of an entry that has a place, in the file or the external data file, where the place may
 * be at offset 0: then it is COPIED (qcow2: "External data file"). In any other image such an entry is
 * broken.
 */
#define MAP_PLACED (QCOW2_L2_OFFSET_MASK | QCOW2_COPIED)

static inline bool map_word_placed(uint64_t word)
{
	return !(word & QCOW2_COMPRESSED) && word & MAP_PLACED;
}

/* Of a cluster, by a standard entry's word. */
static inline enum map_kind map_word_kind(uint64_t word)
{
	if (word & QCOW2_COMPRESSED)
		return MAP_COMPRESSED;
	if (word & QCOW2_ZERO)
		return word & MAP_PLACED ? MAP_ZERO_ALLOC : MAP_ZERO;
	return word & MAP_PLACED ? MAP_DATA : MAP_UNALLOCATED;
}

/* Of subcluster @sub by an extended entry. An unallocated one may have its place in a host cluster. */
static inline enum map_kind map_subcluster_kind(struct map_entry e, unsigned sub)
{
	if (e.word & QCOW2_COMPRESSED)
		return MAP_COMPRESSED;
	if (e.bitmap >> sub & 1)
		return MAP_DATA;
	if (e.bitmap >> (QCOW2_SUBCLUSTERS + sub) & 1)
		return e.word & MAP_PLACED ? MAP_ZERO_ALLOC : MAP_ZERO;
	return MAP_UNALLOCATED;
}

/* Exclusively ours at @hoff, all of it data. */
static inline struct map_entry map_entry_data(const struct qcow2_image *img, uint64_t hoff)
{
	return (struct map_entry){hoff | QCOW2_COPIED,
				  img->extended_l2 ? QCOW2_SUBCLUSTERS_ALLOC_MASK : 0};
}

/*
 * The host clusters that an entry's word refers to: *@count of them, 0 if none. Those of an external data
 * file are not counted.
 */
static inline uint64_t map_entry_hclusters(const struct qcow2_image *img, uint64_t word,
					   uint64_t *count)
{
	uint64_t from, bytes;

	if (image_has_data_file(img)) {
		*count = 0;
		return 0;
	}
	if (!(word & QCOW2_COMPRESSED)) {
		*count = word & QCOW2_L2_OFFSET_MASK ? 1 : 0;
		return (word & QCOW2_L2_OFFSET_MASK) >> img->cluster_bits;
	}
	from = qcow2_compressed_host(word, img->cluster_bits);
	bytes = qcow2_compressed_bytes(word, img->cluster_bits);
	*count = ((from + bytes - 1) >> img->cluster_bits) - (from >> img->cluster_bits) + 1;
	return from >> img->cluster_bits;
}

/* As many as a compressed cluster of two clusters' bytes can touch. */
#define MAP_ENTRY_HCLUSTERS_MAX 3

/*
 * What @word referred to is not referred to by it any more: on the way to the allocator, out of the
 * reservation (MAP_ENTRY_HCLUSTERS_MAX for each entry).
 */
void map_entry_unref(struct qcow2_image *img, uint64_t word, unsigned *reserved);

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

/* The same on the metadata loop, reading what is not cached; an error is the read's. */
int map_lookup(struct qcow2_image *img, uint64_t goff, uint64_t max_bytes,
	       struct map_extent *ext) must_check;

/* The pinned slice that maps @gcluster, to read; *@out NULL if there is no L2 table. -EIO if it is broken. */
int map_slice_get(struct qcow2_image *img, uint64_t gcluster, struct slice **out) must_check;

/*
 * The same for a change: the table is made if there is none, and copied if it is shared with a snapshot
 * (which may take one of *@reserved frees for each table, and a record of the log). The request is one
 * that image_hold() waits for.
 */
int map_slice_own(struct qcow2_image *img, uint64_t gcluster, unsigned *reserved,
		  struct slice **out) must_check;

/* For the cache: where the slice of @key lies. */
uint64_t map_slice_locate(struct qcow2_image *img, uint64_t key);

/* Sets entries; slice_begin_change() was called. */
void map_entry_store(struct qcow2_image *img, struct slice *s, uint32_t index,
		     struct map_entry entry);

/* For the cache: marks what is not to be trusted in an L2 slice that was just read. */
void map_slice_validate(struct qcow2_image *img, struct slice *s);

#endif
