/* SPDX-License-Identifier: MIT */
/*
 * Proves that a loop loses no message, wakes for each, keeps each sender's order, fires timers in
 * order and not early, survives a submission queue that fills up during delivery, and that its ring takes
 * the operations that this program submits and no others; and that a ringless loop does the same without clock and kernel, the same each time.
 */
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/math.h"
#include "loops.h"
#include "ring/co.h"
#include "ring/impl.h"
#include "ring/loop.h"

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* ---- messages ---- */

enum { SENDERS = 4, MESSAGES = 20000 };

struct flood {
	struct loop *loop;
	unsigned senders_done, next[SENDERS];
	unsigned wrong;
};

struct flood_msg {
	struct loop_msg msg;
	struct flood *flood;
	unsigned sender, number;
};

static void flood_arrive(struct loop_msg *msg)
{
	struct flood_msg *m = container_of(msg, struct flood_msg, msg);
	struct flood *flood = m->flood;

	if (flood->next[m->sender]++ != m->number)
		flood->wrong++;
	if (m->number == MESSAGES - 1 && ++flood->senders_done == SENDERS)
		loop_stop(flood->loop);
	free(m);
}

static void *flood_sender(void *arg)
{
	struct flood_msg *first = arg;

	for (unsigned i = 0; i < MESSAGES; i++) {
		struct flood_msg *m = malloc(sizeof(*m));

		*m = *first;
		m->number = i;
		loop_post(first->flood->loop, &m->msg);
		/* Now and then let the loop run dry, so that waiting and waking are exercised. */
		if (i % 97 == first->sender)
			usleep(20);
	}
	return NULL;
}

static void test_flood(void **state)
{
	struct flood flood = {.loop = make_loop(false, 8, 0)};
	struct flood_msg first[SENDERS];
	pthread_t thread, senders[SENDERS];

	for (unsigned i = 0; i < SENDERS; i++) {
		first[i] = (struct flood_msg){{NULL, flood_arrive}, &flood, i, 0};
		pthread_create(&senders[i], NULL, flood_sender, &first[i]);
	}
	pthread_create(&thread, NULL, run_thread, flood.loop);
	join(thread);
	for (unsigned i = 0; i < SENDERS; i++) {
		pthread_join(senders[i], NULL);
		assert_int_equal(flood.next[i], MESSAGES);
	}
	assert_int_equal(flood.wrong, 0);
	loop_destroy(flood.loop);
}

/* One message to and fro between two loops that both wait: each hop needs its wake-up. */
struct ping {
	struct loop_msg msg;
	struct loop *loops[2];
	unsigned hops;
};

static void ping_arrive(struct loop_msg *msg)
{
	struct ping *p = container_of(msg, struct ping, msg);

	if (++p->hops == 20000) {
		loop_stop(p->loops[0]);
		loop_stop(p->loops[1]);
		return;
	}
	loop_post(p->loops[p->hops & 1], msg);
}

static void test_ping_pong(void **state)
{
	struct ping p = {.msg.fn = ping_arrive};
	pthread_t threads[2];

	for (int i = 0; i < 2; i++) {
		p.loops[i] = make_loop(false, 8, 0);
		pthread_create(&threads[i], NULL, run_thread, p.loops[i]);
	}
	loop_post(p.loops[0], &p.msg);
	join(threads[0]);
	join(threads[1]);
	assert_int_equal(p.hops, 20000);
	loop_destroy(p.loops[0]);
	loop_destroy(p.loops[1]);
}

/*
 * A loop posts in one turn to more loops than it has outboxes, in turns to each, and stops them all: each
 * has handled all of its messages, in order, when it returns.
 */
enum { RECEIVERS = LOOP_OUTBOXES + 4, EACH = 200 };

struct fan_msg {
	struct loop_msg msg;
	struct fan *fan;
	unsigned receiver, number;
};

struct fan {
	struct loop_msg begin;
	struct loop *self, *loops[RECEIVERS];
	struct fan_msg msgs[RECEIVERS][EACH];
	unsigned next[RECEIVERS], wrong[RECEIVERS];
};

static void fan_arrive(struct loop_msg *msg)
{
	struct fan_msg *m = container_of(msg, struct fan_msg, msg);
	struct fan *fan = m->fan;

	if (fan->next[m->receiver]++ != m->number || loop_self() != fan->loops[m->receiver])
		fan->wrong[m->receiver]++;
}

