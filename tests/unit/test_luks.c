/* SPDX-License-Identifier: MIT */
/*
 * Proves of ciphers and the LUKS header: sectors are encrypted as another implementation does it (known
 * answers), each by its own number; a header made here gives the master key back to its passphrase and to
 * no other, through any of its slots; each field that a hostile header may get wrong is refused by name,
 * and no header makes the passphrase cost more than the bound; secrets are wiped.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <gcrypt.h>
#include <stdio.h>
#include <time.h>

#include "base/math.h"
#include "base/secret.h"
#include "memory.h"
#include "qcow2/cipher.h"
#include "qcow2/luks.h"

/* ---- ciphers ---- */

/* What 1536 bytes from sector 0x123456789 on become: SHA-256 of it, by OpenSSL's implementation. */
static const struct {
	const char *name, *mode;
	unsigned key_bytes;
	const char *sha256;
} answers[] = {
	{"aes", "xts-plain64", 32,
	 "52990ab6f313368af00d44017ab418da0efab8e08fbdd6d830e77fa2b63ff844"},
	{"aes", "xts-plain64", 64,
	 "39863b997ccc10ca8a5a066e2d925a8af2f92f6f7ccfac83fc42175e369ddd0e"},
	{"aes", "xts-plain", 64,
	 "1c7f97a81a7da4c2cf2607ed397d0fb2d8179bfadcbec23d7a9184b3bc4eff36"},
	{"aes", "xts-essiv:sha256", 64,
	 "cdf8d67b4230b612215e670c3f99a37680e25dd47e97b2bc2fb3c1ea46304168"},
	{"aes", "cbc-plain64", 16,
	 "91b416a8b2614378ea73f62d6e6d7401f2aadd27bbc9a2835b6e17e6cf28754c"},
	{"aes", "cbc-plain", 16,
	 "484f7887103556e75aa27ef5968fa9f7676570e3a2de25f433a489580bd408eb"},
	{"aes", "cbc-plain64", 24,
	 "f55072f6a5fa18bff34b2deda83ebb403700a144c3baeae840e02677e0961b65"},
	{"aes", "cbc-essiv:sha256", 32,
	 "31b9894d73709e2953c0beafc9dc8ce382f5b5316a17a739173c990e36c8f2a1"},
	{"aes", "cbc-essiv:md5", 16,
	 "7548764ef092d4e78dcb2c7ab108376a25d038de69581d4e170167bc73cab647"},
	{"aes", "ctr-plain64", 16,
	 "cc69e1756028b0c6bb0e8004d5389e4cd8e3db8f723c692885e8d7203fb661ed"},
	{"aes", "ctr-essiv:sha256", 32,
	 "575a81e7852f1dfbb5e484b7cf788d7ea9710d701eebe884ca71fb530bee7b91"},
	{"aes", "ecb-plain64", 32,
	 "bfe8109090273036beb7af57c6d48e310128458e3e6b21c6fc90b7731bb1ac32"},
	{"aes", "ecb", 32, "bfe8109090273036beb7af57c6d48e310128458e3e6b21c6fc90b7731bb1ac32"},
	{"cast5", "cbc-plain64", 16,
	 "113cd35f77d7f1fe69a825e1feeb2df52ebe6509cedefa7481958cac91168a65"},
};

#define DATA_BYTES 1536
#define SECTOR	   0x123456789u

static void fill_data(uint8_t *data)
{
	for (unsigned i = 0; i < DATA_BYTES; i++)
		data[i] = (uint8_t)(i * 7 + i / 256);
}

static struct cipher_ctx *ctx_make(const char *name, const char *mode, unsigned key_bytes)
{
	uint8_t key[CIPHER_KEY_MAX];
	struct cipher_spec spec;
	struct cipher_ctx *ctx = NULL;
	struct error err = {0};

	for (unsigned i = 0; i < sizeof(key); i++)
		key[i] = (uint8_t)(i + 1);
	if (cipher_spec_parse(&spec, name, mode, key_bytes, "x", &err) ||
	    cipher_ctx_create(&ctx, &spec, key, &err))
		fail_msg("%s %s %u: %s", name, mode, key_bytes, err.text);
	return ctx;
}

