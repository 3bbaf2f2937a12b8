/* SPDX-License-Identifier: MIT */
/*
 * workers.h: a small pool of threads for work that burns CPU or blocks.
 *
 * A coroutine hands a function to the pool, suspends, and goes on on its own loop when the function
 * has returned; or a callback is called there. Any loops may share a pool.
 *
 * Where there is nobody to wait, the function simply runs on the caller's thread: outside of a loop,
 * on a ringless one (a simulation has to be the same each time), and when no thread can be had.
 *
 * Invariants:
 *  1. A thread is started by the first work that finds no idle one, up to the pool's bound, and ends
 *     with the pool. It is the child of a thread that serves I/O and so inherits PR_SET_IO_FLUSHER;
 *     it takes no signals.
 *  2. Work starts in the order that it was handed in.
 *  3. Beyond the starting of threads nothing is allocated after work_pool_create().
 */
#ifndef RING_WORKERS_H
#define RING_WORKERS_H

#include "base/error.h"
#include "base/list.h"
#include "ring/loop.h"

struct work_pool;

#define WORK_THREADS_MAX     64
#define WORK_THREADS_DEFAULT 4 /* or the number of processors, if there are less */

/* At most @threads of them; 0: the default. */
int work_pool_create(struct work_pool **out, unsigned threads, struct error *err) must_check;
void work_pool_destroy(struct work_pool *pool); /* accepts NULL; no work may be queued or running */
/* The bound that it was created with. */
unsigned work_pool_threads(const struct work_pool *pool);

/* Runs @fn(@arg) in the pool and suspends until it returned. */
int co_work(struct work_pool *pool, int (*fn)(void *arg), void *arg);

/*
 * The form without a coroutine. @fn runs in the pool, then @done on the loop that called
 * work_submit(), on the loop's own stack; where work is not handed over, both run before
 * work_submit() returns. The struct is the pool's until @done is called.
 */
struct work {
	void (*fn)(struct work *work);
	void (*done)(struct work *work);

	/* the pool's */
	struct list list;
	struct loop_msg msg;
	struct loop *from;
};

void work_submit(struct work_pool *pool, struct work *work);

#endif
