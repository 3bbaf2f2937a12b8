/* SPDX-License-Identifier: MIT */
/*
 * run.c: see run.h.
 */
#include "run.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"
#include "judge.h"
#include "ring/co.h"

void run_fail(struct run *r, const char *fmt, ...)
{
	va_list ap;

	if (r->failed)
		return;
	r->failed = true;
	va_start(ap, fmt);
	vsnprintf(r->text, sizeof(r->text), fmt, ap);
	va_end(ap);
}

/* ---- requests ---- */

static void slot_complete(struct blk_request *req, int ret)
{
	struct slot *s = container_of(req, struct slot, req);
	struct run *r = s->run;
	uint64_t time = simdisk_mark(r->disk);
	char text[400];

	if (!s->busy) {
		run_fail(r, "op %u completed twice", s->number);
		return;
	}
	if (r->holding && hold_take(&r->holds[s->queue], req, ret)) {
		r->most_held = max_of(r->most_held, hold_count(&r->hold_device));
		return;
	}
	if (loop_self() != r->queue_loops[s->queue])
		run_fail(r, "op %u completed on another loop than its queue's", s->number);
	guest_done(&r->guest, s->number, ret, time);
	if (!ret && req->op == BLK_READ && !r->failed &&
	    !guest_check_read(&r->guest, s->number, s->mem, text, sizeof(text)))
		run_fail(r, "%s", text);
	if (ret)
		run_note_given_up(r);
	if (ret)
		r->errors++;
	if (ret && req->op == BLK_FLUSH)
		r->flush_errors++;
	s->ret = ret;
	s->busy = false;
	r->inflight--;
	if (r->on_complete)
		r->on_complete(r, s);
}

static void slot_again(struct hold *hold, struct blk_request *req)
{
	struct slot *s = container_of(req, struct slot, req);
	struct run *r = s->run;

	if (++r->hold_tries == r->hold_tries_max)
		r->disk->fault.limit_bytes = 0;
	qcow2_submit(r->queues[s->queue], req);
}

void run_hold(struct run *r, uint64_t tries)
{
	struct error err = {0};

	r->hold_tries_max = tries;
	if (hold_device_init(&r->hold_device, true, &err)) {
		run_fail(r, "%s", err.text);
		return;
	}
	r->holding = true;
	for (unsigned q = 0; q < r->cfg.queues; q++)
		hold_init(&r->holds[q], &r->hold_device, r->queue_loops[q], slot_again);
}

/* On the queue's loop. */
static void slot_start(struct loop_msg *msg)
{
	struct slot *s = container_of(msg, struct slot, msg);
	struct run *r = s->run;
	uint64_t sector = s->req.offset_bytes / SECTOR_BYTES;
	uint64_t sectors = s->req.len_bytes / SECTOR_BYTES;

	s->started = true;
	s->number = guest_submit(&r->guest, s->zeros ? BLK_WRITE_ZEROES : s->req.op, s->req.flags, sector,
				 sectors, simdisk_mark(r->disk));
	for (uint64_t i = 0; i < sectors; i++) {
		if (s->zeros)
			memset(s->mem + i * SECTOR_BYTES, 0, SECTOR_BYTES);
		else if (s->req.op == BLK_WRITE)
			guest_stamp(s->mem + i * SECTOR_BYTES, sector + i, s->number);
		else if (s->req.op == BLK_READ)
			memset(s->mem + i * SECTOR_BYTES, 0xaa, SECTOR_BYTES);
	}
	qcow2_submit(r->queues[s->queue], &s->req);
}

static void slot_submit(struct slot *s, enum blk_op op, unsigned flags, uint64_t sector,
			uint64_t sectors)
{
	struct run *r = s->run;

	assert(!s->busy);
	s->busy = true;
	s->started = s->zeros = false;
	r->inflight++;
	s->req.op = op;
	s->req.flags = flags;
	s->req.offset_bytes = sector * SECTOR_BYTES;
	s->req.len_bytes = sectors * SECTOR_BYTES;
	slot_set_payload(s);
	s->msg.fn = slot_start;
	loop_post(r->queue_loops[s->queue], &s->msg);
}

