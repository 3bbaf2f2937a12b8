/* SPDX-License-Identifier: MIT */
/*
 * null.c: a device that forgets what is written and does every request at once: the yardstick for
 * everything but storage.
 *
 * Reads leave the request's buffer as it is, so what they return is zeros or older data of the same
 * device: buffers are zeroed when a front end makes them, and belong to one device. Registered buffers are
 * the kernel's pages, so a read takes memory instead.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/math.h"
#include "target/target.h"

#define DEFAULT_SIZE (250 * GiB)
#define MAX_QUEUES   4096

static int null_open(struct target **out, const struct target_options *opts, struct error *err)
{
	uint64_t size = opts->size_bytes ? opts->size_bytes : DEFAULT_SIZE;
	struct target *t;

	if (!is_aligned(size, 512))
		return error_set(err, -EINVAL, "the size must be a multiple of 512");
	t = calloc(1, sizeof(*t));
	if (!t)
		return error_set(err, -ENOMEM, "out of memory");
	t->ops = &target_null;
	t->limits = (struct target_limits){
		.size_bytes = size,
		.logical_block_bytes = 512,
		.physical_block_bytes = 4096,
		.io_min_bytes = 4096,
		.discard_granularity = 4096,
		.max_discard_bytes = 1 * GiB,
		.max_write_zeroes_bytes = 1 * GiB,
		.max_queues = MAX_QUEUES,
		.read_only = opts->read_only,
	};
	*out = t;
	return 0;
}

static void null_submit(struct target *t, unsigned queue, struct blk_request *req)
{
	/* a read that leaves registered pages as they are would show what was in them */
	if (req->op == BLK_READ && blk_request_registered(req))
		req->to_memory(req, blk_request_complete);
	else
		blk_request_complete(req, 0);
}

static int null_close(struct target *t, struct error *err)
{
	free(t);
	return 0;
}

const struct target_ops target_null = {
	.name = "null",
	.open = null_open,
	.submit = null_submit,
	.close = null_close,
};
