/* SPDX-License-Identifier: MIT */
/*
 * snaps.c: see snaps.h.
 */
#include "snaps.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/math.h"
#include "qcow2/image.h"
#include "ring/co.h"
#include "run.h"
#include "verify.h"

/* One for all runs of this process: a look at a disk that is just being used. */
static struct verifier looker;
static bool looker_there;

void snaps_free(struct snaps *s)
{
	for (unsigned i = 0; i < s->n; i++)
		sim_free(s->at[i].values);
	s->n = 0;
}

/* ---- what there is ---- */

struct listing {
	const struct snaps *snaps;
	uint32_t found; /* a bit for each */
	unsigned others;
};

static void listing_add(void *arg, const struct qcow2_snapshot *s)
{
	struct listing *l = arg;

	for (unsigned i = 0; i < l->snaps->n; i++) {
		if (!strcmp(l->snaps->at[i].name, s->name)) {
			l->found |= 1u << i;
			return;
		}
	}
	l->others++;
}

static bool listing_read(const struct run *r, struct simview *view, struct listing *l, char *text,
			 size_t len)
{
	struct error err = {0};
	int ret;

	*l = (struct listing){.snaps = &r->snaps};
	simview_open(view, view->map, true);
	view->storage.block_bytes = r->cfg.block_bytes;
	ret = qcow2_snapshot_list(&view->storage, listing_add, l, &err);
	if (ret)
		snprintf(text, len, "the snapshots: %s", error_text(&err, ret));
	else if (l->others)
		snprintf(text, len, "%u snapshot(s) that nobody made", l->others);
	return !ret && !l->others;
}

static bool values_read(struct verifier *v, struct run *r, struct simview *view, const struct snap *s,
			uint32_t *values, char *text, size_t len)
{
	bool ok;

	v->snapshot = s->name;
	ok = verify_values(v, r, view, values, text, len);
	v->snapshot = NULL;
	return ok;
}

/* ---- an operation ---- */

struct running {
	struct co_task task;
	struct run *r;
};

/*
 * Whether there is a moment at which each sector may have held what the snapshot has of it: after the
 * submission of what it holds, and before the completion of whatever certainly came later.
 */
static bool one_moment(struct run *r, const struct snap *s)
{
	const struct guest *g = &r->guest;
	uint64_t from = 0, to = SIM_NEVER, from_sector = 0, to_sector = 0;

	for (uint64_t i = 0; i < g->sectors; i++) {
		const struct guest_sector *sector = &g->sector[i];
		const struct guest_op *held;
		bool writes_only = true;

		if (!s->values[i] || s->values[i] >= g->ops.n)
			continue;
		held = &g->ops.at[s->values[i]];
		/* going back to a snapshot brings old values again */
		for (size_t k = 0; k < sector->refs.n; k++)
			writes_only &= !g->ops.at[sector->refs.at[k].op].values;
		if (!writes_only)
			continue;
		if (held->submit > from) {
			from = held->submit;
			from_sector = i;
		}
		for (size_t k = 0; k < sector->refs.n; k++) {
			const struct guest_op *op = &g->ops.at[sector->refs.at[k].op];

			if (op->failed || op->op == BLK_DISCARD || op->op == BLK_READ ||
			    op->submit <= held->done || op->done >= to)
				continue;
			to = op->done;
			to_sector = i;
		}
	}
	if (from <= to)
		return true;
	run_fail(r,
		 "snapshot %s is of no moment: it has what was written to sector %" PRIu64 " after %" PRIu64
		 ", and not what was written to sector %" PRIu64 " before %" PRIu64,
		 s->name, from_sector, from, to_sector, to);
	return false;
}

