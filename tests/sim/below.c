/* SPDX-License-Identifier: MIT */
/* below.c: see below.h. */
#include "below.h"

#include <assert.h>
#include <string.h>

#include "base/math.h"
#include "guest.h"
#include "run.h"

#define NAME_OFFSET (SECTOR_BYTES - 1) /* in the header's first sector, past all extensions */
#define EXT_FEATURE_NAMES 0x6803f857u

struct storage *below_open_live(struct below *b, const char *name, bool read_only)
{
	assert(read_only && !strcmp(name, "b"));
	if (!b->file) {
		b->file = simdisk_file(b->disk, "below", &b->map);
		b->file->storage.read_only = true;
		b->file->storage.block_bytes = b->block_bytes;
	}
	b->file->closed = false; /* closed, or of a process that was killed */
	return &b->file->storage;
}

struct storage *below_open_still(struct below *b, const char *name, bool read_only)
{
	struct simview *view = NULL;

	assert(read_only && !strcmp(name, "b"));
	for (size_t i = 0; !view && i < b->views.n; i++)
		if (b->views.at[i]->closed)
			view = b->views.at[i];
	if (!view) {
		view = sim_calloc(1, sizeof(*view));
		vec_push(&b->views, view);
	}
	simview_open(view, &b->map, true);
	view->storage.block_bytes = b->block_bytes;
	return &view->storage;
}

void below_init(struct below *b, const struct run_config *cfg, struct simdisk *disk)
{
	struct rng rng = rng_make(cfg->below_seed, 0, 0xbe10);
	uint64_t sectors = cfg->create.size_bytes / SECTOR_BYTES;

	*b = (struct below){.disk = disk, .block_bytes = cfg->block_bytes};
	if (!cfg->below_seed)
		return;
	/* shorter than the image, longer, or as long */
	if (rng_chance(&rng, 40))
		sectors = rng_range(&rng, 1, sectors);
	else if (rng_chance(&rng, 40))
		sectors += rng_below(&rng, sectors);
	sectors = align_up(sectors, cfg->block_bytes / SECTOR_BYTES);
	for (uint64_t s = 0, n; s < sectors; s += n) {
		bool stamped = rng_chance(&rng, 60);

		n = min_of(rng_range(&rng, 1, 64), sectors - s);
		for (uint64_t i = s; stamped && i < s + n; i++) {
			uint8_t *mem = arena_alloc(&b->arena, SECTOR_BYTES);

			guest_stamp(mem, i, BELOW_NUMBER);
			sim_map_set(&b->map, i, mem);
		}
	}
	b->map.size_bytes = sectors * SECTOR_BYTES;
}

void below_free(struct below *b)
{
	for (size_t i = 0; i < b->views.n; i++) {
		simview_free(b->views.at[i]);
		sim_free(b->views.at[i]);
	}
	vec_free(&b->views);
	sim_map_free(&b->map);
	arena_free(&b->arena);
}

static uint32_t be32_in(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

/* Where the header's extensions end that have to stay. */
static unsigned extensions_end(const uint8_t *head)
{
	unsigned at = be32_in(head + 4) >= 3 ? be32_in(head + 100) : 72;

	while (be32_in(head + at) && be32_in(head + at) != EXT_FEATURE_NAMES)
		at += 8 + align_up(be32_in(head + at + 4), 8);
	return at;
}

void below_name(struct below *b, struct sim_map *image)
{
	uint8_t *head;
	unsigned end;

	if (!b->map.size_bytes)
		return;
	head = arena_alloc(&b->arena, SECTOR_BYTES);
	memcpy(head, sim_map_get(image, 0), SECTOR_BYTES);
	/* in the smallest cluster there is no room for the table of feature names as well */
	end = extensions_end(head);
	assert(end + 8 < NAME_OFFSET);
	memset(head + end, 0, SECTOR_BYTES - end);
	head[NAME_OFFSET] = 'b';
	head[8 + 6] = NAME_OFFSET >> 8;
	head[8 + 7] = NAME_OFFSET & 0xff;
	head[16 + 3] = 1;
	sim_map_set(image, 0, head);
}

uint32_t below_value(const struct below *b, uint64_t s)
{
	return s < b->map.size_bytes / SECTOR_BYTES && sim_map_get(&b->map, s) != sim_zero_sector
		       ? BELOW_NUMBER
		       : 0;
}