static void fan_begin(struct loop_msg *msg)
{
	struct fan *fan = container_of(msg, struct fan, begin);

	for (unsigned n = 0; n < EACH; n++)
		for (unsigned i = 0; i < RECEIVERS; i++) {
			fan->msgs[i][n] = (struct fan_msg){{NULL, fan_arrive}, fan, i, n};
			loop_post(fan->loops[i], &fan->msgs[i][n].msg);
		}
	for (unsigned i = 0; i < RECEIVERS; i++)
		loop_stop(fan->loops[i]);
	loop_stop(fan->self);
}

static void test_fan_out(void **state)
{
	static struct fan fan;
	pthread_t threads[RECEIVERS];

	fan.begin.fn = fan_begin;
	fan.self = make_loop(false, 8, 0);
	for (unsigned i = 0; i < RECEIVERS; i++) {
		fan.loops[i] = make_loop(false, 8, 0);
		pthread_create(&threads[i], NULL, run_thread, fan.loops[i]);
	}
	loop_post(fan.self, &fan.begin);
	assert_int_equal(loop_run(fan.self), 0);
	for (unsigned i = 0; i < RECEIVERS; i++) {
		join(threads[i]);
		assert_int_equal(fan.next[i], EACH);
		assert_int_equal(fan.wrong[i], 0);
		loop_destroy(fan.loops[i]);
	}
	loop_destroy(fan.self);
}

/*
 * The sender aims at the moment in which the loop has looked at its inbox and is about to wait: it
 * posts again a short and varying time after its last message was handled.
 */
struct aim {
	struct loop_msg msg;
	_Atomic unsigned handled;
};

static void aim_arrive(struct loop_msg *msg)
{
	atomic_fetch_add(&container_of(msg, struct aim, msg)->handled, 1);
}

static void test_wake_race(void **state)
{
	struct aim aim = {.msg.fn = aim_arrive};
	struct loop *loop = make_loop(false, 8, 0);
	pthread_t thread;

	pthread_create(&thread, NULL, run_thread, loop);
	for (unsigned i = 0; i < 30000; i++) {
		uint64_t patience_ns = now_ns() + 10000000000;

		loop_post(loop, &aim.msg);
		for (unsigned spins = 0; atomic_load(&aim.handled) == i; spins++) {
			if (spins > 1000) {
				if (now_ns() > patience_ns)
					fail_msg("message %u was not handled", i);
				usleep(10);
			}
		}
		for (volatile unsigned j = 0; j < i % 500; j++)
			;
	}
	loop_stop(loop);
	join(thread);
	loop_destroy(loop);
}

static void test_stop_before_run(void **state)
{
	struct loop *loop = make_loop(false, 8, 0);

	for (int i = 0; i < 3; i++) {
		loop_stop(loop);
		assert_int_equal(loop_run(loop), 0);
	}
	assert_null(loop_self());
	loop_destroy(loop);
}

/* ---- completions ---- */

struct nops {
	struct loop_op op;
	struct loop *loop;
	unsigned started, done, max;
};

static void nop_start(struct nops *n)
{
	io_uring_prep_nop(loop_sqe(n->loop, &n->op));
	n->started++;
}

/* Each completion starts more than the queue holds, so loop_sqe() must submit during delivery. */
static void nop_complete(struct loop_op *op, int res, uint32_t cqe_flags)
{
	struct nops *n = container_of(op, struct nops, op);

	assert_int_equal(res, 0);
	n->done++;
	for (int i = 0; i < 40 && n->started < n->max; i++)
		nop_start(n);
	if (n->done == n->max)
		loop_stop(n->loop);
}

static void nop_begin(struct loop_msg *msg);
static struct nops *nop_begin_arg;

static void nop_begin(struct loop_msg *msg)
{
	nop_start(nop_begin_arg);
}

static void test_queue_overflow(void **state)
{
	struct nops n = {.op.complete = nop_complete, .loop = make_loop(false, 4, 0), .max = 10000};
	struct loop_msg begin = {.fn = nop_begin};

	nop_begin_arg = &n;
	loop_post(n.loop, &begin);
	assert_int_equal(loop_run(n.loop), 0);
	assert_int_equal(n.done, n.max);
	loop_destroy(n.loop);
}

/* ---- what a ring takes ---- */

struct asked {
	struct loop_op op;
	struct loop *loop;
	const uint8_t *ops;
	uint8_t flags;
	unsigned count, done;
	int results[64];
	struct loop_msg msg;
};

