/* SPDX-License-Identifier: MIT */
/*
 * Proves that many tasks share few stacks without losing one or mixing up their state, that
 * mutexes, wait queues, latches, sleeps and yields keep their order, that calls between loops and
 * to the work pool come back with the right result, and that a ringless run is the same each time.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/math.h"
#include "loops.h"
#include "ring/co.h"
#include "ring/workers.h"

/* ---- thousands of tasks on a few stacks ---- */

enum { TASKS = 5000 };

struct crowd {
	struct loop *loop;
	struct co_mutex mutex;
	unsigned started, ended, inside, most_inside, wrong;
};

struct crowd_task {
	struct co_task task;
	struct crowd *crowd;
	unsigned number;
};

/* Deep enough to use the stack, with something in each frame to find again. */
static unsigned __attribute__((noinline)) dig(unsigned depth, unsigned seed)
{
	volatile unsigned local[64];

	for (unsigned i = 0; i < 64; i++)
		local[i] = seed + i;
	if (depth)
		seed = dig(depth - 1, seed);
	else
		co_yield();
	for (unsigned i = 0; i < 64; i++)
		if (local[i] != seed + i)
			return ~seed;
	return seed;
}

static void crowd_run(struct co_task *task)
{
	struct crowd_task *t = container_of(task, struct crowd_task, task);
	struct crowd *c = t->crowd;
	unsigned number = t->number;

	free(t); /* allowed: the task is not touched once it runs */
	if (number != c->started++)
		c->wrong++;
	if (++c->inside > c->most_inside)
		c->most_inside = c->inside;
	if (dig(10, number) != number)
		c->wrong++;
	if (number % 3 == 0)
		co_sleep_ns(1 + number % 7 * 1000);
	co_lock(&c->mutex);
	co_yield();
	co_unlock(&c->mutex);
	c->inside--;
	if (++c->ended == TASKS && loop_ring(c->loop))
		loop_stop(c->loop);
}

static void crowd_spawn(struct crowd *c)
{
	for (unsigned i = 0; i < TASKS; i++) {
		struct crowd_task *t = malloc(sizeof(*t));

		*t = (struct crowd_task){{.fn = crowd_run}, c, i};
		loop_spawn(c->loop, &t->task);
	}
}

static void crowd_check(const struct crowd *c)
{
	assert_int_equal(c->ended, TASKS);
	assert_int_equal(c->most_inside, 7);
	assert_int_equal(c->wrong, 0);
	assert_false(c->mutex.locked);
}

static void test_crowd(void **state)
{
	struct crowd c = {.loop = make_loop(false, 16, 7)};

	co_mutex_init(&c.mutex);
	crowd_spawn(&c);
	assert_int_equal(loop_run(c.loop), 0);
	crowd_check(&c);
	loop_destroy(c.loop);
}

static void test_crowd_ringless(void **state)
{
	struct crowd c = {.loop = make_loop(true, 16, 7)};

	co_mutex_init(&c.mutex);
	crowd_spawn(&c);
	do {
		loop_turn(c.loop);
		loop_advance(c.loop, 500);
	} while (c.ended < TASKS);
	crowd_check(&c);
	loop_destroy(c.loop);
}

/* ---- the order in which things run, with everything mixed, twice ---- */

struct trace {
	struct loop *loop;
	char text[4096];
	size_t len;
	struct co_mutex mutex;
	struct co_waitq waitq;
	struct loop_msg wake;
};

struct trace_task {
	struct co_task task;
	struct trace *trace;
	char name;
};

static void note(struct trace *t, char who, char what)
{
	assert_true(t->len + 4 < sizeof(t->text));
	t->len += (size_t)sprintf(t->text + t->len, "%c%c ", who, what);
}

static void trace_run(struct co_task *task)
{
	struct trace_task *me = container_of(task, struct trace_task, task);
	struct trace *t = me->trace;

	note(t, me->name, 's');
	co_lock(&t->mutex);
	note(t, me->name, 'l');
	co_yield();
	co_unlock(&t->mutex);
	co_wait(&t->waitq);
	note(t, me->name, 'w');
	co_sleep_ns((uint64_t)('d' - me->name) * 1000);
	note(t, me->name, 'e');
}

static void trace_wake(struct loop_msg *msg)
{
	co_wake_all(&container_of(msg, struct trace, wake)->waitq);
}

static void trace_once(struct trace *t)
{
	struct trace_task tasks[4];

	*t = (struct trace){.loop = make_loop(true, 16, 3)};
	co_mutex_init(&t->mutex);
	co_waitq_init(&t->waitq);
	for (int i = 0; i < 4; i++) {
		tasks[i] = (struct trace_task){{.fn = trace_run}, t, (char)('a' + i)};
		loop_spawn(t->loop, &tasks[i].task);
	}
	for (int i = 0; i < 8; i++) {
		loop_turn(t->loop);
		/* from outside, as a message or completion would */
		if (!co_waitq_empty(&t->waitq)) {
			t->wake.fn = trace_wake;
			loop_post(t->loop, &t->wake);
		}
		loop_turn(t->loop);
		loop_advance(t->loop, 10000);
	}
	assert_false(loop_ready(t->loop));
	loop_destroy(t->loop);
}

