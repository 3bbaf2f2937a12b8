/* SPDX-License-Identifier: MIT */
/*
 * explore.c: see explore.h.
 *
 * Which moments: the largest sets of states are just before a sync completes; the strictest
 * promises are just after a FLUSH or FUA write was acknowledged. A run that is explored
 * exhaustively is looked at there (any other moment's states and promises are included in one of
 * them), others there and anywhere.
 */
#include "explore.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"

int explorer_init(struct explorer *e)
{
	*e = (struct explorer){.points = 16,
			       .states = 8,
			       .exhaust = 64,
			       .deep_every = 10,
			       .checker_every = 25,
			       .qemu_every = 500,
			       .extra = ""};
	return verifier_init(&e->verifier);
}

void explorer_free(struct explorer *e)
{
	verifier_free(&e->verifier);
}

/* ---- strategies ---- */

enum strategy {
	OLDEST,	  /* nothing persisted */
	NEWEST,	  /* everything did */
	ONLY_ONE, /* one operation */
	ALL_BUT_ONE,
	PREFIX, /* the first ones, in order of submission */
	SUFFIX,
	COIN,	  /* any operations, each whole */
	TORN,	  /* any sectors */
	ONE_TORN, /* all, and one operation in part */
	KINDS,	  /* those that write one kind of cluster, or all the others */
	LANDED,	  /* those that had landed, or those that had not */
	STRATEGIES_ONE_FILE,
	ONE_FILE = STRATEGIES_ONE_FILE, /* all of one file, none of the others */
	STRATEGIES,
};

static enum judge_kind op_kind(const struct judge *j, const struct sim_op *op)
{
	uint64_t cluster = op->sector * SECTOR_BYTES >> j->cluster_bits;

	if (op->file) /* a data file's */
		return JUDGE_DATA;
	return cluster < j->kinds.n ? j->kinds.at[cluster] : JUDGE_FREE;
}

static void strategy_apply(struct crash *c, const struct judge *kinds, enum strategy strategy,
			   struct rng *r)
{
	size_t n = c->ops.n, one = n ? rng_below(r, n) : 0;
	enum judge_kind kind = n ? op_kind(kinds, c->ops.at[one]->op) : JUDGE_FREE;
	bool flip = rng_chance(r, 50);

	for (size_t i = 0; i < n; i++) {
		struct crash_op *cop = c->ops.at[i];
		bool landed = cop->op->land < c->time;
		unsigned in = 0;

		switch (strategy) {
		case OLDEST:
			break;
		case NEWEST:
			in = 100;
			break;
		case ONLY_ONE:
			in = i == one ? 100 : 0;
			break;
		case ALL_BUT_ONE:
			in = i == one ? 0 : 100;
			break;
		case PREFIX:
			in = i < one ? 100 : 0;
			break;
		case SUFFIX:
			in = i < one ? 0 : 100;
			break;
		case COIN:
			in = rng_chance(r, 50) ? 100 : 0;
			break;
		case TORN:
			in = 50;
			break;
		case ONE_TORN:
			in = i == one ? 50 : 100;
			break;
		case KINDS:
			in = (op_kind(kinds, cop->op) == kind) == flip ? 100 : 0;
			break;
		case LANDED:
			in = landed == flip ? 100 : 0;
			break;
		case ONE_FILE:
			in = !cop->op->file == flip ? 100 : 0;
			break;
		case STRATEGIES:
			break;
		}
		cop->percent = in;
	}
}

static void state_random(struct crash *c, const struct judge *kinds, uint64_t seed, uint64_t number)
{
	struct rng r = rng_make(seed, c->time, number);
	uint64_t strategies = c->files[0].view.data ? STRATEGIES : STRATEGIES_ONE_FILE;
	enum strategy strategy = number < 2 ? number : rng_below(&r, strategies);

	strategy_apply(c, kinds, strategy, &r);
	crash_state_random(c, &r);
}

/* ---- which states were met before, with the same promises ---- */

struct seen {
	uint64_t *table;
	size_t mask, used;
};

static void seen_init(struct seen *s)
{
	s->mask = (1 << 13) - 1;
	s->used = 0;
	s->table = sim_calloc(s->mask + 1, sizeof(*s->table));
}

