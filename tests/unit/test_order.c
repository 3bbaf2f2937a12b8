// SPDX-License-Identifier: MIT
/*
 * Proves of the engine: a place that a zeroed cluster keeps is not written anew, nor is the zeroing over, while a
 * write or a read that began before it is at work there; whoever needs no such place does not wait. A disk that
 * grows takes room in the recovery log for what that records, or waits for it. A log knows the size that a
 * recovered image was found to have, and so the next resize may be killed as well. And an image is settled
 * before its end, or says that there is no space for it: then nothing has been given up. Nor is it by a recovery
 * that finds no space, which leaves the log.
 */
#include "qcow2/map.h"
#include "storage/names.h"

#include "engine_loop.h" /* last: it names things of its own */

static struct memory data; /* the data file of some */
static _Alignas(4096) uint8_t recovery_log[LOG_BYTES];

/* ---- a disk that holds some I/O back, or is full ---- */

static struct {
	struct storage *st;
	struct storage_io *io;
} held[16];
static unsigned nr_held;
static uint64_t hold_from, hold_to; /* reads and writes that begin there */
static uint64_t full_from, full_to; /* writes that begin there find no space */

static void order_submit(struct storage *st, struct storage_io *io)
{
	bool moves = io->op == STORAGE_READ || io->op == STORAGE_WRITE;

	if (io->op == STORAGE_WRITE && io->offset_bytes >= full_from && io->offset_bytes < full_to) {
		io->complete(io, -ENOSPC);
	} else if (moves && io->offset_bytes >= hold_from && io->offset_bytes < hold_to) {
		assert_true(nr_held < ARRAY_LEN(held));
		held[nr_held].st = st;
		held[nr_held++].io = io;
	} else {
		memory_submit(st, io);
	}
}

static void order_close(struct storage *st)
{
}

static const struct storage_ops order_ops = {.submit = order_submit, .close = order_close};

/* ---- an image, one loop, and requests ---- */

static int open_data(void *arg, struct storage **out, char **path_out, const char *name, bool read_only,
		     struct error *err)
{
	*out = &data.st;
	if (path_out)
		*path_out = strdup(name);
	return 0;
}

static const struct names_policy names = {.open = open_data};

static void create(const struct qcow2_create_options *o)
{
	memory_destroy(&disk);
	memory_init(&disk);
	memory_destroy(&data);
	memory_init(&data);
	disk.st.ops = data.st.ops = &order_ops;
	hold_from = hold_to = full_from = full_to = nr_held = 0;
	assert_int_equal(qcow2_create(&disk.st, o, &error), 0);
}

static void release_one(struct loop_msg *msg)
{
	struct storage_io *io = held[0].io;
	struct storage *st = held[0].st;

	nr_held--;
	memmove(held, held + 1, nr_held * sizeof(held[0]));
	memory_submit(st, io);
}

/* Lets the oldest I/O that is held go on, and what follows from that. */
static void release(void)
{
	struct loop_msg msg = {.fn = release_one};

	assert_true(nr_held);
	loop_post(loop, &msg);
	turn();
}

struct call {
	struct loop_msg msg;
	struct blk_request req;
	_Alignas(64) uint8_t priv[QCOW2_REQUEST_BYTES];
	_Alignas(4096) uint8_t buffer[64 * KiB];
	int ret;
};

static void call_complete(struct blk_request *req, int ret)
{
	container_of(req, struct call, req)->ret = ret;
}

static void call_submit(struct loop_msg *msg)
{
	qcow2_submit(queue, &container_of(msg, struct call, msg)->req);
}

/* Of a write each byte is @fill. */
static void begin(struct call *c, enum blk_op op, unsigned flags, uint64_t offset, uint64_t len,
		  uint8_t fill)
{
	memset(c, 0, sizeof(*c));
	memset(c->buffer, fill, sizeof(c->buffer));
	c->ret = 1;
	c->req = (struct blk_request){.op = op,
				      .flags = flags,
				      .offset_bytes = offset,
				      .len_bytes = len,
				      .buf.base = c->buffer,
				      .complete = call_complete,
				      .priv = c->priv};
	c->msg.fn = call_submit;
	loop_post(loop, &c->msg);
	turn();
}

