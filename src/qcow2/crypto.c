/* SPDX-License-Identifier: MIT */
/*
 * crypto.c: see crypto.h.
 *
 * Invariants:
 *  1. A cipher context is used by one thread at a time: there are some more of them than processors, and a
 *     thread claims one for the time of a call, which does not suspend. It begins its search where
 *     other threads do not, so that it nearly always gets the first one it asks for.
 *  2. The key lives in secret memory and in libgcrypt's.
 */
#include "qcow2/crypto.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <gcrypt.h>

#include "base/log.h"
#include "base/math.h"
#include "base/secret.h"
#include "qcow2/cipher.h"
#include "qcow2/header.h"
#include "qcow2/luks.h"
#include "storage/storage.h"

#define CTXS_EXTRA 4u
#define CTXS_MAX   64u

/* The old method's: AES-128-CBC; the passphrase is the key, cut or padded with zeros (qcow2: "AES"). */
#define AES_KEY_BYTES 16

struct ctx_slot {
	_Alignas(64) _Atomic bool busy;
	struct cipher_ctx *ctx;
};

struct crypto {
	struct secret *key;
	bool by_guest; /* sectors have the guest's numbers */
	unsigned nr_slots;
	struct ctx_slot slots[CTXS_MAX];
};

/* ---- opening ---- */

/* The header, with what the storage's blocks make of it. */
static int read_luks(struct luks *l, struct storage *st, const struct qcow2_header *h, struct error *err)
{
	uint64_t len = align_up(LUKS_HEADER_BYTES, max_of(st->block_bytes, 512u));
	struct luks_disk_header disk;
	void *buf;
	int ret;

	if (h->luks_bytes < LUKS_HEADER_BYTES)
		return error_set(err, -EINVAL, "%s: the LUKS header has %llu bytes, less than %u",
				 st->name, (unsigned long long)h->luks_bytes, LUKS_HEADER_BYTES);
	buf = aligned_alloc(4096, align_up(len, 4096));
	if (!buf)
		return error_set(err, -ENOMEM, "no memory for the LUKS header");
	ret = storage_pread(st, h->luks_offset, buf, len);
	memcpy(&disk, buf, sizeof(disk));
	free(buf);
	if (ret)
		return error_set(err, ret, "%s: cannot read the LUKS header: %s", st->name,
				 strerror(-ret));
	return luks_parse(l, &disk, h->luks_bytes, st->name, err);
}

static int open_luks(struct crypto *c, struct cipher_spec *spec, struct storage *st,
		     const struct qcow2_header *h, const struct secret *passphrase, struct error *err)
{
	struct luks l;
	int ret = read_luks(&l, st, h, err);

	if (ret)
		return ret;
	*spec = l.spec;
	return luks_unlock(&l, st, h->luks_offset, passphrase, c->key, err);
}

/* Nothing in the image tells whether the passphrase is right. */
static int open_aes(struct crypto *c, struct cipher_spec *spec, const struct storage *st,
		    const struct secret *passphrase, struct error *err)
{
	c->by_guest = true;
	c->key->bytes = AES_KEY_BYTES;
	memcpy(c->key->data, passphrase->data, min_of(passphrase->bytes, (size_t)AES_KEY_BYTES));
	log_warn("%s: is encrypted by qcow2's old AES method, which is not secure; a wrong passphrase is "
		 "not noticed: copy the data to an image with LUKS",
		 st->name);
	return cipher_spec_parse(spec, "aes", "cbc-plain64", AES_KEY_BYTES, st->name, err);
}

static int make_ctxs(struct crypto *c, const struct cipher_spec *spec, struct error *err)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned want = min_of((unsigned)max_of(cpus, 1l) + CTXS_EXTRA, CTXS_MAX);
	int ret = 0;

	while (!ret && c->nr_slots < want) {
		ret = cipher_ctx_create(&c->slots[c->nr_slots].ctx, spec, c->key->data, err);
		c->nr_slots += !ret;
	}
	return ret;
}

