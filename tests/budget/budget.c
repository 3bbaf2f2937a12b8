// SPDX-License-Identifier: MIT
/*
 * budget.c: the engine's path of a mapped 4 KiB request, alone, for counting what it costs.
 *
 *	budget memory|file|loop IMAGE read|write REQUESTS [OPTION]...
 *
 * Opens IMAGE, from a copy in memory, as a file, or as a raw file without the engine, and makes all
 * requests twice, 64 in flight. For each round it prints how often the ring was entered and, of a copy in
 * memory, how many reads, writes and syncs reached the storage. The second round runs inside
 * measured_round(), which is what callgrind is told to count; the first has loaded the map.
 *
 *	depth=N	    in flight
 *	cache=BYTES of the map
 *	flush	    each request goes to a cluster of its own, in order, and is followed by a flush
 *	spoil	    each request allocates, takes a lock and wastes time, which shows that counting notices
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/blk.h"
#include "base/math.h"
#include "memory.h"
#include "qcow2.h"
#include "ring/co.h"

enum {
	DEPTH = 64,
	REQUEST_BYTES = 4096,
	ROUND_MAX = 1000000,
};

struct run;

struct slot {
	struct blk_request req;
	struct run *run;
	struct storage_io io; /* without the engine */
};

struct run {
	struct storage *storage;
	struct qcow2_image *img; /* NULL: requests go straight to the storage */
	struct qcow2_queue *queue;
	struct loop *loop;
	struct slot slots[DEPTH];
	unsigned depth;
	uint64_t cache_bytes;
	enum blk_op op;
	uint64_t offsets[ROUND_MAX]; /* drawn before, so that drawing them is not counted */
	unsigned requests, begun, inflight;
	bool spoil, flush;
	int ret;
	struct co_task task;
	struct loop_msg msg;
};

static struct run run;
static pthread_mutex_t spoil_lock = PTHREAD_MUTEX_INITIALIZER;

static void slot_begin(struct slot *slot)
{
	struct run *r = slot->run;

	slot->req.op = r->op;
	slot->req.len_bytes = REQUEST_BYTES;
	slot->req.offset_bytes = r->offsets[r->begun++];
	r->inflight++;
	if (r->queue) {
		qcow2_submit(r->queue, &slot->req);
		return;
	}
	slot->io.offset_bytes = slot->req.offset_bytes;
	storage_submit(r->storage, &slot->io);
}

static void spoil(void)
{
	static volatile unsigned waste;

	pthread_mutex_lock(&spoil_lock);
	free(malloc(1000 + waste % 7));
	for (unsigned i = 0; i < 1000; i++)
		waste++;
	pthread_mutex_unlock(&spoil_lock);
}

static void slot_end(struct slot *slot, int ret)
{
	struct run *r = slot->run;

	if (ret)
		r->ret = ret;
	if (r->spoil)
		spoil();
	r->inflight--;
	if (r->begun < r->requests && !r->ret)
		slot_begin(slot);
	else if (!r->inflight)
		loop_stop(r->loop);
}

static void request_complete(struct blk_request *req, int ret)
{
	if (!run.flush || ret || req->op == BLK_FLUSH) {
		slot_end(container_of(req, struct slot, req), ret);
		return;
	}
	req->op = BLK_FLUSH;
	req->len_bytes = req->offset_bytes = 0;
	qcow2_submit(run.queue, req);
}

static void io_complete(struct storage_io *io, int ret)
{
	slot_end(container_of(io, struct slot, io), ret);
}

static void round_begin(struct loop_msg *msg)
{
	run.begun = 0;
	for (unsigned i = 0; i < run.depth; i++)
		slot_begin(&run.slots[i]);
}

static void round_run(void)
{
	int ret;

	run.msg.fn = round_begin;
	loop_post(run.loop, &run.msg);
	ret = loop_run(run.loop);
	if (ret || run.ret) {
		fprintf(stderr, "budget: %s\n", strerror(-(ret ? ret : run.ret)));
		exit(1);
	}
}

__attribute__((noinline)) static void measured_round(void)
{
	round_run();
	__asm__ volatile(""); /* not a tail call */
}

static void detach(struct co_task *task)
{
	qcow2_detach_loop(run.img);
	loop_stop(run.loop);
}

static void fail(const char *what, struct error *err, int ret)
{
	fprintf(stderr, "budget: %s: %s\n", what, error_text(err, ret));
	exit(1);
}

