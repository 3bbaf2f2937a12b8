/* SPDX-License-Identifier: MIT */
/*
 * co.c: coroutines and what they wait for; see co.h.
 *
 * A loop has a fixed number of coroutines, made with it: each a stack with a guard page below it in
 * one mapping, populated at once so that no request meets a page fault. A coroutine that has run
 * its task to the end stays in co_main() and takes the next one on the same stack.
 *
 * Control only ever passes between the loop's own stack and one coroutine, never from coroutine to
 * coroutine. That keeps the recursion flat, and lets the loop's stack be the one place that decides
 * what runs next.
 *
 * Invariants:
 *  1. A coroutine is in exactly one of the states of enum co_state, and its list entry is on the
 *     list that the state names (a suspended one may be on a wait queue or on none).
 *  2. co_resume() is called once for each co_suspend(): resuming what is not suspended is a
 *     programming error, and asserted.
 *  3. Tasks start in the order of loop_spawn(): a task may start at once only if none is pending.
 *  4. Once its fn has been called, a task is not touched any more; it may be gone.
 *  5. What co_call() sends around lies on the caller's stack. The side that answers
 *     posts the answer last and touches nothing of it afterwards.
 */
#include "ring/co.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/math.h"
#include "ring/impl.h"

#ifdef RING_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef RING_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#if defined(RING_ASAN) || defined(RING_TSAN)
#define STACK_BYTES_DEFAULT (256 * KiB)
#else
#define STACK_BYTES_DEFAULT (64 * KiB)
#endif

enum { COROUTINES_MAX = 1 << 16 };

/* ---- the switch ---- */

/* From the loop's stack to @co, and back when it suspends or ends. */
static void switch_in(struct co_pool *pool, struct co *co)
{
#ifdef RING_TSAN
	pool->tsan_fiber = __tsan_get_current_fiber();
	if (!co->tsan_fiber)
		co->tsan_fiber = __tsan_create_fiber(0);
	__tsan_switch_to_fiber(co->tsan_fiber, 0);
#endif
#ifdef RING_ASAN
	__sanitizer_start_switch_fiber(&pool->asan_fake_stack, co->stack, co->stack_bytes);
#endif
#ifdef CO_UCONTEXT
	swapcontext(&pool->ctx.uc, &co->ctx.uc);
#else
	co_ctx_switch(&pool->ctx.sp, co->ctx.sp);
#endif
#ifdef RING_ASAN
	__sanitizer_finish_switch_fiber(pool->asan_fake_stack, NULL, NULL);
#endif
}

static void switch_out(struct co_pool *pool, struct co *co)
{
#ifdef RING_TSAN
	__tsan_switch_to_fiber(pool->tsan_fiber, 0);
#endif
#ifdef RING_ASAN
	__sanitizer_start_switch_fiber(co->exiting ? NULL : &co->asan_fake_stack, pool->asan_stack,
				       pool->asan_stack_bytes);
#endif
#ifdef CO_UCONTEXT
	swapcontext(&co->ctx.uc, &pool->ctx.uc);
#else
	co_ctx_switch(&co->ctx.sp, pool->ctx.sp);
#endif
#ifdef RING_ASAN
	__sanitizer_finish_switch_fiber(co->asan_fake_stack, &pool->asan_stack,
					&pool->asan_stack_bytes);
#endif
}

/* Entered once by each coroutine, and left never. */
static void co_main(struct co *co)
{
	struct co_pool *pool = &co->loop->co;

#ifdef RING_ASAN
	__sanitizer_finish_switch_fiber(NULL, &pool->asan_stack, &pool->asan_stack_bytes);
#endif
	for (;;) {
		if (!co->exiting)
			co->task->fn(co->task);
		co->state = CO_FREE;
		switch_out(pool, co);
	}
}

#ifdef CO_UCONTEXT
/* makecontext() passes ints only. */
static void co_main_ucontext(unsigned hi, unsigned lo)
{
	co_main((struct co *)(uintptr_t)((uint64_t)hi << 32 | lo));
}

static void ctx_init(struct co *co)
{
	uint64_t arg = (uintptr_t)co;

	getcontext(&co->ctx.uc);
	co->ctx.uc.uc_stack.ss_sp = co->stack;
	co->ctx.uc.uc_stack.ss_size = co->stack_bytes;
	co->ctx.uc.uc_link = NULL;
	makecontext(&co->ctx.uc, (void (*)(void))co_main_ucontext, 2, (unsigned)(arg >> 32),
		    (unsigned)arg);
}
#else
/* Lays out what co_ctx_switch() pops; see co_switch.S. */
static void ctx_init(struct co *co)
{
	uintptr_t *sp = (uintptr_t *)(void *)(co->stack + co->stack_bytes);

#ifdef __x86_64__
	sp -= 2; /* %rsp is a multiple of 16 where co_ctx_entry() starts */
	*--sp = (uintptr_t)co_ctx_entry;
	*--sp = 0;		    /* %rbp */
	*--sp = 0;		    /* %rbx */
	*--sp = (uintptr_t)co;	    /* %r12 */
	*--sp = (uintptr_t)co_main; /* %r13 */
	*--sp = 0;		    /* %r14 */
	*--sp = 0;		    /* %r15 */
#else
	sp -= 160 / sizeof(*sp);
	memset(sp, 0, 160);
	sp[1] = (uintptr_t)co_ctx_entry; /* x30 */
	sp[2] = (uintptr_t)co;		 /* x19 */
	sp[3] = (uintptr_t)co_main;	 /* x20 */
#endif
	co->ctx.sp = sp;
}
#endif

