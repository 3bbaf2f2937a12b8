// SPDX-License-Identifier: MIT
/*
 * Proves that the checker counts each kind of damage as often as it is there, within its memory
 * bound and a few reads; and that a repair mends it whatever moment of it a power cut or an I/O
 * error hits.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/math.h"
#include "memory.h"
#include "qcow2.h"
#include "qcow2/check.h"
#include "qcow2/header.h"

/*
 * A preallocated disk of 64 clusters of 4 KiB and some spare L1 entries: 0 header, 1 refcount
 * table, 2 block, 3 L1, 4 L2, 5 to 68 data.
 */
enum {
	CLUSTER = 4096,
	RT = 1 * CLUSTER,
	BLOCK = 2 * CLUSTER,
	L1 = 3 * CLUSTER,
	L2 = 4 * CLUSTER,
	DATA = 5 * CLUSTER,
	CLUSTERS = 64,
};

static struct memory disk, work;
static struct error error;
static struct qcow2_check_result result;

static uint64_t get64(const struct memory *m, uint64_t offset)
{
	be64_t be;

	memcpy(&be, m->data + offset, sizeof(be));
	return be64_get(be);
}

static void put64(uint64_t offset, uint64_t value)
{
	be64_t be = be64_make(value);

	memcpy(disk.data + offset, &be, sizeof(be));
}

static void put_refcount(uint64_t cluster, uint64_t value)
{
	qcow2_refcount_set(disk.data + BLOCK, (uint32_t)cluster, 4, value);
}

static void make(void)
{
	struct qcow2_create_options options = {
		.size_bytes = CLUSTERS * CLUSTER,
		.cluster_bytes = CLUSTER,
		.preallocation = QCOW2_PREALLOC_METADATA,
	};

	memory_destroy(&disk);
	memory_init(&disk);
	error = (struct error){0};
	assert_int_equal(qcow2_create(&disk.st, &options, &error), 0);
	memory_reset_counters(&disk);
}

static int check(struct memory *m, enum qcow2_repair repair)
{
	struct qcow2_check_options options = {.repair = repair};

	error = (struct error){0};
	return qcow2_check(&m->st, &options, &result, &error);
}

static void found(uint64_t corruptions, uint64_t leaks)
{
	assert_int_equal(check(&disk, QCOW2_REPAIR_NONE), 0);
	assert_int_equal(result.corruptions, corruptions);
	assert_int_equal(result.leaks, leaks);
	assert_int_equal(result.errors, 0);
}

/* ---- what is found ---- */

static void test_sound(void **state)
{
	make();
	found(0, 0);
	assert_int_equal(result.total_clusters, CLUSTERS);
	assert_int_equal(result.allocated_clusters, CLUSTERS);
	assert_int_equal(result.fragmented_clusters, 0);
	assert_int_equal(result.image_end_offset, DATA + CLUSTERS * CLUSTER);
	assert_int_equal(disk.writes, 0);
	/* The header's first blocks, and the file. */
	assert_true(disk.reads <= 2);
}

static void test_damage(void **state)
{
	make();
	put_refcount(40, 2);
	found(1, 1); /* the flag no longer fits, either */
	make();
	put_refcount(40, 0);
	found(2, 0);
	make();
	put64(L2, 0);
	found(0, 1);
	make();
	put64(L2, DATA | QCOW2_ZERO | QCOW2_COPIED);
	found(0, 0);
	make();
	put64(L2, DATA);
	found(1, 0);
	make();
	put64(L2, QCOW2_COPIED | DATA | 2);
	found(1, 0);
	make();
	put64(L2, QCOW2_COPIED | (DATA + 512)); /* not aligned: two clusters get a reference */
	found(2, 0);
	make();
	put64(L2, QCOW2_COPIED | (DATA + CLUSTER)); /* one twice, one not at all */
	found(1, 1);
	make();
	put64(L2, QCOW2_COPIED | (uint64_t)1 << 40);
	found(2, 1);
	make();
	put64(L1, L2);
	found(1, 0);
	make();
	put64(L1, QCOW2_COPIED | L2 | 4);
	found(1, 0);
	make();
	put64(L1, 0);
	found(0, 1 + CLUSTERS);
	make();
	put64(RT, 0);
	found(4 + CLUSTERS + 1 + CLUSTERS, 0); /* all but the block; and all flags */
}

static void test_unknown_refcounts(void **state)
{
	make();
	put64(RT, BLOCK + 512);
	assert_int_equal(check(&disk, QCOW2_REPAIR_NONE), 0);
	assert_int_equal(result.errors, DATA / CLUSTER + CLUSTERS);
	assert_int_equal(result.corruptions, 1);
}

