/* SPDX-License-Identifier: MIT */
/*
 * inuse.h: by whom a block device is used, in words.
 */
#ifndef DAEMON_INUSE_H
#define DAEMON_INUSE_H

#include <stddef.h>

/*
 * "is mounted on /mnt", "is used as swap", "is used by dm-0"; where nothing of the kind is found, "is
 * open". Looks at the partitions as well.
 */
void inuse_describe(const char *device, char *out, size_t size);

#endif