static struct call now;

static int request(enum blk_op op, unsigned flags, uint64_t offset, uint64_t len, uint8_t fill)
{
	begin(&now, op, flags, offset, len, fill);
	assert_true(now.ret <= 0);
	return now.ret;
}

/* What the sector at @offset holds, all of it. */
static uint8_t sector(uint64_t offset)
{
	assert_int_equal(request(BLK_READ, 0, offset, 512, 0xee), 0);
	for (unsigned i = 1; i < 512; i++)
		assert_int_equal(now.buffer[i], now.buffer[0]);
	return now.buffer[0];
}

static int in_coroutine(void (*fn)(struct co_task *))
{
	struct co_task task = {.fn = fn};

	list_init(&task.list);
	loop_spawn(loop, &task);
	turn();
	return 0;
}

static int stop(void)
{
	int ret;

	qcow2_queue_destroy(queue);
	in_coroutine(detach);
	ret = qcow2_close(img, &error);
	loop_destroy(loop);
	return ret;
}

static void assert_sound(void)
{
	struct qcow2_check_options options = {0};
	struct qcow2_check_result result;

	assert_int_equal(qcow2_check(&disk.st, &options, &result, &error), 0);
	assert_int_equal(result.corruptions, 0);
	assert_int_equal(result.leaks, 0);
}

/* ---- a place that is zeroed and kept ---- */

static void hold_cluster(uint64_t goff)
{
	struct map_extent ext;

	assert_int_equal(map_peek(img, goff, 512, &ext), 0);
	assert_int_equal(ext.kind, MAP_DATA);
	hold_from = align_down(ext.hoff, img->cluster_bytes);
	hold_to = hold_from + img->cluster_bytes;
}

/*
 * A write in place and a read are under way when their cluster is zeroed and kept, and a part of it, elsewhere, is
 * written. The zeros and what comes after them wait until the two are over.
 */
static void overlap(const struct qcow2_create_options *o, enum qcow2_detect_zeroes detect)
{
	struct qcow2_options opts = {
		.no_lock = true, .detect_zeroes = detect, .image_path = "image", .names = &names};
	static struct call in_place, read, zero, part, other, read_after;
	uint64_t cluster = o->cluster_bytes;

	create(o);
	start(&opts);
	assert_int_equal(request(BLK_WRITE, 0, 0, 2 * cluster, 'a'), 0);
	hold_cluster(0);
	begin(&in_place, BLK_WRITE, 0, 1024, 512, 'b');
	begin(&read, BLK_READ, 0, 1024, 512, 0xee);
	assert_int_equal(nr_held, 2);
	if (detect)
		begin(&zero, BLK_WRITE, 0, 0, cluster, 0);
	else if (o->data_file)
		begin(&zero, BLK_DISCARD, 0, 0, cluster, 0xee);
	else
		begin(&zero, BLK_WRITE_ZEROES, BLK_NOUNMAP, 0, cluster, 0xee);
	begin(&part, BLK_WRITE, 0, 0, 512, 'c');
	assert_int_equal(in_place.ret, 1);
	assert_int_equal(zero.ret, 1);
	assert_int_equal(part.ret, 1);
	assert_int_equal(nr_held, 2); /* nothing else is on its way there */
	/* a read need not wait: it sees the zeros */
	begin(&read_after, BLK_READ, 0, 1024, 512, 0xee);
	assert_int_equal(read_after.ret, 0);
	assert_int_equal(read_after.buffer[0], 0);
	/* nor does another cluster */
	begin(&other, BLK_WRITE, 0, cluster, 512, 'd');
	assert_int_equal(other.ret, 0);
	release();
	assert_int_equal(in_place.ret, 0);
	assert_int_equal(zero.ret, 1);
	assert_int_equal(nr_held, 1);
	release();
	assert_int_equal(read.ret, 0);
	assert_int_equal(read.buffer[0], 'b');
	assert_int_equal(zero.ret, 0);
	while (nr_held) /* the last one's */
		release();
	assert_int_equal(part.ret, 0);
	hold_from = hold_to = 0;
	assert_int_equal(sector(0), 'c');
	assert_int_equal(sector(1024), 0);
	assert_int_equal(sector(cluster), 'd');
	assert_int_equal(stop(), 0);
	assert_sound();
}

