/* SPDX-License-Identifier: MIT */
/*
 * queue.c: see queue.h.
 *
 * A queue is one thread with one loop. Its ring carries the driver's commands and the target's own
 * I/O. Each tag goes round: a FETCH waits in the driver until a request comes; the request is
 * handed to the target; its result goes back by COMMIT_AND_FETCH, which is at once the next fetch:
 *
 *	FETCHING --completion: OK--> SERVED --blk_request_complete()--> FETCHING
 *	    \--completion: error--> DEAD
 *
 * How a queue ends. The driver aborts every fetch (-ENODEV) once the disk is gone, whoever stopped
 * it. The thread then only waits to be told: ublk_queue_stop() posts a message, and the loop ends
 * when nothing is served any more and all tags are dead. Some drivers forget a fetch that comes in
 * while they are stopping; after a moment of grace such a tag counts as dead, and the end of the
 * ring cancels it. Then, still on the thread, the target's queue is stopped, the ring destroyed, and
 * the memory given back. That order keeps every buffer mapped for as long as the driver may copy to
 * it.
 *
 * Invariants:
 *  1. served + dead + (tags FETCHING) = depth.
 *  2. Exactly one command is in the driver for a tag FETCHING, none for another. A tag's request is
 *     completed exactly once for each time it is SERVED.
 *  3. The loop is alive while phase is RUNNING, so the main thread may post to it under the lock.
 *  4. No request is committed with a short count; see ublk_request_result().
 *  5. After `closed` no request reaches the target. One that the driver sent all the same stays
 *     uncommitted, and fails when the ring goes.
 *  6. All first fetches go to the driver in one system call, which no signal cuts in two: one that dies has fetched
 *     all tags or none (halfway.c relies on it).
 *  7. A request that waits for space (target/hold.h) stays SERVED. Its memory of the data path is given
 *     back, and it begins again as it did when it came in: descriptor and payload are still the driver's.
 *
 * If a request does not come back from the target, the queue is abandoned. What matters then is
 * that the char device can be closed: the driver fails the request when that happens, and until then
 * whoever waits for it hangs, among them this process if it is to end while its own STOP_DEV waits
 * (the kernel lets a process's io_uring commands finish before it closes its files). The thread
 * unregisters the device, unmaps the descriptors and ends, which cancels its fetches; the loop, the
 * coroutines and the buffers stay as they are, since I/O of the target's may still be under way.
 * Where not even the thread answers, the main thread takes the same references away from it.
 *
 * A ring that fails (loop_run() returns an error) counts as a queue that ended unasked: the front
 * end is told through gone_fd, and this thread waits for ublk_queue_stop() as usual.
 */
#include "ublk/queue.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/list.h"
#include "base/log.h"
#include "base/math.h"
#include "target/frontend.h"
#include "ublk/request.h"

#define START_MS   30000
#define ABANDON_MS 2000
#define GRACE_NS   1000000000ull

/* ---- the life of a tag ---- */

static void check_drained(struct ublk_queue *q)
{
	if (!q->stopping || q->closed || q->served)
		return;
	if (q->dead < q->config.depth && !q->grace_over)
		return;
	q->closed = true;
	loop_timer_cancel(q->loop, &q->grace);
	loop_stop(q->loop);
}

/* The front end learns that this queue serves no more, unless that is its own doing. */
static void queue_over(struct ublk_queue *q)
{
	uint64_t one = 1;

	if (atomic_exchange(&q->over, true) || atomic_load(&q->end_expected))
		return;
	if (write(q->config.gone_fd, &one, sizeof(one)) != sizeof(one))
		log_err("ublk device %u, queue %u: cannot say that it ended: %s", q->config.dev_id,
			q->config.queue, strerror(errno));
}

static void tag_send(struct ublk_tag *t, uint32_t op, int32_t result)
{
	struct ublk_queue *q = t->queue;
	struct io_uring_sqe *sqe = loop_sqe(q->loop, &t->op);
	struct ublk_io_cmd *cmd = (struct ublk_io_cmd *)sqe->cmd;

	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = q->char_slot;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->cmd_op = op;
	*cmd = (struct ublk_io_cmd){
		.q_id = (uint16_t)q->config.queue,
		.tag = t->tag,
		.result = result,
	};
	q->config.path->arm(t, sqe, cmd);
	t->state = UBLK_TAG_FETCHING;
}

