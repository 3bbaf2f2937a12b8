/* SPDX-License-Identifier: MIT */
/*
 * loop.c: a raw file or a block device as it is, like losetup's: the yardstick for what a format
 * costs.
 *
 * Offsets are passed through, so requests on any number of queues share nothing but the storage.
 * Each request is one storage_io that lives in its priv, and goes on from completion callbacks;
 * there is no coroutine. Most are done after one step. WRITE_ZEROES takes several where the storage
 * cannot do it as asked:
 *
 *	punch a hole (unless BLK_NOUNMAP) -> zero the range -> write zeros, piece by piece
 *
 * each tried when the one before is answered -EOPNOTSUPP; with BLK_FUA a sync follows.
 *
 * FLUSH. A sync that fails may have dropped what it was to write, and the kernel tells that once: one that
 * succeeds later, or was under way at the same time, proves nothing. So there is one sync at a time for all queues;
 * whoever comes meanwhile waits, and the next one is for all of those. Once one has failed, every FLUSH and FUA fails,
 * as long as the device is attached: that is also in the recovery log, which is for nothing else. (A FUA write past
 * the page cache syncs nothing but itself, and goes by itself.)
 *
 * Locks are those of QEMU's raw driver: nobody else may write or resize the file meanwhile.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/list.h"
#include "base/log.h"
#include "base/math.h"
#include "ring/loop.h"
#include "storage/storage.h"
#include "target/target.h"

#define MAX_QUEUES    4096
#define CLAIM_MS      60000 /* for the I/O of a process that was killed */
#define ZEROS_BYTES   (1 * MiB)
#define DISCARD_MAX   (1 * GiB)
#define ZERO_FAST_MAX (1 * GiB)
#define ZERO_SLOW_MAX (32 * MiB) /* by writing: what one request may take stays bounded */
#define LOG_BYTES     4096

/* The recovery log; zero is a good one. */
struct loop_log {
	_Atomic uint64_t sync_failed; /* errno */
};

struct loop_target {
	struct target target;
	struct storage *storage;
	void *zeros;	     /* ZEROS_BYTES, read only */
	struct loop **loops; /* of each queue that is started */
	unsigned nr_loops;
	struct loop_log own_log, *log; /* the former where there is no recovery */
	pthread_mutex_t lock;
	bool syncing;	     /* under the lock: a sync is under way, or about to be */
	struct list waiting; /* under the lock: loop_requests, for the next one */
};

struct loop_request {
	struct storage_io io;
	struct loop_target *lt;
	struct blk_request *req;
	uint64_t zeroed_bytes; /* WRITE_ZEROES by writing: how far it is */
	/* of one that waits for a sync */
	struct loop *loop; /* its queue's */
	struct list link;
	struct list others; /* whom the sync that it does is for as well */
	struct loop_msg msg;
	int sync_ret;
};

static struct loop_target *self(struct target *t)
{
	return container_of(t, struct loop_target, target);
}

static int lock_file(struct storage *st, bool read_only, bool beside, struct error *err)
{
	unsigned perms = STORAGE_PERM_CONSISTENT_READ | (read_only ? 0 : STORAGE_PERM_WRITE) |
			 (beside ? STORAGE_LOCK_BESIDE : 0);
	unsigned shared = STORAGE_PERM_CONSISTENT_READ | STORAGE_PERM_WRITE_UNCHANGED;

	return storage_lock(st, perms, shared, err);
}

/* The unit in which the file system frees space. */
static uint32_t discard_unit(struct storage *st)
{
	struct stat stat;
	uint32_t unit = 4096;

	if (fstat(storage_file_fd(st), &stat) == 0 && S_ISREG(stat.st_mode) &&
	    is_pow2((uint64_t)stat.st_blksize) && stat.st_blksize >= 512 &&
	    stat.st_blksize <= (blksize_t)MiB)
		unit = (uint32_t)stat.st_blksize;
	return max_of(unit, st->block_bytes);
}

