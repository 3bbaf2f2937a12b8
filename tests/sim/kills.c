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
	uint64_t runs, kills, states, recoveries;
};

static void kill_and_recover(struct run *r, struct rng *rng)
{
	uint64_t steps = rng_range(rng, 1, (uint64_t)1 << rng_range(rng, 3, 12));

	run_kill(r, r->cfg.requests, steps);
	/* the first ones that try may be killed as well */
	for (unsigned i = 0; !r->failed && i < MAX_KILLS; i++) {
		steps = i + 1 < MAX_KILLS && rng_chance(rng, 50) ? rng_range(rng, 1, 60)
								 : UINT64_MAX;
		if (run_recover(r, steps))
			break;
	}
	if (!r->failed)
		run_read_all(r);
}

bool kills_whole(struct run *r, const struct run_config *cfg, const char *extra)
{
	struct rng rng = rng_make(cfg->seed, cfg->profile, 0x9111);
	struct judge judge = {0};
	struct error err = {0};
	unsigned kills = rng_range(&rng, 1, MAX_KILLS);
	int ret = run_init(r, cfg, NULL);
	uint32_t flush;

	if (!r->cfg.log_bytes)
		r->cfg.log_bytes = 256 * KiB;
	if (!ret)
		ret = run_open(r, &err);
	if (ret)
		run_fail(r, "open: %s", error_text(&err, ret));
	for (unsigned i = 0; i < kills && !r->failed; i++)
		kill_and_recover(r, &rng);
	if (!r->failed)
		run_requests(r, cfg->requests / 2);
	if (!r->failed && r->errors)
		run_fail(r, "%u request(s) failed without a fault", r->errors);
	if (!r->failed)
		run_read_all(r);
	if (!r->failed) {
		flush = guest_submit(&r->guest, BLK_FLUSH, 0, 0, 0, simdisk_mark(r->disk));
		run_close(r);
		guest_done(&r->guest, flush, r->failed ? -EIO : r->close_ret,
			   simdisk_mark(r->disk));
	}
	if (!r->failed && r->close_ret)
		run_fail(r, "close: %s", strerror(-r->close_ret));
	if (!r->failed) {
		judge_run(&judge, &r->file->live);
		if (judge.corruptions)
			run_fail(r, "the closed image is corrupt: %s", judge.text);
		judge_free(&judge);
	}
	if (!r->failed)
		return true;
	printf("FAILED: %s\n", r->text);
	run_config_print(cfg);
	printf("  after %u kill(s); replay: %s/tests/sim/sim run %s %" PRIu64 " --kills 1%s\n",
	       r->kills, getenv("BUILD") ? getenv("BUILD") : "build",
	       run_profile_names[cfg->profile], cfg->seed, extra);
	fflush(stdout);
	return false;
}

/* ---- many ---- */

bool kills_explore(struct explorer *e, enum run_profile profile, uint64_t seed, unsigned *kills)
{
	const char *extra = e->extra;
	struct run_config cfg;
	char text[128];
	struct run r;
	bool ok;

	run_config_make(&cfg, profile, seed);
	snprintf(text, sizeof(text), " --kills 1%s", extra);
	e->extra = text;
	ok = kills_whole(&r, &cfg, extra) && explore_run(e, &r);
	e->extra = extra;
	*kills = r.kills;
	run_free(&r);
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
			unsigned kills;

			if (p == RUN_GROW && s % 8)
				continue;
			ok = kills_explore(&e, p, s, &kills);
			t->runs++;
			t->kills += kills;
		}
	}
	t->states += e.explored;
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
	printf("%" PRIu64 " kills in %" PRIu64
	       " runs, in %.1f s: all that was acknowledged was there; "
	       "%" PRIu64 " crash states%s\n",
	       t->kills, t->runs, now() - start, t->states, status ? "; FAILED" : "");
	if (status && !(WIFEXITED(status) && WEXITSTATUS(status) == 1))
		printf("FAILED: seeds from %" PRIu64 " on: status %#x\n", seed - BATCH, status);
	munmap(t, sizeof(*t));
	return status != 0;
}
