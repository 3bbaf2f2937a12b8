/* SPDX-License-Identifier: MIT */
/*
 * uapi.h: the kernel's ublk interface, as far as this program uses it.
 *
 * The system's <linux/ublk_cmd.h> may be older than the running kernel (Debian 12's is that
 * of 6.1), so what we rely on is written down here, under names of our own, and its layout
 * asserted. Which of it the running kernel has is decided at run time, by GET_FEATURES and by
 * reading back.
 *
 * Fields are in the host's byte order throughout.
 */
#ifndef UBLK_UAPI_H
#define UBLK_UAPI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define UBLK_CTRL_PATH "/dev/ublk-control"

/* ---- command codes: ioctl numbers of type 'u' (direction, size of the command, type, number) ----
 */

#define UBLK_IOC(dir, size, nr)                                                                    \
	((uint32_t)(dir) << 30 | (uint32_t)(size) << 16 | (uint32_t)'u' << 8 | (uint32_t)(nr))
#define UBLK_CTRL_R(nr)	 UBLK_IOC(2, 32, nr) /* takes a struct ublk_ctrl_cmd */
#define UBLK_CTRL_RW(nr) UBLK_IOC(3, 32, nr)
#define UBLK_IO_RW(nr)	 UBLK_IOC(3, 16, nr) /* takes a struct ublk_io_cmd */

#define UBLK_OP_GET_QUEUE_AFFINITY  UBLK_CTRL_R(0x01)
#define UBLK_OP_GET_DEV_INFO	    UBLK_CTRL_R(0x02)
#define UBLK_OP_ADD_DEV		    UBLK_CTRL_RW(0x04)
#define UBLK_OP_DEL_DEV		    UBLK_CTRL_RW(0x05)
#define UBLK_OP_START_DEV	    UBLK_CTRL_RW(0x06)
#define UBLK_OP_STOP_DEV	    UBLK_CTRL_RW(0x07)
#define UBLK_OP_SET_PARAMS	    UBLK_CTRL_RW(0x08)
#define UBLK_OP_GET_PARAMS	    UBLK_CTRL_R(0x09)
#define UBLK_OP_START_USER_RECOVERY UBLK_CTRL_RW(0x10)
#define UBLK_OP_END_USER_RECOVERY   UBLK_CTRL_RW(0x11)
#define UBLK_OP_GET_DEV_INFO2	    UBLK_CTRL_R(0x12)
#define UBLK_OP_GET_FEATURES	    UBLK_CTRL_R(0x13)
#define UBLK_OP_DEL_DEV_ASYNC	    UBLK_CTRL_R(0x14)
#define UBLK_OP_UPDATE_SIZE	    UBLK_CTRL_RW(0x15)
#define UBLK_OP_TRY_STOP_DEV	    UBLK_CTRL_RW(0x17)

#define UBLK_OP_FETCH_REQ	     UBLK_IO_RW(0x20)
#define UBLK_OP_COMMIT_AND_FETCH_REQ UBLK_IO_RW(0x21)

/* ---- control commands ---- */

#define UBLK_NO_QUEUE 0xffff

struct ublk_ctrl_cmd {
	uint32_t dev_id;
	uint16_t queue_id; /* UBLK_NO_QUEUE where the command is not about one */
	uint16_t len;	   /* of the buffer */
	uint64_t addr;	   /* of the buffer */
	uint64_t data;
	uint16_t
		dev_path_len; /* GET_DEV_INFO2: the device's path stands before the buffer proper */
	uint16_t pad;
	uint32_t reserved;
};
static_assert(sizeof(struct ublk_ctrl_cmd) == 32, "the size is part of the command codes");
static_assert(offsetof(struct ublk_ctrl_cmd, data) == 16, "");
static_assert(offsetof(struct ublk_ctrl_cmd, dev_path_len) == 24, "");

/* Features of the driver, and flags of a device. */
#define UBLK_F_USER_RECOVERY	     (1ull << 3)
#define UBLK_F_USER_RECOVERY_REISSUE (1ull << 4)
#define UBLK_F_UNPRIVILEGED_DEV	     (1ull << 5)
#define UBLK_F_CMD_IOCTL_ENCODE	     (1ull << 6)
#define UBLK_F_USER_COPY	     (1ull << 7)
#define UBLK_F_USER_RECOVERY_FAIL_IO (1ull << 9)
#define UBLK_F_UPDATE_SIZE	     (1ull << 10)
#define UBLK_F_AUTO_BUF_REG	     (1ull << 11)
#define UBLK_F_SAFE_STOP_DEV	     (1ull << 17)
#define UBLK_F_NO_AUTO_PART_SCAN     (1ull << 18)
#define UBLK_F_IO_DESC_SIZE	     (1ull << 20)

enum ublk_state {
	UBLK_STATE_DEAD,
	UBLK_STATE_LIVE,
	UBLK_STATE_QUIESCED,
	UBLK_STATE_FAIL_IO,
};

