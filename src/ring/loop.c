/* SPDX-License-Identifier: MIT */
/*
 * loop.c: the event loop; see loop.h for what it promises.
 *
 * A turn of a loop that has a ring:
 *
 *	messages -> ready coroutines -> idle hook -> outboxes -> one io_uring_enter -> completions -> timers
 *
 * The enter submits what the turn prepared, and waits if nothing is left to do. What a loop's thread posts
 * to other loops waits in outboxes until then: a loop that is woken finds all of it at once, instead of
 * going back to sleep between one message and the next.
 *
 * Completions are moved off the ring into a queue of our own (`done`), the ring's head is advanced
 * once, and only then are they delivered. So a callback finds a completion queue with room in it
 * when it fills the submission queue and has to submit in the middle of a delivery.
 *
 * Invariants:
 *  1. Wake-ups are not lost. A sender pushes first and reads `waiting` afterwards; the loop sets
 *     `waiting` first and looks at the inbox afterwards; all four are sequentially consistent, so
 *     at least one of the two sees the other. Whoever clears `waiting` writes the eventfd, once.
 *  2. Messages are pushed on a stack by compare-and-swap and taken off it all at once, so there is
 *     no ABA; reversing what was taken gives each sender's order. Outboxes are emptied before the loop
 *     waits, stops another one, or returns from loop_run().
 *  3. A sender's last access to the loop is leaving `posters`; loop_destroy() waits for that. A
 *     message may therefore be handled, and the loop it went to destroyed, while its sender is
 *     still on its way out of loop_post().
 *  4. The eventfd is watched by a poll request, never by a read: nothing that the ring does behind
 *     a loop's back when it is torn down writes to the loop's memory.
 *  5. A turn's work is bounded (TURN_SWITCHES, the length of the completion queue), so that
 *     coroutines that keep each other busy do not starve the ring.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/math.h"
#include "ring/impl.h"
#include "ring/restrict.h"

enum {
	TURN_SWITCHES = 1024,
	SQ_ENTRIES_MAX = 32768,
};

/* All that this program submits. IORING_OP_TIMEOUT is liburing's, on kernels before 5.11. */
static const uint8_t operations[] = {
	IORING_OP_NOP,	      IORING_OP_READ,	     IORING_OP_WRITE,	    IORING_OP_READV,
	IORING_OP_WRITEV,     IORING_OP_READ_FIXED,  IORING_OP_WRITE_FIXED, IORING_OP_FSYNC,
	IORING_OP_FALLOCATE,  RING_OP_FTRUNCATE,     IORING_OP_POLL_ADD,    IORING_OP_ASYNC_CANCEL,
	IORING_OP_TIMEOUT,    IORING_OP_URING_CMD, /* the last one: see loop_restrict() */
};

static _Thread_local struct loop *self_loop;

struct loop *loop_self(void)
{
	return self_loop;
}

struct io_uring *loop_ring(struct loop *loop)
{
	return loop->has_ring ? &loop->ring : NULL;
}

void loop_count_lock(void)
{
	if (self_loop)
		loop_count(&self_loop->counts.locks);
}

void loop_counts_read(const struct loop *loop, struct loop_counts *out)
{
	const struct loop_counts *c = &loop->counts;

	*out = (struct loop_counts){
		.enters = __atomic_load_n(&c->enters, __ATOMIC_RELAXED),
		.messages = __atomic_load_n(&c->messages, __ATOMIC_RELAXED),
		.coroutines = __atomic_load_n(&c->coroutines, __ATOMIC_RELAXED),
		.locks = __atomic_load_n(&c->locks, __ATOMIC_RELAXED),
	};
}

uint64_t loop_now_ns(const struct loop *loop)
{
	return loop->now_ns;
}

uint64_t loop_enters(const struct loop *loop)
{
	return loop->counts.enters;
}

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* ---- creation ---- */