static void slots_init(void)
{
	size_t priv_bytes = align_up(qcow2_request_bytes(), 64);
	uint8_t *privs = aligned_alloc(4096, align_up(priv_bytes * DEPTH, 4096));
	uint8_t *buffers = aligned_alloc(4096, DEPTH * REQUEST_BYTES);

	assert(privs && buffers);
	memset(privs, 0, priv_bytes * DEPTH);
	memset(buffers, 0x5a, DEPTH * REQUEST_BYTES);
	for (unsigned i = 0; i < DEPTH; i++) {
		struct slot *slot = &run.slots[i];

		slot->run = &run;
		slot->req = (struct blk_request){
			.buf = {.base = buffers + i * REQUEST_BYTES},
			.complete = request_complete,
			.priv = privs + i * priv_bytes,
		};
		slot->io = (struct storage_io){
			.op = run.op == BLK_READ ? STORAGE_READ : STORAGE_WRITE,
			.len_bytes = REQUEST_BYTES,
			.buf = slot->req.buf,
			.complete = io_complete,
		};
	}
}

static void offsets_draw(uint64_t size_bytes)
{
	uint64_t random = 1;

	for (unsigned i = 0; i < run.requests; i++) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		run.offsets[i] = (random >> 20) % (size_bytes / REQUEST_BYTES) * REQUEST_BYTES;
		if (run.flush)
			run.offsets[i] = (uint64_t)i * qcow2_cluster_bytes(run.img) % size_bytes;
	}
}

static void open_all(const char *kind, const char *path)
{
	struct loop_params params = {
		.name = "budget",
		.sq_entries = 2 * DEPTH,
		.coroutines = DEPTH + QCOW2_EXTRA_COROUTINES,
	};
	struct storage_file_options file = {0};
	struct qcow2_options options = {
		.max_inflight = DEPTH,
		.cache_size_bytes = run.cache_bytes,
		.reclaim_delay_ms = 3600 * 1000, /* what is counted is the requests' */
	};
	struct error err = {0};
	int ret = 0;

	if (strcmp(kind, "memory") == 0)
		run.storage = memory_load(path);
	else
		ret = storage_file_open(&run.storage, path, &file, &err);
	if (ret || !run.storage)
		fail(path, &err, ret ? ret : -EIO);
	ret = loop_create(&run.loop, &params, &err);
	if (!ret && strcmp(kind, "loop") == 0) {
		ret = storage_attach(run.storage, run.loop, &err);
	} else if (!ret) {
		ret = qcow2_open(&run.img, run.storage, &options, &err);
		if (!ret)
			ret = qcow2_set_metadata_loop(run.img, run.loop, &err);
		if (!ret)
			ret = qcow2_queue_create(&run.queue, run.img, run.loop, &err);
	}
	if (ret)
		fail(path, &err, ret);
	offsets_draw(run.img ? qcow2_size_bytes(run.img) : run.storage->size_bytes);
}

static void close_all(void)
{
	struct error err = {0};
	int ret;

	if (!run.img) {
		storage_detach(run.storage, run.loop);
		loop_destroy(run.loop);
		storage_close(run.storage);
		return;
	}
	qcow2_queue_destroy(run.queue);
	run.task.fn = detach;
	loop_spawn(run.loop, &run.task);
	ret = loop_run(run.loop);
	assert(!ret);
	loop_destroy(run.loop);
	ret = qcow2_close(run.img, &err);
	if (ret)
		fail("close", &err, ret);
}

static bool option_take(const char *text)
{
	if (strcmp(text, "spoil") == 0)
		run.spoil = true;
	else if (strcmp(text, "flush") == 0)
		run.flush = true;
	else if (strncmp(text, "depth=", 6) == 0)
		run.depth = (unsigned)strtoul(text + 6, NULL, 10);
	else if (strncmp(text, "cache=", 6) == 0)
		run.cache_bytes = strtoull(text + 6, NULL, 10);
	else
		return false;
	return run.depth >= 1 && run.depth <= DEPTH;
}

static void round_report(bool memory, void (*round)(void))
{
	struct memory_counts before = {0}, after = {0};
	uint64_t enters = loop_enters(run.loop);

	if (memory)
		before = memory_counts(run.storage);
	round();
	if (memory)
		after = memory_counts(run.storage);
	printf("enters %" PRIu64 " reads %" PRIu64 " writes %" PRIu64 " syncs %" PRIu64 "\n",
	       loop_enters(run.loop) - enters, after.reads - before.reads, after.writes - before.writes,
	       after.syncs - before.syncs);
}

int main(int argc, char **argv)
{
	bool good = argc >= 5, memory, spoil;

	run.depth = DEPTH;
	for (int i = 5; good && i < argc; i++)
		good = option_take(argv[i]);
	if (!good) {
		fprintf(stderr, "usage: budget memory|file|loop IMAGE read|write REQUESTS [OPTION]...\n");
		return 2;
	}
	memory = strcmp(argv[1], "memory") == 0;
	run.op = strcmp(argv[3], "read") == 0 ? BLK_READ : BLK_WRITE;
	run.requests = (unsigned)strtoul(argv[4], NULL, 10);
	assert(run.requests >= run.depth && run.requests <= ROUND_MAX);
	open_all(argv[1], argv[2]);
	slots_init();
	spoil = run.spoil;
	run.spoil = false;
	round_report(memory, round_run);
	run.spoil = spoil;
	round_report(memory, measured_round);
	close_all();
	return 0;
}
