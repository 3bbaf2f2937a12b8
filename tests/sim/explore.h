/* SPDX-License-Identifier: MIT */
/*
 * explore.h: walks through the crash states of a finished run.
 *
 * A state is named by the time of the crash and a word: "pN" is the N-th combination of all choices
 * for all sectors, "rN" the N-th of those that a seeded strategy makes. So profile, seed, time and
 * word replay it.
 */
#ifndef SIM_EXPLORE_H
#define SIM_EXPLORE_H

#include "crash.h"
#include "verify.h"

struct explorer {
	struct verifier verifier;
	unsigned points;  /* moments to look at in a run */
	unsigned states;  /* states at each, where not all are looked at */
	uint64_t exhaust; /* up to so many, all are */
	unsigned deep_every, checker_every, qemu_every; /* 0: never */
	const char *extra; /* for the replay command: further options */

	uint64_t runs, moments, exhausted; /* exhausted: moments whose states were all looked at */
	uint64_t explored, repeated; /* states; repeated: met before in their run, not counted */
	uint64_t largest;	     /* combinations at a moment */
	uint64_t apart, encrypted;   /* of the runs: the data in a file of its own; encrypted */
	char text[600];		     /* of the failure */
};

int explorer_init(struct explorer *e);
void explorer_free(struct explorer *e);

/* False if a state is bad: it has been reported. */
bool explore_run(struct explorer *e, struct run *r);
/* Looks at one state, in full. */
bool explore_replay(struct explorer *e, struct run *r, uint64_t time, const char *word);

#endif
