/* SPDX-License-Identifier: MIT */
/*
 * memlock.c: see memlock.h.
 *
 * MCL_ONFAULT: locking takes no memory by itself. Thread stacks and allocators' arenas reserve far more
 * addresses than they use, and locking all of those would cost some hundred megabytes. What the I/O path
 * uses is touched at the start by who allocates it, code by memlock_populate_code().
 *
 * The limit counts addresses, not pages. A process that locks what comes (MCL_FUTURE) under a limit cannot
 * allocate beyond it any more, and would fail later, in the middle of its work: so that is done without
 * a limit alone.
 */
#include "base/memlock.h"

#include <alloca.h>
#include <errno.h>
#include <linux/capability.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* 5.14 */
#endif

#define STACK_TOUCH_MAX ((size_t)256 << 10)

static bool limit_lift(void)
{
	struct rlimit limit, lifted = {RLIM_INFINITY, RLIM_INFINITY};

	if (setrlimit(RLIMIT_MEMLOCK, &lifted) == 0)
		return true;
	if (getrlimit(RLIMIT_MEMLOCK, &limit))
		return false;
	if (limit.rlim_cur != limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		if (setrlimit(RLIMIT_MEMLOCK, &limit))
			return false;
	}
	return limit.rlim_cur == RLIM_INFINITY;
}

/* CAP_IPC_LOCK, which counts in the first user namespace alone. */
static bool limit_ignored(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{0}};
	unsigned long inside, outside, count = 0;
	FILE *f;
	int n;

	if (syscall(SYS_capget, &head, data) || !(data[0].effective >> CAP_IPC_LOCK & 1))
		return false;
	f = fopen("/proc/self/uid_map", "re");
	n = f ? fscanf(f, "%lu %lu %lu", &inside, &outside, &count) : 0;
	if (f)
		fclose(f);
	return n == 3 && !inside && !outside && count == UINT32_MAX;
}

int memlock_from_now(void)
{
	if (!limit_lift() && !limit_ignored())
		return -EPERM;
	return mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) ? -errno : 0;
}

int memlock_now(void)
{
	return mlockall(MCL_CURRENT | MCL_ONFAULT) ? -errno : 0;
}

void memlock_populate_code(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char *line = NULL;
	size_t space = 0;

	while (maps && getline(&line, &space, maps) > 0) {
		unsigned long first, end;
		char mode[5], path[2];

		/* address mode offset device inode path: of a file, and not writable */
		if (sscanf(line, "%lx-%lx %4s %*s %*s %*s %1s", &first, &end, mode, path) != 4 ||
		    path[0] != '/' || mode[0] != 'r' || mode[1] == 'w')
			continue;
		/* a kernel that does not know it reads on demand */
		(void)madvise((void *)first, end - first, MADV_POPULATE_READ);
	}
	free(line);
	if (maps)
		fclose(maps);
}

__attribute__((noinline)) void memlock_touch_stack(size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	volatile char *stack;

	if (bytes > STACK_TOUCH_MAX)
		bytes = STACK_TOUCH_MAX;
	stack = alloca(bytes);
	for (size_t i = 0; i < bytes; i += page)
		stack[i] = 0;
}
