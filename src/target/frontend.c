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

void frontend_protect_thread(void)
{
	memlock_touch_stack(STACK_BYTES);
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0)
		return;
	if (!atomic_exchange(&warned, true))
		log_warn(
			"cannot mark this program as one that serves I/O (%s): the system may hang "
			"when it runs out of memory",
			strerror(errno));
}
