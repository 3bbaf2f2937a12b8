/* SPDX-License-Identifier: MIT */
/*
 * check_read.c: how the checker reads tables.
 *
 * A small file is read whole at the start, and a table is a pointer into that copy. From a large
 * one tables are read in runs: tables that follow each other in the file become one read, and on a
 * loop several reads are in flight. Outside of a loop I/O is done when it is submitted, so there is
 * one run.
 *
 * The copy of a small file is followed by zeros, a cluster at least, since a table may start inside
 * the file and end outside; one that starts outside is all zeros.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check_internal.h"
#include "ring/co.h"

#define WHOLE_MAX_BYTES (1 * MiB)
#define RUN_BYTES	(1 * MiB)
#define RUNS_MAX	8
#define ALIGN		4096
/* Rounding a range outward adds less than this, and less than this again. */
#define SLACK (2 * ALIGN)

int check_view_open(struct check *c)
{
	uint64_t len = align_up(c->stored_bytes, ALIGN);
	int ret;

	if (len > WHOLE_MAX_BYTES)
		return 0;
	ret = check_charge(c, len + c->h->cluster_bytes, "the file");
	if (ret)
		return ret;
	c->whole = aligned_alloc(ALIGN, len + align_up(c->h->cluster_bytes, ALIGN));
	if (!c->whole)
		return error_set(c->err, -ENOMEM, "%s: no memory for the file", c->st->name);
	memset(c->whole + len, 0, c->h->cluster_bytes);
	c->whole_bytes = len;
	ret = storage_pread(c->st, 0, c->whole, len);
	return ret ? check_read_error(c, ret, "file", 0) : 0;
}

/* Past the end there is nothing to read. @buf is zeroed there. */
int check_read(struct check *c, uint64_t offset, void *buf, uint64_t len_bytes)
{
	uint64_t block = max_of(c->st->block_bytes, 512u);
	uint64_t start = align_down(offset, block);
	uint64_t in_file =
		offset < c->stored_bytes ? min_of(len_bytes, c->stored_bytes - offset) : 0;
	void *bounce;
	int ret;

	memset((uint8_t *)buf + in_file, 0, len_bytes - in_file);
	if (!in_file)
		return 0;
	if (c->whole) {
		memcpy(buf, c->whole + offset, in_file);
		return 0;
	}
	if (start == offset && is_aligned(in_file, block) && is_aligned((uintptr_t)buf, ALIGN))
		return storage_pread(c->st, offset, buf, in_file);
	bounce = aligned_alloc(ALIGN, align_up(in_file + SLACK, ALIGN));
	if (!bounce)
		return -ENOMEM;
	ret = storage_pread(c->st, start, bounce, align_up(offset + in_file, block) - start);
	if (!ret)
		memcpy(buf, (uint8_t *)bounce + (offset - start), in_file);
	free(bounce);
	return ret;
}

/* ---- runs ---- */

struct run {
	uint8_t *buf;
	uint64_t offset; /* in the file, of the first table */
	uint64_t start;	 /* the same, rounded down to what can be read */
	unsigned tables;
	unsigned next; /* to hand out */
	uint64_t *tags;
	struct storage_io io;
	struct co_latch latch;
	bool reading;
};

struct table_iter {
	struct check *c;
	table_next_fn next;
	void *arg;

	/* the table that next() gave and no run has taken */
	bool have;
	uint64_t offset, tag;

	unsigned runs, tables_per_run;
	unsigned head, filled; /* a ring of runs, in order */
	struct run run[RUNS_MAX];
};

static void advance(struct table_iter *it)
{
	it->have = it->next(it->arg, &it->offset, &it->tag);
}

static int run_init(struct table_iter *it, struct run *r)
{
	struct check *c = it->c;

	r->buf = aligned_alloc(ALIGN, ((uint64_t)it->tables_per_run << c->h->cluster_bits) + SLACK);
	r->tags = calloc(it->tables_per_run, sizeof(*r->tags));
	if (!r->buf || !r->tags)
		return error_set(c->err, -ENOMEM, "%s: no memory for reading tables", c->st->name);
	return 0;
}

