/* SPDX-License-Identifier: MIT */
/* inflate.c: see inflate.h. */
#include "qcow2/inflate.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "qcow2/compress.h"
#include "qcow2/image.h"
#include "qcow2/map.h"

#define SLOTS_MAX 4096
/* Each fill may pin one, and one is for whoever comes next. */
#define SLOTS_MIN (INFLATE_FILLS + 2)
/* Storage is read in whole blocks, so up to one more at each end. */
#define RAW_SLACK_BYTES (2 * 4096)

enum slot_state { SLOT_FREE, SLOT_FILLING, SLOT_VALID, SLOT_FAILED };

/* An inflated cluster. */
struct slot {
	struct list lru;  /* FREE and VALID, unpinned: on cache->unused, the next to go first */
	struct list hash; /* linked: lookups find it */
	const struct qcow2_image *layer;
	uint64_t entry, hcluster; /* the first that it lies in */
	enum slot_state state;
	unsigned pins; /* readers that wait for it or copy from it */
	int ret;       /* FAILED */
	bool rubbish;  /* likewise: it was read, but cannot be inflated */
	void *data;
	struct list waiters;
};

/* What brings one in: first the I/O, then the work. */
struct fill {
	struct storage_io io;
	struct work work;
	struct list link; /* cache->idle_fills */
	struct inflate_cache *cache;
	struct slot *slot;
	struct qcow2_image *layer;
	struct loop *loop;
	uint32_t skip_bytes, data_bytes; /* of raw: before the data, and the data */
	uint8_t *raw;
	struct inflater *inf;
	bool busy;
};

/* A coroutine that waits, on its own stack. */
struct waiter {
	struct list link;
	struct loop_msg msg;
	struct loop *loop;
	struct co *co;
	bool woken;
};

struct inflate_cache {
	struct work_pool *workers;
	uint32_t cluster_bytes;
	void *arena;
	size_t arena_bytes;
	struct fill fills[INFLATE_FILLS];
	struct slot *slots;
	unsigned slot_count, bucket_mask;

	pthread_mutex_t lock; /* of everything below, and of the slots' and fills' fields */
	struct list *buckets;
	struct list unused;
	struct list idle_fills;
	struct list room;    /* who waits for a slot and a fill: see wake_for_room() */
	struct list drained; /* who waits for the end of a fill */
	uint64_t inflated;
};

/* ---- waiting ---- */

static void waiter_arrived(struct loop_msg *msg)
{
	struct waiter *w = container_of(msg, struct waiter, msg);

	w->woken = true;
	co_resume(w->co);
}

/* Under the lock, which is released and taken again. */
static void wait_on(struct inflate_cache *c, struct list *waiters)
{
	struct waiter w = {.msg.fn = waiter_arrived, .loop = loop_self(), .co = co_self()};

	assert(w.co);
	list_add_tail(waiters, &w.link);
	pthread_mutex_unlock(&c->lock);
	while (!w.woken)
		co_suspend();
	loop_mutex_lock(&c->lock);
}

/* These are under the lock, and send messages even to the own loop. */
static bool wake_one(struct list *waiters)
{
	struct list *l = list_pop(waiters);
	struct waiter *w;

	if (!l)
		return false;
	w = list_entry(l, struct waiter, link);
	loop_post(w->loop, &w->msg);
	return true;
}

static void wake_all(struct list *waiters)
{
	while (wake_one(waiters))
		;
}

/* ---- slots; all under the lock ---- */

static bool has_room(const struct inflate_cache *c)
{
	return !list_empty(&c->unused) && !list_empty(&c->idle_fills);
}

/*
 * One is woken whenever a slot or a fill comes back, and by each that was woken and left some: so nobody
 * waits while there is room, and not everybody runs for each bit of it.
 */
static void wake_for_room(struct inflate_cache *c)
{
	if (has_room(c))
		(void)wake_one(&c->room);
}

static struct list *bucket_of(const struct inflate_cache *c, uint64_t hcluster)
{
	return &c->buckets[(hcluster * 0x9e3779b97f4a7c15u >> 40) & c->bucket_mask];
}

