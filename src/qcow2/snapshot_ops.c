/* SPDX-License-Identifier: MIT */
/*
 * snapshot_ops.c: create, apply and delete; see snapshot.h.
 *
 * Each begins with a pass, and counts all that it has to count while I/O goes on, which takes the longer the
 * more is allocated. For the switch, create holds writes back and apply all requests: those in flight end with
 * their links, and another pass leaves the recovery log empty and all there is in the file (rules 10 and 17).
 * Delete holds nothing back: the disk is the same before and after, and whatever the log has then is as good
 * after (the counts that it may have of what a snapshot shared are too high, at worst). I/O goes on again
 * right after the switch, while the rest is done.
 *
 * Order of writes, with a sync between the lines; until the switch the image is what it was, but for
 * counts that are too high (a crash leaks) and flags that are clear though they might be set:
 *
 *	create   COPIED cleared in the active tables
 *	         counts of all that they refer to raised; the copy of the L1 table, the new snapshot table
 *	         the header's first sector: the new snapshot table
 *	         the old table's counts lowered
 *
 *	         Flags and counts table by table, before anything is held back (snapshot_prepare.c); what
 *	         changed meanwhile again, while writes are held.
 *
 *	delete   counts of the new snapshot table raised, and the table
 *	         the header's first sector: the new snapshot table
 *	         counts lowered: the old table, the snapshot's L1 table and all it refers to
 *	         COPIED set in the active tables where the count is 1
 *
 *	apply    counts of all that the snapshot refers to raised; the new L1 table
 *	         the header's first sector: L1 table and size
 *	         counts lowered: the old L1 table and all it refers to
 *
 *	         Should some other program have left COPIED in the snapshot's tables, which may be active ones
 *	         too, it is cleared first, and all of it is done while requests are held.
 *
 * What is counted ahead for an apply, and lowered after an apply or a delete, hangs on tables that stay as
 * they are while writes go on: see the invariants in snapshot_refs.c.
 *
 * Nothing is logged for recovery: what is changed before the switch is as good as what it replaces, and
 * a kill behind it leaves counts that are too high or flags that are clear. The search for what a crash has
 * leaked finds both (reclaim.h).
 *
 * Invariants:
 *  1. Before anything is changed all counts have been looked at: a cluster that cannot have another
 *     reference refuses the operation, and the file is what it was.
 *  2. After an error before the switch everything is taken back. After a switch whose outcome is not
 *     known nothing is: both states must stay good (and nothing becomes durable any more).
 *  3. COPIED is set in memory only when the lower count is durable, or goes to disk before it.
 *  4. What the old state refers to keeps its counts until the switch is durable.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "qcow2/alloc.h"
#include "qcow2/copied.h"
#include "qcow2/image.h"
#include "qcow2/reclaim.h"
#include "qcow2/snapshot.h"

struct operation {
	struct qcow2_image *img;
	struct error *err;
	struct snapshot_list list;
	struct snapshot_refs refs;
	uint64_t log_reserved;
	uint64_t held_ns, pause_ns;
	/* what is being made; 0 clusters: nothing */
	uint64_t l1_hcluster, l1_clusters;
	uint64_t table_hcluster, table_clusters;
};

static uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- the barrier ---- */

static int pass(struct operation *op)
{
	int ret = writeback_run(op->img);

	return ret ? error_set(op->err, ret, "%s: writing metadata failed: %s", op->img->st->name,
			       strerror(-ret))
		   : 0;
}

/* Room for each refcount block that may be made, and for each group's. */
static uint64_t log_records(const struct qcow2_image *img)
{
	uint64_t l1_clusters = div_up(img->l1.entries * sizeof(be64_t), img->cluster_bytes);
	uint64_t records = 2 * (l1_clusters >> img->rb_bits) + 256;

	return img->reclog.header ? min_of(records, img->reclog.capacity / 4) : records;
}

