/* SPDX-License-Identifier: MIT */
/*
 * image.c: access to an image in memory; see bad.h. It trusts the good image it is given, and stops
 * the program where a case reaches outside of it: then the case is wrong.
 */
#include "bad.h"

#include <assert.h>
#include <endian.h>
#include <stdlib.h>
#include <string.h>

static uint8_t *place(const struct image *img, uint64_t at, size_t len)
{
	assert(at <= img->len && len <= img->len - at);
	return img->data + at;
}

uint16_t get16(const struct image *img, uint64_t at)
{
	uint16_t v;

	memcpy(&v, place(img, at, sizeof(v)), sizeof(v));
	return be16toh(v);
}

uint32_t get32(const struct image *img, uint64_t at)
{
	uint32_t v;

	memcpy(&v, place(img, at, sizeof(v)), sizeof(v));
	return be32toh(v);
}

uint64_t get64(const struct image *img, uint64_t at)
{
	uint64_t v;

	memcpy(&v, place(img, at, sizeof(v)), sizeof(v));
	return be64toh(v);
}

void set8(struct image *img, uint64_t at, uint8_t v)
{
	*place(img, at, 1) = v;
}

void set16(struct image *img, uint64_t at, uint16_t v)
{
	v = htobe16(v);
	memcpy(place(img, at, sizeof(v)), &v, sizeof(v));
}

void set32(struct image *img, uint64_t at, uint32_t v)
{
	v = htobe32(v);
	memcpy(place(img, at, sizeof(v)), &v, sizeof(v));
}

void set64(struct image *img, uint64_t at, uint64_t v)
{
	v = htobe64(v);
	memcpy(place(img, at, sizeof(v)), &v, sizeof(v));
}

void resize(struct image *img, size_t len)
{
	if (len > img->cap) {
		img->data = realloc(img->data, len);
		assert(img->data);
		img->cap = len;
	}
	if (len > img->len)
		memset(img->data + img->len, 0, len - img->len);
	img->len = len;
}

uint64_t end_cluster(const struct image *img)
{
	return (img->len + GOOD_CLUSTER - 1) / GOOD_CLUSTER * GOOD_CLUSTER;
}

uint64_t append_cluster(struct image *img)
{
	uint64_t at = end_cluster(img);

	resize(img, at + GOOD_CLUSTER);
	set16(img, refcount_at(img, at), 1);
	return at;
}

#define BLOCK_COVERS ((uint64_t)GOOD_CLUSTER / 2 * GOOD_CLUSTER) /* bytes of file */

/* A block for @index; where there is none, at the end of the file, which an earlier one may describe. */
static void need_refblock(struct image *img, unsigned index)
{
	uint64_t at;

	if (get64(img, rt_at(img, index)))
		return;
	at = end_cluster(img);
	resize(img, at + GOOD_CLUSTER);
	set64(img, rt_at(img, index), at);
	need_refblock(img, at / BLOCK_COVERS);
	set16(img, refcount_at(img, at), 1);
}

void use_range(struct image *img, uint64_t at, uint64_t len)
{
	for (uint64_t end = at + len; at < end; at += GOOD_CLUSTER) {
		need_refblock(img, at / BLOCK_COVERS);
		set16(img, refcount_at(img, at), 1);
	}
}

uint64_t l1_at(const struct image *img, unsigned index)
{
	assert(index < get32(img, F_L1_SIZE));
	return get64(img, F_L1_OFFSET) + index * 8;
}

uint64_t l2_table(const struct image *img, unsigned l1_index)
{
	uint64_t table = get64(img, l1_at(img, l1_index)) & OFFSET_MASK;

	assert(table);
	return table;
}

uint64_t l2_at(const struct image *img, uint64_t guest)
{
	return l2_table(img, guest / GOOD_L2_COVERS) + guest % GOOD_L2_COVERS / GOOD_CLUSTER * 8;
}

uint64_t rt_at(const struct image *img, unsigned index)
{
	return get64(img, F_RT_OFFSET) + index * 8;
}

uint64_t refblock(const struct image *img, unsigned index)
{
	uint64_t block = get64(img, rt_at(img, index));

	assert(block);
	return block;
}

uint64_t refcount_at(const struct image *img, uint64_t host)
{
	uint64_t index = host / GOOD_CLUSTER, per_block = GOOD_CLUSTER / 2;

	return refblock(img, index / per_block) + index % per_block * 2;
}
