/* SPDX-License-Identifier: MIT */
/*
 * writeback.h: the pass: dirty metadata goes to disk in the order of rule 1.
 *
 *   cut      (does not suspend) samples the queues' counters of writes, freezes what is dirty
 *   step 1   refcount slices, those of new blocks included  -> sync, if data or refcounts were written
 *   step 2   refcount-table entries of new blocks           -> sync
 *   step 3   L2 slices                                      -> sync
 *   step 4   L1 entries of new L2 tables                    -> sync
 *
 * Steps with nothing to do are skipped, sync and all: overwriting in place costs one sync, a flush
 * with nothing written none.
 *
 * Invariants:
 *  1. One pass at a time. A caller of writeback_run() is served by a pass that starts after the call
 *     (rule 5); all callers that wait share it.
 *  2. Refcounts need no frozen images: an early raise is a leak at worst, and a count is lowered in
 *     memory only when the unlink is durable (rules 2 and 4).
 *  3. After a sync failed none is tried again and every pass fails (rule 6). Nor is one under way
 *     then that could succeed: the kernel reports an error to one of two concurrent syncs only, so
 *     there is one at a time. After a failed write what was to be written is dirty again.
 *
 * Metadata loop only, in a coroutine; or with no loop.
 */
#ifndef QCOW2_WRITEBACK_H
#define QCOW2_WRITEBACK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/list.h"
#include "qcow2/cache.h"
#include "ring/co.h"
#include "storage/storage.h"

struct qcow2_image;

#define WRITEBACK_DELAY_MS_DEFAULT 1000
#define WRITEBACK_DELAY_MS_MAX	   60000

#define PASS_IOS     32
#define PASS_IOVECS  16

/* One write of neighbouring blocks of table slices. */
struct pass_io {
	struct storage_io io;
	struct list link;
	struct writeback *wb;
	struct cache *cache;
	struct iovec iov[PASS_IOVECS];
	struct slice *slices[PASS_IOVECS];
	unsigned count;
	uint64_t end_bytes; /* host offset past the last one */
};

struct writeback {
	bool running;
	struct list next; /* callers waiting for the next pass */
	struct pass_io ios[PASS_IOS];
	struct list idle_ios;
	unsigned busy_ios;
	struct co_waitq io_done;
	int write_ret; /* first error of the writes under way */
	struct slice **sorted;
	unsigned sorted_max;

	uint64_t synced_writes; /* image_writes_done() that a completed sync covers */
	uint64_t meta_writes;	/* writes outside of passes, of the metadata's own; part of that sum */
	int sync_failed;	/* -errno of the sync that failed: no flush succeeds again */
	struct co_mutex sync_lock; /* one sync at a time: see invariant 3 */

	uint64_t delay_ns;
	struct loop_timer timer;
	bool timer_armed;
	struct co_task timer_task;
	bool timer_running;

	uint64_t passes, syncs; /* figures */
};

int writeback_init(struct qcow2_image *img, uint64_t delay_ms) must_check;
void writeback_destroy(struct writeback *wb);

/* Everything that completed before the call is durable when this returns 0. */
int writeback_run(struct qcow2_image *img) must_check;

/*
 * A sync that is part of a structural change, with the pass's bookkeeping of failure. No pass may be
 * under way that would miss what it covers: it does not advance synced_writes.
 */
int writeback_sync(struct qcow2_image *img) must_check;

/* A write whose outcome is unknown and cannot be mended: as after a failed sync. */
void writeback_give_up(struct qcow2_image *img, int ret);

/* Whether there is metadata that is not on disk. */
bool writeback_needed(const struct qcow2_image *img);

/* Sets the timer, if there is a loop and it is not set. */
void writeback_kick(struct qcow2_image *img);
/* Ends the timer and waits for a pass that it started. */
void writeback_stop_timer(struct qcow2_image *img);

#endif
