/* SPDX-License-Identifier: MIT */
/* read.c: a read of any extents: all parts in flight at once, what has no host cluster is zeroed. */
#include <errno.h>
#include <string.h>

#include "qcow2/request.h"

static int read_extent(struct request *r, const struct map_extent *ext, uint8_t *to)
{
	struct part *part;

	switch (ext->kind) {
	case MAP_UNALLOCATED:
	case MAP_ZERO:
	case MAP_ZERO_ALLOC:
		memset(to, 0, ext->len_bytes);
		return 0;
	case MAP_DATA:
		part = part_get(r);
		part->st = ext->st;
		part->io.op = STORAGE_READ;
		part->io.offset_bytes = ext->hoff;
		part->io.len_bytes = ext->len_bytes;
		part->io.buf = (struct blk_buf){.base = to};
		part_submit(part);
		return 0;
	case MAP_COMPRESSED:
		image_corrupt(r->q->img, "a compressed cluster is not supported");
		return -EIO;
	default:
		return -EIO;
	}
}

int read_range(struct request *r, uint64_t goff, uint64_t len_bytes, void *to)
{
	uint64_t disk_end = r->q->img->size_bytes, end = min_of(goff + len_bytes, disk_end);
	uint8_t *at = to;
	int ret = 0, io_ret;

	/* a last cluster's rest, past the disk's end */
	if (goff + len_bytes > disk_end)
		memset(at + (end - goff), 0, goff + len_bytes - end);
	while (!ret && goff < end) {
		struct map_extent ext;

		ret = request_lookup(r, goff, end - goff, &ext);
		if (!ret)
			ret = read_extent(r, &ext, at);
		if (!ret) {
			goff += ext.len_bytes;
			at += ext.len_bytes;
		}
	}
	io_ret = parts_wait(r);
	return ret ? ret : io_ret;
}

int request_read(struct request *r)
{
	struct blk_request *req = r->req;
	unsigned epoch = epoch_enter(r->q);
	int ret = read_range(r, req->offset_bytes, req->len_bytes, req->buf.base);

	epoch_exit(r->q, epoch);
	return ret;
}