static bool seen_add(struct seen *s, uint64_t key)
{
	size_t at = key & s->mask;

	key |= 1; /* 0 is empty */
	while (s->table[at] && s->table[at] != key)
		at = (at + 1) & s->mask;
	if (s->table[at] == key)
		return false;
	s->table[at] = key;
	if (++s->used * 2 > s->mask) {
		struct seen bigger = {.mask = s->mask * 2 + 1};

		bigger.table = sim_calloc(bigger.mask + 1, sizeof(*bigger.table));
		for (size_t i = 0; i <= s->mask; i++) {
			if (s->table[i])
				seen_add(&bigger, s->table[i]);
		}
		sim_free(s->table);
		*s = bigger;
	}
	return true;
}

/* What tells states apart: the durable part, what was laid over it, the length, what was promised.
 */
static uint64_t state_key(const struct crash *c, uint64_t promises)
{
	uint64_t key = rng_mix(c->dropped ^ promises << 32);

	for (size_t k = 0; k < c->disk->files.n; k++) {
		const struct crash_file *f = &c->files[k];

		key = rng_mix(key ^ f->base.size_bytes);
		for (size_t i = 0; i < f->sectors.n; i++) {
			uint64_t s = f->sectors.at[i];

			/* a sum: the order of the list says nothing */
			key += rng_mix(rng_mix(s + 1) ^ (uintptr_t)sim_map_get(&f->base, s));
		}
	}
	return key;
}

/* ---- one moment ---- */

struct walk {
	struct explorer *e;
	struct run *r;
	struct crash *c;
	struct judge kinds; /* of the clusters at the end of the run */
	struct seen seen;
	uint64_t promises; /* FLUSH and FUA acknowledged */
};

static void report(struct walk *w, const char *word)
{
	struct explorer *e = w->e;

	printf("FAILED: %s\n", e->text);
	run_config_print(&w->r->cfg);
	judge_run(&e->verifier.judge, &w->c->files[0].base);
	printf("  crash at %" PRIu64 " of %zu events; not durable then:\n", w->c->time,
	       w->r->disk->events.n);
	for (size_t i = 0; i < w->c->ops.n && i < 40; i++) {
		const struct sim_op *op = w->c->ops.at[i]->op;

		printf("    %s: %s of sectors %" PRIu64 "+%" PRIu64 " (%#" PRIx64 ", %s)%s%s\n",
		       w->r->disk->files.at[op->file]->storage.name, sim_op_name(op), op->sector, op->sectors, op->sector * SECTOR_BYTES,
		       judge_kind_names[op_kind(&w->kinds, op)],
		       op->land < w->c->time ? ", landed" : "",
		       op->done < w->c->time ? ", completed" : "");
	}
	printf("  replay: %s/tests/sim/sim replay %s %" PRIu64 " %" PRIu64 " %s%s\n",
	       getenv("BUILD") ? getenv("BUILD") : "build", run_profile_names[w->r->cfg.profile],
	       w->r->cfg.seed, w->c->time, word, e->extra);
	fflush(stdout);
}

static bool look(struct walk *w, const char *word, unsigned how)
{
	struct explorer *e = w->e;
	bool ok;

	e->explored++;
	if (e->deep_every && e->explored % e->deep_every == 0)
		how |= VERIFY_DEEP;
	if (e->checker_every && e->explored % e->checker_every == 0)
		how |= VERIFY_CHECKER;
	if (e->qemu_every && e->explored % e->qemu_every == 0)
		how |= VERIFY_QEMU;
	ok = verify_state(&e->verifier, w->r, &w->c->files[0].view, how,
			  w->r->cfg.seed ^ w->c->time, e->text, sizeof(e->text));
	if (!ok)
		report(w, word);
	return ok;
}

static bool look_unless_seen(struct walk *w, const char *word)
{
	bool ok = true;

	if (seen_add(&w->seen, state_key(w->c, w->promises)))
		ok = look(w, word, 0);
	else
		w->e->repeated++;
	crash_state_drop(w->c);
	return ok;
}

static bool moment(struct walk *w, uint64_t time)
{
	struct explorer *e = w->e;
	uint64_t count;
	char word[32];

	crash_advance(w->c, time);
	guest_crash_at(&w->r->guest, time);
	count = crash_state_count(w->c);
	e->moments++;
	e->largest = max_of(e->largest, count);
	if (count <= e->exhaust) {
		e->exhausted++;
		for (uint64_t i = 0; i < count; i++) {
			crash_state_pick(w->c, i);
			snprintf(word, sizeof(word), "p%" PRIu64, i);
			if (!look_unless_seen(w, word))
				return false;
		}
		return true;
	}
	for (uint64_t i = 0; i < e->states; i++) {
		state_random(w->c, &w->kinds, w->r->cfg.seed, i);
		snprintf(word, sizeof(word), "r%" PRIu64, i);
		if (!look_unless_seen(w, word))
			return false;
	}
	return true;
}

