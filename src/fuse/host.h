/* SPDX-License-Identifier: MIT */
/*
 * host.h: what this front end does to the host: it mounts its file, and makes a loop device of it.
 *
 * That takes root's privileges and the host's mounts. A process that looks into an image has neither
 * (docs/confinement.md), so that its helper does it (target/helper.h); where there is no helper, the process does
 * it itself. The outcome is the same.
 *
 * One device, one thread.
 */
#ifndef FUSE_HOST_H
#define FUSE_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "target/child.h"

struct helper;
struct rundir;
struct session;

/* What is under way; zero but for claim_fd, which is -1. */
struct host_work {
	int claim_fd; /* on the loop device, until it is bound; -1: none */
	int claimed;  /* its number */
	struct child bind;
	bool binding;
};

struct host {
	struct helper *helper;	  /* NULL: by ourselves */
	const char *run_dir;
	const struct rundir *dir; /* the device's; taken before anything but host_loop_find_free() */
	struct host_work work;	  /* without a helper */
};

struct host_loop {
	uint32_t block_bytes;
	uint64_t size_bytes; /* what must come out */
	bool read_only;
	bool part_scan;
	uint32_t request_bytes; /* requests are no longer than that; 0: as the kernel likes */
};

/* The folder's file; @s serves it. */
int host_mount(struct host *h, struct session *s, bool allow_other, bool read_only, struct error *err) must_check;
/* As mount_detach(). @force: whoever waits for an answer from the file gets an error. */
int host_unmount(struct host *h, bool force, struct error *err) must_check;

/* The number of a loop device that is free at the moment. */
int host_loop_find_free(struct host *h, struct error *err) must_check;
/* The one of the device's number becomes ours: nobody else can bind it. -EBUSY. */
int host_loop_claim(struct host *h, struct error *err) must_check;
void host_loop_unclaim(struct host *h);
/*
 * Binds it to the file, in two steps: *@opener is the process that will open the file for it, in the second one.
 * The second follows in any case.
 */
int host_loop_bind_start(struct host *h, const struct host_loop *loop, pid_t *opener, struct error *err) must_check;
int host_loop_bind_finish(struct host *h, struct error *err) must_check;
/* As loopdev_busy(), loopdev_resize() and loopdev_detach() of use @seq. */
int host_loop_busy(struct host *h) must_check;
int host_resize(struct host *h, bool with_loop, uint64_t size_bytes, struct error *err) must_check;
int host_loop_detach(struct host *h, uint64_t seq, struct error *err) must_check;

/* The helper's side: a helper_fn. */
int host_help(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg);

#endif
