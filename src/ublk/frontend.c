/* SPDX-License-Identifier: MIT */
/*
 * frontend.c: a target as /dev/ublkbN (see target/frontend.h).
 *
 * Starting: add the device, set its parameters, open its char device, start the queues one after
 * the other, START_DEV, wait for the block device's node and, if that is asked for, its partitions.
 *
 * Ending, in the order that neither hangs nor loses anything: STOP_DEV while the queues serve, so
 * that I/O in flight and what is in the page cache of the device's openers gets done; the queues
 * from the last to the first, each of which stops the target's queue, ends its ring and unmaps its
 * memory; close the char device; delete. A half-built device is taken down by the same function.
 *
 * If STOP_DEV does not come back in time (the disk's last I/O, or START_DEV's partition scan, hangs
 * in the target), the queues are ended all the same where they can be. One with a request that does
 * not end is abandoned: its memory stays, but it lets go of the char device, and with that closed
 * the driver fails the request and the device goes away. stop() then returns -ETIMEDOUT and the
 * target must be left alone (see struct frontend_ops).
 *
 * Recovery (options.recover): the device is there, in state QUIESCED since the process that served it
 * died, and its I/O waits in the driver. START_USER_RECOVERY stands for adding it, END_USER_RECOVERY
 * for START_DEV. If that fails the device is left as it is, for the next try; so does a process that dies
 * in the middle of it (halfway.h). At last the device gets the image's size, should the process have died between
 * growing the one and the other.
 */
#include "target/frontend.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/math.h"
#include "target/child.h"
#include "target/hold.h"
#include "ublk/ctrl.h"
#include "ublk/halfway.h"
#include "ublk/queue.h"
#include "ublk/request.h"
#include "ublk/ublk.h"

#define NODE_MS	       10000
#define SCAN_TRIES     200   /* at 5 ms each, for the kernel to begin with it */
#define SCAN_MS	       30000 /* for the partitions to be read, through the target */
#define QUEUE_STOP_MS  30000 /* for the target's own end: the driver has no more requests */
#define BUSY_MS	       10000
#define DEL_STUCK_MS   5000
#define QUEUE_HANGS_MS 3000 /* where STOP_DEV has waited in vain already */

/* Memory that goes into the image's I/O as it is: what every storage takes (storage.h, contract 2). */
#define IMAGE_ALIGN_BYTES 512

struct frontend {
	struct target *target;
	struct ublk_ctrl *ctrl;
	struct helper *helper; /* NULL: none */
	void (*settled)(void);
	struct ublk_dev_info info; /* as the driver made it */
	const struct ublk_data_path *path;
	bool added;	  /* by us: deleted if starting fails, and at the end */
	bool recovered;
	bool unprivileged;
	uint64_t driver_bytes; /* how large the driver is known to have the device; 0: that is not certain */
	int char_fd;
	int gone_fd;
	struct hold_device hold;
	struct ublk_queue **queues;
	unsigned nr_queues; /* started */
	bool scan;	    /* a child waits to read the partitions */
	struct child scan_child;
	bool stuck;	    /* a queue had to be abandoned */
	char device[32];
};

/* Where zero copy is not, the driver's copy is: it costs no system call of its own. */
static int path_choose(const struct ublk_data_path **out, const struct target *t,
		       const struct frontend_options *opts, uint64_t features, struct error *err)
{
	enum frontend_data_path wanted = opts->data_path;
	static const struct ublk_data_path *const paths[] = {
		[FRONTEND_DATA_COPY] = &ublk_path_copy,
		[FRONTEND_DATA_USER_COPY] = &ublk_path_user_copy,
		[FRONTEND_DATA_ZERO_COPY] = &ublk_path_zero_copy,
	};
	uint64_t zero = ublk_path_zero_copy.dev_flags;

	if (opts->unprivileged && wanted != FRONTEND_DATA_AUTO && wanted != FRONTEND_DATA_COPY)
		return error_set(err, -EOPNOTSUPP, "the kernel allows unprivileged devices no data path but copy");
	if (opts->unprivileged)
		wanted = FRONTEND_DATA_COPY;
	if (wanted == FRONTEND_DATA_AUTO)
		wanted = t->limits.registered_buffers && (features & zero) == zero
				 ? FRONTEND_DATA_ZERO_COPY
				 : FRONTEND_DATA_COPY;
	*out = paths[wanted];
	if ((features & (*out)->dev_flags) != (*out)->dev_flags)
		return error_set(err, -EOPNOTSUPP, "the kernel's ublk driver has no %s (%s and later has)",
				 (*out)->name, wanted == FRONTEND_DATA_ZERO_COPY ? "6.16" : "6.5");
	return 0;
}

