/* SPDX-License-Identifier: MIT */
/*
 * snapshot_refs.c: what an L1 table refers to, counted up and down; see snapshot.h.
 *
 * A walk goes through an L1 table in order and calls a function for each L2 table, and for runs of the
 * clusters that its entries refer to: always the same runs in the same order, as long as the tables do
 * not change, so that a walk that stopped can be taken back up to there. Tables are read from the file:
 * those of a snapshot have no place in the cache, which is ordered by guest offset, and those that were
 * active are walked only when all that was in the cache has been written.
 *
 * An image may be broken: an entry may lead to metadata, whose count would be lowered with the snapshot's, and which
 * would then be gone. Before anything is changed that is looked for, and it refuses the operation; what was
 * active is not looked through before (of a broken image much may be good), and there such a count stays.
 *
 * Bounds: an L1 table has no more L2 tables than the file has clusters, or it is broken. So a small file
 * cannot make a walk long. After every WALK_A_GO entries others get their turn on the loop.
 *
 * Requests go on during a walk, and what it goes through stays as it is all the same:
 *  1. The tables hang on an L1 table that is not the active one, a snapshot's or one that was active before
 *     (active ones are looked at one by one, under locks: snapshot_prepare.c).
 *     Until the walk has lowered it, each has a reference for that; whoever finds it in the active tables as
 *     well has another one, and copies it before the first change (map_slice_own()).
 *  2. A table has been read when its own count is lowered: from then on it may be somebody's alone, who
 *     changes it in place, or free. What it referred to is lowered by what was read.
 *  3. Counts are raised and lowered by as much as there are references, whoever else does so meanwhile: so
 *     the order does not matter, and none ever is lower than the references there are.
 *
 * Metadata loop only, in a coroutine that holds img->barrier; or no loop.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/alloc.h"
#include "qcow2/image.h"
#include "qcow2/map.h"
#include "qcow2/snapshot.h"

/* Entries of an L2 table between two turns of the loop. */
#define WALK_A_GO 512

/* All snapshots' L1 tables, of an image that is to be written. */
#define PROTECT_MAX_BYTES (256 * MiB)

/* ---- reading an L1 table ---- */

static int refs_alloc(struct snapshot_refs *r, struct qcow2_image *img, uint64_t entries,
		      struct error *err)
{
	*r = (struct snapshot_refs){.img = img, .entries = entries};
	r->l1 = calloc(max_of(entries, (uint64_t)1), sizeof(*r->l1));
	r->l2 = aligned_alloc(4096, align_up(img->cluster_bytes, 4096));
	if (r->l1 && r->l2)
		return 0;
	snapshot_refs_free(r);
	return error_set(err, -ENOMEM, "%s: no memory for a snapshot's tables", img->st->name);
}

int snapshot_refs_read(struct snapshot_refs *r, struct qcow2_image *img, uint64_t l1_offset,
		       uint64_t entries, struct error *err)
{
	uint64_t bytes = align_up(entries * sizeof(be64_t), 4096);
	be64_t *raw;
	int ret = refs_alloc(r, img, entries, err);

	if (ret || !entries)
		return ret;
	raw = aligned_alloc(4096, bytes);
	ret = raw ? storage_pread(img->st, l1_offset, raw, bytes) : -ENOMEM;
	for (uint64_t i = 0; !ret && i < entries; i++)
		r->l1[i] = be64_get(raw[i]);
	free(raw);
	if (!ret)
		return 0;
	snapshot_refs_free(r);
	return error_set(err, ret, "%s: cannot read the snapshot's L1 table at %" PRIu64 ": %s",
			 img->st->name, l1_offset, strerror(-ret));
}

int snapshot_refs_none(struct snapshot_refs *r, struct qcow2_image *img, struct error *err)
{
	return refs_alloc(r, img, img->l1.entries, err);
}

int snapshot_refs_active(struct snapshot_refs *r, struct qcow2_image *img, struct error *err)
{
	int ret = refs_alloc(r, img, img->l1.entries, err);

	for (uint64_t i = 0; !ret && i < img->l1.entries; i++)
		r->l1[i] = table_get(&img->l1, i);
	return ret;
}

void snapshot_refs_free(struct snapshot_refs *r)
{
	free(r->l1);
	free(r->l2);
	*r = (struct snapshot_refs){0};
}

