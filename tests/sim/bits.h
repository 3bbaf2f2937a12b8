/* SPDX-License-Identifier: MIT */
/*
 * bits.h: the dirty bitmaps of a run: put into its image, and looked at in every state.
 *
 * What holds in every state that a crash may leave: a bitmap that is valid (in_use clear) is as long as
 * the disk needs, and where a sector is not what it was at the beginning an enabled one says so. What holds
 * when the image was closed in order: each bitmap that was valid is valid, and says what it said at the
 * beginning and that whatever a request was about has changed, granule by granule, and nothing else.
 */
#ifndef SIM_BITS_H
#define SIM_BITS_H

#include "base/error.h"
#include "simdisk.h"

#define BITS_MAX 3

struct run;

/* Bitmaps as they are in a map; shares no code with the engine. */
struct bits_one {
	bool in_use, enabled;
	unsigned granularity_bits;
	uint64_t table, entries;
};

struct bits {
	const struct sim_map *map;
	unsigned cluster_bits, n;
	uint64_t size_bytes;
	uint64_t directory, directory_bytes; /* 0: there are none */
	struct bits_one at[BITS_MAX];
};

/* What the bitmaps of a run's image said at the beginning. */
struct bits_before {
	struct bits bits;
	uint8_t *set[BITS_MAX]; /* a byte for each granule; NULL: none */
	uint64_t granules[BITS_MAX];
};

/* Puts @bitmaps of them into a new image, and closes it. */
int bits_make(struct storage *st, unsigned bitmaps, uint64_t seed, struct error *err);

void bits_read(struct bits *b, const struct sim_map *map);
/* Whether granule @granule of bitmap @i is dirty. */
bool bits_test(const struct bits *b, unsigned i, uint64_t granule);

void bits_remember(struct bits_before *before, const struct sim_map *map);
void bits_forget(struct bits_before *before);

/* Of a state: @mem holds what sectors from @sector on are. */
bool bits_cover(const struct bits *b, const struct run *r, uint64_t sector, uint64_t count,
		const uint8_t *mem, char *text, size_t len);
/* Bitmaps that are valid in @before are so in @after, which came of it by opening, writing and closing. */
bool bits_kept(const struct bits *before, const struct bits *after, char *text, size_t len);
/* Of an image that was closed without error. */
void bits_check_closed(struct run *r);

#endif
