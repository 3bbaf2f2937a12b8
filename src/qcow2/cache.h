/* SPDX-License-Identifier: MIT */
/*
 * cache.h: slices of L2 tables and refcount blocks, cached under a bound.
 *
 * A slice is min(cluster, 4 KiB) of a table, as it is on disk (big endian). It is found by its key,
 * the number of the slice in guest or host cluster order. An L2 table that is copied (map.c) takes its
 * slices along: cache_move().
 *
 * Threads: everything runs on the metadata loop but cache_peek(), which any queue may call at any
 * time, without a lock.
 *
 * Invariants:
 *  1. What cache_peek() finds stays valid until the caller next suspends: a slice that leaves the hash
 *     is reused only after every queue has passed a quiet point (image_quiesce_lookups()).
 *  2. A slice with changes that are not on disk (dirty or cut) is never evicted.
 *  3. Rule 2 (frozen images): slice->cut are the blocks that the running pass writes. Before a slice
 *     with a cut is changed, and at the latest when its write begins, its bytes are copied to
 *     slice->frozen, and it is the copy that is written.
 *  4. A coroutine has at most one slice of each cache pinned, and waits for nothing that needs another
 *     pin while it has: so pins are always given back, however few slices there are.
 *  5. Some slices are never changed ones (dirty or cut): a change that would need one more than
 *     changed_max waits for a pass, and fails if that fails. So a slice can always be loaded, also
 *     when no pass will ever succeed again (rule 6): reads go on.
 */
#ifndef QCOW2_CACHE_H
#define QCOW2_CACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/list.h"
#include "ring/co.h"

struct qcow2_image;

#define SLICE_MAX_BYTES	  4096
#define SLICE_MAX_ENTRIES (SLICE_MAX_BYTES / 8)

enum slice_state { SLICE_FREE, SLICE_LOADING, SLICE_VALID, SLICE_FAILED };

struct slice {
	struct slice *_Atomic hash_next;
	uint64_t key; /* constant while a lookup may see it */
	void *data;
	_Atomic int state; /* enum slice_state */
	_Atomic bool referenced;
	_Atomic bool has_bad; /* L2: some of @bad is set */
	_Atomic uint32_t changes; /* L2, entries of two words: odd while one is being changed (rule 12) */
	uint8_t dirty;	      /* a bit for each block changed since the last cut */
	uint8_t cut;	      /* a bit for each block that the running pass writes */
	bool write_failed;
	unsigned ios; /* writes under way */
	unsigned pins;
	int load_ret;
	uint64_t host_offset;
	void *frozen;
	struct list link; /* cache->free, ->dirty or ->cut */
	/* L2: entries that are not to be trusted; set when it was loaded, constant while it is cached. */
	uint64_t bad[SLICE_MAX_ENTRIES / 64];
};

struct cache {
	struct qcow2_image *img;
	const char *what;
	uint32_t slice_bytes;
	uint32_t block_bytes;
	/* Fills s->data; NULL: it is read from the file at s->host_offset. */
	int (*load)(struct cache *c, struct slice *s);
	/* Looks at what was loaded, before lookups see it. May be NULL. */
	void (*validate)(struct qcow2_image *img, struct slice *s);
	/*
	 * Where the slice of @key lies now, asked when it takes its place in the cache: while its reader
	 * waited for room its table may have moved. NULL: tables do not move.
	 */
	uint64_t (*locate)(struct qcow2_image *img, uint64_t key);

	struct slice *slices;
	unsigned count;
	uint8_t *arena;
	struct slice *_Atomic *buckets;
	unsigned bucket_bits;

	struct list free, dirty, cut;
	struct co_waitq loaded; /* a slice left SLICE_LOADING */
	struct co_waitq space;	/* a slice may be free or evictable now */
	unsigned changed, changed_max; /* slices that are dirty or cut; see invariant 5 */
	unsigned clock_hand;
	bool evicting;

