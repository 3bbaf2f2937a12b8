/* SPDX-License-Identifier: MIT */
/*
 * Proves the simulated disk: that its crash states are exactly those of the model, and that
 * exploring them finds the bug in a small client which forgets a sync, and none in the one that
 * does not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/math.h"
#include "crash.h"
#include "ring/co.h"
#include "simdisk.h"

struct bench {
	struct simdisk *disk;
	struct simfile *file;
	struct loop *loop;
};

static void bench_open(struct bench *b, uint64_t seed)
{
	struct loop_params params = {
		.name = "sim", .sq_entries = 8, .coroutines = 4, .ringless = true};

	b->disk = simdisk_create(seed);
	b->file = simdisk_file(b->disk, "file", NULL);
	assert_int_equal(loop_create(&b->loop, &params, NULL), 0);
}

static void bench_close(struct bench *b)
{
	storage_close(&b->file->storage);
	loop_destroy(b->loop);
	simdisk_destroy(b->disk);
}

/* ---- single operations, submitted in the loop, finished by hand ---- */

struct part {
	struct co_task task;
	struct storage *st;
	struct storage_io io;
	_Alignas(512) uint8_t mem[8 * SECTOR_BYTES];
	bool done;
	int ret;
};

static void part_done(struct storage_io *io, int ret)
{
	struct part *p = container_of(io, struct part, io);

	p->done = true;
	p->ret = ret;
}

static void part_run(struct co_task *task)
{
	struct part *p = container_of(task, struct part, task);

	storage_submit(p->st, &p->io);
}

static struct part *part_start(struct bench *b, enum storage_op op, uint64_t sector,
			       uint64_t sectors, int fill)
{
	struct part *p = sim_memalign(512, sizeof(*p));

	memset(p, 0, sizeof(*p));
	memset(p->mem, fill, sizeof(p->mem));
	p->st = &b->file->storage;
	p->task.fn = part_run;
	p->io.op = op;
	p->io.offset_bytes = sector * SECTOR_BYTES;
	p->io.len_bytes = sectors * SECTOR_BYTES;
	p->io.buf.base = p->mem;
	p->io.complete = part_done;
	loop_spawn(b->loop, &p->task);
	loop_turn(b->loop);
	return p;
}

static int part_finish(struct bench *b, struct part *p)
{
	int ret;

	for (size_t i = 0; i < b->disk->pending.n; i++) {
		if (b->disk->pending.at[i]->io == &p->io) {
			simdisk_finish(b->disk, i);
			break;
		}
	}
	loop_turn(b->loop);
	assert_true(p->done);
	ret = p->ret;
	sim_free(p);
	return ret;
}

static int part_whole(struct bench *b, enum storage_op op, uint64_t sector, uint64_t sectors,
		      int fill)
{
	return part_finish(b, part_start(b, op, sector, sectors, fill));
}

/* Whether some state of @c has byte @a at @sector (and a file that reaches there); exhaustive. */
static bool possible(struct crash *c, uint64_t sector, int a)
{
	uint64_t count = crash_state_count(c);
	bool found = false;

	assert_true(count < 100000);
	for (uint64_t i = 0; i < count && !found; i++) {
		const struct sim_map *m = &c->files[0].base;

		crash_state_pick(c, i);
		found = sector * SECTOR_BYTES < m->size_bytes && sim_map_get(m, sector)[0] == a;
		crash_state_drop(c);
	}
	return found;
}

static void test_subsets(void **state)
{
	struct bench b;
	struct crash *c;
	struct part *late;

	bench_open(&b, 1);
	assert_int_equal(part_whole(&b, STORAGE_WRITE, 0, 4, 1), 0);
	assert_int_equal(part_whole(&b, STORAGE_SYNC, 0, 0, 0), 0);
	assert_int_equal(part_whole(&b, STORAGE_WRITE, 1, 2, 2), 0);
	late = part_start(&b, STORAGE_WRITE, 2, 1, 3);

	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	assert_int_equal(crash_state_count(c), 1 * 2 * 3 * 1);
	assert_false(possible(c, 0, 2));
	assert_true(possible(c, 1, 1) && possible(c, 1, 2));
	assert_true(possible(c, 2, 1) && possible(c, 2, 2) && possible(c, 2, 3));
	assert_false(possible(c, 0, 0)); /* the length is durable too */
	crash_destroy(c);

	/* a sync that was submitted before @late completed does not cover it */
	struct part *sync = part_start(&b, STORAGE_SYNC, 0, 0, 0);

	assert_int_equal(part_finish(&b, late), 0);
	assert_int_equal(part_finish(&b, sync), 0);
	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	assert_int_equal(crash_state_count(c), 2);
	assert_false(possible(c, 1, 1));
	assert_true(possible(c, 2, 2) && possible(c, 2, 3));
	crash_destroy(c);
	bench_close(&b);
}

