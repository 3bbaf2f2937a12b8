/* SPDX-License-Identifier: MIT */
/*
 * metaset.h: which host clusters hold metadata: header, L1, refcount table and blocks, L2 tables,
 * LUKS header.
 *
 * Data must never be written there, whatever a broken L2 entry or refcount says. Fixed tables are
 * ranges, blocks and L2 tables a hash set that grows by doubling. Metadata loop only.
 *
 * What snapshots have (their table, their L1 and L2 tables) is a set of its own behind the image's: the
 * two share L2 tables, and neither knows when the other lets go of one.
 */
#ifndef QCOW2_METASET_H
#define QCOW2_METASET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum metaset_range { METASET_HEADER, METASET_L1, METASET_RT, METASET_LUKS, METASET_RANGES };

struct metaset {
	struct {
		uint64_t first, count; /* host clusters */
	} ranges[METASET_RANGES];
	uint64_t *slots; /* host cluster + 1; 0: empty */
	uint64_t mask;
	uint64_t used;
	const struct metaset *behind; /* the snapshots'; NULL: none */
};

/* Room for @expected clusters without growing. */
int metaset_init(struct metaset *m, uint64_t expected) must_check;
void metaset_destroy(struct metaset *m);
void metaset_set_range(struct metaset *m, enum metaset_range which, uint64_t first, uint64_t count);
/* -EEXIST if it is there already, in a range or by itself, what is behind aside; -ENOMEM. */
int metaset_add(struct metaset *m, uint64_t hcluster) must_check;
/* Of one that was added by itself; of any other nothing happens. */
void metaset_remove(struct metaset *m, uint64_t hcluster);
bool metaset_has(const struct metaset *m, uint64_t hcluster);
/* What is behind aside. */
bool metaset_has_own(const struct metaset *m, uint64_t hcluster);

#endif
