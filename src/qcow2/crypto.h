/* SPDX-License-Identifier: MIT */
/*
 * crypto.h: an image's encryption: its key, and what encrypts and decrypts guest data with it.
 *
 * Each image of a backing chain has its own, or none. Guest data alone is encrypted (qcow2: "Data
 * encryption"), sector by sector; the metadata is not, and compressed clusters are not either: QEMU writes
 * and reads them as they are.
 *
 * Which number a sector has: with LUKS its place in the file (host offset / 512), so that data which is
 * copied to another cluster is encrypted anew; with the old AES method its place on the guest's disk.
 *
 * What has no data reads as garbage once decrypted. So a new cluster is always written whole, and never
 * taken for zeros because the file has zeros there.
 */
#ifndef QCOW2_CRYPTO_H
#define QCOW2_CRYPTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct crypto;
struct qcow2_header;
struct secret;
struct storage;

/* What is done on the queue's thread; more goes to the pool of workers. */
#define CRYPTO_INLINE_BYTES (64u << 10)

/*
 * The encryption of the image with header @h in @st: *@out is NULL if it has none. Outside of any loop,
 * or in a coroutine; may take a minute of CPU (LUKS_ROUNDS_MAX). Changes nothing. -ENOKEY: there is
 * no passphrase; -EKEYREJECTED: it is wrong.
 */
int crypto_open(struct crypto **out, struct storage *st, const struct qcow2_header *h, bool read_only,
		const struct secret *passphrase, struct error *err) must_check;
void crypto_destroy(struct crypto *c); /* accepts NULL; wipes the key */

/*
 * Any number of threads at once. @len is whole sectors; @goff is where they are on the guest's disk and
 * @hoff where in the file. -EIO.
 */
int crypto_decrypt(struct crypto *c, uint64_t goff, uint64_t hoff, void *buf, size_t len) must_check;
int crypto_encrypt(struct crypto *c, uint64_t goff, uint64_t hoff, const void *in, void *out,
		   size_t len) must_check;

#endif
