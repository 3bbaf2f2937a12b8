/* SPDX-License-Identifier: MIT */
/*
 * lock.c: the advisory locks by which QEMU's programs keep out of each other's images.
 *
 * There are four permissions (storage.h). Bit i of them is told to others by two read locks of one
 * byte each: byte 100 + i is held by everybody who uses the permission, byte 200 + i by everybody
 * who does not let others use it. Nobody ever takes a write lock; asking whether one *could* be
 * taken shows whether somebody else holds the byte.
 *
 * Order: first publish our own bytes, then look for others'. Of two openers that collide at least
 * one sees the other (both may, and both fail). Bytes that are not needed any more are given up
 * last.
 *
 * The locks are those of the open file description (OFD), the one that the I/O uses: the kernel
 * keeps them until the description's last reference is gone, and a request in flight is such a
 * reference. So a process that is killed does not unlock a file that it may still write to.
 */
#include "storage/lock.h"

#include <assert.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "storage/storage.h"

enum {
	USED_BYTE = 100,
	UNSHARED_BYTE = 200,
	PERMS = 4,
};

/* Our own, far from QEMU's: a write lock of whoever may still write to the file. */
#define CLAIM_BYTE    STORAGE_CLAIM_BYTE
#define CLAIM_POLL_MS 10

static const char *const perm_verbs[PERMS] = {
	"read consistent data from it",
	"write to it",
	"rewrite it with the same data",
	"resize it",
};

/* F_RDLCK or F_UNLCK on one byte. */
static int lock_byte(int fd, short type, off_t byte)
{
	struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
	int ret;

	do
		ret = fcntl(fd, F_OFD_SETLK, &fl);
	while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : 0;
}

/* 1: another open file description holds the byte. */
static int byte_held(int fd, off_t byte)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

	if (fcntl(fd, F_OFD_GETLK, &fl) < 0)
		return -errno;
	return fl.l_type != F_UNLCK;
}

/* ---- who is it? ---- */

/* Whether a line of fdinfo says that the descriptor holds a lock on @byte. */
static bool fdinfo_line_locks(const char *line, off_t byte)
{
	int64_t first, last;
	char end[32];

	if (sscanf(line, "lock: %*d: %*s %*s %*s %*d %*s %" SCNd64 " %31s", &first, end) != 2)
		return false;
	last = strcmp(end, "EOF") ? strtoll(end, NULL, 10) : INT64_MAX;
	return byte >= first && byte <= last;
}

static bool descriptor_locks(const char *pid, const char *number, const struct stat *file,
			     off_t byte)
{
	char path[600], line[256];
	bool found = false;
	struct stat s;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/%s/fd/%s", pid, number);
	if (stat(path, &s) || s.st_dev != file->st_dev || s.st_ino != file->st_ino)
		return false;
	snprintf(path, sizeof(path), "/proc/%s/fdinfo/%s", pid, number);
	info = fopen(path, "re");
	if (!info)
		return false;
	while (!found && fgets(line, sizeof(line), info))
		found = fdinfo_line_locks(line, byte);
	fclose(info);
	return found;
}

static bool process_locks(const char *pid, int own_fd, const struct stat *file, off_t byte)
{
	bool found = false, self = strtol(pid, NULL, 10) == getpid();
	char path[300];
	struct dirent *e;
	DIR *fds;

	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	fds = opendir(path);
	if (!fds)
		return false;
	while (!found && (e = readdir(fds))) {
		if (!isdigit((unsigned char)e->d_name[0]) ||
		    (self && strtol(e->d_name, NULL, 10) == own_fd))
			continue;
		found = descriptor_locks(pid, e->d_name, file, byte);
	}
	closedir(fds);
	return found;
}

/*
 * The kernel does not tell whose an OFD lock is, but /proc shows the locks of each descriptor that
 * we are permitted to see. What is not found there (another user's, another host's, a killed
 * process whose I/O has not ended) is "another program".
 */
static void name_holder(int fd, off_t byte, char *text, size_t size)
{
	char path[300], comm[64] = "";
	struct dirent *e;
	struct stat file;
	FILE *f;
	DIR *proc;

	snprintf(text, size, "another program");
	proc = opendir("/proc");
	if (!proc)
		return;
	if (fstat(fd, &file)) {
		closedir(proc);
		return;
	}
	while ((e = readdir(proc))) {
		if (!isdigit((unsigned char)e->d_name[0]) ||
		    !process_locks(e->d_name, fd, &file, byte))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/comm", e->d_name);
		f = fopen(path, "re");
		if (f && fgets(comm, sizeof(comm), f))
			comm[strcspn(comm, "\n")] = '\0';
		if (f)
			fclose(f);
		snprintf(text, size, "%s (process %.20s)", comm[0] ? comm : "a program", e->d_name);
		break;
	}
	closedir(proc);
}

/* ---- taking and dropping ---- */

/* Gives up what is held and not in @perms, @unshared. */
static void lock_reduce(struct image_lock *lock, int fd, unsigned perms, unsigned unshared)
{
	for (unsigned i = 0; i < PERMS; i++) {
		unsigned bit = 1U << i;

		if (lock->perms & ~perms & bit)
			lock_byte(fd, F_UNLCK, USED_BYTE + (off_t)i);
		if (lock->unshared & ~unshared & bit)
			lock_byte(fd, F_UNLCK, UNSHARED_BYTE + (off_t)i);
	}
	lock->perms &= perms;
	lock->unshared &= unshared;
}

