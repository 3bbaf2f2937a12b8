// SPDX-License-Identifier: MIT
/*
 * Proves of the engine what the simulation's disk cannot show: on a device, whose end does not
 * move, every cluster can be used, those behind the refcount table's reach included; of two syncs at the same time none succeeds after the other failed; what a broken
 * image's entries led past the end of the file is not cut off again; an L2 table that a snapshot
 * shares can be copied while it is being read; a DISCARD that needs room gets what is being freed;
 * two changes of the header that are made at the same time are both there; a disk in use can grow
 * any number of times; an operation that is under way is over before the image is closed; clusters
 * that may belong to a feature which is not known are not taken for leaks; making a snapshot of a large map,
 * or going back to one, holds requests back for a small part of its time only, deleting one none;
 * a snapshot loses no write that was under way, and has all up to its switch; and none is lost
 * that was made while one was deleted.
 */
#include "engine.h"

/* ---- tests ---- */

/* Clusters of the device without a reference. */
static uint64_t unused_clusters(void)
{
	static struct qcow2_header h;
	uint64_t n = 0;

	assert_int_equal(qcow2_header_read(&disk.st, &h, &error), 0);
	for (uint64_t c = 0; c < disk.st.size_bytes >> h.cluster_bits; c++) {
		uint64_t i = c >> h.rb_bits, block = 0;

		if (i < (uint64_t)h.rt_clusters << h.cluster_bits >> 3)
			block = be64_at(h.rt_offset + i * 8);
		n += !block || !qcow2_refcount_get(disk.data + block,
						   c & ((1u << h.rb_bits) - 1), h.refcount_order);
	}
	return n;
}

/* Writes @step bytes at a time from @from on, until the device is full; where that was. */
static uint64_t fill(uint64_t from, uint64_t step)
{
	int ret;

	while (!(ret = request(BLK_WRITE, 0, from, step)))
		from += step;
	assert_int_equal(ret, -ENOSPC);
	return from;
}

static void test_device_is_used_to_its_end(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	uint64_t at;

	create(512, 16, 4 * MiB);
	become_device(601 * 512);
	start(&opts);
	/* into the group that the end cuts, then some of it is freed again */
	for (at = 0; at < 540 * 512; at += 512)
		assert_int_equal(request(BLK_WRITE, 0, at, 512), 0);
	assert_int_equal(request(BLK_DISCARD, 0, at - 10 * 512, 5 * 512), 0);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	at = fill(at, 32 * KiB);
	fill(at, 512);
	assert_int_equal(stop(), 0);
	/* one can be left over: a table that was made for data that had no room */
	assert_true(unused_clusters() <= 1);
	assert_sound();
}

static void test_refcount_table_grows_on_a_device(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	uint64_t at;

	/* one cluster of the refcount table counts 2 MiB */
	create(512, 64, 5 * MiB);
	become_device(9 * MiB / 2);
	start(&opts);
	at = fill(0, 32 * KiB);
	fill(at, 512);
	assert_int_equal(stop(), 0);
	assert_true(unused_clusters() < 64);
	assert_sound();
}

static int structural_ret;

static void structural_sync(struct co_task *task)
{
	structural_ret = writeback_sync(img);
}

static void test_no_sync_hides_another_ones_error(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	struct co_task task = {.fn = structural_sync};
	struct loop_msg release = {.fn = release_held};
	static struct call flush;

	create(4096, 16, MiB);
	start(&opts);
	assert_int_equal(request(BLK_WRITE, 0, 0, 4096), 0);
	hold_syncs = true;
	list_init(&task.list);
	structural_ret = 1;
	loop_spawn(loop, &task);
	send_request(&flush, BLK_FLUSH, 0, 0, 0);
	assert_int_equal(flush.ret, 1);
	hold_syncs = false;
	loop_post(loop, &release);
	turn();
	assert_int_equal(structural_ret, -EIO);
	assert_int_equal(flush.ret, -EIO);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), -EIO);
	assert_int_equal(stop(), -EIO);
}

