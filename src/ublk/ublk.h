/* SPDX-License-Identifier: MIT */
/*
 * ublk.h: ublk devices from outside: those of other processes, and those that nobody serves any
 * more.
 */
#ifndef UBLK_UBLK_H
#define UBLK_UBLK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct ublk_device {
	unsigned id;
	unsigned queues, depth;
	pid_t server_pid;  /* <= 0: none */
	const char *state; /* "dead", "live", "quiesced", "fail-io" */
	bool served;	   /* live, and its server's process is there */
	bool unprivileged; /* it is its owner's: */
	uid_t owner_uid;
	gid_t owner_gid;
	bool recoverable;  /* nobody serves it, and it waits for somebody who does */
};

/*
 * Every ublk device of this host, whoever made it, in order of their numbers. Returns how many
 * there are, of which the first @max were written, or -errno.
 */
int ublk_devices(struct ublk_device *devices, size_t max, struct error *err) must_check;

/* What one device is; -ENODEV if there is none. */
int ublk_device_get(unsigned id, struct ublk_device *out, struct error *err) must_check;

/* Whether nobody serves a device, nor is about to. Opens its char device for a moment. */
bool ublk_device_is_orphan(const struct ublk_device *device);

/* Whether it is not served yet, but by a process that is there and has it open. */
bool ublk_device_is_starting(const struct ublk_device *device);

/*
 * Removes a device, whoever made it. A server that still runs finishes its I/O first and learns
 * that the device is gone. *@lingers: somebody has the disk open; the number is free when he lets
 * go.
 */
int ublk_device_delete(unsigned id, bool *lingers, struct error *err) must_check;

/* Whether somebody uses the block device @path; see struct frontend_ops, busy. */
int ublk_block_busy(const char *path);

#endif