struct ublk_dev_info {
	uint16_t nr_hw_queues;
	uint16_t queue_depth;
	uint16_t state;
	uint16_t io_desc_size; /* with UBLK_F_IO_DESC_SIZE; else padding */
	uint32_t max_io_buf_bytes;
	uint32_t dev_id;
	int32_t ublksrv_pid;
	uint32_t pad;
	uint64_t flags;
	uint64_t ublksrv_flags; /* kept by the driver for the server, not looked at */
	uint32_t owner_uid;
	uint32_t owner_gid;
	uint64_t reserved[2];
};
static_assert(sizeof(struct ublk_dev_info) == 64, "");
static_assert(offsetof(struct ublk_dev_info, max_io_buf_bytes) == 8, "");
static_assert(offsetof(struct ublk_dev_info, ublksrv_pid) == 16, "");
static_assert(offsetof(struct ublk_dev_info, flags) == 24, "");
static_assert(offsetof(struct ublk_dev_info, owner_uid) == 40, "");

/* ---- parameters ---- */

#define UBLK_ATTR_READ_ONLY	 (1u << 0)
#define UBLK_ATTR_ROTATIONAL	 (1u << 1)
#define UBLK_ATTR_VOLATILE_CACHE (1u << 2)
#define UBLK_ATTR_FUA		 (1u << 3)

struct ublk_param_basic {
	uint32_t attrs;
	uint8_t logical_bs_shift;
	uint8_t physical_bs_shift;
	uint8_t io_opt_shift;
	uint8_t io_min_shift;
	uint32_t max_sectors;
	uint32_t chunk_sectors;
	uint64_t dev_sectors;
	uint64_t virt_boundary_mask;
};

struct ublk_param_discard {
	uint32_t discard_alignment;
	uint32_t discard_granularity;
	uint32_t max_discard_sectors;
	uint32_t max_write_zeroes_sectors;
	uint16_t max_discard_segments;
	uint16_t reserved;
};

struct ublk_param_dma {
	uint32_t alignment; /* of memory, less one: a mask */
	uint32_t pad;
};

#define UBLK_PARAM_BASIC   (1u << 0)
#define UBLK_PARAM_DISCARD (1u << 1)
#define UBLK_PARAM_DMA	   (1u << 4)

/*
 * The kernel's structure goes on after this (segments, integrity); what `types` does not name need not be
 * sent, and every kernel takes a shorter one.
 */
struct ublk_params {
	uint32_t len;
	uint32_t types;
	struct ublk_param_basic basic;
	struct ublk_param_discard discard;
	uint32_t devt[4], zoned[8]; /* not used */
	struct ublk_param_dma dma;
	uint32_t tail; /* up to the alignment */
};
static_assert(sizeof(struct ublk_param_basic) == 32, "");
static_assert(sizeof(struct ublk_param_discard) == 20, "");
static_assert(offsetof(struct ublk_params, basic) == 8, "");
static_assert(offsetof(struct ublk_params, discard) == 40, "");
static_assert(offsetof(struct ublk_params, devt) == 60, "");
static_assert(offsetof(struct ublk_params, dma) == 108, "");
static_assert(offsetof(struct ublk_params, tail) == 116, "");

/* How much of it is sent: up to the discards, which every kernel has, or with all that is above. */
#define UBLK_PARAMS_BYTES     offsetof(struct ublk_params, devt)
#define UBLK_PARAMS_DMA_BYTES offsetof(struct ublk_params, tail)

/* ---- I/O commands and descriptors ---- */

#define UBLK_MAX_QUEUES 4096
#define UBLK_MAX_DEPTH	4096

enum ublk_io_op {
	UBLK_IO_READ = 0,
	UBLK_IO_WRITE = 1,
	UBLK_IO_FLUSH = 2,
	UBLK_IO_DISCARD = 3,
	UBLK_IO_WRITE_SAME = 4,
	UBLK_IO_WRITE_ZEROES = 5,
};

/* Bits of op_flags, whose low byte is the operation. */
#define UBLK_IO_FUA	     (1u << 13)
#define UBLK_IO_NOUNMAP	     (1u << 15)
#define UBLK_IO_NEED_REG_BUF (1u << 17) /* registering its pages has failed */

/* What stands in the address of a fetch with UBLK_F_AUTO_BUF_REG: a slot of the ring's table, and flags. */
#define UBLK_AUTO_BUF_REG(index, flags) ((uint64_t)(flags) << 16 | (uint16_t)(index))
#define UBLK_AUTO_BUF_REG_FALLBACK	1 /* a request that cannot be registered comes all the same */

/* Sectors are of 512 bytes whatever the logical block size. */
struct ublk_io_desc {
	uint32_t op_flags;
	uint32_t nr_sectors;
	uint64_t start_sector;
	uint64_t addr;
};
static_assert(sizeof(struct ublk_io_desc) == 24,
	      "the stride where the driver does not say another");

struct ublk_io_cmd {
	uint16_t q_id;
	uint16_t tag;
	int32_t result;
	uint64_t addr;
};
static_assert(sizeof(struct ublk_io_cmd) == 16, "the size is part of the command codes");

enum {
	UBLK_RES_OK = 0,
	UBLK_RES_NEED_GET_DATA = 1,
	/* -ENODEV: the device is going away; the tag will get no more requests */
};

#endif
