/* SPDX-License-Identifier: MIT */
/*
 * readahead.c: compressed clusters that are likely to be read next are inflated in parallel.
 *
 * Inflating takes far longer than reading, and a request, or a stream of small ones, meets compressed
 * clusters one after the other. So the first that a request meets starts the rest of the request's; and
 * where requests follow each other, those behind it as well: one more with each request that goes on
 * where one ended, up to a window. Each queue knows a few streams; a new one takes the place of the
 * oldest. Plain clusters are not read ahead: the kernel above does that as it sees fit.
 *
 * Only a read looks ahead, inside its epoch; so what it finds in the map cannot be freed before it is
 * noted in the cache, which drops it then (inflate.h, invariant 1). Nothing here suspends.
 */
#include <errno.h>

#include "qcow2/chain.h"
#include "qcow2/inflate.h"
#include "qcow2/request.h"

/* The stream that a read of [@goff, @end) belongs to, brought up to date. */
static struct read_stream *stream_find(struct qcow2_queue *q, uint64_t goff, uint64_t end)
{
	uint64_t slack = q->img->cluster_bytes; /* requests may overtake each other a little */
	struct read_stream *s;

	for (unsigned i = 0; i < ARRAY_LEN(q->streams); i++) {
		s = &q->streams[i];
		if (s->next && goff + slack >= s->next && goff <= s->next + slack) {
			s->length++;
			s->next = max_of(s->next, end);
			return s;
		}
	}
	s = &q->streams[q->stream_hand++ % ARRAY_LEN(q->streams)];
	*s = (struct read_stream){.next = end};
	return s;
}

/* Layers' own maps are the metadata loop's: elsewhere what is below the image is not looked up ahead. */
static int peek(const struct qcow2_queue *q, uint64_t goff, uint64_t max_bytes,
		struct map_extent *ext)
{
	struct qcow2_image *img = q->img;
	int ret = map_peek(img, goff, max_bytes, ext);

	if (ret || ext->kind != MAP_UNALLOCATED || !img->chain)
		return ret;
	if (q->loop != img->meta_loop)
		return -EAGAIN;
	return chain_lookup_cached(img->chain, goff, ext->len_bytes, ext);
}

/* Starts what is compressed in [@from, @to); where it came to an end. */
static uint64_t start_range(struct request *r, uint64_t from, uint64_t to)
{
	struct inflate_cache *cache = r->q->img->inflate;

	while (from < to) {
		struct map_extent ext;

		if (peek(r->q, from, to - from, &ext))
			break;
		if (ext.kind == MAP_COMPRESSED && !inflate_start(cache, ext.img, ext.entry))
			break;
		from += ext.len_bytes;
	}
	return from;
}

void readahead(struct request *r, uint64_t from)
{
	struct qcow2_image *img = r->q->img;
	uint64_t end = r->req->offset_bytes + r->req->len_bytes, window = 0;

	if (!r->stream) {
		r->stream = stream_find(r->q, r->req->offset_bytes, end);
		r->ahead = from;
	}
	if (r->stream->length)
		window = min_of(inflate_window(img->inflate), r->stream->length);
	r->ahead = start_range(r, max_of(r->ahead, from), end);
	if (r->ahead < end || !window)
		return;
	from = max_of(align_up(end, img->cluster_bytes), r->stream->ahead);
	end = min_of(align_up(end, img->cluster_bytes) + window * img->cluster_bytes,
		     img->size_bytes);
	if (from < end)
		r->stream->ahead = start_range(r, from, end);
}
