// SPDX-License-Identifier: MIT
/* secret.c: see secret.h; a mapping of its own for each, so that locks and advice are its own. */
#include "base/secret.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "base/math.h"

#define PAGE_BYTES 4096

static size_t mapped_bytes(size_t capacity)
{
	return align_up(capacity, PAGE_BYTES);
}

struct secret *secret_create(size_t capacity)
{
	struct secret *s = calloc(1, sizeof(*s));

	assert(capacity);
	if (!s)
		return NULL;
	s->data = mmap(NULL, mapped_bytes(capacity), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (s->data == MAP_FAILED) {
		free(s);
		return NULL;
	}
	s->capacity = capacity;
	madvise(s->data, mapped_bytes(capacity), MADV_DONTDUMP);
	secret_relock(s);
	return s;
}

void secret_relock(const struct secret *s)
{
	/* A process without the right to lock as much goes on: the other measures hold. */
	(void)!mlock(s->data, mapped_bytes(s->capacity));
}

void secret_forget(struct secret *s)
{
	secret_wipe(s->data, s->capacity);
	s->bytes = 0;
}

void secret_destroy(struct secret *s)
{
	if (!s)
		return;
	secret_wipe(s->data, s->capacity);
	munmap(s->data, mapped_bytes(s->capacity));
	free(s);
}

void secret_wipe(void *data, size_t bytes)
{
	explicit_bzero(data, bytes);
}

void secret_protect_process(void)
{
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}
