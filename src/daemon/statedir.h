/* SPDX-License-Identifier: MIT */
/*
 * statedir.h: the folder of state: what is attached, and the sockets to talk to the daemons.
 *
 * It is /run/ublk-qcow2 for root, $XDG_RUNTIME_DIR/ublk-qcow2 for others (/tmp/ublk-qcow2-UID without
 * that variable), or $UBLK_QCOW2_RUN_DIR; mode 0700. A folder that belongs to somebody else, or that
 * others may write to, is refused: whoever can write there can name devices and processes to us.
 */
#ifndef DAEMON_STATEDIR_H
#define DAEMON_STATEDIR_H

#include <limits.h>
#include <stdbool.h>

#include "base/error.h"

struct statedir {
	int fd;
	int lock_fd; /* -1: not locked */
	char path[PATH_MAX];
};

/* Makes the folder if it is missing and @create; without it -ENOENT and no message. */
int statedir_open(struct statedir *dir, bool create, struct error *err) must_check;
/* Accepts a folder that was never opened but zeroed with fd -1. */
void statedir_close(struct statedir *dir);

/*
 * One process at a time: held while devices are registered, and while a dead one is cleaned up, never
 * while one runs. Waits some seconds at most.
 */
int statedir_lock(struct statedir *dir, struct error *err) must_check;
void statedir_unlock(struct statedir *dir);

#endif
