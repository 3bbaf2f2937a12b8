/* SPDX-License-Identifier: MIT */
/*
 * namespace.h: a daemon's own view of the file system, with nothing in it.
 *
 * A process in a mount namespace of its own has a copy of every mount there was when that was made, and
 * a copy keeps a file system busy: somebody unmounts it, and its disk is in use all the same. So the copies
 * go as soon as they are not needed. What is left is an empty, read-only folder with what it takes to log.
 * Files that are open stay so.
 */
#ifndef DAEMON_NAMESPACE_H
#define DAEMON_NAMESPACE_H

#include <limits.h>
#include <stdbool.h>

#include "base/error.h"
#include "target/child.h"
#include "target/target.h"

#define NAMESPACE_PINS 20

struct namespace {
	bool entered;
	struct child trimmer;
	char folder[PATH_MAX]; /* to put the new root on */
	int pins[NAMESPACE_PINS];
	unsigned nr_pins;
};

/*
 * While there is one thread, and the privilege (CAP_SYS_ADMIN). For the time being everything is where it
 * was. Without the kernel's help this does nothing and says so in the log.
 */
void namespace_enter(struct namespace *ns, const char *folder, const struct target_options *options);

/* Takes everything away. It needs no privilege any more. */
void namespace_empty(struct namespace *ns);

/* For a daemon that ends; also if it was never entered. */
void namespace_leave(struct namespace *ns);

#endif
