/* SPDX-License-Identifier: MIT */
/*
 * rig.c: see rig.h.
 *
 * Threads: the controlling thread hands a request to its queue's loop as a message and gets it back
 * through a list under one mutex. Queue 0's loop is the metadata loop as well. A queue thread creates
 * its queue, says so, and runs its loop; at the end each queue is destroyed on its own thread, then
 * the metadata work is stopped in a coroutine of loop 0, then the loops end.
 *
 * Invariant: a request is in exactly one place: its queue's free list, in flight, the finished list,
 * or with the caller.
 */
#include "rig.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/math.h"
#include "qcow2.h"
#include "ring/co.h"
#include "storage/names.h"
#include "storage/storage.h"
#include "target/snapshot.h"

#define RIG_QUEUES_MAX 16
#define RIG_DEPTH_MAX  1024
#define RIG_SECTOR_BYTES 512
#define RIG_CLAIM_MS	 10000
#define RIG_IDENTITY	 "qcow2-io, for any image"

struct rig_queue {
	struct rig *rig;
	struct loop *loop;
	struct qcow2_queue *queue;
	struct rig_request *requests;
	void *privs;
	struct rig_request *free;
	pthread_t thread;
	bool thread_started;
	int ret; /* of creating the queue, then of running the loop */
	struct error err;
	struct loop_msg stop_msg;
	struct co_task stop_task;
};

struct rig {
	struct qcow2_image *img;
	struct rig_queue queues[RIG_QUEUES_MAX];
	unsigned queue_count, next_queue, in_flight;

	pthread_mutex_t mutex;
	pthread_cond_t cond;
	struct rig_request *finished; /* mutex */
	unsigned answers;	      /* mutex: threads that have said what they were to say */

	struct co_task detach_task;
	void *log;
};

static void answer(struct rig *rig)
{
	pthread_mutex_lock(&rig->mutex);
	rig->answers++;
	pthread_cond_signal(&rig->cond);
	pthread_mutex_unlock(&rig->mutex);
}

static void await_answers(struct rig *rig, unsigned count)
{
	pthread_mutex_lock(&rig->mutex);
	while (rig->answers < count)
		pthread_cond_wait(&rig->cond, &rig->mutex);
	rig->answers = 0;
	pthread_mutex_unlock(&rig->mutex);
}

static void *queue_thread(void *arg)
{
	struct rig_queue *q = arg;

	q->ret = qcow2_queue_create(&q->queue, q->rig->img, q->loop, &q->err);
	if (q->ret < 0)
		q->queue = NULL;
	answer(q->rig);
	int ret = loop_run(q->loop);

	/* A ring that fails in the middle of a test leaves nothing to go on with. */
	assert(ret == 0);
	return NULL;
}

/* ---- requests ---- */

static void request_complete(struct blk_request *blk, int ret)
{
	struct rig_request *req = container_of(blk, struct rig_request, blk);
	struct rig *rig = req->queue->rig;

	assert(loop_self() == req->queue->loop);
	pthread_mutex_lock(&rig->mutex);
	assert(!req->finished);
	req->finished = true;
	req->ret = ret;
	req->next = rig->finished;
	rig->finished = req;
	pthread_cond_signal(&rig->cond);
	pthread_mutex_unlock(&rig->mutex);
}

static void request_start(struct loop_msg *msg)
{
	struct rig_request *req = container_of(msg, struct rig_request, msg);

	qcow2_submit(req->queue->queue, &req->blk);
}

struct rig_request *rig_request_get(struct rig *rig)
{
	for (unsigned i = 0; i < rig->queue_count; i++) {
		struct rig_queue *q = &rig->queues[rig->next_queue];
		struct rig_request *req = q->free;

		rig->next_queue = (rig->next_queue + 1) % rig->queue_count;
		if (req) {
			q->free = req->next;
			return req;
		}
	}
	return NULL;
}

void rig_submit(struct rig *rig, struct rig_request *req)
{
	rig->in_flight++;
	req->finished = false;
	req->blk.complete = request_complete;
	req->msg.fn = request_start;
	loop_post(req->queue->loop, &req->msg);
}

struct rig_request *rig_reap(struct rig *rig, bool wait)
{
	struct rig_request *req;

