/* SPDX-License-Identifier: MIT */
/*
 * supervise.h: the process that outlives a device's daemon, and starts another one when it is killed.
 *
 * With recovery on, what `add` leaves in the background are two processes: the *supervisor*, which
 * waits, and its child, the *worker*, which is the daemon of daemon.h. The supervisor has no threads
 * and no I/O but a sync of the image, between two workers.
 */
#ifndef DAEMON_SUPERVISE_H
#define DAEMON_SUPERVISE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "daemon/daemon.h"
#include "daemon/entry.h"
#include "daemon/process.h"

/* What a worker has of its supervisor; in the worker, after fork(). */
struct supervision {
	char key[ENTRY_KEY_MAX];   /* of the entry: the same for every worker */
	struct process supervisor;
	int log_fd;		   /* the recovery log, as long as the target's; -1: it needs none */
	bool replay;		   /* the worker takes over from one that died */
	bool lapsed;		   /* and meanwhile nobody had held the image's locks for some time */
	_Atomic int *live_id;	   /* shared memory: the worker puts the device's number here */
};

/*
 * Starts the first worker and watches it and its successors; @worker_main runs in each worker and gives
 * its exit status. @started (may be NULL) is called when the first one has been started. Does not return
 * but with an error that came before that: the process ends with its last worker.
 */
int supervise(const struct daemon_config *config,
	      int (*worker_main)(const struct daemon_config *config), void (*started)(void),
	      struct error *err) must_check;

/*
 * The configuration of a device that waits for recovery, from its entry; strings are @e's.
 * -EINVAL: it cannot be recovered.
 */
int supervise_config(struct daemon_config *config, const struct entry *e, struct error *err) must_check;

/*
 * Hands the device to the program that calls: the supervisor of @e ends the worker and becomes this
 * program. Returns when a new worker serves, or with the reason.
 */
int supervise_upgrade(const struct statedir *dir, const struct entry *e, struct error *err) must_check;

/* The passphrase that a former supervisor left in a pipe. */
int supervise_secret_take(struct daemon_config *config, int fd, struct error *err) must_check;

/* The descriptors that it left, from their list. */
void supervise_held_take(struct daemon_config *config, const char *list);

/*
 * What the supervisor runs to become another program: `ublk-qcow2 supervise KEY FDS SECRET-FD`. FDS are what holds
 * the image's locks, "IMAGE,DATA,BACKING,...", -1: none. Former versions name the first, or the first two.
 */
#define SUPERVISE_COMMAND "supervise"

#endif