static void submit_random(struct run *r, struct slot *s)
{
	uint64_t sector, sectors;
	unsigned flags;
	enum blk_op op = run_choose(r, &flags, &sector, &sectors);

	slot_submit(s, op, flags, sector, sectors);
	s->zeros = op == BLK_WRITE && r->cfg.zeros_percent && rng_chance(&r->rng, r->cfg.zeros_percent);
}

/* ---- the schedule ---- */

static struct slot *free_slot(struct run *r)
{
	unsigned start = rng_below(&r->rng, r->nslots);

	if (r->inflight == r->nslots)
		return NULL;
	for (unsigned i = 0; i < r->nslots; i++) {
		struct slot *s = &r->slots[(start + i) % r->nslots];

		if (!s->busy)
			return s;
	}
	return NULL;
}

/* Some I/O takes as long as hundreds of others. */
static bool held(const struct run *r, const struct sim_op *op)
{
	return rng_mix(op->number ^ r->cfg.seed << 20) % 8 == 0 &&
	       r->disk->ops.n - op->number < RUN_HOLD_OPS;
}

/*
 * io_order: 0 any, 1 mostly the newest, 2 mostly the oldest, 3 mostly those of another kind, 4 any
 * but for some that are held for long
 */
static size_t pick_io(struct run *r)
{
	const struct simdisk *d = r->disk;
	size_t i = rng_below(&r->rng, d->pending.n);

	if (r->cfg.io_order == 4) {
		for (size_t k = 0; k < d->pending.n; k++) {
			if (!held(r, d->pending.at[(i + k) % d->pending.n]))
				return (i + k) % d->pending.n;
		}
		return i;
	}
	if (r->cfg.io_order == 0 || rng_chance(&r->rng, 20))
		return i;
	if (r->cfg.io_order == 1)
		return d->pending.n - 1;
	if (r->cfg.io_order == 2)
		return 0;
	for (size_t k = 0; k < d->pending.n; k++) {
		if (d->pending.at[(i + k) % d->pending.n]->op != r->cfg.starved)
			return (i + k) % d->pending.n;
	}
	return i;
}

/* Whether there is I/O that may land now; if nothing else can happen (not @busy), any may. */
static bool io_to_land(const struct run *r, bool busy)
{
	if (r->cfg.io_order != 4 || !busy)
		return r->disk->pending.n;
	for (size_t k = 0; k < r->disk->pending.n; k++) {
		if (!held(r, r->disk->pending.at[k]))
			return true;
	}
	return false;
}

static void advance(struct run *r, uint64_t ns)
{
	for (unsigned i = 0; i < r->nloops; i++)
		loop_advance(r->loops[i], ns);
}

/* Nanoseconds to the nearest timer; UINT64_MAX: none is armed. */
static uint64_t nearest_timer(const struct run *r)
{
	uint64_t nearest = UINT64_MAX;

	for (unsigned i = 0; i < r->nloops; i++) {
		uint64_t deadline = loop_next_deadline_ns(r->loops[i]);
		uint64_t now = loop_now_ns(r->loops[i]);

		if (deadline != UINT64_MAX)
			nearest = min_of(nearest, deadline > now ? deadline - now : 0);
	}
	return nearest;
}

static struct loop *ready_loop(struct run *r)
{
	unsigned start = rng_below(&r->rng, r->nloops);

	for (unsigned i = 0; i < r->nloops; i++) {
		struct loop *loop = r->loops[(start + i) % r->nloops];

		if (loop_ready(loop))
			return loop;
	}
	return NULL;
}

/* Who claims the file has waited for a dead process's I/O; else it may land long after. */
static bool ghost_lands(const struct run *r)
{
	return r->disk->ghosts.n && r->disk->ops.n - r->disk->ghosts.at[0]->number > RUN_HOLD_OPS / 4;
}

