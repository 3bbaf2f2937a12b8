/* SPDX-License-Identifier: MIT */
/*
 * ublkdev.c: the public library, ublkdev.h, over the internal interfaces of target and front end.
 *
 * A program's ops become a target that forwards. A request's priv holds a struct ublkdev_request,
 * which points back to the blk_request, and behind it the program's own bytes. A completion on
 * another thread travels to the queue's loop as a message, whose memory is in the request; the loop
 * is there for as long as a request is.
 */
#include "ublkdev.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/log.h"
#include "base/list.h"
#include "base/math.h"
#include "base/memlock.h"
#include "ring/loop.h"
#include "target/frontend.h"
#include "target/target.h"
#include "ublk/ublk.h"

#define DEFAULT_DEPTH	128
#define DEFAULT_DISCARD (1 * GiB)
#define MAX_QUEUES	4096

struct ublkdev_queue {
	struct loop *loop;
	unsigned index;
	unsigned depth;
};

struct ublkdev_request {
	struct blk_request *req;
	struct ublkdev *dev;
	void (*memory)(struct ublkdev_request *r, int ret); /* the program's */
	struct ublkdev_queue *queue;
	struct loop_msg msg;
	int result;
	size_t data_bytes;
};

struct ublkdev {
	struct target target;
	struct target_ops target_ops; /* a copy of forward_ops with this program's request size */
	const struct ublkdev_ops *ops;
	void *data;
	struct frontend *frontend;
	struct ublkdev_queue *queues;
	unsigned nr_queues;
	unsigned depth;
	bool opened;
};

#define REQUEST_HEAD align_up(sizeof(struct ublkdev_request), 64)

static struct ublkdev *self(struct target *t)
{
	return container_of(t, struct ublkdev, target);
}

static int text_out(struct ublkdev_error *out, const struct error *err, int ret)
{
	if (ret && out && !out->text[0])
		snprintf(out->text, sizeof(out->text), "%s", error_text(err, ret));
	return ret;
}

/* ---- the target ---- */

static int forward_queue_start(struct target *t, unsigned queue, struct loop *loop,
			       struct error *err)
{
	struct ublkdev *dev = self(t);
	struct ublkdev_queue *q = &dev->queues[queue];
	struct ublkdev_error text = {""};
	int ret;

	*q = (struct ublkdev_queue){.loop = loop, .index = queue, .depth = dev->depth};
	if (!dev->ops->queue_start)
		return 0;
	ret = dev->ops->queue_start(dev->data, q, &text);
	if (ret)
		return error_set(err, ret, "%s", text.text[0] ? text.text : error_text(NULL, ret));
	return 0;
}

static void submit_in_memory(struct blk_request *req, int ret)
{
	struct ublkdev_request *r = req->priv;

	if (ret)
		blk_request_complete(req, ret);
	else
		r->dev->ops->submit(r->dev->data, r->queue, r);
}

static void forward_submit(struct target *t, unsigned queue, struct blk_request *req)
{
	struct ublkdev *dev = self(t);
	struct ublkdev_request *r = req->priv;

	r->req = req;
	r->dev = dev;
	r->queue = &dev->queues[queue];
	r->data_bytes = dev->ops->request_bytes;
	if (blk_request_registered(req) && !dev->ops->registered_buffers)
		req->to_memory(req, submit_in_memory);
	else
		submit_in_memory(req, 0);
}

static void forward_queue_stop(struct target *t, unsigned queue)
{
	struct ublkdev *dev = self(t);

	if (dev->ops->queue_stop)
		dev->ops->queue_stop(dev->data, &dev->queues[queue]);
}

static const struct target_ops forward_ops = {
	.any_op = true, /* ublkdev_sqe() */
	.queue_start = forward_queue_start,
	.submit = forward_submit,
	.queue_stop = forward_queue_stop,
};

/* ---- requests ---- */

enum ublkdev_op ublkdev_request_op(const struct ublkdev_request *r)
{
	static_assert((int)UBLKDEV_READ == BLK_READ && (int)UBLKDEV_WRITE == BLK_WRITE &&
			      (int)UBLKDEV_FLUSH == BLK_FLUSH &&
			      (int)UBLKDEV_DISCARD == BLK_DISCARD &&
			      (int)UBLKDEV_WRITE_ZEROES == BLK_WRITE_ZEROES,
		      "the public names are the internal ones");
	return (enum ublkdev_op)r->req->op;
}

