/* SPDX-License-Identifier: MIT */
/*
 * simdisk.c: see simdisk.h.
 *
 * Sector contents are copied once, when a write is submitted, into the disk's arena, and shared
 * from then on by pointer: by the live map, by the record, and by every crash state made from it.
 */
#include "simdisk.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/math.h"

const uint8_t sim_zero_sector[SECTOR_BYTES];

/* ---- maps ---- */

void sim_map_set(struct sim_map *m, uint64_t sector, const uint8_t *data)
{
	if (sector >= m->n) {
		uint64_t n = max_of(sector + 1, m->n * 2);

		if (data == sim_zero_sector)
			return;
		m->at = sim_realloc(m->at, n * sizeof(*m->at));
		while (m->n < n)
			m->at[m->n++] = sim_zero_sector;
	}
	m->at[sector] = data;
}

void sim_map_copy(struct sim_map *to, const struct sim_map *from)
{
	to->at = sim_malloc(from->n * sizeof(*to->at));
	if (from->n)
		memcpy(to->at, from->at, from->n * sizeof(*to->at));
	to->n = from->n;
	to->size_bytes = from->size_bytes;
}

void sim_map_free(struct sim_map *m)
{
	sim_free(m->at);
	*m = (struct sim_map){0};
}

/* ---- operations ---- */

const char *sim_op_name(const struct sim_op *op)
{
	static const char *const names[] = {"READ", "WRITE", "SYNC", "PUNCH", "ZERO", "TRUNCATE"};

	return names[op->op];
}

bool sim_op_mutates(const struct sim_op *op)
{
	return op->op != STORAGE_READ && op->op != STORAGE_SYNC;
}

const uint8_t *sim_op_value(const struct sim_op *op, uint64_t i)
{
	assert(i < op->sectors);
	if (op->late && op->land != SIM_NEVER)
		return op->late[i];
	return op->data ? op->data[i] : sim_zero_sector;
}

static uint64_t event(struct simdisk *d, enum sim_event_kind kind, struct sim_op *op)
{
	vec_push(&d->events, ((struct sim_event){kind, op}));
	return d->events.n - 1;
}

uint64_t simdisk_mark(struct simdisk *d)
{
	return event(d, SIM_MARK, NULL);
}

static struct simfile *file_of(const struct sim_op *op)
{
	return op->disk->files.at[op->file];
}

/* Walks the payload by sectors; each callback gets one sector's address. */
static void payload_walk(const struct storage_io *io, struct sim_op *op,
			 void (*fn)(struct sim_op *op, uint64_t i, uint8_t *mem))
{
	/* of a registered buffer the offset is the address */
	void *base = io->buf.base ? io->buf.base : (void *)(uintptr_t)io->buf.fixed_offset;
	struct iovec one = {base, io->len_bytes};
	const struct iovec *iov = io->iovcnt ? io->iov : &one;
	unsigned count = io->iovcnt ? io->iovcnt : 1;
	uint64_t i = 0;

	assert(io->iovcnt || base);
	for (unsigned v = 0; v < count; v++) {
		assert(is_aligned((uintptr_t)iov[v].iov_base, SECTOR_BYTES));
		assert(is_aligned(iov[v].iov_len, file_of(op)->storage.block_bytes));
		for (size_t off = 0; off < iov[v].iov_len; off += SECTOR_BYTES)
			fn(op, i++, (uint8_t *)iov[v].iov_base + off);
	}
	assert(i == op->sectors);
}

static const uint8_t *keep(struct simdisk *d, const uint8_t *mem)
{
	uint8_t *copy;

	if (!memcmp(mem, sim_zero_sector, SECTOR_BYTES))
		return sim_zero_sector;
	copy = arena_alloc(&d->arena, SECTOR_BYTES);
	memcpy(copy, mem, SECTOR_BYTES);
	return copy;
}

static void capture(struct sim_op *op, uint64_t i, uint8_t *mem)
{
	op->data[i] = keep(op->disk, mem);
}

/* A write's memory, looked at once more: what changed meanwhile lands either way. */
static void recapture(struct sim_op *op, uint64_t i, uint8_t *mem)
{
	struct simdisk *d = op->disk;

	if (!memcmp(mem, op->data[i], SECTOR_BYTES))
		return;
	if (!op->late) {
		op->late = arena_alloc(&d->arena, op->sectors * sizeof(*op->late));
		memcpy(op->late, op->data, op->sectors * sizeof(*op->late));
	}
	if (rng_chance(&d->rng, 50))
		op->late[i] = keep(d, mem);
}

static const uint8_t *live_get(const struct simfile *f, uint64_t sector)
{
	if (sector * SECTOR_BYTES >= f->live.size_bytes)
		return sim_zero_sector;
	return sim_map_get(&f->live, sector);
}