/* Does one thing; false if there is nothing to do but to wait for a timer that is not armed. */
static bool step(struct run *r)
{
	struct loop *loop = ready_loop(r);
	struct slot *s = r->left ? free_slot(r) : NULL;
	uint64_t timer = nearest_timer(r);
	uint64_t turn = loop ? r->cfg.turn_weight : 0;
	uint64_t io = io_to_land(r, turn || s) ? r->cfg.io_weight : 0;
	uint64_t submit = s ? r->cfg.submit_weight : 0;
	uint64_t time = timer != UINT64_MAX ? r->cfg.time_weight : 0;
	uint64_t ghosts = ghost_lands(r) ? 3 : 0;
	uint64_t at;

	r->steps++;
	if (!turn && !io && !submit) {
		if (timer == UINT64_MAX)
			return false;
		advance(r, timer);
		return true;
	}
	at = rng_below(&r->rng, turn + io + submit + time + ghosts);
	if (at >= turn + io + submit + time) {
		simdisk_ghost(r->disk);
	} else if (at < turn) {
		loop_turn(loop);
	} else if (at < turn + io) {
		simdisk_finish(r->disk, pick_io(r));
	} else if (at < turn + io + submit) {
		r->left--;
		submit_random(r, s);
	} else {
		advance(r, rng_below(&r->rng, 2 * timer + 2));
	}
	return true;
}

static void resize_settle(struct run *r);

static void report_hang(struct run *r, const char *what)
{
	for (unsigned i = 0; i < r->nslots; i++) {
		struct slot *s = &r->slots[i];

		if (s->busy)
			printf("  in flight: op %u, kind %d, sectors %" PRIu64 "+%" PRIu64 "\n",
			       s->number, s->req.op, s->req.offset_bytes / SECTOR_BYTES,
			       s->req.len_bytes / SECTOR_BYTES);
	}
	for (size_t i = 0; i < r->disk->pending.n; i++)
		printf("  pending: %s of sectors %" PRIu64 "+%" PRIu64 "\n",
		       sim_op_name(r->disk->pending.at[i]), r->disk->pending.at[i]->sector,
		       r->disk->pending.at[i]->sectors);
	run_fail(r, "%s after %" PRIu64 " steps, %u request(s) in flight", what, r->steps,
		 r->inflight);
}

/* Steps until @done(@arg), or @steps are over (false), or nothing more can happen. */
static bool pump_steps(struct run *r, bool (*done)(struct run *r, void *arg), void *arg,
		       uint64_t steps)
{
	while (!r->failed && !done(r, arg)) {
		if (!steps--)
			return false;
		snaps_settle(r);
		resize_settle(r);
		if (!step(r))
			report_hang(r, "stuck");
		else if (r->steps > RUN_MAX_STEPS)
			report_hang(r, "still busy");
	}
	return true;
}

static bool none_left(struct run *r, void *arg)
{
	return !r->left;
}

static void pump(struct run *r, bool (*done)(struct run *r, void *arg), void *arg)
{
	pump_steps(r, done, arg, UINT64_MAX);
}

static bool requests_done(struct run *r, void *arg)
{
	return !r->left && !r->inflight;
}

void run_requests(struct run *r, unsigned requests)
{
	r->left = requests;
	pump(r, requests_done, NULL);
}

static bool none_failing(struct run *r, void *arg)
{
	return !r->disk->undone_failing;
}

void run_end_fault(struct run *r)
{
	r->disk->fault = (struct sim_fault){0};
	pump(r, none_failing, NULL);
}

int run_one(struct run *r, enum blk_op op, unsigned flags, uint64_t sector, uint64_t sectors)
{
	struct slot *s = free_slot(r);

	assert(s && !r->left);
	slot_submit(s, op, flags, sector, sectors);
	pump(r, requests_done, NULL);
	return s->ret;
}

/* ---- a call in a coroutine or a message of a loop, waited for ---- */

struct inside {
	struct co_task task;
	struct loop_msg msg;
	struct run *run;
	unsigned queue;
	bool done;
	int ret;
	struct error err;
};

static bool inside_done(struct run *r, void *arg)
{
	return ((struct inside *)arg)->done;
}

static struct inside *inside_make(struct run *r)
{
	struct inside *in = arena_alloc(&r->disk->arena, sizeof(*in));

	*in = (struct inside){.run = r};
	return in;
}

static int inside_co(struct run *r, struct loop *loop, struct inside *in,
		     void (*fn)(struct co_task *))
{
	in->task.fn = fn;
	loop_spawn(loop, &in->task);
	pump(r, inside_done, in);
	return in->ret;
}

