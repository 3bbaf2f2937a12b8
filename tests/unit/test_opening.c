// SPDX-License-Identifier: MIT
/*
 * Proves of the engine's opening of an image that was not closed, or that others made: a replayed log frees once
 * what it unlinked once, and is refused where others have used the image meanwhile, compressed clusters
 * included, or made dirty bitmaps; of dirty bitmaps that are broken or absurdly long little is read, and
 * nothing kept.
 */
#include "engine.h"

/* @log: LOG_BYTES of it, page aligned. */
static struct qcow2_options with_log(void *log)
{
	return (struct qcow2_options){.no_lock = true,
				      .log_base = log,
				      .log_bytes = LOG_BYTES,
				      .log_identity = "test",
				      .log_identity_bytes = 4};
}

static void test_replay_frees_once(void **state)
{
	static _Alignas(4096) uint8_t log[LOG_BYTES], log_then[LOG_BYTES];
	struct qcow2_options opts = with_log(log);
	static struct memory then;

	create(4096, 16, MiB);
	start(&opts);
	assert_int_equal(request(BLK_WRITE, 0, 0, 4096), 0);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	assert_int_equal(request(BLK_WRITE_ZEROES, BLK_NOUNMAP, 0, 4096), 0);
	assert_int_equal(request(BLK_WRITE, 0, 0, 512), 0);
	assert_int_equal(request(BLK_DISCARD, 0, 0, 4096), 0);
	/* as if it were killed here */
	memory_init(&then);
	memory_copy(&then, &disk);
	memcpy(log_then, log, sizeof(log));
	assert_int_equal(stop(), 0);

	memory_copy(&disk, &then);
	opts.log_base = log_then;
	opts.log_recover = true;
	start(&opts);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	assert_int_equal(img->corruption_reports, 0);
	assert_int_equal(request(BLK_WRITE, 0, 8192, 4096), 0);
	assert_int_equal(stop(), 0);
	assert_sound();
	memory_destroy(&then);
}

/* ---- dirty bitmaps, put into the image as it is ---- */

struct named_bitmap {
	struct qcow2_disk_bitmap disk;
	char name[8];
};

/* Adjacent clusters for somebody; where they are. */
static uint64_t take_clusters(uint64_t clusters)
{
	struct qcow2_options opts = {.no_lock = true};
	uint64_t hcluster, hoff;

	assert_int_equal(qcow2_open(&img, &disk.st, &opts, &error), 0);
	assert_int_equal(alloc_contiguous(img, clusters, &hcluster), 0);
	hoff = hcluster << img->cluster_bits;
	assert_int_equal(image_write_zeros(img, hoff, clusters << img->cluster_bits), 0);
	assert_int_equal(qcow2_close(img, &error), 0);
	return hoff;
}

/* @n of them, alike but for their names, whose tables have @apart bytes each. */
static void put_bitmaps(unsigned n, uint32_t flags, uint64_t table, uint64_t apart,
			uint32_t entries, unsigned granularity_bits, uint64_t directory)
{
	struct qcow2_disk_bitmaps_ext ext = {
		.nb_bitmaps = be32_make(n),
		.directory_size = be64_make(n * sizeof(struct named_bitmap)),
		.directory_offset = be64_make(directory)};
	struct qcow2_disk_extension head;
	uint64_t at = 112;

	for (unsigned i = 0; i < n; i++) {
		struct named_bitmap b = {.disk = {.table_offset = be64_make(table + i * apart),
						  .table_entries = be32_make(entries),
						  .flags = be32_make(flags),
						  .type = QCOW2_BITMAP_TYPE_DIRTY,
						  .granularity_bits = (uint8_t)granularity_bits,
						  .name_len = be16_make(2)},
					 .name = {(char)('a' + i / 26), (char)('a' + i % 26)}};

		memcpy(disk.data + directory + i * sizeof(b), &b, sizeof(b));
	}
	for (;; at += sizeof(head) + align_up(be32_get(head.len_bytes), 8)) {
		memcpy(&head, disk.data + at, sizeof(head));
		/* in its place: the smallest cluster has no room for both */
		if (!be32_get(head.type) || be32_get(head.type) == QCOW2_EXT_FEATURE_NAMES)
			break;
	}
	head = (struct qcow2_disk_extension){be32_make(QCOW2_EXT_BITMAPS), be32_make(sizeof(ext))};
	memcpy(disk.data + at, &head, sizeof(head));
	memcpy(disk.data + at + sizeof(head), &ext, sizeof(ext));
	memset(disk.data + at + sizeof(head) + sizeof(ext), 0, sizeof(head));
	disk.data[95] |= QCOW2_AUTOCLEAR_BITMAPS;
}

