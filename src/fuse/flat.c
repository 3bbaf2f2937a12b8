/* SPDX-License-Identifier: MIT */
/*
 * flat.c: any byte range of a target.
 *
 * Two ways. The straight way: reads (widened to whole blocks, the caller is told where its bytes
 * are), flushes, and writes of whole blocks are one request to the target each, all in flight at
 * the same time. The slow way: writes that begin or end inside a block (read the block, change it,
 * write it back), and ranges of zeros, which may have such edges and may be longer than the target
 * takes at once. One coroutine works the slow ones off, one after the other, in the order they
 * came. It is started when there is work and ends when there is none. The programs that are served
 * here for speed (the loop device, a virtual machine) never come this way but to discard, and the
 * kernel sends only one of those at a time.
 *
 * Invariants:
 *  1. While a slow request is at the head of the list and past its wait, no straight write to any
 * of its blocks is in flight: the wait is for those that were earlier, and later ones that overlap
 *     any slow request, waiting or working, join the slow list. So what is read of a block, changed
 *     and written back is never older than a neighbour's write that was acknowledged.
 *  2. A request in the slow way uses the one blk_request of the flat, not its own; the target never
 * has more than `depth` requests.
 *  3. Reads exclude nothing. One that overlaps a write in flight may see either, as on any disk.
 *  4. A request to the target that waits for space (target/hold.h) counts as in flight. In the slow way
 *     all that are behind it wait as well.
 */
#include "fuse/flat.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"
#include "ring/co.h"
#include "ring/loop.h"
#include "target/hold.h"

struct flat {
	struct target *target;
	struct loop *loop;
	struct hold hold;
	uint32_t block_bytes;
	uint32_t payload_max;
	unsigned depth;
	size_t priv_bytes; /* of each request, a multiple of 64 */
	uint8_t *priv;	   /* depth + 1 of them; the last is that of slow_blk */

	struct list writing; /* straight writes in flight */
	struct list slow;    /* slow requests; the first is being worked on */
	bool slow_running;
	struct co_task slow_task;
	struct co_waitq drained; /* the slow coroutine, while straight writes are in its way */
	struct blk_request slow_blk;
	struct co_latch slow_latch;
};

int flat_create(struct flat **out, struct target *t, unsigned depth, uint32_t payload_max,
		struct error *err)
{
	struct flat *flat;

	assert(depth > 0 && payload_max > 0 && is_aligned(payload_max, FLAT_BLOCK_MAX));
	if (t->limits.logical_block_bytes > FLAT_BLOCK_MAX)
		return error_set(err, -EINVAL,
				 "logical blocks of %u bytes cannot be served through FUSE",
				 t->limits.logical_block_bytes);
	flat = calloc(1, sizeof(*flat));
	if (!flat)
		return error_set(err, -ENOMEM, "out of memory");
	flat->target = t;
	flat->block_bytes = t->limits.logical_block_bytes;
	flat->payload_max = payload_max;
	flat->depth = depth;
	list_init(&flat->writing);
	list_init(&flat->slow);
	co_waitq_init(&flat->drained);
	flat->priv_bytes = align_up(t->ops->request_bytes, 64);
	if (flat->priv_bytes) {
		flat->priv = aligned_alloc(64, (depth + 1) * flat->priv_bytes);
		if (!flat->priv) {
			flat_destroy(flat);
			return error_set(err, -ENOMEM, "out of memory");
		}
		memset(flat->priv, 0, (depth + 1) * flat->priv_bytes);
		flat->slow_blk.priv = flat->priv + depth * flat->priv_bytes;
	}
	*out = flat;
	return 0;
}

void flat_destroy(struct flat *flat)
{
	if (!flat)
		return;
	assert(list_empty(&flat->writing) && list_empty(&flat->slow) && !flat->slow_running);
	free(flat->priv);
	free(flat);
}

static void request_again(struct hold *hold, struct blk_request *blk);

void flat_attach(struct flat *flat, struct loop *loop, struct hold_device *hold)
{
	flat->loop = loop;
	hold_init(&flat->hold, hold, loop, request_again);
}

void flat_retry(struct flat *flat)
{
	hold_retry(&flat->hold);
}

void flat_io_init(struct flat *flat, struct flat_io *io, unsigned index)
{
	assert(index < flat->depth);
	io->flat = flat;
	io->blk.priv = flat->priv ? flat->priv + index * flat->priv_bytes : NULL;
	list_init(&io->list);
}

uint64_t flat_size(const struct flat *flat)
{
	return target_size(&flat->target->limits);
}

/* ---- the straight way ---- */

static uint64_t blocks_start(const struct flat_io *io)
{
	return align_down(io->offset_bytes, io->flat->block_bytes);
}

