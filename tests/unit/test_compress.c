/* SPDX-License-Identifier: MIT */
/*
 * Proves of the codecs: what is compressed inflates to the same bytes, and to a reader with a window of
 * 4 KiB, which is QEMU's; what does not get smaller is said so; trailing rubbish, a deflate stream without
 * its end and several zstd frames are accepted once the cluster is full, as QEMU does, and nothing else is;
 * rubbish gives an error and touches no memory but the output.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>
#include <cmocka.h>

#include "base/math.h"
#include "qcow2/compress.h"

enum { CLUSTER = 65536, GUARD = 64 };

static uint64_t seed = 20251122;

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* Text-like: repeats itself near and far, so that a large window would be used if there were one. */
static void fill_text(uint8_t *to, size_t n)
{
	for (size_t i = 0; i < n;) {
		size_t len = 3 + next_random() % 60, back = 1 + next_random() % 30000;

		for (; len && i < n; len--, i++)
			to[i] = i >= back && next_random() % 64
					? to[i - back]
					: (uint8_t)(next_random() % 96 + 32);
	}
}

static void fill_noise(uint8_t *to, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = (uint8_t)next_random();
}

struct codec {
	struct inflater *inf;
	struct deflater *def[2];
	uint8_t plain[CLUSTER], packed[3 * CLUSTER], out[CLUSTER + GUARD];
};

static int setup(void **state)
{
	struct codec *c = calloc(1, sizeof(*c));

	assert_int_equal(inflater_create(&c->inf), 0);
	for (int type = 0; type < 2; type++)
		assert_int_equal(deflater_create(&c->def[type], (enum compression)type, CLUSTER),
				 0);
	*state = c;
	return 0;
}

static int teardown(void **state)
{
	struct codec *c = *state;

	inflater_destroy(c->inf);
	inflater_destroy(NULL);
	deflater_destroy(c->def[0]);
	deflater_destroy(c->def[1]);
	deflater_destroy(NULL);
	free(c);
	return 0;
}

/* Inflates into memory of exactly @in_bytes, so that a sanitizer sees a read past its end. */
static int inflate_exact(struct codec *c, enum compression type, const void *in, size_t in_bytes,
			 size_t out_bytes)
{
	uint8_t *copy = malloc(in_bytes ? in_bytes : 1);
	int ret;

	memcpy(copy, in, in_bytes);
	memset(c->out, 0xa5, sizeof(c->out));
	ret = inflater_run(c->inf, type, copy, in_bytes, c->out, out_bytes);
	for (size_t i = out_bytes; i < out_bytes + GUARD; i++)
		assert_int_equal(c->out[i], 0xa5);
	free(copy);
	return ret;
}

static void assert_inflates(struct codec *c, enum compression type, size_t in_bytes,
			    size_t out_bytes)
{
	assert_int_equal(inflate_exact(c, type, c->packed, in_bytes, out_bytes), 0);
	assert_memory_equal(c->out, c->plain, out_bytes);
}

static void test_round_trip(void **state)
{
	struct codec *c = *state;

	for (int type = 0; type < 2; type++)
		for (size_t n = 512; n <= CLUSTER; n *= 2) {
			size_t packed;

			fill_text(c->plain, n);
			packed = deflater_run(c->def[type], c->plain, n, c->packed);
			assert_in_range(packed, 1, n - 1);
			assert_inflates(c, (enum compression)type, packed, n);
			/* whatever follows up to a sector's end */
			fill_noise(c->packed + packed, 511);
			assert_inflates(c, (enum compression)type, packed + 511, n);
			assert_int_equal(
				inflate_exact(c, (enum compression)type, c->packed, packed / 2, n),
				-EIO);
			memset(c->plain, 0, n);
			packed = deflater_run(c->def[type], c->plain, n, c->packed);
			assert_in_range(packed, 1, n / 4);
			assert_inflates(c, (enum compression)type, packed, n);
			fill_noise(c->plain, n);
			assert_int_equal(deflater_run(c->def[type], c->plain, n, c->packed), 0);
		}
}

/* As QEMU may read it: in pieces, with a window of 4 KiB. */
static void test_window(void **state)
{
	struct codec *c = *state;
	z_stream strm = {0};
	size_t packed;
	int ret = Z_OK;

	fill_text(c->plain, CLUSTER);
	packed = deflater_run(c->def[COMPRESSION_DEFLATE], c->plain, CLUSTER, c->packed);
	assert_in_range(packed, 1, CLUSTER - 1);
	assert_int_equal(inflateInit2(&strm, -12), Z_OK);
	strm.next_in = c->packed;
	strm.avail_in = (uInt)packed;
	strm.next_out = c->out;
	while (ret == Z_OK) {
		strm.avail_out = 1000;
		ret = inflate(&strm, Z_SYNC_FLUSH);
	}
	assert_int_equal(ret, Z_STREAM_END);
	assert_int_equal(strm.total_out, CLUSTER);
	assert_memory_equal(c->out, c->plain, CLUSTER);
	inflateEnd(&strm);
}

