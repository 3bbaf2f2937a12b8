/* SPDX-License-Identifier: MIT */
/*
 * fuse.h: what is left when a daemon of the FUSE front end was killed: a loop device that answers
 * EIO, a mount whose server is gone, and files in the program's folder of state. For `list` and
 * `del`.
 */
#ifndef FUSE_FUSE_H
#define FUSE_FUSE_H

#include <limits.h>

#include "base/error.h"

struct fuse_orphan {
	int id;		       /* as frontend_ops.id gave it */
	char device[PATH_MAX]; /* as frontend_ops.device gave it */
	int busy; /* > 0: somebody has the loop device open or mounted; -errno: unknown */
};

/*
 * Calls @fn for each device of @run_dir whose daemon has died. Stops when it returns anything but
 * 0, and returns that. 0 if @run_dir does not exist. @fn must not call fuse_orphan_remove().
 */
int fuse_orphans_each(const char *run_dir, int (*fn)(const struct fuse_orphan *orphan, void *arg),
		      void *arg, struct error *err) must_check;

/*
 * Removes what the daemon of device @id left: detaches the loop device, unmounts, deletes the
 * files. -ENOENT if there is nothing of that number, -EBUSY if its daemon lives, or if somebody has
 * the loop device open: it cannot be taken from him, but goes away when he closes it, and the rest
 * is removed.
 */
int fuse_orphan_remove(const char *run_dir, int id, struct error *err) must_check;

#endif