static int ring_create(struct loop *loop, const struct loop_params *p, struct error *err)
{
	/* From what a recent kernel takes to what io_uring began with (R_DISABLED: 5.10). */
	static const unsigned flags[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
		0,
	};
	unsigned always = IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP;
	int ret = -EINVAL;

	if (p->sqe128)
		always |= IORING_SETUP_SQE128;
	for (size_t i = 0; i < ARRAY_LEN(flags) && ret == -EINVAL; i++)
		ret = io_uring_queue_init(p->sq_entries, &loop->ring, flags[i] | always);
	if (ret == -EPERM)
		return error_set(
			err, ret,
			"io_uring is not permitted here (see the sysctl kernel.io_uring_disabled)");
	if (ret)
		return error_set(err, ret, "cannot create an io_uring: %s", strerror(-ret));
	loop->has_ring = true;
	/*
	 * A forked child must not inherit the mappings: they hold the ring, and with it all files that
	 * are registered there, until the child ends, even if the program has long been killed.
	 */
	ret = io_uring_ring_dontfork(&loop->ring);
	if (ret)
		return error_set(err, ret, "cannot keep an io_uring from children: %s",
				 strerror(-ret));
	return 0;
}

/* Without that all works as well, and somebody who has taken over this process may ask for more. */
static void loop_restrict(struct loop *loop, const struct loop_params *p)
{
	static atomic_bool said;
	unsigned count = ARRAY_LEN(operations);
	int ret;

	if (p->any_op)
		return;
	if (!p->commands)
		count--;
	ret = ring_restrict(&loop->ring, operations, count);
	if (ret && !atomic_exchange(&said, true))
		log_info("what may be submitted to io_uring is not restricted: %s", strerror(-ret));
}

/* Without the table I/O works as well, a little slower: loop_file_register() then says so. */
static void ring_register_table(struct loop *loop)
{
	int none[LOOP_FILES_MAX];

	if (!io_uring_register_files_sparse(&loop->ring, LOOP_FILES_MAX)) {
		loop->files_registered = true;
		return;
	}
	memset(none, 0xff, sizeof(none));
	loop->files_registered = !io_uring_register_files(&loop->ring, none, LOOP_FILES_MAX);
}

static void loop_wake_complete(struct loop_op *op, int res, uint32_t cqe_flags);

int loop_create(struct loop **out, const struct loop_params *params, struct error *err)
{
	struct loop *loop;
	uint64_t done_entries;
	int ret;

	*out = NULL;
	assert(params->ringless || (params->sq_entries && params->sq_entries <= SQ_ENTRIES_MAX));
	loop = aligned_alloc(_Alignof(struct loop), sizeof(*loop));
	if (!loop)
		return error_set(err, -ENOMEM, "out of memory");
	memset(loop, 0, sizeof(*loop));
	loop->wake_fd = -1;
	loop->wake_op.complete = loop_wake_complete;
	list_init(&loop->timers);
	if (params->name)
		strncpy(loop->name, params->name, sizeof(loop->name) - 1);
	ret = co_pool_init(loop, params->coroutines, params->stack_bytes, err);
	if (ret)
		goto fail;
	if (params->ringless) {
		*out = loop;
		return 0;
	}
	ret = ring_create(loop, params, err);
	if (ret)
		goto fail;
	ring_register_table(loop);
	loop_restrict(loop, params);
	loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->wake_fd < 0) {
		ret = error_set(err, -errno, "cannot create an eventfd: %s", strerror(errno));
		goto fail;
	}
	/* Both sizes are powers of two; the factor is for loop_sqe_slow(). */
	done_entries = 4 * (uint64_t)loop->ring.cq.ring_entries;
	loop->done = calloc(done_entries, sizeof(*loop->done));
	if (!loop->done) {
		ret = error_set(err, -ENOMEM, "out of memory");
		goto fail;
	}
	loop->done_mask = (uint32_t)done_entries - 1;
	loop->now_ns = clock_ns();
	/* valgrind runs one thread at a time, and no other while this one waits for the ring. */
	loop->wait_max_ns = RUNNING_ON_VALGRIND ? 1000000 : UINT64_MAX;
	*out = loop;
	return 0;