unsigned ublkdev_request_flags(const struct ublkdev_request *r)
{
	static_assert((int)UBLKDEV_FUA == BLK_FUA && (int)UBLKDEV_NOUNMAP == BLK_NOUNMAP, "");
	return r->req->flags;
}

uint64_t ublkdev_request_offset(const struct ublkdev_request *r)
{
	return r->req->offset_bytes;
}

uint64_t ublkdev_request_length(const struct ublkdev_request *r)
{
	return r->req->len_bytes;
}

void *ublkdev_request_buffer(const struct ublkdev_request *r)
{
	return r->req->op == BLK_READ || r->req->op == BLK_WRITE ? r->req->buf.base : NULL;
}

int ublkdev_request_buffer_index(const struct ublkdev_request *r)
{
	return blk_request_registered(r->req) ? (int)r->req->buf.fixed_index : -1;
}

static void memory_ready(struct blk_request *req, int ret)
{
	struct ublkdev_request *r = req->priv;

	r->memory(r, ret);
}

void ublkdev_request_to_memory(struct ublkdev_request *r,
			       void (*ready)(struct ublkdev_request *r, int result))
{
	assert(loop_self() == r->queue->loop);
	r->memory = ready;
	if (blk_request_registered(r->req))
		r->req->to_memory(r->req, memory_ready);
	else
		ready(r, 0);
}

void *ublkdev_request_data(const struct ublkdev_request *r)
{
	return r->data_bytes ? (char *)r + REQUEST_HEAD : NULL;
}

struct ublkdev_queue *ublkdev_request_queue(const struct ublkdev_request *r)
{
	return r->queue;
}

static void complete_here(struct loop_msg *msg)
{
	struct ublkdev_request *r = container_of(msg, struct ublkdev_request, msg);

	blk_request_complete(r->req, r->result);
}

void ublkdev_complete(struct ublkdev_request *r, int result)
{
	assert(result <= 0);
	if (loop_self() == r->queue->loop) {
		blk_request_complete(r->req, result);
		return;
	}
	r->result = result;
	r->msg.fn = complete_here;
	loop_post(r->queue->loop, &r->msg);
}

/* ---- queues ---- */

unsigned ublkdev_queue_index(const struct ublkdev_queue *queue)
{
	return queue->index;
}

unsigned ublkdev_queue_depth(const struct ublkdev_queue *queue)
{
	return queue->depth;
}

static_assert(sizeof(struct loop_op) <= sizeof(((struct ublkdev_sqe_op *)NULL)->reserved),
	      "ours lives in the public one");

static void sqe_op_complete(struct loop_op *inner, int res, uint32_t cqe_flags)
{
	struct ublkdev_sqe_op *op =
		(struct ublkdev_sqe_op *)((char *)inner -
					  offsetof(struct ublkdev_sqe_op, reserved));

	op->complete(op, res, cqe_flags);
}

struct io_uring_sqe *ublkdev_sqe(struct ublkdev_queue *queue, struct ublkdev_sqe_op *op)
{
	struct loop_op *inner = (struct loop_op *)op->reserved;

	inner->complete = sqe_op_complete;
	return loop_sqe(queue->loop, inner);
}

void ublkdev_sqe_bind(struct io_uring_sqe *sqe, struct ublkdev_sqe_op *op)
{
	loop_sqe_bind(sqe, (struct loop_op *)op->reserved);
}

/* ---- devices ---- */

static bool limits_good(const struct target_limits *l, struct error *err)
{
	uint32_t page = (uint32_t)sysconf(_SC_PAGESIZE);
	const char *what = NULL;

	if (!is_pow2(l->logical_block_bytes) || l->logical_block_bytes < 512)
		what = "logical_block";
	else if (!is_pow2(l->physical_block_bytes) ||
		 l->physical_block_bytes < l->logical_block_bytes)
		what = "physical_block";
	else if (l->io_opt_bytes && !is_pow2(l->io_opt_bytes))
		what = "io_opt";
	else if (!l->size_bytes || !is_aligned(l->size_bytes, l->logical_block_bytes))
		what = "size";
	else if (l->discard_granularity && (!is_pow2(l->discard_granularity) ||
					    l->discard_granularity < l->logical_block_bytes))
		what = "discard_granularity";
	else if (l->max_request_bytes && (!is_pow2(l->max_request_bytes) || l->max_request_bytes < page))
		what = "max_request";
	else if (l->chunk_bytes && (!is_pow2(l->chunk_bytes) || l->chunk_bytes < l->logical_block_bytes))
		what = "chunk";
	else if (l->memory_align_bytes && (!is_pow2(l->memory_align_bytes) ||
					   l->memory_align_bytes < 512 || l->memory_align_bytes > page))
		what = "memory_align";
	if (what)
		error_set(err, -EINVAL, "the program gives its device an impossible %s", what);
	return !what;
}