/* A device that is there has the path that it was made with. */
static const struct ublk_data_path *path_of(uint64_t dev_flags)
{
	if (dev_flags & UBLK_F_AUTO_BUF_REG)
		return &ublk_path_zero_copy;
	return dev_flags & UBLK_F_USER_COPY ? &ublk_path_user_copy : &ublk_path_copy;
}

/* The stride of I/O descriptors in the char device's mapping. */
static size_t desc_bytes(const struct ublk_dev_info *info)
{
	if (info->flags & UBLK_F_IO_DESC_SIZE)
		return info->io_desc_size;
	return sizeof(struct ublk_io_desc);
}

/* What the device is to be able to do, which this kernel's driver has to. */
static int device_flags(const struct frontend *f, const struct frontend_options *opts, uint64_t *flags,
			struct error *err)
{
	uint64_t features = ublk_ctrl_features(f->ctrl);

	*flags = UBLK_F_CMD_IOCTL_ENCODE | f->path->dev_flags;
	if (opts->recovery != FRONTEND_RECOVERY_OFF)
		*flags |= UBLK_F_USER_RECOVERY;
	if (opts->recovery == FRONTEND_RECOVERY_REISSUE)
		*flags |= UBLK_F_USER_RECOVERY_REISSUE;
	if (opts->recovery == FRONTEND_RECOVERY_FAIL)
		*flags |= UBLK_F_USER_RECOVERY_FAIL_IO;
	if (*flags & UBLK_F_USER_RECOVERY_FAIL_IO & ~features)
		return error_set(err, -EOPNOTSUPP,
				 "the kernel's ublk driver cannot fail I/O while it waits for recovery (6.13 "
				 "and later can)");
	if (opts->unprivileged)
		*flags |= UBLK_F_UNPRIVILEGED_DEV;
	if (*flags & UBLK_F_UNPRIVILEGED_DEV & ~features)
		return error_set(err, -EOPNOTSUPP, "the kernel's ublk driver has no unprivileged devices");
	if (opts->no_part_scan)
		*flags |= UBLK_F_NO_AUTO_PART_SCAN;
	if (*flags & UBLK_F_NO_AUTO_PART_SCAN & ~features)
		return error_set(err, -EOPNOTSUPP,
				 "the kernel's ublk driver always looks for partitions (7.0 and later can be "
				 "told not to)");
	return 0;
}

static int device_add(struct frontend *f, const struct frontend_options *opts, uint32_t buf_bytes,
		      struct error *err)
{
	uint64_t flags;
	int ret = device_flags(f, opts, &flags, err);

	if (ret)
		return ret;
	f->info = (struct ublk_dev_info){
		.nr_hw_queues = (uint16_t)opts->queues,
		.queue_depth = (uint16_t)opts->depth,
		.max_io_buf_bytes = buf_bytes,
		.dev_id = opts->id < 0 ? UINT32_MAX : (uint32_t)opts->id,
		.ublksrv_pid = getpid(),
		.flags = flags,
	};
	ret = ublk_ctrl_add(f->ctrl, &f->info, err);
	if (ret)
		return ret;
	f->added = true;
	snprintf(f->device, sizeof(f->device), "/dev/ublkb%u", f->info.dev_id);
	if (flags & ~f->info.flags & UBLK_F_UNPRIVILEGED_DEV)
		return error_set(err, -EINVAL, "devices of root (CAP_SYS_ADMIN) are privileged ones");
	if ((f->info.flags & flags) != flags)
		return error_set(
			err, -EPROTO, "the ublk driver refused device flags (%#llx of %#llx)",
			(unsigned long long)(f->info.flags & flags), (unsigned long long)flags);
	if (f->info.queue_depth != opts->depth || f->info.max_io_buf_bytes != buf_bytes ||
	    !f->info.nr_hw_queues || f->info.nr_hw_queues > opts->queues)
		return error_set(err, -EPROTO,
				 "the ublk driver made another device than it was asked for");
	if (desc_bytes(&f->info) < sizeof(struct ublk_io_desc))
		return error_set(err, -EPROTO, "the ublk driver's descriptors have %zu bytes",
				 desc_bytes(&f->info));
	if (f->info.nr_hw_queues < opts->queues)
		log_info("%s: %u queues, as there are no more CPUs", f->device,
			 f->info.nr_hw_queues);
	return 0;
}

