/* SPDX-License-Identifier: MIT */
/*
 * verify.c: see verify.h.
 */
#include "verify.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"
#include "qcow2/check.h"
#include "ring/co.h"
#include "verify_qemu.h"

#define CHUNK_BYTES  VERIFY_CHUNK_BYTES
#define DEEP_STAMP   0x80000000u /* numbers of writes that the model does not know */
#define DEEP_WRITES  6
#define DEEP_SECTORS 24

struct attached {
	struct verifier *v;
	struct qcow2_image *img;
	struct qcow2_queue *queue;
	uint64_t sectors;
	struct co_task task;
};

static void request_complete(struct blk_request *req, int ret)
{
	struct verifier *v = container_of(req, struct verifier, req);

	v->done = true;
	v->ret = ret;
}

int verifier_init(struct verifier *v)
{
	struct loop_params params = {.name = "verify",
				     .sq_entries = 8,
				     .coroutines = 4 + QCOW2_EXTRA_COROUTINES,
				     .stack_bytes = 64 << 10,
				     .ringless = true};
	size_t priv = align_up(max_of(qcow2_request_bytes(), (size_t)64), 64);

	*v = (struct verifier){0};
	v->mem = sim_memalign(4096, CHUNK_BYTES);
	v->req.priv = sim_memalign(64, priv);
	v->req.complete = request_complete;
	return loop_create(&v->loop, &params, NULL);
}

void verifier_free(struct verifier *v)
{
	if (!v->broken)
		loop_destroy(v->loop);
	judge_free(&v->judge);
	sim_free(v->mem);
	sim_free(v->req.priv);
}

/* ---- the engine on a state; its storage needs no scheduling, one turn does all ---- */

static bool turn_until(struct verifier *v, const bool *done)
{
	for (unsigned i = 0; i < 1000 && !*done; i++) {
		uint64_t deadline = loop_next_deadline_ns(v->loop);

		if (!loop_turn(v->loop) && deadline != UINT64_MAX &&
		    deadline > loop_now_ns(v->loop))
			loop_advance(v->loop, deadline - loop_now_ns(v->loop));
	}
	return *done;
}

static void fail(struct verifier *v, char *text, size_t len, const char *what, const char *why)
{
	v->broken = true;
	snprintf(text, len, "%s: %s", what, why);
}

static bool attach(struct attached *a, struct verifier *v, struct run *r, struct simview *view,
		   bool read_only, char *text, size_t len)
{
	struct qcow2_options opts = {.read_only = read_only,
				     .snapshot = v->snapshot,
				     .no_lock = true,
				     .image_path = "image",
				     .names = &r->named.still,
				     .passphrase = r->cfg.open.passphrase,
				     .cache_size_bytes = r->cfg.open.cache_size_bytes,
				     .max_inflight = 1,
				     .reclaim_delay_ms = 60000, /* see reclaim() */
				     .writeback_delay_ms = r->cfg.open.writeback_delay_ms};
	struct error err = {0};
	int ret;

	*a = (struct attached){.v = v};
	simview_open(view, view->map, read_only);
	view->storage.fixed_size = r->cfg.device;
	view->storage.block_bytes = r->cfg.block_bytes;
	r->named.view = view->data;
	ret = qcow2_open(&a->img, &view->storage, &opts, &err);
	if (ret) {
		fail(v, text, len, read_only ? "open read-only" : "open", error_text(&err, ret));
		return false;
	}
	a->sectors = qcow2_size_bytes(a->img) / SECTOR_BYTES;
	/* a snapshot has the size that the disk had */
	if (!v->snapshot && !guest_size_allowed(&r->guest, a->sectors)) {
		fail(v, text, len, "size", "not what the disk had, nor what it was to have");
		return false;
	}
	ret = qcow2_set_metadata_loop(a->img, v->loop, &err);
	if (!ret)
		ret = qcow2_queue_create(&a->queue, a->img, v->loop, &err);
	if (ret)
		fail(v, text, len, "start", error_text(&err, ret));
	memset(v->req.priv, 0, qcow2_request_bytes());
	return !ret;
}

