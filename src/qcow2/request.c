/* SPDX-License-Identifier: MIT */
/*
 * request.c: from submit to completion.
 *
 * Invariant (rules 4 and 11): a request that reads or writes host clusters in place is in its queue's
 * epoch from before the lookup until its last completion, so that a cluster it looked up is not given
 * to anybody else meanwhile. Requests that allocate hold cluster locks instead, and no epoch while they
 * wait for the budget of frees.
 */
#include "qcow2/request.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"

static_assert(sizeof(struct request) <= QCOW2_REQUEST_BYTES, "what the public header promises");

size_t qcow2_request_bytes(void)
{
	return QCOW2_REQUEST_BYTES;
}

/* ---- parts ---- */

void part_io_complete(struct storage_io *io, int ret)
{
	struct part *part = container_of(io, struct part, io);

	/* Rule 5: counted before anybody hears of it, failed ones too: part of it may be there. */
	if (io->op != STORAGE_READ)
		atomic_fetch_add_explicit(&part->r->q->writes_done, 1, memory_order_release);
	if (part->crypto && io->op == STORAGE_WRITE)
		crypt_write_done(part);
	if (part->crypto && io->op == STORAGE_READ && !ret)
		crypt_read_done(part);
	else
		part->finish(part, ret);
}

static void part_finish(struct part *part, int ret)
{
	struct request *r = part->r;

	part->busy = false;
	r->parts_busy--;
	if (r->part_waiter) {
		struct co *co = r->part_waiter;

		r->part_waiter = NULL;
		co_resume(co);
	}
	co_latch_done(&r->latch, ret);
}

struct part *part_get(struct request *r)
{
	struct part *part = r->parts;

	while (r->parts_busy == REQUEST_PARTS) {
		r->part_waiter = co_self();
		co_suspend();
	}
	while (part->busy)
		part++;
	part->r = r;
	part->st = r->q->img->data;
	part->crypto = r->q->img->crypto;
	part->finish = part_finish;
	part->goff = 0;
	part->io.op = STORAGE_READ;
	part->io.flags = 0;
	part->io.offset_bytes = part->io.len_bytes = 0;
	part->io.iov = part->iov;
	part->io.iovcnt = 0;
	part->io.complete = part_io_complete;
	return part;
}

void part_start(struct part *part)
{
	struct request *r = part->r;

	part->busy = true;
	r->parts_busy++;
	co_latch_add(&r->latch);
}

void part_submit(struct part *part)
{
	if (part->crypto && part->io.op == STORAGE_WRITE) {
		crypt_write(part);
		return;
	}
	part_start(part);
	storage_submit(part->st, &part->io);
}

int parts_wait(struct request *r)
{
	int ret = co_latch_wait(&r->latch);

	co_latch_init(&r->latch);
	return ret;
}

void part_add_memory(struct part *part, void *base, uint64_t len_bytes)
{
	if (!len_bytes)
		return;
	assert(part->io.iovcnt < PART_IOVECS);
	part->iov[part->io.iovcnt++] = (struct iovec){base, len_bytes};
	part->io.len_bytes += len_bytes;
}

void part_add_zeros(struct part *part, uint64_t len_bytes)
{
	while (len_bytes) {
		uint64_t n = min_of(len_bytes, ZEROS_BYTES);

		part_add_memory(part, part->r->q->img->zeros, n);
		len_bytes -= n;
	}
}

void part_add_payload(struct part *part, const struct payload *payload, uint64_t goff,
		      uint64_t len_bytes)
{
	if (!payload->buf) {
		part_add_zeros(part, len_bytes);
	} else if (payload->buf->base) {
		part_add_memory(part, (uint8_t *)payload->buf->base + (goff - payload->goff), len_bytes);
	} else {
		assert(!part->io.iovcnt && !part->crypto);
		part->io.buf = *payload->buf;
		part->io.buf.fixed_offset += goff - payload->goff;
		part->io.len_bytes = len_bytes;
	}
}

/* ---- lookups ---- */

struct lookup_call {
	struct qcow2_image *img;
	uint64_t goff, max_bytes;
	struct map_extent *ext;
};

static int lookup_on_meta(void *arg)
{
	struct lookup_call *c = arg;

	return map_lookup(c->img, c->goff, c->max_bytes, c->ext);
}

int request_map(struct request *r, uint64_t goff, uint64_t max_bytes, struct map_extent *ext)
{
	struct lookup_call call = {r->q->img, goff, max_bytes, ext};

	if (map_peek(r->q->img, goff, max_bytes, ext) == 0)
		return 0;
	return image_call(r->q->img, lookup_on_meta, &call);
}

