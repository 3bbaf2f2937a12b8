/* SPDX-License-Identifier: MIT */
/*
 * faults.c: see faults.h.
 */
#include "faults.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/math.h"

const char *const fault_mode_names[FAULT_MODES] = {"none", "one",  "burst", "write",
						   "read", "sync", "full", "held"};

bool fault_plan_parse(struct fault_plan *plan, const char *text)
{
	const char *colon = strchr(text, ':');

	for (int m = 0; m < FAULT_MODES && colon; m++) {
		if (strlen(fault_mode_names[m]) != (size_t)(colon - text) ||
		    strncmp(fault_mode_names[m], text, colon - text))
			continue;
		*plan = (struct fault_plan){m, strtoull(colon + 1, NULL, 10)};
		return true;
	}
	return false;
}

/* One of two files, in turn, or both. */
static unsigned fault_files(const struct run *r, const struct fault_plan *plan)
{
	const unsigned image = 1u << r->file->number, data = 1u << r->named.data->number;
	const unsigned of[] = {image, data, image | data};

	/* there is one limit for all, and they are of different lengths */
	return of[plan->index % (plan->mode == FAULT_FULL ? 2 : 3)];
}

static uint64_t full_at(const struct run *r, const struct fault_plan *plan)
{
	const struct simfile *f = r->named.data && plan->index % 2 ? r->named.data : r->file;

	return f->live.size_bytes + plan->index * SECTOR_BYTES;
}

static void plan_start(struct run *r, const struct fault_plan *plan)
{
	struct sim_fault *f = &r->disk->fault;
	const unsigned growing = 1 << STORAGE_WRITE | 1 << STORAGE_TRUNCATE | 1 << STORAGE_ZERO;
	struct rng rng = rng_make(r->cfg.seed, plan->mode, plan->index);

	*f = (struct sim_fault){.kinds = ~0u, .first = r->disk->ops.n + plan->index, .error = -EIO};
	f->last = f->first;
	switch (plan->mode) {
	case FAULT_BURST:
		f->last += rng_range(&rng, 2, 30);
		break;
	case FAULT_WRITE:
		f->kinds = growing;
		f->error = -ENOSPC;
		f->last += rng_range(&rng, 1, 40);
		break;
	case FAULT_READ:
		f->kinds = 1 << STORAGE_READ;
		f->last += rng_range(&rng, 1, 40);
		break;
	case FAULT_SYNC:
		f->kinds = 1 << STORAGE_SYNC;
		f->last += rng_range(&rng, 1, 40);
		break;
	case FAULT_FULL:
		*f = (struct sim_fault){.limit_bytes = full_at(r, plan)};
		break;
	case FAULT_HELD:
		/* there may be no space for the header itself: then nothing goes on */
		r->cfg.snapshots = 0;
		if (plan->index % 2) {
			f->kinds = growing;
			f->error = -ENOSPC;
			f->last += rng_range(&rng, 1, 60);
		} else {
			*f = (struct sim_fault){.limit_bytes = full_at(r, plan)};
		}
		run_hold(r, rng_range(&rng, 1, 60));
		break;
	default:
		break;
	}
	if (r->named.data && plan->mode != FAULT_ONE)
		f->files = fault_files(r, plan);
}

static void check_errors(struct run *r, struct slot *s)
{
	if (!s->ret || r->failed)
		return;
	if (r->holding)
		run_fail(r, "op %u failed with %d, and should be held", s->number, s->ret);
	else if (s->ret != -EIO && s->ret != -ENOSPC)
		run_fail(r, "op %u failed with %d (%s)", s->number, s->ret, strerror(-s->ret));
	else if (!r->disk->failed)
		run_fail(r, "op %u failed with %d, and nothing had", s->number, s->ret);
	else if (r->healed && s->req.op == BLK_READ)
		run_fail(r, "read op %u failed with %d, and the disk has not since", s->number, s->ret);
}

/* Whether the disk has ever been changed. */
static bool has_begun(const struct run *r)
{
	for (size_t k = 1; k < r->guest.ops.n; k++) {
		const struct guest_op *op = &r->guest.ops.at[k];

		if (op->op != BLK_READ && op->op != BLK_FLUSH && op->done != SIM_NEVER && !op->failed)
			return true;
	}
	return false;
}

