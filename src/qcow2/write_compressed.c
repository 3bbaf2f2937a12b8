/* SPDX-License-Identifier: MIT */
/*
 * write_compressed.c: writes of full clusters, compressed.
 *
 * A run of full guest clusters goes in batches, each in these steps:
 *
 *     pool:          compress, several at once
 *     metadata loop: lock the guest clusters, look what is there, allocate room (batch_prepare)
 *     queue:         write the data, what lies together in one write
 *     metadata loop: link the new clusters into the map, unlock                  (batch_link)
 *
 * What does not get smaller, is exclusively ours and so written in place, or finds no room takes the way of
 * plain writes afterwards (write.c), as do the parts of clusters at the ends of a request.
 *
 * Invariants: those of write.c (rules 5, 8 and 9), those of pack.h, and
 *  1. pack_lock() is taken after the guest clusters' lock and held until the links are made: one batch at
 *     a time is written, while others compress. Who holds it waits for no lock, budget or batch.
 *  2. A batch of buffers is had before any lock is taken.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/alloc.h"
#include "qcow2/compress.h"
#include "qcow2/request.h"

#define BATCH_CLUSTERS_MAX 16
#define BATCH_BYTES	   (512 * KiB)
/* L2 tables that a batch may need, which may be shared with a snapshot: of 32 entries at least. */
#define BATCH_TABLES 2

static_assert(BATCH_CLUSTERS_MAX * MAP_ENTRY_HCLUSTERS_MAX + BATCH_TABLES <= FREES_BUDGET / 4,
	      "one reservation");

enum item_state {
	ITEM_PLAIN,  /* to be written as it is, later */
	ITEM_PACKED, /* has room */
	ITEM_LINKED,
};

/* One guest cluster. */
struct item {
	struct work work;
	struct batch *batch;
	const void *in;
	uint8_t *out;
	uint32_t bytes; /* compressed; 0: it does not get smaller */
	enum item_state state;
	uint64_t hoff;
	struct map_entry old_entry;
};

struct batch {
	struct list link; /* queue->idle_batches */
	struct qcow2_image *img;
	uint64_t gcluster;
	unsigned count;
	struct co_latch compressing;
	struct cluster_lock lock;
	unsigned reserved;
	uint64_t log_reserved;
	bool packed; /* some have room: pack_lock() is held */
	bool first_shares;
	int io_ret;
	uint8_t *write;	     /* what is written, put together */
	uint8_t *last_block; /* in it: what the last one's last block holds */
	uint8_t *pad;	     /* the disk's last cluster, with zeros behind the disk's end */
	struct item items[BATCH_CLUSTERS_MAX];
};

static unsigned batch_clusters(const struct qcow2_image *img)
{
	uint64_t n = BATCH_BYTES >> img->cluster_bits;

	return (unsigned)min_of(max_of(n, (uint64_t)2), (uint64_t)BATCH_CLUSTERS_MAX);
}

/* ---- a queue's batches ---- */

static size_t batch_bytes(const struct qcow2_image *img)
{
	size_t clusters = batch_clusters(img);

	/* out of the deflaters; the write, each in a block of its own at worst; the last one's padding */
	return (2 * clusters + 1) * img->cluster_bytes + 2 * clusters * img->st->block_bytes;
}

int batches_create(struct qcow2_queue *q)
{
	struct qcow2_image *img = q->img;
	unsigned clusters = batch_clusters(img);

	list_init(&q->idle_batches);
	co_waitq_init(&q->batch_wait);
	if (!img->pack.on)
		return 0;
	q->batches = calloc(QUEUE_BATCHES, sizeof(*q->batches));
	if (!q->batches)
		return -ENOMEM;
	for (unsigned i = 0; i < QUEUE_BATCHES; i++) {
		struct batch *b = &q->batches[i];
		uint8_t *mem = aligned_alloc(4096, align_up(batch_bytes(img), 4096));

		if (!mem)
			return -ENOMEM;
		b->img = img;
		b->write = mem;
		mem += (size_t)clusters * (img->cluster_bytes + 2 * (size_t)img->st->block_bytes);
		b->pad = mem;
		for (unsigned c = 0; c < clusters; c++) {
			mem += img->cluster_bytes;
			b->items[c].batch = b;
			b->items[c].out = mem;
		}
		list_add_tail(&q->idle_batches, &b->link);
	}
	return 0;
}

void batches_destroy(struct qcow2_queue *q)
{
	for (unsigned i = 0; q->batches && i < QUEUE_BATCHES; i++)
		free(q->batches[i].write);
	free(q->batches);
	q->batches = NULL;
}

static struct batch *batch_get(struct qcow2_queue *q)
{
	struct list *l;

	while (!(l = list_pop(&q->idle_batches)))
		co_wait(&q->batch_wait);
	return list_entry(l, struct batch, link);
}

static void batch_put(struct qcow2_queue *q, struct batch *b)
{
	list_add(&q->idle_batches, &b->link);
	co_wake_one(&q->batch_wait);
}

/* ---- compressing ---- */

