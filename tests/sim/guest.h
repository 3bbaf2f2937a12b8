/* SPDX-License-Identifier: MIT */
/*
 * guest.h: what the guest may see: a model of the disk, sector by sector.
 *
 * Every request is recorded with the times (of the simulated disk's clock) of its submission and
 * completion. A write stamps each sector with the sector's number and its own; a zero sector is the
 * value 0. From that follow, for each sector, the values allowed in a live read and after a crash.
 *
 * Live: a read may return what any write put there that was submitted before the read completed,
 * unless a later one certainly replaced it: that one began after the first had completed, and had
 * itself completed before the read began. While a write is in flight, reads may see it or not, also
 * in turns, as on any disk. A read that overlapped no write settles which of several concurrent
 * writes came last, and what became of a failed one.
 *
 * After a crash at T: what was durable at the latest, and anything that was submitted before T and
 * not certainly replaced by something durable. A write is durable when it completed before the
 * submission of a FLUSH that completed with 0, or itself with FUA. A failed write may have happened
 * in any sector or not, at any time until it failed. A discarded sector may be zero from the
 * discard's submission until it is certainly overwritten, and the old value as well.
 *
 * A torn sector, garbage, or a stamp of another sector is never allowed.
 */
#ifndef SIM_GUEST_H
#define SIM_GUEST_H

#include "base/blk.h"
#include "simdisk.h"

struct guest_op {
	enum blk_op op;
	bool fua, nounmap, failed;
	const uint32_t *values; /* it wrote these, of other ops; NULL: its own */
	uint64_t sector, sectors;
	uint64_t submit, done; /* SIM_NEVER: not yet */
};

/* One request at one sector. */
struct guest_ref {
	uint32_t op;	   /* index in ops */
	uint32_t loses_to; /* a read settled that this op came later; GUEST_NONE: not known */
	uint64_t seen;	   /* by a read that began after it was over: when; or SIM_NEVER */
};

struct guest_sector {
	uint32_t base;		    /* the value that it began with, durable */
	vec(struct guest_ref) refs; /* in order of submission */
};

struct guest_allowed {
	vec(uint32_t) values; /* all sectors', sector after sector */
	uint32_t *first;      /* of sector i: values.at[first[i]] to values.at[first[i + 1] - 1] */
};

/* The disk's size changes at most once; a crash in between leaves either. */
struct guest_resize {
	uint64_t from, to;     /* sectors */
	uint64_t submit, done; /* SIM_NEVER: not yet */
};

struct guest {
	uint64_t sectors; /* that there are at any time */
	uint64_t now;	  /* that requests may go to */
	struct guest_resize resize;
	uint64_t crash_time;
	vec(struct guest_op) ops; /* 0 is none: the value of zeros */
	struct guest_sector *sector;
	struct guest_allowed allowed;
	uint64_t reads_checked;
};

/* A value that a sector can have: the number of the op that wrote it, 0 for zeros, or: */
#define GUEST_GARBAGE UINT32_MAX
#define GUEST_NONE    UINT32_MAX

void guest_init(struct guest *g, uint64_t sectors);
void guest_free(struct guest *g);

/* Whether a disk of @sectors may be what a crash at crash_time left. */
bool guest_size_allowed(const struct guest *g, uint64_t sectors);

/* Registers a request; for a write, its number stamps the data. */
uint32_t guest_submit(struct guest *g, enum blk_op op, unsigned flags, uint64_t sector,
		      uint64_t sectors, uint64_t time);
/* The whole disk goes back to @values, durably: as guest_submit(). */
uint32_t guest_apply(struct guest *g, const uint32_t *values, uint64_t time);
void guest_done(struct guest *g, uint32_t number, int ret, uint64_t time);
/*
 * The disk begins with these values, durable, that were written by requests whose numbers are below
 * @next_number.
 */
void guest_continue(struct guest *g, const uint32_t *values, uint32_t next_number);

void guest_stamp(uint8_t *mem, uint64_t sector, uint32_t number);
uint32_t guest_decode(const uint8_t *mem, uint64_t sector);

/*
 * Looks at the result of READ @number, which has just completed. False, and a message in @text, if
 * it cannot be.
 */
bool guest_check_read(struct guest *g, uint32_t number, const uint8_t *mem, char *text, size_t len);

/* Computes what is allowed after a crash at @time, for guest_check_crash(). */
void guest_crash_at(struct guest *g, uint64_t time);
/* @mem holds @sectors sectors from @sector on. */
bool guest_check_crash(struct guest *g, uint64_t sector, uint64_t sectors, const uint8_t *mem,
		       uint64_t *bad_sector, char *text, size_t len);
/* The history of a sector, for a failure's report. */
void guest_print_sector(const struct guest *g, uint64_t sector);

#endif