static void tag_dead(struct ublk_tag *t, int res)
{
	struct ublk_queue *q = t->queue;

	t->state = UBLK_TAG_DEAD;
	q->dead++;
	if (res != -ENODEV && res != -ECANCELED && !q->closed)
		log_err("ublk device %u, queue %u, tag %u: the driver ends it: %s",
			q->config.dev_id, q->config.queue, t->tag,
			res < 0 ? strerror(-res) : "unknown result");
	queue_over(q);
	check_drained(q);
}

static void tag_commit(struct ublk_tag *t, int ret)
{
	struct ublk_queue *q = t->queue;

	assert(t->state == UBLK_TAG_SERVED);
	assert(q->served > 0);
	q->served--;
	tag_send(t, UBLK_OP_COMMIT_AND_FETCH_REQ, ublk_request_result(&t->req, ret));
	check_drained(q);
}

static void tag_finish(struct ublk_tag *t, int ret)
{
	if (!hold_take(&t->queue->hold, &t->req, ret))
		tag_commit(t, ret);
}

static void tag_end(struct ublk_tag *t, int ret)
{
	struct ublk_queue *q = t->queue;
	const struct ublk_data_path *path = q->config.path;

	if (t->req.op == BLK_READ || t->req.op == BLK_WRITE)
		ret = path->end(t, ret);
	tag_finish(t, ret);
	if (path->ended)
		path->ended(q);
}

static void request_complete(struct blk_request *req, int ret)
{
	struct ublk_tag *t = container_of(req, struct ublk_tag, req);

	assert(loop_self() == t->queue->loop);
	assert(ret <= 0);
	tag_end(t, ret);
}

void ublk_tag_begun(struct ublk_tag *t, int ret)
{
	struct ublk_queue *q = t->queue;

	if (ret)
		tag_end(t, ret);
	else
		q->config.target->ops->submit(q->config.target, q->config.queue, &t->req);
}

static void count_request(struct ublk_queue *q, unsigned op)
{
	uint64_t *count = op == UBLK_IO_READ	? &q->counts.reads
			  : op == UBLK_IO_WRITE ? &q->counts.writes
						: &q->counts.others;

	__atomic_store_n(count, *count + 1, __ATOMIC_RELAXED);
}

/* From the descriptor to the target: when a request comes in, and each time that it is tried again. */
static void tag_begin(struct ublk_tag *t)
{
	struct ublk_queue *q = t->queue;
	const struct ublk_io_desc *desc =
		(const struct ublk_io_desc *)(q->descs + t->tag * q->config.desc_bytes);
	int ret = ublk_request_decode(&t->req, desc, &q->config.target->limits, q->config.buf_bytes);

	if (ret)
		log_err("ublk device %u, queue %u: refused a request: operation %#x, sector %llu, %u "
			"sectors: %s",
			q->config.dev_id, q->config.queue, desc->op_flags,
			(unsigned long long)desc->start_sector, desc->nr_sectors, strerror(-ret));
	t->op_flags = desc->op_flags;
	if (ret) {
		tag_finish(t, ret);
		return;
	}
	if (t->req.op == BLK_READ || t->req.op == BLK_WRITE)
		ret = q->config.path->begin(t);
	if (ret != UBLK_BEGIN_LATER)
		ublk_tag_begun(t, ret);
}

static void request_again(struct hold *hold, struct blk_request *req)
{
	tag_begin(container_of(req, struct ublk_tag, req));
}

static void tag_fetched(struct loop_op *op, int res, uint32_t cqe_flags)
{
	struct ublk_tag *t = container_of(op, struct ublk_tag, op);
	struct ublk_queue *q = t->queue;
	const struct ublk_io_desc *desc;

	assert(t->state == UBLK_TAG_FETCHING);
	if (res != UBLK_RES_OK || q->closed) {
		tag_dead(t, res);
		return;
	}
	desc = (const struct ublk_io_desc *)(q->descs + t->tag * q->config.desc_bytes);
	t->state = UBLK_TAG_SERVED;
	q->served++;
	count_request(q, desc->op_flags & 0xff);
	tag_begin(t);
}

/* ---- the thread ---- */

static void grace_over(struct loop_timer *timer)
{
	struct ublk_queue *q = container_of(timer, struct ublk_queue, grace);

	q->grace_over = true;
	check_drained(q);
}