static void test_counts_grow(void **state)
{
	make();
	for (unsigned i = 1; i < CLUSTERS; i++)
		put64(L2 + 8 * i, DATA);
	put64(L2, DATA);
	/* One L2 table, again and again: 8 times 64 references to one cluster. */
	for (unsigned i = 0; i < 8; i++)
		put64(L1 + 8 * i, L2);
	memcpy(disk.data + 36, "\0\0\0\10", 4);
	put_refcount(4, 8);
	put_refcount(5, 8 * CLUSTERS);
	found(0, CLUSTERS - 1);
}

static void test_too_many_references(void **state)
{
	struct qcow2_create_options options = {
		.size_bytes = CLUSTERS * CLUSTER,
		.cluster_bytes = CLUSTER,
		.refcount_bits = 1,
		.preallocation = QCOW2_PREALLOC_METADATA,
	};

	memory_destroy(&disk);
	memory_init(&disk);
	assert_int_equal(qcow2_create(&disk.st, &options, &error), 0);
	found(0, 0);
	put64(L2 + 8, get64(&disk, L2));
	found(1, 1);
}

static void test_memory_bound(void **state)
{
	struct qcow2_check_options options = {.memory_bytes = 4 * MiB};

	make();
	assert_int_equal(qcow2_check(&disk.st, &options, &result, &error), 0);
	disk.st.size_bytes = (uint64_t)1 << 40; /* the storage's reads give zeros there */
	disk.st.size_bytes = CLUSTERS * CLUSTER + DATA;
	memory_resize(&disk, 64 * MiB);
	options.memory_bytes = 8 * KiB;
	error = (struct error){0};
	assert_int_equal(qcow2_check(&disk.st, &options, &result, &error), -ENOMEM);
	assert_non_null(strstr(error.text, "more than the bound allows"));
}

/* One table behind every L1 entry: a small file that would take forever, were there more entries.
 */
static void test_work_bound(void **state)
{
	struct qcow2_check_options options = {.work_bytes = 100 * CLUSTER};

	make();
	memcpy(disk.data + 36, "\0\0\2\0", 4); /* 512 entries */
	for (unsigned i = 0; i < 512; i++)
		put64(L1 + 8 * i, L2);
	assert_int_equal(qcow2_check(&disk.st, &options, &result, &error), -E2BIG);
	assert_non_null(strstr(error.text, "would take too long"));
	error = (struct error){0};
	options.work_bytes = 512 * CLUSTER + 512 * 8; /* the L1 table itself */
	assert_int_equal(qcow2_check(&disk.st, &options, &result, &error), 0);
}

/* One table of all dirty bitmaps. */
static void test_work_bound_of_bitmaps(void **state)
{
	struct qcow2_check_options options = {.work_bytes = 8 * MiB};
	const uint32_t n = 100, entries = QCOW2_MAX_BITMAP_BYTES / CLUSTER;
	const uint64_t table = DATA + CLUSTER, table_bytes = entries * 8;
	const struct qcow2_disk_bitmap bitmap = {.table_offset = be64_make(table),
						 .table_entries = be32_make(entries),
						 .type = QCOW2_BITMAP_TYPE_DIRTY,
						 .granularity_bits = 16};
	const struct qcow2_disk_extension head = {be32_make(QCOW2_EXT_BITMAPS), be32_make(24)};
	const struct qcow2_disk_bitmaps_ext ext = {.nb_bitmaps = be32_make(n),
						   .directory_size = be64_make(n * sizeof(bitmap)),
						   .directory_offset = be64_make(DATA)};

	make();
	memory_resize(&disk, table + table_bytes);
	memset(disk.data + table, 0, table_bytes);
	for (unsigned i = 0; i < n; i++)
		memcpy(disk.data + DATA + i * sizeof(bitmap), &bitmap, sizeof(bitmap));
	memcpy(disk.data + 112, &head, sizeof(head));
	memcpy(disk.data + 112 + sizeof(head), &ext, sizeof(ext));
	memset(disk.data + 112 + sizeof(head) + sizeof(ext), 0, sizeof(head));
	put64(88, QCOW2_AUTOCLEAR_BITMAPS);
	assert_int_equal(qcow2_check(&disk.st, &options, &result, &error), -E2BIG);
	assert_non_null(strstr(error.text, "would take too long"));
	error = (struct error){0};
	options.work_bytes = 0;
	assert_int_equal(qcow2_check(&disk.st, &options, &result, &error), 0);
}

