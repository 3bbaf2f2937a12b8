/* SPDX-License-Identifier: MIT */
/*
 * crash.c: see crash.h. The chains are kept up to date event by event; a state is laid over the
 * durable map by its view and taken back afterwards, so that it costs as much as it differs.
 */
#include "crash.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"

static void chain_remove(struct crash_chain *ch, size_t i)
{
	ch->e.at[i].op->entries--;
	memmove(&ch->e.at[i], &ch->e.at[i + 1], (ch->e.n - i - 1) * sizeof(*ch->e.at));
	ch->e.n--;
}

static void chain_add(struct crash_chain *ch, struct crash_entry entry)
{
	entry.op->entries++;
	vec_push(&ch->e, entry);
}

/* The index of @op's entry, or -1. */
static ssize_t chain_find(const struct crash_chain *ch, const struct crash_op *op)
{
	for (size_t i = 0; i < ch->e.n; i++) {
		if (ch->e.at[i].op == op)
			return i;
	}
	return -1;
}

/* @op's entry has landed: behind those that landed before, before those that have not. */
static struct crash_entry *chain_land(struct crash_chain *ch, size_t i, uint64_t time)
{
	struct crash_entry entry = ch->e.at[i];
	size_t to = 0;

	entry.land = time;
	memmove(&ch->e.at[i], &ch->e.at[i + 1], (ch->e.n - i - 1) * sizeof(*ch->e.at));
	while (to < ch->e.n - 1 && ch->e.at[to].land != SIM_NEVER)
		to++;
	memmove(&ch->e.at[to + 1], &ch->e.at[to], (ch->e.n - 1 - to) * sizeof(*ch->e.at));
	ch->e.at[to] = entry;
	return &ch->e.at[to];
}

/* Entry @i is durable: it and all that landed before leave the chain. */
static void chain_fold(struct crash_chain *ch, size_t i)
{
	for (size_t k = i + 1; k-- > 0;)
		chain_remove(ch, k);
}

static struct crash_chain *sector_chain(struct crash_file *f, uint64_t sector)
{
	struct crash_chain *ch = &f->chains[sector];

	assert(sector < f->n);
	if (!ch->listed) {
		vec_push(&f->sectors, sector);
		ch->listed = true;
	}
	return ch;
}

static struct crash_op *op_find(struct crash *c, const struct sim_op *op)
{
	for (size_t i = c->ops.n; i-- > 0;) {
		if (c->ops.at[i]->op == op)
			return c->ops.at[i];
	}
	return NULL;
}

static void ops_sweep(struct crash *c)
{
	size_t keep = 0;

	for (size_t i = 0; i < c->ops.n; i++) {
		if (c->ops.at[i]->entries || c->ops.at[i]->op->done > c->time)
			c->ops.at[keep++] = c->ops.at[i];
	}
	c->ops.n = keep;
}

static void on_submit(struct crash *c, const struct sim_op *op)
{
	struct crash_file *f = &c->files[op->file];
	struct crash_op *cop;
	uint64_t end = (op->sector + op->sectors) * SECTOR_BYTES;

	if (!sim_op_mutates(op))
		return;
	cop = arena_alloc(&c->arena, sizeof(*cop));
	*cop = (struct crash_op){.op = op, .doubt = SIM_NEVER};
	vec_push(&c->ops, cop);
	for (uint64_t i = 0; i < op->sectors; i++) {
		const uint8_t *value = op->data ? op->data[i] : sim_zero_sector;

		chain_add(sector_chain(f, op->sector + i),
			  (struct crash_entry){cop, value, 0, SIM_NEVER});
	}
	if (op->op == STORAGE_TRUNCATE)
		chain_add(&f->length, (struct crash_entry){cop, NULL, op->size_bytes, SIM_NEVER});
	else if (op->op != STORAGE_PUNCH && op->sectors && end > f->base.size_bytes)
		chain_add(&f->length, (struct crash_entry){cop, NULL, end, SIM_NEVER});
}

/* Whether @op makes what was before it durable, if it succeeds. */
static bool op_syncs(const struct sim_op *op)
{
	return op->op == STORAGE_SYNC || (op->op == STORAGE_WRITE && op->flags & STORAGE_DSYNC);
}

static void on_sync_failed(struct crash *c, const struct sim_op *sync)
{
	for (size_t i = 0; i < c->ops.n; i++) {
		struct crash_op *cop = c->ops.at[i];

		if (cop->op->file == sync->file)
			cop->doubt = min_of(cop->doubt, c->time);
	}
}