/* Ranges were cut at the end of the file, which is a multiple of the block: no overflow. */
static uint64_t blocks_end(const struct flat_io *io)
{
	return align_up(io->offset_bytes + io->len_bytes, io->flat->block_bytes);
}

static bool overlaps_any(const struct list *head, const struct flat_io *io)
{
	const struct flat_io *other;

	list_for_each_entry (other, head, list) {
		if (other != io && blocks_start(other) < blocks_end(io) &&
		    blocks_start(io) < blocks_end(other))
			return true;
	}
	return false;
}

static void target_submit(struct flat *flat, struct blk_request *blk)
{
	assert(is_aligned(blk->offset_bytes, flat->block_bytes));
	assert(is_aligned(blk->len_bytes, flat->block_bytes));
	assert(blk->offset_bytes <= flat_size(flat));
	assert(blk->len_bytes <= flat_size(flat) - blk->offset_bytes);
	flat->target->ops->submit(flat->target, 0, blk);
}

static void request_again(struct hold *hold, struct blk_request *blk)
{
	target_submit(container_of(hold, struct flat, hold), blk);
}

static void straight_submit(struct flat_io *io, enum blk_op op, uint32_t flags, uint64_t start,
			    uint64_t end, void (*complete)(struct blk_request *blk, int ret))
{
	io->blk.op = op;
	io->blk.flags = flags;
	io->blk.offset_bytes = start;
	io->blk.len_bytes = end - start;
	io->blk.buf = (struct blk_buf){.base = end > start ? io->mem : NULL};
	io->blk.complete = complete;
	target_submit(io->flat, &io->blk);
}

static void straight_done(struct blk_request *blk, int ret)
{
	struct flat_io *io = container_of(blk, struct flat_io, blk);

	assert(ret <= 0);
	if (!hold_take(&io->flat->hold, blk, ret))
		io->complete(io, ret);
}

static void straight_write_done(struct blk_request *blk, int ret)
{
	struct flat_io *io = container_of(blk, struct flat_io, blk);
	struct flat *flat = io->flat;

	assert(ret <= 0);
	if (hold_take(&flat->hold, blk, ret))
		return;
	list_del(&io->list);
	co_wake_all(&flat->drained);
	if (ret == 0 && io->durable && !flat->target->limits.fua)
		straight_submit(io, BLK_FLUSH, 0, 0, 0, straight_done);
	else
		io->complete(io, ret);
}

static void read_submit(struct flat *flat, struct flat_io *io)
{
	io->data = io->mem + (io->offset_bytes - blocks_start(io));
	straight_submit(io, BLK_READ, 0, blocks_start(io), blocks_end(io), straight_done);
}

static void write_submit(struct flat *flat, struct flat_io *io)
{
	uint32_t flags = io->durable && flat->target->limits.fua ? BLK_FUA : 0;

	list_add_tail(&flat->writing, &io->list);
	straight_submit(io, BLK_WRITE, flags, blocks_start(io), blocks_end(io),
			straight_write_done);
}

/* ---- the slow way ---- */

static void slow_done(struct blk_request *blk, int ret)
{
	struct flat *flat = container_of(blk, struct flat, slow_blk);

	assert(ret <= 0);
	if (!hold_take(&flat->hold, blk, ret))
		co_latch_done(&flat->slow_latch, ret);
}

static int slow_call(struct flat *flat, enum blk_op op, uint32_t flags, uint64_t offset_bytes,
		     uint64_t len_bytes, void *base)
{
	struct blk_request *blk = &flat->slow_blk;

	blk->op = op;
	blk->flags = flags;
	blk->offset_bytes = offset_bytes;
	blk->len_bytes = len_bytes;
	blk->buf = (struct blk_buf){.base = base};
	blk->complete = slow_done;
	co_latch_init(&flat->slow_latch);
	co_latch_add(&flat->slow_latch);
	target_submit(flat, blk);
	return co_latch_wait(&flat->slow_latch);
}

static int slow_write(struct flat *flat, struct flat_io *io)
{
	uint64_t start = blocks_start(io), end = blocks_end(io);
	uint64_t head = io->offset_bytes - start;
	uint64_t tail = end - (io->offset_bytes + io->len_bytes);
	uint64_t last = end - flat->block_bytes;
	uint32_t flags = io->durable && flat->target->limits.fua ? BLK_FUA : 0;
	uint8_t *bounce = io->mem + flat->payload_max + 2 * FLAT_BLOCK_MAX;
	int ret;

	memmove(io->mem + head, io->mem, io->len_bytes);
	if (head) {
		ret = slow_call(flat, BLK_READ, 0, start, flat->block_bytes, bounce);
		if (ret)
			return ret;
		memcpy(io->mem, bounce, head);
	}
	if (tail) {
		if (!head || last != start) {
			ret = slow_call(flat, BLK_READ, 0, last, flat->block_bytes, bounce);
			if (ret)
				return ret;
		}
		memcpy(io->mem + (end - start) - tail, bounce + flat->block_bytes - tail, tail);
	}
	ret = slow_call(flat, BLK_WRITE, flags, start, end - start, io->mem);
	if (ret == 0 && io->durable && !flat->target->limits.fua)
		ret = slow_call(flat, BLK_FLUSH, 0, 0, 0, NULL);
	return ret;
}

