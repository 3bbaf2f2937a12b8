// SPDX-License-Identifier: MIT
/*
 * Proves that every header field is held to its limit, with a message that names it; that what the
 * engine cannot serve is refused by name; and that an update of the header changes nothing else.
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
#include "qcow2/header.h"

static struct memory disk;
static struct qcow2_header header;
static struct error error;

static void make(unsigned version, uint32_t cluster_bytes, uint64_t size_bytes)
{
	struct qcow2_create_options options = {
		.version = version,
		.cluster_bytes = cluster_bytes,
		.size_bytes = size_bytes,
	};

	memory_destroy(&disk);
	memory_init(&disk);
	error = (struct error){0};
	assert_int_equal(qcow2_create(&disk.st, &options, &error), 0);
	memory_reset_counters(&disk);
}

static int read_header(void)
{
	error = (struct error){0};
	return qcow2_header_read(&disk.st, &header, &error);
}

static void put32(size_t offset, uint32_t value)
{
	be32_t be = be32_make(value);

	memcpy(disk.data + offset, &be, sizeof(be));
}

static void put64(size_t offset, uint64_t value)
{
	be64_t be = be64_make(value);

	memcpy(disk.data + offset, &be, sizeof(be));
}

/* The header must be refused with a message that holds @text. */
static void refused(int ret, int want, const char *text)
{
	if (ret != want || !strstr(error.text, text))
		print_error("got %d \"%s\", wanted %d \"%s\"\n", ret, error.text, want, text);
	assert_int_equal(ret, want);
	assert_non_null(strstr(error.text, text));
}

/* ---- fixed fields ---- */

struct field_case {
	size_t offset;
	unsigned bytes;
	uint64_t value;
	int ret; /* 0: accepted */
	const char *text;
};

/* On a version 3 image of 1 GiB with 64 KiB clusters; its L1 table has 2 entries. */
static const struct field_case cases_v3[] = {
	{0, 4, 0x514649fa, -EINVAL, "not a qcow2 image"},
	{0, 4, 0, -EINVAL, "not a qcow2 image"},
	{4, 4, 0, -ENOTSUP, "version 0"},
	{4, 4, 1, -ENOTSUP, "version 1"},
	{4, 4, 4, -ENOTSUP, "version 4"},
	{4, 4, 0xffffffff, -ENOTSUP, "version 4294967295"},
	{8, 8, 111, -EINVAL, "backing_file_offset is 111"},
	{8, 8, 112, 0, NULL},
	{8, 8, 65536, 0, NULL},
	{8, 8, 65537, -EINVAL, "backing_file_offset is 65537"},
	{8, 8, (uint64_t)1 << 63, -EINVAL, "backing_file_offset"},
	{20, 4, 5, -EINVAL, "cluster_bits is 5"},
	{20, 4, 8, -EINVAL, "cluster_bits is 8, not 9 to 21"},
	{20, 4, 22, -EINVAL, "cluster_bits is 22, not 9 to 21"},
	{20, 4, 40, -EINVAL, "cluster_bits is 40"},
	{20, 4, 0xffffffff, -EINVAL, "cluster_bits"},
	{24, 8, GiB + 511, 0, NULL},
	{24, 8, GiB + 512, -EINVAL, "l1_size is 2, less than the 3"},
	{24, 8, UINT64_MAX, -EINVAL, "l1_size is 2, less than"},
	{32, 4, 3, -ENOTSUP, "crypt_method is 3"},
	{32, 4, 1, 0, NULL},
	{32, 4, 2, -EINVAL, "no LUKS header extension"},
	{36, 4, 1, -EINVAL, "l1_size is 1, less than the 2"},
	{36, 4, 4194304, 0, NULL},
	{36, 4, 4194305, -EFBIG, "l1_size is 4194305, more than 4194304"},
	{36, 4, 0xffffffff, -EFBIG, "l1_size is 4294967295"},
	{40, 8, 512, -EINVAL, "l1_table_offset is 512, not a multiple"},
	{40, 8, 196609, -EINVAL, "l1_table_offset is 196609"},
	{48, 8, 65535, -EINVAL, "refcount_table_offset is 65535"},
	{56, 4, 128, 0, NULL},
	{56, 4, 129, -EFBIG, "refcount_table_clusters is 129, more than 128"},
	{56, 4, 0x80000001, -EFBIG, "refcount_table_clusters"},
	{72, 8, 8, -EINVAL, "compression type feature bit is set, but compression_type is 0"},
	{72, 8, (uint64_t)1 << 63, 0, NULL},
	{88, 8, 2, -EINVAL, "raw external data file, but has no data file"},
	{96, 4, 6, 0, NULL},
	{96, 4, 7, -EINVAL, "refcount_order is 7, more than 6"},
	{96, 4, 0xffffffff, -EINVAL, "refcount_order"},
	{100, 4, 1, -EINVAL, "header_length is 1,"},
	{100, 4, 96, -EINVAL, "header_length is 96, not 104 to 65536"},
	{100, 4, 105, -EINVAL, "header_length is 105, not a multiple of 8"},
	{100, 4, 65544, -EINVAL, "header_length is 65544"},
	{100, 4, 0x80000000, -EINVAL, "header_length is 2147483648"},
	{104, 1, 1, -EINVAL, "compression type feature bit is clear, but compression_type is 1"},
	{104, 1, 2, -ENOTSUP, "compression_type is 2"},
};