/* ---- which moments ---- */

/* FLUSH and FUA acknowledged before @time. */
static uint64_t promises_before(const struct guest *g, uint64_t time)
{
	uint64_t n = 0;

	for (size_t i = 1; i < g->ops.n; i++) {
		const struct guest_op *op = &g->ops.at[i];

		n += !op->failed && op->done < time && (op->op == BLK_FLUSH || op->fua);
	}
	return n;
}

/* Just before a sync (or a durable write) completes, just after a promise, and the end. */
static void strong_moments(const struct run *r, uint8_t *wanted)
{
	const struct simdisk *d = r->disk;

	for (size_t t = r->opened; t < d->events.n; t++) {
		const struct sim_event *ev = &d->events.at[t];

		if (ev->kind == SIM_DONE &&
		    (ev->op->op == STORAGE_SYNC || ev->op->flags & STORAGE_DSYNC))
			wanted[t] = 1;
	}
	for (size_t i = 1; i < r->guest.ops.n; i++) {
		const struct guest_op *op = &r->guest.ops.at[i];

		if (op->done < d->events.n && !op->failed && (op->op == BLK_FLUSH || op->fua))
			wanted[op->done + 1] = 1;
	}
	wanted[d->events.n] = 1;
}

/* Keeps about @points of those wanted, and adds as many that are anywhere. */
static void thin_out(const struct run *r, uint8_t *wanted, unsigned points)
{
	uint64_t end = r->disk->events.n, count = 0;
	struct rng rng = rng_make(r->cfg.seed, 0x90157, 0);

	for (uint64_t t = 0; t < end; t++)
		count += wanted[t];
	for (uint64_t t = 0; t < end; t++) {
		if (wanted[t] && rng_below(&rng, count) >= points)
			wanted[t] = 0;
	}
	for (unsigned i = 0; i < points / 2 && end > r->opened; i++)
		wanted[rng_range(&rng, r->opened, end)] = 1;
}

static void walk_init(struct walk *w, struct explorer *e, struct run *r)
{
	*w = (struct walk){.e = e, .r = r};
	w->c = crash_create(r->disk);
	if (r->named.data)
		w->c->files[0].view.data = &w->c->files[r->named.data->number].view;
	judge_run(&w->kinds, &r->file->live);
	seen_init(&w->seen);
}

static void walk_free(struct walk *w)
{
	judge_free(&w->kinds);
	sim_free(w->seen.table);
	if (!w->e->verifier.broken)
		crash_destroy(w->c);
}

bool explore_run(struct explorer *e, struct run *r)
{
	uint64_t end = r->disk->events.n;
	uint8_t *wanted = sim_calloc(end + 1, 1);
	bool ok = true;
	struct walk w;

	walk_init(&w, e, r);
	strong_moments(r, wanted);
	if (r->cfg.profile != RUN_TINY)
		thin_out(r, wanted, e->points);
	for (uint64_t t = 0; t <= end && ok; t++) {
		if (!wanted[t])
			continue;
		w.promises = promises_before(&r->guest, t);
		ok = moment(&w, t);
	}
	e->runs++;
	e->apart += r->cfg.data != RUN_DATA_NONE;
	e->encrypted += r->cfg.create.luks;
	sim_free(wanted);
	walk_free(&w);
	return ok;
}

bool explore_replay(struct explorer *e, struct run *r, uint64_t time, const char *word)
{
	uint64_t number = strtoull(word + 1, NULL, 10);
	struct walk w;
	bool ok;

	walk_init(&w, e, r);
	crash_advance(w.c, time);
	guest_crash_at(&r->guest, time);
	if (word[0] == 'p')
		crash_state_pick(w.c, number);
	else
		state_random(w.c, &w.kinds, r->cfg.seed, number);
	ok = look(&w, word, VERIFY_DEEP | VERIFY_CHECKER | VERIFY_QEMU);
	if (!e->verifier.broken)
		crash_state_drop(w.c);
	walk_free(&w);
	return ok;
}
