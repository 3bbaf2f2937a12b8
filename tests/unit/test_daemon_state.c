// SPDX-License-Identifier: MIT
/*
 * Proves that what is written about a device is read back to the byte, that a process is known by more
 * than its number, that damaged files are refused, and that names are made printable.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/math.h"
#include "base/text.h"
#include "daemon/entry.h"
#include "daemon/process.h"
#include "daemon/statedir.h"

static struct statedir dir;
static char base[] = "/tmp/test_daemon_state.XXXXXX";

static int setup(void **state)
{
	char path[64];
	struct error err = {0};

	if (!mkdtemp(base))
		return -1;
	snprintf(path, sizeof(path), "%s/state", base);
	setenv("UBLK_QCOW2_RUN_DIR", path, 1);
	return statedir_open(&dir, true, &err);
}

static int teardown(void **state)
{
	unlinkat(dir.fd, "lock", 0);
	rmdir(dir.path);
	statedir_close(&dir);
	return rmdir(base);
}

static void file_write(const char *name, const void *data, size_t len)
{
	int fd = openat(dir.fd, name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, len), len);
	close(fd);
}

static void entry_make(struct entry *e)
{
	struct error err = {0};

	memset(e, 0, sizeof(*e));
	assert_int_equal(entry_init(e, &err), 0);
	e->state = ENTRY_LIVE;
	e->id = 7;
	strcpy(e->frontend, "ublk");
	strcpy(e->target, "qcow2");
	strcpy(e->device, "/dev/ublkb7");
	/* Whatever a file name may be. */
	strcpy(e->image, "/a \"b\"\\\n\xff\xc3\x28/\xe2\x82\xac.qcow2");
	strcpy(e->image_id, "file:1:18446744073709551615");
	e->size_bytes = INT64_MAX;
	e->queues = 3;
	e->depth = 4096;
	e->read_only = true;
	e->direct = true;
	e->started = 1234567890123;
	e->recovery = true;
	e->recovery_fail = true;
	e->backing_any = true;
	e->compress = true;
	e->discard_ignore = true;
	e->detect_zeroes = 2;
	strcpy(e->backing_format, "raw");
	strcpy(e->snapshot, "before \"\xff\xc3\x28");
	memcpy(e->backing_dirs, "/a\n\xff\0/b c\0", sizeof("/a\n\xff\0/b c\0"));
	e->cache_size_bytes = 123456;
	e->writeback_delay_ms = 789;
	e->supervisor = e->process;
	e->supervisor.start_ticks++;
}

static void list_one(struct entry *out)
{
	struct entry_list list;
	struct error err = {0};

	assert_int_equal(entry_list_read(&list, &dir, &err), 0);
	assert_int_equal(list.unreadable, 0);
	assert_int_equal(list.count, 1);
	*out = list.entries[0];
	entry_list_free(&list);
}

static void test_entry_round(void **state)
{
	struct entry e, got;
	struct error err = {0};

	entry_make(&e);
	assert_int_equal(entry_write(&e, &dir, &err), 0);
	list_one(&got);
	/* Every field: the structure is zeroed before it is filled in, by both. */
	assert_memory_equal(&e, &got, sizeof(e));

	/* Rewritten, with what is not known yet. */
	e.state = ENTRY_STARTING;
	e.id = -1;
	e.device[0] = e.image[0] = e.image_id[0] = '\0';
	e.read_only = e.direct = false;
	memset(e.device, 0, sizeof(e.device));
	memset(e.image, 0, sizeof(e.image));
	memset(e.image_id, 0, sizeof(e.image_id));
	assert_int_equal(entry_write(&e, &dir, &err), 0);
	list_one(&got);
	assert_memory_equal(&e, &got, sizeof(e));
	entry_remove(&e, &dir);
}