	if (!rig->in_flight)
		return NULL;
	pthread_mutex_lock(&rig->mutex);
	while (wait && !rig->finished)
		pthread_cond_wait(&rig->cond, &rig->mutex);
	req = rig->finished;
	if (req) {
		rig->finished = req->next;
		rig->in_flight--;
	}
	pthread_mutex_unlock(&rig->mutex);
	return req;
}

void rig_request_put(struct rig *rig, struct rig_request *req)
{
	req->next = req->queue->free;
	req->queue->free = req;
}

int rig_snapshot(struct rig *rig, int what, const char *name, uint64_t *pause_ns, struct error *err)
{
	return snapshot_run(rig->img, (enum target_snapshot)what, name, pause_ns, err);
}

unsigned rig_in_flight(const struct rig *rig)
{
	return rig->in_flight;
}

uint64_t rig_size_bytes(const struct rig *rig)
{
	return qcow2_size_bytes(rig->img);
}

uint32_t rig_cluster_bytes(const struct rig *rig)
{
	return qcow2_cluster_bytes(rig->img);
}

/* ---- life ---- */

static int queue_prepare(struct rig *rig, struct rig_queue *q, const struct rig_options *opts,
			 struct error *err)
{
	size_t priv_bytes = align_up(qcow2_request_bytes(), 64);
	struct loop_params params = {
		.name = "rig-queue",
		.sq_entries = 256,
		.coroutines = opts->depth * rig->queue_count + QCOW2_EXTRA_COROUTINES,
	};

	q->rig = rig;
	q->requests = calloc(opts->depth, sizeof(*q->requests));
	q->privs = aligned_alloc(64, priv_bytes * opts->depth);
	if (!q->requests || !q->privs)
		return error_set(err, -ENOMEM, "no memory for the requests");
	memset(q->privs, 0, priv_bytes * opts->depth);
	for (unsigned i = 0; i < opts->depth; i++) {
		q->requests[i].queue = q;
		q->requests[i].blk.priv = (char *)q->privs + i * priv_bytes;
		q->requests[i].next = q->free;
		q->free = &q->requests[i];
	}
	return loop_create(&q->loop, &params, err);
}

static int start_threads(struct rig *rig, struct error *err)
{
	unsigned started = 0;
	int ret = 0;

	for (unsigned i = 0; i < rig->queue_count; i++) {
		struct rig_queue *q = &rig->queues[i];

		ret = -pthread_create(&q->thread, NULL, queue_thread, q);
		if (ret < 0) {
			error_set(err, ret, "cannot start a thread");
			break;
		}
		q->thread_started = true;
		started++;
	}
	await_answers(rig, started);
	for (unsigned i = 0; i < started && ret == 0; i++)
		if (rig->queues[i].ret < 0)
			ret = error_set(err, rig->queues[i].ret, "%s",
					error_text(&rig->queues[i].err, rig->queues[i].ret));
	return ret;
}

static void queue_stop_run(struct co_task *task)
{
	struct rig_queue *q = container_of(task, struct rig_queue, stop_task);

	qcow2_queue_destroy(q->queue);
	answer(q->rig);
}

static void queue_stop(struct loop_msg *msg)
{
	struct rig_queue *q = container_of(msg, struct rig_queue, stop_msg);

	q->stop_task.fn = queue_stop_run;
	loop_spawn(q->loop, &q->stop_task);
}

static void detach_run(struct co_task *task)
{
	struct rig *rig = container_of(task, struct rig, detach_task);

	qcow2_detach_loop(rig->img);
	answer(rig);
}

static void detach_start(struct loop_msg *msg)
{
	struct rig_queue *q = container_of(msg, struct rig_queue, stop_msg);

	q->rig->detach_task.fn = detach_run;
	loop_spawn(q->loop, &q->rig->detach_task);
}

static void stop_threads(struct rig *rig)
{
	unsigned started = 0;

	for (unsigned i = 0; i < rig->queue_count; i++) {
		struct rig_queue *q = &rig->queues[i];

		if (!q->thread_started)
			continue;
		started++;
		q->stop_msg.fn = queue_stop;
		loop_post(q->loop, &q->stop_msg);
	}
	await_answers(rig, started);
	if (rig->queues[0].thread_started) {
		rig->queues[0].stop_msg.fn = detach_start;
		loop_post(rig->queues[0].loop, &rig->queues[0].stop_msg);
		await_answers(rig, 1);
	}
	for (unsigned i = 0; i < rig->queue_count; i++) {
		struct rig_queue *q = &rig->queues[i];

		if (!q->thread_started)
			continue;
		loop_stop(q->loop);
		pthread_join(q->thread, NULL);
		q->thread_started = false;
	}
}

