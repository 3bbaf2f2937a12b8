/* SPDX-License-Identifier: MIT */
/*
 * mutant.h: rules of docs/crash-safety.md, broken on purpose.
 *
 * Built with -DQCOW2_MUTANTS, the engine breaks the rule that qcow2_mutant names; a test asserts that
 * the simulation catches each of them. In any other build mutant() is the constant false.
 */
#ifndef QCOW2_MUTANT_H
#define QCOW2_MUTANT_H

enum qcow2_mutant {
	MUTANT_NONE,
	MUTANT_L2_BEFORE_REFCOUNTS, /* rule 1 */
	MUTANT_L1_BEFORE_L2,	    /* rule 1 */
	MUTANT_RT_BEFORE_BLOCK,	    /* rule 1 */
	MUTANT_REUSE_BEFORE_UNLINK, /* rule 4 */
	MUTANT_ACK_BEFORE_LINK,	    /* rule 5 */
	MUTANT_LIVE_PAGE,	    /* rule 2 */
	MUTANT_LOWER_WITH_RAISE,    /* rule 4 */
	MUTANT_FLUSH_JOINS,	    /* rule 5 */
	MUTANT_FUA_WITHOUT_MAP,	    /* rule 5 */
	MUTANT_IGNORE_SYNC_ERROR,   /* rule 6 */
	MUTANT_NO_GRACE,	    /* rules 4 and 11 */
	MUTANT_LOG_RETIRED_EARLY,   /* rule 14 */
	MUTANT_OPEN_WITHOUT_SYNC,   /* rule 16 */
	MUTANT_RECOVER_AT_ONCE,	    /* rule 15 */
	MUTANT_L1_SWITCH_UNSYNCED,  /* rule 3 */
	MUTANT_UNLINK_BEFORE_SHRINK, /* the order of a shrink */
	MUTANT_RECLAIM_IN_USE,	    /* rule 19 */
	MUTANT_COUNTS_NOT_LOGGED,   /* rule 14 */
	MUTANT_PACK_UNSERIALISED,   /* rule 7 */
	MUTANT_SNAPSHOT_WITHOUT_DRAIN, /* rule 10 */
	MUTANT_SNAPSHOT_RAISE_FIRST,   /* rule 10 */
	MUTANT_SNAPSHOT_STALE,	       /* rule 9, of tables that are counted for a snapshot */
	MUTANT_SNAPSHOT_NO_GRACE,      /* rule 8, of clusters that are counted for a snapshot */
	MUTANT_SNAPSHOT_LOWER_EARLY,   /* rule 10, of a delete */
	MUTANT_SNAPSHOT_COUNT_FIRST,   /* rule 4, of a snapshot's tables */
	MUTANT_SNAPSHOT_APPLY_UNCOUNTED, /* rule 10, of an apply */
	MUTANT_SNAPSHOT_APPLY_EARLY,   /* rule 10, of an apply */
	MUTANT_IN_PLACE_RELOCATED,     /* rule 8 */
	MUTANT_DATA_FILE_AFTER_MAP,    /* rule 1, of two files */
	MUTANT_DATA_FILE_OPEN_UNSYNCED, /* rule 16, of two files */
	MUTANT_DATA_FILE_UNCLAIMED,    /* rule 15, of two files */
	MUTANT_PUNCH_ENCRYPTED,	       /* a hole is no zeros where it is decrypted */
	MUTANT_COPY_KEEPS_TWEAK,       /* copied data is encrypted for the place that it came from */
	MUTANT_RECLAIM_BLIND,	       /* rule 19, of snapshots */
	MUTANT_BITMAP_IN_USE_LATE,     /* rule 7 */
	MUTANT_BITMAP_VALID_EARLY,     /* the order of saving bitmaps */
	MUTANT_BITMAP_UNLOGGED,	       /* what a killed process had recorded */
	MUTANT_ZEROED_REUSED_EARLY,    /* rule 8, of a place that a cluster keeps */
	MUTANT_COMPRESSED_LINKED_FIRST, /* rule 5 */
	MUTANT_COUNT,
};

#ifdef QCOW2_MUTANTS
extern int qcow2_mutant;
#define mutant(m) (qcow2_mutant == (m))
#else
#define mutant(m) 0
#endif

#endif