fail:
	loop_destroy(loop);
	return ret;
}

void loop_destroy(struct loop *loop)
{
	if (!loop)
		return;
	assert(self_loop != loop);
	while (atomic_load(&loop->posters))
		sched_yield();
	co_pool_destroy(loop);
	if (loop->has_ring)
		io_uring_queue_exit(&loop->ring);
	if (loop->wake_fd >= 0)
		close(loop->wake_fd);
	free(loop->done);
	free(loop);
}

/* ---- registered files ---- */

int loop_file_register(struct loop *loop, int fd)
{
	int slot, ret;

	assert(loop->has_ring);
	if (!loop->files_registered)
		return -EOPNOTSUPP;
	if (loop->file_slots == UINT64_MAX)
		return -ENFILE;
	slot = __builtin_ctzll(~loop->file_slots);
	ret = io_uring_register_files_update(&loop->ring, (unsigned)slot, &fd, 1);
	if (ret < 0)
		return ret;
	loop->file_slots |= 1ULL << slot;
	return slot;
}

void loop_file_unregister(struct loop *loop, int slot)
{
	int none = -1, ret;

	assert(slot >= 0 && slot < LOOP_FILES_MAX && (loop->file_slots & (1ULL << slot)));
	ret = io_uring_register_files_update(&loop->ring, (unsigned)slot, &none, 1);
	/*
	 * Once its thread has ended, a ring takes this from nobody (-EEXIST). The slot then stays
	 * taken until the ring goes, which is all that can happen to such a ring.
	 */
	if (ret >= 0)
		loop->file_slots &= ~(1ULL << slot);
}

_Static_assert(LOOP_FILES_MAX == 64, "file_slots is one bit for each");

/* ---- messages ---- */

static void loop_wake(struct loop *loop)
{
	uint64_t one = 1;
	ssize_t n;

	/* The exchange only when it can matter: most messages find the loop awake. */
	if (!atomic_load(&loop->waiting) || !atomic_exchange(&loop->waiting, false))
		return;
	do
		n = write(loop->wake_fd, &one, sizeof(one));
	while (n < 0 && errno == EINTR);
	/* EAGAIN: 2^64 - 2 wake-ups are waiting to be seen. */
	assert(n == sizeof(one) || errno == EAGAIN);
}

/* Delivers a chain of messages, linked from the newest to the oldest one. */
static void post_chain(struct loop *loop, struct loop_msg *newest, struct loop_msg *oldest)
{
	struct loop_msg *before;

	atomic_fetch_add(&loop->posters, 1);
	before = atomic_load_explicit(&loop->inbox, memory_order_relaxed);
	do
		oldest->next = before;
	while (!atomic_compare_exchange_weak(&loop->inbox, &before, newest));
	loop_wake(loop);
	atomic_fetch_sub(&loop->posters, 1);
}

static void outboxes_empty(struct loop *self)
{
	for (unsigned i = 0; i < self->outboxes_used; i++) {
		struct loop_outbox *out = &self->outboxes[i];

		post_chain(out->to, out->newest, out->oldest);
	}
	self->outboxes_used = 0;
}

/* False: there is no room. */
static bool outbox_put(struct loop *self, struct loop *to, struct loop_msg *msg)
{
	unsigned i = 0;

	while (i < self->outboxes_used && self->outboxes[i].to != to)
		i++;
	if (i == LOOP_OUTBOXES)
		return false;
	if (i == self->outboxes_used) {
		self->outboxes[self->outboxes_used++] =
			(struct loop_outbox){.to = to, .newest = msg, .oldest = msg};
		return true;
	}
	msg->next = self->outboxes[i].newest;
	self->outboxes[i].newest = msg;
	return true;
}

