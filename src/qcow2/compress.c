/* SPDX-License-Identifier: MIT */
/*
 * compress.c: see compress.h.
 *
 * Deflate is read by libdeflate, which is nearly twice as fast as zlib but wants a stream that is
 * complete. What it does not accept is tried once more with zlib, by the rule that QEMU has: good is
 * what fills the cluster, whether the stream then ends or not. (A stream that ends early is bad for
 * both.) Broken clusters are read twice by that, which nobody minds.
 *
 * All state comes from memory that was taken at creation: zlib gets an allocator over a fixed arena,
 * and zstd works in its one-shot form, which allocates nothing once its context is there.
 */
#include "qcow2/compress.h"

#include <errno.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/math.h"

/* What QEMU writes, and can be relied on to read; negative: no header. */
#define DEFLATE_WRITE_WINDOW_BITS (-12)
/* Any valid stream. */
#define DEFLATE_READ_WINDOW_BITS (-15)
/* zlib's inflate state, a window of 32 KiB, and room for what other versions add. */
#define INFLATE_ARENA_BYTES (64 * KiB)

struct inflater {
	struct libdeflate_decompressor *fast;
	ZSTD_DCtx *zstd;
	size_t arena_used;
	_Alignas(16) uint8_t arena[INFLATE_ARENA_BYTES];
};

struct deflater {
	enum compression type;
	bool zlib_ready;
	z_stream zlib;
	ZSTD_CCtx *zstd;
};

const char *compression_name(enum compression type)
{
	switch (type) {
	case COMPRESSION_DEFLATE:
		return "zlib";
	case COMPRESSION_ZSTD:
		return "zstd";
	}
	return NULL;
}

/* ---- reading ---- */

int inflater_create(struct inflater **out)
{
	struct inflater *inf = calloc(1, sizeof(*inf));

	*out = NULL;
	if (!inf)
		return -ENOMEM;
	inf->fast = libdeflate_alloc_decompressor();
	inf->zstd = ZSTD_createDCtx();
	if (!inf->fast || !inf->zstd) {
		inflater_destroy(inf);
		return -ENOMEM;
	}
	*out = inf;
	return 0;
}

void inflater_destroy(struct inflater *inf)
{
	if (!inf)
		return;
	libdeflate_free_decompressor(inf->fast);
	(void)ZSTD_freeDCtx(inf->zstd);
	free(inf);
}

static void *arena_alloc(void *opaque, unsigned items, unsigned size)
{
	struct inflater *inf = opaque;
	size_t bytes;

	if (!checked_mul((size_t)items, (size_t)size, &bytes) || bytes > sizeof(inf->arena))
		return NULL;
	bytes = align_up(bytes, 16);
	if (bytes > sizeof(inf->arena) - inf->arena_used)
		return NULL;
	inf->arena_used += bytes;
	return inf->arena + inf->arena_used - bytes;
}

static void arena_free(void *opaque, void *address)
{
	/* all at once, before the next use */
}

