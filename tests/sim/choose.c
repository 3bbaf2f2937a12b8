/* SPDX-License-Identifier: MIT */
/*
 * choose.c: what the guest asks for next: which operation, and where.
 */
#include "base/math.h"
#include "run.h"

static enum blk_op choose_op(struct run *r)
{
	const struct run_config *c = &r->cfg;
	const unsigned weights[] = {c->weight_write, c->weight_read, c->weight_flush,
				    c->weight_discard, c->weight_zero};
	static const enum blk_op ops[] = {BLK_WRITE, BLK_READ, BLK_FLUSH, BLK_DISCARD,
					  BLK_WRITE_ZEROES};
	uint64_t sum = 0, at;

	for (unsigned i = 0; i < ARRAY_LEN(weights); i++)
		sum += weights[i];
	at = rng_below(&r->rng, sum);
	for (unsigned i = 0;; i++) {
		if (at < weights[i])
			return ops[i];
		at -= weights[i];
	}
}

/* Where requests are to overlap, small writes are beside each other under zeros and reads of all. */
static unsigned whole_percent(const struct run *r, enum blk_op op)
{
	if (r->cfg.profile != RUN_OVERLAP)
		return 40;
	return op == BLK_WRITE ? 3 : 80;
}

/* Where and how long: a hot corner, a stream, whole clusters, or anywhere. */
static void choose_range(struct run *r, enum blk_op op, uint64_t *sector, uint64_t *sectors)
{
	uint64_t size = r->guest.now;
	uint64_t cluster = r->cfg.create.cluster_bytes / SECTOR_BYTES;
	uint64_t at;

	*sectors = rng_range(&r->rng, 1, r->cfg.max_sectors);
	if (rng_chance(&r->rng, r->cfg.hot_percent))
		at = rng_below(&r->rng, max_of(size / 16, (uint64_t)1));
	else if (rng_chance(&r->rng, 30))
		at = r->stream_sector;
	else
		at = rng_below(&r->rng, size);
	if (rng_chance(&r->rng, whole_percent(r, op))) {
		at -= at % cluster;
		*sectors = align_up(*sectors, cluster);
	}
	if (at >= size)
		at = 0;
	at = align_down(at, run_unit(r));
	*sector = at;
	*sectors = min_of(align_up(*sectors, run_unit(r)), size - at);
	r->stream_sector = at + *sectors;
}

enum blk_op run_choose(struct run *r, unsigned *flags, uint64_t *sector, uint64_t *sectors)
{
	enum blk_op op;

	*flags = 0;
	*sector = *sectors = 0;
	if (!snaps_spot(r, &op, sector, sectors)) {
		op = choose_op(r);
		if (op != BLK_FLUSH)
			choose_range(r, op, sector, sectors);
	}
	/* without a payload it may be of any length */
	if ((op == BLK_DISCARD || op == BLK_WRITE_ZEROES) && rng_chance(&r->rng, 10))
		*sectors = align_up(rng_range(&r->rng, 1, r->guest.now - *sector), run_unit(r));
	if ((op == BLK_WRITE || op == BLK_WRITE_ZEROES) && rng_chance(&r->rng, r->cfg.fua_percent))
		*flags |= BLK_FUA;
	if (op == BLK_WRITE_ZEROES && rng_chance(&r->rng, r->cfg.nounmap_percent))
		*flags |= BLK_NOUNMAP;
	return op;
}
