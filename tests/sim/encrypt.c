/* SPDX-License-Identifier: MIT */
/* encrypt.c: see encrypt.h. Linked with --wrap for luks_format() and luks_unlock(). */
#include "encrypt.h"

#include <assert.h>
#include <string.h>

#include "base/secret.h"
#include "qcow2/cipher.h"
#include "qcow2/luks.h"
#include "simview.h"

#define MEMO_MAX 4

struct opened {
	uint8_t digest[LUKS_DIGEST_BYTES], key[CIPHER_KEY_MAX];
	size_t bytes;
};

static uint8_t phrase[] = ENCRYPT_PASSPHRASE;
static const struct secret passphrase = {phrase, sizeof(phrase) - 1, sizeof(phrase) - 1};

static const struct qcow2_luks_options ciphers[] = {
	{.cipher_alg = "aes-128", .cipher_mode = "xts", .ivgen_alg = "plain64", .iter_time_ms = 1},
	{.cipher_alg = "aes-128", .cipher_mode = "cbc", .ivgen_alg = "essiv", .iter_time_ms = 1},
};

static uint8_t *areas[MEMO_MAX]; /* of each cipher; NULL: not made yet */
static struct opened opened[MEMO_MAX];
static unsigned opened_count;

int __real_luks_format(const struct qcow2_luks_options *o, const struct secret *phrase_given, uint8_t *area,
		       struct error *err);
int __wrap_luks_format(const struct qcow2_luks_options *o, const struct secret *phrase_given, uint8_t *area,
		       struct error *err);
int __real_luks_unlock(const struct luks *l, struct storage *st, uint64_t area_offset,
		       const struct secret *phrase_given, struct secret *key, struct error *err);
int __wrap_luks_unlock(const struct luks *l, struct storage *st, uint64_t area_offset,
		       const struct secret *phrase_given, struct secret *key, struct error *err);

void encrypt_choose(struct qcow2_create_options *create, struct rng *r)
{
	create->luks = true;
	create->luks_options = ciphers[rng_below(r, sizeof(ciphers) / sizeof(*ciphers))];
	create->passphrase = &passphrase;
}

static unsigned cipher_index(const struct qcow2_luks_options *o)
{
	for (unsigned i = 0;; i++) {
		assert(i < sizeof(ciphers) / sizeof(*ciphers));
		if (!strcmp(ciphers[i].cipher_mode, o->cipher_mode))
			return i;
	}
}

/* The first time, in earnest, and outside of any run: its reads would be in that run's record. */
static int unlock_now(const uint8_t *area, uint64_t bytes, const struct secret *phrase_given,
		      struct error *err)
{
	struct sim_map map = {.size_bytes = bytes};
	struct secret *key = secret_create(CIPHER_KEY_MAX);
	struct luks_disk_header disk;
	struct simview view = {0};
	struct luks l;
	int ret;

	assert(key);
	for (uint64_t s = 0; s < bytes / SECTOR_BYTES; s++)
		sim_map_set(&map, s, area + s * SECTOR_BYTES);
	simview_open(&view, &map, true);
	memcpy(&disk, area, sizeof(disk));
	ret = luks_parse(&l, &disk, bytes, "simulated", err);
	if (!ret)
		ret = __wrap_luks_unlock(&l, &view.storage, 0, phrase_given, key, err);
	secret_destroy(key);
	simview_free(&view);
	sim_map_free(&map);
	return ret;
}

int __wrap_luks_format(const struct qcow2_luks_options *o, const struct secret *phrase_given, uint8_t *area,
		       struct error *err)
{
	uint8_t **made = &areas[cipher_index(o)];
	uint64_t bytes = luks_area_bytes(o);
	int ret;

	if (*made) {
		memcpy(area, *made, bytes);
		return 0;
	}
	ret = __real_luks_format(o, phrase_given, area, err);
	if (ret)
		return ret;
	*made = sim_malloc(bytes);
	memcpy(*made, area, bytes);
	return unlock_now(*made, bytes, phrase_given, err);
}

int __wrap_luks_unlock(const struct luks *l, struct storage *st, uint64_t area_offset,
		       const struct secret *phrase_given, struct secret *key, struct error *err)
{
	int ret;

	for (unsigned i = 0; i < opened_count; i++) {
		if (memcmp(opened[i].digest, l->digest, sizeof(l->digest)) != 0)
			continue;
		memcpy(key->data, opened[i].key, opened[i].bytes);
		key->bytes = opened[i].bytes;
		return 0;
	}
	ret = __real_luks_unlock(l, st, area_offset, phrase_given, key, err);
	if (ret || opened_count == MEMO_MAX)
		return ret;
	memcpy(opened[opened_count].digest, l->digest, sizeof(l->digest));
	memcpy(opened[opened_count].key, key->data, key->bytes);
	opened[opened_count++].bytes = key->bytes;
	return 0;
}
