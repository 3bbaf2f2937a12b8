/* SPDX-License-Identifier: MIT */
/*
 * guest.c: see guest.h, which states the rules; the names here are its.
 */
#include "guest.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/math.h"

#define STAMP_MAGIC 0x7562716363776f32ull
#define WORDS	    (SECTOR_BYTES / 8)
#define BASE	    0 /* as the winner of a settled race: the value that the sector began with */

void guest_init(struct guest *g, uint64_t sectors)
{
	*g = (struct guest){.sectors = sectors,
			    .now = sectors,
			    .resize = {sectors, sectors, SIM_NEVER, SIM_NEVER}};
	g->sector = sim_calloc(sectors, sizeof(*g->sector));
	g->allowed.first = sim_calloc(sectors + 1, sizeof(*g->allowed.first));
	vec_push(&g->ops, ((struct guest_op){0}));
}

void guest_free(struct guest *g)
{
	for (uint64_t s = 0; s < g->sectors; s++)
		vec_free(&g->sector[s].refs);
	sim_free(g->sector);
	sim_free(g->allowed.first);
	vec_free(&g->allowed.values);
	vec_free(&g->ops);
}

/* ---- stamps: magic, sector, number, then words that depend on both ---- */

/* What three of four requests write repeats itself, so that it can be compressed. */
static uint64_t stamp_rest(uint64_t mixed, uint32_t number, unsigned i)
{
	return mixed + (number % 4 ? i % 8 : i) * 0x9e3779b97f4a7c15u;
}

static uint64_t stamp_word(uint64_t sector, uint32_t number, unsigned i)
{
	if (i == 0)
		return STAMP_MAGIC;
	if (i == 1)
		return sector;
	if (i == 2)
		return number;
	return stamp_rest(rng_mix(sector << 32 ^ number), number, i);
}

void guest_stamp(uint8_t *mem, uint64_t sector, uint32_t number)
{
	for (unsigned i = 0; i < WORDS; i++) {
		uint64_t word = stamp_word(sector, number, i);

		memcpy(mem + i * 8, &word, 8);
	}
}

uint32_t guest_decode(const uint8_t *mem, uint64_t sector)
{
	uint64_t word[WORDS], mixed, bad = 0;

	memcpy(word, mem, SECTOR_BYTES);
	if (!word[0])
		return memcmp(mem, sim_zero_sector, SECTOR_BYTES) ? GUEST_GARBAGE : 0;
	if (word[0] != STAMP_MAGIC || word[1] != sector || word[2] >= GUEST_GARBAGE || !word[2])
		return GUEST_GARBAGE;
	mixed = rng_mix(sector << 32 ^ word[2]);
	for (unsigned i = 3; i < WORDS; i++)
		bad |= word[i] ^ stamp_rest(mixed, (uint32_t)word[2], i);
	return bad ? GUEST_GARBAGE : word[2];
}

static void describe(const uint8_t *mem, uint64_t sector, char *text, size_t len)
{
	uint64_t word[3];
	uint32_t number = guest_decode(mem, sector);

	memcpy(word, mem, sizeof(word));
	if (number != GUEST_GARBAGE)
		snprintf(text, len, number ? "op %u" : "zeros", number);
	else if (word[0] == STAMP_MAGIC)
		snprintf(text, len, "sector %" PRIu64 " by op %" PRIu64 "%s", word[1], word[2],
			 guest_decode(mem, word[1]) == GUEST_GARBAGE ? ", torn" : "");
	else
		snprintf(text, len, "garbage %016" PRIx64 " %016" PRIx64, word[0], word[1]);
}

/* ---- recording ---- */

uint32_t guest_submit(struct guest *g, enum blk_op op, unsigned flags, uint64_t sector,
		      uint64_t sectors, uint64_t time)
{
	uint32_t number = g->ops.n;

	vec_push(&g->ops, ((struct guest_op){.op = op,
					     .fua = flags & BLK_FUA,
					     .nounmap = flags & BLK_NOUNMAP,
					     .sector = sector,
					     .sectors = sectors,
					     .submit = time,
					     .done = SIM_NEVER}));
	if (op == BLK_READ || op == BLK_FLUSH)
		return number;
	for (uint64_t s = sector; s < sector + sectors; s++)
		vec_push(&g->sector[s].refs, ((struct guest_ref){number, GUEST_NONE, SIM_NEVER}));
	return number;
}

void guest_done(struct guest *g, uint32_t number, int ret, uint64_t time)
{
	g->ops.at[number].done = time;
	g->ops.at[number].failed = ret != 0;
}

uint32_t guest_apply(struct guest *g, const uint32_t *values, uint64_t time)
{
	uint32_t number = guest_submit(g, BLK_WRITE, BLK_FUA, 0, g->sectors, time);

	g->ops.at[number].values = values;
	return number;
}