static void read_capture(struct sim_op *op)
{
	struct simfile *f = file_of(op);

	op->data = arena_alloc(&op->disk->arena, op->sectors * sizeof(*op->data));
	for (uint64_t i = 0; i < op->sectors; i++)
		op->data[i] = live_get(f, op->sector + i);
}

static void read_deliver(struct sim_op *op, uint64_t i, uint8_t *mem)
{
	const uint8_t *now = live_get(file_of(op), op->sector + i);

	if (op->ret)
		memset(mem, 0xee, SECTOR_BYTES);
	else if (op->flags & STORAGE_FILL)
		memset(mem, 0, SECTOR_BYTES);
	else
		memcpy(mem, rng_chance(&op->disk->rng, 50) ? now : op->data[i], SECTOR_BYTES);
}

/* ---- landing ---- */

static void resize_live(struct simfile *f, struct sim_op *op, uint64_t size_bytes)
{
	f->live.size_bytes = size_bytes;
	op->resized = true;
	op->resized_bytes = size_bytes;
}

/* A failed operation: any of its sectors may have landed. */
static void choose_landed(struct sim_op *op)
{
	struct rng *r = &op->disk->rng;
	unsigned mode = rng_below(r, 4);
	uint64_t cut = rng_below(r, op->sectors + 1);
	uint64_t limit = op->disk->fault.limit_bytes;

	op->landed = arena_alloc(&op->disk->arena, op->sectors);
	op->landed_size = op->ret != -ENOSPC && op->ret != -EOPNOTSUPP && rng_chance(r, 50);
	for (uint64_t i = 0; i < op->sectors; i++) {
		if (mode == 0 || op->ret == -EOPNOTSUPP)
			op->landed[i] = false;
		else if (op->ret == -ENOSPC && (op->sector + i + 1) * SECTOR_BYTES > limit)
			op->landed[i] = false;
		else if (mode == 1)
			op->landed[i] = true;
		else if (mode == 2)
			op->landed[i] = i < cut;
		else
			op->landed[i] = rng_chance(r, 50);
	}
}

static void land_sectors(struct sim_op *op)
{
	struct simfile *f = file_of(op);
	uint64_t end = 0;

	for (uint64_t i = 0; i < op->sectors; i++) {
		if (op->landed && !op->landed[i])
			continue;
		sim_map_set(&f->live, op->sector + i, sim_op_value(op, i));
		end = (op->sector + i + 1) * SECTOR_BYTES;
	}
	if ((op->op == STORAGE_WRITE || op->op == STORAGE_ZERO) && end > f->live.size_bytes)
		resize_live(f, op, end);
}

static void land(struct sim_op *op)
{
	struct simfile *f = file_of(op);

	op->land = event(op->disk, SIM_LAND, op);
	if (op->op == STORAGE_READ && !op->killed)
		payload_walk(op->io, op, read_deliver);
	if (op->op == STORAGE_READ || op->op == STORAGE_SYNC)
		return;
	if (op->op == STORAGE_WRITE && !op->killed)
		payload_walk(op->io, op, recapture);
	if (op->ret || op->killed)
		choose_landed(op);
	land_sectors(op);
	if (op->op != STORAGE_TRUNCATE || ((op->ret || op->killed) && !op->landed_size))
		return;
	/* also what landed from writes that were submitted after this */
	for (uint64_t s = op->sector + op->sectors; s < f->live.n; s++)
		f->live.at[s] = sim_zero_sector;
	resize_live(f, op, op->size_bytes);
}

static void account_done(struct sim_op *op)
{
	struct simdisk *d = op->disk;

	op->done = event(d, SIM_DONE, op);
	op->io = NULL;
	d->undone--;
	d->undone_failing -= op->ret != 0;
	for (size_t i = 0; i < d->told.n; i++) {
		if (d->told.at[i] == op)
			d->told.at[i] = d->told.at[--d->told.n];
	}
}

static void finish_done(struct sim_op *op)
{
	struct storage *st = &file_of(op)->storage;
	struct storage_io *io = op->io;

	account_done(op);
	if (op->resized && op->op == STORAGE_TRUNCATE)
		st->size_bytes = op->size_bytes;
	else if (op->resized && op->resized_bytes > st->size_bytes)
		st->size_bytes = op->resized_bytes;
	for (unsigned v = 0; v < io->iovcnt; v++)
		io->iov[v] = (struct iovec){(void *)(uintptr_t)0xdead000, 0xdead};
	io->complete(io, op->ret);
}

static void done_msg(struct loop_msg *msg)
{
	finish_done(container_of(msg, struct sim_op, msg));
}

