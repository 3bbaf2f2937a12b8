/* SPDX-License-Identifier: MIT */
/*
 * frees.h: host clusters on their way from the map back to the allocator (rule 4).
 *
 *     unlinked ----cut of a pass----> in_pass ----pass done----> durable ----reclaim----> allocator
 *         ^                              |
 *         +------- pass failed ----------+
 *
 * unlinked: the entry that referred to them has changed in memory. in_pass: that change is being
 * written. durable: it is on disk; what is left is to wait for older requests (a grace period), to
 * punch the hole, and to lower the refcount, which puts the cluster back to the allocator. Until then
 * the refcount in memory, which is the allocator's map, is what it was.
 *
 * Each stage is an array of runs. Their sum is bounded by a budget, which is reserved before a cluster
 * is locked; so the stages never overflow, and nobody who holds a lock waits for a reclaim.
 *
 * Metadata loop only.
 */
#ifndef QCOW2_FREES_H
#define QCOW2_FREES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ring/co.h"

struct qcow2_image;

#define FREES_BUDGET 4096

struct free_run {
	uint64_t hcluster;
	uint64_t count;
};

struct free_stage {
	struct free_run *runs; /* FREES_BUDGET of them */
	unsigned count;
};

struct frees {
	struct free_stage unlinked, in_pass, durable, working;
	unsigned reserved;	/* promised, not yet used */
	struct co_waitq budget; /* some of it came back, or a reclaim ended */
	struct co_task task;
	bool running;
};

int frees_init(struct frees *f) must_check;
void frees_destroy(struct frees *f);

/*
 * Waits until @runs of the budget are there (at most FREES_BUDGET / 4), running passes if it must.
 * The caller holds no lock and no epoch. An error is the pass's.
 */
int frees_reserve(struct qcow2_image *img, unsigned runs) must_check;
void frees_unreserve(struct qcow2_image *img, unsigned runs);

/* Out of the reservation: @hcluster is not referred to any more by an entry just changed. */
void frees_add(struct qcow2_image *img, uint64_t hcluster, unsigned *reserved);

/* The pass's steps. */
void frees_cut(struct frees *f);
void frees_pass_done(struct qcow2_image *img, bool failed);

bool frees_pending(const struct frees *f);
/* Runs what is durable through to the allocator and waits for it; holding no lock and no epoch. */
void frees_reclaim(struct qcow2_image *img);

#endif
