/* SPDX-License-Identifier: MIT */
/*
 * check_internal.h: what the parts of the checker share.
 *
 *	check.c		the order of things; findings; memory
 *	check_read.c	tables from the file: one view of a small file, runs of tables of a large one
 *	check_count.c	what refers to what: fills the computed counts
 *	check_compare.c	the refcount blocks against the computed counts
 *	repair.c	writes: the order of a repair, and what is repaired in place
 *	repair_rebuild.c	new refcount structures
 *	repair_snapshots.c	a new snapshot table
 *
 * Two figures exist for each host cluster, never mixed: its *refcount* is what the refcount blocks
 * say, its *count* is how many references the check found.
 *
 * Memory: a byte for each host cluster (more only where a count needs more), and a bit for "the
 * refcount is 1", which is all that the COPIED flags need to know. Both are charged against the
 * bound.
 */
#ifndef QCOW2_CHECK_INTERNAL_H
#define QCOW2_CHECK_INTERNAL_H

#include "qcow2/check.h"
#include "qcow2/format.h"
#include "qcow2/header.h"
#include "storage/storage.h"

struct snapshot_ref {
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint32_t extra_len;
};

/* Computed counts; saturated at what the image's refcount width can hold. */
struct counts {
	void *v;
	unsigned width_bytes; /* of one count: 1, 2, 4 or 8 */
	uint64_t max;	      /* of a refcount */
};

/* What a repair writes to; it may overlap its own kind only. */
enum repair_target {
	REPAIR_L1,
	REPAIR_L2,
	REPAIR_BLOCK,
};

struct check {
	struct storage *st;
	struct qcow2_header *h;
	const struct qcow2_check_options *opts;
	struct qcow2_check_result *res;
	struct error *err;
	uint64_t memory_left, work_left;
	uint64_t progress_done, progress_total;

	uint64_t file_bytes;   /* where references may point; longer than what is stored while
				  planning */
	uint64_t stored_bytes; /* what can be read; zeros follow */
	uint64_t hclusters;    /* those that are compared: the file's, and one if something reaches
				  past */
	uint64_t capacity;     /* clusters that counts and ones have room for: hclusters + 1 at the
				  start */

	uint8_t *whole; /* a small file, followed by a cluster of zeros and more; NULL: a large one
			 */
	uint64_t whole_bytes;

	be64_t *rt; /* the refcount table as it is in the file */
	uint32_t rt_entries;
	bool bad_blocks; /* an entry of the table cannot be followed */
	uint64_t *block_places; /* of the refcount blocks in the file, ascending; NULL: not made yet */
	uint32_t nr_block_places;
	uint8_t *block;	 /* one refcount block for random access; block_index says which */
	uint64_t block_index;

	struct counts counts;
	uint64_t *ones; /* bit: the refcount is 1 */

	struct snapshot_ref *snapshots;
	uint32_t nb_snapshots;
	uint64_t snapshot_table_bytes;
	uint64_t snapshots_incomplete;

	uint32_t fix_first,
		fix_end; /* bytes of the present block that a fix changed; first == end: none */
	bool saturated;	 /* a cluster has more references than a count can say */
	bool quiet;	 /* findings are counted, not reported */
	bool rebuild;	 /* the refcount structures cannot be repaired in place */
	bool planning;	 /* ones says where nothing may be put */
	bool repairing;	 /* references that can be repaired are, while they are counted */
};

/* ---- check.c ---- */

__attribute__((format(printf, 3, 4))) void check_finding(struct check *c, enum qcow2_finding kind,
							 const char *fmt, ...);
int check_charge(struct check *c, uint64_t len_bytes, const char *what);
/* Zeroed memory; NULL, and the message, if there is none or the bound is reached. */
void *check_alloc(struct check *c, uint64_t len_bytes, const char *what);
void check_free(struct check *c, void *p, uint64_t len_bytes);
void check_progress(struct check *c, uint64_t units);
int check_read_error(struct check *c, int ret, const char *what, uint64_t offset);

/* ---- check_read.c ---- */

