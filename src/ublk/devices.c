/* SPDX-License-Identifier: MIT */
/*
 * devices.c: see ublk.h.
 *
 * Whether a disk is in use is asked in two ways, because neither sees all. An exclusive open fails
 * if the disk or a partition of it is mounted (in any mount namespace), is swap, or is held by
 * another block driver (LVM, dm-crypt, RAID): that is the kernel's own and reliable. A plain
 * open by a program (fio, qemu, dd) claims nothing and is only found by looking through the
 * open files of all processes that this one may look into, which for root is all of its PID
 * namespace. A use that begins right after the answer is seen by neither.
 */
#include "ublk/ublk.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "ublk/ctrl.h"

static const char *state_name(unsigned state)
{
	switch (state) {
	case UBLK_STATE_DEAD:
		return "dead";
	case UBLK_STATE_LIVE:
		return "live";
	case UBLK_STATE_QUIESCED:
		return "quiesced";
	case UBLK_STATE_FAIL_IO:
		return "fail-io";
	default:
		return "unknown";
	}
}

/* The number in a name such as "ublkc12"; -1 if it is not one. */
static long char_node_id(const char *name)
{
	char *end;
	long id;

	if (strncmp(name, "ublkc", 5) != 0 || !isdigit((unsigned char)name[5]))
		return -1;
	errno = 0;
	id = strtol(name + 5, &end, 10);
	return errno || *end || id > INT_MAX ? -1 : id;
}

static int compare_devices(const void *a, const void *b)
{
	const struct ublk_device *x = a, *y = b;

	return x->id < y->id ? -1 : x->id > y->id;
}

/*
 * Whether a process can still serve. One that is killed is a zombie while its other threads are on their
 * way out, and the driver learns of its end only after them.
 */
static bool process_there(pid_t pid)
{
	char path[32], text[256], *state;
	ssize_t len;
	int fd;

	if (pid <= 0 || (kill(pid, 0) && errno != EPERM))
		return false;
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno != ENOENT;
	len = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (len <= 0)
		return len < 0 && errno != ESRCH;
	text[len] = '\0';
	state = strrchr(text, ')'); /* what stands before is a name of any characters */
	return !state || (strncmp(state, ") Z", 3) != 0 && strncmp(state, ") X", 3) != 0);
}

/*
 * A device that is being started is not live yet. Its server has the char device open, which only one can
 * have.
 */
static bool is_held(unsigned id)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/dev/ublkc%u", id);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return errno == EBUSY;
	close(fd);
	return false;
}

static void device_fill(struct ublk_device *out, unsigned id, const struct ublk_dev_info *info)
{
	*out = (struct ublk_device){
		.id = id,
		.queues = info->nr_hw_queues,
		.depth = info->queue_depth,
		.server_pid = info->ublksrv_pid,
		.state = state_name(info->state),
		.served = info->state == UBLK_STATE_LIVE && process_there(info->ublksrv_pid),
		.unprivileged = info->flags & UBLK_F_UNPRIVILEGED_DEV,
		.owner_uid = info->owner_uid,
		.owner_gid = info->owner_gid,
		.recoverable = info->state == UBLK_STATE_QUIESCED || info->state == UBLK_STATE_FAIL_IO,
	};
}

int ublk_device_get(unsigned id, struct ublk_device *out, struct error *err)
{
	struct ublk_dev_info info;
	struct ublk_ctrl *ctrl;
	int ret = ublk_ctrl_open(&ctrl, err);

	if (ret)
		return ret;
	ret = ublk_ctrl_info(ctrl, id, &info, err);
	if (!ret)
		device_fill(out, id, &info);
	ublk_ctrl_close(ctrl);
	return ret;
}

int ublk_devices(struct ublk_device *devices, size_t max, struct error *err)
{
	struct ublk_ctrl *ctrl;
	struct dirent *entry;
	size_t nr = 0;
	DIR *dir;
	int ret = ublk_ctrl_open(&ctrl, err);

	if (ret)
		return ret;
	dir = opendir("/dev");
	if (!dir) {
		ret = error_set(err, -errno, "cannot read /dev: %s", strerror(errno));
		ublk_ctrl_close(ctrl);
		return ret;
	}
	while ((entry = readdir(dir))) {
		long id = char_node_id(entry->d_name);
		struct ublk_dev_info info;

		/* one that is gone by now, or whose node is somebody's left-over, is none */
		if (id < 0 || ublk_ctrl_info(ctrl, (uint32_t)id, &info, NULL))
			continue;
		if (nr++ >= max)
			continue;
		device_fill(&devices[nr - 1], (unsigned)id, &info);
	}
	closedir(dir);
	ublk_ctrl_close(ctrl);
	qsort(devices, nr < max ? nr : max, sizeof(*devices), compare_devices);
	return (int)nr;
}

