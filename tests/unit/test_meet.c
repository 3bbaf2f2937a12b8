// SPDX-License-Identifier: MIT
/*
 * Proves of the engine what happens where operations meet: an L2 table that a write is copying, as a snapshot
 * shares it, may become the disk's alone meanwhile, when that snapshot is deleted. A change of the header that
 * fails as the header cannot be read has changed nothing, and everything goes on. A large table that is made
 * while leaks are looked for is none, wherever its refcount blocks are. And going back to a snapshot, if its last
 * sync fails, leaves the disk as it was to who takes over from a killed process, too.
 */
#include "engine.h"

typedef int (*snapshot_fn)(struct qcow2_image *img, const char *name, uint64_t *pause_ns, struct error *err);

struct snapshotting {
	struct co_task task;
	snapshot_fn fn;
	const char *name;
	int ret;
};

static void snapshot_task(struct co_task *task)
{
	struct snapshotting *s = container_of(task, struct snapshotting, task);

	s->ret = s->fn(img, s->name, NULL, &error);
}

/* It may not be over yet: then ret is 1. */
static void snapshot_begin(struct snapshotting *s, snapshot_fn fn, const char *name)
{
	*s = (struct snapshotting){.task = {.fn = snapshot_task}, .fn = fn, .name = name, .ret = 1};
	list_init(&s->task.list);
	loop_spawn(loop, &s->task);
	turn();
}

static void release_ios(struct loop_msg *msg)
{
	while (nr_held)
		memory_submit(&disk.st, held[--nr_held]);
}

/* What is held back goes on, and nothing is from now on. */
static void release(void)
{
	struct loop_msg msg = {.fn = release_ios};

	hold_reads_to = hold_writes_to = 0;
	hold_syncs = hold_header = false;
	loop_post(loop, &msg);
	turn();
}

/* Writes to the file's next @clusters free clusters are held back. */
static void hold_appended(uint64_t clusters)
{
	hold_writes_from = img->append_hcluster << img->cluster_bits;
	hold_writes_to = hold_writes_from + (clusters << img->cluster_bits);
}

/* ---- tests ---- */

/*
 * The flags of its entries, which are set again after the delete, are not set in the table that is being left.
 */
static void test_a_table_is_copied_while_its_snapshot_is_deleted(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	static struct snapshotting snapshot;
	static struct call writer;

	create(4096, 16, 2 * MiB); /* one L2 table */
	start(&opts);
	memset(buffer, 'a', sizeof(buffer));
	for (uint64_t at = 0; at < 2 * MiB; at += 64 * KiB)
		assert_int_equal(request(BLK_WRITE, 0, at, 64 * KiB), 0);
	snapshot_begin(&snapshot, qcow2_snapshot_create, "s");
	assert_int_equal(snapshot.ret, 0);
	hold_appended(1);
	buffer[0] = 'b';
	send_request(&writer, BLK_WRITE, 0, MiB, 4096);
	assert_int_equal(nr_held, 1); /* the copy of the table */
	snapshot_begin(&snapshot, qcow2_snapshot_delete, "s");
	release();
	assert_int_equal(writer.ret, 0);
	assert_int_equal(snapshot.ret, 0);
	assert_int_equal(request(BLK_READ, 0, MiB, 4096), 0);
	assert_int_equal(buffer[0], 'b');
	assert_int_equal(buffer[1], 'a');
	assert_int_equal(stop(), 0);
	assert_sound();
}

static void fail_ios(struct loop_msg *msg)
{
	while (nr_held) {
		struct storage_io *io = held[--nr_held];

		io->complete(io, -EIO);
	}
}

static void test_a_header_that_cannot_be_read_is_not_changed(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	static struct snapshotting snapshot;

	create(4096, 16, 2 * MiB);
	start(&opts);
	assert_int_equal(request(BLK_WRITE, 0, 0, 4096), 0);
	hold_reads_from = 0;
	hold_reads_to = 512;
	snapshot_begin(&snapshot, qcow2_snapshot_create, "s");
	assert_int_equal(nr_held, 1);
	while (nr_held) {
		struct loop_msg msg = {.fn = fail_ios};

		loop_post(loop, &msg);
		turn();
	}
	hold_reads_to = 0;
	assert_int_equal(snapshot.ret, -EIO);
	assert_int_equal(request(BLK_WRITE, 0, 0, 4096), 0);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	snapshot_begin(&snapshot, qcow2_snapshot_create, "s");
	assert_int_equal(snapshot.ret, 0);
	assert_int_equal(stop(), 0);
	assert_sound();
}

