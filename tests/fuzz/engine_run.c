/* SPDX-License-Identifier: MIT */
/*
 * engine_run.c: see engine_run.h. A request that does not complete although nothing is left to do is a
 * hang, and ends the program; so does an amount of work beyond any reason.
 */
#include "engine_run.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/math.h"
#include "fuzz.h"
#include "memdisk.h"
#include "qcow2.h"
#include "ring/co.h"
#include "storage/names.h"

#define STEPS_MAX 2000000 /* between a start and its completion */
#define BELOW_MAX 3	  /* files that the image names, and that those name */

/* Kept from one input to the next: making stacks is what would take most of the time. */
static struct loop *the_loop;
static uint8_t *the_bufs[ENGINE_DEPTH];

static void make_once(void)
{
	struct loop_params params = {
		.name = "fuzz",
		.coroutines = ENGINE_DEPTH + 1 + QCOW2_EXTRA_COROUTINES,
		.ringless = true,
	};
	struct error err = {0};

	if (the_loop)
		return;
	assert(loop_create(&the_loop, &params, &err) == 0);
	for (unsigned i = 0; i < ENGINE_DEPTH; i++) {
		the_bufs[i] = aligned_alloc(4096, ENGINE_LEN_MAX);
		assert(the_bufs[i]);
	}
}

struct slot {
	struct engine *engine;
	struct blk_request req;
	struct loop_msg msg;
	bool busy;
	int ret;
	uint8_t *buf;
};

struct change {
	struct co_task task;
	struct loop_msg msg;
	enum engine_change what;
	const char *name;
	uint64_t size_bytes;
	struct error err;
	bool busy;
	int ret;
};

struct engine {
	struct storage *st;
	/* others that the engine has open, and what they are copies of */
	struct storage *below[BELOW_MAX];
	unsigned nr_below;
	const uint8_t *data;
	size_t size;
	struct names_policy names;
	struct change change;
	struct qcow2_image *img;
	struct loop *loop;
	struct qcow2_queue *queue;
	void *privs;
	struct slot slots[ENGINE_DEPTH];
	unsigned busy;
	struct co_task detach_task;
	bool detached;
};

/* Does one thing; false if there is nothing to do but to let time pass. */
static bool step(struct engine *e)
{
	bool did = loop_turn(e->loop);

	for (unsigned i = 0; i < e->nr_below; i++)
		did |= memdisk_step(e->below[i]);
	return memdisk_step(e->st) || did;
}

/* For names_policy. */
static int below_open(void *arg, struct storage **out, char **path_out, const char *name, bool read_only,
		      struct error *err)
{
	struct engine *e = arg;

	if (e->nr_below == BELOW_MAX)
		return error_set(err, -ENOENT, "no more files");
	*out = memdisk_create(e->data, e->size, FUZZ_FILE_MAX, e->nr_below);
	(*out)->read_only = read_only;
	e->below[e->nr_below++] = *out;
	if (path_out) {
		*path_out = strdup("below");
		assert(*path_out);
	}
	return 0;
}

static void run_until(struct engine *e, bool (*done)(const struct engine *e))
{
	uint64_t steps = 0;

	while (!done(e)) {
		assert(++steps < STEPS_MAX);
		if (step(e))
			continue;
		/* Only a timer can go on from here. */
		uint64_t deadline = loop_next_deadline_ns(e->loop), now = loop_now_ns(e->loop);

		assert(deadline != UINT64_MAX);
		loop_advance(e->loop, deadline > now ? deadline - now : 1);
	}
}

static bool all_idle(const struct engine *e)
{
	return !e->busy;
}

static bool one_idle(const struct engine *e)
{
	return e->busy < ENGINE_DEPTH;
}

static bool no_change(const struct engine *e)
{
	return !e->change.busy;
}

static bool is_detached(const struct engine *e)
{
	return e->detached;
}

static void complete(struct blk_request *req, int ret)
{
	struct slot *slot = container_of(req, struct slot, req);

	assert(slot->busy && ret <= 0);
	slot->busy = false;
	slot->ret = ret;
	slot->engine->busy--;
}