/* Deflates c->plain with any window and without an end; how many bytes. */
static size_t deflate_open_ended(struct codec *c, size_t n, int window_bits)
{
	z_stream strm = {0};

	assert_int_equal(deflateInit2(&strm, 6, Z_DEFLATED, window_bits, 8, 0), Z_OK);
	strm.next_in = c->plain;
	strm.avail_in = (uInt)n;
	strm.next_out = c->packed;
	strm.avail_out = sizeof(c->packed);
	assert_int_equal(deflate(&strm, Z_SYNC_FLUSH), Z_OK);
	(void)deflateEnd(&strm);
	return strm.total_out;
}

static void test_deflate_tolerance(void **state)
{
	struct codec *c = *state;
	size_t n;

	fill_text(c->plain, CLUSTER);
	n = deflate_open_ended(c, CLUSTER, -15);
	assert_inflates(c, COMPRESSION_DEFLATE, n, CLUSTER);	 /* no final block */
	assert_inflates(c, COMPRESSION_DEFLATE, n, CLUSTER / 2); /* goes on */
	/* one byte short, in the output */
	n = deflate_open_ended(c, CLUSTER - 1, -12);
	assert_int_equal(inflate_exact(c, COMPRESSION_DEFLATE, c->packed, n, CLUSTER), -EIO);
	/* a complete stream that is too short */
	n = deflater_run(c->def[COMPRESSION_DEFLATE], c->plain, CLUSTER / 2, c->packed);
	assert_int_equal(inflate_exact(c, COMPRESSION_DEFLATE, c->packed, n, CLUSTER), -EIO);
	assert_int_equal(inflate_exact(c, COMPRESSION_DEFLATE, c->packed, 0, CLUSTER), -EIO);
	/* the same inflater still works */
	assert_inflates(c, COMPRESSION_DEFLATE, n, CLUSTER / 2);
}

static void test_zstd_frames(void **state)
{
	struct codec *c = *state;
	size_t at = 0, done = 0, last = 0;

	fill_text(c->plain, CLUSTER);
	while (done < CLUSTER) {
		size_t part = min_of((size_t)CLUSTER - done, (size_t)20000), n;

		n = ZSTD_compress(c->packed + at, sizeof(c->packed) - at, c->plain + done, part, 3);
		assert_false(ZSTD_isError(n));
		last = at;
		at += n;
		done += part;
	}
	assert_inflates(c, COMPRESSION_ZSTD, at, CLUSTER);
	fill_noise(c->packed + at, 400);
	assert_inflates(c, COMPRESSION_ZSTD, at + 400, CLUSTER);
	assert_int_equal(inflate_exact(c, COMPRESSION_ZSTD, c->packed, last, CLUSTER), -EIO);
	assert_int_equal(inflate_exact(c, COMPRESSION_ZSTD, c->packed, at - 1, CLUSTER), -EIO);
	/* the frame's content does not fit */
	assert_int_equal(inflate_exact(c, COMPRESSION_ZSTD, c->packed, at, CLUSTER - 1), -EIO);
	assert_int_equal(inflate_exact(c, COMPRESSION_ZSTD, c->packed, 0, CLUSTER), -EIO);
}

/* Flips bits in good data, and makes some up. */
static void test_rubbish(void **state)
{
	struct codec *c = *state;

	for (int round = 0; round < 2000; round++) {
		enum compression type = (enum compression)(round & 1);
		size_t n = 512u << next_random() % 4, packed;

		fill_text(c->plain, n);
		packed = deflater_run(c->def[type], c->plain, n, c->packed);
		if (round % 8 < 2)
			fill_noise(c->packed, packed = 1 + next_random() % 2048);
		for (unsigned flips = (unsigned)(next_random() % 4); flips && packed; flips--)
			c->packed[next_random() % packed] ^= (uint8_t)(1 << next_random() % 8);
		(void)!inflate_exact(c, type, c->packed, packed, n);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
		cmocka_unit_test_setup_teardown(test_window, setup, teardown),
		cmocka_unit_test_setup_teardown(test_deflate_tolerance, setup, teardown),
		cmocka_unit_test_setup_teardown(test_zstd_frames, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rubbish, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
