/* SPDX-License-Identifier: MIT */
/*
 * host.c: see host.h.
 *
 * Each call is a struct message; work() does what it says, in this process or in the helper. What may wait for the
 * file is done by a child in either (child.h): the helper serves nothing, but it has to go on answering.
 *
 * Invariants of the helper, which may be asked by somebody who has taken over the daemon:
 *  1. It mounts once: on an empty file below RUN_DIR/fuse/ID that belongs to it, where no symbolic link leads,
 *     what comes from the descriptor of /dev/fuse that it was sent, with options of its own.
 *  2. It makes one loop device, of that file, and unmounts and detaches nothing else.
 */
#include "fuse/host.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"
#include "fuse/loopdev.h"
#include "fuse/name.h"
#include "fuse/rundir.h"
#include "fuse/session.h"
#include "target/helper.h"

enum {
	QUICK_MS = 20000,      /* for what waits for nobody but the kernel */
	BIND_MS = 60000,       /* for the loop device to be made, partitions read */
	BUSY_MS = 10000,       /* to find out who uses it */
	RESIZE_MS = 30000,     /* for the kernel to take in another size */
	DETACH_MS = 5000,      /* for users of the loop device to close it */
	WRITE_BACK_MS = 60000, /* for its page cache to be written before */
	ANSWER_MS = 5000,      /* more, for the helper's answer to that */
};

enum message_op { OP_MOUNT, OP_UNMOUNT, OP_FIND_FREE, OP_CLAIM, OP_UNCLAIM, OP_BIND, OP_BOUND, OP_BUSY,
		  OP_RESIZE, OP_DETACH };

struct message {
	uint32_t op;
	int32_t id;
	uint64_t seq, size_bytes;
	uint32_t block_bytes, request_bytes;
	bool with_loop, read_only, part_scan, allow_other, force;
	char name[FUSE_NAME_BYTES];
	char text[1024]; /* the answer: what is wrong */
};

static_assert(sizeof(struct message) <= HELPER_BYTES, "a question");

/* What a child of one of them gets. */
struct call {
	const char *run_dir;
	const struct message *m;
	int claim_fd;
	char path[PATH_MAX]; /* of the file */
};

static void path_make(char path[PATH_MAX], const char *run_dir, const struct message *m)
{
	char real[PATH_MAX];

	/* what is too long has been refused when the folder was made */
	if (!realpath(run_dir, real) ||
	    snprintf(path, PATH_MAX, "%s/fuse/%d/%s", real, m->id, m->name) >= PATH_MAX)
		path[0] = '\0';
}

/* ---- mounts, in the helper ---- */