int tables_begin(struct table_iter **out, struct check *c, table_next_fn next, void *arg)
{
	struct table_iter *it = calloc(1, sizeof(*it));

	*out = it;
	if (!it)
		return error_set(c->err, -ENOMEM, "%s: no memory for reading tables", c->st->name);
	it->c = c;
	it->next = next;
	it->arg = arg;
	advance(it);
	if (c->whole)
		return 0;
	it->runs = co_self() ? RUNS_MAX : 1;
	it->tables_per_run = (unsigned)max_of(RUN_BYTES >> c->h->cluster_bits, (uint64_t)1);
	for (unsigned i = 0; i < it->runs; i++) {
		int ret = run_init(it, &it->run[i]);

		if (ret)
			return ret;
	}
	return 0;
}

static void run_done(struct storage_io *io, int ret)
{
	struct run *r = container_of(io, struct run, io);

	co_latch_done(&r->latch, ret);
}

/* Takes tables that follow each other. */
static void run_fill(struct table_iter *it, struct run *r)
{
	struct check *c = it->c;
	uint64_t block = max_of(c->st->block_bytes, 512u);
	uint64_t end;

	r->offset = it->offset;
	r->tables = r->next = 0;
	do {
		r->tags[r->tables++] = it->tag;
		advance(it);
	} while (it->have && r->tables < it->tables_per_run &&
		 it->offset == r->offset + ((uint64_t)r->tables << c->h->cluster_bits));
	r->start = align_down(r->offset, block);
	end = align_up(r->offset + ((uint64_t)r->tables << c->h->cluster_bits), block);
	co_latch_init(&r->latch);
	if (r->start >= c->stored_bytes) {
		memset(r->buf, 0, end - r->start);
		r->reading = false;
		return;
	}
	co_latch_add(&r->latch);
	r->reading = true;
	r->io = (struct storage_io){
		.op = STORAGE_READ,
		.offset_bytes = r->start,
		.len_bytes = end - r->start,
		.buf.base = r->buf,
		.complete = run_done,
	};
	storage_submit(c->st, &r->io);
}

static int run_wait(struct table_iter *it, struct run *r)
{
	int ret;

	if (!r->reading)
		return 0;
	ret = co_latch_wait(&r->latch);
	r->reading = false;
	return ret ? check_read_error(it->c, ret, "table", r->offset) : 0;
}

static int next_of_whole(struct table_iter *it, void **table, uint64_t *offset, uint64_t *tag)
{
	struct check *c = it->c;

	if (!it->have)
		return 0;
	*offset = it->offset;
	*tag = it->tag;
	*table = c->whole + min_of(it->offset, c->whole_bytes);
	advance(it);
	return 1;
}

int tables_next(struct table_iter *it, void **table, uint64_t *offset, uint64_t *tag)
{
	struct run *r = &it->run[it->head];
	unsigned bits = it->c->h->cluster_bits;
	int ret;

	if (it->c->whole)
		return next_of_whole(it, table, offset, tag);
	if (it->filled && r->next == r->tables) {
		it->head = (it->head + 1) % it->runs;
		it->filled--;
		r = &it->run[it->head];
	}
	while (it->have && it->filled < it->runs) {
		run_fill(it, &it->run[(it->head + it->filled) % it->runs]);
		it->filled++;
	}
	if (!it->filled)
		return 0;
	ret = run_wait(it, r);
	if (ret)
		return ret;
	*offset = r->offset + ((uint64_t)r->next << bits);
	*table = r->buf + (*offset - r->start);
	*tag = r->tags[r->next++];
	return 1;
}

void tables_end(struct table_iter *it)
{
	if (!it)
		return;
	for (unsigned i = 0; i < it->runs; i++) {
		struct run *r = &it->run[i];

		if (r->reading)
			(void)!co_latch_wait(&r->latch);
		free(r->buf);
		free(r->tags);
	}
	free(it);
}
