/* SPDX-License-Identifier: MIT */
/*
 * Proves that a file behind storage.h keeps its contract in every way in which it may be driven (by
 * system calls outside of a loop, by a ring, by a ring that it is not attached to; direct and
 * buffered): what was written is read back however it is cut into segments, reads past the end give
 * zeros, short transfers are continued, the size follows, and errors come out as errors. All of it on a
 * file system in memory as well, where small requests are made another way.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <liburing.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/math.h"
#include "ring/co.h"
#include "storage/storage.h"

static char dir[64], path[96];

/* ---- ways of driving a storage ---- */

enum way { BY_CALLS, BY_RING, BY_RING_UNATTACHED, BY_RINGLESS, WAYS };

struct drive {
	struct co_task task;
	void (*fn)(struct storage *st, struct loop *loop);
	struct storage *st;
	struct loop *loop;
	bool done;
};

static void drive_run(struct co_task *task)
{
	struct drive *d = container_of(task, struct drive, task);

	d->fn(d->st, d->loop);
	d->done = true;
	if (loop_ring(d->loop))
		loop_stop(d->loop);
}

static void drive(struct storage *st, enum way way,
		  void (*fn)(struct storage *st, struct loop *loop))
{
	struct loop_params p = {
		.name = "test",
		.sq_entries = 8,
		.coroutines = 20,
		.stack_bytes = 256 << 10,
		.ringless = way == BY_RINGLESS,
	};
	struct drive d = {.task.fn = drive_run, .fn = fn, .st = st};
	struct error err = {0};

	if (way == BY_CALLS) {
		fn(st, NULL);
		return;
	}
	assert_int_equal(loop_create(&d.loop, &p, &err), 0);
	if (way != BY_RING_UNATTACHED)
		assert_int_equal(storage_attach(st, d.loop, &err), 0);
	loop_spawn(d.loop, &d.task);
	if (way == BY_RINGLESS)
		loop_turn(d.loop);
	else
		assert_int_equal(loop_run(d.loop), 0);
	assert_true(d.done);
	if (way != BY_RING_UNATTACHED)
		storage_detach(st, d.loop);
	loop_destroy(d.loop);
}

static struct storage *open_file(const char *name, bool direct, bool create, bool read_only)
{
	struct storage_file_options o = {
		.direct = direct, .create = create, .read_only = read_only};
	struct error err = {0};
	struct storage *st;
	int ret;

	if (create)
		unlink(name);
	ret = storage_file_open(&st, name, &o, &err);
	if (ret)
		fail_msg("%s", error_text(&err, ret));
	return st;
}

/* Each way, direct and buffered, on a new file. */
static void in_each_way(void (*fn)(struct storage *st, struct loop *loop))
{
	for (int direct = 0; direct < 2; direct++) {
		for (enum way way = 0; way < WAYS; way++) {
			struct storage *st = open_file(path, direct, true, false);

			if (!direct)
				assert_false(st->direct);
			drive(st, way, fn);
			storage_close(st);
		}
	}
}

/* ---- patterns ---- */

static unsigned char *buffer(size_t bytes, int fill)
{
	unsigned char *b = aligned_alloc(4096, align_up(bytes, 4096));

	assert_non_null(b);
	memset(b, fill, bytes);
	return b;
}

/* A byte that tells its place and the writing it belongs to. */
static unsigned char byte_at(uint64_t offset, unsigned round)
{
	uint64_t v = (offset + 1) * 0x9e3779b97f4a7c15ULL + round * 0x85ebca6bULL;

	return (unsigned char)(1 + (v >> 40) % 255); /* never 0 */
}

static void fill(unsigned char *b, uint64_t offset, uint64_t len, unsigned round)
{
	for (uint64_t i = 0; i < len; i++)
		b[i] = byte_at(offset + i, round);
}

static void check(const unsigned char *b, uint64_t offset, uint64_t len, unsigned round)
{
	for (uint64_t i = 0; i < len; i++)
		if (b[i] != byte_at(offset + i, round))
			fail_msg("byte %llu is wrong", (unsigned long long)(offset + i));
}