static void start(struct loop_msg *msg)
{
	struct slot *slot = container_of(msg, struct slot, msg);

	qcow2_submit(slot->engine->queue, &slot->req);
}

void engine_start(struct engine *e, enum blk_op op, uint32_t flags, uint64_t offset, uint64_t len,
		  uint8_t fill)
{
	uint64_t size = qcow2_size_bytes(e->img);
	struct slot *slot = e->slots;

	run_until(e, one_idle);
	while (slot->busy)
		slot++;
	if (op == BLK_FLUSH) {
		offset = len = 0;
	} else {
		if (!size)
			return;
		offset = align_down(offset % size, 512);
		len = min_of(max_of(align_down(len, 512), (uint64_t)512), size - offset);
		if (op == BLK_READ || op == BLK_WRITE)
			len = min_of(len, ENGINE_LEN_MAX);
	}
	slot->busy = true;
	e->busy++;
	memset(slot->buf, fill, op == BLK_FLUSH ? 0 : min_of(len, ENGINE_LEN_MAX));
	slot->req.op = op;
	slot->req.flags = flags;
	slot->req.offset_bytes = offset;
	slot->req.len_bytes = len;
	slot->req.buf = (struct blk_buf){.base = slot->buf};
	slot->req.complete = complete;
	slot->msg.fn = start;
	loop_post(e->loop, &slot->msg);
}

void engine_drain(struct engine *e)
{
	run_until(e, all_idle);
}

void engine_idle(struct engine *e, unsigned timers)
{
	while (timers--) {
		uint64_t steps = 0, deadline, now;

		while (step(e))
			assert(++steps < STEPS_MAX);
		deadline = loop_next_deadline_ns(e->loop);
		now = loop_now_ns(e->loop);
		if (deadline == UINT64_MAX)
			return;
		loop_advance(e->loop, deadline > now ? deadline - now : 1);
	}
}

static void change_run(struct co_task *task)
{
	struct change *c = container_of(task, struct change, task);
	struct qcow2_image *img = container_of(c, struct engine, change)->img;

	switch (c->what) {
	case ENGINE_SNAPSHOT_CREATE:
		c->ret = qcow2_snapshot_create(img, c->name, NULL, &c->err);
		break;
	case ENGINE_SNAPSHOT_APPLY:
		c->ret = qcow2_snapshot_apply(img, c->name, NULL, &c->err);
		break;
	case ENGINE_SNAPSHOT_DELETE:
		c->ret = qcow2_snapshot_delete(img, c->name, NULL, &c->err);
		break;
	case ENGINE_RESIZE:
		c->ret = qcow2_resize(img, c->size_bytes, &c->err);
		break;
	}
	c->busy = false;
}

static void change_spawn(struct loop_msg *msg)
{
	struct change *c = container_of(msg, struct change, msg);

	loop_spawn(container_of(c, struct engine, change)->loop, &c->task);
}

int engine_change(struct engine *e, enum engine_change what, const char *name, uint64_t size_bytes)
{
	struct change *c = &e->change;

	*c = (struct change){.what = what, .name = name, .size_bytes = size_bytes, .busy = true};
	c->task.fn = change_run;
	c->msg.fn = change_spawn;
	list_init(&c->task.list);
	loop_post(e->loop, &c->msg);
	run_until(e, no_change);
	assert(c->ret ? c->ret < 0 && c->err.text[0] && !strchr(c->err.text, '\n') : !c->err.text[0]);
	return c->ret;
}

struct picking {
	unsigned index, count;
	char *id;
};

static void pick(void *arg, const struct qcow2_snapshot *snapshot)
{
	struct picking *p = arg;

	if (p->count++ == p->index && !p->id)
		p->id = strdup(snapshot->id);
}

char *engine_snapshot_id(struct engine *e, unsigned index)
{
	struct picking p = {.index = UINT32_MAX};

	assert(!e->busy && !loop_self());
	if (qcow2_snapshot_list(e->st, pick, &p, NULL) || !p.count)
		return NULL;
	p = (struct picking){.index = index % p.count};
	(void)!qcow2_snapshot_list(e->st, pick, &p, NULL);
	return p.id;
}

