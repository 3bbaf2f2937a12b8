/* SPDX-License-Identifier: MIT */
/*
 * memdisk.h: a storage in memory for the fuzzers.
 *
 * Outside of a loop an I/O is done when storage_submit() returns. On a (ringless) loop it waits until
 * memdisk_step() picks it, in an order that a seed decides: what is in flight together completes in
 * any order. The file cannot grow beyond a bound (ENOSPC). One thread.
 */
#ifndef TESTS_MEMDISK_H
#define TESTS_MEMDISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/storage.h"

struct memdisk;

/* A copy of @data; @max_bytes bounds the file's growth. Freed by closing the storage. */
struct storage *memdisk_create(const void *data, size_t len, uint64_t max_bytes, uint64_t seed);
/* The file as it is, what is pending left out; to be freed. */
uint8_t *memdisk_copy(const struct storage *st, size_t *len);
/* Completes one of the pending I/Os; false if there is none. */
bool memdisk_step(struct storage *st);

#endif
