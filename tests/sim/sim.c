/* SPDX-License-Identifier: MIT */
/*
 * sim.c: the simulation's program.
 *
 *   sim explore [--profile P] [--seed N] [--states N] [--seconds N] [--deep N]
 *       runs of the engine from seed N on, and the crash states of each, until a number of states or
 *       seconds is reached (at least one run); --deep N: one state in N is written to as well
 *   sim replay PROFILE SEED TIME WORD    one crash state, as a failure's report names it
 *   sim run PROFILE SEED                 one run alone, with what was done to the disk
 *   sim faults [--seed N] [--runs N] [--seconds N]
 *                                        errors at every I/O in turn (faults.c)
 *   sim memory                           allocations that fail, and that there are none (faults.c)
 *   sim mutants [--states N]             every rule broken on purpose is found out, or --mutant NAME
 *
 * --mutant NAME breaks one rule in any of them, --fault MODE:INDEX injects an error in run and
 * replay. Mutants are compiled into sim-mutants only. Status: 0, 1 (something is wrong), 2 (usage).
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/math.h"
#include "explore.h"
#include "faults.h"
#include "kills.h"
#include "mutants.h"
#include "second.h"

struct options {
	int profile; /* -1: all in turn */
	uint64_t seed, states, seconds, runs, deep;
	const char *mutant;
	int mutant_number; /* 0: none */
	struct fault_plan fault;
	bool kills, second;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static int profile_find(const char *name)
{
	for (int p = 0; p < RUN_PROFILES; p++) {
		if (!strcmp(name, run_profile_names[p]))
			return p;
	}
	return -1;
}

/* ---- one run ---- */

/* The same seed gives the same record: what a replay command rests on. */
static bool deterministic(const struct run_config *cfg, uint64_t digest)
{
	struct run r;
	bool same = run_whole(&r, cfg, NULL, "") && simdisk_digest(r.disk) == digest;

	if (!same)
		printf("FAILED: %s seed %" PRIu64 " does not give the same run twice\n",
		       run_profile_names[cfg->profile], cfg->seed);
	run_free(&r);
	return same;
}

static bool run_second(struct run *r, const struct run_config *cfg, const struct options *o)
{
	static struct run_origin origin;
	static struct run first;
	struct verifier v;
	bool ok;

	if (!run_whole(&first, cfg, NULL, o->mutant) || verifier_init(&v))
		return false;
	ok = second_whole(r, &origin, &v, &first, o->mutant);
	verifier_free(&v);
	return ok;
}

static bool run_any(struct run *r, struct run_config *cfg, const struct options *o)
{
	if (o->second)
		return run_second(r, cfg, o);
	if (o->kills)
		run_config_kills(cfg);
	if (o->kills)
		return kills_whole(r, cfg, o->mutant);
	if (o->fault.mode == FAULT_NONE) {
		run_config_resize(cfg);
		run_config_snapshots(cfg);
		return run_whole(r, cfg, NULL, o->mutant);
	}
	run_config_faults(cfg);
	return faults_whole(r, cfg, &o->fault, o->mutant);
}

/* ---- explore ---- */

static bool explore_seed(struct explorer *e, enum run_profile profile, uint64_t seed)
{
	unsigned points = e->points;
	struct run_config cfg;
	struct run r;
	bool ok;

	run_config_make(&cfg, profile, seed);
	run_config_resize(&cfg);
	run_config_snapshots(&cfg);
	ok = run_whole(&r, &cfg, NULL, e->extra);
	/* a snapshot has the time of day in it */
	if (ok && seed % 16 == 0 && !cfg.snapshots)
		ok = deterministic(&cfg, simdisk_digest(r.disk));
	/* those are about what happens while it runs: what is read tells */
	if (profile == RUN_SNAPS)
		e->points = 2;
	ok = ok && explore_run(e, &r);
	e->points = points;
	if (ok && profile != RUN_SNAPS && (seed % 3 == 0 || (cfg.snapshots && seed % 2)))
		ok = second_explore(e, &r);
	run_free(&r);
	return ok;
}

/*
 * Runs of which the live reads alone are looked at: there it shows what requests that overlap do to each other, and
 * it takes many of them.
 */
#define OVERLAP_RUNS 4

