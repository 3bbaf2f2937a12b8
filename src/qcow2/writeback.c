/* SPDX-License-Identifier: MIT */
/* writeback.c: see writeback.h. */
#include "qcow2/writeback.h"

#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "qcow2/image.h"

/* A caller that waits; on its stack. */
struct pass_waiter {
	struct list link;
	struct co *co;
	bool done, leads;
	int ret;
};

/* ---- writing slices ---- */

static void pass_io_complete(struct storage_io *io, int ret)
{
	struct pass_io *p = container_of(io, struct pass_io, io);
	struct writeback *wb = p->wb;

	if (ret && !wb->write_ret)
		wb->write_ret = ret;
	for (unsigned i = 0; i < p->count; i++) {
		struct slice *s = p->slices[i];

		if (ret)
			s->write_failed = true;
		if (!--s->ios)
			slice_written(p->cache, s, s->write_failed);
	}
	p->count = 0;
	wb->busy_ios--;
	list_add_tail(&wb->idle_ios, &p->link);
	co_wake_all(&wb->io_done);
}

static void pass_io_submit(struct qcow2_image *img, struct pass_io *p)
{
	p->io.len_bytes = p->end_bytes - p->io.offset_bytes;
	p->io.iovcnt = p->count;
	img->wb.busy_ios++;
	storage_submit(img->st, &p->io);
}

static struct pass_io *pass_io_get(struct writeback *wb, struct cache *c)
{
	struct list *l;
	struct pass_io *p;

	while (!(l = list_pop(&wb->idle_ios)))
		co_wait(&wb->io_done);
	p = list_entry(l, struct pass_io, link);
	p->wb = wb;
	p->cache = c;
	p->count = 0;
	p->io = (struct storage_io){
		.op = STORAGE_WRITE, .iov = p->iov, .complete = pass_io_complete};
	return p;
}

/* By place in the file; in place and without recursion, since nothing may be allocated here. */
static void sort_slices(struct slice **v, unsigned n)
{
	for (unsigned gap = n / 2; gap; gap = gap == 2 ? 1 : gap * 5 / 11)
		for (unsigned i = gap; i < n; i++) {
			struct slice *s = v[i];
			unsigned j = i;

			for (; j >= gap && v[j - gap]->host_offset > s->host_offset; j -= gap)
				v[j] = v[j - gap];
			v[j] = s;
		}
}

/* Adds the run of blocks [@first, @last] of @s to @p, or to a new write if it does not fit there. */
static struct pass_io *pass_io_add(struct qcow2_image *img, struct cache *c, struct pass_io *p,
				   struct slice *s, unsigned first, unsigned last)
{
	uint64_t hoff = s->host_offset + (uint64_t)first * c->block_bytes;
	uint64_t len = (uint64_t)(last - first + 1) * c->block_bytes;
	uint8_t *from = mutant(MUTANT_LIVE_PAGE) ? s->data : s->frozen;

	if (p && (p->count == PASS_IOVECS || p->end_bytes != hoff)) {
		pass_io_submit(img, p);
		p = NULL;
	}
	if (!p) {
		p = pass_io_get(&img->wb, c);
		p->io.offset_bytes = hoff;
	}
	p->iov[p->count] = (struct iovec){from + (size_t)first * c->block_bytes, len};
	p->slices[p->count++] = s;
	p->end_bytes = hoff + len;
	s->ios++;
	return p;
}

/* Writes the cut of a cache: neighbours in one write, the rest in parallel. */
static int write_slices(struct qcow2_image *img, struct cache *c, bool *wrote)
{
	struct writeback *wb = &img->wb;
	unsigned n = 0, blocks = c->slice_bytes / c->block_bytes;
	struct pass_io *p = NULL;
	struct slice *s;

	wb->write_ret = 0;
	list_for_each_entry(s, &c->cut, link)
	{
		assert(n < wb->sorted_max);
		wb->sorted[n++] = s;
	}
	*wrote = n > 0;
	sort_slices(wb->sorted, n);
	for (unsigned i = 0; i < n; i++) {
		s = wb->sorted[i];
		while (!s->frozen && !slice_freeze(c, s)) {
			/* what is being assembled may hold the buffers that are waited for */
			if (p)
				pass_io_submit(img, p);
			p = NULL;
			if (!c->frozen_count)
				co_wait(&c->frozen_wait);
		}
		s->ios = 1; /* until all its runs are placed */
		for (unsigned b = 0; b < blocks; b++) {
			unsigned first = b;

			while (b < blocks && s->cut & 1u << b)
				b++;
			if (b > first)
				p = pass_io_add(img, c, p, s, first, b - 1);
		}
		if (!--s->ios)
			slice_written(c, s, s->write_failed);
	}
	if (p)
		pass_io_submit(img, p);
	while (wb->busy_ios)
		co_wait(&wb->io_done);
	return wb->write_ret;
}

