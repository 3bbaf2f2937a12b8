/* SPDX-License-Identifier: MIT */
/*
 * write.c: writes that are not one extent in place.
 *
 * First what is allocated and exclusively ours is written in place, all parts at once, in the queue's
 * epoch. What is left is written in rounds, each in three steps:
 *
 *     metadata loop: lock the guest clusters, look again, allocate      (round_prepare)
 *     queue:         write the data: payload, and what fills the rest of the clusters
 *     metadata loop: link the new clusters into the map, unlock         (round_link)
 *
 * Invariants:
 *  1. Rule 8: from prepare to link the round holds a lock on all its guest clusters.
 *  2. Rule 9: a link checks that the entry is still what the round started from.
 *  3. Rule 5: the request completes after its last link; the queue's counter of writes was advanced
 *     before the link, so the pass that writes the link has synced the data.
 *  4. A new cluster that does not read as zeros is written whole.
 *  5. While it waits for the budget of frees, a request holds neither lock nor epoch.
 */
#include <errno.h>
#include <string.h>

#include "qcow2/alloc.h"
#include "qcow2/request.h"

enum segment_kind {
	SEGMENT_IN_PLACE,
	SEGMENT_NEW,   /* new clusters where there were none */
	SEGMENT_REUSE, /* zero clusters that keep their host clusters */
	SEGMENT_COPY,  /* one new cluster; what the payload leaves of it is read from the old one */
	SEGMENT_SUB,   /* some subclusters of one cluster, new or where it has its place */
};

/* A run of guest clusters and the host clusters that they are written to. */
struct segment {
	enum segment_kind kind;
	uint64_t gcluster, hcluster, clusters;
	bool zeroed;	      /* NEW: the host clusters read as zeros */
	bool fresh;	      /* SUB: the host cluster is new */
	struct map_entry old; /* COPY, SUB */
};

#define ROUND_SEGMENTS 8
/* Guest clusters of a round: bounds its lock and what it reserves in the recovery log. */
#define ROUND_CLUSTERS 256
/* L2 tables that a round may need: of 32 entries at least. */
#define ROUND_TABLES (ROUND_CLUSTERS / 32 + 1)
/* Clusters that a round may unlink: one entry for each segment, and tables shared with a snapshot. */
#define ROUND_FREES (ROUND_SEGMENTS * MAP_ENTRY_HCLUSTERS_MAX + ROUND_TABLES)

struct round {
	struct qcow2_image *img;
	uint64_t goff, end; /* what is to be written */
	uint64_t pos;	    /* prepared up to here */
	struct cluster_lock lock;
	struct segment segments[ROUND_SEGMENTS];
	unsigned count;
	unsigned reserved;
	uint64_t log_reserved;
	int io_ret;
};

/* ---- on the metadata loop ---- */

/*
 * Whether the round writes all of a guest cluster that anybody can read: else what it leaves has to come
 * from below.
 */
static bool cluster_covered(const struct round *round, uint64_t gcluster)
{
	const struct qcow2_image *img = round->img;
	uint64_t start = gcluster << img->cluster_bits;

	return round->goff <= start && round->end >= min_of(start + img->cluster_bytes, img->size_bytes);
}

/* Whether the backing chain has something in a guest cluster; may suspend. */
static int cluster_backed(struct qcow2_image *img, uint64_t gcluster, bool *backed)
{
	uint64_t goff = gcluster << img->cluster_bits, end = goff + img->cluster_bytes;

	*backed = false;
	while (goff < end && !*backed) {
		struct map_extent ext;
		int ret = chain_lookup(img->chain, goff, end - goff, &ext);

		if (ret)
			return ret;
		*backed = ext.kind != MAP_ZERO && ext.kind != MAP_UNALLOCATED &&
			  ext.kind != MAP_ZERO_ALLOC;
		goff += ext.len_bytes;
	}
	return 0;
}

/* Adjacent entries like the one at @gcluster, as far as the slice goes and @want. */
static uint64_t count_unbacked(const struct qcow2_image *img, const struct slice *s, uint64_t gcluster,
			       uint64_t want)
{
	uint32_t index = map_slice_index(img, gcluster), end = 1u << img->l2_slice_bits;
	uint64_t n = 0;

	while (n < want && index + n < end && !map_entry_is_bad(s, index + (uint32_t)n)) {
		uint64_t word = map_entry_load(img, s, index + (uint32_t)n).word;

		/* whatever an extended entry's bitmap says: all of the cluster is written */
		if (word & (QCOW2_COMPRESSED | MAP_PLACED))
			break;
		n++;
	}
	return n;
}

