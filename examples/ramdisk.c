/* SPDX-License-Identifier: MIT */
/*
 * ramdisk.c: a block device made of memory: a whole ublkdev program.
 *
 *	ramdisk SIZE [QUEUES]
 *
 * prints the device's path and serves it until SIGINT or SIGTERM. Needs root. What is written is
 * gone when it ends.
 *
 * The memory is a memfd: blocks that nobody has written take none, and what is discarded is given
 * back. It is read and written by system calls rather than mapped, because running out of memory is
 * then an error for one request and no SIGBUS for the program. Requests of several queues may touch the
 * same blocks at the same time; as on a real disk, what two overlapping writes leave behind is not
 * defined.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <ublkdev.h>

#define BLOCK 4096

struct ramdisk {
	uint64_t size;
	int fd;
};

static int ramdisk_open(void *data, struct ublkdev_limits *limits, struct ublkdev_error *err)
{
	struct ramdisk *disk = data;

	disk->fd = memfd_create("ramdisk", MFD_CLOEXEC);
	if (disk->fd < 0 || ftruncate(disk->fd, (off_t)disk->size)) {
		int ret = -errno;

		snprintf(err->text, sizeof(err->text), "no memory file of %llu bytes: %s",
			 (unsigned long long)disk->size, strerror(errno));
		if (disk->fd >= 0)
			close(disk->fd);
		return ret;
	}
	limits->size = disk->size;
	limits->discard_granularity = BLOCK;
	limits->max_write_zeroes = 1 << 30;
	return 0;
}

static int transfer(struct ramdisk *disk, bool write, char *buf, uint64_t offset, uint64_t length)
{
	while (length) {
		ssize_t n = write ? pwrite(disk->fd, buf, length, (off_t)offset)
				  : pread(disk->fd, buf, length, (off_t)offset);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0)
			return -EIO;
		if (n > 0) {
			buf += n;
			offset += (uint64_t)n;
			length -= (uint64_t)n;
		}
	}
	return 0;
}

/* Gives memory back; what was there reads as zeros. */
static int punch(struct ramdisk *disk, uint64_t offset, uint64_t length)
{
	if (fallocate(disk->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		      (off_t)length))
		return -errno;
	return 0;
}

static void ramdisk_submit(void *data, struct ublkdev_queue *queue, struct ublkdev_request *req)
{
	struct ramdisk *disk = data;
	char *buf = ublkdev_request_buffer(req);
	uint64_t offset = ublkdev_request_offset(req);
	uint64_t length = ublkdev_request_length(req);
	int ret = 0;

	(void)queue;
	switch (ublkdev_request_op(req)) {
	case UBLKDEV_READ:
		ret = transfer(disk, false, buf, offset, length);
		break;
	case UBLKDEV_WRITE:
		ret = transfer(disk, true, buf, offset, length);
		break;
	case UBLKDEV_DISCARD:
	case UBLKDEV_WRITE_ZEROES: /* UBLKDEV_NOUNMAP is a wish: memory cannot be reserved anyway */
		ret = punch(disk, offset, length);
		break;
	case UBLKDEV_FLUSH: /* not sent: there is no cache to flush */
		break;
	}
	ublkdev_complete(req, ret);
}

static void ramdisk_close(void *data)
{
	struct ramdisk *disk = data;

	close(disk->fd);
}

static const struct ublkdev_ops ramdisk_ops = {
	.name = "ramdisk",
	.open = ramdisk_open,
	.submit = ramdisk_submit,
	.close = ramdisk_close,
};

static void ready(void *data, const char *path)
{
	(void)data;
	puts(path);
	fflush(stdout);
}

/* "64M" and the like, in whole blocks; 0 if it is none. */
static uint64_t parse_size(const char *text)
{
	static const char suffixes[] = "KMGT";
	unsigned shift = 0;
	unsigned long long value;
	const char *suffix;
	char *end;

	if (*text < '0' || *text > '9')
		return 0;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (*end && (suffix = strchr(suffixes, *end))) {
		shift = 10 * (unsigned)(suffix - suffixes + 1);
		end++;
	}
	if (errno || *end || value > ((uint64_t)INT64_MAX >> shift))
		return 0;
	return value << shift & ~(uint64_t)(BLOCK - 1);
}

int main(int argc, char **argv)
{
	struct ublkdev_options options = {.id = -1, .queues = 1};
	struct ublkdev_error err = {""};
	struct ramdisk disk = {0};
	int ret;

	if (argc == 2 || argc == 3)
		disk.size = parse_size(argv[1]);
	if (argc == 3)
		options.queues = (unsigned)atoi(argv[2]);
	if (!disk.size || !options.queues) {
		fprintf(stderr, "usage: ramdisk SIZE [QUEUES]\n");
		return 2;
	}
	ret = ublkdev_run(&ramdisk_ops, &disk, &options, ready, &err);
	if (ret) {
		fprintf(stderr, "ramdisk: %s\n", err.text);
		return 1;
	}
	return 0;
}
