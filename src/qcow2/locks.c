/* SPDX-License-Identifier: MIT */
/* locks.c: see locks.h. */
#include "qcow2/locks.h"

#include <assert.h>

void cluster_locks_init(struct cluster_locks *locks)
{
	list_init(&locks->locks);
}

static bool must_wait(const struct cluster_locks *locks, const struct cluster_lock *lock)
{
	const struct list *l;

	for (l = locks->locks.next; l != &lock->link; l = l->next) {
		const struct cluster_lock *other =
			container_of((struct list *)l, struct cluster_lock, link);

		if (other->first_gcluster <= lock->last_gcluster &&
		    lock->first_gcluster <= other->last_gcluster)
			return true;
	}
	return false;
}

void cluster_lock(struct cluster_locks *locks, struct cluster_lock *lock, uint64_t first_gcluster,
		  uint64_t last_gcluster)
{
	assert(first_gcluster <= last_gcluster);
	loop_count_lock();
	lock->first_gcluster = first_gcluster;
	lock->last_gcluster = last_gcluster;
	lock->waiter = NULL;
	list_init(&lock->link);
	list_add_tail(&locks->locks, &lock->link);
	while (must_wait(locks, lock)) {
		lock->waiter = co_self();
		co_suspend();
	}
}

void cluster_unlock(struct cluster_locks *locks, struct cluster_lock *lock)
{
	struct cluster_lock *other;
	struct list *l = lock->link.next;

	list_del(&lock->link);
	for (; l != &locks->locks; l = l->next) {
		other = list_entry(l, struct cluster_lock, link);
		if (other->waiter && !must_wait(locks, other)) {
			struct co *co = other->waiter;

			other->waiter = NULL;
			co_resume(co);
		}
	}
}

bool cluster_is_locked(const struct cluster_locks *locks, uint64_t gcluster)
{
	const struct cluster_lock *lock;

	list_for_each_entry(lock, &locks->locks, link)
	{
		if (!lock->waiter && lock->first_gcluster <= gcluster &&
		    gcluster <= lock->last_gcluster)
			return true;
	}
	return false;
}
