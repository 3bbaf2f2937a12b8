/* SPDX-License-Identifier: MIT */
/*
 * co.h: pooled stackful coroutines on a loop, and what they wait for.
 *
 * A task runs on a stack from its loop's pool, or waits until one is free (first come, first
 * served). Nothing here is shared between threads: waits are woken on the loop that they wait on;
 * another thread wakes them by a message.
 *
 * Outside of a coroutine (co_self() == NULL: the main thread opening an image) the waits below are
 * legal as long as they need not wait; that they would is a programming error and asserted.
 */
#ifndef RING_CO_H
#define RING_CO_H

#include <assert.h>
#include <stdbool.h>

#include "base/list.h"
#include "ring/loop.h"

struct co;

/* Embedded by whoever starts a coroutine; must stay valid until fn returns. fn may free it. */
struct co_task {
	struct list list;
	void (*fn)(struct co_task *task);
};

/* Never fails and allocates nothing; see loop.h, invariant 3. */
void loop_spawn(struct loop *loop, struct co_task *task);

struct co *co_self(void);
/* Gives the thread back to the loop until co_resume(). */
void co_suspend(void);
/* Makes a suspended coroutine of this thread's loop ready. */
void co_resume(struct co *co);
/* Lets everything else that is ready run first. */
void co_yield(void);
void co_sleep_ns(uint64_t ns);

/* Waiters, first in first out. */
struct co_waitq {
	struct list waiters;
};

void co_waitq_init(struct co_waitq *q);
void co_wait(struct co_waitq *q); /* suspends; the caller checks its condition again */
void co_wake_one(struct co_waitq *q);
void co_wake_all(struct co_waitq *q);
bool co_waitq_empty(const struct co_waitq *q);

/* Not recursive; first come, first served. */
struct co_mutex {
	bool locked;
	struct co_waitq waitq;
};

void co_mutex_init(struct co_mutex *m);
void co_lock(struct co_mutex *m);
void co_unlock(struct co_mutex *m);

/* Counts parts that are in flight; one coroutine waits for all. The first error stays. */
struct co_latch {
	unsigned pending;
	int ret;
	struct co *waiter;
};

static inline void co_latch_init(struct co_latch *l)
{
	*l = (struct co_latch){0};
}

static inline void co_latch_add(struct co_latch *l)
{
	l->pending++;
}

/* On the waiter's loop; from a callback or a coroutine. */
void co_latch_done(struct co_latch *l, int ret);
/* The first error, or 0. */
int co_latch_wait(struct co_latch *l);

/*
 * Runs @fn(@arg) in another loop's coroutine and waits for it; on the calling loop itself, or with
 * @loop NULL (no loops are running), it is a plain call. The other loop needs a free coroutine for
 * each such call that may be under way.
 */
int co_call(struct loop *loop, int (*fn)(void *arg), void *arg);

#endif
