/* SPDX-License-Identifier: MIT */
/*
 * luks.c: see luks.h.
 *
 * A key slot holds the master key, split into LUKS_STRIPES pieces that are all needed to put it together
 * again (LUKS: "AF splitter"), encrypted with a key made of the passphrase. Whether what comes out is
 * the master key, its digest in the header tells.
 *
 * Invariants:
 *  1. Nothing is allocated, read or computed by a number from the header that was not checked: key
 *     lengths are those of known ciphers, the stripes are constant, material lies in the area, and
 *     rounds are counted against LUKS_ROUNDS_MAX before they are made.
 *  2. Whatever a passphrase or key was copied or expanded to is in secret memory, or wiped.
 */
#include "qcow2/luks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gcrypt.h>

#include "base/math.h"
#include "base/secret.h"
#include "storage/storage.h"

/* As cryptsetup and QEMU do. */
#define MATERIAL_ALIGN_BYTES 4096u
#define ITERATIONS_MIN	     1000u

/* ---- reading the header ---- */

static bool text_ended(const char *text, size_t size)
{
	return memchr(text, '\0', size) != NULL;
}

static int parse_names(struct luks *l, const struct luks_disk_header *d, const char *what,
		       struct error *err)
{
	int ret;

	if (memcmp(d->magic, LUKS_MAGIC, sizeof(d->magic)) != 0)
		return error_set(err, -EINVAL, "%s: there is no LUKS header where the image says", what);
	if (be16_get(d->version) != 1)
		return error_set(err, -ENOTSUP, "%s: LUKS version %u is not supported in qcow2", what,
				 be16_get(d->version));
	if (!text_ended(d->cipher, sizeof(d->cipher)) || !text_ended(d->mode, sizeof(d->mode)) ||
	    !text_ended(d->hash, sizeof(d->hash)))
		return error_set(err, -EINVAL, "%s: a name in the LUKS header has no end", what);
	ret = cipher_spec_parse(&l->spec, d->cipher, d->mode, be32_get(d->key_bytes), what, err);
	if (ret)
		return ret;
	if (cipher_hash_find(d->hash, &l->hash, &l->hash_bytes))
		return error_set(err, -ENOTSUP, "%s: the LUKS header's hash '%s' is not supported", what,
				 d->hash);
	return 0;
}

static int parse_slot(struct luks *l, const struct luks_disk_header *d, unsigned i,
		      uint64_t area_bytes, const char *what, struct error *err)
{
	const struct luks_disk_slot *from = &d->slots[i];
	struct luks_slot *slot = &l->slots[i];
	uint32_t active = be32_get(from->active);

	if (active != LUKS_SLOT_ENABLED && active != LUKS_SLOT_DISABLED)
		return error_set(err, -EINVAL, "%s: LUKS key slot %u is in state %#x, which there is not",
				 what, i, active);
	slot->active = active == LUKS_SLOT_ENABLED;
	if (!slot->active)
		return 0;
	slot->iterations = be32_get(from->iterations);
	slot->offset_bytes = (uint64_t)be32_get(from->material_sector) * CIPHER_SECTOR_BYTES;
	memcpy(slot->salt, from->salt, sizeof(slot->salt));
	if (be32_get(from->stripes) != LUKS_STRIPES)
		return error_set(err, -EINVAL, "%s: LUKS key slot %u has %u stripes, not %u", what, i,
				 be32_get(from->stripes), LUKS_STRIPES);
	if (!slot->iterations)
		return error_set(err, -EINVAL, "%s: LUKS key slot %u has no iterations", what, i);
	if (slot->offset_bytes < LUKS_HEADER_BYTES || slot->offset_bytes > area_bytes ||
	    l->material_bytes > area_bytes - slot->offset_bytes)
		return error_set(err, -EINVAL,
				 "%s: the material of LUKS key slot %u at %" PRIu64
				 " lies outside the LUKS header's %" PRIu64 " bytes",
				 what, i, slot->offset_bytes, area_bytes);
	return 0;
}