static void test_entry_dead(void **state)
{
	struct entry e, got;
	struct error err = {0};

	/* The same number, another start: with recovery the device waits, without it is of no use. */
	entry_make(&e);
	e.process.start_ticks++;
	assert_int_equal(entry_write(&e, &dir, &err), 0);
	list_one(&got);
	assert_int_equal(got.state, ENTRY_QUIESCED);
	e.recovery = false;
	assert_int_equal(entry_write(&e, &dir, &err), 0);
	list_one(&got);
	assert_int_equal(got.state, ENTRY_DEAD);
	/* A supervisor that is there starts another one. */
	e.recovery = true;
	e.supervisor.start_ticks = e.process.start_ticks - 1;
	assert_int_equal(entry_write(&e, &dir, &err), 0);
	list_one(&got);
	assert_int_equal(got.state, ENTRY_RECOVERING);
	/* The same number and start, before the machine was started anew. */
	entry_make(&e);
	e.process.boot_id[0] ^= 1;
	assert_int_equal(entry_write(&e, &dir, &err), 0);
	list_one(&got);
	assert_int_equal(got.state, ENTRY_DEAD);
	entry_remove(&e, &dir);
}

/* Every file that is cut short or has a byte changed is an entry or is refused, and never more. */
static void test_entry_damaged(void **state)
{
	struct error err = {0};
	char name[64], text[8192];
	struct entry_list list;
	struct entry e;
	ssize_t len;
	int fd;

	entry_make(&e);
	assert_int_equal(entry_write(&e, &dir, &err), 0);
	snprintf(name, sizeof(name), "%s.json", e.key);
	fd = openat(dir.fd, name, O_RDONLY);
	len = read(fd, text, sizeof(text));
	close(fd);
	assert_in_range(len, 100, sizeof(text) - 1);
	for (ssize_t cut = 0; cut < len - 2; cut++) {
		file_write(name, text, (size_t)cut);
		assert_int_equal(entry_list_read(&list, &dir, &err), 0);
		assert_int_equal(list.count, 0);
		assert_int_equal(list.unreadable, 1);
		entry_list_free(&list);
	}
	for (ssize_t at = 0; at < len; at++) {
		char was = text[at];

		for (unsigned bit = 0; bit < 8; bit++) {
			text[at] = (char)(was ^ (1 << bit));
			file_write(name, text, (size_t)len);
			assert_int_equal(entry_list_read(&list, &dir, &err), 0);
			assert_int_equal(list.count + list.unreadable, 1);
			entry_list_free(&list);
		}
		text[at] = was;
	}
	entry_remove(&e, &dir);
}

static void test_entry_refused(void **state)
{
	static const char *const texts[] = {"", "{}", "[]", "null", "[[[[", "{\"pid\": 1}"};
	static char large[100000];
	struct entry_list list;
	struct error err = {0};

	for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
		file_write("1-1.json", texts[i], strlen(texts[i]));
		assert_int_equal(entry_list_read(&list, &dir, &err), 0);
		assert_int_equal(list.count, 0);
		assert_int_equal(list.unreadable, 1);
		entry_list_free(&list);
	}
	memset(large, ' ', sizeof(large));
	file_write("1-1.json", large, sizeof(large));
	assert_int_equal(entry_list_read(&list, &dir, &err), 0);
	assert_int_equal(list.unreadable, 1);
	entry_list_free(&list);
	unlinkat(dir.fd, "1-1.json", 0);

	/* Not a file: a link to one, a pipe (which would make a reader wait), a folder. */
	assert_int_equal(symlinkat("/etc/passwd", dir.fd, "2-1.json"), 0);
	assert_int_equal(mkfifoat(dir.fd, "2-2.json", 0600), 0);
	assert_int_equal(mkdirat(dir.fd, "2-3.json", 0700), 0);
	assert_int_equal(entry_list_read(&list, &dir, &err), 0);
	assert_int_equal(list.count, 0);
	assert_int_equal(list.unreadable, 3);
	entry_list_free(&list);
	unlinkat(dir.fd, "2-1.json", 0);
	unlinkat(dir.fd, "2-2.json", 0);
	unlinkat(dir.fd, "2-3.json", AT_REMOVEDIR);

	/* Not ours: passed over. */
	file_write("other", "x", 1);
	assert_int_equal(entry_list_read(&list, &dir, &err), 0);
	assert_int_equal(list.count + list.unreadable, 0);
	entry_list_free(&list);
	unlinkat(dir.fd, "other", 0);
}

