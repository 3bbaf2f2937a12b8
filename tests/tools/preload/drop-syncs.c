// SPDX-License-Identifier: MIT
/*
 * drop-syncs.c: a library to preload into the program, which takes every request to sync away from it,
 * as if the program issued none. With it a test of durability has to fail; that is what it is for.
 *
 * Syncs go out in two ways: as entries of an io_uring (IORING_OP_FSYNC, and RWF_DSYNC on a write), and
 * as system calls (fdatasync, fsync, pwritev2 with RWF_DSYNC). The entries that wait in a ring are
 * changed right before liburing submits them: a sync into a no-op, which succeeds.
 */
#include <dlfcn.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

static void *next(const char *name)
{
	void *symbol = dlsym(RTLD_NEXT, name);

	if (!symbol)
		abort();
	return symbol;
}

static void drop_syncs(struct io_uring *ring)
{
	unsigned shift = ring->flags & IORING_SETUP_SQE128 ? 1 : 0;
	struct io_uring_sq *sq = &ring->sq;
	struct io_uring_sqe *sqe;
	unsigned at;

	for (at = sq->sqe_head; at != sq->sqe_tail; at++) {
		sqe = &sq->sqes[(at & sq->ring_mask) << shift];
		switch (sqe->opcode) {
		case IORING_OP_FSYNC:
			sqe->opcode = IORING_OP_NOP;
			sqe->fsync_flags = 0;
			sqe->flags &= (__u8)~IOSQE_FIXED_FILE;
			break;
		case IORING_OP_WRITE:
		case IORING_OP_WRITEV:
		case IORING_OP_WRITE_FIXED:
			sqe->rw_flags &= ~RWF_DSYNC;
			break;
		default:
			break;
		}
	}
}

int io_uring_submit(struct io_uring *ring)
{
	int (*real)(struct io_uring *) = next("io_uring_submit");

	drop_syncs(ring);
	return real(ring);
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned wait_nr)
{
	int (*real)(struct io_uring *, unsigned) = next("io_uring_submit_and_wait");

	drop_syncs(ring);
	return real(ring, wait_nr);
}

int io_uring_submit_and_get_events(struct io_uring *ring)
{
	int (*real)(struct io_uring *) = next("io_uring_submit_and_get_events");

	drop_syncs(ring);
	return real(ring);
}

int io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe,
				     unsigned wait_nr, struct __kernel_timespec *ts, sigset_t *mask)
{
	int (*real)(struct io_uring *, struct io_uring_cqe **, unsigned, struct __kernel_timespec *,
		    sigset_t *) = next("io_uring_submit_and_wait_timeout");

	drop_syncs(ring);
	return real(ring, cqe, wait_nr, ts, mask);
}

int fdatasync(int fd)
{
	return 0;
}

int fsync(int fd)
{
	return 0;
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	ssize_t (*real)(int, const struct iovec *, int, off_t, int) = next("pwritev2");

	return real(fd, iov, count, offset, flags & ~RWF_DSYNC);
}