static void test_known_answers(void **state)
{
	uint8_t plain[DATA_BYTES], out[DATA_BYTES], digest[32];
	char text[65];

	fill_data(plain);
	for (size_t i = 0; i < ARRAY_LEN(answers); i++) {
		struct cipher_ctx *ctx =
			ctx_make(answers[i].name, answers[i].mode, answers[i].key_bytes);

		assert_int_equal(cipher_encrypt(ctx, SECTOR, plain, out, DATA_BYTES), 0);
		gcry_md_hash_buffer(GCRY_MD_SHA256, digest, out, DATA_BYTES);
		for (unsigned j = 0; j < 32; j++)
			sprintf(text + 2 * j, "%02x", digest[j]);
		if (strcmp(text, answers[i].sha256) != 0)
			fail_msg("%s %s %u", answers[i].name, answers[i].mode,
				 answers[i].key_bytes);
		cipher_ctx_destroy(ctx);
	}
}

/* Any part of it by itself, in place or not, gives the same; and it comes back. */
static void test_sectors_alone(void **state)
{
	static const struct {
		const char *name, *mode;
		unsigned key_bytes;
	} more[] = {
		{"aes", "xts-plain64", 48},	    {"serpent", "xts-plain64", 64},
		{"serpent", "cbc-essiv:sha256", 16}, {"serpent", "ctr-plain64", 32},
		{"twofish", "xts-plain64", 32},	    {"twofish", "xts-plain", 64},
		{"twofish", "cbc-essiv:sha256", 32}, {"twofish", "ecb-plain", 16},
		{"cast5", "ctr-plain64", 16},	    {"cast5", "ecb-plain64", 16},
		{"aes", "xts-plain64", 64},
	};
	uint8_t plain[DATA_BYTES], whole[DATA_BYTES], piece[512];

	fill_data(plain);
	for (size_t i = 0; i < ARRAY_LEN(more); i++) {
		struct cipher_ctx *ctx = ctx_make(more[i].name, more[i].mode, more[i].key_bytes);

		assert_int_equal(cipher_encrypt(ctx, SECTOR, plain, whole, DATA_BYTES), 0);
		assert_memory_not_equal(whole, plain, DATA_BYTES);
		memcpy(piece, plain + 1024, 512);
		assert_int_equal(cipher_encrypt(ctx, SECTOR + 2, piece, piece, 512), 0);
		assert_memory_equal(piece, whole + 1024, 512);
		memcpy(piece, whole + 512, 512);
		assert_int_equal(cipher_decrypt(ctx, SECTOR + 1, piece, 512), 0);
		assert_memory_equal(piece, plain + 512, 512);
		assert_int_equal(cipher_decrypt(ctx, SECTOR, whole, DATA_BYTES), 0);
		assert_memory_equal(whole, plain, DATA_BYTES);
		cipher_ctx_destroy(ctx);
	}
	cipher_ctx_destroy(NULL);
}

static void test_names_refused(void **state)
{
	static const struct {
		const char *name, *mode;
		unsigned key_bytes;
		const char *says;
	} bad[] = {
		{"aes", "xts-plain64", 16, "cipher 'aes'"},
		{"aes", "xts-plain64", 33, "cipher 'aes'"},
		{"aes", "cbc-plain64", 64, "cipher 'aes'"},
		{"aes", "cbc-plain64", 0, "cipher 'aes'"},
		{"aes", "cbc-plain64", 0xffffffff, "cipher 'aes'"},
		{"twofish", "cbc-plain64", 24, "cipher 'twofish' with keys of 192 bits"},
		{"des3_ede", "cbc-plain64", 24, "cipher 'des3_ede'"},
		{"", "cbc-plain64", 16, "cipher ''"},
		{"cast5", "xts-plain64", 32, "cipher 'cast5' does not go with mode"},
		{"cast5", "cbc-essiv:sha256", 16, "does not go with the cipher 'cast5'"},
		{"aes", "cbc-essiv:sha1", 16, "no keys of 20 bytes"},
		{"aes", "cbc-essiv:whirlpool", 16, "hash 'whirlpool'"},
		{"aes", "cbc-essiv", 16, "IV generator 'essiv'"},
		{"aes", "cbc-plain64:sha256", 16, "IV generator 'plain64:sha256'"},
		{"aes", "cbc-benbi", 16, "IV generator 'benbi'"},
		{"aes", "cbc-", 16, "IV generator ''"},
		{"aes", "cbc", 16, "lacks an IV generator"},
		{"aes", "lrw-plain64", 16, "mode 'lrw-plain64'"},
		{"aes", "xt-plain64", 16, "mode 'xt-plain64'"},
		{"aes", "", 16, "mode ''"},
	};

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct cipher_spec spec;
		struct error err = {0};

		assert_int_equal(cipher_spec_parse(&spec, bad[i].name, bad[i].mode,
						   bad[i].key_bytes, "img", &err),
				 -ENOTSUP);
		if (!strstr(err.text, bad[i].says) || strncmp(err.text, "img: ", 5) != 0)
			fail_msg("%s %s: %s", bad[i].name, bad[i].mode, err.text);
	}
}