/* ---- the walk ---- */

struct walk {
	struct snapshot_refs *r;
	struct error *err;
	/* A run; a compressed cluster's host clusters may come again. May suspend. */
	int (*fn)(struct walk *w, uint64_t hcluster, uint64_t count, bool compressed);
	uint64_t hcluster, count; /* being collected */
	uint64_t left;		  /* references to go; for a walk back */
	bool lowers;
	bool at_table; /* what the function is called for is a table, not what its entries refer to */
	/* check: */
	bool raise, flagged;
	uint64_t end;	  /* past all that is referred to */
	bool of_snapshot; /* not the active tables, which are metadata by right */
	uint64_t *tight; /* host clusters of compressed ones that may be too many */
	size_t tights, tights_room;
};

static int broken(struct walk *w, const char *what, uint64_t value)
{
	return error_set(w->err, -EIO, "%s: the image is corrupt: %s (%#" PRIx64 ")",
			 w->r->img->st->name, what, value);
}

static int flush(struct walk *w)
{
	uint64_t count = w->count;

	w->count = 0;
	return count ? w->fn(w, w->hcluster, count, false) : 0;
}

static int walk_cluster(struct walk *w, uint64_t hcluster)
{
	int ret = 0;

	if (w->count && w->hcluster + w->count == hcluster) {
		w->count++;
		return 0;
	}
	ret = flush(w);
	w->hcluster = hcluster;
	w->count = 1;
	return ret;
}

static int walk_entry(struct walk *w, uint64_t entry)
{
	const struct qcow2_image *img = w->r->img;
	uint64_t count, first = map_entry_hclusters(img, entry, &count);
	int ret;

	w->flagged |= entry & QCOW2_COPIED;
	if (!count)
		return 0;
	if (first + count > img->hclusters_max)
		return broken(w, "an L2 entry points outside of any file", entry);
	if (!(entry & QCOW2_COMPRESSED)) {
		if (entry & (img->cluster_bytes - 1) & QCOW2_L2_OFFSET_MASK)
			return broken(w, "an L2 entry is not cluster aligned", entry);
		return walk_cluster(w, first);
	}
	ret = flush(w);
	return ret ? ret : w->fn(w, first, count, true);
}

/* What the table in r->l2 refers to. */
static int walk_entries(struct walk *w)
{
	struct snapshot_refs *r = w->r;
	struct qcow2_image *img = r->img;
	uint64_t words = (img->cluster_bytes / sizeof(be64_t)) >> img->l2_bits;
	int ret = 0;

	for (uint64_t i = 0; !ret && i < (uint64_t)1 << img->l2_bits; i++) {
		ret = walk_entry(w, be64_get(r->l2[i * words]));
		if (ret || (i + 1) % WALK_A_GO)
			continue;
		ret = flush(w);
		if (img->meta_loop)
			co_yield();
	}
	return ret ? ret : flush(w);
}

static int walk_table_itself(struct walk *w, uint64_t hoff)
{
	int ret;

	w->at_table = true;
	ret = w->fn(w, hoff >> w->r->img->cluster_bits, 1, false);
	w->at_table = false;
	return ret;
}

/* The table at @hoff, which is in r->l2. */
static int walk_loaded(struct walk *w, uint64_t hoff)
{
	int ret = walk_table_itself(w, hoff);

	return ret ? ret : walk_entries(w);
}

static int walk_table(struct walk *w, uint64_t hoff)
{
	struct snapshot_refs *r = w->r;
	bool early = mutant(MUTANT_SNAPSHOT_COUNT_FIRST) && w->lowers; /* not invariant 2 */
	int ret = early ? walk_table_itself(w, hoff) : 0;

	if (!ret)
		ret = storage_pread(r->img->st, hoff, r->l2, r->img->cluster_bytes);
	if (ret)
		return error_set(w->err, ret, "%s: cannot read the L2 table at %" PRIu64 ": %s",
				 r->img->st->name, hoff, strerror(-ret));
	return early ? walk_entries(w) : walk_loaded(w, hoff);
}

static bool table_place_valid(const struct qcow2_image *img, uint64_t hoff)
{
	return is_aligned(hoff, img->cluster_bytes) && hoff < img->st->size_bytes &&
	       img->cluster_bytes <= img->st->size_bytes - hoff;
}