static bool detach_done;

static void detach_run(struct co_task *task)
{
	struct attached *a = container_of(task, struct attached, task);

	qcow2_queue_destroy(a->queue);
	qcow2_detach_loop(a->img);
	detach_done = true;
}

static bool detach(struct attached *a, char *text, size_t len)
{
	struct error err = {0};
	int ret;

	detach_done = false;
	a->task.fn = detach_run;
	loop_spawn(a->v->loop, &a->task);
	if (!turn_until(a->v, &detach_done)) {
		fail(a->v, text, len, "detach", "it hangs");
		return false;
	}
	ret = qcow2_close(a->img, &err);
	if (ret)
		fail(a->v, text, len, "close", error_text(&err, ret));
	return !ret;
}

struct submit_msg {
	struct loop_msg msg;
	struct attached *a;
};

static void submit_run(struct loop_msg *msg)
{
	struct submit_msg *s = container_of(msg, struct submit_msg, msg);

	qcow2_submit(s->a->queue, &s->a->v->req);
}

static bool request(struct attached *a, enum blk_op op, uint64_t sector, uint64_t sectors,
		    char *text, size_t len)
{
	struct verifier *v = a->v;
	struct submit_msg s = {.msg.fn = submit_run, .a = a};
	char what[80];

	v->req.op = op;
	v->req.flags = 0;
	v->req.offset_bytes = sector * SECTOR_BYTES;
	v->req.len_bytes = sectors * SECTOR_BYTES;
	v->req.buf.base = v->mem;
	v->done = false;
	loop_post(v->loop, &s.msg);
	snprintf(what, sizeof(what), "request %d of guest sectors %" PRIu64 "+%" PRIu64, op, sector,
		 sectors);
	if (!turn_until(v, &v->done))
		fail(v, text, len, what, "it hangs");
	else if (v->ret)
		fail(v, text, len, what, strerror(-v->ret));
	return v->done && !v->ret;
}

/* ---- contents ---- */

/* What a deep check did to the guest's sectors; 0: nothing, GUEST_NONE: a discard. */
struct changes {
	uint64_t sector, sectors;
	uint32_t number;
};

static bool changed_ok(const struct changes *ch, unsigned n, uint64_t sector, const uint8_t *mem,
		       bool *changed)
{
	uint32_t value = guest_decode(mem, sector);
	bool ok = true, may_be_zero = false;

	*changed = false;
	for (unsigned i = 0; i < n; i++) {
		if (sector < ch[i].sector || sector >= ch[i].sector + ch[i].sectors)
			continue;
		if (ch[i].number == GUEST_NONE) {
			may_be_zero = true;
			*changed |= !value;
			continue;
		}
		*changed = true;
		may_be_zero = false;
		ok = value == ch[i].number;
	}
	return ok || (may_be_zero && !value);
}

static bool read_all(struct attached *a, struct run *r, const struct changes *ch, unsigned n,
		     char *text, size_t len)
{
	struct verifier *v = a->v;
	uint64_t chunk = CHUNK_BYTES / SECTOR_BYTES, bad;
	bool changed;

	for (uint64_t s = 0; s < a->sectors; s += chunk) {
		uint64_t count = min_of(chunk, a->sectors - s);

		if (!request(a, BLK_READ, s, count, text, len))
			return false;
		if (!bits_cover(&v->bits, r, s, count, v->mem, text, len)) {
			v->broken = true;
			return false;
		}
		for (uint64_t i = 0; i < count && n; i++) {
			uint8_t *mem = v->mem + i * SECTOR_BYTES;

			if (!changed_ok(ch, n, s + i, mem, &changed)) {
				snprintf(text, len,
					 "guest sector %" PRIu64 " is not as just written", s + i);
				v->broken = true;
				return false;
			}
			/* the model looks at the rest: give it something that it allows */
			if (changed) {
				uint32_t value =
					r->guest.allowed.values.at[r->guest.allowed.first[s + i]];

				memset(mem, 0, SECTOR_BYTES);
				if (value)
					guest_stamp(mem, s + i, value);
			}
		}
		if (!guest_check_crash(&r->guest, s, count, v->mem, &bad, text, len)) {
			judge_print_mapping(&v->judge, bad * SECTOR_BYTES);
			guest_print_sector(&r->guest, bad);
			v->broken = true;
			return false;
		}
	}
	return true;
}

