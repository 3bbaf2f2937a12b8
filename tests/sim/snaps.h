/* SPDX-License-Identifier: MIT */
/*
 * snaps.h: the snapshots of a run: which there may be at what time, and what they hold.
 *
 * An operation runs on the metadata loop while requests go on. What a snapshot holds is read from the
 * simulated disk when it was made: it is checked as a read of the whole disk that began and ended with
 * the operation, and from then on every state has to have exactly that in it. Going back to one is, in
 * the model, a durable write of it all.
 */
#ifndef SIM_SNAPS_H
#define SIM_SNAPS_H

#include "base/blk.h"
#include "base/error.h"
#include "simview.h"

#define SNAPS_MAX 8

struct run;
struct verifier;

enum snap_op { SNAP_CREATE, SNAP_APPLY, SNAP_DELETE };

struct snap {
	char name[8];
	uint32_t *values;		    /* of each sector; NULL: never known */
	uint64_t made_submit, made_done;    /* SIM_NEVER: not yet, or it failed */
	uint64_t gone_submit, gone_done;
	uint64_t doubt_from, doubt_to;	    /* an operation was killed: there or not; SIM_NEVER: none */
	bool given;			    /* it was there when the run began */
};

struct snaps {
	struct snap at[SNAPS_MAX];
	unsigned n;
	/* of operations but apply, while flags may be clear: [from, to] */
	uint64_t flags_from[SNAPS_MAX * 2], flags_to[SNAPS_MAX * 2];
	unsigned nflags;
	bool flags_given; /* they were clear when the run began */
	/* the one under way */
	bool busy;
	enum snap_op op;
	unsigned which;
	uint32_t number;    /* of an apply; and when that began: */
	uint64_t l1_before; /* where the L1 table was */
	unsigned kills;	    /* the run's */
	bool switched;	    /* it has its effect */
	uint64_t submit, done; /* done: SIM_NEVER until it is over, and then looked at */
	int ret;
	struct error err;
};

void snaps_free(struct snaps *s);
/* Begins some operation; false if there is none to begin. It is over when snaps_idle() says so. */
bool snaps_begin(struct run *r);
bool snaps_idle(struct run *r);
/*
 * Whether the next request is one for a small range, in sectors, in one of two clusters: writes there meet each
 * other, in place and copying, while snapshots are made.
 */
bool snaps_spot(struct run *r, enum blk_op *op, uint64_t *sector, uint64_t *sectors);
/* Outside of any loop, soon after it: looks at what it did. */
void snaps_settle(struct run *r);
/* After a kill, and the recovery: what became of the operation that was under way. */
void snaps_recovered(struct run *r);

/* The snapshots of @first that are in @view, a state of its disk, are there when the next run begins. */
bool snaps_inherit(struct snaps *s, struct run *first, struct simview *view, char *text, size_t len);

/* Whether a state of a crash at @time may have flags clear that could be set. */
bool snaps_flags_allowed(const struct run *r, uint64_t time);
/* Whether the snapshots in @view are those that there may be, with what they have to hold. */
bool snaps_check(struct verifier *v, struct run *r, struct simview *view, uint64_t time, char *text,
		 size_t len);

#endif