/* What barrier_end() ends, whatever this returns. Nothing is held back yet. */
static int barrier_enter(struct operation *op)
{
	struct qcow2_image *img = op->img;
	int ret;

	co_lock(&img->barrier);
	/* its data has no refcounts (qcow2: "External data file") */
	if (img->hdr.incompatible & QCOW2_INCOMPAT_DATA_FILE)
		return error_set(op->err, -ENOTSUP,
				 "%s: an image with an external data file cannot have internal snapshots",
				 img->st->name);
	reclaim_end(img); /* it relies on tables of snapshots to stay as they are */
	if (img->read_only)
		return error_set(op->err, -EROFS, "%s: is open read-only", img->st->name);
	ret = image_first_write(img);
	if (ret)
		return error_set(op->err, ret, "%s: %s", img->st->name, strerror(-ret));
	ret = pass(op);
	return ret ? ret : snapshot_list_read(&op->list, img->st, &img->hdr, op->err);
}

/* Before anything is allocated. */
static int log_reserve(struct operation *op)
{
	uint64_t records = log_records(op->img);
	int ret = op->log_reserved ? 0 : reclog_reserve(op->img, records);

	if (ret)
		return error_set(op->err, ret, "%s: writing metadata failed: %s", op->img->st->name,
				 strerror(-ret));
	op->log_reserved = records;
	return 0;
}

static int barrier_hold(struct operation *op, enum held_back what)
{
	int ret;

	op->held_ns = clock_ns();
	image_hold(op->img, what);
	ret = pass(op);
	return ret ? ret : log_reserve(op);
}

/* The log is the guest's again, whose requests go on. */
static void barrier_release(struct operation *op)
{
	if (op->log_reserved)
		reclog_unreserve(op->img, op->log_reserved);
	op->log_reserved = 0;
	if (!op->held_ns)
		return;
	op->pause_ns = clock_ns() - op->held_ns;
	op->held_ns = 0;
	image_release(op->img);
}

static void barrier_end(struct operation *op, uint64_t *pause_ns)
{
	barrier_release(op);
	if (pause_ns)
		*pause_ns = op->pause_ns;
	snapshot_refs_free(&op->refs);
	snapshot_list_free(&op->list);
	co_unlock(&op->img->barrier);
}

/* ---- parts ---- */

/* Writes @bytes, whole clusters of them, to new clusters; their counts are raised in memory. */
static int write_new(struct operation *op, const void *data, uint64_t bytes, uint64_t *hcluster,
		     uint64_t *clusters)
{
	struct qcow2_image *img = op->img;
	uint64_t want = bytes >> img->cluster_bits;
	int ret;

	if (!want)
		return 0;
	ret = alloc_contiguous(img, want, hcluster);
	if (ret)
		return error_set(op->err, ret, "%s: cannot allocate a table: %s", img->st->name,
				 strerror(-ret));
	*clusters = want;
	ret = storage_pwrite(img->st, *hcluster << img->cluster_bits, data, bytes);
	img->wb.meta_writes++;
	return ret ? error_set(op->err, ret, "%s: cannot write a table: %s", img->st->name,
			       strerror(-ret))
		   : 0;
}

/* The L1 table in op->refs, without flags, @entries long, to new clusters. */
static int write_l1(struct operation *op, uint64_t entries)
{
	uint64_t bytes = align_up(entries * sizeof(be64_t), op->img->cluster_bytes);
	be64_t *raw = aligned_alloc(4096, align_up(max_of(bytes, (uint64_t)1), 4096));
	int ret;

	if (!raw)
		return error_set(op->err, -ENOMEM, "no memory for an L1 table");
	memset(raw, 0, bytes);
	for (uint64_t i = 0; i < op->refs.entries; i++)
		raw[i] = be64_make(op->refs.l1[i] & ~QCOW2_COPIED);
	ret = write_new(op, raw, bytes, &op->l1_hcluster, &op->l1_clusters);
	free(raw);
	return ret;
}

static int write_table(struct operation *op)
{
	void *table;
	uint64_t bytes;
	int ret = snapshot_list_encode(&op->list, &op->img->hdr, op->img->cluster_bytes, &table,
				       &bytes, op->err);

	if (ret)
		return ret;
	ret = write_new(op, table, bytes, &op->table_hcluster, &op->table_clusters);
	free(table);
	return ret;
}

