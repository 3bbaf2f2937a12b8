/* SPDX-License-Identifier: MIT */
/*
 * bitmap_dir.h: the bitmap directory (qcow2: "Bitmap directory"), read and judged.
 *
 * What is in it is hostile: all that this returns has been checked against the format, but not against
 * the rest of the file (where tables lie, whether they fit the disk).
 */
#ifndef QCOW2_BITMAP_DIR_H
#define QCOW2_BITMAP_DIR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "qcow2/format.h"

struct qcow2_header;
struct storage;

/* What is looked into; QEMU's own limits are 65,535 and 64 MiB. */
#define BITMAP_DIR_MAX_COUNT 1024
#define BITMAP_DIR_MAX_BYTES ((uint64_t)1 << 20)

struct bitmap_entry {
	uint32_t at;	/* of the entry, in the directory */
	uint32_t flags; /* QCOW2_BITMAP_* */
	uint32_t table_entries;
	uint64_t table_offset;
	unsigned granularity_bits;
	bool extra; /* has extra data, whose meaning is not known */
	char *name; /* hostile; up to a NUL inside */
};

struct bitmap_dir {
	uint8_t *raw; /* as in the file, whole blocks */
	uint64_t raw_bytes;
	struct bitmap_entry *v;
	uint32_t count;
};

/*
 * In a coroutine or outside of any loop. The header has the extension, with its autoclear bit set.
 * -EINVAL, -EFBIG: it is broken, or larger than the above; any other error is of reading or memory. On
 * error @d is empty.
 */
int bitmap_dir_read(struct bitmap_dir *d, struct storage *st, const struct qcow2_header *h,
		    struct error *err) must_check;
void bitmap_dir_free(struct bitmap_dir *d); /* also of a zeroed one */

/* Sets flags, table and its length of @e, as well in @d->raw. */
void bitmap_dir_set(struct bitmap_dir *d, struct bitmap_entry *e, uint32_t flags,
		    uint64_t table_offset, uint32_t table_entries);

/* Entries that the table of a bitmap has for a disk of @size_bytes. */
static inline uint64_t bitmap_entries_for(uint64_t size_bytes, unsigned granularity_bits,
					  unsigned cluster_bits)
{
	uint64_t bits = div_up(size_bytes, (uint64_t)1 << granularity_bits);

	return div_up(div_up(bits, 8), (uint64_t)1 << cluster_bits);
}

#endif