static void test_order(void **state)
{
	static struct trace one, two;

	trace_once(&one);
	trace_once(&two);
	assert_string_equal(one.text, two.text);
	/*
	 * Three start, hand the mutex on in order, sleep 3, 2 and 1 us and so end in reverse; the
	 * fourth has to wait for a stack.
	 */
	assert_string_equal(one.text, "as al bs cs bl cl aw bw cw ce be ae ds dl dw de ");
}

/* ---- fairness of the mutex, exclusion ---- */

struct fair {
	struct co_mutex mutex;
	unsigned turn[4], holder;
	unsigned wrong;
	struct loop *loop;
	unsigned ended;
};

struct fair_task {
	struct co_task task;
	struct fair *fair;
	unsigned number;
};

static void fair_run(struct co_task *task)
{
	struct fair_task *t = container_of(task, struct fair_task, task);
	struct fair *f = t->fair;

	for (int i = 0; i < 100; i++) {
		co_lock(&f->mutex);
		if (f->holder)
			f->wrong++;
		f->holder = t->number + 1;
		co_yield();
		if (f->holder != t->number + 1)
			f->wrong++;
		f->holder = 0;
		f->turn[t->number]++;
		/* nobody is more than a round ahead */
		for (int j = 0; j < 4; j++)
			if (f->turn[t->number] > f->turn[j] + 1)
				f->wrong++;
		co_unlock(&f->mutex);
	}
	if (++f->ended == 4)
		loop_stop(f->loop);
}

static void test_mutex_fair(void **state)
{
	struct fair f = {.loop = make_loop(false, 16, 4)};
	struct fair_task t[4];

	co_mutex_init(&f.mutex);
	/* outside of a coroutine an unlocked mutex is just taken */
	co_lock(&f.mutex);
	co_unlock(&f.mutex);
	for (unsigned i = 0; i < 4; i++) {
		t[i] = (struct fair_task){{.fn = fair_run}, &f, i};
		loop_spawn(f.loop, &t[i].task);
	}
	assert_int_equal(loop_run(f.loop), 0);
	assert_int_equal(f.wrong, 0);
	loop_destroy(f.loop);
}

/* ---- latch ---- */

struct parts {
	struct co_task main;
	struct co_latch latch;
	struct part {
		struct co_task task;
		struct parts *all;
		int ret;
		uint64_t sleep_ns;
	} part[3];
	int ret, empty_ret;
	bool done;
};

static void part_run(struct co_task *task)
{
	struct part *p = container_of(task, struct part, task);

	co_sleep_ns(p->sleep_ns);
	co_latch_done(&p->all->latch, p->ret);
}

static void parts_run(struct co_task *task)
{
	struct parts *p = container_of(task, struct parts, main);

	co_latch_init(&p->latch);
	p->empty_ret = co_latch_wait(&p->latch);
	for (int i = 0; i < 3; i++) {
		co_latch_add(&p->latch);
		loop_spawn(loop_self(), &p->part[i].task);
	}
	p->ret = co_latch_wait(&p->latch);
	p->done = true;
}

static void test_latch(void **state)
{
	struct parts p = {.main.fn = parts_run, .ret = 1, .empty_ret = 1};
	struct loop *loop = make_loop(true, 16, 4);

	for (int i = 0; i < 3; i++)
		p.part[i] = (struct part){{.fn = part_run}, &p, i == 1 ? -5 : i == 2 ? -28 : 0, 0};
	p.part[0].sleep_ns = 300;
	p.part[1].sleep_ns = 200;
	p.part[2].sleep_ns = 100;
	loop_spawn(loop, &p.main);
	loop_turn(loop);
	for (int i = 0; i < 3; i++) {
		assert_false(p.done);
		loop_advance(loop, 100);
		loop_turn(loop);
	}
	assert_true(p.done);
	assert_int_equal(p.empty_ret, 0);
	assert_int_equal(p.ret, -28); /* the first in time */
	loop_destroy(loop);
}

/* ---- calls between loops, and the work pool ---- */

struct caller {
	struct co_task task;
	struct loop *own, *other;
	struct work_pool *pool;
	unsigned number, wrong;
	struct calls *all;
};

struct calls {
	struct loop *a, *b;
	struct work_pool *pool;
	struct caller callers[40];
	_Atomic unsigned ended;
};

struct argument {
	struct loop *expect;
	int number;
	struct loop *back;
};

static int called(void *arg)
{
	struct argument *a = arg;

	if (loop_self() != a->expect)
		return -1;
	if (a->expect)
		co_yield();
	return a->number;
}

/* On the other loop, calling back into the first while its caller waits. */
static int called_and_calls(void *arg)
{
	struct argument *a = arg;
	struct argument back = {a->back, a->number + 1, NULL};

	if (co_call(a->expect, called, a) != a->number)
		return -1;
	return co_call(a->back, called, &back);
}

