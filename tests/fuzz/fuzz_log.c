/* SPDX-License-Identifier: MIT */
/*
 * fuzz_log.c: a recovery log, as it is after a kill and as it is after damage.
 *
 * The image is opened with a log, written to without a flush, and left as a killed process would
 * leave it: the file and the log are copied while the engine still runs. Then the image is opened from
 * the copies. With the log as it was, everything must be there (if the image was sound before). With
 * words of the log changed, as the input's last bytes say, it is refused or replayed, but nothing more.
 */
#include "engine_run.h"
#include "fuzz.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "memdisk.h"
#include "qcow2/check.h"

#define OPS	      24
#define PATCHES	      8 /* of 8 bytes each, before the control bytes */
#define HEADER_WORDS  48
#define RECORDS_BYTES 4096 /* of the log, after its first page, that patches reach */

static uint64_t the_log[ENGINE_LOG_BYTES / 8] __attribute__((aligned(4096)));
static uint64_t saved_log[ENGINE_LOG_BYTES / 8] __attribute__((aligned(4096)));
static uint8_t before[ENGINE_LEN_MAX], after[ENGINE_LEN_MAX];

static uint64_t next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static void write_some(struct engine *e, uint64_t *state)
{
	uint64_t cluster = engine_cluster_bytes(e);

	for (unsigned i = 0; i < OPS; i++) {
		uint64_t r = next(state), offset = next(state) % (64 * cluster);
		enum blk_op op = r % 8 < 5 ? BLK_WRITE : r % 8 < 6 ? BLK_DISCARD : BLK_WRITE_ZEROES;

		if (next(state) % 16 == 0)
			op = BLK_FLUSH;
		engine_start(e, op, 0, offset, next(state) % (3 * cluster), (uint8_t)(r >> 8));
		if (next(state) % 4 == 0)
			engine_drain(e);
	}
	engine_drain(e);
}

static bool is_sound(const uint8_t *data, size_t size)
{
	struct qcow2_check_options opts = {.memory_bytes = (uint64_t)64 << 20};
	struct storage *st = memdisk_create(data, size, FUZZ_FILE_MAX, 1);
	struct qcow2_check_result res;
	bool sound;

	sound = qcow2_check(st, &opts, &res, NULL) == 0 && !res.corruptions && !res.errors;
	storage_close(st);
	return sound;
}

/* Changes words of the log; true if any changed. */
static bool patch_log(const uint8_t *data, size_t size)
{
	bool changed = false;

	for (unsigned i = 0; i < PATCHES && size >= 16 + (i + 1) * 8; i++) {
		const uint8_t *p = data + size - 16 - (i + 1) * 8;
		uint64_t *word, old, value = p[4] | p[5] << 8 | (uint64_t)p[6] << 16 | (uint64_t)p[7] << 24;

		if (p[0] % 4 < 2)
			continue;
		word = p[0] % 4 == 2 ? saved_log + p[1] % HEADER_WORDS
				     : saved_log + 512 + (p[1] | p[2] << 8) % (RECORDS_BYTES / 8);
		old = *word;
		switch (p[3] % 5) {
		case 0: *word = value; break;
		case 1: *word = value << 9; break;
		case 2: *word ^= (uint64_t)1 << value % 64; break;
		case 3: *word = saved_log[512 + value % (RECORDS_BYTES / 8)]; break;
		default: *word += (int32_t)value; break;
		}
		changed |= *word != old;
	}
	return changed;
}

static void recover(const uint8_t *file, size_t file_size, uint64_t seed, bool must, size_t known)
{
	struct engine *e = engine_open_log(file, file_size, seed, saved_log, true);

	assert(e || !must);
	if (!e)
		return;
	size_t have = engine_read_start(e, after);

	if (must)
		assert(have == known && !memcmp(before, after, known));
	engine_start(e, BLK_WRITE, 0, 0, 65536, 0x5a);
	engine_start(e, BLK_FLUSH, 0, 0, 0, 0);
	engine_close(e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t seed = fuzz_control(data, size, 0), state = fuzz_control(data, size, 1);
	size_t file_size, known;
	struct engine *e;
	uint8_t *file;
	bool sound, patched;

	if (size > FUZZ_INPUT_MAX)
		return 0;
	e = engine_open_log(data, size, seed, the_log, false);
	if (!e)
		return 0;
	sound = is_sound(data, size);
	write_some(e, &state);
	known = engine_read_start(e, before);
	file = engine_file_copy(e, &file_size);
	memcpy(saved_log, the_log, sizeof(the_log));
	engine_close(e);
	patched = patch_log(data, size);
	recover(file, file_size, seed, sound && !patched && known, known);
	free(file);
	return 0;
}
