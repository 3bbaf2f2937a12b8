/* SPDX-License-Identifier: MIT */
/*
 * loopdev.c: loop devices, as far as this front end needs them.
 *
 * Claiming. Between LOOP_CTL_GET_FREE and LOOP_CONFIGURE anybody may take the device. But the
 * kernel refuses LOOP_CONFIGURE to all others while somebody holds the device open with O_EXCL; so
 * it is opened that way first, then found to be unbound, and is ours.
 *
 * Detaching. LOOP_CLR_FD succeeds always. If nobody but the caller has the device open, it is
 * detached at the caller's close; otherwise it gets the autoclear flag and goes away when the last
 * user closes it. There is no question to ask in advance that is not stale when it is answered, and
 * so the answer is read off the outcome: LOOP_GET_STATUS64 gives ENXIO in the first case. A device
 * that is going down fails its I/O, the write-back of pages that somebody wrote without syncing
 * included; therefore fsync() comes first.
 *
 * While the device is up it does not have the autoclear flag: the next one to look at it (udev
 * does) would take it down by closing it.
 */
#include "fuse/loopdev.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/math.h"

enum {
	NODE_WAIT_MS = 3000,  /* until the device node of a new loop device is there */
	CONFIGURE_TRIES = 50, /* LOOP_CONFIGURE says EAGAIN while caches are being dropped */
	POLL_MS = 20,
	BUSY_TRIES = 4, /* a look at the device by udev is not a use of it */
	BUSY_WAIT_MS = 60,
};

static void sleep_ms(unsigned ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&ts, NULL);
}

void loopdev_path(char out[LOOPDEV_PATH_BYTES], int number)
{
	snprintf(out, LOOPDEV_PATH_BYTES, "/dev/loop%d", number);
}