int luks_parse(struct luks *l, const struct luks_disk_header *d, uint64_t area_bytes,
	       const char *what, struct error *err)
{
	int ret;

	memset(l, 0, sizeof(*l));
	ret = parse_names(l, d, what, err);
	if (ret)
		return ret;
	memcpy(l->digest, d->digest, sizeof(l->digest));
	memcpy(l->digest_salt, d->digest_salt, sizeof(l->digest_salt));
	l->digest_iterations = be32_get(d->digest_iterations);
	if (!l->digest_iterations)
		return error_set(err, -EINVAL, "%s: the LUKS master key's digest has no iterations", what);
	l->material_bytes = (uint64_t)l->spec.key_bytes * LUKS_STRIPES;
	if (!is_aligned(l->material_bytes, CIPHER_SECTOR_BYTES))
		return error_set(err, -ENOTSUP,
				 "%s: LUKS keys of %u bits, whose material is no whole sectors, are not "
				 "supported",
				 what, 8 * l->spec.key_bytes);
	for (unsigned i = 0; !ret && i < LUKS_SLOTS; i++)
		ret = parse_slot(l, d, i, area_bytes, what, err);
	return ret;
}

/* ---- the splitter (LUKS: "Anti-forensic information splitting") ---- */

/* Hashes @block piece by piece, each with its number. */
static void diffuse(int hash, unsigned hash_bytes, uint8_t *block, size_t len)
{
	uint8_t piece[4 + CIPHER_HASH_MAX], digest[CIPHER_HASH_MAX];
	be32_t number;

	for (uint32_t i = 0; (size_t)i * hash_bytes < len; i++) {
		size_t at = (size_t)i * hash_bytes, n = min_of(len - at, (size_t)hash_bytes);

		number = be32_make(i);
		memcpy(piece, &number, sizeof(number));
		memcpy(piece + sizeof(number), block + at, n);
		gcry_md_hash_buffer(hash, digest, piece, sizeof(number) + n);
		memcpy(block + at, digest, n);
	}
	secret_wipe(piece, sizeof(piece));
	secret_wipe(digest, sizeof(digest));
}

static void xor_into(uint8_t *to, const uint8_t *from, size_t len)
{
	for (size_t i = 0; i < len; i++)
		to[i] ^= from[i];
}

/* @key becomes what @material was made of. */
static void af_merge(const struct luks *l, const uint8_t *material, uint8_t *key)
{
	size_t len = l->spec.key_bytes;

	memset(key, 0, len);
	for (unsigned i = 0; i < LUKS_STRIPES - 1; i++) {
		xor_into(key, material + i * len, len);
		diffuse(l->hash, l->hash_bytes, key, len);
	}
	xor_into(key, material + (LUKS_STRIPES - 1) * len, len);
}

static void af_split(const struct luks *l, const uint8_t *key, uint8_t *material)
{
	size_t len = l->spec.key_bytes;
	uint8_t *last = material + (LUKS_STRIPES - 1) * len;

	cipher_random(material, (LUKS_STRIPES - 1) * len);
	memset(last, 0, len);
	for (unsigned i = 0; i < LUKS_STRIPES - 1; i++) {
		xor_into(last, material + i * len, len);
		diffuse(l->hash, l->hash_bytes, last, len);
	}
	xor_into(last, key, len);
}

/* ---- getting the master key ---- */

/* What one passphrase on one slot costs; no overflow: 32 bits times a few. */
static uint64_t slot_rounds(const struct luks *l, const struct luks_slot *slot)
{
	return slot->iterations * div_up(l->spec.key_bytes, l->hash_bytes) +
	       l->digest_iterations * div_up(LUKS_DIGEST_BYTES, l->hash_bytes);
}

/* What is encrypted with a key made of the passphrase: a context for it. */
static int slot_cipher(const struct luks *l, const struct luks_slot *slot,
		       const struct secret *passphrase, struct cipher_ctx **ctx, struct error *err)
{
	struct secret *derived = secret_create(CIPHER_KEY_MAX);
	int ret;

	if (!derived)
		return error_set(err, -ENOMEM, "no memory for a key");
	ret = cipher_pbkdf2(l->hash, passphrase->data, passphrase->bytes, slot->salt,
			    sizeof(slot->salt), slot->iterations, derived->data, l->spec.key_bytes);
	if (ret)
		error_set(err, ret, "libgcrypt cannot make a key of the passphrase");
	else
		ret = cipher_ctx_create(ctx, &l->spec, derived->data, err);
	secret_destroy(derived);
	return ret;
}