bool ublk_device_is_orphan(const struct ublk_device *d)
{
	return !d->served && !process_there(d->server_pid) && !is_held(d->id);
}

bool ublk_device_is_starting(const struct ublk_device *d)
{
	return !d->served && process_there(d->server_pid) && is_held(d->id);
}

int ublk_device_delete(unsigned id, bool *lingers, struct error *err)
{
	struct ublk_dev_info info;
	struct ublk_ctrl *ctrl;
	int ret = ublk_ctrl_open(&ctrl, err);

	*lingers = false;
	if (ret)
		return ret;
	ret = ublk_ctrl_info(ctrl, id, &info, err);
	if (!ret)
		ublk_ctrl_unprivileged(ctrl, info.flags & UBLK_F_UNPRIVILEGED_DEV);
	if (!ret)
		ret = ublk_ctrl_stop(ctrl, id, err);
	if (!ret)
		ret = ublk_ctrl_del(ctrl, id, UBLK_STOP_MS, lingers, err);
	ublk_ctrl_close(ctrl);
	return ret;
}

/* ---- in use? ---- */

/* Whether @rdev is the disk @disk or one of its partitions, as the directory in sysfs tells. */
static bool part_of(dev_t rdev, dev_t disk)
{
	char link[64], target[PATH_MAX];
	char disk_link[64], disk_target[PATH_MAX];
	ssize_t len, disk_len;

	if (rdev == disk)
		return true;
	snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(rdev), minor(rdev));
	snprintf(disk_link, sizeof(disk_link), "/sys/dev/block/%u:%u", major(disk), minor(disk));
	len = readlink(link, target, sizeof(target) - 1);
	disk_len = readlink(disk_link, disk_target, sizeof(disk_target) - 1);
	return len > 0 && disk_len > 0 && len > disk_len && target[disk_len] == '/' &&
	       memcmp(target, disk_target, (size_t)disk_len) == 0;
}

static bool process_has_open(const char *pid, dev_t disk)
{
	char path[300], link[64];
	struct dirent *entry;
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	dir = opendir(path);
	if (!dir)
		return false;
	while (!found && (entry = readdir(dir))) {
		struct stat st;

		/* only what looks like a device: asking a dead network file system could hang */
		if (readlinkat(dirfd(dir), entry->d_name, link, sizeof(link)) < 6 ||
		    memcmp(link, "/dev/", 5) != 0)
			continue;
		if (fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 && S_ISBLK(st.st_mode))
			found = part_of(st.st_rdev, disk);
	}
	closedir(dir);
	return found;
}

static bool anybody_has_open(dev_t disk)
{
	DIR *dir = opendir("/proc");
	struct dirent *entry;
	bool found = false;

	if (!dir)
		return false;
	while (!found && (entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]))
			found = process_has_open(entry->d_name, disk);
	closedir(dir);
	return found;
}

/* Somebody has taken it away: nobody can use it any more, whoever still has it open. */
static bool disk_is_gone(const char *path)
{
	const char *name = strrchr(path, '/');
	char disk[64];
	int len = snprintf(disk, sizeof(disk), "/sys/block/%s", name ? name + 1 : path);

	return len < (int)sizeof(disk) && access("/sys/block", F_OK) == 0 && access(disk, F_OK) && errno == ENOENT;
}

int ublk_block_busy(const char *path)
{
	struct stat st;
	int fd;

	if (disk_is_gone(path))
		return 0;
	if (stat(path, &st))
		return -errno;
	if (!S_ISBLK(st.st_mode))
		return -ENOTBLK;
	fd = open(path, O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return errno == EBUSY ? 1 : -errno;
	close(fd);
	return anybody_has_open(st.st_rdev);
}
