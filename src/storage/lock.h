/* SPDX-License-Identifier: MIT */
/*
 * lock.h: QEMU's image locks on a file descriptor; private to src/storage.
 */
#ifndef STORAGE_LOCK_H
#define STORAGE_LOCK_H

#include <stdbool.h>

#include "base/error.h"

/* What one open file description holds; zero: nothing. */
struct image_lock {
	unsigned perms;	   /* in use: byte 100 + i for bit i */
	unsigned unshared; /* not let to others: byte 200 + i for bit i */
	bool unsupported;  /* the file system has no such locks; was said once */
};

/*
 * Takes @perms and denies others what is not in @shared, in place of what @lock held. On conflict
 * -EAGAIN, and @lock holds what it held before. With STORAGE_LOCK_BESIDE in @perms there is no conflict:
 * read locks of several processes go together, and who holds the same ones has looked for others.
 */
int image_lock_set(struct image_lock *lock, int fd, const char *name, unsigned perms,
		   unsigned shared, struct error *err) must_check;
/*
 * Waits, @timeout_ms at most, until no other open file description has claimed the file, and claims
 * it for this one (open for writing), until its last reference is gone. -ETIMEDOUT.
 */
int image_lock_claim(int fd, const char *name, unsigned timeout_ms, struct error *err) must_check;
/* The same wait, without claiming anything. */
int image_lock_wait_claims(int fd, const char *name, unsigned timeout_ms, struct error *err) must_check;
void image_lock_drop(struct image_lock *lock, int fd);

#endif