static void test_a_place_that_is_kept_is_not_written_too_early(void **state)
{
	static const struct qcow2_create_options o = {
		.size_bytes = MiB, .cluster_bytes = 4096, .refcount_bits = 16};

	overlap(&o, QCOW2_DETECT_ZEROES_OFF);
}

static void test_the_same_with_zeros_that_are_found_out(void **state)
{
	static const struct qcow2_create_options o = {
		.size_bytes = MiB, .cluster_bytes = 4096, .refcount_bits = 16};

	overlap(&o, QCOW2_DETECT_ZEROES_ON);
}

static void test_the_same_with_subclusters(void **state)
{
	static const struct qcow2_create_options o = {.size_bytes = MiB,
						      .cluster_bytes = 16 * KiB,
						      .refcount_bits = 16,
						      .extended_l2 = true};

	overlap(&o, QCOW2_DETECT_ZEROES_OFF);
}

/* There a cluster that is unlinked gets the same place again. */
static void test_the_same_with_a_data_file(void **state)
{
	static const struct qcow2_create_options o = {.size_bytes = MiB,
						      .cluster_bytes = 4096,
						      .refcount_bits = 16,
						      .version = 3,
						      .data_file = "data"};

	overlap(&o, QCOW2_DETECT_ZEROES_OFF);
}

/* What is unlinked gets another place, and what was zero already nobody is at work in: neither waits. */
static void test_nobody_else_waits(void **state)
{
	static const struct qcow2_create_options o = {
		.size_bytes = MiB, .cluster_bytes = 4096, .refcount_bits = 16};
	struct qcow2_options opts = {.no_lock = true};
	static struct call in_place;

	create(&o);
	start(&opts);
	assert_int_equal(request(BLK_WRITE, 0, 0, 8192, 'a'), 0);
	assert_int_equal(request(BLK_WRITE_ZEROES, BLK_NOUNMAP, 4096, 4096, 0), 0);
	hold_cluster(0);
	begin(&in_place, BLK_WRITE, 0, 1024, 512, 'b');
	assert_int_equal(request(BLK_WRITE_ZEROES, BLK_NOUNMAP, 4096, 4096, 0), 0);
	assert_int_equal(request(BLK_WRITE, 0, 4096, 512, 'c'), 0);
	assert_int_equal(request(BLK_DISCARD, 0, 0, 4096, 0), 0);
	assert_int_equal(request(BLK_WRITE, 0, 0, 512, 'd'), 0);
	assert_int_equal(in_place.ret, 1);
	release();
	assert_int_equal(in_place.ret, 0);
	assert_int_equal(sector(0), 'd');
	assert_int_equal(sector(1024), 0);
	assert_int_equal(sector(4096), 'c');
	assert_int_equal(stop(), 0);
	assert_sound();
}

/* ---- growing, and the log ---- */

static void with_log(struct qcow2_options *opts, void *log)
{
	opts->no_lock = true;
	opts->log_base = log;
	opts->log_bytes = LOG_BYTES;
	opts->log_identity = "test";
	opts->log_identity_bytes = 4;
}

static uint64_t resize_bytes;
static int resize_ret;

static void resize(struct co_task *task)
{
	resize_ret = qcow2_resize(img, resize_bytes, &error);
}

