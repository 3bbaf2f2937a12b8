/* SPDX-License-Identifier: MIT */
/*
 * process.h: a process that was named by its number earlier: is it still that one?
 *
 * A number alone is given to somebody else after a while, so a process is known by its number, its
 * start time (clock ticks since boot) and the boot it belongs to.
 */
#ifndef DAEMON_PROCESS_H
#define DAEMON_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define BOOT_ID_MAX 40

struct process {
	pid_t pid;
	uint64_t start_ticks;
	char boot_id[BOOT_ID_MAX];
};

int process_self(struct process *out) must_check;

/*
 * A pidfd of the process, which is running and really the one that was meant; -ESRCH: it is gone (a
 * zombie counts as gone).
 */
int process_open(const struct process *p) must_check;
bool process_alive(const struct process *p);
/* Whether the machine has been up since. */
bool process_of_this_boot(const struct process *p);

/* To the process behind @pidfd and no other, though its number is given to one. */
int process_signal(int pidfd, int sig);

/* Waits until the process behind @pidfd is gone; -ETIMEDOUT. */
int process_wait(int pidfd, int timeout_ms) must_check;

#endif
