/* SPDX-License-Identifier: MIT */
/* read.c: a read of any extents: all parts in flight at once, what has no host cluster is zeroed. */
#include <errno.h>
#include <string.h>

#include "qcow2/request.h"

static int read_extent(struct request *r, uint64_t goff, const struct map_extent *ext)
{
	struct blk_request *req = r->req;
	uint8_t *to = (uint8_t *)req->buf.base + (goff - req->offset_bytes);
	struct part *part;

	switch (ext->kind) {
	case MAP_UNALLOCATED:
	case MAP_ZERO:
	case MAP_ZERO_ALLOC:
		memset(to, 0, ext->len_bytes);
		return 0;
	case MAP_DATA:
		part = part_get(r);
		part->io.op = STORAGE_READ;
		part->io.offset_bytes = ext->hoff;
		part->io.len_bytes = ext->len_bytes;
		part->io.buf = (struct blk_buf){.base = to};
		part_submit(part);
		return 0;
	case MAP_COMPRESSED:
		image_corrupt(r->q->img, "the compressed cluster of guest offset %#llx is not supported",
			      (unsigned long long)goff);
		return -EIO;
	default:
		return -EIO;
	}
}

int request_read(struct request *r)
{
	struct blk_request *req = r->req;
	uint64_t goff = req->offset_bytes, end = goff + req->len_bytes;
	unsigned epoch = epoch_enter(r->q);
	int ret = 0, io_ret;

	while (!ret && goff < end) {
		struct map_extent ext;

		ret = request_lookup(r, goff, end - goff, &ext);
		if (!ret)
			ret = read_extent(r, goff, &ext);
		if (!ret)
			goff += ext.len_bytes;
	}
	io_ret = parts_wait(r);
	epoch_exit(r->q, epoch);
	return ret ? ret : io_ret;
}
