/* SPDX-License-Identifier: MIT */
/*
 * cache.c: see cache.h.
 *
 * Life of a slice: free -> loading (in the hash, so that others wait for the one read) -> valid ->
 * (out of the hash, quiet point) -> free. One whose read failed leaves the hash at once and becomes
 * free with its last pin. Victims are chosen by the clock algorithm, a batch at a time, since making
 * sure that no queue looks at them costs a message to each.
 */
#include "qcow2/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/math.h"
#include "qcow2/image.h"
#include "storage/storage.h"

#define EVICT_BATCH 16

static void *arena_alloc(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void arena_free(void *p, size_t bytes)
{
	if (p)
		munmap(p, bytes);
}

int cache_init(struct cache *c, struct qcow2_image *img, const char *what, uint32_t slice_bytes,
	       uint64_t slices, bool read_only, struct error *err)
{
	*c = (struct cache){.img = img, .what = what, .slice_bytes = slice_bytes};
	list_init(&c->free);
	list_init(&c->dirty);
	list_init(&c->cut);
	co_waitq_init(&c->loaded);
	co_waitq_init(&c->space);
	co_waitq_init(&c->frozen_wait);
	c->block_bytes = img->st->block_bytes;
	assert(read_only || c->slice_bytes / c->block_bytes <= 8);

	c->count = (unsigned)slices;
	c->changed_max = cache_changed_max(c->count);
	c->bucket_bits = 4;
	while (c->bucket_bits < 31 && (1u << c->bucket_bits) < c->count)
		c->bucket_bits++;
	c->frozen_total = read_only ? 0 : min_of(c->count, 256u) + CACHE_FROZEN_RESERVE;

	c->slices = calloc(c->count, sizeof(*c->slices));
	c->buckets = calloc((size_t)1 << c->bucket_bits, sizeof(*c->buckets));
	c->arena = arena_alloc((size_t)c->count * c->slice_bytes);
	if (!c->slices || !c->buckets || !c->arena)
		goto no_memory;
	if (c->frozen_total) {
		c->frozen_arena = arena_alloc((size_t)c->frozen_total * c->slice_bytes);
		c->frozen_free = calloc(c->frozen_total, sizeof(*c->frozen_free));
		if (!c->frozen_arena || !c->frozen_free)
			goto no_memory;
	}
	for (unsigned i = 0; i < c->frozen_total; i++)
		c->frozen_free[c->frozen_count++] = c->frozen_arena + (size_t)i * c->slice_bytes;
	for (unsigned i = 0; i < c->count; i++) {
		struct slice *s = &c->slices[i];

		s->data = c->arena + (size_t)i * c->slice_bytes;
		list_init(&s->link);
		list_add_tail(&c->free, &s->link);
	}
	return 0;

no_memory:
	cache_destroy(c);
	return error_set(err, -ENOMEM, "no memory for a cache of %u slices of %s", (unsigned)slices,
			 what);
}

void cache_destroy(struct cache *c)
{
	arena_free(c->arena, (size_t)c->count * c->slice_bytes);
	arena_free(c->frozen_arena, (size_t)c->frozen_total * c->slice_bytes);
	free(c->slices);
	free(c->buckets);
	free(c->frozen_free);
	*c = (struct cache){0};
}

static struct slice *cache_find(struct cache *c, uint64_t key)
{
	struct slice *s = c->buckets[cache_bucket(c, key)];

	while (s && s->key != key)
		s = s->hash_next;
	return s;
}

static void hash_insert(struct cache *c, struct slice *s)
{
	struct slice *_Atomic *bucket = &c->buckets[cache_bucket(c, s->key)];

	atomic_store_explicit(&s->hash_next, *bucket, memory_order_relaxed);
	atomic_store_explicit(bucket, s, memory_order_release);
}

static void hash_remove(struct cache *c, struct slice *s)
{
	struct slice *_Atomic *at = &c->buckets[cache_bucket(c, s->key)];

	while (*at != s)
		at = &(*at)->hash_next;
	/* s->hash_next stays: a lookup may stand on it */
	atomic_store_explicit(at, s->hash_next, memory_order_release);
}

static bool slice_evictable(const struct slice *s)
{
	return s->state == SLICE_VALID && !s->pins && !s->dirty && !s->cut;
}

/* Unhashes up to a batch of victims into @victims; how many. */
static unsigned evict_choose(struct cache *c, struct list *victims)
{
	unsigned found = 0, batch = min_of((unsigned)EVICT_BATCH, c->count / 4 + 1);

	/* twice around: the first time takes the second chances away */
	for (unsigned n = 0; n < 2 * c->count && found < batch; n++) {
		struct slice *s = &c->slices[c->clock_hand];

		c->clock_hand = (c->clock_hand + 1) % c->count;
		if (!slice_evictable(s))
			continue;
		if (atomic_exchange_explicit(&s->referenced, false, memory_order_relaxed) &&
		    n < c->count)
			continue;
		hash_remove(c, s);
		atomic_store_explicit(&s->state, SLICE_FREE, memory_order_relaxed);
		list_add_tail(victims, &s->link);
		found++;
	}
	return found;
}

/* A free slice, off every list. May suspend. */
static struct slice *take_free(struct cache *c)
{
	struct list victims = LIST_INIT(victims);
	struct list *l;

	while (!(l = list_pop(&c->free))) {
		if (c->evicting) {
			co_wait(&c->space);
			continue;
		}
		if (evict_choose(c, &victims)) {
			c->evicting = true;
			image_quiesce_lookups(c->img);
			c->evicting = false;
			list_splice_tail(&c->free, &victims);
			co_wake_all(&c->space);
			continue;
		}
		co_wait(&c->space); /* all that are not changed are pinned */
	}
	return list_entry(l, struct slice, link);
}

static int slice_load(struct cache *c, struct slice *s, bool zeroed)
{
	int ret = 0;

	if (zeroed) {
		memset(s->data, 0, c->slice_bytes);
	} else {
		c->loads++;
		ret = c->load ? c->load(c, s)
			      : storage_pread(c->img->st, s->host_offset, s->data, c->slice_bytes);
	}
	if (ret) {
		hash_remove(c, s);
		s->load_ret = ret;
		atomic_store_explicit(&s->state, SLICE_FAILED, memory_order_relaxed);
	} else {
		atomic_store_explicit(&s->has_bad, false, memory_order_relaxed);
		memset(s->bad, 0, sizeof(s->bad));
		if (c->validate && !zeroed)
			c->validate(c->img, s);
		atomic_store_explicit(&s->state, SLICE_VALID, memory_order_release);
	}
	co_wake_all(&c->loaded);
	return ret;
}

int cache_get(struct cache *c, uint64_t key, uint64_t host_offset, bool zeroed, struct slice **out)
{
	struct slice *s;
	int ret;

	for (;;) {
		s = cache_find(c, key);
		if (s) {
			s->pins++;
			break;
		}
		s = take_free(c);
		if (cache_find(c, key)) { /* somebody was faster */
			list_add(&c->free, &s->link);
			co_wake_all(&c->space);
			continue;
		}
		s->key = key;
		s->host_offset = c->locate ? c->locate(c->img, key) : host_offset;
		s->pins = 1;
		atomic_store_explicit(&s->state, SLICE_LOADING, memory_order_relaxed);
		hash_insert(c, s);
		ret = slice_load(c, s, zeroed);
		break;
	}
	while (s->state == SLICE_LOADING)
		co_wait(&c->loaded);
	if (s->state == SLICE_FAILED) {
		ret = s->load_ret;
		cache_put(c, s);
		return ret;
	}
	atomic_store_explicit(&s->referenced, true, memory_order_relaxed);
	*out = s;
	return 0;
}

void cache_put(struct cache *c, struct slice *s)
{
	assert(s->pins);
	if (--s->pins)
		return;
	if (s->state == SLICE_FAILED) {
		/* a lookup may still stand on it: invariant 1 */
		while (c->evicting)
			co_wait(&c->space);
		c->evicting = true;
		image_quiesce_lookups(c->img);
		c->evicting = false;
		atomic_store_explicit(&s->state, SLICE_FREE, memory_order_relaxed);
		list_add_tail(&c->free, &s->link);
	}
	co_wake_all(&c->space);
}

void cache_drop(struct cache *c, struct slice *s)
{
	assert(s->state == SLICE_VALID && s->pins == 1 && !s->dirty && !s->cut);
	hash_remove(c, s);
	atomic_store_explicit(&s->state, SLICE_FAILED, memory_order_relaxed);
	cache_put(c, s);
}

void cache_wait_loaded(struct cache *c, uint64_t first, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		const struct slice *s = cache_find(c, first + i);

		if (!s || s->state != SLICE_LOADING)
			continue;
		co_wait(&c->loaded);
		i = UINT64_MAX; /* others may have begun meanwhile: from the start */
	}
}