/* What was made is read, and was the disk's at some time from the begin of the operation on. */
static void made(struct run *r, struct snap *s)
{
	struct simview view = {.map = &r->file->live};
	uint64_t n = r->guest.sectors;
	uint32_t number;
	uint8_t *mem;

	if (!looker_there && verifier_init(&looker)) {
		run_fail(r, "no loop to look with");
		return;
	}
	looker_there = true;
	s->values = sim_calloc(n, sizeof(*s->values));
	if (!values_read(&looker, r, &view, s, s->values, r->text, sizeof(r->text))) {
		r->failed = true;
		return;
	}
	simview_free(&view);
	number = guest_submit(&r->guest, BLK_READ, 0, 0, n, r->snaps.submit);
	guest_done(&r->guest, number, 0, r->snaps.done);
	mem = sim_calloc(n, SECTOR_BYTES);
	for (uint64_t i = 0; i < n; i++) {
		if (s->values[i] == GUEST_GARBAGE)
			memset(mem + i * SECTOR_BYTES, 0xee, SECTOR_BYTES);
		else if (s->values[i])
			guest_stamp(mem + i * SECTOR_BYTES, i, s->values[i]);
	}
	if (!guest_check_read(&r->guest, number, mem, r->text, sizeof(r->text)))
		r->failed = true;
	else
		(void)one_moment(r, s);
	sim_free(mem);
}

/*
 * An apply goes on for a while after its switch, and so do requests. What they find and change is that of the
 * snapshot: to the guest it is over with the switch.
 */
static void switch_settle(struct run *r)
{
	struct snaps *s = &r->snaps;

	if (!s->busy || s->op != SNAP_APPLY || s->switched || !r->img || r->kills != s->kills ||
	    r->img->hdr.l1_offset == s->l1_before || r->img->hold != HOLD_NONE)
		return;
	s->switched = true;
	guest_done(&r->guest, s->number, 0, simdisk_mark(r->disk));
}

/*
 * An operation that met an error of the disk's has had no effect; but while it lasted a crash may have found
 * that it had, and after a failed sync from then on.
 */
static void failed(struct run *r, struct snap *snap)
{
	struct snaps *s = &r->snaps;

	if (s->op == SNAP_APPLY) {
		if (s->switched)
			run_fail(r, "going back to %s failed after its switch", snap->name);
		else
			guest_done(&r->guest, s->number, s->ret, s->done);
		return;
	}
	snap->doubt_from = s->submit;
	snap->doubt_to = run_sync_failed(r) ? SIM_NEVER : s->done;
	if (s->op == SNAP_CREATE)
		snap->gone_submit = snap->gone_done = s->submit;
	else
		snap->gone_submit = SIM_NEVER;
}

void snaps_settle(struct run *r)
{
	struct snaps *s = &r->snaps;
	struct snap *snap = &s->at[s->which];
	uint64_t now = s->done;
	int ret = s->ret;
	/* more references than such refcounts can say; compressed clusters share theirs */
	bool full = ret == -EFBIG && r->cfg.create.refcount_bits <= (r->cfg.open.compress ? 8 : 2);

	switch_settle(r);
	if (!s->busy || now == SIM_NEVER)
		return;
	s->busy = false;
	if (r->disk->failed && ret) {
		failed(r, snap);
		return;
	}
	if (ret && !full) {
		run_fail(r, "snapshot operation %d of %s: %s", s->op, snap->name,
			 error_text(&s->err, ret));
		return;
	}
	if (s->op == SNAP_APPLY) {
		if (!s->switched)
			guest_done(&r->guest, s->number, ret, now);
		else if (ret)
			run_fail(r, "going back to %s failed after its switch", snap->name);
		return;
	}
	if (!r->disk->failed) /* else what follows the switch may have been left undone */
		s->flags_to[s->nflags - 1] = now;
	if (s->op == SNAP_CREATE && ret) {
		snap->gone_done = snap->made_submit; /* it never was */
	} else if (s->op == SNAP_CREATE) {
		made(r, snap);
		snap->made_done = now;
	} else {
		snap->gone_done = now;
	}
}

static void run_operation(struct co_task *task)
{
	struct run *r = container_of(task, struct running, task)->r;
	struct snaps *s = &r->snaps;
	const char *name = s->at[s->which].name;

	switch (s->op) {
	case SNAP_CREATE:
		s->ret = qcow2_snapshot_create(r->img, name, NULL, &s->err);
		break;
	case SNAP_APPLY:
		s->ret = qcow2_snapshot_apply(r->img, name, NULL, &s->err);
		break;
	default:
		s->ret = qcow2_snapshot_delete(r->img, name, NULL, &s->err);
		break;
	}
	s->done = simdisk_mark(r->disk);
}