/* ---- the pass ---- */

void writeback_give_up(struct qcow2_image *img, int ret)
{
	if (img->wb.sync_failed)
		return;
	img->wb.sync_failed = ret;
	reclog_sync_failed(img);
	log_err("%s: %s: nothing written from now on can be made durable; detach the device and check "
		"the image",
		img->st->name, error_text(NULL, ret));
}

static int sync_files(struct qcow2_image *img, bool data)
{
	int ret = -EIO;

	co_lock(&img->wb.sync_lock);
	if (!img->wb.sync_failed || mutant(MUTANT_IGNORE_SYNC_ERROR)) {
		img->wb.syncs++;
		ret = data && image_has_data_file(img) ? storage_sync(img->data) : 0;
		if (!ret)
			ret = storage_sync(img->st);
		if (ret)
			writeback_give_up(img, ret);
	}
	co_unlock(&img->wb.sync_lock);
	return ret;
}

int writeback_sync(struct qcow2_image *img)
{
	return sync_files(img, false);
}

enum step { STEP_REFCOUNTS, STEP_RT, STEP_L2, STEP_L1, STEPS };

static int step_write(struct qcow2_image *img, enum step step, bool *wrote)
{
	switch (step) {
	case STEP_REFCOUNTS:
		return write_slices(img, &img->rc_cache, wrote);
	case STEP_RT:
		return table_write(&img->rt, img, wrote);
	case STEP_L2:
		return write_slices(img, &img->l2_cache, wrote);
	default:
		return table_write(&img->l1, img, wrote);
	}
}

/* Rule 1's order; a mutant's is another. */
static enum step step_order(unsigned i)
{
	static const enum step l2_first[STEPS] = {STEP_L2, STEP_REFCOUNTS, STEP_RT, STEP_L1};
	static const enum step l1_first[STEPS] = {STEP_REFCOUNTS, STEP_RT, STEP_L1, STEP_L2};
	static const enum step rt_first[STEPS] = {STEP_RT, STEP_REFCOUNTS, STEP_L2, STEP_L1};

	if (mutant(MUTANT_L2_BEFORE_REFCOUNTS))
		return l2_first[i];
	if (mutant(MUTANT_L1_BEFORE_L2))
		return l1_first[i];
	if (mutant(MUTANT_RT_BEFORE_BLOCK))
		return rt_first[i];
	return (enum step)i;
}

/* What a failed pass left in its cut is dirty again. */
static void uncut(struct cache *c)
{
	struct slice *s, *tmp;

	list_for_each_entry_safe(s, tmp, &c->cut, link) slice_written(c, s, true);
}

static int pass_execute(struct qcow2_image *img)
{
	/* Rule 1: data is durable before what refers to it. */
	unsigned data_step = mutant(MUTANT_DATA_FILE_AFTER_MAP) && image_has_data_file(img) ? STEPS - 1 : 0;
	struct writeback *wb = &img->wb;
	uint64_t writes;
	bool data;
	int ret = 0;

	if (wb->sync_failed && !mutant(MUTANT_IGNORE_SYNC_ERROR))
		return -EIO;

	/* the cut: from here to the first step nothing suspends */
	writes = image_writes_done(img);
	data = writes != wb->synced_writes;
	cache_cut(&img->rc_cache);
	table_cut(&img->rt, img->st->block_bytes);
	cache_cut(&img->l2_cache);
	table_cut(&img->l1, img->st->block_bytes);
	frees_cut(&img->frees);
	reclog_cut(img);
	if (mutant(MUTANT_LOWER_WITH_RAISE)) {
		frees_pass_done(img, false);
		frees_reclaim(img);
		uncut(&img->rc_cache);
		cache_cut(&img->rc_cache);
	}

	wb->passes++;
	for (unsigned i = 0; !ret && i < STEPS; i++) {
		bool wrote = false, data_now = data && i == data_step;

		ret = step_write(img, step_order(i), &wrote);
		if (!ret && (wrote || data_now))
			ret = sync_files(img, data_now);
	}
	if (ret) {
		uncut(&img->rc_cache);
		uncut(&img->l2_cache);
	} else {
		wb->synced_writes = writes;
		reclog_pass_done(img);
	}
	frees_pass_done(img, ret != 0);
	return ret;
}

