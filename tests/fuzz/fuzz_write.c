/* SPDX-License-Identifier: MIT */
/*
 * fuzz_write.c: opening any file read-write and running reads, writes, zero-writes, discards and
 * flushes on it, several in flight, chosen by the input's last bytes; then closing it.
 */
#include "engine_run.h"
#include "fuzz.h"

#include <stddef.h>

#define OPS 40

static uint64_t next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static void one_op(struct engine *e, uint64_t *state)
{
	static const enum blk_op ops[] = {
		BLK_READ,  BLK_WRITE, BLK_WRITE,	BLK_WRITE,
		BLK_WRITE, BLK_FLUSH, BLK_WRITE_ZEROES, BLK_DISCARD,
	};
	uint64_t cluster = engine_cluster_bytes(e), r = next(state);
	uint64_t offset = next(state), len;
	enum blk_op op = ops[r % 8];
	uint32_t flags = 0;

	r >>= 3;
	if (r & 1) /* near the start, where a small image has its data */
		offset %= 64 * cluster;
	len = r & 2 ? next(state) % (4 * cluster) : next(state) % 8192;
	if (op == BLK_DISCARD && (r & 12) == 0)
		len = UINT64_MAX;
	if ((op == BLK_WRITE || op == BLK_WRITE_ZEROES) && (r & 48) == 0)
		flags |= BLK_FUA;
	if (op == BLK_WRITE_ZEROES && r & 64)
		flags |= BLK_NOUNMAP;
	engine_start(e, op, flags, offset, len, (uint8_t)r);
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
	for (unsigned i = 0; i < OPS; i++) {
		one_op(e, &state);
		if (next(&state) % 8 == 0)
			engine_drain(e);
	}
	engine_drain(e);
	if (seed & 8) /* time for what is done in the background */
		engine_idle(e, 64);
	engine_close(e);
	return 0;
}