/* Whole blocks of the storage around the material; *@start is where it begins in the result. */
static int material_read(const struct luks *l, const struct luks_slot *slot, struct storage *st,
			 uint64_t area_offset, struct secret **out, size_t *start, struct error *err)
{
	uint64_t block = max_of(st->block_bytes, 512u);
	uint64_t from = area_offset + slot->offset_bytes;
	uint64_t aligned = align_down(from, block);
	uint64_t len = align_up(from + l->material_bytes, block) - aligned;
	int ret;

	*start = from - aligned;
	*out = secret_create(len);
	if (!*out)
		return error_set(err, -ENOMEM, "no memory for a key slot");
	ret = storage_pread(st, aligned, (*out)->data, len);
	return ret ? error_set(err, ret, "%s: cannot read the LUKS key slot: %s", st->name,
			       strerror(-ret))
		   : 0;
}

/* Whether @key is what the header says it is. */
static int digest_check(const struct luks *l, const uint8_t *key, struct error *err)
{
	uint8_t digest[LUKS_DIGEST_BYTES], difference = 0;
	int ret = cipher_pbkdf2(l->hash, key, l->spec.key_bytes, l->digest_salt,
				sizeof(l->digest_salt), l->digest_iterations, digest, sizeof(digest));

	if (ret)
		return error_set(err, ret, "libgcrypt cannot make the master key's digest");
	for (unsigned i = 0; i < sizeof(digest); i++)
		difference |= digest[i] ^ l->digest[i];
	return difference ? -EKEYREJECTED : 0;
}

/* -EKEYREJECTED, without a message: another slot may be the one. */
static int slot_unlock(const struct luks *l, const struct luks_slot *slot, struct storage *st,
		       uint64_t area_offset, const struct secret *passphrase, struct secret *key,
		       struct error *err)
{
	struct secret *material = NULL;
	struct cipher_ctx *ctx = NULL;
	size_t start = 0;
	int ret = material_read(l, slot, st, area_offset, &material, &start, err);

	if (!ret)
		ret = slot_cipher(l, slot, passphrase, &ctx, err);
	if (!ret) {
		ret = cipher_decrypt(ctx, 0, material->data + start, l->material_bytes);
		if (ret)
			error_set(err, ret, "libgcrypt cannot decrypt a key slot");
	}
	if (!ret) {
		af_merge(l, material->data + start, key->data);
		key->bytes = l->spec.key_bytes;
		ret = digest_check(l, key->data, err);
	}
	cipher_ctx_destroy(ctx);
	secret_destroy(material);
	return ret;
}

static int unlock_failed(const struct storage *st, unsigned tried, unsigned costly, bool newline,
			 struct error *err)
{
	if (costly)
		return error_set(err, tried ? -EKEYREJECTED : -EINVAL,
				 "%s: %u of the LUKS key slots ask for more than %" PRIu64
				 " rounds of hashing, which is the most that is done here%s",
				 st->name, costly, LUKS_ROUNDS_MAX,
				 tried ? "; the passphrase opens none of the others" : "");
	if (!tried)
		return error_set(err, -EINVAL, "%s: no LUKS key slot is in use: nothing opens it",
				 st->name);
	return error_set(err, -EKEYREJECTED,
			 "%s: the passphrase is wrong: it opens none of the %u LUKS key slots in use%s",
			 st->name, tried,
			 newline ? " (it ends in a newline, which counts as part of it)" : "");
}

int luks_unlock(const struct luks *l, struct storage *st, uint64_t area_offset,
		const struct secret *passphrase, struct secret *key, struct error *err)
{
	uint64_t left = LUKS_ROUNDS_MAX;
	unsigned tried = 0, costly = 0;
	bool newline;

	assert(key->capacity >= l->spec.key_bytes);
	if (!passphrase->bytes)
		return error_set(err, -EKEYREJECTED, "%s: the passphrase is empty", st->name);
	newline = passphrase->data[passphrase->bytes - 1] == '\n';
	for (unsigned i = 0; i < LUKS_SLOTS; i++) {
		const struct luks_slot *slot = &l->slots[i];
		int ret;

		if (!slot->active)
			continue;
		if (slot_rounds(l, slot) > left) {
			costly++;
			continue;
		}
		left -= slot_rounds(l, slot);
		tried++;
		ret = slot_unlock(l, slot, st, area_offset, passphrase, key, err);
		if (ret != -EKEYREJECTED)
			return ret;
	}
	secret_wipe(key->data, key->capacity);
	key->bytes = 0;
	return unlock_failed(st, tried, costly, newline, err);
}