/* Good is what fills the output. */
static int inflate_with_zlib(struct inflater *inf, const void *in, size_t in_bytes, void *out,
			     size_t out_bytes)
{
	z_stream strm = {
		.next_in = (z_const Bytef *)in,
		.avail_in = (uInt)in_bytes,
		.next_out = out,
		.avail_out = (uInt)out_bytes,
		.zalloc = arena_alloc,
		.zfree = arena_free,
		.opaque = inf,
	};
	int ret;

	inf->arena_used = 0;
	if (inflateInit2(&strm, DEFLATE_READ_WINDOW_BITS) != Z_OK)
		return -EIO;
	ret = inflate(&strm, Z_FINISH);
	(void)inflateEnd(&strm);
	return (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && !strm.avail_out ? 0 : -EIO;
}

static int inflate_deflate(struct inflater *inf, const void *in, size_t in_bytes, void *out,
			   size_t out_bytes)
{
	size_t used, got;
	enum libdeflate_result res = libdeflate_deflate_decompress_ex(inf->fast, in, in_bytes, out,
								      out_bytes, &used, &got);

	if (res == LIBDEFLATE_SUCCESS)
		return got == out_bytes ? 0 : -EIO;
	return inflate_with_zlib(inf, in, in_bytes, out, out_bytes);
}

/* Frame by frame until the output is full; each frame whole. */
static int inflate_zstd(struct inflater *inf, const uint8_t *in, size_t in_bytes, uint8_t *out,
			size_t out_bytes)
{
	while (out_bytes) {
		size_t frame = ZSTD_findFrameCompressedSize(in, in_bytes), got;

		if (ZSTD_isError(frame) || !frame || frame > in_bytes)
			return -EIO;
		got = ZSTD_decompressDCtx(inf->zstd, out, out_bytes, in, frame);
		if (ZSTD_isError(got) || got > out_bytes)
			return -EIO;
		in += frame;
		in_bytes -= frame;
		out += got;
		out_bytes -= got;
	}
	return 0;
}

int inflater_run(struct inflater *inf, enum compression type, const void *in, size_t in_bytes,
		 void *out, size_t out_bytes)
{
	if (type == COMPRESSION_ZSTD)
		return inflate_zstd(inf, in, in_bytes, out, out_bytes);
	return inflate_deflate(inf, in, in_bytes, out, out_bytes);
}

/* ---- writing ---- */

/* Makes zstd take its memory now: the first run of each size does, and later ones keep it. */
static int warm_up(struct deflater *def, size_t cluster_bytes)
{
	uint8_t *in = calloc(2, cluster_bytes);
	int ret = in ? 0 : -ENOMEM;

	if (in && ZSTD_isError(ZSTD_compress2(def->zstd, in + cluster_bytes, cluster_bytes, in,
					      cluster_bytes)))
		ret = -ENOMEM;
	free(in);
	return ret;
}

int deflater_create(struct deflater **out, enum compression type, size_t cluster_bytes)
{
	struct deflater *def = calloc(1, sizeof(*def));
	int ret = 0;

	*out = NULL;
	if (!def)
		return -ENOMEM;
	def->type = type;
	if (type == COMPRESSION_ZSTD) {
		def->zstd = ZSTD_createCCtx();
		ret = def->zstd ? warm_up(def, cluster_bytes) : -ENOMEM;
	} else {
		def->zlib_ready =
			deflateInit2(&def->zlib, Z_DEFAULT_COMPRESSION, Z_DEFLATED,
				     DEFLATE_WRITE_WINDOW_BITS, 9, Z_DEFAULT_STRATEGY) == Z_OK;
		ret = def->zlib_ready ? 0 : -ENOMEM;
	}
	if (ret) {
		deflater_destroy(def);
		return ret;
	}
	*out = def;
	return 0;
}

void deflater_destroy(struct deflater *def)
{
	if (!def)
		return;
	if (def->zlib_ready)
		(void)deflateEnd(&def->zlib);
	(void)ZSTD_freeCCtx(def->zstd);
	free(def);
}

static size_t deflate_with_zlib(z_stream *strm, const void *in, size_t in_bytes, void *out,
				size_t out_bytes)
{
	if (deflateReset(strm) != Z_OK)
		return 0;
	strm->next_in = (z_const Bytef *)in;
	strm->avail_in = (uInt)in_bytes;
	strm->next_out = out;
	strm->avail_out = (uInt)out_bytes;
	return deflate(strm, Z_FINISH) == Z_STREAM_END ? out_bytes - strm->avail_out : 0;
}

size_t deflater_run(struct deflater *def, const void *in, size_t in_bytes, void *out)
{
	size_t n;

	if (def->type == COMPRESSION_DEFLATE)
		return deflate_with_zlib(&def->zlib, in, in_bytes, out, in_bytes - 1);
	n = ZSTD_compress2(def->zstd, out, in_bytes - 1, in, in_bytes);
	return ZSTD_isError(n) ? 0 : n;
}