/*
 * The nodes are root's, until somebody, for example udev by the rule in packaging/, gives them to who made the
 * device: by then no command about it is allowed, not even to delete it.
 */
static int access_wait(const char *path, int mode, struct error *err)
{
	struct timespec pause = {.tv_nsec = 5000000};

	for (unsigned waited_ms = 0; euidaccess(path, mode); waited_ms += 5) {
		int ret = -errno;

		if (waited_ms >= NODE_MS)
			return error_set(err, ret,
					 "no access to %s after %u s: is there a udev rule that gives "
					 "unprivileged devices to their owners?",
					 path, NODE_MS / 1000);
		nanosleep(&pause, NULL);
	}
	return 0;
}

static int char_node_wait(struct frontend *f, struct error *err)
{
	char path[32];
	int ret;

	snprintf(path, sizeof(path), "/dev/ublkc%u", f->info.dev_id);
	f->unprivileged = true;
	ret = access_wait(path, R_OK | W_OK, err);
	if (ret)
		log_err("%s: only root can take this device away now: 'ublk-qcow2 del --orphans'", f->device);
	return ret;
}

static int device_make(struct frontend *f, const struct frontend_options *opts, struct error *err)
{
	const struct target *t = f->target;
	struct ublk_params params;
	uint32_t buf_bytes;
	int ret = path_choose(&f->path, t, opts, ublk_ctrl_features(f->ctrl), err);

	if (ret)
		return ret;
	buf_bytes = ublk_buf_bytes(opts->queues, f->path->registers ? 1 : opts->depth, &t->limits);
	ret = ublk_params_build(&params, &t->limits, buf_bytes, err);
	if (ret)
		return ret;
	if (f->path->registers)
		ublk_params_align(&params, max_of(t->limits.memory_align_bytes, (uint32_t)IMAGE_ALIGN_BYTES));
	ret = device_add(f, opts, buf_bytes, err);
	if (!ret && opts->unprivileged)
		ret = char_node_wait(f, err);
	f->driver_bytes = target_size(&t->limits);
	return ret ? ret : ublk_ctrl_set_params(f->ctrl, f->info.dev_id, &params, err);
}

/* The device that another process left. */
static int device_take_over(struct frontend *f, const struct frontend_options *opts, struct error *err)
{
	uint32_t id = (uint32_t)opts->id;
	int ret;

	assert(opts->id >= 0);
	ret = ublk_ctrl_info(f->ctrl, id, &f->info, err);
	if (!ret)
		ret = ublk_halfway_finish(ublk_ctrl_features(f->ctrl), &f->info, err);
	if (!ret)
		ret = ublk_ctrl_recovery_start(f->ctrl, id, err);
	if (!ret)
		ret = ublk_ctrl_info(f->ctrl, id, &f->info, err);
	if (ret)
		return ret;
	snprintf(f->device, sizeof(f->device), "/dev/ublkb%u", id);
	if (f->info.nr_hw_queues > f->target->limits.max_queues || f->info.queue_depth > opts->depth)
		return error_set(err, -EINVAL,
				 "%s has %u queues of %u requests, which is more than was opened for",
				 f->device, f->info.nr_hw_queues, f->info.queue_depth);
	f->path = path_of(f->info.flags);
	f->driver_bytes = target_size(&f->target->limits); /* or see size_follow() */
	f->recovered = true;
	return 0;
}

