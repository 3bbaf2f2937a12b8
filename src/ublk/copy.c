/* SPDX-License-Identifier: MIT */
/*
 * copy.c: the data path that every ublk driver has: the driver copies.
 *
 * Each tag has a buffer of its own for its whole life. The driver copies a write's payload into it
 * before the fetch completes, and a read's out of it when the result is committed, both on the
 * queue's thread. It does so by page faults like any system call, so the buffers are touched
 * before the first request: while a request waits, there may be no memory to be had. Whether they are
 * locked, like all else, is the program's to say (base/memlock.h).
 *
 * The buffers start out as zeros. What a target leaves alone in one (null does) is thus zeros, or
 * data of the same device.
 */
#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ublk/usercopy.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static void populate(char *mem, size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	if (madvise(mem, bytes, MADV_POPULATE_WRITE) == 0)
		return;
	for (size_t i = 0; i < bytes; i += page)
		((volatile char *)mem)[i] = 0;
}

int ublk_copy_memory(struct ublk_queue *q, size_t bytes, struct error *err)
{
	char *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		return error_set(err, -ENOMEM, "no memory for %zu bytes of request buffers", bytes);
	q->path_data = mem;
	q->path_bytes = bytes;
	madvise(mem, bytes, MADV_HUGEPAGE); /* a wish */
	populate(mem, bytes);
	return 0;
}

int ublk_copy_setup(struct ublk_queue *q, struct error *err)
{
	return ublk_copy_memory(q, (size_t)q->config.depth * q->config.buf_bytes, err);
}

void ublk_copy_teardown(struct ublk_queue *q)
{
	if (q->path_data)
		munmap(q->path_data, q->path_bytes);
	q->path_data = NULL;
}

void *ublk_copy_buffer(const struct ublk_tag *t)
{
	return (char *)t->queue->path_data + (size_t)t->tag * t->queue->config.buf_bytes;
}

static void copy_arm(struct ublk_tag *t, struct io_uring_sqe *sqe, struct ublk_io_cmd *cmd)
{
	cmd->addr = (uintptr_t)ublk_copy_buffer(t);
}

static int copy_begin(struct ublk_tag *t)
{
	t->req.buf = (struct blk_buf){.base = ublk_copy_buffer(t)};
	return 0;
}

static int copy_end(struct ublk_tag *t, int ret)
{
	return ret;
}

const struct ublk_data_path ublk_path_copy = {
	.name = "copy",
	.setup = ublk_copy_setup,
	.teardown = ublk_copy_teardown,
	.arm = copy_arm,
	.begin = copy_begin,
	.end = copy_end,
};
