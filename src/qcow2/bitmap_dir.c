/* SPDX-License-Identifier: MIT */
/* bitmap_dir.c: see bitmap_dir.h. */
#include "qcow2/bitmap_dir.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"
#include "qcow2/header.h"
#include "storage/storage.h"

static int broken(const struct storage *st, struct error *err, const char *what)
{
	return error_set(err, -EINVAL, "%s: the bitmap directory is broken: %s", st->name, what);
}

void bitmap_dir_free(struct bitmap_dir *d)
{
	for (uint32_t i = 0; d->v && i < d->count; i++)
		free(d->v[i].name);
	free(d->v);
	free(d->raw);
	*d = (struct bitmap_dir){0};
}

/* The limits of one entry by itself, which are QEMU's. */
static bool entry_valid(const struct qcow2_disk_bitmap *disk, const struct qcow2_header *h)
{
	uint64_t entries = be32_get(disk->table_entries), offset = be64_get(disk->table_offset);

	return entries && entries <= QCOW2_MAX_BITMAP_TABLE_ENTRIES &&
	       entries << h->cluster_bits <= QCOW2_MAX_BITMAP_BYTES && offset &&
	       is_aligned(offset, h->cluster_bytes) && offset < QCOW2_MAX_HOST_BYTES &&
	       disk->granularity_bits >= QCOW2_MIN_BITMAP_GRANULARITY_BITS &&
	       disk->granularity_bits <= QCOW2_MAX_BITMAP_GRANULARITY_BITS &&
	       !(be32_get(disk->flags) & QCOW2_BITMAP_FLAGS_RESERVED) &&
	       be16_get(disk->name_len) <= QCOW2_MAX_BITMAP_NAME_BYTES &&
	       disk->type == QCOW2_BITMAP_TYPE_DIRTY;
}

/* The entry at *@at, which goes on to the next one. */
static int entry_parse(struct bitmap_dir *d, struct bitmap_entry *e, const struct storage *st,
		       const struct qcow2_header *h, uint64_t *at, struct error *err)
{
	uint64_t left = h->bitmap_directory_bytes - *at, extra, len;
	struct qcow2_disk_bitmap disk;

	if (left < sizeof(disk))
		return broken(st, err, "it ends inside an entry");
	memcpy(&disk, d->raw + *at, sizeof(disk));
	extra = be32_get(disk.extra_len);
	len = sizeof(disk) + extra + be16_get(disk.name_len);
	if (align_up(len, 8) > left)
		return broken(st, err, "it ends inside an entry");
	if (!entry_valid(&disk, h))
		return broken(st, err, "an entry has a value that none can have");
	*e = (struct bitmap_entry){
		.at = (uint32_t)*at,
		.flags = be32_get(disk.flags),
		.table_offset = be64_get(disk.table_offset),
		.table_entries = be32_get(disk.table_entries),
		.granularity_bits = disk.granularity_bits,
		.extra = extra,
		.name = strndup((char *)d->raw + *at + sizeof(disk) + extra, be16_get(disk.name_len)),
	};
	*at += align_up(len, 8);
	return e->name ? 0 : error_set(err, -ENOMEM, "no memory for the bitmap directory");
}

static uint64_t table_end(const struct bitmap_entry *e)
{
	return e->table_offset + e->table_entries * sizeof(be64_t);
}

/* Names are unique (qcow2: "Bitmap directory"), and each has a table of its own. */
static int entries_differ(const struct bitmap_dir *d, const struct storage *st, struct error *err)
{
	for (uint32_t i = 0; i < d->count; i++) {
		for (uint32_t k = 0; k < i; k++) {
			const struct bitmap_entry *a = &d->v[i], *b = &d->v[k];

			if (!strcmp(a->name, b->name))
				return broken(st, err, "two bitmaps have the same name");
			if (a->table_offset < table_end(b) && b->table_offset < table_end(a))
				return broken(st, err, "two bitmaps have the same table");
		}
	}
	return 0;
}

