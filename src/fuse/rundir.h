/* SPDX-License-Identifier: MIT */
/*
 * rundir.h: what a device of the FUSE front end leaves in the file system.
 */
#ifndef FUSE_RUNDIR_H
#define FUSE_RUNDIR_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* What is done at the end is done by descriptors: the paths may lead nowhere then (docs/confinement.md). */
struct rundir {
	int id;
	int top_fd, dir_fd; /* -1: none, as the next one */
	int state_fd;
	char top[PATH_MAX]; /* RUN_DIR/fuse */
	char dir[PATH_MAX];
	char file[PATH_MAX]; /* where the FUSE file is mounted; empty before rundir_add_file() */
};

/* Nothing is taken yet. */
#define RUNDIR_INIT ((struct rundir){.top_fd = -1, .dir_fd = -1, .state_fd = -1})

/*
 * Takes the number @id for this process, for as long as it lives or until rundir_release(). -EEXIST
 * if it is taken, or was left by a process that died.
 */
int rundir_take(struct rundir *r, const char *run_dir, int id, struct error *err) must_check;
/* Makes the empty file to mount on; the name is made safe. */
int rundir_add_file(struct rundir *r, const char *name, struct error *err) must_check;
/*
 * Writes down what a later process needs to clean up: the loop device (-1: none) and, when it is
 * bound, the count of its use (0: not yet).
 */
int rundir_record(struct rundir *r, int loop_number, uint64_t loop_seq,
		  struct error *err) must_check;
/* Removes it all again. The file must be unmounted. Idempotent. */
void rundir_release(struct rundir *r);
/* Leaves it all for a later process to clean up (fuse.h). */
void rundir_leave(struct rundir *r);
/*
 * Opens file @name of device @id (NULL: its folder) for a process that does not trust who made it: no symbolic
 * link below @run_dir is followed. -errno.
 */
int rundir_open_file(const char *run_dir, int id, const char *name, int flags) must_check;

/*
 * Takes a mount at @path away for new users at once; those who have the file open keep it. Not an
 * error if nothing is mounted there. Works for a mount whose server is dead, and for a user's own.
 */
int mount_detach(const char *path, struct error *err) must_check;

#endif
