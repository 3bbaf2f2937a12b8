/* SPDX-License-Identifier: MIT */
/*
 * memory.h: a storage in memory whose completions come through the loop's io_uring, as a file's do.
 *
 * An I/O is performed when it is submitted, and completed by a no-operation on the ring. So everything
 * above the storage runs as it does over a file, and nothing depends on a file system or a disk.
 */
#ifndef TESTS_BUDGET_MEMORY_H
#define TESTS_BUDGET_MEMORY_H

#include "storage/storage.h"

/* A copy of the file at @path, which may grow a little; NULL: it could not be read. */
struct storage *memory_load(const char *path);

/* How many of each were submitted so far. */
struct memory_counts {
	uint64_t reads, writes, syncs;
};

struct memory_counts memory_counts(struct storage *st);

#endif