/* One that is there for sure. */
static bool pick_existing(struct run *r, unsigned *which)
{
	const struct snaps *s = &r->snaps;

	for (unsigned tries = 0; s->n && tries < 20; tries++) {
		const struct snap *snap;

		*which = rng_below(&r->rng, s->n);
		snap = &s->at[*which];
		if (snap->made_done != SIM_NEVER && snap->gone_done == SIM_NEVER)
			return true;
	}
	return false;
}

bool snaps_begin(struct run *r)
{
	struct snaps *s = &r->snaps;
	struct running *run = arena_alloc(&r->disk->arena, sizeof(*run));

	assert(!s->busy);
	s->op = (enum snap_op)rng_below(&r->rng, 3);
	if (s->op == SNAP_APPLY && r->cfg.resize_bytes) /* one of another size, while attached, is refused */
		s->op = SNAP_DELETE;
	if (s->op != SNAP_CREATE && !pick_existing(r, &s->which))
		s->op = SNAP_CREATE;
	if (s->op == SNAP_CREATE && s->n == SNAPS_MAX)
		return false;
	s->busy = true;
	s->done = SIM_NEVER;
	s->err = (struct error){0};
	s->submit = simdisk_mark(r->disk);
	if (s->op == SNAP_CREATE) {
		s->which = s->n++;
		s->at[s->which] = (struct snap){.made_submit = s->submit,
						.made_done = SIM_NEVER,
						.gone_submit = SIM_NEVER,
						.gone_done = SIM_NEVER,
						.doubt_from = SIM_NEVER,
						.doubt_to = SIM_NEVER};
		snprintf(s->at[s->which].name, sizeof(s->at[0].name), "s%u", s->which);
	} else if (s->op == SNAP_DELETE) {
		s->at[s->which].gone_submit = s->submit;
	} else {
		s->number = guest_apply(&r->guest, s->at[s->which].values, s->submit);
		s->switched = false;
		s->l1_before = r->img->hdr.l1_offset;
		s->kills = r->kills;
	}
	if (s->op != SNAP_APPLY) {
		s->flags_from[s->nflags] = s->submit;
		s->flags_to[s->nflags++] = SIM_NEVER;
	}
	*run = (struct running){.task.fn = run_operation, .r = r};
	list_init(&run->task.list);
	loop_spawn(r->loops[0], &run->task);
	return true;
}

bool snaps_spot(struct run *r, enum blk_op *op, uint64_t *sector, uint64_t *sectors)
{
	unsigned percent = r->cfg.profile == RUN_SNAPS || !(r->cfg.seed % 2) ? 75 : 20;
	uint64_t unit = run_unit(r), cluster = max_of(r->cfg.create.cluster_bytes / SECTOR_BYTES, unit);
	uint64_t first = align_down(r->cfg.seed * 7919 % r->guest.now, cluster);

	if (!r->cfg.snapshots || !rng_chance(&r->rng, percent))
		return false;
	*op = r->cfg.profile == RUN_SNAPS && rng_chance(&r->rng, 30) ? BLK_READ : BLK_WRITE;
	*sector = align_down(first + rng_below(&r->rng, 2 * cluster), unit);
	*sectors = unit;
	if (*sector + *sectors > r->guest.now)
		*sector = 0;
	return true;
}

bool snaps_idle(struct run *r)
{
	return !r->snaps.busy;
}

/* ---- kills ---- */

