/* SPDX-License-Identifier: MIT */
/*
 * stripe.c: a block device whose chunks lie in several files in turn (RAID 0): a ublkdev program with I/O
 * through the queues' io_urings, without a copy where the kernel can, that survives its own death.
 *
 *	stripe [-c CHUNK_KIB] [-p DATA_PATH] [-q QUEUES] [-r ID] FILE...
 *
 * prints the device's path and serves it until SIGINT or SIGTERM. Needs root. The files (or block devices) are
 * there and of one size, all of which is used, in whole chunks of 64 KiB if not said otherwise. Chunk N of the
 * device is chunk N / files of file N % files; so what is contiguous on the device is contiguous in each file.
 *
 * A device keeps no READ or WRITE that crosses a chunk (limits.chunk), so each is one operation on one file,
 * with the request's own pages (registered_buffers) or with memory. The others are one on each file that they
 * touch, and complete when the last of them does.
 *
 * Nothing is kept in memory that is not in the files or in a request. So when this is killed, another one
 * that is called with the same files and -r ID goes on with device ID, and its users notice nothing: what was
 * in flight comes again, and doing it twice does no harm.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <liburing.h>

#include <ublkdev.h>

#define FILES_MAX 16
#define BLOCK	  4096 /* good for O_DIRECT anywhere */

struct stripe {
	uint64_t chunk;
	unsigned nr_files;
	char **names;
	int fds[FILES_MAX];
};

/* What a request has under way; in the memory that the library keeps for it. */
struct stripe_io {
	struct ublkdev_request *req;
	unsigned pending;
	int result;
	struct stripe_part {
		struct ublkdev_sqe_op op;
		struct stripe_io *io;
		uint64_t length; /* of the data that is to be moved; 0: none */
	} parts[FILES_MAX];
};

/* ---- where things are ---- */

/* How many of the device's first @offset bytes are in file @i: where what comes next begins there. */
static uint64_t file_offset(const struct stripe *s, unsigned i, uint64_t offset)
{
	uint64_t row = s->chunk * s->nr_files, in_row = offset % row, before = i * s->chunk;
	uint64_t part = in_row <= before ? 0 : in_row - before;

	return offset / row * s->chunk + (part < s->chunk ? part : s->chunk);
}

/* ---- requests ---- */

static void part_complete(struct ublkdev_sqe_op *op, int res, uint32_t flags)
{
	struct stripe_part *part = (struct stripe_part *)((char *)op - offsetof(struct stripe_part, op));
	struct stripe_io *io = part->io;

	(void)flags;
	if (res >= 0)
		res = part->length && (uint64_t)res != part->length ? -EIO : 0;
	if (res < 0 && !io->result)
		io->result = res;
	if (--io->pending == 0)
		ublkdev_complete(io->req, io->result);
}

static struct io_uring_sqe *part_begin(struct stripe_io *io, struct ublkdev_queue *queue, unsigned i,
				       uint64_t length)
{
	io->parts[i].io = io;
	io->parts[i].length = length;
	io->parts[i].op.complete = part_complete;
	io->pending++;
	return ublkdev_sqe(queue, &io->parts[i].op);
}

/* READ or WRITE, inside one chunk. */
static void transfer(struct stripe *s, struct ublkdev_queue *queue, struct stripe_io *io)
{
	uint64_t offset = ublkdev_request_offset(io->req);
	unsigned i = (unsigned)(offset / s->chunk % s->nr_files);
	unsigned length = (unsigned)ublkdev_request_length(io->req);
	bool write = ublkdev_request_op(io->req) == UBLKDEV_WRITE;
	int index = ublkdev_request_buffer_index(io->req);
	void *buf = ublkdev_request_buffer(io->req); /* NULL, with an index: an offset in the request's pages */
	struct io_uring_sqe *sqe = part_begin(io, queue, i, length);
	uint64_t at = file_offset(s, i, offset);

	if (index >= 0 && write)
		io_uring_prep_write_fixed(sqe, s->fds[i], buf, length, at, index);
	else if (index >= 0)
		io_uring_prep_read_fixed(sqe, s->fds[i], buf, length, at, index);
	else if (write)
		io_uring_prep_write(sqe, s->fds[i], buf, length, at);
	else
		io_uring_prep_read(sqe, s->fds[i], buf, length, at);
	ublkdev_sqe_bind(sqe, &io->parts[i].op);
}

