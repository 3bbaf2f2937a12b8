/* SPDX-License-Identifier: MIT */
/*
 * proves: reads, writes, zeroing and flushes of any byte range, many at once, completed by the
 * target in any order, leave and return exactly what a plain file would; and the target only ever
 * sees whole blocks, at most `depth` requests, and no two overlapping ones of which one rewrites a
 * part. Where the target runs out of space now and then and requests are held meanwhile, none fails, and
 * all the rest is as ever; when no more are to be held, they fail.
 *
 * The target is a piece of memory that takes requests apart in time: it keeps each until the test
 * lets one, chosen by a seed, take effect. The test keeps a byte array as the model. Concurrent
 * requests that overlap in bytes have no defined outcome, so the test never makes such; but they
 * share blocks all the time, which is where a lost neighbour would show.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/math.h"
#include "fuse/flat.h"
#include "ring/loop.h"
#include "target/hold.h"

enum { DEPTH = 16, PAYLOAD = 16384, SIZE = 96 * 1024, STEPS = 60000 };

static uint64_t seed;

static unsigned rnd(unsigned below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (unsigned)(seed >> 20) % below;
}

/* ---- the target ---- */

struct mem_target {
	struct target target;
	uint8_t data[SIZE];
	struct blk_request *held[DEPTH + 1];
	unsigned nr_held;
	bool at_once; /* complete inside submit */
	int fail;     /* the next request fails with this */
	unsigned full; /* one in so many requests meets the end of space; 0: none does */
	unsigned met_end;
	unsigned flushes, fua_writes, nounmaps;
	uint64_t writes; /* bytes */
};

static void mem_finish(struct mem_target *mt, struct blk_request *req)
{
	int ret = mt->fail;

	mt->fail = 0;
	if (!ret && mt->full && rnd(mt->full) == 0) {
		ret = rnd(2) ? -ENOSPC : -EDQUOT;
		mt->met_end++;
	}
	if (!ret) {
		switch (req->op) {
		case BLK_READ:
			memcpy(req->buf.base, mt->data + req->offset_bytes, req->len_bytes);
			break;
		case BLK_WRITE:
			memcpy(mt->data + req->offset_bytes, req->buf.base, req->len_bytes);
			mt->fua_writes += !!(req->flags & BLK_FUA);
			mt->writes += req->len_bytes;
			break;
		case BLK_WRITE_ZEROES:
			memset(mt->data + req->offset_bytes, 0, req->len_bytes);
			mt->nounmaps += !!(req->flags & BLK_NOUNMAP);
			break;
		case BLK_FLUSH:
			mt->flushes++;
			break;
		default:
			fail_msg("operation %d", req->op);
		}
	}
	blk_request_complete(req, ret);
}

static void mem_submit(struct target *t, unsigned queue, struct blk_request *req)
{
	struct mem_target *mt = container_of(t, struct mem_target, target);
	uint32_t block = t->limits.logical_block_bytes;

	assert_int_equal(queue, 0);
	assert_true(is_aligned(req->offset_bytes | req->len_bytes, block));
	assert_true(req->offset_bytes + req->len_bytes <= SIZE);
	assert_int_equal(req->len_bytes == 0, req->op == BLK_FLUSH);
	assert_non_null(req->priv);
	assert_true(is_aligned((uintptr_t)req->priv, 64));
	if (req->op == BLK_READ || req->op == BLK_WRITE)
		assert_non_null(req->buf.base);
	if (req->op == BLK_WRITE_ZEROES)
		assert_true(req->len_bytes <= t->limits.max_write_zeroes_bytes);
	if (mt->at_once) {
		mem_finish(mt, req);
		return;
	}
	assert_true(mt->nr_held < DEPTH);
	for (unsigned i = 0; i < mt->nr_held; i++)
		assert_ptr_not_equal(mt->held[i]->priv, req->priv);
	mt->held[mt->nr_held++] = req;
}

/* ---- the world of one test ---- */

struct request {
	struct flat_io io;
	bool busy;
	int ret;
	uint64_t offset_bytes, len_bytes;
	uint8_t expect[PAYLOAD];
	struct world *world;
};

struct world {
	struct target_ops ops;
	struct mem_target mt;
	struct loop *loop;
	struct hold_device hold;
	struct flat *flat;
	struct request requests[DEPTH];
	uint8_t *mem;
	uint8_t model[SIZE];
	unsigned completed;
	struct loop_msg msg;
	struct request *submitting;
};

