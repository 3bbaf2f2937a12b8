// SPDX-License-Identifier: MIT
/*
 * Proves that an image of every shape that can be created is sound and is what was asked for; that
 * what cannot be created is refused before anything is touched; and that no crash or error on the
 * way leaves something that looks like an image.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/math.h"
#include "memory.h"
#include "qcow2.h"
#include "qcow2/check.h"
#include "qcow2/header.h"

static struct memory disk;
static struct error error;

static int create(const struct qcow2_create_options *options)
{
	memory_destroy(&disk);
	memory_init(&disk);
	error = (struct error){0};
	return qcow2_create(&disk.st, options, &error);
}

static void assert_sound(uint64_t allocated)
{
	struct qcow2_check_options options = {0};
	struct qcow2_check_result result;

	assert_int_equal(qcow2_check(&disk.st, &options, &result, &error), 0);
	assert_int_equal(result.corruptions, 0);
	assert_int_equal(result.leaks, 0);
	assert_int_equal(result.errors, 0);
	assert_int_equal(result.allocated_clusters, allocated);
}

static void assert_as_asked(const struct qcow2_create_options *o)
{
	static struct qcow2_header h;
	uint64_t size = align_up(o->size_bytes, 512);

	assert_int_equal(qcow2_header_read(&disk.st, &h, &error), 0);
	assert_int_equal(qcow2_header_check_tables(&h, disk.st.size_bytes, &error), 0);
	assert_int_equal(qcow2_header_servable(&h, false, &error), 0);
	assert_int_equal(h.version, o->version);
	assert_int_equal(h.size_bytes, size);
	assert_int_equal(h.cluster_bytes, o->cluster_bytes);
	assert_int_equal(h.refcount_bits, o->refcount_bits);
	assert_int_equal(h.compatible, o->lazy_refcounts);
	assert_sound(o->preallocation ? div_up(size, o->cluster_bytes) : 0);
}

static void test_shapes(void **state)
{
	static const uint64_t sizes[] = {0, 1, 512, 100000, MiB, 3 * MiB + 512};
	static const uint32_t clusters[] = {512, 1024, 4096, 65536, 2 * MiB};
	static const unsigned blocks[] = {512, 4096};

	for (size_t i = 0; i < ARRAY_LEN(sizes) * ARRAY_LEN(clusters) * ARRAY_LEN(blocks) * 8;
	     i++) {
		size_t k = i / 8;
		struct qcow2_create_options o = {
			.version = 3,
			.size_bytes = sizes[k % ARRAY_LEN(sizes)],
			.cluster_bytes = clusters[k / ARRAY_LEN(sizes) % ARRAY_LEN(clusters)],
			.refcount_bits = i % 8 < 7 ? 1u << i % 8 : 16,
			.preallocation = (enum qcow2_preallocation)((i + k) % 4),
		};

		if (i % 8 == 7)
			o.version = 2;
		memory_destroy(&disk);
		memory_init(&disk);
		disk.st.block_bytes = blocks[k / ARRAY_LEN(sizes) / ARRAY_LEN(clusters)];
		error = (struct error){0};
		assert_int_equal(qcow2_create(&disk.st, &o, &error), 0);
		assert_as_asked(&o);
	}
}

static void test_defaults(void **state)
{
	struct qcow2_create_options o = {.size_bytes = GiB};

	assert_int_equal(create(&o), 0);
	o.version = 3;
	o.cluster_bytes = 64 * KiB;
	o.refcount_bits = 16;
	assert_as_asked(&o);
}

/* The largest disk of each cluster size is 32 MiB of L1 entries; one sector more is refused. */
static void test_size_limits(void **state)
{
	for (uint64_t cluster = 512; cluster <= 2 * MiB; cluster *= 2) {
		struct qcow2_create_options o = {.cluster_bytes = (uint32_t)cluster};
		uint64_t limit = 4 * MiB * (cluster / 8) * cluster;

		o.size_bytes = limit;
		assert_int_equal(qcow2_create_validate(&o, &error), 0);
		o.size_bytes = limit + 1;
		assert_int_equal(qcow2_create_validate(&o, &error), -EFBIG);
		o.size_bytes = UINT64_MAX;
		assert_int_equal(qcow2_create_validate(&o, &error), -EFBIG);
	}
	error = (struct error){0};
}

static void test_preallocation_limit(void **state)
{
	struct qcow2_create_options o = {
		.size_bytes = 33 * GiB,
		.cluster_bytes = 512,
		.refcount_bits = 64,
		.preallocation = QCOW2_PREALLOC_METADATA,
	};

	assert_int_equal(qcow2_create_validate(&o, &error), -EFBIG);
	o.refcount_bits = 8;
	assert_int_equal(qcow2_create_validate(&o, &error), 0);
	o.cluster_bytes = 2 * MiB;
	o.size_bytes = (uint64_t)1 << 60;
	assert_int_equal(qcow2_create_validate(&o, &error), -EFBIG);
	error = (struct error){0};
}