static int inside_msg(struct run *r, struct loop *loop, struct inside *in,
		      void (*fn)(struct loop_msg *))
{
	in->msg.fn = fn;
	loop_post(loop, &in->msg);
	pump(r, inside_done, in);
	return in->ret;
}

/* ---- open and close ---- */

static void queue_create(struct loop_msg *msg)
{
	struct inside *in = container_of(msg, struct inside, msg);
	struct run *r = in->run;

	in->ret = qcow2_queue_create(&r->queues[in->queue], r->img, r->queue_loops[in->queue],
				     &in->err);
	in->done = true;
}

static void queue_destroy(struct co_task *task)
{
	struct inside *in = container_of(task, struct inside, task);

	qcow2_queue_destroy(in->run->queues[in->queue]);
	in->run->queues[in->queue] = NULL;
	in->done = true;
}

static void detach(struct co_task *task)
{
	struct inside *in = container_of(task, struct inside, task);

	qcow2_detach_loop(in->run->img);
	in->done = true;
}

static void close_image(struct co_task *task)
{
	struct inside *in = container_of(task, struct inside, task);

	in->ret = qcow2_close(in->run->img, &in->err);
	in->run->img = NULL;
	in->done = true;
}

static void resize_image(struct co_task *task)
{
	struct inside *in = container_of(task, struct inside, task);

	in->ret = qcow2_resize(in->run->img, in->run->cfg.resize_bytes, &in->err);
	in->done = true;
}

/* The disk grows while @requests are being made to what it was; it shrinks while nothing else goes on. */
static void resize(struct run *r, unsigned requests)
{
	struct inside *in = inside_make(r);

	r->guest.resize.submit = simdisk_mark(r->disk);
	in->task.fn = resize_image;
	loop_spawn(r->loops[0], &in->task);
	if (r->guest.resize.to > r->guest.resize.from)
		run_requests(r, requests);
	pump(r, inside_done, in);
	r->guest.resize.done = simdisk_mark(r->disk);
	if (!r->failed && in->ret)
		run_fail(r, "resize: %s", error_text(&in->err, in->ret));
	r->guest.now = r->guest.resize.to;
}

void run_resize_begin(struct run *r)
{
	if (r->resizing || r->guest.now == r->guest.resize.to)
		return;
	/* from the first try on a crash may show the new size */
	if (r->guest.resize.submit == SIM_NEVER)
		r->guest.resize.submit = simdisk_mark(r->disk);
	r->resizing = inside_make(r);
	r->resizing->task.fn = resize_image;
	loop_spawn(r->loops[0], &r->resizing->task);
}

static void resize_settle(struct run *r)
{
	struct inside *in = r->resizing;

	if (!in || !in->done)
		return;
	r->resizing = NULL;
	if (!in->ret) {
		r->guest.resize.done = simdisk_mark(r->disk);
		r->guest.now = r->guest.resize.to;
	} else if (!r->disk->failed) {
		run_fail(r, "resize: %s", error_text(&in->err, in->ret));
	}
}

/* What a recovered process finds: the size that a resize which was killed has given the image, or not. */
static void resize_recovered(struct run *r)
{
	struct guest_resize *g = &r->guest.resize;

	if (g->submit == SIM_NEVER || r->guest.now == g->to ||
	    qcow2_size_bytes(r->img) != g->to * SECTOR_BYTES)
		return;
	if (!run_sync_failed(r)) /* else by rule 16 it is durable */
		g->done = simdisk_mark(r->disk);
	r->guest.now = g->to;
}

static bool snapshots_idle(struct run *r, void *arg)
{
	snaps_settle(r);
	return snaps_idle(r);
}

/* Some operations when no request is being made. */
void run_requests_and_snapshots(struct run *r, unsigned requests)
{
	unsigned part = requests / (r->cfg.snapshots + 1);

	for (unsigned i = 0; i < r->cfg.snapshots && !r->failed; i++) {
		unsigned before = rng_below(&r->rng, part + 1);

		/* those still in flight when it begins are what it has to wait for */
		r->left = before;
		pump(r, none_left, NULL);
		if (r->failed || !snaps_begin(r))
			continue;
		if (rng_chance(&r->rng, 80))
			run_requests(r, part - before);
		if (!r->failed)
			pump(r, snapshots_idle, NULL);
	}
	if (!r->failed)
		run_requests(r, part);
}