static void request_done(struct flat_io *io, int ret)
{
	struct request *r = container_of(io, struct request, io);

	assert_true(r->busy);
	r->busy = false;
	r->ret = ret;
	r->world->completed++;
	if (r->world->mt.full > 1)
		assert_int_equal(ret, 0);
	if (ret == 0 && io->op == FLAT_READ) {
		assert_int_equal(io->len_bytes, r->offset_bytes >= SIZE ? 0
						: r->len_bytes < SIZE - r->offset_bytes
							? r->len_bytes
							: SIZE - r->offset_bytes);
		assert_true(io->data >= io->mem);
		assert_true(io->data + io->len_bytes <= io->mem + PAYLOAD + FLAT_SLACK_BYTES);
		assert_memory_equal(io->data, r->expect, io->len_bytes);
	}
}

static struct world *world_make(uint32_t block, bool fua, bool hold)
{
	struct loop_params params = {
		.name = "test", .coroutines = FLAT_COROUTINES, .ringless = true};
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	w->ops = (struct target_ops){.name = "mem", .request_bytes = 40, .submit = mem_submit};
	w->mt.target.ops = &w->ops;
	w->mt.target.limits = (struct target_limits){
		.size_bytes = SIZE,
		.logical_block_bytes = block,
		.discard_granularity = block,
		.max_write_zeroes_bytes = 3 * block,
		.fua = fua,
		.volatile_cache = true,
		.max_queues = 1,
	};
	assert_int_equal(loop_create(&w->loop, &params, NULL), 0);
	assert_int_equal(flat_create(&w->flat, &w->mt.target, DEPTH, PAYLOAD, NULL), 0);
	assert_int_equal(hold_device_init(&w->hold, hold, NULL), 0);
	flat_attach(w->flat, w->loop, &w->hold);
	w->mem = aligned_alloc(4096, DEPTH * (PAYLOAD + FLAT_SLACK_BYTES));
	assert_non_null(w->mem);
	for (unsigned i = 0; i < DEPTH; i++) {
		w->requests[i].world = w;
		w->requests[i].io.mem = w->mem + i * (PAYLOAD + FLAT_SLACK_BYTES);
		w->requests[i].io.complete = request_done;
		flat_io_init(w->flat, &w->requests[i].io, i);
	}
	return w;
}

static struct world *world_create(uint32_t block, bool fua)
{
	return world_make(block, fua, false);
}

/* What a front end and a target do, they do on the loop. */
static void finish_on_loop(struct loop_msg *msg)
{
	struct mem_target *mt = &container_of(msg, struct world, msg)->mt;
	unsigned i = rnd(mt->nr_held);
	struct blk_request *req = mt->held[i];

	mt->held[i] = mt->held[--mt->nr_held];
	mem_finish(mt, req);
}

static void finish_one(struct world *w)
{
	w->msg.fn = finish_on_loop;
	loop_post(w->loop, &w->msg);
	loop_turn(w->loop);
}

static void submit_on_loop(struct loop_msg *msg)
{
	struct world *w = container_of(msg, struct world, msg);

	flat_submit(w->flat, &w->submitting->io);
}

static void submit_request(struct world *w, struct request *r)
{
	w->submitting = r;
	w->msg.fn = submit_on_loop;
	loop_post(w->loop, &w->msg);
	loop_turn(w->loop);
}

static void world_drain(struct world *w)
{
	while (w->mt.nr_held)
		finish_one(w);
	assert_false(loop_ready(w->loop));
	for (unsigned i = 0; i < DEPTH; i++)
		assert_false(w->requests[i].busy);
}

static void world_destroy(struct world *w)
{
	assert_int_equal(hold_count(&w->hold), 0);
	hold_device_destroy(&w->hold);
	flat_destroy(w->flat);
	loop_destroy(w->loop);
	free(w->mem);
	free(w);
}

static void submit(struct world *w, unsigned i, enum flat_op op, uint64_t offset, uint64_t len)
{
	struct request *r = &w->requests[i];

	assert_false(r->busy);
	r->busy = true;
	r->io.op = op;
	r->io.offset_bytes = offset;
	r->io.len_bytes = len;
	r->offset_bytes = offset;
	r->len_bytes = len;
	submit_request(w, r);
}