/* An L1 entry that is not 0. */
static int l1_entry_check(struct walk *w, uint64_t entry)
{
	uint64_t hoff = entry & QCOW2_L1_OFFSET_MASK;

	if (entry & QCOW2_L1_RESERVED || !hoff || !table_place_valid(w->r->img, hoff))
		return broken(w, "an L1 entry is invalid", entry);
	return 0;
}

static int walk_l1(struct walk *w)
{
	struct snapshot_refs *r = w->r;
	uint64_t tables = 0, most = div_up(r->img->st->size_bytes, r->img->cluster_bytes);
	int ret = 0;

	for (uint64_t i = 0; !ret && i < r->entries && w->left; i++) {
		uint64_t entry = r->l1[i], hoff = entry & QCOW2_L1_OFFSET_MASK;

		if (!entry)
			continue;
		ret = l1_entry_check(w, entry);
		if (ret)
			return ret;
		if (++tables > most)
			return broken(w, "an L1 table has more L2 tables than there is room for",
				      tables);
		ret = walk_table(w, hoff);
	}
	return ret;
}

/*
 * Whether a reference to @hcluster, whose count is @value, leads to metadata that is somebody else's: any for what
 * an entry refers to; for a table one that is the active tables' as well, without being counted for both.
 */
static bool is_foreign(const struct walk *w, uint64_t hcluster, uint64_t value)
{
	const struct metaset *m = &w->r->img->metaset;

	return w->at_table ? value == 1 && metaset_has_own(m, hcluster) : metaset_has(m, hcluster);
}

/* ---- whether it can be counted ---- */

/* With a compressed one, more than one reference may come to the same cluster. */
static int note_tight(struct walk *w, uint64_t hcluster)
{
	if (w->tights == w->tights_room) {
		size_t room = max_of(w->tights_room * 2, (size_t)64);
		uint64_t *more = realloc(w->tight, room * sizeof(*more));

		if (!more)
			return error_set(w->err, -ENOMEM, "no memory to count references");
		w->tight = more;
		w->tights_room = room;
	}
	w->tight[w->tights++] = hcluster;
	return 0;
}

static int too_many(const struct walk *w)
{
	const struct qcow2_image *img = w->r->img;

	return error_set(w->err, -EFBIG,
			 "%s: a cluster would have more than %" PRIu64
			 " reference%s, which is all that refcounts of %u bit%s can say",
			 img->st->name, img->refcount_max, img->refcount_max == 1 ? "" : "s", img->hdr.refcount_bits,
			 img->hdr.refcount_bits == 1 ? "" : "s");
}

static int check_run(struct walk *w, uint64_t hcluster, uint64_t count, bool compressed)
{
	struct qcow2_image *img = w->r->img;

	for (uint64_t c = hcluster; c < hcluster + count; c++) {
		uint64_t value;
		int ret = refcount_get(img, c, &value);

		if (ret)
			return error_set(w->err, ret, "%s: cannot read refcounts: %s",
					 img->st->name, strerror(-ret));
		if (!value)
			return broken(w, "a cluster in use has refcount 0", c << img->cluster_bits);
		if ((w->of_snapshot || !w->at_table) && is_foreign(w, c, value))
			return broken(w, "a cluster is used for metadata as well", c << img->cluster_bits);
		if (w->raise && value == img->refcount_max)
			return too_many(w);
		if (w->raise && compressed && value > img->refcount_max / 2)
			ret = note_tight(w, c);
		if (ret)
			return ret;
	}
	return 0;
}