/* As many flags to be set right as there are L1 entries: not a write for each. */
static void test_repair_many_flags(void **state)
{
	const unsigned n = 512;

	make();
	memcpy(disk.data + 36, "\0\0\2\0", 4); /* 512 entries */
	for (unsigned i = 0; i < n; i++)
		put64(L1 + 8 * i, QCOW2_COPIED | L2);
	for (unsigned i = 0; i <= CLUSTERS; i++)
		put_refcount(4 + i, n);
	memory_copy(&work, &disk);
	assert_int_equal(check(&work, QCOW2_REPAIR_ALL), 0);
	assert_int_equal(result.corruptions_fixed, n + CLUSTERS);
	assert_true(work.writes <= n / 32);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(get64(&work, L1 + 8 * i), L2);
	assert_int_equal(check(&work, QCOW2_REPAIR_NONE), 0);
	assert_int_equal(result.corruptions + result.leaks + result.errors, 0);

	/* what lies between those that are repaired stays */
	for (unsigned i = 0; i < n; i++)
		put64(L1 + 8 * i, i % 5 ? L2 : QCOW2_COPIED | L2);
	memory_copy(&work, &disk);
	assert_int_equal(check(&work, QCOW2_REPAIR_ALL), 0);
	assert_int_equal(result.corruptions_fixed, (n + 4) / 5 + CLUSTERS);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(get64(&work, L1 + 8 * i), L2);
}

/*
 * A snapshot table whose entries are incomplete and that goes past the end of the file, so that it is not
 * counted: the new one is, and the old one has nothing to give back. With counts of a bit that was noticed.
 */
static void test_repair_snapshots_past_end(void **state)
{
	const uint32_t at = 8 * CLUSTER, name = 60000;
	const struct qcow2_disk_snapshot first = {.id_len = be16_make(1)},
					 second = {.name_len = be16_make((uint16_t)name)};

	for (unsigned order = 0; order <= 4; order += 4) {
		struct qcow2_create_options options = {
			.cluster_bytes = CLUSTER, .size_bytes = CLUSTER, .refcount_bits = 1u << order};

		memory_destroy(&disk);
		memory_init(&disk);
		error = (struct error){0};
		assert_int_equal(qcow2_create(&disk.st, &options, &error), 0);
		memory_resize(&disk, 40 * CLUSTER);
		memcpy(disk.data + 39 * CLUSTER, &first, sizeof(first));
		memcpy(disk.data + 39 * CLUSTER + 48, &second, sizeof(second));
		memcpy(disk.data + 60, "\0\0\0\2", 4);
		put64(64, 39 * CLUSTER);
		qcow2_refcount_set(disk.data + BLOCK, 39, order, 1);
		memory_copy(&work, &disk);
		assert_int_equal(check(&work, QCOW2_REPAIR_ALL), 0);
		assert_true(get64(&work, 64) >= 4 * CLUSTER && get64(&work, 64) <= at);
		assert_int_equal(check(&work, QCOW2_REPAIR_NONE), 0);
		assert_int_equal(result.corruptions + result.leaks + result.errors, 0);
	}
}

/* A repair that makes the file longer, of an image whose L1 table goes past its end. */
static void test_repair_grows_file(void **state)
{
	make();
	put64(40, DATA + (CLUSTERS - 1) * CLUSTER);
	memcpy(disk.data + 36, "\0\0\20\0", 4); /* 4096 entries, 512 of them in the file */
	memset(disk.data + BLOCK, 0, CLUSTER);
	for (unsigned i = 0; i < 512; i++)
		put64(DATA + (CLUSTERS - 1) * CLUSTER + 8 * i, i < CLUSTERS + 5 ? i * CLUSTER : 0);
	memory_copy(&work, &disk);
	assert_int_equal(check(&work, QCOW2_REPAIR_ALL), 0);
	assert_true(work.st.size_bytes > disk.st.size_bytes);
	/* The part of the table that is there was not taken for free space. */
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(get64(&work, DATA + (CLUSTERS - 1) * CLUSTER + 8 * i) &
					 ~QCOW2_COPIED,
				 i < CLUSTERS + 5 ? i * CLUSTER : 0);
}

/* Every read fails in turn: an error, or a finding that says that something was not checked. */
static void test_read_errors(void **state)
{
	for (int large = 0; large < 2; large++) {
		unsigned n;

		make();
		if (large)
			memory_resize(&disk, 4 * MiB);
		assert_int_equal(check(&disk, QCOW2_REPAIR_NONE), 0);
		n = disk.ios;
		assert_true(n > 0);
		for (unsigned i = 1; i <= n; i++) {
			memory_reset_counters(&disk);
			disk.fail_at = i;
			assert_int_equal(check(&disk, QCOW2_REPAIR_NONE), -EIO);
			assert_non_null(strstr(error.text, "cannot read"));
		}
	}
}

