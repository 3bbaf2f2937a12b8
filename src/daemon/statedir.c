// SPDX-License-Identifier: MIT
/*
 * statedir.c: see statedir.h.
 */
#include "daemon/statedir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOCK_TIMEOUT_MS 30000
#define LOCK_RETRY_MS	20

static int path_choose(struct statedir *dir, struct error *err)
{
	const char *chosen = secure_getenv("UBLK_QCOW2_RUN_DIR");
	const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
	int len;

	if (chosen && *chosen)
		len = snprintf(dir->path, sizeof(dir->path), "%s", chosen);
	else if (geteuid() == 0)
		len = snprintf(dir->path, sizeof(dir->path), "/run/ublk-qcow2");
	else if (runtime && *runtime)
		len = snprintf(dir->path, sizeof(dir->path), "%s/ublk-qcow2", runtime);
	else
		len = snprintf(dir->path, sizeof(dir->path), "/tmp/ublk-qcow2-%u",
			       (unsigned)geteuid());
	/* The daemon leaves its working directory. */
	if (dir->path[0] != '/')
		return error_set(err, -EINVAL, "%s: the folder of state needs an absolute path",
				 dir->path);
	/* Room for the names that are put behind it. */
	if (len < 0 || len > (int)sizeof(dir->path) - 256)
		return error_set(err, -ENAMETOOLONG, "the path of the folder of state is too long");
	return 0;
}

int statedir_open(struct statedir *dir, bool create, struct error *err)
{
	struct stat st;
	int ret;

	dir->fd = dir->lock_fd = -1;
	ret = path_choose(dir, err);
	if (ret)
		return ret;
	if (create && mkdir(dir->path, 0700) && errno != EEXIST) {
		ret = -errno;
		return error_set(err, ret, "%s: cannot make this folder: %s", dir->path,
				 strerror(-ret));
	}
	dir->fd = open(dir->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dir->fd < 0) {
		ret = -errno;
		if (ret == -ENOENT && !create)
			return ret;
		return error_set(err, ret, "%s: cannot open this folder: %s", dir->path,
				 strerror(-ret));
	}
	if (fstat(dir->fd, &st) || st.st_uid != geteuid() || (st.st_mode & 022)) {
		statedir_close(dir);
		return error_set(
			err, -EPERM,
			"%s: this folder belongs to somebody else, or others may write to it",
			dir->path);
	}
	return 0;
}

void statedir_close(struct statedir *dir)
{
	statedir_unlock(dir);
	if (dir->fd >= 0)
		close(dir->fd);
	dir->fd = -1;
}

int statedir_lock(struct statedir *dir, struct error *err)
{
	struct timespec pause = {.tv_nsec = LOCK_RETRY_MS * 1000000L};
	int fd, ret = 0;

	fd = openat(dir->fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		ret = -errno;
		return error_set(err, ret, "%s/lock: %s", dir->path, strerror(-ret));
	}
	for (int waited_ms = 0; flock(fd, LOCK_EX | LOCK_NB); waited_ms += LOCK_RETRY_MS) {
		ret = -errno;
		if (ret == -EINTR)
			continue;
		if (ret != -EWOULDBLOCK || waited_ms >= LOCK_TIMEOUT_MS) {
			close(fd);
			return error_set(err, ret, "%s/lock: %s", dir->path,
					 ret == -EWOULDBLOCK
						 ? "another ublk-qcow2 holds it for too long"
						 : strerror(-ret));
		}
		nanosleep(&pause, NULL);
	}
	dir->lock_fd = fd;
	return 0;
}

void statedir_unlock(struct statedir *dir)
{
	if (dir->lock_fd < 0)
		return;
	/* Explicitly: a child that was forked meanwhile has the lock as well. */
	flock(dir->lock_fd, LOCK_UN);
	close(dir->lock_fd);
	dir->lock_fd = -1;
}
