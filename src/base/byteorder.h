/* SPDX-License-Identifier: MIT */
/*
 * byteorder.h: big-endian integers as types of their own, so that using one raw does not compile.
 */
#ifndef BASE_BYTEORDER_H
#define BASE_BYTEORDER_H

#include <endian.h>
#include <stdint.h>

typedef struct {
	uint16_t raw;
} be16_t;

typedef struct {
	uint32_t raw;
} be32_t;

typedef struct {
	uint64_t raw;
} be64_t;

static inline uint16_t be16_get(be16_t v)
{
	return be16toh(v.raw);
}

static inline uint32_t be32_get(be32_t v)
{
	return be32toh(v.raw);
}

static inline uint64_t be64_get(be64_t v)
{
	return be64toh(v.raw);
}

static inline be16_t be16_make(uint16_t v)
{
	return (be16_t){htobe16(v)};
}

static inline be32_t be32_make(uint32_t v)
{
	return (be32_t){htobe32(v)};
}

static inline be64_t be64_make(uint64_t v)
{
	return (be64_t){htobe64(v)};
}

#endif