/* ---- the header ---- */

#define AREA_AT 65536

static struct secret *secret_of(const char *text)
{
	struct secret *s = secret_create(SECRET_MAX_BYTES);

	s->bytes = strlen(text);
	memcpy(s->data, text, s->bytes);
	return s;
}

struct fixture {
	struct memory m;
	uint64_t area_bytes;
	struct luks l;
	struct secret *key;
	struct error err;
};

static struct luks_disk_header *disk(struct fixture *f)
{
	return (struct luks_disk_header *)(f->m.data + AREA_AT);
}

static void fixture_make(struct fixture *f, const struct qcow2_luks_options *o, const char *text)
{
	struct secret *passphrase = secret_of(text);

	memset(f, 0, sizeof(*f));
	f->area_bytes = luks_area_bytes(o);
	memory_init(&f->m);
	memory_resize(&f->m, AREA_AT + f->area_bytes);
	f->key = secret_create(CIPHER_KEY_MAX);
	if (luks_format(o, passphrase, f->m.data + AREA_AT, &f->err))
		fail_msg("%s", f->err.text);
	secret_destroy(passphrase);
}

static void fixture_free(struct fixture *f)
{
	secret_destroy(f->key);
	free(f->m.data);
	free(f->m.durable);
}

static int unlock(struct fixture *f, const char *text)
{
	struct secret *passphrase = secret_of(text);
	int ret;

	f->err.text[0] = '\0';
	ret = luks_parse(&f->l, disk(f), f->area_bytes, "img", &f->err);
	if (!ret)
		ret = luks_unlock(&f->l, &f->m.st, AREA_AT, passphrase, f->key, &f->err);
	secret_destroy(passphrase);
	return ret;
}

static void test_round_trip(void **state)
{
	static const struct qcow2_luks_options options[] = {
		{.iter_time_ms = 1},
		{.cipher_alg = "serpent-256", .cipher_mode = "cbc", .ivgen_alg = "essiv",
		 .hash_alg = "sha1", .iter_time_ms = 1},
		{.cipher_alg = "twofish-128", .hash_alg = "ripemd160", .iter_time_ms = 1},
		{.cipher_alg = "aes-192", .hash_alg = "sha512", .ivgen_alg = "plain", .iter_time_ms = 1},
		{.cipher_alg = "cast5-128", .cipher_mode = "ctr", .hash_alg = "md5", .iter_time_ms = 1},
	};

	for (size_t i = 0; i < ARRAY_LEN(options); i++) {
		struct fixture f;
		uint8_t key[CIPHER_KEY_MAX];

		fixture_make(&f, &options[i], "a pass phrase\n");
		if (unlock(&f, "a pass phrase\n"))
			fail_msg("%zu: %s", i, f.err.text);
		assert_int_equal(f.key->bytes, f.l.spec.key_bytes);
		memcpy(key, f.key->data, f.key->bytes);
		assert_int_equal(unlock(&f, "a pass phrase"), -EKEYREJECTED);
		assert_int_equal(f.key->bytes, 0);
		for (unsigned j = 0; j < CIPHER_KEY_MAX; j++)
			assert_int_equal(f.key->data[j], 0);
		assert_non_null(strstr(f.err.text, "is wrong: it opens none of the 1 LUKS key slots"));
		assert_null(strstr(f.err.text, "newline"));
		assert_int_equal(unlock(&f, "other\n"), -EKEYREJECTED);
		assert_non_null(strstr(f.err.text, "newline"));
		assert_int_equal(unlock(&f, ""), -EKEYREJECTED);
		/* and once more, the same key */
		assert_int_equal(unlock(&f, "a pass phrase\n"), 0);
		assert_memory_equal(key, f.key->data, f.key->bytes);
		assert_int_equal(f.m.writes, 0);
		fixture_free(&f);
	}
}

