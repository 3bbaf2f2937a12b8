/* SPDX-License-Identifier: MIT */
/*
 * table.c: the resident tables, L1 and refcount table: see struct table in image.h.
 *
 * An entry goes live -> disk[] (at a pass's cut) -> file (in the pass's step). A block whose write
 * failed keeps its bit and is written by the next pass.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "qcow2/image.h"

static bool bit_get(const uint64_t *map, uint64_t i)
{
	return map[i / 64] >> (i % 64) & 1;
}

static void bit_set(uint64_t *map, uint64_t i)
{
	map[i / 64] |= (uint64_t)1 << (i % 64);
}

static void bit_clear(uint64_t *map, uint64_t i)
{
	map[i / 64] &= ~((uint64_t)1 << (i % 64));
}

int table_alloc(struct table *t, uint64_t offset_bytes, uint64_t entries, uint64_t max_entries,
		uint32_t block_bytes)
{
	uint64_t max_bytes = align_up(max_of(max_entries, (uint64_t)1) * sizeof(be64_t), 4096);

	assert(entries <= max_entries);
	*t = (struct table){.max_bytes = max_bytes};
	/* untouched pages of these cost nothing */
	t->live = calloc(max_bytes / sizeof(be64_t), sizeof(*t->live));
	t->disk = mmap(NULL, max_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (t->disk == MAP_FAILED)
		t->disk = NULL;
	t->pending = calloc(div_up(max_bytes / sizeof(be64_t), 64), sizeof(uint64_t));
	t->write = calloc(div_up(max_bytes / block_bytes, 64), sizeof(uint64_t));
	if (!t->live || !t->disk || !t->pending || !t->write) {
		table_free(t);
		return -ENOMEM;
	}
	t->offset_bytes = offset_bytes;
	t->entries = entries;
	t->disk_bytes = align_up(entries * sizeof(be64_t), block_bytes);
	return 0;
}

void table_move(struct table *t, uint64_t offset_bytes, uint64_t entries, uint32_t block_bytes)
{
	assert(!t->pending_count && !t->write_count && entries >= t->entries);
	t->offset_bytes = offset_bytes;
	t->entries = entries;
	t->disk_bytes = align_up(entries * sizeof(be64_t), block_bytes);
	assert(t->disk_bytes <= t->max_bytes);
	for (uint64_t i = 0; i < entries; i++)
		t->disk[i] = be64_make(table_get(t, i));
}

void table_free(struct table *t)
{
	free((void *)t->live);
	if (t->disk)
		munmap(t->disk, t->max_bytes);
	free(t->pending);
	free(t->write);
	*t = (struct table){0};
}

int table_read(struct table *t, struct qcow2_image *img, const char *name, uint64_t offset_bytes,
	       uint64_t entries, uint64_t max_entries, struct error *err)
{
	int ret = table_alloc(t, offset_bytes, entries, max_entries, img->st->block_bytes);

	if (ret)
		return error_set(err, ret, "no memory for %s of %llu entries", name,
				 (unsigned long long)entries);
	if (!entries)
		return 0;
	ret = storage_pread(img->st, offset_bytes, t->disk, t->disk_bytes);
	if (ret)
		return error_set(err, ret, "cannot read %s at offset %#llx: %s", name,
				 (unsigned long long)offset_bytes, error_text(NULL, ret));
	for (uint64_t i = 0; i < entries; i++)
		atomic_store_explicit(&t->live[i], be64_get(t->disk[i]), memory_order_relaxed);
	return 0;
}

void table_set(struct table *t, struct qcow2_image *img, uint64_t index, uint64_t value)
{
	assert(index < t->entries);
	atomic_store_explicit(&t->live[index], value, memory_order_release);
	if (!bit_get(t->pending, index)) {
		bit_set(t->pending, index);
		t->pending_count++;
	}
	image_metadata_dirtied(img);
}

void table_cut(struct table *t, uint32_t block_bytes)
{
	for (uint64_t w = 0; t->pending_count; w++) {
		while (t->pending[w]) {
			uint64_t i = w * 64 + (unsigned)__builtin_ctzll(t->pending[w]);
			uint64_t block = i * sizeof(be64_t) / block_bytes;

			t->disk[i] = be64_make(table_get(t, i));
			bit_clear(t->pending, i);
			t->pending_count--;
			if (!bit_get(t->write, block)) {
				bit_set(t->write, block);
				t->write_count++;
			}
		}
	}
}

int table_write(struct table *t, struct qcow2_image *img, bool *wrote)
{
	uint32_t block_bytes = img->st->block_bytes;
	uint64_t blocks = t->disk_bytes / block_bytes;

	for (uint64_t b = 0; b < blocks && t->write_count; b++) {
		uint64_t first = b;
		int ret;

		if (!t->write[b / 64]) {
			b |= 63;
			continue;
		}
		while (b < blocks && bit_get(t->write, b))
			b++;
		if (b == first)
			continue;
		ret = storage_pwrite(img->st, t->offset_bytes + first * block_bytes,
				     (uint8_t *)t->disk + first * block_bytes,
				     (b - first) * block_bytes);
		if (ret)
			return ret;
		*wrote = true;
		for (uint64_t i = first; i < b; i++)
			bit_clear(t->write, i);
		t->write_count -= b - first;
	}
	return 0;
}
