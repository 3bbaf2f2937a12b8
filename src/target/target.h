/* SPDX-License-Identifier: MIT */
/*
 * target.h: what a block device can be made of.
 *
 * A target is one file that fills in a target_ops. Life: open() on the main thread, where storage
 * I/O blocks; queue_start() for each queue on that queue's own thread, with the loop that will run
 * there; submit() on that thread for each request; queue_stop() on that thread after the last
 * request completed and loop_run() returned (the target may run the loop again there, to finish its
 * background work, while the loops of the queues before it still run); close() on the main thread when all queues have stopped.
 *
 * Queues are started one after the other from 0 up and stopped one after the other from the last
 * down to 0, none while another is being started or stopped, and queue 0 serves before any other is
 * stopped. One whose requests do not end is never stopped; the target is not closed then. A front end may
 * start fewer than were announced. Request buffers are zeroed when a front end makes them and belong to one device.
 */
#ifndef TARGET_TARGET_H
#define TARGET_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/blk.h"
#include "base/error.h"
#include "qcow2.h"

struct loop;
struct secret;
struct names_policy;
struct target;

/*
 * For a device that is to survive its process (docs/crash-safety.md). The memory outlives the process;
 * see struct qcow2_options for what a target does with it. A target without state in memory that could be
 * lost (null) has none.
 */
struct target_recovery {
	void *log_base;
	uint64_t log_bytes;
	const void *identity; /* at most 256 bytes */
	uint64_t identity_bytes;
	bool replay;	  /* the process that served this device before has died */
	bool locked;	  /* QEMU's image locks are held by the process that watches this one, too */
	bool lapsed;	  /* replay: for some time nobody held them */
};

/* How `add` wants it opened. Strings belong to the caller and outlive the target. */
struct target_options {
	const char *path; /* image or device; NULL for null */
	bool read_only;
	const char *snapshot;	   /* read-only: the disk as it was then; NULL: as it is */
	bool direct;		   /* O_DIRECT where the file system can */
	unsigned queues;	   /* how many queues will be started, at most; 0 for a daemon: it chooses */
	unsigned depth;		   /* requests in flight in each queue, at most */
	uint64_t cache_size_bytes; /* 0: the target's default */
	uint64_t writeback_delay_ms; /* of dirty metadata; 0: the target's default */
	uint64_t size_bytes;	   /* null: device size; 0: default */
	bool compress;	   /* full clusters that are new are written compressed */
	bool discard_ignore;		  /* no DISCARD, and no holes in the image */
	enum qcow2_detect_zeroes detect_zeroes;
	const struct names_policy *names; /* for files that the image names; NULL: the default */
	/* Of an encrypted image; NULL: none. Only open() may look at it. */
	struct secret *passphrase;
	const struct target_recovery *recovery; /* NULL: none */
};

/* What the device can do; filled in by open(), constant afterwards but for size_bytes: target_size(). */
struct target_limits {
	uint64_t size_bytes;		 /* multiple of logical_block_bytes */
	uint32_t logical_block_bytes;	 /* >= 512, power of two */
	uint32_t physical_block_bytes;	 /* >= logical, power of two */
	uint32_t io_min_bytes;		 /* power of two */
	uint32_t io_opt_bytes;		 /* power of two; 0: none */
	uint32_t whole_bytes;		 /* a WRITE is worth more if it has such pieces whole; 0: any will do */
	uint32_t discard_granularity;	 /* 0: DISCARD is not supported */
	uint64_t max_discard_bytes;	 /* in one request */
	uint64_t max_write_zeroes_bytes; /* in one request; 0: not supported */
	/* Power of two, logical_block_bytes at least: no READ or WRITE crosses a multiple of it; 0: as they come. */
	uint32_t chunk_bytes;
	uint32_t max_request_bytes;  /* of READ and WRITE, power of two, a page at least; 0: the front end's */
	uint32_t memory_align_bytes; /* power of two, of registered buffers; 0: the front end's */
	unsigned max_queues;
	bool read_only;
	bool volatile_cache; /* completed writes need FLUSH to be durable */
	bool fua;
	bool rotational;
	bool registered_buffers; /* worth having: most requests need no memory (blk_request.to_memory) */
};

enum target_snapshot { TARGET_SNAPSHOT_CREATE, TARGET_SNAPSHOT_APPLY, TARGET_SNAPSHOT_DELETE };

struct target_ops {
	const char *name;
	size_t request_bytes;	 /* private memory for each request; see blk_request.priv */
	uint64_t log_bytes;	 /* of the recovery log that it keeps; 0: none */
	/* In a log that no process uses: from now on no FLUSH succeeds, since a sync met @error (positive). */
	int (*log_sync_failed)(void *log_base, uint64_t log_bytes, int error);
	bool any_op;		 /* submits operations to the loops that are not this program's (loop_params) */

	/* On error nothing is left open and @err says why. */
	int (*open)(struct target **out, const struct target_options *opts, struct error *err);
	/* How many coroutines the loop of @queue has to have. NULL: none, it is all callbacks. */
	unsigned (*coroutines)(const struct target *t, unsigned queue);
	/* NULL where there is nothing to do. */
	int (*queue_start)(struct target *t, unsigned queue, struct loop *loop, struct error *err);
	void (*submit)(struct target *t, unsigned queue, struct blk_request *req);
	void (*queue_stop)(struct target *t, unsigned queue);
	/*
	 * Main thread, while queues run: what is served becomes larger, durably; limits.size_bytes does not
	 * change (frontend_ops.resize follows). NULL: it cannot.
	 */
	int (*resize)(struct target *t, uint64_t size_bytes, struct error *err);
	/*
	 * An operation on a snapshot inside the image, on the main thread, while the queues run; waits for
	 * it. *@pause_ns: for how long I/O was held back. NULL: there are no snapshots.
	 */
	int (*snapshot)(struct target *t, enum target_snapshot what, const char *name,
			uint64_t *pause_ns, struct error *err);
	/*
	 * Main thread, while queues run and nothing is being written: everything is made durable that close()
	 * would have to, as far as that is possible now; waits for it. NULL: there is nothing.
	 */
	int (*settle)(struct target *t, struct error *err);
	/*
	 * Flushes and releases everything, also where no queue was ever started. Returns the error that
	 * the last flush met (the target is gone all the same).
	 */
	int (*close)(struct target *t, struct error *err);
};

/* The common head of every target; a target embeds it first. */
struct target {
	const struct target_ops *ops;
	struct target_limits limits;
};

/*
 * The size changes while queues run, in two steps that need not be atomic to each other: a target is asked
 * for more only once it has grown, and it shrinks only once it is not asked for more.
 */
static inline uint64_t target_size(const struct target_limits *limits)
{
	return __atomic_load_n(&limits->size_bytes, __ATOMIC_RELAXED);
}

static inline void target_set_size(struct target *t, uint64_t size_bytes)
{
	__atomic_store_n(&t->limits.size_bytes, size_bytes, __ATOMIC_RELAXED);
}

extern const struct target_ops target_null;
extern const struct target_ops target_loop;
extern const struct target_ops target_qcow2;

/* The target of that name; NULL if there is none. */
const struct target_ops *target_find(const char *name);

#endif
