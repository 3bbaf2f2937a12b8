/* SPDX-License-Identifier: MIT */
/*
 * Proves of the pool of threads: none is started before there is work; as many pieces of work run at
 * once as the pool has threads, and never more; each comes back on the loop that handed it in, as a
 * resumed coroutine or a callback, in any mixture of loops; without a ring it is a plain call; threads
 * take no signals, and are marked as serving I/O if who started them is.
 */
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/math.h"
#include "loops.h"
#include "ring/co.h"
#include "ring/workers.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#define PR_GET_IO_FLUSHER 58
#endif

static struct work_pool *make_pool(unsigned threads)
{
	struct work_pool *pool;
	struct error err = {0};

	assert_int_equal(work_pool_create(&pool, threads, &err), 0);
	return pool;
}

/* Threads of pools; a sanitizer has others of its own. */
static unsigned count_threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	unsigned n = 0;

	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));) {
		char path[300], name[16] = "";
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", e->d_name);
		f = fopen(path, "r");
		if (f && fgets(name, sizeof(name), f))
			n += strcmp(name, "work\n") == 0;
		if (f)
			fclose(f);
	}
	closedir(dir);
	return n;
}

/* ---- how many run at once ---- */

enum { CROWD = 12, CROWD_THREADS = 3 };

struct crowd {
	struct work_pool *pool;
	struct loop *loop;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned inside, most_inside, ended;
	struct crowd_task {
		struct co_task task;
		struct crowd *crowd;
	} tasks[CROWD];
};

/* Stays until as many are inside as there are threads: a pool that runs less never ends. */
static int crowd_work(void *arg)
{
	struct crowd *c = arg;

	pthread_mutex_lock(&c->lock);
	c->inside++;
	c->most_inside = max_of(c->most_inside, c->inside);
	pthread_cond_broadcast(&c->changed);
	while (c->most_inside < CROWD_THREADS)
		pthread_cond_wait(&c->changed, &c->lock);
	pthread_mutex_unlock(&c->lock);
	usleep(1000);
	pthread_mutex_lock(&c->lock);
	c->inside--;
	pthread_mutex_unlock(&c->lock);
	return -7;
}

static void crowd_task(struct co_task *task)
{
	struct crowd_task *t = container_of(task, struct crowd_task, task);
	struct crowd *c = t->crowd;
	int ret = co_work(c->pool, crowd_work, c);

	if (ret != -7 || loop_self() != c->loop)
		fail_msg("came back with %d on another loop", ret);
	if (++c->ended == CROWD)
		loop_stop(c->loop);
}

static void test_bound(void **state)
{
	struct crowd c = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

	c.pool = make_pool(CROWD_THREADS);
	assert_int_equal(work_pool_threads(c.pool), CROWD_THREADS);
	c.loop = make_loop(false, 16, 16);
	for (int i = 0; i < CROWD; i++) {
		c.tasks[i].task.fn = crowd_task;
		c.tasks[i].crowd = &c;
		loop_spawn(c.loop, &c.tasks[i].task);
	}
	assert_int_equal(count_threads(), 0);
	assert_int_equal(loop_run(c.loop), 0);
	assert_int_equal(c.ended, CROWD);
	assert_int_equal(c.most_inside, CROWD_THREADS);
	assert_int_equal(count_threads(), CROWD_THREADS);
	loop_destroy(c.loop);
	work_pool_destroy(c.pool);
}

/* ---- plain calls ---- */

struct plain {
	struct co_task task;
	struct work work;
	struct work_pool *pool;
	pthread_t thread;
	int ret;
	unsigned ran, done;
};

static int plain_fn(void *arg)
{
	struct plain *p = arg;

	p->thread = pthread_self();
	return 5;
}

static void plain_work(struct work *work)
{
	container_of(work, struct plain, work)->ran++;
}

static void plain_done(struct work *work)
{
	struct plain *p = container_of(work, struct plain, work);

	assert_int_equal(p->ran, p->done + 1);
	p->done++;
}

static void plain_task(struct co_task *task)
{
	struct plain *p = container_of(task, struct plain, task);

	p->ret = co_work(p->pool, plain_fn, p);
	work_submit(p->pool, &p->work);
}