void loop_post(struct loop *loop, struct loop_msg *msg)
{
	struct loop *self = self_loop;

	if (self)
		loop_count(&self->counts.messages);
	if (self && self != loop && self->has_ring && outbox_put(self, loop, msg))
		return;
	post_chain(loop, msg, msg);
}

void loop_stop(struct loop *loop)
{
	if (self_loop)
		outboxes_empty(self_loop);
	atomic_fetch_add(&loop->posters, 1);
	atomic_store(&loop->stop, true);
	loop_wake(loop);
	atomic_fetch_sub(&loop->posters, 1);
}

void loop_on_failure(struct loop *loop, void (*fn)(void))
{
	loop->failure_fn = fn;
}

static bool run_messages(struct loop *loop)
{
	struct loop_msg *msg, *next, *in_order = NULL;

	if (!atomic_load_explicit(&loop->inbox, memory_order_relaxed))
		return false;
	for (msg = atomic_exchange(&loop->inbox, NULL); msg; msg = next) {
		next = msg->next;
		msg->next = in_order;
		in_order = msg;
	}
	for (msg = in_order; msg; msg = next) {
		next = msg->next;
		msg->fn(msg);
	}
	return true;
}

/* ---- the eventfd's watch ---- */

static void wake_arm(struct loop *loop)
{
	struct io_uring_sqe *sqe = loop_sqe(loop, &loop->wake_op);

	if (loop->wake_oneshot)
		io_uring_prep_poll_add(sqe, loop->wake_fd, POLLIN);
	else
		io_uring_prep_poll_multishot(sqe, loop->wake_fd, POLLIN);
}

/* A multishot poll reports each write by itself; the counter need not be read while it lives. */
static void loop_wake_complete(struct loop_op *op, int res, uint32_t cqe_flags)
{
	struct loop *loop = container_of(op, struct loop, wake_op);
	uint64_t count;

	if (cqe_flags & IORING_CQE_F_MORE)
		return;
	if (res == -EINVAL && !loop->wake_oneshot) {
		loop->wake_oneshot = true; /* before Linux 5.13 */
	} else if (res < 0 && res != -ECANCELED) {
		loop->failed = res;
		return;
	}
	if (read(loop->wake_fd, &count, sizeof(count)) < 0)
		assert(errno == EAGAIN || errno == EINTR);
	wake_arm(loop);
}

/* ---- submission ---- */

/* Moves what fits from the ring to `done`; true if it moved anything. */
static bool ring_collect(struct loop *loop)
{
	/* In locals: the compiler must take any store for one to *loop. */
	uint32_t tail = loop->done_tail, mask = loop->done_mask, room;
	struct loop_done *done = loop->done;
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;

	room = mask + 1 - (tail - loop->done_head);
	io_uring_for_each_cqe(&loop->ring, head, cqe) {
		if (n == room)
			break;
		n++;
		if (!cqe->user_data || cqe->user_data == LIBURING_UDATA_TIMEOUT)
			continue;
		done[tail & mask] = (struct loop_done){
			.op = (struct loop_op *)(uintptr_t)cqe->user_data,
			.res = cqe->res,
			.flags = cqe->flags,
		};
		tail++;
	}
	loop->done_tail = tail;
	io_uring_cq_advance(&loop->ring, n);
	return n;
}

/*
 * The submission queue is full in the middle of a turn. -EBUSY (kernels before 5.19: completions
 * that found no room) and -EAGAIN (no memory for a request) pass once completions were taken off.
 */
static struct io_uring_sqe *loop_sqe_slow(struct loop *loop)
{
	struct io_uring_sqe *sqe;
	int ret;

	assert(loop->enabled);
	for (;;) {
		loop_count(&loop->counts.enters);
		ret = io_uring_submit_and_get_events(&loop->ring);
		sqe = io_uring_get_sqe(&loop->ring);
		if (sqe)
			return sqe;
		if (ret < 0 && ret != -EBUSY && ret != -EAGAIN && ret != -EINTR && ret != -ENOMEM) {
			log_err("io_uring failed: %s", strerror(-ret));
			abort();
		}
		if (!ring_collect(loop))
			sched_yield();
	}
}