/* Of two overlapping writes in flight the one that lands last is final, and either may be found. */
static void test_overlap(void **state)
{
	struct bench b;
	struct crash *c;
	struct part *x, *y;

	bench_open(&b, 2);
	x = part_start(&b, STORAGE_WRITE, 0, 1, 1);
	y = part_start(&b, STORAGE_WRITE, 0, 1, 2);
	assert_int_equal(part_finish(&b, y), 0);
	assert_int_equal(part_finish(&b, x), 0);
	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	assert_true(possible(c, 0, 1) && possible(c, 0, 2));
	crash_destroy(c);
	assert_int_equal(part_whole(&b, STORAGE_SYNC, 0, 0, 0), 0);
	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	assert_int_equal(crash_state_count(c), 1);
	assert_true(possible(c, 0, 1));
	crash_destroy(c);
	bench_close(&b);
}

static void test_failed_sync(void **state)
{
	struct bench b;
	struct crash *c;

	bench_open(&b, 3);
	assert_int_equal(part_whole(&b, STORAGE_WRITE, 0, 2, 1), 0);
	assert_int_equal(part_whole(&b, STORAGE_SYNC, 0, 0, 0), 0);
	assert_int_equal(part_whole(&b, STORAGE_WRITE, 0, 2, 2), 0);
	b.disk->fault = (struct sim_fault){1 << STORAGE_SYNC, 0, UINT64_MAX, -EIO, 0, 0};
	assert_int_equal(part_whole(&b, STORAGE_SYNC, 0, 0, 0), -EIO);
	b.disk->fault = (struct sim_fault){0};
	assert_int_equal(part_whole(&b, STORAGE_WRITE, 1, 1, 3), 0);
	assert_int_equal(part_whole(&b, STORAGE_SYNC, 0, 0, 0), 0);
	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	/* sector 0 stays in doubt; sector 1 was written anew and synced */
	assert_int_equal(crash_state_count(c), 2);
	assert_true(possible(c, 0, 1) && possible(c, 0, 2));
	assert_true(possible(c, 1, 3));
	crash_destroy(c);
	bench_close(&b);
}

static void test_dsync(void **state)
{
	struct bench b;
	struct crash *c;
	struct part *p;

	bench_open(&b, 4);
	assert_int_equal(part_whole(&b, STORAGE_WRITE, 0, 1, 1), 0);
	p = part_start(&b, STORAGE_SYNC, 0, 0, 0);
	assert_int_equal(part_finish(&b, p), 0);
	p = sim_memalign(512, sizeof(*p));
	memset(p, 0, sizeof(*p));
	memset(p->mem, 2, sizeof(p->mem));
	p->st = &b.file->storage;
	p->task.fn = part_run;
	p->io = (struct storage_io){.op = STORAGE_WRITE,
				    .flags = STORAGE_DSYNC,
				    .offset_bytes = 0,
				    .len_bytes = 2 * SECTOR_BYTES,
				    .buf = {.base = p->mem},
				    .complete = part_done};
	loop_spawn(b.loop, &p->task);
	loop_turn(b.loop);
	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	assert_true(possible(c, 0, 1) && possible(c, 0, 2));
	crash_destroy(c);
	assert_int_equal(part_finish(&b, p), 0);
	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	assert_int_equal(crash_state_count(c), 1);
	assert_true(possible(c, 0, 2) && possible(c, 1, 2));
	crash_destroy(c);
	bench_close(&b);
}