/*
 * The fault is gone: what must work works, and what must not does not. After a failed sync nothing is
 * written back, so writes that change the map go on as long as there is room in memory for it; in place
 * they always go on, and so do reads. Bitmaps whose in_use could not be made durable before the first write
 * (rule 7) leave nothing to be written at all.
 */
static void afterwards(struct run *r)
{
	uint64_t some = min_of(r->guest.sectors, (uint64_t)8), unit = run_unit(r);
	bool broken = run_sync_failed(r);
	bool works = !broken || (run_roomy(r) && (!r->bits_before.bits.n || has_begun(r)));
	uint64_t step = align_up(r->guest.sectors / (broken ? 64 : 3) + 1, unit);
	int ret;

	r->healed = true;
	/* Discards change the map without allocating: it fills with changes before the refcounts do. */
	for (uint64_t at = 0; !works && at < r->guest.sectors && !r->failed; at += step)
		run_one(r, BLK_DISCARD, 0, at, min_of(r->guest.sectors - at, step));
	if (!works && !r->failed)
		run_read_all(r);
	for (uint64_t at = 0; at < r->guest.sectors && !r->failed; at += step) {
		some = min_of(some, r->guest.sectors - at);
		ret = run_one(r, BLK_WRITE, 0, at, some);
		if (ret && works)
			run_fail(r, "a write after the fault failed: %s", strerror(-ret));
		else if (!ret && !r->failed && (ret = run_one(r, BLK_WRITE, 0, at, some)))
			run_fail(r, "a write in place failed after a failed sync: %s", strerror(-ret));
	}
	if (!r->failed)
		run_read_all(r);
	for (unsigned i = 0; i < 2 && !r->failed; i++) {
		ret = run_one(r, BLK_FLUSH, 0, 0, 0);
		if (!ret && broken)
			run_fail(r, "a FLUSH after a failed sync succeeded");
		else if (ret && !broken)
			run_fail(r, "a FLUSH after the fault failed: %s", strerror(-ret));
		if (!r->failed)
			ret = run_one(r, BLK_WRITE, BLK_FUA, r->guest.sectors - unit, unit);
		if (!ret && broken)
			run_fail(r, "a FUA write after a failed sync succeeded");
	}
}

static void finish(struct run *r)
{
	uint32_t flush;

	flush = guest_submit(&r->guest, BLK_FLUSH, 0, 0, 0, simdisk_mark(r->disk));
	run_close(r);
	guest_done(&r->guest, flush, r->failed ? -EIO : r->close_ret, simdisk_mark(r->disk));
	if (r->failed)
		return;
	if (!r->close_ret && run_sync_failed(r))
		run_fail(r, "close succeeded after a failed sync");
	else if (r->close_ret && !run_sync_failed(r))
		run_fail(r, "close failed: %s", strerror(-r->close_ret));
}

bool faults_whole(struct run *r, const struct run_config *cfg, const struct fault_plan *plan,
		  const char *extra)
{
	struct judge judge = {0};
	struct error err = {0};
	int ret = run_init(r, cfg, NULL);

	if (!ret)
		ret = run_open(r, &err);
	if (ret)
		run_fail(r, "open: %s", error_text(&err, ret));
	if (!r->failed) {
		r->on_complete = check_errors;
		plan_start(r, plan);
		run_requests_and_snapshots(r, cfg->requests);
		run_end_fault(r);
		run_note_given_up(r);
	}
	if (!r->failed)
		afterwards(r);
	if (!r->failed)
		finish(r);
	if (!r->failed) {
		judge_run(&judge, &r->file->live);
		/* an operation that met an error may have left flags clear */
		if (snaps_flags_allowed(r, simdisk_mark(r->disk)))
			judge.corruptions -= judge.flags;
		if (judge.corruptions)
			run_fail(r, "the closed image is corrupt: %s", judge.text);
		judge_free(&judge);
	}
	if (!r->failed)
		return true;
	printf("FAILED: %s\n", r->text);
	run_config_print(cfg);
	printf("  replay: %s/tests/sim/sim run %s %" PRIu64 " --fault %s:%" PRIu64 "%s\n",
	       getenv("BUILD") ? getenv("BUILD") : "build", run_profile_names[cfg->profile],
	       cfg->seed, fault_mode_names[plan->mode], plan->index, extra);
	fflush(stdout);
	return false;
}