static void pending_remove(struct simdisk *d, size_t index)
{
	assert(index < d->pending.n);
	memmove(&d->pending.at[index], &d->pending.at[index + 1],
		(d->pending.n - index - 1) * sizeof(*d->pending.at));
	d->pending.n--;
}

void simdisk_finish(struct simdisk *d, size_t index)
{
	struct sim_op *op = d->pending.at[index];

	pending_remove(d, index);
	land(op);
	op->msg.fn = done_msg;
	vec_push(&d->told, op);
	loop_post(op->loop, &op->msg);
}

static void ghost_land(struct simdisk *d, size_t i)
{
	struct sim_op *op = d->ghosts.at[i];

	d->ghosts.at[i] = d->ghosts.at[--d->ghosts.n];
	land(op);
	account_done(op);
}

void simdisk_ghost(struct simdisk *d)
{
	ghost_land(d, rng_below(&d->rng, d->ghosts.n));
}

void simdisk_kill(struct simdisk *d)
{
	while (d->pending.n) {
		struct sim_op *op = d->pending.at[0];

		pending_remove(d, 0);
		op->killed = true;
		op->io = NULL;
		vec_push(&d->ghosts, op);
	}
	while (d->told.n) {
		d->told.at[0]->killed = true;
		account_done(d->told.at[0]);
	}
	for (size_t i = 0; i < d->files.n; i++) {
		d->files.at[i]->closed = false;
		d->files.at[i]->storage.size_bytes = d->files.at[i]->live.size_bytes;
	}
}

/* One that may still change the file, or -1; any, at random. */
static ssize_t ghost_of(struct simdisk *d, unsigned file)
{
	uint64_t first = d->ghosts.n ? rng_below(&d->rng, d->ghosts.n) : 0;

	for (size_t k = 0; k < d->ghosts.n; k++) {
		size_t i = (first + k) % d->ghosts.n;

		if (d->ghosts.at[i]->file == file || d->ghosts.at[i]->op == STORAGE_READ)
			return i;
	}
	return -1;
}

/* Waits for what a killed process had under way for this file; for another one it may go on. */
static int file_claim(struct storage *st, unsigned timeout_ms, struct error *err)
{
	struct simfile *f = container_of(st, struct simfile, storage);
	ssize_t i;

	while ((i = ghost_of(f->disk, f->number)) >= 0)
		ghost_land(f->disk, i);
	st->size_bytes = f->live.size_bytes;
	return 0;
}

/* ---- submission ---- */

/* The result that @op will have. */
static int op_fate(struct sim_op *op)
{
	struct simdisk *d = op->disk;
	const struct sim_fault *fault = &d->fault;
	struct simfile *f = file_of(op);
	uint64_t end = op->op == STORAGE_TRUNCATE ? op->size_bytes
						  : (op->sector + op->sectors) * SECTOR_BYTES;

	if (op->op == STORAGE_PUNCH && !f->storage.can_punch)
		return -EOPNOTSUPP;
	if (op->op == STORAGE_ZERO && f->no_zero)
		return -EOPNOTSUPP;
	if (fault->files && !(fault->files >> op->file & 1))
		return 0;
	if (fault->kinds >> op->op & 1 && op->number >= fault->first && op->number <= fault->last) {
		d->failed++;
		return fault->error;
	}
	if (fault->limit_bytes && sim_op_mutates(op) && op->op != STORAGE_PUNCH &&
	    end > fault->limit_bytes && end > f->live.size_bytes) {
		d->failed++;
		return -ENOSPC;
	}
	return 0;
}

/* How far the file may reach by what has landed and what is pending. */
static uint64_t reach_sectors(const struct simfile *f)
{
	uint64_t reach = f->live.n;

	for (size_t i = 0; i < f->disk->pending.n; i++) {
		const struct sim_op *op = f->disk->pending.at[i];

		if (op->file == f->number && sim_op_mutates(op))
			reach = max_of(reach, op->sector + op->sectors);
	}
	return reach;
}

static void op_range(struct sim_op *op, const struct storage_io *io)
{
	struct simfile *f = file_of(op);
	uint64_t reach;

	assert(is_aligned(io->offset_bytes, f->storage.block_bytes));
	assert(io->offset_bytes < (uint64_t)1 << 62);
	if (io->op == STORAGE_SYNC)
		return;
	if (io->op == STORAGE_TRUNCATE) {
		reach = reach_sectors(f);
		op->size_bytes = io->offset_bytes;
		op->sector = io->offset_bytes / SECTOR_BYTES;
		op->sectors = reach > op->sector ? reach - op->sector : 0;
		return;
	}
	assert(io->len_bytes && io->len_bytes < (uint64_t)1 << 40);
	assert(is_aligned(io->len_bytes, f->storage.block_bytes));
	op->sector = io->offset_bytes / SECTOR_BYTES;
	op->sectors = io->len_bytes / SECTOR_BYTES;
	/* what lies past all that was ever written is zero already */
	if (io->op == STORAGE_PUNCH) {
		reach = reach_sectors(f);
		op->sectors = min_of(op->sectors, reach > op->sector ? reach - op->sector : 0);
	}
}

