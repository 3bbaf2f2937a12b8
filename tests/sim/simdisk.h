/* SPDX-License-Identifier: MIT */
/*
 * simdisk.h: a simulated disk behind storage.h, which remembers all that was done to it.
 *
 * One disk holds any number of files, each a storage. What is submitted in a loop stays pending
 * until simdisk_finish() picks it; outside of any loop it is done at once. Every submission,
 * landing and completion is an event; the number of events so far is the disk's clock. From the
 * record crash.h derives what a power cut at any moment may leave behind.
 *
 * The life of an operation: *submitted* -> *landed* (simdisk_finish(): reads afterwards see it) ->
 * *done* (its callback runs, in its loop's next turn). The caller knows of it from the third on,
 * and only then it counts as completed.
 *
 * Nastier than the contract's letter needs it to be, on purpose:
 *  - a WRITE whose memory changed while it was in flight lands with any mixture of both, by
 * sectors;
 *  - a READ sees each sector as it was at any moment between submission and completion;
 *  - the elements of a request's iovec are garbage once it has completed;
 *  - a failed operation has landed for any of its sectors, or for none; a failed READ leaves
 * garbage. It asserts the caller's side of the contract: alignment, lengths, nothing past 2^62.
 */
#ifndef SIM_SIMDISK_H
#define SIM_SIMDISK_H

#include "ring/loop.h"
#include "storage/storage.h"
#include "util.h"

#define SIM_NEVER UINT64_MAX

extern const uint8_t sim_zero_sector[SECTOR_BYTES];

/* A file's contents: a pointer for each sector to bytes that never change; past @n all is zero. */
struct sim_map {
	const uint8_t **at;
	uint64_t n;
	uint64_t size_bytes;
};

static inline const uint8_t *sim_map_get(const struct sim_map *m, uint64_t sector)
{
	return sector < m->n ? m->at[sector] : sim_zero_sector;
}

void sim_map_set(struct sim_map *m, uint64_t sector, const uint8_t *data); /* grows it */
void sim_map_copy(struct sim_map *to, const struct sim_map *from);
void sim_map_free(struct sim_map *m);

enum sim_event_kind { SIM_SUBMIT, SIM_LAND, SIM_DONE, SIM_MARK };

struct sim_op {
	enum storage_op op;
	uint32_t flags;
	unsigned file;
	uint64_t number;	  /* in order of submission */
	uint64_t sector, sectors; /* the range; of a TRUNCATE, what it may zero */
	uint64_t size_bytes;	  /* TRUNCATE: the new length */
	const uint8_t **data;	  /* WRITE: as submitted */
	const uint8_t **late;	  /* WRITE: as landed, where that differs; or NULL */
	uint8_t *landed;  /* failed or killed: a flag for each sector that landed; or NULL: all */
	bool killed;	  /* its process died: nobody was told */
	bool landed_size; /* failed TRUNCATE: the length changed all the same */
	bool resized;	  /* landing changed the file's length, to: */
	uint64_t resized_bytes;
	uint64_t submit, land, done; /* times */
	int ret;

	struct simdisk *disk;
	struct storage_io *io;
	struct loop *loop;
	struct loop_msg msg;
};

/* What operation @op writes to the @i-th sector of its range, from its landing on. */
const uint8_t *sim_op_value(const struct sim_op *op, uint64_t i);
/* WRITE, PUNCH, ZERO, TRUNCATE. */
bool sim_op_mutates(const struct sim_op *op);

struct sim_event {
	enum sim_event_kind kind;
	struct sim_op *op; /* NULL: a mark of the caller */
};

/* Which operations fail. Zeroed: none. */
struct sim_fault {
	unsigned kinds;	      /* a bit for each enum storage_op */
	uint64_t first, last; /* numbers of operations, both included */
	int error;	      /* what they fail with, such as -EIO */
	uint64_t limit_bytes; /* not 0: the disk is full: growing a file past this gives -ENOSPC */
	unsigned files;	      /* a bit for each file that this is about; 0: all */
};

struct simfile {
	struct storage storage; /* first */
	struct simdisk *disk;
	unsigned number;
	struct sim_map initial, live;
	bool no_zero; /* STORAGE_ZERO is not supported */
	bool closed;
};

struct simdisk {
	struct rng rng;
	struct arena arena;
	vec(struct sim_event) events;
	vec(struct sim_op *) ops;
	vec(struct sim_op *) pending; /* submitted in a loop, not landed, in order of submission */
	vec(struct simfile *) files;
	vec(struct sim_op *) told; /* landed, and their loops have been told */
	vec(struct sim_op *) ghosts; /* of a process that was killed; may land yet */
	struct sim_fault fault;
	uint64_t failed;	 /* operations that failed by the plan */
	unsigned undone;	 /* submitted and not done */
	unsigned undone_failing; /* of these, those that will fail */
};

struct simdisk *simdisk_create(uint64_t seed);
/* Every storage is closed, nothing is pending. */
void simdisk_destroy(struct simdisk *d);

/* A new file with these contents (NULL: empty), which are durable. The map is copied. */
struct simfile *simdisk_file(struct simdisk *d, const char *name, const struct sim_map *contents);

/* Lets the pending operation at @index land; its loop will be told. */
void simdisk_finish(struct simdisk *d, size_t index);

/*
 * The process that submitted what is under way is killed: none of it is reported, but it may still
 * land, each operation in any part or not at all: when simdisk_ghost() lets it, or all that is for one
 * file when the next process claims that file (storage_claim(), which waits for it). The files are open anew for
 * that process. What has landed can be read, and becomes durable by the next sync.
 */
void simdisk_kill(struct simdisk *d);
/* Lets one of those operations land. */
void simdisk_ghost(struct simdisk *d);

/* Puts an event of the caller's into the record and returns its time. */
uint64_t simdisk_mark(struct simdisk *d);

/* A checksum of the record: two runs of one seed must agree. */
uint64_t simdisk_digest(const struct simdisk *d);

const char *sim_op_name(const struct sim_op *op);

#endif