static int queues_start(struct frontend *f, struct error *err)
{
	f->queues = calloc(f->info.nr_hw_queues, sizeof(*f->queues));
	if (!f->queues)
		return error_set(err, -ENOMEM, "out of memory");
	for (unsigned i = 0; i < f->info.nr_hw_queues; i++) {
		cpu_set_t cpus;
		struct ublk_queue_config config = {
			.dev_id = f->info.dev_id,
			.queue = i,
			.depth = f->info.queue_depth,
			.char_fd = f->char_fd,
			.desc_bytes = desc_bytes(&f->info),
			.buf_bytes = f->info.max_io_buf_bytes,
			.target = f->target,
			.path = f->path,
			.cpus = &cpus,
			.gone_fd = f->gone_fd,
			.hold = &f->hold,
			.settled = f->settled,
		};
		int ret;

		CPU_ZERO(&cpus);
		ret = ublk_ctrl_queue_affinity(f->ctrl, f->info.dev_id, i, &cpus, err);
		if (ret)
			return ret;
		if (!CPU_COUNT(&cpus)) /* a queue that no CPU submits to */
			config.cpus = NULL;
		ret = ublk_queue_start(&f->queues[i], &config, err);
		if (ret == -ETIMEDOUT)
			f->stuck = true;
		if (ret)
			return ret;
		f->nr_queues++;
	}
	return 0;
}

static bool any_queue_over(void *arg)
{
	struct frontend *f = arg;

	for (unsigned i = 0; i < f->nr_queues; i++)
		if (ublk_queue_over(f->queues[i]))
			return true;
	return false;
}

static int block_node_wait(struct frontend *f, struct error *err)
{
	struct timespec pause = {.tv_nsec = 2000000};
	struct stat st;

	for (unsigned waited_ms = 0;; waited_ms += 2) {
		if (stat(f->device, &st) == 0 && S_ISBLK(st.st_mode))
			return 0;
		if (waited_ms >= NODE_MS)
			return error_set(
				err, -ENOENT,
				"the device node %s did not appear in %u s (no udev or devtmpfs?)",
				f->device, NODE_MS / 1000);
		nanosleep(&pause, NULL);
	}
}

/* ---- partitions ---- */

/*
 * From 6.19 on, START_DEV leaves them to a worker of the kernel, and until that has begun they are
 * suppressed (EINVAL). Looking for them once more is what can be waited for. EBUSY: somebody has one open
 * already.
 */
static int partitions_read(void *arg, struct error *err)
{
	const char *device = arg;
	struct timespec pause = {.tv_nsec = 5000000};
	int fd = open(device, O_RDONLY | O_CLOEXEC), ret = 0;

	if (fd < 0)
		return error_set(err, -errno, "%s", strerror(errno));
	for (unsigned i = 0; i < SCAN_TRIES && ioctl(fd, BLKRRPART, 0) < 0; i++) {
		ret = errno == EBUSY ? 0 : -errno;
		if (errno != EINVAL)
			break;
		nanosleep(&pause, NULL);
	}
	close(fd);
	return ret ? error_set(err, ret, "%s", strerror(-ret)) : 0;
}

/* Before the char device is open: a child must have nothing of it (child.h). */
static int scan_prepare(struct frontend *f, const struct frontend_options *opts, struct error *err)
{
	int ret;

	/* the kernel reads no partitions of an unprivileged device */
	f->scan = opts->wait_partitions && !opts->no_part_scan && !opts->recover && !opts->unprivileged;
	if (!f->scan || f->helper)
		return 0;
	ret = child_start(&f->scan_child, partitions_read, f->device, -1, err);
	f->scan = !ret;
	return ret;
}

/* A disk whose partitions cannot be read is a disk all the same. */
static void scan_finish(struct frontend *f)
{
	struct error err = {0};
	int ret;

	if (!f->scan)
		return;
	f->scan = false;
	if (f->helper) {
		char device[sizeof(f->device)];

		memcpy(device, f->device, sizeof(device));
		ret = helper_ask(f->helper, HELPER_SCAN, device, sizeof(device), SCAN_MS + BUSY_MS, NULL,
				 NULL);
	} else {
		ret = child_finish(&f->scan_child, SCAN_MS, &err);
	}
	if (ret)
		log_warn("%s: whether it has partitions is not known yet: %s", f->device,
			 error_text(&err, ret));
}

