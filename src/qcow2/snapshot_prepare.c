/* SPDX-License-Identifier: MIT */
/*
 * snapshot_prepare.c: what a new snapshot refers to, counted while writes go on; see snapshot.h.
 *
 * A snapshot is a copy of the L1 table, and a reference more to all that hangs on it. Of a large disk that is
 * millions of clusters, which must not take as long as I/O can be held back. So the L2 tables are counted one
 * by one before, each as if it belonged to a snapshot already, and r->l1 says which ones have been:
 *
 *	1. Under a lock on the guest clusters that the table maps: COPIED is cleared in its entries and in
 *	   its L1 entry, in memory; and a grace period passes.
 *	2. A pass.
 *	3. Under the lock again: if the L1 entry is still what 1 made of it, nobody has changed the table since
 *	   (who does takes it into possession first, map_slice_own(), and that sets COPIED or moves it). It
 *	   gets a reference, and so does each cluster that it maps.
 *
 * From then on a write does what it does with any snapshot: it copies the table, and the cluster. The L1 entry
 * then is another one than r->l1 has: the table that was counted is given back, and its successor is
 * counted in the next round. The last round is made while writes are held back, and has to do only what
 * changed since the one before.
 *
 * Invariants:
 *  1. A count is raised when COPIED is durably clear in whatever refers to the cluster (rule 10).
 *  2. A cluster is not copied while a write in place to it may be in flight, which would be lost (rule 8): the
 *     writes in place that found the flag set have ended with the grace period, and until then the lock
 *     keeps out everybody who would copy.
 *  3. A write in place that was in flight at 1 and lands after 3 is part of the snapshot, as is right: the
 *     switch comes after all writes that were submitted before it, since it drains them.
 *  4. Nothing durable knows of these counts before the switch: a crash or a kill leaves counts that are too
 *     high, and flags that are clear.
 *  5. A table in r->l1 stays as it is: it has two references, or one of ours alone.
 *
 * Metadata loop, in a coroutine that holds img->barrier; or no loop.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/alloc.h"
#include "qcow2/image.h"
#include "qcow2/map.h"
#include "qcow2/snapshot.h"

/* Tables that are locked at once; and slices of them, which the cache has to hold changed. */
#define BATCH_TABLES 32
#define BATCH_SLICES 512

struct batch {
	struct snapshot_refs *r;
	bool held;
	unsigned count, most;
	uint64_t index[BATCH_TABLES]; /* ascending */
	uint64_t entry[BATCH_TABLES]; /* the L1 entry after step 1 */
	struct cluster_lock lock;
};

static uint64_t table_of(const struct snapshot_refs *r, uint64_t index)
{
	return table_get(&r->img->l1, index) & QCOW2_L1_OFFSET_MASK;
}

/* Whether the table of L1 entry @index is still to be counted. */
static bool table_is_left(const struct snapshot_refs *r, uint64_t index)
{
	uint64_t hoff = table_of(r, index);

	return hoff && r->l1[index] != hoff;
}

static void batch_init(struct batch *b, struct snapshot_refs *r, bool held)
{
	const struct qcow2_image *img = r->img;
	unsigned slices = 1u << (img->l2_bits - img->l2_slice_bits);
	unsigned most = min_of((unsigned)BATCH_SLICES, img->l2_cache.changed_max / 2) / slices;

	*b = (struct batch){.r = r, .held = held};
	b->most = min_of(max_of(most, 1u), (unsigned)BATCH_TABLES);
}

/* The next ones from @next on; where the search goes on. */
static uint64_t batch_fill(struct batch *b, uint64_t next)
{
	b->count = 0;
	for (; next < b->r->entries && b->count < b->most; next++)
		if (table_is_left(b->r, next))
			b->index[b->count++] = next;
	return next;
}

static void lock_tables(struct qcow2_image *img, struct cluster_lock *lock, uint64_t first, uint64_t last)
{
	cluster_lock(&img->locks, lock, first << img->l2_bits, ((last + 1) << img->l2_bits) - 1);
}

static void batch_lock(struct batch *b)
{
	if (!b->held)
		lock_tables(b->r->img, &b->lock, b->index[0], b->index[b->count - 1]);
}

static void batch_unlock(struct batch *b)
{
	if (!b->held)
		cluster_unlock(&b->r->img->locks, &b->lock);
}