/* ---- the pool ---- */

int co_pool_init(struct loop *loop, unsigned count, size_t stack_bytes, struct error *err)
{
	struct co_pool *pool = &loop->co;
	size_t page = (size_t)sysconf(_SC_PAGESIZE), each;

	assert(count <= COROUTINES_MAX && stack_bytes <= GiB);
	list_init(&pool->free);
	list_init(&pool->ready);
	list_init(&pool->yielded);
	list_init(&pool->pending);
	if (!count)
		return 0;
	stack_bytes = align_up(stack_bytes ? stack_bytes : STACK_BYTES_DEFAULT, page);
	each = page + stack_bytes;
	pool->all = calloc(count, sizeof(*pool->all));
	if (!pool->all)
		return error_set(err, -ENOMEM, "out of memory");
	pool->map = mmap(NULL, each * count, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_POPULATE, -1, 0);
	if (pool->map == MAP_FAILED) {
		pool->map = NULL;
		return error_set(err, -errno, "cannot map %u stacks: %s", count, strerror(errno));
	}
	pool->map_bytes = each * count;
	for (unsigned i = 0; i < count; i++) {
		struct co *co = &pool->all[i];
		char *guard = pool->map + i * each;

		if (mprotect(guard, page, PROT_NONE))
			return error_set(err, -errno, "cannot guard a stack: %s", strerror(errno));
		co->loop = loop;
		co->stack = guard + page;
		co->stack_bytes = stack_bytes;
		co->valgrind_id = VALGRIND_STACK_REGISTER(co->stack, co->stack + stack_bytes);
		ctx_init(co);
		list_add_tail(&pool->free, &co->list);
		pool->count++;
	}
	return 0;
}

void co_pool_destroy(struct loop *loop)
{
	struct co_pool *pool = &loop->co;

	assert(!pool->alive && list_empty(&pool->pending));
	for (unsigned i = 0; i < pool->count; i++) {
		struct co *co = &pool->all[i];

		(void)co;
#ifdef RING_ASAN
		/* Its fake stack is given back by leaving it for good, from inside. */
		if (co->asan_fake_stack) {
			co->exiting = true;
			switch_in(pool, co);
		}
#endif
#ifdef RING_TSAN
		if (co->tsan_fiber)
			__tsan_destroy_fiber(co->tsan_fiber);
#endif
		VALGRIND_STACK_DEREGISTER(co->valgrind_id);
	}
	if (pool->map) {
#ifdef RING_ASAN
		ASAN_UNPOISON_MEMORY_REGION(pool->map, pool->map_bytes);
#endif
		munmap(pool->map, pool->map_bytes);
	}
	free(pool->all);
	pool->map = NULL;
	pool->all = NULL;
	pool->count = 0;
}

static void co_enter(struct co_pool *pool, struct co *co)
{
	assert(!pool->current);
	pool->current = co;
	co->state = CO_RUNNING;
	switch_in(pool, co);
	pool->current = NULL;
	if (co->state == CO_FREE) {
		pool->alive--;
		list_add(&pool->free, &co->list); /* the warmest stack first */
	}
}

static void task_start(struct co_pool *pool, struct co_task *task)
{
	struct co *co = list_entry(list_pop(&pool->free), struct co, list);

	co->task = task;
	pool->alive++;
	co_enter(pool, co);
}

static bool task_can_start(const struct co_pool *pool)
{
	return !list_empty(&pool->pending) && !list_empty(&pool->free);
}

bool co_pool_ready(const struct loop *loop)
{
	const struct co_pool *pool = &loop->co;

	return !list_empty(&pool->ready) || !list_empty(&pool->yielded) || task_can_start(pool);
}

bool co_pool_run(struct loop *loop, unsigned budget)
{
	struct co_pool *pool = &loop->co;
	bool any = false;

	/* Those that yielded in the last turn; who yields in this one waits for the next. */
	list_splice_tail(&pool->ready, &pool->yielded);
	for (; budget; budget--) {
		struct list *l = list_pop(&pool->ready);

		if (l)
			co_enter(pool, list_entry(l, struct co, list));
		else if (task_can_start(pool))
			task_start(pool,
				   list_entry(list_pop(&pool->pending), struct co_task, list));
		else
			break;
		any = true;
	}
	return any;
}