static void stop_asked(struct loop_msg *msg)
{
	struct ublk_queue *q = container_of(msg, struct ublk_queue, stop_msg);

	if (q->closed)
		return;
	q->stopping = true;
	loop_timer_arm(q->loop, &q->grace, GRACE_NS);
	check_drained(q);
}

static void settled_asked(struct loop_msg *msg)
{
	container_of(msg, struct ublk_queue, settled_msg)->config.settled();
}

static void abandon_asked(struct loop_msg *msg)
{
	struct ublk_queue *q = container_of(msg, struct ublk_queue, abandon_msg);

	if (q->closed) /* it has just come to its end after all */
		return;
	q->closed = true;
	q->abandoned = true;
	loop_stop(q->loop);
}

static int tags_create(struct ublk_queue *q, struct error *err)
{
	size_t priv = align_up(q->config.target->ops->request_bytes, 64);
	size_t head = align_up(sizeof(struct ublk_tag), 64);

	q->tag_stride = head + priv;
	q->tags = aligned_alloc(64, q->config.depth * q->tag_stride);
	if (!q->tags)
		return error_set(err, -ENOMEM, "no memory for a queue of %u requests",
				 q->config.depth);
	memset(q->tags, 0, q->config.depth * q->tag_stride);
	for (unsigned i = 0; i < q->config.depth; i++) {
		struct ublk_tag *t = ublk_queue_tag(q, i);

		t->op.complete = tag_fetched;
		t->req.complete = request_complete;
		t->req.priv = priv ? (char *)t + head : NULL;
		t->queue = q;
		t->tag = (uint16_t)i;
	}
	return 0;
}

static int descs_map(struct ublk_queue *q, struct error *err)
{
	size_t bytes = ublk_desc_map_bytes(q->config.depth, q->config.desc_bytes);
	uint64_t offset = ublk_desc_map_offset(q->config.queue, q->config.desc_bytes);
	void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, q->config.char_fd,
			 (off_t)offset);

	if (map == MAP_FAILED)
		return error_set(err, -errno, "cannot map the descriptors of ublk device %u: %s",
				 q->config.dev_id, strerror(errno));
	q->descs = map;
	q->descs_bytes = bytes;
	return 0;
}

static int loop_make(struct ublk_queue *q, struct error *err)
{
	const struct target_ops *ops = q->config.target->ops;
	char name[16];
	struct loop_params params = {
		.name = name,
		/* every tag commits and starts I/O of its own in one turn */
		.sq_entries = max_of(2 * q->config.depth, 64u),
		.coroutines = ops->coroutines ? ops->coroutines(q->config.target, q->config.queue) : 0,
		.commands = true,
		.any_op = ops->any_op,
	};
	int ret;

	snprintf(name, sizeof(name), "ublk%u-q%u", q->config.dev_id, q->config.queue);
	ret = loop_create(&q->loop, &params, err);
	if (ret)
		return ret;
	q->char_slot = loop_file_register(q->loop, q->config.char_fd);
	if (q->char_slot < 0)
		return error_set(err, q->char_slot,
				 "cannot register the ublk device with io_uring: %s",
				 strerror(-q->char_slot));
	return 0;
}

/* The target's queue comes last: what is done after it cannot fail. */
static int queue_setup(struct ublk_queue *q, struct error *err)
{
	const struct ublk_queue_config *c = &q->config;
	int ret;

	frontend_protect_thread();
	if (c->cpus && pthread_setaffinity_np(pthread_self(), sizeof(q->cpus), &q->cpus))
		log_debug("ublk device %u, queue %u: stays on any CPU", c->dev_id, c->queue);
	ret = tags_create(q, err);
	if (!ret)
		ret = descs_map(q, err);
	if (!ret)
		ret = loop_make(q, err);
	if (!ret)
		ret = c->path->setup(q, err);
	if (!ret && c->target->ops->queue_start)
		ret = c->target->ops->queue_start(c->target, c->queue, q->loop, err);
	if (ret)
		return ret;
	q->queue_started = true;
	hold_init(&q->hold, c->hold, q->loop, request_again);
	for (unsigned i = 0; i < c->depth; i++)
		tag_send(ublk_queue_tag(q, i), UBLK_OP_FETCH_REQ, 0);
	return 0;
}