static void test_plain(void **state)
{
	struct plain p = {.task.fn = plain_task, .work = {.fn = plain_work, .done = plain_done}};
	struct loop *loop = make_loop(true, 16, 16);

	p.pool = make_pool(0);
	assert_in_range(work_pool_threads(p.pool), 1, WORK_THREADS_DEFAULT);
	assert_int_equal(co_work(p.pool, plain_fn, &p), 5);
	assert_true(pthread_equal(p.thread, pthread_self()));
	work_submit(p.pool, &p.work);
	assert_int_equal(p.done, 1);
	p.thread = 0;
	loop_spawn(loop, &p.task);
	loop_turn(loop);
	assert_int_equal(p.ret, 5);
	assert_true(pthread_equal(p.thread, pthread_self()));
	assert_int_equal(p.done, 2);
	assert_int_equal(count_threads(), 0);
	loop_destroy(loop);
	work_pool_destroy(p.pool);
	work_pool_destroy(NULL);
}

/* ---- callbacks, from two loops ---- */

enum { PIECES = 8, ROUNDS = 300 };

struct piece {
	struct work work;
	struct side *side;
	unsigned rounds;
	uint64_t value, expected;
};

struct side {
	struct co_task task;
	struct work_pool *pool;
	struct loop *loop;
	struct piece pieces[PIECES];
	unsigned ended, wrong;
};

static void piece_fn(struct work *work)
{
	struct piece *p = container_of(work, struct piece, work);

	/* not synchronised by anything but the pool, for the thread sanitizer to see */
	p->value = p->value * 6364136223846793005u + 1;
}

static void piece_done(struct work *work)
{
	struct piece *p = container_of(work, struct piece, work);

	p->expected = p->expected * 6364136223846793005u + 1;
	p->side->wrong += p->value != p->expected || loop_self() != p->side->loop;
	if (++p->rounds < ROUNDS)
		work_submit(p->side->pool, work);
	else if (++p->side->ended == PIECES)
		loop_stop(p->side->loop);
}

static void side_task(struct co_task *task)
{
	struct side *side = container_of(task, struct side, task);

	for (unsigned i = 0; i < PIECES; i++) {
		side->pieces[i] = (struct piece){.work = {.fn = piece_fn, .done = piece_done},
						 .side = side,
						 .value = i,
						 .expected = i};
		work_submit(side->pool, &side->pieces[i].work);
	}
}

static void *run_side(void *arg)
{
	struct side *side = arg;

	return (void *)(intptr_t)loop_run(side->loop);
}

static void test_callbacks(void **state)
{
	struct side sides[2] = {{.task.fn = side_task}, {.task.fn = side_task}};
	struct work_pool *pool = make_pool(4);
	pthread_t threads[2];
	void *ret;

	for (int i = 0; i < 2; i++) {
		sides[i].pool = pool;
		sides[i].loop = make_loop(false, 16, 16);
		loop_spawn(sides[i].loop, &sides[i].task);
		assert_int_equal(pthread_create(&threads[i], NULL, run_side, &sides[i]), 0);
	}
	for (int i = 0; i < 2; i++) {
		pthread_join(threads[i], &ret);
		assert_null(ret);
		assert_int_equal(sides[i].ended, PIECES);
		assert_int_equal(sides[i].wrong, 0);
	}
	work_pool_destroy(pool);
	for (int i = 0; i < 2; i++)
		loop_destroy(sides[i].loop);
}

/* ---- what a thread is like ---- */

struct likeness {
	struct co_task task;
	struct work_pool *pool;
	struct loop *loop;
	int flusher;
	bool signals_blocked;
};

static int look_around(void *arg)
{
	struct likeness *l = arg;
	sigset_t set;

	l->flusher = prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0);
	pthread_sigmask(SIG_SETMASK, NULL, &set);
	l->signals_blocked = sigismember(&set, SIGTERM) && sigismember(&set, SIGINT) &&
			     sigismember(&set, SIGUSR1);
	return 0;
}

static void likeness_task(struct co_task *task)
{
	struct likeness *l = container_of(task, struct likeness, task);

	(void)co_work(l->pool, look_around, l);
	loop_stop(l->loop);
}

static void test_thread(void **state)
{
	struct likeness l = {.task.fn = likeness_task};
	bool flusher = prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0; /* not without privilege */
	sigset_t before, after;

	pthread_sigmask(SIG_SETMASK, NULL, &before);
	l.pool = make_pool(1);
	l.loop = make_loop(false, 16, 16);
	loop_spawn(l.loop, &l.task);
	assert_int_equal(loop_run(l.loop), 0);
	assert_true(l.signals_blocked);
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	for (int sig = 1; sig < 32; sig++)
		assert_int_equal(sigismember(&before, sig), sigismember(&after, sig));
	if (flusher) {
		assert_int_equal(l.flusher, 1);
		(void)prctl(PR_SET_IO_FLUSHER, 0, 0, 0, 0);
	}
	loop_destroy(l.loop);
	work_pool_destroy(l.pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bound),
		cmocka_unit_test(test_plain),
		cmocka_unit_test(test_callbacks),
		cmocka_unit_test(test_thread),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
