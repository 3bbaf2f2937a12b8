/* SPDX-License-Identifier: MIT */
/*
 * fuzz_luks.c: a LUKS header, and key material, whatever they are.
 *
 * The input begins with a header as it lies in an image; what follows is the area around it. What is
 * accepted lies where it may lie, and a passphrase is tried on it. How often a hash is computed is what a
 * header may ask for: it is cut down here, after it was seen that the real thing would be bounded.
 */
#include "fuzz.h"

#include <assert.h>
#include <string.h>

#include "base/math.h"
#include "base/secret.h"
#include "memdisk.h"
#include "qcow2/luks.h"

#define SLOTS_TRIED 2 /* each takes thousands of hashes */

static struct secret *passphrase, *key;

static void make_affordable(struct luks *l)
{
	unsigned active = 0;

	l->digest_iterations = 1 + l->digest_iterations % 4;
	for (unsigned i = 0; i < LUKS_SLOTS; i++) {
		struct luks_slot *slot = &l->slots[i];

		slot->iterations = 1 + slot->iterations % 4;
		active += slot->active;
		slot->active = slot->active && active <= SLOTS_TRIED;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct luks_disk_header disk = {0};
	uint64_t area_bytes = fuzz_control(data, size, 0) % (4 * MiB);
	struct error err = {0};
	struct storage *st;
	struct luks l;
	int ret;

	if (size > FUZZ_INPUT_MAX)
		return 0;
	memcpy(&disk, data, min_of(size, sizeof(disk)));
	if (luks_parse(&l, &disk, area_bytes, "fuzz", &err)) {
		assert(err.text[0]);
		return 0;
	}
	assert(l.spec.key_bytes && l.spec.key_bytes <= CIPHER_KEY_MAX);
	for (unsigned i = 0; i < LUKS_SLOTS; i++)
		assert(!l.slots[i].active || (l.slots[i].iterations && l.slots[i].offset_bytes <= area_bytes &&
					      l.material_bytes <= area_bytes - l.slots[i].offset_bytes));
	if (!passphrase) {
		passphrase = secret_create(8);
		key = secret_create(CIPHER_KEY_MAX);
		memcpy(passphrase->data, "secret", 6);
		passphrase->bytes = 6;
	}
	make_affordable(&l);
	st = memdisk_create(data, size, FUZZ_FILE_MAX, 1);
	ret = luks_unlock(&l, st, 0, passphrase, key, &err);
	assert(ret ? err.text[0] && !key->bytes : key->bytes == l.spec.key_bytes);
	storage_close(st);
	return 0;
}