/* ---- at every I/O in turn ---- */

struct totals {
	uint64_t runs, injected, requests_failed, flushes_failed, workloads, tries;
	uint64_t by_mode[FAULT_MODES];
};

bool faults_explore(struct explorer *e, const struct run_config *cfg, const struct fault_plan *plan,
		    struct run *r)
{
	const char *extra = e->extra;
	char text[128];
	bool ok;

	snprintf(text, sizeof(text), " --fault %s:%" PRIu64 "%s", fault_mode_names[plan->mode],
		 plan->index, extra);
	e->extra = text;
	ok = faults_whole(r, cfg, plan, extra) && explore_run(e, r);
	e->extra = extra;
	return ok;
}

static bool faults_one(struct explorer *e, struct totals *t, const struct run_config *cfg,
		       const struct fault_plan *plan)
{
	struct run r;
	bool ok = faults_explore(e, cfg, plan, &r);

	t->runs++;
	t->by_mode[plan->mode]++;
	t->injected += r.disk->failed;
	t->requests_failed += r.errors;
	t->flushes_failed += r.flush_errors;
	t->tries += r.hold_tries;
	run_free(&r);
	return ok;
}

/* How many I/Os the workload makes between open and close, without a fault; 0: it failed. */
static uint64_t count_ios(const struct run_config *cfg)
{
	static const struct fault_plan none = {0};
	uint64_t n = 0;
	struct run r;

	if (faults_whole(&r, cfg, &none, "")) {
		for (size_t i = 0; i < r.disk->ops.n; i++)
			n += r.disk->ops.at[i]->submit > r.opened;
	}
	run_free(&r);
	return n;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static enum run_profile faults_profile(uint64_t seed)
{
	static const enum run_profile profiles[] = {RUN_TINY,  RUN_SMALL, RUN_TINY,
						    RUN_CHURN, RUN_TINY,  RUN_MIXED};

	return seed % 16 == 7 ? RUN_GROW : profiles[seed % ARRAY_LEN(profiles)];
}

int faults_run(uint64_t seed, uint64_t runs, uint64_t seconds)
{
	double start = now();
	struct totals t = {0};
	struct explorer e;
	bool ok = true;

	if (explorer_init(&e))
		return 1;
	e.points = 6;
	e.states = 6;
	e.exhaust = 16;
	for (; ok && t.runs < runs && now() - start < seconds; seed++) {
		enum run_profile profile = faults_profile(seed);
		struct run_config cfg;
		uint64_t ios, stride;

		run_config_make(&cfg, profile, seed);
		run_config_faults(&cfg);
		ios = count_ios(&cfg);
		ok = ios > 0;
		t.workloads++;
		/* every I/O of a tiny workload, and about 40 places of another */
		stride = profile == RUN_TINY ? 1 : ios / 40 + 1;
		for (uint64_t i = 0; i < ios && ok && t.runs < runs; i += stride) {
			struct fault_plan one = {FAULT_ONE, i};
			struct fault_plan other = {FAULT_BURST + i / stride % (FAULT_MODES - 2), i};

			ok = faults_one(&e, &t, &cfg, &one) && faults_one(&e, &t, &cfg, &other);
		}
	}
	printf("%" PRIu64 " runs with faults over %" PRIu64 " workloads, in %.1f s: %" PRIu64
	       " I/Os failed, %" PRIu64 " requests (%" PRIu64 " of them FLUSH), %" PRIu64
	       " that were held were tried again, %" PRIu64 " crash states; the data in a file of its own in "
	       "%" PRIu64 " runs, encrypted in %" PRIu64 "\n",
	       t.runs, t.workloads, now() - start, t.injected, t.requests_failed, t.flushes_failed,
	       t.tries, e.explored, e.apart, e.encrypted);
	explorer_free(&e);
	return !ok;
}