static int compare_numbers(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static int check_tights(struct walk *w)
{
	if (w->tights)
		qsort(w->tight, w->tights, sizeof(*w->tight), compare_numbers);
	for (size_t i = 0, n; i < w->tights; i += n) {
		uint64_t value;
		int ret = refcount_get(w->r->img, w->tight[i], &value);

		for (n = 1; i + n < w->tights && w->tight[i + n] == w->tight[i]; n++)
			;
		if (ret)
			return error_set(w->err, ret, "cannot read refcounts: %s", strerror(-ret));
		if (n > w->r->img->refcount_max - value)
			return too_many(w);
	}
	return 0;
}

int snapshot_refs_check(struct snapshot_refs *r, bool raise, struct error *err)
{
	struct walk w = {
		.r = r, .err = err, .fn = check_run, .left = UINT64_MAX, .raise = raise, .of_snapshot = true};
	int ret = walk_l1(&w);

	if (!ret)
		ret = check_tights(&w);
	free(w.tight);
	r->flagged = w.flagged;
	return ret;
}

/* ---- counting ---- */

static int raise_run(struct walk *w, uint64_t hcluster, uint64_t count, bool compressed)
{
	uint64_t done;
	int ret = refcount_raise(w->r->img, hcluster, count, &done);

	w->r->raised += done;
	if (ret == -EFBIG)
		return too_many(w);
	if (ret)
		error_set(w->err, ret, "%s: cannot raise refcounts: %s", w->r->img->st->name,
			  strerror(-ret));
	return ret;
}

int snapshot_refs_raise(struct snapshot_refs *r, struct error *err)
{
	struct walk w = {.r = r, .err = err, .fn = raise_run, .left = UINT64_MAX};

	r->raised = 0;
	return walk_l1(&w);
}

static int unraise_run(struct walk *w, uint64_t hcluster, uint64_t count, bool compressed)
{
	count = min_of(count, w->left);
	w->left -= count;
	if (count)
		refcount_lower(w->r->img, hcluster, count);
	return 0;
}

void snapshot_refs_unraise(struct snapshot_refs *r)
{
	struct error err = {0};
	struct walk w = {.r = r, .err = &err, .fn = unraise_run, .left = r->raised};

	if (walk_l1(&w))
		log_warn("%s: some clusters stay counted that nothing refers to: %s",
			 r->img->st->name, err.text);
	r->raised = 0;
}

static bool is_to_stay(const struct walk *w, uint64_t hcluster)
{
	uint64_t value = 0;

	if (w->at_table && refcount_get(w->r->img, hcluster, &value))
		return true;
	return is_foreign(w, hcluster, value) && !mutant(MUTANT_SNAPSHOT_APPLY_EARLY);
}

static int lower_run(struct walk *w, uint64_t hcluster, uint64_t count, bool compressed)
{
	struct qcow2_image *img = w->r->img;

	while (count) {
		uint64_t n = 0;

		while (n < count && !is_to_stay(w, hcluster + n))
			n++;
		if (n)
			refcount_release(img, hcluster, n);
		if (n < count) {
			image_corrupt(img, "host cluster %#llx is used for metadata as well",
				      (unsigned long long)((hcluster + n) << img->cluster_bits));
			n++;
		}
		hcluster += n;
		count -= n;
	}
	return 0;
}

int snapshot_refs_lower(struct snapshot_refs *r, struct error *err)
{
	struct walk w = {.r = r, .err = err, .fn = lower_run, .left = UINT64_MAX, .lowers = true};

	return walk_l1(&w);
}

static int end_run(struct walk *w, uint64_t hcluster, uint64_t count, bool compressed)
{
	w->end = max_of(w->end, hcluster + count);
	return 0;
}

int snapshot_refs_end(struct snapshot_refs *r, uint64_t *hcluster, struct error *err)
{
	struct walk w = {.r = r, .err = err, .fn = end_run, .left = UINT64_MAX};
	int ret = walk_l1(&w);

	*hcluster = w.end;
	return ret;
}

int snapshot_refs_protect(struct snapshot_refs *r)
{
	for (uint64_t i = 0; i < r->entries; i++) {
		uint64_t hoff = r->l1[i] & QCOW2_L1_OFFSET_MASK;
		int ret = 0;

		if (hoff && table_place_valid(r->img, hoff))
			ret = metaset_add(&r->img->snapset, hoff >> r->img->cluster_bits);
		if (ret && ret != -EEXIST)
			return ret;
	}
	return 0;
}

/* ---- one table of the active ones ---- */

/* Table @index as it is in memory, to r->l2. */
static int table_load(struct walk *w, uint64_t index)
{
	struct qcow2_image *img = w->r->img;
	uint64_t per_slice = (uint64_t)1 << img->l2_slice_bits;
	uint8_t *to = (uint8_t *)w->r->l2;

	for (uint64_t k = 0; k < (uint64_t)1 << img->l2_bits; k += per_slice) {
		struct slice *s;
		int ret = map_slice_get(img, (index << img->l2_bits) + k, &s);

		if (ret || !s)
			return error_set(w->err, ret ? ret : -EIO, "%s: cannot read L2 tables: %s",
					 img->st->name, strerror(ret ? -ret : EIO));
		memcpy(to, s->data, img->slice_bytes);
		to += img->slice_bytes;
		cache_put(&img->l2_cache, s);
	}
	return 0;
}

int snapshot_table_check(struct snapshot_refs *r, uint64_t index, struct error *err)
{
	struct walk w = {.r = r, .err = err, .fn = check_run, .left = UINT64_MAX, .raise = true};
	uint64_t entry = table_get(&r->img->l1, index);
	int ret = entry ? l1_entry_check(&w, entry) : 0;

	if (ret || !entry)
		return ret;
	ret = table_load(&w, index);
	if (!ret)
		ret = walk_loaded(&w, entry & QCOW2_L1_OFFSET_MASK);
	if (!ret)
		ret = check_tights(&w);
	free(w.tight);
	return ret;
}

int snapshot_table_raise(struct snapshot_refs *r, uint64_t hoff, struct error *err)
{
	struct walk w = {.r = r, .err = err, .fn = raise_run, .left = UINT64_MAX};
	struct error ignored = {0};
	struct walk back = {.r = r, .err = &ignored, .fn = unraise_run};
	int ret;

	r->raised = 0;
	ret = walk_table(&w, hoff);
	back.left = r->raised;
	if (ret && back.left && walk_loaded(&back, hoff))
		log_warn("%s: some clusters stay counted that nothing refers to", r->img->st->name);
	return ret;
}

int snapshot_table_lower(struct snapshot_refs *r, uint64_t hoff, struct error *err)
{
	struct walk w = {.r = r, .err = err, .fn = lower_run, .left = UINT64_MAX, .lowers = true};

	return walk_table(&w, hoff);
}

/* ---- COPIED ---- */

int snapshot_refs_clear_copied(struct snapshot_refs *r, struct error *err)
{
	struct qcow2_image *img = r->img;
	uint64_t n = img->cluster_bytes / sizeof(be64_t), words = n >> img->l2_bits;
	int ret = 0;

	for (uint64_t i = 0; !ret && i < r->entries; i++) {
		uint64_t hoff = r->l1[i] & QCOW2_L1_OFFSET_MASK;
		bool any = false;

		if (!hoff)
			continue;
		ret = storage_pread(img->st, hoff, r->l2, img->cluster_bytes);
		for (uint64_t k = 0; !ret && k < n; k += words) {
			uint64_t entry = be64_get(r->l2[k]);

			any |= entry & QCOW2_COPIED;
			r->l2[k] = be64_make(entry & ~QCOW2_COPIED);
		}
		if (ret || !any)
			continue;
		ret = storage_pwrite(img->st, hoff, r->l2, img->cluster_bytes);
		img->wb.meta_writes++;
	}
	if (ret)
		error_set(err, ret, "%s: cannot rewrite the snapshot's L2 tables: %s",
			  img->st->name, strerror(-ret));
	return ret;
}

/* The slice of active table @index that begins with entry @first; NULL where there is no table. */
static int active_slice(struct qcow2_image *img, uint64_t index, uint64_t first, struct slice **out)
{
	return map_slice_get(img, (index << img->l2_bits) + first, out);
}

static int clear_in_slice(struct qcow2_image *img, uint64_t index, uint64_t first)
{
	uint32_t n = 1u << img->l2_slice_bits;
	bool any = false;
	struct slice *s;
	int ret = active_slice(img, index, first, &s);

	if (ret || !s)
		return ret;
	for (uint32_t i = 0; i < n; i++)
		any |= map_entry_load(img, s, i).word & QCOW2_COPIED;
	if (any)
		ret = slice_begin_change(&img->l2_cache, s);
	for (uint32_t i = 0; !ret && any && i < n; i++) {
		struct map_entry entry = map_entry_load(img, s, i);

		if (!(entry.word & QCOW2_COPIED))
			continue;
		entry.word &= ~QCOW2_COPIED;
		map_entry_store(img, s, i, entry);
	}
	cache_put(&img->l2_cache, s);
	return ret;
}

int snapshot_table_clear_copied(struct qcow2_image *img, uint64_t index, bool *any)
{
	uint64_t per_slice = (uint64_t)1 << img->l2_slice_bits;
	uint64_t entry = table_get(&img->l1, index), count = 2;
	int ret = 0;

	*any = false;
	/*
	 * A table that is shared already has no such entries. The flag alone does not tell: when
	 * flags are set again after a delete, those in L2 tables are on disk first.
	 */
	if (!(entry & QCOW2_COPIED) && entry & QCOW2_L1_OFFSET_MASK && !(entry & L1_BROKEN))
		ret = refcount_get(img, (entry & QCOW2_L1_OFFSET_MASK) >> img->cluster_bits, &count);
	if (ret || (!(entry & QCOW2_COPIED) && count > 1))
		return ret;
	for (uint64_t k = 0; !ret && k < (uint64_t)1 << img->l2_bits; k += per_slice)
		ret = clear_in_slice(img, index, k);
	if (!ret)
		table_set(&img->l1, img, index, entry & ~QCOW2_COPIED);
	*any = true;
	return ret;
}

/* ---- at open ---- */

static int protect_range(struct qcow2_image *img, uint64_t hoff, uint64_t bytes)
{
	uint64_t first = hoff >> img->cluster_bits, n = div_up(bytes, img->cluster_bytes);
	int ret = 0;

	for (uint64_t i = 0; !ret && i < n; i++) {
		ret = metaset_add(&img->snapset, first + i);
		if (ret == -EEXIST)
			ret = 0;
	}
	return ret;
}

static int protect_one(struct qcow2_image *img, const struct snapshot *s, uint64_t *total,
		       struct error *err)
{
	uint64_t bytes = (uint64_t)s->l1_entries * sizeof(be64_t);
	struct snapshot_refs r;
	int ret;

	if (!snapshot_l1_valid(s, &img->hdr, img->st->size_bytes))
		return error_set(err, -EINVAL,
				 "%s: the image is corrupt: snapshot %s has no valid L1 table (the image "
				 "can be attached with --read-only)",
				 img->st->name, s->id);
	*total += bytes;
	if (*total > PROTECT_MAX_BYTES)
		return error_set(err, -EFBIG,
				 "%s: the snapshots' L1 tables are larger than %llu bytes in all (the "
				 "image can be attached with --read-only)",
				 img->st->name, (unsigned long long)PROTECT_MAX_BYTES);
	ret = snapshot_refs_read(&r, img, s->l1_offset, s->l1_entries, err);
	if (ret)
		return ret;
	ret = protect_range(img, s->l1_offset, bytes);
	if (!ret)
		ret = snapshot_refs_protect(&r);
	snapshot_refs_free(&r);
	return ret ? error_set(err, ret, "no memory for the map of metadata") : 0;
}

int snapshot_protect_all(struct qcow2_image *img, struct error *err)
{
	struct snapshot_list l;
	uint64_t total = 0;
	int ret;

	if (img->read_only)
		return 0;
	ret = snapshot_list_read(&l, img->st, &img->hdr, err);
	if (ret)
		return ret;
	if (protect_range(img, img->hdr.snapshots_offset, l.table_bytes))
		ret = error_set(err, -ENOMEM, "no memory for the map of metadata");
	for (uint32_t i = 0; !ret && i < l.count; i++)
		ret = protect_one(img, &l.v[i], &total, err);
	snapshot_list_free(&l);
	return ret;
}

int snapshot_select(struct qcow2_image *img, const char *name, struct error *err)
{
	struct qcow2_header *h = &img->hdr;
	struct snapshot_list l;
	const struct snapshot *s;
	int64_t at;
	int ret = snapshot_list_read(&l, img->st, h, err);

	if (ret)
		return ret;
	at = snapshot_find(&l, name);
	s = at < 0 ? NULL : &l.v[at];
	if (!s)
		ret = error_set(err, -ENOENT, "%s: has no snapshot \"%s\"", img->st->name, name);
	else if (!snapshot_l1_valid(s, h, img->st->size_bytes) ||
		 qcow2_l1_entries_for(s->disk_bytes, h->cluster_bits, h->l2_bits) > s->l1_entries)
		ret = error_set(err, -EINVAL, "%s: the image is corrupt: snapshot %s has no valid L1 table",
				img->st->name, s->id);
	if (!ret) {
		h->l1_offset = s->l1_offset;
		h->l1_entries = s->l1_entries;
		h->size_bytes = s->disk_bytes;
	}
	snapshot_list_free(&l);
	return ret;
}
