/* SPDX-License-Identifier: MIT */
/*
 * Proves, against QEMU's own programs, that image locks exclude each other both ways, that what may
 * be shared is shared, that a conflict is told by name, and that closing lets go at once.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/math.h"
#include "ring/loop.h"
#include "storage/storage.h"

#define CR STORAGE_PERM_CONSISTENT_READ
#define W  STORAGE_PERM_WRITE
#define WU STORAGE_PERM_WRITE_UNCHANGED
#define RS STORAGE_PERM_RESIZE

static char dir[64], path[96];

static struct storage *open_file(bool read_only)
{
	struct storage_file_options o = {.read_only = read_only};
	struct error err = {0};
	struct storage *st;
	int ret = storage_file_open(&st, path, &o, &err);

	if (ret)
		fail_msg("%s", error_text(&err, ret));
	return st;
}

static int run(const char *fmt, ...)
{
	char cmd[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	return system(cmd);
}

/* The locked bytes that a process' descriptors show, as "100 101 ..."; of @pid, on our image. */
static void locked_bytes(long pid, char *text, size_t size)
{
	char cmd[512];
	FILE *p;

	snprintf(cmd, sizeof(cmd),
		 "for f in /proc/%ld/fd/*; do [ \"$(readlink $f)\" = %s ] || continue;"
		 " grep -h OFDLCK /proc/%ld/fdinfo/${f##*/}; done |"
		 " awk '{for (b = $8; b <= $9; b++) print b}' | sort -n | tr '\\n' ' '",
		 pid, path, pid);
	p = popen(cmd, "re");
	assert_non_null(p);
	if (!fgets(text, (int)size, p))
		text[0] = '\0';
	pclose(p);
}

/* ---- a qemu-io that keeps the image open ---- */

struct qemu_io {
	pid_t pid;
	FILE *in;
};

static struct qemu_io qemu_io_start(const char *format, const char *option)
{
	struct qemu_io q;
	int in[2], out[2];
	char reply[256];
	FILE *answer;

