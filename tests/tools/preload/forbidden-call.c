// SPDX-License-Identifier: MIT
/*
 * forbidden-call.c: a library that makes a daemon do, when it answers that a snapshot was made, what it is not
 * allowed to, as somebody would who has got hold of it.
 *
 *   LD_PRELOAD=forbidden-call.so FORBIDDEN=socket|execve|mount|ring
 *
 * A daemon is told by its having no privileges under a filter. If a socket is refused, the main thread's
 * name becomes "refused"; if it is not, or execve() returns, the process aborts. A mount, or another ring of
 * io_uring, ends it; if not, it goes on.
 */
#include <dlfcn.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <linux/io_uring.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_daemon(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	return prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 2 && !syscall(SYS_capget, &head, data) &&
	       !(data[0].effective & ~(1U << CAP_IPC_LOCK)) && !data[1].effective;
}

static void forbidden(const char *what)
{
	char program[] = "/bin/true";
	char *argv[] = {program, NULL};

	if (strcmp(what, "execve") == 0) {
		execv(program, argv);
		abort();
	}
	if (strcmp(what, "mount") == 0) {
		mount("none", "/dev", "tmpfs", 0, NULL);
		return;
	}
	if (strcmp(what, "ring") == 0) {
		struct io_uring_params params = {0};

		syscall(SYS_io_uring_setup, 8, &params);
		return;
	}
	if (socket(AF_INET, SOCK_STREAM, 0) >= 0)
		abort();
	prctl(PR_SET_NAME, "refused", 0, 0, 0);
}

__attribute__((visibility("default"))) ssize_t send(int fd, const void *data, size_t bytes, int flags);

ssize_t send(int fd, const void *data, size_t bytes, int flags)
{
	ssize_t (*next)(int fd, const void *data, size_t bytes, int flags);
	const char *what = getenv("FORBIDDEN");

	*(void **)&next = dlsym(RTLD_NEXT, "send");
	if (what && memmem(data, bytes, "pause_us", 8) && is_daemon())
		forbidden(what);
	return next(fd, data, bytes, flags);
}