static void queue_teardown(struct ublk_queue *q)
{
	struct target *target = q->config.target;

	if (q->queue_started && target->ops->queue_stop)
		target->ops->queue_stop(target, q->config.queue);
	if (q->loop && q->char_slot >= 0)
		loop_file_unregister(q->loop, q->char_slot);
	loop_destroy(q->loop);
	q->loop = NULL;
	q->config.path->teardown(q);
	if (q->descs)
		munmap((void *)q->descs, q->descs_bytes);
	free(q->tags);
}

/*
 * Lets go of the char device and of little else. The ring has to go, since the fetches that are
 * cancelled hold the device until somebody runs their completions; nobody will use the loop again.
 */
static void queue_abandon(struct ublk_queue *q)
{
	loop_file_unregister(q->loop, q->char_slot);
	io_uring_queue_exit(loop_ring(q->loop));
	munmap((void *)q->descs, q->descs_bytes);
}

static void phase_set(struct ublk_queue *q, enum ublk_queue_phase phase)
{
	pthread_mutex_lock(&q->lock);
	q->phase = phase;
	pthread_cond_broadcast(&q->changed);
	pthread_mutex_unlock(&q->lock);
}

static void *queue_thread(void *arg)
{
	struct ublk_queue *q = arg;
	int ret = queue_setup(q, &q->err);

	if (ret) {
		q->ret = ret;
		queue_teardown(q);
		phase_set(q, UBLK_QUEUE_ENDED);
		return NULL;
	}
	phase_set(q, UBLK_QUEUE_RUNNING);
	ret = loop_run(q->loop);
	if (ret) {
		log_err("ublk device %u, queue %u: its io_uring failed: %s", q->config.dev_id,
			q->config.queue, strerror(-ret));
		atomic_store(&q->failed, true);
	}
	if (q->abandoned) {
		queue_abandon(q);
		phase_set(q, UBLK_QUEUE_ENDED);
		return NULL;
	}
	q->closed = true;
	phase_set(q, UBLK_QUEUE_LEAVING);
	queue_over(q);
	pthread_mutex_lock(&q->lock);
	q->ret = ret;
	while (!q->stop_requested)
		pthread_cond_wait(&q->changed, &q->lock);
	pthread_mutex_unlock(&q->lock);
	queue_teardown(q);
	phase_set(q, UBLK_QUEUE_ENDED);
	return NULL;
}

/* ---- the main thread's side ---- */

/* Under the lock: waits for a phase other than @phase_left or beyond; false if time is up. */
static bool phase_wait(struct ublk_queue *q, enum ublk_queue_phase at_least, unsigned timeout_ms)
{
	struct timespec deadline;

	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += timeout_ms / 1000;
	while (q->phase < at_least)
		if (pthread_cond_timedwait(&q->changed, &q->lock, &deadline) == ETIMEDOUT)
			return q->phase >= at_least;
	return true;
}

static int thread_create(struct ublk_queue *q, struct error *err)
{
	sigset_t all, old;
	int ret;

	/* signals are the main thread's */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = pthread_create(&q->thread, NULL, queue_thread, q);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret)
		return error_set(err, -ret, "cannot start a queue's thread: %s", strerror(ret));
	return 0;
}