static int loops_make(struct run *r, struct error *err)
{
	struct loop_params params = {.name = "sim", .sq_entries = 8, .ringless = true};
	int ret;

	params.coroutines = r->cfg.queues * r->cfg.depth * 2 + QCOW2_EXTRA_COROUTINES;
	params.stack_bytes = 64 << 10;
	r->nloops = r->cfg.queues + r->cfg.meta_apart;
	for (unsigned i = 0; i < r->nloops; i++) {
		ret = loop_create(&r->loops[i], &params, err);
		if (ret)
			return ret;
	}
	for (unsigned q = 0; q < r->cfg.queues; q++)
		r->queue_loops[q] = r->loops[q + r->cfg.meta_apart];
	return 0;
}

static int queues_start(struct run *r, struct error *err)
{
	int ret;

	if (qcow2_size_bytes(r->img) != r->guest.now * SECTOR_BYTES)
		run_fail(r, "the size is %" PRIu64, qcow2_size_bytes(r->img));
	ret = qcow2_set_metadata_loop(r->img, r->loops[0], err);
	for (unsigned q = 0; q < r->cfg.queues && !ret; q++) {
		struct inside *in = inside_make(r);

		in->queue = q;
		ret = inside_msg(r, r->queue_loops[q], in, queue_create);
		if (ret)
			error_set(err, ret, "%s", error_text(&in->err, ret));
	}
	for (unsigned i = 0; i < r->nslots; i++)
		memset(r->slots[i].req.priv, 0, qcow2_request_bytes());
	return ret;
}

int run_open(struct run *r, struct error *err)
{
	struct qcow2_options *opts = &r->cfg.open;
	int ret = loops_make(r, err);

	if (!ret && r->cfg.log_bytes) {
		r->log = sim_memalign(4096, r->cfg.log_bytes);
		memset(r->log, 0, r->cfg.log_bytes);
		opts->log_base = r->log;
		opts->log_bytes = r->cfg.log_bytes;
		opts->log_identity = "simulated";
		opts->log_identity_bytes = 9;
	}
	if (!ret)
		ret = qcow2_open(&r->img, &r->file->storage, opts, err);
	if (!ret)
		ret = queues_start(r, err);
	r->opened = simdisk_mark(r->disk);
	return ret;
}

/* ---- kill and recover ---- */

/* Nothing of the dead process runs any more; its memory stays where it is. */
static void process_dies(struct run *r)
{
	simdisk_kill(r->disk);
	simdisk_mark(r->disk);
	r->img = NULL;
	r->resizing = NULL;
	for (unsigned q = 0; q < RUN_MAX_QUEUES; q++)
		r->queues[q] = NULL;
	r->kills++;
}

void run_kill(struct run *r, unsigned requests, uint64_t steps)
{
	r->left = requests;
	pump_steps(r, requests_done, NULL, steps);
	r->left = 0;
	if (!r->failed)
		process_dies(r);
}

static void recover_open(struct co_task *task)
{
	struct inside *in = container_of(task, struct inside, task);
	struct run *r = in->run;

	in->ret = qcow2_open(&r->img, &r->file->storage, &r->cfg.open, &in->err);
	in->done = true;
}

/* On the queue's loop: a request that the dead process had been given. */
static void slot_reissue(struct loop_msg *msg)
{
	struct slot *s = container_of(msg, struct slot, msg);

	qcow2_submit(s->run->queues[s->queue], &s->req);
}

static void reissue_all(struct run *r)
{
	for (unsigned i = 0; i < r->nslots; i++) {
		struct slot *s = &r->slots[i];

		if (!s->busy)
			continue;
		if (s->started && !rng_chance(&r->rng, r->cfg.reissue_percent)) {
			guest_done(&r->guest, s->number, -EIO, simdisk_mark(r->disk));
			s->busy = false;
			r->inflight--;
			continue;
		}
		slot_set_payload(s);
		s->msg.fn = s->started ? slot_reissue : slot_start;
		loop_post(r->queue_loops[s->queue], &s->msg);
	}
}

