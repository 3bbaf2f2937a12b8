/* SPDX-License-Identifier: MIT */
/*
 * image.h: a first look at a file that is to be used as an image.
 */
#ifndef CLI_IMAGE_H
#define CLI_IMAGE_H

#include <stdbool.h>
#include <sys/stat.h>

#include "base/error.h"

/* Whether @path is a regular file or block device; *st is set. Opens nothing, so never waits. */
int image_check(const char *path, struct stat *st, struct error *err) must_check;

/*
 * Reads the start of the file and says in *qcow2 whether it is a qcow2 image's, and in *direct_works
 * whether the file can be opened for direct I/O.
 */
int image_probe(const char *path, bool *qcow2, bool *direct_works, struct error *err) must_check;

/* What a user should know of a qcow2 image before it is used; all false if it cannot be looked at. */
struct image_nature {
	bool dirty;		 /* its refcounts are to be repaired */
	bool aes;		 /* is encrypted by the old method */
	bool needs_no_passphrase; /* neither it is encrypted, nor can anything below it be */
};

struct image_nature image_look(const char *path);
/* Says of dirty bitmaps what a user should know before the image is written to. */
void image_note_bitmaps(const char *image, const char *path);

#endif
