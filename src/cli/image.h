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

/*
 * Whether @path is a qcow2 image with the dirty bit (its refcounts are to be repaired), and one that is
 * encrypted by the old AES method.
 */
void image_look(const char *path, bool *dirty, bool *aes);
/* Says of dirty bitmaps what a user should know before the image is written to. */
void image_note_bitmaps(const char *image, const char *path);

#endif
