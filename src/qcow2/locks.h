/* SPDX-License-Identifier: MIT */
/*
 * locks.h: exclusive locks on ranges of guest clusters (rule 8). Metadata loop only.
 *
 * Granted in the order of asking: a lock waits for every earlier one that it overlaps, held or
 * waiting. A coroutine holds at most one, so that there is no cycle.
 */
#ifndef QCOW2_LOCKS_H
#define QCOW2_LOCKS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "ring/co.h"

struct cluster_locks {
	struct list locks; /* in the order of asking */
};

struct cluster_lock {
	struct list link;
	uint64_t first_gcluster, last_gcluster;
	struct co *waiter; /* NULL: granted */
};

void cluster_locks_init(struct cluster_locks *locks);
void cluster_lock(struct cluster_locks *locks, struct cluster_lock *lock, uint64_t first_gcluster,
		  uint64_t last_gcluster);
void cluster_unlock(struct cluster_locks *locks, struct cluster_lock *lock);
/* Whether somebody holds a lock on @gcluster. */
bool cluster_is_locked(const struct cluster_locks *locks, uint64_t gcluster);

#endif