static void test_length(void **state)
{
	struct bench b;
	struct crash *c;
	struct part *late;
	bool seen[4] = {false};

	bench_open(&b, 5);
	assert_int_equal(part_whole(&b, STORAGE_WRITE, 0, 3, 1), 0);
	assert_int_equal(part_whole(&b, STORAGE_SYNC, 0, 0, 0), 0);
	assert_int_equal(part_whole(&b, STORAGE_TRUNCATE, 1, 0, 0), 0);
	assert_int_equal(part_whole(&b, STORAGE_WRITE, 1, 1, 2), 0);
	assert_int_equal(b.file->storage.size_bytes, 2 * SECTOR_BYTES);
	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	for (uint64_t i = 0; i < crash_state_count(c); i++) {
		crash_state_pick(c, i);
		seen[c->files[0].base.size_bytes / SECTOR_BYTES] = true;
		crash_state_drop(c);
	}
	assert_true(!seen[0] && seen[1] && seen[2] && seen[3]);
	assert_true(possible(c, 1, 0) && possible(c, 1, 1) && possible(c, 1, 2));
	assert_true(possible(c, 2, 0) && possible(c, 2, 1)); /* cut, perhaps */
	crash_destroy(c);

	/* a write that is in flight and ends inside a longer, durable length does not cut it */
	late = part_start(&b, STORAGE_WRITE, 2, 1, 5);
	assert_int_equal(part_whole(&b, STORAGE_TRUNCATE, 6, 0, 0), 0);
	assert_int_equal(part_whole(&b, STORAGE_SYNC, 0, 0, 0), 0);
	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	for (uint64_t i = 0; i < crash_state_count(c); i++) {
		crash_state_pick(c, i);
		assert_int_equal(c->files[0].base.size_bytes, 6 * SECTOR_BYTES);
		crash_state_drop(c);
	}
	crash_destroy(c);
	assert_int_equal(part_finish(&b, late), 0);

	/* a hole */
	assert_int_equal(part_whole(&b, STORAGE_SYNC, 0, 0, 0), 0);
	assert_int_equal(part_whole(&b, STORAGE_PUNCH, 0, 1, 0), 0);
	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	assert_int_equal(crash_state_count(c), 2);
	assert_true(possible(c, 0, 0) && possible(c, 0, 1) && possible(c, 1, 2));
	assert_false(possible(c, 1, 0) || possible(c, 2, 1));
	crash_destroy(c);
	bench_close(&b);
}

/* What a growing write left beyond a length that did not persist is not there after a later growth.
 */
static void test_beyond_length(void **state)
{
	struct bench b;
	struct crash *c;
	uint64_t count;

	bench_open(&b, 6);
	assert_int_equal(part_whole(&b, STORAGE_WRITE, 0, 2, 7), 0);
	c = crash_create(b.disk);
	crash_advance(c, b.disk->events.n);
	count = crash_state_count(c);
	assert_int_equal(count, 8);
	for (uint64_t i = 0; i < count; i++) {
		struct storage *st = &c->files[0].view.storage;
		_Alignas(512) uint8_t mem[2 * SECTOR_BYTES];
		bool empty;

		crash_state_pick(c, i);
		empty = st->size_bytes == 0;
		assert_int_equal(storage_truncate(st, 2 * SECTOR_BYTES), 0);
		assert_int_equal(storage_pread(st, 0, mem, sizeof(mem)), 0);
		if (empty)
			assert_true(!mem[0] && !mem[SECTOR_BYTES]);
		crash_state_drop(c);
	}
	crash_destroy(c);
	bench_close(&b);
}

/* ---- the toy: a record of two sectors in one of two slots, switched by a commit sector ---- */

enum toy_bug { TOY_RIGHT, TOY_NO_FIRST_SYNC, TOY_NO_LAST_SYNC, TOY_ONE_SLOT };

#define TOY_ROUNDS 3

struct toy {
	struct co_task task;
	struct bench *b;
	enum toy_bug bug;
	uint64_t acked[TOY_ROUNDS + 1]; /* when round i was acknowledged */
	bool finished;
	_Alignas(512) uint8_t mem[2 * SECTOR_BYTES];
};

static uint64_t toy_slot(enum toy_bug bug, unsigned round)
{
	return bug == TOY_ONE_SLOT ? 1 : 1 + 2 * (round % 2);
}

