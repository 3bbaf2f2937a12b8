/* SPDX-License-Identifier: MIT */
/*
 * memdisk.c: see memdisk.h. What is pending is performed when it completes, not when it is submitted:
 * both are allowed, and the later moment shows reuse of a buffer that is still in flight. Completions
 * reach the loop as a message, since they run on the loop's stack; there is one loop.
 */
#include "memdisk.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"

#define BLOCK 512

struct memdisk {
	struct storage st;
	uint8_t *data;
	size_t cap;
	uint64_t max_bytes;
	uint64_t random;
	struct list pending;
	unsigned pending_count;
	struct storage_io *picked; /* travels with msg */
	struct loop_msg msg;
};

static struct memdisk *memdisk_of(struct storage *st)
{
	return container_of(st, struct memdisk, st);
}

static uint64_t next_random(struct memdisk *d)
{
	d->random = d->random * 6364136223846793005u + 1442695040888963407u;
	return d->random >> 33;
}

static int set_size(struct memdisk *d, uint64_t size)
{
	uint64_t old = d->st.size_bytes;

	if (size > d->max_bytes)
		return -ENOSPC;
	if (size > d->cap) {
		size_t cap = max_of(align_up(size, 4096), min_of(2 * (uint64_t)d->cap, d->max_bytes));
		uint8_t *data = realloc(d->data, cap);

		if (!data)
			return -ENOSPC;
		d->data = data;
		d->cap = cap;
	}
	if (size > old)
		memset(d->data + old, 0, size - old);
	d->st.size_bytes = size;
	return 0;
}

/* One contiguous piece of memory. */
static int transfer(struct memdisk *d, enum storage_op op, uint64_t offset, uint8_t *mem, uint64_t len)
{
	uint64_t size = d->st.size_bytes, have;
	int ret;

	if (op == STORAGE_READ) {
		have = offset < size ? min_of(len, size - offset) : 0;
		if (have)
			memcpy(mem, d->data + offset, have);
		memset(mem + have, 0, len - have);
		return 0;
	}
	if (offset + len > size) {
		ret = set_size(d, offset + len);
		if (ret < 0)
			return ret;
	}
	memcpy(d->data + offset, mem, len);
	return 0;
}

static int perform_data(struct memdisk *d, struct storage_io *io)
{
	uint64_t offset = io->offset_bytes, done = 0;
	int ret = 0;

	if (!io->iovcnt) {
		assert(io->buf.base);
		return transfer(d, io->op, offset, io->buf.base, io->len_bytes);
	}
	for (unsigned i = 0; i < io->iovcnt && ret == 0; i++) {
		assert(is_aligned(io->iov[i].iov_len, BLOCK));
		ret = transfer(d, io->op, offset + done, io->iov[i].iov_base, io->iov[i].iov_len);
		done += io->iov[i].iov_len;
	}
	assert(ret < 0 || done == io->len_bytes);
	return ret;
}

static int perform(struct memdisk *d, struct storage_io *io)
{
	uint64_t size = d->st.size_bytes, end;

	switch (io->op) {
	case STORAGE_READ:
	case STORAGE_WRITE:
		assert(is_aligned(io->offset_bytes, BLOCK) && is_aligned(io->len_bytes, BLOCK));
		if (!checked_add(io->offset_bytes, io->len_bytes, &end) || end > INT64_MAX)
			return -EINVAL;
		return perform_data(d, io);
	case STORAGE_SYNC:
		return 0;
	case STORAGE_PUNCH:
	case STORAGE_ZERO:
		if (!checked_add(io->offset_bytes, io->len_bytes, &end) || end > INT64_MAX)
			return -EINVAL;
		if (io->offset_bytes < size)
			memset(d->data + io->offset_bytes, 0,
			       min_of(io->len_bytes, size - io->offset_bytes));
		/* A file's ZERO_RANGE extends it. */
		return io->op == STORAGE_ZERO && end > size ? set_size(d, end) : 0;
	case STORAGE_TRUNCATE:
		return set_size(d, io->offset_bytes);
	}
	return -EINVAL;
}

static void memdisk_submit(struct storage *st, struct storage_io *io)
{
	struct memdisk *d = memdisk_of(st);

	assert(!st->read_only || io->op == STORAGE_READ || io->op == STORAGE_SYNC);
	if (!loop_self()) {
		io->complete(io, perform(d, io));
		return;
	}
	io->impl.loop = loop_self();
	list_add_tail(&d->pending, &io->impl.list);
	d->pending_count++;
}

uint8_t *memdisk_copy(const struct storage *st, size_t *len)
{
	const struct memdisk *d = container_of(st, struct memdisk, st);
	uint8_t *copy;

	*len = st->size_bytes;
	copy = malloc(*len ? *len : 1);
	assert(copy);
	if (*len)
		memcpy(copy, d->data, *len);
	return copy;
}

static void complete_picked(struct loop_msg *msg)
{
	struct memdisk *d = container_of(msg, struct memdisk, msg);
	struct storage_io *io = d->picked;

	d->picked = NULL;
	io->complete(io, perform(d, io));
}

bool memdisk_step(struct storage *st)
{
	struct memdisk *d = memdisk_of(st);
	struct list *node;

	if (!d->pending_count)
		return false;
	assert(!d->picked); /* the loop was turned since the last step */
	node = d->pending.next;
	for (uint64_t skip = next_random(d) % d->pending_count; skip; skip--)
		node = node->next;
	list_del(node);
	d->pending_count--;
	d->picked = container_of(node, struct storage_io, impl.list);
	d->msg.fn = complete_picked;
	loop_post(d->picked->impl.loop, &d->msg);
	return true;
}

static int memdisk_lock(struct storage *st, unsigned perms, unsigned shared, struct error *err)
{
	return 0;
}

static void memdisk_close(struct storage *st)
{
	struct memdisk *d = memdisk_of(st);

	assert(!d->pending_count);
	free(d->data);
	free(d);
}

static const struct storage_ops memdisk_ops = {
	.submit = memdisk_submit,
	.lock = memdisk_lock,
	.close = memdisk_close,
};

struct storage *memdisk_create(const void *data, size_t len, uint64_t max_bytes, uint64_t seed)
{
	struct memdisk *d = calloc(1, sizeof(*d));

	assert(d && len <= max_bytes);
	d->st.ops = &memdisk_ops;
	d->st.name = "memory";
	d->st.block_bytes = BLOCK;
	d->st.can_punch = true;
	d->max_bytes = max_bytes;
	d->random = seed;
	list_init(&d->pending);
	assert(set_size(d, len) == 0);
	if (len)
		memcpy(d->data, data, len);
	return &d->st;
}
