// SPDX-License-Identifier: MIT
/*
 * few-fetches.c: a library to preload into the program: of queue $FETCH_QUEUE of a ublk device, the first
 * $FEW_FETCHES tags are fetched only, so that the driver goes on waiting for the others.
 *
 *   FETCH_THEN=wait	the queue's thread then goes on as usual; "fetches withheld" on standard error says so
 *   FETCH_THEN=die	the process is killed as soon as the driver has those few
 *   FETCH_IF=FILE	all this only while FILE is there
 *
 * A command that is withheld becomes a timeout of an hour right before liburing submits it: the program waits
 * for its completion, as it would for the command's.
 */
#include <dlfcn.h>
#include <liburing.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ublk/uapi.h"

static void *next(const char *name)
{
	void *symbol = dlsym(RTLD_NEXT, name);

	if (!symbol)
		abort();
	return symbol;
}

static unsigned number(const char *variable)
{
	const char *text = getenv(variable);

	return text ? (unsigned)atoi(text) : 0;
}

/* How many of the commands that wait in @ring were withheld. */
static unsigned withhold(struct io_uring *ring)
{
	static struct __kernel_timespec hour = {.tv_sec = 3600};
	const struct io_uring_sq *sq = &ring->sq;
	unsigned few = number("FEW_FETCHES"), queue = number("FETCH_QUEUE"), withheld = 0;

	if (ring->flags & IORING_SETUP_SQE128) /* control commands */
		return 0;
	for (unsigned at = sq->sqe_head; at != sq->sqe_tail; at++) {
		struct io_uring_sqe *sqe = &sq->sqes[at & sq->ring_mask];
		struct ublk_io_cmd cmd;
		__u64 user_data = sqe->user_data;

		if (sqe->opcode != IORING_OP_URING_CMD || sqe->cmd_op != UBLK_OP_FETCH_REQ)
			continue;
		memcpy(&cmd, sqe->cmd, sizeof(cmd));
		if (cmd.q_id != queue || cmd.tag < few)
			continue;
		memset(sqe, 0, sizeof(*sqe));
		io_uring_prep_timeout(sqe, &hour, 0, 0);
		sqe->user_data = user_data;
		withheld++;
	}
	return withheld;
}

static void few_fetches(struct io_uring *ring)
{
	static const char said[] = "fetches withheld\n";
	int (*submit)(struct io_uring *) = next("io_uring_submit");
	const char *then = getenv("FETCH_THEN"), *file = getenv("FETCH_IF");

	if ((file && access(file, F_OK)) || !withhold(ring) || !then)
		return;
	submit(ring);
	if (!strcmp(then, "die")) {
		kill(getpid(), SIGKILL);
		abort(); /* where a filter keeps it from that */
	}
	if (write(STDERR_FILENO, said, sizeof(said) - 1) < 0)
		abort();
}

int io_uring_submit(struct io_uring *ring)
{
	int (*real)(struct io_uring *) = next("io_uring_submit");

	few_fetches(ring);
	return real(ring);
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned wait_nr)
{
	int (*real)(struct io_uring *, unsigned) = next("io_uring_submit_and_wait");

	few_fetches(ring);
	return real(ring, wait_nr);
}

int io_uring_submit_and_get_events(struct io_uring *ring)
{
	int (*real)(struct io_uring *) = next("io_uring_submit_and_get_events");

	few_fetches(ring);
	return real(ring);
}

int io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe,
				     unsigned wait_nr, struct __kernel_timespec *ts, sigset_t *mask)
{
	int (*real)(struct io_uring *, struct io_uring_cqe **, unsigned, struct __kernel_timespec *,
		    sigset_t *) = next("io_uring_submit_and_wait_timeout");

	few_fetches(ring);
	return real(ring, cqe, wait_nr, ts, mask);
}
