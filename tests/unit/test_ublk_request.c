/* SPDX-License-Identifier: MIT */
/*
 * proves: command codes are the kernel's; a target's limits become the right parameters; a driver's
 * request is taken apart rightly or refused; and no result is committed short. (Layouts are
 * asserted in uapi.h.)
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/math.h"
#include "ublk/request.h"

static const struct target_limits disk = {
	.size_bytes = 1 * GiB,
	.logical_block_bytes = 512,
	.physical_block_bytes = 4096,
	.io_min_bytes = 4096,
	.io_opt_bytes = 65536,
	.discard_granularity = 65536,
	.max_discard_bytes = 1 * GiB,
	.max_write_zeroes_bytes = 1 * GiB,
	.max_queues = 4,
	.volatile_cache = true,
	.fua = true,
};

static void test_codes(void **state)
{
	/* written out, as the kernel's documentation and strace show them */
	assert_int_equal(UBLK_OP_GET_QUEUE_AFFINITY, 0x80207501u);
	assert_int_equal(UBLK_OP_GET_DEV_INFO, 0x80207502u);
	assert_int_equal(UBLK_OP_ADD_DEV, 0xc0207504u);
	assert_int_equal(UBLK_OP_DEL_DEV, 0xc0207505u);
	assert_int_equal(UBLK_OP_START_DEV, 0xc0207506u);
	assert_int_equal(UBLK_OP_STOP_DEV, 0xc0207507u);
	assert_int_equal(UBLK_OP_SET_PARAMS, 0xc0207508u);
	assert_int_equal(UBLK_OP_GET_PARAMS, 0x80207509u);
	assert_int_equal(UBLK_OP_START_USER_RECOVERY, 0xc0207510u);
	assert_int_equal(UBLK_OP_END_USER_RECOVERY, 0xc0207511u);
	assert_int_equal(UBLK_OP_GET_DEV_INFO2, 0x80207512u);
	assert_int_equal(UBLK_OP_GET_FEATURES, 0x80207513u);
	assert_int_equal(UBLK_OP_DEL_DEV_ASYNC, 0x80207514u);
	assert_int_equal(UBLK_OP_FETCH_REQ, 0xc0107520u);
	assert_int_equal(UBLK_OP_COMMIT_AND_FETCH_REQ, 0xc0107521u);
}

static void test_params(void **state)
{
	struct error err = {0};
	struct ublk_params p;

	assert_int_equal(ublk_params_build(&p, &disk, 512 * KiB, &err), 0);
	assert_int_equal(p.len, 60);
	assert_int_equal(p.types, UBLK_PARAM_BASIC | UBLK_PARAM_DISCARD);
	assert_int_equal(p.basic.attrs, UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA);
	assert_int_equal(p.basic.logical_bs_shift, 9);
	assert_int_equal(p.basic.physical_bs_shift, 12);
	assert_int_equal(p.basic.io_min_shift, 12);
	assert_int_equal(p.basic.io_opt_shift, 16);
	assert_int_equal(p.basic.max_sectors, 1024);
	assert_int_equal(p.basic.chunk_sectors, 0);
	assert_int_equal(p.basic.virt_boundary_mask, 0);
	assert_int_equal(p.basic.dev_sectors, 1 * GiB / 512);
	assert_int_equal(p.discard.discard_granularity, 65536);
	assert_int_equal(p.discard.max_discard_sectors, 1 * GiB / 512);
	assert_int_equal(p.discard.max_write_zeroes_sectors, 1 * GiB / 512);
	assert_int_equal(p.discard.max_discard_segments, 1);
}

static void test_params_read_only(void **state)
{
	struct target_limits l = disk;
	struct ublk_params p;

	l.read_only = true;
	l.volatile_cache = false;
	l.rotational = true;
	assert_int_equal(ublk_params_build(&p, &l, 512 * KiB, NULL), 0);
	assert_int_equal(p.basic.attrs, UBLK_ATTR_READ_ONLY | UBLK_ATTR_ROTATIONAL);
	assert_int_equal(p.types, UBLK_PARAM_BASIC);
}

static void test_params_some(void **state)
{
	struct target_limits l = disk;
	struct ublk_params p;

	/* WRITE_ZEROES without DISCARD still needs a granularity */
	l.discard_granularity = 0;
	l.max_discard_bytes = 0;
	assert_int_equal(ublk_params_build(&p, &l, 512 * KiB, NULL), 0);
	assert_int_equal(p.types, UBLK_PARAM_BASIC | UBLK_PARAM_DISCARD);
	assert_int_equal(p.discard.max_discard_sectors, 0);
	assert_int_equal(p.discard.discard_granularity, 512);

	/* a limit past 32 bits of sectors is cut to what fits, in whole blocks */
	l = disk;
	l.logical_block_bytes = 4096;
	l.max_discard_bytes = UINT64_MAX;
	assert_int_equal(ublk_params_build(&p, &l, 512 * KiB, NULL), 0);
	assert_int_equal(p.discard.max_discard_sectors, UINT32_MAX - 7);

	/* FUA makes sense only with a cache */
	l = disk;
	l.volatile_cache = false;
	assert_int_equal(ublk_params_build(&p, &l, 512 * KiB, NULL), 0);
	assert_int_equal(p.basic.attrs, 0);
}