bool run_recover(struct run *r, uint64_t steps)
{
	struct inside *in = inside_make(r);
	uint64_t failed = r->disk->failed;
	struct error err = {0};
	int ret;

	r->cfg.open.log_recover = true;
	ret = loops_make(r, &err);
	in->task.fn = recover_open;
	if (!ret) {
		loop_spawn(r->loops[0], &in->task);
		if (!pump_steps(r, inside_done, in, steps)) {
			process_dies(r);
			return false;
		}
	}
	if (r->failed)
		return true;
	/* an error leaves the log as it was: another process may try again */
	if (!ret && in->ret && (r->disk->failed > failed || run_sync_failed(r))) {
		for (unsigned i = 0; i < r->nloops; i++)
			loop_destroy(r->loops[i]);
		r->nloops = 0;
		simdisk_mark(r->disk);
		r->refused++;
		r->unservable = r->disk->failed == failed;
		return r->unservable;
	}
	if (!ret && in->ret)
		ret = error_set(&err, in->ret, "%s", error_text(&in->err, in->ret));
	if (!ret) {
		resize_recovered(r);
		ret = queues_start(r, &err);
	}
	if (ret)
		run_fail(r, "recover: %s", error_text(&err, ret));
	else
		reissue_all(r);
	return true;
}

static bool a_slot_free(struct run *r, void *arg)
{
	return r->inflight < r->nslots;
}

static bool slot_done(struct run *r, void *arg)
{
	return !((struct slot *)arg)->busy;
}

void run_read_all(struct run *r)
{
	for (uint64_t at = 0; at < r->guest.now && !r->failed; at += r->cfg.max_sectors) {
		struct slot *s;

		pump(r, a_slot_free, NULL);
		if (r->failed)
			return;
		s = free_slot(r);
		slot_submit(s, BLK_READ, 0, at,
			    min_of((uint64_t)r->cfg.max_sectors, r->guest.now - at));
		pump(r, slot_done, s);
	}
}

/* Who closes an image may settle it before; what that returns does not matter to the close. */
static void settle_image(struct co_task *task)
{
	struct inside *in = container_of(task, struct inside, task);

	in->ret = qcow2_settle(in->run->img);
	in->done = true;
}

void run_close(struct run *r)
{
	struct error err = {0};

	run_note_given_up(r);
	if (!r->failed && r->cfg.seed % 4 > 1)
		inside_co(r, r->loops[0], inside_make(r), settle_image);
	for (unsigned q = 0; q < r->cfg.queues && !r->failed; q++) {
		struct inside *in = inside_make(r);

		in->queue = q;
		if (r->queues[q])
			inside_co(r, r->queue_loops[q], in, queue_destroy);
	}
	if (!r->failed)
		inside_co(r, r->loops[0], inside_make(r), detach);
	if (r->failed)
		return;
	if (r->cfg.close_inside) {
		r->close_ret = inside_co(r, r->loops[0], inside_make(r), close_image);
	} else {
		r->close_ret = qcow2_close(r->img, &err);
		r->img = NULL;
	}
}

/* ---- create and destroy ---- */

static void slots_make(struct run *r)
{
	size_t priv = align_up(max_of(qcow2_request_bytes(), (size_t)64), 64);
	size_t cluster_sectors = r->cfg.create.cluster_bytes / SECTOR_BYTES;
	size_t bytes = align_up(r->cfg.max_sectors, cluster_sectors) * SECTOR_BYTES;

	r->nslots = r->cfg.queues * r->cfg.depth;
	r->slots = sim_calloc(r->nslots, sizeof(*r->slots));
	for (unsigned i = 0; i < r->nslots; i++) {
		struct slot *s = &r->slots[i];

		s->run = r;
		s->queue = i % r->cfg.queues;
		s->mem = sim_memalign(4096, align_up(bytes, 4096));
		s->req.complete = slot_complete;
		s->req.priv = sim_memalign(64, priv);
		memset(s->req.priv, 0, priv);
	}
}

/* What lies past the used part of a device: anything, also what looks like tables. */
static const uint8_t *garbage(struct run *r, uint64_t sector)
{
	uint8_t *mem = arena_alloc(&r->base->arena, SECTOR_BYTES);
	struct rng rng = rng_make(r->cfg.seed, sector % 16, 0x6a9b);

	for (unsigned i = 0; i < SECTOR_BYTES; i += 8) {
		uint64_t word = rng_next(&rng);

		if (sector % 2) /* an L2 entry, perhaps */
			word = __builtin_bswap64(1ull << 63 |
						 (word % 64) * r->cfg.create.cluster_bytes);
		memcpy(mem + i, &word, 8);
	}
	return mem;
}