static void check_zero(const unsigned char *b, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		if (b[i])
			fail_msg("byte %llu is not zero", (unsigned long long)i);
}

/* ---- the end of the file ---- */

static void do_end(struct storage *st, struct loop *loop)
{
	unsigned char *b = buffer(64 << 10, 0);

	fill(b, 0, 16384, 1);
	assert_int_equal(storage_pwrite(st, 0, b, 16384), 0);
	assert_int_equal(st->size_bytes, 16384);
	/* An end inside a sector: direct I/O ends a read there. */
	assert_int_equal(storage_truncate(st, 9000), 0);
	assert_int_equal(st->size_bytes, 9000);
	memset(b, 0xff, 64 << 10);
	assert_int_equal(storage_pread(st, 4096, b, 16384), 0);
	check(b, 4096, 9000 - 4096, 1);
	check_zero(b + 9000 - 4096, 4096 + 16384 - 9000);
	assert_int_equal(b[16384], 0xff);
	/* An end on a block. */
	assert_int_equal(storage_truncate(st, 8192), 0);
	memset(b, 0xff, 64 << 10);
	assert_int_equal(storage_pread(st, 0, b, 32768), 0);
	check(b, 0, 8192, 1);
	check_zero(b + 8192, 32768 - 8192);
	/* Wholly past it. */
	memset(b, 0xff, 64 << 10);
	assert_int_equal(storage_pread(st, 1 << 30, b, 4096), 0);
	check_zero(b, 4096);
	assert_int_equal(b[4096], 0xff);
	assert_int_equal(storage_truncate(st, 6000), 0);
	/* Growing again shows zeros, not what was cut off. */
	assert_int_equal(storage_truncate(st, 16384), 0);
	assert_int_equal(storage_pread(st, 0, b, 16384), 0);
	check(b, 0, 6000, 1);
	check_zero(b + 6000, 16384 - 6000);
	free(b);
}

static void test_end_of_file(void **state)
{
	in_each_way(do_end);
}

/* ---- segments ---- */

struct wait_io {
	struct storage_io io;
	struct co *waiter;
	bool done;
	int ret;
};

static void wait_io_complete(struct storage_io *io, int ret)
{
	struct wait_io *w = container_of(io, struct wait_io, io);

	w->ret = ret;
	w->done = true;
	if (w->waiter)
		co_resume(w->waiter);
}

static int run_io(struct storage *st, struct wait_io *w)
{
	w->io.complete = wait_io_complete;
	w->done = false;
	w->waiter = NULL;
	storage_submit(st, &w->io);
	if (!w->done) {
		w->waiter = co_self();
		co_suspend();
	}
	return w->ret;
}

static int transfer_iov(struct storage *st, enum storage_op op, uint64_t offset, struct iovec *iov,
			unsigned count, uint32_t flags)
{
	struct wait_io w = {.io = {.op = op,
				   .flags = flags,
				   .offset_bytes = offset,
				   .iov = iov,
				   .iovcnt = count}};

	for (unsigned i = 0; i < count; i++)
		w.io.len_bytes += iov[i].iov_len;
	return run_io(st, &w);
}

