/* SPDX-License-Identifier: MIT */
/* bits.c: see bits.h. */
#include "bits.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/math.h"
#include "run.h"

#define IN_USE 1u
#define AUTO 2u

/* ---- reading ---- */

static uint64_t be(const struct sim_map *m, uint64_t offset, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++) {
		uint64_t at = offset + i;

		v = v << 8 | (at < m->size_bytes ? sim_map_get(m, at / SECTOR_BYTES)[at % SECTOR_BYTES] : 0);
	}
	return v;
}

void bits_read(struct bits *b, const struct sim_map *map)
{
	uint64_t at = be(map, 100, 4), count = 0;

	*b = (struct bits){.map = map, .cluster_bits = be(map, 20, 4), .size_bytes = be(map, 24, 8)};
	if (be(map, 4, 4) < 3 || !(be(map, 88, 8) & 1))
		return;
	for (uint32_t type; at < SECTOR_BYTES && (type = be(map, at, 4)); at += 8 + align_up(be(map, at + 4, 4), 8)) {
		if (type != 0x23852875u)
			continue;
		count = be(map, at + 8, 4);
		b->directory_bytes = be(map, at + 16, 8);
		b->directory = be(map, at + 24, 8);
	}
	at = b->directory;
	for (; b->n < count && b->n < BITS_MAX; b->n++) {
		uint64_t flags = be(map, at + 12, 4);

		b->at[b->n] = (struct bits_one){.in_use = flags & IN_USE,
						.enabled = flags & AUTO,
						.granularity_bits = be(map, at + 17, 1),
						.table = be(map, at, 8),
						.entries = be(map, at + 8, 4)};
		at += align_up(24 + be(map, at + 18, 2) + be(map, at + 20, 4), 8);
	}
}

bool bits_test(const struct bits *b, unsigned i, uint64_t granule)
{
	uint64_t per_cluster = (uint64_t)8 << b->cluster_bits, in = granule % per_cluster;
	uint64_t entry = be(b->map, b->at[i].table + granule / per_cluster * 8, 8);

	if (entry & 1)
		return true;
	return entry && be(b->map, entry + in / 8, 1) >> (in % 8) & 1;
}

static uint64_t granules(const struct bits *b, unsigned i)
{
	return div_up(b->size_bytes, (uint64_t)1 << b->at[i].granularity_bits);
}

void bits_remember(struct bits_before *before, const struct sim_map *map)
{
	bits_read(&before->bits, map);
	for (unsigned i = 0; i < before->bits.n; i++) {
		before->granules[i] = granules(&before->bits, i);
		before->set[i] = sim_calloc(before->granules[i] + 1, 1);
		for (uint64_t g = 0; g < before->granules[i]; g++)
			before->set[i][g] = bits_test(&before->bits, i, g);
	}
}

void bits_forget(struct bits_before *before)
{
	for (unsigned i = 0; i < BITS_MAX; i++)
		sim_free(before->set[i]);
	*before = (struct bits_before){0};
}

/* ---- states ---- */

bool bits_cover(const struct bits *b, const struct run *r, uint64_t sector, uint64_t count,
		const uint8_t *mem, char *text, size_t len)
{
	for (unsigned i = 0; i < b->n; i++) {
		const struct bits_one *one = &b->at[i];
		uint64_t covered = one->entries << (b->cluster_bits + 3);

		if (one->in_use)
			continue;
		if (div_up(div_up(granules(b, i), 8), (uint64_t)1 << b->cluster_bits) != one->entries) {
			snprintf(text, len, "bitmap %u is valid and has %" PRIu64 " entries, of %" PRIu64
					    " granules",
				 i, one->entries, covered);
			return false;
		}
		for (uint64_t s = 0; one->enabled && s < count; s++) {
			uint64_t granule = (sector + s) * SECTOR_BYTES >> one->granularity_bits;

			if (guest_decode(mem + s * SECTOR_BYTES, sector + s) == r->guest.sector[sector + s].base ||
			    bits_test(b, i, granule))
				continue;
			snprintf(text, len,
				 "bitmap %u is valid, and does not know that sector %" PRIu64 " has changed",
				 i, sector + s);
			return false;
		}
	}
	return true;
}

bool bits_kept(const struct bits *before, const struct bits *after, char *text, size_t len)
{
	bool ok = before->n == after->n;

	for (unsigned i = 0; ok && i < before->n; i++)
		ok = before->at[i].in_use == after->at[i].in_use &&
		     before->at[i].enabled == after->at[i].enabled &&
		     before->at[i].granularity_bits == after->at[i].granularity_bits;
	if (!ok)
		snprintf(text, len, "a bitmap is gone, or is not as valid as it was");
	return ok;
}

/* ---- closed in order ---- */

/*
 * For each granule: 2 it was about to change, 1 perhaps, 0 nobody asked for it. A request that failed, or was
 * not issued again after a kill, may not have begun; one of all sectors is a snapshot that was applied. What
 * was past the end that the disk has by now is not in it any more, and the rest of that granule has not changed.
 */
static void requested(const struct run *r, const struct bits *b, unsigned i, uint8_t *asked)
{
	unsigned granularity_bits = b->at[i].granularity_bits;
	uint64_t count = granules(b, i);

	for (size_t k = 1; k < r->guest.ops.n; k++) {
		const struct guest_op *op = &r->guest.ops.at[k];
		bool sure = op->done != SIM_NEVER && !op->failed;

		if (op->op == BLK_READ || op->op == BLK_FLUSH || !op->sectors ||
		    (op->op == BLK_DISCARD && r->cfg.open.discard_ignore))
			continue;
		for (uint64_t g = op->sector * SECTOR_BYTES >> granularity_bits;
		     g <= ((op->sector + op->sectors) * SECTOR_BYTES - 1) >> granularity_bits && g < count; g++)
			asked[g] = max_of(asked[g], (uint8_t)(1 + (sure && op->sector * SECTOR_BYTES < b->size_bytes)));
	}
}

static void check_one(struct run *r, const struct bits *b, unsigned i)
{
	const struct bits_before *before = &r->bits_before;
	uint64_t count = granules(b, i);
	uint8_t *asked = sim_calloc(count + 1, 1);

	if (b->at[i].enabled)
		requested(r, b, i, asked);
	for (uint64_t g = 0; g < count; g++) {
		bool was = g < before->granules[i] && before->set[i][g];
		bool is = bits_test(b, i, g);

		if (is ? !was && !asked[g] : was || asked[g] == 2)
			run_fail(r, "bitmap %u says that granule %" PRIu64 " of %u bytes is %s", i, g,
				 1u << b->at[i].granularity_bits, is ? "dirty" : "clean");
	}
	for (uint64_t g = count; g < b->at[i].entries << (b->cluster_bits + 3); g++)
		if (bits_test(b, i, g))
			run_fail(r, "bitmap %u has a bit past the end", i);
	sim_free(asked);
}

void bits_check_closed(struct run *r)
{
	const struct bits *before = &r->bits_before.bits;
	struct bits after;
	char text[128];

	bits_read(&after, &r->file->live);
	if (r->disk->failed) /* it may not have been possible to save them */
		return;
	if (!bits_kept(before, &after, text, sizeof(text)))
		run_fail(r, "%s", text);
	for (unsigned i = 0; i < after.n && !r->failed; i++)
		if (!after.at[i].in_use)
			check_one(r, &after, i);
}