/* Adjacent entries that map to adjacent, exclusive clusters of the same kind. */
static uint64_t count_mapped(const struct qcow2_image *img, const struct slice *s, uint64_t gcluster,
			     uint64_t want)
{
	uint32_t index = map_slice_index(img, gcluster), end = 1u << img->l2_slice_bits;
	struct map_entry next = map_entry_load(img, s, index);
	uint64_t n = 1;

	while (n < want && index + n < end && !map_entry_is_bad(s, index + (uint32_t)n)) {
		next.word += img->cluster_bytes;
		if (!map_entry_equal(map_entry_load(img, s, index + (uint32_t)n), next))
			break;
		n++;
	}
	return n;
}

/* Whether an entry has a host cluster that only this image's active map refers to. */
static bool entry_is_ours(struct map_entry e)
{
	return e.word & QCOW2_COPIED && !(e.word & QCOW2_COMPRESSED);
}

static enum segment_kind segment_kind(const struct round *round, uint64_t gcluster,
				      struct map_entry e, bool backed)
{
	if (round->img->extended_l2 && entry_is_ours(e))
		return e.bitmap == QCOW2_SUBCLUSTERS_ALLOC_MASK ? SEGMENT_IN_PLACE : SEGMENT_SUB;
	if (entry_is_ours(e))
		return map_word_kind(e.word) == MAP_DATA ? SEGMENT_IN_PLACE : SEGMENT_REUSE;
	if (e.word & (QCOW2_COMPRESSED | MAP_PLACED))
		return SEGMENT_COPY;
	if (round->img->extended_l2 && !cluster_covered(round, gcluster))
		return SEGMENT_SUB;
	return backed && map_word_kind(e.word) == MAP_UNALLOCATED ? SEGMENT_COPY : SEGMENT_NEW;
}

/*
 * What is to be done with the entry at @gcluster; nothing is allocated yet. A cluster that gets its rest
 * from the backing chain is copied like a shared one; it can be the round's first or last only.
 */
static int segment_classify(struct round *round, uint64_t gcluster, uint64_t want,
			    struct segment *seg)
{
	struct qcow2_image *img = round->img;
	struct slice *s;
	uint32_t index = map_slice_index(img, gcluster);
	bool backed = false, whole = img->chain || img->extended_l2;
	struct map_entry e;
	int ret = 0;

	if (img->chain && !cluster_covered(round, gcluster))
		ret = cluster_backed(img, gcluster, &backed);
	if (whole && want > 1 && !cluster_covered(round, gcluster + want - 1))
		want--;
	if (!ret)
		ret = map_slice_own(img, gcluster, &round->reserved, &s);
	if (ret)
		return ret;
	e = map_entry_load(img, s, index);
	*seg = (struct segment){.kind = segment_kind(round, gcluster, e, backed),
				.gcluster = gcluster,
				.hcluster = (e.word & QCOW2_L2_OFFSET_MASK) >> img->cluster_bits,
				.clusters = 1,
				.old = e};
	if (map_entry_is_bad(s, index))
		ret = -EIO;
	else if (seg->kind == SEGMENT_NEW)
		seg->clusters = count_unbacked(img, s, gcluster, want);
	else if (seg->kind == SEGMENT_IN_PLACE || seg->kind == SEGMENT_REUSE)
		seg->clusters = count_mapped(img, s, gcluster, want);
	seg->fresh = seg->kind == SEGMENT_NEW || seg->kind == SEGMENT_COPY ||
		     (seg->kind == SEGMENT_SUB && !entry_is_ours(e));
	cache_put(&img->l2_cache, s);
	return ret;
}

static bool segment_merge(struct round *round, const struct segment *seg)
{
	struct segment *last = round->count ? &round->segments[round->count - 1] : NULL;

	if (!last || last->kind != seg->kind || seg->kind == SEGMENT_COPY ||
	    seg->kind == SEGMENT_SUB || last->zeroed != seg->zeroed || last->gcluster + last->clusters != seg->gcluster ||
	    last->hcluster + last->clusters != seg->hcluster)
		return false;
	last->clusters += seg->clusters;
	return true;
}

