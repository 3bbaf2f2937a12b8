/* SPDX-License-Identifier: MIT */
/* read.c: a read of any extents: all parts in flight at once, what has no host cluster is zeroed. */
#include <errno.h>
#include <string.h>

#include "qcow2/inflate.h"
#include "qcow2/request.h"

/* Copies from the cache of inflated clusters, and has it get what follows. */
static int read_compressed(struct request *r, uint64_t goff, const struct map_extent *ext, void *to)
{
	struct inflate_cache *cache = r->q->img->inflate;
	uint32_t in_cluster = (uint32_t)(goff & (ext->img->cluster_bytes - 1));

	if (r->req->op == BLK_READ) {
		(void)inflate_start(cache, ext->img, ext->entry);
		readahead(r, goff + ext->len_bytes);
	}
	return inflate_read(cache, ext->img, ext->entry, in_cluster, (uint32_t)ext->len_bytes, to);
}

static int read_extent(struct request *r, uint64_t goff, const struct map_extent *ext, uint8_t *to)
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
		part->crypto = map_extent_crypto(ext);
		part->goff = goff;
		part->io.op = STORAGE_READ;
		part->io.offset_bytes = ext->hoff;
		part->io.len_bytes = ext->len_bytes;
		part->io.buf = (struct blk_buf){.base = to};
		part_submit(part);
		return 0;
	case MAP_COMPRESSED:
		return read_compressed(r, goff, ext, to);
	default:
		return -EIO;
	}
}

int read_range(struct request *r, uint64_t goff, uint64_t len_bytes, void *to)
{
	const struct qcow2_image *img = r->q->img;
	uint64_t disk_end = img->size_bytes, from = goff;
	/* what the storage reads ends with a block, whatever the disk ends with */
	uint64_t end = min_of(goff + len_bytes, align_up(disk_end, img->st->block_bytes));
	uint8_t *at = to;
	int ret = 0, io_ret;

	while (!ret && goff < end) {
		struct map_extent ext;

		ret = request_lookup(r, goff, end - goff, &ext);
		if (!ret)
			ret = read_extent(r, goff, &ext, at);
		if (!ret) {
			goff += ext.len_bytes;
			at += ext.len_bytes;
		}
	}
	io_ret = parts_wait(r);
	/* a last cluster's rest, past the disk's end */
	end = max_of(from, disk_end);
	if (from + len_bytes > end)
		memset((uint8_t *)to + (end - from), 0, from + len_bytes - end);
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
