/* SPDX-License-Identifier: MIT */
/*
 * mutants.c: see mutants.h.
 */
#include "mutants.h"

#include <string.h>

#ifdef QCOW2_MUTANTS

#include "qcow2/mutant.h"

#define NAME(m) [MUTANT_##m] = #m

static const char *const names[MUTANT_COUNT] = {
	NAME(NONE),
	NAME(L2_BEFORE_REFCOUNTS),
	NAME(L1_BEFORE_L2),
	NAME(RT_BEFORE_BLOCK),
	NAME(REUSE_BEFORE_UNLINK),
	NAME(ACK_BEFORE_LINK),
	NAME(LIVE_PAGE),
	NAME(LOWER_WITH_RAISE),
	NAME(FLUSH_JOINS),
	NAME(FUA_WITHOUT_MAP),
	NAME(IGNORE_SYNC_ERROR),
	NAME(NO_GRACE),
	NAME(LOG_RETIRED_EARLY),
	NAME(OPEN_WITHOUT_SYNC),
	NAME(RECOVER_AT_ONCE),
	NAME(L1_SWITCH_UNSYNCED),
	NAME(UNLINK_BEFORE_SHRINK),
	NAME(RECLAIM_IN_USE),
	NAME(COUNTS_NOT_LOGGED),
	NAME(PACK_UNSERIALISED),
	NAME(SNAPSHOT_WITHOUT_DRAIN),
	NAME(SNAPSHOT_RAISE_FIRST),
	NAME(SNAPSHOT_STALE),
	NAME(SNAPSHOT_NO_GRACE),
	NAME(SNAPSHOT_LOWER_EARLY),
	NAME(SNAPSHOT_COUNT_FIRST),
	NAME(SNAPSHOT_APPLY_UNCOUNTED),
	NAME(SNAPSHOT_APPLY_EARLY),
	NAME(IN_PLACE_RELOCATED),
	NAME(DATA_FILE_AFTER_MAP),
	NAME(DATA_FILE_OPEN_UNSYNCED),
	NAME(DATA_FILE_UNCLAIMED),
	NAME(PUNCH_ENCRYPTED),
	NAME(COPY_KEEPS_TWEAK),
	NAME(RECLAIM_BLIND),
	NAME(BITMAP_IN_USE_LATE),
	NAME(BITMAP_VALID_EARLY),
	NAME(BITMAP_UNLOGGED),
	NAME(ZEROED_REUSED_EARLY),
	NAME(COMPRESSED_LINKED_FIRST),
};

int mutant_count(void)
{
	return MUTANT_COUNT;
}

const char *mutant_name(int mutant)
{
	return names[mutant] ? names[mutant] : "(a mutant without a name)";
}

/*
 * Those that the first seeds do not show, and one that does. It may take longer again where the runs of a seed change,
 * and another one be better then: what is printed says which.
 */
static const uint64_t first_seeds[MUTANT_COUNT] = {
	[MUTANT_DATA_FILE_UNCLAIMED] = 51,
	[MUTANT_L1_SWITCH_UNSYNCED] = 64,
	[MUTANT_COUNTS_NOT_LOGGED] = 16,
	[MUTANT_UNLINK_BEFORE_SHRINK] = 13,
};

uint64_t mutant_first_seed(int mutant)
{
	return first_seeds[mutant] ? first_seeds[mutant] : 1;
}

void mutant_set(int mutant)
{
	qcow2_mutant = mutant;
}

#else

int mutant_count(void)
{
	return 1;
}

const char *mutant_name(int mutant)
{
	return "NONE";
}

uint64_t mutant_first_seed(int mutant)
{
	return 1;
}

void mutant_set(int mutant)
{
}

#endif

int mutant_find(const char *name)
{
	for (int m = 1; m < mutant_count(); m++) {
		if (!strcmp(name, mutant_name(m)))
			return m;
	}
	return 0;
}
