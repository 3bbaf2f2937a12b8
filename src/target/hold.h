/* SPDX-License-Identifier: MIT */
/*
 * hold.h: requests that met the end of space wait for more of it (`add --on-enospc stop`).
 *
 * A front end hands every completion to hold_take(). A request that failed for want of space is not
 * completed but kept, and given to the target anew, as a whole, when it is worth another try: after a pause
 * that grows from HOLD_MIN_MS to HOLD_MAX_MS, or when the user says so.
 *
 * Invariants:
 *  1. What is held is not the target's: it has ended there, with all locks, reservations and memory given
 *     back. So nothing that goes on beside it, a FLUSH or a snapshot, ever waits for it.
 *  2. It has not been acknowledged. Nothing is promised of its data, which may be there in part; the next
 *     try writes all of it again. Requests that came later may be done before it, as on any disk: who
 *     wants an order waits for one before he sends the next.
 *  3. After hold_end() nothing is held any more: each gets one more try, whose result is its own.
 *
 * Threads: a struct hold belongs to its queue's loop. The device's is shared: counters, and a descriptor by
 * which whoever watches over the device hears of the first that is held and of the last that went on.
 */
#ifndef TARGET_HOLD_H
#define TARGET_HOLD_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/blk.h"
#include "base/error.h"
#include "base/list.h"
#include "ring/loop.h"

#define HOLD_MIN_MS 100
#define HOLD_MAX_MS 5000

/* Of a device. */
struct hold_device {
	atomic_bool on;
	atomic_uint count; /* requests that wait, or are being tried again */
	int fd;		   /* an eventfd; -1: never on */
};

/* Of a queue. */
struct hold {
	struct hold_device *device;
	struct loop *loop;
	void (*again)(struct hold *hold, struct blk_request *req); /* gives it to the target */
	struct list held;
	struct loop_timer timer;
	bool armed;
	unsigned pause_ms;
	struct loop_msg msg;
	atomic_bool asked; /* msg is on its way */
};

int hold_device_init(struct hold_device *device, bool on, struct error *err) must_check;
void hold_device_destroy(struct hold_device *device); /* also one with fd -1 */

/* Before the loop runs, or on it. */
void hold_init(struct hold *hold, struct hold_device *device, struct loop *loop,
	       void (*again)(struct hold *hold, struct blk_request *req));

/*
 * @req has ended with @ret. True: it is not to be completed, hold->again() will be called with it, and it
 * comes here again. Its fields, and the payload of a WRITE, are to be what they were by then.
 */
bool hold_take(struct hold *hold, struct blk_request *req, int ret);

/* From any thread, while the loop runs: what is held is tried now. */
void hold_retry(struct hold *hold);
/* From any thread: no more is held. hold_retry() for every queue has to follow. */
void hold_end(struct hold_device *device);

static inline unsigned hold_count(const struct hold_device *device)
{
	return atomic_load_explicit(&device->count, memory_order_relaxed);
}

#endif