/* Zeros from @from to @to, both in one block or on its edges. */
static int slow_zero_part(struct flat *flat, struct flat_io *io, uint64_t from, uint64_t to)
{
	uint64_t start = align_down(from, flat->block_bytes);
	int ret;

	if (from >= to)
		return 0;
	ret = slow_call(flat, BLK_READ, 0, start, flat->block_bytes, io->mem);
	if (ret)
		return ret;
	memset(io->mem + (from - start), 0, to - from);
	return slow_call(flat, BLK_WRITE, 0, start, flat->block_bytes, io->mem);
}

static int slow_zero(struct flat *flat, struct flat_io *io)
{
	uint64_t from = io->offset_bytes, to = from + io->len_bytes;
	uint64_t start = min_of(align_up(from, flat->block_bytes), to);
	uint64_t end = max_of(align_down(to, flat->block_bytes), start);
	uint64_t step = align_down(flat->target->limits.max_write_zeroes_bytes, flat->block_bytes);
	uint32_t flags = io->op == FLAT_ZERO ? BLK_NOUNMAP : 0;
	int ret = slow_zero_part(flat, io, from, start);

	while (ret == 0 && start < end) {
		uint64_t len = min_of(step, end - start);

		ret = slow_call(flat, BLK_WRITE_ZEROES, flags, start, len, NULL);
		start += len;
	}
	return ret ? ret : slow_zero_part(flat, io, end, to);
}

static void slow_run(struct co_task *task)
{
	struct flat *flat = container_of(task, struct flat, slow_task);
	int ret;

	while (!list_empty(&flat->slow)) {
		struct flat_io *io = list_entry(flat->slow.next, struct flat_io, list);

		while (overlaps_any(&flat->writing, io))
			co_wait(&flat->drained);
		ret = io->op == FLAT_WRITE ? slow_write(flat, io) : slow_zero(flat, io);
		list_del(&io->list);
		io->complete(io, ret);
	}
	flat->slow_running = false;
}

static void slow_submit(struct flat *flat, struct flat_io *io)
{
	list_add_tail(&flat->slow, &io->list);
	if (flat->slow_running)
		return;
	flat->slow_running = true;
	flat->slow_task.fn = slow_run;
	loop_spawn(flat->loop, &flat->slow_task);
}

/* ---- */

static void write_route(struct flat *flat, struct flat_io *io)
{
	bool whole = is_aligned(io->offset_bytes | io->len_bytes, flat->block_bytes);

	if (io->offset_bytes >= flat_size(flat)) {
		io->complete(io, -ENOSPC);
		return;
	}
	if (!whole || overlaps_any(&flat->slow, io))
		slow_submit(flat, io);
	else
		write_submit(flat, io);
}

static void zero_route(struct flat *flat, struct flat_io *io)
{
	const struct target_limits *limits = &flat->target->limits;

	if (limits->max_write_zeroes_bytes < flat->block_bytes ||
	    (io->op == FLAT_PUNCH && !limits->discard_granularity))
		io->complete(io, -EOPNOTSUPP);
	else if (!io->len_bytes)
		io->complete(io, 0);
	else
		slow_submit(flat, io);
}

void flat_submit(struct flat *flat, struct flat_io *io)
{
	uint64_t size = flat_size(flat);

	assert(io->flat == flat && !list_linked(&io->list));
	if (io->op == FLAT_FLUSH) {
		straight_submit(io, BLK_FLUSH, 0, 0, 0, straight_done);
		return;
	}
	if (io->op != FLAT_READ && flat->target->limits.read_only) {
		io->complete(io, -EROFS);
		return;
	}
	if (io->offset_bytes >= size && io->op != FLAT_WRITE)
		io->len_bytes = 0;
	else if (io->offset_bytes < size)
		io->len_bytes = min_of(io->len_bytes, size - io->offset_bytes);
	io->data = io->mem;

	if (io->op == FLAT_PUNCH || io->op == FLAT_ZERO) {
		zero_route(flat, io);
		return;
	}
	assert(io->len_bytes <= flat->payload_max || io->offset_bytes >= size);
	if (!io->len_bytes)
		io->complete(io, 0);
	else if (io->op == FLAT_READ)
		read_submit(flat, io);
	else
		write_route(flat, io);
}
