/* SPDX-License-Identifier: MIT */
/*
 * fixed.c: requests whose payload lies in a registered buffer, where nobody here can look at it.
 *
 * A read whose clusters hold data as it is, or zeros, goes between storage and that buffer, extent by
 * extent, all parts in flight at once. So does a write (write.c), in place or to new clusters, with what
 * fills these in writes of its own beside it. Here are the writes of an image that compresses: those in
 * place. Whatever else there is to do has to see the bytes: the request then gets memory, and is done once
 * more from its start. That is harmless, as what was read is read again, and what was written is what is to
 * be written.
 *
 * Invariant: while a request waits for memory it is in no epoch and holds no lock (see blk.h).
 */
#include <errno.h>

#include "qcow2/request.h"

static void part_fixed(struct request *r, enum storage_op op, const struct map_extent *ext, uint64_t goff)
{
	struct part *part = part_get(r);

	part->crypto = NULL; /* see extent_is_plain() */
	part->io.op = op;
	part->io.len_bytes = ext->len_bytes;
	part->io.buf = (struct blk_buf){
		.fixed_index = r->req->buf.fixed_index,
		.fixed_offset = r->req->buf.fixed_offset + (goff - r->req->offset_bytes),
	};
	if (ext->kind == MAP_DATA) {
		part->io.offset_bytes = ext->hoff;
		if (ext->st)
			part->st = ext->st;
	} else {
		part->io.flags = STORAGE_FILL;
	}
	part_submit(part);
}

static bool extent_is_plain(const struct request *r, const struct map_extent *ext)
{
	switch (ext->kind) {
	case MAP_DATA:
		return !map_extent_crypto(ext) && (r->op == BLK_READ || ext->copied);
	case MAP_UNALLOCATED:
	case MAP_ZERO:
	case MAP_ZERO_ALLOC:
		return r->op == BLK_READ;
	default:
		return false;
	}
}

int request_fixed(struct request *r)
{
	enum storage_op op = r->op == BLK_READ ? STORAGE_READ : STORAGE_WRITE;
	uint64_t goff = r->req->offset_bytes, end = goff + r->req->len_bytes;
	unsigned epoch = epoch_enter(r->q);
	int ret = 0, io_ret;

	while (!ret && goff < end) {
		struct map_extent ext;

		ret = op == STORAGE_READ ? request_lookup(r, goff, end - goff, &ext)
					 : request_map(r, goff, end - goff, &ext);
		if (!ret && !extent_is_plain(r, &ext))
			ret = REQUEST_NEEDS_MEMORY;
		if (!ret)
			part_fixed(r, op, &ext, goff);
		goff += ret ? 0 : ext.len_bytes;
	}
	io_ret = parts_wait(r);
	epoch_exit(r->q, epoch);
	return io_ret ? io_ret : ret;
}

static void memory_ready(struct blk_request *req, int ret)
{
	struct request *r = req->priv;

	r->memory_ret = ret;
	r->memory_ready = true;
	if (r->memory_waiter)
		co_resume(r->memory_waiter);
}

int request_memory(struct request *r)
{
	r->memory_ready = false;
	r->memory_waiter = NULL;
	r->req->to_memory(r->req, memory_ready);
	if (!r->memory_ready) {
		r->memory_waiter = co_self();
		co_suspend();
	}
	return r->memory_ret;
}