/* Nothing refers to what was made. */
static void give_back(struct operation *op)
{
	if (op->l1_clusters)
		alloc_undo(op->img, op->l1_hcluster, op->l1_clusters);
	if (op->table_clusters)
		alloc_undo(op->img, op->table_hcluster, op->table_clusters);
	op->l1_clusters = op->table_clusters = 0;
}

static void protect(struct operation *op, uint64_t hcluster, uint64_t clusters)
{
	for (uint64_t i = 0; i < clusters; i++)
		if (metaset_add(&op->img->snapset, hcluster + i) == -ENOMEM)
			log_warn("%s: no memory to protect a snapshot's tables",
				 op->img->st->name);
}

/*
 * After a header update failed: it may be in the file or not. Both are good as long as nothing changes,
 * so nothing goes on before it is known to be the old one.
 */
static int switch_failed(struct operation *op, int ret, int (*restore)(struct qcow2_image *img,
								       const struct qcow2_header *old),
			 const struct qcow2_header *old)
{
	if (op->img->hdr.update_wrote && (restore(op->img, old) || writeback_sync(op->img)))
		writeback_give_up(op->img, ret);
	return error_set(op->err, ret, "%s: cannot write the header: %s", op->img->st->name,
			 strerror(-ret));
}

static int switched(struct operation *op)
{
	int ret = writeback_sync(op->img);

	return ret ? error_set(op->err, ret, "%s: cannot sync: %s", op->img->st->name,
			       strerror(-ret))
		   : 0;
}

static int restore_table(struct qcow2_image *img, const struct qcow2_header *old)
{
	return qcow2_header_set_snapshots(img->st, &img->hdr, old->snapshots_offset, old->nb_snapshots);
}

/* The header says from now on that the snapshot table is the new one; durably. */
static int switch_table(struct operation *op)
{
	struct qcow2_image *img = op->img;
	const struct qcow2_header old = {.snapshots_offset = img->hdr.snapshots_offset,
					 .nb_snapshots = img->hdr.nb_snapshots};
	uint64_t offset = op->table_clusters ? op->table_hcluster << img->cluster_bits : 0;
	int ret = qcow2_header_set_snapshots(img->st, &img->hdr, offset, op->list.count);

	return ret ? switch_failed(op, ret, restore_table, &old) : switched(op);
}

static int restore_disk(struct qcow2_image *img, const struct qcow2_header *old)
{
	return qcow2_header_set_disk(img->st, &img->hdr, old->l1_offset, old->l1_entries, old->size_bytes);
}

/* The header says from now on that the L1 table is the new one; durably. */
static int switch_disk(struct operation *op, uint32_t entries, uint64_t size_bytes)
{
	struct qcow2_image *img = op->img;
	const struct qcow2_header old = {.l1_offset = img->hdr.l1_offset,
					 .l1_entries = img->hdr.l1_entries,
					 .size_bytes = img->hdr.size_bytes};
	uint64_t offset = op->l1_hcluster << img->cluster_bits;
	int ret = qcow2_header_set_disk(img->st, &img->hdr, offset, entries, size_bytes);

	if (ret)
		return switch_failed(op, ret, restore_disk, &old);
	ret = switched(op);
	/*
	 * Requests go on with the old table. Whoever takes over from this process reads the header as it is in
	 * the file, durable or not, and replays the log of these requests.
	 */
	if (ret && restore_disk(img, &old))
		log_err("%s: the header is that of the snapshot now", img->st->name);
	return ret;
}

/* The operation is done; what is left makes room and flags, and a crash or an error loses those only. */
static void settle(struct operation *op, int ret)
{
	if (ret) {
		reclaim_missed(op->img);
		log_warn("%s: some clusters stay counted that nothing refers to, or flags clear; "
			 "'check --repair' finds them: %s",
			 op->img->st->name, op->err->text[0] ? op->err->text : strerror(-ret));
	}
	if (op->err)
		*op->err = (struct error){0};
}