static void queue_free(struct ublk_queue *q)
{
	pthread_cond_destroy(&q->changed);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

static struct ublk_queue *queue_alloc(const struct ublk_queue_config *config)
{
	struct ublk_queue *q = calloc(1, sizeof(*q));
	pthread_condattr_t attr;

	if (!q)
		return NULL;
	q->config = *config;
	if (config->cpus) {
		q->cpus = *config->cpus;
		q->config.cpus = &q->cpus;
	}
	q->char_slot = -1;
	q->stop_msg.fn = stop_asked;
	q->abandon_msg.fn = abandon_asked;
	q->settled_msg.fn = settled_asked;
	loop_timer_init(&q->grace, grace_over);
	pthread_mutex_init(&q->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&q->changed, &attr);
	pthread_condattr_destroy(&attr);
	return q;
}

int ublk_queue_start(struct ublk_queue **out, const struct ublk_queue_config *config,
		     struct error *err)
{
	struct ublk_queue *q = queue_alloc(config);
	bool running, in_time;
	int ret;

	assert(config->depth >= 1 && config->depth <= UBLK_MAX_DEPTH);
	if (!q)
		return error_set(err, -ENOMEM, "out of memory");
	ret = thread_create(q, err);
	if (ret) {
		queue_free(q);
		return ret;
	}
	pthread_mutex_lock(&q->lock);
	in_time = phase_wait(q, UBLK_QUEUE_RUNNING, START_MS);
	running = in_time && (q->phase == UBLK_QUEUE_RUNNING || q->phase == UBLK_QUEUE_LEAVING);
	pthread_mutex_unlock(&q->lock);
	if (!in_time) /* it still uses its memory */
		return error_set(err, -ETIMEDOUT, "queue %u did not start in %u s", config->queue,
				 START_MS / 1000);
	if (!running) {
		pthread_join(q->thread, NULL);
		ret = error_set(err, q->ret, "%s", error_text(&q->err, q->ret));
		queue_free(q);
		return ret;
	}
	*out = q;
	return 0;
}

bool ublk_queue_over(const struct ublk_queue *q)
{
	return atomic_load(&q->over);
}

bool ublk_queue_failed(const struct ublk_queue *q)
{
	return atomic_load(&q->failed);
}

void ublk_queue_figures(const struct ublk_queue *q, struct frontend_figures *out)
{
	struct loop_counts loop;

	loop_counts_read(q->loop, &loop);
	*out = (struct frontend_figures){
		.reads = __atomic_load_n(&q->counts.reads, __ATOMIC_RELAXED),
		.writes = __atomic_load_n(&q->counts.writes, __ATOMIC_RELAXED),
		.others = __atomic_load_n(&q->counts.others, __ATOMIC_RELAXED),
		.enters = loop.enters,
		.messages = loop.messages,
		.coroutines = loop.coroutines,
		.locks = loop.locks,
		.fallbacks = __atomic_load_n(&q->counts.fallbacks, __ATOMIC_RELAXED),
	};
}

void ublk_queue_retry(struct ublk_queue *q)
{
	pthread_mutex_lock(&q->lock);
	if (q->phase == UBLK_QUEUE_RUNNING)
		hold_retry(&q->hold);
	pthread_mutex_unlock(&q->lock);
}

void ublk_queue_expect_end(struct ublk_queue *q, bool expected)
{
	atomic_store(&q->end_expected, expected);
}

/*
 * The thread does not answer: it hangs in the target's code. What it holds of the char device goes
 * from under it: a descriptor that it still looks at reads as zeros, and its ring, once this last
 * user of the file is gone, ends with the thread.
 */
static void abandon_by_force(struct ublk_queue *q)
{
	mmap((void *)q->descs, q->descs_bytes, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS,
	     -1, 0);
	close(loop_ring(q->loop)->ring_fd);
}

void ublk_queue_settle(struct ublk_queue *q)
{
	pthread_mutex_lock(&q->lock);
	if (q->phase == UBLK_QUEUE_RUNNING)
		loop_post(q->loop, &q->settled_msg);
	pthread_mutex_unlock(&q->lock);
}

int ublk_queue_stop(struct ublk_queue *q, unsigned timeout_ms, struct error *err)
{
	bool in_time, answers = true;
	int ret;

	ublk_queue_expect_end(q, true);
	pthread_mutex_lock(&q->lock);
	assert(!q->stop_requested);
	q->stop_requested = true;
	if (q->phase == UBLK_QUEUE_RUNNING)
		loop_post(q->loop, &q->stop_msg);
	pthread_cond_broadcast(&q->changed);
	in_time = phase_wait(q, UBLK_QUEUE_ENDED, timeout_ms);
	if (!in_time) {
		if (q->phase == UBLK_QUEUE_RUNNING)
			loop_post(q->loop, &q->abandon_msg);
		answers = phase_wait(q, UBLK_QUEUE_ENDED, ABANDON_MS);
	}
	pthread_mutex_unlock(&q->lock);
	if (!answers)
		abandon_by_force(q);
	else
		pthread_join(q->thread, NULL);
	if (!answers || q->abandoned)
		return error_set(err, -ETIMEDOUT, "queue %u has requests that do not end",
				 q->config.queue);
	ret = q->ret;
	queue_free(q);
	if (ret)
		return error_set(err, ret, "a queue's io_uring failed: %s", strerror(-ret));
	return 0;
}
