/* SPDX-License-Identifier: MIT */
/*
 * crypt_io.c: parts of requests on encrypted images, between the request and the storage.
 *
 *     read:   storage -> the request's own memory -> decrypted there -> part->finish()
 *     write:  payload -> encrypted into a bounce buffer -> storage -> the buffer is free again
 *
 * A payload is not encrypted in place: it is the guest's memory, or zeros. The buffers are a queue's own,
 * in a few sizes, made when the queue is; who finds none of its size waits, in order of arrival. Up to
 * CRYPTO_INLINE_BYTES are done on the queue's thread, more in the pool of workers.
 *
 * Invariants:
 *  1. Who waits for a buffer holds none, and one that is taken comes back when its write has completed,
 *     which waits for nobody. So whatever else a request holds meanwhile, it gets one.
 *  2. What a part's vector points to is not changed before the part has completed: its request has not,
 *     or holds the lock of the copy buffer.
 *  3. A part is in flight (and its queue in the epoch) from before it is encrypted, and until after it
 *     is decrypted.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "qcow2/crypto.h"
#include "qcow2/request.h"

/* 3.5 MiB for a queue. The largest is the piece that large writes are made in. */
static const struct {
	uint32_t bytes;
	unsigned count;
} sizes[] = {{4u << 10, 128}, {16u << 10, 64}, {128u << 10, 16}};

#define SIZES ARRAY_LEN(sizes)
#define PIECE_BYTES (128u << 10)

struct bounce {
	struct list link;
	void *memory;
	unsigned size; /* index */
};

struct bounce_pool {
	struct {
		struct list free;
		unsigned count;	   /* in the list */
		unsigned promised; /* to those who were woken, and have not taken theirs yet */
		struct co_waitq waitq;
	} of[SIZES];
	void *memory;
	uint64_t memory_bytes;
	struct bounce *all;
};

/* ---- buffers ---- */