static void test_params_bounds(void **state)
{
	struct target_limits l = disk;
	struct ublk_params p;

	l.chunk_bytes = 256 * KiB;
	l.max_request_bytes = 32 * KiB;
	assert_int_equal(ublk_buf_bytes(1, 1, &disk), 512 * KiB);
	assert_int_equal(ublk_buf_bytes(1, 1, &l), 32 * KiB);
	assert_int_equal(ublk_buf_bytes(64, 4096, &l), 32 * KiB); /* not below it for the sake of the sum */
	l.max_request_bytes = 4 * MiB;
	assert_int_equal(ublk_buf_bytes(1, 1, &l), 512 * KiB);
	assert_int_equal(ublk_params_build(&p, &l, 512 * KiB, NULL), 0);
	assert_int_equal(p.basic.chunk_sectors, 512);
	assert_int_equal(p.basic.max_sectors, 1024);
}

static void test_params_refused(void **state)
{
	struct target_limits l = disk;
	struct error err = {0};
	struct ublk_params p;

	l.size_bytes = 0;
	assert_int_equal(ublk_params_build(&p, &l, 512 * KiB, &err), -EINVAL);
	assert_non_null(strstr(err.text, "size"));
	l = disk;
	l.size_bytes = (uint64_t)1 << 63;
	assert_int_equal(ublk_params_build(&p, &l, 512 * KiB, NULL), -EFBIG);
	l = disk;
	l.logical_block_bytes = l.physical_block_bytes = 1 << 20;
	assert_int_equal(ublk_params_build(&p, &l, 1 << 20, NULL), -EINVAL);
}

static void test_params_check(void **state)
{
	struct ublk_params want, got;
	struct error err = {0};

	assert_int_equal(ublk_params_build(&want, &disk, 512 * KiB, NULL), 0);
	got = want;
	got.types |= 4; /* the driver adds device numbers */
	assert_int_equal(ublk_params_check(&want, &got, &err), 0);
	got.types = UBLK_PARAM_BASIC;
	assert_int_equal(ublk_params_check(&want, &got, &err), -EPROTO);
	assert_non_null(strstr(err.text, "types"));
	got = want;
	got.basic.attrs &= ~UBLK_ATTR_FUA;
	assert_int_equal(ublk_params_check(&want, &got, NULL), -EPROTO);
	got = want;
	got.discard.discard_granularity = 512;
	assert_int_equal(ublk_params_check(&want, &got, NULL), -EPROTO);
}

static void test_buf_bytes(void **state)
{
	struct target_limits whole = disk;

	assert_int_equal(ublk_buf_bytes(1, 128, &disk), 512 * KiB);
	assert_int_equal(ublk_buf_bytes(4, 128, &disk), 512 * KiB);
	assert_int_equal(ublk_buf_bytes(8, 128, &disk), 256 * KiB);
	assert_int_equal(ublk_buf_bytes(4096, 4096, &disk), 64 * KiB);
	whole.whole_bytes = 64 * KiB;
	assert_int_equal(ublk_buf_bytes(4, 128, &whole), 512 * KiB);
	whole.whole_bytes = 2 * MiB;
	assert_int_equal(ublk_buf_bytes(4, 32, &whole), 2 * MiB);
	whole.whole_bytes = 4 * MiB;
	assert_int_equal(ublk_buf_bytes(4, 32, &whole), 2 * MiB);
}

static int decode(struct blk_request *req, uint32_t op_flags, uint64_t sector, uint32_t sectors)
{
	struct ublk_io_desc desc = {
		.op_flags = op_flags, .start_sector = sector, .nr_sectors = sectors};

	memset(req, 0xee, sizeof(*req));
	return ublk_request_decode(req, &desc, &disk, 512 * KiB);
}

