// SPDX-License-Identifier: MIT
/*
 * payload.c: where a request's payload lies: in memory, or in what stands for a registered buffer, which the
 * engine must not look at before it has asked for the bytes.
 */
#include <assert.h>

#include "run.h"

/* The same memory stands for a registered buffer, and for what a request gets that asks for its bytes. */
static void memory_arrive(struct loop_msg *msg)
{
	struct slot *s = container_of(msg, struct slot, memory_msg);

	s->req.buf = (struct blk_buf){.base = s->mem};
	s->memory_ready(&s->req, 0);
}

/* At once, or after whatever else the loop has to do. */
static void to_memory(struct blk_request *req, void (*ready)(struct blk_request *req, int ret))
{
	struct slot *s = container_of(req, struct slot, req);

	assert(!req->buf.base && (req->op == BLK_READ || req->op == BLK_WRITE));
	s->memory_ready = ready;
	s->memory_msg.fn = memory_arrive;
	if (s->number % 2)
		memory_arrive(&s->memory_msg);
	else
		loop_post(loop_self(), &s->memory_msg);
}

void slot_set_payload(struct slot *s)
{
	bool transfer = s->req.op == BLK_READ || s->req.op == BLK_WRITE;

	s->req.buf = (struct blk_buf){.base = transfer ? s->mem : NULL};
	if (transfer && s->run->cfg.registered)
		s->req.buf = (struct blk_buf){.fixed_offset = (uintptr_t)s->mem};
	s->req.to_memory = s->run->cfg.registered ? to_memory : NULL;
}