static struct snapshot *find(struct operation *op, const char *name, uint32_t *index)
{
	int64_t at = snapshot_find(&op->list, name);

	if (at < 0) {
		error_set(op->err, -ENOENT, "%s: has no snapshot \"%s\"", op->img->st->name, name);
		return NULL;
	}
	*index = (uint32_t)at;
	return &op->list.v[at];
}

/* Reads what snapshot @s refers to. */
static int refs_of(struct operation *op, const struct snapshot *s)
{
	struct qcow2_image *img = op->img;

	if (!snapshot_l1_valid(s, &img->hdr, img->st->size_bytes))
		return error_set(op->err, -EIO,
				 "%s: the image is corrupt: snapshot %s has no valid L1 table",
				 img->st->name, s->id);
	return snapshot_refs_read(&op->refs, img, s->l1_offset, s->l1_entries, op->err);
}

/* ---- create ---- */

/* Rounds before writes are held back: each has less to do than the one before, or is the last. */
#define ROUNDS_MAX 6
/* Tables that may be left for the time when they are. */
#define ROUND_FEW  4

static int create_check(struct operation *op, const char *name)
{
	struct qcow2_image *img = op->img;
	size_t len = strlen(name);
	int ret;

	if (!len || len > QCOW2_SNAPSHOT_NAME_MAX)
		return error_set(op->err, -EINVAL, "a snapshot's name has 1 to %d bytes",
				 QCOW2_SNAPSHOT_NAME_MAX);
	for (uint32_t i = 0; i < op->list.count; i++)
		if (!strcmp(op->list.v[i].name, name))
			return error_set(op->err, -EEXIST, "%s: has a snapshot \"%s\" already",
					 img->st->name, name);
	ret = snapshot_refs_none(&op->refs, img, op->err);
	return ret ? ret : snapshot_prepare_check(&op->refs, op->err);
}

/* All that the active tables refer to is counted once more, and writes are held back. */
static int create_count(struct operation *op)
{
	uint64_t left = UINT64_MAX, before;
	unsigned rounds = op->img->meta_loop ? 0 : ROUNDS_MAX;
	int ret = 0;

	do {
		before = left;
		if (rounds < ROUNDS_MAX)
			ret = snapshot_prepare(&op->refs, false, &left, op->err);
	} while (!ret && ++rounds < ROUNDS_MAX && left > ROUND_FEW && left <= before / 2);
	if (!ret)
		ret = barrier_hold(op, HOLD_WRITES);
	if (!ret)
		ret = snapshot_prepare(&op->refs, true, &left, op->err);
	if (!ret && left)
		ret = error_set(op->err, -EIO, "%s: its tables change all the time", op->img->st->name);
	return ret;
}

static int create_make(struct operation *op, const char *name)
{
	struct qcow2_image *img = op->img;
	int ret = create_count(op);

	if (!ret)
		ret = write_l1(op, op->refs.entries);
	if (!ret)
		ret = snapshot_list_add(&op->list, name, op->l1_hcluster << img->cluster_bits,
					(uint32_t)op->refs.entries, img->size_bytes, op->err);
	if (!ret)
		ret = write_table(op);
	return ret ? ret : pass(op);
}

/* Others get their turn. */
static bool yield_and_go_on(struct qcow2_image *img, uint64_t since_ns)
{
	if (img->meta_loop)
		co_yield();
	return true;
}

/* Invariant 2. */
static void create_undo(struct operation *op)
{
	struct qcow2_image *img = op->img;

	barrier_release(op);
	if (img->wb.sync_failed)
		return;
	snapshot_prepare_undo(&op->refs);
	give_back(op);
	if (writeback_run(img) || copied_restore(img, yield_and_go_on) || writeback_run(img))
		log_warn("%s: some flags stay clear", img->st->name);
}