/* What was counted for these entries before is given back: active tables have taken its place. */
static int batch_release(struct batch *b, struct error *err)
{
	int ret = 0;

	for (unsigned i = 0; !ret && i < b->count; i++) {
		uint64_t old = b->r->l1[b->index[i]];

		b->r->l1[b->index[i]] = 0;
		if (old)
			ret = snapshot_table_lower(b->r, old, err);
	}
	return ret;
}

/* Slices are read before anybody is locked out. */
static void batch_warm(struct batch *b)
{
	struct qcow2_image *img = b->r->img;
	uint64_t per_slice = (uint64_t)1 << img->l2_slice_bits;
	struct slice *s;

	for (unsigned i = 0; i < b->count && !b->held; i++)
		for (uint64_t k = 0; k < (uint64_t)1 << img->l2_bits; k += per_slice)
			if (map_slice_get(img, (b->index[i] << img->l2_bits) + k, &s) == 0 && s)
				cache_put(&img->l2_cache, s);
}

/* Step 1. */
static int batch_clear(struct batch *b, struct error *err)
{
	struct qcow2_image *img = b->r->img;
	bool cleared = false;
	int ret = 0;

	batch_lock(b);
	for (unsigned i = 0; !ret && i < b->count; i++) {
		bool any;

		ret = snapshot_table_clear_copied(img, b->index[i], &any);
		b->entry[i] = table_get(&img->l1, b->index[i]);
		cleared |= any;
	}
	if (cleared && !b->held && !mutant(MUTANT_SNAPSHOT_NO_GRACE))
		image_grace(img);
	batch_unlock(b);
	return ret ? error_set(err, ret, "%s: cannot read L2 tables: %s", img->st->name, strerror(-ret)) : 0;
}

/* Step 3. */
static int batch_raise(struct batch *b, struct error *err)
{
	struct snapshot_refs *r = b->r;
	int ret = 0;

	batch_lock(b);
	for (unsigned i = 0; !ret && i < b->count; i++) {
		uint64_t hoff = b->entry[i] & QCOW2_L1_OFFSET_MASK;

		if (table_get(&r->img->l1, b->index[i]) != b->entry[i] && !mutant(MUTANT_SNAPSHOT_STALE))
			continue;
		ret = snapshot_table_raise(r, hoff, err);
		if (!ret)
			r->l1[b->index[i]] = hoff;
	}
	batch_unlock(b);
	return ret;
}

static int batch_run(struct batch *b, struct error *err)
{
	struct qcow2_image *img = b->r->img;
	int ret = batch_release(b, err);

	if (ret)
		return ret;
	batch_warm(b);
	ret = batch_clear(b, err);
	if (!ret && !mutant(MUTANT_SNAPSHOT_RAISE_FIRST)) {
		ret = writeback_run(img);
		if (ret)
			error_set(err, ret, "%s: writing metadata failed: %s", img->st->name, strerror(-ret));
	}
	return ret ? ret : batch_raise(b, err);
}

int snapshot_prepare(struct snapshot_refs *r, bool held, uint64_t *left, struct error *err)
{
	struct batch b;
	uint64_t next = 0;
	int ret = 0;

	batch_init(&b, r, held);
	while (!ret && next < r->entries) {
		next = batch_fill(&b, next);
		if (b.count)
			ret = batch_run(&b, err);
	}
	*left = 0;
	for (uint64_t i = 0; i < r->entries; i++)
		*left += table_is_left(r, i);
	return ret;
}

void snapshot_prepare_undo(struct snapshot_refs *r)
{
	for (uint64_t i = 0; i < r->entries; i++) {
		struct error err = {0};

		if (r->l1[i] && snapshot_table_lower(r, r->l1[i], &err))
			log_warn("%s: some clusters stay counted that nothing refers to: %s", r->img->st->name,
				 err.text);
		r->l1[i] = 0;
	}
}

int snapshot_prepare_check(struct snapshot_refs *r, struct error *err)
{
	struct qcow2_image *img = r->img;
	uint64_t tables = 0;
	int ret = 0;

	for (uint64_t i = 0; !ret && i < r->entries; i++) {
		struct cluster_lock lock;

		if (!table_get(&img->l1, i))
			continue;
		if (++tables > div_up(img->st->size_bytes, img->cluster_bytes)) /* it grows meanwhile */
			return error_set(err, -EIO,
					 "%s: the image is corrupt: the L1 table has more L2 tables than there is room for",
					 img->st->name);
		lock_tables(img, &lock, i, i);
		ret = snapshot_table_check(r, i, err);
		cluster_unlock(&img->locks, &lock);
	}
	return ret;
}