/* Whether the range shares bytes with a request in flight. */
static bool in_use(const struct world *w, uint64_t offset, uint64_t len)
{
	for (unsigned i = 0; i < DEPTH; i++) {
		const struct request *r = &w->requests[i];

		if (r->busy && r->offset_bytes < offset + len &&
		    offset < r->offset_bytes + r->len_bytes)
			return true;
	}
	return false;
}

static void random_request(struct world *w, uint32_t block)
{
	static const enum flat_op ops[] = {FLAT_READ,  FLAT_READ,  FLAT_WRITE, FLAT_WRITE,
					   FLAT_WRITE, FLAT_PUNCH, FLAT_ZERO,  FLAT_FLUSH};
	unsigned i = rnd(DEPTH), max = rnd(4) ? 3 * block : PAYLOAD;
	enum flat_op op = ops[rnd(ARRAY_LEN(ops))];
	struct request *r = &w->requests[i];
	uint64_t offset = rnd(SIZE), len = rnd(max) + 1;

	if (rnd(3) == 0) {
		offset = align_down(offset, block);
		len = align_up(len, block);
	}
	if (op == FLAT_FLUSH)
		offset = len = 0;
	len = min_of(len, (uint64_t)PAYLOAD);
	len = min_of(len, SIZE - offset);
	if (r->busy || in_use(w, offset, len))
		return;
	r->io.durable = op == FLAT_WRITE && rnd(4) == 0;
	if (op == FLAT_WRITE) {
		for (uint64_t j = 0; j < len; j++)
			r->io.mem[j] = (uint8_t)rnd(256);
		memcpy(w->model + offset, r->io.mem, len);
	} else if (op == FLAT_PUNCH || op == FLAT_ZERO) {
		memset(w->model + offset, 0, len);
	} else if (op == FLAT_READ) {
		memcpy(r->expect, w->model + offset, len);
	}
	submit(w, i, op, offset, len);
}

static void random_run(uint32_t block, bool fua, uint64_t with_seed)
{
	struct world *w = world_create(block, fua);

	seed = with_seed;
	printf("block %u, fua %d, seed %llu\n", block, fua, (unsigned long long)with_seed);
	for (unsigned step = 0; step < STEPS; step++) {
		if (rnd(2000) == 0)
			w->mt.at_once = !w->mt.at_once && !w->mt.nr_held;
		random_request(w, block);
		/* now and then a long queue, now and then an empty one */
		while (w->mt.nr_held && rnd(step / 500 % 2 ? 3 : 12) == 0)
			finish_one(w);
		if (w->mt.nr_held == DEPTH)
			finish_one(w);
	}
	world_drain(w);
	assert_memory_equal(w->mt.data, w->model, SIZE);
	assert_true(w->completed > STEPS / 20);
	assert_true(w->mt.flushes > 0 && w->mt.nounmaps > 0);
	assert_int_equal(w->mt.fua_writes > 0, fua);
	world_destroy(w);
}

static void test_random(void **state)
{
	for (uint64_t s = 1; s <= 3; s++) {
		random_run(512, false, s);
		random_run(512, true, s + 100);
		random_run(4096, false, s + 200);
	}
}

/* The same with a target that is full now and then: nothing fails, and nothing is lost. */
static void space_run(uint32_t block, uint64_t with_seed)
{
	struct world *w = world_make(block, false, true);
	unsigned most = 0;

	seed = with_seed;
	printf("block %u, with ends of space, seed %llu\n", block, (unsigned long long)with_seed);
	w->mt.full = 5;
	for (unsigned step = 0; step < STEPS; step++) {
		random_request(w, block);
		while (w->mt.nr_held && rnd(3) == 0)
			finish_one(w);
		if (w->mt.nr_held == DEPTH)
			finish_one(w);
		most = max_of(most, hold_count(&w->hold));
		if (rnd(16) == 0) {
			loop_advance(w->loop, rnd(200) * UINT64_C(1000000));
			loop_turn(w->loop);
		} else if (rnd(64) == 0) {
			flat_retry(w->flat);
			flat_retry(w->flat);
			loop_turn(w->loop);
		}
	}
	w->mt.full = 0;
	while (hold_count(&w->hold) || w->mt.nr_held) {
		while (w->mt.nr_held)
			finish_one(w);
		loop_advance(w->loop, HOLD_MAX_MS * UINT64_C(1000000));
		loop_turn(w->loop);
	}
	world_drain(w);
	assert_memory_equal(w->mt.data, w->model, SIZE);
	assert_true(w->completed > STEPS / 100 && w->mt.met_end > STEPS / 100 && most > 3);
	world_destroy(w);
}

