/* SPDX-License-Identifier: MIT */
/*
 * qcow2.c: a qcow2 image as a block device: the engine behind the target interface.
 *
 * The loop of queue 0 is the image's metadata loop as well, so it starts first and ends last. It has a
 * coroutine for every request of every queue: one that waits there, for a lock that another holds, must not
 * keep that other one's next step from starting.
 *
 * Stopping a queue: its requests are done, but a question of the metadata loop may be on its way to it.
 * So it is destroyed in a coroutine of its own loop, which runs once more for that, while queue 0
 * serves. The last, queue 0, ends the background work. If another queue was left because its requests do
 * not end, that would wait for it without end: then nothing is ended, and the image is never closed.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/list.h"
#include "base/log.h"
#include "base/math.h"
#include "qcow2.h"
#include "ring/co.h"
#include "storage/storage.h"
#include "target/snapshot.h"
#include "target/target.h"

/* What one request may cover; a large one goes through the map slice by slice. */
#define DISCARD_MAX (1 * GiB)
/* For the I/O of a process that was killed: what the storage takes at worst. */
#define CLAIM_MS 60000

/* As many as storage_attach() takes. */
#define MAX_QUEUES 64

struct target_queue {
	struct qcow2_queue *queue;
	struct loop *loop;
};

struct qcow2_target {
	struct target target;
	struct qcow2_image *img;
	unsigned requests; /* in flight over all queues, at most */
	unsigned depth;
	struct target_queue queues[MAX_QUEUES];
	bool lost; /* a loop broke with work under way: the image cannot be closed in order */
};

static struct qcow2_target *self(struct target *t)
{
	return container_of(t, struct qcow2_target, target);
}

/* A device's blocks may be larger than the image's clusters; the page cache helps with that. */
static int open_image(struct qcow2_target *qt, struct storage **st, const struct target_options *opts,
		      bool direct, struct error *err)
{
	struct storage_file_options file = {
		.read_only = opts->read_only,
		.direct = direct,
		.exclusive_device = true,
	};
	struct qcow2_options options = {
		.read_only = opts->read_only,
		.snapshot = opts->snapshot,
		.cache_size_bytes = opts->cache_size_bytes,
		.writeback_delay_ms = opts->writeback_delay_ms,
		.max_inflight = opts->queues * opts->depth,
		.compress = opts->compress,
		.discard_ignore = opts->discard_ignore,
		.detect_zeroes = opts->detect_zeroes,
		.image_path = opts->path,
		.names = opts->names,
		.passphrase = opts->passphrase,
	};
	const struct target_recovery *recovery = opts->recovery;
	int ret = storage_file_open(st, opts->path, &file, err);

	if (ret)
		return ret;
	if (recovery) {
		options.lock_beside = recovery->locked;
		options.claim_timeout_ms = recovery->replay ? CLAIM_MS : 0;
		options.log_base = recovery->log_base;
		options.log_bytes = recovery->log_bytes;
		options.log_identity = recovery->identity;
		options.log_identity_bytes = recovery->identity_bytes;
		options.log_recover = recovery->replay;
		options.log_lapsed = recovery->lapsed;
	}
	ret = qcow2_open(&qt->img, *st, &options, err);
	if (ret)
		storage_close(*st);
	return ret;
}

static bool clusters_smaller_than_blocks(const char *path, const struct target_options *opts)
{
	struct storage_file_options file = {.read_only = true, .direct = opts->direct};
	struct qcow2_info *info = calloc(1, sizeof(*info));
	struct storage *st;
	bool smaller = false;

	if (info && storage_file_open(&st, path, &file, NULL) == 0) {
		smaller = qcow2_info(st, info, NULL) == 0 &&
			  st->block_bytes > info->cluster_bytes / (info->extended_l2 ? 32 : 1);
		storage_close(st);
	}
	free(info);
	return smaller;
}

static void limits_fill(struct qcow2_target *qt, const struct storage *st,
			const struct target_options *opts)
{
	uint32_t block = st->block_bytes, cluster = qcow2_cluster_bytes(qt->img);
	bool writable = !qcow2_read_only(qt->img), discard = writable && !opts->discard_ignore;

	qt->target.limits = (struct target_limits){
		.size_bytes = align_down(qcow2_size_bytes(qt->img), block),
		.logical_block_bytes = block,
		.physical_block_bytes = max_of(block, 4096u),
		.io_min_bytes = max_of(block, 4096u),
		.io_opt_bytes = max_of(cluster, 4096u),
		.whole_bytes = writable && opts->compress ? cluster : 0,
		.discard_granularity = discard ? max_of(cluster, block) : 0,
		.max_discard_bytes = discard ? DISCARD_MAX : 0,
		.max_write_zeroes_bytes = writable ? DISCARD_MAX : 0,
		.max_queues = MAX_QUEUES,
		.read_only = !writable,
		.volatile_cache = writable,
		.fua = writable,
		.rotational = st->rotational,
		.registered_buffers = !qcow2_looks_at_data(qt->img),
	};
	if (qt->target.limits.size_bytes != qcow2_size_bytes(qt->img))
		log_warn("%s: the last %llu bytes are no whole block of %u and are left out", st->name,
			 (unsigned long long)(qcow2_size_bytes(qt->img) & (block - 1)), block);
}