static void on_land(struct crash *c, const struct sim_op *op)
{
	struct crash_file *f = &c->files[op->file];
	struct crash_op *cop;
	ssize_t at;

	if (op_syncs(op) && !op->killed && op->ret)
		on_sync_failed(c, op);
	if (!sim_op_mutates(op))
		return;
	cop = op_find(c, op);
	assert(cop);
	for (uint64_t i = 0; i < op->sectors; i++) {
		struct crash_chain *ch = &f->chains[op->sector + i];

		at = chain_find(ch, cop);
		assert(at >= 0);
		if (op->landed && !op->landed[i])
			chain_remove(ch, at);
		else
			chain_land(ch, at, c->time)->value = sim_op_value(op, i);
	}
	at = chain_find(&f->length, cop);
	if (op->resized) {
		if (at < 0) {
			chain_add(&f->length, (struct crash_entry){cop, NULL, 0, SIM_NEVER});
			at = f->length.e.n - 1;
		}
		chain_land(&f->length, at, c->time)->size_bytes = op->resized_bytes;
	} else if (at >= 0) {
		chain_remove(&f->length, at);
	}
}

static void op_fold(struct crash *c, struct crash_op *cop)
{
	const struct sim_op *op = cop->op;
	struct crash_file *f = &c->files[op->file];
	ssize_t at;

	for (uint64_t i = 0; i < op->sectors && cop->entries; i++) {
		struct crash_chain *ch = &f->chains[op->sector + i];
		uint64_t end = (op->sector + i + 1) * SECTOR_BYTES;

		at = chain_find(ch, cop);
		if (at < 0)
			continue;
		sim_map_set(&f->base, op->sector + i, ch->e.at[at].value);
		/* what is durable can be read, even if another write grew the file to here */
		if ((op->op == STORAGE_WRITE || op->op == STORAGE_ZERO) && end > f->base.size_bytes)
			f->base.size_bytes = end;
		c->dropped++;
		chain_fold(ch, at);
	}
	at = chain_find(&f->length, cop);
	if (at >= 0) {
		f->base.size_bytes = f->length.e.at[at].size_bytes;
		chain_fold(&f->length, at);
	}
	assert(!cop->entries);
}

static void lists_sweep(struct crash_file *f)
{
	size_t keep = 0;

	for (size_t i = 0; i < f->sectors.n; i++) {
		uint64_t s = f->sectors.at[i];

		if (f->chains[s].e.n)
			f->sectors.at[keep++] = s;
		else
			f->chains[s].listed = false;
	}
	f->sectors.n = keep;
}

static int by_land(const void *a, const void *b)
{
	const struct crash_op *x = *(struct crash_op *const *)a, *y = *(struct crash_op *const *)b;

	return x->op->land < y->op->land ? -1 : x->op->land > y->op->land;
}

static void on_sync_done(struct crash *c, const struct sim_op *sync)
{
	vec(struct crash_op *) fold = {0};

	for (size_t i = 0; i < c->ops.n; i++) {
		struct crash_op *cop = c->ops.at[i];

		if (cop->op->file == sync->file && cop->op->done < sync->submit &&
		    cop->doubt > sync->land)
			vec_push(&fold, cop);
	}
	if (fold.n)
		qsort(fold.at, fold.n, sizeof(*fold.at), by_land);
	for (size_t i = 0; i < fold.n; i++)
		op_fold(c, fold.at[i]);
	vec_free(&fold);
}

static void on_done(struct crash *c, const struct sim_op *op)
{
	struct crash_op *cop;

	/* one that nobody was told of proves nothing */
	if (op_syncs(op) && !op->killed && !op->ret) {
		if (op->op == STORAGE_SYNC)
			on_sync_done(c, op);
		else if ((cop = op_find(c, op)) && cop->doubt > op->land)
			op_fold(c, cop);
	}
	ops_sweep(c);
	lists_sweep(&c->files[op->file]);
}

void crash_advance(struct crash *c, uint64_t time)
{
	assert(time >= c->time && time <= c->disk->events.n);
	for (; c->time < time; c->time++) {
		const struct sim_event *ev = &c->disk->events.at[c->time];

		if (ev->kind == SIM_SUBMIT)
			on_submit(c, ev->op);
		else if (ev->kind == SIM_LAND)
			on_land(c, ev->op);
		else if (ev->kind == SIM_DONE)
			on_done(c, ev->op);
	}
}

/* ---- states ---- */

