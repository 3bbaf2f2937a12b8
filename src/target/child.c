/* SPDX-License-Identifier: MIT */
/*
 * child.c: see child.h.
 *
 * The child is forked and does not exec: it calls functions of this program with arguments from its
 * memory, and leaves result and message in a page that both have. It runs with the parent's signal
 * mask, has one thread, and must not touch what the parent's other threads might have been
 * changing.
 */
#include "target/child.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/math.h"

#define CANCEL_MS 1000 /* what has nothing to do but to end takes no longer */

struct child_shared {
	bool returned;
	int ret;
	struct error err;
};

static void keep_only(int first, int second)
{
	unsigned low = (unsigned)min_of(first, second), high = (unsigned)max_of(first, second);

	if (low > 3)
		close_range(3, low - 1, 0);
	if (high > low + 1)
		close_range(low + 1, high - 1, 0);
	close_range(high + 1, UINT_MAX, 0);
}

static void child_main(struct child_shared *shared, int (*fn)(void *arg, struct error *err),
		       void *arg, int keep_fd, int go_fd)
{
	char byte;

	keep_only(keep_fd < 0 ? go_fd : keep_fd, go_fd);
	/* nothing to read: the parent is gone */
	if (read(go_fd, &byte, 1) == 1) {
		shared->ret = fn(arg, &shared->err);
		shared->returned = true;
	}
	_exit(0);
}

int child_start(struct child *child, int (*fn)(void *arg, struct error *err), void *arg,
		int keep_fd, struct error *err)
{
	int fds[2], ret;

	child->shared = mmap(NULL, sizeof(*child->shared), PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (child->shared == MAP_FAILED)
		return error_set(err, -ENOMEM, "out of memory");
	if (pipe2(fds, O_CLOEXEC)) {
		ret = error_set(err, -errno, "pipe: %s", strerror(errno));
		munmap(child->shared, sizeof(*child->shared));
		return ret;
	}
	child->pid = fork();
	if (child->pid == 0)
		child_main(child->shared, fn, arg, keep_fd, fds[0]);
	close(fds[0]);
	child->go_fd = fds[1];
	if (child->pid > 0)
		return 0;
	ret = error_set(err, -errno, "no process can be started: %s", strerror(errno));
	close(fds[1]);
	munmap(child->shared, sizeof(*child->shared));
	return ret;
}

/* False if it is still there. */
static bool has_ended(pid_t pid, unsigned timeout_ms)
{
	struct timespec pause = {.tv_nsec = 500000};
	uint64_t waited_ns = 0;

	for (;;) {
		pid_t got = waitpid(pid, NULL, WNOHANG);

		/* ECHILD: somebody waits for all children of this process */
		if (got == pid || (got < 0 && errno == ECHILD))
			return true;
		if (waited_ns / 1000000 >= timeout_ms)
			return false;
		nanosleep(&pause, NULL);
		waited_ns += (uint64_t)pause.tv_nsec;
		pause.tv_nsec = min_of(2 * pause.tv_nsec, 20000000L);
	}
}

int child_finish(struct child *child, unsigned timeout_ms, struct error *err)
{
	struct child_shared *shared = child->shared;
	int ret = -ETIMEDOUT;

	if (write(child->go_fd, "g", 1) != 1)
		ret = -errno;
	close(child->go_fd);
	if (has_ended(child->pid, timeout_ms)) {
		ret = shared->returned ? shared->ret
				       : error_set(err, -EIO, "a helper process ended by itself");
		if (shared->err.text[0])
			error_set(err, ret, "%s", shared->err.text);
		munmap(shared, sizeof(*shared));
		return ret;
	}
	/* The page stays: it may still write there. */
	kill(child->pid, SIGKILL);
	has_ended(child->pid, 100);
	return error_set(err, ret, "the kernel does not answer");
}

void child_cancel(struct child *child)
{
	close(child->go_fd);
	has_ended(child->pid, CANCEL_MS);
	munmap(child->shared, sizeof(*child->shared));
}

int child_call(int (*fn)(void *arg, struct error *err), void *arg, unsigned timeout_ms,
	       struct error *err)
{
	struct child child;
	int ret = child_start(&child, fn, arg, -1, err);

	return ret ? ret : child_finish(&child, timeout_ms, err);
}
