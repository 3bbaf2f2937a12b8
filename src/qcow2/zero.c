/* SPDX-License-Identifier: MIT */
/*
 * zero.c: WRITE_ZEROES and DISCARD.
 *
 * Whole clusters go through the map, in batches under a cluster lock (rule 8); the clusters that they
 * leave are freed by rule 4. The last cluster of the disk counts as whole if the range reaches the
 * disk's end. What is left of a WRITE_ZEROES at the edges is written as zeros, where it does not read
 * as zeros already; of a DISCARD it is left alone, as QEMU does.
 *
 * A place that a zeroed cluster keeps (NOUNMAP), or gets again as there is no other (a data file), is one
 * that is given away and taken anew, so what reads or writes there since before ends first, as in rule 4. Else
 * a write that the zeros have replaced would be back when the next one makes the place data again.
 *
 * Where there is no backing file, or it has ended, an unallocated cluster reads as zeros, in either version.
 * Above a backing file it is the zero flag that hides what is below; version 2 has none, so there a
 * DISCARD does nothing and a WRITE_ZEROES writes.
 */
#include <errno.h>

#include "base/log.h"
#include "qcow2/request.h"

#define UNMAP_BATCH 256

struct unmap {
	struct qcow2_image *img;
	uint64_t first_gcluster, end_gcluster;
	bool keep; /* NOUNMAP: the clusters stay allocated */
};

/* Whether something may be below a guest cluster. */
static bool backed(const struct qcow2_image *img, uint64_t gcluster)
{
	return img->chain && chain_reaches(img->chain, gcluster << img->cluster_bits);
}

/* The entry that makes guest cluster @g read as zeros; @entry itself if it does already. */
static struct map_entry zero_entry(const struct unmap *u, uint64_t g, struct map_entry entry)
{
	bool below = backed(u->img, g), extended = u->img->extended_l2;
	/* the cluster reads as zeros whatever is below */
	const struct map_entry zero = {extended ? 0 : QCOW2_ZERO,
				       extended ? QCOW2_SUBCLUSTERS_ZERO_MASK : 0};
	const struct map_entry nothing = below ? zero : (struct map_entry){0};
	bool placed = map_word_placed(entry.word);

	if (entry.word & QCOW2_COMPRESSED) /* has no cluster of its own that could stay */
		return u->keep ? zero : nothing;
	if (placed && u->keep)
		return (struct map_entry){entry.word | zero.word, zero.bitmap};
	if (placed || below)
		return nothing;
	return entry;
}

/* Whether the cluster's next write may go to where requests that still see @entry are at work. */
static bool place_is_kept(const struct qcow2_image *img, struct map_entry entry, struct map_entry zeroed)
{
	bool data = img->extended_l2 ? entry.bitmap & QCOW2_SUBCLUSTERS_ALLOC_MASK
				     : map_word_kind(entry.word) == MAP_DATA;

	return data && map_word_placed(entry.word) &&
	       (map_word_placed(zeroed.word) || image_has_data_file(img));
}

/* Whether any of clusters [@first, @end) of one slice is to change: else a shared table stays shared. */
static int unmap_changes(struct unmap *u, uint64_t first, uint64_t end, bool *any)
{
	struct qcow2_image *img = u->img;
	struct slice *s;
	int ret = map_slice_get(img, first, &s);

	*any = !ret && !s && backed(img, first);
	if (ret || !s)
		return ret;
	for (uint64_t g = first; g < end && !*any; g++) {
		uint32_t index = map_slice_index(img, g);
		struct map_entry entry = map_entry_load(img, s, index);

		*any = map_entry_is_bad(s, index) || !map_entry_equal(zero_entry(u, g, entry), entry);
	}
	cache_put(&img->l2_cache, s);
	return 0;
}