/* Asked and not answered, it may be done or not, now or later. */
static int driver_resize(struct frontend *f, uint64_t size_bytes, struct error *err)
{
	int ret = ublk_ctrl_update_size(f->ctrl, f->info.dev_id, size_bytes, err);

	if (!ret)
		f->driver_bytes = size_bytes;
	else if (ret == -ETIMEDOUT || ret == -EPIPE)
		f->driver_bytes = 0;
	return ret;
}

/*
 * A process that was killed while the disk grew may have left the device with its old size, and the image with
 * the new one. What the driver does not take stays as it is, for a `resize` that is asked for again.
 */
static void size_follow(struct frontend *f)
{
	uint64_t size_bytes = target_size(&f->target->limits), has_bytes;
	struct error err = {0};
	int ret = ublk_ctrl_size(f->ctrl, f->info.dev_id, &has_bytes, &err);

	f->driver_bytes = ret ? 0 : has_bytes;
	if (!ret && has_bytes >= size_bytes)
		return;
	if (!ret)
		ret = driver_resize(f, size_bytes, &err);
	if (!ret) {
		log_info("%s: has %llu bytes now, as its image has", f->device,
			 (unsigned long long)size_bytes);
		return;
	}
	log_warn("%s: the image has another size, %llu bytes: %s", f->device,
		 (unsigned long long)size_bytes, error_text(&err, ret));
	if (f->driver_bytes)
		target_set_size(f->target, f->driver_bytes);
}

/* From a device that was added to one that serves I/O. */
static int device_serve(struct frontend *f, struct error *err)
{
	int ret;

	f->char_fd = ublk_char_open(f->info.dev_id, err);
	if (f->char_fd < 0)
		return f->char_fd;
	ret = queues_start(f, err);
	if (ret)
		return ret;
	if (f->recovered)
		ret = ublk_ctrl_recovery_end(f->ctrl, f->info.dev_id, getpid(), any_queue_over, f, err);
	else
		ret = ublk_ctrl_start(f->ctrl, f->info.dev_id, getpid(), any_queue_over, f, err);
	if (ret)
		return ret;
	f->added = true;
	if (f->recovered && f->target->ops->resize)
		size_follow(f);
	for (unsigned i = 0; i < f->nr_queues && f->settled; i++)
		ublk_queue_settle(f->queues[i]);
	ret = block_node_wait(f, err);
	if (!ret && f->unprivileged)
		ret = access_wait(f->device, f->target->limits.read_only ? R_OK : R_OK | W_OK, err);
	if (!ret)
		scan_finish(f);
	return ret;
}

/* Ends every queue, the last one first; notes whether one does not. Returns the first error. */
static int queues_stop(struct frontend *f, unsigned timeout_ms, struct error *err)
{
	int first = 0;

	while (f->nr_queues > 0) {
		int ret = ublk_queue_stop(f->queues[--f->nr_queues], timeout_ms, err);

		if (ret == -ETIMEDOUT)
			f->stuck = true;
		if (ret && !first)
			first = ret;
	}
	return first;
}

static int device_delete(struct frontend *f, struct error *err)
{
	bool lingers;
	int ret;

	if (!f->added)
		return 0;
	ret = ublk_ctrl_del(f->ctrl, f->info.dev_id, f->stuck ? DEL_STUCK_MS : UBLK_STOP_MS,
			    &lingers, err);
	if (!ret && lingers)
		log_info("%s: still open somewhere; its number is taken until it is closed",
			 f->device);
	return ret;
}

static void retry_held(struct frontend *f)
{
	for (unsigned i = 0; i < f->nr_queues; i++)
		ublk_queue_retry(f->queues[i]);
}

static bool ublk_failed(const struct frontend *f)
{
	for (unsigned i = 0; i < f->nr_queues; i++)
		if (ublk_queue_failed(f->queues[i]))
			return true;
	return false;
}

