/* SPDX-License-Identifier: MIT */
/*
 * reclaim.h: what a crash leaked is found and given back, in the background (rule 19).
 *
 * A leak is a host cluster that is counted more often than it is referred to; mostly one that nothing refers
 * to. A crash makes them: of what was allocated and not linked yet, of what was unlinked and not lowered
 * yet, of a snapshot that was being made or deleted. After an image was not closed in order, and where nobody
 * can tell whether it was, the metadata loop looks for them, some seconds after it was started:
 *
 *	1. It reads all L2 tables, the snapshots' as well, with pauses longer than the reads, and notes what is
 *	   referred to at all (*seen*). What is counted and was not seen is lowered to nothing.
 *	2. Where clusters may have several references (snapshots, compressed clusters, a flag that is clear), it
 *	   reads the tables again and counts (*refs*), for a window of RECLAIM_WINDOW clusters at a time, and
 *	   only for windows that have a count above 1. What is counted too high is lowered to what it is.
 *	3. Entries whose cluster has one reference, and whose COPIED flag is clear, get it. Until then their
 *	   clusters were copied when they were written to.
 *
 * In a data file nothing is counted, so only the image's own tables are looked for. Bitmaps have their
 * clusters for themselves (reclaim_known.c).
 *
 * *keep* has a bit for each cluster that was counted at open. The bit is set for all metadata but L2 tables at
 * open, and for whatever changes hands meanwhile, by those who do it.
 *
 * Invariants:
 *  1. Whoever changes a refcount, and whoever unlinks a cluster, sets its bit right then. So a cluster
 *     whose bit is clear at the end is what it was at open, all the time.
 *  2. What refers to such a cluster at open refers to it on disk all the time, so that it does not matter
 *     that tables are read from disk while they change, nor in which order, nor what is cached. A table is
 *     its L1 entry's when it has been read; else the entry has another one, which is read instead. Tables of
 *     snapshots do not change; an operation on snapshots ends the search first (reclaim_end()).
 *  3. So what is counted at the end and has no bit was referred to as often at open, and is by nothing else
 *     that is durable (an open begins with a sync). What it is counted more than that nobody uses: it may be
 *     lowered at once (rule 4), also if references come or go just then.
 *  4. Flags are set only after the counts that they follow from, under the entries' lock (rule 8). In
 *     between a crash may leave them clear beside a count of 1, as during an operation on snapshots.
 *  5. In doubt nothing is reclaimed: images with anything broken, with compatible or autoclear features that
 *     are not known and may have clusters of their own, or that are too large for
 *     RECLAIM_MAX_BYTES of bits. `check --repair leaks` does those.
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
#define RECLAIM_MAX_BYTES	 ((uint64_t)64 << 20) /* of keep, and of seen */
#define RECLAIM_WINDOW_BITS	 22		      /* host clusters whose references are counted at a time */
#define RECLAIM_WINDOW		 ((uint64_t)1 << RECLAIM_WINDOW_BITS)
#define RECLAIM_WINDOWS_MAX	 (RECLAIM_MAX_BYTES * 8 >> RECLAIM_WINDOW_BITS)

/* A snapshot's L1 table. */
struct reclaim_l1 {
	uint64_t hoff, entries;
};

struct reclaim {
	uint64_t *keep; /* NULL: nothing is looked for */
	uint64_t *seen;
	uint64_t hclusters;
	struct reclaim_l1 *snapshots;
	uint32_t nr_snapshots;
	bool shared;   /* clusters may have several references */
	bool counting; /* step 2, of the window from here on: */
	uint64_t window_first;
	uint16_t *refs;				 /* up to UINT16_MAX, which may be more */
	bool windows[RECLAIM_WINDOWS_MAX];	 /* have a count above 1 */
	bool unflagged;				 /* an active entry's COPIED flag is clear */
	void *buf;				 /* an L2 table */
	void *l1_buf;				 /* a piece of a snapshot's L1 table */
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
/* Something stays counted that nothing refers to: the next open is to look for it. */
void reclaim_missed(struct qcow2_image *img);
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

/* ---- reclaim_known.c: what is known at open ---- */

/*
 * The snapshots' L1 tables, for the search; and keeps what they, the bitmaps and LUKS have. *@whole says
 * whether that is all there is; it is not where something is broken.
 */
int reclaim_known(struct qcow2_image *img, bool *whole, struct error *err) must_check;

#endif
