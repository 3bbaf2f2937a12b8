/* SPDX-License-Identifier: MIT */
/*
 * frontend.c: a target as a FUSE file, and as a loop device on it (see target/frontend.h).
 *
 *	RUN_DIR/fuse/ID/NAME	the file: flat.c makes bytes of the target's blocks, session.c
 *				is its FUSE connection
 *	/dev/loopID		the loop device, with direct I/O; not with no_loop
 *
 * ID is the loop device's number; without one, the smallest that is free in RUN_DIR. There is one
 * queue: the kernel has one list of requests for a FUSE connection.
 *
 * Threads. The queue thread answers for the file. No thread of this process ever waits for the
 * file: what makes the kernel look at it (LOOP_CONFIGURE reads the partition table, a detach writes
 * the page cache) is done by a child process, for the reasons in child.h, of this one's or of its
 * helper's (host.h). The main thread waits for the child, within limits.
 *
 * Starting: session, number, mount, queue thread, loop device. Ending, the reverse: the loop device
 * is detached while the thread serves, so that its page cache gets written; the mount is detached,
 * so that nobody opens the file any more; when its last user closes it the connection ends, and
 * with it the thread, which stops the target's queue. Users who do not close are cut off after a
 * while, when their requests in hand have completed. A half-built device is taken down by the same
 * function.
 *
 * Everything is held by this process: descriptors close on exec and no child keeps them, so that a
 * kill breaks the connection at once and I/O to the loop device fails instead of waiting.
 */
#include "target/frontend.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/math.h"
#include "fuse/host.h"
#include "fuse/loopdev.h"
#include "fuse/rundir.h"
#include "fuse/session.h"
#include "ring/loop.h"
#include "target/hold.h"

enum {
	DEPTH_MAX = 512,
	NUMBERS_TRIED = 256,   /* from the first that looked free */
	START_MS = 60000,      /* for the target's queue to start */
	CLOSE_MS = 5000,       /* for users of the file to close it */
	COMPLETE_MS = 60000,   /* for requests in hand to complete */
};

enum thread_state { THREAD_NONE, THREAD_STARTING, THREAD_SERVING, THREAD_OVER };

struct frontend {
	struct target *target;
	struct session *session;
	struct host host;
	struct loop *loop;
	struct rundir dir;
	void (*settled)(void); /* of struct frontend_options */
	bool mounted;
	bool with_loop;
	bool part_scan;
	bool claimed; /* the loop device, until it is bound */
	bool bound;
	bool size_unsure; /* whether the loop device has the size that it was asked for last */
	uint64_t loop_seq; /* of the loop device's use for this */
	int gone_fd;
	struct hold_device hold;
	char loop_path[LOOPDEV_PATH_BYTES];

	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum thread_state state; /* under lock, as the two below */
	int thread_ret;
	struct error thread_err;
	struct loop_msg quit_msg;
};

/* ---- the queue thread ---- */

static void state_set(struct frontend *f, enum thread_state state)
{
	pthread_mutex_lock(&f->lock);
	f->state = state;
	pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
}

/* Waits until the thread has got beyond @state; false: it took too long. */
static bool state_wait_beyond(struct frontend *f, enum thread_state state, unsigned timeout_ms)
{
	struct timespec until;
	bool beyond;
	int ret = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	pthread_mutex_lock(&f->lock);
	while (f->state <= state && !ret)
		ret = pthread_cond_timedwait(&f->changed, &f->lock, &until);
	beyond = f->state > state;
	pthread_mutex_unlock(&f->lock);
	return beyond;
}

static enum thread_state state_get(struct frontend *f)
{
	enum thread_state state;

	pthread_mutex_lock(&f->lock);
	state = f->state;
	pthread_mutex_unlock(&f->lock);
	return state;
}

static void thread_over(struct frontend *f, int ret)
{
	pthread_mutex_lock(&f->lock);
	f->thread_ret = ret;
	pthread_mutex_unlock(&f->lock);
	state_set(f, THREAD_OVER);
}

/* What a thread that is over before it was to be has ended with. */
static int thread_result(struct frontend *f)
{
	int ret;

	pthread_mutex_lock(&f->lock);
	ret = f->thread_ret ? f->thread_ret : -EIO;
	pthread_mutex_unlock(&f->lock);
	return ret;
}

static void tell_gone(void *arg)
{
	struct frontend *f = arg;
	uint64_t one = 1;

	if (write(f->gone_fd, &one, sizeof(one)) < 0)
		log_debug("gone_fd: %s", strerror(errno)); /* it is readable already */
}