/* Takes down whatever there is, and frees it. Returns the first error. */
static int frontend_destroy(struct frontend *f, struct error *err)
{
	int stopped = 0, ended, deleted;

	if (!f)
		return 0;
	hold_end(&f->hold);
	retry_held(f);
	if (f->scan && !f->helper) /* it waits for a word that does not come */
		child_cancel(&f->scan_child);
	for (unsigned i = 0; i < f->nr_queues; i++)
		ublk_queue_expect_end(f->queues[i], true);
	/* with a queue whose io_uring has failed the driver would wait for its I/O */
	if (f->added && f->nr_queues && !ublk_failed(f))
		stopped = ublk_ctrl_stop(f->ctrl, f->info.dev_id, err);
	if (stopped == -ENODEV) /* deleted from outside */
		stopped = 0;
	ended = queues_stop(f, stopped ? QUEUE_HANGS_MS : QUEUE_STOP_MS, err);
	if (f->char_fd >= 0)
		close(f->char_fd);
	deleted = device_delete(f, err);
	if (f->stuck) {
		/* what abandoned queues may still use stays, and this with it */
		if (deleted)
			log_err("%s: left behind", f->device);
		return -ETIMEDOUT;
	}
	if (f->gone_fd >= 0)
		close(f->gone_fd);
	hold_device_destroy(&f->hold);
	ublk_ctrl_close(f->ctrl);
	free(f->queues);
	free(f);
	if (stopped ==
	    -ETIMEDOUT) /* in vain, but the queues have ended: not what it means to callers */
		stopped = -EIO;
	return stopped ? stopped : ended ? ended : deleted;
}

static int options_check(const struct target *t, const struct frontend_options *opts,
			 struct error *err)
{
	assert(opts->queues >= 1 && opts->queues <= t->limits.max_queues);
	if (opts->queues > UBLK_MAX_QUEUES)
		return error_set(err, -EINVAL, "at most %u queues are possible", UBLK_MAX_QUEUES);
	if (opts->depth < 1 || opts->depth > UBLK_MAX_DEPTH)
		return error_set(err, -EINVAL, "the depth is between 1 and %u", UBLK_MAX_DEPTH);
	return 0;
}

static int ublk_start(struct frontend **out, struct target *t, const struct frontend_options *opts,
		      struct error *err)
{
	struct frontend *f;
	int ret = options_check(t, opts, err), left;

	if (ret)
		return ret;
	f = calloc(1, sizeof(*f));
	if (!f)
		return error_set(err, -ENOMEM, "out of memory");
	f->target = t;
	f->char_fd = f->hold.fd = -1;
	f->gone_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (f->gone_fd < 0) {
		ret = error_set(err, -errno, "eventfd: %s", strerror(errno));
		goto fail;
	}
	frontend_protect_thread();
	f->helper = opts->helper;
	f->settled = opts->settled;
	ret = hold_device_init(&f->hold, opts->hold_enospc, err);
	if (!ret)
		ret = f->helper ? ublk_ctrl_open_by(&f->ctrl, f->helper, err) : ublk_ctrl_open(&f->ctrl, err);
	if (ret)
		goto fail;
	if (opts->recover)
		ret = device_take_over(f, opts, err);
	else
		ret = device_make(f, opts, err);
	if (f->added && opts->made)
		opts->made(opts->made_arg, (int)f->info.dev_id);
	if (!ret)
		ret = scan_prepare(f, opts, err);
	if (!ret)
		ret = device_serve(f, err);
	if (ret)
		goto fail;
	*out = f;
	return 0;
fail:
	left = frontend_destroy(f, NULL);
	if (left)
		ret = left == -ETIMEDOUT ? -ETIMEDOUT : -EUCLEAN;
	return ret;
}

static int ublk_probe(struct error *err)
{
	struct ublk_ctrl *ctrl;
	int ret = ublk_ctrl_open(&ctrl, err);

	if (!ret)
		ublk_ctrl_close(ctrl);
	return ret;
}

static int ublk_id(const struct frontend *f)
{
	return (int)f->info.dev_id;
}

static const char *ublk_device(const struct frontend *f)
{
	return f->device;
}

static unsigned ublk_queues(const struct frontend *f)
{
	return f->info.nr_hw_queues;
}

static unsigned ublk_depth(const struct frontend *f)
{
	return f->info.queue_depth;
}

static const char *ublk_data_path(const struct frontend *f)
{
	return f->path->name;
}