static void make_device(struct run *r, struct sim_map *map)
{
	uint64_t bytes = r->cfg.create.size_bytes + r->cfg.create.size_bytes / 2 +
			 64 * (uint64_t)r->cfg.create.cluster_bytes + 256 * KiB +
			 (r->cfg.create.luks ? 2 * MiB : 0) +
			 r->cfg.snapshots * (r->cfg.create.size_bytes * 2 + 256 * KiB) +
			 r->cfg.bitmaps * (r->cfg.create.size_bytes / 512 +
					   16 * (uint64_t)r->cfg.create.cluster_bytes);
	const uint8_t *kinds[16];

	map->size_bytes = align_up(bytes, 4096);
	for (uint64_t i = 0; i < ARRAY_LEN(kinds); i++)
		kinds[i] = garbage(r, i);
	for (uint64_t s = map->size_bytes / SECTOR_BYTES; s-- > 0;)
		sim_map_set(map, s, kinds[rng_mix(s) % ARRAY_LEN(kinds)]);
}

static int create_image(struct run *r, struct sim_map *out)
{
	struct sim_map blank = {0};
	struct error err = {0};
	struct simfile *base;
	int ret;

	r->base = simdisk_create(r->cfg.seed);
	if (r->cfg.device)
		make_device(r, &blank);
	base = simdisk_file(r->base, "base", &blank);
	base->storage.fixed_size = r->cfg.device;
	base->storage.block_bytes = r->cfg.block_bytes;
	sim_map_free(&blank);
	ret = qcow2_create(&base->storage, &r->cfg.create, &err);
	if (!ret && r->cfg.bitmaps)
		ret = bits_make(&base->storage, r->cfg.bitmaps, r->cfg.seed, &err);
	else
		storage_close(&base->storage);
	if (ret)
		run_fail(r, "create: %s", error_text(&err, ret));
	*out = base->live;
	return ret;
}

/* What the guest's disk holds before the first request. */
static void show_below(struct run *r)
{
	uint32_t *values;

	if (!r->named.below.map.size_bytes && r->cfg.data != RUN_DATA_RAW)
		return;
	values = sim_calloc(r->guest.sectors, sizeof(*values));
	for (uint64_t s = 0; s < r->guest.now; s++)
		values[s] = named_value(&r->named, &r->cfg, s);
	guest_continue(&r->guest, values, BELOW_NUMBER + 1);
	sim_free(values);
}

int run_init(struct run *r, const struct run_config *cfg, const struct run_origin *origin)
{
	struct sim_map map;

	*r = (struct run){.cfg = *cfg};
	r->rng = rng_make(cfg->seed, cfg->profile, 0x3a7);
	if (origin)
		map = origin->map;
	else if (create_image(r, &map))
		return -EINVAL;
	r->disk = simdisk_create(cfg->seed);
	named_init(&r->named, cfg, r->disk);
	if (!origin)
		below_name(&r->named.below, &map);
	bits_remember(&r->bits_before, &map);
	r->file = simdisk_file(r->disk, "image", &map);
	r->file->storage.can_punch = cfg->can_punch;
	r->file->storage.fixed_size = cfg->device;
	r->file->storage.block_bytes = cfg->block_bytes;
	r->file->no_zero = cfg->no_zero;
	named_make_data(&r->named, cfg, origin ? &origin->data : NULL);
	r->cfg.open.image_path = "image";
	r->cfg.open.names = &r->named.live;
	guest_init(&r->guest, max_of(cfg->create.size_bytes, cfg->resize_bytes) / SECTOR_BYTES);
	r->guest.now = cfg->create.size_bytes / SECTOR_BYTES;
	r->guest.resize.from = r->guest.now;
	r->guest.resize.to = (cfg->resize_bytes ? cfg->resize_bytes : cfg->create.size_bytes) / SECTOR_BYTES;
	show_below(r);
	if (origin) {
		guest_continue(&r->guest, origin->values, origin->next_number);
		r->snaps = origin->snaps;
	}
	slots_make(r);
	return 0;
}