static void resize_to(uint64_t size_bytes)
{
	resize_bytes = size_bytes;
	resize_ret = 1;
	in_coroutine(resize);
}

/* A log that is as full as requests make it, and an L1 table that needs dozens of refcount blocks. */
static void test_growing_does_not_overflow_the_log(void **state)
{
	static const struct qcow2_create_options o = {
		.size_bytes = 16 * MiB, .cluster_bytes = 512, .refcount_bits = 64};
	struct qcow2_options opts = {.writeback_delay_ms = 60000, .cache_size_bytes = 32 * MiB};
	uint64_t at, passes, entries;

	create(&o);
	with_log(&opts, recovery_log);
	start(&opts);
	/* so much that the refcount table has moved, and need not again, with a pass of its own */
	for (at = 0; at < 5 * MiB; at += 64 * KiB)
		assert_int_equal(request(BLK_WRITE, 0, at, 64 * KiB, 'a'), 0);
	assert_int_equal(request(BLK_FLUSH, 0, 0, 0, 0), 0);
	/* as many records as writes, which want much room, may make; then those that want little */
	passes = img->wb.passes;
	while (img->reclog.head - img->reclog.cut + reclog_need(img, 256) < img->reclog.capacity &&
	       at < 16 * MiB) {
		assert_int_equal(request(BLK_WRITE, 0, at, 512, 'a'), 0);
		at += 1024;
	}
	assert_int_equal(img->wb.passes, passes);
	while (img->reclog.head - img->reclog.cut + reclog_need(img, 1) < img->reclog.capacity) {
		at -= 1024;
		assert_int_equal(request(BLK_DISCARD, 0, at, 512, 0), 0);
	}
	assert_int_equal(img->wb.passes, passes);
	assert_true(img->reclog.capacity - (img->reclog.head - img->reclog.cut) < 16);
	entries = img->rt.entries;
	resize_to((uint64_t)4 * GiB);
	assert_int_equal(resize_ret, 0);
	assert_int_equal(img->rt.entries, entries);
	assert_int_equal(img->reclog.reserved, 0);
	for (uint64_t s = 0; s < at; s += 64 * KiB)
		assert_int_equal(sector(s), 'a');
	assert_int_equal(sector(at), 0);
	assert_int_equal(stop(), 0);
	assert_sound();
}

/* Killed right after the header got its new size, and again in the next resize right before that. */
static void test_a_resize_is_killed_twice(void **state)
{
	static const struct qcow2_create_options o = {
		.size_bytes = MiB, .cluster_bytes = 4096, .refcount_bits = 16};
	static _Alignas(4096) uint8_t left[LOG_BYTES];
	struct qcow2_options opts = {0};
	static struct memory then;

	create(&o);
	with_log(&opts, recovery_log);
	start(&opts);
	assert_int_equal(request(BLK_WRITE, 0, 0, 4096, 'a'), 0);
	hold_to = 512;
	resize_to(2 * MiB);
	assert_int_equal(nr_held, 1);
	memcpy(left, recovery_log, sizeof(left));
	hold_to = 0;
	release();
	assert_int_equal(resize_ret, 0);
	memory_init(&then);
	memory_copy(&then, &disk);
	assert_int_equal(stop(), 0);

	memory_copy(&disk, &then);
	memcpy(recovery_log, left, sizeof(left));
	opts.log_recover = true;
	start(&opts);
	assert_int_equal(qcow2_size_bytes(img), 2 * MiB);
	assert_int_equal(request(BLK_WRITE, 0, 4096, 4096, 'b'), 0);
	hold_to = 512;
	resize_to(3 * MiB);
	assert_int_equal(nr_held, 1);
	memcpy(left, recovery_log, sizeof(left));
	memory_copy(&then, &disk);
	hold_to = 0;
	release();
	assert_int_equal(stop(), 0);

	memory_copy(&disk, &then);
	memcpy(recovery_log, left, sizeof(left));
	start(&opts);
	assert_int_equal(qcow2_size_bytes(img), 2 * MiB);
	assert_int_equal(sector(0), 'a');
	assert_int_equal(sector(4096), 'b');
	assert_int_equal(stop(), 0);
	memory_destroy(&then);
}