static uint32_t op_value(const struct guest *g, uint32_t number, uint64_t sector)
{
	const struct guest_op *op = &g->ops.at[number];

	if (op->values)
		return op->values[sector];
	return op->op == BLK_WRITE ? number : 0;
}

void guest_continue(struct guest *g, const uint32_t *values, uint32_t next_number)
{
	while (g->ops.n < next_number)
		vec_push(&g->ops, ((struct guest_op){.op = BLK_READ}));
	for (uint64_t s = 0; s < g->sectors; s++)
		g->sector[s].base = values[s];
}

/* ---- the order of the writes to a sector ---- */

/* When it was over: it cannot take effect later. Until then it may, though a read has seen it. */
static uint64_t ref_end(const struct guest *g, const struct guest_ref *r)
{
	return g->ops.at[r->op].done;
}

/* When it had taken effect at the latest; SIM_NEVER: that is not known. A discard need not have
 * any. */
static uint64_t ref_effect(const struct guest *g, const struct guest_ref *r)
{
	const struct guest_op *op = &g->ops.at[r->op];

	if (op->op == BLK_DISCARD)
		return SIM_NEVER;
	return op->failed ? r->seen : op->done;
}

/* Whether what @end says, or a settled race with @loses_to, puts a value before @later. */
static bool comes_before(const struct guest *g, uint64_t end, uint32_t loses_to,
			 const struct guest_ref *later)
{
	return loses_to == later->op || (end != SIM_NEVER && end < g->ops.at[later->op].submit);
}

/* ---- live reads ---- */

static bool live_replaced(const struct guest *g, const struct guest_sector *sec,
			  const struct guest_ref *r, uint64_t read_submit)
{
	if (r && r->loses_to == BASE)
		return true;
	for (size_t i = 0; i < sec->refs.n; i++) {
		const struct guest_ref *later = &sec->refs.at[i];
		uint64_t effect = ref_effect(g, later);

		if (later == r || effect == SIM_NEVER || effect >= read_submit)
			continue;
		if (!r || comes_before(g, ref_end(g, r), r->loses_to, later))
			return true;
	}
	return false;
}

/*
 * A read that overlapped no write to the sector returned the value of @winner (NULL: the
 * beginning's): every other write was before it.
 */
static void settle_race(struct guest *g, struct guest_sector *sec, const struct guest_op *read,
			const struct guest_ref *winner)
{
	for (size_t i = 0; i < sec->refs.n; i++) {
		if (g->ops.at[sec->refs.at[i].op].done >= read->submit)
			return;
	}
	for (size_t i = 0; i < sec->refs.n; i++) {
		struct guest_ref *r = &sec->refs.at[i];

		if (r != winner && r->loses_to == GUEST_NONE && g->ops.at[r->op].op != BLK_DISCARD)
			r->loses_to = winner ? winner->op : BASE;
	}
}

static bool check_read_sector(struct guest *g, const struct guest_op *read, uint64_t sector,
			      uint32_t value)
{
	struct guest_sector *sec = &g->sector[sector];
	struct guest_ref *found = NULL;
	unsigned matches = 0;

	if (sec->base == value && !live_replaced(g, sec, NULL, read->submit))
		matches++;
	for (size_t i = 0; i < sec->refs.n; i++) {
		struct guest_ref *r = &sec->refs.at[i];

		if (op_value(g, r->op, sector) != value || live_replaced(g, sec, r, read->submit))
			continue;
		matches++;
		found = r;
	}
	if (matches == 1) {
		if (found && g->ops.at[found->op].done < read->submit)
			found->seen = min_of(found->seen, read->done);
		settle_race(g, sec, read, found);
	}
	return matches > 0;
}

bool guest_check_read(struct guest *g, uint32_t number, const uint8_t *mem, char *text, size_t len)
{
	const struct guest_op read = g->ops.at[number];

	g->reads_checked++;
	for (uint64_t i = 0; i < read.sectors; i++, mem += SECTOR_BYTES) {
		uint64_t sector = read.sector + i;
		uint32_t value = guest_decode(mem, sector);
		char got[128];

		if (value < g->ops.n && check_read_sector(g, &read, sector, value))
			continue;
		describe(mem, sector, got, sizeof(got));
		snprintf(text, len, "a read (op %u) of guest sector %" PRIu64 " returned %s",
			 number, sector, got);
		guest_print_sector(g, sector);
		return false;
	}
	return true;
}

/* ---- crashes ---- */

static bool durable_at(const struct guest *g, const struct guest_op *op, uint64_t time,
		       uint64_t flushed)
{
	if (op->failed || op->op == BLK_DISCARD || op->done == SIM_NEVER || op->done >= time)
		return false;
	return op->fua || op->done < flushed;
}

