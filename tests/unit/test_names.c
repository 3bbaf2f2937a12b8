/* SPDX-License-Identifier: MIT */
/*
 * Proves that a name inside an image leads only where the user allowed: not out of the folder by "..",
 * by symbolic links in any place of it, or by an absolute path; not to a FIFO, a device or a protocol; that
 * what an image names that was reached by a link is looked for beside the link, and allowed beside the image;
 * and that what is opened is what was examined while somebody exchanges folders for links.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <cmocka.h>

#include "storage/names.h"
#include "storage/storage.h"

static char base[] = "/tmp/test_names.XXXXXX";
static char image[64], vm_dir[64], pool_dir[64];

static void file_make(const char *path, const char *content)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, content, strlen(content)), strlen(content));
	close(fd);
}

/*
 *	vm/disk.qcow2 vm/base vm/sub/deep vm/fifo vm/dir/ vm/a:b vm/in -> sub/deep vm/out -> ../pool/p
 *	vm/outdir -> ../pool  vm/abs -> BASE/pool/p  vm/loop -> loop  pool/p  vmx/x
 */
static int setup(void **state)
{
	char link_to[128];

	umask(022);
	if (!mkdtemp(base) || chdir(base))
		return -1;
	snprintf(vm_dir, sizeof(vm_dir), "%s/vm", base);
	snprintf(pool_dir, sizeof(pool_dir), "%s/pool", base);
	snprintf(image, sizeof(image), "%s/vm/disk.qcow2", base);
	mkdir("vm", 0755);
	mkdir("vm/sub", 0755);
	mkdir("vm/dir", 0755);
	mkdir("pool", 0755);
	mkdir("vmx", 0755);
	file_make("vm/disk.qcow2", "image");
	file_make("vm/base", "base");
	file_make("vm/sub/deep", "deep");
	file_make("vm/a:b", "colon");
	file_make("pool/p", "pool");
	file_make("vmx/x", "sibling");
	snprintf(link_to, sizeof(link_to), "%s/pool/p", base);
	return mkfifo("vm/fifo", 0644) || symlink("sub/deep", "vm/in") ||
	       symlink("../pool/p", "vm/out") || symlink("../pool", "vm/outdir") ||
	       symlink(link_to, "vm/abs") || symlink("loop", "vm/loop");
}

static int teardown(void **state)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf '%s'", base);
	return chdir("/") || system(command);
}

/* Opens @name; 0 with its content being @want, or the error. */
static int try(const char *name, const struct names_policy *policy, bool plain, const char *want,
	       struct error *err)
{
	struct names_options opts = {.what = "backing file", .plain = plain, .read_only = true};
	static _Alignas(512) char text[512];
	struct storage *st;
	char *path = NULL;
	int ret = names_open(&st, &path, image, name, policy, &opts, err);

	if (ret) {
		assert_null(st);
		assert_null(path);
		assert_true(err->text[0]);
		return ret;
	}
	assert_true(path[0] == '/');
	assert_int_equal(storage_pread(st, 0, text, sizeof(text)), 0);
	text[sizeof(text) - 1] = '\0';
	if (want)
		assert_string_equal(text, want);
	assert_string_equal(st->name, path);
	free(path);
	storage_close(st);
	return 0;
}

static void opens(const char *name, const struct names_policy *policy, const char *want)
{
	struct error err = {0};

	assert_int_equal(try(name, policy, false, want, &err), 0);
}

static void refused(const char *name, const struct names_policy *policy, int ret, const char *why)
{
	struct error err = {0};

	assert_int_equal(try(name, policy, false, NULL, &err), ret);
	if (!strstr(err.text, why))
		fail_msg("'%s' is refused with: %s", name, err.text);
}

static const char outside[] = "is not in the image's folder or below";

static void test_inside(void **state)
{
	char path[128];

	opens("base", NULL, "base");
	opens("./sub//../base", NULL, "base");
	opens("sub/deep", NULL, "deep");
	opens("in", NULL, "deep");
	opens("../vm/base", NULL, "base"); /* out and in again: where it leads is what counts */
	snprintf(path, sizeof(path), "%s/sub/deep", vm_dir);
	opens(path, NULL, "deep");
	opens("./a:b", NULL, "colon");
}

static void test_escapes(void **state)
{
	char path[128];

	refused("../pool/p", NULL, -EPERM, outside);
	refused("out", NULL, -EPERM, outside);
	refused("outdir/p", NULL, -EPERM, outside);
	refused("abs", NULL, -EPERM, outside);
	refused("../vmx/x", NULL, -EPERM, outside); /* a name that begins alike */
	refused("/etc/passwd", NULL, -EPERM, outside);
	refused("../../../../../../../../etc/passwd", NULL, -EPERM, outside);
	refused("loop", NULL, -ELOOP, "loop");
	refused("nothing", NULL, -ENOENT, "No such file");
	refused("", NULL, -EINVAL, "no name");
	refused("base/", NULL, -ENOTDIR, "base/");
	refused("disk.qcow2", NULL, -EINVAL, "the image itself");
	snprintf(path, sizeof(path), "%s/p", pool_dir);
	refused(path, NULL, -EPERM, outside);
}

