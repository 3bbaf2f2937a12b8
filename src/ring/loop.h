/* SPDX-License-Identifier: MIT */
/*
 * loop.h: the event loop: one thread, one io_uring.
 *
 * A loop runs completions, messages from other threads, timers, and coroutines. Nothing blocks but
 * the wait for completions; submissions made during one turn go out in one io_uring_enter. After
 * creation a loop allocates nothing.
 *
 * Invariants:
 *  1. A loop belongs to the thread that runs it (loop_self() there). Every function but loop_post()
 *     and loop_stop() is called on that thread, or before it runs.
 *  2. A completion callback, a message and a timer run on the loop's own stack, outside any
 *     coroutine, and must not suspend; they may start or wake coroutines.
 *  3. co_resume() and loop_spawn() from a coroutine only make the other ready; from the loop's own
 *     stack loop_spawn() switches to the new coroutine at once.
 *
 * A *ringless* loop has no io_uring and no clock: a simulation turns it by hand with loop_turn()
 * and moves its clock with loop_advance(). Several ringless loops may live in one thread, one
 * turned after the other.
 */
#ifndef RING_LOOP_H
#define RING_LOOP_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/list.h"

struct loop;
struct io_uring;
struct io_uring_sqe;

struct loop_params {
	const char *name;    /* of the thread, for the log; at most 15 characters */
	unsigned sq_entries; /* rounded up to a power of two; the completion queue is twice that */
	unsigned coroutines; /* how many may run at once; more wait their turn */
	size_t stack_bytes;  /* of each coroutine; 0: the default */
	bool ringless;
	bool sqe128;
	bool commands; /* IORING_OP_URING_CMD will be submitted */
	bool any_op;   /* so may be whatever the kernel has: the ring is not restricted (restrict.h) */
};

/* The ring is created disabled, and enabled by the first loop_run() on the thread that calls it. */
int loop_create(struct loop **out, const struct loop_params *params, struct error *err) must_check;
/* Accepts NULL. No coroutine may be alive and nothing in flight. */
void loop_destroy(struct loop *loop);

/* The loop that runs on this thread; NULL outside of one. */
struct loop *loop_self(void);

/* Runs until loop_stop(); 0, or -errno if the ring failed. */
int loop_run(struct loop *loop) must_check;
/*
 * From any thread; loop_run() returns after the turn that sees it. That is a pause: what is in flight
 * stays so, and goes on in the next loop_run(), on the same thread.
 */
void loop_stop(struct loop *loop);
/* @fn is called on the loop's thread when loop_run() fails: what was posted may never be handled. */
void loop_on_failure(struct loop *loop, void (*fn)(void));

/* Ringless only: runs all that is ready until nothing is; true if it did anything. */
bool loop_turn(struct loop *loop);
/* Ringless only: whether loop_turn() would do anything. */
bool loop_ready(const struct loop *loop);
void loop_advance(struct loop *loop, uint64_t ns);
/* Ringless only: the nearest timer's deadline; UINT64_MAX: none. */
uint64_t loop_next_deadline_ns(const struct loop *loop);

/* Monotonic; of the turn's start for a ring, of loop_advance() without one. */
uint64_t loop_now_ns(const struct loop *loop);

/* How often the ring was entered, which is how many system calls its I/O took. */
uint64_t loop_enters(const struct loop *loop);

/* ---- I/O ---- */

struct loop_op {
	/* @res and @cqe_flags are the completion's; the op may be reused or freed from here. */
	void (*complete)(struct loop_op *op, int res, uint32_t cqe_flags);
};

/*
 * A submission entry, zeroed, whose completion goes to @op (user_data is set; use
 * io_uring_prep_*() helpers of the kind that keep user_data, or call loop_sqe_bind() after them).
 * Never NULL: a full queue is submitted first. It goes out at the end of the turn.
 */
struct io_uring_sqe *loop_sqe(struct loop *loop, struct loop_op *op);
void loop_sqe_bind(struct io_uring_sqe *sqe, struct loop_op *op);
struct io_uring *loop_ring(struct loop *loop);

/*
 * Puts @fd into the ring's table of registered files and returns its slot, or -errno (-ENFILE: the
 * table of LOOP_FILES_MAX is full). Registered or not, @fd stays the caller's to close.
 */
#define LOOP_FILES_MAX 64
int loop_file_register(struct loop *loop, int fd) must_check;
void loop_file_unregister(struct loop *loop, int slot);

/* ---- messages ---- */

/* Owned by the sender until posted, by the receiver until fn is called; fn may free or reuse it. */
struct loop_msg {
	struct loop_msg *next;
	void (*fn)(struct loop_msg *msg);
};

/*
 * From any thread, lock-free; one sender's messages arrive in order. Wakes a loop that waits. A loop's own
 * thread may post at any time in its turn: what goes to other loops is sent before it waits.
 */
void loop_post(struct loop *loop, struct loop_msg *msg);

/* ---- timers ---- */

struct loop_timer {
	struct list list;
	uint64_t deadline_ns;
	void (*fn)(struct loop_timer *timer);
};

void loop_timer_init(struct loop_timer *timer, void (*fn)(struct loop_timer *timer));
/* Arms it anew if it is armed. Few timers live at once: the list is sorted, not a heap. */
void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t delay_ns);
void loop_timer_cancel(struct loop *loop, struct loop_timer *timer); /* also when not armed */

/* ---- figures ---- */

/* What a loop has done since it was created. Counted on its thread, and read from any. */
struct loop_counts {
	uint64_t enters;     /* system calls that submit and wait */
	uint64_t messages;   /* sent from its thread, to whatever loop */
	uint64_t coroutines; /* started */
	uint64_t locks;	     /* taken, of whatever kind */
};

/* Somebody on this thread takes a lock; co_lock() and this one count by themselves. */
void loop_count_lock(void);
static inline void loop_mutex_lock(pthread_mutex_t *mutex)
{
	loop_count_lock();
	pthread_mutex_lock(mutex);
}
void loop_counts_read(const struct loop *loop, struct loop_counts *out);

/* ---- hooks ---- */

/* Runs before each wait; for tests and for a front end that batches its commands. NULL: none. */
void loop_on_idle(struct loop *loop, void (*fn)(void *arg), void *arg);

#endif
