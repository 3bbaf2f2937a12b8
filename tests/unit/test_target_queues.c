// SPDX-License-Identifier: MIT
/*
 * Proves, with real threads, that the qcow2 target serves several queues at once as a front end drives
 * them: each writes blocks of its own between those of its neighbours, in clusters that they share, and
 * reads them back; queues stop from the last to the first while the others are busy. Run with TSAN=1 it
 * shows that they do not race. The same with payloads in registered buffers, which the target may look at
 * only when it has asked for memory; it asks where it compresses, and not where it allocates.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <liburing.h>

#include "base/math.h"
#include "qcow2.h"
#include "ring/loop.h"
#include "storage/storage.h"
#include "target/target.h"

#define QUEUES	    4
#define DEPTH	    8
#define BLOCK	    4096u
#define SIZE	    (32 * MiB)

struct queue;

struct request {
	struct queue *queue;
	struct blk_request req;
	uint64_t block; /* of the queue's */
	bool verify;
	unsigned char *buf;
	/* registered buffers: what stands in for memory, and who waits for it */
	unsigned char *memory;
	void (*ready)(struct blk_request *req, int ret);
	struct loop_msg ready_msg;
};

struct queue {
	unsigned index;
	struct loop *loop;
	pthread_t thread;
	sem_t started;
	unsigned done, inflight;
	bool stopping;
	uint64_t seed;
	struct loop_msg begin_msg, stop_msg;
	struct request requests[DEPTH];
	unsigned char *bufs;
	uint8_t written[SIZE / BLOCK / QUEUES]; /* what each block has; 0: never written, or zeros */
	bool busy[SIZE / BLOCK / QUEUES];
};

static struct target *target;
static bool registered, compress;
static atomic_uint memory_asked;
static struct queue queues[QUEUES];

static uint64_t rnd(struct queue *q)
{
	q->seed ^= q->seed << 13;
	q->seed ^= q->seed >> 7;
	q->seed ^= q->seed << 17;
	return q->seed;
}

static void request_next(struct request *r);

static void request_done(struct blk_request *req, int ret)
{
	struct request *r = container_of(req, struct request, req);
	struct queue *q = r->queue;

	assert_int_equal(ret, 0);
	assert_ptr_equal(loop_self(), q->loop);
	if (registered && req->op == BLK_READ && req->buf.base)
		memcpy(r->buf, r->memory, BLOCK);
	if (req->op == BLK_READ)
		for (unsigned i = 0; i < BLOCK; i++)
			assert_int_equal(r->buf[i], q->written[r->block]);
	q->busy[r->block] = false;
	q->done++;
	q->inflight--;
	if (!q->stopping)
		request_next(r);
	else if (!q->inflight)
		loop_stop(q->loop);
}

static void memory_give(struct loop_msg *msg)
{
	struct request *r = container_of(msg, struct request, ready_msg);

	r->req.buf = (struct blk_buf){.base = r->memory};
	if (r->req.op == BLK_WRITE)
		memcpy(r->memory, r->buf, BLOCK);
	r->ready(&r->req, 0);
}

/* At once, or later. */
static void to_memory(struct blk_request *req, void (*ready)(struct blk_request *req, int ret))
{
	struct request *r = container_of(req, struct request, req);

	assert_null(req->buf.base);
	atomic_fetch_add(&memory_asked, 1);
	r->ready = ready;
	r->ready_msg.fn = memory_give;
	if (rnd(r->queue) % 2)
		memory_give(&r->ready_msg);
	else
		loop_post(r->queue->loop, &r->ready_msg);
}

static void request_next(struct request *r)
{
	struct queue *q = r->queue;
	struct blk_request *req = &r->req;
	unsigned what = rnd(q) % 16;

	do
		r->block = rnd(q) % ARRAY_LEN(q->written);
	while (q->busy[r->block]);
	q->busy[r->block] = true;
	q->inflight++;
	req->flags = 0;
	req->offset_bytes = (r->block * QUEUES + q->index) * BLOCK;
	req->len_bytes = BLOCK;
	req->buf = (struct blk_buf){.base = r->buf};
	if (registered)
		/* of registered memory the offset is its address */
		req->buf = (struct blk_buf){.fixed_index = (uint32_t)(r - q->requests),
					    .fixed_offset = (uintptr_t)r->buf};
	req->to_memory = registered ? to_memory : NULL;
	if (what < 8) {
		req->op = BLK_READ;
	} else if (what < 14) {
		req->op = BLK_WRITE;
		q->written[r->block] = (uint8_t)(rnd(q) | 1);
		memset(r->buf, q->written[r->block], BLOCK);
	} else if (what == 14) {
		req->op = BLK_WRITE_ZEROES;
		q->written[r->block] = 0;
	} else {
		req->op = BLK_FLUSH;
		req->offset_bytes = req->len_bytes = 0;
	}
	target->ops->submit(target, q->index, req);
}

