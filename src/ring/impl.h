/* SPDX-License-Identifier: MIT */
/*
 * impl.h: what loop.c and co.c share: the loop and its coroutines. Private to src/ring.
 */
#ifndef RING_IMPL_H
#define RING_IMPL_H

#include <liburing.h>
#include <stdatomic.h>

#include "ring/co.h"
#include "ring/loop.h"

#if defined(__SANITIZE_ADDRESS__)
#define RING_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RING_ASAN 1
#endif
#endif

#if defined(__SANITIZE_THREAD__)
#define RING_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RING_TSAN 1
#endif
#endif

#if !defined(CO_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define CO_UCONTEXT 1
#endif

/* Where a flow of control that does not run now goes on. */
#ifdef CO_UCONTEXT
#include <ucontext.h>
struct co_ctx {
	ucontext_t uc;
};
#else
struct co_ctx {
	void *sp;
};
/* co_switch.S: saves the callee-saved registers and the stack pointer, loads the other's. */
void co_ctx_switch(void **save_sp, void *load_sp);
void co_ctx_entry(void);
#endif

#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define RUNNING_ON_VALGRIND		    0
#define VALGRIND_STACK_REGISTER(start, end) 0
#define VALGRIND_STACK_DEREGISTER(id)	    ((void)(id))
#endif

enum co_state {
	CO_FREE,      /* on the pool's free list */
	CO_RUNNING,   /* is pool->current */
	CO_SUSPENDED, /* whoever knows it will call co_resume() */
	CO_READY,     /* on ready or yielded */
};

struct co {
	struct co_ctx ctx;
	struct loop *loop;
	struct list list; /* free, ready, yielded, or a wait queue */
	struct co_task *task;
	enum co_state state;
	bool exiting; /* sanitizers only: leaves its stack for good */
	char *stack;  /* lowest usable address */
	size_t stack_bytes;
	void *asan_fake_stack;
	void *tsan_fiber;
	unsigned valgrind_id;
};

struct co_pool {
	struct list free;
	struct list ready;
	struct list yielded; /* ready, but only when all that is ready has run */
	struct list pending; /* tasks that wait for a free coroutine */
	struct co *current;
	struct co_ctx ctx; /* of the loop's own stack while a coroutine runs */
	struct co *all;
	unsigned count, alive;
	char *map;
	size_t map_bytes;

	/* of the loop's own stack, for the sanitizers */
	const void *asan_stack;
	size_t asan_stack_bytes;
	void *asan_fake_stack;
	void *tsan_fiber;
};

int co_pool_init(struct loop *loop, unsigned count, size_t stack_bytes,
		 struct error *err) must_check;
void co_pool_destroy(struct loop *loop);
/* Runs up to @budget switches' worth of what is ready; true if it did anything. */
bool co_pool_run(struct loop *loop, unsigned budget);
bool co_pool_ready(const struct loop *loop);

/* A completion, taken off the ring but not delivered yet. */
struct loop_done {
	struct loop_op *op;
	int32_t res;
	uint32_t flags;
};

/* Messages of a turn to one other loop, which go out together. */
struct loop_outbox {
	struct loop *to;
	struct loop_msg *newest, *oldest; /* linked from the newest on, as in an inbox */
};

/* Loops that one turn's messages wait for; those to others are sent at once. */
#define LOOP_OUTBOXES 8

/* One more; the loop's thread alone writes it. */
static inline void loop_count(uint64_t *count)
{
	__atomic_store_n(count, *count + 1, __ATOMIC_RELAXED);
}

struct loop {
	struct co_pool co;

	/* the loop's thread only */
	struct list timers; /* sorted by deadline */
	uint64_t now_ns;
	void (*idle_fn)(void *arg);
	void *idle_arg;
	struct loop_done *done; /* a circular queue of done_mask + 1 */
	uint32_t done_head, done_tail, done_mask;
	uint64_t file_slots; /* bit set: taken */
	bool has_ring, enabled, files_registered, wake_oneshot;
	uint64_t wait_max_ns; /* UINT64_MAX, but under valgrind */
	int failed;	      /* the ring's fatal error, or 0 */
	struct loop_counts counts;
	struct loop_op wake_op;
	int wake_fd;
	struct loop_outbox outboxes[LOOP_OUTBOXES];
	unsigned outboxes_used;
	struct io_uring ring;
	char name[16];

	/* any thread */
	_Alignas(64) _Atomic(struct loop_msg *) inbox; /* newest first */
	atomic_bool waiting; /* the loop waits, or is about to: whoever clears it must wake it */
	atomic_bool stop;
	atomic_uint posters; /* threads inside loop_post() or loop_stop() */
	void (*failure_fn)(void); /* see loop_on_failure() */
};

#endif
