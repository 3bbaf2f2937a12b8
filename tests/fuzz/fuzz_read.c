/* SPDX-License-Identifier: MIT */
/*
 * fuzz_read.c: opening any file read-only and reading all of a small disk, or of a large one the
 * start, the end, and places in between.
 */
#include "engine_run.h"
#include "fuzz.h"

#include <assert.h>

#define READS_MAX 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t seed = fuzz_control(data, size, 0), disk, stride;
	struct engine *e;

	if (size > FUZZ_INPUT_MAX)
		return 0;
	e = engine_open(data, size, true, seed);
	if (!e)
		return 0;
	disk = engine_size_bytes(e);
	stride = disk / READS_MAX;
	if (stride < ENGINE_LEN_MAX)
		stride = ENGINE_LEN_MAX;
	for (uint64_t i = 0; i < READS_MAX && i * stride < disk; i++)
		engine_start(e, BLK_READ, 0, i * stride, ENGINE_LEN_MAX, 0xa5);
	if (disk)
		engine_start(e, BLK_READ, 0, disk - (disk < 65536 ? disk : 65536), 65536, 0xa5);
	engine_start(e, BLK_FLUSH, 0, 0, 0, 0);
	engine_close(e);
	return 0;
}
