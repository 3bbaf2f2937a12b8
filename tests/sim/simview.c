/* SPDX-License-Identifier: MIT */
/*
 * simview.c: see simview.h.
 */
#include "simview.h"

#include <assert.h>
#include <string.h>

#include "base/math.h"

const uint8_t *simview_get(const struct simview *v, uint64_t sector)
{
	if (sector * SECTOR_BYTES >= v->map->size_bytes)
		return sim_zero_sector;
	return sim_map_get(v->map, sector);
}

void simview_set(struct simview *v, uint64_t sector, const uint8_t *data)
{
	vec_push(&v->undo, ((struct simview_undo){sector, sim_map_get(v->map, sector)}));
	sim_map_set(v->map, sector, data);
}

void simview_resize(struct simview *v, uint64_t size_bytes)
{
	uint64_t from = min_of(size_bytes, v->map->size_bytes) / SECTOR_BYTES;

	if (!v->changed)
		v->old_size_bytes = v->map->size_bytes;
	v->changed = true;
	/* what was beyond an end may be stale: it must read as zeros once it is inside */
	for (uint64_t s = from; s < v->map->n && size_bytes != v->map->size_bytes; s++) {
		if (v->map->at[s] != sim_zero_sector)
			simview_set(v, s, sim_zero_sector);
	}
	v->map->size_bytes = size_bytes;
	v->storage.size_bytes = size_bytes;
}

void simview_rewind(struct simview *v)
{
	while (v->undo.n) {
		struct simview_undo *u = &v->undo.at[--v->undo.n];

		sim_map_set(v->map, u->sector, u->old);
	}
	if (v->changed)
		v->map->size_bytes = v->old_size_bytes;
	v->changed = false;
	arena_reset(&v->arena);
}

static void view_write(struct simview *v, uint64_t sector, const uint8_t *mem)
{
	uint8_t *copy;

	if (!mem) {
		simview_set(v, sector, sim_zero_sector);
		return;
	}
	copy = arena_alloc(&v->arena, SECTOR_BYTES);
	memcpy(copy, mem, SECTOR_BYTES);
	simview_set(v, sector, copy);
}

static void view_payload(struct simview *v, const struct storage_io *io)
{
	struct iovec one = {io->buf.base, io->len_bytes};
	const struct iovec *iov = io->iovcnt ? io->iov : &one;
	unsigned count = io->iovcnt ? io->iovcnt : 1;
	uint64_t sector = io->offset_bytes / SECTOR_BYTES;
	uint64_t end = sector + io->len_bytes / SECTOR_BYTES;

	for (unsigned i = 0; i < count; i++) {
		uint8_t *mem = iov[i].iov_base;

		assert(is_aligned(iov[i].iov_len, SECTOR_BYTES));
		for (size_t off = 0; off < iov[i].iov_len; off += SECTOR_BYTES, sector++) {
			if (io->op == STORAGE_READ)
				memcpy(mem + off, simview_get(v, sector), SECTOR_BYTES);
			else
				view_write(v, sector, mem + off);
		}
	}
	assert(sector == end);
}

static void view_zero(struct simview *v, const struct storage_io *io)
{
	uint64_t first = io->offset_bytes / SECTOR_BYTES;
	uint64_t end = first + io->len_bytes / SECTOR_BYTES;

	for (uint64_t s = first; s < end && s < v->map->n; s++)
		view_write(v, s, NULL);
}

static void view_submit(struct storage *st, struct storage_io *io)
{
	struct simview *v = container_of(st, struct simview, storage);
	uint64_t end = io->offset_bytes + io->len_bytes;

	assert(is_aligned(io->offset_bytes, SECTOR_BYTES) &&
	       is_aligned(io->len_bytes, SECTOR_BYTES));
	assert(!v->closed);
	assert(!st->read_only || io->op == STORAGE_READ || io->op == STORAGE_SYNC);
	switch (io->op) {
	case STORAGE_READ:
		view_payload(v, io);
		break;
	case STORAGE_WRITE:
		if (end > v->map->size_bytes)
			simview_resize(v, end);
		view_payload(v, io);
		break;
	case STORAGE_ZERO:
		if (end > v->map->size_bytes)
			simview_resize(v, end);
		view_zero(v, io);
		break;
	case STORAGE_PUNCH:
		view_zero(v, io);
		break;
	case STORAGE_TRUNCATE:
		simview_resize(v, io->offset_bytes);
		break;
	case STORAGE_SYNC:
		break;
	}
	io->complete(io, 0);
}

static void view_close(struct storage *st)
{
	container_of(st, struct simview, storage)->closed = true;
}

static const struct storage_ops simview_ops = {
	.submit = view_submit,
	.close = view_close,
};

void simview_open(struct simview *v, struct sim_map *map, bool read_only)
{
	v->map = map;
	v->closed = false;
	v->storage = (struct storage){
		.ops = &simview_ops,
		.name = "crash-state",
		.size_bytes = map->size_bytes,
		.block_bytes = SECTOR_BYTES,
		.read_only = read_only,
		.can_punch = true,
	};
}

void simview_free(struct simview *v)
{
	vec_free(&v->undo);
	arena_free(&v->arena);
}