static int create_run(struct operation *op, const char *name)
{
	struct qcow2_image *img = op->img;
	uint64_t old_first = img->hdr.snapshots_offset >> img->cluster_bits;
	uint64_t old_clusters = div_up(op->list.table_bytes, img->cluster_bytes);
	int ret = create_check(op, name);

	if (ret)
		return ret;
	ret = create_make(op, name);
	if (!ret)
		ret = switch_table(op);
	if (ret) {
		create_undo(op);
		return ret;
	}
	protect(op, op->l1_hcluster, op->l1_clusters);
	protect(op, op->table_hcluster, op->table_clusters);
	if (snapshot_refs_protect(&op->refs))
		log_warn("%s: no memory to protect a snapshot's tables", img->st->name);
	barrier_release(op);
	if (old_clusters)
		refcount_lower(img, old_first, old_clusters);
	settle(op, pass(op));
	return 0;
}

int qcow2_snapshot_create(struct qcow2_image *img, const char *name, uint64_t *pause_ns,
			  struct error *err)
{
	struct error own = {0};
	struct operation op = {.img = img, .err = err ? err : &own};
	int ret = barrier_enter(&op);

	if (!ret)
		ret = create_run(&op, name);
	barrier_end(&op, pause_ns);
	return ret;
}

/* ---- delete ---- */

/* Nothing durable refers to the snapshot any more. */
static int delete_lower(struct operation *op, uint64_t l1_offset)
{
	struct qcow2_image *img = op->img;
	uint64_t l1_clusters = div_up(op->refs.entries * sizeof(be64_t), img->cluster_bytes);
	int ret = snapshot_refs_lower(&op->refs, op->err);

	if (l1_clusters)
		refcount_release(img, l1_offset >> img->cluster_bits, l1_clusters);
	return ret ? ret : pass(op);
}

static int delete_switch(struct operation *op)
{
	int ret = log_reserve(op);

	if (!ret)
		ret = write_table(op);
	if (!ret)
		ret = pass(op);
	if (!ret)
		ret = switch_table(op);
	if (ret && !op->img->wb.sync_failed)
		give_back(op);
	return ret;
}

static bool overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
	return a_bytes && b_bytes && a < b + b_bytes && b < a + a_bytes;
}

/* The L1 table is going to be free: in a broken image something else may lie there. */
static int delete_check_l1(struct operation *op, uint32_t index)
{
	struct qcow2_image *img = op->img;
	const struct snapshot *s = &op->list.v[index];
	uint64_t bytes = align_up(s->l1_entries * sizeof(be64_t), img->cluster_bytes);
	bool good = !overlap(s->l1_offset, bytes, img->hdr.snapshots_offset, op->list.table_bytes);

	for (uint64_t at = 0; good && at < bytes; at += img->cluster_bytes)
		good = !metaset_has_own(&img->metaset, (s->l1_offset + at) >> img->cluster_bits);
	for (uint32_t i = 0; good && i < op->list.count; i++) {
		const struct snapshot *other = &op->list.v[i];

		good = i == index || !overlap(s->l1_offset, bytes, other->l1_offset,
					      other->l1_entries * sizeof(be64_t));
	}
	return good ? 0
		    : error_set(op->err, -EIO,
				"%s: the image is corrupt: other metadata lies where snapshot %s has its L1 table",
				img->st->name, s->id);
}

static int delete_run(struct operation *op, const char *name)
{
	struct qcow2_image *img = op->img;
	uint64_t old_first = img->hdr.snapshots_offset >> img->cluster_bits;
	uint64_t old_clusters = div_up(op->list.table_bytes, img->cluster_bytes);
	bool early = mutant(MUTANT_SNAPSHOT_LOWER_EARLY);
	uint64_t l1_offset;
	struct snapshot *s;
	uint32_t index;
	int ret;

	s = find(op, name, &index);
	if (!s)
		return -ENOENT;
	l1_offset = s->l1_offset;
	ret = refs_of(op, s);
	if (!ret)
		ret = delete_check_l1(op, index);
	if (!ret)
		ret = snapshot_refs_check(&op->refs, false, op->err);
	if (ret)
		return ret;
	snapshot_list_remove(&op->list, index);
	if (early)
		ret = delete_lower(op, l1_offset);
	if (!ret)
		ret = delete_switch(op);
	if (ret)
		return ret;
	barrier_release(op);
	protect(op, op->table_hcluster, op->table_clusters);
	refcount_lower(img, old_first, old_clusters);
	ret = early ? 0 : delete_lower(op, l1_offset);
	if (!ret)
		ret = copied_restore(img, yield_and_go_on);
	if (!ret)
		ret = pass(op);
	settle(op, ret);
	return 0;
}

