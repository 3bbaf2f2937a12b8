/* SPDX-License-Identifier: MIT */
/*
 * reclaim_known.c: what of an image is known at open to be in use, beside the tables that the search reads.
 *
 * Read from the file, before anything changes in it. As the checker has it, bitmaps whose autoclear bit is
 * clear are not there: somebody wrote without knowing them. Everything in a directory or table may be
 * hostile: what is broken ends the search before it begins, since nobody can tell what belongs to it.
 *
 * Bounds: the lists have their format's, of which a directory of more than KNOWN_DIRECTORY_MAX bytes, or
 * with tables of more than KNOWN_TABLES_MAX, is left alone; a bitmap's table is read in pieces.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/image.h"
#include "qcow2/snapshot.h"

#define KNOWN_DIRECTORY_MAX ((uint64_t)1 << 20)
/* Of all bitmaps' tables: those of 512 GiB of bitmaps, with clusters of 64 KiB. */
#define KNOWN_TABLES_MAX ((uint64_t)64 << 20)
#define PIECE_BYTES	 4096u

static void keep_range(struct qcow2_image *img, uint64_t hoff, uint64_t bytes)
{
	uint64_t first = hoff >> img->cluster_bits;

	reclaim_touch(&img->reclaim, first, div_up(hoff + bytes, img->cluster_bytes) - first);
}

/* ---- snapshots ---- */

static int known_snapshots(struct qcow2_image *img, bool *whole, struct error *err)
{
	struct reclaim *rc = &img->reclaim;
	struct snapshot_list l;
	int ret = snapshot_list_read(&l, img->st, &img->hdr, err);

	if (ret)
		return ret;
	rc->snapshots = calloc(max_of(l.count, 1u), sizeof(*rc->snapshots));
	if (!rc->snapshots)
		ret = error_set(err, -ENOMEM, "no memory to look for leaks");
	for (uint32_t i = 0; i < l.count && !ret; i++) {
		const struct snapshot *s = &l.v[i];

		*whole = *whole && snapshot_l1_valid(s, &img->hdr, img->st->size_bytes);
		if (!*whole)
			break;
		rc->snapshots[rc->nr_snapshots++] = (struct reclaim_l1){s->l1_offset, s->l1_entries};
		keep_range(img, s->l1_offset, (uint64_t)s->l1_entries * sizeof(be64_t));
	}
	if (l.count)
		keep_range(img, img->hdr.snapshots_offset, l.table_bytes);
	rc->shared = l.count;
	snapshot_list_free(&l);
	return ret;
}

/* ---- bitmaps ---- */

/* The clusters of a bitmap, and of its table. */
static int known_bitmap(struct qcow2_image *img, uint64_t hoff, uint64_t entries, bool *whole)
{
	const be64_t *table = img->reclaim.l1_buf;
	uint64_t per_piece = PIECE_BYTES / sizeof(be64_t);
	int ret = 0;

	if (!is_aligned(hoff, img->cluster_bytes) || hoff > img->st->size_bytes) {
		*whole = false;
		return 0;
	}
	keep_range(img, hoff, entries * sizeof(be64_t));
	for (uint64_t i = 0; i < entries && !ret && *whole; i++) {
		uint64_t entry;

		if (i % per_piece == 0)
			ret = storage_pread(img->st, hoff + i * sizeof(be64_t), img->reclaim.l1_buf,
					    PIECE_BYTES);
		entry = ret ? 0 : be64_get(table[i % per_piece]);
		*whole = *whole && !(entry & QCOW2_BITMAP_ENTRY_RESERVED);
		if (entry & QCOW2_BITMAP_ENTRY_OFFSET)
			keep_range(img, entry & QCOW2_BITMAP_ENTRY_OFFSET, img->cluster_bytes);
	}
	return ret;
}

static int known_directory(struct qcow2_image *img, const uint8_t *dir, uint64_t bytes, bool *whole)
{
	uint64_t at = 0, left = KNOWN_TABLES_MAX / sizeof(be64_t);
	int ret = 0;

	for (uint32_t i = 0; i < img->hdr.nb_bitmaps && !ret && *whole; i++) {
		struct qcow2_disk_bitmap d;
		uint64_t entries;

		if (bytes - at < sizeof(d)) {
			*whole = false;
			break;
		}
		memcpy(&d, dir + at, sizeof(d));
		at += align_up(sizeof(d) + (uint64_t)be32_get(d.extra_len) + be16_get(d.name_len), 8);
		entries = be32_get(d.table_entries);
		if (at > bytes || entries > left) {
			*whole = false;
			break;
		}
		left -= entries;
		ret = known_bitmap(img, be64_get(d.table_offset), entries, whole);
	}
	return ret;
}

static int known_bitmaps(struct qcow2_image *img, bool *whole, struct error *err)
{
	const struct qcow2_header *h = &img->hdr;
	uint64_t bytes = h->bitmap_directory_bytes;
	uint8_t *dir;
	int ret;

	if (!h->has_bitmaps_ext || !(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	if (bytes > KNOWN_DIRECTORY_MAX || !is_aligned(h->bitmap_directory_offset, img->cluster_bytes) ||
	    h->bitmap_directory_offset > img->st->size_bytes) {
		*whole = false;
		return 0;
	}
	dir = aligned_alloc(4096, align_up(max_of(bytes, (uint64_t)1), 4096));
	if (!dir)
		return error_set(err, -ENOMEM, "no memory to look for leaks");
	keep_range(img, h->bitmap_directory_offset, bytes);
	ret = storage_pread(img->st, h->bitmap_directory_offset, dir, align_up(bytes, 4096));
	if (!ret)
		ret = known_directory(img, dir, bytes, whole);
	free(dir);
	return ret ? error_set(err, ret, "%s: cannot read the bitmap directory: %s", img->st->name,
			       strerror(-ret))
		   : 0;
}

/* ---- all ---- */

int reclaim_known(struct qcow2_image *img, bool *whole, struct error *err)
{
	int ret;

	*whole = true;
	if (img->hdr.has_luks_ext)
		keep_range(img, img->hdr.luks_offset, img->hdr.luks_bytes);
	ret = known_snapshots(img, whole, err);
	return ret ? ret : known_bitmaps(img, whole, err);
}