static void file_submit(struct storage *st, struct storage_io *io)
{
	struct simfile *f = container_of(st, struct simfile, storage);
	struct simdisk *d = f->disk;
	struct sim_op *op = arena_alloc(&d->arena, sizeof(*op));

	assert(!f->closed);
	assert(!st->read_only || io->op == STORAGE_READ || io->op == STORAGE_SYNC);
	assert(!st->fixed_size ||
	       (io->op != STORAGE_TRUNCATE && io->offset_bytes + io->len_bytes <= st->size_bytes));
	*op = (struct sim_op){.op = io->op,
			      .flags = io->flags,
			      .file = f->number,
			      .number = d->ops.n,
			      .submit = SIM_NEVER,
			      .land = SIM_NEVER,
			      .done = SIM_NEVER,
			      .disk = d,
			      .io = io,
			      .loop = loop_self()};
	op_range(op, io);
	op->ret = op_fate(op);
	if (io->op == STORAGE_WRITE) {
		op->data = arena_alloc(&d->arena, op->sectors * sizeof(*op->data));
		payload_walk(io, op, capture);
	} else if (io->op == STORAGE_READ) {
		read_capture(op);
	}
	vec_push(&d->ops, op);
	d->undone++;
	d->undone_failing += op->ret != 0;
	op->submit = event(d, SIM_SUBMIT, op);
	if (op->loop) {
		vec_push(&d->pending, op);
		return;
	}
	land(op);
	finish_done(op);
}

static void file_close(struct storage *st)
{
	struct simfile *f = container_of(st, struct simfile, storage);

	assert(!f->closed);
	f->closed = true;
}

static const struct storage_ops simfile_ops = {
	.submit = file_submit,
	.claim = file_claim,
	.close = file_close,
};

/* ---- the disk ---- */

struct simdisk *simdisk_create(uint64_t seed)
{
	struct simdisk *d = sim_calloc(1, sizeof(*d));

	d->rng = rng_make(seed, 0xd15c, 0);
	return d;
}

struct simfile *simdisk_file(struct simdisk *d, const char *name, const struct sim_map *contents)
{
	struct simfile *f = sim_calloc(1, sizeof(*f));

	f->disk = d;
	f->number = d->files.n;
	if (contents) {
		sim_map_copy(&f->initial, contents);
		sim_map_copy(&f->live, contents);
	}
	f->storage.ops = &simfile_ops;
	f->storage.name = name;
	f->storage.size_bytes = f->live.size_bytes;
	f->storage.block_bytes = SECTOR_BYTES;
	f->storage.can_punch = true;
	vec_push(&d->files, f);
	return f;
}

void simdisk_destroy(struct simdisk *d)
{
	if (!d)
		return;
	assert(!d->undone);
	for (size_t i = 0; i < d->files.n; i++) {
		assert(d->files.at[i]->closed);
		sim_map_free(&d->files.at[i]->initial);
		sim_map_free(&d->files.at[i]->live);
		sim_free(d->files.at[i]);
	}
	vec_free(&d->files);
	vec_free(&d->events);
	vec_free(&d->ops);
	vec_free(&d->pending);
	vec_free(&d->told);
	vec_free(&d->ghosts);
	arena_free(&d->arena);
	sim_free(d);
}

static uint64_t digest_sector(const uint8_t *data)
{
	uint64_t h = 0;

	for (unsigned i = 0; i < SECTOR_BYTES; i += 8) {
		uint64_t word;

		memcpy(&word, data + i, 8);
		h = (h ^ word) * 0x9e3779b97f4a7c15u;
		h ^= h >> 29;
	}
	return h;
}

uint64_t simdisk_digest(const struct simdisk *d)
{
	uint64_t h = 0;

	for (size_t i = 0; i < d->events.n; i++) {
		const struct sim_event *ev = &d->events.at[i];

		h = rng_mix(h ^ ev->kind);
		if (!ev->op)
			continue;
		h = rng_mix(h ^ ev->op->number ^ (uint64_t)ev->op->op << 40);
		h = rng_mix(h ^ ev->op->sector ^ ev->op->sectors << 32);
		if (ev->kind == SIM_SUBMIT && ev->op->op == STORAGE_WRITE) {
			for (uint64_t s = 0; s < ev->op->sectors; s++)
				h = rng_mix(h ^ digest_sector(ev->op->data[s]));
		}
	}
	return h;
}
