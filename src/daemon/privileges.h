/* SPDX-License-Identifier: MIT */
/*
 * privileges.h: what becomes of root's privileges in a process that serves a device, step by step.
 *
 *     privileges_drop    a helper is forked, which keeps what is needed later; then all goes but what
 *                        it takes to open files (confine.h), and the process gets its own view of
 *                        the file system (namespace.h)
 *     privileges_opened  the image's files are open: that goes as well
 *     privileges_serving the device is there: the view is empty from now on
 *
 * A process without root's privileges has nothing to drop. One that serves an unprivileged ublk device has
 * its system calls filtered all the same; one with fuse (--no-loop) stays as it is: to mount and unmount
 * it needs fusermount3, which no_new_privs would break.
 */
#ifndef DAEMON_PRIVILEGES_H
#define DAEMON_PRIVILEGES_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "daemon/confine.h"
#include "daemon/namespace.h"
#include "target/helper.h"

struct daemon_config;
struct frontend_ops;
struct statedir;

/* All zero: nothing has been dropped. */
struct privileges {
	bool dropped;
	bool filtered; /* its system calls */
	enum confine_role role;
	struct helper *helper; /* NULL: this process has them itself */
	struct namespace namespace;
};

/* All on the main thread, the first two before there is another one. */
int privileges_drop(struct privileges *p, const struct daemon_config *config,
		    const struct frontend_ops *frontend, const struct statedir *dir,
		    struct error *err) must_check;
void privileges_opened(struct privileges *p);
void privileges_serving(struct privileges *p);
/* What the front end's threads call when the device is there; NULL: nothing. */
void (*privileges_settled(const struct privileges *p))(void);
void privileges_end(struct privileges *p);

/* Polls POLLHUP when the helper is gone; -1: there is none. */
int privileges_helper_fd(const struct privileges *p);

/* Who uses the device, as inuse_describe() has it. */
void privileges_describe(const struct privileges *p, const char *device, char *text, size_t size);

#endif