static void ublk_figures(const struct frontend *f, unsigned queue, struct frontend_figures *out)
{
	assert(queue < f->nr_queues);
	ublk_queue_figures(f->queues[queue], out);
}

static int ublk_gone_fd(const struct frontend *f)
{
	return f->gone_fd;
}

static int ublk_hold_fd(const struct frontend *f)
{
	return f->hold.fd;
}

static unsigned ublk_held(const struct frontend *f)
{
	return hold_count(&f->hold);
}

static int ublk_busy(const struct frontend *f)
{
	char device[sizeof(f->device)];

	if (!f->helper)
		return ublk_block_busy(f->device);
	memcpy(device, f->device, sizeof(device));
	return helper_ask(f->helper, HELPER_BUSY, device, sizeof(device), BUSY_MS, NULL, NULL);
}

static bool is_ours(const char *device, size_t bytes)
{
	return memchr(device, 0, bytes) && strncmp(device, "/dev/ublkb", 10) == 0 &&
	       !strchr(device + 5, '/');
}

static int ublk_help_busy(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg)
{
	return is_ours(data, bytes) ? ublk_block_busy(data) : -EINVAL;
}

/* In a child of the helper's: a disk that hangs must not keep it from stopping the device. */
static int ublk_help_scan(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg)
{
	return is_ours(data, bytes) ? child_call(partitions_read, data, SCAN_MS, NULL) : -EINVAL;
}

/*
 * What ended meanwhile, since the device was taken away by somebody else, is news again: a queue says that it
 * is over before it looks whether that is expected, so that one of us says so.
 */
static void expect_end_no_more(struct frontend *f)
{
	uint64_t one = 1;

	for (unsigned i = 0; i < f->nr_queues; i++)
		ublk_queue_expect_end(f->queues[i], false);
	if (any_queue_over(f) && write(f->gone_fd, &one, sizeof(one)) != sizeof(one))
		log_err("%s: cannot say that it is gone: %s", f->device, strerror(errno));
}

static int ublk_release(struct frontend *f, struct error *err)
{
	int ret;

	for (unsigned i = 0; i < f->nr_queues; i++)
		ublk_queue_expect_end(f->queues[i], true);
	ret = ublk_ctrl_try_stop(f->ctrl, f->info.dev_id, err);
	if (ret)
		expect_end_no_more(f);
	return ret;
}

static int ublk_resize(struct frontend *f, uint64_t size_bytes, struct error *err)
{
	uint64_t old_bytes = target_size(&f->target->limits);
	int ret;

	assert(size_bytes && is_aligned(size_bytes, f->target->limits.logical_block_bytes));
	if (size_bytes == f->driver_bytes)
		return 0;
	/* requests to what is gained come in at once, those to what is lost until the driver has done it */
	if (size_bytes > old_bytes)
		target_set_size(f->target, size_bytes);
	ret = driver_resize(f, size_bytes, err);
	if (!ret)
		target_set_size(f->target, size_bytes);
	else if (f->driver_bytes) /* else it may have the larger of the two, and requests to that go on */
		target_set_size(f->target, old_bytes);
	return ret;
}

const struct frontend_ops frontend_ublk = {
	.name = "ublk",
	.can_recover = true,
	.request_max_bytes = UBLK_REQUEST_MAX_BYTES,
	.requests_max_bytes = UBLK_REQUESTS_MAX_BYTES,
	.probe = ublk_probe,
	.help =
		{
			[HELPER_COMMAND] = ublk_ctrl_help,
			[HELPER_BUSY] = ublk_help_busy,
			[HELPER_SCAN] = ublk_help_scan,
		},
	.help_ended = ublk_ctrl_help_ended,
	.start = ublk_start,
	.id = ublk_id,
	.device = ublk_device,
	.queues = ublk_queues,
	.depth = ublk_depth,
	.data_path = ublk_data_path,
	.figures = ublk_figures,
	.gone_fd = ublk_gone_fd,
	.failed = ublk_failed,
	.hold_fd = ublk_hold_fd,
	.held = ublk_held,
	.retry = retry_held,
	.busy = ublk_busy,
	.release = ublk_release,
	.resize = ublk_resize,
	.stop = frontend_destroy,
};