static void asked_next(struct loop_msg *msg)
{
	struct asked *a = container_of(msg, struct asked, msg);
	struct io_uring_sqe *sqe = loop_sqe(a->loop, &a->op);

	sqe->opcode = a->ops[a->done];
	sqe->flags = a->flags;
	sqe->fd = -1;
}

static void asked_complete(struct loop_op *op, int res, uint32_t cqe_flags)
{
	struct asked *a = container_of(op, struct asked, op);

	a->results[a->done++] = res;
	if (a->done == a->count)
		loop_stop(a->loop);
	else
		asked_next(&a->msg);
}

/* The results of operations about descriptor -1, with nothing else set, one after the other. */
static void ask(struct asked *a, struct loop *loop, const uint8_t *ops, unsigned count, uint8_t flags)
{
	*a = (struct asked){.op.complete = asked_complete, .loop = loop, .ops = ops, .flags = flags,
			    .count = count, .msg.fn = asked_next};
	loop_post(loop, &a->msg);
	assert_int_equal(loop_run(loop), 0);
	assert_int_equal(a->done, count);
}

static void test_other_operations_are_refused(void **state)
{
	static const uint8_t refused[] = {
		IORING_OP_OPENAT,   IORING_OP_OPENAT2,	 IORING_OP_CLOSE,	  IORING_OP_STATX,
		IORING_OP_SOCKET,   IORING_OP_CONNECT,	 IORING_OP_ACCEPT,	  IORING_OP_SENDMSG,
		IORING_OP_RECVMSG,  IORING_OP_SEND,	 IORING_OP_RECV,	  IORING_OP_UNLINKAT,
		IORING_OP_RENAMEAT, IORING_OP_MKDIRAT,	 IORING_OP_SYMLINKAT,	  IORING_OP_LINKAT,
		IORING_OP_SPLICE,   IORING_OP_TEE,	 IORING_OP_EPOLL_CTL,	  IORING_OP_MSG_RING,
		IORING_OP_MADVISE,  IORING_OP_SETXATTR,	 IORING_OP_FILES_UPDATE,  IORING_OP_SHUTDOWN,
		IORING_OP_GETXATTR, IORING_OP_FSETXATTR, IORING_OP_PROVIDE_BUFFERS, IORING_OP_URING_CMD,
	};
	static const uint8_t taken[] = {IORING_OP_READ,	 IORING_OP_WRITE,     IORING_OP_READV,
					IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_POLL_ADD};
	static const uint8_t open[] = {IORING_OP_CLOSE};
	struct loop_params any = {.name = "test", .sq_entries = 4, .any_op = true};
	struct loop *loop = make_loop(false, 4, 0);
	struct asked a;
	int fd = 0;

	ask(&a, loop, refused, ARRAY_LEN(refused), 0);
	for (size_t i = 0; i < ARRAY_LEN(refused); i++)
		if (a.results[i] != -EACCES)
			fail_msg("operation %u: %d", refused[i], a.results[i]);
	ask(&a, loop, taken, ARRAY_LEN(taken), 0);
	for (size_t i = 0; i < ARRAY_LEN(taken); i++)
		if (a.results[i] == -EACCES)
			fail_msg("operation %u is refused", taken[i]);
	/* by a thread of the kernel's, in a chain: nobody asks for that either */
	ask(&a, loop, taken, 1, IOSQE_ASYNC);
	assert_int_equal(a.results[0], -EACCES);
	assert_int_equal(io_uring_register((unsigned)loop_ring(loop)->ring_fd, IORING_REGISTER_EVENTFD, &fd, 1),
			 -EACCES);
	assert_int_equal(
		io_uring_register((unsigned)loop_ring(loop)->ring_fd, IORING_REGISTER_PERSONALITY, NULL, 0),
		-EACCES);
	loop_destroy(loop);

	assert_int_equal(loop_create(&loop, &any, NULL), 0);
	ask(&a, loop, open, 1, 0);
	assert_int_equal(a.results[0], -EBADF);
	loop_destroy(loop);
}