static void test_fields(void **state)
{
	for (size_t i = 0; i < ARRAY_LEN(cases_v3); i++) {
		const struct field_case *c = &cases_v3[i];

		make(3, 64 * KiB, GiB);
		if (c->bytes == 8)
			put64(c->offset, c->value);
		else if (c->bytes == 4)
			put32(c->offset, (uint32_t)c->value);
		else
			disk.data[c->offset] = (uint8_t)c->value;
		if (c->ret) {
			refused(read_header(), c->ret, c->text);
		} else if (read_header()) {
			print_error("field at %zu, value %lu: %s\n", c->offset, c->value,
				    error.text);
			fail();
		}
		assert_int_equal(disk.writes, 0);
	}
}

/* What version 2 does not have is not read from there. */
static void test_version_2(void **state)
{
	make(2, 4096, 10 * MiB);
	memset(disk.data + 72, 0xff, 40);
	put32(72, 0); /* an end of the extensions */
	assert_int_equal(read_header(), 0);
	assert_int_equal(header.incompatible | header.compatible | header.autoclear, 0);
	assert_int_equal(header.refcount_bits, 16);
	assert_int_equal(header.header_length, 72);
	assert_int_equal(header.size_bytes, 10 * MiB);
}

static void test_truncated(void **state)
{
	for (uint64_t size = 0; size < 112; size++) {
		make(3, 512, MiB);
		memory_resize(&disk, size);
		refused(read_header(), -EINVAL,
			size < 72    ? "not a qcow2 image"
			: size < 104 ? "header_length is"
				     : "ends inside the header");
	}
	make(3, 512, MiB);
	memory_resize(&disk, 112);
	assert_int_equal(read_header(), 0);
	refused(qcow2_header_check_tables(&header, 112, &error), -EINVAL, "outside the file");
}

static void test_io_errors(void **state)
{
	unsigned n;

	make(3, 64 * KiB, MiB);
	assert_int_equal(read_header(), 0);
	n = disk.ios;
	for (unsigned i = 1; i <= n; i++) {
		memory_reset_counters(&disk);
		disk.fail_at = i;
		refused(read_header(), -EIO, "cannot read the header");
	}
	assert_true(n > 0);
}

static void test_extended_l2_needs_large_clusters(void **state)
{
	make(3, 8192, MiB);
	put64(72, QCOW2_INCOMPAT_EXTENDED_L2);
	refused(read_header(), -EINVAL, "cluster_bits is 13, less than 14");
	make(3, 16384, MiB);
	put64(72, QCOW2_INCOMPAT_EXTENDED_L2);
	assert_int_equal(read_header(), 0);
	assert_int_equal(header.l2_bits, 10);
}