static struct slot *slot_find(const struct inflate_cache *c, const struct qcow2_image *layer,
			      uint64_t entry, uint64_t hcluster)
{
	struct slot *s;

	list_for_each_entry(s, bucket_of(c, hcluster), hash) {
		if (s->entry == entry && s->layer == layer)
			return s;
	}
	return NULL;
}

static void slot_unhash(struct slot *s)
{
	if (list_linked(&s->hash))
		list_del(&s->hash);
}

/* Nobody uses it now: it can be found again, or be used for another cluster, at once if it is no good. */
static void slot_settle(struct inflate_cache *c, struct slot *s)
{
	if (s->pins || s->state == SLOT_FILLING)
		return;
	if (s->state == SLOT_VALID && list_linked(&s->hash)) {
		list_add_tail(&c->unused, &s->lru);
	} else {
		slot_unhash(s);
		s->state = SLOT_FREE;
		list_add(&c->unused, &s->lru);
	}
	wake_for_room(c);
}

static void slot_pin(struct slot *s)
{
	if (list_linked(&s->lru))
		list_del(&s->lru);
	s->pins++;
}

static void slot_unpin(struct inflate_cache *c, struct slot *s)
{
	assert(s->pins);
	s->pins--;
	slot_settle(c, s);
}

/* A slot and a fill for a cluster that is not there; NULL if one of them is missing. */
static struct fill *fill_get(struct inflate_cache *c, struct qcow2_image *layer, uint64_t entry,
			     uint64_t hcluster)
{
	struct fill *f;
	struct slot *s;

	if (!has_room(c))
		return NULL;
	f = list_entry(list_pop(&c->idle_fills), struct fill, link);
	s = list_entry(list_pop(&c->unused), struct slot, lru);
	slot_unhash(s);
	s->layer = layer;
	s->entry = entry;
	s->hcluster = hcluster;
	s->state = SLOT_FILLING;
	s->rubbish = false;
	s->ret = 0;
	list_add(bucket_of(c, hcluster), &s->hash);
	f->slot = s;
	f->loop = loop_self();
	f->busy = true;
	return f;
}

/* ---- filling ---- */

static void fill_done(struct fill *f, int ret)
{
	struct inflate_cache *c = f->cache;
	struct slot *s = f->slot;

	loop_mutex_lock(&c->lock);
	s->state = ret ? SLOT_FAILED : SLOT_VALID;
	s->ret = ret;
	if (ret) /* whoever comes later tries anew */
		slot_unhash(s);
	c->inflated += !ret;
	wake_all(&s->waiters);
	f->slot = NULL;
	f->busy = false;
	list_add(&c->idle_fills, &f->link);
	slot_settle(c, s);
	wake_for_room(c);
	wake_all(&c->drained);
	pthread_mutex_unlock(&c->lock);
}

/* In the pool. */
static void fill_inflate(struct work *work)
{
	struct fill *f = container_of(work, struct fill, work);

	f->slot->rubbish = true;
	f->slot->ret = inflater_run(f->inf, (enum compression)f->layer->hdr.compression_type,
				    f->raw + f->skip_bytes, f->data_bytes, f->slot->data,
				    f->layer->cluster_bytes);
}

static void fill_inflated(struct work *work)
{
	struct fill *f = container_of(work, struct fill, work);

	fill_done(f, f->slot->ret);
}

static void fill_was_read(struct storage_io *io, int ret)
{
	struct fill *f = container_of(io, struct fill, io);

	if (ret)
		fill_done(f, ret);
	else
		work_submit(f->cache->workers, &f->work);
}