static void test_nothing_past_the_end_is_cut_off(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	uint64_t l2;
	be64_t entry = be64_make(((uint64_t)5000 << 12) | QCOW2_COPIED);
	static struct qcow2_header h;

	create(4096, 16, MiB);
	start(&opts);
	assert_int_equal(request(BLK_WRITE, 0, 0, 4096), 0);
	assert_int_equal(stop(), 0);
	assert_int_equal(qcow2_header_read(&disk.st, &h, &error), 0);
	l2 = be64_at(h.l1_offset) & QCOW2_L1_OFFSET_MASK;
	memcpy(disk.data + l2 + 5 * 8, &entry, sizeof(entry));

	start(&opts);
	memset(buffer, 'a', 4096);
	assert_int_equal(request(BLK_WRITE, 0, 5 * 4096, 4096), 0);
	assert_int_equal(request(BLK_WRITE, 0, 8 * 4096, 16 * 4096), 0);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	assert_int_equal(stop(), 0);

	start(&opts);
	memset(buffer, 0, 4096);
	assert_int_equal(request(BLK_READ, 0, 5 * 4096, 4096), 0);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(buffer[i], 'a');
	assert_int_equal(stop(), 0);
}

/* On the loop: the oldest of the reads that are held. */
static void release_read(struct loop_msg *msg)
{
	struct storage_io *io = held[0];

	nr_held--;
	memmove(held, held + 1, nr_held * sizeof(*held));
	memory_submit(&disk.st, io);
}

static void release_one_read(void)
{
	struct loop_msg msg = {.fn = release_read};

	assert_true(nr_held);
	loop_post(loop, &msg);
	turn();
}

/*
 * A table that a snapshot shares is copied; its slices are being read all the while, each time another one,
 * those that were not waited for at first included.
 */