/* New clusters for a segment; in an external data file each has its place already. */
static int segment_alloc(struct qcow2_image *img, struct segment *seg)
{
	if (!image_has_data_file(img))
		return alloc_clusters(img, seg->clusters, &seg->hcluster, &seg->clusters, &seg->zeroed);
	seg->hcluster = seg->gcluster;
	seg->zeroed = false; /* something may have been there before */
	return 0;
}

static int prepare_segment(struct round *round)
{
	struct qcow2_image *img = round->img;
	uint64_t gcluster = round->pos >> img->cluster_bits;
	uint64_t want = ((round->end - 1) >> img->cluster_bits) - gcluster + 1;
	struct segment seg;
	int ret = segment_classify(round, gcluster, want, &seg);

	if (!ret && seg.fresh)
		ret = segment_alloc(img, &seg);
	if (ret)
		return ret;
	if (img->crypto)
		seg.zeroed = false; /* zeros in the file are garbage to the guest */
	if (!segment_merge(round, &seg))
		round->segments[round->count++] = seg;
	round->pos = min_of(round->end, (gcluster + seg.clusters) << img->cluster_bits);
	return 0;
}

static void round_unlock(struct round *round)
{
	struct qcow2_image *img = round->img;

	cluster_unlock(&img->locks, &round->lock);
	frees_unreserve(img, round->reserved);
	reclog_unreserve(img, round->log_reserved);
}

static int round_prepare(void *arg)
{
	struct round *round = arg;
	struct qcow2_image *img = round->img;
	int ret = frees_reserve(img, ROUND_FREES);

	if (ret)
		return ret;
	round->log_reserved = reclog_need(img, ROUND_CLUSTERS);
	ret = reclog_reserve(img, round->log_reserved);
	if (ret) {
		frees_unreserve(img, ROUND_FREES);
		return ret;
	}
	round->reserved = ROUND_FREES;
	round->count = 0;
	round->pos = round->goff;
	cluster_lock(&img->locks, &round->lock, round->goff >> img->cluster_bits,
		     (round->end - 1) >> img->cluster_bits);
	while (!ret && round->pos < round->end && round->count < ROUND_SEGMENTS)
		ret = prepare_segment(round);
	/* What was prepared before the error is written; the next round meets the error again. */
	if (ret && !round->count)
		round_unlock(round);
	return round->count ? 0 : ret;
}

static bool link_entry_expected(const struct qcow2_image *img, const struct segment *seg,
				uint64_t i, struct map_entry e)
{
	switch (seg->kind) {
	case SEGMENT_NEW:
		return !(e.word & (QCOW2_COMPRESSED | MAP_PLACED));
	case SEGMENT_REUSE:
		return map_word_kind(e.word) == MAP_ZERO_ALLOC &&
		       (e.word & QCOW2_L2_OFFSET_MASK) >> img->cluster_bits == seg->hcluster + i;
	default:
		return map_entry_equal(e, seg->old);
	}
}

/* The bytes of a segment that the round writes payload to: [*from, *to), guest offsets. */
static void segment_payload(const struct round *round, const struct segment *seg, uint64_t *from,
			    uint64_t *to)
{
	unsigned bits = round->img->cluster_bits;

	*from = max_of(round->goff, seg->gcluster << bits);
	*to = min_of(round->pos, (seg->gcluster + seg->clusters) << bits);
}

/* What cluster @i of the segment's entry becomes. */
static struct map_entry link_entry(const struct round *round, const struct segment *seg, uint64_t i)
{
	const struct qcow2_image *img = round->img;
	uint64_t from, to, start = seg->gcluster << img->cluster_bits, mask;
	struct map_entry e = map_entry_data(img, (seg->hcluster + i) << img->cluster_bits);
	unsigned first, last;

	if (seg->kind != SEGMENT_SUB)
		return e;
	segment_payload(round, seg, &from, &to);
	first = (unsigned)((from - start) >> img->subcluster_bits);
	last = (unsigned)((to - 1 - start) >> img->subcluster_bits);
	mask = (UINT64_C(2) << last) - (UINT64_C(1) << first);
	e.bitmap = (seg->old.bitmap | mask) & ~(mask << QCOW2_SUBCLUSTERS);
	return e;
}