static void test_decode(void **state)
{
	struct blk_request req;

	assert_int_equal(decode(&req, UBLK_IO_READ | 0x700, 8, 16), 0);
	assert_int_equal(req.op, BLK_READ);
	assert_int_equal(req.flags, 0);
	assert_int_equal(req.offset_bytes, 4096);
	assert_int_equal(req.len_bytes, 8192);
	assert_int_equal(decode(&req, UBLK_IO_WRITE | UBLK_IO_FUA | 1 << 11, 0, 1024), 0);
	assert_int_equal(req.op, BLK_WRITE);
	assert_int_equal(req.flags, BLK_FUA);
	assert_int_equal(req.len_bytes, 512 * KiB);
	assert_int_equal(decode(&req, UBLK_IO_FLUSH, 12345, 0), 0);
	assert_int_equal(req.op, BLK_FLUSH);
	assert_int_equal(req.flags, 0);
	assert_int_equal(req.offset_bytes, 0);
	assert_int_equal(req.len_bytes, 0);
	assert_int_equal(decode(&req, UBLK_IO_FLUSH, UINT64_MAX, 0), 0);
	assert_int_equal(decode(&req, UBLK_IO_DISCARD, 0, 1 * GiB / 512), 0);
	assert_int_equal(req.op, BLK_DISCARD);
	assert_int_equal(decode(&req, UBLK_IO_WRITE_ZEROES | UBLK_IO_NOUNMAP | UBLK_IO_FUA, 8, 8),
			 0);
	assert_int_equal(req.op, BLK_WRITE_ZEROES);
	assert_int_equal(req.flags, BLK_NOUNMAP | BLK_FUA);
}

static void test_decode_refused(void **state)
{
	struct target_limits l = disk;
	struct ublk_io_desc zeroes = {.op_flags = UBLK_IO_WRITE_ZEROES, .nr_sectors = 8};
	struct ublk_io_desc write = {.op_flags = UBLK_IO_WRITE, .nr_sectors = 8};
	struct ublk_io_desc odd = {.op_flags = UBLK_IO_READ, .nr_sectors = 1};
	struct blk_request req;

	assert_int_equal(decode(&req, UBLK_IO_READ, 0, 1025), -EINVAL); /* over the buffer's end */
	assert_int_equal(decode(&req, UBLK_IO_READ, 0, 0), -EINVAL);
	assert_int_equal(decode(&req, UBLK_IO_READ, 1 * GiB / 512 - 1, 2), -EINVAL);
	assert_int_equal(decode(&req, UBLK_IO_READ, UINT64_MAX, 1), -EINVAL);
	assert_int_equal(decode(&req, UBLK_IO_READ, UINT64_MAX >> 9, 1), -EINVAL);
	assert_int_equal(decode(&req, UBLK_IO_WRITE_SAME, 0, 1), -EOPNOTSUPP);
	assert_int_equal(decode(&req, 15, 0, 1), -EOPNOTSUPP);
	l.max_write_zeroes_bytes = 0;
	assert_int_equal(ublk_request_decode(&req, &zeroes, &l, 512 * KiB), -EOPNOTSUPP);
	l = disk;
	l.read_only = true;
	assert_int_equal(ublk_request_decode(&req, &write, &l, 512 * KiB), -EROFS);
	l = disk;
	l.logical_block_bytes = 4096;
	assert_int_equal(ublk_request_decode(&req, &odd, &l, 512 * KiB), -EINVAL);
}

static void test_result(void **state)
{
	struct blk_request req = {.op = BLK_READ, .len_bytes = 512 * KiB};

	assert_int_equal(ublk_request_result(&req, 0), 512 * KiB);
	assert_int_equal(ublk_request_result(&req, -EIO), -EIO);
	assert_int_equal(ublk_request_result(&req, -ENOSPC), -ENOSPC);
	/* codes that would tell the block layer something else */
	assert_int_equal(ublk_request_result(&req, -EAGAIN), -EIO);
	assert_int_equal(ublk_request_result(&req, -ENODEV), -EIO);
	assert_int_equal(ublk_request_result(&req, -EROFS), -EIO);
	req.op = BLK_DISCARD;
	assert_int_equal(ublk_request_result(&req, 0), 0);
	assert_int_equal(ublk_request_result(&req, -EOPNOTSUPP), -EOPNOTSUPP);
	req.op = BLK_FLUSH;
	req.len_bytes = 0;
	assert_int_equal(ublk_request_result(&req, 0), 0);
}

static void test_desc_map(void **state)
{
	assert_int_equal(ublk_desc_map_bytes(128, 24), 4096);
	assert_int_equal(ublk_desc_map_bytes(171, 24), 8192);
	assert_int_equal(ublk_desc_map_offset(0, 24), 0);
	assert_int_equal(ublk_desc_map_offset(1, 24), 98304);
	assert_int_equal(ublk_desc_map_offset(3, 32), 3 * 131072);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_codes),
		cmocka_unit_test(test_params),
		cmocka_unit_test(test_params_read_only),
		cmocka_unit_test(test_params_some),
		cmocka_unit_test(test_params_bounds),
		cmocka_unit_test(test_params_refused),
		cmocka_unit_test(test_params_check),
		cmocka_unit_test(test_buf_bytes),
		cmocka_unit_test(test_decode),
		cmocka_unit_test(test_decode_refused),
		cmocka_unit_test(test_result),
		cmocka_unit_test(test_desc_map),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
