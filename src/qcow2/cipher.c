/* SPDX-License-Identifier: MIT */
/*
 * cipher.c: see cipher.h.
 *
 * libgcrypt is told to keep what is secret (handles with expanded keys, intermediate values) in a pool
 * of locked memory of SECURE_POOL_BYTES; with more handles than fit there it takes more, which may not
 * be locked. That the pool cannot be locked at all (an unprivileged user's limit) is no reason to refuse.
 */
#include "qcow2/cipher.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include <gcrypt.h>

#include "base/byteorder.h"
#include "base/math.h"
#include "base/secret.h"

/* Some hundred handles: one takes 2 to 10 KiB. */
#define SECURE_POOL_BYTES  (1u << 20)
#define SECURE_MORE_BYTES  (1u << 18)

struct cipher_ctx {
	struct cipher_spec spec;
	gcry_cipher_hd_t handle;
	gcry_cipher_hd_t essiv; /* ESSIV alone */
};

/* ---- what there is ---- */

static const struct {
	const char *name;
	unsigned key_bytes;
	int algo;
} ciphers[] = {
	{"aes", 16, GCRY_CIPHER_AES128},
	{"aes", 24, GCRY_CIPHER_AES192},
	{"aes", 32, GCRY_CIPHER_AES256},
	{"serpent", 16, GCRY_CIPHER_SERPENT128},
	{"serpent", 24, GCRY_CIPHER_SERPENT192},
	{"serpent", 32, GCRY_CIPHER_SERPENT256},
	{"twofish", 16, GCRY_CIPHER_TWOFISH128},
	{"twofish", 32, GCRY_CIPHER_TWOFISH},
	{"cast5", 16, GCRY_CIPHER_CAST5},
};

static const struct {
	const char *name;
	int algo;
} hashes[] = {
	{"sha1", GCRY_MD_SHA1},	    {"sha224", GCRY_MD_SHA224},	 {"sha256", GCRY_MD_SHA256},
	{"sha384", GCRY_MD_SHA384}, {"sha512", GCRY_MD_SHA512},	 {"md5", GCRY_MD_MD5},
	{"ripemd160", GCRY_MD_RMD160},
};

static const char *const modes[] = {
	[CIPHER_ECB] = "ecb",
	[CIPHER_CBC] = "cbc",
	[CIPHER_CTR] = "ctr",
	[CIPHER_XTS] = "xts",
};

static const int gcrypt_modes[] = {
	[CIPHER_ECB] = GCRY_CIPHER_MODE_ECB,
	[CIPHER_CBC] = GCRY_CIPHER_MODE_CBC,
	[CIPHER_CTR] = GCRY_CIPHER_MODE_CTR,
	[CIPHER_XTS] = GCRY_CIPHER_MODE_XTS,
};

static void init_once(void)
{
	gcry_check_version(NULL);
	/* It would be written to standard error. */
	gcry_control(GCRYCTL_DISABLE_SECMEM_WARN);
	gcry_control(GCRYCTL_INIT_SECMEM, SECURE_POOL_BYTES, 0);
	gcry_control(GCRYCTL_AUTO_EXPAND_SECMEM, SECURE_MORE_BYTES, 0);
	gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

void cipher_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, init_once);
}

int cipher_hash_find(const char *name, int *algo, unsigned *digest_bytes)
{
	for (size_t i = 0; i < ARRAY_LEN(hashes); i++) {
		if (strcmp(hashes[i].name, name) != 0)
			continue;
		*algo = hashes[i].algo;
		if (gcry_md_test_algo(*algo))
			return -ENOTSUP; /* by the system's policy */
		*digest_bytes = gcry_md_get_algo_dlen(*algo);
		return 0;
	}
	return -ENOTSUP;
}

/* ---- specs ---- */

static int cipher_find(const char *name, unsigned key_bytes, int *algo)
{
	for (size_t i = 0; i < ARRAY_LEN(ciphers); i++) {
		if (strcmp(ciphers[i].name, name) != 0 || ciphers[i].key_bytes != key_bytes)
			continue;
		*algo = ciphers[i].algo;
		return gcry_cipher_test_algo(*algo) ? -ENOTSUP : 0;
	}
	return -ENOTSUP;
}

/* @text is what follows the mode's "-": "plain64", "essiv:sha256". */
static int ivgen_parse(struct cipher_spec *spec, const char *name, const char *text, const char *what,
		       struct error *err)
{
	const char *colon = strchr(text, ':');
	size_t len = colon ? (size_t)(colon - text) : strlen(text);
	unsigned digest;

