/* SPDX-License-Identifier: MIT */
/* named.c: see named.h. */
#include "named.h"

#include <assert.h>
#include <string.h>

#include "base/math.h"
#include "guest.h"
#include "run.h"

static int give(struct storage *st, const char *name, struct storage **out, char **path_out)
{
	*out = st;
	if (path_out)
		*path_out = strdup(name);
	return 0;
}

static bool is_data(const char *name)
{
	return !strcmp(name, NAMED_DATA_FILE);
}

static int open_live(void *arg, struct storage **out, char **path_out, const char *name, bool read_only,
		     struct error *err)
{
	struct named *n = arg;

	(void)err;
	if (!is_data(name))
		return give(below_open_live(&n->below, name, read_only), "below", out, path_out);
	assert(n->data && !read_only);
	n->data->closed = false; /* closed, or of a process that was killed */
	return give(&n->data->storage, "data", out, path_out);
}

static int open_still(void *arg, struct storage **out, char **path_out, const char *name,
		      bool read_only, struct error *err)
{
	struct named *n = arg;

	(void)err;
	if (!is_data(name))
		return give(below_open_still(&n->below, name, read_only), "below", out, path_out);
	assert(n->view);
	simview_open(n->view, n->view->map, read_only);
	n->view->storage.block_bytes = n->block_bytes;
	n->view->storage.fixed_size = n->data_device;
	return give(&n->view->storage, "data", out, path_out);
}

/* ---- what is in a new data file ---- */

/* Sectors of somebody else's, which no guest may ever see. */
static void fill_with_garbage(struct sim_map *map, struct arena *arena, struct rng *r)
{
	uint64_t words[8];

	for (unsigned i = 0; i < ARRAY_LEN(words); i++)
		words[i] = rng_next(r) | 1;
	for (uint64_t s = 0; s < map->size_bytes / SECTOR_BYTES; s++) {
		uint64_t *mem = arena_alloc(arena, SECTOR_BYTES);

		for (unsigned i = 0; i < SECTOR_BYTES / 8; i++)
			mem[i] = words[(s + i) % ARRAY_LEN(words)];
		sim_map_set(map, s, (uint8_t *)mem);
	}
}

/* Of a raw one, some sectors are as if a write had put them there before the run. */
static void fill_with_stamps(struct sim_map *map, struct arena *arena, struct rng *r)
{
	uint64_t sectors = map->size_bytes / SECTOR_BYTES;

	for (uint64_t s = 0, n; s < sectors; s += n) {
		bool stamped = rng_chance(r, 50);

		n = min_of(rng_range(r, 1, 64), sectors - s);
		for (uint64_t i = s; stamped && i < s + n; i++) {
			uint8_t *mem = arena_alloc(arena, SECTOR_BYTES);

			guest_stamp(mem, i, BELOW_NUMBER);
			sim_map_set(map, i, mem);
		}
	}
}

static void fill(struct sim_map *map, const struct run_config *cfg, struct arena *arena)
{
	struct rng r = rng_make(cfg->seed, cfg->profile, 0xda7b);
	uint64_t cluster = cfg->create.cluster_bytes, size = cfg->create.size_bytes;
	uint64_t most = max_of(size, cfg->resize_bytes);

	if (cfg->data_device)
		map->size_bytes = rng_chance(&r, 50) ? most : align_up(most, cluster) + cluster;
	else if (cfg->data == RUN_DATA_RAW)
		map->size_bytes = rng_chance(&r, 70) ? size : 0;
	else if (rng_chance(&r, 70)) /* shorter, as long, or longer */
		map->size_bytes = align_up(rng_below(&r, 2 * size), cfg->block_bytes);
	if (cfg->data == RUN_DATA_RAW)
		fill_with_stamps(map, arena, &r);
	else if (!cfg->create.preallocation) /* else it is mapped, and has to be zeros as who makes it makes it */
		fill_with_garbage(map, arena, &r);
}

/* ---- the whole ---- */

void named_init(struct named *n, const struct run_config *cfg, struct simdisk *disk)
{
	*n = (struct named){
		.disk = disk, .data_device = cfg->data_device, .block_bytes = cfg->block_bytes};
	below_init(&n->below, cfg, disk);
	n->live = (struct names_policy){.backing_format = "raw", .open = open_live, .arg = n};
	n->still = (struct names_policy){.backing_format = "raw", .open = open_still, .arg = n};
}

void named_make_data(struct named *n, const struct run_config *cfg, const struct sim_map *data)
{
	struct sim_map map = {0};

	if (cfg->data == RUN_DATA_NONE)
		return;
	if (!data)
		fill(&map, cfg, &n->disk->arena);
	n->data = simdisk_file(n->disk, "data", data ? data : &map);
	n->data->storage.block_bytes = cfg->block_bytes;
	n->data->storage.fixed_size = cfg->data_device;
	n->data->storage.can_punch = cfg->can_punch;
	n->data->no_zero = cfg->no_zero;
	n->data->closed = true;
	sim_map_free(&map);
}

void named_free(struct named *n)
{
	below_free(&n->below);
}

uint32_t named_value(const struct named *n, const struct run_config *cfg, uint64_t s)
{
	if (cfg->data != RUN_DATA_RAW)
		return below_value(&n->below, s);
	return s * SECTOR_BYTES < n->data->initial.size_bytes &&
			       sim_map_get(&n->data->initial, s) != sim_zero_sector
		       ? BELOW_NUMBER
		       : 0;
}