static int chain_lookup_on_meta(void *arg)
{
	struct lookup_call *c = arg;

	return chain_lookup(c->img->chain, c->goff, c->max_bytes, c->ext);
}

int request_lookup(struct request *r, uint64_t goff, uint64_t max_bytes, struct map_extent *ext)
{
	struct qcow2_image *img = r->q->img;
	int ret = request_map(r, goff, max_bytes, ext);
	struct lookup_call call = {img, goff, ext->len_bytes, ext};

	if (ret || ext->kind != MAP_UNALLOCATED || !img->chain ||
	    chain_peek(img->chain, goff, ext->len_bytes, ext) == 0)
		return ret;
	return image_call(img, chain_lookup_on_meta, &call);
}

/* ---- what a request asks for ---- */

/* Few writes are all zeros, and those that are not show it soon. */
static bool all_zeros(const uint8_t *p, uint64_t len_bytes)
{
	static const uint8_t none[64];

	if (memcmp(p, none, sizeof(none)) || memcmp(p + len_bytes / 2, none, sizeof(none)))
		return false;
	return memcmp(p, p + sizeof(none), len_bytes - sizeof(none)) == 0;
}

/* Sets op and flags: the request's own, but for what the image's options make of them. */
static void interpret(struct request *r)
{
	const struct blk_request *req = r->req;
	const struct qcow2_image *img = r->q->img;

	r->op = req->op;
	r->flags = req->flags;
	if (img->detect_zeroes && r->op == BLK_WRITE && req->buf.base && req->len_bytes &&
	    all_zeros(req->buf.base, req->len_bytes)) {
		r->op = BLK_WRITE_ZEROES;
		if (img->detect_zeroes == QCOW2_DETECT_ZEROES_ON)
			r->flags |= BLK_NOUNMAP;
	}
	if (img->discard_ignore)
		r->flags |= BLK_NOUNMAP;
}

/* ---- the entrance, where requests are counted and may be held back ---- */

static bool request_changes(const struct request *r)
{
	return r->op != BLK_READ && r->op != BLK_FLUSH;
}

static bool request_is_held(const struct request *r)
{
	return r->q->hold == HOLD_ALL || (r->q->hold == HOLD_WRITES && request_changes(r));
}

static void request_enter(struct request *r)
{
	r->q->inflight++;
	r->q->writes_inflight += request_changes(r);
}

void request_leave(struct request *r)
{
	struct qcow2_queue *q = r->q;

	q->inflight--;
	q->writes_inflight -= request_changes(r);
	if (q->hold_msg && hold_is_drained(q))
		hold_drained(q);
}

/* ---- the fast path: one extent, in place ---- */

static void fast_finish(struct part *part, int ret)
{
	struct request *r = part->r;
	struct qcow2_queue *q = r->q;

	epoch_exit(q, r->epoch);
	request_leave(r);
	blk_request_complete(r->req, ret);
}

/* A payload that is not in memory, but has to be looked at whatever the map says. */
static bool payload_is_hidden(const struct request *r)
{
	const struct qcow2_image *img = r->q->img;

	return blk_request_registered(r->req) && r->op == BLK_WRITE && (img->detect_zeroes || img->crypto);
}

static bool fast_path(struct request *r)
{
	struct blk_request *req = r->req;
	struct qcow2_queue *q = r->q;
	struct part *part = &r->parts[0];
	struct map_extent ext;

	if (r->op == BLK_WRITE) {
		if (req->flags & BLK_FUA || atomic_load_explicit(&q->img->first_write_pending,
								 memory_order_relaxed))
			return false;
	} else if (r->op != BLK_READ) {
		return false;
	}
	if (payload_is_hidden(r) || map_peek(q->img, req->offset_bytes, req->len_bytes, &ext))
		return false;
	if (ext.kind == MAP_UNALLOCATED && q->img->chain && req->op == BLK_READ &&
	    chain_peek(q->img->chain, req->offset_bytes, ext.len_bytes, &ext))
		return false;
	if (ext.kind != MAP_DATA || ext.len_bytes != req->len_bytes || (req->op == BLK_WRITE && !ext.copied))
		return false;
	part->r = r;
	part->crypto = map_extent_crypto(&ext);
	if (part->crypto && blk_request_registered(req))
		return false;
	part->goff = req->offset_bytes;
	part->finish = fast_finish;
	part->io.op = req->op == BLK_READ ? STORAGE_READ : STORAGE_WRITE;
	part->io.flags = 0;
	part->io.offset_bytes = ext.hoff;
	part->io.len_bytes = req->len_bytes;
	part->io.iovcnt = 0;
	part->io.buf = req->buf;
	part->io.complete = part_io_complete;
	if (part->crypto && req->op == BLK_WRITE && !crypt_write_now(part, req->buf.base))
		return false;
	r->epoch = epoch_enter(q); /* nothing has suspended since the lookup */
	storage_submit(ext.st, &part->io);
	return true;
}