	if (len == 5 && memcmp(text, "plain", 5) == 0 && !colon) {
		spec->ivgen = CIPHER_IV_PLAIN;
		return 0;
	}
	if (len == 7 && memcmp(text, "plain64", 7) == 0 && !colon) {
		spec->ivgen = CIPHER_IV_PLAIN64;
		return 0;
	}
	if (len != 5 || memcmp(text, "essiv", 5) != 0 || !colon)
		return error_set(err, -ENOTSUP, "%s: the encryption's IV generator '%s' is not supported",
				 what, text);
	spec->ivgen = CIPHER_IV_ESSIV;
	if (cipher_hash_find(colon + 1, &spec->essiv_hash, &digest))
		return error_set(err, -ENOTSUP, "%s: the IV generator's hash '%s' is not supported", what,
				 colon + 1);
	/* The vector is encrypted by the same cipher with a key as long as the digest. */
	if (spec->iv_bytes < 16 || cipher_find(name, digest, &spec->essiv_algo))
		return error_set(err, -ENOTSUP,
				 "%s: the IV generator '%s' does not go with the cipher '%s', which has "
				 "no keys of %u bytes",
				 what, text, name, digest);
	return 0;
}

int cipher_spec_parse(struct cipher_spec *spec, const char *name, const char *mode,
		      unsigned key_bytes, const char *what, struct error *err)
{
	const char *dash = strchr(mode, '-');
	size_t len = dash ? (size_t)(dash - mode) : strlen(mode), i = 0;
	unsigned cipher_key_bytes;

	cipher_init();
	while (i < ARRAY_LEN(modes) && (strlen(modes[i]) != len || memcmp(modes[i], mode, len) != 0))
		i++;
	if (i == ARRAY_LEN(modes))
		return error_set(err, -ENOTSUP, "%s: the encryption mode '%s' is not supported", what,
				 mode);
	*spec = (struct cipher_spec){.mode = (enum cipher_mode)i, .key_bytes = key_bytes};
	cipher_key_bytes = spec->mode == CIPHER_XTS ? key_bytes / 2 : key_bytes;
	if (key_bytes > CIPHER_KEY_MAX || (spec->mode == CIPHER_XTS && key_bytes % 2) ||
	    cipher_find(name, cipher_key_bytes, &spec->algo))
		return error_set(err, -ENOTSUP,
				 "%s: the cipher '%s' with keys of %u bits in mode '%s' is not supported",
				 what, name, 8 * cipher_key_bytes, mode);
	spec->iv_bytes = (unsigned)gcry_cipher_get_algo_blklen(spec->algo);
	if (spec->mode == CIPHER_XTS && spec->iv_bytes != 16)
		return error_set(err, -ENOTSUP, "%s: the cipher '%s' does not go with mode '%s'", what,
				 name, mode);
	if (dash)
		return ivgen_parse(spec, name, dash + 1, what, err);
	if (spec->mode != CIPHER_ECB)
		return error_set(err, -ENOTSUP, "%s: the encryption mode '%s' lacks an IV generator",
				 what, mode);
	return 0;
}

/* ---- contexts ---- */

static int handle_open(gcry_cipher_hd_t *out, int algo, int mode, const void *key, size_t key_bytes)
{
	gcry_error_t ret = gcry_cipher_open(out, algo, mode, GCRY_CIPHER_SECURE);

	if (ret) {
		*out = NULL;
		return (int)ret;
	}
	return (int)gcry_cipher_setkey(*out, key, key_bytes);
}

int cipher_ctx_create(struct cipher_ctx **out, const struct cipher_spec *spec, const void *key,
		      struct error *err)
{
	struct cipher_ctx *ctx = calloc(1, sizeof(*ctx));
	uint8_t digest[CIPHER_HASH_MAX];
	int ret;

	cipher_init();
	if (!ctx)
		return error_set(err, -ENOMEM, "no memory for the cipher");
	ctx->spec = *spec;
	ret = handle_open(&ctx->handle, spec->algo, gcrypt_modes[spec->mode], key, spec->key_bytes);
	if (!ret && spec->ivgen == CIPHER_IV_ESSIV) {
		gcry_md_hash_buffer(spec->essiv_hash, digest, key, spec->key_bytes);
		ret = handle_open(&ctx->essiv, spec->essiv_algo, GCRY_CIPHER_MODE_ECB, digest,
				  gcry_md_get_algo_dlen(spec->essiv_hash));
		secret_wipe(digest, sizeof(digest));
	}
	if (ret) {
		cipher_ctx_destroy(ctx);
		if (gcry_err_code((gcry_error_t)ret) == GPG_ERR_ENOMEM)
			return error_set(err, -ENOMEM, "no memory for the cipher");
		return error_set(err, -EINVAL, "libgcrypt does not take the key: %s",
				 gcry_strerror((gcry_error_t)ret));
	}
	*out = ctx;
	return 0;
}

