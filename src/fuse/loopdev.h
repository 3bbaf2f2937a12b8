/* SPDX-License-Identifier: MIT */
/*
 * loopdev.h: loop devices. Everything here blocks, some of it until the backing file has answered:
 * never on a thread that serves that file.
 */
#ifndef FUSE_LOOPDEV_H
#define FUSE_LOOPDEV_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define LOOPDEV_PATH_BYTES 32

void loopdev_path(char out[LOOPDEV_PATH_BYTES], int number);

/* The number of a device that is free at the moment, made if there was none; -errno. */
int loopdev_find_free(struct error *err) must_check;

/*
 * Makes the device if need be and opens it exclusively: while the descriptor that is returned is
 * open, nobody else can configure it. -EBUSY if it is in use.
 */
int loopdev_claim(int number, struct error *err) must_check;

struct loopdev_params {
	int backing_fd;
	const char *backing_path; /* for those who list loop devices */
	uint32_t block_bytes;
	uint64_t size_bytes; /* what must come out */
	bool read_only;
};

/* @claim_fd is from loopdev_claim(), and stays the caller's to close. */
int loopdev_bind(int claim_fd, int number, const struct loopdev_params *params,
		 struct error *err) must_check;

/*
 * Whether the device is bound to the root of the FUSE file system with device number @dev. One
 * that was bound to something else in the meantime is not ours to touch.
 */
bool loopdev_is_bound(int number, dev_t dev);

/* Whether somebody has the device or a partition of it open or mounted: 1, 0, or -errno. */
int loopdev_busy(int number);

/*
 * Detaches the device if it is bound to @dev; what is in its page cache is written first. Somebody
 * who has it open gets @timeout_ms to close it; then -EBUSY, and the device goes away by itself
 * when the last user closes it.
 */
int loopdev_detach(int number, dev_t dev, unsigned timeout_ms, struct error *err) must_check;

#endif