/* Clusters [@first, @end) of one slice; under their lock. */
static int unmap_in_slice(struct unmap *u, uint64_t first, uint64_t end, unsigned *reserved)
{
	struct qcow2_image *img = u->img;
	struct slice *s;
	bool any, kept = false;
	int ret = unmap_changes(u, first, end, &any), broken = 0;

	if (ret || !any)
		return ret;
	ret = map_slice_own(img, first, reserved, &s);
	if (ret || !s)
		return ret;
	ret = slice_begin_change(&img->l2_cache, s);
	if (ret) {
		cache_put(&img->l2_cache, s);
		return ret;
	}
	for (uint64_t g = first; g < end; g++) {
		uint32_t index = map_slice_index(img, g);
		struct map_entry entry = map_entry_load(img, s, index);
		struct map_entry zeroed = zero_entry(u, g, entry);

		if (map_entry_is_bad(s, index)) {
			broken = -EIO;
			continue;
		}
		if (map_entry_equal(zeroed, entry))
			continue;
		reclog_entry(img, g, entry, zeroed);
		map_entry_store(img, s, index, zeroed);
		if (!map_word_placed(zeroed.word))
			map_entry_unref(img, entry.word, reserved);
		kept |= place_is_kept(img, entry, zeroed);
	}
	cache_put(&img->l2_cache, s);
	if (kept && !mutant(MUTANT_ZEROED_REUSED_EARLY))
		image_grace(img);
	return broken;
}

/*
 * What is unlinked in a data file that is not raw gives its space back. Before the unlinking and under
 * the clusters' lock: afterwards somebody may write there again, as a cluster's place is always the
 * same. Best effort.
 */
static void punch_data_file(struct unmap *u, uint64_t first, uint64_t end)
{
	struct qcow2_image *img = u->img;
	unsigned bits = img->cluster_bits;

	/* holes that are still mapped after a crash are zeros, but not where they are decrypted */
	if ((img->crypto && !mutant(MUTANT_PUNCH_ENCRYPTED)) || u->keep || !image_has_data_file(img) || !img->data->can_punch || img->discard_ignore ||
	    !table_get(&img->l1, first >> img->l2_bits))
		return;
	if (storage_punch(img->data, first << bits, min_of(end << bits, image_data_end(img)) - (first << bits)))
		log_debug("%s: a hole was not punched", img->data->name);
}

static int unmap_on_meta(void *arg)
{
	struct unmap *u = arg;
	struct qcow2_image *img = u->img;
	uint64_t per_slice = (uint64_t)1 << img->l2_slice_bits;
	uint64_t per_table = (uint64_t)1 << img->l2_bits;
	uint64_t g = u->first_gcluster;
	int ret = 0;

	while (g < u->end_gcluster) {
		uint64_t end = min_of(u->end_gcluster, align_down(g, per_slice) + per_slice);
		struct cluster_lock lock;
		uint64_t records;
		unsigned reserved;
		int batch_ret;

		if (!table_get(&img->l1, g >> img->l2_bits) && !backed(img, g)) {
			/*
			 * Nothing is mapped. A write that makes the table right now has not
			 * completed, so either order is right.
			 */
			g = align_down(g, per_table) + per_table;
			continue;
		}
		end = min_of(end, g + UNMAP_BATCH);
		reserved = (unsigned)(end - g) * MAP_ENTRY_HCLUSTERS_MAX + 1; /* a table that was shared */
		records = reclog_need(img, end - g);
		batch_ret = frees_reserve(img, reserved);
		if (batch_ret)
			return batch_ret;
		batch_ret = reclog_reserve(img, records);
		if (batch_ret) {
			frees_unreserve(img, reserved);
			return batch_ret;
		}
		cluster_lock(&img->locks, &lock, g, end - 1);
		punch_data_file(u, g, end);
		batch_ret = unmap_in_slice(u, g, end, &reserved);
		cluster_unlock(&img->locks, &lock);
		frees_unreserve(img, reserved);
		reclog_unreserve(img, records);
		ret = ret ? ret : batch_ret;
		g = end;
	}
	return ret;
}

/* Above a backing file that takes L2 tables, for which there may be room only once frees are through. */
static int unmap(struct request *r, struct unmap *u)
{
	int ret = image_call(u->img, unmap_on_meta, u);

	if (ret == -ENOSPC && !request_make_room(r))
		ret = image_call(u->img, unmap_on_meta, u);
	return ret;
}

/* Whether the map cannot say that a cluster reads as zeros: version 2 above a backing file. */
static bool zeros_need_writing(const struct qcow2_image *img)
{
	return img->hdr.version < 3 && img->chain;
}

