/* SPDX-License-Identifier: MIT */
/*
 * engine_loop.h: for unit tests of the engine: an image on a disk in memory, and one loop that serves it.
 */
#ifndef TESTS_UNIT_ENGINE_LOOP_H
#define TESTS_UNIT_ENGINE_LOOP_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/blk.h"
#include "base/math.h"
#include "memory.h"
#include "qcow2.h"
#include "qcow2/alloc.h"
#include "qcow2/check.h"
#include "qcow2/image.h"
#include "ring/co.h"

#define LOG_BYTES (128 * KiB)

static struct memory disk;
static struct error error;
static struct loop *loop;
static struct qcow2_image *img;
static struct qcow2_queue *queue;

static inline void start(const struct qcow2_options *opts)
{
	struct loop_params params = {
		.name = "test", .sq_entries = 8, .coroutines = 16, .ringless = true};

	assert_int_equal(loop_create(&loop, &params, &error), 0);
	assert_int_equal(qcow2_open(&img, &disk.st, opts, &error), 0);
	assert_int_equal(qcow2_set_metadata_loop(img, loop, &error), 0);
	assert_int_equal(qcow2_queue_create(&queue, img, loop, &error), 0);
}

static inline void turn(void)
{
	while (loop_turn(loop))
		;
}

static inline void detach(struct co_task *task)
{
	qcow2_detach_loop(img);
}

#endif
