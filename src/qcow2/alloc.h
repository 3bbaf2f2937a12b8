/* SPDX-License-Identifier: MIT */
/*
 * alloc.h: host clusters: refcounts, and where free ones are.
 *
 * The refcounts in memory are the allocator's map: a cluster is free when its count is 0 there, and
 * is taken by raising it. Counts are lowered only when nothing durable refers to the cluster any more
 * (frees.h), or when nothing ever did (alloc_undo).
 *
 * Metadata loop only; everything may suspend.
 */
#ifndef QCOW2_ALLOC_H
#define QCOW2_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct co_task;
struct qcow2_image;

/* At open: sets up the search. @err says what is wrong. */
int alloc_init(struct qcow2_image *img, struct error *err) must_check;
void alloc_destroy(struct qcow2_image *img);

/*
 * Takes up to @want adjacent clusters, at least one, with refcount 1: *@got of them from *@hcluster;
 * *@zeroed: they read as zeros. The file is long enough for them. -ENOSPC, -EIO (also: the image is
 * broken).
 */
int alloc_clusters(struct qcow2_image *img, uint64_t want, uint64_t *hcluster, uint64_t *got,
		   bool *zeroed) must_check;

/*
 * Takes exactly @clusters adjacent ones, for a table that is written whole: what is in them is
 * undefined. The refcounts may be in blocks that are made for it.
 */
int alloc_contiguous(struct qcow2_image *img, uint64_t clusters, uint64_t *hcluster) must_check;

/* Gives back clusters that nothing refers to and nothing durable ever did. */
void alloc_undo(struct qcow2_image *img, uint64_t hcluster, uint64_t count);

/* Lowers the counts of clusters by one, and lets those that reach 0 be allocated again. */
void refcount_lower(struct qcow2_image *img, uint64_t hcluster, uint64_t count);
/* Lowers the count of a cluster by @by, if something is left of it then. */
void refcount_subtract(struct qcow2_image *img, uint64_t hcluster, uint64_t by);
/* As refcount_lower(), punching holes for those that reach 0 before they can be allocated. */
void refcount_release(struct qcow2_image *img, uint64_t hcluster, uint64_t count);

/*
 * Raises the counts of clusters that are in use by one; *@done of them, also where it fails: -EFBIG at
 * the largest count, -EIO where a cluster is not in use.
 */
int refcount_raise(struct qcow2_image *img, uint64_t hcluster, uint64_t count,
		   uint64_t *done) must_check;

/* The count of a cluster; -EIO where it cannot be read. */
int refcount_get(struct qcow2_image *img, uint64_t hcluster, uint64_t *value) must_check;

/*
 * Adds a reference to a cluster that has some, and logs it. @still(@arg) is asked at the last moment, from
 * when on nothing suspends: -EAGAIN if it says no; -ERANGE if there cannot be more references.
 */
int refcount_share(struct qcow2_image *img, uint64_t hcluster,
		   bool (*still)(struct qcow2_image *img, uint64_t arg), uint64_t arg) must_check;
/* Takes back one reference to each of some clusters, and logs it: as alloc_undo() of ones that are shared. */
void refcount_undo(struct qcow2_image *img, uint64_t hcluster, uint64_t count);

/*
 * For replay: the count of a cluster (0 where it cannot be read); raises it to @least; makes it @value, which
 * may be less than what was left on disk of an earlier use.
 */
uint64_t refcount_read(struct qcow2_image *img, uint64_t hcluster);
int refcount_ensure(struct qcow2_image *img, uint64_t hcluster, uint64_t least) must_check;
int refcount_assign(struct qcow2_image *img, uint64_t hcluster, uint64_t value) must_check;

/* Ends the search for free clusters in the background and waits for it. */
void alloc_stop_scan(struct qcow2_image *img);

#endif
