/* SPDX-License-Identifier: MIT */
/*
 * frontend.c: what front ends have in common (see frontend.h).
 */
#include "target/frontend.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/log.h"
#include "base/memlock.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

/* More than a thread's loop, or a message's way to the log, takes; requests have coroutines' stacks. */
#define STACK_BYTES ((size_t)64 << 10)

/* One warning is enough for all threads. */
static atomic_bool warned;
/* A thread had the privilege, and the mark: so have those that came of it, without the privilege. */
static atomic_bool inherited;

void frontend_protect_thread(void)
{
	memlock_touch_stack(STACK_BYTES);
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0)
		atomic_store(&inherited, true);
	else if (!atomic_load(&inherited) && !atomic_exchange(&warned, true))
		log_warn(
			"cannot mark this program as one that serves I/O (%s): the system may hang "
			"when it runs out of memory",
			strerror(errno));
}
