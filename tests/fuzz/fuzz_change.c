/* SPDX-License-Identifier: MIT */
/*
 * fuzz_change.c: opening any file read-write, and making, applying and deleting snapshots and changing the
 * disk's size, with requests in between and in flight meanwhile, chosen by the input's last bytes; then time
 * passes, in which what was leaked is looked for, and the image is closed.
 */
#include "engine_run.h"
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>

#define CHANGES 10
#define TIMERS	64

static uint64_t next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static void some_requests(struct engine *e, uint64_t *state)
{
	static const enum blk_op ops[] = {BLK_READ, BLK_WRITE, BLK_WRITE, BLK_DISCARD, BLK_WRITE_ZEROES, BLK_FLUSH};
	uint64_t cluster = engine_cluster_bytes(e);

	for (unsigned n = next(state) % 5; n; n--) {
		enum blk_op op = ops[next(state) % (sizeof(ops) / sizeof(*ops))];
		uint64_t offset = next(state) % (64 * cluster), len = next(state) % (3 * cluster);

		engine_start(e, op, 0, offset, len, (uint8_t)next(state));
	}
}

static void resize(struct engine *e, uint64_t *state)
{
	uint64_t now = engine_size_bytes(e), by = next(state) % (256 * (uint64_t)engine_cluster_bytes(e));

	by &= ~(uint64_t)511;
	engine_drain(e); /* as shrinking asks for */
	if (next(state) % 2)
		(void)engine_change(e, ENGINE_RESIZE, NULL, now - (by < now ? by : now));
	else
		(void)engine_change(e, ENGINE_RESIZE, NULL, now + by);
}

static void snapshot(struct engine *e, enum engine_change what, uint64_t *state)
{
	char *id;

	engine_drain(e);
	id = engine_snapshot_id(e, (unsigned)next(state) % 8);
	if (!id)
		return;
	some_requests(e, state);
	(void)engine_change(e, what, id, 0);
	free(id);
}

static void one_change(struct engine *e, unsigned i, uint64_t *state)
{
	char name[16];

	switch (next(state) % 8) {
	case 0:
	case 1:
	case 2:
		snprintf(name, sizeof(name), "fuzz %u", i);
		(void)engine_change(e, ENGINE_SNAPSHOT_CREATE, name, 0);
		break;
	case 3:
		snapshot(e, ENGINE_SNAPSHOT_APPLY, state);
		break;
	case 4:
	case 5:
		snapshot(e, ENGINE_SNAPSHOT_DELETE, state);
		break;
	default:
		resize(e, state);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t seed = fuzz_control(data, size, 0), state = fuzz_control(data, size, 1);
	struct engine *e;

	if (size > FUZZ_INPUT_MAX)
		return 0;
	e = engine_open(data, size, false, seed);
	if (!e)
		return 0;
	for (unsigned i = 0; i < CHANGES; i++) {
		some_requests(e, &state);
		one_change(e, i, &state);
	}
	engine_drain(e);
	engine_idle(e, TIMERS);
	engine_close(e);
	return 0;
}