/* ---- the end ---- */

static int settle_ret;

static void settle(struct co_task *task)
{
	settle_ret = qcow2_settle(img);
}

/* There is no space for the L1 table's sectors, which were a hole: nobody is told that all is written. */
static void test_what_has_no_space_is_not_given_up(void **state)
{
	static const struct qcow2_create_options o = {
		.size_bytes = MiB, .cluster_bytes = 4096, .refcount_bits = 16};
	struct qcow2_options opts = {.no_lock = true, .writeback_delay_ms = 60000};

	create(&o);
	start(&opts);
	full_from = img->l1.offset_bytes;
	full_to = full_from + 4096;
	assert_int_equal(request(BLK_WRITE, 0, 0, 4096, 'a'), 0);
	in_coroutine(settle);
	assert_int_equal(settle_ret, -ENOSPC);
	assert_int_equal(sector(0), 'a');
	in_coroutine(settle);
	assert_int_equal(settle_ret, -ENOSPC);
	full_to = full_from;
	in_coroutine(settle);
	assert_int_equal(settle_ret, 0);
	assert_int_equal(stop(), 0);
	assert_sound();
	start(&opts);
	assert_int_equal(sector(0), 'a');
	assert_int_equal(stop(), 0);
}

/* Killed; and a recovery that finds no space either leaves the log as it is, for one that does. */
static void test_a_log_that_has_no_space_stays(void **state)
{
	static const struct qcow2_create_options o = {
		.size_bytes = MiB, .cluster_bytes = 4096, .refcount_bits = 16};
	static _Alignas(4096) uint8_t left[LOG_BYTES];
	struct qcow2_options opts = {.writeback_delay_ms = 60000};
	static struct memory then;
	uint64_t l1;

	create(&o);
	with_log(&opts, recovery_log);
	start(&opts);
	l1 = full_from = img->l1.offset_bytes;
	full_to = full_from + 4096;
	assert_int_equal(request(BLK_WRITE, 0, 0, 8192, 'a'), 0);
	assert_int_equal(request(BLK_DISCARD, 0, 0, 4096, 0), 0);
	memory_init(&then);
	memory_copy(&then, &disk);
	memcpy(left, recovery_log, sizeof(left));
	full_to = full_from;
	assert_int_equal(stop(), 0);

	full_to = l1 + 4096;
	memory_copy(&disk, &then);
	memcpy(recovery_log, left, sizeof(left));
	opts.log_recover = true;
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(qcow2_open(&img, &disk.st, &opts, &error), -ENOSPC);
	full_to = full_from;
	start(&opts);
	assert_int_equal(sector(0), 0);
	assert_int_equal(sector(4096), 'a');
	assert_int_equal(stop(), 0);
	assert_sound();
	memory_destroy(&then);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_place_that_is_kept_is_not_written_too_early),
		cmocka_unit_test(test_the_same_with_zeros_that_are_found_out),
		cmocka_unit_test(test_the_same_with_subclusters),
		cmocka_unit_test(test_the_same_with_a_data_file),
		cmocka_unit_test(test_nobody_else_waits),
		cmocka_unit_test(test_growing_does_not_overflow_the_log),
		cmocka_unit_test(test_a_resize_is_killed_twice),
		cmocka_unit_test(test_what_has_no_space_is_not_given_up),
		cmocka_unit_test(test_a_log_that_has_no_space_stays),
	};
	int ret = cmocka_run_group_tests(tests, NULL, NULL);

	memory_destroy(&disk);
	memory_destroy(&data);
	return ret;
}