static int qcow2_target_open(struct target **out, const struct target_options *opts,
			     struct error *err)
{
	struct qcow2_target *qt;
	struct storage *st;
	bool direct = opts->direct;
	int ret;

	if (!opts->path)
		return error_set(err, -EINVAL, "the qcow2 target needs an image");
	qt = calloc(1, sizeof(*qt));
	if (!qt)
		return error_set(err, -ENOMEM, "out of memory");
	qt->target.ops = &target_qcow2;
	qt->depth = opts->depth;
	qt->requests = opts->queues * opts->depth;
	if (direct && clusters_smaller_than_blocks(opts->path, opts)) {
		log_warn("%s: clusters are smaller than the blocks of direct I/O: going through the "
			 "page cache",
			 opts->path);
		direct = false;
	}
	ret = open_image(qt, &st, opts, direct, err);
	if (ret) {
		free(qt);
		return ret;
	}
	limits_fill(qt, st, opts);
	*out = &qt->target;
	return 0;
}

static unsigned qcow2_target_coroutines(const struct target *t, unsigned queue)
{
	const struct qcow2_target *qt = container_of(t, const struct qcow2_target, target);

	return (queue == 0 ? qt->requests : qt->depth) + QCOW2_EXTRA_COROUTINES;
}

static int qcow2_target_queue_start(struct target *t, unsigned queue, struct loop *loop,
				    struct error *err)
{
	struct qcow2_target *qt = self(t);
	struct target_queue *q = &qt->queues[queue];
	int ret = 0;

	q->loop = loop;
	snapshot_loop_set(loop);
	if (queue == 0)
		ret = qcow2_set_metadata_loop(qt->img, loop, err);
	if (ret)
		return ret;
	ret = qcow2_queue_create(&q->queue, qt->img, loop, err);
	if (ret && queue == 0)
		qcow2_detach_loop(qt->img);
	return ret;
}

static void qcow2_target_submit(struct target *t, unsigned queue, struct blk_request *req)
{
	qcow2_submit(self(t)->queues[queue].queue, req);
}

struct ending {
	struct co_task task;
	struct qcow2_target *qt;
	unsigned queue;
	bool done;
};

static void ending_task(struct co_task *task)
{
	struct ending *ending = container_of(task, struct ending, task);
	struct qcow2_target *qt = ending->qt;

	qcow2_queue_destroy(qt->queues[ending->queue].queue);
	qt->queues[ending->queue].queue = NULL;
	if (ending->queue == 0)
		qcow2_detach_loop(qt->img);
	ending->done = true;
	loop_stop(loop_self());
}

/* Whether queue 0 is the last one. */
static bool others_stopped(const struct qcow2_target *qt)
{
	for (unsigned i = 1; i < MAX_QUEUES; i++)
		if (qt->queues[i].queue)
			return false;
	return true;
}

static void qcow2_target_queue_stop(struct target *t, unsigned queue)
{
	struct qcow2_target *qt = self(t);
	struct target_queue *q = &qt->queues[queue];
	struct ending ending = {.task = {.fn = ending_task}, .qt = qt, .queue = queue};

	if (queue == 0 && !others_stopped(qt)) {
		qt->lost = true;
		return;
	}
	list_init(&ending.task.list);
	loop_spawn(q->loop, &ending.task);
	if (loop_run(q->loop) || !ending.done) {
		log_err("the event loop failed with work under way");
		qt->lost = true;
	}
}

static int qcow2_target_resize(struct target *t, uint64_t size_bytes, struct error *err)
{
	struct qcow2_target *qt = self(t);

	if (size_bytes < qcow2_size_bytes(qt->img))
		return error_set(err, -EOPNOTSUPP, "cannot shrink while it is attached");
	return resize_run(qt->img, size_bytes, err);
}

static int qcow2_target_snapshot(struct target *t, enum target_snapshot what, const char *name,
				 uint64_t *pause_ns, struct error *err)
{
	return snapshot_run(self(t)->img, what, name, pause_ns, err);
}

static int qcow2_target_settle(struct target *t, struct error *err)
{
	return settle_run(self(t)->img, err);
}

static int qcow2_target_close(struct target *t, struct error *err)
{
	struct qcow2_target *qt = self(t);
	int ret = -EIO;

	if (qt->lost)
		error_set(err, ret, "the image could not be closed in order");
	else
		ret = qcow2_close(qt->img, err);
	free(qt);
	return ret;
}

const struct target_ops target_qcow2 = {
	.name = "qcow2",
	.request_bytes = QCOW2_REQUEST_BYTES,
	.log_bytes = QCOW2_LOG_BYTES,
	.log_sync_failed = qcow2_log_sync_failed,
	.coroutines = qcow2_target_coroutines,
	.open = qcow2_target_open,
	.queue_start = qcow2_target_queue_start,
	.submit = qcow2_target_submit,
	.queue_stop = qcow2_target_queue_stop,
	.resize = qcow2_target_resize,
	.snapshot = qcow2_target_snapshot,
	.settle = qcow2_target_settle,
	.close = qcow2_target_close,
};