static void test_file_table(void **state)
{
	struct loop *loop = make_loop(false, 4, 0);
	int slots[LOOP_FILES_MAX];

	for (int i = 0; i < LOOP_FILES_MAX; i++) {
		slots[i] = loop_file_register(loop, STDERR_FILENO);
		assert_in_range(slots[i], 0, LOOP_FILES_MAX - 1);
	}
	assert_int_equal(loop_file_register(loop, STDERR_FILENO), -ENFILE);
	loop_file_unregister(loop, slots[7]);
	assert_int_equal(loop_file_register(loop, STDERR_FILENO), slots[7]);
	assert_int_equal(loop_file_register(loop, -1) < 0, 1);
	loop_destroy(loop);
}

/* ---- timers ---- */

enum { TIMERS = 5 };
static const unsigned timer_ms[TIMERS] = {30, 10, 20, 10, 1};

struct timers {
	struct loop *loop;
	struct timed {
		struct loop_timer timer;
		struct timers *all;
		uint64_t due_ns;
		unsigned number;
	} timed[TIMERS], cancelled;
	unsigned order[TIMERS + 1], fired, early;
};

static void timer_fired(struct loop_timer *timer)
{
	struct timed *t = container_of(timer, struct timed, timer);
	struct timers *all = t->all;

	if (now_ns() < t->due_ns && loop_ring(all->loop))
		all->early++;
	all->order[all->fired++] = t->number;
	if (all->fired == TIMERS && loop_ring(all->loop))
		loop_stop(all->loop);
}

static void timers_arm(struct timers *t)
{
	for (unsigned i = 0; i < TIMERS; i++) {
		t->timed[i] = (struct timed){.all = t, .number = i};
		loop_timer_init(&t->timed[i].timer, timer_fired);
		t->timed[i].due_ns = loop_now_ns(t->loop) + timer_ms[i] * 1000000ULL;
		loop_timer_arm(t->loop, &t->timed[i].timer, 3600000000000ULL);
		/* the second arming replaces the first */
		loop_timer_arm(t->loop, &t->timed[i].timer, timer_ms[i] * 1000000ULL);
	}
	t->cancelled = (struct timed){.all = t, .number = 99};
	loop_timer_init(&t->cancelled.timer, timer_fired);
	loop_timer_cancel(t->loop, &t->cancelled.timer);
	loop_timer_arm(t->loop, &t->cancelled.timer, 5000000);
	loop_timer_cancel(t->loop, &t->cancelled.timer);
}

static void timers_check(const struct timers *t)
{
	static const unsigned expected[TIMERS] = {4, 1, 3, 2, 0};

	assert_int_equal(t->fired, TIMERS);
	assert_int_equal(t->early, 0);
	assert_memory_equal(t->order, expected, sizeof(expected));
}

static void test_timers(void **state)
{
	struct timers t = {.loop = make_loop(false, 8, 0)};

	timers_arm(&t);
	assert_int_equal(loop_run(t.loop), 0);
	timers_check(&t);
	loop_destroy(t.loop);
}

static void test_ringless_timers(void **state)
{
	struct timers t = {.loop = make_loop(true, 0, 0)};

	timers_arm(&t);
	assert_false(loop_turn(t.loop));
	assert_int_equal(loop_next_deadline_ns(t.loop), 1000000);
	while (loop_next_deadline_ns(t.loop) != UINT64_MAX) {
		loop_advance(t.loop, loop_next_deadline_ns(t.loop) - loop_now_ns(t.loop));
		assert_true(loop_ready(t.loop));
		assert_true(loop_turn(t.loop));
		assert_false(loop_ready(t.loop));
	}
	assert_int_equal(loop_now_ns(t.loop), 30000000);
	timers_check(&t);
	loop_destroy(t.loop);
}

/* ---- the idle hook ---- */

static void count_idle(void *arg)
{
	++*(unsigned *)arg;
}

static void test_idle_hook(void **state)
{
	struct loop *loop = make_loop(false, 8, 0);
	unsigned count = 0;

	loop_on_idle(loop, count_idle, &count);
	loop_stop(loop);
	assert_int_equal(loop_run(loop), 0);
	assert_int_equal(count, 1);
	loop_destroy(loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flood),	       cmocka_unit_test(test_ping_pong),
		cmocka_unit_test(test_fan_out),
		cmocka_unit_test(test_wake_race),      cmocka_unit_test(test_stop_before_run),
		cmocka_unit_test(test_queue_overflow),
		cmocka_unit_test(test_other_operations_are_refused), cmocka_unit_test(test_file_table),
		cmocka_unit_test(test_timers),	       cmocka_unit_test(test_ringless_timers),
		cmocka_unit_test(test_idle_hook),
	};

	alarm(120);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
