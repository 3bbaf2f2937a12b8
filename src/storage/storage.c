/* SPDX-License-Identifier: MIT */
/*
 * storage.c: what all storages share: the contract's assertions on the way in, and the blocking
 * forms. See storage.h.
 */
#include "storage/storage.h"

#include <assert.h>
#include <errno.h>

#include "base/math.h"
#include "ring/co.h"

enum {
	/* Address alignment that any memory segment has, whatever block_bytes is. */
	SEGMENT_ALIGN = 512,
	ZERO_BYTES = 64 << 10,
	ZERO_SEGMENTS = 16,
};

/* What storage_zero() writes where the backend has no zeroing; never written to. */
static _Alignas(4096) unsigned char zeros[ZERO_BYTES];

static void assert_payload(const struct storage *st, const struct storage_io *io)
{
	uint64_t sum = 0;

	if (!io->iovcnt) {
		assert(!io->buf.base || is_aligned((uintptr_t)io->buf.base, SEGMENT_ALIGN));
		return;
	}
	for (unsigned i = 0; i < io->iovcnt; i++) {
		assert(is_aligned((uintptr_t)io->iov[i].iov_base, SEGMENT_ALIGN));
		assert(is_aligned(io->iov[i].iov_len, st->block_bytes));
		sum += io->iov[i].iov_len;
	}
	assert(sum == io->len_bytes);
}

void storage_submit(struct storage *st, struct storage_io *io)
{
	if (io->op != STORAGE_SYNC) {
		assert(io->offset_bytes <= INT64_MAX &&
		       io->len_bytes <= INT64_MAX - io->offset_bytes);
		assert(io->op == STORAGE_TRUNCATE ||
		       is_aligned(io->offset_bytes | io->len_bytes, st->block_bytes));
	}
	if (io->op == STORAGE_READ || io->op == STORAGE_WRITE)
		assert_payload(st, io);
	if (st->read_only && io->op != STORAGE_READ && io->op != STORAGE_SYNC) {
		io->complete(io, -EROFS);
		return;
	}
	if (!io->len_bytes && io->op != STORAGE_SYNC && io->op != STORAGE_TRUNCATE) {
		io->complete(io, 0);
		return;
	}
	st->ops->submit(st, io);
}

/* ---- the blocking forms ---- */

struct blocking {
	struct storage_io io;
	struct co *waiter;
	int ret;
	bool done;
};

static void blocking_complete(struct storage_io *io, int ret)
{
	struct blocking *b = container_of(io, struct blocking, io);

	b->ret = ret;
	b->done = true;
	if (b->waiter)
		co_resume(b->waiter);
}

static int blocking_run(struct storage *st, struct blocking *b)
{
	b->io.complete = blocking_complete;
	storage_submit(st, &b->io);
	if (!b->done) {
		b->waiter = co_self();
		co_suspend();
	}
	return b->ret;
}

int storage_pread(struct storage *st, uint64_t offset_bytes, void *buf, uint64_t len_bytes)
{
	struct blocking b = {
		.io = {.op = STORAGE_READ,
		       .offset_bytes = offset_bytes,
		       .len_bytes = len_bytes,
		       .buf.base = buf},
	};

	return blocking_run(st, &b);
}

int storage_pwrite(struct storage *st, uint64_t offset_bytes, const void *buf, uint64_t len_bytes)
{
	struct blocking b = {
		.io = {.op = STORAGE_WRITE,
		       .offset_bytes = offset_bytes,
		       .len_bytes = len_bytes,
		       .buf.base = (void *)(uintptr_t)buf},
	};

	return blocking_run(st, &b);
}

int storage_sync(struct storage *st)
{
	struct blocking b = {.io = {.op = STORAGE_SYNC}};

	return blocking_run(st, &b);
}

int storage_truncate(struct storage *st, uint64_t size_bytes)
{
	struct blocking b = {.io = {.op = STORAGE_TRUNCATE, .offset_bytes = size_bytes}};

	return blocking_run(st, &b);
}

static int storage_range(struct storage *st, enum storage_op op, uint64_t offset_bytes,
			 uint64_t len_bytes)
{
	struct blocking b = {
		.io = {.op = op, .offset_bytes = offset_bytes, .len_bytes = len_bytes},
	};

	return blocking_run(st, &b);
}

int storage_punch(struct storage *st, uint64_t offset_bytes, uint64_t len_bytes)
{
	return storage_range(st, STORAGE_PUNCH, offset_bytes, len_bytes);
}

static int write_zeros(struct storage *st, uint64_t offset_bytes, uint64_t len_bytes)
{
	struct iovec iov[ZERO_SEGMENTS];
	int ret = 0;

	while (len_bytes && !ret) {
		struct blocking b = {
			.io = {.op = STORAGE_WRITE, .offset_bytes = offset_bytes, .iov = iov},
		};

		while (len_bytes && b.io.iovcnt < ZERO_SEGMENTS) {
			uint64_t n = min_of(len_bytes, (uint64_t)ZERO_BYTES);

			iov[b.io.iovcnt++] = (struct iovec){zeros, n};
			b.io.len_bytes += n;
			len_bytes -= n;
		}
		offset_bytes += b.io.len_bytes;
		ret = blocking_run(st, &b);
	}
	return ret;
}

int storage_zero(struct storage *st, uint64_t offset_bytes, uint64_t len_bytes)
{
	int ret = storage_range(st, STORAGE_ZERO, offset_bytes, len_bytes);

	return ret == -EOPNOTSUPP ? write_zeros(st, offset_bytes, len_bytes) : ret;
}

/* ---- dispatch ---- */

int storage_attach(struct storage *st, struct loop *loop, struct error *err)
{
	return st->ops->attach ? st->ops->attach(st, loop, err) : 0;
}

void storage_detach(struct storage *st, struct loop *loop)
{
	if (st->ops->detach)
		st->ops->detach(st, loop);
}

int storage_lock(struct storage *st, unsigned perms, unsigned shared, struct error *err)
{
	assert(!((perms | shared) & ~(unsigned)(STORAGE_PERM_ALL | STORAGE_LOCK_BESIDE)));
	return st->ops->lock ? st->ops->lock(st, perms, shared, err) : 0;
}

int storage_mark_get(struct storage *st)
{
	return st->ops->mark_get ? st->ops->mark_get(st) : -EOPNOTSUPP;
}

int storage_mark_set(struct storage *st, bool set)
{
	return st->ops->mark_set ? st->ops->mark_set(st, set) : -EOPNOTSUPP;
}

void storage_look(struct storage *st)
{
	if (st->ops->look)
		st->ops->look(st);
}

int storage_claim(struct storage *st, unsigned timeout_ms, struct error *err)
{
	return st->ops->claim ? st->ops->claim(st, timeout_ms, err) : 0;
}

void storage_close(struct storage *st)
{
	if (st)
		st->ops->close(st);
}
