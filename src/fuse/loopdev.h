/* SPDX-License-Identifier: MIT */
/*
 * loopdev.h: loop devices.
 *
 * Everything here may block; bind, busy and detach do until the backing file has answered. They
 * must not be called by the process that serves that file (see child.h).
 */
#ifndef FUSE_LOOPDEV_H
#define FUSE_LOOPDEV_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define LOOPDEV_PATH_BYTES 32
/* A request is of 128 segments at most, which may be single pages. */
#define LOOPDEV_REQUEST_BYTES (512u << 10)

void loopdev_path(char out[LOOPDEV_PATH_BYTES], int number);

/* The number of a device that is free at the moment, made if there was none; -errno. */
int loopdev_find_free(struct error *err) must_check;

/*
 * Makes the device if need be and opens it exclusively: while the descriptor that is returned is
 * open, nobody else can configure it. -EBUSY if it is in use.
 */
int loopdev_claim(int number, struct error *err) must_check;

struct loopdev_params {
	const char *backing_path;
	uint32_t block_bytes;
	uint64_t size_bytes; /* what must come out */
	bool read_only;
	bool part_scan; /* partitions are looked for */
	uint32_t request_bytes; /* the longest request, if sysfs can be written; 0: the kernel's choice */
};

/*
 * Binds the device to the file in @backing_fd, whose name is for those who look. @claim_fd is from
 * loopdev_claim(); both stay the caller's.
 */
int loopdev_bind(int claim_fd, int number, int backing_fd, const struct loopdev_params *params,
		 struct error *err) must_check;

/*
 * Which use of a device number is meant. The kernel counts the uses of all disks (5.15 and later):
 * @seq is 0 where it does not, or when it is not known; then the path decides.
 */
struct loopdev_use {
	int number;
	uint64_t seq;
	const char *backing_path;
};

/* The count of the device's present use; 0 if there is none. Does not ask the backing file. */
uint64_t loopdev_seq(int number);

/* Whether it is bound, and for that use. Does not ask the backing file. */
bool loopdev_is_bound(const struct loopdev_use *use);

/*
 * The backing file has this size now: makes the kernel see it, and the device follow. @number -1: there
 * is no device, only the file.
 */
int loopdev_resize(int number, const char *backing_path, uint64_t size_bytes,
		   struct error *err) must_check;

/* Whether somebody has the device or a partition of it open or mounted: 1, 0, or -errno. */
int loopdev_busy(int number);

/*
 * Detaches the device if it is bound for that use; what is in its page cache is written first.
 * Somebody who has it open gets @timeout_ms to close it; then -EBUSY, and the device goes away by
 * itself when the last user closes it.
 */
int loopdev_detach(const struct loopdev_use *use, unsigned timeout_ms,
		   struct error *err) must_check;

#endif
