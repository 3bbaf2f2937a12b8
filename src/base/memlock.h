/* SPDX-License-Identifier: MIT */
/*
 * memlock.h: this process's memory stays in memory.
 *
 * A block device is part of how the kernel gets memory back: it writes dirty pages to it. What serves it
 * must not wait for a page of its own to be read back in meanwhile.
 */
#ifndef BASE_MEMLOCK_H
#define BASE_MEMLOCK_H

#include <stdbool.h>
#include <stddef.h>

/*
 * What there is and what comes, each page from its first use on; a process that fork() makes has to do it
 * again. Only where that cannot make a later allocation fail: without a limit (RLIMIT_MEMLOCK,
 * which is raised as far as this process may), or with CAP_IPC_LOCK, which is then not to be dropped. Returns 0; -EPERM: the limit is one, and
 * memlock_now() is left; -errno.
 */
int memlock_from_now(void) __attribute__((warn_unused_result));

/* What there is, if that is within the limit; for when all that is needed has been allocated. 0 or -errno. */
int memlock_now(void) __attribute__((warn_unused_result));

/* The program's code and constants, and the libraries', are read in now and not by a fault later. */
void memlock_populate_code(void);

/* The next @bytes of this thread's stack have been used, so that they are there, and locked. */
void memlock_touch_stack(size_t bytes);

#endif
