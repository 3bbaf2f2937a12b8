/* SPDX-License-Identifier: MIT */
/*
 * reclog.h: the recovery log: changes of the map that are acknowledged but not on disk yet, in memory
 * that outlives the process (rules 13 to 18).
 *
 * A ring of fixed-size records in a shared mapping, behind a header page. Positions count records and
 * never wrap. [tail, head) are the records that count; a record is published by one release store of
 * head, after it was written. There is one writer, the metadata loop.
 *
 * A record says that entries of the L2 map, the L1 table or the refcount table went from one value to
 * another, absolutely; a run of L2 entries is one record. Refcounts are not logged: what a record links
 * has one reference, which replay makes sure of, and what a record unlinks is freed by replay. So what
 * was allocated and not yet linked is free again after a kill, or, where its raised count had reached
 * the disk, leaked.
 *
 * Invariants:
 *  1. (rule 13) Record published -> change visible -> acknowledged; between the first two nothing
 *     suspends. Room is reserved before the data is written.
 *  2. (rule 14) tail advances to the head that was sampled at a pass's cut, after the pass's last sync.
 *  3. While records that link or unlink a host cluster count, it is not given to anybody else, since
 *     its free waits for that same pass (frees.h). So in [tail, head) no host cluster belongs to two
 *     guest clusters.
 *  4. Replay changes tail only when all of it is durable; it may itself be killed at any point.
 */
#ifndef QCOW2_RECLOG_H
#define QCOW2_RECLOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ring/co.h"

struct map_entry;
struct qcow2_image;

/* RECLOG_BITMAP: the second word of an extended L2 entry; follows its RECLOG_L2, published with it. */
enum reclog_type {
	RECLOG_L2 = 1,
	RECLOG_L1 = 2,
	RECLOG_RT = 3,
	RECLOG_BITMAP = 4,
	RECLOG_REFCOUNT = 5,
};

struct reclog_record {
	uint32_t type;
	uint32_t count;	 /* L2: entries from @index on */
	uint64_t index;	 /* guest cluster, the table's index, or host cluster */
	uint64_t value;	 /* of the first; where it has a host offset the next ones are adjacent */
	uint64_t old;	 /* likewise */
};

struct reclog_header;

struct reclog {
	struct reclog_header *header; /* NULL: there is no log */
	struct reclog_record *records;
	uint64_t capacity;
	uint64_t extra_bytes; /* behind the records */
	uint64_t head; /* the writer's own copy */
	uint64_t reserved;
	uint64_t cut; /* head at the running pass's cut */
	bool replaying;
};

/* The memory that a log needs at least, and what serves well. */
#define RECLOG_MIN_BYTES     (128 * 1024)
#define RECLOG_DEFAULT_BYTES (8 * 1024 * 1024)

/*
 * Takes the memory in use: starts an empty log in it, or with @recover checks that it is the log of
 * this image (the identity and the geometry), for reclog_replay(). A log that is started leaves up to
 * @extra_bytes behind its records, half of the memory at most, for what else is to outlive the process.
 */
int reclog_attach(struct qcow2_image *img, void *base, uint64_t len_bytes, const void *identity,
		  uint64_t identity_bytes, bool recover, uint64_t extra_bytes,
		  struct error *err) must_check;

/* That memory, page aligned; NULL: the log was started without, or there is none. */
void *reclog_extra(const struct reclog *log, uint64_t *bytes);

/*
 * Applies what is in the log, and makes it durable. With no loop, before any I/O of a guest. An error
 * leaves the log as it is; the image then must not be served. With @lapsed the image's locks were not held all
 * the time: then it is looked for what others have done to it, which reads all L2 tables (rule 18).
 */
int reclog_replay(struct qcow2_image *img, bool lapsed, struct error *err) must_check;

/* Records for @clusters guest clusters that are to be linked or unlinked, with what may go with them. */
uint64_t reclog_need(const struct qcow2_image *img, uint64_t clusters);
/* Waits for room, running passes; the caller holds no lock and no epoch. An error is the pass's. */
int reclog_reserve(struct qcow2_image *img, uint64_t records) must_check;
void reclog_unreserve(struct qcow2_image *img, uint64_t records);

/*
 * Appends to the last record if it goes on there, else a new one out of what was reserved. To be
 * called right before the change is made visible.
 */
void reclog_entry(struct qcow2_image *img, uint64_t gcluster, struct map_entry old,
		  struct map_entry value);
void reclog_table(struct qcow2_image *img, enum reclog_type type, uint64_t index, uint64_t old,
		  uint64_t value);

/*
 * Before the header's size is written: from now on the log is also that of an image of @next_size_bytes;
 * with 0, when it is known what the header has: of that image alone.
 */
void reclog_resize(struct qcow2_image *img, uint64_t next_size_bytes);

/* The pass's steps; and rule 6: that a sync failed survives. */
void reclog_cut(struct qcow2_image *img);
void reclog_pass_done(struct qcow2_image *img);
void reclog_sync_failed(struct qcow2_image *img);

#endif