/* Not inlined: gcc would warn of the list that holds an entry of this stack while it waits. */
static __attribute__((noinline)) void wait_for_pass(struct writeback *wb, struct pass_waiter *self)
{
	list_add_tail(&wb->next, &self->link);
	while (!self->done && !self->leads)
		co_suspend();
	assert(!list_linked(&self->link));
}

int writeback_run(struct qcow2_image *img)
{
	struct writeback *wb = &img->wb;
	struct pass_waiter self = {.co = co_self()}, *w;
	struct list served = LIST_INIT(served), *l;

	list_init(&self.link);
	if (wb->running) {
		wait_for_pass(wb, &self);
		if (self.done)
			return self.ret;
	}
	wb->running = true;
	list_splice_tail(&served, &wb->next);
	self.ret = pass_execute(img);
	if (mutant(MUTANT_FLUSH_JOINS))
		list_splice_tail(&served, &wb->next);
	while ((l = list_pop(&served))) {
		w = list_entry(l, struct pass_waiter, link);
		w->ret = self.ret;
		w->done = true;
		co_resume(w->co);
	}
	/* the next pass is led by one who waits for it */
	l = list_pop(&wb->next);
	if (l) {
		w = list_entry(l, struct pass_waiter, link);
		w->leads = true;
		co_resume(w->co);
	} else {
		wb->running = false;
	}
	return self.ret;
}

bool writeback_needed(const struct qcow2_image *img)
{
	return cache_is_dirty(&img->l2_cache) || cache_is_dirty(&img->rc_cache) ||
	       img->l1.pending_count || img->l1.write_count || img->rt.pending_count ||
	       img->rt.write_count;
}

/* ---- the timer ---- */

static void timer_task(struct co_task *task)
{
	struct writeback *wb = container_of(task, struct writeback, timer_task);
	struct qcow2_image *img = container_of(wb, struct qcow2_image, wb);
	int ret = writeback_run(img);

	wb->timer_running = false;
	if (ret && !wb->sync_failed)
		log_warn("%s: writing metadata back failed (%s); it will be tried again",
			 img->st->name, error_text(NULL, ret));
	if (!wb->sync_failed && writeback_needed(img))
		writeback_kick(img);
	co_wake_all(&wb->io_done);
}

static void timer_fired(struct loop_timer *timer)
{
	struct writeback *wb = container_of(timer, struct writeback, timer);
	struct qcow2_image *img = container_of(wb, struct qcow2_image, wb);

	wb->timer_armed = false;
	if (wb->timer_running)
		return;
	wb->timer_running = true;
	wb->timer_task.fn = timer_task;
	loop_spawn(img->meta_loop, &wb->timer_task);
}

void writeback_kick(struct qcow2_image *img)
{
	struct writeback *wb = &img->wb;

	if (wb->timer_armed || wb->timer_running || !img->meta_loop || !wb->delay_ns)
		return;
	wb->timer_armed = true;
	loop_timer_arm(img->meta_loop, &wb->timer, wb->delay_ns);
}

void writeback_stop_timer(struct qcow2_image *img)
{
	struct writeback *wb = &img->wb;

	wb->delay_ns = 0;
	if (wb->timer_armed)
		loop_timer_cancel(img->meta_loop, &wb->timer);
	wb->timer_armed = false;
	while (wb->timer_running)
		co_wait(&wb->io_done);
}

int writeback_init(struct qcow2_image *img, uint64_t delay_ms)
{
	struct writeback *wb = &img->wb;

	*wb = (struct writeback){0};
	list_init(&wb->next);
	list_init(&wb->idle_ios);
	co_waitq_init(&wb->io_done);
	co_mutex_init(&wb->sync_lock);
	for (unsigned i = 0; i < PASS_IOS; i++)
		list_add_tail(&wb->idle_ios, &wb->ios[i].link);
	if (!delay_ms)
		delay_ms = WRITEBACK_DELAY_MS_DEFAULT;
	wb->delay_ns = min_of(delay_ms, (uint64_t)WRITEBACK_DELAY_MS_MAX) * 1000000;
	loop_timer_init(&wb->timer, timer_fired);
	wb->sorted_max = max_of(img->l2_cache.count, img->rc_cache.count);
	wb->sorted = calloc(wb->sorted_max, sizeof(struct slice *));
	return wb->sorted ? 0 : -ENOMEM;
}

void writeback_destroy(struct writeback *wb)
{
	free(wb->sorted);
	wb->sorted = NULL;
}
