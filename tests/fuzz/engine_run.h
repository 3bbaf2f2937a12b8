/* SPDX-License-Identifier: MIT */
/*
 * engine_run.h: the engine on one ringless loop over a memdisk, for the fuzzers: requests are started,
 * loop and disks are turned until all have completed. Nothing here waits for a clock. A backing or data file is
 * another copy of the image, a few times.
 */
#ifndef TESTS_ENGINE_RUN_H
#define TESTS_ENGINE_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/blk.h"
#include "base/error.h"

struct engine;

#define ENGINE_DEPTH	  8
#define ENGINE_LEN_MAX	  ((uint64_t)128 << 10) /* of a read or write */

/* Opens; NULL if the image is refused (checked: with a message). */
struct engine *engine_open(const uint8_t *data, size_t size, bool read_only, uint64_t seed);
/* The same with a recovery log of ENGINE_LOG_BYTES in memory, started anew or to be replayed. */
#define ENGINE_LOG_BYTES ((size_t)256 << 10)
struct engine *engine_open_log(const uint8_t *data, size_t size, uint64_t seed, void *log, bool recover);
/* A copy of the image file as it is now, to be freed. */
uint8_t *engine_file_copy(const struct engine *e, size_t *size);
/* Reads the start of the disk, at most ENGINE_LEN_MAX; how much. Nothing may be in flight. */
size_t engine_read_start(struct engine *e, uint8_t *out);
uint64_t engine_size_bytes(const struct engine *e);
uint32_t engine_cluster_bytes(const struct engine *e);
/* Starts a request, when fewer than ENGINE_DEPTH are in flight; the range is cut to the disk's end. */
void engine_start(struct engine *e, enum blk_op op, uint32_t flags, uint64_t offset, uint64_t len,
		  uint8_t fill);
/* Waits for all. */
void engine_drain(struct engine *e);
/* Lets time pass, to the next @timers deadlines of whoever waits for one: what is done in the background. */
void engine_idle(struct engine *e, unsigned timers);
/* Snapshots and the disk's size, as while attached; other requests may be in flight. Checked: an error has a message. */
enum engine_change {
	ENGINE_SNAPSHOT_CREATE,
	ENGINE_SNAPSHOT_APPLY,
	ENGINE_SNAPSHOT_DELETE,
	ENGINE_RESIZE, /* smaller: only when nothing is in flight */
};
int engine_change(struct engine *e, enum engine_change what, const char *name, uint64_t size_bytes);
/* The id of snapshot @index (as often around as it takes), to be freed; NULL: there is none. Nothing may be in flight. */
char *engine_snapshot_id(struct engine *e, unsigned index);
void engine_close(struct engine *e);

#endif