void loop_spawn(struct loop *loop, struct co_task *task)
{
	struct co_pool *pool = &loop->co;

	assert(pool->count);
	loop_count(&loop->counts.coroutines);
	if (loop_self() == loop && !pool->current && list_empty(&pool->pending) &&
	    !list_empty(&pool->free))
		task_start(pool, task);
	else
		list_add_tail(&pool->pending, &task->list);
}

/* ---- a coroutine's own view ---- */

struct co *co_self(void)
{
	struct loop *loop = loop_self();

	return loop ? loop->co.current : NULL;
}

void co_suspend(void)
{
	struct co *co = co_self();

	assert(co); /* outside of a coroutine nothing may have to wait */
	co->state = CO_SUSPENDED;
	switch_out(&co->loop->co, co);
}

void co_resume(struct co *co)
{
	assert(co->state == CO_SUSPENDED && co->loop == loop_self());
	co->state = CO_READY;
	list_add_tail(&co->loop->co.ready, &co->list);
}

void co_yield(void)
{
	struct co *co = co_self();

	assert(co);
	co->state = CO_READY;
	list_add_tail(&co->loop->co.yielded, &co->list);
	switch_out(&co->loop->co, co);
}

struct sleeper {
	struct loop_timer timer;
	struct co *co;
};

static void sleep_over(struct loop_timer *timer)
{
	co_resume(container_of(timer, struct sleeper, timer)->co);
}

void co_sleep_ns(uint64_t ns)
{
	struct sleeper s = {.co = co_self()};

	assert(s.co);
	loop_timer_init(&s.timer, sleep_over);
	loop_timer_arm(s.co->loop, &s.timer, ns);
	co_suspend();
}

/* ---- wait queues, mutexes, latches ---- */

void co_waitq_init(struct co_waitq *q)
{
	list_init(&q->waiters);
}

bool co_waitq_empty(const struct co_waitq *q)
{
	return list_empty(&q->waiters);
}

void co_wait(struct co_waitq *q)
{
	struct co *co = co_self();

	assert(co);
	list_add_tail(&q->waiters, &co->list);
	co_suspend();
}

void co_wake_one(struct co_waitq *q)
{
	struct list *l = list_pop(&q->waiters);

	if (l)
		co_resume(list_entry(l, struct co, list));
}

void co_wake_all(struct co_waitq *q)
{
	while (!list_empty(&q->waiters))
		co_wake_one(q);
}

void co_mutex_init(struct co_mutex *m)
{
	m->locked = false;
	co_waitq_init(&m->waitq);
}

void co_lock(struct co_mutex *m)
{
	loop_count_lock();
	if (!m->locked) {
		m->locked = true;
		return;
	}
	co_wait(&m->waitq); /* co_unlock() hands it over locked */
	assert(m->locked);
}

void co_unlock(struct co_mutex *m)
{
	assert(m->locked);
	if (co_waitq_empty(&m->waitq))
		m->locked = false;
	else
		co_wake_one(&m->waitq);
}

void co_latch_done(struct co_latch *l, int ret)
{
	struct co *waiter = l->waiter;

	assert(l->pending && ret <= 0);
	if (ret && !l->ret)
		l->ret = ret;
	if (--l->pending == 0 && waiter) {
		l->waiter = NULL;
		co_resume(waiter);
	}
}

int co_latch_wait(struct co_latch *l)
{
	assert(!l->waiter);
	if (l->pending) {
		l->waiter = co_self();
		co_suspend();
		assert(!l->pending);
	}
	return l->ret;
}

/* ---- calls to another loop ---- */

struct call {
	struct loop_msg msg;
	struct co_task task;
	int (*fn)(void *arg);
	void *arg;
	int ret;
	struct loop *to, *from;
	struct co *caller;
};

static void call_return(struct loop_msg *msg)
{
	co_resume(container_of(msg, struct call, msg)->caller);
}

static void call_run(struct co_task *task)
{
	struct call *call = container_of(task, struct call, task);

	call->ret = call->fn(call->arg);
	call->msg.fn = call_return;
	loop_post(call->from, &call->msg);
}

static void call_arrive(struct loop_msg *msg)
{
	struct call *call = container_of(msg, struct call, msg);

	loop_spawn(call->to, &call->task);
}

int co_call(struct loop *loop, int (*fn)(void *arg), void *arg)
{
	struct call call = {
		.msg.fn = call_arrive,
		.task.fn = call_run,
		.fn = fn,
		.arg = arg,
		.to = loop,
		.from = loop_self(),
		.caller = co_self(),
	};

	if (!loop || loop == call.from)
		return fn(arg);
	assert(call.caller);
	loop_post(loop, &call.msg);
	co_suspend();
	return call.ret;
}