int rig_close(struct rig *rig, struct error *err)
{
	int ret = 0;

	if (!rig)
		return 0;
	assert(!rig->in_flight);
	stop_threads(rig);
	for (unsigned i = 0; i < rig->queue_count; i++) {
		loop_destroy(rig->queues[i].loop);
		free(rig->queues[i].requests);
		free(rig->queues[i].privs);
	}
	if (rig->img)
		ret = qcow2_close(rig->img, err);
	if (rig->log)
		munmap(rig->log, QCOW2_LOG_BYTES);
	pthread_mutex_destroy(&rig->mutex);
	pthread_cond_destroy(&rig->cond);
	free(rig);
	return ret;
}

/* The log is a file, so that it outlives the process. */
static int map_log(struct rig *rig, const char *path, struct error *err)
{
	int ret = 0, fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, QCOW2_LOG_BYTES) < 0)
		ret = error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (ret == 0) {
		rig->log = mmap(NULL, QCOW2_LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (rig->log == MAP_FAILED) {
			rig->log = NULL;
			ret = error_set(err, -errno, "%s: cannot be mapped", path);
		}
	}
	if (fd >= 0)
		close(fd);
	return ret;
}

static int open_image(struct rig *rig, const char *path, const struct rig_options *opts,
		      struct error *err)
{
	static const struct names_policy anywhere = {.any = true};
	struct storage_file_options file_opts = {
		.read_only = opts->read_only,
		.direct = opts->direct,
	};
	struct qcow2_options img_opts = {
		.read_only = opts->read_only,
		.snapshot = opts->snapshot,
		.cache_size_bytes = opts->cache_size_bytes,
		.max_inflight = opts->depth * opts->queues,
		.writeback_delay_ms = opts->writeback_delay_ms,
		.no_lock = opts->no_lock,
		.discard_ignore = opts->discard_ignore,
		.compress = opts->compress,
		.detect_zeroes = (enum qcow2_detect_zeroes)opts->detect_zeroes,
		.claim_timeout_ms = RIG_CLAIM_MS,
		.log_identity = RIG_IDENTITY,
		.log_identity_bytes = sizeof(RIG_IDENTITY),
		.log_recover = opts->recover,
		.image_path = path,
		.names = &anywhere,
		.passphrase = opts->passphrase,
	};
	struct storage *st;
	int ret = storage_file_open(&st, path, &file_opts, err);

	if (ret == 0 && st->block_bytes > RIG_SECTOR_BYTES) {
		/* Scripts are for sectors of 512: where direct I/O has larger ones, it is left. */
		storage_close(st);
		file_opts.direct = false;
		ret = storage_file_open(&st, path, &file_opts, err);
	}
	if (ret < 0)
		return ret;
	if (opts->log_path)
		ret = map_log(rig, opts->log_path, err);
	img_opts.log_base = rig->log;
	img_opts.log_bytes = rig->log ? QCOW2_LOG_BYTES : 0;
	if (ret == 0)
		ret = qcow2_open(&rig->img, st, &img_opts, err);
	if (ret < 0) {
		rig->img = NULL;
		storage_close(st);
	}
	return ret;
}

int rig_open(struct rig **out, const char *path, const struct rig_options *opts, struct error *err)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	int ret;

	assert(opts->queues >= 1 && opts->queues <= RIG_QUEUES_MAX);
	assert(opts->depth >= 1 && opts->depth <= RIG_DEPTH_MAX);
	if (!rig)
		return error_set(err, -ENOMEM, "no memory");
	pthread_mutex_init(&rig->mutex, NULL);
	pthread_cond_init(&rig->cond, NULL);
	ret = open_image(rig, path, opts, err);
	for (unsigned i = 0; ret == 0 && i < opts->queues; i++) {
		rig->queue_count = opts->queues;
		ret = queue_prepare(rig, &rig->queues[i], opts, err);
	}
	if (ret == 0)
		ret = qcow2_set_metadata_loop(rig->img, rig->queues[0].loop, err);
	if (ret == 0)
		ret = start_threads(rig, err);
	if (ret < 0) {
		int close_ret = rig_close(rig, NULL);

		(void)close_ret;
		return ret;
	}
	*out = rig;
	return 0;
}