static void session_over(void *arg)
{
	struct frontend *f = arg;

	loop_stop(f->loop);
}

static void session_ready(void *arg)
{
	struct frontend *f = arg;

	state_set(f, THREAD_SERVING);
}

static void quit_requested(struct loop_msg *msg)
{
	session_quit(container_of(msg, struct frontend, quit_msg)->session);
}

static void *queue_thread(void *arg)
{
	struct frontend *f = arg;
	const struct target_ops *ops = f->target->ops;
	int ret = 0;

	frontend_protect_thread();
	if (f->settled)
		f->settled();
	if (ops->queue_start)
		ret = ops->queue_start(f->target, 0, f->loop, &f->thread_err);
	if (ret) {
		thread_over(f, ret);
		return NULL;
	}
	session_start(f->session, f->loop);
	ret = loop_run(f->loop);
	if (ret) {
		log_err("%s: the ring failed: %s", f->dir.file, strerror(-ret));
		session_break(f->session);
	}
	if (ops->queue_stop)
		ops->queue_stop(f->target, 0);
	tell_gone(f);
	thread_over(f, ret);
	return NULL;
}

static int thread_start(struct frontend *f, unsigned depth, struct error *err)
{
	const struct target_ops *ops = f->target->ops;
	struct loop_params params = {
		.name = "fuse",
		.sq_entries = session_sq_entries(f->session) + 2 * depth,
		.coroutines = (ops->coroutines ? ops->coroutines(f->target, 0) : 0) +
			      session_coroutines(f->session),
		.any_op = ops->any_op,
	};
	sigset_t all, old;
	int ret;

	ret = loop_create(&f->loop, &params, err);
	if (ret)
		return ret;
	f->state = THREAD_STARTING;
	/* signals are the main thread's business */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = -pthread_create(&f->thread, NULL, queue_thread, f);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret) {
		f->state = THREAD_NONE;
		return error_set(err, ret, "no thread can be started: %s", strerror(-ret));
	}
	if (!state_wait_beyond(f, THREAD_STARTING, START_MS))
		return error_set(err, -ETIMEDOUT, "the target or the kernel does not start");
	ret = state_get(f) == THREAD_OVER ? thread_result(f) : 0;
	if (ret)
		return error_set(err, ret, "%s", error_text(&f->thread_err, ret));
	return 0;
}

/* ---- starting ---- */

/* Takes a number for the device, and with it the folder and the loop device of that number. */
static int number_take(struct frontend *f, const struct frontend_options *opts, int number,
		       struct error *err)
{
	int ret = rundir_take(&f->dir, opts->run_dir, number, err);

	if (ret || !f->with_loop)
		return ret;
	ret = host_loop_claim(&f->host, err);
	f->claimed = !ret;
	if (ret)
		rundir_release(&f->dir);
	else
		loopdev_path(f->loop_path, number);
	return ret;
}

static int number_choose(struct frontend *f, const struct frontend_options *opts, struct error *err)
{
	struct error ignored = {0};
	int first = 0, ret;

	if (opts->id >= 0)
		return number_take(f, opts, opts->id, err);
	if (f->with_loop) {
		first = host_loop_find_free(&f->host, err);
		if (first < 0)
			return first;
	}
	for (int i = 0; i < NUMBERS_TRIED; i++) {
		ignored.text[0] = '\0';
		ret = number_take(f, opts, first + i, &ignored);
		if (ret != -EEXIST && ret != -EBUSY)
			return ret ? error_set(err, ret, "%s", error_text(&ignored, ret)) : 0;
	}
	return error_set(err, -EBUSY, "no device number is free");
}

static int loop_bind(struct frontend *f, struct error *err)
{
	const struct target_limits *limits = &f->target->limits;
	const struct host_loop loop = {
		.block_bytes = limits->logical_block_bytes,
		.size_bytes = limits->size_bytes,
		.read_only = limits->read_only,
		.part_scan = f->part_scan,
		/* else the loop device's are cut in the middle of such a piece */
		.request_bytes = limits->whole_bytes ? session_payload_max(f->session) : 0,
	};
	pid_t opener;
	int ret = host_loop_bind_start(&f->host, &loop, &opener, err);

	if (ret)
		return ret;
	f->claimed = false;
	session_expect_loop(f->session, opener);
	f->bound = true; /* maybe; detaching what is not bound is no error */
	return host_loop_bind_finish(&f->host, err);
}