static bool overlap_seed(const struct explorer *e, uint64_t seed)
{
	bool ok = true;

	for (uint64_t s = seed * OVERLAP_RUNS; ok && s < (seed + 1) * OVERLAP_RUNS; s++) {
		struct run_config cfg;
		struct run r;

		run_config_make(&cfg, RUN_OVERLAP, s);
		run_config_resize(&cfg);
		run_config_snapshots(&cfg);
		ok = run_whole(&r, &cfg, NULL, e->extra);
		run_free(&r);
	}
	return ok;
}

/* Of large runs one in eight seeds is explored. */
static bool is_left_out(int profile, uint64_t seed)
{
	return (profile == RUN_GROW || profile == RUN_OVERLAP) && seed % 8;
}

static void explore_summary(const struct explorer *e, double seconds)
{
	const struct verifier *v = &e->verifier;

	printf("%" PRIu64 " crash states of %" PRIu64 " runs, in %.1f s: %" PRIu64
	       " moments (%" PRIu64 " with all their states), %" PRIu64
	       " repeated states not counted\n",
	       e->explored, e->runs, seconds, e->moments, e->exhausted, e->repeated);
	printf("%" PRIu64 " written to as well, %" PRIu64 " by the engine's checker, %" PRIu64
	       " by qemu-img; %" PRIu64 " had leaks, %" PRIu64 " the dirty bit, %" PRIu64
	       " a valid bitmap\n",
	       v->deep, v->checker, v->qemu, v->leaky, v->dirty, v->bitmaps);
	printf("of %" PRIu64 " runs the data lay in a file of its own, %" PRIu64
	       " were encrypted\n",
	       e->apart, e->encrypted);
}

static int command_explore(const struct options *o)
{
	struct explorer e;
	double start = now();
	uint64_t seed = o->seed;
	bool ok = true;

	if (explorer_init(&e))
		return 1;
	e.extra = o->mutant;
	if (o->deep)
		e.deep_every = o->deep;
	do {
		for (int p = 0; p < RUN_PROFILES && ok; p++) {
			if (o->profile >= 0 ? p != o->profile : is_left_out(p, seed))
				continue;
			ok = explore_seed(&e, p, seed);
		}
		if (o->profile < 0 || o->profile == RUN_OVERLAP)
			ok = ok && overlap_seed(&e, seed);
		seed++;
	} while (ok && e.explored < o->states && now() - start < o->seconds);
	explore_summary(&e, now() - start);
	explorer_free(&e);
	return !ok;
}

/* ---- one state, one run ---- */

static void print_record(const struct run *r)
{
	for (size_t i = 0; i < r->disk->events.n; i++) {
		static const char *const kinds[] = {"submit", "land", "done", "mark"};
		const struct sim_event *ev = &r->disk->events.at[i];
		const struct sim_op *op = ev->op;

		printf("%6zu %s", i, kinds[ev->kind]);
		if (op)
			printf(" %" PRIu64 " %s%s sectors %" PRIu64 "+%" PRIu64 " ret %d",
			       op->number, sim_op_name(op),
			       op->flags & STORAGE_DSYNC ? " DSYNC" : "", op->sector, op->sectors,
			       op->ret);
		for (size_t k = 1; !op && k < r->guest.ops.n; k++) {
			const struct guest_op *g = &r->guest.ops.at[k];
			static const char *const names[] = {"READ", "WRITE", "FLUSH", "DISCARD",
							    "WRITE_ZEROES"};

			if (g->submit != i && g->done != i)
				continue;
			printf(" op %zu %s%s sectors %" PRIu64 "+%" PRIu64 " %s", k, names[g->op],
			       g->fua ? " FUA" : "", g->sector, g->sectors,
			       g->submit == i ? "submitted" : "done");
		}
		printf("\n");
	}
}

static int command_run(int argc, char **argv, const struct options *o)
{
	struct run_config cfg;
	struct run r;
	bool ok;

	if (argc != 2 || profile_find(argv[0]) < 0)
		return 2;
	run_config_make(&cfg, profile_find(argv[0]), strtoull(argv[1], NULL, 10));
	ok = run_any(&r, &cfg, o);
	print_record(&r);
	run_config_print(&cfg);
	run_free(&r);
	return !ok;
}

