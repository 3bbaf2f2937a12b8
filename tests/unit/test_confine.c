/* SPDX-License-Identifier: MIT */
/*
 * test_confine.c: what a confined process cannot do any more, and that it can still do its work; and that
 * the helper answers, in time, what it was made for.
 *
 * Each case confines a child. Without root's privileges there are no capabilities to lose; the filter is
 * there all the same. In builds with sanitizers nothing is confined, and the cases about that are skipped.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/math.h"
#include "daemon/confine.h"
#include "ring/loop.h"
#include "target/helper.h"

/* The status of a child that is confined as @role and then calls @fn, whose result is its exit status. */
static int confined(enum confine_role role, int (*fn)(void))
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		confine(role);
		_exit(fn());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

/* A line of /proc/self/status. */
static uint64_t status_value(const char *key, int base)
{
	FILE *f = fopen("/proc/self/status", "re");
	char line[256];
	uint64_t value = UINT64_MAX;

	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, key, strlen(key)) == 0)
			value = strtoull(line + strlen(key), NULL, base);
	if (f)
		fclose(f);
	return value;
}

static int is_filtered(void)
{
	return status_value("Seccomp:", 10) == 2 && status_value("NoNewPrivs:", 10) == 1;
}

static void skip_if_sanitized(void)
{
	if (WEXITSTATUS(confined(CONFINE_WORKER, is_filtered)) != 1)
		skip();
}

/* ---- calls ---- */

static int call_execve(void)
{
	char *const argv[] = {(char[]){"true"}, NULL};

	execv("/bin/true", argv);
	return 1;
}
static int call_mount(void)
{
	mount("none", "/nowhere", "tmpfs", 0, NULL);
	return 1;
}
static int call_ptrace(void)
{
	ptrace(PTRACE_TRACEME, 0, NULL, NULL);
	return 1;
}
static int call_unshare(void)
{
	unshare(CLONE_NEWUSER);
	return 1;
}
static int call_setuid(void)
{
	syscall(SYS_setuid, 0);
	return 1;
}
static int call_bpf(void)
{
	syscall(SYS_bpf, 0, NULL, 0);
	return 1;
}
static int call_kexec(void)
{
	syscall(SYS_kexec_load, 0, 0, NULL, 0);
	return 1;
}

static void test_deadly_calls_kill(void **state)
{
	static int (*const calls[])(void) = {call_execve, call_mount,	call_ptrace, call_unshare,
					     call_setuid, call_bpf,	call_kexec};
	static const enum confine_role roles[] = {CONFINE_TOOL, CONFINE_WORKER, CONFINE_FUSE, CONFINE_HELPER};

	skip_if_sanitized();
	for (size_t r = 0; r < ARRAY_LEN(roles); r++) {
		for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
			int status = confined(roles[r], calls[i]);

			if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
				fail_msg("role %d, call %zu: status %#x", roles[r], i, status);
		}
	}
}

/* The helper that mounts does nothing else of it. */
static void test_fuse_helper_mounts(void **state)
{
	static int (*const calls[])(void) = {call_execve, call_ptrace, call_unshare, call_setuid, call_bpf};

	skip_if_sanitized();
	assert_int_equal(WEXITSTATUS(confined(CONFINE_FUSE_HELPER, call_mount)), 1);
	for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
		int status = confined(CONFINE_FUSE_HELPER, calls[i]);

		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
			fail_msg("call %zu: status %#x", i, status);
	}
}

static int other_calls(void)
{
	int fd;

	errno = 0;
	if (socket(AF_INET, SOCK_STREAM, 0) >= 0 || errno != ENOSYS)
		return 1;
	if (syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL) >= 0 || errno != ENOSYS)
		return 2;
	if (syscall(SYS_memfd_create, "x", 0) >= 0 || errno != ENOSYS)
		return 3;
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	return fd < 0 ? 4 : 0;
}

static void test_other_calls_are_unknown(void **state)
{
	skip_if_sanitized();
	assert_int_equal(confined(CONFINE_WORKER, other_calls), 0);
}

static void *thread_main(void *arg)
{
	*(int *)arg = is_filtered();
	return NULL;
}

