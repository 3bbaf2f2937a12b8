/* SPDX-License-Identifier: MIT */
/*
 * crash.h: what a power cut may leave behind, from the record of a simulated disk.
 *
 * The model, exactly. A crash happens between two events, at time T (the first T events have
 * happened). For each sector of each file there is a chain of values: the durable one; then those
 * written by operations that have landed and are not durable, in the order of landing; then those
 * of operations that are submitted and have not landed. After the crash the sector holds any one of
 * them, whatever other sectors hold. The length of the file is such a chain as well. So of two
 * overlapping writes that are both not durable, either may be what is found, or neither; but an
 * earlier landed one is never found over a later durable one.
 *
 * An operation becomes durable
 *  - when a SYNC of its file completes with 0 that was submitted after the operation had completed,
 *    unless it is in doubt; of an operation that failed, what has landed;
 *  - a WRITE with STORAGE_DSYNC, also when it completes with 0 itself (and the length that it gave
 *    the file).
 * A SYNC (or a DSYNC write) that fails puts in doubt, when it lands, every operation on its file
 * that was submitted until then and is not durable: no sync that lands later makes it durable, also
 * one that was under way at the same time and succeeds (the kernel tells one of the two only). It
 * stays among the possible values until a later durable write covers it: a value is dropped from the
 * chain only by a durable one that landed later.
 *
 * What a killed process had submitted and was not told of counts as completed when it was killed,
 * by as much of it as has landed: a sync of the next process covers it.
 *
 * The files of a disk crash together; each persists by its own syncs.
 */
#ifndef SIM_CRASH_H
#define SIM_CRASH_H

#include "simdisk.h"
#include "simview.h"

struct crash_op {
	const struct sim_op *op;
	uint64_t entries; /* in how many chains it is; 0: of no more consequence */
	uint64_t doubt;	  /* when a failed sync put it in doubt; SIM_NEVER: none has */
	uint8_t percent;  /* for crash_state_random(): the chance of each of its sectors to be there
			  */
};

struct crash_entry {
	struct crash_op *op;
	const uint8_t *value; /* of a sector */
	uint64_t size_bytes;  /* of a length */
	uint64_t land;
};

struct crash_chain {
	vec(struct crash_entry) e;
	bool listed; /* on the file's list of sectors with a chain */
};

struct crash_file {
	struct sim_map base; /* what is durable */
	struct crash_chain *chains;
	uint64_t n;
	struct crash_chain length;
	vec(uint64_t) sectors; /* those that have more than one possible value, in no order */
	struct simview view;   /* over base */
};

struct crash {
	const struct simdisk *disk;
	uint64_t time;
	struct crash_file *files;
	vec(struct crash_op *) ops; /* not durable, in order of submission */
	struct arena arena;
	uint64_t dropped; /* sectors that became durable; for figures */
};

struct crash *crash_create(const struct simdisk *d);
void crash_destroy(struct crash *c);

/* To a later moment (or the same one); at most the end of the record. No state is being looked at.
 */
void crash_advance(struct crash *c, uint64_t time);

/*
 * How many states there are by the choice for each sector (and length); UINT64_MAX: at least that.
 */
uint64_t crash_state_count(const struct crash *c);
/* Puts state @index of crash_state_count() into the files' views. */
void crash_state_pick(struct crash *c, uint64_t index);
/* Puts a random state into the views, by the operations' percent. */
void crash_state_random(struct crash *c, struct rng *r);
/* Takes the state, and whatever was written to the views, back. */
void crash_state_drop(struct crash *c);

#endif