static int command_replay(int argc, char **argv, const struct options *o)
{
	struct run_config cfg;
	struct explorer e;
	struct run r;
	uint64_t time;

	if (argc != 4 || profile_find(argv[0]) < 0)
		return 2;
	run_config_make(&cfg, profile_find(argv[0]), strtoull(argv[1], NULL, 10));
	time = strtoull(argv[2], NULL, 10);
	if (explorer_init(&e) || !run_any(&r, &cfg, o))
		return 1;
	e.extra = o->mutant;
	if (time > r.disk->events.n) {
		printf("the run has %zu events only\n", r.disk->events.n);
		return 2;
	}
	if (!explore_replay(&e, &r, time, argv[3]))
		return 1;
	printf("this state is good\n");
	explorer_free(&e);
	run_free(&r);
	return 0;
}

/* ---- mutants ---- */

/* A tiny run with some fault, for the rules about errors. */
static bool mutant_fault(struct explorer *e, uint64_t seed)
{
	struct fault_plan plan = {FAULT_ONE + seed % (FAULT_HELD - 1), seed % 16};
	struct run_config cfg;
	struct run r;
	bool ok;

	run_config_make(&cfg, RUN_TINY, seed);
	run_config_faults(&cfg);
	ok = faults_explore(e, &cfg, &plan, &r);
	run_free(&r);
	return ok;
}

/*
 * In a process of its own: a broken rule may end it. Tells on @out how many states it has explored, and up to which
 * seed.
 */
static int mutant_child(int mutant, uint64_t seed, uint64_t states, int out)
{
	struct explorer e;
	bool ok = true;
	struct run r;

	mutant_set(mutant);
	if (explorer_init(&e))
		return 2;
	e.deep_every = 0;
	e.qemu_every = 0;
	e.exhaust = 64;
	for (; ok && e.explored < states; seed++) {
		for (int p = 0; p < RUN_PROFILES && ok; p++) {
			if (is_left_out(p, seed))
				continue;
			ok = explore_seed(&e, p, seed);
		}
		ok = ok && overlap_seed(&e, seed) && mutant_fault(&e, seed) &&
		     kills_explore(&e, seed % 2 ? RUN_TINY : RUN_SMALL, seed, &r);
		dprintf(out, "%" PRIu64 " %" PRIu64 "\n", e.explored, seed);
	}
	return !ok;
}

struct explored {
	uint64_t states, seed; /* the last one */
};

/* How the child ended that began with @seed, and what it looked at. */
static int mutant_explore(int mutant, uint64_t seed, uint64_t states, struct explored *explored)
{
	int fds[2], status;
	char line[64];
	pid_t pid;
	FILE *in;

	*explored = (struct explored){0, seed};
	fflush(stdout);
	if (pipe(fds) || (pid = fork()) < 0)
		return -1;
	if (!pid) {
		close(fds[0]);
		if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))
			_exit(2);
		_exit(mutant_child(mutant, seed, states, fds[1]));
	}
	close(fds[1]);
	in = fdopen(fds[0], "r");
	while (in && fgets(line, sizeof(line), in))
		if (sscanf(line, "%" SCNu64 " %" SCNu64, &explored->states, &explored->seed) != 2)
			break;
	if (in)
		fclose(in);
	return waitpid(pid, &status, 0) == pid ? status : -1;
}

static bool mutant_caught(int mutant, uint64_t seed, uint64_t states, struct explored *explored)
{
	int status = mutant_explore(mutant, seed, states, explored);
	bool found = WIFEXITED(status) && WEXITSTATUS(status) == 1;
	bool asserted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;

	if (found || asserted)
		printf("%-22s caught after %" PRIu64 " states, seeds %" PRIu64 " to %" PRIu64
		       "%s\n",
		       mutant_name(mutant), explored->states, seed, explored->seed,
		       asserted ? ", by an assertion" : "");
	else
		printf("%-22s NOT caught in %" PRIu64 " states (status %#x)\n", mutant_name(mutant),
		       explored->states, status);
	return found || asserted;
}