static void test_space(void **state)
{
	for (uint64_t s = 1; s <= 3; s++) {
		space_run(512, s);
		space_run(4096, s + 100);
	}
}

/* Reads go on beside what is held; that is tried again, less and less often, and fails in the end. */
static void test_space_ends(void **state)
{
	struct world *w = world_make(512, false, true);
	unsigned tries;

	seed = 1;
	w->mt.at_once = true;
	w->mt.full = 1;
	submit(w, 0, FLAT_WRITE, 0, 1024);  /* straight */
	submit(w, 1, FLAT_WRITE, 4096, 10); /* its read is held, too */
	submit(w, 2, FLAT_FLUSH, 0, 0);
	assert_int_equal(hold_count(&w->hold), 3);
	tries = w->mt.met_end;
	assert_int_equal(tries, 3);
	for (unsigned s = 0; s < 60; s++) {
		loop_advance(w->loop, UINT64_C(1000000000));
		loop_turn(w->loop);
	}
	assert_int_equal(hold_count(&w->hold), 3);
	assert_true(w->mt.met_end > tries + 3 * 10 && w->mt.met_end < tries + 3 * 30);
	w->mt.full = 0;
	memset(w->requests[3].expect, 0, 512);
	submit(w, 3, FLAT_READ, 8192, 512);
	assert_false(w->requests[3].busy);
	w->mt.full = 1;
	hold_end(&w->hold);
	flat_retry(w->flat);
	loop_turn(w->loop);
	for (unsigned i = 0; i < 3; i++) {
		assert_false(w->requests[i].busy);
		assert_true(w->requests[i].ret == -ENOSPC || w->requests[i].ret == -EDQUOT);
	}
	submit(w, 0, FLAT_WRITE, 0, 1024);
	assert_false(w->requests[0].busy);
	assert_true(w->requests[0].ret < 0);
	world_destroy(w);
}

/* Two writes to the two halves of a block, and one to the whole next to it, all at once. */
static void test_neighbours(void **state)
{
	for (unsigned order = 0; order < 200; order++) {
		struct world *w = world_create(512, false);

		seed = order + 1;
		memset(w->requests[0].io.mem, 'a', 256);
		memset(w->requests[1].io.mem, 'b', 256);
		memset(w->requests[2].io.mem, 'c', 1024);
		submit(w, 0, FLAT_WRITE, 0, 256);
		submit(w, 1, FLAT_WRITE, 256, 256);
		submit(w, 2, FLAT_WRITE, 512, 1024);
		/* whole blocks that overlap a slow one must wait for it */
		memset(w->requests[3].io.mem, 'd', 512);
		submit(w, 3, FLAT_WRITE, 1536, 512);
		memset(w->requests[4].io.mem, 'e', 1);
		submit(w, 4, FLAT_WRITE, 1536 + 511, 1);
		world_drain(w);
		assert_int_equal(w->mt.data[0], 'a');
		assert_int_equal(w->mt.data[255], 'a');
		assert_int_equal(w->mt.data[256], 'b');
		assert_int_equal(w->mt.data[511], 'b');
		assert_int_equal(w->mt.data[512], 'c');
		assert_int_equal(w->mt.data[1536], 'd');
		assert_int_equal(w->mt.data[2046], 'd');
		assert_int_equal(w->mt.data[2047], 'e');
		world_destroy(w);
	}
}

/* A slow write that has read its block must not write it back over what came meanwhile. */
static void test_stale(void **state)
{
	struct world *w = world_create(512, false);

	seed = 1;
	memset(w->requests[0].io.mem, 'f', 1);
	submit(w, 0, FLAT_WRITE, 10, 1);
	assert_int_equal(w->mt.nr_held, 1);
	assert_int_equal(w->mt.held[0]->op, BLK_READ);
	finish_one(w);
	memset(w->requests[1].io.mem, 'g', 512);
	submit(w, 1, FLAT_WRITE, 0, 512);
	for (unsigned i = 0; i < 4 && w->requests[1].busy; i++) {
		struct blk_request *last = w->mt.held[w->mt.nr_held - 1];

		/* the later one first, if the target has it */
		w->mt.held[w->mt.nr_held - 1] = w->mt.held[0];
		w->mt.held[0] = last;
		finish_one(w);
	}
	world_drain(w);
	assert_int_equal(w->mt.data[9], 'g');
	assert_int_equal(w->mt.data[11], 'g');
	world_destroy(w);
}

