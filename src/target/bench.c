// SPDX-License-Identifier: MIT
/*
 * bench.c: see bench.h.
 *
 * Each queue is a thread with a loop, as with every front end. It keeps its depth of slots; a slot is a
 * request and its buffer, and is either in flight or on the queue's list of idle ones. A completion puts
 * its slot on that list and pumps: takes from the list and submits until the list, the share of the
 * requests or the time is used up, or a flush is due.
 *
 * A target may complete a request in submit(), and then the pump would never end: after as many as the
 * queue is deep it gives the loop a turn, as a front end's kernel would.
 *
 * The clock is read once for each completion: what it says ends one request and begins the next.
 *
 * Invariants:
 *  1. The pump never runs inside of itself.
 *  2. While a flush is due or under way nothing else is submitted.
 *  3. A queue's loop runs until the main thread stops it, the last queue's first: a target's other
 *     queues may need queue 0's loop to the end.
 *
 * Threads: a queue's fields belong to its thread, but those under the lock, which are also the main
 * thread's; what has been counted is read by the main thread after the queue said that it is over.
 */
#include "target/bench.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/list.h"
#include "base/math.h"
#include "ring/loop.h"

struct bench;

struct slot {
	struct blk_request req;
	struct bench_queue *q;
	struct slot *next; /* idle */
	uint64_t begun_ns;
};

enum queue_state {
	QUEUE_STARTING,
	QUEUE_READY, /* waits for the message to begin */
	QUEUE_OVER,  /* nothing in flight, and nothing will be; or it failed to start */
};

struct bench_queue {
	struct bench *bench;
	unsigned index;
	pthread_t thread;
	bool thread_started;
	struct loop *loop;
	struct loop_msg begin;
	struct loop_msg again;

	struct slot *slots, *idle;
	void *buffers, *privs;
	size_t buffers_bytes, privs_bytes;

	bool pumping, resting, flush_due, flushing, ended;
	unsigned inflight;
	uint64_t now_ns, end_ns;
	uint64_t next;	      /* of this queue's requests, from 0 */
	uint64_t share;	      /* how many it is to make */
	uint64_t since_flush; /* writes */
	uint64_t random;
	uint64_t enters_before;
	struct histogram reads, writes, flushes;
	uint64_t over_ns, enters;

	/* under the lock */
	enum queue_state state;
	int ret;
	struct error err;
};

struct bench {
	const struct bench_job *job;
	struct target *target;
	unsigned count;
	uint64_t blocks; /* of request_bytes that the device has */
	struct bench_queue *queues;
	pthread_mutex_t lock;
	pthread_cond_t changed;
};

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void state_set(struct bench_queue *q, enum queue_state state)
{
	pthread_mutex_lock(&q->bench->lock);
	q->state = state;
	pthread_cond_broadcast(&q->bench->changed);
	pthread_mutex_unlock(&q->bench->lock);
}

static void state_wait_beyond(struct bench_queue *q, enum queue_state state)
{
	pthread_mutex_lock(&q->bench->lock);
	while (q->state <= state)
		pthread_cond_wait(&q->bench->changed, &q->bench->lock);
	pthread_mutex_unlock(&q->bench->lock);
}

/* ---- requests, on the queue's thread ---- */

static void pump(struct bench_queue *q);

static uint64_t random_next(struct bench_queue *q)
{
	/* xorshift64*: never 0 from a state that is not */
	q->random ^= q->random >> 12;
	q->random ^= q->random << 25;
	q->random ^= q->random >> 27;
	return q->random * 0x2545f4914f6cdd1du;
}

/* A number below @bound, by the upper half of a product: no division. */
static uint64_t random_below(struct bench_queue *q, uint64_t bound)
{
	return (uint64_t)((unsigned __int128)random_next(q) * bound >> 64);
}

static uint64_t offset_next(struct bench_queue *q)
{
	const struct bench_job *job = q->bench->job;
	uint64_t size = q->bench->target->limits.size_bytes, n, at;

	if (job->random)
		return random_below(q, q->bench->blocks) * job->request_bytes;
	n = q->next * q->bench->count + q->index;
	at = (uint64_t)((job->offset_bytes + (unsigned __int128)n * job->step_bytes) % size);
	/* What would reach over the end begins at the start instead. */
	return at > size - job->request_bytes ? 0 : at;
}