/* ---- making a header ---- */

static const struct {
	const char *alg, *name;
	unsigned key_bytes;
} algs[] = {
	{"aes-128", "aes", 16},		{"aes-192", "aes", 24},		{"aes-256", "aes", 32},
	{"serpent-128", "serpent", 16}, {"serpent-192", "serpent", 24}, {"serpent-256", "serpent", 32},
	{"twofish-128", "twofish", 16}, {"twofish-192", "twofish", 24}, {"twofish-256", "twofish", 32},
	{"cast5-128", "cast5", 16},
};

/* The names as the header has them, and what they come to. */
struct format {
	struct luks_disk_header disk;
	struct luks l;
};

static int names_make(struct format *f, const struct qcow2_luks_options *o, struct error *err)
{
	const char *alg = o->cipher_alg ? o->cipher_alg : "aes-256";
	const char *mode = o->cipher_mode ? o->cipher_mode : "xts";
	const char *ivgen = o->ivgen_alg ? o->ivgen_alg : "plain64";
	const char *ivhash = o->ivgen_hash_alg ? o->ivgen_hash_alg : "sha256";
	const char *hash = o->hash_alg ? o->hash_alg : "sha256";
	bool essiv = strcmp(ivgen, "essiv") == 0;
	size_t i = 0;
	int len;

	while (i < ARRAY_LEN(algs) && strcmp(algs[i].alg, alg) != 0)
		i++;
	if (i == ARRAY_LEN(algs))
		return error_set(err, -ENOTSUP, "the cipher '%s' is not supported", alg);
	snprintf(f->disk.cipher, sizeof(f->disk.cipher), "%s", algs[i].name);
	f->disk.key_bytes =
		be32_make(strcmp(mode, "xts") == 0 ? 2 * algs[i].key_bytes : algs[i].key_bytes);
	len = snprintf(f->disk.mode, sizeof(f->disk.mode), "%s-%s%s%s", mode, ivgen, essiv ? ":" : "",
		       essiv ? ivhash : "");
	if (len >= (int)sizeof(f->disk.mode) ||
	    snprintf(f->disk.hash, sizeof(f->disk.hash), "%s", hash) >= (int)sizeof(f->disk.hash))
		return error_set(err, -ENOTSUP, "the cipher mode or hash is not supported");
	return 0;
}

static uint64_t slot_stride_bytes(const struct luks *l)
{
	return align_up(l->material_bytes, MATERIAL_ALIGN_BYTES);
}

/* A header with all its slots empty; by its own judge. */
static int format_make(struct format *f, const struct qcow2_luks_options *o, struct error *err)
{
	struct luks_disk_header *d = &f->disk;
	uint64_t stride;
	int ret;

	memset(f, 0, sizeof(*f));
	ret = names_make(f, o, err);
	if (ret)
		return ret;
	memcpy(d->magic, LUKS_MAGIC, sizeof(d->magic));
	d->version = be16_make(1);
	d->digest_iterations = be32_make(ITERATIONS_MIN);
	for (unsigned i = 0; i < LUKS_SLOTS; i++)
		d->slots[i].active = be32_make(LUKS_SLOT_DISABLED);
	ret = luks_parse(&f->l, d, 0, "encryption", err);
	if (ret)
		return ret;
	stride = slot_stride_bytes(&f->l);
	for (unsigned i = 0; i < LUKS_SLOTS; i++) {
		uint64_t at = MATERIAL_ALIGN_BYTES + i * stride;

		d->slots[i].material_sector = be32_make((uint32_t)(at / CIPHER_SECTOR_BYTES));
		d->slots[i].stripes = be32_make(LUKS_STRIPES);
	}
	d->payload_sector =
		be32_make((uint32_t)((MATERIAL_ALIGN_BYTES + LUKS_SLOTS * stride) / CIPHER_SECTOR_BYTES));
	return 0;
}

