/* SPDX-License-Identifier: MIT */
/*
 * request.c: see request.h. Pure functions, so that all of it is covered by unit tests.
 *
 * The driver checks requests against the parameters that were set, so ublk_request_decode()
 * refusing one means that the two sides disagree; that is answered with an error, not with an
 * assertion, since a kernel is no part of this program.
 */
#include "ublk/request.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/math.h"

/* The sizes of a request's buffer, unless the target wants more. */
#define BUF_MAX (512 * KiB)
#define BUF_MIN (64 * KiB)

static uint8_t log2_of(uint64_t v)
{
	assert(is_pow2(v));
	return (uint8_t)__builtin_ctzll(v);
}

static uint32_t sectors_of(uint64_t bytes, uint64_t unit)
{
	uint64_t most = align_down((uint64_t)UINT32_MAX << UBLK_SECTOR_SHIFT, unit);

	return (uint32_t)(align_down(min_of(bytes, most), unit) >> UBLK_SECTOR_SHIFT);
}

static int limits_check(const struct target_limits *l, struct error *err)
{
	uint32_t page = (uint32_t)sysconf(_SC_PAGESIZE);

	assert(is_pow2(l->logical_block_bytes) && l->logical_block_bytes >= 512);
	assert(is_pow2(l->physical_block_bytes) && is_pow2(l->io_min_bytes));
	assert(l->physical_block_bytes >= l->logical_block_bytes);
	assert(!l->io_opt_bytes || is_pow2(l->io_opt_bytes));
	assert(is_aligned(l->size_bytes, l->logical_block_bytes));
	assert(!l->chunk_bytes || (is_pow2(l->chunk_bytes) && l->chunk_bytes >= l->logical_block_bytes));
	if (l->logical_block_bytes > page)
		return error_set(err, -EINVAL, "blocks of %u bytes are larger than a page",
				 l->logical_block_bytes);
	if (!l->size_bytes)
		return error_set(err, -EINVAL, "the device would have no size");
	if (l->size_bytes > INT64_MAX)
		return error_set(err, -EFBIG, "a block device cannot be that large");
	return 0;
}

int ublk_params_build(struct ublk_params *p, const struct target_limits *l, uint32_t buf_bytes,
		      struct error *err)
{
	int ret = limits_check(l, err);

	if (ret)
		return ret;
	assert(buf_bytes && is_aligned(buf_bytes, l->logical_block_bytes));
	memset(p, 0, sizeof(*p));
	p->len = UBLK_PARAMS_BYTES;
	p->types = UBLK_PARAM_BASIC;
	p->basic = (struct ublk_param_basic){
		.attrs = (l->read_only ? UBLK_ATTR_READ_ONLY : 0) |
			 (l->rotational ? UBLK_ATTR_ROTATIONAL : 0) |
			 (l->volatile_cache ? UBLK_ATTR_VOLATILE_CACHE : 0) |
			 (l->volatile_cache && l->fua ? UBLK_ATTR_FUA : 0),
		.logical_bs_shift = log2_of(l->logical_block_bytes),
		.physical_bs_shift = log2_of(l->physical_block_bytes),
		/* zero is no way to say "none": some drivers take it for one byte */
		.io_opt_shift =
			log2_of(l->io_opt_bytes ? l->io_opt_bytes : l->physical_block_bytes),
		.io_min_shift = log2_of(max_of(l->io_min_bytes, l->logical_block_bytes)),
		.max_sectors = buf_bytes >> UBLK_SECTOR_SHIFT,
		.chunk_sectors = l->chunk_bytes >> UBLK_SECTOR_SHIFT,
		.dev_sectors = l->size_bytes >> UBLK_SECTOR_SHIFT,
	};
	if (l->read_only)
		return 0;

	bool discard = l->discard_granularity && l->max_discard_bytes;
	if (!discard && !l->max_write_zeroes_bytes)
		return 0;
	p->types |= UBLK_PARAM_DISCARD;
	p->discard.max_discard_segments = 1;
	/* the driver wants a granularity even where there is nothing but WRITE_ZEROES */
	p->discard.discard_granularity =
		max_of(discard ? l->discard_granularity : 0, l->logical_block_bytes);
	if (discard)
		p->discard.max_discard_sectors =
			sectors_of(l->max_discard_bytes, l->logical_block_bytes);
	p->discard.max_write_zeroes_sectors =
		sectors_of(l->max_write_zeroes_bytes, l->logical_block_bytes);
	return 0;
}

void ublk_params_align(struct ublk_params *p, uint32_t memory_bytes)
{
	assert(is_pow2(memory_bytes));
	p->len = UBLK_PARAMS_DMA_BYTES;
	p->types |= UBLK_PARAM_DMA;
	p->dma.alignment = memory_bytes - 1;
}

int ublk_params_check(const struct ublk_params *want, const struct ublk_params *got,
		      struct error *err)
{
	const char *what = NULL;