	assert_int_equal(pipe(in), 0);
	assert_int_equal(pipe(out), 0);
	q.pid = fork();
	if (!q.pid) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		dup2(out[1], 2);
		close(in[1]);
		close(out[0]);
		alarm(60);
		execlp("qemu-io", "qemu-io", "-f", format, option, path, (char *)NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	q.in = fdopen(in[1], "w");
	answer = fdopen(out[0], "r");
	/* Its answer shows that it has the image. */
	fputs("read 0 512\n", q.in);
	fflush(q.in);
	assert_non_null(fgets(reply, sizeof(reply), answer));
	if (!strstr(reply, "read 512"))
		fail_msg("qemu-io: %s", reply);
	fclose(answer);
	return q;
}

static void qemu_io_end(struct qemu_io *q)
{
	int status;

	fclose(q->in);
	waitpid(q->pid, &status, 0);
}

static void need_qemu(void)
{
	if (run("command -v qemu-io >/dev/null && command -v qemu-img >/dev/null")) {
		print_message("qemu-utils is not installed: skipped\n");
		skip();
	}
}

static void expect_conflict(struct storage *st, unsigned perms, unsigned shared, const char *one,
			    const char *two)
{
	struct error err = {0};

	assert_int_equal(storage_lock(st, perms, shared, &err), -EAGAIN);
	if (!strstr(err.text, path) || !strstr(err.text, one) || !strstr(err.text, two))
		fail_msg("message: %s", err.text);
}

static void expect_lock(struct storage *st, unsigned perms, unsigned shared)
{
	struct error err = {0};
	int ret = storage_lock(st, perms, shared, &err);

	if (ret)
		fail_msg("%s", error_text(&err, ret));
}

/* ---- the tests ---- */

/* The sets that QEMU takes are the ones that we know. */
static void test_same_bytes(void **state)
{
	char theirs[128], ours[128];
	struct storage *st;
	struct qemu_io q;

	need_qemu();
	q = qemu_io_start("qcow2", "-dunmap");
	locked_bytes(q.pid, theirs, sizeof(theirs));
	qemu_io_end(&q);
	st = open_file(false);
	expect_lock(st, CR | W | RS, CR | WU);
	locked_bytes(getpid(), ours, sizeof(ours));
	assert_string_equal(ours, theirs);
	storage_close(st);
}

static void test_they_hold(void **state)
{
	struct storage *rw, *ro;
	struct qemu_io q;
	char bytes[128];

	need_qemu();
	rw = open_file(false);
	ro = open_file(true);
	q = qemu_io_start("qcow2", "-dunmap");
	expect_conflict(rw, CR | W | RS, CR | WU, "qemu-io", "write to it");
	locked_bytes(getpid(), bytes, sizeof(bytes));
	assert_string_equal(bytes, ""); /* all given up again */
	/* A reader that needs peace finds a writer; one that does not, does not. */
	expect_conflict(ro, CR, CR | WU, "qemu-io", "write to it");
	expect_lock(ro, CR, STORAGE_PERM_ALL);
	qemu_io_end(&q);
	expect_lock(ro, CR, CR | WU);
	storage_close(ro);
	expect_lock(rw, CR | W | RS, CR | WU);
	storage_close(rw);
}

static void test_they_read(void **state)
{
	struct storage *rw, *ro;
	struct qemu_io q;

	need_qemu();
	rw = open_file(false);
	ro = open_file(true);
	q = qemu_io_start("qcow2", "-r");
	expect_lock(ro, CR, CR | WU);
	storage_close(ro);
	expect_conflict(rw, CR | W | RS, CR | WU, "qemu-io", "let others write to it");
	qemu_io_end(&q);
	expect_lock(rw, CR | W | RS, CR | WU);
	storage_close(rw);
}

static void test_we_hold(void **state)
{
	struct loop_params p = {.name = "test", .sq_entries = 8};
	struct error err = {0};
	struct storage *st;
	struct loop *loop;

	need_qemu();
	st = open_file(false);
	assert_int_equal(loop_create(&loop, &p, &err), 0);
	assert_int_equal(storage_attach(st, loop, &err), 0);
	expect_lock(st, CR | W | RS, CR | WU);
	assert_int_not_equal(run("qemu-io -f qcow2 -c 'read 0 512' %s >%s/out 2>&1", path, dir), 0);
	assert_int_equal(run("grep -q lock %s/out", dir), 0);
	assert_int_not_equal(run("qemu-io -r -f qcow2 -c 'read 0 512' %s >%s/out 2>&1", path, dir),
			     0);
	assert_int_not_equal(run("qemu-img info %s >%s/out 2>&1", path, dir), 0);
	assert_int_equal(run("qemu-img info -U %s >%s/out 2>&1", path, dir), 0);
	/* As a reader we let other readers in. */
	expect_lock(st, CR, CR | WU);
	assert_int_equal(run("qemu-io -r -f qcow2 -c 'read 0 512' %s >%s/out 2>&1", path, dir), 0);
	assert_int_not_equal(run("qemu-io -f qcow2 -c 'read 0 512' %s >%s/out 2>&1", path, dir), 0);
	expect_lock(st, CR | W | RS, CR | WU);
	assert_int_not_equal(run("qemu-img info %s >%s/out 2>&1", path, dir), 0);
	/* Closing lets go at once, though the ring still has the file in its table. */
	storage_close(st);
	assert_int_equal(run("qemu-io -f qcow2 -c 'write 0 512' %s >%s/out 2>&1", path, dir), 0);
	loop_destroy(loop);
}

/* Two openers in one process exclude each other too; what failed leaves what was held before. */
static void test_each_other(void **state)
{
	struct storage *a = open_file(false), *b = open_file(false);
	char bytes[128];

	expect_lock(a, CR | W | RS, CR | WU);
	expect_conflict(b, CR | W | RS, CR | WU, "test_storage_lo", "let others write to it");
	expect_lock(a, CR, CR | WU);
	expect_lock(b, CR, CR | WU);
	expect_conflict(a, CR | W | RS, CR | WU, "test_storage_lo", "let others write to it");
	storage_close(b);
	locked_bytes(getpid(), bytes, sizeof(bytes));
	assert_string_equal(bytes, "100 201 203 ");
	expect_lock(a, CR | W | RS, CR | WU);
	locked_bytes(getpid(), bytes, sizeof(bytes));
	assert_string_equal(bytes, "100 101 103 201 203 ");
	expect_lock(a, 0, STORAGE_PERM_ALL);
	locked_bytes(getpid(), bytes, sizeof(bytes));
	assert_string_equal(bytes, "");
	storage_close(a);
}

static int setup(void **state)
{
	signal(SIGPIPE, SIG_IGN);
	snprintf(dir, sizeof(dir), "/var/tmp/test_lock.XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/image", dir);
	if (run("qemu-img create -q -f qcow2 %s 1M 2>/dev/null || : >%s", path, path))
		return -1;
	return 0;
}

static int teardown(void **state)
{
	return run("rm -r %s", dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_they_hold),
		cmocka_unit_test(test_they_read),  cmocka_unit_test(test_we_hold),
		cmocka_unit_test(test_each_other),
	};

	alarm(120);
	return cmocka_run_group_tests(tests, setup, teardown);
}