static int limits_fill(struct loop_target *lt, struct error *err)
{
	struct storage *st = lt->storage;
	uint32_t block = max_of(st->block_bytes, 512u);
	uint64_t size = align_down(st->size_bytes, block);

	if (!size)
		return error_set(err, -EINVAL, "%s: too small to be a disk (%llu bytes)", st->name,
				 (unsigned long long)st->size_bytes);
	if (size != st->size_bytes)
		log_warn("%s: the last %llu bytes are no whole block of %u and are left out",
			 st->name, (unsigned long long)(st->size_bytes - size), block);
	lt->target.limits = (struct target_limits){
		.size_bytes = size,
		.logical_block_bytes = block,
		.physical_block_bytes = max_of(block, 4096u),
		.io_min_bytes = max_of(block, 4096u),
		.discard_granularity = st->can_punch ? discard_unit(st) : 0,
		.max_discard_bytes = st->can_punch ? DISCARD_MAX : 0,
		.max_write_zeroes_bytes = st->can_punch ? ZERO_FAST_MAX : ZERO_SLOW_MAX,
		.max_queues = MAX_QUEUES,
		.read_only = st->read_only,
		.volatile_cache = !st->read_only,
		.fua = !st->read_only,
		.rotational = st->rotational,
		.registered_buffers = true,
	};
	return 0;
}

static void loop_free(struct loop_target *lt)
{
	if (lt->zeros)
		munmap(lt->zeros, ZEROS_BYTES);
	storage_close(lt->storage);
	pthread_mutex_destroy(&lt->lock);
	free(lt->loops);
	free(lt);
}

static int loop_open(struct target **out, const struct target_options *opts, struct error *err)
{
	struct storage_file_options file = {
		.read_only = opts->read_only,
		.direct = opts->direct,
		.exclusive_device = true,
	};
	struct loop_target *lt;
	int ret;

	if (!opts->path)
		return error_set(err, -EINVAL, "the loop target needs a file");
	lt = calloc(1, sizeof(*lt));
	if (!lt)
		return error_set(err, -ENOMEM, "out of memory");
	lt->target.ops = &target_loop;
	lt->log = opts->recovery && opts->recovery->log_base ? opts->recovery->log_base : &lt->own_log;
	pthread_mutex_init(&lt->lock, NULL);
	list_init(&lt->waiting);
	lt->nr_loops = opts->queues;
	lt->loops = calloc(max_of(opts->queues, 1u), sizeof(*lt->loops));
	lt->zeros = mmap(NULL, ZEROS_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
			 -1, 0);
	if (lt->zeros == MAP_FAILED)
		lt->zeros = NULL;
	if (!lt->loops || !lt->zeros) {
		ret = error_set(err, -ENOMEM, "out of memory");
		goto fail;
	}
	ret = storage_file_open(&lt->storage, opts->path, &file, err);
	if (!ret)
		ret = lock_file(lt->storage, opts->read_only,
				opts->recovery && opts->recovery->locked, err);
	if (!ret)
		ret = storage_claim(lt->storage,
				    opts->recovery && opts->recovery->replay ? CLAIM_MS : 0, err);
	if (!ret)
		ret = limits_fill(lt, err);
	if (ret)
		goto fail;
	*out = &lt->target;
	return 0;
fail:
	loop_free(lt);
	return ret;
}

static bool sync_has_failed(const struct loop_target *lt)
{
	return atomic_load(&lt->log->sync_failed) != 0;
}

static int loop_log_sync_failed(void *log_base, uint64_t log_bytes, int error)
{
	struct loop_log *log = log_base;

	if (log_bytes < sizeof(*log))
		return -EINVAL;
	atomic_store(&log->sync_failed, (uint64_t)error);
	return 0;
}

