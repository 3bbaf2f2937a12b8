/* SPDX-License-Identifier: MIT */
/* frees.c: see frees.h. */
#include "qcow2/frees.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/alloc.h"
#include "qcow2/image.h"

int frees_init(struct frees *f)
{
	struct free_stage *stages[] = {&f->unlinked, &f->in_pass, &f->durable, &f->working};

	*f = (struct frees){0};
	co_waitq_init(&f->budget);
	for (unsigned i = 0; i < ARRAY_LEN(stages); i++) {
		stages[i]->runs = calloc(FREES_BUDGET, sizeof(struct free_run));
		if (!stages[i]->runs)
			return -ENOMEM;
	}
	return 0;
}

void frees_destroy(struct frees *f)
{
	free(f->unlinked.runs);
	free(f->in_pass.runs);
	free(f->durable.runs);
	free(f->working.runs);
	*f = (struct frees){0};
}

static unsigned budget_used(const struct frees *f)
{
	return f->reserved + f->unlinked.count + f->in_pass.count + f->durable.count +
	       f->working.count;
}

bool frees_pending(const struct frees *f)
{
	return f->unlinked.count || f->in_pass.count || f->durable.count || f->working.count;
}

int frees_reserve(struct qcow2_image *img, unsigned runs)
{
	struct frees *f = &img->frees;

	assert(runs <= FREES_BUDGET / 4);
	while (budget_used(f) + runs > FREES_BUDGET) {
		if (f->reserved && budget_used(f) - f->reserved + runs <= FREES_BUDGET) {
			/* Others' reservations, most of which come back; a pass may be of no use (rule 6). */
			co_wait(&f->budget);
		} else if (f->unlinked.count && !f->durable.count && !f->working.count) {
			int ret = writeback_run(img);

			if (ret)
				return ret;
		} else if (f->durable.count || f->working.count) {
			frees_reclaim(img);
		} else {
			co_wait(&f->budget); /* others' reservations, or a pass under way */
		}
	}
	f->reserved += runs;
	return 0;
}

void frees_unreserve(struct qcow2_image *img, unsigned runs)
{
	struct frees *f = &img->frees;

	assert(f->reserved >= runs);
	f->reserved -= runs;
	co_wake_all(&f->budget); /* also of nothing: what was promised may have been used up */
}

static void stage_add(struct free_stage *s, uint64_t hcluster, uint64_t count)
{
	struct free_run *last = s->count ? &s->runs[s->count - 1] : NULL;

	if (last && last->hcluster + last->count == hcluster) {
		last->count += count;
		return;
	}
	assert(s->count < FREES_BUDGET);
	s->runs[s->count++] = (struct free_run){hcluster, count};
}

static void stage_move(struct free_stage *to, struct free_stage *from)
{
	for (unsigned i = 0; i < from->count; i++)
		stage_add(to, from->runs[i].hcluster, from->runs[i].count);
	from->count = 0;
}

void frees_add(struct qcow2_image *img, uint64_t hcluster, unsigned *reserved)
{
	struct frees *f = &img->frees;
	unsigned before = f->unlinked.count;

	if (mutant(MUTANT_REUSE_BEFORE_UNLINK)) {
		refcount_lower(img, hcluster, 1);
		return;
	}
	reclaim_touch(&img->reclaim, hcluster, 1);
	stage_add(&f->unlinked, hcluster, 1);
	if (f->unlinked.count > before) {
		assert(*reserved && f->reserved);
		--*reserved;
		f->reserved--;
	}
}

void frees_cut(struct frees *f)
{
	assert(!f->in_pass.count);
	stage_move(&f->in_pass, &f->unlinked);
}

/* Punches what can be punched, and lowers the refcounts. */
static void reclaim_runs(struct qcow2_image *img, struct free_stage *work)
{
	for (unsigned i = 0; i < work->count; i++) {
		struct free_run *run = &work->runs[i];

		refcount_release(img, run->hcluster, run->count);
	}
	work->count = 0;
}

static void reclaim_task(struct co_task *task)
{
	struct frees *f = container_of(task, struct frees, task);
	struct qcow2_image *img = container_of(f, struct qcow2_image, frees);

	while (f->durable.count) {
		stage_move(&f->working, &f->durable);
		if (!mutant(MUTANT_NO_GRACE))
			image_grace(img);
		reclaim_runs(img, &f->working);
		co_wake_all(&f->budget);
	}
	f->running = false;
	co_wake_all(&f->budget);
}

static void reclaim_start(struct qcow2_image *img)
{
	struct frees *f = &img->frees;

	if (f->running || !f->durable.count)
		return;
	f->running = true;
	f->task.fn = reclaim_task;
	if (img->meta_loop)
		loop_spawn(img->meta_loop, &f->task);
	else
		reclaim_task(&f->task);
}

void frees_pass_done(struct qcow2_image *img, bool failed)
{
	struct frees *f = &img->frees;

	if (!f->in_pass.count)
		return;
	stage_move(failed ? &f->unlinked : &f->durable, &f->in_pass);
	if (img->meta_loop) /* with no loop it would run inside this pass, and may need one itself */
		reclaim_start(img);
	co_wake_all(&f->budget);
}

void frees_reclaim(struct qcow2_image *img)
{
	reclaim_start(img);
	while (img->frees.running)
		co_wait(&img->frees.budget);
}