static void do_segments(struct storage *st, struct loop *loop)
{
	/* More segments than one system call takes, in reverse order in memory. */
	enum { COUNT = 1500 };
	uint64_t block = st->block_bytes, len = COUNT * block;
	struct iovec *iov = calloc(COUNT, sizeof(*iov));
	unsigned char *b = buffer(len, 0), *c = buffer(len + 8 * block, 0xff);

	for (unsigned i = 0; i < COUNT; i++) {
		iov[i] = (struct iovec){b + (COUNT - 1 - i) * block, block};
		fill(iov[i].iov_base, 4096 + i * block, block, 2);
	}
	assert_int_equal(transfer_iov(st, STORAGE_WRITE, 4096, iov, COUNT, STORAGE_DSYNC), 0);
	assert_int_equal(st->size_bytes, 4096 + len);
	assert_int_equal(storage_pread(st, 4096, c, len), 0);
	check(c, 4096, len, 2);
	/* Read past the end in three uneven segments; the last ones are all zeros. */
	memset(c, 0xff, len + 8 * block);
	iov[0] = (struct iovec){c + 5 * block, (COUNT - 3) * block};
	iov[1] = (struct iovec){c, 5 * block};
	iov[2] = (struct iovec){c + (COUNT + 2) * block, 6 * block};
	assert_int_equal(storage_truncate(st, 4096 + len - 1), 0);
	assert_int_equal(transfer_iov(st, STORAGE_READ, 4096, iov, 3, 0), 0);
	check(c + 5 * block, 4096, (COUNT - 3) * block, 2);
	check(c, 4096 + (COUNT - 3) * block, 3 * block - 1, 2);
	check_zero(c + 3 * block - 1, 2 * block + 1);
	check_zero(c + (COUNT + 2) * block, 6 * block);
	/* A single segment has a path of its own. */
	memset(c, 0xff, len);
	iov[0] = (struct iovec){c, len};
	assert_int_equal(transfer_iov(st, STORAGE_READ, 4096, iov, 1, 0), 0);
	check(c, 4096, len - 1, 2);
	assert_int_equal(c[len - 1], 0);
	free(iov);
	free(b);
	free(c);
}

static void test_segments(void **state)
{
	in_each_way(do_segments);
}

/* ---- holes and zeros ---- */

static uint64_t allocated(struct storage *st)
{
	struct stat s;

	assert_int_equal(fstat(storage_file_fd(st), &s), 0);
	return (uint64_t)s.st_blocks * 512;
}

static void do_holes(struct storage *st, struct loop *loop)
{
	uint64_t len = 1 << 20, before, after;
	unsigned char *b = buffer(len, 0);
	int ret;

	fill(b, 0, len, 3);
	assert_int_equal(storage_pwrite(st, 0, b, len), 0);
	assert_int_equal(storage_sync(st), 0);
	before = allocated(st);
	ret = storage_punch(st, 65536, 524288);
	if (ret == -EOPNOTSUPP) {
		free(b);
		return;
	}
	assert_int_equal(ret, 0);
	assert_int_equal(storage_sync(st), 0);
	after = allocated(st);
	assert_true(before >= after + 524288);
	assert_int_equal(st->size_bytes, len);
	assert_int_equal(storage_zero(st, 655360, 8192), 0);
	assert_int_equal(storage_sync(st), 0);
	assert_int_equal(storage_pread(st, 0, b, len), 0);
	check(b, 0, 65536, 3);
	check_zero(b + 65536, 524288);
	check(b + 589824, 589824, 65536, 3);
	check_zero(b + 655360, 8192);
	check(b + 663552, 663552, len - 663552, 3);
	/* Zeros past the end make the file longer, as writing them would; holes do not. */
	assert_int_equal(storage_zero(st, len, 4096), 0);
	assert_int_equal(st->size_bytes, len + 4096);
	assert_int_equal(storage_punch(st, len, 65536), 0);
	assert_int_equal(st->size_bytes, len + 4096);
	free(b);
}

static void test_holes(void **state)
{
	in_each_way(do_holes);
}

/* ---- registered buffers ---- */

static void do_fixed(struct storage *st, struct loop *loop)
{
	unsigned char *b = buffer(32768, 0);
	struct iovec reg = {b, 32768};
	struct wait_io w = {.io = {.op = STORAGE_WRITE,
				   .offset_bytes = 4096,
				   .len_bytes = 16384,
				   .buf = {NULL, 0, (uintptr_t)b}}};

	assert_int_equal(io_uring_register_buffers(loop_ring(loop), &reg, 1), 0);
	fill(b, 4096, 16384, 4);
	assert_int_equal(run_io(st, &w), 0);
	assert_int_equal(st->size_bytes, 4096 + 16384);
	/* Past an end inside a sector, where no pointer to the payload is to be had. */
	assert_int_equal(storage_truncate(st, 9000), 0);
	memset(b, 0xff, 32768);
	w.io.op = STORAGE_READ;
	w.io.len_bytes = 24576;
	assert_int_equal(run_io(st, &w), 0);
	check(b, 4096, 9000 - 4096, 4);
	check_zero(b + 9000 - 4096, 24576 - (9000 - 4096));
	assert_int_equal(b[24576], 0xff);
	assert_int_equal(io_uring_unregister_buffers(loop_ring(loop)), 0);
	free(b);
}

