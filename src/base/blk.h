/* SPDX-License-Identifier: MIT */
/*
 * blk.h: the one request type in which front ends and targets meet.
 *
 * A front end fills in a request and hands it to a target on the thread of the queue that got it;
 * the target calls blk_request_complete() exactly once, on the same thread, maybe before its submit
 * function returns. Until then the request and its buffer belong to the target.
 *
 * Contract, asserted on both sides: offset and length are multiples of the target's logical block
 * size and lie inside the device; len is 0 for FLUSH only; the result is 0 (all of it was done) or
 * -errno, never a short count.
 */
#ifndef BASE_BLK_H
#define BASE_BLK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

enum blk_op {
	BLK_READ,
	BLK_WRITE,
	BLK_FLUSH,	  /* durable: every write that completed before this was submitted */
	BLK_DISCARD,	  /* contents may be lost; the target rounds inward to what it can free */
	BLK_WRITE_ZEROES, /* contents read as zeros afterwards */
};

enum {
	BLK_FUA = 1 << 0,     /* WRITE, WRITE_ZEROES: durable at completion */
	BLK_NOUNMAP = 1 << 1, /* WRITE_ZEROES: keep the space allocated */
};

/*
 * Where the payload of a READ or WRITE lies: in memory at @base, or (base NULL) in registered buffer
 * @fixed_index of the queue's ring, at offset @fixed_offset in it.
 */
struct blk_buf {
	void *base;
	uint32_t fixed_index;
	uint64_t fixed_offset;
};

struct blk_request {
	enum blk_op op;
	uint32_t flags;
	uint64_t offset_bytes;
	uint64_t len_bytes;
	struct blk_buf buf; /* of len_bytes; page aligned in memory */

	/*
	 * Set by a front end whose buffers are registered ones (buf.base NULL). A target that has to see the
	 * bytes of a READ or WRITE calls it, before it holds anything that another request may wait for,
	 * and goes on when @ready is called: on the same thread, maybe before this returns. Then buf is
	 * memory, with a WRITE's payload in it, or @ret is an error to end the request with.
	 */
	void (*to_memory)(struct blk_request *req, void (*ready)(struct blk_request *req, int ret));

	/* set by the front end; called by blk_request_complete() */
	void (*complete)(struct blk_request *req, int ret);

	/*
	 * The target's own memory for this request, target->request_bytes long and aligned to 64.
	 * Zeroed when the queue starts, otherwise left alone: the target may keep things in it.
	 */
	void *priv;

	/* the front end's: a request that waits for space (target/hold.h) */
	struct list held;
	bool was_held;
};

/* Whether the payload lies where nobody here can look at it. */
static inline bool blk_request_registered(const struct blk_request *req)
{
	return (req->op == BLK_READ || req->op == BLK_WRITE) && !req->buf.base;
}

static inline void blk_request_complete(struct blk_request *req, int ret)
{
	req->complete(req, ret);
}

#endif