/* An image in vm/sub that was reached by the link vm/in. */
static void test_reached_by_a_link(void **state)
{
	struct names_policy vm = {.nr_dirs = 1, .dirs = {vm_dir}};
	char real[96], link[96], want[96], *path = NULL, *reached = NULL;
	struct names_options opts = {.what = "backing file", .read_only = true, .reached_as = link, .reached_out = &reached};
	struct error err = {0};
	struct storage *st;

	snprintf(real, sizeof(real), "%s/sub/deep", vm_dir);
	snprintf(link, sizeof(link), "%s/in", vm_dir);
	/* looked for beside the link; but allowed is what is beside the image */
	assert_int_equal(names_open(&st, &path, real, "base", NULL, &opts, &err), -EPERM);
	assert_non_null(strstr(err.text, outside));
	assert_int_equal(names_open(&st, &path, real, "sub/deep", NULL, &opts, &err), -EINVAL); /* itself */
	assert_int_equal(names_open(&st, &path, real, "beside", NULL, &opts, &err), -ENOENT);
	file_make("vm/sub/beside", "beside the image");
	assert_int_equal(names_open(&st, &path, real, "beside", NULL, &opts, &err), -ENOENT);
	assert_null(reached);
	assert_int_equal(names_open(&st, &path, real, "sub/../sub/beside", NULL, &opts, &err), 0);
	snprintf(want, sizeof(want), "%s/sub/beside", vm_dir);
	assert_string_equal(path, want);
	snprintf(want, sizeof(want), "%s/sub/../sub/beside", vm_dir);
	assert_string_equal(reached, want);
	free(path);
	free(reached);
	storage_close(st);
	assert_int_equal(names_open(&st, &path, real, "base", &vm, &opts, &err), 0);
	free(path);
	free(reached);
	storage_close(st);
}

static void test_policy(void **state)
{
	struct names_policy dirs = {.nr_dirs = 2, .dirs = {"/nonexistent", pool_dir}};
	struct names_policy any = {.any = true};

	opens("../pool/p", &dirs, "pool");
	opens("abs", &dirs, "pool");
	opens("outdir/p", &dirs, "pool");
	opens("base", &dirs, "base"); /* the image's own folder stays allowed */
	refused("../vmx/x", &dirs, -EPERM, outside);
	opens("../vmx/x", &any, "sibling");
	opens("/etc/passwd", &any, NULL);
}

static void test_kinds(void **state)
{
	struct names_policy any = {.any = true};

	/* would wait for ever if it were opened */
	refused("fifo", NULL, -EINVAL, "neither a regular file nor a block device");
	refused("fifo", &any, -EINVAL, "neither a regular file nor a block device");
	refused("dir", NULL, -EISDIR, "directory");
	refused(".", NULL, -EPERM, outside);
	refused("/dev/null", &any, -EINVAL, "neither");
	/* an image that lies among devices names another one: only the user's own word allows that */
	if (!mknod("vm/disk0", S_IFBLK | 0600, makedev(1, 240)))
		refused("disk0", NULL, -EPERM, "is a block device");
}

static void test_protocols(void **state)
{
	struct names_policy any = {.any = true};
	struct error err = {0};

	refused("json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", &any, -ENOTSUP, "json:");
	refused("nbd://host/export", &any, -ENOTSUP, "protocol");
	refused("file:/etc/passwd", &any, -ENOTSUP, "protocol");
	refused("a:b", NULL, -ENOTSUP, "protocol");
	/* a data file's name is a plain path */
	assert_int_equal(try("a:b", NULL, true, "colon", &err), 0);
}

static void test_message(void **state)
{
	struct error err = {0};

	assert_int_equal(try("x\n\x1b[2J\xff\xe2\x80\xae", NULL, false, NULL, &err), -ENOENT);
	assert_non_null(strstr(err.text, "'x\\x0a\\x1b[2J\\xff\\xe2\\x80\\xae'"));
}

/* ---- a tree that changes ---- */

static atomic_bool stop;

/* vm/swap is a folder with a file "p", or a link to ../pool. */
static void *swapper(void *arg)
{
	while (!stop)
		syscall(SYS_renameat2, AT_FDCWD, "vm/swap", AT_FDCWD, "vm/swap2", RENAME_EXCHANGE);
	return NULL;
}

static void test_race(void **state)
{
	unsigned good = 0, bad = 0;
	pthread_t thread;

	assert_int_equal(mkdir("vm/swap", 0755), 0);
	file_make("vm/swap/p", "inside");
	assert_int_equal(symlink("../pool", "vm/swap2"), 0);
	stop = false;
	assert_int_equal(pthread_create(&thread, NULL, swapper, NULL), 0);
	for (unsigned i = 0; i < 20000 && (i < 3000 || !good || !bad); i++) {
		struct error err = {0};

		if (try("swap/p", NULL, false, "inside", &err))
			bad++;
		else
			good++;
	}
	stop = true;
	pthread_join(thread, NULL);
	assert_true(good && bad);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_inside),	  cmocka_unit_test(test_escapes),
		cmocka_unit_test(test_policy),	  cmocka_unit_test(test_kinds),
		cmocka_unit_test(test_protocols), cmocka_unit_test(test_message),
		cmocka_unit_test(test_race),	  cmocka_unit_test(test_reached_by_a_link),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