static void test_fixed_buffers(void **state)
{
	for (int direct = 0; direct < 2; direct++) {
		for (enum way way = BY_RING; way <= BY_RING_UNATTACHED; way++) {
			struct storage *st = open_file(path, direct, true, false);

			drive(st, way, do_fixed);
			storage_close(st);
		}
	}
}

/* ---- errors ---- */

static void do_read_only(struct storage *st, struct loop *loop)
{
	unsigned char *b = buffer(4096, 1);

	assert_int_equal(storage_pwrite(st, 0, b, 4096), -EROFS);
	assert_int_equal(storage_truncate(st, 0), -EROFS);
	assert_int_equal(storage_punch(st, 0, 4096), -EROFS);
	assert_int_equal(storage_zero(st, 0, 4096), -EROFS);
	assert_int_equal(storage_pread(st, 0, b, 4096), 0);
	check_zero(b, 4096);
	free(b);
}

static void test_read_only(void **state)
{
	for (enum way way = 0; way < WAYS; way++) {
		struct storage *st = open_file(path, false, true, false);

		storage_close(st);
		st = open_file(path, false, false, true);
		drive(st, way, do_read_only);
		storage_close(st);
	}
}

/* A descriptor that the kernel refuses to write to: the error comes from below. */
static void do_refused(struct storage *st, struct loop *loop)
{
	unsigned char *b = buffer(8192, 1);

	assert_int_equal(storage_pwrite(st, 0, b, 8192), -EBADF);
	assert_int_equal(st->size_bytes, 0);
	free(b);
}

static void test_refused(void **state)
{
	for (enum way way = 0; way < WAYS; way++) {
		struct storage *st = open_file(path, false, true, false);

		storage_close(st);
		st = open_file(path, false, false, true);
		st->read_only = false;
		drive(st, way, do_refused);
		storage_close(st);
	}
}

/* The file may not grow past 12 KiB: a write across that is cut short, and then fails. */
static void do_limit(struct storage *st, struct loop *loop)
{
	struct rlimit old, limit;
	unsigned char *b = buffer(16384, 0);
	int ret;

	fill(b, 4096, 16384, 5);
	getrlimit(RLIMIT_FSIZE, &old);
	limit = old;
	limit.rlim_cur = 12288;
	setrlimit(RLIMIT_FSIZE, &limit);
	ret = storage_pwrite(st, 4096, b, 16384);
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(ret, -EFBIG);
	assert_int_equal(st->size_bytes, 12288);
	assert_int_equal(storage_pread(st, 4096, b, 16384), 0);
	check(b, 4096, 8192, 5);
	check_zero(b + 8192, 8192);
	assert_int_equal(storage_pwrite(st, 4096, b, 16384), 0);
	assert_int_equal(st->size_bytes, 20480);
	free(b);
}

static void test_short_write(void **state)
{
	signal(SIGXFSZ, SIG_IGN);
	in_each_way(do_limit);
}

static void refuse(const char *name, int ret, const char *text)
{
	struct storage_file_options o = {.read_only = true};
	struct error err = {0};
	struct storage *st;

	assert_int_equal(storage_file_open(&st, name, &o, &err), ret);
	assert_null(st);
	if (!strstr(err.text, text) || strncmp(err.text, name, strlen(name)))
		fail_msg("message: %s", err.text);
}

static void test_open_refuses(void **state)
{
	struct storage_file_options create = {.create = true};
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct error err = {0};
	struct storage *st;
	char name[128];
	int s;

	refuse(dir, -EISDIR, "a directory");
	refuse("/dev/null", -EINVAL, "a character device");
	snprintf(name, sizeof(name), "%s/fifo", dir);
	assert_int_equal(mkfifo(name, 0600), 0);
	refuse(name, -EINVAL, "a FIFO");
	unlink(name);
	snprintf(name, sizeof(name), "%s/socket", dir);
	snprintf(a.sun_path, sizeof(a.sun_path), "%.80s/socket", dir);
	s = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof(a)), 0);
	refuse(name, -EINVAL, "a socket");
	close(s);
	unlink(name);
	snprintf(name, sizeof(name), "%s/none", dir);
	refuse(name, -ENOENT, "No such file");

	storage_close(open_file(path, false, true, false));
	assert_int_equal(storage_file_open(&st, path, &create, &err), -EEXIST);
	assert_int_equal(access(path, F_OK), 0); /* left alone */
	storage_close(NULL);
}

