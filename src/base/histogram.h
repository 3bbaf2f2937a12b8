/* SPDX-License-Identifier: MIT */
/*
 * histogram.h: how often a figure was seen, in a fixed amount of memory.
 *
 * Buckets grow with the value, as in floating point: below 64 each value has its own, above that every
 * power of two is cut into 64. So a percentile is at most 1/64 above what was recorded. One thread;
 * several threads keep one each, to be added up.
 */
#ifndef BASE_HISTOGRAM_H
#define BASE_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_STEP_BITS 6
#define HISTOGRAM_STEPS	    (1u << HISTOGRAM_STEP_BITS)
/* Values of up to 2^40; what is more counts as that. 2^40 ns are 18 minutes. */
#define HISTOGRAM_MAX_BITS 40
#define HISTOGRAM_BUCKETS  (HISTOGRAM_STEPS * (HISTOGRAM_MAX_BITS - HISTOGRAM_STEP_BITS + 1))

struct histogram {
	uint64_t count;
	uint64_t sum;
	uint64_t max;
	uint64_t buckets[HISTOGRAM_BUCKETS];
};

static inline unsigned histogram_bucket(uint64_t value)
{
	unsigned shift;

	if (value >> HISTOGRAM_MAX_BITS)
		return HISTOGRAM_BUCKETS - 1;
	if (value < HISTOGRAM_STEPS)
		return (unsigned)value;
	shift = 63 - (unsigned)__builtin_clzll(value) - HISTOGRAM_STEP_BITS;
	return (shift << HISTOGRAM_STEP_BITS) + (unsigned)(value >> shift);
}

static inline void histogram_add(struct histogram *h, uint64_t value)
{
	h->count++;
	h->sum += value;
	if (value > h->max)
		h->max = value;
	h->buckets[histogram_bucket(value)]++;
}

void histogram_merge(struct histogram *into, const struct histogram *from);
/*
 * The smallest bucket's largest value, or the maximum if that is less, that at least @part of
 * 1,000,000 of the values do not exceed; 0 if there are none.
 */
uint64_t histogram_percentile(const struct histogram *h, uint64_t part);
uint64_t histogram_mean(const struct histogram *h);

#endif