	/* frozen copies: a stack of free buffers; see slice_begin_change() */
	uint8_t *frozen_arena;
	void **frozen_free;
	unsigned frozen_count, frozen_total;
	struct co_waitq frozen_wait;

	uint64_t loads; /* slices read from disk */
};

/* Changers leave this many frozen buffers to the pass, so that it always gets on. */
#define CACHE_FROZEN_RESERVE 16

/* The least that work can go on with. */
#define CACHE_MIN_SLICES 8

/*
 * How many slices a cache needs so that @all of them may be changed ones, and how many may be in one of
 * @count; see invariant 5.
 */
static inline uint64_t cache_count_for(uint64_t all)
{
	return all + all / 7 + 3;
}

static inline unsigned cache_changed_max(unsigned count)
{
	unsigned clean = count / 8;

	return count - (clean < 2 ? 2 : clean);
}

/* Of @slices slices, each @slice_bytes long; @read_only: none is ever changed. */
int cache_init(struct cache *c, struct qcow2_image *img, const char *what, uint32_t slice_bytes,
	       uint64_t slices, bool read_only, struct error *err) must_check;
void cache_destroy(struct cache *c); /* also of a zeroed cache */

static inline unsigned cache_bucket(const struct cache *c, uint64_t key)
{
	return (unsigned)(key * 0x9e3779b97f4a7c15u >> (64 - c->bucket_bits));
}

/* Any thread: the slice if it is cached and valid, else NULL. See invariant 1. */
static inline struct slice *cache_peek(struct cache *c, uint64_t key)
{
	struct slice *s =
		atomic_load_explicit(&c->buckets[cache_bucket(c, key)], memory_order_acquire);

	while (s && s->key != key)
		s = atomic_load_explicit(&s->hash_next, memory_order_acquire);
	if (!s || atomic_load_explicit(&s->state, memory_order_acquire) != SLICE_VALID)
		return NULL;
	if (!atomic_load_explicit(&s->referenced, memory_order_relaxed))
		atomic_store_explicit(&s->referenced, true, memory_order_relaxed);
	return s;
}

/*
 * The slice @key, valid and pinned; read from @host_offset if it is not cached, or known to be zeros.
 * May suspend. An error is the read's.
 */
int cache_get(struct cache *c, uint64_t key, uint64_t host_offset, bool zeroed,
	      struct slice **out) must_check;
void cache_put(struct cache *c, struct slice *s);
/* cache_put() of a slice that nobody else has, which is not changed and is not to be found again. */
void cache_drop(struct cache *c, struct slice *s);

/* Waits until no slice of keys [@first, @first + @count) is being loaded. */
void cache_wait_loaded(struct cache *c, uint64_t first, uint64_t count);
bool cache_any_dirty(struct cache *c, uint64_t first, uint64_t count);
/*
 * The table that keys [@first, @first + @count) are the slices of lies at @host_offset now, with the same
 * content. None of them is dirty or being loaded. Does not suspend.
 */
void cache_move(struct cache *c, uint64_t first, uint64_t count, uint64_t host_offset);

/*
 * To be called, with the slice pinned, right before its data is changed: between its return and
 * slice_mark_dirty() nothing suspends. May itself suspend, so what was read from the slice before is
 * to be read again. An error is that of a pass that had to make room (invariant 5): the slice must not
 * be changed.
 */
int slice_begin_change(struct cache *c, struct slice *s) must_check;
void slice_mark_dirty(struct cache *c, struct slice *s, uint32_t offset_bytes, uint32_t len_bytes);

/* The pass: takes everything dirty into the cut. Does not suspend. */
void cache_cut(struct cache *c);
bool cache_is_dirty(const struct cache *c);
/* Forgets everything; nothing is dirty, pinned or being loaded. */
void cache_clear(struct cache *c);
/* The pass: takes a frozen copy of a slice in the cut; false if there is no buffer. */
bool slice_freeze(struct cache *c, struct slice *s);
/* The pass: the slice was written, or is dirty again. */
void slice_written(struct cache *c, struct slice *s, bool failed);

#endif
