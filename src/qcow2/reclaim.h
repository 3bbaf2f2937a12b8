/* SPDX-License-Identifier: MIT */
/*
 * reclaim.h: what a crash leaked is found and given back, in the background (rule 19).
 *
 * A leak is a host cluster that is counted and that nothing refers to. A crash makes them: of what was
 * allocated and not linked yet, and of what was unlinked and not lowered yet. After an image was not closed
 * in order, and where nobody can tell whether it was, the metadata loop looks for them, some seconds after
 * it was started: it reads all L2 tables, with pauses longer than the reads, and then lowers what is
 * counted and was not seen.
 *
 * *keep* has a bit for each cluster that was counted at open. The bit is set for all metadata at open; for
 * what an L2 table read from disk refers to; and for whatever changes hands meanwhile, by those who do it.
 *
 * Invariants:
 *  1. Whoever changes a refcount, and whoever unlinks a cluster, sets its bit right then. So a cluster
 *     whose bit is clear at the end is what it was at open, all the time.
 *  2. What refers to such a cluster at open refers to it on disk all the time, so that it does not matter
 *     that tables are read from disk while they change, nor in which order, nor what is cached.
 *  3. So what is counted at the end and has no bit was referred to by nothing at open, is not by anything
 *     durable (an open begins with a sync), and nobody uses it: it may be lowered at once (rule 4).
 *     Counts that are too high for references that there are, as compressed clusters may leave them, stay.
 *  4. In doubt nothing is reclaimed: images with snapshots, bitmaps, a data file or anything broken, or
 *     that are too large for RECLAIM_MAX_BYTES of bits. `check --repair leaks` does those.
 *
 * Metadata loop only.
 */
#ifndef QCOW2_RECLAIM_H
#define QCOW2_RECLAIM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ring/co.h"
#include "ring/loop.h"

struct qcow2_image;

#define RECLAIM_DELAY_MS_DEFAULT 5000
#define RECLAIM_MAX_BYTES	 ((uint64_t)64 << 20)
#define RECLAIM_READ_BYTES	 ((uint64_t)64 << 10)

struct reclaim {
	uint64_t *keep; /* NULL: nothing is looked for */
	uint64_t hclusters;
	void *buf;
	uint64_t delay_ns;
	struct loop_timer timer;
	bool armed, running, stop;
	bool unclean; /* nobody says that the image was closed in order */
	bool done;    /* all of it was looked at */
	struct co_task task;
	uint64_t reclaimed;
};

/* At open: decides whether to look, before anything changes. */
int reclaim_init(struct qcow2_image *img, uint64_t delay_ms, struct error *err) must_check;
/* The end of open, when all metadata is known. */
void reclaim_ready(struct qcow2_image *img);
/* At close, when all is on disk: the image was closed in order. */
void reclaim_closed(struct qcow2_image *img);
void reclaim_destroy(struct reclaim *rc);

/* When the metadata loop has been set, and before it is given up. */
void reclaim_begin(struct qcow2_image *img);
void reclaim_end(struct qcow2_image *img);

/* Invariant 1. */
static inline void reclaim_touch(struct reclaim *rc, uint64_t hcluster, uint64_t count)
{
	for (uint64_t i = hcluster; rc->keep && i < hcluster + count && i < rc->hclusters; i++)
		rc->keep[i / 64] |= (uint64_t)1 << (i % 64);
}

#endif
