// SPDX-License-Identifier: MIT
/*
 * Proves, with real threads, that a queue can go while the metadata loop asks all queues something:
 * no question is lost, so that the asker goes on, and none reaches memory that is gone.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/math.h"
#include "memory.h"
#include "qcow2.h"
#include "qcow2/image.h"
#include "ring/co.h"

#define ROUNDS 20

static struct memory disk;
static struct loop *meta, *other;
static struct qcow2_image *img;
static sem_t wanted, asked;
static struct co_task tell;

static void disk_close(struct storage *st)
{
}

static const struct storage_ops disk_ops = {.submit = memory_submit, .close = disk_close};

/* On the other loop: a queue goes while a question is on its way to it. */
static void come_and_go(struct co_task *task)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct error err;
		struct qcow2_queue *q;

		if (qcow2_queue_create(&q, img, other, &err))
			abort();
		sem_post(&wanted);
		sem_wait(&asked); /* the loop itself does not get on meanwhile */
		qcow2_queue_destroy(q);
		co_sleep_ns(1); /* a loop's answers go out at the end of its turn, which this blocks above */
	}
	loop_stop(other);
}

static void tell_asked(struct co_task *task)
{
	sem_post(&asked);
}

/* On the metadata loop. */
static void ask(struct co_task *task)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		sem_wait(&wanted);
		list_init(&tell.list);
		tell.fn = tell_asked;
		loop_spawn(meta, &tell); /* runs when the next line waits */
		if (i % 2)
			image_quiesce_lookups(img);
		else
			image_grace(img);
	}
	qcow2_detach_loop(img);
	loop_stop(meta);
}

static void *run_other(void *arg)
{
	if (loop_run(other))
		abort();
	return NULL;
}

static void *run_meta(void *arg)
{
	if (loop_run(meta))
		abort();
	return NULL;
}

static void test_queues_go_while_they_are_asked(void **state)
{
	struct loop_params params = {.name = "test", .sq_entries = 8, .coroutines = 16};
	struct qcow2_create_options create = {.size_bytes = MiB};
	struct qcow2_options opts = {.no_lock = true};
	struct co_task asks = {.fn = ask}, goes = {.fn = come_and_go};
	pthread_t threads[2];
	struct error err;

	sem_init(&wanted, 0, 0);
	sem_init(&asked, 0, 0);
	memory_init(&disk);
	disk.st.ops = &disk_ops;
	assert_int_equal(qcow2_create(&disk.st, &create, &err), 0);
	assert_int_equal(loop_create(&meta, &params, &err), 0);
	assert_int_equal(loop_create(&other, &params, &err), 0);
	assert_int_equal(qcow2_open(&img, &disk.st, &opts, &err), 0);
	assert_int_equal(qcow2_set_metadata_loop(img, meta, &err), 0);
	list_init(&asks.list);
	list_init(&goes.list);
	loop_spawn(meta, &asks);
	loop_spawn(other, &goes);
	alarm(60); /* a lost question would be waited for without end */
	assert_int_equal(pthread_create(&threads[0], NULL, run_meta, NULL), 0);
	assert_int_equal(pthread_create(&threads[1], NULL, run_other, NULL), 0);
	assert_int_equal(pthread_join(threads[1], NULL), 0);
	assert_int_equal(pthread_join(threads[0], NULL), 0);
	alarm(0);
	assert_int_equal(qcow2_close(img, &err), 0);
	loop_destroy(meta);
	loop_destroy(other);
	memory_destroy(&disk);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_queues_go_while_they_are_asked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