/* ---- the whole ---- */

static void check_closed(struct run *r, bool may_leak)
{
	struct judge judge = {0};

	judge_run(&judge, &r->file->live);
	if (r->snaps.flags_given)
		judge.corruptions -= judge.flags;
	if (judge.corruptions)
		run_fail(r, "the closed image is corrupt: %s", judge.text);
	else if (judge.leaks && !may_leak)
		run_fail(r, "the closed image has %" PRIu64 " leaks", judge.leaks);
	if (r->cfg.data == RUN_DATA_RAW && !r->cfg.data_device &&
	    r->named.data->live.size_bytes > r->guest.now * SECTOR_BYTES)
		run_fail(r, "the raw data file has %" PRIu64 " bytes, more than the disk",
			 r->named.data->live.size_bytes);
	judge_free(&judge);
}

void run_report(const struct run *r, const char *extra)
{
	const char *build = getenv("BUILD");

	printf("FAILED: %s\n", r->text);
	run_config_print(&r->cfg);
	printf("  replay: %s/tests/sim/sim run %s %" PRIu64 "%s\n", build ? build : "build",
	       run_profile_names[r->cfg.profile], r->cfg.seed, extra);
	fflush(stdout);
}

bool run_whole(struct run *r, const struct run_config *cfg, const struct run_origin *origin,
	       const char *extra)
{
	struct error err = {0};
	int ret = run_init(r, cfg, origin);
	uint32_t flush;

	if (!ret)
		ret = run_open(r, &err);
	if (ret)
		run_fail(r, "open: %s", error_text(&err, ret));
	if (!r->failed && cfg->resize_bytes > cfg->create.size_bytes) {
		run_requests(r, cfg->requests / 3);
		if (!r->failed && cfg->seed % 2)
			r->errors += run_one(r, BLK_FLUSH, 0, 0, 0) != 0;
		if (!r->failed)
			resize(r, cfg->requests / 3);
		if (!r->failed)
			run_requests(r, cfg->requests - cfg->requests / 3 * 2);
	} else if (!r->failed && cfg->snapshots) {
		run_requests_and_snapshots(r, cfg->requests);
	} else if (!r->failed) {
		run_requests(r, cfg->requests);
		if (!r->failed && cfg->resize_bytes)
			resize(r, 0);
	}
	if (!r->failed && r->errors)
		run_fail(r, "%u request(s) failed without a fault", r->errors);
	if (!r->failed) {
		flush = guest_submit(&r->guest, BLK_FLUSH, 0, 0, 0, simdisk_mark(r->disk));
		run_close(r);
		guest_done(&r->guest, flush, r->failed ? -EIO : r->close_ret,
			   simdisk_mark(r->disk));
	}
	if (!r->failed && r->close_ret)
		run_fail(r, "close: %s", strerror(-r->close_ret));
	if (!r->failed)
		check_closed(r, origin);
	if (!r->failed && !origin)
		bits_check_closed(r);
	if (r->failed)
		run_report(r, extra);
	return !r->failed;
}

void run_free(struct run *r)
{
	/* a failed run has coroutines that will never go on: its engine and loops are left behind
	 */
	if (r->holding)
		hold_device_destroy(&r->hold_device);
	if (r->failed)
		return;
	assert((!r->inflight || r->unservable) && !r->img);
	for (unsigned i = 0; i < r->nloops; i++)
		loop_destroy(r->loops[i]);
	sim_free(r->log);
	for (unsigned i = 0; i < r->nslots; i++) {
		sim_free(r->slots[i].mem);
		sim_free(r->slots[i].req.priv);
	}
	sim_free(r->slots);
	if (!r->file->closed)
		storage_close(&r->file->storage);
	if (r->named.data && !r->named.data->closed)
		storage_close(&r->named.data->storage);
	while (r->disk->ghosts.n)
		simdisk_ghost(r->disk);
	simdisk_destroy(r->disk);
	simdisk_destroy(r->base);
	named_free(&r->named);
	guest_free(&r->guest);
	snaps_free(&r->snaps);
	bits_forget(&r->bits_before);
}