static void test_not_for_unknown_features(void **state)
{
	make();
	put64(72, (uint64_t)1 << 40);
	assert_int_equal(check(&disk, QCOW2_REPAIR_ALL), -ENOTSUP);
	assert_int_equal(disk.writes, 0);
}

static void test_read_only(void **state)
{
	make();
	disk.st.read_only = true;
	assert_int_equal(check(&disk, QCOW2_REPAIR_ALL), -EROFS);
	assert_int_equal(check(&disk, QCOW2_REPAIR_NONE), 0);
}

/* ---- repair ---- */

static void damage_leak(void)
{
	put64(L2, 0);
	put_refcount(69, 3); /* past the end of the file: nobody's */
	put_refcount(10, 4);
}

static void damage_low(void)
{
	put64(L2 + 8, get64(&disk, L2)); /* two entries share a cluster whose count is 1 */
}

static void damage_lost_block(void)
{
	put64(RT, 0);
}

static void damage_zeroed_block(void)
{
	memset(disk.data + BLOCK, 0, CLUSTER);
}

static void damage_block_elsewhere(void)
{
	put64(RT, L2); /* the L2 table as a refcount block */
}

static void damage_flags(void)
{
	for (unsigned i = 0; i < CLUSTERS; i += 3)
		put64(L2 + 8 * i, get64(&disk, L2 + 8 * i) & ~QCOW2_COPIED);
	put64(L1, L2);
}

static void damage_unaligned_zeros(void)
{
	put64(L2 + 16, QCOW2_ZERO | QCOW2_COPIED | (DATA + 512));
}