void loop_sqe_bind(struct io_uring_sqe *sqe, struct loop_op *op)
{
	io_uring_sqe_set_data(sqe, op);
}

struct io_uring_sqe *loop_sqe(struct loop *loop, struct loop_op *op)
{
	struct io_uring_sqe *sqe;

	assert(loop->has_ring);
	sqe = io_uring_get_sqe(&loop->ring);
	if (__builtin_expect(!sqe, 0))
		sqe = loop_sqe_slow(loop);
	memset(sqe, 0, sizeof(*sqe));
	if (loop->ring.flags & IORING_SETUP_SQE128)
		memset(sqe + 1, 0, sizeof(*sqe));
	io_uring_sqe_set_data(sqe, op);
	return sqe;
}

/* ---- timers ---- */

void loop_timer_init(struct loop_timer *timer, void (*fn)(struct loop_timer *timer))
{
	list_init(&timer->list);
	timer->deadline_ns = 0;
	timer->fn = fn;
}

void loop_timer_cancel(struct loop *loop, struct loop_timer *timer)
{
	list_del(&timer->list);
}

void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t delay_ns)
{
	struct list *after;

	list_del(&timer->list);
	if (!checked_add(loop->now_ns, delay_ns, &timer->deadline_ns))
		timer->deadline_ns = UINT64_MAX;
	/* From the end: most new timers are the latest. Equal ones run in the order of arming. */
	for (after = loop->timers.prev; after != &loop->timers; after = after->prev)
		if (list_entry(after, struct loop_timer, list)->deadline_ns <= timer->deadline_ns)
			break;
	list_insert_between(&timer->list, after, after->next);
}

uint64_t loop_next_deadline_ns(const struct loop *loop)
{
	if (list_empty(&loop->timers))
		return UINT64_MAX;
	return list_entry(loop->timers.next, struct loop_timer, list)->deadline_ns;
}

static bool timer_due(const struct loop *loop)
{
	return loop_next_deadline_ns(loop) <= loop->now_ns && !list_empty(&loop->timers);
}

/* A timer that its own function arms with no delay runs again in the next round. */
static bool run_timers(struct loop *loop)
{
	struct list due = LIST_INIT(due);
	bool any = false;

	while (timer_due(loop)) {
		struct list *l = list_pop(&loop->timers);

		list_add_tail(&due, l);
	}
	while (!list_empty(&due)) {
		struct loop_timer *timer = list_entry(list_pop(&due), struct loop_timer, list);

		timer->fn(timer);
		any = true;
	}
	return any;
}

/* ---- the turn ---- */

void loop_on_idle(struct loop *loop, void (*fn)(void *arg), void *arg)
{
	loop->idle_fn = fn;
	loop->idle_arg = arg;
}

static bool inbox_empty(const struct loop *loop)
{
	return !atomic_load(&loop->inbox);
}

