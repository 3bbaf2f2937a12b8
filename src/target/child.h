/* SPDX-License-Identifier: MIT */
/*
 * child.h: a call in a process of its own.
 *
 * What waits for an answer from the FUSE file, or for I/O of a ublk device, waits in the kernel, and not
 * even SIGKILL ends that: only an answer, or the end of the connection (of the driver's char device), which
 * comes when nothing holds it any more. A process that serves it and is killed while one of its own threads
 * waits so would never end, because its descriptors are closed when its last thread is gone; and with it
 * would hang all who use the device. So whatever may lead to such a wait is done by a child that has nothing of its
 * parent's that holds the connection, neither descriptors nor mappings of the ring (ring/loop.c
 * keeps those from children): if the server dies, the connection ends, and the child with it.
 */
#ifndef TARGET_CHILD_H
#define TARGET_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"

struct child_shared;

struct child {
	pid_t pid;
	int go_fd;
	struct child_shared *shared;
};

/*
 * Forks a child that will call @fn(@arg) once child_finish() is called. It sees memory as it is
 * now, and of the descriptors above 2 only @keep_fd (-1: none).
 */
int child_start(struct child *child, int (*fn)(void *arg, struct error *err), void *arg,
		int keep_fd, struct error *err) must_check;

/*
 * Lets it run and returns what @fn returned; -ETIMEDOUT if it took longer than @timeout_ms: then it
 * has been killed, and ends as soon as the kernel lets it.
 */
int child_finish(struct child *child, unsigned timeout_ms, struct error *err) must_check;

/* Instead of child_finish(): it never runs. */
void child_cancel(struct child *child);

/* Both at once. */
int child_call(int (*fn)(void *arg, struct error *err), void *arg, unsigned timeout_ms,
	       struct error *err) must_check;

#endif