static void request_complete(struct blk_request *req, int ret)
{
	struct slot *slot = container_of(req, struct slot, req);
	struct bench_queue *q = slot->q;
	uint64_t now = clock_ns(), took = now - slot->begun_ns;

	switch (req->op) {
	case BLK_READ:
		histogram_add(&q->reads, took);
		break;
	case BLK_WRITE:
		histogram_add(&q->writes, took);
		break;
	default:
		histogram_add(&q->flushes, took);
		q->flushing = false;
	}
	if (ret && !q->ret) {
		q->ret = error_set(&q->err, ret, "a %s at offset %llu failed: %s",
				   req->op == BLK_READ ? "read" : req->op == BLK_WRITE ? "write" : "flush",
				   (unsigned long long)req->offset_bytes, strerror(-ret));
		q->ended = true;
	}
	q->now_ns = now;
	q->inflight--;
	slot->next = q->idle;
	q->idle = slot;
	pump(q);
}

static void slot_submit(struct bench_queue *q, enum blk_op op, uint64_t offset_bytes, uint64_t len_bytes)
{
	struct slot *slot = q->idle;

	q->idle = slot->next;
	q->inflight++;
	slot->req.op = op;
	slot->req.offset_bytes = offset_bytes;
	slot->req.len_bytes = len_bytes;
	slot->begun_ns = q->now_ns;
	q->bench->target->ops->submit(q->bench->target, q->index, &slot->req);
}

static void flush_submit(struct bench_queue *q)
{
	q->flush_due = false;
	q->flushing = true;
	q->since_flush = 0;
	slot_submit(q, BLK_FLUSH, 0, 0);
}

static void transfer_submit(struct bench_queue *q)
{
	const struct bench_job *job = q->bench->job;
	uint64_t offset = offset_next(q);
	bool read = job->read_percent == 100 ||
		    (job->read_percent && random_below(q, 100) < job->read_percent);

	q->next++;
	if (!read && ++q->since_flush == job->flush_interval)
		q->flush_due = true;
	slot_submit(q, read ? BLK_READ : BLK_WRITE, offset, job->request_bytes);
}

static void pump(struct bench_queue *q)
{
	const struct bench_job *job = q->bench->job;
	unsigned budget = job->open.depth;

	if (q->pumping || q->resting)
		return;
	q->pumping = true;
	while (q->idle && !q->flushing) {
		if (!budget--) {
			q->resting = true;
			loop_post(q->loop, &q->again);
			break;
		}
		if (q->now_ns >= q->end_ns || q->next == q->share)
			q->ended = true;
		if (q->flush_due && !q->ret) {
			if (q->inflight && !job->flush_at_once)
				break;
			flush_submit(q);
		} else if (q->ended) {
			break;
		} else {
			transfer_submit(q);
		}
	}
	q->pumping = false;
	if (q->ended && !q->inflight && !q->resting && !q->over_ns) {
		q->over_ns = q->now_ns;
		q->enters = loop_enters(q->loop) - q->enters_before;
		state_set(q, QUEUE_OVER);
	}
}

static void queue_go_on(struct loop_msg *msg)
{
	struct bench_queue *q = container_of(msg, struct bench_queue, again);

	q->resting = false;
	pump(q);
}

static void queue_begin(struct loop_msg *msg)
{
	struct bench_queue *q = container_of(msg, struct bench_queue, begin);
	const struct bench_job *job = q->bench->job;

	q->now_ns = clock_ns();
	q->enters_before = loop_enters(q->loop);
	q->end_ns = job->time_ns ? q->now_ns + job->time_ns : UINT64_MAX;
	pump(q);
}

/* ---- a queue's thread ---- */

/* Large pages where there are any: what is measured is not the machine's page tables. */
static void *memory_map(size_t bytes)
{
	void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (map == MAP_FAILED)
		return NULL;
	(void)madvise(map, bytes, MADV_HUGEPAGE);
	return map;
}