/* The same states without a mutant must all be good, or being caught would mean nothing. */
static bool good_without(uint64_t seed, uint64_t states)
{
	struct explored explored;
	int status = mutant_explore(0, seed, states, &explored);

	if (status)
		printf("FAILED without a mutant, after %" PRIu64 " states, seeds %" PRIu64
		       " to %" PRIu64 " (status %#x)\n",
		       explored.states, seed, explored.seed, status);
	else
		printf("no failure in %" PRIu64 " states without one, seeds %" PRIu64 " to %" PRIu64
		       "\n",
		       explored.states, seed, explored.seed);
	return !status;
}

static int command_mutants(const struct options *o)
{
	uint64_t states = o->states ? o->states : 30000, needed = 1;
	int caught = 0, count = mutant_count();
	struct explored explored;
	bool good = true;

	if (count == 1) {
		printf("this program has no mutants; use sim-mutants\n");
		return 2;
	}
	if (o->mutant_number)
		return !mutant_caught(o->mutant_number, o->seed, states, &explored);
	for (int m = 1; m < count; m++) {
		uint64_t seed = mutant_first_seed(m);

		if (!mutant_caught(m, seed, states, &explored))
			continue;
		caught++;
		if (seed == 1)
			needed = max_of(needed, explored.states);
		else
			good &= good_without(seed, max_of(explored.states, (uint64_t)1));
	}
	good &= good_without(1, needed);
	printf("%d of %d mutants caught\n", caught, count - 1);
	return caught != count - 1 || !good;
}

/* ---- main ---- */

static int usage(void)
{
	fprintf(stderr,
		"usage: sim explore|replay|run|faults|kills|memory|mutants ...; see sim.c\n");
	return 2;
}

static bool option(struct options *o, const char *name, const char *value)
{
	static char extra[64];

	if (!strcmp(name, "--profile"))
		return (o->profile = profile_find(value)) >= 0;
	if (!strcmp(name, "--seed"))
		o->seed = strtoull(value, NULL, 10);
	else if (!strcmp(name, "--states"))
		o->states = strtoull(value, NULL, 10);
	else if (!strcmp(name, "--seconds"))
		o->seconds = strtoull(value, NULL, 10);
	else if (!strcmp(name, "--deep"))
		o->deep = strtoull(value, NULL, 10);
	else if (!strcmp(name, "--runs"))
		o->runs = strtoull(value, NULL, 10);
	else if (!strcmp(name, "--kills"))
		o->kills = true;
	else if (!strcmp(name, "--second"))
		o->second = true;
	else if (!strcmp(name, "--fault"))
		return fault_plan_parse(&o->fault, value);
	else if (!strcmp(name, "--mutant") && mutant_find(value) > 0) {
		o->mutant_number = mutant_find(value);
		mutant_set(o->mutant_number);
		snprintf(extra, sizeof(extra), " --mutant %s", value);
		o->mutant = extra;
	} else {
		return false;
	}
	return true;
}

int main(int argc, char **argv)
{
	struct options o = {
		.profile = -1, .seed = 1, .seconds = UINT64_MAX, .runs = UINT64_MAX, .mutant = ""};
	char *args[8];
	int n = 0, ret;

	for (int i = 2; i < argc; i++) {
		if (!strncmp(argv[i], "--", 2)) {
			if (i + 1 == argc || !option(&o, argv[i], argv[i + 1]))
				return usage();
			i++;
		} else if (n < 8) {
			args[n++] = argv[i];
		}
	}
	if (argc < 2)
		return usage();
	/* what the engine says about injected errors is of interest in a single run only */
	log_open(false, "sim", strcmp(argv[1], "run") ? (enum log_level) - 1 : LOG_LEVEL_DEBUG);
	if (!strcmp(argv[1], "explore")) {
		if (!o.states && o.seconds != UINT64_MAX)
			o.states = UINT64_MAX;
		ret = command_explore(&o);
	} else if (!strcmp(argv[1], "replay"))
		ret = command_replay(n, args, &o);
	else if (!strcmp(argv[1], "run"))
		ret = command_run(n, args, &o);
	else if (!strcmp(argv[1], "faults"))
		ret = faults_run(o.seed, o.runs, o.seconds);
	else if (!strcmp(argv[1], "kills"))
		ret = kills_run(o.seed, o.runs, o.seconds);
	else if (!strcmp(argv[1], "memory"))
		ret = memory_run();
	else if (!strcmp(argv[1], "mutants"))
		ret = command_mutants(&o);
	else
		ret = 2;
	return ret == 2 ? usage() : ret;
}
