/* SPDX-License-Identifier: MIT */
/*
 * cipher.h: sectors of 512 bytes, encrypted each by itself with libgcrypt.
 *
 * A spec says how (cipher, mode, what the initialisation vector is made of); a ctx is a spec with a key,
 * ready for use. libgcrypt's handles keep the vector, so a ctx is for one thread at a time; it holds
 * the key in libgcrypt's locked memory.
 */
#ifndef QCOW2_CIPHER_H
#define QCOW2_CIPHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define CIPHER_SECTOR_BYTES 512u
/* XTS has two keys of 256 bits. */
#define CIPHER_KEY_MAX 64
#define CIPHER_HASH_MAX 64

/* Names are those of LUKS and of QEMU. */
enum cipher_mode { CIPHER_ECB, CIPHER_CBC, CIPHER_CTR, CIPHER_XTS };

enum cipher_ivgen {
	CIPHER_IV_NONE,
	CIPHER_IV_PLAIN,   /* the sector's number, 32 bits, little endian */
	CIPHER_IV_PLAIN64, /* 64 bits */
	CIPHER_IV_ESSIV,   /* that, encrypted with a hash of the key */
};

struct cipher_spec {
	int algo; /* libgcrypt's */
	enum cipher_mode mode;
	enum cipher_ivgen ivgen;
	int essiv_hash, essiv_algo; /* libgcrypt's; ESSIV alone */
	unsigned key_bytes;
	unsigned iv_bytes; /* the cipher's block */
};

/* Once, by whoever uses anything here first; any thread. */
void cipher_init(void);

/* libgcrypt's number of a hash and the bytes of its digest; -ENOTSUP. */
int cipher_hash_find(const char *name, int *algo, unsigned *digest_bytes) must_check;

/*
 * From LUKS's names: "aes" and "xts-plain64", and the length of the key. -ENOTSUP, and @err names what
 * cannot be had. @what begins the message: a file's name.
 */
int cipher_spec_parse(struct cipher_spec *spec, const char *name, const char *mode,
		      unsigned key_bytes, const char *what, struct error *err) must_check;

struct cipher_ctx;

int cipher_ctx_create(struct cipher_ctx **out, const struct cipher_spec *spec, const void *key,
		      struct error *err) must_check;
void cipher_ctx_destroy(struct cipher_ctx *ctx); /* accepts NULL */

/*
 * @len bytes, whole sectors, the first of number @sector; @out may be @in, but not overlap it
 * otherwise. -EIO: libgcrypt refused, which nothing here should make it do.
 */
int cipher_encrypt(struct cipher_ctx *ctx, uint64_t sector, const void *in, void *out,
		   size_t len) must_check;
int cipher_decrypt(struct cipher_ctx *ctx, uint64_t sector, void *buf, size_t len) must_check;

/* PBKDF2 with HMAC of @hash. */
int cipher_pbkdf2(int hash, const void *passphrase, size_t passphrase_bytes, const void *salt,
		  size_t salt_bytes, unsigned long iterations, void *out, size_t out_bytes) must_check;
/* How many of them a millisecond makes here, for keys of @out_bytes; at least 1. */
unsigned long cipher_pbkdf2_per_ms(int hash, size_t out_bytes);
/* For keys: as unpredictable as the system can. */
void cipher_random(void *out, size_t bytes);

#endif