/* ---- extensions ---- */

/* Puts an extension in front of what is there, after byte 112; returns where the next one goes. */
static size_t put_ext(size_t at, uint32_t type, const void *data, uint32_t len)
{
	put32(at, type);
	put32(at + 4, len);
	memcpy(disk.data + at + 8, data, len);
	at += 8 + align_up(len, 8);
	put64(at, 0);
	return at;
}

static void make_for_extensions(void)
{
	make(3, 4096, MiB);
	memset(disk.data + 112, 0, 4096 - 112);
}

static void test_extension_lengths(void **state)
{
	static const uint8_t zeros[64];

	/* The last one ends with the cluster. */
	make_for_extensions();
	put32(112, 0x12345678);
	put32(116, 4096 - 120);
	assert_int_equal(read_header(), 0);
	put32(116, 4096 - 119);
	refused(read_header(), -EINVAL,
		"header extension 0x12345678 has 3977 bytes, but only 3976");
	put32(116, 0xffffffff);
	refused(read_header(), -EINVAL, "header extension 0x12345678");
	put32(116, 0x80000000);
	refused(read_header(), -EINVAL, "header extension 0x12345678");
	/* The backing file's name ends them. */
	put32(116, 100);
	put64(8, 219);
	put32(16, 1);
	refused(read_header(), -EINVAL, "only 99");
	put64(8, 220);
	disk.data[220] = 'x';
	assert_int_equal(read_header(), 0);
	assert_string_equal(header.backing_file, "x");
	/* Those of fixed length have it. */
	for (uint32_t len = 0; len <= 32; len += 8) {
		make_for_extensions();
		put_ext(112, QCOW2_EXT_LUKS, zeros, len);
		put32(32, 2);
		if (len == 16)
			assert_int_equal(read_header(), 0);
		else
			refused(read_header(), -EINVAL, "LUKS header extension has");
		make_for_extensions();
		put_ext(112, QCOW2_EXT_BITMAPS, zeros, len);
		if (len == 24)
			assert_int_equal(read_header(), 0);
		else
			refused(read_header(), -EINVAL, "bitmaps header extension has");
	}
}

static void test_names(void **state)
{
	char name[2048];

	memset(name, 'n', sizeof(name));
	make_for_extensions();
	put_ext(112, QCOW2_EXT_BACKING_FORMAT, name, 15);
	assert_int_equal(read_header(), 0);
	assert_int_equal(strlen(header.backing_format), 15);
	put_ext(112, QCOW2_EXT_BACKING_FORMAT, name, 16);
	refused(read_header(), -EINVAL, "backing file's format has 16 bytes, more than 15");

	make_for_extensions();
	put_ext(112, QCOW2_EXT_DATA_FILE, name, 1023);
	assert_int_equal(read_header(), 0);
	assert_int_equal(strlen(header.data_file_name), 1023);
	put_ext(112, QCOW2_EXT_DATA_FILE, name, 1024);
	refused(read_header(), -EINVAL, "data file's name has 1024 bytes");
	name[5] = '\0';
	put_ext(112, QCOW2_EXT_DATA_FILE, name, 10);
	refused(read_header(), -EINVAL, "data file's name has a NUL inside");

	make_for_extensions();
	put64(8, 2000);
	memset(disk.data + 2000, 'b', 2000);
	put32(16, 1023);
	assert_int_equal(read_header(), 0);
	assert_int_equal(strlen(header.backing_file), 1023);
	put32(16, 1024);
	refused(read_header(), -EINVAL, "backing_file_size is 1024");
	put32(16, 0xffffffff);
	refused(read_header(), -EINVAL, "backing_file_size is 4294967295");
	put64(8, 4090);
	put32(16, 6);
	assert_int_equal(read_header(), 0);
	put32(16, 7);
	refused(read_header(), -EINVAL, "backing_file_size is 7");
	/* NULs at the end are no part of it. */
	put32(16, 6);
	memcpy(disk.data + 4090, "ab\0\0\0\0", 6);
	assert_int_equal(read_header(), 0);
	assert_string_equal(header.backing_file, "ab");
	memcpy(disk.data + 4090, "ab\0\0\0c", 6);
	refused(read_header(), -EINVAL, "NUL inside");
}

