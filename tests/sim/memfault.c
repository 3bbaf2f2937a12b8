/* SPDX-License-Identifier: MIT */
/*
 * memfault.c: see memfault.h. Linked with --wrap for each function below.
 */
#include "memfault.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/types.h>

volatile unsigned memfault_exempt;

static bool armed;
static uint64_t count, fail_number;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
int __real_posix_memalign(void **out, size_t align, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
void *__real_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
int __wrap_posix_memalign(void **out, size_t align, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);

void memfault_arm(uint64_t fail_at)
{
	armed = true;
	count = 0;
	fail_number = fail_at;
}

uint64_t memfault_disarm(void)
{
	armed = false;
	return count;
}

static bool fails(void)
{
	if (!armed || memfault_exempt)
		return false;
	if (++count != fail_number)
		return false;
	errno = ENOMEM;
	return true;
}

void *__wrap_malloc(size_t bytes)
{
	return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
	return fails() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_realloc(void *p, size_t bytes)
{
	return fails() ? NULL : __real_realloc(p, bytes);
}

int __wrap_posix_memalign(void **out, size_t align, size_t bytes)
{
	return fails() ? ENOMEM : __real_posix_memalign(out, align, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
	return fails() ? NULL : __real_aligned_alloc(align, bytes);
}

void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return fails() ? MAP_FAILED : __real_mmap(addr, len, prot, flags, fd, off);
}
