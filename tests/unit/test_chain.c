// SPDX-License-Identifier: MIT
/*
 * Proves of backing chains what images that QEMU makes do not show: what is broken in one layer is EIO
 * there alone, and hides nothing that the layers above it have; and I/O keeps to the blocks of each file,
 * wherever the layers begin, end, and hide each other.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/blk.h"
#include "base/math.h"
#include "memory.h"
#include "qcow2.h"
#include "qcow2/image.h"
#include "ring/co.h"
#include "storage/names.h"

#define FILES 4

static struct memory files[FILES]; /* the image, its backing file "1", and so on */
static uint32_t blocks[FILES];	   /* of each when it is opened directly */
static unsigned opened[FILES];	   /* how often since start() */
static unsigned closed;
static uint64_t unreadable; /* a place in file 2 that reads as an error; 0: none */
static struct error error;
static struct loop *loop;
static struct qcow2_image *img;
static struct qcow2_queue *queue;
static _Alignas(4096) uint8_t buffer[256 * KiB];

/* ---- files ---- */

static void strict_submit(struct storage *st, struct storage_io *io)
{
	if (io->op == STORAGE_READ || io->op == STORAGE_WRITE)
		assert_true(is_aligned(io->offset_bytes | io->len_bytes, st->block_bytes));
	if (unreadable && io->op == STORAGE_READ && st == &files[2].st &&
	    io->offset_bytes <= unreadable && unreadable - io->offset_bytes < io->len_bytes)
		io->complete(io, -EIO);
	else
		memory_submit(st, io);
}

static void strict_close(struct storage *st)
{
	closed++;
}

static const struct storage_ops strict_ops = {.submit = strict_submit, .close = strict_close};

/* Directly; the second time it is because that was of no use, and its blocks are smaller. */
static int open_layer(void *arg, struct storage **out, char **path_out, const char *name, bool read_only,
		      struct error *err)
{
	unsigned n = (unsigned)(name[0] - '0');

	assert_true(n && n < FILES && opened[n] < 2);
	files[n].st.block_bytes = opened[n]++ ? 512 : blocks[n];
	files[n].st.read_only = read_only;
	*out = &files[n].st;
	if (path_out)
		*path_out = strdup(name);
	return 0;
}

static void file_reset(unsigned n, uint32_t block_bytes)
{
	memory_destroy(&files[n]);
	memory_init(&files[n]);
	files[n].st.ops = &strict_ops;
	blocks[n] = block_bytes;
}

static void put32(uint8_t *to, uint32_t value)
{
	be32_t v = be32_make(value);

	memcpy(to, &v, sizeof(v));
}

static uint64_t get64(const uint8_t *from)
{
	be64_t v;

	memcpy(&v, from, sizeof(v));
	return be64_get(v);
}

/* A qcow2 image, over nothing. */
static void file_create(unsigned n, uint32_t block_bytes, const struct qcow2_create_options *o)
{
	file_reset(n, block_bytes);
	assert_int_equal(qcow2_create(&files[n].st, o, &error), 0);
}

/*
 * Puts image @n over file @n + 1. In the header's first sector there is then the format in place of the
 * features' names, and the file's name at the end.
 */
static void file_put_over(unsigned n, const char *format)
{
	uint8_t *head = files[n].data, *ext = head + 112;

	memset(ext, 0, 512 - 112);
	put32(ext, 0xe2792aca);
	put32(ext + 4, (uint32_t)strlen(format));
	memcpy(ext + 8, format, strlen(format));
	head[511] = (uint8_t)('1' + n);
	put32(head + 12, 511);
	put32(head + 16, 1);
}

static void file_create_raw(unsigned n, uint32_t block_bytes, uint64_t size_bytes, int fill)
{
	file_reset(n, block_bytes);
	memory_resize(&files[n], size_bytes);
	memset(files[n].data, fill, size_bytes);
}

/* ---- an image, one loop, and requests one at a time ---- */

