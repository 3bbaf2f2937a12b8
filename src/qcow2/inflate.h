/* SPDX-License-Identifier: MIT */
/*
 * inflate.h: a bounded cache of inflated clusters.
 *
 * A compressed cluster is read from storage, inflated by the pool of threads, and kept: a stream of small
 * reads inflates it once, and readers that come meanwhile wait for the one that is under way. One cache
 * serves an image and its whole backing chain; a cluster is known by its image and its descriptor (host
 * offset and length), not by a guest offset.
 *
 *     FREE --start--> FILLING --read, inflated--> VALID --evicted--> FREE
 *                        |                          |
 *                        +--failed--> FAILED --last reader gone--> FREE
 *
 * Invariants:
 *  1. (rule 4) What lies in a host cluster is forgotten before that cluster can be allocated again
 *     (inflate_drop()). A fill that is under way then goes on, for those who wait for it already, and
 *     nobody else finds it.
 *  2. A reader holds one cluster at a time, and waits for nothing but that one's fill; so does a fill for
 *     its I/O and a thread. So room always comes back.
 *  3. The number of fills under way, of clusters and of what a fill needs are fixed at creation: nothing
 *     is allocated later. Memory that was never used is never touched.
 *
 * Any thread that runs a loop; one mutex, held for a few instructions. A fill belongs to the loop that
 * started it: its I/O and its completion run there.
 */
#ifndef QCOW2_INFLATE_H
#define QCOW2_INFLATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ring/loop.h"

struct inflate_cache;
struct qcow2_image;
struct work_pool;

/* The bound of a cache: what an image's inflated clusters may take. */
#define INFLATE_CACHE_BYTES (16 * MiB)
/* How many clusters are read or inflated at once. */
#define INFLATE_FILLS 8

/* For clusters of at most @cluster_bytes. */
int inflate_cache_create(struct inflate_cache **out, struct work_pool *workers,
			 uint32_t cluster_bytes, struct error *err) must_check;
/* Accepts NULL. No fill may be under way. */
void inflate_cache_destroy(struct inflate_cache *c);

/*
 * Copies [@in_cluster, @in_cluster + @len_bytes) of the compressed cluster @entry of @layer to @to. In a
 * coroutine, which holds what keeps the entry's host clusters from being freed. -EIO: the storage's, or
 * the cluster cannot be inflated.
 */
int inflate_read(struct inflate_cache *c, struct qcow2_image *layer, uint64_t entry,
		 uint32_t in_cluster, uint32_t len_bytes, void *to) must_check;

/*
 * Starts to inflate a cluster that is going to be read; does not suspend. False if there is no room for
 * that now. As above, the entry's host clusters are not freed during the call.
 */
bool inflate_start(struct inflate_cache *c, struct qcow2_image *layer, uint64_t entry);

/* How many clusters ahead of a reader are worth it. */
unsigned inflate_window(const struct inflate_cache *c);

/* Forgets what lies in host cluster @hcluster of @layer, also in part. */
void inflate_drop(struct inflate_cache *c, const struct qcow2_image *layer, uint64_t hcluster);

/* Waits for the fills that were started on this loop, before it goes; nobody starts more. */
void inflate_drain(struct inflate_cache *c);

/* For tests: how many clusters were inflated so far. */
uint64_t inflate_count(struct inflate_cache *c);

#endif
