/* SPDX-License-Identifier: MIT */
/*
 * cleanup.h: what a daemon that was killed leaves behind.
 */
#ifndef DAEMON_CLEANUP_H
#define DAEMON_CLEANUP_H

#include <sys/types.h>

#include "base/error.h"
#include "daemon/entry.h"
#include "daemon/statedir.h"

/*
 * Removes the device, loop device or mount of a dead entry, waits until the dead daemon's last I/O has
 * reached the image, and removes the entry. What cannot be removed is an error, and the entry stays.
 * Something that will go by itself is none; *note then says what that waits for. Under the lock of the
 * folder.
 */
int cleanup_entry(const struct statedir *dir, const struct entry *e, struct error *note,
		  struct error *err) must_check;

/* The same for the dead entry of process @pid, if there is one; takes the lock. */
int cleanup_process(struct statedir *dir, pid_t pid, struct error *err) must_check;

/*
 * What belongs to no entry, for its process was killed before it had one or when it had one no more: files in the
 * folder of state, and folders of the fuse front end's. Under the lock.
 */
void cleanup_left_over(const struct statedir *dir);

struct ublk_device;

/*
 * The ublk devices of this host that nobody serves and no entry of @list knows, whoever made them: how many,
 * of which the first @max were written; or -errno, also where this kernel has no ublk.
 */
int cleanup_orphans(const struct entry_list *list, struct ublk_device *out, size_t max,
		    struct error *err) must_check;

#endif
