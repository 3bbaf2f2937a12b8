/* SPDX-License-Identifier: MIT */
/*
 * rundir.c: the folder of a device, RUN_DIR/fuse/ID/:
 *
 *	.state	"loop N use COUNT", once they are known. Its lock is held by the daemon for as long
 *		as it lives, in whatever way it ends.
 *	NAME	an empty file; the FUSE file is mounted on it. Names with a leading dot are changed.
 *
 * RUN_DIR/fuse/.lock is held while a folder is made or removed: so nobody takes a folder that is
 * half made for one that was left by a daemon that died.
 *
 * Only the owner may write there; a folder that belongs to somebody else is refused, since RUN_DIR
 * of an ordinary user may lie under /tmp.
 */
#include "fuse/rundir.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/math.h"
#include "fuse/fuse.h"
#include "fuse/loopdev.h"
#include "fuse/name.h"

enum {
	LOCK_WAIT_MS = 20000,
	ORPHAN_DETACH_MS = 1000,
	ORPHAN_OWNER_MS = 5000,
	UNMOUNT_WAIT_MS = 5000,
	POLL_MS = 20,
};

static void sleep_ms(unsigned ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&ts, NULL);
}

__attribute__((format(printf, 3, 4))) static int path_format(char out[PATH_MAX], struct error *err,
							     const char *fmt, ...)
{
	va_list ap;
	int len;

	va_start(ap, fmt);
	len = vsnprintf(out, PATH_MAX, fmt, ap);
	va_end(ap);
	return len < 0 || len >= PATH_MAX ? error_set(err, -ENAMETOOLONG, "the path is too long")
					  : 0;
}

/* ---- unmounting ---- */

/* fusermount3 is set-uid: it is what lets an ordinary user take his own mount away. */
static int fusermount_detach(const char *path)
{
	char *argv[] = {"fusermount3", "-u", "-z", "-q", "--", (char *)path, NULL};
	extern char **environ;
	posix_spawn_file_actions_t actions;
	pid_t pid;
	int ret, status;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
	ret = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (ret)
		return -ret;
	for (unsigned ms = 0; ms < UNMOUNT_WAIT_MS; ms += POLL_MS) {
		pid_t got = waitpid(pid, &status, WNOHANG);

		if (got == pid)
			return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EPERM;
		if (got < 0)
			return 0; /* somebody else waits for all children: the mount table tells */
		sleep_ms(POLL_MS);
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return -ETIMEDOUT;
}

/* The kernel's list of mounts writes blanks and backslashes in octal. */
static void octal_decode(char *s)
{
	char *to = s;

	while (*s) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' &&
		    s[3] >= '0' && s[3] <= '7') {
			*to++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 4;
		} else {
			*to++ = *s++;
		}
	}
	*to = '\0';
}

static bool is_mounted(const char *path)
{
	FILE *file = fopen("/proc/self/mountinfo", "re");
	bool found = false;
	char *line = NULL;
	size_t size = 0;

	if (!file)
		return false;
	/* ID PARENT MAJOR:MINOR ROOT MOUNTPOINT ... */
	while (!found && getline(&line, &size, file) > 0) {
		char *save = NULL, *field = strtok_r(line, " ", &save);

		for (int i = 0; i < 4 && field; i++)
			field = strtok_r(NULL, " ", &save);
		if (field) {
			octal_decode(field);
			found = strcmp(field, path) == 0;
		}
	}
	free(line);
	fclose(file);
	return found;
}

int mount_detach(const char *path, struct error *err)
{
	int ret = 0;

	if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		return 0;
	if (errno == EINVAL || errno == ENOENT)
		return 0;
	if (errno == EPERM && is_mounted(path))
		ret = fusermount_detach(path);
	else if (errno != EPERM)
		ret = -errno;
	if (ret && !is_mounted(path))
		ret = 0;
	return ret ? error_set(err, ret, "%s cannot be unmounted: %s", path, strerror(-ret)) : 0;
}

/* ---- the folder ---- */