static int slots_create(struct bench_queue *q, struct error *err)
{
	const struct bench_job *job = q->bench->job;
	size_t priv_bytes = align_up(max_of(job->target->request_bytes, (size_t)1), 64);
	unsigned depth = job->open.depth;
	uint64_t *words;

	q->buffers_bytes = depth * align_up(job->request_bytes, 4096);
	q->privs_bytes = depth * priv_bytes;
	q->slots = calloc(depth, sizeof(*q->slots));
	q->buffers = memory_map(q->buffers_bytes);
	q->privs = memory_map(q->privs_bytes);
	if (!q->slots || !q->buffers || !q->privs)
		return error_set(err, -ENOMEM, "no memory for %u requests of %llu bytes", depth,
				 (unsigned long long)job->request_bytes);
	/* Nothing that anybody could take for zeros, or compress. */
	words = q->buffers;
	for (size_t i = 0; i < q->buffers_bytes / sizeof(*words); i++)
		words[i] = random_next(q);
	memset(q->privs, 0, q->privs_bytes);
	for (unsigned i = depth; i-- > 0;) {
		struct slot *slot = &q->slots[i];

		slot->q = q;
		slot->req.buf.base = (char *)q->buffers + i * align_up(job->request_bytes, 4096);
		slot->req.priv = (char *)q->privs + i * priv_bytes;
		slot->req.complete = request_complete;
		slot->next = q->idle;
		q->idle = slot;
	}
	return 0;
}

static int queue_setup(struct bench_queue *q, struct error *err)
{
	const struct target_ops *ops = q->bench->job->target;
	unsigned depth = q->bench->job->open.depth;
	char name[16];
	struct loop_params params = {
		.name = name,
		.sq_entries = max_of(2 * depth, 64u),
		.coroutines = ops->coroutines ? ops->coroutines(q->bench->target, q->index) : 0,
	};
	int ret;

	snprintf(name, sizeof(name), "bench-q%u", q->index);
	ret = slots_create(q, err);
	if (!ret)
		ret = loop_create(&q->loop, &params, err);
	if (!ret && ops->queue_start)
		ret = ops->queue_start(q->bench->target, q->index, q->loop, err);
	return ret;
}

static void *queue_thread(void *arg)
{
	struct bench_queue *q = arg;
	struct target *target = q->bench->target;
	int ret = queue_setup(q, &q->err);

	if (ret) {
		q->ret = ret;
		state_set(q, QUEUE_OVER);
		return NULL;
	}
	state_set(q, QUEUE_READY);
	ret = loop_run(q->loop);
	if (ret) {
		/* With requests in flight whose memory cannot be taken back. */
		fprintf(stderr, "io_uring failed: %s\n", strerror(-ret));
		abort();
	}
	if (target->ops->queue_stop)
		target->ops->queue_stop(target, q->index);
	return NULL;
}

/* ---- the main thread ---- */

static int queue_start(struct bench *b, struct bench_queue *q, struct error *err)
{
	const struct bench_job *job = b->job;
	sigset_t all, old;
	int ret;

	q->bench = b;
	q->index = (unsigned)(q - b->queues);
	q->begin.fn = queue_begin;
	q->again.fn = queue_go_on;
	q->random = (job->seed + q->index) * 0x9e3779b97f4a7c15u | 1;
	q->share = UINT64_MAX;
	if (job->requests)
		q->share = job->requests / b->count + (q->index < job->requests % b->count);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = -pthread_create(&q->thread, NULL, queue_thread, q);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret)
		return error_set(err, ret, "no thread can be started: %s", strerror(-ret));
	q->thread_started = true;
	state_wait_beyond(q, QUEUE_STARTING);
	return q->ret ? error_set(err, q->ret, "%s", error_text(&q->err, q->ret)) : 0;
}

/* Also of one that was not started. */
static void queue_stop(struct bench_queue *q)
{
	if (q->thread_started) {
		if (q->loop)
			loop_stop(q->loop);
		pthread_join(q->thread, NULL);
	}
	loop_destroy(q->loop);
	free(q->slots);
	if (q->buffers)
		munmap(q->buffers, q->buffers_bytes);
	if (q->privs)
		munmap(q->privs, q->privs_bytes);
}

static uint64_t timeval_ns(const struct timeval *tv)
{
	return (uint64_t)tv->tv_sec * 1000000000 + (uint64_t)tv->tv_usec * 1000;
}