/* ---- many requests, several loops ---- */

enum { WORKERS = 16, ROUNDS = 60, AREA = 128 << 10 };

struct worker {
	struct co_task task;
	struct loop **loops; /* both */
	struct storage *st;
	unsigned number;
	_Atomic unsigned *left;
	int ret;
	bool wrong;
};

/* Writes and reads back its own area, in pieces that a seed of its own chooses. */
static void worker_run(struct co_task *task)
{
	struct worker *w = container_of(task, struct worker, task);
	uint64_t base = (uint64_t)w->number * AREA, block = w->st->block_bytes;
	unsigned char *b = aligned_alloc(4096, AREA), *shadow = calloc(1, AREA);
	unsigned seed = w->number + 1;

	for (unsigned i = 0; i < ROUNDS && !w->ret && !w->wrong; i++) {
		uint64_t at = (uint64_t)rand_r(&seed) % (AREA / block) * block;
		uint64_t len = (1 + (uint64_t)rand_r(&seed) % 32) * block;

		len = min_of(len, AREA - at);
		fill(b, base + at, len, i);
		memcpy(shadow + at, b, len);
		w->ret = storage_pwrite(w->st, base + at, b, len);
		if (!w->ret && i % 32 == 0)
			w->ret = storage_sync(w->st);
		if (!w->ret)
			w->ret = storage_pread(w->st, base, b, AREA);
		w->wrong = memcmp(b, shadow, AREA) != 0;
	}
	free(b);
	free(shadow);
	if (atomic_fetch_sub(w->left, 1) == 1)
		for (int i = 0; i < 2; i++)
			loop_stop(w->loops[i]);
}

static void *run_thread(void *arg)
{
	return (void *)(intptr_t)loop_run(arg);
}

static void test_two_loops(void **state)
{
	struct loop_params p = {.name = "test", .sq_entries = 8, .coroutines = WORKERS};
	struct storage *st = open_file(path, true, true, false);
	_Atomic unsigned left = WORKERS;
	struct worker workers[WORKERS];
	struct loop *loops[2];
	pthread_t threads[2];
	struct error err = {0};

	for (int i = 0; i < 2; i++) {
		assert_int_equal(loop_create(&loops[i], &p, &err), 0);
		assert_int_equal(storage_attach(st, loops[i], &err), 0);
	}
	for (unsigned i = 0; i < WORKERS; i++) {
		workers[i] = (struct worker){{.fn = worker_run}, loops, st, i, &left, 0, false};
		loop_spawn(loops[i & 1], &workers[i].task);
	}
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, run_thread, loops[i]);
	for (int i = 0; i < 2; i++) {
		void *ret;

		pthread_join(threads[i], &ret);
		assert_null(ret);
		storage_detach(st, loops[i]);
		loop_destroy(loops[i]);
	}
	for (unsigned i = 0; i < WORKERS; i++) {
		assert_int_equal(workers[i].ret, 0);
		assert_false(workers[i].wrong);
	}
	assert_in_range(st->size_bytes, (WORKERS - 1) * AREA, WORKERS * AREA);
	storage_close(st);
}

/* ---- a block device ---- */