bool cache_any_dirty(struct cache *c, uint64_t first, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		const struct slice *s = cache_find(c, first + i);

		if (s && (s->dirty || s->cut))
			return true;
	}
	return false;
}

void cache_move(struct cache *c, uint64_t first, uint64_t count, uint64_t host_offset)
{
	for (uint64_t i = 0; i < count; i++) {
		struct slice *s = cache_find(c, first + i);

		if (!s)
			continue;
		assert(s->state == SLICE_VALID && !s->dirty && !s->cut);
		s->host_offset = host_offset + i * c->slice_bytes;
	}
}

void cache_clear(struct cache *c)
{
	struct list victims = LIST_INIT(victims);

	while (c->evicting)
		co_wait(&c->space);
	c->evicting = true;
	for (unsigned i = 0; i < c->count; i++) {
		struct slice *s = &c->slices[i];

		if (s->state != SLICE_VALID)
			continue;
		assert(slice_evictable(s));
		hash_remove(c, s);
		atomic_store_explicit(&s->state, SLICE_FREE, memory_order_relaxed);
		list_add_tail(&victims, &s->link);
	}
	image_quiesce_lookups(c->img);
	c->evicting = false;
	list_splice_tail(&c->free, &victims);
	co_wake_all(&c->space);
}

bool slice_freeze(struct cache *c, struct slice *s)
{
	assert(!s->frozen);
	if (!c->frozen_count)
		return false;
	s->frozen = c->frozen_free[--c->frozen_count];
	memcpy(s->frozen, s->data, c->slice_bytes);
	return true;
}