static bool crash_replaced(const struct guest *g, const struct guest_sector *sec,
			   const struct guest_ref *r, uint64_t time, uint64_t flushed)
{
	uint64_t end = r ? ref_end(g, r) : 0;
	uint32_t loses_to = r ? r->loses_to : GUEST_NONE;

	/* until it fails it may be on disk, though it turns out later that it never took effect */
	if (r && g->ops.at[r->op].failed && end >= time)
		loses_to = GUEST_NONE;
	for (size_t i = 0; i < sec->refs.n; i++) {
		const struct guest_ref *later = &sec->refs.at[i];

		if (later == r || !durable_at(g, &g->ops.at[later->op], time, flushed))
			continue;
		if (!r || comes_before(g, end, loses_to, later))
			return true;
	}
	return loses_to == BASE;
}

bool guest_size_allowed(const struct guest *g, uint64_t sectors)
{
	const struct guest_resize *r = &g->resize;

	if (g->crash_time <= r->submit)
		return sectors == r->from;
	return sectors == r->to || (sectors == r->from && g->crash_time <= r->done);
}

void guest_crash_at(struct guest *g, uint64_t time)
{
	uint64_t flushed = 0;

	g->crash_time = time;

	for (size_t i = 1; i < g->ops.n; i++) {
		const struct guest_op *op = &g->ops.at[i];

		if (op->op == BLK_FLUSH && !op->failed && op->done < time)
			flushed = max_of(flushed, op->submit);
	}
	g->allowed.values.n = 0;
	for (uint64_t s = 0; s < g->sectors; s++) {
		const struct guest_sector *sec = &g->sector[s];

		g->allowed.first[s] = g->allowed.values.n;
		if (!crash_replaced(g, sec, NULL, time, flushed))
			vec_push(&g->allowed.values, sec->base);
		for (size_t i = 0; i < sec->refs.n; i++) {
			const struct guest_ref *r = &sec->refs.at[i];

			if (g->ops.at[r->op].submit < time &&
			    !crash_replaced(g, sec, r, time, flushed))
				vec_push(&g->allowed.values, op_value(g, r->op, s));
		}
		assert(g->allowed.values.n > g->allowed.first[s]);
	}
	g->allowed.first[g->sectors] = g->allowed.values.n;
}

bool guest_check_crash(struct guest *g, uint64_t sector, uint64_t sectors, const uint8_t *mem,
		       uint64_t *bad_sector, char *text, size_t len)
{
	for (uint64_t s = sector; s < sector + sectors; s++, mem += SECTOR_BYTES) {
		uint32_t value = guest_decode(mem, s);
		uint32_t at = g->allowed.first[s], end = g->allowed.first[s + 1];
		char got[128];
		size_t used;

		while (at < end && g->allowed.values.at[at] != value)
			at++;
		if (at < end)
			continue;
		describe(mem, s, got, sizeof(got));
		used = snprintf(text, len, "guest sector %" PRIu64 " holds %s; allowed:", s, got);
		for (at = g->allowed.first[s]; at < end && used < len; at++)
			used += snprintf(text + used, len - used,
					 g->allowed.values.at[at] ? " op %u" : " zeros",
					 g->allowed.values.at[at]);
		*bad_sector = s;
		return false;
	}
	return true;
}

static void print_time(const char *what, uint64_t time)
{
	if (time == SIM_NEVER)
		printf(" %s -", what);
	else
		printf(" %s %" PRIu64, what, time);
}

void guest_print_sector(const struct guest *g, uint64_t sector)
{
	static const char *const names[] = {"READ", "WRITE", "FLUSH", "DISCARD", "WRITE_ZEROES"};
	const struct guest_sector *sec = &g->sector[sector];

	printf("  guest sector %" PRIu64 " (offset %#" PRIx64 ") began as op %u; then:\n", sector,
	       sector * SECTOR_BYTES, sec->base);
	for (size_t i = 0; i < sec->refs.n; i++) {
		const struct guest_ref *r = &sec->refs.at[i];
		const struct guest_op *op = &g->ops.at[r->op];

		printf("    op %u %s%s%s%s sectors %" PRIu64 "+%" PRIu64, r->op, names[op->op],
		       op->fua ? " FUA" : "", op->nounmap ? " NOUNMAP" : "",
		       op->failed ? " (failed)" : "", op->sector, op->sectors);
		print_time("submitted", op->submit);
		print_time("done", op->done);
		print_time("seen", r->seen);
		if (r->loses_to != GUEST_NONE)
			printf(", before op %u", r->loses_to);
		printf("\n");
	}
	for (size_t i = 1; i < g->ops.n; i++) {
		const struct guest_op *op = &g->ops.at[i];

		if (op->op != BLK_FLUSH)
			continue;
		printf("    op %zu FLUSH%s", i, op->failed ? " (failed)" : "");
		print_time("submitted", op->submit);
		print_time("done", op->done);
		printf("\n");
	}
}
