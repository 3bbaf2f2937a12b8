// SPDX-License-Identifier: MIT
/* histogram.c: see histogram.h. */
#include "base/histogram.h"

#include "base/math.h"

/* The largest value that falls into @bucket. */
static uint64_t bucket_last(unsigned bucket)
{
	unsigned shift;

	if (bucket < 2 * HISTOGRAM_STEPS)
		return bucket;
	shift = (bucket >> HISTOGRAM_STEP_BITS) - 1;
	return (((uint64_t)bucket - ((uint64_t)shift << HISTOGRAM_STEP_BITS) + 1) << shift) - 1;
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
	into->count += from->count;
	into->sum += from->sum;
	into->max = max_of(into->max, from->max);
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
		into->buckets[i] += from->buckets[i];
}

uint64_t histogram_percentile(const struct histogram *h, uint64_t part)
{
	uint64_t want = div_up(h->count * part, 1000000), seen = 0;

	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += h->buckets[i];
		if (seen >= want && seen)
			return i == HISTOGRAM_BUCKETS - 1 ? h->max : min_of(bucket_last(i), h->max);
	}
	return 0;
}

uint64_t histogram_mean(const struct histogram *h)
{
	return h->count ? h->sum / h->count : 0;
}