/* Writes zeros to what does not read as zeros in [@goff, @end). */
static int zero_by_writing(struct request *r, uint64_t goff, uint64_t end)
{
	const struct payload zeros = {NULL, 0};
	int ret = 0;

	while (!ret && goff < end) {
		struct map_extent ext;

		ret = request_lookup(r, goff, end - goff, &ext);
		if (!ret && ext.kind != MAP_UNALLOCATED && ext.kind != MAP_ZERO &&
		    ext.kind != MAP_ZERO_ALLOC) {
			/* one cluster at a time, so that a part's vector can hold the zeros */
			ext.len_bytes = min_of(ext.len_bytes,
					       r->q->img->cluster_bytes -
						       (goff & (r->q->img->cluster_bytes - 1)));
			ret = write_range(r, goff, ext.len_bytes, &zeros);
		}
		goff += ext.len_bytes;
	}
	return ret;
}

/*
 * A raw data file is read without the map: zeros go to the file itself, in [@goff, @end), and the map stays
 * as it is.
 */
static int zero_raw(struct request *r, uint64_t goff, uint64_t end, bool keep)
{
	struct qcow2_image *img = r->q->img;
	bool punch = img->data->can_punch && !keep;
	unsigned epoch = epoch_enter(r->q);
	uint64_t from = goff;
	int ret = 0, io_ret;

	while (!ret && goff < end) {
		struct map_extent ext;

		ret = request_map(r, goff, end - goff, &ext);
		if (!ret && ext.kind == MAP_BROKEN)
			ret = -EIO;
		if (!ret && ext.kind == MAP_DATA) {
			struct part *part = part_get(r);

			part->io.op = punch ? STORAGE_PUNCH : STORAGE_ZERO;
			part->io.offset_bytes = ext.hoff;
			part->io.len_bytes = ext.len_bytes;
			part_submit(part);
		}
		goff += ext.len_bytes;
	}
	io_ret = parts_wait(r);
	epoch_exit(r->q, epoch);
	if (!ret && io_ret == -EOPNOTSUPP)
		return zero_by_writing(r, from, end);
	return ret ? ret : io_ret;
}

/* The whole clusters of a request's range: [*first, *end), empty if *first >= *end. */
static void whole_clusters(const struct request *r, uint64_t *first, uint64_t *end)
{
	const struct qcow2_image *img = r->q->img;
	uint64_t from = r->req->offset_bytes, to = from + r->req->len_bytes;

	*first = div_up(from, img->cluster_bytes);
	*end = to == img->size_bytes ? div_up(to, img->cluster_bytes) : to >> img->cluster_bits;
}

int request_zero(struct request *r)
{
	struct qcow2_image *img = r->q->img;
	struct unmap u = {.img = img, .keep = r->flags & BLK_NOUNMAP};
	uint64_t from = r->req->offset_bytes, to = from + r->req->len_bytes;
	uint64_t whole_from, whole_to;
	int ret;

	if (img->data_raw)
		return zero_raw(r, from, to, u.keep);
	whole_clusters(r, &u.first_gcluster, &u.end_gcluster);
	/* version 2 has no zero flag: clusters that are to stay are written */
	if (u.first_gcluster >= u.end_gcluster || (u.keep && img->hdr.version < 3) ||
	    zeros_need_writing(img))
		return zero_by_writing(r, from, to);
	whole_from = u.first_gcluster << img->cluster_bits;
	whole_to = min_of(to, u.end_gcluster << img->cluster_bits);
	ret = zero_by_writing(r, from, whole_from);
	if (!ret)
		ret = unmap(r, &u);
	if (!ret)
		ret = zero_by_writing(r, whole_to, to);
	return ret;
}

int request_discard(struct request *r)
{
	struct unmap u = {.img = r->q->img};

	whole_clusters(r, &u.first_gcluster, &u.end_gcluster);
	if (u.first_gcluster >= u.end_gcluster || zeros_need_writing(u.img))
		return 0;
	if (u.img->data_raw)
		return zero_raw(r, u.first_gcluster << u.img->cluster_bits,
				min_of(u.end_gcluster << u.img->cluster_bits, u.img->size_bytes), false);
	return unmap(r, &u);
}