static int parse(struct bitmap_dir *d, struct storage *st, const struct qcow2_header *h,
		 struct error *err)
{
	uint64_t at = 0;
	int ret = 0;

	d->v = calloc(h->nb_bitmaps, sizeof(*d->v));
	if (!d->v)
		return error_set(err, -ENOMEM, "no memory for the bitmap directory");
	while (!ret && d->count < h->nb_bitmaps)
		ret = entry_parse(d, &d->v[d->count++], st, h, &at, err);
	if (!ret && at != h->bitmap_directory_bytes)
		ret = broken(st, err, "it has not as many entries as the header says");
	return ret ? ret : entries_differ(d, st, err);
}

int bitmap_dir_read(struct bitmap_dir *d, struct storage *st, const struct qcow2_header *h,
		    struct error *err)
{
	uint64_t end;
	int ret;

	*d = (struct bitmap_dir){0};
	if (h->bitmap_directory_bytes > BITMAP_DIR_MAX_BYTES || h->nb_bitmaps > BITMAP_DIR_MAX_COUNT)
		return error_set(err, -EFBIG,
				 "%s: there are more than %u dirty bitmaps, or their directory has more "
				 "than 1 MiB",
				 st->name, BITMAP_DIR_MAX_COUNT);
	if (!h->bitmap_directory_bytes || !h->nb_bitmaps || !h->bitmap_directory_offset ||
	    !checked_add(h->bitmap_directory_offset, h->bitmap_directory_bytes, &end) ||
	    end > st->size_bytes)
		return broken(st, err, "it is empty, or lies outside the file");
	d->raw_bytes = align_up(h->bitmap_directory_bytes, st->block_bytes);
	d->raw = aligned_alloc(4096, align_up(d->raw_bytes, 4096));
	if (!d->raw)
		return error_set(err, -ENOMEM, "no memory for the bitmap directory");
	ret = storage_pread(st, h->bitmap_directory_offset, d->raw, d->raw_bytes);
	ret = ret ? error_set(err, ret, "%s: cannot read the bitmap directory: %s", st->name,
			      error_text(NULL, ret))
		  : parse(d, st, h, err);
	if (ret)
		bitmap_dir_free(d);
	return ret;
}

void bitmap_dir_set(struct bitmap_dir *d, struct bitmap_entry *e, uint32_t flags,
		    uint64_t table_offset, uint32_t table_entries)
{
	struct qcow2_disk_bitmap disk;

	memcpy(&disk, d->raw + e->at, sizeof(disk));
	disk.flags = be32_make(flags);
	disk.table_offset = be64_make(table_offset);
	disk.table_entries = be32_make(table_entries);
	memcpy(d->raw + e->at, &disk, sizeof(disk));
	e->flags = flags;
	e->table_offset = table_offset;
	e->table_entries = table_entries;
}

int qcow2_bitmap_list(struct storage *storage,
		      void (*each)(void *arg, const struct qcow2_bitmap *bitmap), void *arg,
		      struct error *err)
{
	struct qcow2_header *h = malloc(sizeof(*h));
	struct bitmap_dir d = {0};
	int ret;

	if (!h)
		return error_set(err, -ENOMEM, "%s: no memory for the header", storage->name);
	ret = qcow2_header_read(storage, h, err);
	if (!ret && h->has_bitmaps_ext && h->autoclear & QCOW2_AUTOCLEAR_BITMAPS)
		ret = bitmap_dir_read(&d, storage, h, err);
	for (uint32_t i = 0; !ret && i < d.count; i++) {
		const struct bitmap_entry *e = &d.v[i];
		const struct qcow2_bitmap bitmap = {
			.name = e->name,
			.granularity_bytes = (uint64_t)1 << e->granularity_bits,
			.in_use = e->flags & QCOW2_BITMAP_IN_USE,
			.enabled = e->flags & QCOW2_BITMAP_AUTO,
		};

		each(arg, &bitmap);
	}
	bitmap_dir_free(&d);
	free(h);
	return ret;
}
