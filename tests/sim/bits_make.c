/* SPDX-License-Identifier: MIT */
/*
 * bits_make.c: dirty bitmaps are put into a new image; see bits.h. By the engine's allocator, and apart from the
 * rest, whose headers do not go with the engine's own.
 */
#include <string.h>

#include "bits.h"
#include "qcow2/alloc.h"
#include "qcow2/image.h"

#define HEADER_LENGTH 112 /* as create makes it */
#define IN_USE 1u
#define AUTO 2u

/* A table of @entries, of which some have a cluster with some bits. */
static int make_table(struct qcow2_image *img, struct rng *rng, uint64_t entries, uint64_t *table)
{
	uint64_t clusters = div_up(entries * 8, img->cluster_bytes), first;
	uint8_t *mem = sim_memalign(4096, max_of(img->cluster_bytes, 4096u));
	int ret = alloc_contiguous(img, clusters, &first);

	*table = first << img->cluster_bits;
	if (!ret)
		ret = image_write_zeros(img, *table, clusters << img->cluster_bits);
	for (uint64_t i = 0; !ret && i < min_of(entries, (uint64_t)img->cluster_bytes / 8); i++) {
		uint64_t hcluster, at = i * 8;
		be64_t entry;

		if (!rng_chance(rng, 30))
			continue;
		ret = alloc_contiguous(img, 1, &hcluster);
		memset(mem, 0, img->cluster_bytes);
		mem[0] = i + 1 < entries ? rng_next(rng) : rng_below(rng, 2);
		if (!ret)
			ret = storage_pwrite(img->st, hcluster << img->cluster_bits, mem, img->cluster_bytes);
		if (!ret)
			ret = storage_pread(img->st, align_down(*table + at, img->st->block_bytes), mem,
					    img->st->block_bytes);
		entry = be64_make(hcluster << img->cluster_bits);
		memcpy(mem + (*table + at) % img->st->block_bytes, &entry, 8);
		if (!ret)
			ret = storage_pwrite(img->st, align_down(*table + at, img->st->block_bytes), mem,
					     img->st->block_bytes);
	}
	sim_free(mem);
	return ret;
}

static int make_directory(struct qcow2_image *img, unsigned bitmaps, struct rng *rng,
			  uint64_t *directory)
{
	uint8_t *mem = sim_memalign(4096, max_of(img->cluster_bytes, 4096u));
	uint64_t hcluster = 0;
	int ret = 0;

	memset(mem, 0, img->cluster_bytes);
	for (unsigned i = 0; !ret && i < bitmaps; i++) {
		unsigned g = rng_range(rng, 9, 14);
		uint64_t table, entries = div_up(div_up(div_up(img->size_bytes, (uint64_t)1 << g), 8),
						 img->cluster_bytes);
		struct qcow2_disk_bitmap disk;

		ret = make_table(img, rng, entries, &table);
		disk = (struct qcow2_disk_bitmap){
			.table_offset = be64_make(table),
			.table_entries = be32_make((uint32_t)entries),
			/* the first is enabled and valid; others may be disabled, or inconsistent */
			.flags = be32_make((i && rng_chance(rng, 40) ? 0 : AUTO) |
					   (i && rng_chance(rng, 20) ? IN_USE : 0)),
			.type = 1,
			.granularity_bits = (uint8_t)g,
			.name_len = be16_make(2),
		};
		memcpy(mem + i * 32, &disk, sizeof(disk));
		mem[i * 32 + 24] = 'b';
		mem[i * 32 + 25] = (uint8_t)('0' + i);
	}
	if (!ret)
		ret = alloc_contiguous(img, 1, &hcluster);
	*directory = hcluster << img->cluster_bits;
	if (!ret)
		ret = storage_pwrite(img->st, *directory, mem, img->cluster_bytes);
	sim_free(mem);
	return ret;
}

/* The extension, in place of the table of feature names, which nobody needs: in the smallest cluster there is
 * no room for both. */
static int make_extension(struct qcow2_image *img, unsigned bitmaps, uint64_t directory)
{
	_Alignas(4096) uint8_t head[4096];
	const struct qcow2_disk_bitmaps_ext ext = {.nb_bitmaps = be32_make(bitmaps),
						   .directory_size = be64_make(bitmaps * 32),
						   .directory_offset = be64_make(directory)};
	uint32_t len = img->st->block_bytes;
	int ret = storage_pread(img->st, 0, head, len);
	struct qcow2_disk_extension at;
	unsigned end = HEADER_LENGTH;

	for (;; end += sizeof(at) + align_up(be32_get(at.len_bytes), 8)) {
		memcpy(&at, head + end, sizeof(at));
		if (!be32_get(at.type) || be32_get(at.type) == QCOW2_EXT_FEATURE_NAMES)
			break;
	}
	memset(head + end, 0, SECTOR_BYTES - end);
	at = (struct qcow2_disk_extension){be32_make(QCOW2_EXT_BITMAPS), be32_make(sizeof(ext))};
	memcpy(head + end, &at, sizeof(at));
	memcpy(head + end + sizeof(at), &ext, sizeof(ext));
	head[95] |= 1; /* the autoclear bit */
	return ret ? ret : storage_pwrite(img->st, 0, head, len);
}

int bits_make(struct storage *st, unsigned bitmaps, uint64_t seed, struct error *err)
{
	struct qcow2_options opts = {.no_lock = true, .tables_only = true};
	struct rng rng = rng_make(seed, 0xb175, 0);
	struct qcow2_image *img;
	uint64_t directory = 0;
	int ret = qcow2_open(&img, st, &opts, err), close_ret;

	if (ret) {
		storage_close(st);
		return ret;
	}
	ret = make_directory(img, bitmaps, &rng, &directory);
	if (!ret)
		ret = image_settle(img);
	if (!ret)
		ret = make_extension(img, bitmaps, directory);
	if (ret)
		error_set(err, ret, "bitmaps: %s", strerror(-ret));
	close_ret = qcow2_close(img, ret ? NULL : err);
	return ret ? ret : close_ret;
}