static void test_process(void **state)
{
	struct process self, other;
	int fds[2], fd, status;
	pid_t pid;
	char c;

	assert_int_equal(process_self(&self), 0);
	assert_int_equal(self.pid, getpid());
	assert_true(process_alive(&self));

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	if (pid == 0) {
		/* Its own account of itself, then until the pipe ends. */
		if (process_self(&other) || write(fds[1], &other, sizeof(other)) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(fds[0], &other, sizeof(other)), sizeof(other));
	assert_int_equal(other.pid, pid);
	assert_true(process_alive(&other));
	fd = process_open(&other);
	assert_true(fd >= 0);
	assert_int_equal(process_wait(fd, 0), -ETIMEDOUT);
	kill(pid, SIGKILL);
	assert_int_equal(process_wait(fd, 10000), 0);
	close(fd);
	/* A zombie is gone, and so is what follows. */
	assert_false(process_alive(&other));
	assert_int_equal(process_open(&other), -ESRCH);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_false(process_alive(&other));
	close(fds[1]);
	assert_int_equal(read(fds[0], &c, 1), 0);
	close(fds[0]);

	other = self;
	other.pid = 0;
	assert_false(process_alive(&other));
	other.pid = -1;
	assert_false(process_alive(&other));
}

static void test_lock(void **state)
{
	struct statedir second;
	struct error err = {0};
	int status;
	pid_t pid;

	assert_int_equal(statedir_lock(&dir, &err), 0);
	pid = fork();
	if (pid == 0) {
		/* Waits for the parent, and gets it then. */
		if (statedir_open(&second, false, &err) || statedir_lock(&second, &err))
			_exit(1);
		_exit(0);
	}
	usleep(200000);
	assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
	statedir_unlock(&dir);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_statedir_refused(void **state)
{
	struct statedir d;
	struct error err = {0};
	char good[64], path[64];

	snprintf(good, sizeof(good), "%s", getenv("UBLK_QCOW2_RUN_DIR"));
	snprintf(path, sizeof(path), "%s/none", base);
	setenv("UBLK_QCOW2_RUN_DIR", path, 1);
	assert_int_equal(statedir_open(&d, false, &err), -ENOENT);
	assert_string_equal(err.text, "");
	assert_int_equal(d.fd, -1);
	/* Others may write. */
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(chmod(path, 0770), 0);
	assert_int_equal(statedir_open(&d, true, &err), -EPERM);
	rmdir(path);
	/* A link, to wherever. */
	assert_int_equal(symlink(good, path), 0);
	memset(&err, 0, sizeof(err));
	assert_true(statedir_open(&d, true, &err) < 0);
	assert_true(err.text[0]);
	unlink(path);
	setenv("UBLK_QCOW2_RUN_DIR", "relative", 1);
	memset(&err, 0, sizeof(err));
	assert_int_equal(statedir_open(&d, true, &err), -EINVAL);
	setenv("UBLK_QCOW2_RUN_DIR", good, 1);
}

static void test_text_escape(void **state)
{
	static const struct {
		const char *name, *text;
	} cases[] = {
		{"", ""},
		{"plain name.qcow2", "plain name.qcow2"},
		{"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80",
		 "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"},
		{"a\nb\tc\x7f", "a\\x0ab\\x09c\\x7f"},
		{"\x1b[2J", "\\x1b[2J"},
		{"\xff\xfe", "\\xff\\xfe"},
		{"\xc3", "\\xc3"},
		{"\xe2\x82", "\\xe2\\x82"},
		{"\xc0\xaf", "\\xc0\\xaf"},
		{"\xe0\x80\xaf", "\\xe0\\x80\\xaf"},
		{"\xed\xa0\x80", "\\xed\\xa0\\x80"},
		{"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"},
		{"\xf8\x88\x80\x80\x80", "\\xf8\\x88\\x80\\x80\\x80"},
		{"\xc2\x9b", "\\xc2\\x9b"},
		{"a\xe2\x80\xae", "a\\xe2\\x80\\xae"},
		{"\xe2\x81\xa6", "\\xe2\\x81\\xa6"},
		{"\xef\xbb\xbf", "\\xef\\xbb\\xbf"},
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char *text = text_escape(cases[i].name);

		assert_non_null(text);
		assert_string_equal(text, cases[i].text);
		free(text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_entry_round),	 cmocka_unit_test(test_entry_dead),
		cmocka_unit_test(test_entry_damaged),	 cmocka_unit_test(test_entry_refused),
		cmocka_unit_test(test_process),		 cmocka_unit_test(test_lock),
		cmocka_unit_test(test_statedir_refused), cmocka_unit_test(test_text_escape),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
