/* SPDX-License-Identifier: MIT */
/*
 * second.h: a run that begins where the power was cut in another one: with what a crash has left of an
 * image, leaks and all. For some, the dirty bit is set and refcounts are wrong (as a program with lazy
 * refcounts leaves them), so that opening repairs; and then the power may be cut again at any moment,
 * that of the repair included.
 */
#ifndef SIM_SECOND_H
#define SIM_SECOND_H

#include "explore.h"

/*
 * The run that follows a crash of @first, which must stay until this one is freed. False: something is
 * wrong, which has been reported. @origin is for second_free().
 */
bool second_whole(struct run *r, struct run_origin *origin, struct verifier *v, struct run *first,
		  const char *extra);
void second_free(struct run_origin *origin);

/* The same, and its crash states. */
bool second_explore(struct explorer *e, struct run *first);

#endif