static void put_bitmaps(uint32_t n, uint64_t size, uint64_t offset, uint32_t reserved)
{
	struct qcow2_disk_bitmaps_ext ext = {be32_make(n), be32_make(reserved), be64_make(size),
					     be64_make(offset)};

	make_for_extensions();
	put_ext(112, QCOW2_EXT_BITMAPS, &ext, sizeof(ext));
	put64(88, QCOW2_AUTOCLEAR_BITMAPS);
}

static void test_bitmaps(void **state)
{
	put_bitmaps(65535, (uint64_t)1024 * 65535, 4096, 0);
	assert_int_equal(read_header(), 0);
	assert_true(header.has_bitmaps_ext);
	assert_int_equal(header.nb_bitmaps, 65535);
	put_bitmaps(65536, 24, 4096, 0);
	refused(read_header(), -EINVAL, "nb_bitmaps is 65536, not 1 to 65535");
	put_bitmaps(0, 24, 4096, 0);
	refused(read_header(), -EINVAL, "nb_bitmaps is 0");
	put_bitmaps(1, (uint64_t)1024 * 65535 + 1, 4096, 0);
	refused(read_header(), -EFBIG, "bitmap_directory_size");
	put_bitmaps(1, 24, 4097, 0);
	refused(read_header(), -EINVAL, "bitmap_directory_offset is 4097");
	put_bitmaps(1, 24, 4096, 1);
	refused(read_header(), -EINVAL, "reserved field");
	/* Somebody wrote without knowing bitmaps: then they need not make sense. */
	put64(88, 0);
	assert_int_equal(read_header(), 0);
}

static void test_luks(void **state)
{
	struct qcow2_disk_luks_ext ext = {be64_make(8192), be64_make(592)};

	make_for_extensions();
	put_ext(112, QCOW2_EXT_LUKS, &ext, sizeof(ext));
	refused(read_header(), -EINVAL, "LUKS header extension, but crypt_method is 0");
	put32(32, 2);
	assert_int_equal(read_header(), 0);
	assert_int_equal(header.luks_offset, 8192);
	ext.offset = be64_make(8193);
	put_ext(112, QCOW2_EXT_LUKS, &ext, sizeof(ext));
	refused(read_header(), -EINVAL, "LUKS header's offset is 8193");
}

/* ---- tables ---- */

static int check_tables(void)
{
	int ret = read_header();

	assert_int_equal(ret, 0);
	return qcow2_header_check_tables(&header, disk.st.size_bytes, &error);
}

/* Layout: header, refcount table, block, L1, each one cluster. */
static void test_tables(void **state)
{
	make(3, 4096, MiB);
	assert_int_equal(check_tables(), 0);
	put64(40, 4096);
	refused(check_tables(), -EINVAL, "refcount table at 4096 overlaps the L1 table");
	put64(40, 0);
	refused(check_tables(), -EINVAL, "L1 table at 0 overlaps the header");
	put64(40, 16384);
	refused(check_tables(), -EINVAL, "L1 table at 16384");
	put64(40, 0xfffffffffffff000);
	refused(check_tables(), -EINVAL, "L1 table");

	make(3, 4096, MiB);
	put64(48, 0);
	refused(check_tables(), -EINVAL, "refcount table at 0 overlaps the header");
	put64(48, (uint64_t)1 << 40);
	refused(check_tables(), -EINVAL, "refcount table at 1099511627776");
	make(3, 4096, MiB);
	put32(56, 3);
	refused(check_tables(), -EINVAL, "overlaps");
	put32(56, 0);
	refused(check_tables(), -EINVAL, "refcount_table_clusters is 0");

	make(3, 4096, MiB);
	put32(60, 65537);
	refused(check_tables(), -EFBIG, "nb_snapshots is 65537, more than 65536");
	put32(60, 1);
	put64(64, 100);
	refused(check_tables(), -EINVAL, "snapshots_offset is 100");
	put64(64, 1 << 20);
	refused(check_tables(), -EINVAL, "snapshot table at 1048576");
	put64(64, 8192);
	assert_int_equal(check_tables(), 0);
	put64(64, 12288);
	refused(check_tables(), -EINVAL, "snapshot table at 12288 overlaps the L1 table");
}