static int control_open(struct error *err)
{
	int fd = open("/dev/loop-control", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return error_set(err, -errno,
				 "/dev/loop-control: %s (--no-loop does without a loop device)",
				 strerror(errno));
	return fd;
}

int loopdev_find_free(struct error *err)
{
	int ctl = control_open(err), number;

	if (ctl < 0)
		return ctl;
	number = ioctl(ctl, LOOP_CTL_GET_FREE);
	if (number < 0)
		number = error_set(err, -errno, "no free loop device: %s", strerror(errno));
	close(ctl);
	return number;
}

static int claim_open(const char *path)
{
	int fd = open(path, O_RDWR | O_EXCL | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* Opens the node of a device that has just been made, or is being made. */
static int claim_open_new(int number, const char *path, struct error *err)
{
	int ctl = control_open(err), fd;

	if (ctl < 0)
		return ctl;
	if (ioctl(ctl, LOOP_CTL_ADD, number) < 0 && errno != EEXIST) {
		fd = error_set(err, -errno, "%s cannot be made: %s", path, strerror(errno));
		close(ctl);
		return fd;
	}
	close(ctl);
	for (unsigned ms = 0;; ms += POLL_MS) {
		fd = claim_open(path);
		if ((fd != -ENOENT && fd != -ENXIO && fd != -ENODEV) || ms >= NODE_WAIT_MS)
			return fd;
		sleep_ms(POLL_MS);
	}
}

int loopdev_claim(int number, struct error *err)
{
	char path[LOOPDEV_PATH_BYTES];
	struct loop_info64 info;
	int fd;

	loopdev_path(path, number);
	fd = claim_open(path);
	if (fd == -ENOENT || fd == -ENXIO || fd == -ENODEV)
		fd = claim_open_new(number, path, err);
	if (fd < 0)
		return error_set(err, fd, "%s: %s", path, strerror(-fd));
	/* Other errors are those of a backing file that does not answer any more: in use, too. */
	if (ioctl(fd, LOOP_GET_STATUS64, &info) == 0 || errno != ENXIO) {
		close(fd);
		return error_set(err, -EBUSY, "%s is in use", path);
	}
	return fd;
}

static int configure(int claim_fd, const struct loop_config *config)
{
	for (int i = 0;; i++) {
		if (ioctl(claim_fd, LOOP_CONFIGURE, config) == 0)
			return 0;
		if (errno != EAGAIN || i == CONFIGURE_TRIES)
			return -errno;
		sleep_ms(POLL_MS);
	}
}

/* Takes the device down again if it did not come out as wanted. */
static int bound_check(int claim_fd, int number, const struct loopdev_params *params,
		       struct error *err)
{
	struct loop_info64 info;
	uint64_t size_bytes = 0;

	if (ioctl(claim_fd, BLKGETSIZE64, &size_bytes) < 0 || size_bytes != params->size_bytes) {
		/* the claim makes us the only user: this is at once, at the claim's close */
		ioctl(claim_fd, LOOP_CLR_FD);
		return error_set(err, -EIO, "/dev/loop%d came out with %llu bytes instead of %llu",
				 number, (unsigned long long)size_bytes,
				 (unsigned long long)params->size_bytes);
	}
	if (ioctl(claim_fd, LOOP_GET_STATUS64, &info) < 0 || !(info.lo_flags & LO_FLAGS_DIRECT_IO))
		log_warn("/dev/loop%d: the kernel does not grant it direct I/O, it will be slow",
			 number);
	return 0;
}

/* Only a matter of speed, or of how much is compressed. */
static void request_limit(int number, uint32_t bytes)
{
	char path[64], text[16];
	int fd, len = snprintf(text, sizeof(text), "%u", bytes / 1024);

	snprintf(path, sizeof(path), "/sys/block/loop%d/queue/max_sectors_kb", number);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, (size_t)len) != len)
		log_warn("%s cannot be set to %s: %s", path, text, strerror(errno));
	if (fd >= 0)
		close(fd);
}

int loopdev_bind(int claim_fd, int number, int backing_fd, const struct loopdev_params *params,
		 struct error *err)
{
	struct loop_config config = {
		.fd = (uint32_t)backing_fd,
		.block_size = params->block_bytes,
		.info.lo_flags = LO_FLAGS_DIRECT_IO |
				 (params->part_scan ? LO_FLAGS_PARTSCAN : 0) |
				 (params->read_only ? LO_FLAGS_READ_ONLY : 0),
	};
	struct stat st;
	int ret;

	/* fstat(): so that the kernel knows the file's size, which it takes for the device's */
	if (fstat(backing_fd, &st) < 0)
		return error_set(err, -errno, "%s: %s", params->backing_path, strerror(errno));
	snprintf((char *)config.info.lo_file_name, sizeof(config.info.lo_file_name), "%s",
		 params->backing_path);
	ret = configure(claim_fd, &config);
	if (ret)
		error_set(err, ret, "/dev/loop%d: %s", number, strerror(-ret));
	else
		ret = bound_check(claim_fd, number, params, err);
	if (!ret && params->request_bytes)
		request_limit(number, params->request_bytes);
	return ret;
}

/* A file of sysfs, without the newline; false if it is not there. */
static bool sysfs_read(int number, const char *name, char *text, size_t size)
{
	char path[64];
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "/sys/block/loop%d/%s", number, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	len = read(fd, text, size - 1);
	close(fd);
	if (len <= 0)
		return false;
	text[text[len - 1] == '\n' ? len - 1 : len] = '\0';
	return true;
}

uint64_t loopdev_seq(int number)
{
	char text[32];

	return sysfs_read(number, "diskseq", text, sizeof(text)) ? strtoull(text, NULL, 10) : 0;
}

bool loopdev_is_bound(const struct loopdev_use *use)
{
	char path[PATH_MAX];
	uint64_t seq;

	if (!sysfs_read(use->number, "loop/backing_file", path, sizeof(path)))
		return false;
	seq = loopdev_seq(use->number);
	return use->seq && seq ? use->seq == seq : strcmp(path, use->backing_path) == 0;
}

/*
 * Tells the kernel the size that a file of FUSE has already. An answer to "what size have you?" is dropped if
 * a write has ended since it was asked, though who asked is shown it: under I/O the file would go on ending where
 * it did, for who reads it. The answer to a truncation always counts.
 */
static int file_size_tell(const char *path, uint64_t size_bytes, struct error *err)
{
	struct stat st = {0};
	int fd = open(path, O_WRONLY | O_CLOEXEC), ret = 0;

	if (fd < 0)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (ftruncate(fd, (off_t)size_bytes) || fstat(fd, &st))
		ret = error_set(err, -errno, "%s: %s", path, strerror(errno));
	else if ((uint64_t)st.st_size != size_bytes)
		ret = error_set(err, -EIO, "%s: the kernel says that it has %llu bytes", path,
				(unsigned long long)st.st_size);
	close(fd);
	return ret;
}

int loopdev_resize(int number, const char *backing_path, uint64_t size_bytes, struct error *err)
{
	char path[LOOPDEV_PATH_BYTES];
	uint64_t device_bytes = 0;
	int fd, ret = file_size_tell(backing_path, size_bytes, err);

	if (ret || number < 0)
		return ret;
	loopdev_path(path, number);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (ioctl(fd, LOOP_SET_CAPACITY, 0) < 0 || ioctl(fd, BLKGETSIZE64, &device_bytes) < 0)
		ret = error_set(err, -errno, "%s cannot be resized: %s", path, strerror(errno));
	else if (device_bytes != size_bytes)
		ret = error_set(err, -EIO, "%s came out with %llu bytes instead of %llu", path,
				(unsigned long long)device_bytes, (unsigned long long)size_bytes);
	close(fd);
	return ret;
}

/* ---- who uses it ---- */

/* @link is what /proc shows for an open file: is it the device, or a partition of it? */
static bool link_is_device(const char *link, const char *path)
{
	size_t len = strlen(path);

	if (strncmp(link, path, len))
		return false;
	link += len;
	if (*link == 'p' && isdigit((unsigned char)link[1]))
		link += 1 + strspn(link + 1, "0123456789");
	return *link == '\0';
}

/*
 * A descriptor that only names the file (O_PATH) does not have it open: servers of shared folders
 * (virtiofsd) hold such for all they have ever seen.
 */
static bool descriptor_is_path(int proc_fd, const char *pid, const char *fd_name)
{
	char name[64], text[256], *flags;
	ssize_t len;
	int fd;

	snprintf(name, sizeof(name), "%.20s/fdinfo/%.20s", pid, fd_name);
	fd = openat(proc_fd, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	len = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (len <= 0)
		return false;
	text[len] = '\0';
	flags = strstr(text, "flags:");
	return flags && (strtoul(flags + 6, NULL, 8) & O_PATH);
}

static bool process_has_open(int proc_fd, const char *pid, const char *path)
{
	char name[64], link[256];
	struct dirent *de;
	bool found = false;
	DIR *dir;
	int fd;

	snprintf(name, sizeof(name), "%.32s/fd", pid);
	fd = openat(proc_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return false; /* it has ended */
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return false;
	}
	while (!found && (de = readdir(dir))) {
		/* readlink() and not stat(): the latter may hang on files of servers that do not
		 * answer */
		ssize_t len = readlinkat(fd, de->d_name, link, sizeof(link) - 1);

		if (len > 0) {
			link[len] = '\0';
			found = link_is_device(link, path) &&
				!descriptor_is_path(proc_fd, pid, de->d_name);
		}
	}
	closedir(dir);
	return found;
}

/* Those who have it open without a claim on it. Whose table we may not read is not seen. */
static int opened_by_process(const char *path)
{
	struct dirent *de;
	bool found = false;
	DIR *dir = opendir("/proc");

	if (!dir)
		return -errno;
	while (!found && (de = readdir(dir))) {
		if (isdigit((unsigned char)de->d_name[0]))
			found = process_has_open(dirfd(dir), de->d_name, path);
	}
	closedir(dir);
	return found;
}

static int busy_once(const char *path)
{
	/* A file system, swap, a partition's or a mapper's claim: all of them hold it exclusively.
	 */
	int fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);

	if (fd < 0)
		return errno == EBUSY ? 1 : errno == ENXIO || errno == ENOENT ? 0 : -errno;
	close(fd);
	return opened_by_process(path);
}

int loopdev_busy(int number)
{
	char path[LOOPDEV_PATH_BYTES];
	int busy = 1;

	loopdev_path(path, number);
	for (int i = 0; i < BUSY_TRIES && busy > 0; i++) {
		if (i)
			sleep_ms(BUSY_WAIT_MS);
		busy = busy_once(path);
	}
	return busy;
}

/* ---- detaching ---- */

/* True if it was, and is detached when @fd is closed. */
static bool clear_as_only_user(int fd)
{
	struct loop_info64 info;

	if (ioctl(fd, LOOP_CLR_FD) < 0)
		return errno == ENXIO;
	return ioctl(fd, LOOP_GET_STATUS64, &info) < 0 && errno == ENXIO;
}

int loopdev_detach(const struct loopdev_use *use, unsigned timeout_ms, struct error *err)
{
	char path[LOOPDEV_PATH_BYTES];
	unsigned ms = 0;
	bool cleared;
	int fd;

	loopdev_path(path, use->number);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENXIO || errno == ENOENT
			       ? 0
			       : error_set(err, -errno, "%s: %s", path, strerror(errno));
	/* While it is open here it cannot become another's. */
	if (!loopdev_is_bound(use)) {
		close(fd);
		return 0;
	}
	if (fsync(fd))
		log_warn("%s: what was written last could not be stored: %s", path,
			 strerror(errno));
	while (!(cleared = clear_as_only_user(fd)) && ms < timeout_ms) {
		sleep_ms(POLL_MS);
		ms += POLL_MS;
	}
	close(fd);
	if (!cleared)
		return error_set(err, -EBUSY,
				 "%s is still open; it goes away when its last user closes it",
				 path);
	while (loopdev_is_bound(use)) {
		if (ms >= timeout_ms)
			return error_set(err, -EBUSY, "%s does not go away", path);
		sleep_ms(POLL_MS);
		ms += POLL_MS;
	}
	return 0;
}
