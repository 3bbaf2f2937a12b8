/* SPDX-License-Identifier: MIT */
/*
 * Proves that the first error message wins and is clean of control characters, that an error
 * without a message still has a text, and that a log message is one clean line of a level that was
 * asked for.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/error.h"
#include "base/log.h"

static void test_first_wins(void **state)
{
	struct error err = {0};

	assert_int_equal(error_set(&err, -EINVAL, "%s: %d", "first", 1), -EINVAL);
	assert_int_equal(error_set(&err, -EIO, "second"), -EIO);
	assert_string_equal(err.text, "first: 1");
	assert_string_equal(error_text(&err, -EIO), "first: 1");
}

static void test_no_message(void **state)
{
	struct error err = {0};

	assert_int_equal(error_set(NULL, -EIO, "lost"), -EIO);
	assert_string_equal(error_text(NULL, -ENOENT), "No such file or directory");
	assert_string_equal(error_text(&err, -ENOENT), "No such file or directory");
	assert_non_null(error_text(NULL, -99999));
}

static void test_control_characters(void **state)
{
	struct error err = {0};
	char longer[3000];

	error_set(&err, -EINVAL, "a\033[31mb\nc\td\x7f\xc3\xa9");
	assert_string_equal(err.text, "a?[31mb?c?d?\xc3\xa9");
	/* also those of a terminal with 8 bits, what turns the text around, and what is no UTF-8 */
	err.text[0] = '\0';
	error_set(&err, -EINVAL, "a\xc2\x9b" "31mb\xe2\x80\xae" "c\xff\xc3");
	assert_string_equal(err.text, "a??31mb???c??");
	err.text[0] = '\0';
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	error_set(&err, -EINVAL, "%s", longer);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
}

/* What @fn's one message leaves on standard error. */
static void captured(char *text, size_t size, enum log_level level, const char *message)
{
	int fds[2], old = dup(STDERR_FILENO);
	ssize_t n;

	assert_int_equal(pipe(fds), 0);
	dup2(fds[1], STDERR_FILENO);
	errno = ENOTTY;
	log_msg(level, "%s", message);
	assert_int_equal(errno, ENOTTY);
	dup2(old, STDERR_FILENO);
	close(old);
	close(fds[1]);
	n = read(fds[0], text, size - 1);
	text[n > 0 ? n : 0] = '\0';
	close(fds[0]);
}

static void test_log(void **state)
{
	char text[4096], longer[3000];

	captured(text, sizeof(text), LOG_LEVEL_WARN, "one\ntwo\033");
	assert_string_equal(text, "ublk-qcow2: warning: one?two?\n");
	captured(text, sizeof(text), LOG_LEVEL_WARN, "one\xc2\x85two\xff\xc3\xa9");
	assert_string_equal(text, "ublk-qcow2: warning: one??two?\xc3\xa9\n");
	captured(text, sizeof(text), LOG_LEVEL_DEBUG, "not wanted");
	assert_string_equal(text, "");
	log_open(false, "tester", LOG_LEVEL_DEBUG);
	captured(text, sizeof(text), LOG_LEVEL_DEBUG, "wanted");
	assert_string_equal(text, "tester: debug: wanted\n");
	log_open(false, "tester", LOG_LEVEL_ERR);
	captured(text, sizeof(text), LOG_LEVEL_WARN, "not wanted");
	assert_string_equal(text, "");
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	captured(text, sizeof(text), LOG_LEVEL_ERR, longer);
	assert_int_equal(text[strlen(text) - 1], '\n');
	assert_true(strlen(text) > 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_first_wins),
		cmocka_unit_test(test_no_message),
		cmocka_unit_test(test_control_characters),
		cmocka_unit_test(test_log),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