/* Not under the lock: it may be done before this returns. */
static void fill_start(struct fill *f, struct qcow2_image *layer, uint64_t entry)
{
	uint64_t from = qcow2_compressed_host(entry, layer->cluster_bits);
	uint64_t bytes = qcow2_compressed_bytes(entry, layer->cluster_bits);
	uint64_t start = align_down(from, layer->st->block_bytes);

	assert(layer->cluster_bytes <= f->cache->cluster_bytes);
	f->layer = layer;
	f->skip_bytes = (uint32_t)(from - start);
	f->data_bytes = (uint32_t)bytes;
	f->io.op = STORAGE_READ;
	f->io.flags = 0;
	f->io.offset_bytes = start;
	f->io.len_bytes = align_up(from + bytes, layer->st->block_bytes) - start;
	f->io.iov = NULL;
	f->io.iovcnt = 0;
	f->io.buf = (struct blk_buf){.base = f->raw};
	f->io.complete = fill_was_read;
	storage_submit(layer->st, &f->io);
}

/* ---- the interface ---- */

int inflate_read(struct inflate_cache *c, struct qcow2_image *layer, uint64_t entry,
		 uint32_t in_cluster, uint32_t len_bytes, void *to)
{
	uint64_t hcluster =
		qcow2_compressed_host(entry, layer->cluster_bits) >> layer->cluster_bits;
	struct fill *f = NULL;
	struct slot *s;
	int ret;

	assert(in_cluster <= layer->cluster_bytes &&
	       len_bytes <= layer->cluster_bytes - in_cluster);
	loop_mutex_lock(&c->lock);
	while (!(s = slot_find(c, layer, entry, hcluster)) &&
	       !(f = fill_get(c, layer, entry, hcluster)))
		wait_on(c, &c->room);
	s = f ? f->slot : s;
	slot_pin(s);
	wake_for_room(c);
	if (f) {
		pthread_mutex_unlock(&c->lock);
		fill_start(f, layer, entry);
		loop_mutex_lock(&c->lock);
	}
	while (s->state == SLOT_FILLING)
		wait_on(c, &s->waiters);
	ret = s->state == SLOT_FAILED ? s->ret : 0;
	pthread_mutex_unlock(&c->lock);
	/* Said by readers alone: what was read ahead may have been freed meanwhile. */
	if (ret && s->rubbish)
		image_corrupt(
			layer, "the compressed cluster at host offset %#llx cannot be inflated",
			(unsigned long long)qcow2_compressed_host(entry, layer->cluster_bits));
	if (!ret)
		memcpy(to, (uint8_t *)s->data + in_cluster, len_bytes);
	loop_mutex_lock(&c->lock);
	slot_unpin(c, s);
	pthread_mutex_unlock(&c->lock);
	return ret;
}

bool inflate_start(struct inflate_cache *c, struct qcow2_image *layer, uint64_t entry)
{
	uint64_t hcluster =
		qcow2_compressed_host(entry, layer->cluster_bits) >> layer->cluster_bits;
	struct fill *f = NULL;
	bool there;

	loop_mutex_lock(&c->lock);
	there = slot_find(c, layer, entry, hcluster);
	if (!there)
		f = fill_get(c, layer, entry, hcluster);
	pthread_mutex_unlock(&c->lock);
	if (f)
		fill_start(f, layer, entry);
	return there || f;
}

void inflate_drop(struct inflate_cache *c, const struct qcow2_image *layer, uint64_t hcluster)
{
	if (!c)
		return;
	loop_mutex_lock(&c->lock);
	/* those that begin there, and those that begin before and reach into it */
	for (uint64_t back = 0; back < MAP_ENTRY_HCLUSTERS_MAX && back <= hcluster; back++) {
		struct slot *s, *tmp;

		list_for_each_entry_safe(s, tmp, bucket_of(c, hcluster - back), hash) {
			uint64_t count, first = map_entry_hclusters(layer, s->entry, &count);

			if (s->layer != layer || first > hcluster || hcluster - first >= count)
				continue;
			slot_unhash(s);
			if (list_linked(&s->lru)) { /* it is the first to be used */
				list_del(&s->lru);
				slot_settle(c, s);
			}
		}
	}
	pthread_mutex_unlock(&c->lock);
}

unsigned inflate_window(const struct inflate_cache *c)
{
	return min_of(c->slot_count / 4, (unsigned)INFLATE_FILLS);
}