static int loop_close(struct target *t, struct error *err)
{
	struct loop_target *lt = self(t);
	int ret = 0;

	if (!lt->storage->read_only) {
		ret = sync_has_failed(lt) ? -EIO : storage_sync(lt->storage);
		if (ret)
			error_set(err, ret, "%s: what was written last may not be durable: %s",
				  lt->storage->name, error_text(NULL, ret));
	}
	loop_free(lt);
	return ret;
}

static int loop_queue_start(struct target *t, unsigned queue, struct loop *loop, struct error *err)
{
	struct loop_target *lt = self(t);
	int ret;

	assert(queue < lt->nr_loops && !lt->loops[queue]);
	ret = storage_attach(lt->storage, loop, err);
	if (!ret)
		lt->loops[queue] = loop;
	return ret;
}

static void loop_queue_stop(struct target *t, unsigned queue)
{
	struct loop_target *lt = self(t);

	storage_detach(lt->storage, lt->loops[queue]);
	lt->loops[queue] = NULL;
}

/* ---- requests ---- */

static void submit(struct loop_request *lr, enum storage_op op,
		   void (*complete)(struct storage_io *io, int ret))
{
	lr->io.op = op;
	lr->io.complete = complete;
	storage_submit(lr->lt->storage, &lr->io);
}

static struct loop_request *request_of(struct storage_io *io)
{
	return container_of(io, struct loop_request, io);
}

static void request_done(struct storage_io *io, int ret)
{
	blk_request_complete(request_of(io)->req, ret);
}

static void sync_lost(struct loop_target *lt, int ret)
{
	uint64_t none = 0;

	if (atomic_compare_exchange_strong(&lt->log->sync_failed, &none, (uint64_t)-ret))
		log_err("%s: %s: nothing written from now on can be made durable; detach the device and check "
			"what is in it",
			lt->storage->name, error_text(NULL, ret));
}

/* On the queue's thread of who waited. */
static void sync_told(struct loop_msg *msg)
{
	struct loop_request *lr = container_of(msg, struct loop_request, msg);

	blk_request_complete(lr->req, lr->sync_ret);
}

static void sync_done(struct storage_io *io, int ret);

static void sync_lead(struct loop_msg *msg)
{
	struct loop_request *lr = container_of(msg, struct loop_request, msg);

	if (sync_has_failed(lr->lt))
		sync_done(&lr->io, -EIO);
	else
		submit(lr, STORAGE_SYNC, sync_done);
}

/* Those who have waited: the first of them does the next sync, for all. */
static void sync_done(struct storage_io *io, int ret)
{
	struct loop_request *lr = request_of(io), *other, *tmp, *next = NULL;
	struct loop_target *lt = lr->lt;

	if (ret)
		sync_lost(lt, ret);
	list_for_each_entry_safe(other, tmp, &lr->others, link) {
		list_del(&other->link);
		other->sync_ret = ret;
		other->msg.fn = sync_told;
		loop_post(other->loop, &other->msg);
	}
	pthread_mutex_lock(&lt->lock);
	if (list_empty(&lt->waiting)) {
		lt->syncing = false;
	} else {
		next = list_entry(lt->waiting.next, struct loop_request, link);
		list_del(&next->link);
		list_splice_tail(&next->others, &lt->waiting);
	}
	pthread_mutex_unlock(&lt->lock);
	if (next) {
		next->msg.fn = sync_lead;
		loop_post(next->loop, &next->msg);
	}
	blk_request_complete(lr->req, ret);
}

static void sync_ask(struct loop_request *lr)
{
	struct loop_target *lt = lr->lt;
	bool wait;

	lr->loop = loop_self();
	list_init(&lr->link);
	list_init(&lr->others);
	pthread_mutex_lock(&lt->lock);
	wait = lt->syncing;
	lt->syncing = true;
	if (wait)
		list_add_tail(&lt->waiting, &lr->link);
	pthread_mutex_unlock(&lt->lock);
	if (!wait)
		sync_lead(&lr->msg);
}

