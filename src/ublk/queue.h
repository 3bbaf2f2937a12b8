/* SPDX-License-Identifier: MIT */
/*
 * queue.h: one queue of a device: a thread, its loop, and the tags that it serves.
 *
 * The main thread uses the functions; the structures are for queue.c and the data paths, on the
 * queue's thread.
 */
#ifndef UBLK_QUEUE_H
#define UBLK_QUEUE_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/blk.h"
#include "base/error.h"
#include "ring/loop.h"
#include "target/frontend.h"
#include "target/hold.h"
#include "target/target.h"
#include "ublk/uapi.h"

struct io_uring_sqe;
struct ublk_queue;
struct ublk_tag;

/*
 * How the payload of requests gets from the driver to the target and back. A path that needs more
 * of the driver than its device flags is chosen by the front end from the features.
 */
struct ublk_data_path {
	const char *name;
	uint64_t dev_flags; /* UBLK_F_ that ADD_DEV must grant */
	bool registers;	    /* payloads lie in registered buffers */
	/* Before the first fetch; on error teardown is called all the same. */
	int (*setup)(struct ublk_queue *q, struct error *err);
	void (*teardown)(
		struct ublk_queue *q); /* accepts what setup left; the ring is gone by then */
	/* Completes a FETCH or COMMIT_AND_FETCH, which is filled in but for where the payload goes.
	 */
	void (*arm)(struct ublk_tag *t, struct io_uring_sqe *sqe, struct ublk_io_cmd *cmd);
	/*
	 * A READ or WRITE came in: sets req.buf. An error ends the request; UBLK_BEGIN_LATER:
	 * ublk_tag_begun() is called when it is set, maybe it has been.
	 */
	int (*begin)(struct ublk_tag *t);
	/* The target is done with it; returns the result to commit, @ret or an error of its own. */
	int (*end)(struct ublk_tag *t, int ret);
	/* Some request's result has been committed. May be NULL. */
	void (*ended)(struct ublk_queue *q);
};

#define UBLK_BEGIN_LATER 1

extern const struct ublk_data_path ublk_path_copy, ublk_path_user_copy, ublk_path_zero_copy;

enum ublk_tag_state {
	UBLK_TAG_FETCHING, /* a command is in the driver's hands */
	UBLK_TAG_SERVED,   /* a request is in the target's */
	UBLK_TAG_DEAD,	   /* the driver sends no more */
};

struct ublk_tag {
	struct loop_op op; /* of the fetch */
	struct blk_request req;
	struct ublk_queue *queue;
	uint16_t tag;
	enum ublk_tag_state state;
	uint32_t op_flags; /* of the request's descriptor */

	/* zerocopy.c */
	struct list list; /* waits for memory */
	void (*memory_ready)(struct blk_request *req, int ret);
	int large; /* number of the buffer that it has; -1: none */
};

struct ublk_queue_config {
	uint32_t dev_id;
	unsigned queue;
	unsigned depth;
	int char_fd;
	size_t desc_bytes;  /* the stride of the descriptors */
	uint32_t buf_bytes; /* the most that a request carries */
	struct target *target;
	const struct ublk_data_path *path;
	const cpu_set_t *cpus; /* where the thread is to run; NULL: anywhere. Copied */
	int gone_fd;	       /* an eventfd, written once when the queue ends unasked */
	struct hold_device *hold;
	void (*settled)(void); /* of struct frontend_options */
};

enum ublk_queue_phase {
	UBLK_QUEUE_STARTING,
	UBLK_QUEUE_RUNNING, /* fetching, or about to */
	UBLK_QUEUE_LEAVING, /* the loop has ended */
	UBLK_QUEUE_ENDED,   /* nothing is left but the thread's last instructions */
};

struct ublk_queue {
	struct ublk_queue_config config;
	cpu_set_t cpus;
	pthread_t thread;

	/* The queue's thread alone. */
	struct loop *loop;
	int char_slot;
	const char *descs; /* mapped read-only, written by the driver */
	size_t descs_bytes;
	char *tags; /* depth of struct ublk_tag, each followed by its request's priv */
	size_t tag_stride;
	unsigned served, dead; /* tags in these states */
	bool stopping;	       /* asked to end as soon as nothing is served */
	bool grace_over;       /* do not wait for fetches that never end */
	bool closed;	       /* on its way out: takes no more requests */
	bool abandoned;	       /* to be left as it is, with requests that do not end */
	bool queue_started;    /* the target's */
	struct hold hold; /* of SERVED tags */
	struct loop_timer grace;
	struct loop_msg stop_msg, abandon_msg, settled_msg;
	void *path_data, *path_state; /* the data path's */
	size_t path_bytes;

	/* Under the lock. */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* phase, stop_requested */
	enum ublk_queue_phase phase;
	bool stop_requested;
	int ret;
	struct error err;

	struct ublk_queue_counts {
		uint64_t reads, writes, others;
		uint64_t fallbacks; /* zerocopy.c: pages that were not registered */
	} counts; /* requests; written by the thread, read from any */

	atomic_bool end_expected; /* the device is being taken away: aborts are no news */
	atomic_bool over;	  /* some fetch has ended for good */
	atomic_bool failed;	  /* its ring has */
};

static inline struct ublk_tag *ublk_queue_tag(const struct ublk_queue *q, unsigned tag)
{
	return (struct ublk_tag *)(q->tags + tag * q->tag_stride);
}

/* For data paths: see begin(). */
void ublk_tag_begun(struct ublk_tag *t, int ret);

/* Starts the thread and the target's queue; returns when its fetches are on their way. */
int ublk_queue_start(struct ublk_queue **out, const struct ublk_queue_config *config,
		     struct error *err) must_check;
/* From any thread: whether the queue has stopped serving, or part of it has. */
bool ublk_queue_over(const struct ublk_queue *q);
/* Whether that is its io_uring's fault. */
bool ublk_queue_failed(const struct ublk_queue *q);
/* From the thread that started it, at any time before it is stopped. */
void ublk_queue_figures(const struct ublk_queue *q, struct frontend_figures *out);
/* What waits for space is tried again now. */
void ublk_queue_retry(struct ublk_queue *q);
/* config.settled() is called on its thread. Once. */
void ublk_queue_settle(struct ublk_queue *q);
/* From now on aborted fetches are what is wanted, or are news again. */
void ublk_queue_expect_end(struct ublk_queue *q, bool expected);
/*
 * Ends the queue once its requests are done, stops the target's queue, and frees it. -ETIMEDOUT: a
 * request does not come back. The queue then lets go of the char device, so that closing that makes
 * the driver fail the request, but the target's queue was not stopped, and the memory that it may
 * still write to is not freed.
 */
int ublk_queue_stop(struct ublk_queue *q, unsigned timeout_ms, struct error *err) must_check;

#endif