/* The thread serves. Before something is made that would stay, a note is made of it. */
static int device_publish(struct frontend *f, struct error *err)
{
	int number = f->with_loop ? f->dir.id : -1;
	int ret = rundir_record(&f->dir, number, 0, err);

	if (ret || !f->with_loop)
		return ret;
	ret = loop_bind(f, err);
	if (ret)
		return ret;
	f->loop_seq = loopdev_seq(number);
	return rundir_record(&f->dir, number, f->loop_seq, err);
}

static int device_make(struct frontend *f, const struct frontend_options *opts, struct error *err)
{
	bool allow_other = geteuid() == 0;
	struct session_params params = {
		.target = f->target,
		.depth = opts->depth,
		.hold = &f->hold,
		/* the file's mode is what keeps others out; root reads it whatever his groups */
		.allow_other = allow_other,
		.ready = session_ready,
		.loop_gone = tell_gone,
		.ended = session_over,
		.arg = f,
	};
	int ret = session_create(&f->session, &params, err);

	if (ret == 0)
		ret = number_choose(f, opts, err);
	if (ret == 0 && opts->made)
		opts->made(opts->made_arg, f->dir.id);
	if (ret == 0)
		ret = rundir_add_file(&f->dir, opts->name, err);
	if (ret)
		return ret;
	ret = host_mount(&f->host, f->session, allow_other, f->target->limits.read_only, err);
	f->mounted = true; /* maybe; unmounting what is not mounted is no error */
	if (ret == 0)
		ret = thread_start(f, opts->depth, err);
	if (ret == 0)
		ret = device_publish(f, err);
	return ret;
}

/* ---- ending ---- */

/* Ends the thread; -ETIMEDOUT if it cannot be ended. */
static int thread_end(struct frontend *f, struct error *err)
{
	int ret = 0;

	if (state_get(f) == THREAD_NONE)
		return 0;
	if (!state_wait_beyond(f, THREAD_SERVING, CLOSE_MS)) {
		if (session_opens(f->session))
			ret = error_set(err, -EBUSY, "%s was still open; its users get errors now",
					f->dir.file);
		f->quit_msg.fn = quit_requested;
		loop_post(f->loop, &f->quit_msg);
	}
	if (!state_wait_beyond(f, THREAD_SERVING, COMPLETE_MS))
		return error_set(err, -ETIMEDOUT, "requests to the image do not complete");
	pthread_join(f->thread, NULL);
	return ret ? ret : f->thread_ret;
}

static void fuse_retry(struct frontend *f)
{
	/* Under the lock the loop stays: a thread that is over has left it for good. */
	pthread_mutex_lock(&f->lock);
	if (f->state == THREAD_SERVING)
		session_retry(f->session);
	pthread_mutex_unlock(&f->lock);
}

/* Takes down whatever there is, and frees it. Returns the first error. */
static int frontend_destroy(struct frontend *f, struct error *err)
{
	int first = 0, ret;
	bool left = false;

	if (!f)
		return 0;
	hold_end(&f->hold);
	fuse_retry(f);
	if (f->mounted && state_get(f) == THREAD_OVER && f->thread_ret) /* whoever waits for it gets an error */
		(void)!host_unmount(&f->host, true, NULL);
	if (f->bound && !session_loop_gone(f->session))
		first = host_loop_detach(&f->host, f->loop_seq, err);
	if (f->claimed)
		host_loop_unclaim(&f->host);
	if (f->mounted) {
		ret = host_unmount(&f->host, false, err);
		left = ret;
		first = first ? first : ret;
	}
	ret = thread_end(f, err);
	if (ret == -ETIMEDOUT) {
		/* the thread still uses all this; the end of the process is the end of it */
		log_err("%s: left behind; it goes away with this process", f->dir.file);
		return ret;
	}
	first = first ? first : ret;
	session_destroy(f->session);
	loop_destroy(f->loop);
	if (left)
		rundir_leave(&f->dir);
	else
		rundir_release(&f->dir);
	if (f->gone_fd >= 0)
		close(f->gone_fd);
	hold_device_destroy(&f->hold);
	pthread_cond_destroy(&f->changed);
	pthread_mutex_destroy(&f->lock);
	free(f);
	return first;
}

/* ---- the operations ---- */