/* One of the whole disk of 1 MiB, made by somebody else. */
static void add_bitmap(uint32_t flags)
{
	uint64_t table = take_clusters(2);

	put_bitmaps(1, flags, table, 0, 1, 16, table + 4096);
	assert_sound();
}

/* Opens the image with a log that was left, when its locks had not been held for some time. */
static int recover_lapsed(struct qcow2_options *opts, const uint8_t *log)
{
	static _Alignas(4096) uint8_t again[LOG_BYTES];
	int ret;

	memcpy(again, log, sizeof(again));
	opts->log_base = again;
	opts->log_recover = opts->log_lapsed = true;
	ret = qcow2_open(&img, &disk.st, opts, &error);
	return ret ? ret : qcow2_close(img, &error);
}

/* Where a guest cluster's data lie. */
static uint64_t mapped_at(uint64_t gcluster)
{
	static struct qcow2_header h;
	uint64_t l2;

	assert_int_equal(qcow2_header_read(&disk.st, &h, &error), 0);
	l2 = be64_at(h.l1_offset) & QCOW2_L1_OFFSET_MASK;
	return be64_at(l2 + gcluster * 8) & QCOW2_L2_OFFSET_MASK;
}

/*
 * Killed with a cluster linked in the log alone; then somebody else takes that cluster, a snapshot, or
 * makes a dirty bitmap: one that is in use already was there before.
 */