/* Links clusters [@from, ...) of @seg as far as one slice goes; how many, or -errno. */
static int64_t link_in_slice(struct round *round, const struct segment *seg, uint64_t from)
{
	struct qcow2_image *img = round->img;
	uint64_t gcluster = seg->gcluster + from;
	uint32_t index = map_slice_index(img, gcluster), end = 1u << img->l2_slice_bits;
	uint64_t n = min_of(seg->clusters - from, (uint64_t)(end - index));
	struct slice *s;
	int ret = map_slice_get(img, gcluster, &s);

	if (ret || !s)
		return ret ? ret : -EIO;
	ret = slice_begin_change(&img->l2_cache, s);
	if (ret) {
		cache_put(&img->l2_cache, s);
		return ret;
	}
	for (uint64_t i = 0; i < n; i++) {
		uint32_t at = index + (uint32_t)i;
		struct map_entry entry = map_entry_load(img, s, at);
		struct map_entry value = link_entry(round, seg, from + i);

		if (!link_entry_expected(img, seg, from + i, entry)) {
			cache_put(&img->l2_cache, s);
			return i ? (int64_t)i : -ESTALE;
		}
		reclog_entry(img, gcluster + i, entry, value);
		map_entry_store(img, s, at, value);
	}
	cache_put(&img->l2_cache, s);
	if (seg->kind == SEGMENT_COPY)
		map_entry_unref(img, seg->old.word, &round->reserved);
	return (int64_t)n;
}

static int segment_link(struct round *round, const struct segment *seg)
{
	uint64_t done = 0;
	int64_t n = round->io_ret;

	if (seg->kind == SEGMENT_IN_PLACE)
		return round->io_ret;
	while (n >= 0 && done < seg->clusters) {
		n = link_in_slice(round, seg, done);
		if (n > 0)
			done += (uint64_t)n;
	}
	/* What was not linked was never referred to. */
	if (done < seg->clusters && seg->fresh && !image_has_data_file(round->img))
		alloc_undo(round->img, seg->hcluster + done, seg->clusters - done);
	return n < 0 ? (int)n : 0;
}

static int round_link(void *arg)
{
	struct round *round = arg;
	int ret = 0;

	for (unsigned i = 0; i < round->count; i++) {
		int seg_ret = segment_link(round, &round->segments[i]);

		ret = ret ? ret : seg_ret;
	}
	round_unlock(round);
	return ret;
}

/* ---- on the queue ---- */

/* What goes before and behind a payload: memory, or zeros. */
struct around {
	void *base; /* NULL: zeros */
	uint64_t len_bytes;
	uint64_t moved_from; /* where a copy comes from; for a mutant */
};

static void part_add_around(struct part *part, const struct around *a)
{
	if (a->base)
		part_add_memory(part, a->base, a->len_bytes);
	else
		part_add_zeros(part, a->len_bytes);
}

static struct part *part_begin(struct request *r, uint64_t hoff)
{
	struct part *part = part_get(r);

	part->io.op = STORAGE_WRITE;
	part->io.offset_bytes = hoff;
	return part;
}

/*
 * Writes payload [@from, @to) and what is around it to @hoff: as one, or a payload that is in a registered
 * buffer by itself, with up to two writes beside it.
 */
static void write_around(struct request *r, uint64_t hoff, const struct around *head,
			 const struct payload *payload, uint64_t from, uint64_t to,
			 const struct around *tail)
{
	bool alone = payload->buf && !payload->buf->base;
	struct part *part = part_begin(r, hoff);

	if (mutant(MUTANT_COPY_KEEPS_TWEAK))
		part->goff = head->moved_from;
	part_add_around(part, head);
	hoff += head->len_bytes;
	if (alone && head->len_bytes) {
		part_submit(part);
		part = part_begin(r, hoff);
	}
	part_add_payload(part, payload, from, to - from);
	if (alone && tail->len_bytes) {
		part_submit(part);
		part = part_begin(r, hoff + (to - from));
	}
	part_add_around(part, tail);
	part_submit(part);
}