/* A thread, a child, a ring with its registrations, memory. */
static int work(void)
{
	struct loop_params params = {.name = "test", .sq_entries = 8, .coroutines = 4};
	struct loop *loop;
	pthread_t thread;
	int filtered = 0, status;
	pid_t pid;

	if (pthread_create(&thread, NULL, thread_main, &filtered) || pthread_join(thread, NULL) || !filtered)
		return 1;
	pid = fork();
	if (pid == 0)
		_exit(is_filtered());
	if (pid < 0 || waitpid(pid, &status, 0) != pid || WEXITSTATUS(status) != 1)
		return 2;
	if (loop_create(&loop, &params, NULL))
		return 3;
	loop_destroy(loop);
	return 0;
}

static void *ring_thread(void *arg)
{
	struct loop_params params = {.name = "test", .sq_entries = 8};
	struct loop *loop;
	int go;

	while (read(*(int *)arg, &go, sizeof(go)) < 0)
		;
	return loop_create(&loop, &params, NULL) ? NULL : loop;
}

/* Rings that are there go on; another one is the end, on a thread that was there before, too. */
static int rings_made(bool on_thread, bool make)
{
	struct loop_params params = {.name = "test", .sq_entries = 8};
	struct loop *loop;
	pthread_t thread;
	int fds[2], go = 1;

	if (loop_create(&loop, &params, NULL) || pipe(fds) || pthread_create(&thread, NULL, ring_thread, fds))
		return 2;
	confine_rings();
	loop_stop(loop);
	if (loop_run(loop))
		return 3;
	loop_destroy(loop);
	if (on_thread && write(fds[1], &go, sizeof(go)) == sizeof(go))
		pthread_join(thread, NULL);
	if (!make)
		return 0;
	return loop_create(&loop, &params, NULL) ? 4 : 5;
}
static int rings_go_on(void)
{
	return rings_made(false, false);
}
static int ring_on_thread(void)
{
	return rings_made(true, false);
}
static int ring_here(void)
{
	return rings_made(false, true);
}

static void test_no_more_rings(void **state)
{
	static int (*const calls[])(void) = {ring_on_thread, ring_here};
	static const enum confine_role roles[] = {CONFINE_WORKER, CONFINE_FUSE};

	skip_if_sanitized();
	for (size_t r = 0; r < ARRAY_LEN(roles); r++) {
		assert_int_equal(confined(roles[r], rings_go_on), 0);
		for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
			int status = confined(roles[r], calls[i]);

			if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
				fail_msg("role %d, call %zu: status %#x", roles[r], i, status);
		}
	}
}

static void test_work_goes_on(void **state)
{
	skip_if_sanitized();
	assert_int_equal(confined(CONFINE_WORKER, work), 0);
	assert_int_equal(confined(CONFINE_FUSE, work), 0);
	assert_int_equal(confined(CONFINE_TOOL, work), 0);
}

/* ---- capabilities ---- */

#define CAP(name) ((uint64_t)1 << (name))

static int caps_of_worker(void)
{
	const uint64_t files = CAP(CAP_DAC_OVERRIDE) | CAP(CAP_DAC_READ_SEARCH) | CAP(CAP_SYS_PTRACE);
	const uint64_t lock = CAP(CAP_IPC_LOCK); /* where the limit could not be lifted */

	const uint64_t admin = CAP(CAP_SYS_ADMIN);

	if ((status_value("CapEff:", 16) & ~lock) != (files | admin) ||
	    (status_value("CapPrm:", 16) & ~lock) != (files | admin))
		return 1;
	confine_opened(CONFINE_WORKER, false);
	if ((status_value("CapPrm:", 16) & ~lock) != admin)
		return 4;
	confine_serving(CONFINE_WORKER, false);
	if (status_value("CapEff:", 16) & ~lock || status_value("CapPrm:", 16) & ~lock ||
	    status_value("CapInh:", 16) || status_value("CapAmb:", 16))
		return 2;
	/* they do not come back */
	confine_opened(CONFINE_WORKER, true);
	return status_value("CapEff:", 16) & ~lock ? 3 : 0;
}

static void test_worker_has_no_capabilities(void **state)
{
	skip_if_sanitized();
	if (!confine_privileged())
		skip();
	assert_int_equal(confined(CONFINE_WORKER, caps_of_worker), 0);
}