static int options_check(const struct target *t, const struct frontend_options *opts,
			 struct error *err)
{
	if (opts->depth < 1 || opts->depth > DEPTH_MAX)
		return error_set(err, -EINVAL, "the depth is between 1 and %d", DEPTH_MAX);
	if (opts->id > (1 << 20) - 1)
		return error_set(err, -EINVAL, "%d is no number for a device", opts->id);
	return 0;
}

static int fuse_start(struct frontend **out, struct target *t, const struct frontend_options *opts,
		      struct error *err)
{
	pthread_condattr_t attr;
	struct frontend *f;
	int ret = options_check(t, opts, err), left;

	if (ret)
		return ret;
	f = calloc(1, sizeof(*f));
	if (!f)
		return error_set(err, -ENOMEM, "out of memory");
	f->target = t;
	f->settled = opts->settled;
	f->dir = RUNDIR_INIT;
	f->host = (struct host){
		.helper = opts->helper,
		.run_dir = opts->run_dir,
		.dir = &f->dir,
		.work.claim_fd = -1,
	};
	f->with_loop = !opts->no_loop;
	f->part_scan = !opts->no_part_scan;
	f->hold.fd = -1;
	pthread_mutex_init(&f->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&f->changed, &attr);
	pthread_condattr_destroy(&attr);
	f->gone_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	frontend_protect_thread();
	ret = f->gone_fd < 0 ? error_set(err, -errno, "eventfd: %s", strerror(errno))
			     : hold_device_init(&f->hold, opts->hold_enospc, err);
	if (!ret)
		ret = device_make(f, opts, err);
	if (ret) {
		left = frontend_destroy(f, NULL);
		if (left)
			ret = left == -ETIMEDOUT ? -ETIMEDOUT : -EUCLEAN;
		return ret;
	}
	*out = f;
	return 0;
}

static int fuse_probe(struct error *err)
{
	int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return error_set(err, -errno, "/dev/fuse: %s", strerror(errno));
	close(fd);
	return 0;
}

static int fuse_id(const struct frontend *f)
{
	return f->dir.id;
}

static const char *fuse_device(const struct frontend *f)
{
	return f->with_loop ? f->loop_path : f->dir.file;
}

static unsigned fuse_queues(const struct frontend *f)
{
	return 1;
}

static int fuse_gone_fd(const struct frontend *f)
{
	return f->gone_fd;
}

static int fuse_hold_fd(const struct frontend *f)
{
	return f->hold.fd;
}

static unsigned fuse_held(const struct frontend *f)
{
	return hold_count(&f->hold);
}

static int fuse_busy(const struct frontend *f)
{
	/* asking changes nothing that this front end would see */
	struct host *host = (struct host *)&f->host;

	if (session_opens(f->session))
		return 1;
	if (!f->with_loop || session_loop_gone(f->session))
		return 0;
	return host_loop_busy(host);
}

/* The file has the new size as soon as the target has; the kernel then has to be told (loopdev.c). */
static int fuse_resize(struct frontend *f, uint64_t size_bytes, struct error *err)
{
	uint64_t old_bytes = target_size(&f->target->limits);
	struct error ignored = {0};
	int ret;

	assert(size_bytes && is_aligned(size_bytes, f->target->limits.logical_block_bytes));
	if (size_bytes == old_bytes && !f->size_unsure)
		return 0;
	target_set_size(f->target, size_bytes);
	ret = host_resize(&f->host, f->with_loop, size_bytes, err);
	/* not answered, it may be done all the same: what the loop device may have is served */
	f->size_unsure = ret == -ETIMEDOUT || ret == -EPIPE;
	if (!ret || f->size_unsure)
		return ret;
	target_set_size(f->target, old_bytes);
	if (host_resize(&f->host, f->with_loop, old_bytes, &ignored))
		log_warn("%s: %s", f->dir.file, ignored.text);
	return ret;
}

const struct frontend_ops frontend_fuse = {
	.name = "fuse",
	.queues_max = 1,
	.request_max_bytes = SESSION_PAYLOAD_MAX,
	.loop_request_max_bytes = LOOPDEV_REQUEST_BYTES,
	.requests_max_bytes = SESSION_MEMORY_BYTES,
	.probe = fuse_probe,
	.help = {[HELPER_HOST] = host_help},
	.start = fuse_start,
	.id = fuse_id,
	.device = fuse_device,
	.queues = fuse_queues,
	.gone_fd = fuse_gone_fd,
	.hold_fd = fuse_hold_fd,
	.held = fuse_held,
	.retry = fuse_retry,
	.busy = fuse_busy,
	.resize = fuse_resize,
	.stop = frontend_destroy,
};