int check_view_open(struct check *c);
/* Reads any range into @buf, whatever its alignment; past the end are zeros. */
int check_read(struct check *c, uint64_t offset, void *buf, uint64_t len_bytes) must_check;

/* Which tables to visit: false at the end. @tag is handed back with the table. */
typedef bool (*table_next_fn)(void *arg, uint64_t *offset, uint64_t *tag);

struct table_iter;
/* Visits tables of one cluster each, in order, reading ahead. */
int tables_begin(struct table_iter **out, struct check *c, table_next_fn next,
		 void *arg) must_check;
/* 1 and the table (valid until the next call, may be written to), 0 at the end, -errno. */
int tables_next(struct table_iter *it, void **table, uint64_t *offset, uint64_t *tag);
void tables_end(struct table_iter *it); /* accepts NULL */

/* ---- check_count.c ---- */

int check_count_init(struct check *c);
uint64_t counts_get(const struct counts *k, uint64_t hcluster);
void counts_set(const struct counts *k, uint64_t hcluster, uint64_t value);
/* All references; with @copied also the flags of the active tables against the refcounts. */
int check_count_all(struct check *c, bool copied);
/* The same without the refcount table and its blocks, from nothing, and without a word. */
int check_count_data(struct check *c);
/* Only the flags; repairs them if @repair. */
int check_copied(struct check *c, bool repair);
/* One reference to each cluster that [offset, offset + len) touches. */
int check_count_range(struct check *c, uint64_t offset, uint64_t len, const char *what);
/* Before a table is looked through, which may be the same one again; -E2BIG: it is too much. */
int check_spend(struct check *c, uint64_t bytes) must_check;
/* While planning: nothing may be put where a range lies, as far as there is room for bits. */
void check_keep_range(struct check *c, uint64_t offset, uint64_t len);
/* An L1 table of a snapshot, and all that hangs on it. */
int check_count_l1(struct check *c, uint64_t offset, uint64_t entries);
bool check_has_data_file(const struct check *c);

/* ---- check_lists.c ---- */

int check_read_snapshots(struct check *c);
int check_count_snapshots(struct check *c);
int check_count_bitmaps(struct check *c);

/* ---- check_compare.c ---- */

int check_load_refcounts(struct check *c);
/* 1 or 0: whether the refcount is 1; -1: it cannot be known. */
int check_refcount_is_one(struct check *c, uint64_t hcluster);
uint64_t check_refcount(struct check *c, uint64_t hcluster);
/* The block at index @index of the table: false if there is none; *@bad if there is, but not
 * readable. */
bool check_block_offset(const struct check *c, uint64_t index, uint64_t *offset, bool *bad);

/*
 * Mismatches are counted, or handed to @fix, which returns whether it repaired that in @block; the
 * changed part of the block is written then. @fix NULL: only counted.
 */
typedef bool (*compare_fix_fn)(struct check *c, uint64_t hcluster, uint64_t refcount,
			       uint64_t count, void *block);
int check_compare(struct check *c, compare_fix_fn fix);

/* ---- repair.c ---- */

int repair_run(struct check *c);
int repair_sync(struct check *c);
/* Writes to a table that is there already, whatever the alignment; refuses what would hit another
 * one. */
int repair_table_write(struct check *c, uint64_t offset, const void *data, uint64_t len_bytes,
		       enum repair_target target);
/* After the refcount table became another one. */
void repair_places_forget(struct check *c);
/* Any place, unconditionally. */
int repair_write(struct check *c, uint64_t offset, const void *data, uint64_t len_bytes);

/* Changes a refcount in @block, for a fix of check_compare(); true. */
bool repair_refcount_set(struct check *c, uint64_t hcluster, uint64_t value, void *block);

/* ---- repair_snapshots.c ---- */

/* Completes the entries of the snapshot table, if some lack anything; the refcounts are right. */
int repair_snapshots(struct check *c);

/* ---- repair_rebuild.c ---- */

/* New refcount blocks and a new table from the counts; then counts and compares again. */
int repair_rebuild(struct check *c);

#endif
