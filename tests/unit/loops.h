/* SPDX-License-Identifier: MIT */
/*
 * loops.h: for unit tests of what runs on a loop: one is made, run by a thread, and waited for.
 */
#ifndef TESTS_UNIT_LOOPS_H
#define TESTS_UNIT_LOOPS_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/error.h"
#include "ring/loop.h"

static inline struct loop *make_loop(bool ringless, unsigned sq_entries, unsigned coroutines)
{
	struct loop_params p = {
		.name = "test",
		.sq_entries = sq_entries,
		.coroutines = coroutines,
		.ringless = ringless,
	};
	struct error err = {0};
	struct loop *loop;
	int ret = loop_create(&loop, &p, &err);

	if (ret)
		fail_msg("%s", error_text(&err, ret));
	return loop;
}

/* A thread's start: @arg is a loop, the result what loop_run() says, which join() expects to be 0. */
static inline void *run_thread(void *arg)
{
	return (void *)(intptr_t)loop_run(arg);
}

static inline void join(pthread_t thread)
{
	void *ret;

	pthread_join(thread, &ret);
	assert_null(ret);
}

#endif