static void do_device(struct storage *st, struct loop *loop)
{
	unsigned char *b = buffer(65536, 0);

	assert_true(st->fixed_size);
	assert_int_equal(st->size_bytes, 1 << 20);
	fill(b, 65536, 65536, 6);
	assert_int_equal(storage_pwrite(st, 65536, b, 65536), 0);
	assert_int_equal(storage_zero(st, 65536 + 4096, 4096), 0);
	assert_int_equal(storage_punch(st, 65536 + 16384, 4096), st->can_punch ? 0 : -EOPNOTSUPP);
	if (!st->can_punch)
		assert_int_equal(storage_zero(st, 65536 + 16384, 4096), 0);
	assert_int_equal(storage_sync(st), 0);
	memset(b, 0xff, 65536);
	assert_int_equal(storage_pread(st, 65536, b, 65536), 0);
	check(b, 65536, 4096, 6);
	check_zero(b + 4096, 4096);
	check(b + 8192, 65536 + 8192, 8192, 6);
	check_zero(b + 16384, 4096);
	check(b + 20480, 65536 + 20480, 65536 - 20480, 6);
	assert_int_equal(storage_truncate(st, 2 << 20), -EOPNOTSUPP);
	assert_int_equal(storage_pwrite(st, 1 << 20, b, 4096), -ENOSPC);
	/* The end of the device. */
	memset(b, 0xff, 65536);
	assert_int_equal(storage_pread(st, (1 << 20) - 4096, b, 8192), 0);
	check_zero(b, 8192);
	assert_int_equal(st->size_bytes, 1 << 20);
	free(b);
}

/* What was the device's medium is not there any more. */
static void do_device_gone(struct storage *st, struct loop *loop)
{
	unsigned char *b = buffer(4096, 0);

	assert_int_equal(storage_pread(st, 512 << 10, b, 4096), -EIO);
	free(b);
}

static void test_block_device(void **state)
{
	char cmd[256], dev[64] = "";
	struct storage *st;
	FILE *p;
	int keep;

	st = open_file(path, false, true, false);
	assert_int_equal(storage_truncate(st, 1 << 20), 0);
	storage_close(st);
	snprintf(cmd, sizeof(cmd), "losetup -f --show %s 2>/dev/null", path);
	p = popen(cmd, "re");
	if (!p || !fgets(dev, sizeof(dev), p) || pclose(p)) {
		print_message("no loop device to be had here: skipped\n");
		skip();
	}
	dev[strcspn(dev, "\n")] = '\0';
	/* It goes with its last descriptor, however this program ends. */
	keep = open(dev, O_RDONLY | O_CLOEXEC);
	assert_true(keep >= 0);
	snprintf(cmd, sizeof(cmd), "losetup -d %s", dev);
	assert_int_equal(system(cmd), 0);
	for (enum way way = 0; way < WAYS; way++) {
		for (int direct = 0; direct < 2; direct++) {
			st = open_file(dev, direct, false, false);
			assert_int_equal(st->direct, direct);
			drive(st, way, do_device);
			storage_close(st);
		}
	}
	st = open_file(dev, true, false, false);
	assert_int_equal(truncate(path, 4096), 0);
	for (enum way way = 0; way < WAYS; way++)
		drive(st, way, do_device_gone);
	storage_close(st);
	close(keep);
}

static const char *parent = "/var/tmp";

static int setup(void **state)
{
	snprintf(dir, sizeof(dir), "%s/test_storage.XXXXXX", parent);
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/image", dir);
	return 0;
}

static int teardown(void **state)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
	return system(cmd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_end_of_file), cmocka_unit_test(test_segments),
		cmocka_unit_test(test_holes),	    cmocka_unit_test(test_fixed_buffers),
		cmocka_unit_test(test_read_only),   cmocka_unit_test(test_refused),
		cmocka_unit_test(test_short_write), cmocka_unit_test(test_open_refuses),
		cmocka_unit_test(test_two_loops),
	};
	/* What a loop device can do depends on the file system below. */
	const struct CMUnitTest device_tests[] = {cmocka_unit_test(test_block_device)};

	struct statfs fs;
	int failed;

	alarm(300);
	failed = cmocka_run_group_tests(tests, setup, teardown) +
		 cmocka_run_group_tests(device_tests, setup, teardown);
	parent = access("/run/w", W_OK) ? "/dev/shm" : "/run/w"; /* the second in a guest */
	if (statfs(parent, &fs) || fs.f_type != TMPFS_MAGIC || access(parent, W_OK))
		return failed;
	return failed + cmocka_run_group_tests(tests, setup, teardown);
}