void cipher_ctx_destroy(struct cipher_ctx *ctx)
{
	if (!ctx)
		return;
	gcry_cipher_close(ctx->handle); /* wipes, and accepts NULL */
	gcry_cipher_close(ctx->essiv);
	free(ctx);
}

static gcry_error_t iv_set(struct cipher_ctx *ctx, uint64_t sector)
{
	const struct cipher_spec *spec = &ctx->spec;
	uint64_t le = htole64(spec->ivgen == CIPHER_IV_PLAIN ? (uint32_t)sector : sector);
	uint8_t iv[16] = {0};
	gcry_error_t ret = 0;

	if (spec->mode == CIPHER_ECB)
		return 0;
	memcpy(iv, &le, sizeof(le));
	if (spec->ivgen == CIPHER_IV_ESSIV)
		ret = gcry_cipher_encrypt(ctx->essiv, iv, sizeof(iv), NULL, 0);
	if (ret)
		return ret;
	return spec->mode == CIPHER_CTR ? gcry_cipher_setctr(ctx->handle, iv, spec->iv_bytes)
					: gcry_cipher_setiv(ctx->handle, iv, spec->iv_bytes);
}

int cipher_encrypt(struct cipher_ctx *ctx, uint64_t sector, const void *in, void *out, size_t len)
{
	const uint8_t *from = in;
	uint8_t *to = out;

	for (; len; len -= CIPHER_SECTOR_BYTES) {
		gcry_error_t ret = iv_set(ctx, sector++);

		if (!ret)
			ret = gcry_cipher_encrypt(ctx->handle, to, CIPHER_SECTOR_BYTES,
						  from == to ? NULL : from,
						  from == to ? 0 : CIPHER_SECTOR_BYTES);
		if (ret)
			return -EIO;
		from += CIPHER_SECTOR_BYTES;
		to += CIPHER_SECTOR_BYTES;
	}
	return 0;
}

int cipher_decrypt(struct cipher_ctx *ctx, uint64_t sector, void *buf, size_t len)
{
	uint8_t *at = buf;

	for (; len; len -= CIPHER_SECTOR_BYTES) {
		gcry_error_t ret = iv_set(ctx, sector++);

		if (!ret)
			ret = gcry_cipher_decrypt(ctx->handle, at, CIPHER_SECTOR_BYTES, NULL, 0);
		if (ret)
			return -EIO;
		at += CIPHER_SECTOR_BYTES;
	}
	return 0;
}

/* ---- keys ---- */

int cipher_pbkdf2(int hash, const void *passphrase, size_t passphrase_bytes, const void *salt,
		  size_t salt_bytes, unsigned long iterations, void *out, size_t out_bytes)
{
	gcry_error_t ret;

	cipher_init();
	ret = gcry_kdf_derive(passphrase, passphrase_bytes, GCRY_KDF_PBKDF2, hash, salt, salt_bytes,
			      iterations, out_bytes, out);
	return ret ? -EIO : 0;
}

/* What this thread has worked, so that who else is busy on this machine makes no key weaker. */
static uint64_t worked_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* How long @n rounds take: the best of some tries. */
static uint64_t rounds_us(int hash, size_t out_bytes, unsigned long n)
{
	static const char text[] = "how fast is it?";
	uint64_t best = UINT64_MAX;
	uint8_t out[CIPHER_KEY_MAX];

	for (unsigned try = 0; try < 3; try++) {
		uint64_t start = worked_us(), us;

		if (cipher_pbkdf2(hash, text, sizeof(text), text, sizeof(text), n, out, out_bytes))
			return best;
		us = worked_us() - start;
		best = min_of(best, us + 1);
	}
	return best;
}

unsigned long cipher_pbkdf2_per_ms(int hash, size_t out_bytes)
{
	unsigned long n = 1024;
	uint64_t us;

	while ((us = rounds_us(hash, out_bytes, n)) < 5000)
		n *= 2;
	return max_of((unsigned long)(n * 1000 / us), 1ul);
}

/* The kernel's: libgcrypt's own takes seconds for as much as a key slot needs. */
void cipher_random(void *out, size_t bytes)
{
	uint8_t *at = out;

	while (bytes) {
		ssize_t n = getrandom(at, bytes, 0);

		/* EINTR alone is possible, with a kernel that has it at all */
		assert(n > 0 || errno == EINTR);
		if (n > 0) {
			at += n;
			bytes -= (size_t)n;
		}
	}
}