static int limits_fill(struct ublkdev *dev, const struct ublkdev_limits *l, struct error *err)
{
	struct target_limits *out = &dev->target.limits;
	uint32_t logical = l->logical_block ? l->logical_block : 512;
	uint32_t physical = l->physical_block ? l->physical_block : max_of(logical, 4096u);

	*out = (struct target_limits){
		.size_bytes = l->size,
		.logical_block_bytes = logical,
		.physical_block_bytes = physical,
		.io_min_bytes = physical,
		.io_opt_bytes = l->io_opt,
		.discard_granularity = l->discard_granularity,
		.max_discard_bytes = l->max_discard ? l->max_discard : DEFAULT_DISCARD,
		.max_write_zeroes_bytes = l->max_write_zeroes,
		.max_request_bytes = l->max_request,
		.chunk_bytes = l->chunk,
		.memory_align_bytes = l->memory_align,
		.max_queues = dev->nr_queues,
		.read_only = l->read_only,
		.volatile_cache = l->volatile_cache,
		.fua = l->fua,
		.rotational = l->rotational,
		.registered_buffers = dev->ops->registered_buffers,
	};
	return limits_good(out, err) ? 0 : -EINVAL;
}

static int program_open(struct ublkdev *dev, struct error *err)
{
	struct ublkdev_error text = {""};
	struct ublkdev_limits limits = {0};
	int ret = dev->ops->open(dev->data, &limits, &text);

	if (ret)
		return error_set(err, ret, "%s", text.text[0] ? text.text : error_text(NULL, ret));
	dev->opened = true;
	return limits_fill(dev, &limits, err);
}

static void device_free(struct ublkdev *dev)
{
	if (dev->opened && dev->ops->close)
		dev->ops->close(dev->data);
	free(dev->queues);
	free(dev);
}

static_assert((int)UBLKDEV_DATA_AUTO == FRONTEND_DATA_AUTO &&
		      (int)UBLKDEV_DATA_COPY == FRONTEND_DATA_COPY &&
		      (int)UBLKDEV_DATA_USER_COPY == FRONTEND_DATA_USER_COPY &&
		      (int)UBLKDEV_DATA_ZERO_COPY == FRONTEND_DATA_ZERO_COPY,
	      "the public names are the internal ones");

static_assert((int)UBLKDEV_RECOVERY_OFF == FRONTEND_RECOVERY_OFF &&
		      (int)UBLKDEV_RECOVERY_REISSUE == FRONTEND_RECOVERY_REISSUE &&
		      (int)UBLKDEV_RECOVERY_FAIL == FRONTEND_RECOVERY_FAIL,
	      "the public names are the internal ones");

/* A device that is there has its queues already. Whether it waits is found out when it is taken over. */
static int opts_of_waiting(struct frontend_options *opts, struct error *err)
{
	struct ublk_device device;
	int ret;

	if (opts->id < 0)
		return error_set(err, -EINVAL, "which device to go on with?");
	ret = ublk_device_get((unsigned)opts->id, &device, err);
	if (ret)
		return ret;
	opts->queues = device.queues;
	opts->depth = device.depth;
	return 0;
}

static int opts_fill(struct frontend_options *opts, const struct ublkdev_ops *ops,
		     const struct ublkdev_options *from, struct error *err)
{
	*opts = (struct frontend_options){
		.id = from->id,
		.queues = min_of(from->queues ? from->queues : 1, (unsigned)MAX_QUEUES),
		.depth = from->depth ? from->depth : DEFAULT_DEPTH,
		.data_path = (enum frontend_data_path)from->data_path,
		.recovery = (enum frontend_recovery)from->recovery,
		.recover = from->recover,
		.no_part_scan = from->no_part_scan,
		.wait_partitions = from->wait_partitions,
		.name = ops->name,
	};
	return opts->recover ? opts_of_waiting(opts, err) : 0;
}