static void damage_dirty(void)
{
	damage_zeroed_block();
	put64(72, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
	put64(88, (uint64_t)1 << 50);
}

static void damage_all(void)
{
	damage_leak();
	damage_low();
	damage_flags();
	damage_unaligned_zeros();
	damage_dirty();
}

static void (*const damages[])(void) = {
	damage_leak,
	damage_low,
	damage_lost_block,
	damage_zeroed_block,
	damage_block_elsewhere,
	damage_flags,
	damage_unaligned_zeros,
	damage_dirty,
	damage_all,
};

/* The place in the file of each guest cluster is what it was, flags aside; broken zeros are zeros.
 */
static void assert_same_map(const struct memory *a)
{
	uint64_t offset = QCOW2_L2_OFFSET_MASK;

	assert_int_equal(get64(a, L1) & offset, get64(&disk, L1) & offset);
	for (unsigned i = 0; i < CLUSTERS; i++) {
		uint64_t before = get64(&disk, L2 + 8 * i), after = get64(a, L2 + 8 * i);

		if (!is_aligned(before & offset, CLUSTER)) {
			assert_true(after == before || after == QCOW2_ZERO);
			continue;
		}
		assert_int_equal(after & ~QCOW2_COPIED, before & ~QCOW2_COPIED);
		assert_memory_equal(a->data + (after & offset), disk.data + (after & offset),
				    after & offset ? CLUSTER : 0);
	}
}

static void assert_mended(struct memory *m)
{
	assert_int_equal(check(m, QCOW2_REPAIR_NONE), 0);
	assert_int_equal(result.corruptions, 0);
	assert_int_equal(result.leaks, 0);
	assert_int_equal(result.errors, 0);
	assert_int_equal(get64(m, 72), 0);
	assert_same_map(m);
}

static void make_damaged(size_t i)
{
	make();
	for (size_t j = 0; j < CLUSTERS * CLUSTER; j++)
		disk.data[DATA + j] = (uint8_t)(j * 7 + j / CLUSTER);
	damages[i]();
}

static void test_repair(void **state)
{
	for (size_t i = 0; i < ARRAY_LEN(damages); i++) {
		make_damaged(i);
		memory_copy(&work, &disk);
		assert_int_equal(check(&work, QCOW2_REPAIR_ALL), 0);
		assert_int_equal(result.corruptions, 0);
		assert_int_equal(result.leaks, 0);
		assert_true(result.corruptions_fixed + result.leaks_fixed > 0);
		assert_mended(&work);
		assert_int_equal(get64(&work, 88), 0); /* unknown autoclear bits are cleared */
	}
}

static void test_repair_leaks_only(void **state)
{
	make();
	damage_leak();
	memory_copy(&work, &disk);
	assert_int_equal(check(&work, QCOW2_REPAIR_LEAKS), 0);
	assert_int_equal(result.leaks_fixed, 2);
	assert_mended(&work);

	make();
	damage_low();
	put_refcount(30, 5);
	memory_copy(&work, &disk);
	assert_int_equal(check(&work, QCOW2_REPAIR_LEAKS), 0);
	assert_int_equal(result.leaks_fixed, 2);
	assert_true(result.corruptions > 0);

	make();
	damage_zeroed_block();
	memory_copy(&work, &disk);
	assert_int_equal(check(&work, QCOW2_REPAIR_LEAKS), -EIO);
	assert_memory_equal(work.data, disk.data, disk.st.size_bytes);
}

/*
 * Power cuts: at any moment of the repair, what was synced is there, and of the rest any sectors.
 * No crash state may have damage of a kind that repairing again does not mend.
 */
static void crash_states(size_t i, unsigned tries)
{
	static struct memory crashed;
	unsigned states = 0;

	for (unsigned cut = 0;; cut++) {
		make_damaged(i);
		memory_copy(&work, &disk);
		memory_journal(&work, true);
		work.writes_left = cut;
		(void)!check(&work, QCOW2_REPAIR_ALL);
		for (unsigned t = 0; t < tries; t++) {
			memory_init(&crashed);
			memory_crash_state(&crashed, &work, t);
			assert_int_equal(check(&crashed, QCOW2_REPAIR_ALL), 0);
			assert_mended(&crashed);
			memory_destroy(&crashed);
			states++;
		}
		memory_journal(&work, false);
		if (!work.lost)
			break;
	}
	assert_true(states >= 2 * tries);
}

static void test_repair_crash(void **state)
{
	for (size_t i = 0; i < ARRAY_LEN(damages); i++)
		crash_states(i, 20);
}

static void test_repair_io_errors(void **state)
{
	for (size_t i = 0; i < ARRAY_LEN(damages); i++) {
		unsigned n;

		make_damaged(i);
		memory_copy(&work, &disk);
		assert_int_equal(check(&work, QCOW2_REPAIR_ALL), 0);
		n = work.ios;
		for (unsigned at = 1; at <= n; at++) {
			memory_copy(&work, &disk);
			work.fail_at = at;
			assert_int_equal(check(&work, QCOW2_REPAIR_ALL), -EIO);
			assert_true(error.text[0]);
			memory_reset_counters(&work);
			assert_int_equal(check(&work, QCOW2_REPAIR_ALL), 0);
			assert_mended(&work);
		}
	}
}

static void test_repair_dirty(void **state)
{
	static struct qcow2_header h;

	make();
	damage_dirty();
	put64(72, QCOW2_INCOMPAT_DIRTY);
	memory_copy(&work, &disk);
	assert_int_equal(qcow2_header_read(&work.st, &h, &error), 0);
	assert_int_equal(qcow2_repair_dirty(&work.st, &h, &error), 0);
	assert_int_equal(h.incompatible, 0);
	assert_int_not_equal(h.rt_offset, RT);
	assert_mended(&work);

	/* What cannot be mended is not declared clean. */
	put64(L2, QCOW2_COPIED | (uint64_t)1 << 40);
	memory_copy(&work, &disk);
	error = (struct error){0};
	assert_int_equal(qcow2_header_read(&work.st, &h, &error), 0);
	assert_int_equal(qcow2_repair_dirty(&work.st, &h, &error), -EIO);
	assert_non_null(strstr(error.text, "could not be repaired"));
	assert_int_equal(get64(&work, 72), QCOW2_INCOMPAT_DIRTY);
}

static int teardown(void **state)
{
	memory_destroy(&disk);
	memory_destroy(&work);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sound),
		cmocka_unit_test(test_damage),
		cmocka_unit_test(test_unknown_refcounts),
		cmocka_unit_test(test_counts_grow),
		cmocka_unit_test(test_too_many_references),
		cmocka_unit_test(test_memory_bound),
		cmocka_unit_test(test_work_bound),
		cmocka_unit_test(test_work_bound_of_bitmaps),
		cmocka_unit_test(test_repair_grows_file),
		cmocka_unit_test(test_read_errors),
		cmocka_unit_test(test_not_for_unknown_features),
		cmocka_unit_test(test_read_only),
		cmocka_unit_test(test_repair),
		cmocka_unit_test(test_repair_leaks_only),
		cmocka_unit_test(test_repair_many_flags),
		cmocka_unit_test(test_repair_snapshots_past_end),
		cmocka_unit_test(test_repair_crash),
		cmocka_unit_test(test_repair_io_errors),
		cmocka_unit_test(test_repair_dirty),
	};

	memory_init(&work);
	return cmocka_run_group_tests(tests, NULL, teardown);
}
