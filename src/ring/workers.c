/* SPDX-License-Identifier: MIT */
/* workers.c: see workers.h. */
#include "ring/workers.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/caps.h"
#include "base/log.h"
#include "base/math.h"
#include "base/memlock.h"
#include "ring/co.h"

/* Codecs keep their state on the heap; what they have on the stack is tables of some KiB. */
#define WORK_STACK_BYTES ((size_t)256 << 10)

struct work_pool {
	unsigned max;
	pthread_mutex_t lock;
	pthread_cond_t queued;
	/* under the lock */
	struct list queue; /* struct work */
	unsigned queued_count;
	unsigned count; /* threads that were started */
	unsigned idle;	/* of those, that wait; each has at most one wakeup on its way */
	bool stop,
		failed; /* failed: no thread could be had once; it is not tried again and again */
	pthread_t threads[];
};

static void work_arrived(struct loop_msg *msg)
{
	struct work *work = container_of(msg, struct work, msg);

	work->done(work);
}

static void *work_thread(void *arg)
{
	struct work_pool *pool = arg;

	(void)pthread_setname_np(pthread_self(), "work");
	memlock_touch_stack(WORK_STACK_BYTES / 4);
	/* it computes: privileges are of no use to it, and whoever started it drops his later, maybe */
	(void)!caps_keep(0);
	pthread_mutex_lock(&pool->lock);
	for (;;) {
		struct list *l = list_pop(&pool->queue);
		struct work *work;

		if (!l && pool->stop)
			break;
		if (!l) {
			pool->idle++;
			pthread_cond_wait(&pool->queued, &pool->lock);
			pool->idle--;
			continue;
		}
		pool->queued_count--;
		pthread_mutex_unlock(&pool->lock);
		work = list_entry(l, struct work, list);
		work->fn(work);
		loop_post(work->from, &work->msg);
		pthread_mutex_lock(&pool->lock);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

int work_pool_create(struct work_pool **out, unsigned threads, struct error *err)
{
	struct work_pool *pool;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	*out = NULL;
	assert(threads <= WORK_THREADS_MAX);
	if (!threads)
		threads = cpus > 0 && cpus < WORK_THREADS_DEFAULT ? (unsigned)cpus
								  : WORK_THREADS_DEFAULT;
	pool = calloc(1, sizeof(*pool) + threads * sizeof(pool->threads[0]));
	if (!pool)
		return error_set(err, -ENOMEM, "no memory for a pool of threads");
	pool->max = threads;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->queued, NULL);
	list_init(&pool->queue);
	*out = pool;
	return 0;
}

void work_pool_destroy(struct work_pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	assert(list_empty(&pool->queue));
	pool->stop = true;
	pthread_cond_broadcast(&pool->queued);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->count; i++)
		pthread_join(pool->threads[i], NULL);
	pthread_cond_destroy(&pool->queued);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

unsigned work_pool_threads(const struct work_pool *pool)
{
	return pool->max;
}

/* One thread more; under the lock. */
static void start_thread(struct work_pool *pool)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int ret;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, WORK_STACK_BYTES);
	/* Signals are for the threads that expect them. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = pthread_create(&pool->threads[pool->count], &attr, work_thread, pool);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (!ret) {
		pool->count++;
		return;
	}
	pool->failed = true;
	log_warn("cannot create a thread for background work: %s", strerror(ret));
}

/* Whether @work is a thread's now. */
static bool hand_over(struct work_pool *pool, struct work *work)
{
	struct loop *loop = loop_self();

	if (!loop || !loop_ring(loop))
		return false;
	work->from = loop;
	work->msg.fn = work_arrived;
	loop_mutex_lock(&pool->lock);
	if (pool->queued_count >= pool->idle && pool->count < pool->max && !pool->failed)
		start_thread(pool);
	if (!pool->count) {
		pthread_mutex_unlock(&pool->lock);
		return false;
	}
	list_add_tail(&pool->queue, &work->list);
	pool->queued_count++;
	pthread_cond_signal(&pool->queued);
	pthread_mutex_unlock(&pool->lock);
	return true;
}

void work_submit(struct work_pool *pool, struct work *work)
{
	if (hand_over(pool, work))
		return;
	work->fn(work);
	work->done(work);
}

struct co_work_call {
	struct work work;
	int (*fn)(void *arg);
	void *arg;
	int ret;
	struct co *caller;
};

static void co_work_run(struct work *work)
{
	struct co_work_call *call = container_of(work, struct co_work_call, work);

	call->ret = call->fn(call->arg);
}

static void co_work_done(struct work *work)
{
	co_resume(container_of(work, struct co_work_call, work)->caller);
}

int co_work(struct work_pool *pool, int (*fn)(void *arg), void *arg)
{
	struct co_work_call call = {
		.work = {.fn = co_work_run, .done = co_work_done},
		.fn = fn,
		.arg = arg,
		.caller = co_self(),
	};

	if (!call.caller || !hand_over(pool, &call.work))
		return fn(arg);
	co_suspend();
	return call.ret;
}