static void test_a_shared_table_is_read_while_it_is_copied(void **state)
{
	static struct call writer, readers[3];
	struct qcow2_options opts = {.no_lock = true};
	uint64_t table;

	create(16 * KiB, 16, 32 * MiB); /* one L2 table, of four slices */
	start(&opts);
	for (uint64_t at = 0; at < 32 * MiB; at += 8 * MiB) {
		memset(buffer, 'a' + (int)(at / (8 * MiB)), 16 * KiB);
		assert_int_equal(request(BLK_WRITE, 0, at, 16 * KiB), 0);
	}
	assert_int_equal(stop(), 0);
	assert_int_equal(qcow2_open(&img, &disk.st, &opts, &error), 0);
	assert_int_equal(qcow2_snapshot_create(img, "s", NULL, &error), 0);
	assert_int_equal(qcow2_close(img, &error), 0);

	start(&opts);
	table = be64_at(be64_at(40)) & QCOW2_L1_OFFSET_MASK;
	assert_int_equal(request(BLK_READ, 0, 0, 16 * KiB), 0);
	hold_reads_from = table;
	hold_reads_to = table + 16 * KiB;
	send_request(&writer, BLK_WRITE, 0, 0, 16 * KiB);
	assert_int_equal(nr_held, 1); /* the copy */
	send_request(&readers[0], BLK_READ, 0, 16 * MiB, 16 * KiB);
	assert_int_equal(nr_held, 2);
	release_one_read();
	send_request(&readers[1], BLK_READ, 0, 8 * MiB, 16 * KiB);
	assert_int_equal(nr_held, 2);
	release_one_read();
	send_request(&readers[2], BLK_READ, 0, 24 * MiB, 16 * KiB);
	while (nr_held)
		release_one_read();
	hold_reads_to = 0;
	assert_int_equal(writer.ret, 0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(readers[i].ret, 0);
	for (uint64_t at = 8 * MiB; at < 32 * MiB; at += 8 * MiB) {
		assert_int_equal(request(BLK_READ, 0, at, 16 * KiB), 0);
		assert_int_equal(buffer[0], 'a' + (int)(at / (8 * MiB)));
		assert_int_equal(request(BLK_WRITE, 0, at, 16 * KiB), 0);
	}
	assert_int_equal(stop(), 0);
	assert_sound();
}

/* A DISCARD that has to copy a shared L2 table, on a device that is full but for what is being freed. */
static void test_a_discard_finds_room_that_is_being_freed(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	uint64_t at;

	create(4096, 16, 8 * MiB); /* an L2 table maps 2 MiB */
	start(&opts);
	for (at = 0; at < 8 * MiB; at += 2 * MiB)
		assert_int_equal(request(BLK_WRITE, 0, at, 4096), 0);
	assert_int_equal(stop(), 0);
	assert_int_equal(qcow2_open(&img, &disk.st, &opts, &error), 0);
	assert_int_equal(qcow2_snapshot_create(img, "s", NULL, &error), 0);
	assert_int_equal(qcow2_close(img, &error), 0);

	become_device(align_up(disk.st.size_bytes, 4096) + 16 * 4096);
	start(&opts);
	at = fill(4096, 4096); /* all in the first table */
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	assert_int_equal(request(BLK_DISCARD, 0, at - 4096, 4096), 0);
	assert_int_equal(request(BLK_DISCARD, 0, 2 * MiB, 4096), 0);
	/* and none where nothing is being freed */
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	assert_int_equal(request(BLK_DISCARD, 0, 4 * MiB, 4096), -ENOSPC);
	assert_int_equal(request(BLK_DISCARD, 0, at - 2 * 4096, 4096), 0);
	assert_int_equal(request(BLK_WRITE_ZEROES, 0, 4 * MiB, 4096), 0);
	buffer[0] = 'x';
	for (uint64_t gone = 2 * MiB; gone < 6 * MiB; gone += 2 * MiB) {
		assert_int_equal(request(BLK_READ, 0, gone, 4096), 0);
		assert_int_equal(buffer[0], 0);
	}
	assert_int_equal(stop(), 0);
	assert_sound();
}

/* On the loop: the writes that are held, the newest first. */
static void release_writes(struct loop_msg *msg)
{
	while (nr_held)
		memory_submit(&disk.st, held[--nr_held]);
}

static int resize_ret;

static void resize(struct co_task *task)
{
	resize_ret = qcow2_resize(img, 8 * MiB, &error);
}

/* The disk grows, and before its new size is in the file the refcount table is moved. */
static void test_two_changes_of_the_header(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	struct loop_msg release = {.fn = release_writes};
	struct co_task task = {.fn = resize};
	static struct call writer;
	uint64_t at, table;

	create(512, 64, 8 * MiB - 512); /* one cluster of the refcount table counts 2 MiB */
	start(&opts);
	table = img->rt.offset_bytes;
	for (at = 0; at < 3 * MiB / 2; at += 32 * KiB)
		assert_int_equal(request(BLK_WRITE, 0, at, 32 * KiB), 0);
	assert_int_equal(img->rt.offset_bytes, table);

	hold_header = true;
	list_init(&task.list);
	loop_spawn(loop, &task);
	turn();
	assert_int_equal(nr_held, 1);
	for (writer.ret = 0; !writer.ret; at += 32 * KiB)
		send_request(&writer, BLK_WRITE, 0, at, 32 * KiB);
	assert_int_equal(writer.ret, 1); /* the refcount table is about to be moved */
	hold_header = false;
	loop_post(loop, &release);
	turn();
	assert_int_equal(resize_ret, 0);
	assert_int_equal(writer.ret, 0);
	assert_true(img->rt.offset_bytes != table);
	assert_int_equal(be64_at(48), img->rt.offset_bytes);
	assert_int_equal(be64_at(24), 8 * MiB);
	assert_int_equal(stop(), 0);
	assert_sound();
}

/* Whoever asked for it may have gone away; the image is not closed under it. */
static void test_the_end_waits_for_an_operation(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	struct loop_msg release = {.fn = release_writes};
	struct co_task task = {.fn = resize}, end = {.fn = detach};

	create(4096, 16, 4 * MiB);
	start(&opts);
	hold_header = true;
	list_init(&task.list);
	loop_spawn(loop, &task);
	turn();
	assert_int_equal(nr_held, 1);
	qcow2_queue_destroy(queue);
	list_init(&end.list);
	loop_spawn(loop, &end);
	turn();
	assert_ptr_equal(qcow2_metadata_loop(img), loop);
	hold_header = false;
	loop_post(loop, &release);
	turn();
	assert_int_equal(resize_ret, 0);
	assert_null(qcow2_metadata_loop(img));
	assert_int_equal(qcow2_close(img, &error), 0);
	loop_destroy(loop);
	assert_int_equal(be64_at(24), 8 * MiB);
	assert_sound();
}

/* Opens an image with a cluster that is counted and not referred to; whether it is still so a while later. */
static bool leak_stays(uint64_t feature_offset)
{
	struct qcow2_options opts = {.no_lock = true, .reclaim_delay_ms = 1};
	be64_t bit = be64_make(1 << 9);
	uint64_t block, leak;
	bool stays;

	create(4096, 16, MiB);
	block = be64_at(be64_at(48));
	leak = disk.st.size_bytes / 4096;
	memory_resize(&disk, (leak + 1) * 4096);
	qcow2_refcount_set(disk.data + block, (uint32_t)leak, 4, 1);
	if (feature_offset)
		memcpy(disk.data + feature_offset, &bit, sizeof(bit));
	start(&opts);
	for (unsigned i = 0; i < 1000; i++) {
		turn();
		loop_advance(loop, 1000000);
	}
	turn();
	assert_int_equal(stop(), 0);
	stays = qcow2_refcount_get(disk.data + block, (uint32_t)leak, 4);
	memory_resize(&disk, 0); /* the next one starts from nothing */
	return stays;
}

/* What is no leak to somebody who knows more is left alone. */
static void test_no_leak_is_seen_in_what_is_not_known(void **state)
{
	assert_false(leak_stays(0));
	assert_true(leak_stays(80)); /* compatible features */
	assert_true(leak_stays(88)); /* autoclear features */
}

static uint64_t resize_to;

static void resize_by_a_block(struct co_task *task)
{
	resize_ret = qcow2_resize(img, resize_to, &error);
}

/* As often as anybody likes, though each time it takes a queue for a while. */
static void test_a_disk_grows_again_and_again(void **state)
{
	struct qcow2_options opts = {.no_lock = true};

	create(4096, 16, MiB);
	start(&opts);
	for (unsigned i = 1; i <= 2 * QUEUES_MAX; i++) {
		struct co_task task = {.fn = resize_by_a_block};

		resize_to = MiB + i * 512;
		list_init(&task.list);
		loop_spawn(loop, &task);
		turn();
		assert_int_equal(resize_ret, 0);
	}
	assert_int_equal(be64_at(24), resize_to);
	assert_int_equal(request(BLK_WRITE, 0, resize_to - 512, 512), 0);
	assert_int_equal(stop(), 0);
	assert_sound();
}

typedef int (*snapshot_fn)(struct qcow2_image *img, const char *name, uint64_t *pause_ns, struct error *err);

struct snapshotting {
	struct co_task task;
	snapshot_fn fn;
	const char *name;
	uint64_t pause_ns;
	int ret;
};

static void snapshot_task(struct co_task *task)
{
	struct snapshotting *s = container_of(task, struct snapshotting, task);

	s->ret = s->fn(img, s->name, &s->pause_ns, &error);
}

static void snapshot_operate(struct snapshotting *s, snapshot_fn fn, const char *name)
{
	*s = (struct snapshotting){.task = {.fn = snapshot_task}, .fn = fn, .name = name, .ret = 1};
	list_init(&s->task.list);
	loop_spawn(loop, &s->task);
	turn();
}

static void snapshot_start(struct snapshotting *s, const char *name)
{
	snapshot_operate(s, qcow2_snapshot_create, name);
}

/* A write of @len bytes of @value, which may not be over yet. */
static void send_value(struct call *c, uint8_t value, uint64_t offset, uint64_t len)
{
	static _Alignas(4096) uint8_t values[256][4096];

	memset(values[value], value, sizeof(values[value]));
	memset(c, 0, sizeof(*c));
	c->ret = 1;
	c->req = (struct blk_request){.op = BLK_WRITE,
				      .offset_bytes = offset,
				      .len_bytes = len,
				      .buf.base = values[value],
				      .complete = call_complete,
				      .priv = c->priv};
	c->msg.fn = call_submit;
	loop_post(loop, &c->msg);
	turn();
}

/* On the loop: the sync that was held last. */
static void release_sync(struct loop_msg *msg)
{
	assert_true(nr_held && held[nr_held - 1]->op == STORAGE_SYNC);
	nr_held--;
	memory_submit(&disk.st, held[nr_held]);
}

/*
 * A write in place is under way when a snapshot begins; another one, which copies the cluster for its sake,
 * does not leave behind what the first one is writing.
 */
static void test_what_a_snapshot_shares_is_not_copied_too_early(void **state)
{
	struct qcow2_options opts = {.no_lock = true};
	struct loop_msg release = {.fn = release_writes};
	static struct snapshotting snapshot;
	static struct call in_place, copies;
	uint64_t hoff;

	create(64 * KiB, 16, 8 * MiB);
	start(&opts);
	memset(buffer, 'a', sizeof(buffer));
	assert_int_equal(request(BLK_WRITE, 0, 0, 64 * KiB), 0);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	hoff = be64_at(be64_at(be64_at(40)) & QCOW2_L1_OFFSET_MASK) & QCOW2_L2_OFFSET_MASK;
	hold_writes_from = hoff;
	hold_writes_to = hoff + 64 * KiB;
	send_value(&in_place, 'b', 0, 4096);
	assert_int_equal(nr_held, 1);
	hold_syncs = true;
	snapshot_start(&snapshot, "s");
	while (table_get(&img->l1, 0) & QCOW2_COPIED) {
		struct loop_msg sync = {.fn = release_sync};

		loop_post(loop, &sync);
		turn();
	}
	assert_int_equal(snapshot.ret, 1);
	assert_int_equal(img->hold, HOLD_NONE);
	send_value(&copies, 'c', 8192, 4096);
	assert_int_equal(copies.ret, 1);
	hold_writes_to = 0;
	hold_syncs = false;
	loop_post(loop, &release);
	turn();
	assert_int_equal(in_place.ret, 0);
	assert_int_equal(copies.ret, 0);
	assert_int_equal(snapshot.ret, 0);
	assert_int_equal(request(BLK_READ, 0, 0, 64 * KiB), 0);
	assert_int_equal(buffer[0], 'b');
	assert_int_equal(buffer[4096], 'a');
	assert_int_equal(buffer[8192], 'c');
	assert_int_equal(stop(), 0);
	assert_sound();
}

static uint64_t count_of_table;

static void count_task(struct co_task *task)
{
	uint64_t hoff = table_get(&img->l1, 0) & QCOW2_L1_OFFSET_MASK;

	assert_int_equal(refcount_get(img, hoff >> img->cluster_bits, &count_of_table), 0);
}

/* Whether the first L2 table has been counted for a snapshot. */
static bool table_is_counted(void)
{
	struct co_task task = {.fn = count_task};

	count_of_table = 0;
	list_init(&task.list);
	loop_spawn(loop, &task);
	turn();
	return count_of_table == 2;
}

/* Writes go on to a table that has been counted for the snapshot: it has them all, up to its switch. */
static void test_a_snapshot_has_what_was_written_while_it_was_made(void **state)
{
	struct qcow2_options opts = {.no_lock = true, .cache_size_bytes = 1};
	struct qcow2_options of_it = {.no_lock = true, .read_only = true, .snapshot = "s"};
	static struct snapshotting snapshot;
	static struct call writer;
	uint8_t value = 1, before_the_hold = 0;
	bool held_back = false;

	create(4096, 16, 16 * MiB); /* tables of 2 MiB, a few of which are counted at once */
	start(&opts);
	memset(buffer, 0, 4096);
	for (uint64_t at = 0; at < 16 * MiB; at += 2 * MiB)
		assert_int_equal(request(BLK_WRITE, 0, at, 4096), 0);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	hold_syncs = true;
	snapshot_start(&snapshot, "s");
	while (snapshot.ret == 1) {
		struct loop_msg release = {.fn = release_writes};

		if (value == 1 ? table_is_counted() : writer.ret == 0)
			send_value(&writer, value++, 0, 4096);
		held_back |= img->hold != HOLD_NONE;
		if (!held_back && value > 1 && writer.ret == 0)
			before_the_hold = value - 1;
		assert_true(nr_held && value < 200);
		loop_post(loop, &release);
		turn();
	}
	hold_syncs = false;
	assert_int_equal(snapshot.ret, 0);
	assert_true(held_back && before_the_hold);
	assert_int_equal(stop(), 0);
	assert_sound();
	start(&of_it);
	assert_int_equal(request(BLK_READ, 0, 0, 4096), 0);
	assert_true(buffer[0] >= before_the_hold && buffer[0] <= value);
	assert_int_equal(stop(), 0);
}

/* One operation; how long it took. */
static uint64_t snapshot_timed(struct snapshotting *s, snapshot_fn fn, const char *name)
{
	struct timespec begin, end;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	snapshot_operate(s, fn, name);
	clock_gettime(CLOCK_MONOTONIC, &end);
	assert_int_equal(s->ret, 0);
	return (uint64_t)(end.tv_sec - begin.tv_sec) * 1000000000 + (uint64_t)end.tv_nsec -
	       (uint64_t)begin.tv_nsec;
}

/* Of several times, since another process may have had the CPU in any of them. */
static void test_requests_are_held_back_for_a_switch_only(void **state)
{
	struct qcow2_create_options o = {.size_bytes = 32 * MiB,
					 .cluster_bytes = 512,
					 .refcount_bits = 16,
					 .preallocation = QCOW2_PREALLOC_METADATA};
	struct qcow2_options opts = {.no_lock = true};
	static const char *const names[] = {"a", "b", "c", "d", "e", "f"};
	bool create_short = false, apply_short = false;

	memory_destroy(&disk);
	memory_init(&disk);
	disk.st.ops = &engine_ops;
	assert_int_equal(qcow2_create(&disk.st, &o, &error), 0);
	start(&opts);
	for (unsigned i = 0; i < ARRAY_LEN(names) && !(create_short && apply_short); i++) {
		struct snapshotting s;
		uint64_t all_ns = snapshot_timed(&s, qcow2_snapshot_create, names[i]);

		assert_true(s.pause_ns && s.pause_ns < all_ns);
		create_short |= s.pause_ns < all_ns / 5;
		all_ns = snapshot_timed(&s, qcow2_snapshot_apply, names[i]);
		assert_true(s.pause_ns && s.pause_ns < all_ns);
		apply_short |= s.pause_ns < all_ns / 5;
		if (i % 2)
			continue;
		(void)snapshot_timed(&s, qcow2_snapshot_delete, names[i]);
		assert_int_equal(s.pause_ns, 0);
	}
	assert_true(create_short && apply_short);
	assert_int_equal(stop(), 0);
	assert_sound();
}

/*
 * What a deleted snapshot had is lowered while writes go on, in place and copying, also to a table that has just
 * become the disk's alone; what is written meanwhile is there, and every count and flag is right in the end.
 */
static void test_writes_go_on_while_a_snapshot_is_deleted(void **state)
{
	struct qcow2_options opts = {.no_lock = true, .cache_size_bytes = 1};
	static struct snapshotting snapshot;
	static struct call writer;
	uint64_t written = 0, at = 0;

	create(512, 16, 4 * MiB); /* tables of 32 KiB */
	start(&opts);
	memset(buffer, 'a', sizeof(buffer));
	for (uint64_t to = 0; to < 4 * MiB; to += 64 * KiB)
		assert_int_equal(request(BLK_WRITE, 0, to, 64 * KiB), 0);
	snapshot_start(&snapshot, "s");
	assert_int_equal(snapshot.ret, 0);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	hold_syncs = true;
	snapshot_operate(&snapshot, qcow2_snapshot_delete, "s");
	while (snapshot.ret == 1) {
		struct loop_msg release = {.fn = release_writes};

		assert_int_equal(img->hold, HOLD_NONE);
		if (!written || writer.ret == 0) {
			at = written++ * 7919 * 512 % (4 * MiB);
			send_value(&writer, 'b', at, 512);
		}
		assert_true(written < 10000);
		loop_post(loop, &release);
		turn();
	}
	hold_syncs = false;
	assert_int_equal(snapshot.ret, 0);
	assert_true(written > 3);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0), 0);
	for (uint64_t i = 0; i + 1 < written; i++) {
		assert_int_equal(request(BLK_READ, 0, i * 7919 * 512 % (4 * MiB), 512), 0);
		assert_int_equal(buffer[0], 'b');
	}
	assert_int_equal(stop(), 0);
	assert_sound();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_device_is_used_to_its_end),
		cmocka_unit_test(test_refcount_table_grows_on_a_device),
		cmocka_unit_test(test_no_sync_hides_another_ones_error),
		cmocka_unit_test(test_nothing_past_the_end_is_cut_off),
		cmocka_unit_test(test_a_shared_table_is_read_while_it_is_copied),
		cmocka_unit_test(test_a_discard_finds_room_that_is_being_freed),
		cmocka_unit_test(test_two_changes_of_the_header),
		cmocka_unit_test(test_a_disk_grows_again_and_again),
		cmocka_unit_test(test_the_end_waits_for_an_operation),
		cmocka_unit_test(test_no_leak_is_seen_in_what_is_not_known),
		cmocka_unit_test(test_requests_are_held_back_for_a_switch_only),
		cmocka_unit_test(test_writes_go_on_while_a_snapshot_is_deleted),
		cmocka_unit_test(test_what_a_snapshot_shares_is_not_copied_too_early),
		cmocka_unit_test(test_a_snapshot_has_what_was_written_while_it_was_made),
	};
	int ret = cmocka_run_group_tests(tests, NULL, NULL);

	memory_destroy(&disk);
	return ret;
}
