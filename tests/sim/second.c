/* SPDX-License-Identifier: MIT */
/*
 * second.c: see second.h.
 */
#include "second.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/math.h"
#include "qcow2/format.h"

#define SECOND_SALT 0x5ec0

/* A copy of the sector in the map that may be changed. */
static uint8_t *sector_copy(struct run_origin *o, uint64_t sector)
{
	uint8_t *mem = arena_alloc(&o->arena, SECTOR_BYTES);

	memcpy(mem, sim_map_get(&o->map, sector), SECTOR_BYTES);
	sim_map_set(&o->map, sector, mem);
	return mem;
}

static uint64_t be64_in(const struct sim_map *m, uint64_t offset)
{
	be64_t v;

	memcpy(&v, sim_map_get(m, offset / SECTOR_BYTES) + offset % SECTOR_BYTES, sizeof(v));
	return be64_get(v);
}

/* Sets the dirty bit, and makes the refcounts of some clusters wrong. */
static void make_dirty(struct run_origin *o, struct rng *rng)
{
	struct judge j = {0};
	uint64_t rt_offset = be64_in(&o->map, 48);

	judge_run(&j, &o->map);
	sector_copy(o, 0)[79] |= 1;
	for (unsigned i = 0; i < 12; i++) {
		unsigned bits = 1u << j.refcount_order;
		uint64_t per_sector = SECTOR_BYTES * 8 / bits;
		uint64_t cluster = rng_below(rng, j.clusters);
		unsigned rb_bits = qcow2_rb_bits(j.cluster_bits, j.refcount_order);
		uint64_t block = be64_in(&o->map, rt_offset + (cluster >> rb_bits) * 8);
		uint64_t index = qcow2_hcluster_to_rb_index(cluster, rb_bits);

		if (!block)
			continue;
		qcow2_refcount_set(sector_copy(o, block / SECTOR_BYTES + index / per_sector),
				   index % per_sector, j.refcount_order, rng_below(rng, 2));
	}
	judge_free(&j);
}

static void map_take(struct sim_map *to, const struct sim_map *from)
{
	sim_map_copy(to, from);
	/* nothing beyond the end comes back when the file grows */
	for (uint64_t s = to->size_bytes / SECTOR_BYTES; s < to->n; s++)
		to->at[s] = sim_zero_sector;
}

/* Some crash state of @first: the map, and what the guest sees in it. */
static bool origin_make(struct run_origin *o, struct verifier *v, struct run *first,
			struct rng *rng, char *text, size_t len)
{
	struct crash *c = crash_create(first->disk);
	unsigned percent = rng_below(rng, 101);
	bool ok;

	*o = (struct run_origin){.next_number = first->guest.ops.n};
	o->values = sim_calloc(first->guest.sectors, sizeof(*o->values));
	crash_advance(c, rng_range(rng, first->opened, first->disk->events.n));
	for (size_t i = 0; i < c->ops.n; i++)
		c->ops.at[i]->percent = rng_chance(rng, percent) ? 100 : 0;
	crash_state_random(c, rng);
	map_take(&o->map, &c->files[0].base);
	if (first->named.data) {
		c->files[0].view.data = &c->files[1].view;
		map_take(&o->data, &c->files[1].base);
	}
	ok = verify_values(v, first, &c->files[0].view, o->values, text, len) &&
	     snaps_inherit(&o->snaps, first, &c->files[0].view, text, len);
	judge_run(&v->judge, &o->map);
	/* counts that the search for leaks lowers to 1 come before the flags */
	o->snaps.flags_given = v->judge.flags || first->snaps.n;
	crash_state_drop(c);
	crash_destroy(c);
	return ok;
}

bool second_whole(struct run *r, struct run_origin *origin, struct verifier *v, struct run *first,
		  const char *extra)
{
	struct rng rng = rng_make(first->cfg.seed, first->cfg.profile, SECOND_SALT);
	struct run_config cfg;
	char text[400];

	*r = (struct run){.failed = true};
	if (!origin_make(origin, v, first, &rng, text, sizeof(text))) {
		printf("FAILED: reading what a crash had left: %s\n", text);
		return false;
	}
	run_config_make(&cfg, first->cfg.profile, first->cfg.seed + SECOND_SALT);
	cfg.create = first->cfg.create;
	cfg.device = first->cfg.device;
	cfg.block_bytes = first->cfg.block_bytes;
	cfg.below_seed = first->cfg.below_seed;
	cfg.data = first->cfg.data;
	cfg.data_device = first->cfg.data_device;
	cfg.open.compress = cfg.open.compress && !cfg.data && !cfg.create.luks;
	cfg.open.passphrase = first->cfg.open.passphrase;
	cfg.max_sectors = min_of((uint64_t)cfg.max_sectors, first->guest.sectors);
	cfg.seed = first->cfg.seed;
	if (cfg.create.version == 3 && !first->snaps.n && rng_chance(&rng, 40))
		make_dirty(origin, &rng);
	return run_whole(r, &cfg, origin, extra);
}

void second_free(struct run_origin *origin)
{
	sim_map_free(&origin->map);
	sim_map_free(&origin->data);
	sim_free(origin->values);
	arena_free(&origin->arena);
}

bool second_explore(struct explorer *e, struct run *first)
{
	const char *extra = e->extra;
	struct run_origin origin;
	char text[128];
	struct run r;
	bool ok;

	snprintf(text, sizeof(text), " --second 1%s", extra);
	e->extra = text;
	ok = second_whole(&r, &origin, &e->verifier, first, text);
	r.opened = 0; /* the power may be cut while it opens */
	ok = ok && explore_run(e, &r);
	e->extra = extra;
	run_free(&r);
	second_free(&origin);
	return ok;
}
