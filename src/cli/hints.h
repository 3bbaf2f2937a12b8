/* SPDX-License-Identifier: MIT */
/*
 * hints.h: how a file system is asked to lay out a file that is being made.
 */
#ifndef CLI_HINTS_H
#define CLI_HINTS_H

#include <stdbool.h>
#include <stdint.h>

struct storage;

struct file_hints {
	bool nocow;			 /* no copy-on-write: btrfs */
	bool extent_size_given;		 /* somebody asked for it */
	uint32_t extent_size_bytes;	 /* allocate in pieces of this: XFS; 0: as the file system likes */
};

/* QEMU's default: a sparse image that is filled in random order would else fall into tiny extents. */
#define FILE_HINTS_EXTENT_BYTES (1u << 20)

/*
 * Of a regular file that is still empty; of anything else nothing is asked. A file system that does not have
 * it is no error; one that refuses what was given gets a note on standard error, as qemu-img does.
 */
void file_hints_apply(const struct storage *st, const struct file_hints *hints);

#endif