static void toy_run(struct co_task *task)
{
	struct toy *t = container_of(task, struct toy, task);
	struct storage *st = &t->b->file->storage;

	for (unsigned round = 1; round <= TOY_ROUNDS; round++) {
		memset(t->mem, round, sizeof(t->mem));
		assert_int_equal(storage_pwrite(st, toy_slot(t->bug, round) * SECTOR_BYTES, t->mem,
						2 * SECTOR_BYTES),
				 0);
		if (t->bug != TOY_NO_FIRST_SYNC)
			assert_int_equal(storage_sync(st), 0);
		assert_int_equal(storage_pwrite(st, 0, t->mem, SECTOR_BYTES), 0);
		if (t->bug != TOY_NO_LAST_SYNC)
			assert_int_equal(storage_sync(st), 0);
		t->acked[round] = simdisk_mark(t->b->disk);
	}
	t->finished = true;
}

/* Whether the state in the view breaks what was promised when @acked rounds were acknowledged. */
static bool toy_broken(const struct sim_map *m, enum toy_bug bug, unsigned acked)
{
	unsigned round = sim_map_get(m, 0)[0];
	uint64_t slot = toy_slot(bug, round);

	if (m->size_bytes < SECTOR_BYTES)
		round = 0;
	if (round < acked)
		return true;
	if (!round)
		return false;
	return m->size_bytes < (slot + 2) * SECTOR_BYTES || sim_map_get(m, slot)[0] != round ||
	       sim_map_get(m, slot + 1)[0] != round;
}

/* Explores every state at every moment; returns how many were broken. */
static uint64_t toy_explore(enum toy_bug bug, uint64_t seed, uint64_t *states)
{
	struct bench b;
	struct crash *c;
	uint64_t broken = 0;
	_Alignas(512) struct toy t = {.b = &b, .bug = bug};

	bench_open(&b, seed);
	t.task.fn = toy_run;
	loop_spawn(b.loop, &t.task);
	while (!t.finished) {
		loop_turn(b.loop);
		if (b.disk->pending.n)
			simdisk_finish(b.disk, rng_below(&b.disk->rng, b.disk->pending.n));
	}
	c = crash_create(b.disk);
	for (uint64_t time = 0; time <= b.disk->events.n; time++) {
		unsigned acked = 0;
		uint64_t count;

		crash_advance(c, time);
		count = crash_state_count(c);
		while (acked < TOY_ROUNDS && t.acked[acked + 1] < time)
			acked++;
		for (uint64_t i = 0; i < count; i++) {
			crash_state_pick(c, i);
			broken += toy_broken(&c->files[0].base, bug, acked);
			crash_state_drop(c);
		}
		*states += count;
	}
	crash_destroy(c);
	bench_close(&b);
	return broken;
}

static void test_toy(void **state)
{
	uint64_t states = 0;

	assert_int_equal(toy_explore(TOY_RIGHT, 11, &states), 0);
	assert_true(states > 100);
	assert_true(toy_explore(TOY_NO_FIRST_SYNC, 11, &states) > 0);
	assert_true(toy_explore(TOY_NO_LAST_SYNC, 11, &states) > 0);
	assert_true(toy_explore(TOY_ONE_SLOT, 11, &states) > 0);
}

/* A write's memory that changes while the write is in flight may land changed. */
static void test_unstable_memory(void **state)
{
	bool seen[3] = {false};

	for (uint64_t seed = 0; seed < 64; seed++) {
		struct bench b;
		struct part *p;

		bench_open(&b, seed);
		p = part_start(&b, STORAGE_WRITE, 0, 1, 1);
		memset(p->mem, 2, sizeof(p->mem));
		assert_int_equal(part_finish(&b, p), 0);
		seen[sim_map_get(&b.file->live, 0)[0]] = true;
		bench_close(&b);
	}
	assert_true(!seen[0] && seen[1] && seen[2]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_subsets),	    cmocka_unit_test(test_overlap),
		cmocka_unit_test(test_failed_sync), cmocka_unit_test(test_dsync),
		cmocka_unit_test(test_length),	    cmocka_unit_test(test_beyond_length),
		cmocka_unit_test(test_toy),	    cmocka_unit_test(test_unstable_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