uint64_t engine_size_bytes(const struct engine *e)
{
	return qcow2_size_bytes(e->img);
}

uint32_t engine_cluster_bytes(const struct engine *e)
{
	return qcow2_cluster_bytes(e->img);
}

static struct engine *open_engine(const uint8_t *data, size_t size, bool read_only, uint64_t seed,
				  void *log, bool recover)
{
	static const char identity[] = "fuzz";
	struct qcow2_options opts = {
		.read_only = read_only,
		.no_lock = true,
		.max_inflight = ENGINE_DEPTH,
		.cache_size_bytes = seed & 1 ? 4096 : 0,
		.reclaim_delay_ms = seed & 2 ? 1 : 0,
		.log_base = log,
		.log_bytes = log ? ENGINE_LOG_BYTES : 0,
		.log_identity = identity,
		.log_identity_bytes = sizeof(identity),
		.log_recover = recover,
	};
	struct engine *e = calloc(1, sizeof(*e));
	size_t priv_bytes = align_up(qcow2_request_bytes(), 64);
	struct error err = {0};

	assert(e);
	e->data = data;
	e->size = size;
	e->names = (struct names_policy){.open = below_open, .arg = e, .backing_format = seed & 4 ? "raw" : "qcow2"};
	opts.names = &e->names;
	opts.image_path = "image";
	e->st = memdisk_create(data, size, FUZZ_FILE_MAX, seed);
	e->st->read_only = read_only;
	if (qcow2_open(&e->img, e->st, &opts, &err) < 0) {
		assert(err.text[0] && !strchr(err.text, '\n'));
		storage_close(e->st);
		free(e);
		return NULL;
	}
	make_once();
	e->loop = the_loop;
	assert(qcow2_set_metadata_loop(e->img, e->loop, &err) == 0);
	assert(qcow2_queue_create(&e->queue, e->img, e->loop, &err) == 0);
	e->privs = aligned_alloc(64, priv_bytes * ENGINE_DEPTH);
	memset(e->privs, 0, priv_bytes * ENGINE_DEPTH);
	for (unsigned i = 0; i < ENGINE_DEPTH; i++) {
		e->slots[i].engine = e;
		e->slots[i].req.priv = (uint8_t *)e->privs + i * priv_bytes;
		e->slots[i].buf = the_bufs[i];
	}
	return e;
}

struct engine *engine_open(const uint8_t *data, size_t size, bool read_only, uint64_t seed)
{
	return open_engine(data, size, read_only, seed, NULL, false);
}

struct engine *engine_open_log(const uint8_t *data, size_t size, uint64_t seed, void *log, bool recover)
{
	return open_engine(data, size, false, seed, log, recover);
}

uint8_t *engine_file_copy(const struct engine *e, size_t *size)
{
	return memdisk_copy(e->st, size);
}

size_t engine_read_start(struct engine *e, uint8_t *out)
{
	size_t len = min_of(qcow2_size_bytes(e->img), ENGINE_LEN_MAX);

	assert(!e->busy);
	if (!len)
		return 0;
	engine_start(e, BLK_READ, 0, 0, len, 0xa5);
	engine_drain(e);
	memcpy(out, the_bufs[0], len);
	return e->slots[0].ret ? 0 : len;
}

static void detach(struct co_task *task)
{
	struct engine *e = container_of(task, struct engine, detach_task);

	qcow2_queue_destroy(e->queue);
	qcow2_detach_loop(e->img);
	e->detached = true;
}

static void spawn_detach(struct loop_msg *msg)
{
	struct slot *slot = container_of(msg, struct slot, msg);

	loop_spawn(slot->engine->loop, &slot->engine->detach_task);
}

void engine_close(struct engine *e)
{
	struct error err = {0};
	int ret;

	engine_drain(e);
	e->detach_task.fn = detach;
	e->slots[0].msg.fn = spawn_detach;
	loop_post(e->loop, &e->slots[0].msg);
	run_until(e, is_detached);
	while (step(e))
		;
	ret = qcow2_close(e->img, &err); /* a broken image may not be writable */
	assert(ret <= 0);
	free(e->privs);
	free(e);
}
