// SPDX-License-Identifier: MIT
/*
 * fail-ring.c: a library to preload into `add`: while the first byte of $FAIL_RING, a file, is not 0, the kernel fails
 * the io_uring of every queue of a ublk device that enters it, as it would one that it cannot go on with.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static const volatile char *fails;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("FAIL_RING");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *map = fd >= 0 ? mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;

	if (fd >= 0)
		close(fd);
	if (map != MAP_FAILED)
		fails = map;
}

static int failing(void)
{
	char name[16] = "";

	return fails && *fails && !prctl(PR_GET_NAME, name) && !strncmp(name, "ublk", 4) && strstr(name, "-q");
}

static void *next(const char *name)
{
	void *fn = dlsym(RTLD_NEXT, name);

	if (!fn)
		abort();
	return fn;
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned wait_nr)
{
	int (*real)(struct io_uring *, unsigned) = next("io_uring_submit_and_wait");

	return failing() ? -EINVAL : real(ring, wait_nr);
}

int io_uring_submit_and_get_events(struct io_uring *ring)
{
	int (*real)(struct io_uring *) = next("io_uring_submit_and_get_events");

	return failing() ? -EINVAL : real(ring);
}

int io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe,
				     unsigned wait_nr, struct __kernel_timespec *ts, sigset_t *mask)
{
	int (*real)(struct io_uring *, struct io_uring_cqe **, unsigned, struct __kernel_timespec *,
		    sigset_t *) = next("io_uring_submit_and_wait_timeout");

	return failing() ? -EINVAL : real(ring, cqe, wait_nr, ts, mask);
}