uint64_t crash_state_count(const struct crash *c)
{
	uint64_t count = 1;

	for (size_t k = 0; k < c->disk->files.n; k++) {
		const struct crash_file *f = &c->files[k];

		for (size_t i = 0; i < f->sectors.n; i++) {
			if (!checked_mul(count, f->chains[f->sectors.at[i]].e.n + 1, &count))
				return UINT64_MAX;
		}
		if (!checked_mul(count, f->length.e.n + 1, &count))
			return UINT64_MAX;
	}
	return count;
}

/* The file's length by @e. One that has not landed and grows the file does not shrink it. */
static uint64_t length_by(const struct crash_file *f, const struct crash_entry *e)
{
	if (e->land == SIM_NEVER && e->op->op->op != STORAGE_TRUNCATE)
		return max_of(e->size_bytes, f->base.size_bytes);
	return e->size_bytes;
}

/* The length goes first: what is laid beyond it must not come back when the file grows. */
void crash_state_pick(struct crash *c, uint64_t index)
{
	for (size_t k = 0; k < c->disk->files.n; k++) {
		struct crash_file *f = &c->files[k];
		size_t n = index % (f->length.e.n + 1);

		index /= f->length.e.n + 1;
		if (n)
			simview_resize(&f->view, length_by(f, &f->length.e.at[n - 1]));
		for (size_t i = 0; i < f->sectors.n; i++) {
			uint64_t s = f->sectors.at[i];
			const struct crash_chain *ch = &f->chains[s];

			n = index % (ch->e.n + 1);
			index /= ch->e.n + 1;
			if (n)
				simview_set(&f->view, s, ch->e.at[n - 1].value);
		}
	}
	assert(!index);
}

/* The last entry that the dice leave in; NULL: the durable value. */
static const struct crash_entry *chain_dice(const struct crash_chain *ch, struct rng *r)
{
	const struct crash_entry *in = NULL;
	size_t ties = 0;

	for (size_t i = 0; i < ch->e.n; i++) {
		const struct crash_entry *e = &ch->e.at[i];

		if (!rng_chance(r, e->op->percent))
			continue;
		/* those that have not landed are in no order */
		ties = e->land == SIM_NEVER ? ties + 1 : 1;
		if (rng_below(r, ties) == 0)
			in = e;
	}
	return in;
}

void crash_state_random(struct crash *c, struct rng *r)
{
	for (size_t k = 0; k < c->disk->files.n; k++) {
		struct crash_file *f = &c->files[k];
		const struct crash_entry *e = chain_dice(&f->length, r);

		if (e)
			simview_resize(&f->view, length_by(f, e));
		for (size_t i = 0; i < f->sectors.n; i++) {
			e = chain_dice(&f->chains[f->sectors.at[i]], r);
			if (e)
				simview_set(&f->view, f->sectors.at[i], e->value);
		}
	}
}

void crash_state_drop(struct crash *c)
{
	for (size_t k = 0; k < c->disk->files.n; k++)
		simview_rewind(&c->files[k].view);
}

/* ---- create ---- */

static uint64_t reach(const struct simdisk *d, unsigned file)
{
	uint64_t n = d->files.at[file]->live.n;

	for (size_t i = 0; i < d->ops.n; i++) {
		if (d->ops.at[i]->file == file && sim_op_mutates(d->ops.at[i]))
			n = max_of(n, d->ops.at[i]->sector + d->ops.at[i]->sectors);
	}
	return n;
}

struct crash *crash_create(const struct simdisk *d)
{
	struct crash *c = sim_calloc(1, sizeof(*c));

	c->disk = d;
	c->files = sim_calloc(d->files.n, sizeof(*c->files));
	for (size_t k = 0; k < d->files.n; k++) {
		struct crash_file *f = &c->files[k];

		f->n = reach(d, k);
		f->chains = sim_calloc(f->n, sizeof(*f->chains));
		sim_map_copy(&f->base, &d->files.at[k]->initial);
		simview_open(&f->view, &f->base, false);
	}
	return c;
}

void crash_destroy(struct crash *c)
{
	if (!c)
		return;
	for (size_t k = 0; k < c->disk->files.n; k++) {
		struct crash_file *f = &c->files[k];

		for (uint64_t s = 0; s < f->n; s++)
			vec_free(&f->chains[s].e);
		sim_free(f->chains);
		vec_free(&f->length.e);
		vec_free(&f->sectors);
		simview_free(&f->view);
		sim_map_free(&f->base);
	}
	sim_free(c->files);
	vec_free(&c->ops);
	arena_free(&c->arena);
	sim_free(c);
}