static int mount_given(const char *run_dir, const struct message *m, struct error *err)
{
	unsigned long flags = MS_NOSUID | MS_NODEV | (m->read_only ? MS_RDONLY : 0);
	int fd = helper_given_fd(), at, ret;
	char options[160], path[64];
	struct stat st;

	if (fd < 0)
		return error_set(err, -EINVAL, "there is no connection to mount");
	at = rundir_open_file(run_dir, m->id, m->name, O_PATH);
	if (at < 0)
		return error_set(err, at, "%s: %s", m->name, strerror(-at));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", at);
	snprintf(options, sizeof(options), "fd=%d,rootmode=%o,user_id=%u,group_id=%u,default_permissions%s",
		 fd, (unsigned)S_IFREG, (unsigned)geteuid(), (unsigned)getegid(),
		 m->allow_other ? ",allow_other" : "");
	if (fstat(at, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_size)
		ret = error_set(err, -EPERM, "%s is not an empty file of ours", m->name);
	else if (mount("ublk-qcow2", path, "fuse", flags, options))
		ret = error_set(err, -errno, "%s cannot be mounted on: %s", m->name, strerror(errno));
	else
		ret = 0;
	close(at);
	return ret;
}

static int unmount(const char *run_dir, const struct message *m, struct error *err)
{
	int flags = MNT_DETACH | UMOUNT_NOFOLLOW | (m->force ? MNT_FORCE : 0);
	int dir = rundir_open_file(run_dir, m->id, NULL, O_PATH | O_DIRECTORY), ret;

	if (dir < 0)
		return dir == -ENOENT ? 0 : error_set(err, dir, "%s: %s", m->name, strerror(-dir));
	ret = fchdir(dir) || umount2(m->name, flags) ? -errno : 0;
	close(dir);
	if (chdir("/") && !ret)
		ret = -errno;
	if (!ret || ret == -EINVAL || ret == -ENOENT)
		return 0;
	return error_set(err, ret, "%s cannot be unmounted: %s", m->name, strerror(-ret));
}

/* ---- loop devices ---- */

static void unclaim(struct host_work *w)
{
	if (w->claim_fd >= 0)
		close(w->claim_fd);
	w->claim_fd = -1;
}

static int claim(struct host_work *w, const struct message *m, struct error *err)
{
	int fd;

	unclaim(w);
	fd = loopdev_claim(m->id, err);
	if (fd < 0)
		return fd;
	w->claim_fd = fd;
	w->claimed = m->id;
	return 0;
}

static int bind_in_child(void *arg, struct error *err)
{
	const struct call *call = arg;
	const struct message *m = call->m;
	struct loopdev_params params = {
		.backing_path = call->path,
		.block_bytes = m->block_bytes,
		.size_bytes = m->size_bytes,
		.read_only = m->read_only,
		.part_scan = m->part_scan,
		.request_bytes = m->request_bytes,
	};
	int fd = rundir_open_file(call->run_dir, m->id, m->name, m->read_only ? O_RDONLY : O_RDWR), ret;

	if (fd < 0)
		return error_set(err, fd, "%s: %s", call->path, strerror(-fd));
	ret = loopdev_bind(call->claim_fd, m->id, fd, &params, err);
	close(fd);
	return ret;
}

/* The process that will open the file; it has copied what it was given. */
static int bind_start(struct host_work *w, const char *run_dir, const struct message *m, struct error *err)
{
	struct call call = {.run_dir = run_dir, .m = m, .claim_fd = w->claim_fd};
	int ret;

	if (w->claim_fd < 0 || w->claimed != m->id || w->binding)
		return error_set(err, -EINVAL, "there is no loop device to bind");
	path_make(call.path, run_dir, m);
	ret = child_start(&w->bind, bind_in_child, &call, w->claim_fd, err);
	if (ret)
		return ret;
	w->binding = true;
	/* the child has it; who closes it last may have to write the device's page cache */
	unclaim(w);
	return w->bind.pid;
}

static int bind_finish(struct host_work *w, struct error *err)
{
	if (!w->binding)
		return error_set(err, -EINVAL, "no loop device is being bound");
	w->binding = false;
	return child_finish(&w->bind, BIND_MS, err);
}

static int busy_in_child(void *arg, struct error *err)
{
	return loopdev_busy(((const struct call *)arg)->m->id);
}

static int resize_in_child(void *arg, struct error *err)
{
	const struct call *call = arg;

	return loopdev_resize(call->m->with_loop ? call->m->id : -1, call->path, call->m->size_bytes, err);
}

static int detach_in_child(void *arg, struct error *err)
{
	const struct call *call = arg;
	struct loopdev_use use = {.number = call->m->id, .seq = call->m->seq, .backing_path = call->path};

	return loopdev_detach(&use, DETACH_MS, err);
}

static int call_child(const char *run_dir, const struct message *m, int (*fn)(void *arg, struct error *err),
		      unsigned timeout_ms, struct error *err)
{
	struct call call = {.run_dir = run_dir, .m = m};

	path_make(call.path, run_dir, m);
	return child_call(fn, &call, timeout_ms, err);
}

/* ---- all of it ---- */

static int work(struct host_work *w, const char *run_dir, const struct message *m, struct error *err)
{
	switch ((enum message_op)m->op) {
	case OP_MOUNT:
		return mount_given(run_dir, m, err);
	case OP_UNMOUNT:
		return unmount(run_dir, m, err);
	case OP_FIND_FREE:
		return loopdev_find_free(err);
	case OP_CLAIM:
		return claim(w, m, err);
	case OP_UNCLAIM:
		unclaim(w);
		return 0;
	case OP_BIND:
		return bind_start(w, run_dir, m, err);
	case OP_BOUND:
		return bind_finish(w, err);
	case OP_BUSY:
		return call_child(run_dir, m, busy_in_child, BUSY_MS, err);
	case OP_RESIZE:
		return call_child(run_dir, m, resize_in_child, RESIZE_MS, err);
	case OP_DETACH:
		return call_child(run_dir, m, detach_in_child, WRITE_BACK_MS + 2 * DETACH_MS, err);
	}
	return -EOPNOTSUPP;
}

/* ---- in the helper ---- */

/* The device that is ours: the first that was mounted. */
static struct {
	bool known, bound;
	int id;
	char name[FUSE_NAME_BYTES];
} served;

/* The invariants. */
static bool allowed(const struct message *m)
{
	char safe[FUSE_NAME_BYTES];
	bool ours = served.known && m->id == served.id && strcmp(m->name, served.name) == 0;

	switch (m->op) {
	case OP_FIND_FREE:
	case OP_UNCLAIM:
		return true;
	case OP_CLAIM:
		return !served.known && m->id >= 0;
	case OP_MOUNT:
		fuse_name_sanitize(safe, m->name);
		return !served.known && m->id >= 0 && strcmp(safe, m->name) == 0;
	case OP_BIND:
		return ours && !served.bound;
	default:
		return ours;
	}
}

int host_help(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg)
{
	static struct host_work w = {.claim_fd = -1};
	struct message *m = data;
	struct error err = {0};
	int ret;

	if (bytes != sizeof(*m) || !memchr(m->name, '\0', sizeof(m->name)))
		return -EINVAL;
	if (!allowed(m))
		return -EPERM;
	ret = work(&w, helper_run_dir(), m, &err);
	if (m->op == OP_MOUNT && !ret) {
		served.known = true;
		served.id = m->id;
		memcpy(served.name, m->name, sizeof(served.name));
	}
	served.bound |= m->op == OP_BIND && ret >= 0;
	snprintf(m->text, sizeof(m->text), "%s", err.text);
	return ret;
}

/* ---- in who asks ---- */

static void message_init(const struct host *h, struct message *m, enum message_op op)
{
	const char *slash = strrchr(h->dir->file, '/');

	memset(m, 0, sizeof(*m));
	m->op = (uint32_t)op;
	m->id = h->dir->id;
	if (slash)
		snprintf(m->name, sizeof(m->name), "%s", slash + 1);
}

static int host_call(struct host *h, struct message *m, int fd, unsigned timeout_ms, struct error *err)
{
	int ret;

	if (!h->helper)
		return work(&h->work, h->run_dir, m, err);
	m->text[0] = '\0';
	ret = helper_ask_with(h->helper, HELPER_HOST, m, sizeof(*m), fd, timeout_ms + ANSWER_MS);
	if (ret == -EPIPE)
		return error_set(err, ret, "the helper process has ended");
	if (ret == -ETIMEDOUT && !m->text[0])
		return error_set(err, ret, "the helper process did not answer within %u s",
				 (timeout_ms + ANSWER_MS) / 1000);
	if (ret < 0) {
		m->text[sizeof(m->text) - 1] = '\0';
		return error_set(err, ret, "%s", m->text[0] ? m->text : strerror(-ret));
	}
	return ret;
}

int host_mount(struct host *h, struct session *s, bool allow_other, bool read_only, struct error *err)
{
	struct message m;
	char path[32];
	int fd, ret;

	if (!h->helper)
		return session_mount(s, h->dir->file, err);
	fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return error_set(err, -errno, "/dev/fuse: %s", strerror(errno));
	message_init(h, &m, OP_MOUNT);
	m.allow_other = allow_other;
	m.read_only = read_only;
	ret = host_call(h, &m, fd, QUICK_MS, err);
	if (ret) {
		close(fd);
		return ret;
	}
	/* to libfuse that is a descriptor that is mounted, and is its own from now on */
	snprintf(path, sizeof(path), "/dev/fd/%d", fd);
	return session_mount(s, path, err);
}

int host_unmount(struct host *h, bool force, struct error *err)
{
	struct message m;

	if (!h->helper) {
		if (force)
			umount2(h->dir->file, MNT_FORCE | UMOUNT_NOFOLLOW);
		return mount_detach(h->dir->file, err);
	}
	message_init(h, &m, OP_UNMOUNT);
	m.force = force;
	return host_call(h, &m, -1, QUICK_MS, err);
}

static int simple_call(struct host *h, enum message_op op, unsigned timeout_ms, struct error *err)
{
	struct message m;

	message_init(h, &m, op);
	return host_call(h, &m, -1, timeout_ms, err);
}

int host_loop_find_free(struct host *h, struct error *err)
{
	return simple_call(h, OP_FIND_FREE, QUICK_MS, err);
}

int host_loop_claim(struct host *h, struct error *err)
{
	return simple_call(h, OP_CLAIM, QUICK_MS, err);
}

void host_loop_unclaim(struct host *h)
{
	(void)!simple_call(h, OP_UNCLAIM, QUICK_MS, NULL);
}

int host_loop_bind_start(struct host *h, const struct host_loop *loop, pid_t *opener, struct error *err)
{
	struct message m;
	int ret;

	message_init(h, &m, OP_BIND);
	m.block_bytes = loop->block_bytes;
	m.size_bytes = loop->size_bytes;
	m.read_only = loop->read_only;
	m.part_scan = loop->part_scan;
	m.request_bytes = loop->request_bytes;
	ret = host_call(h, &m, -1, QUICK_MS, err);
	*opener = max_of(ret, 0);
	return min_of(ret, 0);
}

int host_loop_bind_finish(struct host *h, struct error *err)
{
	return simple_call(h, OP_BOUND, BIND_MS, err);
}

int host_loop_busy(struct host *h)
{
	return simple_call(h, OP_BUSY, BUSY_MS, NULL);
}

int host_resize(struct host *h, bool with_loop, uint64_t size_bytes, struct error *err)
{
	struct message m;

	message_init(h, &m, OP_RESIZE);
	m.with_loop = with_loop;
	m.size_bytes = size_bytes;
	return host_call(h, &m, -1, RESIZE_MS, err);
}

int host_loop_detach(struct host *h, uint64_t seq, struct error *err)
{
	struct message m;

	message_init(h, &m, OP_DETACH);
	m.seq = seq;
	return host_call(h, &m, -1, WRITE_BACK_MS + 2 * DETACH_MS, err);
}