	if ((got->types & want->types) != want->types)
		what = "types";
	else if (memcmp(&got->basic, &want->basic, sizeof(want->basic)) != 0)
		what = "basic";
	else if ((want->types & UBLK_PARAM_DISCARD) &&
		 memcmp(&got->discard, &want->discard, sizeof(want->discard)) != 0)
		what = "discard";
	else if ((want->types & UBLK_PARAM_DMA) && want->dma.alignment != got->dma.alignment)
		what = "dma";
	if (!what)
		return 0;
	return error_set(err, -EPROTO, "the ublk driver did not keep the parameters (%s)", what);
}

uint32_t ublk_buf_bytes(unsigned queues, unsigned depth, const struct target_limits *limits)
{
	uint64_t bytes = BUF_MAX, whole = min_of(limits->whole_bytes, UBLK_REQUEST_MAX_BYTES);

	if (limits->max_request_bytes)
		bytes = min_of(bytes, (uint64_t)limits->max_request_bytes);
	while (bytes > BUF_MIN && bytes * queues * depth > UBLK_REQUESTS_MAX_BYTES)
		bytes /= 2;
	bytes = max_of(bytes, whole);
	return (uint32_t)max_of(bytes, (uint64_t)limits->logical_block_bytes);
}

static int range_check(const struct blk_request *req, const struct target_limits *l, uint64_t most)
{
	uint64_t size_bytes;

	if (!req->len_bytes || req->len_bytes > most)
		return -EINVAL;
	if (!is_aligned(req->offset_bytes | req->len_bytes, l->logical_block_bytes))
		return -EINVAL;
	size_bytes = target_size(l);
	if (req->offset_bytes > size_bytes || req->len_bytes > size_bytes - req->offset_bytes)
		return -EINVAL;
	return 0;
}

int ublk_request_decode(struct blk_request *req, const struct ublk_io_desc *desc,
			const struct target_limits *l, uint32_t buf_bytes)
{
	unsigned op = desc->op_flags & 0xff;
	uint64_t most = UINT64_MAX;

	if (op != UBLK_IO_FLUSH && desc->start_sector > UINT64_MAX >> UBLK_SECTOR_SHIFT)
		return -EINVAL;
	req->flags = 0;
	req->offset_bytes = desc->start_sector << UBLK_SECTOR_SHIFT;
	req->len_bytes = (uint64_t)desc->nr_sectors << UBLK_SECTOR_SHIFT;
	if (l->read_only && op != UBLK_IO_READ && op != UBLK_IO_FLUSH)
		return -EROFS;
	switch (op) {
	case UBLK_IO_READ:
		req->op = BLK_READ;
		most = buf_bytes;
		break;
	case UBLK_IO_WRITE:
		req->op = BLK_WRITE;
		most = buf_bytes;
		break;
	case UBLK_IO_FLUSH:
		/* the block layer leaves a position in it that means nothing, such as -1 */
		req->op = BLK_FLUSH;
		req->offset_bytes = 0;
		req->len_bytes = 0;
		return 0;
	case UBLK_IO_DISCARD:
		if (!l->discard_granularity)
			return -EOPNOTSUPP;
		req->op = BLK_DISCARD;
		break;
	case UBLK_IO_WRITE_ZEROES:
		if (!l->max_write_zeroes_bytes)
			return -EOPNOTSUPP;
		req->op = BLK_WRITE_ZEROES;
		if (desc->op_flags & UBLK_IO_NOUNMAP)
			req->flags |= BLK_NOUNMAP;
		break;
	default:
		return -EOPNOTSUPP;
	}
	if ((desc->op_flags & UBLK_IO_FUA) && (op == UBLK_IO_WRITE || op == UBLK_IO_WRITE_ZEROES))
		req->flags |= BLK_FUA;
	return range_check(req, l, most);
}

int32_t ublk_request_result(const struct blk_request *req, int ret)
{
	assert(ret <= 0);
	if (!ret)
		/* never a short count: the driver takes it for the whole (and copies the rest as
		 * is) */
		return req->op == BLK_READ || req->op == BLK_WRITE ? (int32_t)req->len_bytes : 0;
	/*
	 * The block layer gives some codes a meaning of its own (-EAGAIN: submit again without
	 * blocking, -ENODEV and -EBADE: the path is gone); those that fit a finished request pass.
	 */
	switch (ret) {
	case -ENOSPC:
	case -EOPNOTSUPP:
	case -ETIMEDOUT:
	case -ENODATA:
	case -EILSEQ:
		return ret;
	default:
		return -EIO;
	}
}

size_t ublk_desc_map_bytes(unsigned depth, size_t desc_bytes)
{
	return align_up(depth * desc_bytes, (uint64_t)sysconf(_SC_PAGESIZE));
}

uint64_t ublk_desc_map_offset(unsigned queue, size_t desc_bytes)
{
	return (uint64_t)queue * ublk_desc_map_bytes(UBLK_MAX_DEPTH, desc_bytes);
}
