// SPDX-License-Identifier: MIT
/*
 * Proves that sizes are read as qemu-img reads them, that nothing overflows, and that what is no size
 * is refused whole.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/math.h"
#include "base/size.h"

static void test_accepted(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} cases[] = {
		{"0", 0},
		{"1", 1},
		{"512b", 512},
		{"512B", 512},
		{"64k", 64 * KiB},
		{"64K", 64 * KiB},
		{"1.5G", 3 * GiB / 2},
		{"1.5g", 3 * GiB / 2},
		{"0.5T", TiB / 2},
		{"1.7k", 1740},
		{"5.", 5},
		{"5.k", 5 * KiB},
		{"1.0", 1},
		{"0x10", 16},
		{"0Xff", 255},
		{"2P", 2048 * TiB},
		{"7.5E", (uint64_t)15 << 59},
		{"1.0000000000000000000000000001k", KiB},
		{"9223372036854775807", INT64_MAX},
		{"00000000000000000000000000000001k", KiB},
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		uint64_t out = 12345;

		print_message("%s\n", cases[i].text);
		assert_int_equal(size_parse(cases[i].text, &out), 0);
		assert_true(out == cases[i].bytes);
	}
}

static void test_refused(void **state)
{
	static const struct {
		const char *text;
		int ret;
	} cases[] = {
		{"", -EINVAL},
		{"k", -EINVAL},
		{"-1", -EINVAL},
		{"+1", -EINVAL},
		{" 1", -EINVAL},
		{"1 ", -EINVAL},
		{"1 k", -EINVAL},
		{".5G", -EINVAL},
		{"1.5", -EINVAL},
		{"1.5b", -EINVAL},
		{"1.5.5", -EINVAL},
		{"1,5G", -EINVAL},
		{"1e3", -EINVAL},
		{"5kb", -EINVAL},
		{"5KiB", -EINVAL},
		{"0x", -EINVAL},
		{"0x10k", -EINVAL},
		{"0x1.8", -EINVAL},
		{"1z", -EINVAL},
		{"nan", -EINVAL},
		{"8E", -ERANGE},
		{"9223372036854775808", -ERANGE},
		{"18446744073709551616", -ERANGE},
		{"99999999999999999999999999", -ERANGE},
		{"8191P", 0},
		{"8192P", -ERANGE},
		{"0xffffffffffffffff", -ERANGE},
		{"0x10000000000000000", -ERANGE},
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		uint64_t out = 12345;

		print_message("%s\n", cases[i].text);
		assert_int_equal(size_parse(cases[i].text, &out), cases[i].ret);
		if (cases[i].ret)
			assert_true(out == 12345);
	}
}

static void test_format(void **state)
{
	char buf[SIZE_TEXT_MAX];

	assert_string_equal(size_format(0, buf), "0 B");
	assert_string_equal(size_format(999, buf), "999 B");
	assert_string_equal(size_format(1000, buf), "0.977 KiB");
	assert_string_equal(size_format(200704, buf), "196 KiB");
	assert_string_equal(size_format(3 * GiB / 2, buf), "1.5 GiB");
	assert_string_equal(size_format(16 * TiB, buf), "16 TiB");
	assert_true(strlen(size_format(UINT64_MAX, buf)) < SIZE_TEXT_MAX);
	assert_string_equal(buf, "16 EiB");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_accepted),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_format),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