/* The slot in use is another one, whose material lies elsewhere; the first one is another passphrase's. */
static void test_other_slot(void **state)
{
	const struct qcow2_luks_options o = {.iter_time_ms = 1};
	struct fixture f;
	struct luks_disk_header *d;
	uint64_t to;

	fixture_make(&f, &o, "secret");
	d = disk(&f);
	to = be32_get(d->slots[7].material_sector) * 512ull;
	d->slots[7].iterations = d->slots[0].iterations;
	d->slots[7].active = d->slots[0].active;
	memcpy(d->slots[7].salt, d->slots[0].salt, LUKS_SALT_BYTES);
	memcpy(f.m.data + AREA_AT + to, f.m.data + AREA_AT + 4096, 256000);
	d->slots[0].salt[5] ^= 1;
	assert_int_equal(unlock(&f, "secret"), 0);
	/* one bit of the material that is wrong spoils all of it */
	f.m.data[AREA_AT + to + 200000] ^= 4;
	assert_int_equal(unlock(&f, "secret"), -EKEYREJECTED);
	assert_non_null(strstr(f.err.text, "none of the 2 LUKS"));
	d->slots[0].active = d->slots[7].active = be32_make(LUKS_SLOT_DISABLED);
	assert_int_equal(unlock(&f, "secret"), -EINVAL);
	assert_non_null(strstr(f.err.text, "no LUKS key slot is in use"));
	fixture_free(&f);
}

static void spoil_magic(struct luks_disk_header *d) { d->magic[5] = 0xbf; }
static void spoil_version(struct luks_disk_header *d) { d->version = be16_make(2); }
static void spoil_cipher(struct luks_disk_header *d) { strcpy(d->cipher, "camellia"); }
static void spoil_cipher_end(struct luks_disk_header *d) { memset(d->cipher, 'a', 32); }
static void spoil_mode_end(struct luks_disk_header *d) { memset(d->mode, 'a', 32); }
static void spoil_hash_end(struct luks_disk_header *d) { memset(d->hash, 'a', 32); }
static void spoil_hash(struct luks_disk_header *d) { strcpy(d->hash, "whirl\x1b[2J"); }
static void spoil_key_bytes(struct luks_disk_header *d) { d->key_bytes = be32_make(1u << 31); }
static void spoil_stripes(struct luks_disk_header *d) { d->slots[0].stripes = be32_make(0xffffffff); }
static void spoil_stripes_0(struct luks_disk_header *d) { d->slots[0].stripes = be32_make(0); }
static void spoil_active(struct luks_disk_header *d) { d->slots[3].active = be32_make(1); }
static void spoil_iterations(struct luks_disk_header *d) { d->slots[0].iterations = be32_make(0); }
static void spoil_digest(struct luks_disk_header *d) { d->digest_iterations = be32_make(0); }
static void spoil_place(struct luks_disk_header *d) { d->slots[0].material_sector = be32_make(~0u); }
static void spoil_place_0(struct luks_disk_header *d) { d->slots[0].material_sector = be32_make(1); }
static void spoil_place_end(struct luks_disk_header *d)
{
	/* the last slot's place, and one sector */
	d->slots[0].material_sector = be32_make(be32_get(d->slots[7].material_sector) + 5);
}
static void spoil_material(struct luks_disk_header *d)
{
	strcpy(d->mode, "cbc-plain64");
	d->key_bytes = be32_make(24); /* times 4000: half a sector too much */
}

static void test_hostile(void **state)
{
	static const struct {
		void (*spoil)(struct luks_disk_header *d);
		int ret;
		const char *says;
	} cases[] = {
		{spoil_magic, -EINVAL, "no LUKS header"},
		{spoil_version, -ENOTSUP, "LUKS version 2"},
		{spoil_cipher, -ENOTSUP, "cipher 'camellia'"},
		{spoil_cipher_end, -EINVAL, "has no end"},
		{spoil_mode_end, -EINVAL, "has no end"},
		{spoil_hash_end, -EINVAL, "has no end"},
		{spoil_hash, -ENOTSUP, "hash 'whirl?[2J'"},
		{spoil_key_bytes, -ENOTSUP, "cipher 'aes'"},
		{spoil_stripes, -EINVAL, "slot 0 has 4294967295 stripes"},
		{spoil_stripes_0, -EINVAL, "slot 0 has 0 stripes"},
		{spoil_active, -EINVAL, "slot 3 is in state 0x1"},
		{spoil_iterations, -EINVAL, "slot 0 has no iterations"},
		{spoil_digest, -EINVAL, "digest has no iterations"},
		{spoil_place, -EINVAL, "slot 0 at 2199023255040 lies outside"},
		{spoil_place_0, -EINVAL, "slot 0 at 512 lies outside"},
		{spoil_place_end, -EINVAL, "lies outside"},
		{spoil_material, -ENOTSUP, "keys of 192 bits, whose material"},
	};
	const struct qcow2_luks_options o = {.iter_time_ms = 1};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct fixture f;

		fixture_make(&f, &o, "secret");
		cases[i].spoil(disk(&f));
		assert_int_equal(unlock(&f, "secret"), cases[i].ret);
		if (!strstr(f.err.text, cases[i].says))
			fail_msg("%zu: %s", i, f.err.text);
		assert_int_equal(f.m.reads, 0);
		fixture_free(&f);
	}
}

