/* SPDX-License-Identifier: MIT */
/*
 * util.c: the harness's memory; see util.h.
 */
#include "util.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memfault.h"

#define CHUNK_BYTES ((size_t)1 << 20)

struct arena_chunk {
	struct arena_chunk *next;
	size_t used, cap;
	_Alignas(16) char data[];
};

static void *need(void *p)
{
	if (!p) {
		fprintf(stderr, "sim: out of memory\n");
		exit(99);
	}
	return p;
}

void *sim_malloc(size_t bytes)
{
	void *p;

	memfault_exempt++;
	p = need(malloc(bytes ? bytes : 1));
	memfault_exempt--;
	return p;
}

void *sim_calloc(size_t n, size_t bytes)
{
	void *p;

	memfault_exempt++;
	p = need(calloc(n ? n : 1, bytes ? bytes : 1));
	memfault_exempt--;
	return p;
}

void *sim_realloc(void *old, size_t bytes)
{
	void *p;

	memfault_exempt++;
	p = need(realloc(old, bytes ? bytes : 1));
	memfault_exempt--;
	return p;
}

void *sim_memalign(size_t align, size_t bytes)
{
	void *p = NULL;

	memfault_exempt++;
	if (posix_memalign(&p, align, bytes))
		p = NULL;
	memfault_exempt--;
	return need(p);
}

void sim_free(void *p)
{
	free(p);
}

static struct arena_chunk *chunk_get(struct arena *a, size_t bytes)
{
	struct arena_chunk *c = a->spare;

	if (c && bytes <= c->cap) {
		a->spare = c->next;
	} else {
		size_t cap = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;

		c = sim_malloc(sizeof(*c) + cap);
		c->cap = cap;
	}
	c->used = 0;
	c->next = a->chunks;
	a->chunks = c;
	return c;
}

void *arena_alloc(struct arena *a, size_t bytes)
{
	struct arena_chunk *c = a->chunks;
	void *p;

	bytes = (bytes + 15) & ~(size_t)15;
	if (!c || c->cap - c->used < bytes)
		c = chunk_get(a, bytes);
	p = c->data + c->used;
	c->used += bytes;
	return p;
}

void arena_reset(struct arena *a)
{
	while (a->chunks) {
		struct arena_chunk *c = a->chunks;

		a->chunks = c->next;
		if (c->cap > CHUNK_BYTES) {
			sim_free(c);
			continue;
		}
		c->next = a->spare;
		a->spare = c;
	}
}

void arena_free(struct arena *a)
{
	arena_reset(a);
	while (a->spare) {
		struct arena_chunk *c = a->spare;

		a->spare = c->next;
		sim_free(c);
	}
}
