/* SPDX-License-Identifier: MIT */
/*
 * zerocopy.c: the data path without a copy (Linux 6.16): with each fetch goes a slot of the ring's table
 * of buffers, and when a request comes in, its pages lie there. The target's I/O on the image goes from
 * and to them (READ_FIXED and WRITE_FIXED). The slot is the tag; committing empties it.
 *
 * A target that has to see the bytes asks for memory (blk_request.to_memory), and so does this file for a
 * request whose pages the driver could not register. Then the payload is copied by hand, as in
 * usercopy.c. There is less memory than there are requests:
 *
 *	small	one for each tag, for requests of up to SMALL_BYTES: never waited for
 *	large	LARGE_MAX for the queue, each for the largest request; who comes too late waits his turn
 *
 * Invariants:
 *  1. A request that waits for memory holds nothing that another one waits for: it has not begun (the
 *     target asks before it takes locks). So what holds memory gets done, and gives it back.
 *  2. Memory is given back when the request ends, whatever became of it.
 *  3. Waiters are served first come, first served, one after the other in a loop: one that is done at once
 *     does not serve the next from inside its own end.
 *  4. The memory starts out as zeros and belongs to one device: what a target leaves in it is nobody
 *     else's.
 */
#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/list.h"
#include "base/log.h"
#include "base/math.h"
#include "ublk/usercopy.h"

#define SMALL_BYTES (16 * KiB)
#define LARGE_MAX   16u

/* The page-aligned memory of a queue: depth small buffers, then the large ones. */
struct zero_queue {
	unsigned large;	      /* how many there are */
	unsigned free_count;
	unsigned free[LARGE_MAX]; /* a stack of their numbers */
	struct list waiters;  /* struct ublk_tag */
	bool serving;
};

static struct zero_queue *zero_queue(const struct ublk_queue *q)
{
	return q->path_state;
}

static char *large_buffer(const struct ublk_queue *q, unsigned number)
{
	return (char *)q->path_data + q->config.depth * SMALL_BYTES + (size_t)number * q->config.buf_bytes;
}

static int zero_setup(struct ublk_queue *q, struct error *err)
{
	struct zero_queue *z = calloc(1, sizeof(*z));
	int ret;

	if (!z)
		return error_set(err, -ENOMEM, "out of memory");
	q->path_state = z;
	list_init(&z->waiters);
	z->large = z->free_count = min_of(q->config.depth, LARGE_MAX);
	for (unsigned i = 0; i < z->large; i++)
		z->free[i] = i;
	ret = ublk_copy_memory(
		q, q->config.depth * SMALL_BYTES + (size_t)z->large * q->config.buf_bytes, err);
	if (ret)
		return ret;
	ret = io_uring_register_buffers_sparse(loop_ring(q->loop), q->config.depth);
	if (ret) /* then every request falls back */
		log_warn("ublk device %u, queue %u: io_uring has no table of buffers (%s): data is copied",
			 q->config.dev_id, q->config.queue, strerror(-ret));
	return 0;
}

static void zero_teardown(struct ublk_queue *q)
{
	ublk_copy_teardown(q);
	free(q->path_state);
	q->path_state = NULL;
}

static void zero_arm(struct ublk_tag *t, struct io_uring_sqe *sqe, struct ublk_io_cmd *cmd)
{
	cmd->addr = 0;
	sqe->addr = UBLK_AUTO_BUF_REG(t->tag, UBLK_AUTO_BUF_REG_FALLBACK);
}

/* ---- memory ---- */

/* The payload of a WRITE is fetched; then whoever asked goes on. */
static void memory_give(struct ublk_tag *t, void *buf)
{
	int ret = 0;

	t->req.buf = (struct blk_buf){.base = buf};
	if (t->req.op == BLK_WRITE)
		ret = ublk_user_copy(t, buf, false);
	t->memory_ready(&t->req, ret);
}

static void waiters_serve(struct ublk_queue *q)
{
	struct zero_queue *z = zero_queue(q);

	if (z->serving)
		return;
	z->serving = true;
	while (z->free_count && !list_empty(&z->waiters)) {
		struct ublk_tag *t = list_entry(list_pop(&z->waiters), struct ublk_tag, list);

		t->large = (int)z->free[--z->free_count];
		memory_give(t, large_buffer(q, (unsigned)t->large));
	}
	z->serving = false;
}

static void to_memory(struct blk_request *req, void (*ready)(struct blk_request *req, int ret))
{
	struct ublk_tag *t = container_of(req, struct ublk_tag, req);
	struct ublk_queue *q = t->queue;

	assert(t->state == UBLK_TAG_SERVED && !req->buf.base);
	assert(req->op == BLK_READ || req->op == BLK_WRITE);
	t->memory_ready = ready;
	if (req->len_bytes <= SMALL_BYTES) {
		memory_give(t, (char *)q->path_data + t->tag * SMALL_BYTES);
		return;
	}
	list_add_tail(&zero_queue(q)->waiters, &t->list);
	waiters_serve(q);
}

/* ---- a request ---- */

static void unregistered_ready(struct blk_request *req, int ret)
{
	ublk_tag_begun(container_of(req, struct ublk_tag, req), ret);
}

static int zero_begin(struct ublk_tag *t)
{
	uint64_t *fallbacks = &t->queue->counts.fallbacks;

	t->large = -1;
	t->req.to_memory = to_memory;
	t->req.buf = (struct blk_buf){.fixed_index = t->tag};
	if (!(t->op_flags & UBLK_IO_NEED_REG_BUF))
		return 0;
	__atomic_store_n(fallbacks, *fallbacks + 1, __ATOMIC_RELAXED);
	to_memory(&t->req, unregistered_ready);
	return UBLK_BEGIN_LATER;
}

static int zero_end(struct ublk_tag *t, int ret)
{
	struct zero_queue *z = zero_queue(t->queue);

	if (!ret && t->req.op == BLK_READ && t->req.buf.base)
		ret = ublk_user_copy(t, t->req.buf.base, true);
	if (t->large >= 0) {
		assert(z->free_count < z->large);
		z->free[z->free_count++] = (unsigned)t->large;
		t->large = -1;
	}
	return ret;
}

/* After the commit, which takes the tag out of the way. */
static void zero_ended(struct ublk_queue *q)
{
	waiters_serve(q);
}

const struct ublk_data_path ublk_path_zero_copy = {
	.name = "zero-copy",
	.dev_flags = UBLK_F_AUTO_BUF_REG | UBLK_F_USER_COPY,
	.registers = true,
	.setup = zero_setup,
	.teardown = zero_teardown,
	.arm = zero_arm,
	.begin = zero_begin,
	.end = zero_end,
	.ended = zero_ended,
};