/* In the pool. */
static void item_compress(struct work *work)
{
	struct item *item = container_of(work, struct item, work);
	struct qcow2_image *img = item->batch->img;
	struct deflater *def = pack_deflater_get(&img->pack);

	item->bytes = (uint32_t)deflater_run(def, item->in, img->cluster_bytes, item->out);
	pack_deflater_put(&img->pack, def);
}

static void item_compressed(struct work *work)
{
	co_latch_done(&container_of(work, struct item, work)->batch->compressing, 0);
}

/* The bytes of the clusters from @goff on, all of which the payload has, up to the disk's end at least. */
static void batch_compress(struct batch *b, const struct payload *payload, uint64_t goff,
			   uint64_t end)
{
	struct qcow2_image *img = b->img;

	co_latch_init(&b->compressing);
	for (unsigned i = 0; i < b->count; i++) {
		struct item *item = &b->items[i];
		uint64_t at = goff + (uint64_t)i * img->cluster_bytes;

		item->in = (const uint8_t *)payload->buf->base + (at - payload->goff);
		if (end - at < img->cluster_bytes) {
			memcpy(b->pad, item->in, end - at);
			memset(b->pad + (end - at), 0, img->cluster_bytes - (end - at));
			item->in = b->pad;
		}
		item->state = ITEM_PLAIN;
		item->work = (struct work){.fn = item_compress, .done = item_compressed};
		co_latch_add(&b->compressing);
		work_submit(img->workers, &item->work);
	}
	(void)co_latch_wait(&b->compressing);
}

/* ---- on the metadata loop ---- */

/* Whether a new cluster is to take the place of what @item's guest cluster has now. */
static int item_classify(struct batch *b, uint64_t gcluster, struct item *item, bool *replace)
{
	struct qcow2_image *img = b->img;
	uint32_t index = map_slice_index(img, gcluster);
	struct slice *s;
	int ret = map_slice_own(img, gcluster, &b->reserved, &s);

	if (ret)
		return ret;
	item->old_entry = map_entry_load(img, s, index);
	*replace = !map_entry_is_bad(s, index) && (item->old_entry.word & QCOW2_COMPRESSED ||
						   !(item->old_entry.word & QCOW2_COPIED));
	cache_put(&img->l2_cache, s);
	return 0;
}

/* Finds room for what was compressed. What there is none for stays plain, whatever the reason. */
static void batch_alloc(struct batch *b)
{
	struct qcow2_image *img = b->img;
	int ret = 0;

	for (unsigned i = 0; !ret && i < b->count; i++) {
		struct item *item = &b->items[i];
		bool replace = false;

		if (!item->bytes)
			continue;
		ret = item_classify(b, b->gcluster + i, item, &replace);
		if (ret || !replace)
			continue;
		ret = pack_alloc(img, item->bytes, &item->hoff);
		if (ret)
			continue;
		/* only the first can be in a block with what others wrote */
		if (!b->packed)
			b->first_shares = !is_aligned(item->hoff, img->st->block_bytes);
		b->packed = true;
		item->state = ITEM_PACKED;
	}
}

static void batch_unlock(struct batch *b)
{
	cluster_unlock(&b->img->locks, &b->lock);
	frees_unreserve(b->img, b->reserved);
	reclog_unreserve(b->img, b->log_reserved);
}

static int item_link(struct batch *b, uint64_t gcluster, struct item *item);

/* What must not be: the map first, and what it says is there afterwards. */
static void link_early(struct batch *b)
{
	for (unsigned i = 0; i < b->count; i++) {
		if (b->items[i].state == ITEM_PACKED && item_link(b, b->gcluster + i, &b->items[i]) == 0)
			b->items[i].state = ITEM_PACKED; /* is still to be written */
	}
}

/* Leaves the locks held if there is something to write. */
static int batch_prepare(void *arg)
{
	struct batch *b = arg;
	struct qcow2_image *img = b->img;
	int ret;

	b->packed = false;
	b->reserved = b->count * MAP_ENTRY_HCLUSTERS_MAX + BATCH_TABLES;
	ret = frees_reserve(img, b->reserved);
	if (ret)
		return ret;
	/* for each two counts, and its link or the lowering of two counts */
	b->log_reserved = reclog_need(img, 2 * (uint64_t)b->count);
	ret = reclog_reserve(img, b->log_reserved);
	if (ret) {
		frees_unreserve(img, b->reserved);
		return ret;
	}
	cluster_lock(&img->locks, &b->lock, b->gcluster, b->gcluster + b->count - 1);
	pack_lock(img);
	batch_alloc(b);
	if (mutant(MUTANT_COMPRESSED_LINKED_FIRST))
		link_early(b);
	if (!b->packed || mutant(MUTANT_PACK_UNSERIALISED))
		pack_unlock(img);
	if (!b->packed)
		batch_unlock(b);
	return 0;
}