int bounce_pool_create(struct bounce_pool **out)
{
	struct bounce_pool *pool = calloc(1, sizeof(*pool));
	unsigned total = 0, n = 0;
	uint8_t *at;

	if (!pool)
		return -ENOMEM;
	for (unsigned s = 0; s < SIZES; s++) {
		list_init(&pool->of[s].free);
		co_waitq_init(&pool->of[s].waitq);
		pool->memory_bytes += (uint64_t)sizes[s].bytes * sizes[s].count;
		total += sizes[s].count;
	}
	pool->all = calloc(total, sizeof(*pool->all));
	pool->memory = mmap(NULL, pool->memory_bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (pool->memory == MAP_FAILED)
		pool->memory = NULL;
	if (!pool->all || !pool->memory) {
		bounce_pool_destroy(pool);
		return -ENOMEM;
	}
	at = pool->memory;
	for (unsigned s = 0; s < SIZES; s++) {
		for (unsigned i = 0; i < sizes[s].count; i++, n++, at += sizes[s].bytes) {
			pool->all[n].memory = at;
			pool->all[n].size = s;
			list_add(&pool->of[s].free, &pool->all[n].link);
		}
		pool->of[s].count = sizes[s].count;
	}
	*out = pool;
	return 0;
}

void bounce_pool_destroy(struct bounce_pool *pool)
{
	if (!pool)
		return;
	if (pool->memory)
		munmap(pool->memory, pool->memory_bytes);
	free(pool->all);
	free(pool);
}

static unsigned size_for(uint64_t len_bytes)
{
	unsigned s = 0;

	while (sizes[s].bytes < len_bytes)
		s++;
	return s;
}

/* NULL: none is left for who comes now. */
static struct bounce *bounce_try(struct bounce_pool *pool, unsigned s)
{
	struct bounce *b;

	if (pool->of[s].count <= pool->of[s].promised)
		return NULL;
	b = container_of(pool->of[s].free.next, struct bounce, link);
	list_del(&b->link);
	pool->of[s].count--;
	return b;
}

static struct bounce *bounce_get(struct bounce_pool *pool, unsigned s)
{
	struct bounce *b = bounce_try(pool, s);

	if (b)
		return b;
	co_wait(&pool->of[s].waitq);
	pool->of[s].promised--;
	b = bounce_try(pool, s);
	assert(b);
	return b;
}

static void bounce_put(struct bounce_pool *pool, struct bounce *b)
{
	unsigned s = b->size;

	list_add(&pool->of[s].free, &b->link);
	pool->of[s].count++;
	if (co_waitq_empty(&pool->of[s].waitq))
		return;
	pool->of[s].promised++;
	co_wake_one(&pool->of[s].waitq);
}

/* ---- reading ---- */

static void decrypt_work(struct work *work)
{
	struct part *part = container_of(work, struct part, work);

	part->crypt_ret = crypto_decrypt(part->crypto, part->goff, part->io.offset_bytes,
					 part->io.buf.base, part->io.len_bytes);
}

static void decrypt_done(struct work *work)
{
	struct part *part = container_of(work, struct part, work);

	part->finish(part, part->crypt_ret);
}

void crypt_read_done(struct part *part)
{
	assert(!part->io.iovcnt && part->io.buf.base);
	part->work.fn = decrypt_work;
	part->work.done = decrypt_done;
	if (part->io.len_bytes > CRYPTO_INLINE_BYTES) {
		work_submit(part->r->q->img->workers, &part->work);
	} else {
		decrypt_work(&part->work);
		decrypt_done(&part->work);
	}
}

/* ---- writing ---- */

/* From the part's vector into its buffer. */
static void encrypt_work(struct work *work)
{
	struct part *part = container_of(work, struct part, work);
	bool moved = mutant(MUTANT_COPY_KEEPS_TWEAK) && part->goff;
	uint64_t done = 0, hoff = moved ? part->goff : part->io.offset_bytes;

	part->crypt_ret = 0;
	for (unsigned i = 0; !part->crypt_ret && i < part->io.iovcnt; i++) {
		const struct iovec *v = &part->iov[i];

		part->crypt_ret = crypto_encrypt(part->crypto, part->goff + done, hoff + done, v->iov_base,
						 (uint8_t *)part->bounce->memory + done, v->iov_len);
		done += v->iov_len;
	}
	assert(part->crypt_ret || done == part->io.len_bytes);
}

static void encrypt_done(struct work *work)
{
	struct part *part = container_of(work, struct part, work);

	if (part->crypt_ret) {
		crypt_write_done(part);
		part->finish(part, part->crypt_ret);
		return;
	}
	part->io.iovcnt = 0;
	part->io.buf = (struct blk_buf){.base = part->bounce->memory};
	storage_submit(part->st, &part->io);
}

static void encrypt_start(struct part *part)
{
	part->work.fn = encrypt_work;
	part->work.done = encrypt_done;
	if (part->io.len_bytes > CRYPTO_INLINE_BYTES) {
		work_submit(part->r->q->img->workers, &part->work);
	} else {
		encrypt_work(&part->work);
		encrypt_done(&part->work);
	}
}

/* The vector of a part that is split, on the way through it. */
struct source {
	struct iovec iov[PART_IOVECS];
	unsigned at;
	uint64_t hoff, left_bytes;
};

static void source_take(struct source *from, struct part *part, uint64_t len_bytes)
{
	part->io.op = STORAGE_WRITE;
	part->io.offset_bytes = from->hoff;
	from->hoff += len_bytes;
	from->left_bytes -= len_bytes;
	while (len_bytes) {
		struct iovec *v = &from->iov[from->at];
		uint64_t n = min_of(len_bytes, (uint64_t)v->iov_len);

		part_add_memory(part, v->iov_base, n);
		v->iov_base = (uint8_t *)v->iov_base + n;
		v->iov_len -= n;
		len_bytes -= n;
		from->at += !v->iov_len;
	}
}

void crypt_write(struct part *part)
{
	struct request *r = part->r;
	struct bounce_pool *pool = r->q->bounces;
	struct source from = {.hoff = part->io.offset_bytes, .left_bytes = part->io.len_bytes};
	uint64_t goff = part->goff;

	assert(part->io.iovcnt && !part->io.flags);
	memcpy(from.iov, part->iov, part->io.iovcnt * sizeof(part->iov[0]));
	while (from.left_bytes) {
		uint64_t n = min_of(from.left_bytes, (uint64_t)PIECE_BYTES);
		/* It waits, and @part, not in flight yet, may be another's meanwhile. */
		struct bounce *bounce = bounce_get(pool, size_for(n));

		part = part_get(r);
		part->goff = goff;
		part->bounce = bounce;
		source_take(&from, part, n);
		part_start(part);
		encrypt_start(part);
	}
}

bool crypt_write_now(struct part *part, const void *data)
{
	uint64_t len = part->io.len_bytes;

	if (len > CRYPTO_INLINE_BYTES)
		return false;
	part->bounce = bounce_try(part->r->q->bounces, size_for(len));
	if (!part->bounce)
		return false;
	if (crypto_encrypt(part->crypto, part->goff, part->io.offset_bytes, data, part->bounce->memory,
			   len)) {
		crypt_write_done(part);
		return false; /* it fails again where somebody hears of it */
	}
	part->io.iovcnt = 0;
	part->io.buf = (struct blk_buf){.base = part->bounce->memory};
	return true;
}

void crypt_write_done(struct part *part)
{
	bounce_put(part->r->q->bounces, part->bounce);
	part->bounce = NULL;
}