/* Payload alone where the rest reads right already, else with zeros around it. */
static void segment_write(struct request *r, const struct round *round, const struct segment *seg,
			  const struct payload *payload)
{
	unsigned bits = round->img->cluster_bits;
	uint64_t start = seg->gcluster << bits, end = (seg->gcluster + seg->clusters) << bits;
	bool fill = seg->kind == SEGMENT_REUSE || (seg->kind == SEGMENT_NEW && !seg->zeroed);
	struct around head = {0}, tail = {0};
	uint64_t from, to;

	segment_payload(round, seg, &from, &to);
	end = max_of(to, min_of(end, image_data_end(round->img)));
	if (fill) {
		head.len_bytes = from - start;
		tail.len_bytes = end - to;
	}
	write_around(r, (seg->hcluster << bits) + (from - start) - head.len_bytes, &head, payload, from, to,
		     &tail);
}

/* Whether the payload covers all that anybody can read of the segment. */
static bool segment_covered(const struct round *round, const struct segment *seg)
{
	unsigned bits = round->img->cluster_bits;
	uint64_t from, to;

	segment_payload(round, seg, &from, &to);
	return from == seg->gcluster << bits && to == (seg->gcluster + seg->clusters) << bits;
}

/*
 * Copy on write: what the payload leaves of the old cluster, and the payload, to the new one. The old
 * cluster is the guest's until the link, and the round's lock keeps it so.
 */
static int segment_copy(struct request *r, const struct round *round, const struct segment *seg,
			const struct payload *payload)
{
	unsigned bits = round->img->cluster_bits;
	uint64_t start = seg->gcluster << bits, end = start + round->img->cluster_bytes, from, to;
	uint8_t *buf = r->q->copy_buf;
	struct around head, tail;
	int ret = 0;

	segment_payload(round, seg, &from, &to);
	end = max_of(to, min_of(end, image_data_end(round->img)));
	head = (struct around){buf, from - start, seg->old.word & QCOW2_L2_OFFSET_MASK};
	tail = (struct around){buf + (to - start), end - to, 0};
	co_lock(&r->q->copy_lock);
	if (from > start)
		ret = read_range(r, start, from - start, buf);
	if (!ret && to < end)
		ret = read_range(r, to, end - to, buf + (to - start));
	if (!ret) {
		write_around(r, seg->hcluster << bits, &head, payload, from, to, &tail);
		ret = parts_wait(r);
	}
	co_unlock(&r->q->copy_lock);
	return ret;
}

/*
 * Subclusters: payload, and what it leaves of the first and the last one. Not where that is data in its
 * place already: a write in place may be under way there, beside this one.
 */
static int segment_sub(struct request *r, const struct round *round, const struct segment *seg,
		       const struct payload *payload)
{
	unsigned bits = round->img->subcluster_bits;
	uint64_t start = seg->gcluster << round->img->cluster_bits, from, to, first, end;
	uint8_t *buf = r->q->copy_buf;
	struct around head, tail;
	int ret = 0;

	segment_payload(round, seg, &from, &to);
	first = align_down(from, (uint64_t)1 << bits);
	end = max_of(to, min_of(align_up(to, (uint64_t)1 << bits), image_data_end(round->img)));
	if (map_subcluster_kind(seg->old, (unsigned)((first - start) >> bits)) == MAP_DATA)
		first = from;
	if (map_subcluster_kind(seg->old, (unsigned)((to - 1 - start) >> bits)) == MAP_DATA)
		end = to;
	co_lock(&r->q->copy_lock);
	if (first < from)
		ret = read_range(r, first, from - first, buf);
	if (!ret && to < end)
		ret = read_range(r, to, end - to, buf + (to - start));
	head = (struct around){buf, from - first, 0};
	tail = (struct around){buf + (to - start), end - to, 0};
	if (!ret) {
		write_around(r, (seg->hcluster << round->img->cluster_bits) + (first - start), &head, payload,
			     from, to, &tail);
		ret = parts_wait(r);
	}
	co_unlock(&r->q->copy_lock);
	return ret;
}

/* Whether the segment is written by segment_write(), with nothing to be read first. */
static bool segment_is_plain(const struct round *round, const struct segment *seg)
{
	return seg->kind != SEGMENT_SUB &&
	       (seg->kind != SEGMENT_COPY || segment_covered(round, seg));
}