static void test_what_others_did_is_seen(void **state)
{
	static _Alignas(4096) uint8_t log[LOG_BYTES], left[LOG_BYTES];
	struct qcow2_options plain = {.no_lock = true}, opts = with_log(log);
	static struct memory then;
	uint64_t hoff, directory;

	create(4096, 16, MiB);
	start(&opts);
	assert_int_equal(request(BLK_WRITE, 0, 0, 4096), 0);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	memset(buffer, 'l', 4096);
	assert_int_equal(request(BLK_WRITE, 0, 4096, 4096), 0);
	memory_init(&then);
	memory_copy(&then, &disk);
	memcpy(left, log, sizeof(left));
	assert_int_equal(stop(), 0);

	memory_copy(&disk, &then);
	assert_int_equal(recover_lapsed(&opts, left), 0);
	assert_sound();
	hoff = mapped_at(1);
	assert_true(hoff);

	memory_copy(&disk, &then);
	add_bitmap(QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
	assert_int_equal(recover_lapsed(&opts, left), 0);
	assert_sound();

	memory_copy(&disk, &then);
	add_bitmap(QCOW2_BITMAP_AUTO);
	assert_int_equal(recover_lapsed(&opts, left), -ESTALE);
	assert_sound();

	/* its directory, its table, and what this refers to */
	for (unsigned i = 0; i < 3; i++) {
		static struct qcow2_header h;
		be64_t entry = be64_make(hoff);
		uint64_t table;

		memory_copy(&disk, &then);
		table = take_clusters(2);
		directory = table + 4096;
		assert_int_equal(qcow2_header_read(&disk.st, &h, &error), 0);
		qcow2_refcount_set(disk.data + be64_at(h.rt_offset), (uint32_t)(hoff >> 12), 4, 1);
		memset(disk.data + hoff, 0, 4096);
		if (i == 2)
			memcpy(disk.data + table, &entry, sizeof(entry));
		put_bitmaps(1, 0, i == 1 ? hoff : table, 0, 1, 16, i == 0 ? hoff : directory);
		assert_int_equal(recover_lapsed(&opts, left), -ESTALE);
	}

	memory_copy(&disk, &then);
	start(&plain);
	/* the first is at the end of the file, the next ones where there is room */
	for (unsigned i = 2; i < 10; i++)
		assert_int_equal(request(BLK_WRITE, 0, i * 4096, 4096), 0);
	assert_int_equal(stop(), 0);
	assert_int_equal(recover_lapsed(&opts, left), -ESTALE);
	assert_sound();

	memory_copy(&disk, &then);
	assert_int_equal(qcow2_open(&img, &disk.st, &plain, &error), 0);
	assert_int_equal(qcow2_snapshot_create(img, "s", NULL, &error), 0);
	assert_int_equal(qcow2_close(img, &error), 0);
	assert_int_equal(recover_lapsed(&opts, left), -ESTALE);
	assert_sound();
	memory_destroy(&then);
}

/* The same of clusters that the log has compressed data in, several guest clusters' in one. */
static void test_what_others_did_to_compressed_is_seen(void **state)
{
	static _Alignas(4096) uint8_t log[LOG_BYTES], left[LOG_BYTES];
	struct qcow2_options plain = {.no_lock = true}, opts = with_log(log);
	static struct memory then;

	opts.compress = true;
	create(4096, 16, MiB);
	start(&opts);
	/* a third of it is left: they do not all go into the host cluster of the first */
	memset(buffer, 'c', 4096);
	for (unsigned i = 0; i < 1300; i++)
		((uint8_t *)buffer)[i] = (uint8_t)rand();
	assert_int_equal(request(BLK_WRITE, 0, 0, 4096), 0);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	for (unsigned i = 1; i < 8; i++)
		assert_int_equal(request(BLK_WRITE, 0, i * 4096, 4096), 0);
	memory_init(&then);
	memory_copy(&then, &disk);
	memcpy(left, log, sizeof(left));
	assert_int_equal(stop(), 0);

	memory_copy(&disk, &then);
	assert_int_equal(recover_lapsed(&opts, left), 0);
	assert_sound();

	memory_copy(&disk, &then);
	start(&plain);
	for (unsigned i = 8; i < 16; i++)
		assert_int_equal(request(BLK_WRITE, 0, i * 4096, 4096), 0);
	assert_int_equal(stop(), 0);
	assert_int_equal(recover_lapsed(&opts, left), -ESTALE);
	assert_sound();
	memory_destroy(&then);
}

static void test_long_tables_are_not_read(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	uint64_t directory;

	create(64 * KiB, 16, MiB);
	directory = take_clusters(2);
	put_bitmaps(20, QCOW2_BITMAP_AUTO, directory + 64 * KiB, 0, QCOW2_MAX_BITMAP_TABLE_ENTRIES,
		    16, directory);
	memory_reset_counters(&disk);
	assert_int_equal(qcow2_open(&img, &disk.st, &opts, &error), 0);
	assert_true(disk.reads < 100);
	assert_null(img->reclaim.keep);
	assert_int_equal(qcow2_close(img, &error), 0);

	/* each by itself can be: 8 MiB long, for a disk of 4 TiB */
	create(512, 16, MiB);
	directory = take_clusters(64);
	put_bitmaps(20, QCOW2_BITMAP_AUTO, directory + 2 * KiB, 0, 1 << 20, 16, directory);
	memory_reset_counters(&disk);
	assert_int_equal(qcow2_open(&img, &disk.st, &opts, &error), 0);
	assert_true(disk.reads < 20000);
	assert_null(img->reclaim.keep);
	assert_int_equal(qcow2_close(img, &error), 0);
}

/* One alone could be kept up to date, but two are too long together, whatever is in the first. */
static void test_broken_tables_count(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	uint64_t tables, entries = 4800;
	be64_t broken = be64_make(QCOW2_BITMAP_ENTRY_RESERVED);

	create(64 * KiB, 16, entries * 64 * KiB * 8 * 512);
	tables = take_clusters(3);
	put_bitmaps(2, QCOW2_BITMAP_AUTO, tables, 64 * KiB, (uint32_t)entries, 9,
		    tables + 128 * KiB);
	assert_int_equal(qcow2_open(&img, &disk.st, &opts, &error), 0);
	assert_int_equal(img->bitmaps.v[0].role, BITMAP_OURS);
	assert_int_equal(img->bitmaps.v[1].role, BITMAP_SPOILED);
	assert_int_equal(qcow2_close(img, &error), 0);

	memcpy(disk.data + tables + (entries - 1) * 8, &broken, sizeof(broken));
	assert_int_equal(qcow2_open(&img, &disk.st, &opts, &error), 0);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(img->bitmaps.v[i].role, BITMAP_SPOILED);
		assert_null(img->bitmaps.v[i].table);
	}
	assert_int_equal(qcow2_close(img, &error), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_replay_frees_once),
		cmocka_unit_test(test_what_others_did_is_seen),
		cmocka_unit_test(test_what_others_did_to_compressed_is_seen),
		cmocka_unit_test(test_long_tables_are_not_read),
		cmocka_unit_test(test_broken_tables_count),
	};
	int ret = cmocka_run_group_tests(tests, NULL, NULL);

	memory_destroy(&disk);
	return ret;
}