static void test_truncated_tables(void **state)
{
	make(3, 4096, MiB);
	assert_int_equal(header.l1_entries, 1);
	memory_resize(&disk, 12288 + 8);
	assert_int_equal(check_tables(), 0);
	memory_resize(&disk, 12288 + 7);
	refused(check_tables(), -EINVAL, "lies outside the file of 12295 bytes");
}

/* ---- what can be served ---- */

static int servable(bool read_only)
{
	int ret = read_header();

	assert_int_equal(ret, 0);
	return qcow2_header_servable(&header, read_only, &error);
}

static void test_servable(void **state)
{
	make(3, 64 * KiB, MiB);
	assert_int_equal(servable(false), 0);
	put64(80, ~(uint64_t)0);
	assert_int_equal(servable(false), 0); /* compatible bits may be ignored */
	put64(88, ~(uint64_t)2);
	assert_int_equal(servable(false), 0); /* autoclear bits are the engine's business */
	put64(72, QCOW2_INCOMPAT_DIRTY);
	assert_int_equal(servable(false), 0);
	put64(72, QCOW2_INCOMPAT_CORRUPT);
	refused(servable(false), -EROFS, "marked corrupt");
	error = (struct error){0};
	assert_int_equal(qcow2_header_servable(&header, true, &error), 0);
}

static void test_not_servable(void **state)
{
	static const struct field_case cases[] = {
		{72, 8, 32, -ENOTSUP, "unknown incompatible feature (bit 5)"},
		{72, 8, (uint64_t)1 << 63, -ENOTSUP, "unknown incompatible feature (bit 63)"},
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		make(3, 64 * KiB, MiB);
		if (cases[i].bytes == 8)
			put64(cases[i].offset, cases[i].value);
		else
			put32(cases[i].offset, (uint32_t)cases[i].value);
		refused(servable(true), cases[i].ret, cases[i].text);
		refused(servable(false), cases[i].ret, cases[i].text);
	}
}

/* The image's own name for a feature is shown, without what could move a cursor. */
static void test_feature_names(void **state)
{
	struct qcow2_disk_feature_name row[2] = {{0, 17, "fancy \033[2J"}, {1, 18, "not this"}};

	make_for_extensions();
	put_ext(112, QCOW2_EXT_FEATURE_NAMES, row, sizeof(row));
	put64(72, (uint64_t)1 << 17);
	refused(servable(true), -ENOTSUP, "\"fancy ?[2J\" (bit 17)");
	put64(72, (uint64_t)1 << 18);
	refused(servable(true), -ENOTSUP, "unknown incompatible feature (bit 18)");
	/* A name may fill its row; a bit past 63 is no bit. */
	memset(row[0].name, 'x', sizeof(row[0].name));
	row[1].type = 0;
	row[1].bit = 200;
	put_ext(112, QCOW2_EXT_FEATURE_NAMES, row, sizeof(row));
	put64(72, (uint64_t)1 << 17);
	refused(servable(true), -ENOTSUP, "xxxxxxx\" (bit 17)");
}

/* ---- updates ---- */