static int round_write(struct request *r, const struct round *round, const struct payload *payload)
{
	int ret = 0, io_ret;

	/* First what must read, as that waits for all parts. */
	for (unsigned i = 0; !ret && i < round->count; i++) {
		const struct segment *seg = &round->segments[i];

		if (!segment_is_plain(round, seg))
			ret = seg->kind == SEGMENT_SUB ? segment_sub(r, round, seg, payload)
						       : segment_copy(r, round, seg, payload);
	}
	for (unsigned i = 0; !ret && i < round->count; i++)
		if (segment_is_plain(round, &round->segments[i]))
			segment_write(r, round, &round->segments[i], payload);
	io_ret = parts_wait(r);
	return ret ? ret : io_ret;
}

static int reclaim_on_meta(void *arg)
{
	struct qcow2_image *img = arg;
	int ret;

	if (!frees_pending(&img->frees))
		return -ENOSPC;
	ret = writeback_run(img);
	frees_reclaim(img);
	return ret ? -ENOSPC : 0;
}

int request_make_room(struct request *r)
{
	return image_call(r->q->img, reclaim_on_meta, r->q->img);
}

/* Writes [@goff, @end) in rounds. */
static int write_allocating(struct request *r, uint64_t goff, uint64_t end,
			    const struct payload *payload)
{
	struct qcow2_image *img = r->q->img;
	struct round round = {.img = img, .goff = goff};
	uint64_t span = (uint64_t)ROUND_CLUSTERS << img->cluster_bits;
	bool retried = false;

	while (round.goff < end) {
		int ret;

		round.end = min_of(end, align_down(round.goff, img->cluster_bytes) + span);
		ret = image_call(img, round_prepare, &round);

		if (!ret) {
			round.io_ret = round_write(r, &round, payload);
			if (mutant(MUTANT_ACK_BEFORE_LINK) && !round.io_ret && round.pos == end &&
			    r->req->op == BLK_WRITE && !r->req->flags) {
				request_leave(r);
				blk_request_complete(r->req, 0);
				co_sleep_ns(1000000);
				(void)image_call(img, round_link, &round);
				return REQUEST_ACKED;
			}
			ret = image_call(img, round_link, &round);
		}
		if (ret == -ENOSPC && !retried) {
			retried = true;
			ret = request_make_room(r);
			if (!ret)
				continue;
		}
		if (ret == -ESTALE)
			continue;
		if (ret)
			return ret;
		round.goff = round.pos;
	}
	return 0;
}

int write_range(struct request *r, uint64_t goff, uint64_t len_bytes, const struct payload *payload)
{
	uint64_t end = goff + len_bytes, pos = goff;
	uint64_t first = UINT64_MAX, last = 0; /* what is not to be written in place */
	unsigned epoch = epoch_enter(r->q);
	int ret = 0, io_ret;

	while (!ret && pos < end) {
		struct map_extent ext;

		ret = request_map(r, pos, end - pos, &ext);
		if (ret)
			break;
		if (ext.kind == MAP_DATA && ext.copied) {
			struct part *part = part_get(r);

			ext.len_bytes = min_of(ext.len_bytes, payload->buf ? UINT64_MAX : ZEROS_BYTES);
			part->io.op = STORAGE_WRITE;
			part->io.offset_bytes = ext.hoff;
			part_add_payload(part, payload, pos, ext.len_bytes);
			part_submit(part);
		} else {
			first = min_of(first, pos);
			last = pos + ext.len_bytes;
		}
		pos += ext.len_bytes;
	}
	io_ret = parts_wait(r);
	epoch_exit(r->q, epoch);
	ret = ret ? ret : io_ret;
	if (ret || first >= last)
		return ret;
	return r->q->img->pack.on ? write_compressed(r, first, last - first, payload)
				  : write_allocating(r, first, last, payload);
}

int write_plain(struct request *r, uint64_t goff, uint64_t len_bytes, const struct payload *payload)
{
	return write_allocating(r, goff, goff + len_bytes, payload);
}

int request_write(struct request *r)
{
	struct blk_request *req = r->req;
	struct payload payload = {&req->buf, req->offset_bytes};

	return write_range(r, req->offset_bytes, req->len_bytes, &payload);
}