static bool fills_here(const struct inflate_cache *c)
{
	for (unsigned i = 0; i < INFLATE_FILLS; i++)
		if (c->fills[i].busy && c->fills[i].loop == loop_self())
			return true;
	return false;
}

void inflate_drain(struct inflate_cache *c)
{
	if (!c)
		return;
	loop_mutex_lock(&c->lock);
	while (fills_here(c))
		wait_on(c, &c->drained);
	pthread_mutex_unlock(&c->lock);
}

uint64_t inflate_count(struct inflate_cache *c)
{
	uint64_t n;

	loop_mutex_lock(&c->lock);
	n = c->inflated;
	pthread_mutex_unlock(&c->lock);
	return n;
}

static int make_fills(struct inflate_cache *c, uint8_t *raw, size_t raw_bytes)
{
	int ret = 0;

	for (unsigned i = 0; !ret && i < INFLATE_FILLS; i++) {
		struct fill *f = &c->fills[i];

		f->cache = c;
		f->raw = raw + i * raw_bytes;
		f->work = (struct work){.fn = fill_inflate, .done = fill_inflated};
		ret = inflater_create(&f->inf);
		list_add_tail(&c->idle_fills, &f->link);
	}
	return ret;
}

static void make_slots(struct inflate_cache *c, uint8_t *data)
{
	for (unsigned i = 0; i <= c->bucket_mask; i++)
		list_init(&c->buckets[i]);
	for (unsigned i = 0; i < c->slot_count; i++) {
		struct slot *s = &c->slots[i];

		s->data = data + (size_t)i * c->cluster_bytes;
		list_init(&s->hash);
		list_init(&s->waiters);
		list_add_tail(&c->unused, &s->lru);
	}
}

int inflate_cache_create(struct inflate_cache **out, struct work_pool *workers,
			 uint32_t cluster_bytes, struct error *err)
{
	struct inflate_cache *c = calloc(1, sizeof(*c));
	size_t raw_bytes = 2 * (size_t)cluster_bytes + RAW_SLACK_BYTES;
	unsigned count, buckets = 16;

	*out = NULL;
	if (!c)
		return error_set(err, -ENOMEM, "no memory for inflated clusters");
	pthread_mutex_init(&c->lock, NULL);
	list_init(&c->unused);
	list_init(&c->idle_fills);
	list_init(&c->room);
	list_init(&c->drained);
	count = (unsigned)(INFLATE_CACHE_BYTES / cluster_bytes);
	count = min_of(max_of(count, (unsigned)SLOTS_MIN), (unsigned)SLOTS_MAX);
	while (buckets < 2 * count)
		buckets *= 2;
	c->workers = workers;
	c->cluster_bytes = cluster_bytes;
	c->slot_count = count;
	c->bucket_mask = buckets - 1;
	c->slots = calloc(count, sizeof(*c->slots));
	c->buckets = calloc(buckets, sizeof(*c->buckets));
	/* raw memory first, as it has to be page aligned; its length is a multiple of 1 KiB */
	raw_bytes = align_up(raw_bytes, 4096);
	c->arena_bytes = INFLATE_FILLS * raw_bytes + (size_t)count * cluster_bytes;
	c->arena = mmap(NULL, c->arena_bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (c->arena == MAP_FAILED)
		c->arena = NULL;
	if (!c->slots || !c->buckets || !c->arena || make_fills(c, c->arena, raw_bytes)) {
		inflate_cache_destroy(c);
		return error_set(err, -ENOMEM, "no memory for inflated clusters");
	}
	make_slots(c, (uint8_t *)c->arena + INFLATE_FILLS * raw_bytes);
	*out = c;
	return 0;
}

void inflate_cache_destroy(struct inflate_cache *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < INFLATE_FILLS; i++) {
		assert(!c->fills[i].busy);
		inflater_destroy(c->fills[i].inf);
	}
	if (c->arena)
		munmap(c->arena, c->arena_bytes);
	free(c->slots);
	free(c->buckets);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