/* Of the moment; getrusage() knows the peak alone. 0 where it cannot be told. */
static uint64_t resident_bytes(void)
{
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (f && fscanf(f, "%*u %lu", &pages) != 1)
		pages = 0;
	if (f)
		fclose(f);
	return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static int run_measured(struct bench *b, struct bench_figures *out, struct error *err)
{
	uint64_t begun_ns = clock_ns(), over_ns = begun_ns;
	struct rusage before, after;
	int ret = 0;

	out->resident_idle_bytes = resident_bytes();
	getrusage(RUSAGE_SELF, &before);
	for (unsigned i = 0; i < b->count; i++)
		loop_post(b->queues[i].loop, &b->queues[i].begin);
	for (unsigned i = 0; i < b->count; i++)
		state_wait_beyond(&b->queues[i], QUEUE_READY);
	getrusage(RUSAGE_SELF, &after);
	out->resident_bytes = resident_bytes();
	for (unsigned i = 0; i < b->count; i++) {
		struct bench_queue *q = &b->queues[i];

		if (q->ret && !ret)
			ret = error_set(err, q->ret, "%s", error_text(&q->err, q->ret));
		over_ns = max_of(over_ns, q->over_ns);
		out->enters += q->enters;
		histogram_merge(&out->reads, &q->reads);
		histogram_merge(&out->writes, &q->writes);
		histogram_merge(&out->flushes, &q->flushes);
	}
	out->run_ns = over_ns - begun_ns;
	out->user_ns = timeval_ns(&after.ru_utime) - timeval_ns(&before.ru_utime);
	out->system_ns = timeval_ns(&after.ru_stime) - timeval_ns(&before.ru_stime);
	return ret;
}

static int job_check(const struct bench_job *job, const struct target_limits *limits, struct error *err)
{
	uint64_t unit = limits->logical_block_bytes;

	if (!is_aligned(job->request_bytes | job->offset_bytes | (job->random ? 0 : job->step_bytes), unit))
		return error_set(err, -EINVAL,
				 "requests, their offset and the step between them are multiples of %llu "
				 "bytes here",
				 (unsigned long long)unit);
	if (job->request_bytes > limits->size_bytes)
		return error_set(err, -EINVAL, "is smaller than a request");
	return 0;
}

static int run_queues(struct bench *b, uint64_t begun_ns, struct bench_figures *out, struct error *err)
{
	unsigned started = 0;
	int ret = 0;

	while (!ret && started < b->count) {
		ret = queue_start(b, &b->queues[started], err);
		started++;
	}
	out->open_ns = clock_ns() - begun_ns;
	if (!ret)
		ret = run_measured(b, out, err);
	while (started)
		queue_stop(&b->queues[--started]);
	return ret;
}

int bench_run(const struct bench_job *job, struct bench_figures *out, struct error *err)
{
	struct bench b = {.job = job};
	uint64_t begun_ns = clock_ns(), closing_ns;
	struct error close_err = {0};
	int ret, close_ret;

	assert(job->read_percent <= 100 && job->request_bytes && job->open.depth);
	assert(job->open.queues && job->open.queues <= BENCH_QUEUES_MAX);
	memset(out, 0, sizeof(*out));
	ret = job->target->open(&b.target, &job->open, err);
	if (ret)
		return ret;
	b.count = min_of(job->open.queues, b.target->limits.max_queues);
	out->size_bytes = b.target->limits.size_bytes;
	out->queues = b.count;
	ret = job_check(job, &b.target->limits, err);
	b.blocks = out->size_bytes / job->request_bytes;
	b.queues = calloc(b.count, sizeof(*b.queues));
	if (!ret && !b.queues)
		ret = error_set(err, -ENOMEM, "out of memory");
	pthread_mutex_init(&b.lock, NULL);
	pthread_cond_init(&b.changed, NULL);
	if (!ret)
		ret = run_queues(&b, begun_ns, out, err);
	closing_ns = clock_ns();
	close_ret = b.target->ops->close(b.target, &close_err);
	out->close_ns = clock_ns() - closing_ns;
	pthread_cond_destroy(&b.changed);
	pthread_mutex_destroy(&b.lock);
	free(b.queues);
	if (close_ret && !ret)
		ret = error_set(err, close_ret, "%s", error_text(&close_err, close_ret));
	return ret;
}
