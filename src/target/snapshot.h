/* SPDX-License-Identifier: MIT */
/*
 * snapshot.h: operations on an image whose queues run, asked for by another thread: on its snapshots, on
 * its size, and before its end.
 */
#ifndef TARGET_SNAPSHOT_H
#define TARGET_SNAPSHOT_H

#include "target/target.h"

struct loop;
struct qcow2_image;

/* For all of the following, before anything else: for each queue, on its thread. */
void snapshot_loop_set(struct loop *loop);

/*
 * Runs the operation in a coroutine of the image's metadata loop, and waits for it: on no loop's thread,
 * and for SNAPSHOT_WAIT_MS at most (-ETIMEDOUT; it may still be done). The queues are not stopped meanwhile
 * by the caller. If a loop fails, the wait ends (-EIO).
 */
#define SNAPSHOT_WAIT_MS 300000
int snapshot_run(struct qcow2_image *img, enum target_snapshot what, const char *name,
		 uint64_t *pause_ns, struct error *err) must_check;

/* The same for qcow2_settle(); for SETTLE_WAIT_MS at most. */
#define SETTLE_WAIT_MS 20000
int settle_run(struct qcow2_image *img, struct error *err) must_check;

/* The same for qcow2_resize(); for RESIZE_WAIT_MS at most. */
#define RESIZE_WAIT_MS 60000
int resize_run(struct qcow2_image *img, uint64_t size_bytes, struct error *err) must_check;

#endif