/* -ESTALE if the map is not what it was, which the lock excludes; or the error of a pass. */
static int item_link(struct batch *b, uint64_t gcluster, struct item *item)
{
	struct qcow2_image *img = b->img;
	uint32_t index = map_slice_index(img, gcluster);
	struct map_entry value = {
		.word = qcow2_compressed_entry(item->hoff, item->bytes, img->cluster_bits)};
	struct slice *s;
	int ret = map_slice_get(img, gcluster, &s);

	if (ret || !s)
		return ret ? ret : -ESTALE;
	ret = slice_begin_change(&img->l2_cache, s);
	if (!ret && !map_entry_equal(map_entry_load(img, s, index), item->old_entry))
		ret = -ESTALE;
	if (!ret) {
		reclog_entry(img, gcluster, item->old_entry, value);
		map_entry_store(img, s, index, value);
		item->state = ITEM_LINKED;
	}
	cache_put(&img->l2_cache, s);
	if (!ret)
		map_entry_unref(img, item->old_entry.word, &b->reserved);
	return ret;
}

static int batch_link(void *arg)
{
	struct batch *b = arg;
	struct qcow2_image *img = b->img;

	for (unsigned i = 0; i < b->count; i++) {
		struct item *item = &b->items[i];
		int ret = b->io_ret;

		if (item->state != ITEM_PACKED)
			continue;
		if (!ret && mutant(MUTANT_COMPRESSED_LINKED_FIRST))
			item->state = ITEM_LINKED;
		else if (!ret)
			ret = item_link(b, b->gcluster + i, item);
		if (!ret)
			continue;
		pack_undo(img, item->hoff, item->bytes);
		item->state = ITEM_PLAIN;
	}
	pack_written(img, b->io_ret ? NULL : b->last_block);
	if (!mutant(MUTANT_PACK_UNSERIALISED))
		pack_unlock(img);
	batch_unlock(b);
	return 0;
}

/* ---- writing ---- */

/* Puts items from @first on together as far as they lie together, and writes them; the next one. */
static unsigned write_together(struct request *r, struct batch *b, unsigned first, uint8_t **at)
{
	struct qcow2_image *img = b->img;
	uint32_t block = img->st->block_bytes;
	uint64_t start = align_down(b->items[first].hoff, block), end = b->items[first].hoff;
	struct part *part = part_get(r);
	unsigned i = first;

	if (start < end)
		memcpy(*at, img->pack.tail, end - start);
	for (; i < b->count; i++) {
		const struct item *item = &b->items[i];

		if (item->state != ITEM_PACKED)
			continue;
		if (item->hoff != end)
			break;
		memcpy(*at + (end - start), item->out, item->bytes);
		end += item->bytes;
	}
	memset(*at + (end - start), 0, align_up(end, block) - end);
	part->io.op = STORAGE_WRITE;
	part->io.offset_bytes = start;
	part_add_memory(part, *at, align_up(end, block) - start);
	*at += align_up(end, block) - start;
	b->last_block = *at - block;
	part_submit(part);
	return i;
}

static int batch_write(struct request *r, struct batch *b)
{
	uint8_t *at = b->write;
	unsigned i = 0;

	while (i < b->count) {
		if (b->items[i].state == ITEM_PACKED)
			i = write_together(r, b, i, &at);
		else
			i++;
	}
	return parts_wait(r);
}

/* Guest clusters from @goff on, that lie in [@goff, @end) in full but the disk's last one. */
static int write_batch(struct request *r, uint64_t goff, uint64_t end,
		       const struct payload *payload)
{
	struct qcow2_image *img = r->q->img;
	struct batch *b = batch_get(r->q);
	uint64_t from = goff;
	int ret;

	b->gcluster = goff >> img->cluster_bits;
	b->count = (unsigned)div_up(end - goff, img->cluster_bytes);
	batch_compress(b, payload, goff, end);
	ret = image_call(img, batch_prepare, b);
	if (!ret && b->packed) {
		b->io_ret = batch_write(r, b);
		ret = image_call(img, batch_link, b);
	}
	/* what is left; an error of the storage's shows there again, if it is to stay */
	for (unsigned i = 0; !ret && i < b->count; i++) {
		uint64_t next = min_of(goff + (uint64_t)(i + 1) * img->cluster_bytes, end);

		if (b->items[i].state == ITEM_LINKED) {
			from = next;
			continue;
		}
		if (i + 1 < b->count && b->items[i + 1].state != ITEM_LINKED)
			continue;
		ret = write_plain(r, from, next - from, payload);
		from = next;
	}
	batch_put(r->q, b);
	return ret;
}

int write_compressed(struct request *r, uint64_t goff, uint64_t len_bytes,
		     const struct payload *payload)
{
	struct qcow2_image *img = r->q->img;
	uint64_t end = goff + len_bytes, batch = (uint64_t)batch_clusters(img) << img->cluster_bits;
	uint64_t full = end == img->size_bytes ? end : align_down(end, img->cluster_bytes);
	int ret = 0;

	if (!payload->buf || !payload->buf->base)
		return write_plain(r, goff, len_bytes, payload);
	while (!ret && goff < end) {
		uint64_t next = min_of(align_up(goff + 1, img->cluster_bytes), end);

		if (!is_aligned(goff, img->cluster_bytes) || goff >= full) {
			ret = write_plain(r, goff, next - goff, payload);
		} else {
			next = min_of(goff + batch, full);
			ret = write_batch(r, goff, next, payload);
		}
		goff = next;
	}
	return ret;
}