int ublkdev_start(struct ublkdev **out, const struct ublkdev_ops *ops, void *data,
		  const struct ublkdev_options *options, struct ublkdev_error *text)
{
	struct frontend_options opts;
	struct error err = {""};
	int ret = opts_fill(&opts, ops, options, &err);
	struct ublkdev *dev;

	if (ret)
		return text_out(text, &err, ret);
	ret = -ENOMEM;
	dev = calloc(1, sizeof(*dev));
	if (!dev)
		return text_out(text, &err, ret);
	dev->ops = ops;
	dev->data = data;
	dev->target_ops = forward_ops;
	dev->target_ops.name = ops->name;
	dev->target_ops.request_bytes = REQUEST_HEAD + ops->request_bytes;
	dev->target.ops = &dev->target_ops;
	dev->nr_queues = opts.queues;
	dev->depth = opts.depth;
	dev->queues = calloc(opts.queues, sizeof(*dev->queues));
	if (!dev->queues)
		goto fail;
	frontend_protect_thread();
	if (memlock_from_now())
		log_debug("memory is not locked");
	ret = program_open(dev, &err);
	if (!ret)
		ret = frontend_ublk.start(&dev->frontend, &dev->target, &opts, &err);
	if (ret == -ETIMEDOUT) /* its threads still run, with all this */
		return text_out(text, &err, ret);
	if (ret)
		goto fail;
	*out = dev;
	return 0;
fail:
	device_free(dev);
	return text_out(text, &err, ret);
}

const char *ublkdev_path(const struct ublkdev *dev)
{
	return frontend_ublk.device(dev->frontend);
}

int ublkdev_id(const struct ublkdev *dev)
{
	return frontend_ublk.id(dev->frontend);
}

unsigned ublkdev_queues(const struct ublkdev *dev)
{
	return frontend_ublk.queues(dev->frontend);
}

enum ublkdev_data_path ublkdev_data_path(const struct ublkdev *dev)
{
	const char *name = frontend_ublk.data_path(dev->frontend);

	if (!strcmp(name, "zero-copy"))
		return UBLKDEV_DATA_ZERO_COPY;
	return !strcmp(name, "user-copy") ? UBLKDEV_DATA_USER_COPY : UBLKDEV_DATA_COPY;
}

int ublkdev_gone_fd(const struct ublkdev *dev)
{
	return frontend_ublk.gone_fd(dev->frontend);
}

int ublkdev_busy(const struct ublkdev *dev)
{
	return frontend_ublk.busy(dev->frontend);
}

int ublkdev_update_size(struct ublkdev *dev, uint64_t size, struct ublkdev_error *text)
{
	struct error err = {""};
	int ret;

	if (!size || size > INT64_MAX || !is_aligned(size, dev->target.limits.logical_block_bytes))
		ret = error_set(&err, -EINVAL, "the size is a multiple of the logical block, and not 0");
	else
		ret = frontend_ublk.resize(dev->frontend, size, &err);
	return text_out(text, &err, ret);
}

int ublkdev_stop(struct ublkdev *dev, struct ublkdev_error *text)
{
	struct error err = {""};
	int ret = frontend_ublk.stop(dev->frontend, &err);

	if (ret != -ETIMEDOUT)
		device_free(dev);
	return text_out(text, &err, ret);
}

/* Serves until a signal comes while nobody uses the device, or until it is gone. */
static int serve(struct ublkdev *dev, int signal_fd)
{
	struct pollfd fds[2] = {
		{.fd = signal_fd, .events = POLLIN},
		{.fd = ublkdev_gone_fd(dev), .events = POLLIN},
	};
	struct signalfd_siginfo info;

	for (;;) {
		if (poll(fds, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (fds[1].revents) {
			log_info("%s was taken away", ublkdev_path(dev));
			return 0;
		}
		if (read(signal_fd, &info, sizeof(info)) != sizeof(info))
			continue;
		if (ublkdev_busy(dev) <= 0)
			return 0;
		log_warn("%s is in use: it stays", ublkdev_path(dev));
	}
}

int ublkdev_run(const struct ublkdev_ops *ops, void *data, const struct ublkdev_options *options,
		void (*ready)(void *data, const char *path), struct ublkdev_error *text)
{
	struct ublkdev *dev;
	sigset_t signals, old;
	int signal_fd, ret, stopped;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &signals, &old);
	signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signal_fd < 0) {
		ret = text_out(text, NULL, -errno);
		goto out;
	}
	ret = ublkdev_start(&dev, ops, data, options, text);
	if (!ret) {
		if (ready)
			ready(data, ublkdev_path(dev));
		ret = text_out(text, NULL, serve(dev, signal_fd));
		stopped = ublkdev_stop(dev, text);
		if (!ret)
			ret = stopped;
	}
	close(signal_fd);
out:
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return ret;
}

void ublkdev_log_to_syslog(const char *ident)
{
	log_open(true, ident, LOG_LEVEL_INFO);
}