/* ---- everything else ---- */

static int flush_on_meta(void *arg)
{
	return writeback_run(arg);
}

static int fua_sync_on_meta(void *arg)
{
	return storage_sync(((struct qcow2_image *)arg)->st);
}

/* Whether a WRITE can do without its bytes wherever they go: see part_add_payload(). */
static bool writes_unseen(const struct request *r)
{
	return r->op == BLK_WRITE && !payload_is_hidden(r) && !r->q->img->pack.on;
}

/* A READ or WRITE: without the bytes, if that is possible. */
static int run_transfer(struct request *r)
{
	int ret = REQUEST_NEEDS_MEMORY;

	if (blk_request_registered(r->req) && !writes_unseen(r)) {
		if (!payload_is_hidden(r))
			ret = request_fixed(r);
		if (ret == REQUEST_NEEDS_MEMORY && !(ret = request_memory(r)))
			ret = REQUEST_NEEDS_MEMORY;
		if (ret != REQUEST_NEEDS_MEMORY)
			return ret;
		interpret(r);
	}
	if (r->op == BLK_WRITE_ZEROES)
		return request_zero(r);
	return r->op == BLK_READ ? request_read(r) : request_write(r);
}

static int run_in_coroutine(struct request *r)
{
	struct blk_request *req = r->req;
	struct qcow2_image *img = r->q->img;
	bool writes = r->op != BLK_READ && r->op != BLK_FLUSH;
	int ret = 0;

	if (writes && img->read_only)
		return -EROFS;
	if (writes && atomic_load_explicit(&img->first_write_pending, memory_order_acquire))
		ret = image_call(img, image_first_write, img);
	if (ret)
		return ret;
	switch (r->op) {
	case BLK_READ:
		return run_transfer(r);
	case BLK_FLUSH:
		return img->read_only ? 0 : image_call(img, flush_on_meta, img);
	case BLK_WRITE:
		ret = run_transfer(r);
		break;
	case BLK_DISCARD:
		return img->discard_ignore ? 0 : request_discard(r);
	case BLK_WRITE_ZEROES:
		ret = request_zero(r);
		break;
	}
	if (!ret && req->flags & BLK_FUA)
		ret = image_call(img, mutant(MUTANT_FUA_WITHOUT_MAP) ? fua_sync_on_meta : flush_on_meta,
				 img);
	return ret;
}

static void request_task(struct co_task *task)
{
	struct request *r = container_of(task, struct request, task);
	int ret = run_in_coroutine(r);

	if (mutant(MUTANT_ACK_BEFORE_LINK) && ret == REQUEST_ACKED)
		return;
	assert(ret <= 0 && !r->parts_busy);
	request_leave(r);
	blk_request_complete(r->req, ret);
}

static void request_start(struct request *r)
{
	request_enter(r);
	/* where discards are ignored they change nothing */
	if (request_changes(r) && !(r->op == BLK_DISCARD && r->q->img->discard_ignore))
		bitmaps_mark(&r->q->img->bitmaps, r->req->offset_bytes, r->req->len_bytes);
	if (fast_path(r))
		return;
	co_latch_init(&r->latch);
	r->parts_busy = 0;
	r->part_waiter = NULL;
	r->stream = NULL;
	r->task.fn = request_task;
	list_init(&r->task.list);
	loop_spawn(r->q->loop, &r->task);
}

void request_start_held(struct list *held)
{
	struct list *l;

	while ((l = list_pop(held)))
		request_start(container_of(list_entry(l, struct co_task, list), struct request, task));
}

void qcow2_submit(struct qcow2_queue *q, struct blk_request *req)
{
	struct request *r = req->priv;

	assert(req->offset_bytes <= q->img->size_bytes &&
	       req->len_bytes <= q->img->size_bytes - req->offset_bytes);
	assert(is_aligned(req->offset_bytes | req->len_bytes, 512));
	r->req = req;
	r->q = q;
	interpret(r);
	if (request_is_held(r)) {
		list_init(&r->task.list);
		list_add_tail(&q->held, &r->task.list);
		return;
	}
	request_start(r);
}
