/* SPDX-License-Identifier: MIT */
/*
 * request.h: a request inside the engine: what its priv memory holds.
 *
 * A read or in-place write of one extent whose slice is cached goes straight from submit to storage and
 * from there to completion (request.c). Everything else runs in a coroutine on the queue's loop:
 * read.c, write.c, zero.c.
 */
#ifndef QCOW2_REQUEST_H
#define QCOW2_REQUEST_H

#include "qcow2/image.h"
#include "qcow2/map.h"

/* Parts of a request in flight at once. */
#define REQUEST_PARTS 16
/* zeros before the payload, payload, zeros behind: of a 2 MiB cluster at most, twice */
#define PART_IOVECS 18

struct request;

struct part {
	struct storage_io io;
	struct request *r;
	struct storage *st; /* where it goes; part_get() sets the image's */
	/* What its data is encrypted with there, NULL: it is not; part_get() sets the image's. */
	struct crypto *crypto;
	uint64_t goff; /* READ of encrypted data: guest offset of the first byte */
	void (*finish)(struct part *part, int ret);
	bool busy;
	struct iovec iov[PART_IOVECS];

	/* crypt_io.c */
	struct work work;
	int crypt_ret;
	struct bounce *bounce;
};

struct request {
	struct co_task task;
	struct blk_request *req;
	enum blk_op op; /* of req, and what the image's options make of them */
	uint32_t flags;
	struct qcow2_queue *q;
	struct co_latch latch;
	unsigned epoch; /* the slot that the fast path is in */
	unsigned parts_busy;
	struct co *part_waiter;
	struct read_stream *stream; /* READ: that it belongs to, once it met a compressed cluster */
	uint64_t ahead;		    /* READ: inflating was started up to here */
	struct co *memory_waiter;   /* fixed.c */
	int memory_ret;
	bool memory_ready;
	struct part parts[REQUEST_PARTS];
};

/* The payload of a write: a request's buffer, in memory or registered, or zeros. */
struct payload {
	const struct blk_buf *buf; /* NULL: zeros */
	uint64_t goff;		   /* that the buffer's first byte is for */
};

/* A part that is not in flight; waits for one if all are. */
struct part *part_get(struct request *r);
/* Counts @part as in flight, for who sends it off by other means than part_submit(). */
void part_start(struct part *part);
/* Sends @part off; its result goes to r->latch. A completed write counts in the queue's counter. */
void part_submit(struct part *part);
/* Waits for all parts; the first error. */
int parts_wait(struct request *r);
/* Of storage_io.complete: decrypts what was read, and calls part->finish(). */
void part_io_complete(struct storage_io *io, int ret);

/*
 * Appends @len_bytes of zeros, or of payload from guest offset @goff, to a part's vector. A payload in a
 * registered buffer cannot stand beside anything else: it is all of its part.
 */
void part_add_memory(struct part *part, void *base, uint64_t len_bytes); /* len may be 0 */
void part_add_zeros(struct part *part, uint64_t len_bytes);
void part_add_payload(struct part *part, const struct payload *payload, uint64_t goff,
		      uint64_t len_bytes);

/* The request is about to complete: it is not in flight any more. */
void request_leave(struct request *r);
/* image_release(): submits what was held back, in order; on the queue's loop. */
void request_start_held(struct list *held);

/* The bodies of the coroutines; 0 or -errno, or REQUEST_ACKED. */
#define REQUEST_ACKED 1 /* a mutant completed it early, @r is gone */

int request_read(struct request *r);
int request_write(struct request *r);
int request_zero(struct request *r);    /* WRITE_ZEROES */
int request_discard(struct request *r); /* DISCARD */

/*
 * A READ or WRITE whose payload lies in a registered buffer, as far as that goes without allocating;
 * REQUEST_NEEDS_MEMORY where its bytes have to be seen. request_memory() then makes it one with its payload
 * in memory.
 */
#define REQUEST_NEEDS_MEMORY 2
int request_fixed(struct request *r);
int request_memory(struct request *r);

/*
 * Reads guest range [@goff, @goff + @len_bytes) into @to, whatever it lies in, and waits; past the disk's
 * end zeros. The caller is in its queue's epoch, or holds the lock of the clusters (then nobody else
 * unlinks them). No other part of @r is in flight.
 */
int read_range(struct request *r, uint64_t goff, uint64_t len_bytes, void *to);

/*
 * Writes guest range [@goff, @goff + @len_bytes) in place or through allocation; used by request_write()
 * and for the partial clusters of WRITE_ZEROES (which skip what reads as zeros already).
 */
int write_range(struct request *r, uint64_t goff, uint64_t len_bytes, const struct payload *payload);

/* After -ENOSPC: 0 where a pass gave back what had been freed, so that it may be tried once more. */
int request_make_room(struct request *r);

/* ---- crypt_io.c ---- */

/* A part that was read: decrypts it in place, then calls part->finish(). */
void crypt_read_done(struct part *part);
/* Sends off what @part's vector holds, encrypted; in pieces. Waits for memory; in a coroutine. */
void crypt_write(struct part *part);
/* The same for one write of memory from a callback; false: it must wait. @part is the fast path's. */
bool crypt_write_now(struct part *part, const void *data);
/* The memory of a part that was written. */
void crypt_write_done(struct part *part);

/* READ, at a compressed cluster that ends at @from: starts to inflate what follows. */
void readahead(struct request *r, uint64_t from);

/*
 * The parts of write_range() that are not written in place: as they are, or with full clusters compressed.
 * No other part of @r is in flight.
 */
int write_plain(struct request *r, uint64_t goff, uint64_t len_bytes,
		const struct payload *payload);
int write_compressed(struct request *r, uint64_t goff, uint64_t len_bytes,
		     const struct payload *payload);

/* A queue's buffers for compressing; QUEUE_BATCHES requests at once, others wait. */
#define QUEUE_BATCHES 2
int batches_create(struct qcow2_queue *q) must_check;
void batches_destroy(struct qcow2_queue *q); /* also of a zeroed queue */

/* The image's own map: map_peek(), or where that says -EAGAIN map_lookup() on the metadata loop. */
int request_map(struct request *r, uint64_t goff, uint64_t max_bytes, struct map_extent *ext);
/* What a read finds there: the same, and the backing chain where the image has nothing. */
int request_lookup(struct request *r, uint64_t goff, uint64_t max_bytes, struct map_extent *ext);

#endif