static void start(unsigned n)
{
	static const struct names_policy names = {.open = open_layer};
	struct qcow2_options opts = {.no_lock = true, .names = &names, .image_path = "0"};
	struct loop_params params = {
		.name = "test", .sq_entries = 8, .coroutines = 16, .ringless = true};

	memset(opened, 0, sizeof(opened));
	files[n].st.read_only = false;
	files[n].st.direct = true;
	files[n].st.block_bytes = blocks[n];
	assert_int_equal(loop_create(&loop, &params, &error), 0);
	assert_int_equal(qcow2_open(&img, &files[n].st, &opts, &error), 0);
	assert_int_equal(qcow2_set_metadata_loop(img, loop, &error), 0);
	assert_int_equal(qcow2_queue_create(&queue, img, loop, &error), 0);
}

static void turn(void)
{
	while (loop_turn(loop))
		;
}

static void detach(struct co_task *task)
{
	qcow2_detach_loop(img);
}

static void stop(void)
{
	struct co_task task = {.fn = detach};

	qcow2_queue_destroy(queue);
	list_init(&task.list);
	loop_spawn(loop, &task);
	turn();
	assert_int_equal(qcow2_close(img, &error), 0);
	loop_destroy(loop);
}

struct call {
	struct loop_msg msg;
	struct blk_request req;
	_Alignas(64) uint8_t priv[QCOW2_REQUEST_BYTES];
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

static int request(enum blk_op op, uint64_t offset, uint64_t len)
{
	static struct call c;

	memset(&c, 0, sizeof(c));
	c.ret = 1;
	c.req = (struct blk_request){.op = op,
				     .offset_bytes = offset,
				     .len_bytes = len,
				     .buf.base = buffer,
				     .complete = call_complete,
				     .priv = c.priv};
	c.msg.fn = call_submit;
	loop_post(loop, &c.msg);
	turn();
	assert_true(c.ret <= 0);
	return c.ret;
}

static void fill(uint64_t offset, uint64_t len, int byte)
{
	memset(buffer, byte, len);
	assert_int_equal(request(BLK_WRITE, offset, len), 0);
}

static void expect(uint64_t offset, uint64_t len, int byte)
{
	memset(buffer, ~byte, len);
	assert_int_equal(request(BLK_READ, offset, len), 0);
	for (uint64_t i = 0; i < len; i++)
		if (buffer[i] != (uint8_t)byte)
			fail_msg("byte %llu is %#x, not %#x", (unsigned long long)(offset + i),
				 buffer[i], byte);
}

static void expect_error(uint64_t offset, uint64_t len)
{
	assert_int_equal(request(BLK_READ, offset, len), -EIO);
}

/* ---- tests ---- */

/* 512-byte clusters: an L2 table maps 32 KiB, and a slice of the merged map has eight of them. */
static void test_broken_table_below(void **state)
{
	struct qcow2_create_options o = {.size_bytes = MiB, .cluster_bytes = 512};

	file_create(2, 512, &o);
	start(2);
	fill(0, 128 * KiB, 'c');
	stop();
	file_create(1, 512, &o);
	start(1);
	fill(33 * KiB, KiB, 'b');
	stop();
	file_put_over(1, "qcow2");
	file_create(0, 512, &o);
	file_put_over(0, "qcow2");
	/* what maps [32 KiB, 64 KiB) of the lowest has a reserved bit set */
	files[2].data[get64(files[2].data + 40) + 8 + 7] |= 1;
	start(0);
	expect(0, 32 * KiB, 'c');
	expect(64 * KiB, 64 * KiB, 'c');
	expect(33 * KiB, KiB, 'b');
	expect(200 * KiB, 8 * KiB, 0);
	expect_error(32 * KiB, 512);
	expect_error(63 * KiB, 2 * KiB);
	fill(40 * KiB, 512, 'a');
	expect(40 * KiB, 512, 'a');
	assert_int_equal(request(BLK_WRITE_ZEROES, 32 * KiB, 4 * KiB), 0);
	expect(32 * KiB, 4 * KiB, 0);
	stop();
}

/* The same where that table cannot be read; and when it can be again, it is. */
static void test_unreadable_table_below(void **state)
{
	struct qcow2_create_options o = {.size_bytes = MiB, .cluster_bytes = 512};

	file_create(2, 512, &o);
	start(2);
	fill(0, 128 * KiB, 'c');
	stop();
	file_create(1, 512, &o);
	start(1);
	fill(33 * KiB, KiB, 'b');
	stop();
	file_put_over(1, "qcow2");
	file_create(0, 512, &o);
	file_put_over(0, "qcow2");
	unreadable = get64(files[2].data + get64(files[2].data + 40) + 8) & QCOW2_L1_OFFSET_MASK;
	start(0);
	expect(0, 32 * KiB, 'c');
	expect(33 * KiB, KiB, 'b');
	expect_error(32 * KiB, 512);
	unreadable = 0;
	expect(32 * KiB, 512, 'c');
	stop();
}

static void test_blocks_of_a_layer(void **state)
{
	struct qcow2_create_options o = {.size_bytes = MiB, .cluster_bytes = 64 * KiB};
	struct qcow2_create_options small = {.size_bytes = MiB, .cluster_bytes = 512};

	/* blocks of 4096 below an image that hides 512 bytes in one */
	file_create_raw(2, 4096, MiB, 'r');
	file_create(1, 512, &small);
	start(1);
	fill(5 * 512, 512, 'm');
	stop();
	file_put_over(1, "raw");
	file_create(0, 4096, &o);
	file_put_over(0, "qcow2");
	start(0);
	expect(4096, 4096, 'r');
	assert_int_equal(request(BLK_READ, 0, 4096), 0);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(buffer[i], i / 512 == 5 ? 'm' : 'r');
	stop();
}

/* Subclusters that are smaller than blocks, which somebody else may have written: not to be had directly. */
static void test_blocks_and_subclusters(void **state)
{
	struct qcow2_create_options o = {
		.size_bytes = MiB, .cluster_bytes = 16 * KiB, .extended_l2 = true};
	struct qcow2_options opts = {.no_lock = true};

	file_create(0, 512, &o);
	start(0);
	fill(3 * 512, 512, 's');
	stop();
	files[0].st.block_bytes = 4096;
	assert_int_equal(qcow2_open(&img, &files[0].st, &opts, &error), -EINVAL);
}

/* A disk that ends inside a block: its last cluster is copied. */
static void test_blocks_and_the_disks_end(void **state)
{
	struct qcow2_create_options o = {.size_bytes = MiB - 512, .cluster_bytes = 64 * KiB};

	file_create_raw(1, 4096, MiB, 'r');
	file_create(0, 4096, &o);
	file_put_over(0, "raw");
	start(0);
	fill(MiB - 16 * KiB, 4096, 'a');
	expect(MiB - 64 * KiB, 48 * KiB, 'r');
	expect(MiB - 12 * KiB, 8 * KiB, 'r');
	expect(MiB - 16 * KiB, 4096, 'a');
	stop();
	/* what is past the disk's end was not copied */
	blocks[0] = 512;
	start(0);
	expect(MiB - 4096, 4096 - 512, 'r');
	stop();
}

/* An error leaves nothing open, and (which the sanitizer sees) no memory. */
static void test_no_image_below(void **state)
{
	static const struct names_policy names = {.open = open_layer};
	struct qcow2_create_options o = {.size_bytes = MiB, .cluster_bytes = 64 * KiB};
	struct qcow2_options opts = {.no_lock = true, .names = &names, .image_path = "0"};

	file_create_raw(1, 512, MiB, 'r');
	file_create(0, 512, &o);
	file_put_over(0, "qcow2");
	memset(opened, 0, sizeof(opened));
	closed = 0;
	assert_true(qcow2_open(&img, &files[0].st, &opts, &error) < 0);
	assert_int_equal(closed, opened[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_broken_table_below),
		cmocka_unit_test(test_unreadable_table_below),
		cmocka_unit_test(test_blocks_of_a_layer),
		cmocka_unit_test(test_blocks_and_subclusters),
		cmocka_unit_test(test_blocks_and_the_disks_end),
		cmocka_unit_test(test_no_image_below),
	};
	int ret = cmocka_run_group_tests(tests, NULL, NULL);

	for (unsigned i = 0; i < FILES; i++)
		memory_destroy(&files[i]);
	return ret;
}