/* What lies past the end, and what the target cannot do. */
static void test_edges(void **state)
{
	struct world *w = world_create(512, false);
	struct request *r = &w->requests[0];

	w->mt.at_once = true;
	submit(w, 0, FLAT_READ, SIZE, 10);
	assert_int_equal(r->ret, 0);
	assert_int_equal(r->io.len_bytes, 0);
	submit(w, 0, FLAT_READ, SIZE - 1, 100);
	assert_int_equal(r->ret, 0);
	assert_int_equal(r->io.len_bytes, 1);

	submit(w, 0, FLAT_WRITE, SIZE, 10);
	assert_int_equal(r->ret, -ENOSPC);
	submit(w, 0, FLAT_WRITE, UINT64_MAX / 2, PAYLOAD);
	assert_int_equal(r->ret, -ENOSPC);
	submit(w, 0, FLAT_WRITE, SIZE - 3, 10);
	assert_int_equal(r->ret, 0);
	assert_int_equal(r->io.len_bytes, 3);
	submit(w, 0, FLAT_PUNCH, SIZE - 1, UINT64_MAX - SIZE);
	assert_int_equal(r->ret, 0);
	submit(w, 0, FLAT_ZERO, SIZE + 5, 1);
	assert_int_equal(r->ret, 0);

	w->mt.target.limits.discard_granularity = 0;
	submit(w, 0, FLAT_PUNCH, 0, 512);
	assert_int_equal(r->ret, -EOPNOTSUPP);
	submit(w, 0, FLAT_ZERO, 0, 512);
	assert_int_equal(r->ret, 0);
	w->mt.target.limits.max_write_zeroes_bytes = 0;
	submit(w, 0, FLAT_ZERO, 0, 512);
	assert_int_equal(r->ret, -EOPNOTSUPP);
	w->mt.target.limits.read_only = true;
	submit(w, 0, FLAT_WRITE, 0, 512);
	assert_int_equal(r->ret, -EROFS);
	world_destroy(w);
}

/* An error of the target reaches the request, whichever of its steps met it; and only that one. */
static void test_errors(void **state)
{
	static const struct {
		enum flat_op op;
		uint64_t offset, len;
		unsigned steps;
	} cases[] = {
		{FLAT_READ, 3, 1000, 1},  {FLAT_WRITE, 0, 1024, 1},  {FLAT_WRITE, 100, 1000, 3},
		{FLAT_WRITE, 100, 10, 2}, {FLAT_ZERO, 100, 4000, 7}, {FLAT_FLUSH, 0, 0, 1},
	};

	seed = 1;
	for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
		for (unsigned bad = 0; bad < cases[c].steps; bad++) {
			struct world *w = world_create(512, false);
			struct request *r = &w->requests[0];

			submit(w, 0, cases[c].op, cases[c].offset, cases[c].len);
			for (unsigned step = 0; r->busy; step++) {
				assert_int_equal(w->mt.nr_held, 1);
				if (step == bad)
					w->mt.fail = -EIO;
				finish_one(w);
			}
			assert_int_equal(r->ret, -EIO);
			submit(w, 1, FLAT_WRITE, 100, 1000);
			world_drain(w);
			assert_int_equal(w->requests[1].ret, 0);
			world_destroy(w);
		}
	}
}

/* A durable write is flushed after it was written, where the target has no FUA; once. */
static void test_durable(void **state)
{
	struct world *w = world_create(512, false);
	struct request *r = &w->requests[0];

	seed = 1;
	for (uint64_t offset = 0; offset <= 100; offset += 100) {
		w->mt.flushes = 0;
		r->io.durable = true;
		submit(w, 0, FLAT_WRITE, offset, 1024);
		while (r->busy) {
			assert_int_equal(w->mt.nr_held, 1);
			if (w->mt.held[0]->op == BLK_FLUSH)
				assert_true(w->mt.writes >= 1024);
			finish_one(w);
		}
		assert_int_equal(r->ret, 0);
		assert_int_equal(w->mt.flushes, 1);
		w->mt.writes = 0;
	}
	world_destroy(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random), cmocka_unit_test(test_neighbours),
		cmocka_unit_test(test_space),  cmocka_unit_test(test_space_ends),
		cmocka_unit_test(test_stale),  cmocka_unit_test(test_edges),
		cmocka_unit_test(test_errors), cmocka_unit_test(test_durable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
