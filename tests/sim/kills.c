/* SPDX-License-Identifier: MIT */
/*
 * kills.c: see kills.h. A killed process leaves its memory behind, so that runs are made in
 * batches, each in a process of its own.
 */
#include "kills.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/math.h"

#define BATCH	  8 /* seeds */
#define MAX_KILLS 4

struct totals {
	uint64_t runs, kills, states, refused, broken, apart, encrypted;
};

static void fault_soon(struct run *r, struct rng *rng, unsigned kinds, unsigned within)
{
	uint64_t first = r->disk->ops.n + rng_below(rng, within);

	r->disk->fault = (struct sim_fault){
		.kinds = kinds, .first = first, .last = first + rng_below(rng, 4), .error = -EIO};
}

/* What the disk does to the process that is going to be killed. */
static void fault_before_kill(struct run *r, struct rng *rng)
{
	const unsigned growing = 1 << STORAGE_WRITE | 1 << STORAGE_TRUNCATE | 1 << STORAGE_ZERO;
	unsigned percent = rng_below(rng, 100);

	if (percent < 10) {
		fault_soon(r, rng, 1 << STORAGE_SYNC, 30);
	} else if (percent < 16) {
		fault_soon(r, rng, ~(1u << STORAGE_SYNC), 100);
	} else if (percent < 22) {
		fault_soon(r, rng, growing, 100);
		r->disk->fault.last += rng_below(rng, 30);
		r->disk->fault.error = -ENOSPC;
	}
}

static void kill_and_recover(struct run *r, struct rng *rng)
{
	uint64_t steps = rng_range(rng, 1, (uint64_t)1 << rng_range(rng, 3, 12));
	bool faulty = rng_chance(rng, 15);

	fault_before_kill(r, rng);
	if (r->cfg.snapshots && !r->disk->failed && snaps_idle(r) && rng_chance(rng, 60))
		snaps_begin(r);
	if (r->cfg.resize_bytes && rng_chance(rng, 70))
		run_resize_begin(r);
	run_kill(r, r->cfg.requests, steps);
	r->disk->fault = (struct sim_fault){0};
	/* the first ones that try may be killed as well, or the disk fails them */
	for (unsigned i = 0; !r->failed; i++) {
		bool last = i + 1 >= MAX_KILLS;

		steps = !last && rng_chance(rng, 50) ? rng_range(rng, 1, 60) : UINT64_MAX;
		if (faulty && !last)
			fault_soon(r, rng, ~0u, 20);
		if (run_recover(r, steps))
			break;
		r->disk->fault = (struct sim_fault){0};
	}
	if (r->unservable && !r->failed && run_roomy(r))
		run_fail(r, "the image cannot be recovered after a failed sync");
	if (r->failed || r->unservable)
		return;
	snaps_recovered(r);
	run_end_fault(r);
	if (!r->failed)
		run_read_all(r);
}

/* Requests fail for a reason only: by rule 6, or as the disk failed them. */
static void check_request(struct run *r, struct slot *s)
{
	bool may_fail = s->req.op == BLK_FLUSH || s->req.flags & BLK_FUA ||
			(s->req.op != BLK_READ && !run_roomy(r));

	if (s->ret && s->ret != -EIO && s->ret != -ENOSPC)
		run_fail(r, "op %u failed with %d (%s)", s->number, s->ret, strerror(-s->ret));
	else if (s->ret && !r->disk->failed)
		run_fail(r, "op %u failed with %d, and nothing had", s->number, s->ret);
	else if (!s->ret && s->req.op == BLK_FLUSH && r->broken)
		run_fail(r, "FLUSH op %u succeeded after a failed sync", s->number);
	else if (s->ret && r->healed && !(may_fail && r->broken))
		run_fail(r, "op %u failed with %d, and the disk has not since", s->number, s->ret);
}

static void finish(struct run *r)
{
	uint32_t flush = guest_submit(&r->guest, BLK_FLUSH, 0, 0, 0, simdisk_mark(r->disk));

	run_close(r);
	guest_done(&r->guest, flush, r->failed ? -EIO : r->close_ret, simdisk_mark(r->disk));
	if (!r->failed && !r->close_ret == r->broken)
		run_fail(r, "close returned %d, and a sync had %sfailed", r->close_ret,
			 r->broken ? "" : "not ");
}

