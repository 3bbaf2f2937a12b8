/* SPDX-License-Identifier: MIT */
/*
 * engine_run.c: see engine_run.h. A request that does not complete although nothing is left to do is a
 * hang, and ends the program; so does an amount of work beyond any reason.
 */
#include "engine_run.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"
#include "fuzz.h"
#include "memdisk.h"
#include "qcow2.h"
#include "ring/co.h"

#define STEPS_MAX 2000000 /* between a start and its completion */

/* Kept from one input to the next: making stacks is what would take most of the time. */
static struct loop *the_loop;
static uint8_t *the_bufs[ENGINE_DEPTH];

static void make_once(void)
{
	struct loop_params params = {
		.name = "fuzz",
		.coroutines = ENGINE_DEPTH + QCOW2_EXTRA_COROUTINES,
		.ringless = true,
	};
	struct error err = {0};

	if (the_loop)
		return;
	assert(loop_create(&the_loop, &params, &err) == 0);
	for (unsigned i = 0; i < ENGINE_DEPTH; i++) {
		the_bufs[i] = aligned_alloc(4096, ENGINE_LEN_MAX);
		assert(the_bufs[i]);
	}
}

struct slot {
	struct engine *engine;
	struct blk_request req;
	struct loop_msg msg;
	bool busy;
	int ret;
	uint8_t *buf;
};

struct engine {
	struct storage *st;
	struct qcow2_image *img;
	struct loop *loop;
	struct qcow2_queue *queue;
	void *privs;
	struct slot slots[ENGINE_DEPTH];
	unsigned busy;
	struct co_task detach_task;
	bool detached;
};

/* Does one thing; false if there is nothing to do but to let time pass. */
static bool step(struct engine *e)
{
	bool did = loop_turn(e->loop);

	return memdisk_step(e->st) || did;
}

static void run_until(struct engine *e, bool (*done)(const struct engine *e))
{
	uint64_t steps = 0;

	while (!done(e)) {
		assert(++steps < STEPS_MAX);
		if (step(e))
			continue;
		/* Only a timer can go on from here. */
		uint64_t deadline = loop_next_deadline_ns(e->loop), now = loop_now_ns(e->loop);

		assert(deadline != UINT64_MAX);
		loop_advance(e->loop, deadline > now ? deadline - now : 1);
	}
}

static bool all_idle(const struct engine *e)
{
	return !e->busy;
}

static bool one_idle(const struct engine *e)
{
	return e->busy < ENGINE_DEPTH;
}

static bool is_detached(const struct engine *e)
{
	return e->detached;
}

static void complete(struct blk_request *req, int ret)
{
	struct slot *slot = container_of(req, struct slot, req);

	assert(slot->busy && ret <= 0);
	slot->busy = false;
	slot->ret = ret;
	slot->engine->busy--;
}

static void start(struct loop_msg *msg)
{
	struct slot *slot = container_of(msg, struct slot, msg);

	qcow2_submit(slot->engine->queue, &slot->req);
}

void engine_start(struct engine *e, enum blk_op op, uint32_t flags, uint64_t offset, uint64_t len,
		  uint8_t fill)
{
	uint64_t size = qcow2_size_bytes(e->img);
	struct slot *slot = e->slots;

	run_until(e, one_idle);
	while (slot->busy)
		slot++;
	if (op == BLK_FLUSH) {
		offset = len = 0;
	} else {
		if (!size)
			return;
		offset = align_down(offset % size, 512);
		len = min_of(max_of(align_down(len, 512), (uint64_t)512), size - offset);
		if (op == BLK_READ || op == BLK_WRITE)
			len = min_of(len, ENGINE_LEN_MAX);
	}
	slot->busy = true;
	e->busy++;
	memset(slot->buf, fill, op == BLK_FLUSH ? 0 : min_of(len, ENGINE_LEN_MAX));
	slot->req.op = op;
	slot->req.flags = flags;
	slot->req.offset_bytes = offset;
	slot->req.len_bytes = len;
	slot->req.buf = (struct blk_buf){.base = slot->buf};
	slot->req.complete = complete;
	slot->msg.fn = start;
	loop_post(e->loop, &slot->msg);
}