/* DISCARD and WRITE_ZEROES: a hole in each file, which reads as zeros. */
static void punch(struct stripe *s, struct ublkdev_queue *queue, struct stripe_io *io)
{
	uint64_t first = ublkdev_request_offset(io->req), end = first + ublkdev_request_length(io->req);

	for (unsigned i = 0; i < s->nr_files; i++) {
		uint64_t from = file_offset(s, i, first), to = file_offset(s, i, end);
		struct io_uring_sqe *sqe;

		if (from == to)
			continue;
		sqe = part_begin(io, queue, i, 0);
		io_uring_prep_fallocate(sqe, s->fds[i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from,
					(off_t)(to - from));
		ublkdev_sqe_bind(sqe, &io->parts[i].op);
	}
}

static void flush(struct stripe *s, struct ublkdev_queue *queue, struct stripe_io *io)
{
	for (unsigned i = 0; i < s->nr_files; i++) {
		struct io_uring_sqe *sqe = part_begin(io, queue, i, 0);

		io_uring_prep_fsync(sqe, s->fds[i], IORING_FSYNC_DATASYNC);
		ublkdev_sqe_bind(sqe, &io->parts[i].op);
	}
}

/* No part completes before this returns: completions come in from the queue's loop. */
static void stripe_submit(void *data, struct ublkdev_queue *queue, struct ublkdev_request *req)
{
	struct stripe_io *io = ublkdev_request_data(req);

	io->req = req;
	io->pending = 0;
	io->result = 0;
	switch (ublkdev_request_op(req)) {
	case UBLKDEV_READ:
	case UBLKDEV_WRITE:
		transfer(data, queue, io);
		break;
	case UBLKDEV_DISCARD:
	case UBLKDEV_WRITE_ZEROES:
		punch(data, queue, io);
		break;
	case UBLKDEV_FLUSH:
		flush(data, queue, io);
		break;
	}
}

/* ---- the device ---- */

static void stripe_close(void *data)
{
	struct stripe *s = data;

	for (unsigned i = 0; i < s->nr_files; i++)
		if (s->fds[i] >= 0)
			close(s->fds[i]);
}

static int open_file(const char *name, uint64_t *size, struct ublkdev_error *err)
{
	int fd = open(name, O_RDWR | O_DIRECT | O_CLOEXEC), ret;
	off_t end;

	if (fd < 0 && errno == EINVAL) /* a file system without it */
		fd = open(name, O_RDWR | O_CLOEXEC);
	end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	if (end < 0) {
		ret = -errno;
		snprintf(err->text, sizeof(err->text), "%s: %s", name, strerror(-ret));
		if (fd >= 0)
			close(fd);
		return ret;
	}
	*size = (uint64_t)end;
	return fd;
}

static int stripe_open(void *data, struct ublkdev_limits *limits, struct ublkdev_error *err)
{
	struct stripe *s = data;
	uint64_t size = 0, first = 0;

	for (unsigned i = 0; i < s->nr_files; i++) {
		int fd = open_file(s->names[i], &size, err);

		if (fd < 0) {
			stripe_close(s);
			return fd;
		}
		s->fds[i] = fd;
		if (i == 0)
			first = size;
		if (size < s->chunk || size != first) {
			snprintf(err->text, sizeof(err->text), "%s: %s", s->names[i],
				 size == first ? "is less than a chunk" : "has another size than the first file");
			stripe_close(s);
			return -EINVAL;
		}
	}
	limits->size = size / s->chunk * s->chunk * s->nr_files;
	limits->logical_block = BLOCK;
	limits->io_opt = (uint32_t)s->chunk;
	limits->chunk = (uint32_t)s->chunk;
	limits->discard_granularity = BLOCK;
	limits->max_write_zeroes = 1 << 30;
	limits->volatile_cache = true; /* the disk's under the files: FLUSH is fdatasync() */
	return 0;
}

static const struct ublkdev_ops stripe_ops = {
	.name = "stripe",
	.request_bytes = sizeof(struct stripe_io),
	.registered_buffers = true,
	.open = stripe_open,
	.submit = stripe_submit,
	.close = stripe_close,
};

static void ready(void *data, const char *path)
{
	(void)data;
	puts(path);
	fflush(stdout);
}

static int usage(void)
{
	fprintf(stderr,
		"usage: stripe [-c CHUNK_KIB] [-p copy|user-copy|zero-copy] [-q QUEUES] [-r ID] FILE... (2 to %d)\n",
		FILES_MAX);
	return 2;
}

static bool data_path_find(const char *name, enum ublkdev_data_path *path)
{
	static const char *const names[] = {
		[UBLKDEV_DATA_COPY] = "copy",
		[UBLKDEV_DATA_USER_COPY] = "user-copy",
		[UBLKDEV_DATA_ZERO_COPY] = "zero-copy",
	};

	for (size_t i = UBLKDEV_DATA_COPY; i < sizeof(names) / sizeof(*names); i++) {
		if (strcmp(name, names[i]))
			continue;
		*path = (enum ublkdev_data_path)i;
		return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	struct ublkdev_options options = {.id = -1, .queues = 1, .recovery = UBLKDEV_RECOVERY_REISSUE};
	struct stripe stripe = {.chunk = 64 << 10};
	struct ublkdev_error err = {""};
	int opt;

	while ((opt = getopt(argc, argv, "c:p:q:r:")) != -1) {
		switch (opt) {
		case 'c':
			stripe.chunk = strtoull(optarg, NULL, 10) << 10;
			break;
		case 'p':
			if (!data_path_find(optarg, &options.data_path))
				return usage();
			break;
		case 'q':
			options.queues = (unsigned)atoi(optarg);
			break;
		case 'r':
			options.id = atoi(optarg);
			options.recover = true;
			break;
		default:
			return usage();
		}
	}
	stripe.names = argv + optind;
	if (argc - optind < 2 || argc - optind > FILES_MAX || !options.queues || stripe.chunk < BLOCK ||
	    stripe.chunk > 1 << 30 || (stripe.chunk & (stripe.chunk - 1)))
		return usage();
	stripe.nr_files = (unsigned)(argc - optind);
	memset(stripe.fds, -1, sizeof(stripe.fds));
	if (ublkdev_run(&stripe_ops, &stripe, &options, ready, &err)) {
		fprintf(stderr, "stripe: %s\n", err.text);
		return 1;
	}
	return 0;
}
