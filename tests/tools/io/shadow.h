/* SPDX-License-Identifier: MIT */
/*
 * shadow.h: what the guest must read: a copy of the disk in memory, kept beside the engine under test.
 *
 * Every write goes to the shadow when it is submitted; every read is compared when it completes. The
 * contents of a sector are not known, and not compared, while a write to it is in flight, and after
 * two writes to it overlapped in time or one failed, until it is written again alone. One thread.
 */
#ifndef TESTS_SHADOW_H
#define TESTS_SHADOW_H

#include <stdbool.h>
#include <stdint.h>

#define SHADOW_MAX_BYTES ((uint64_t)64 << 30)
#define SHADOW_EQUAL     UINT64_MAX

struct shadow;

/* All zeros; NULL if @size_bytes is above the bound or memory is short. */
struct shadow *shadow_create(uint64_t size_bytes);
void shadow_destroy(struct shadow *s); /* accepts NULL */
/*
 * Takes the contents from a raw file of at most the disk's size, and what is not known of them from
 * the file PATH.unknown, if there is one; 0 or -errno.
 */
int shadow_load(struct shadow *s, const char *path);
/* Writes both. What is in flight is not known. */
int shadow_save(const struct shadow *s, const char *path);

/* @data NULL: zeros. */
void shadow_write_begin(struct shadow *s, uint64_t offset_bytes, const void *data, uint64_t len_bytes);
void shadow_write_end(struct shadow *s, uint64_t offset_bytes, uint64_t len_bytes, bool failed);

/* A moment; a read takes one when it is submitted. */
uint64_t shadow_now(const struct shadow *s);
/* The offset of the first sector that is known since @since and differs, or SHADOW_EQUAL. */
uint64_t shadow_compare(const struct shadow *s, uint64_t offset_bytes, const void *data,
			uint64_t len_bytes, uint64_t since);

#endif