static int refuse(const struct storage *st, const struct qcow2_header *h, bool read_only,
		  const struct secret *passphrase, struct error *err)
{
	bool aes = h->crypt_method == QCOW2_CRYPT_AES;

	if (aes && !read_only)
		return error_set(err, -EROFS,
				 "%s: is encrypted by qcow2's old AES method, which is served with "
				 "--read-only alone",
				 st->name);
	if (!passphrase)
		return error_set(err, -ENOKEY,
				 "%s: is encrypted (%s): a passphrase is needed, by --key-file, --key-fd "
				 "or --key-credential",
				 st->name, aes ? "AES" : "LUKS");
	return 0;
}

int crypto_open(struct crypto **out, struct storage *st, const struct qcow2_header *h, bool read_only,
		const struct secret *passphrase, struct error *err)
{
	struct cipher_spec spec;
	struct crypto *c;
	int ret;

	*out = NULL;
	if (h->crypt_method == QCOW2_CRYPT_NONE)
		return 0;
	ret = refuse(st, h, read_only, passphrase, err);
	if (ret)
		return ret;
	cipher_init();
	c = aligned_alloc(64, align_up(sizeof(*c), 64));
	if (!c)
		return error_set(err, -ENOMEM, "no memory for the encryption");
	memset(c, 0, sizeof(*c));
	c->key = secret_create(CIPHER_KEY_MAX);
	if (!c->key)
		ret = error_set(err, -ENOMEM, "no memory for the encryption");
	else if (h->crypt_method == QCOW2_CRYPT_LUKS)
		ret = open_luks(c, &spec, st, h, passphrase, err);
	else
		ret = open_aes(c, &spec, st, passphrase, err);
	if (!ret)
		ret = make_ctxs(c, &spec, err);
	if (ret) {
		crypto_destroy(c);
		return ret;
	}
	*out = c;
	return 0;
}

void crypto_destroy(struct crypto *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < c->nr_slots; i++)
		cipher_ctx_destroy(c->slots[i].ctx);
	secret_destroy(c->key);
	free(c);
}

/* ---- data ---- */

/* Where this thread looks first: threads count themselves. */
static unsigned thread_number(void)
{
	static _Atomic unsigned next;
	static _Thread_local unsigned mine; /* + 1 */

	if (!mine)
		mine = atomic_fetch_add(&next, 1) + 1;
	return mine - 1;
}

static struct ctx_slot *slot_claim(struct crypto *c)
{
	unsigned first = thread_number() % c->nr_slots;

	for (;;) {
		for (unsigned i = 0; i < c->nr_slots; i++) {
			struct ctx_slot *slot = &c->slots[(first + i) % c->nr_slots];

			if (!atomic_load_explicit(&slot->busy, memory_order_relaxed) &&
			    !atomic_exchange_explicit(&slot->busy, true, memory_order_acquire))
				return slot;
		}
		/* More threads at it than processors: one of them is to go on. */
		sched_yield();
	}
}

static void slot_release(struct ctx_slot *slot)
{
	atomic_store_explicit(&slot->busy, false, memory_order_release);
}

static uint64_t sector_of(const struct crypto *c, uint64_t goff, uint64_t hoff)
{
	uint64_t at = c->by_guest ? goff : hoff;

	assert(is_aligned(at, CIPHER_SECTOR_BYTES));
	return at / CIPHER_SECTOR_BYTES;
}

int crypto_decrypt(struct crypto *c, uint64_t goff, uint64_t hoff, void *buf, size_t len)
{
	struct ctx_slot *slot = slot_claim(c);
	int ret = cipher_decrypt(slot->ctx, sector_of(c, goff, hoff), buf, len);

	slot_release(slot);
	return ret;
}

int crypto_encrypt(struct crypto *c, uint64_t goff, uint64_t hoff, const void *in, void *out, size_t len)
{
	struct ctx_slot *slot = slot_claim(c);
	int ret = cipher_encrypt(slot->ctx, sector_of(c, goff, hoff), in, out, len);

	slot_release(slot);
	return ret;
}
