/* SPDX-License-Identifier: MIT */
/*
 * flat.h: a target as a flat file, of which any byte range may be read and written.
 *
 * Targets take whole logical blocks only (base/blk.h); whoever opens a file expects bytes. What
 * lies on block boundaries goes straight to the target, from and to the caller's memory. The rest
 * is made of whole blocks here.
 *
 * One thread: that of the target's queue 0.
 */
#ifndef FUSE_FLAT_H
#define FUSE_FLAT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/blk.h"
#include "base/error.h"
#include "base/list.h"
#include "target/target.h"

struct hold_device;
struct loop;
struct flat;

/* The largest logical block that is served; loop devices know no larger one either. */
#define FLAT_BLOCK_MAX 4096u
/* What the memory of a request has behind its payload. */
#define FLAT_SLACK_BYTES (4 * FLAT_BLOCK_MAX)

enum flat_op {
	FLAT_READ,
	FLAT_WRITE,
	FLAT_FLUSH,
	FLAT_PUNCH, /* reads as zeros, space given back; -EOPNOTSUPP if the target cannot */
	FLAT_ZERO,  /* reads as zeros, space kept; -EOPNOTSUPP if the target cannot */
};

struct flat_io {
	enum flat_op op;
	bool durable; /* WRITE: as after a FLUSH, at completion */
	/* Any range. READ and WRITE are cut at the end of the file: len_bytes tells the outcome. */
	uint64_t offset_bytes;
	uint64_t len_bytes;
	/*
	 * Page aligned, payload_max + FLAT_SLACK_BYTES long; a WRITE's payload lies at its start.
	 * All of it may be overwritten.
	 */
	uint8_t *mem;
	/* READ, at completion: where in mem the bytes are. */
	uint8_t *data;
	/* Exactly once, maybe before flat_submit() returns, maybe from a coroutine. */
	void (*complete)(struct flat_io *io, int ret);

	/* flat.c's; blk.priv was set by flat_io_init() */
	struct flat *flat;
	struct blk_request blk;
	struct list list;
};

/* @payload_max: the longest READ and WRITE; a multiple of FLAT_BLOCK_MAX. */
int flat_create(struct flat **out, struct target *t, unsigned depth, uint32_t payload_max,
		struct error *err) must_check;
/* Accepts NULL. Nothing may be in flight. */
void flat_destroy(struct flat *flat);
/* Before the first submission, when the target's queue has started on @loop. */
void flat_attach(struct flat *flat, struct loop *loop, struct hold_device *hold);
/* From any thread, while the loop runs: what waits for space is tried again now. */
void flat_retry(struct flat *flat);

/* Once for each of the @depth requests, before it is first submitted. */
void flat_io_init(struct flat *flat, struct flat_io *io, unsigned index);
void flat_submit(struct flat *flat, struct flat_io *io);

uint64_t flat_size(const struct flat *flat);

/* How many coroutines flat needs on the loop, besides the target's. */
#define FLAT_COROUTINES 1

#endif
