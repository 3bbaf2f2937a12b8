/* SPDX-License-Identifier: MIT */
/*
 * rig.h: the engine on real loops over a real file, driven from one controlling thread.
 *
 * The controlling thread opens the rig, submits requests, and waits for them; each queue runs on a
 * thread and loop of its own. All functions belong to the controlling thread.
 */
#ifndef TESTS_RIG_H
#define TESTS_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/blk.h"
#include "base/error.h"
#include "ring/loop.h"

struct rig;

struct rig_options {
	bool read_only;
	const struct secret *passphrase; /* NULL: none */
	bool direct;
	bool no_lock;
	unsigned queues;
	unsigned depth; /* of each queue */
	uint64_t cache_size_bytes;
	uint64_t writeback_delay_ms;
	bool discard_ignore;
	bool compress;
	unsigned detect_zeroes; /* enum qcow2_detect_zeroes */
	const char *snapshot; /* read-only: the disk as it was then; NULL: as it is */
	const char *log_path; /* a file that is the recovery log; NULL: none */
	bool recover;	      /* replay it, instead of starting it anew */
};

/* One request; from rig_request_get() until rig_reap() returned it and rig_request_put() got it back. */
struct rig_request {
	struct loop_msg msg;
	struct blk_request blk;
	struct rig_queue *queue;
	struct rig_request *next; /* free, or finished */
	bool finished;		  /* under the rig's mutex */
	int ret;

	/* the caller's */
	void *buf;
	uint64_t moment;
	int pattern;
	bool reported;
	uint64_t line;
};

int rig_open(struct rig **out, const char *path, const struct rig_options *opts, struct error *err)
	must_check;
uint64_t rig_size_bytes(const struct rig *rig);
uint32_t rig_cluster_bytes(const struct rig *rig);

/* A request of the next queue in turn, or NULL if every queue is full: reap first. */
struct rig_request *rig_request_get(struct rig *rig);
void rig_submit(struct rig *rig, struct rig_request *req);
/* Some finished request; waits for one if @wait; NULL if none is finished, or none in flight. */
struct rig_request *rig_reap(struct rig *rig, bool wait);
void rig_request_put(struct rig *rig, struct rig_request *req);
unsigned rig_in_flight(const struct rig *rig);

/*
 * An operation on a snapshot (enum target_snapshot), while requests are in flight; for how long they were
 * held back.
 */
int rig_snapshot(struct rig *rig, int what, const char *name, uint64_t *pause_ns,
		 struct error *err) must_check;

/* Nothing may be in flight. Returns the error of the last flush; the rig is gone all the same. */
int rig_close(struct rig *rig, struct error *err);

#endif
