/* SPDX-License-Identifier: MIT */
/*
 * hints.c: see hints.h.
 *
 * Both are inode flags that a file system takes only while a file has no data.
 */
#include "cli/hints.h"

#include <errno.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "storage/storage.h"

static int nocow_set(int fd)
{
	int flags;

	if (ioctl(fd, FS_IOC_GETFLAGS, &flags))
		return -errno;
	flags |= FS_NOCOW_FL;
	return ioctl(fd, FS_IOC_SETFLAGS, &flags) ? -errno : 0;
}

static int extent_size_set(int fd, uint32_t bytes)
{
	struct fsxattr attr;

	if (ioctl(fd, FS_IOC_FSGETXATTR, &attr))
		return -errno;
	attr.fsx_xflags |= FS_XFLAG_EXTSIZE;
	attr.fsx_extsize = bytes;
	return ioctl(fd, FS_IOC_FSSETXATTR, &attr) ? -errno : 0;
}

void file_hints_apply(const struct storage *st, const struct file_hints *hints)
{
	int fd = storage_file_fd(st), ret;
	struct stat s;

	if (fstat(fd, &s) || !S_ISREG(s.st_mode) || s.st_size)
		return;
	ret = hints->nocow ? nocow_set(fd) : 0;
	if (ret)
		cli_note(st->name, "nocow has no effect here: %s", strerror(-ret));
	ret = hints->extent_size_bytes ? extent_size_set(fd, hints->extent_size_bytes) : 0;
	if (ret && hints->extent_size_given)
		cli_note(st->name, "extent_size_hint has no effect here: %s", strerror(-ret));
}