/* What asks for too much is not computed; what is affordable is, also where others ask for too much. */
static void test_cost(void **state)
{
	const struct qcow2_luks_options o = {.iter_time_ms = 1};
	struct luks_disk_header *d;
	struct fixture f;
	time_t start = time(NULL);

	fixture_make(&f, &o, "secret");
	d = disk(&f);
	d->slots[5] = d->slots[0];
	d->slots[0].iterations = be32_make(0xffffffff);
	assert_int_equal(unlock(&f, "secret"), 0);
	assert_int_equal(unlock(&f, "wrong"), -EKEYREJECTED);
	assert_non_null(strstr(f.err.text, "1 of the LUKS key slots ask for more than 134217728 rounds"));
	d->slots[5].active = be32_make(LUKS_SLOT_DISABLED);
	assert_int_equal(unlock(&f, "secret"), -EINVAL);
	d->slots[0].iterations = be32_make(1000);
	d->digest_iterations = be32_make(0xffffffff);
	assert_int_equal(unlock(&f, "secret"), -EINVAL);
	assert_non_null(strstr(f.err.text, "rounds"));
	/* all but one */
	d->digest_iterations = be32_make(1);
	for (unsigned i = 0; i < LUKS_SLOTS; i++) {
		d->slots[i] = d->slots[5];
		d->slots[i].active = be32_make(LUKS_SLOT_ENABLED);
		d->slots[i].iterations = be32_make((uint32_t)(LUKS_ROUNDS_MAX / 2 + 1));
	}
	d->slots[0].iterations = be32_make(1);
	assert_int_equal(unlock(&f, "wrong"), -EKEYREJECTED);
	assert_non_null(strstr(f.err.text, "7 of the LUKS key slots"));
	assert_true(time(NULL) - start < 20);
	fixture_free(&f);
}

/* Short areas, and I/O errors. */
static void test_read_fails(void **state)
{
	const struct qcow2_luks_options o = {.iter_time_ms = 1};
	struct fixture f;

	fixture_make(&f, &o, "secret");
	f.m.fail_at = 1;
	assert_int_equal(unlock(&f, "secret"), -EIO);
	assert_non_null(strstr(f.err.text, "cannot read the LUKS key slot"));
	/* a file that ends inside the material reads as zeros there, and opens nothing */
	f.m.st.size_bytes = AREA_AT + 4096 + 1000;
	assert_int_equal(unlock(&f, "secret"), -EKEYREJECTED);
	fixture_free(&f);
}

static void test_options_refused(void **state)
{
	static const struct {
		struct qcow2_luks_options o;
		const char *says;
	} bad[] = {
		{{.cipher_alg = "aes"}, "cipher 'aes'"},
		{{.cipher_alg = "twofish-192"}, "keys of 192 bits"},
		{{.cipher_alg = "aes-192", .cipher_mode = "cbc"}, "no whole sectors"},
		{{.cipher_alg = "cast5-128"}, "'cast5' does not go"},
		{{.cipher_mode = "gcm"}, "mode 'gcm-plain64'"},
		{{.ivgen_alg = "random"}, "'random'"},
		{{.ivgen_alg = "essiv", .ivgen_hash_alg = "sha1"}, "20 bytes"},
		{{.hash_alg = "sm3"}, "hash 'sm3'"},
		{{.hash_alg = "a name that is too long for the header's field"}, "hash"},
	};

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct error err = {0};

		assert_int_equal(luks_options_check(&bad[i].o, &err), -ENOTSUP);
		if (!strstr(err.text, bad[i].says))
			fail_msg("%zu: %s", i, err.text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_answers),
		cmocka_unit_test(test_sectors_alone),
		cmocka_unit_test(test_names_refused),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_other_slot),
		cmocka_unit_test(test_hostile),
		cmocka_unit_test(test_cost),
		cmocka_unit_test(test_read_fails),
		cmocka_unit_test(test_options_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
