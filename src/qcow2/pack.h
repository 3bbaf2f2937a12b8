/* SPDX-License-Identifier: MIT */
/*
 * pack.h: where newly compressed clusters go.
 *
 * They are packed one behind the other, byte by byte, so that several share a host cluster, and may reach
 * from one into the next. Each has one reference to each host cluster that it touches. Packing goes on
 * where it ended last, in memory only: after an open, and when the host cluster there is freed or cannot
 * have more references, it starts a new host cluster.
 *
 * Invariants:
 *  1. One writer at a time (pack_lock()), from the allocation until its data is written: a block that two
 *     compressed clusters share is written by one after the other, each time with all that is in it. What
 *     was in it before is in memory (tail), so nothing is read.
 *  2. (rule 7) A block that holds data of an earlier writer is shared only if no pass began since that
 *     one allocated. So when the earlier cluster becomes durable, the raised count has been before. Else
 *     packing goes on with the next block.
 *  3. A cluster that is about to be freed is no place to go on: it is forgotten before it is punched, and
 *     a reference is added only while it is not.
 *  4. (rule 14) The count of each host cluster, from 1 on, is in the recovery log before the link that
 *     needs it, and so is its lowering where that link was not made.
 *
 * Metadata loop only; everything but pack_forget() may suspend.
 */
#ifndef QCOW2_PACK_H
#define QCOW2_PACK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ring/co.h"

struct deflater;
struct qcow2_image;

struct pack {
	bool on; /* writes of full clusters are compressed */
	struct co_mutex lock;
	uint64_t next;	 /* host offset where the next may begin; 0: in a new host cluster */
	uint64_t passes; /* wb.passes when what is before it was allocated */
	uint8_t *tail;	 /* what the block that it is in holds, zeros behind it */

	/* deflaters that nobody uses; as many as the pool has threads */
	pthread_mutex_t deflaters_lock;
	pthread_cond_t deflaters_cond;
	struct deflater **deflaters;
	unsigned idle_deflaters, deflaters_made;
};

/* At open; with @on, what is needed to compress. */
int pack_init(struct qcow2_image *img, bool on, struct error *err) must_check;
void pack_destroy(struct qcow2_image *img); /* also of a zeroed one */

/* From any thread: the use of a deflater, waiting for one if it must. */
struct deflater *pack_deflater_get(struct pack *p);
void pack_deflater_put(struct pack *p, struct deflater *def);

void pack_lock(struct qcow2_image *img);
void pack_unlock(struct qcow2_image *img);

/*
 * Room for a compressed cluster of @bytes, less than a cluster: at *@hoff, and referred to. The first
 * one of a writer may lie in a block with what is in tail; the next ones directly behind the one before,
 * or at the start of a host cluster.
 */
int pack_alloc(struct qcow2_image *img, uint32_t bytes, uint64_t *hoff) must_check;
/* Gives back one that was not linked. */
void pack_undo(struct qcow2_image *img, uint64_t hoff, uint32_t bytes);
/*
 * All that was allocated is written: @block, if not NULL, is what the last one's last block holds. With
 * NULL it is not known what was written, and packing goes on in another host cluster.
 */
void pack_written(struct qcow2_image *img, const void *block);

/* Host clusters that are going to be free. */
void pack_forget(struct qcow2_image *img, uint64_t hcluster, uint64_t count);

#endif