/* @flags: those of the active tables may be clear that could be set. */
static bool judge_ok(struct verifier *v, struct simview *view, bool flags, const char *when,
		     char *text, size_t len)
{
	uint64_t corruptions;

	judge_run(&v->judge, view->map);
	corruptions = v->judge.corruptions - (flags ? v->judge.flags : 0);
	if (corruptions)
		snprintf(text, len, "%s%" PRIu64 " corruption(s): %s", when, corruptions,
			 v->judge.text);
	return !corruptions;
}

static bool verify_read(struct verifier *v, struct run *r, struct simview *view,
			const struct changes *ch, unsigned n, char *text, size_t len)
{
	struct attached a;

	bits_read(&v->bits, view->map);
	v->bitmaps += v->bits.n && !v->bits.at[0].in_use;
	return attach(&a, v, r, view, true, text, len) && read_all(&a, r, ch, n, text, len) &&
	       detach(&a, text, len);
}

bool verify_values(struct verifier *v, struct run *r, struct simview *view, uint32_t *values,
		   char *text, size_t len)
{
	uint64_t chunk = CHUNK_BYTES / SECTOR_BYTES;
	struct attached a;

	if (!attach(&a, v, r, view, true, text, len))
		return false;
	for (uint64_t s = 0; s < a.sectors; s++) {
		if (s % chunk == 0 &&
		    !request(&a, BLK_READ, s, min_of(chunk, a.sectors - s), text, len))
			return false;
		values[s] = guest_decode(v->mem + s % chunk * SECTOR_BYTES, s);
	}
	return detach(&a, text, len);
}

/* Waits until the search for what the crash had leaked is over: it is the last thing that sleeps. */
static void reclaim(struct attached *a)
{
	struct loop *loop = a->v->loop;
	uint64_t deadline;

	for (unsigned i = 0; i < 100000 && (deadline = loop_next_deadline_ns(loop)) != UINT64_MAX; i++)
		if (!loop_turn(loop) && deadline > loop_now_ns(loop))
			loop_advance(loop, deadline - loop_now_ns(loop));
}

/* Opens for writing, changes something, and looks again. */
static bool verify_deep(struct verifier *v, struct run *r, struct simview *view, uint64_t seed,
			char *text, size_t len)
{
	struct rng rng = rng_make(seed, 0xdee9, 0);
	struct changes ch[DEEP_WRITES];
	/* also of an earlier run, whose image this one goes on with */
	bool shared = r->cfg.open.compress || r->snaps.n || v->judge.shared;
	bool reclaimed_first = rng_chance(&rng, 50);
	const struct bits bits = v->bits;
	unsigned n = 0;
	struct attached a;

	if (!attach(&a, v, r, view, false, text, len))
		return false;
	if (reclaimed_first)
		reclaim(&a);
	for (; n < DEEP_WRITES; n++) {
		uint64_t sector = align_down(rng_below(&rng, a.sectors), run_unit(r));
		uint64_t sectors = align_up(rng_range(&rng, 1, DEEP_SECTORS), run_unit(r));
		bool discard = rng_chance(&rng, 25);

		sectors = min_of(sectors, a.sectors - sector);
		ch[n] = (struct changes){sector, sectors, discard ? GUEST_NONE : DEEP_STAMP + n};
		for (uint64_t i = 0; i < sectors; i++)
			guest_stamp(v->mem + i * SECTOR_BYTES, sector + i, DEEP_STAMP + n);
		if (!request(&a, discard ? BLK_DISCARD : BLK_WRITE, sector, sectors, text, len))
			return false;
		if (rng_chance(&rng, 30) && !request(&a, BLK_FLUSH, 0, 0, text, len))
			return false;
	}
	reclaim(&a);
	if (!request(&a, BLK_FLUSH, 0, 0, text, len) || !detach(&a, text, len))
		return false;
	if (!judge_ok(v, view, !reclaimed_first && snaps_flags_allowed(r, r->guest.crash_time),
		      "after writing to it, ", text, len))
		return false;
	/* A count that is too high for what shares a cluster stays so if references came or went meanwhile. */
	if (v->judge.leaks && (reclaimed_first || !shared)) {
		snprintf(text, len, "%" PRIu64 " leaks were not reclaimed", v->judge.leaks);
		return false;
	}
	if (v->judge.dirty) {
		snprintf(text, len, "closing left the dirty bit");
		return false;
	}
	return verify_read(v, r, view, ch, n, text, len) && bits_kept(&bits, &v->bits, text, len) &&
	       snaps_check(v, r, view, r->guest.crash_time, text, len);
}

