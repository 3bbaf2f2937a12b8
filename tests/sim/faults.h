/* SPDX-License-Identifier: MIT */
/*
 * faults.h: errors of the disk and of the allocator, at every place in turn.
 *
 * A plan says what fails and from which I/O on (counted from when the image was open). What must
 * hold: nothing hangs; a request fails with the error injected or not at all, and none fails where
 * nothing was injected; reads keep returning what the model allows; once the fault is gone, writes
 * and reads work, and so does FLUSH, unless a sync has failed: then it never does again, nor FUA,
 * nor a close without an error (rule 6 of docs/crash-safety.md); and every crash state keeps all
 * promises. Where requests are held for want of space (target/hold.h), no request fails at all.
 */
#ifndef SIM_FAULTS_H
#define SIM_FAULTS_H

#include "explore.h"

enum fault_mode {
	FAULT_NONE,
	FAULT_ONE,   /* one I/O, whatever it is: EIO */
	FAULT_BURST, /* a number of them */
	FAULT_WRITE, /* writes, truncations, zeroing: ENOSPC, for a while */
	FAULT_READ,  /* reads: EIO, for a while */
	FAULT_SYNC,  /* syncs: EIO, for a while */
	FAULT_FULL,  /* the disk is full at some size, until all requests are done */
	FAULT_HELD,  /* as WRITE or FULL, for a while, and requests are held: none fails */
	FAULT_MODES,
};

struct fault_plan {
	enum fault_mode mode;
	uint64_t index;
};

extern const char *const fault_mode_names[FAULT_MODES];

/* "MODE:INDEX"; false if it is no plan. */
bool fault_plan_parse(struct fault_plan *plan, const char *text);

/* A whole run with a fault. False: something is wrong, which has been reported. */
bool faults_whole(struct run *r, const struct run_config *cfg, const struct fault_plan *plan,
		  const char *extra);

/* The same, and the crash states of the run. */
bool faults_explore(struct explorer *e, const struct run_config *cfg, const struct fault_plan *plan,
		    struct run *r);

/*
 * Both print what they did, and return 0, or 1 if something is wrong. @runs and @seconds bound the
 * first, whichever is reached first; it is run from @seed on.
 */
int faults_run(uint64_t seed, uint64_t runs, uint64_t seconds);
int memory_run(void);

#endif