static void caller_run(struct co_task *task)
{
	struct caller *c = container_of(task, struct caller, task);

	for (int i = 0; i < 200; i++) {
		struct argument other = {c->other, i, c->own}, own = {c->own, i, NULL};
		struct argument work = {NULL, i, NULL};

		c->wrong += co_call(c->other, called, &other) != i;
		c->wrong += co_call(c->own, called, &own) != i;
		if (c->number % 8 == 0)
			c->wrong += co_call(c->other, called_and_calls, &other) != i + 1;
		if (c->number % 4 == 1)
			c->wrong += co_work(c->pool, called, &work) != i;
	}
	if (atomic_fetch_add(&c->all->ended, 1) + 1 == ARRAY_LEN(c->all->callers)) {
		loop_stop(c->all->a);
		loop_stop(c->all->b);
	}
}

static void test_calls(void **state)
{
	struct calls calls = {.a = make_loop(false, 16, 64), .b = make_loop(false, 16, 64)};
	struct argument plain = {NULL, 5, NULL};
	struct error err = {0};
	pthread_t threads[2];

	assert_int_equal(work_pool_create(&calls.pool, 3, &err), 0);
	/* no loop runs: both are plain calls */
	assert_int_equal(co_call(NULL, called, &plain), 5);
	assert_int_equal(co_work(calls.pool, called, &plain), 5);
	for (unsigned i = 0; i < ARRAY_LEN(calls.callers); i++) {
		struct caller *c = &calls.callers[i];

		*c = (struct caller){
			.task.fn = caller_run,
			.own = i & 1 ? calls.a : calls.b,
			.other = i & 1 ? calls.b : calls.a,
			.pool = calls.pool,
			.number = i,
			.all = &calls,
		};
		loop_spawn(c->own, &c->task);
	}
	pthread_create(&threads[0], NULL, run_thread, calls.a);
	pthread_create(&threads[1], NULL, run_thread, calls.b);
	join(threads[0]);
	join(threads[1]);
	for (unsigned i = 0; i < ARRAY_LEN(calls.callers); i++)
		assert_int_equal(calls.callers[i].wrong, 0);
	work_pool_destroy(calls.pool);
	work_pool_destroy(NULL);
	loop_destroy(calls.a);
	loop_destroy(calls.b);
}

/* ---- spawning: at once from the loop's own stack, later from a coroutine ---- */

struct spawns {
	struct loop_msg msg;
	struct co_task first, second;
	char text[8];
};

static void spawn_second(struct co_task *task)
{
	strcat(container_of(task, struct spawns, second)->text, "2");
}

static void spawn_first(struct co_task *task)
{
	struct spawns *s = container_of(task, struct spawns, first);

	strcat(s->text, "1");
	loop_spawn(loop_self(), &s->second);
	strcat(s->text, "b");
}

static void spawn_message(struct loop_msg *msg)
{
	struct spawns *s = container_of(msg, struct spawns, msg);

	strcat(s->text, "m");
	loop_spawn(loop_self(), &s->first);
	strcat(s->text, "n");
}

static void test_spawn_order(void **state)
{
	struct spawns s = {{NULL, spawn_message}, {.fn = spawn_first}, {.fn = spawn_second}, ""};
	struct loop *loop = make_loop(true, 16, 2);

	assert_null(co_self());
	loop_post(loop, &s.msg);
	loop_turn(loop);
	assert_string_equal(s.text, "m1bn2");
	loop_destroy(loop);
}

/* ---- a stack that is too small ---- */

static unsigned __attribute__((noinline)) overflow(const char *start, size_t bytes)
{
	volatile char local[256];

	local[0] = 1;
	if ((size_t)(start - (const char *)local) > bytes)
		return 0; /* nothing stopped it */
	return overflow(start, bytes) + (unsigned)local[0];
}

static void overflow_run(struct co_task *task)
{
	char start = 0;

	overflow(&start, (64 << 10) + 2048);
	_exit(0);
}

/* It ends the program and does not run into the neighbour's stack. */
static void test_guard_page(void **state)
{
	pid_t child = fork();
	int status;

	if (!child) {
		struct loop_params p = {.ringless = true, .coroutines = 4, .stack_bytes = 64 << 10};
		struct co_task tasks[4];
		struct loop *loop;

		close(STDERR_FILENO); /* a sanitizer's report is expected */
		if (loop_create(&loop, &p, NULL))
			_exit(0);
		for (int i = 0; i < 4; i++) {
			tasks[i].fn = overflow_run;
			loop_spawn(loop, &tasks[i]);
		}
		loop_turn(loop);
		_exit(0);
	}
	waitpid(child, &status, 0);
	assert_int_not_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_crowd),	    cmocka_unit_test(test_crowd_ringless),
		cmocka_unit_test(test_order),	    cmocka_unit_test(test_mutex_fair),
		cmocka_unit_test(test_latch),	    cmocka_unit_test(test_calls),
		cmocka_unit_test(test_spawn_order), cmocka_unit_test(test_guard_page),
	};

	alarm(120);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