static int caps_of_fuse(void)
{
	const uint64_t lock = CAP(CAP_IPC_LOCK);

	confine_opened(CONFINE_FUSE, false);
	if ((status_value("CapPrm:", 16) & ~lock) != CAP(CAP_DAC_READ_SEARCH))
		return 1;
	confine_serving(CONFINE_FUSE, false);
	return status_value("CapEff:", 16) & ~lock || status_value("CapPrm:", 16) & ~lock ? 2 : 0;
}

static void test_fuse_worker_has_no_capabilities(void **state)
{
	skip_if_sanitized();
	if (!confine_privileged())
		skip();
	assert_int_equal(confined(CONFINE_FUSE, caps_of_fuse), 0);
}

/* ---- the helper ---- */

/* What it was sent is the write end of a pipe. */
static int write_there(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg)
{
	if (helper_given_fd() < 0)
		return -ENOENT;
	return write(helper_given_fd(), helper_run_dir(), 3) == 3 ? 0 : -EIO;
}

static void test_helper_gets_a_descriptor(void **state)
{
	const struct helper_config config = {.fns = {[HELPER_HOST] = write_there}, .run_dir = "dir"};
	struct error err = {0};
	char data[4] = "", got[8] = "";
	struct helper *h;
	int fds[2];

	assert_int_equal(helper_start(&h, &config, &err), 0);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(helper_ask(h, HELPER_HOST, data, sizeof(data), 5000, NULL, NULL), -ENOENT);
	assert_int_equal(helper_ask_with(h, HELPER_HOST, data, sizeof(data), fds[1], 5000), 0);
	/* not the one before */
	assert_int_equal(helper_ask(h, HELPER_HOST, data, sizeof(data), 5000, NULL, NULL), -ENOENT);
	/* and it was closed: there is nobody left to write */
	close(fds[1]);
	assert_int_equal(read(fds[0], got, sizeof(got)), 3);
	assert_string_equal(got, "dir");
	assert_int_equal(read(fds[0], got, sizeof(got)), 0);
	close(fds[0]);
	helper_stop(h);
}

static int add_one(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg)
{
	((char *)data)[bytes - 1]++;
	return (int)bytes;
}

static int hang(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg)
{
	struct timespec pause = {.tv_nsec = 1000000};

	while (!given_up(arg))
		nanosleep(&pause, NULL);
	return -ECANCELED;
}

static int die(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg)
{
	_exit(1);
}

static bool at_once(void *arg)
{
	return true;
}

static void test_helper_answers(void **state)
{
	const struct helper_config config = {
		.fns = {[HELPER_COMMAND] = add_one, [HELPER_BUSY] = hang, [HELPER_DESCRIBE] = die}};
	char data[HELPER_BYTES] = {0};
	struct error err = {0};
	struct helper *h;

	assert_int_equal(helper_start(&h, &config, &err), 0);
	for (int i = 1; i <= 3; i++) {
		assert_int_equal(helper_ask(h, HELPER_COMMAND, data, sizeof(data), 5000, NULL, NULL),
				 HELPER_BYTES);
		assert_int_equal(data[HELPER_BYTES - 1], i);
	}
	assert_int_equal(helper_ask(h, HELPER_SCAN, data, 1, 5000, NULL, NULL), -EOPNOTSUPP);
	/* what hangs is given up, by time and by word, and the next question gets its own answer */
	assert_int_equal(helper_ask(h, HELPER_BUSY, data, 1, 50, NULL, NULL), -ECANCELED);
	assert_int_equal(helper_ask(h, HELPER_BUSY, data, 1, 60000, at_once, NULL), -ECANCELED);
	assert_int_equal(helper_ask(h, HELPER_COMMAND, data, 1, 5000, NULL, NULL), 1);
	assert_int_equal(helper_ask(h, HELPER_DESCRIBE, data, 1, 5000, NULL, NULL), -EPIPE);
	assert_int_equal(helper_ask(h, HELPER_COMMAND, data, 1, 5000, NULL, NULL), -EPIPE);
	helper_stop(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_deadly_calls_kill),
		cmocka_unit_test(test_fuse_helper_mounts),
		cmocka_unit_test(test_other_calls_are_unknown),
		cmocka_unit_test(test_work_goes_on),
		cmocka_unit_test(test_no_more_rings),
		cmocka_unit_test(test_worker_has_no_capabilities),
		cmocka_unit_test(test_fuse_worker_has_no_capabilities),
		cmocka_unit_test(test_helper_answers),
		cmocka_unit_test(test_helper_gets_a_descriptor),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