static int lock_take(struct image_lock *lock, int fd, unsigned perms, unsigned unshared)
{
	int ret = 0;

	for (unsigned i = 0; i < PERMS && !ret; i++) {
		unsigned bit = 1U << i;

		if (perms & ~lock->perms & bit) {
			ret = lock_byte(fd, F_RDLCK, USED_BYTE + (off_t)i);
			lock->perms |= ret ? 0 : bit;
		}
		if (!ret && (unshared & ~lock->unshared & bit)) {
			ret = lock_byte(fd, F_RDLCK, UNSHARED_BYTE + (off_t)i);
			lock->unshared |= ret ? 0 : bit;
		}
	}
	return ret;
}

static int lock_check(int fd, const char *name, unsigned perms, unsigned unshared,
		      struct error *err)
{
	char who[128];

	for (unsigned i = 0; i < PERMS; i++) {
		off_t byte = UNSHARED_BYTE + (off_t)i;
		int held = perms & (1U << i) ? byte_held(fd, byte) : 0;

		if (held < 0)
			return held;
		if (held) {
			name_holder(fd, byte, who, sizeof(who));
			return error_set(err, -EAGAIN,
					 "%s: in use by %s, which does not let others %s", name,
					 who, perm_verbs[i]);
		}
		byte = USED_BYTE + (off_t)i;
		held = unshared & (1U << i) ? byte_held(fd, byte) : 0;
		if (held < 0)
			return held;
		if (held) {
			name_holder(fd, byte, who, sizeof(who));
			return error_set(err, -EAGAIN, "%s: in use by %s, which may %s", name, who,
					 perm_verbs[i]);
		}
	}
	return 0;
}

static bool means_unsupported(int ret)
{
	return ret == -EINVAL || ret == -ENOLCK || ret == -EOPNOTSUPP || ret == -ENOSYS;
}

int image_lock_set(struct image_lock *lock, int fd, const char *name, unsigned perms,
		   unsigned shared, struct error *err)
{
	struct image_lock before = *lock;
	unsigned unshared = STORAGE_PERM_ALL & ~shared;
	bool beside = perms & STORAGE_LOCK_BESIDE;
	int ret;

	perms &= STORAGE_PERM_ALL;
	if (lock->unsupported)
		return 0;
	ret = lock_take(lock, fd, perms, unshared);
	if (!ret && !beside)
		ret = lock_check(fd, name, perms, unshared, err);
	if (!ret) {
		lock_reduce(lock, fd, perms, unshared);
		return 0;
	}
	lock_reduce(lock, fd, before.perms, before.unshared);
	if (means_unsupported(ret)) {
		lock->unsupported = true;
		log_warn("%s: the file system has no locks (%s): other programs are not kept out",
			 name, strerror(-ret));
		return 0;
	}
	if (ret == -EACCES)
		ret = -EAGAIN;
	if (ret == -EAGAIN)
		return error_set(err, ret, "%s: locked by another program", name);
	return error_set(err, ret, "%s: cannot lock it: %s", name, strerror(-ret));
}

void image_lock_drop(struct image_lock *lock, int fd)
{
	/* A claim too, held or not. */
	(void)!lock_byte(fd, F_UNLCK, CLAIM_BYTE);
	lock_reduce(lock, fd, 0, 0);
}

int image_lock_wait_claims(int fd, const char *name, unsigned timeout_ms, struct error *err)
{
	const struct timespec pause = {.tv_nsec = CLAIM_POLL_MS * 1000000L};
	int held;

	for (unsigned waited_ms = 0;; waited_ms += CLAIM_POLL_MS) {
		held = byte_held(fd, CLAIM_BYTE);
		if (held <= 0 || waited_ms >= timeout_ms)
			break;
		nanosleep(&pause, NULL);
	}
	if (held > 0)
		return error_set(err, -ETIMEDOUT,
				 "%s: another process still has I/O to it under way after %u ms", name,
				 timeout_ms);
	/* A file system without such locks: there is no telling. */
	if (!held || means_unsupported(held))
		return 0;
	return error_set(err, held, "%s: cannot ask for locks: %s", name, strerror(-held));
}

int image_lock_claim(int fd, const char *name, unsigned timeout_ms, struct error *err)
{
	const struct timespec pause = {.tv_nsec = CLAIM_POLL_MS * 1000000L};
	int ret;

	for (unsigned waited_ms = 0;; waited_ms += CLAIM_POLL_MS) {
		ret = lock_byte(fd, F_WRLCK, CLAIM_BYTE);
		if (ret != -EAGAIN && ret != -EACCES)
			break;
		if (waited_ms >= timeout_ms)
			return error_set(
				err, -ETIMEDOUT,
				"%s: another process still has I/O to it under way after %u ms",
				name, timeout_ms);
		nanosleep(&pause, NULL);
	}
	/* A file system without such locks: there is no telling. */
	if (!ret || means_unsupported(ret))
		return 0;
	return error_set(err, ret, "%s: cannot lock it: %s", name, strerror(-ret));
}
