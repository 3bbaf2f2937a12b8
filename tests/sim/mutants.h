/* SPDX-License-Identifier: MIT */
/*
 * mutants.h: the engine's rules that can be broken on purpose (src/qcow2/mutant.h), by name.
 */
#ifndef SIM_MUTANTS_H
#define SIM_MUTANTS_H

#include <stdint.h>

/* One more than there are; number 0 is none. 1 where the engine was built without them. */
int mutant_count(void);
const char *mutant_name(int mutant);
int mutant_find(const char *name); /* 0: none */
uint64_t mutant_first_seed(
	int mutant); /* to look for it from: 1, but for one that is rare among the first */
void mutant_set(int mutant);

#endif
