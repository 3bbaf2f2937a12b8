/* SPDX-License-Identifier: MIT */
/*
 * judge.h: a small checker of qcow2 structure for the simulation, independent of the engine's: it
 * shares no code with src/qcow2, works on a map in memory, and takes microseconds. Its verdict is
 * that of `qemu-img check`: corruption is what qemu-img calls an error, a leak what it calls a
 * leak. What a data file holds is not counted, as in QEMU; but a cluster in it that lies elsewhere than
 * where the guest has it is a corruption. A feature that it does not know is a corruption here, as no
 * workload makes any.
 */
#ifndef SIM_JUDGE_H
#define SIM_JUDGE_H

#include "simdisk.h"

/* What a host cluster is used for. */
enum judge_kind {
	JUDGE_FREE,
	JUDGE_HEADER,
	JUDGE_REFTABLE,
	JUDGE_REFBLOCK,
	JUDGE_L1,
	JUDGE_L2,
	JUDGE_DATA,
	JUDGE_COMPRESSED,
	JUDGE_TABLE,
	JUDGE_LUKS,
	JUDGE_BITMAP,
	JUDGE_KINDS,
};

struct judge {
	uint64_t corruptions, leaks;
	bool bitmaps; /* there are some */
	bool shared; /* compressed clusters, or counts too high that are above 1 */
	uint64_t flags; /* of the corruptions: COPIED clear and refcount 1, in the active tables */
	bool dirty, extended;
	bool data_file; /* data lies in another file */
	char text[256]; /* of the first corruption */

	/* the image's */
	unsigned version, cluster_bits, refcount_order;
	uint64_t size_bytes;
	uint64_t clusters;  /* of the file */
	vec(uint32_t) refs; /* for each host cluster: references found */
	vec(uint8_t) kinds; /* and what by: enum judge_kind */
	vec(uint32_t) walkers; /* and from which L1 table the last one, counted from 1; 0: none */
	uint32_t walker;
	const struct sim_map *map;
};

extern const char *const judge_kind_names[JUDGE_KINDS];

/* @j is zeroed before the first use, and may be used again; judge_free() at last. */
void judge_run(struct judge *j, const struct sim_map *map);
void judge_free(struct judge *j);

/* Prints how guest offset @goff is mapped, for a failure's report. */
void judge_print_mapping(struct judge *j, uint64_t goff);

#endif