int qcow2_snapshot_delete(struct qcow2_image *img, const char *id_or_name, uint64_t *pause_ns,
			  struct error *err)
{
	struct error own = {0};
	struct operation op = {.img = img, .err = err ? err : &own};
	int ret = barrier_enter(&op);

	if (!ret)
		ret = delete_run(&op, id_or_name);
	barrier_end(&op, pause_ns);
	return ret;
}

/* ---- apply ---- */

/* What is in memory follows the header. All requests are held back. */
static void become(struct operation *op, struct table *l1, const struct snapshot_refs *old,
		   uint64_t size_bytes)
{
	struct qcow2_image *img = op->img;
	struct table gone;

	cache_clear(&img->l2_cache);
	while (img->wb.running) /* it may be writing the old table's entries */
		(void)!writeback_run(img);
	/* from here on nothing suspends */
	gone = img->l1;
	img->l1 = *l1;
	*l1 = gone;
	if (img->size_bytes != size_bytes)
		bitmaps_resize(img, size_bytes);
	img->size_bytes = size_bytes;
	for (uint64_t i = 0; i < old->entries; i++)
		if (old->l1[i] & QCOW2_L1_OFFSET_MASK)
			metaset_remove(&img->metaset,
				       (old->l1[i] & QCOW2_L1_OFFSET_MASK) >> img->cluster_bits);
	metaset_set_range(&img->metaset, METASET_L1, op->l1_hcluster, op->l1_clusters);
	/* Those of the snapshot are protected as such; where memory is short that has to do. */
	for (uint64_t i = 0; i < op->refs.entries; i++)
		if (op->refs.l1[i] & QCOW2_L1_OFFSET_MASK)
			(void)!metaset_add(&img->metaset, (op->refs.l1[i] & QCOW2_L1_OFFSET_MASK) >>
								  img->cluster_bits);
}

/* The L1 table in memory, as it is to be. */
static int table_make(struct operation *op, struct table *t, uint32_t entries)
{
	struct qcow2_image *img = op->img;
	int ret = table_alloc(t, op->l1_hcluster << img->cluster_bits, entries,
			      QCOW2_MAX_L1_BYTES / sizeof(be64_t), img->st->block_bytes);

	if (ret)
		return error_set(op->err, ret, "no memory for an L1 table");
	for (uint64_t i = 0; i < op->refs.entries; i++) {
		uint64_t entry = op->refs.l1[i] & ~QCOW2_COPIED;

		atomic_store(&t->live[i], entry);
		t->disk[i] = be64_make(entry);
	}
	return 0;
}

/* All that the snapshot refers to is counted once more, and there is an L1 table: in the file, and @l1. */
static int apply_make(struct operation *op, uint32_t entries, struct table *l1)
{
	int ret = op->refs.flagged ? snapshot_refs_clear_copied(&op->refs, op->err) : 0;

	if (!ret && !mutant(MUTANT_SNAPSHOT_APPLY_UNCOUNTED))
		ret = snapshot_refs_raise(&op->refs, op->err);
	if (!ret)
		ret = log_reserve(op);
	if (!ret)
		ret = write_l1(op, entries);
	if (!ret)
		ret = table_make(op, l1, entries);
	return ret ? ret : pass(op);
}

/* Up to the switch, with which requests go on. @l1 becomes the old table, @old what it refers to. */
static int apply_switch(struct operation *op, uint32_t entries, uint64_t size_bytes, struct table *l1,
			struct snapshot_refs *old)
{
	struct qcow2_image *img = op->img;
	bool ahead = !op->refs.flagged;
	int ret = ahead ? apply_make(op, entries, l1) : 0;