/* Submits, and waits for a completion unless there is something to do without one. */
static int ring_enter(struct loop *loop)
{
	struct __kernel_timespec ts;
	struct io_uring_cqe *cqe;
	uint64_t deadline_ns, delay_ns;
	bool wait;
	int ret;

	wait = !co_pool_ready(loop) && !timer_due(loop) && loop->done_head == loop->done_tail;
	if (wait) {
		atomic_store(&loop->waiting, true);
		if (!inbox_empty(loop) || atomic_load(&loop->stop)) {
			atomic_store_explicit(&loop->waiting, false, memory_order_relaxed);
			wait = false;
		}
	}
	deadline_ns = loop_next_deadline_ns(loop);
	loop_count(&loop->counts.enters);
	if (!wait) {
		ret = io_uring_submit_and_get_events(&loop->ring);
	} else if (deadline_ns == UINT64_MAX && loop->wait_max_ns == UINT64_MAX) {
		ret = io_uring_submit_and_wait(&loop->ring, 1);
	} else {
		delay_ns = clock_ns();
		delay_ns = deadline_ns > delay_ns ? deadline_ns - delay_ns : 0;
		delay_ns = min_of(delay_ns, loop->wait_max_ns);
		ts.tv_sec = (int64_t)(delay_ns / 1000000000);
		ts.tv_nsec = (long long)(delay_ns % 1000000000);
		ret = io_uring_submit_and_wait_timeout(&loop->ring, &cqe, 1, &ts, NULL);
	}
	/* A sender that saw it set a moment ago makes the next wait end early; that is all. */
	atomic_store_explicit(&loop->waiting, false, memory_order_relaxed);
	loop->now_ns = clock_ns();
	switch (ret) {
	case -ETIME:
	case -EINTR:
	case -EAGAIN:
	case -EBUSY:
	case -ENOMEM:
		return 0;
	default:
		return ret < 0 ? ret : 0;
	}
}

static void deliver(struct loop *loop)
{
	uint32_t end;

	ring_collect(loop);
	/* What arrives meanwhile waits for the next turn. */
	for (end = loop->done_tail; loop->done_head != end;) {
		struct loop_done d = loop->done[loop->done_head++ & loop->done_mask];

		d.op->complete(d.op, d.res, d.flags);
	}
}

/* On the thread that will run it: the kernel binds a ring to the task that enables it. */
static int loop_enable(struct loop *loop)
{
	int ret;

	if (!loop->enabled) {
		ret = ring_enable(&loop->ring);
		if (ret)
			return ret;
		loop->enabled = true;
		wake_arm(loop);
	}
	/* Saves the lookup of the descriptor at each enter; where it is not to be had, no harm. */
	(void)io_uring_register_ring_fd(&loop->ring);
	return 0;
}

static void name_thread(const struct loop *loop)
{
	/* The first thread's name is the process's. */
	if (loop->name[0] && gettid() != getpid())
		(void)pthread_setname_np(pthread_self(), loop->name);
}

int loop_run(struct loop *loop)
{
	bool stop;
	int ret;

	assert(loop->has_ring && !self_loop);
	ret = loop_enable(loop);
	if (ret)
		return ret;
	name_thread(loop);
	self_loop = loop;
	loop->now_ns = clock_ns();
	do {
		/* What was posted before the stop is handled before the return. */
		stop = atomic_load(&loop->stop);
		run_messages(loop);
		co_pool_run(loop, TURN_SWITCHES);
		if (loop->idle_fn)
			loop->idle_fn(loop->idle_arg);
		outboxes_empty(loop);
		ret = ring_enter(loop);
		if (!ret) {
			deliver(loop);
			run_timers(loop);
			ret = loop->failed;
		}
	} while (!ret && !stop);
	outboxes_empty(loop);
	atomic_store(&loop->stop, false);
	self_loop = NULL;
	(void)io_uring_unregister_ring_fd(&loop->ring);
	if (ret && loop->failure_fn)
		loop->failure_fn();
	return ret;
}

/* ---- ringless ---- */

bool loop_ready(const struct loop *loop)
{
	return !inbox_empty(loop) || co_pool_ready(loop) || timer_due(loop);
}

bool loop_turn(struct loop *loop)
{
	bool any = false;

	assert(!loop->has_ring && !self_loop);
	self_loop = loop;
	do {
		while (loop_ready(loop)) {
			any = true;
			run_messages(loop);
			run_timers(loop);
			co_pool_run(loop, TURN_SWITCHES);
		}
		if (loop->idle_fn)
			loop->idle_fn(loop->idle_arg);
	} while (loop_ready(loop));
	self_loop = NULL;
	return any;
}

void loop_advance(struct loop *loop, uint64_t ns)
{
	bool fits;

	assert(!loop->has_ring);
	fits = checked_add(loop->now_ns, ns, &loop->now_ns);
	assert(fits);
}