static void test_updates(void **state)
{
	static uint8_t before[8192];

	for (unsigned block = 512; block <= 4096; block *= 2) {
		make(3, 4096, MiB);
		disk.st.block_bytes = block;
		memset(disk.data + 200, 0xa5, 300); /* whatever it is, it stays */
		put64(200, 0);
		put32(112, 0x99999999);
		put32(116, 80);
		assert_int_equal(read_header(), 0);
		memcpy(before, disk.data, sizeof(before));

		memory_reset_counters(&disk);
		assert_int_equal(qcow2_header_set_refcount_table(&disk.st, &header, 8192, 2), 0);
		assert_int_equal(disk.writes, 1);
		assert_int_equal(disk.syncs, 0);
		assert_int_equal(disk.last_offset, 0);
		assert_int_equal(disk.last_len, block);
		assert_memory_equal(disk.data, before, 48);
		assert_memory_equal(disk.data + 60, before + 60, sizeof(before) - 60);
		assert_int_equal(read_header(), 0);
		assert_int_equal(header.rt_offset, 8192);
		assert_int_equal(header.rt_clusters, 2);

		memcpy(before, disk.data, sizeof(before));
		assert_int_equal(qcow2_header_set_features(&disk.st, &header, 1, 1, 0), 0);
		assert_memory_equal(disk.data, before, 72);
		assert_memory_equal(disk.data + 96, before + 96, sizeof(before) - 96);
		assert_int_equal(read_header(), 0);
		assert_int_equal(header.incompatible, QCOW2_INCOMPAT_DIRTY);
		assert_int_equal(header.compatible, QCOW2_COMPAT_LAZY_REFCOUNTS);

		assert_int_equal(qcow2_header_set_l1(&disk.st, &header, 16384, 7), 0);
		assert_int_equal(read_header(), 0);
		assert_int_equal(header.l1_offset, 16384);
		assert_int_equal(header.l1_entries, 7);
	}
}

static void test_update_version_2(void **state)
{
	static uint8_t before[512];

	make(2, 4096, MiB);
	memset(disk.data + 72, 0, 400);
	memset(disk.data + 100, 0x77, 300);
	memcpy(before, disk.data, sizeof(before));
	assert_int_equal(read_header(), 0);
	assert_int_equal(qcow2_header_set_refcount_table(&disk.st, &header, 4096, 1), 0);
	assert_memory_equal(disk.data, before, sizeof(before));
}

static void test_update_errors(void **state)
{
	make(3, 4096, MiB);
	assert_int_equal(read_header(), 0);
	for (unsigned i = 1; i <= 2; i++) {
		memory_reset_counters(&disk);
		disk.fail_at = i;
		assert_int_equal(qcow2_header_set_features(&disk.st, &header, 1, 0, 0), -EIO);
		assert_int_equal(header.incompatible, 0);
	}
	/* Where there are no snapshots their table's place means nothing, and may be put back as it was. */
	memory_reset_counters(&disk);
	put64(64, 12345);
	assert_int_equal(read_header(), 0);
	assert_int_equal(qcow2_header_set_snapshots(&disk.st, &header, 4096, 1), 0);
	assert_int_equal(qcow2_header_set_snapshots(&disk.st, &header, 12345, 0), 0);
	assert_int_equal(read_header(), 0);
	assert_int_equal(header.snapshots_offset, 12345);
	/* The file is not what it was. */
	memory_reset_counters(&disk);
	put32(0, 0);
	assert_int_equal(qcow2_header_set_features(&disk.st, &header, 1, 0, 0), -EIO);
	assert_int_equal(disk.writes, 0);
}

static int teardown(void **state)
{
	memory_destroy(&disk);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fields),
		cmocka_unit_test(test_version_2),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_io_errors),
		cmocka_unit_test(test_extended_l2_needs_large_clusters),
		cmocka_unit_test(test_extension_lengths),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_bitmaps),
		cmocka_unit_test(test_luks),
		cmocka_unit_test(test_tables),
		cmocka_unit_test(test_truncated_tables),
		cmocka_unit_test(test_servable),
		cmocka_unit_test(test_not_servable),
		cmocka_unit_test(test_feature_names),
		cmocka_unit_test(test_updates),
		cmocka_unit_test(test_update_version_2),
		cmocka_unit_test(test_update_errors),
	};

	return cmocka_run_group_tests(tests, NULL, teardown);
}
