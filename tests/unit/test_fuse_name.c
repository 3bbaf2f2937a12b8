/* SPDX-License-Identifier: MIT */
/*
 * proves: whatever an image is called, the name of its FUSE file is one safe component of a path.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fuse/name.h"

static void check(const char *name, const char *wanted)
{
	char out[FUSE_NAME_BYTES];

	memset(out, 'x', sizeof(out));
	fuse_name_sanitize(out, name);
	assert_string_equal(out, wanted);
}

static void test_ordinary(void **state)
{
	check("disk.qcow2", "disk.qcow2");
	check("my disk (2).qcow2", "my disk (2).qcow2");
	check("gr\xc3\xb6\xc3\x9f"
	      "e.img",
	      "gr\xc3\xb6\xc3\x9f"
	      "e.img");
}

static void test_empty(void **state)
{
	check(NULL, "image");
	check("", "image");
}

static void test_hostile(void **state)
{
	check(".", "_");
	check("..", "_.");
	check("../../etc/passwd", "_._.._etc_passwd");
	check(".state", "_state");
	check("-rf", "_rf");
	check("a\nb\tc\033[31m\x7f", "a_b_c_[31m_");
	check("a\\040b", "a_040b");
}

static void test_long(void **state)
{
	char name[4000], wanted[FUSE_NAME_BYTES];

	memset(name, 'n', sizeof(name));
	name[sizeof(name) - 1] = '\0';
	memset(wanted, 'n', sizeof(wanted));
	wanted[sizeof(wanted) - 1] = '\0';
	check(name, wanted);

	/* a two-byte character across the limit goes away whole */
	name[FUSE_NAME_BYTES - 2] = '\xc3';
	name[FUSE_NAME_BYTES - 1] = '\xb6';
	wanted[FUSE_NAME_BYTES - 2] = '\0';
	check(name, wanted);

	/* one that ends at the limit stays */
	name[FUSE_NAME_BYTES - 3] = '\xc3';
	name[FUSE_NAME_BYTES - 2] = '\xb6';
	name[FUSE_NAME_BYTES - 1] = 'n';
	wanted[FUSE_NAME_BYTES - 3] = '\xc3';
	wanted[FUSE_NAME_BYTES - 2] = '\xb6';
	check(name, wanted);
}

static void test_random(void **state)
{
	char name[300], out[FUSE_NAME_BYTES];

	srandom(1);
	for (int i = 0; i < 20000; i++) {
		size_t len = (size_t)random() % (sizeof(name) - 1);

		for (size_t j = 0; j < len; j++)
			name[j] = (char)(random() % 255 + 1);
		name[len] = '\0';
		fuse_name_sanitize(out, name);
		assert_in_range(strlen(out), 1, FUSE_NAME_BYTES - 1);
		assert_true(out[0] != '.' && out[0] != '-');
		for (const char *p = out; *p; p++)
			assert_true((unsigned char)*p >= 0x20 && *p != 0x7f && *p != '/' &&
				    *p != '\\');
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ordinary), cmocka_unit_test(test_empty),
		cmocka_unit_test(test_hostile),	 cmocka_unit_test(test_long),
		cmocka_unit_test(test_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