static void test_refused(void **state)
{
	static const struct {
		struct qcow2_create_options o;
		const char *text;
	} cases[] = {
		{{.version = 1}, "version is 1"},
		{{.version = 4}, "version is 4"},
		{{.cluster_bytes = 256}, "cluster size is 256"},
		{{.cluster_bytes = 3000}, "cluster size is 3000"},
		{{.cluster_bytes = 4 * MiB}, "cluster size is 4194304"},
		{{.refcount_bits = 3}, "3 bits"},
		{{.refcount_bits = 128}, "128 bits"},
		{{.version = 2, .refcount_bits = 8}, "version 2 images have 16"},
		{{.version = 2, .lazy_refcounts = true}, "lazy refcounts need version 3"},
		{{.preallocation = (enum qcow2_preallocation)4}, "preallocation mode 4"},
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		error = (struct error){0};
		assert_int_equal(qcow2_create_validate(&cases[i].o, &error), -EINVAL);
		assert_non_null(strstr(error.text, cases[i].text));
		assert_int_equal(create(&cases[i].o), -EINVAL);
		assert_int_equal(disk.ios, 0);
	}
}

static void test_not_empty(void **state)
{
	struct qcow2_create_options o = {.size_bytes = MiB};

	assert_int_equal(create(&o), 0);
	error = (struct error){0};
	memory_reset_counters(&disk);
	assert_int_equal(qcow2_create(&disk.st, &o, &error), -EEXIST);
	assert_int_equal(disk.ios, 0);
}

/* A power cut after any write: nothing, or (after the last) the whole image. */
static void crash_everywhere(bool device, const struct qcow2_create_options *o)
{
	for (unsigned cut = 0;; cut++) {
		memory_destroy(&disk);
		memory_init(&disk);
		if (device) {
			/* What lay there before was an image, too. */
			assert_int_equal(qcow2_create(&disk.st, o, &error), 0);
			memory_resize(&disk, 8 * MiB);
			disk.st.fixed_size = true;
			memory_reset_counters(&disk);
		}
		disk.writes_left = cut;
		error = (struct error){0};
		assert_int_equal(qcow2_create(&disk.st, o, &error), 0);
		if (!disk.lost)
			break;
		if (device && !cut)
			continue;
		assert_false(qcow2_probe(disk.data, min_of(disk.st.size_bytes, (uint64_t)512)));
	}
	assert_as_asked(o);
}

static void test_crash(void **state)
{
	struct qcow2_create_options o = {
		.version = 3,
		.size_bytes = 3 * MiB,
		.cluster_bytes = 512,
		.refcount_bits = 16,
		.preallocation = QCOW2_PREALLOC_FULL,
	};

	crash_everywhere(false, &o);
	crash_everywhere(true, &o);
	o.cluster_bytes = 65536;
	o.preallocation = QCOW2_PREALLOC_METADATA;
	crash_everywhere(false, &o);
	crash_everywhere(true, &o);
}

/* On a device nothing of what was there shows through. */
static void test_device_garbage(void **state)
{
	struct qcow2_create_options o = {
		.version = 3,
		.size_bytes = MiB,
		.cluster_bytes = 4096,
		.refcount_bits = 16,
		.preallocation = QCOW2_PREALLOC_METADATA,
	};

	memory_destroy(&disk);
	memory_init(&disk);
	memory_resize(&disk, 2 * MiB);
	memset(disk.data, 0xee, 2 * MiB);
	disk.st.fixed_size = true;
	assert_int_equal(qcow2_create(&disk.st, &o, &error), 0);
	assert_as_asked(&o);
	assert_null(memchr(disk.data, 0xee, MiB));
	memory_resize(&disk, MiB);
	error = (struct error){0};
	assert_int_equal(qcow2_create(&disk.st, &o, &error), -ENOSPC);
}

static void test_io_errors(void **state)
{
	struct qcow2_create_options o = {.size_bytes = MiB, .preallocation = QCOW2_PREALLOC_FULL};
	unsigned n;

	assert_int_equal(create(&o), 0);
	n = disk.ios;
	for (unsigned i = 1; i <= n; i++) {
		memory_destroy(&disk);
		memory_init(&disk);
		disk.fail_at = i;
		error = (struct error){0};
		assert_int_equal(qcow2_create(&disk.st, &o, &error), -EIO);
		assert_non_null(strstr(error.text, "memory: "));
		/* Only the sync after the last write may fail with an image in place. */
		if (i < n)
			assert_false(
				qcow2_probe(disk.data, min_of(disk.st.size_bytes, (uint64_t)512)));
	}
}

static int teardown(void **state)
{
	memory_destroy(&disk);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shapes),	    cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_size_limits), cmocka_unit_test(test_preallocation_limit),
		cmocka_unit_test(test_refused),	    cmocka_unit_test(test_not_empty),
		cmocka_unit_test(test_crash),	    cmocka_unit_test(test_device_garbage),
		cmocka_unit_test(test_io_errors),
	};

	return cmocka_run_group_tests(tests, NULL, teardown);
}
