/* SPDX-License-Identifier: MIT */
/*
 * mutate.c: a mutator that knows where an image keeps its tables.
 *
 * Flipping random bits mostly makes images that are refused by the header. This one picks a field of
 * the header, or an entry of the L1 table, of an L2 table, of the refcount table, of a refcount block
 * or of the snapshot table, and gives it a value that is likely to matter: the place of another table,
 * the end of the file, a reserved bit, a limit and its neighbours. It believes the header as far as
 * it leads inside the file. Now and then libFuzzer's own mutations are used. The magic stays.
 */
#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

struct mutator {
	uint8_t *data;
	size_t size;
	uint64_t state;
};

/* The header's fields: offset and bytes. */
static const struct {
	uint8_t offset, bytes;
} fields[] = {
	{4, 4},	 {8, 8},  {16, 4}, {20, 4}, {24, 8}, {32, 4}, {36, 4},	{40, 8},
	{48, 8}, {56, 4}, {60, 4}, {64, 8}, {72, 8}, {80, 8}, {88, 8},	{96, 4},
	{100, 4}, {104, 1}, {112, 4}, {116, 4},
};

static uint64_t next(struct mutator *m)
{
	uint64_t z = m->state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint64_t below(struct mutator *m, uint64_t n)
{
	return n ? next(m) % n : 0;
}

static bool inside(const struct mutator *m, uint64_t at, uint64_t len)
{
	return at <= m->size && len <= m->size - at;
}

static uint64_t get64(const struct mutator *m, uint64_t at)
{
	uint64_t v = 0;

	if (inside(m, at, 8))
		memcpy(&v, m->data + at, 8);
	return be64toh(v);
}

static uint32_t get32(const struct mutator *m, uint64_t at)
{
	uint32_t v = 0;

	if (inside(m, at, 4))
		memcpy(&v, m->data + at, 4);
	return be32toh(v);
}

/* The low @bytes of @v, big endian. */
static void put(struct mutator *m, uint64_t at, unsigned bytes, uint64_t v)
{
	if (!inside(m, at, bytes))
		return;
	for (unsigned i = 0; i < bytes; i++)
		m->data[at + i] = v >> (8 * (bytes - 1 - i));
}

static unsigned cluster_bits(const struct mutator *m)
{
	uint32_t bits = get32(m, 20);

	return bits >= 9 && bits <= 21 ? bits : 16;
}

static uint64_t clusters(const struct mutator *m)
{
	return (m->size >> cluster_bits(m)) + 1;
}

/* A host offset that might be in a table. */
static uint64_t some_offset(struct mutator *m)
{
	unsigned bits = cluster_bits(m);

	switch (below(m, 9)) {
	case 0: return 0;
	case 1: return get64(m, 40);
	case 2: return get64(m, 48);
	case 3: return get64(m, get64(m, 40)) & 0x00fffffffffffe00;
	case 4: return get64(m, get64(m, 48));
	case 5: return (uint64_t)clusters(m) << bits;
	case 6: return below(m, clusters(m)) << bits | 512;
	case 7: return (uint64_t)1 << (bits + below(m, 63 - bits));
	default: return below(m, clusters(m)) << bits;
	}
}

static uint64_t some_entry(struct mutator *m, uint64_t old)
{
	switch (below(m, 10)) {
	case 0: return 0;
	case 1: return old ^ (uint64_t)1 << below(m, 64);
	case 2: return old ^ (uint64_t)1 << 63;
	case 3: return old ^ 1;
	case 4: return some_offset(m);
	case 5: return some_offset(m) | 1 | (uint64_t)1 << 63;
	case 6: return some_offset(m) | (uint64_t)1 << 62 | below(m, 64) << 54;
	case 7: return UINT64_MAX;
	default: return some_offset(m) | (uint64_t)1 << 63;
	}
}

static uint64_t some_number(struct mutator *m, uint64_t old)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 3, 7, 8, 9, 16, 21, 22, 63, 64, 104, 112, 512, 1023, 1024, 4096, 65536,
		0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff, 0xffffffffffffffff,
	};

	switch (below(m, 6)) {
	case 0: return old + 1;
	case 1: return old - 1;
	case 2: return old ^ (uint64_t)1 << below(m, 64);
	case 3: return some_offset(m);
	default: return numbers[below(m, sizeof(numbers) / sizeof(numbers[0]))];
	}
}

static void mutate_header(struct mutator *m)
{
	unsigned i = below(m, sizeof(fields) / sizeof(fields[0]));
	uint64_t old = fields[i].bytes == 8 ? get64(m, fields[i].offset) : get32(m, fields[i].offset);

	put(m, fields[i].offset, fields[i].bytes, some_number(m, old));
}

static void mutate_entry(struct mutator *m, uint64_t table, uint64_t entries)
{
	uint64_t at = table + below(m, entries) * 8;

	if (at >= 8)
		put(m, at, 8, some_entry(m, get64(m, at)));
}

static uint64_t l1_entries(const struct mutator *m)
{
	uint32_t n = get32(m, 36);

	return n < 4096 ? n : 4096;
}

static void mutate_l2(struct mutator *m)
{
	uint64_t at = get64(m, 40) + below(m, l1_entries(m)) * 8;
	uint64_t table = get64(m, at) & 0x00fffffffffffe00;
	uint64_t entries = (uint64_t)1 << (cluster_bits(m) - 3);

	if (table)
		mutate_entry(m, table, below(m, 2) && entries > 16 ? 16 : entries);
}

/* Refcounts live in bytes here, whatever their width. */
static void mutate_refcounts(struct mutator *m)
{
	uint64_t block = get64(m, get64(m, 48) + below(m, 4) * 8);
	uint64_t at = block + below(m, below(m, 2) ? 64 : (uint64_t)1 << cluster_bits(m));
	static const uint8_t values[] = {0, 1, 2, 3, 0x7f, 0x80, 0xff};

	if (block >= 512)
		put(m, at, 1, values[below(m, sizeof(values))]);
}

static void mutate_snapshots(struct mutator *m)
{
	uint64_t table = get64(m, 64);

	if (table >= 512)
		put(m, table + below(m, 24) * 4, 4, some_number(m, get32(m, table)));
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	static const uint8_t magic[4] = {'Q', 'F', 'I', 0xfb};
	struct mutator m = {.data = data, .size = size, .state = seed};
	unsigned count = 1 + below(&m, 4);

	if (size < 72 || below(&m, 12) == 0)
		return LLVMFuzzerMutate(data, size, max_size);
	for (unsigned i = 0; i < count; i++) {
		switch (below(&m, 10)) {
		case 0: mutate_header(&m); break;
		case 1: mutate_entry(&m, get64(&m, 40), l1_entries(&m)); break;
		case 2:
		case 3:
		case 4: mutate_l2(&m); break;
		case 5: mutate_entry(&m, get64(&m, 48), 8); break;
		case 6:
		case 7: mutate_refcounts(&m); break;
		case 8: mutate_snapshots(&m); break;
		default: /* the operations, see fuzz_control(), and changes of the log */
			put(&m, m.size - 1 - below(&m, 80), 1, next(&m));
			break;
		}
	}
	if (below(&m, 20) == 0)
		m.size -= below(&m, m.size / 2);
	memcpy(data, magic, m.size < 4 ? m.size : 4);
	return m.size;
}
