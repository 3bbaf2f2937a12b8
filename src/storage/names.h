/* SPDX-License-Identifier: MIT */
/*
 * names.h: opening the files that an image names: its backing file, its external data file.
 *
 * Whoever made the image chose the name, so it may lead anywhere: to /etc/shadow, to a device, to
 * another tenant's disk. What may be opened is what the user allowed, and nothing else is touched:
 *
 *  1. A name is a path. "json:..." and "protocol:..." are refused (unless the name is a plain path by
 *     definition, as a data file's is).
 *  2. A relative name starts in the folder of the image that names it; where the image was itself reached by
 *     a name that is a symbolic link, in the folder of the link, as QEMU has it. That says where to look
 *     only: rule 3 goes by where the image really is, and, for a link that the user gave, by its folder too.
 *  3. Where the name really leads, all symbolic links and ".." followed, must be in that folder or
 *     below, or in one of the policy's folders or below; policy.any lifts that.
 *  4. What is opened is what was examined: the way from the allowed folder down is walked without
 *     following links, so that changing the tree meanwhile leads to an error and never outside.
 *  5. It is a regular file. A block device is opened where the user named a folder above it, or set
 *     any; that an image lies in /dev itself allows no other device.
 *  6. Nothing else (FIFO, socket, character device) is ever opened, not even to look at it.
 */
#ifndef STORAGE_NAMES_H
#define STORAGE_NAMES_H

#include <stdbool.h>

#include "base/error.h"

struct storage;

#define NAMES_DIRS_MAX 16

/* What the user allows; all zero: the folder of the naming image, and below. */
struct names_policy {
	bool any;
	unsigned nr_dirs;
	const char *dirs[NAMES_DIRS_MAX]; /* absolute */
	/* The absolute name that the user gave for the image, where it is a symbolic link; or NULL. */
	const char *image_as;
	/* "raw" or "qcow2", where an image does not say its backing file's format; NULL: that is refused */
	const char *backing_format;
	/*
	 * Instead of all the rules above, for images that are not in a file system (tests): @name is the
	 * image's. *@path_out as of names_open().
	 */
	int (*open)(void *arg, struct storage **out, char **path_out, const char *name, bool read_only,
		    struct error *err);
	void *arg;
};

struct names_options {
	const char *what; /* "backing file": for messages */
	bool plain;	  /* the name is a path, whatever it looks like */
	bool top;	  /* the naming image is the one that the user gave: policy.image_as is its name */
	bool read_only;
	bool direct;
	/* If not, the name that it was reached by, if it may be a link; NULL: @image_path. */
	const char *reached_as;
	/* NULL, or where to put the same of what is opened, for the caller to free. */
	char **reached_out;
};

/*
 * Opens what the image at @image_path calls @name. *@path_out (may be NULL) is where that really is,
 * absolute, for the caller to free: it is the @image_path of what that file names in turn. -EPERM: the
 * policy does not allow it. A NULL @policy is the default one. Outside of any loop.
 */
int names_open(struct storage **out, char **path_out, const char *image_path, const char *name,
	       const struct names_policy *policy, const struct names_options *opts,
	       struct error *err) must_check;

/* The folder part of @path, with its slash, "./" for a bare name; the caller's to free. NULL without memory. */
char *names_folder(const char *path);

/* Whether QEMU takes @name for "protocol:rest" and not for a path. */
bool names_has_protocol(const char *name);

#endif