int luks_options_check(const struct qcow2_luks_options *o, struct error *err)
{
	struct format f;

	return format_make(&f, o, err);
}

uint64_t luks_area_bytes(const struct qcow2_luks_options *o)
{
	struct format f;

	if (format_make(&f, o, NULL))
		return 0;
	return MATERIAL_ALIGN_BYTES + LUKS_SLOTS * slot_stride_bytes(&f.l);
}

static uint32_t iterations_for(const struct luks *l, size_t out_bytes, uint64_t ms, uint64_t rounds_max)
{
	uint64_t n = cipher_pbkdf2_per_ms(l->hash, out_bytes) * ms;

	n = min_of(n, rounds_max / div_up(out_bytes, l->hash_bytes));
	return (uint32_t)max_of(n, (uint64_t)ITERATIONS_MIN);
}

static void uuid_make(char out[40])
{
	uint8_t u[16];

	cipher_random(u, sizeof(u));
	u[6] = (u[6] & 0x0f) | 0x40;
	u[8] = (u[8] & 0x3f) | 0x80;
	for (unsigned i = 0, at = 0; i < sizeof(u); i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			out[at++] = '-';
		at += (unsigned)sprintf(out + at, "%02x", u[i]);
	}
}

/* Key slot 0 for @passphrase, and the master key's digest. */
static int slot_make(struct format *f, const struct qcow2_luks_options *o, const struct secret *passphrase,
		     const uint8_t *key, uint8_t *area, struct error *err)
{
	uint64_t ms = o->iter_time_ms ? o->iter_time_ms : 2000;
	struct luks_disk_header *d = &f->disk;
	struct luks *l = &f->l;
	struct luks_slot slot = {.active = true};
	uint8_t *material = area + MATERIAL_ALIGN_BYTES;
	struct cipher_ctx *ctx;
	int ret;

	/* Together they stay below what is accepted here. */
	slot.iterations = iterations_for(l, l->spec.key_bytes, ms, LUKS_ROUNDS_MAX / 2);
	l->digest_iterations = iterations_for(l, LUKS_DIGEST_BYTES, ms / 8, LUKS_ROUNDS_MAX / 8);
	cipher_random(slot.salt, sizeof(slot.salt));
	cipher_random(l->digest_salt, sizeof(l->digest_salt));
	ret = cipher_pbkdf2(l->hash, key, l->spec.key_bytes, l->digest_salt, sizeof(l->digest_salt),
			    l->digest_iterations, l->digest, sizeof(l->digest));
	if (ret)
		return error_set(err, ret, "libgcrypt cannot make the master key's digest");
	ret = slot_cipher(l, &slot, passphrase, &ctx, err);
	if (ret)
		return ret;
	af_split(l, key, material);
	ret = cipher_encrypt(ctx, 0, material, material, l->material_bytes);
	cipher_ctx_destroy(ctx);
	if (ret)
		return error_set(err, ret, "libgcrypt cannot encrypt the key slot");
	memcpy(d->digest, l->digest, sizeof(d->digest));
	memcpy(d->digest_salt, l->digest_salt, sizeof(d->digest_salt));
	d->digest_iterations = be32_make(l->digest_iterations);
	d->slots[0].active = be32_make(LUKS_SLOT_ENABLED);
	d->slots[0].iterations = be32_make(slot.iterations);
	memcpy(d->slots[0].salt, slot.salt, sizeof(slot.salt));
	return 0;
}

int luks_format(const struct qcow2_luks_options *o, const struct secret *passphrase, uint8_t *area,
		struct error *err)
{
	struct secret *key = secret_create(CIPHER_KEY_MAX);
	struct format f;
	int ret;

	if (!key)
		return error_set(err, -ENOMEM, "no memory for a key");
	ret = format_make(&f, o, err);
	if (!ret && !passphrase->bytes)
		ret = error_set(err, -EINVAL, "the passphrase is empty");
	if (!ret) {
		cipher_random(key->data, f.l.spec.key_bytes);
		ret = slot_make(&f, o, passphrase, key->data, area, err);
	}
	if (!ret) {
		uuid_make(f.disk.uuid);
		memcpy(area, &f.disk, sizeof(f.disk));
	}
	secret_destroy(key);
	return ret;
}
