/* SPDX-License-Identifier: MIT */
/*
 * name.h: from the name of an image to the name of the file that shows its contents.
 */
#ifndef FUSE_NAME_H
#define FUSE_NAME_H

/* With the NUL; well under NAME_MAX, so that the file system below takes it. */
#define FUSE_NAME_BYTES 129

/*
 * The name may be anything at all. The outcome is not empty, begins with neither '.' nor '-', has
 * no
 * '/', backslash or control character, is at most FUSE_NAME_BYTES - 1 long and not cut inside a
 * UTF-8 sequence. NULL and the empty name give "image".
 */
void fuse_name_sanitize(char out[FUSE_NAME_BYTES], const char *name);

#endif
