/* SPDX-License-Identifier: MIT */
/*
 * simview.h: a storage over a map, for looking at a crash state: every operation is done at once,
 * and nothing is recorded. What is written goes into the map and is taken back by simview_rewind(),
 * so that one map serves for many states.
 */
#ifndef SIM_SIMVIEW_H
#define SIM_SIMVIEW_H

#include "simdisk.h"

struct simview_undo {
	uint64_t sector;
	const uint8_t *old;
};

struct simview {
	struct storage storage; /* first */
	struct sim_map *map;
	struct simview *data; /* the view of the data file that the image names; NULL: none */
	uint64_t old_size_bytes; /* the map's, before the first change */
	bool changed;
	bool closed;
	vec(struct simview_undo) undo;
	struct arena arena;
};

/* Looks at @map from now on; takes nothing back. The storage is open afterwards. */
void simview_open(struct simview *v, struct sim_map *map, bool read_only);
/* What a sector holds; past the end zeros. */
const uint8_t *simview_get(const struct simview *v, uint64_t sector);
/* Changes a sector so that it will be taken back. Growing the map is not taken back, its content
 * is. */
void simview_set(struct simview *v, uint64_t sector, const uint8_t *data);
void simview_resize(struct simview *v, uint64_t size_bytes);
void simview_rewind(struct simview *v);
void simview_free(struct simview *v);

#endif