void engine_drain(struct engine *e)
{
	run_until(e, all_idle);
}

uint64_t engine_size_bytes(const struct engine *e)
{
	return qcow2_size_bytes(e->img);
}

uint32_t engine_cluster_bytes(const struct engine *e)
{
	return qcow2_cluster_bytes(e->img);
}

static struct engine *open_engine(const uint8_t *data, size_t size, bool read_only, uint64_t seed,
				  void *log, bool recover)
{
	static const char identity[] = "fuzz";
	struct qcow2_options opts = {
		.read_only = read_only,
		.no_lock = true,
		.max_inflight = ENGINE_DEPTH,
		.cache_size_bytes = seed & 1 ? 4096 : 0,
		.reclaim_delay_ms = seed & 2 ? 1 : 0,
		.log_base = log,
		.log_bytes = log ? ENGINE_LOG_BYTES : 0,
		.log_identity = identity,
		.log_identity_bytes = sizeof(identity),
		.log_recover = recover,
	};
	struct engine *e = calloc(1, sizeof(*e));
	size_t priv_bytes = align_up(qcow2_request_bytes(), 64);
	struct error err = {0};

	assert(e);
	e->st = memdisk_create(data, size, FUZZ_FILE_MAX, seed);
	e->st->read_only = read_only;
	if (qcow2_open(&e->img, e->st, &opts, &err) < 0) {
		assert(err.text[0] && !strchr(err.text, '\n'));
		storage_close(e->st);
		free(e);
		return NULL;
	}
	make_once();
	e->loop = the_loop;
	assert(qcow2_set_metadata_loop(e->img, e->loop, &err) == 0);
	assert(qcow2_queue_create(&e->queue, e->img, e->loop, &err) == 0);
	e->privs = aligned_alloc(64, priv_bytes * ENGINE_DEPTH);
	memset(e->privs, 0, priv_bytes * ENGINE_DEPTH);
	for (unsigned i = 0; i < ENGINE_DEPTH; i++) {
		e->slots[i].engine = e;
		e->slots[i].req.priv = (uint8_t *)e->privs + i * priv_bytes;
		e->slots[i].buf = the_bufs[i];
	}
	return e;
}

struct engine *engine_open(const uint8_t *data, size_t size, bool read_only, uint64_t seed)
{
	return open_engine(data, size, read_only, seed, NULL, false);
}

struct engine *engine_open_log(const uint8_t *data, size_t size, uint64_t seed, void *log, bool recover)
{
	return open_engine(data, size, false, seed, log, recover);
}

uint8_t *engine_file_copy(const struct engine *e, size_t *size)
{
	return memdisk_copy(e->st, size);
}

size_t engine_read_start(struct engine *e, uint8_t *out)
{
	size_t len = min_of(qcow2_size_bytes(e->img), ENGINE_LEN_MAX);

	assert(!e->busy);
	if (!len)
		return 0;
	engine_start(e, BLK_READ, 0, 0, len, 0xa5);
	engine_drain(e);
	memcpy(out, the_bufs[0], len);
	return e->slots[0].ret ? 0 : len;
}

static void detach(struct co_task *task)
{
	struct engine *e = container_of(task, struct engine, detach_task);

	qcow2_queue_destroy(e->queue);
	qcow2_detach_loop(e->img);
	e->detached = true;
}

static void spawn_detach(struct loop_msg *msg)
{
	struct slot *slot = container_of(msg, struct slot, msg);

	loop_spawn(slot->engine->loop, &slot->engine->detach_task);
}

void engine_close(struct engine *e)
{
	struct error err = {0};
	int ret;

	engine_drain(e);
	e->detach_task.fn = detach;
	e->slots[0].msg.fn = spawn_detach;
	loop_post(e->loop, &e->slots[0].msg);
	run_until(e, is_detached);
	while (step(e))
		;
	ret = qcow2_close(e->img, &err); /* a broken image may not be writable */
	assert(ret <= 0);
	free(e->privs);
	free(e);
}
