/* SPDX-License-Identifier: MIT */
/*
 * secret.h: memory for passphrases and keys.
 *
 * It is locked (never swapped) where the process may lock memory, left out of core dumps, and wiped when
 * it is given back. A child that fork() makes has a copy of it, left out of dumps as well, but locks are
 * not inherited: secret_relock().
 */
#ifndef BASE_SECRET_H
#define BASE_SECRET_H

#include <stddef.h>
#include <stdint.h>

/* Of a passphrase; fits into a pipe (see daemon/supervise.c). */
#define SECRET_MAX_BYTES 32768

struct secret {
	uint8_t *data;
	size_t bytes; /* in use; up to capacity, and 0 at first */
	size_t capacity;
};

/* NULL: no memory. The data is zeroed. */
struct secret *secret_create(size_t capacity);
void secret_destroy(struct secret *s); /* accepts NULL */
/* In a child. Without success it can be swapped, that is all. */
void secret_relock(const struct secret *s);

/* Nothing is in it any more. */
void secret_forget(struct secret *s);
/* Zeros, also where nobody reads them afterwards. */
void secret_wipe(void *data, size_t bytes);

/*
 * No core dumps of this process from here on, and only root reads its memory: for processes that hold
 * keys in other places than these.
 */
void secret_protect_process(void);

#endif