/* ---- the other checkers ---- */

static bool verify_checker(struct verifier *v, struct simview *view, char *text, size_t len)
{
	struct qcow2_check_options opts = {.repair = QCOW2_REPAIR_NONE};
	struct qcow2_check_result res = {0};
	struct error err = {0};
	int ret;

	simview_open(view, view->map, true);
	ret = qcow2_check(&view->storage, &opts, &res, &err);
	if (ret || res.errors)
		snprintf(text, len, "the engine's checker failed: %s", error_text(&err, ret));
	else if (!res.corruptions != !v->judge.corruptions ||
		 (!res.corruptions && res.leaks != v->judge.leaks))
		snprintf(text, len,
			 "the engine's checker says %" PRIu64 " corruptions and %" PRIu64
			 " leaks, the judge %" PRIu64 " and %" PRIu64 " (%s)",
			 res.corruptions, res.leaks, v->judge.corruptions, v->judge.leaks,
			 v->judge.text);
	else
		return true;
	return false;
}

/* A raw data file holds the disk by itself, for who knows nothing of the image. */
static bool verify_raw(struct verifier *v, struct run *r, const struct simview *data, char *text,
		       size_t len)
{
	uint64_t chunk = CHUNK_BYTES / SECTOR_BYTES, bad;
	/* what is gained or lost is there or not */
	uint64_t sectors = min_of(r->guest.resize.from, r->guest.resize.to);

	for (uint64_t s = 0; s < sectors; s += chunk) {
		uint64_t count = min_of(chunk, sectors - s);

		for (uint64_t i = 0; i < count; i++)
			memcpy(v->mem + i * SECTOR_BYTES, simview_get(data, s + i), SECTOR_BYTES);
		if (!guest_check_crash(&r->guest, s, count, v->mem, &bad, text, len)) {
			guest_print_sector(&r->guest, bad);
			return false;
		}
	}
	return true;
}

bool verify_state(struct verifier *v, struct run *r, struct simview *view, unsigned how,
		  uint64_t seed, char *text, size_t len)
{
	bool ok;

	v->states++;
	ok = judge_ok(v, view, snaps_flags_allowed(r, r->guest.crash_time), "", text, len);
	if (how & VERIFY_CHECKER) {
		v->checker++;
		if (!verify_checker(v, view, text, len))
			return false;
	}
	if (how & VERIFY_QEMU) {
		v->qemu++;
		if (!verify_qemu(v, r, view, text, len))
			return false;
	}
	/* such an image is judged after its repair, below */
	if (v->judge.dirty) {
		v->dirty++;
		how |= VERIFY_DEEP;
	} else if (!ok) {
		return false;
	}
	if (v->judge.leaks) {
		v->leaky++;
		if (how & VERIFY_NO_LEAKS) {
			snprintf(text, len, "%" PRIu64 " leak(s)", v->judge.leaks);
			return false;
		}
	}
	if (!verify_read(v, r, view, NULL, 0, text, len) ||
	    (r->cfg.data == RUN_DATA_RAW && !verify_raw(v, r, view->data, text, len)) ||
	    !snaps_check(v, r, view, r->guest.crash_time, text, len))
		return false;
	if (how & VERIFY_DEEP) {
		v->deep++;
		return verify_deep(v, r, view, seed, text, len);
	}
	return true;
}
