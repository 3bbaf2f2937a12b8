/* SPDX-License-Identifier: MIT */
/*
 * engine.h: for unit tests of the engine: an image on a disk in memory, one loop, and requests one at a time. The
 * disk holds back what it is asked to: syncs, reads and writes that begin somewhere, writes of the header.
 */
#ifndef TESTS_UNIT_ENGINE_H
#define TESTS_UNIT_ENGINE_H

#include "engine_loop.h"

static _Alignas(4096) uint8_t buffer[64 * KiB];

/* ---- a disk whose syncs wait, for as long as it is asked to ---- */

static struct storage_io *held[8];
static unsigned nr_held;
static bool hold_syncs;
static uint64_t hold_reads_from, hold_reads_to; /* of reads that begin there */
static bool hold_header; /* writes of it */
static uint64_t hold_writes_from, hold_writes_to; /* of writes that begin there */

static inline bool is_held(const struct storage_io *io)
{
	if (io->op == STORAGE_READ)
		return io->offset_bytes >= hold_reads_from && io->offset_bytes < hold_reads_to;
	if (io->op == STORAGE_WRITE)
		return (hold_header && !io->offset_bytes) ||
		       (io->offset_bytes >= hold_writes_from && io->offset_bytes < hold_writes_to);
	return hold_syncs && io->op == STORAGE_SYNC;
}

static inline void engine_submit(struct storage *st, struct storage_io *io)
{
	if (!is_held(io)) {
		memory_submit(st, io);
		return;
	}
	assert_true(nr_held < ARRAY_LEN(held));
	held[nr_held++] = io;
}

static inline void engine_close(struct storage *st)
{
}

static const struct storage_ops engine_ops = {.submit = engine_submit, .close = engine_close};

/* On the loop: the newest first, so that the oldest one's error comes last. */
static inline void release_held(struct loop_msg *msg)
{
	while (nr_held) {
		nr_held--;
		held[nr_held]->complete(held[nr_held], nr_held ? 0 : -EIO);
	}
}

/* ---- an image, one loop, and requests one at a time ---- */

static inline void create(uint32_t cluster_bytes, unsigned refcount_bits, uint64_t size_bytes)
{
	struct qcow2_create_options o = {.size_bytes = size_bytes,
					 .cluster_bytes = cluster_bytes,
					 .refcount_bits = refcount_bits};

	memory_destroy(&disk);
	memory_init(&disk);
	disk.st.ops = &engine_ops;
	assert_int_equal(qcow2_create(&disk.st, &o, &error), 0);
}

/* What lies past the used part of a device is garbage. */
static inline void become_device(uint64_t size_bytes)
{
	uint64_t used = disk.st.size_bytes;

	assert_true(used < size_bytes);
	memory_resize(&disk, size_bytes);
	memset(disk.data + used, 0xa5, size_bytes - used);
	disk.st.fixed_size = true;
}

struct call {
	struct loop_msg msg;
	struct co_task task;
	struct blk_request req;
	_Alignas(64) uint8_t priv[QCOW2_REQUEST_BYTES];
	int ret;
};

static inline void call_complete(struct blk_request *req, int ret)
{
	container_of(req, struct call, req)->ret = ret;
}

static inline void call_submit(struct loop_msg *msg)
{
	qcow2_submit(queue, &container_of(msg, struct call, msg)->req);
}

static inline void send_request(struct call *c, enum blk_op op, unsigned flags, uint64_t offset,
			 uint64_t len)
{
	memset(c, 0, sizeof(*c));
	c->ret = 1;
	c->req = (struct blk_request){.op = op,
				      .flags = flags,
				      .offset_bytes = offset,
				      .len_bytes = len,
				      .buf.base = buffer,
				      .complete = call_complete,
				      .priv = c->priv};
	c->msg.fn = call_submit;
	loop_post(loop, &c->msg);
	turn();
}

static inline int request(enum blk_op op, unsigned flags, uint64_t offset, uint64_t len)
{
	static struct call c;

	send_request(&c, op, flags, offset, len);
	assert_true(c.ret <= 0);
	return c.ret;
}

static inline int stop(void)
{
	struct co_task task = {.fn = detach};
	int ret;

	qcow2_queue_destroy(queue);
	list_init(&task.list);
	loop_spawn(loop, &task);
	turn();
	ret = qcow2_close(img, &error);
	loop_destroy(loop);
	return ret;
}

static inline void assert_sound(void)
{
	struct qcow2_check_options options = {0};
	struct qcow2_check_result result;

	assert_int_equal(qcow2_check(&disk.st, &options, &result, &error), 0);
	assert_int_equal(result.corruptions, 0);
	assert_int_equal(result.leaks, 0);
}

static inline uint64_t be64_at(uint64_t offset)
{
	be64_t v;

	memcpy(&v, disk.data + offset, sizeof(v));
	return be64_get(v);
}

#endif