static bool slice_changed(const struct slice *s)
{
	return s->dirty || s->cut;
}

int slice_begin_change(struct cache *c, struct slice *s)
{
	int ret = 0;

	assert(s->pins && s->state == SLICE_VALID);
	for (;;) {
		if (s->cut && !s->frozen && !mutant(MUTANT_LIVE_PAGE)) {
			if (c->frozen_count <= CACHE_FROZEN_RESERVE || !slice_freeze(c, s))
				co_wait(&c->frozen_wait);
		} else if (slice_changed(s) || c->changed < c->changed_max) {
			return 0;
		} else {
			ret = writeback_run(c->img);
			if (ret)
				return ret;
		}
	}
}

void slice_mark_dirty(struct cache *c, struct slice *s, uint32_t offset_bytes, uint32_t len_bytes)
{
	uint32_t first = offset_bytes / c->block_bytes;
	uint32_t last = (offset_bytes + len_bytes - 1) / c->block_bytes;

	assert(len_bytes && offset_bytes + len_bytes <= c->slice_bytes);
	if (!slice_changed(s)) {
		assert(c->changed < c->changed_max);
		c->changed++;
	}
	for (uint32_t b = first; b <= last; b++)
		s->dirty |= (uint8_t)(1u << b);
	if (!s->cut && !list_linked(&s->link))
		list_add_tail(&c->dirty, &s->link);
	image_metadata_dirtied(c->img);
}

bool cache_is_dirty(const struct cache *c)
{
	return !list_empty(&c->dirty) || !list_empty(&c->cut);
}

void cache_cut(struct cache *c)
{
	struct slice *s;

	assert(list_empty(&c->cut));
	list_splice_tail(&c->cut, &c->dirty);
	list_for_each_entry(s, &c->cut, link)
	{
		s->cut = s->dirty;
		s->dirty = 0;
		s->write_failed = false;
		assert(s->cut && !s->frozen && !s->ios);
	}
}

void slice_written(struct cache *c, struct slice *s, bool failed)
{
	if (failed)
		s->dirty |= s->cut;
	s->cut = 0;
	list_del(&s->link);
	if (s->dirty)
		list_add_tail(&c->dirty, &s->link);
	else
		c->changed--;
	if (s->frozen) {
		c->frozen_free[c->frozen_count++] = s->frozen;
		s->frozen = NULL;
		co_wake_all(&c->frozen_wait);
	}
	co_wake_all(&c->space);
}