static int dir_make_own(const char *path, struct error *err)
{
	struct stat st;

	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (lstat(path, &st) < 0)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid())
		return error_set(err, -EPERM, "%s belongs to somebody else", path);
	return 0;
}

/* The lock on all of RUN_DIR/fuse, which is @top_fd; the descriptor, or -errno. */
static int top_lock(int top_fd, const char *top, struct error *err)
{
	int fd = openat(top_fd, ".lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600), ret;

	if (fd < 0)
		return error_set(err, -errno, "%s/.lock: %s", top, strerror(errno));
	for (unsigned ms = 0; flock(fd, LOCK_EX | LOCK_NB); ms += POLL_MS) {
		if (errno != EWOULDBLOCK || ms >= LOCK_WAIT_MS) {
			ret = error_set(err, -errno, "%s/.lock: %s", top, strerror(errno));
			close(fd);
			return ret;
		}
		sleep_ms(POLL_MS);
	}
	return fd;
}

static int folder_open(int at_fd, const char *name)
{
	int fd = openat(at_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	return fd < 0 ? -errno : fd;
}

/* Opens the state of the folder and locks it; -EBUSY if somebody has the lock. */
static int state_lock(const struct rundir *r, int flags, struct error *err)
{
	int fd = openat(r->dir_fd, ".state", O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600), ret;

	if (fd < 0)
		return error_set(err, -errno, "%s/.state: %s", r->dir, strerror(errno));
	if (flock(fd, LOCK_EX | LOCK_NB)) {
		ret = errno == EWOULDBLOCK ? -EBUSY : -errno;
		close(fd);
		return error_set(err, ret, "%s/.state: %s", r->dir, strerror(-ret));
	}
	return fd;
}

static const char *last_of(const char *path)
{
	return strrchr(path, '/') + 1;
}

static void fds_close(struct rundir *r)
{
	int *fds[] = {&r->state_fd, &r->dir_fd, &r->top_fd};

	for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
}

static void release_locked(struct rundir *r)
{
	if (r->file[0])
		unlinkat(r->dir_fd, last_of(r->file), 0);
	r->file[0] = '\0';
	if (r->dir[0]) {
		unlinkat(r->dir_fd, ".state", 0);
		unlinkat(r->top_fd, last_of(r->dir), AT_REMOVEDIR);
	}
	r->dir[0] = '\0';
}

static int dir_make(struct rundir *r, struct error *err)
{
	const char *name = last_of(r->dir);
	int ret;

	if (mkdirat(r->top_fd, name, 0755) < 0) {
		ret = errno == EEXIST ? error_set(err, -EEXIST, "number %d is taken (%s exists)", r->id,
						  r->dir)
				      : error_set(err, -errno, "%s: %s", r->dir, strerror(errno));
		r->dir[0] = '\0';
		return ret;
	}
	r->dir_fd = folder_open(r->top_fd, name);
	if (r->dir_fd < 0)
		return error_set(err, r->dir_fd, "%s: %s", r->dir, strerror(-r->dir_fd));
	r->state_fd = state_lock(r, O_CREAT | O_EXCL, err);
	return min_of(r->state_fd, 0);
}

int rundir_take(struct rundir *r, const char *run_dir, int id, struct error *err)
{
	char real[PATH_MAX];
	int lock = -1, ret;

	*r = RUNDIR_INIT;
	r->id = id;
	/* the list of mounts has it without symbolic links */
	if (!realpath(run_dir, real))
		return error_set(err, -errno, "%s: %s", run_dir, strerror(errno));
	ret = path_format(r->top, err, "%s/fuse", real);
	if (ret == 0)
		ret = dir_make_own(r->top, err);
	if (ret == 0)
		ret = path_format(r->dir, err, "%s/%d", r->top, id);
	if (ret)
		return ret;
	r->top_fd = folder_open(AT_FDCWD, r->top);
	if (r->top_fd < 0)
		ret = error_set(err, r->top_fd, "%s: %s", r->top, strerror(-r->top_fd));
	else
		ret = lock = top_lock(r->top_fd, r->top, err);
	if (lock >= 0)
		ret = dir_make(r, err);
	else
		r->dir[0] = '\0';
	if (ret) {
		release_locked(r);
		fds_close(r);
	}
	if (lock >= 0)
		close(lock);
	return ret;
}

int rundir_add_file(struct rundir *r, const char *name, struct error *err)
{
	char safe[FUSE_NAME_BYTES];
	int fd, ret;

	fuse_name_sanitize(safe, name);
	ret = path_format(r->file, err, "%s/%s", r->dir, safe);
	if (ret) {
		r->file[0] = '\0';
		return ret;
	}
	fd = openat(r->dir_fd, safe, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0) {
		ret = error_set(err, -errno, "%s: %s", r->file, strerror(errno));
		r->file[0] = '\0';
		return ret;
	}
	close(fd);
	return 0;
}

int rundir_record(struct rundir *r, int loop_number, uint64_t loop_seq, struct error *err)
{
	char text[64];
	int len = snprintf(text, sizeof(text), "loop %d use %llu\n", loop_number,
			   (unsigned long long)loop_seq);

	if (pwrite(r->state_fd, text, (size_t)len, 0) != len)
		return error_set(err, -EIO, "%s/.state cannot be written", r->dir);
	return 0;
}

void rundir_release(struct rundir *r)
{
	int lock = r->dir[0] ? top_lock(r->top_fd, r->top, NULL) : -1;

	release_locked(r);
	fds_close(r);
	if (lock >= 0)
		close(lock);
}

void rundir_leave(struct rundir *r)
{
	fds_close(r);
}

int rundir_open_file(const char *run_dir, int id, const char *name, int flags)
{
	struct open_how how = {
		.flags = (uint64_t)(flags | O_CLOEXEC | O_NOFOLLOW),
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	char path[PATH_MAX];
	int top = open(run_dir, O_PATH | O_DIRECTORY | O_CLOEXEC), ret;

	if (top < 0)
		return -errno;
	snprintf(path, sizeof(path), "fuse/%d%s%s", id, name ? "/" : "", name ? name : "");
	ret = (int)syscall(SYS_openat2, top, path, &how, sizeof(how));
	if (ret < 0)
		ret = -errno;
	close(top);
	return ret;
}

/* ---- what was left behind ---- */

static int top_find(char top[PATH_MAX], const char *run_dir)
{
	char real[PATH_MAX];

	return realpath(run_dir, real) ? path_format(top, NULL, "%s/fuse", real) : -errno;
}

static int top_lock_at(const char *top, struct error *err)
{
	int fd = folder_open(AT_FDCWD, top), lock;

	if (fd < 0)
		return error_set(err, fd, "%s: %s", top, strerror(-fd));
	lock = top_lock(fd, top, err);
	close(fd);
	return lock;
}

struct leftover {
	struct rundir r;
	struct loopdev_use use; /* number -1: no loop device */
};

/* The one file that is not ours by name is the one that was mounted on. */
static int leftover_find_file(struct leftover *l)
{
	struct dirent *de;
	DIR *dir = opendir(l->r.dir);
	int ret = 0;

	if (!dir)
		return -errno;
	while ((de = readdir(dir))) {
		if (de->d_name[0] != '.')
			ret = path_format(l->r.file, NULL, "%s/%s", l->r.dir, de->d_name);
	}
	closedir(dir);
	return ret;
}

/* Under the top lock. 1: a living process has it; 0: it was left, and is ours now. */
static int leftover_open(struct leftover *l, const char *top, int id, struct error *err)
{
	unsigned long long seq;
	char text[64] = {0};
	int ret;

	*l = (struct leftover){.use = {.number = -1}, .r = RUNDIR_INIT};
	l->r.id = id;
	ret = path_format(l->r.dir, err, "%s/%d", top, id);
	if (ret)
		return ret;
	l->r.top_fd = folder_open(AT_FDCWD, top);
	l->r.dir_fd = l->r.top_fd < 0 ? l->r.top_fd : folder_open(l->r.top_fd, last_of(l->r.dir));
	if (l->r.dir_fd < 0)
		return error_set(err, l->r.dir_fd, "%s: %s", l->r.dir, strerror(-l->r.dir_fd));
	l->r.state_fd = state_lock(&l->r, O_CREAT, NULL);
	if (l->r.state_fd == -EBUSY)
		return 1;
	if (l->r.state_fd < 0)
		return error_set(err, l->r.state_fd, "%s: %s", l->r.dir, strerror(-l->r.state_fd));
	if (pread(l->r.state_fd, text, sizeof(text) - 1, 0) > 0 &&
	    sscanf(text, "loop %d use %llu", &l->use.number, &seq) == 2)
		l->use.seq = seq;
	else
		l->use.number = -1;
	l->use.backing_path = l->r.file;
	ret = leftover_find_file(l);
	return ret ? error_set(err, ret, "%s: %s", l->r.dir, strerror(-ret)) : 0;
}

int fuse_orphan_remove(const char *run_dir, int id, struct error *err)
{
	char top[PATH_MAX], path[PATH_MAX];
	struct leftover l;
	struct stat st;
	int lock, ret, busy = 0;

	if (top_find(top, run_dir) || path_format(path, NULL, "%s/%d", top, id) ||
	    stat(path, &st) < 0)
		return error_set(err, -ENOENT, "there is no device %d", id);
	lock = top_lock_at(top, err);
	if (lock < 0)
		return lock;
	/* A process that was killed holds its lock until its last thread and its ring have ended. */
	for (unsigned ms = 0; (ret = leftover_open(&l, top, id, err)) == 1 && ms < ORPHAN_OWNER_MS;
	     ms += POLL_MS) {
		fds_close(&l.r);
		sleep_ms(POLL_MS);
	}
	if (ret) {
		close(lock);
		fds_close(&l.r);
		return ret < 0 ? ret
			       : error_set(err, -EBUSY, "device %d belongs to a running process",
					   id);
	}
	if (l.use.number >= 0)
		busy = loopdev_detach(&l.use, ORPHAN_DETACH_MS, err);
	if (l.r.file[0])
		ret = mount_detach(l.r.file, err);
	if (!ret)
		release_locked(&l.r);
	fds_close(&l.r);
	close(lock);
	return ret ? ret : busy;
}

static int orphan_report(const char *top, int id,
			 int (*fn)(const struct fuse_orphan *orphan, void *arg), void *arg,
			 struct error *err)
{
	struct fuse_orphan orphan = {.id = id};
	struct leftover l;
	int ret = leftover_open(&l, top, id, err);

	if (ret) {
		fds_close(&l.r);
		return min_of(ret, 0);
	}
	if (l.use.number >= 0) {
		loopdev_path(orphan.device, l.use.number);
		if (loopdev_is_bound(&l.use))
			orphan.busy = loopdev_busy(l.use.number);
	} else {
		snprintf(orphan.device, sizeof(orphan.device), "%s", l.r.file);
	}
	fds_close(&l.r);
	return fn(&orphan, arg);
}

int fuse_orphans_each(const char *run_dir, int (*fn)(const struct fuse_orphan *orphan, void *arg),
		      void *arg, struct error *err)
{
	char top[PATH_MAX];
	struct dirent *de;
	int lock, ret = 0;
	DIR *dir;

	if (top_find(top, run_dir))
		return 0;
	dir = opendir(top);
	if (!dir)
		return errno == ENOENT ? 0 : error_set(err, -errno, "%s: %s", top, strerror(errno));
	lock = top_lock_at(top, err);
	if (lock < 0) {
		closedir(dir);
		return lock;
	}
	while (ret == 0 && (de = readdir(dir))) {
		if (isdigit((unsigned char)de->d_name[0]))
			ret = orphan_report(top, atoi(de->d_name), fn, arg, err);
	}
	close(lock);
	closedir(dir);
	return ret;
}