void snaps_recovered(struct run *r)
{
	struct simview view = {.map = &r->file->live};
	struct snaps *s = &r->snaps;
	struct snap *snap = &s->at[s->which];
	uint64_t now = simdisk_mark(r->disk);
	struct listing l;
	bool there;

	snaps_settle(r); /* it may just have been over */
	if (!s->busy)
		return;
	s->busy = false;
	s->done = now;
	if (s->op == SNAP_APPLY) {
		if (!s->switched)
			guest_done(&r->guest, s->number, -EIO, now);
		return;
	}
	if (!listing_read(r, &view, &l, r->text, sizeof(r->text))) {
		r->failed = true;
		return;
	}
	there = l.found & 1u << s->which;
	snap->doubt_from = s->submit;
	/* what is read back is durable by the sync that opening begins with, unless none succeeds again */
	snap->doubt_to = run_sync_failed(r) ? SIM_NEVER : now;
	/* flags that it cleared stay so: nobody remembers */
	if (s->op == SNAP_DELETE && there) {
		snap->gone_submit = SIM_NEVER;
	} else if (s->op == SNAP_DELETE) {
		snap->gone_done = now;
	} else if (there) {
		made(r, snap);
		snap->made_done = now;
	} else {
		snap->gone_submit = snap->gone_done = now;
	}
}

/* ---- states ---- */

bool snaps_inherit(struct snaps *s, struct run *first, struct simview *view, char *text, size_t len)
{
	struct listing l;

	*s = (struct snaps){0};
	if (!first->snaps.n)
		return true;
	if (!listing_read(first, view, &l, text, len))
		return false;
	for (unsigned i = 0; i < first->snaps.n; i++) {
		const struct snap *from = &first->snaps.at[i];
		struct snap *to = &s->at[s->n];
		size_t bytes = first->guest.sectors * sizeof(*to->values);

		if (!(l.found & 1u << i))
			continue;
		s->n++;
		*to = (struct snap){.given = true,
				    .gone_submit = SIM_NEVER,
				    .gone_done = SIM_NEVER,
				    .doubt_from = SIM_NEVER,
				    .doubt_to = SIM_NEVER};
		memcpy(to->name, from->name, sizeof(to->name));
		if (!from->values)
			continue;
		to->values = sim_malloc(bytes);
		memcpy(to->values, from->values, bytes);
	}
	return true;
}

bool snaps_flags_allowed(const struct run *r, uint64_t time)
{
	const struct snaps *s = &r->snaps;

	if (s->flags_given)
		return true;
	for (unsigned i = 0; i < s->nflags; i++)
		if (s->flags_from[i] < time && time <= s->flags_to[i])
			return true;
	return false;
}

static bool check_one(struct verifier *v, struct run *r, struct simview *view, uint64_t time,
		      const struct snap *s, bool there, char *text, size_t len)
{
	bool doubt = s->doubt_from < time && time <= s->doubt_to;
	bool may = (s->given || s->made_submit < time) && time <= s->gone_done;
	bool must = (s->given || s->made_done < time) && time <= s->gone_submit;
	uint32_t *values;
	bool ok;

	if (!doubt && there && !may) {
		snprintf(text, len, "there is a snapshot %s", s->name);
		return false;
	}
	if (!doubt && !there && must) {
		snprintf(text, len, "snapshot %s is gone", s->name);
		return false;
	}
	if (!there || !s->values)
		return true;
	values = sim_calloc(r->guest.sectors, sizeof(*values));
	ok = values_read(v, r, view, s, values, text, len);
	for (uint64_t i = 0; ok && i < r->guest.sectors; i++) {
		if (values[i] == s->values[i])
			continue;
		snprintf(text, len,
			 "snapshot %s: sector %" PRIu64 " holds op %d, not op %d as when it was made",
			 s->name, i, (int)values[i], (int)s->values[i]);
		v->broken = true;
		ok = false;
	}
	sim_free(values);
	return ok;
}

bool snaps_check(struct verifier *v, struct run *r, struct simview *view, uint64_t time, char *text,
		 size_t len)
{
	struct listing l;

	if (!r->snaps.n)
		return true;
	if (!listing_read(r, view, &l, text, len))
		return false;
	for (unsigned i = 0; i < r->snaps.n; i++) {
		if (!check_one(v, r, view, time, &r->snaps.at[i], l.found & 1u << i, text, len))
			return false;
	}
	return true;
}