bool kills_whole(struct run *r, const struct run_config *cfg, const char *extra)
{
	struct rng rng = rng_make(cfg->seed, cfg->profile, 0x9111);
	struct judge judge = {0};
	struct error err = {0};
	unsigned kills = rng_range(&rng, 1, MAX_KILLS);
	int ret = run_init(r, cfg, NULL);
	char text[128];

	r->on_complete = check_request;
	if (!r->cfg.log_bytes)
		r->cfg.log_bytes = 256 * KiB;
	if (!ret)
		ret = run_open(r, &err);
	if (ret)
		run_fail(r, "open: %s", error_text(&err, ret));
	for (unsigned i = 0; i < kills && !r->failed && !r->unservable; i++)
		kill_and_recover(r, &rng);
	if (r->unservable && !r->failed)
		return true;
	run_note_given_up(r);
	r->healed = true;
	r->broken = run_sync_failed(r);
	if (!r->failed)
		run_requests(r, cfg->requests / 2);
	while (!r->failed && r->disk->ghosts.n) /* none, if recovery waited for them */
		simdisk_ghost(r->disk);
	if (!r->failed)
		run_read_all(r);
	if (!r->failed)
		finish(r);
	if (!r->failed) {
		judge_run(&judge, &r->file->live);
		/* an operation that was killed has left flags clear */
		if (snaps_flags_allowed(r, simdisk_mark(r->disk)))
			judge.corruptions -= judge.flags;
		if (judge.corruptions)
			run_fail(r, "the closed image is corrupt: %s", judge.text);
		judge_free(&judge);
	}
	if (!r->failed && !r->close_ret)
		bits_check_closed(r);
	snprintf(text, sizeof(text), " --kills 1%s", extra);
	if (r->failed)
		run_report(r, text);
	return !r->failed;
}

/* ---- many ---- */

bool kills_explore(struct explorer *e, enum run_profile profile, uint64_t seed, struct run *r)
{
	const char *extra = e->extra;
	struct run_config cfg;
	char text[128];
	bool ok;

	run_config_make(&cfg, profile, seed);
	run_config_kills(&cfg);
	snprintf(text, sizeof(text), " --kills 1%s", extra);
	e->extra = text;
	ok = kills_whole(r, &cfg, extra) && explore_run(e, r);
	e->extra = extra;
	run_free(r);
	return ok;
}

static int batch(struct totals *t, uint64_t seed)
{
	struct explorer e;
	bool ok = true;

	if (explorer_init(&e))
		return 1;
	e.points = 8;
	e.states = 6;
	e.exhaust = 16;
	for (uint64_t s = seed; s < seed + BATCH && ok; s++) {
		for (int p = 0; p < RUN_PROFILES && ok; p++) {
			struct run r;

			if (p == RUN_GROW && s % 8)
				continue;
			ok = kills_explore(&e, p, s, &r);
			t->runs++;
			t->kills += r.kills;
			t->refused += r.refused;
			t->broken += r.broken;
		}
	}
	t->states += e.explored;
	t->apart += e.apart;
	t->encrypted += e.encrypted;
	fflush(stdout);
	return !ok;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

int kills_run(uint64_t seed, uint64_t runs, uint64_t seconds)
{
	double start = now();
	struct totals *t =
		mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = 0;

	if (t == MAP_FAILED)
		return 1;
	for (; !status && t->runs < runs && now() - start < seconds; seed += BATCH) {
		pid_t pid;

		fflush(stdout);
		pid = fork();
		if (pid == 0)
			_exit(batch(t, seed));
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			status = -1;
	}
	printf("%" PRIu64 " kills in %" PRIu64 " runs, in %.1f s, %" PRIu64
	       " recoveries failed by the "
	       "disk, %" PRIu64 " runs with a failed sync: %s; %" PRIu64
	       " crash states; the data in a file of its own in %" PRIu64 " runs, encrypted in %" PRIu64
	       "\n",
	       t->kills, t->runs, now() - start, t->refused, t->broken,
	       status ? "FAILED" : "all that was acknowledged was there", t->states, t->apart,
	       t->encrypted);
	if (status && !(WIFEXITED(status) && WEXITSTATUS(status) == 1))
		printf("FAILED: seeds from %" PRIu64 " on: status %#x\n", seed - BATCH, status);
	munmap(t, sizeof(*t));
	return status != 0;
}
