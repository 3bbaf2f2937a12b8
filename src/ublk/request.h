/* SPDX-License-Identifier: MIT */
/*
 * request.h: between the driver's terms and ours: parameters of a device, descriptors of a request.
 * Nothing here does I/O.
 */
#ifndef UBLK_REQUEST_H
#define UBLK_REQUEST_H

#include "base/blk.h"
#include "base/error.h"
#include "target/target.h"
#include "ublk/uapi.h"

#define UBLK_SECTOR_SHIFT 9

/* The parameters of a device of these limits whose requests carry at most @buf_bytes. */
int ublk_params_build(struct ublk_params *params, const struct target_limits *limits,
		      uint32_t buf_bytes, struct error *err) must_check;

/* Requests' memory is to be aligned to @memory_bytes, as I/O is done with it. */
void ublk_params_align(struct ublk_params *params, uint32_t memory_bytes);

/* Whether what the driver kept is what it was given; says what is not. */
int ublk_params_check(const struct ublk_params *want, const struct ublk_params *got,
		      struct error *err) must_check;

#define UBLK_REQUEST_MAX_BYTES (2u << 20)    /* a whole cluster of qcow2's largest */
#define UBLK_REQUESTS_MAX_BYTES (256ull << 20) /* of all in flight */

/* How large one request's buffer is made: all of them stay under a bound, as long as each can be whole. */
uint32_t ublk_buf_bytes(unsigned queues, unsigned depth, const struct target_limits *limits);

/*
 * Fills in everything of @req but its buffer. -EOPNOTSUPP or -EINVAL for what a device of these
 * limits should never have been sent.
 */
int ublk_request_decode(struct blk_request *req, const struct ublk_io_desc *desc,
			const struct target_limits *limits, uint32_t buf_bytes) must_check;

/* What to commit for a request that ended with @ret. */
int32_t ublk_request_result(const struct blk_request *req, int ret);

/* The descriptors of one queue in the char device: their size, and where the mapping begins. */
size_t ublk_desc_map_bytes(unsigned depth, size_t desc_bytes);
uint64_t ublk_desc_map_offset(unsigned queue, size_t desc_bytes);

#endif