	if (!ret)
		ret = barrier_hold(op, HOLD_ALL);
	if (!ret && !ahead)
		ret = apply_make(op, entries, l1);
	if (!ret)
		ret = snapshot_refs_active(old, img, op->err);
	if (!ret && mutant(MUTANT_SNAPSHOT_APPLY_EARLY))
		ret = snapshot_refs_lower(old, op->err);
	if (!ret && mutant(MUTANT_SNAPSHOT_APPLY_EARLY))
		ret = pass(op);
	if (!ret) {
		bitmaps_mark_all(img);
		ret = switch_disk(op, entries, size_bytes);
	}
	if (!ret)
		become(op, l1, old, size_bytes);
	barrier_release(op);
	if (ret && !img->wb.sync_failed) { /* invariant 2 */
		snapshot_refs_unraise(&op->refs);
		give_back(op);
	}
	return ret;
}

static int apply_to(struct operation *op, uint32_t entries, uint64_t size_bytes)
{
	struct qcow2_image *img = op->img;
	uint64_t old_first = img->hdr.l1_offset >> img->cluster_bits;
	uint64_t old_clusters = div_up(img->l1.entries * sizeof(be64_t), img->cluster_bytes);
	struct snapshot_refs old = {0};
	struct table l1 = {0};
	int ret = apply_switch(op, entries, size_bytes, &l1, &old), lower_ret = 0;

	if (!ret) {
		if (mutant(MUTANT_SNAPSHOT_APPLY_UNCOUNTED))
			lower_ret = snapshot_refs_raise(&op->refs, op->err);
		if (!lower_ret && !mutant(MUTANT_SNAPSHOT_APPLY_EARLY))
			lower_ret = snapshot_refs_lower(&old, op->err);
		refcount_release(img, old_first, old_clusters);
		settle(op, lower_ret ? lower_ret : pass(op));
	}
	table_free(&l1);
	snapshot_refs_free(&old);
	return ret;
}

static int apply_run(struct operation *op, const char *name)
{
	struct qcow2_image *img = op->img;
	struct snapshot *s;
	uint64_t needed;
	uint32_t index;
	int ret;

	s = find(op, name, &index);
	if (!s)
		return -ENOENT;
	if (img->meta_loop && s->disk_bytes != img->size_bytes)
		return error_set(op->err, -EINVAL,
				 "%s: snapshot \"%s\" is of a disk of %" PRIu64
				 " bytes, not %" PRIu64 ": it can be applied while detached",
				 img->st->name, name, s->disk_bytes, img->size_bytes);
	needed = qcow2_l1_entries_for(s->disk_bytes, img->cluster_bits, img->l2_bits);
	if (needed > QCOW2_MAX_L1_BYTES / sizeof(be64_t))
		return error_set(op->err, -EFBIG, "%s: snapshot \"%s\" is of a disk of %" PRIu64 " bytes",
				 img->st->name, name, s->disk_bytes);
	needed = max_of(needed, (uint64_t)s->l1_entries);
	needed = max_of(needed, (uint64_t)1);
	ret = refs_of(op, s);
	if (!ret)
		ret = snapshot_refs_check(&op->refs, true, op->err);
	if (!ret && s->disk_bytes != img->size_bytes && (ret = bitmaps_claim(img)))
		error_set(op->err, ret, "%s: %s", img->st->name, strerror(-ret));
	return ret ? ret : apply_to(op, (uint32_t)needed, s->disk_bytes);
}

int qcow2_snapshot_apply(struct qcow2_image *img, const char *id_or_name, uint64_t *pause_ns,
			 struct error *err)
{
	struct error own = {0};
	struct operation op = {.img = img, .err = err ? err : &own};
	int ret = barrier_enter(&op);

	if (!ret)
		ret = apply_run(&op, id_or_name);
	barrier_end(&op, pause_ns);
	return ret;
}
