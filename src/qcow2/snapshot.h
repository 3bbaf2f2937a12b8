/* SPDX-License-Identifier: MIT */
/*
 * snapshot.h: internal snapshots: their table, and the operations on them.
 *
 *	snapshot.c	the table: read, looked into, changed in memory, laid out for the file
 *	snapshot_refs.c	what an L1 table refers to: counted up and down, while requests go on
 *	snapshot_prepare.c	what create counts before anything is held back
 *	snapshot_ops.c	create, apply, delete: the order of their writes, and the barrier around them
 *
 * A snapshot is an L1 table of its own; L2 tables and clusters are shared by their refcounts. The list
 * is not kept in memory: it is read when it is needed.
 */
#ifndef QCOW2_SNAPSHOT_H
#define QCOW2_SNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "qcow2/format.h"

struct qcow2_image;
struct qcow2_header;
struct storage;

/* ---- the table (snapshot.c) ---- */

struct snapshot {
	uint8_t *raw; /* the entry as it is in the file, without padding */
	uint64_t raw_bytes;
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_ns, vm_state_bytes;
	uint64_t disk_bytes; /* the image's where the entry does not say */
	uint64_t icount;     /* UINT64_MAX: none */
	char *id, *name;     /* hostile; up to a NUL inside */
};

struct snapshot_list {
	struct snapshot *v;
	uint32_t count;
	uint64_t table_bytes; /* in the file */
};

/* An entry's length: fixed part, extra data, id, name; without padding. */
static inline uint64_t snapshot_entry_bytes(const struct qcow2_disk_snapshot *d)
{
	return sizeof(*d) + be32_get(d->extra_len) + be16_get(d->id_len) + be16_get(d->name_len);
}

/* In a coroutine or outside of any loop. On error @l is empty. */
int snapshot_list_read(struct snapshot_list *l, struct storage *st, const struct qcow2_header *h,
		       struct error *err) must_check;
void snapshot_list_free(struct snapshot_list *l); /* also of a zeroed one */

/* By id, or else by name, as QEMU looks; -1: there is none. */
int64_t snapshot_find(const struct snapshot_list *l, const char *id_or_name);
/* Appends an entry with an id of its own. @name is not in use. */
int snapshot_list_add(struct snapshot_list *l, const char *name, uint64_t l1_offset,
		      uint32_t l1_entries, uint64_t disk_bytes, struct error *err) must_check;
void snapshot_list_remove(struct snapshot_list *l, uint32_t index);
/*
 * The table as it is to be written, zero-padded to a multiple of @unit_bytes; @l->table_bytes becomes its
 * length. Entries of version 3 that lack what that version asks for get it.
 */
int snapshot_list_encode(struct snapshot_list *l, const struct qcow2_header *h, uint64_t unit_bytes,
			 void **out, uint64_t *bytes, struct error *err) must_check;

/* Whether the snapshot's L1 table can be one: aligned, of a length that one has, inside the file. */
bool snapshot_l1_valid(const struct snapshot *s, const struct qcow2_header *h, uint64_t file_bytes);

/* ---- what is referred to (snapshot_refs.c) ---- */

/* An L1 table, in host order, and the references that hang on it. */
struct snapshot_refs {
	struct qcow2_image *img;
	uint64_t *l1;
	uint64_t entries;
	be64_t *l2; /* a table */
	uint64_t raised; /* references that snapshot_refs_raise() has raised so far */
	bool flagged;	 /* snapshot_refs_check() has seen COPIED in a table */
};

/* Of a snapshot, from the file; or of the active tables, which are on disk. */
int snapshot_refs_read(struct snapshot_refs *r, struct qcow2_image *img, uint64_t l1_offset,
		       uint64_t entries, struct error *err) must_check;
int snapshot_refs_active(struct snapshot_refs *r, struct qcow2_image *img,
			 struct error *err) must_check;
/* With as many entries as the active table, all of them 0: for snapshot_prepare(). */
int snapshot_refs_none(struct snapshot_refs *r, struct qcow2_image *img, struct error *err) must_check;
void snapshot_refs_free(struct snapshot_refs *r); /* also of a zeroed one */

/*
 * Whether everything that is referred to lies where it can, is in use, and with @raise can have another
 * reference: nothing is changed.
 */
int snapshot_refs_check(struct snapshot_refs *r, bool raise, struct error *err) must_check;
/* One reference more to each; after an error snapshot_refs_unraise() takes back what was done. */
int snapshot_refs_raise(struct snapshot_refs *r, struct error *err) must_check;
void snapshot_refs_unraise(struct snapshot_refs *r);
/* One reference less; what nothing refers to any more is free. */
int snapshot_refs_lower(struct snapshot_refs *r, struct error *err) must_check;
/* The host cluster past all that is referred to. */
int snapshot_refs_end(struct snapshot_refs *r, uint64_t *hcluster, struct error *err) must_check;
/* Clears COPIED in the L2 tables, in the file; for those that become the active ones. */
int snapshot_refs_clear_copied(struct snapshot_refs *r, struct error *err) must_check;
/* The tables are a snapshot's from now on: nothing is to be put there. */
int snapshot_refs_protect(struct snapshot_refs *r) must_check;

/*
 * The same for the active table of L1 entry @index alone, as it is in memory; for the table at @hoff, which is
 * in the file and shared (an error leaves nothing raised). The caller keeps it from changing.
 */
int snapshot_table_check(struct snapshot_refs *r, uint64_t index, struct error *err) must_check;
int snapshot_table_raise(struct snapshot_refs *r, uint64_t hoff, struct error *err) must_check;
int snapshot_table_lower(struct snapshot_refs *r, uint64_t hoff, struct error *err) must_check;

/*
 * Clears the COPIED flags of an active table and its L1 entry, through the cache (*@any: some may have been
 * set), for a pass to write. copied.h sets them again.
 */
int snapshot_table_clear_copied(struct qcow2_image *img, uint64_t index, bool *any) must_check;

/* ---- ahead of the switch (snapshot_prepare.c) ---- */

/* Whether everything that the active tables refer to can have another reference: nothing is changed. */
int snapshot_prepare_check(struct snapshot_refs *r, struct error *err) must_check;
/*
 * Once around: r->l1 of each table that is not counted, or has changed since, becomes the table as it is now,
 * counted. *@left: of how many that is no longer true, or could not be done; 0 where writes are @held back.
 */
int snapshot_prepare(struct snapshot_refs *r, bool held, uint64_t *left, struct error *err) must_check;
/* Takes the counts back. */
void snapshot_prepare_undo(struct snapshot_refs *r);

/* At open, of a writable image: metaset has what snapshots have; or the image is not to be written. */
int snapshot_protect_all(struct qcow2_image *img, struct error *err) must_check;
/* At open: img->hdr's L1 table and size become those of snapshot @name. */
int snapshot_select(struct qcow2_image *img, const char *name, struct error *err) must_check;

#endif
