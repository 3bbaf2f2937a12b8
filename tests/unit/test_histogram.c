// SPDX-License-Identifier: MIT
/*
 * test_histogram.c: proves that every value has a bucket, that buckets are in order and at most 1/64
 * wide, and that percentiles agree with those of the sorted values.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/histogram.h"
#include "base/math.h"

static struct histogram h, other;

static void clear(void)
{
	h = other = (struct histogram){0};
}

static void test_buckets(void **state)
{
	unsigned last = 0;

	for (uint64_t v = 0; v < 1 << 20; v++) {
		unsigned b = histogram_bucket(v);

		assert_true(b == last || b == last + 1);
		last = b;
	}
	for (unsigned bit = 20; bit < 64; bit++) {
		assert_true(histogram_bucket((uint64_t)1 << bit) < HISTOGRAM_BUCKETS);
		assert_true(histogram_bucket(((uint64_t)1 << bit) - 1) < HISTOGRAM_BUCKETS);
	}
	assert_int_equal(histogram_bucket(((uint64_t)1 << HISTOGRAM_MAX_BITS) - 1), HISTOGRAM_BUCKETS - 1);
	assert_int_equal(histogram_bucket(UINT64_MAX), HISTOGRAM_BUCKETS - 1);
}

static void test_one_value(void **state)
{
	static const uint64_t values[] = {0, 1, 63, 64, 127, 128, 129, 1000, 123456789, UINT64_MAX};

	for (size_t i = 0; i < ARRAY_LEN(values); i++) {
		clear();
		histogram_add(&h, values[i]);
		assert_int_equal(histogram_percentile(&h, 0), values[i]);
		assert_int_equal(histogram_percentile(&h, 500000), values[i]);
		assert_int_equal(histogram_percentile(&h, 1000000), values[i]);
		assert_int_equal(histogram_mean(&h), values[i]);
	}
	clear();
	assert_int_equal(histogram_percentile(&h, 990000), 0);
	assert_int_equal(histogram_mean(&h), 0);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void test_percentiles(void **state)
{
	static const uint64_t parts[] = {1, 10000, 500000, 990000, 999000, 999900, 1000000};
	static uint64_t values[10000];
	uint64_t random = 1;

	clear();
	for (size_t i = 0; i < ARRAY_LEN(values); i++) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		values[i] = random >> (28 + random % 32);
		histogram_add(i % 2 ? &h : &other, values[i]);
	}
	histogram_merge(&h, &other);
	qsort(values, ARRAY_LEN(values), sizeof(values[0]), by_value);
	for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
		uint64_t exact = values[div_up(ARRAY_LEN(values) * parts[i], 1000000) - 1];
		uint64_t got = histogram_percentile(&h, parts[i]);

		assert_true(got >= exact);
		assert_true(got <= exact + exact / HISTOGRAM_STEPS);
	}
	assert_int_equal(h.max, values[ARRAY_LEN(values) - 1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_buckets),
		cmocka_unit_test(test_one_value),
		cmocka_unit_test(test_percentiles),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
