/* SPDX-License-Identifier: MIT */
/*
 * util.h: what the parts of the simulation share: a seeded generator of random numbers, memory of
 * the harness, and vectors.
 *
 * The harness's own memory is taken through sim_malloc() and friends, which are exempt from the
 * counting and failing of allocations (memfault.h): that looks at the program under test alone.
 * They end the program where there is none.
 */
#ifndef SIM_UTIL_H
#define SIM_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SECTOR_BYTES 512u

/* ---- random numbers: SplitMix64; the same sequence everywhere ---- */

struct rng {
	uint64_t state;
};

static inline uint64_t rng_mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static inline uint64_t rng_next(struct rng *r)
{
	return rng_mix(r->state += 0x9e3779b97f4a7c15u);
}

/* 0 to @n - 1; @n is not 0. */
static inline uint64_t rng_below(struct rng *r, uint64_t n)
{
	return rng_next(r) % n;
}

/* @lo to @hi, both included. */
static inline uint64_t rng_range(struct rng *r, uint64_t lo, uint64_t hi)
{
	return lo + rng_below(r, hi - lo + 1);
}

/* True in @percent of 100 cases. */
static inline bool rng_chance(struct rng *r, unsigned percent)
{
	return rng_below(r, 100) < percent;
}

/* A generator of its own for each (@a, @b, @c). */
static inline struct rng rng_make(uint64_t a, uint64_t b, uint64_t c)
{
	return (struct rng){rng_mix(rng_mix(rng_mix(a + 1) ^ (b + 0x51)) ^ (c + 0x1337))};
}

/* ---- memory ---- */

void *sim_malloc(size_t bytes);
void *sim_calloc(size_t n, size_t bytes);
void *sim_realloc(void *p, size_t bytes);
void *sim_memalign(size_t align, size_t bytes);
void sim_free(void *p);

/* Memory that is freed as a whole. */
struct arena {
	struct arena_chunk *chunks; /* the first is the one in use */
	struct arena_chunk *spare;
};

void *arena_alloc(struct arena *a, size_t bytes); /* aligned to 16 */
void arena_reset(struct arena *a);		  /* keeps the memory for reuse */
void arena_free(struct arena *a);

/* vec(type) v = {0}; vec_push(&v, x); v.at[i], v.n */
#define vec(type)                                                                                  \
	struct {                                                                                   \
		type *at;                                                                          \
		size_t n, cap;                                                                     \
	}

#define vec_push(v, x)                                                                             \
	do {                                                                                       \
		if ((v)->n == (v)->cap) {                                                          \
			(v)->cap = (v)->cap ? (v)->cap * 2 : 16;                                   \
			(v)->at = sim_realloc((v)->at, (v)->cap * sizeof(*(v)->at));               \
		}                                                                                  \
		(v)->at[(v)->n++] = (x);                                                           \
	} while (0)

#define vec_free(v)                                                                                \
	do {                                                                                       \
		sim_free((v)->at);                                                                 \
		(v)->at = NULL;                                                                    \
		(v)->n = (v)->cap = 0;                                                             \
	} while (0)

#endif