static void stop_asked(struct loop_msg *msg)
{
	container_of(msg, struct queue, stop_msg)->stopping = true;
}

static void *queue_thread(void *arg)
{
	struct queue *q = arg;
	size_t priv = align_up(target->ops->request_bytes, 64);
	char *privs = aligned_alloc(64, DEPTH * priv);
	struct loop_params params = {
		.name = "queue",
		.sq_entries = 64,
		.coroutines = target->ops->coroutines(target, q->index),
	};
	struct iovec iov[DEPTH];
	struct error err = {0};

	memset(privs, 0, DEPTH * priv);
	assert_int_equal(loop_create(&q->loop, &params, &err), 0);
	assert_int_equal(target->ops->queue_start(target, q->index, q->loop, &err), 0);
	for (unsigned i = 0; i < DEPTH; i++) {
		struct request *r = &q->requests[i];

		r->queue = q;
		r->buf = q->bufs + (size_t)i * BLOCK;
		r->memory = q->bufs + (size_t)(DEPTH + i) * BLOCK;
		iov[i] = (struct iovec){r->buf, BLOCK};
		r->req.complete = request_done;
		r->req.priv = privs + i * priv;
	}
	if (registered)
		assert_int_equal(io_uring_register_buffers(loop_ring(q->loop), iov, DEPTH), 0);
	sem_post(&q->started);
	assert_int_equal(loop_run(q->loop), 0);
	target->ops->queue_stop(target, q->index);
	loop_destroy(q->loop);
	free(privs);
	return NULL;
}

static void begin(struct loop_msg *msg)
{
	struct queue *q = container_of(msg, struct queue, begin_msg);

	for (unsigned i = 0; i < DEPTH; i++)
		request_next(&q->requests[i]);
}

static void image_make(const char *path)
{
	struct storage_file_options file = {.create = true};
	struct qcow2_create_options create = {.size_bytes = SIZE};
	struct storage *st;
	struct error err = {0};

	unlink(path);
	assert_int_equal(storage_file_open(&st, path, &file, &err), 0);
	assert_int_equal(qcow2_create(st, &create, &err), 0);
	storage_close(st);
}

static void run_queues(void)
{
	char path[] = "/tmp/test_target_queues.XXXXXX";
	struct target_options opts = {.path = path, .queues = QUEUES, .depth = DEPTH,
				      .compress = compress};
	struct error err = {0};
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	close(fd);
	image_make(path);
	assert_int_equal(target_qcow2.open(&target, &opts, &err), 0);
	assert_true(target->limits.max_queues >= QUEUES);
	for (unsigned i = 0; i < QUEUES; i++) {
		struct queue *q = &queues[i];

		*q = (struct queue){.index = i};
		q->seed = 88172645463325252ull + i;
		q->bufs = aligned_alloc(4096, 2 * DEPTH * BLOCK);
		sem_init(&q->started, 0, 0);
		assert_int_equal(pthread_create(&q->thread, NULL, queue_thread, q), 0);
		sem_wait(&q->started); /* one after the other, the earlier ones at work */
		q->begin_msg.fn = begin;
		loop_post(q->loop, &q->begin_msg);
	}
	for (unsigned i = QUEUES; i-- > 0;) {
		struct queue *q = &queues[i];

		usleep(300000);
		for (int n = 0; n < 6000 && __atomic_load_n(&q->done, __ATOMIC_RELAXED) <= DEPTH; n++)
			usleep(10000);
		q->stop_msg.fn = stop_asked;
		loop_post(q->loop, &q->stop_msg);
		pthread_join(q->thread, NULL);
		print_message("queue %u: %u requests\n", i, q->done);
		assert_true(q->done > DEPTH);
		free(q->bufs);
	}
	assert_int_equal(target->ops->close(target, &err), 0);
	unlink(path);
}

static void test_queues_at_once(void **state)
{
	run_queues();
}

static void test_registered_buffers(void **state)
{
	registered = true;
	run_queues();
	assert_int_equal(memory_asked, 0); /* new clusters or old ones: nobody looks at the bytes */
	compress = true;
	run_queues();
	print_message("memory was asked for %u times\n", memory_asked);
	assert_true(memory_asked > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_queues_at_once),
		cmocka_unit_test(test_registered_buffers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
