/* SPDX-License-Identifier: MIT */
/*
 * frontend.c: what front ends have in common (see frontend.h).
 */
#include "target/frontend.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/log.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

/* One warning is enough for all threads. */
static atomic_bool warned;

void frontend_protect_thread(void)
{
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0)
		return;
	if (!atomic_exchange(&warned, true))
		log_warn(
			"cannot mark this program as one that serves I/O (%s): the system may hang "
			"when it runs out of memory",
			strerror(errno));
}

void frontend_protect_process(void)
{
	frontend_protect_thread();
	/*
	 * Pages are locked as they get used, so this takes no memory by itself. Without privilege a
	 * limit on locked memory would make later allocations fail; there it is left alone.
	 */
	if (geteuid() == 0 && mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))
		log_warn("cannot lock this program in memory: %s", strerror(errno));
}