/* What a request did is done, or failed: with FUA it is to be durable, too. */
static void request_end(struct loop_request *lr, int ret)
{
	if (ret || !(lr->req->flags & BLK_FUA))
		blk_request_complete(lr->req, ret);
	else
		sync_ask(lr);
}

static void written(struct storage_io *io, int ret)
{
	request_end(request_of(io), ret);
}

/* Where space was missing nothing was written. */
static void written_durably(struct storage_io *io, int ret)
{
	struct loop_request *lr = request_of(io);

	if (ret && ret != -ENOSPC && ret != -EDQUOT)
		sync_lost(lr->lt, ret);
	blk_request_complete(lr->req, ret);
}

static void zeroes_write(struct loop_request *lr);

static void zeroes_written(struct storage_io *io, int ret)
{
	struct loop_request *lr = request_of(io);

	lr->zeroed_bytes += io->len_bytes;
	if (ret || lr->zeroed_bytes == lr->req->len_bytes)
		request_end(lr, ret);
	else
		zeroes_write(lr);
}

static void zeroes_write(struct loop_request *lr)
{
	lr->io.offset_bytes = lr->req->offset_bytes + lr->zeroed_bytes;
	lr->io.len_bytes = min_of(lr->req->len_bytes - lr->zeroed_bytes, ZEROS_BYTES);
	lr->io.buf = (struct blk_buf){.base = lr->lt->zeros};
	submit(lr, STORAGE_WRITE, zeroes_written);
}

static void zeroes_kept(struct storage_io *io, int ret)
{
	struct loop_request *lr = request_of(io);

	if (ret == -EOPNOTSUPP)
		zeroes_write(lr);
	else
		request_end(lr, ret);
}

static void zeroes_punched(struct storage_io *io, int ret)
{
	struct loop_request *lr = request_of(io);

	if (ret == -EOPNOTSUPP)
		submit(lr, STORAGE_ZERO, zeroes_kept);
	else
		request_end(lr, ret);
}

static void loop_submit(struct target *t, unsigned queue, struct blk_request *req)
{
	struct loop_target *lt = self(t);
	struct loop_request *lr = req->priv;

	lr->lt = lt;
	lr->req = req;
	lr->zeroed_bytes = 0;
	lr->io.flags = 0;
	lr->io.offset_bytes = req->offset_bytes;
	lr->io.len_bytes = req->len_bytes;
	lr->io.buf = req->buf;
	if ((req->op == BLK_FLUSH || req->flags & BLK_FUA) && sync_has_failed(lt)) {
		blk_request_complete(req, -EIO);
		return;
	}
	switch (req->op) {
	case BLK_READ:
		submit(lr, STORAGE_READ, request_done);
		return;
	case BLK_WRITE:
		if (req->flags & BLK_FUA && lt->storage->direct) {
			lr->io.flags = STORAGE_DSYNC;
			submit(lr, STORAGE_WRITE, written_durably);
		} else {
			submit(lr, STORAGE_WRITE, written);
		}
		return;
	case BLK_FLUSH:
		sync_ask(lr);
		return;
	case BLK_DISCARD:
		submit(lr, STORAGE_PUNCH, request_done);
		return;
	case BLK_WRITE_ZEROES:
		if (lt->storage->can_punch && !(req->flags & BLK_NOUNMAP))
			submit(lr, STORAGE_PUNCH, zeroes_punched);
		else
			submit(lr, STORAGE_ZERO, zeroes_kept);
		return;
	}
	assert(!"an operation that blk.h has");
}

const struct target_ops target_loop = {
	.name = "loop",
	.request_bytes = sizeof(struct loop_request),
	.log_bytes = LOG_BYTES,
	.log_sync_failed = loop_log_sync_failed,
	.open = loop_open,
	.queue_start = loop_queue_start,
	.submit = loop_submit,
	.queue_stop = loop_queue_stop,
	.close = loop_close,
};
