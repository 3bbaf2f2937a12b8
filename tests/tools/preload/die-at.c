// SPDX-License-Identifier: MIT
/*
 * die-at.c: a library to preload into `add`: one of the processes that it starts is killed (or stopped) at a chosen
 * one of its next calls of the kernel that change or tell something.
 *
 *   LD_PRELOAD=die-at.so DIE_AT=FILE      FILE holds four numbers of 32 bits: DEPTH, NUMBER, SIGNAL, COUNT
 *
 * Processes are told by how many forks lie between them and `add`: 2 the supervisor, 3 its worker, 4 the worker's
 * helper (or its namespace's child). Without recovery the worker is at 2, and its helper at 3. In those of DEPTH,
 * every call is counted in COUNT, and the call that makes it NUMBER gets SIGNAL first. The file is mapped by all, so
 * that a test says when, and how far it came. NUMBER 0: nobody.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct order {
	atomic_int depth, number, sig, count;
};

static struct order *order;
static int depth;

static void child(void)
{
	depth++;
}

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("DIE_AT");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *map = fd >= 0 ? mmap(NULL, sizeof(*order), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;

	if (fd >= 0)
		close(fd);
	if (map == MAP_FAILED)
		return;
	order = map;
	pthread_atfork(NULL, NULL, child);
}

static void point(void)
{
	int number;

	if (!order || order->depth != depth)
		return;
	number = order->number;
	if (!number || ++order->count != number)
		return;
	order->number = 0;
	syscall(SYS_kill, getpid(), order->sig);
}

static void *next(const char *name)
{
	void *fn = dlsym(RTLD_NEXT, name);

	if (!fn)
		abort();
	return fn;
}

#define BEFORE(type, name, parameters, arguments)                \
	type name parameters                                     \
	{                                                        \
		static type(*real) parameters;                   \
                                                                 \
		if (!real)                                       \
			*(void **)&real = next(#name);           \
		point();                                         \
		return real arguments;                           \
	}

/* its two ends: what it has done, and the answer to it */
#define AROUND(type, name, parameters, arguments)                \
	type name parameters                                     \
	{                                                        \
		static type(*real) parameters;                   \
		type ret;                                        \
                                                                 \
		if (!real)                                       \
			*(void **)&real = next(#name);           \
		point();                                         \
		ret = real arguments;                            \
		point();                                         \
		return ret;                                      \
	}

AROUND(int, renameat, (int a, const char *b, int c, const char *d), (a, b, c, d))
BEFORE(int, unlinkat, (int a, const char *b, int c), (a, b, c))
BEFORE(ssize_t, send, (int a, const void *b, size_t c, int d), (a, b, c, d))
BEFORE(ssize_t, sendmsg, (int a, const struct msghdr *b, int c), (a, b, c))
AROUND(ssize_t, recv, (int a, void *b, size_t c, int d), (a, b, c, d))
AROUND(ssize_t, recvmsg, (int a, struct msghdr *b, int c), (a, b, c))
AROUND(pid_t, fork, (void), ())
BEFORE(int, stat, (const char *restrict a, struct stat *restrict b), (a, b))
BEFORE(int, flock, (int a, int b), (a, b))
BEFORE(int, mlockall, (int a), (a))
BEFORE(int, bind, (int a, const struct sockaddr *b, socklen_t c), (a, b, c))
BEFORE(int, pthread_join, (pthread_t a, void **b), (a, b))
BEFORE(pid_t, waitpid, (pid_t a, int *b, int c), (a, b, c))
AROUND(int, io_uring_submit, (struct io_uring *a), (a))
BEFORE(int, io_uring_submit_and_wait, (struct io_uring *a, unsigned b), (a, b))
BEFORE(int, io_uring_submit_and_get_events, (struct io_uring *a), (a))
