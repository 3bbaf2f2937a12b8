/* SPDX-License-Identifier: MIT */
/*
 * usercopy.c: the data path in which this program copies, by reading and writing the char device.
 *
 * A request's payload lies in the char device at a position made of queue, tag and offset (Linux 6.5). A
 * write's is read into the tag's buffer before the target gets the request, a read's is written from it
 * before the result is committed: one system call each, on the queue's thread, which never waits in it.
 * The buffers are those of the copying path.
 */
#include "ublk/usercopy.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

#define POSITION_BASE	   0x80000000ull
#define POSITION_TAG_SHIFT 25
#define POSITION_QID_SHIFT 41

int ublk_user_copy(struct ublk_tag *t, void *buf, bool to_driver)
{
	const struct ublk_queue *q = t->queue;
	uint64_t position = POSITION_BASE + ((uint64_t)q->config.queue << POSITION_QID_SHIFT) +
			    ((uint64_t)t->tag << POSITION_TAG_SHIFT);
	uint64_t done = 0;

	while (done < t->req.len_bytes) {
		char *at = (char *)buf + done;
		size_t left = t->req.len_bytes - done;
		off_t from = (off_t)(position + done);
		ssize_t n = to_driver ? pwrite(q->config.char_fd, at, left, from)
				      : pread(q->config.char_fd, at, left, from);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			log_err("ublk device %u, queue %u, tag %u: its payload cannot be copied: %s",
				q->config.dev_id, q->config.queue, t->tag,
				n ? strerror(errno) : "it is too short");
			return -EIO;
		}
		done += (uint64_t)n;
	}
	return 0;
}

static void user_arm(struct ublk_tag *t, struct io_uring_sqe *sqe, struct ublk_io_cmd *cmd)
{
	cmd->addr = 0;
}

static int user_begin(struct ublk_tag *t)
{
	void *buf = ublk_copy_buffer(t);

	t->req.buf = (struct blk_buf){.base = buf};
	return t->req.op == BLK_WRITE ? ublk_user_copy(t, buf, false) : 0;
}

static int user_end(struct ublk_tag *t, int ret)
{
	if (ret || t->req.op != BLK_READ)
		return ret;
	return ublk_user_copy(t, t->req.buf.base, true);
}

const struct ublk_data_path ublk_path_user_copy = {
	.name = "user-copy",
	.dev_flags = UBLK_F_USER_COPY,
	.setup = ublk_copy_setup,
	.teardown = ublk_copy_teardown,
	.arm = user_arm,
	.begin = user_begin,
	.end = user_end,
};