struct taking {
	struct co_task task;
	uint64_t want, first, count;
	int ret;
};

static void take_task(struct co_task *task)
{
	struct taking *t = container_of(task, struct taking, task);

	t->ret = alloc_contiguous(img, t->want, &t->first);
}

static void count_task(struct co_task *task)
{
	struct taking *t = container_of(task, struct taking, task);

	t->ret = refcount_get(img, t->first, &t->count);
}

static void take(struct taking *t, void (*fn)(struct co_task *task))
{
	t->task.fn = fn;
	list_init(&t->task.list);
	loop_spawn(loop, &t->task);
	turn();
	assert_int_equal(t->ret, 0);
}

/* On a device the first table finds no room among the blocks that there may be, and leaves some of them out. */
static void test_a_new_table_is_no_leak(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	struct taking first = {.want = 4000}, second = {.want = 100};

	create(512, 64, MiB);
	become_device(8 * MiB);
	start(&opts);
	take(&first, take_task);
	assert_int_equal(stop(), 0);

	start(&opts);
	assert_non_null(img->reclaim.keep);
	take(&second, take_task);
	assert_true(second.first < first.first);
	for (unsigned i = 0; i < 100000 && !img->reclaim.done; i++) {
		loop_advance(loop, 10000000);
		turn();
	}
	assert_true(img->reclaim.done);
	take(&first, count_task);
	assert_int_equal(first.count, 0); /* nothing refers to it, and it was there before */
	take(&second, count_task);
	assert_int_equal(second.count, 1);
	assert_int_equal(stop(), 0);
}

static void release_header(struct loop_msg *msg)
{
	assert_true(nr_held == 1 && held[0]->op == STORAGE_WRITE);
	hold_header = false;
	hold_syncs = true;
	nr_held = 0;
	memory_submit(&disk.st, held[0]);
}

static void release_and_hold_syncs(void)
{
	struct loop_msg msg = {.fn = release_header};

	loop_post(loop, &msg);
	turn();
}

static void write_value(uint8_t value, uint64_t offset)
{
	memset(buffer, value, 4096);
	assert_int_equal(request(BLK_WRITE, 0, offset, 4096), 0);
}

static void assert_value(uint8_t value, uint64_t offset)
{
	assert_int_equal(request(BLK_READ, 0, offset, 4096), 0);
	assert_int_equal(buffer[0], value);
}

static void fail_held(void)
{
	struct loop_msg msg = {.fn = fail_ios};

	hold_syncs = false;
	loop_post(loop, &msg);
	turn();
}

static void test_a_snapshot_that_could_not_be_synced_was_not_applied(void **state)
{
	static _Alignas(4096) uint8_t log[LOG_BYTES], log_then[LOG_BYTES];
	struct qcow2_options opts = {.no_lock = true,
				     .log_base = log,
				     .log_bytes = LOG_BYTES,
				     .log_identity = "test",
				     .log_identity_bytes = 4};
	static struct snapshotting snapshot;
	static struct memory then;

	create(4096, 16, 2 * MiB);
	start(&opts);
	write_value('a', 0);
	snapshot_begin(&snapshot, qcow2_snapshot_create, "s");
	assert_int_equal(snapshot.ret, 0);
	write_value('b', 0);
	hold_header = true;
	snapshot_begin(&snapshot, qcow2_snapshot_apply, "s");
	assert_int_equal(nr_held, 1);
	release_and_hold_syncs();
	assert_int_equal(nr_held, 1);
	fail_held();
	assert_int_equal(snapshot.ret, -EIO);
	assert_value('b', 0);
	write_value('c', 8192);

	/* killed */
	memory_init(&then);
	memory_copy(&then, &disk);
	memcpy(log_then, log, sizeof(log));
	assert_int_equal(stop(), -EIO);
	memory_copy(&disk, &then);
	memcpy(log, log_then, sizeof(log));
	memory_destroy(&then);
	opts.log_recover = true;
	start(&opts);
	assert_value('b', 0);
	assert_value('c', 8192);
	assert_int_equal(stop(), -EIO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_table_is_copied_while_its_snapshot_is_deleted),
		cmocka_unit_test(test_a_header_that_cannot_be_read_is_not_changed),
		cmocka_unit_test(test_a_new_table_is_no_leak),
		cmocka_unit_test(test_a_snapshot_that_could_not_be_synced_was_not_applied),
	};
	int ret = cmocka_run_group_tests(tests, NULL, NULL);

	memory_destroy(&disk);
	return ret;
}
