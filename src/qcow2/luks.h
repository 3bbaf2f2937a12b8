/* SPDX-License-Identifier: MIT */
/*
 * luks.h: the LUKS header (version 1) that lies inside an encrypted image: reading it, getting the
 * master key with a passphrase, and making a new one.
 *
 * Specification: "LUKS1 On-Disk Format Specification 1.2.3", called "LUKS" in comments. The header and
 * its key material lie in the clusters that the qcow2 header extension 0x0537be77 names (qcow2: "Full
 * disk encryption header pointer"); offsets in it count from there. What it says of a payload's place
 * has no meaning in qcow2.
 */
#ifndef QCOW2_LUKS_H
#define QCOW2_LUKS_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/byteorder.h"
#include "base/error.h"
#include "qcow2.h"
#include "qcow2/cipher.h"

struct secret;
struct storage;

#define LUKS_SLOTS	  8
#define LUKS_STRIPES	  4000
#define LUKS_SALT_BYTES	  32
#define LUKS_DIGEST_BYTES 20
#define LUKS_HEADER_BYTES 592

/*
 * What an image may make a passphrase cost: rounds of a hash, over all key slots that are tried. About
 * a minute of a slow machine, and more than cryptsetup or QEMU ask for when they are given ten seconds.
 */
#define LUKS_ROUNDS_MAX ((uint64_t)1 << 27)

/* ---- on disk ---- */

#define LUKS_MAGIC "LUKS\xba\xbe"
#define LUKS_SLOT_ENABLED  0x00ac71f3u
#define LUKS_SLOT_DISABLED 0x0000deadu

struct luks_disk_slot {
	be32_t active;
	be32_t iterations;
	uint8_t salt[LUKS_SALT_BYTES];
	be32_t material_sector;
	be32_t stripes;
};
static_assert(sizeof(struct luks_disk_slot) == 48, "layout");

struct luks_disk_header {
	uint8_t magic[6];
	be16_t version;
	char cipher[32];
	char mode[32];
	char hash[32];
	be32_t payload_sector;
	be32_t key_bytes;
	uint8_t digest[LUKS_DIGEST_BYTES];
	uint8_t digest_salt[LUKS_SALT_BYTES];
	be32_t digest_iterations;
	char uuid[40];
	struct luks_disk_slot slots[LUKS_SLOTS];
};
static_assert(sizeof(struct luks_disk_header) == LUKS_HEADER_BYTES, "layout");

/* ---- in memory ---- */

struct luks_slot {
	bool active;
	uint32_t iterations;
	uint8_t salt[LUKS_SALT_BYTES];
	uint64_t offset_bytes; /* of the key material, in the area */
};

struct luks {
	struct cipher_spec spec;
	int hash; /* libgcrypt's */
	unsigned hash_bytes;
	uint8_t digest[LUKS_DIGEST_BYTES]; /* of the master key */
	uint8_t digest_salt[LUKS_SALT_BYTES];
	uint32_t digest_iterations;
	uint64_t material_bytes; /* of a slot */
	struct luks_slot slots[LUKS_SLOTS];
};

/*
 * Checks the header at @disk, in an area of @area_bytes; hostile. @what begins messages: the file's
 * name. -EINVAL, or -ENOTSUP with the name of what cannot be had.
 */
int luks_parse(struct luks *l, const struct luks_disk_header *disk, uint64_t area_bytes,
	       const char *what, struct error *err) must_check;

/*
 * The master key, spec.key_bytes long, into @key. The area begins at @area_offset of @st. Burns CPU for
 * as long as the header's author wanted, within LUKS_ROUNDS_MAX. -EKEYREJECTED: not the passphrase.
 */
int luks_unlock(const struct luks *l, struct storage *st, uint64_t area_offset,
		const struct secret *passphrase, struct secret *key, struct error *err) must_check;

/* ---- making one ---- */

/* Refuses what luks_format() would. */
int luks_options_check(const struct qcow2_luks_options *o, struct error *err) must_check;
/* How long the area is; the options passed luks_options_check(). */
uint64_t luks_area_bytes(const struct qcow2_luks_options *o);
/*
 * Fills @area, zeroed and luks_area_bytes() long, with a header, a new master key and one key slot for
 * the passphrase. Takes iter_time, and half of that again.
 */
int luks_format(const struct qcow2_luks_options *o, const struct secret *passphrase, uint8_t *area,
		struct error *err) must_check;

#endif
