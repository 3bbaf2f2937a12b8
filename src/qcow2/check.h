/* SPDX-License-Identifier: MIT */
/*
 * check.h: finds, and repairs, what is wrong between an image's references and its refcounts.
 *
 * Counts are those of `qemu-img check`; docs/check.md lists where they differ. Works on every image
 * whose header can be read, also where the engine cannot serve it. In a coroutine, or outside of
 * any loop; nobody else may change the image meanwhile.
 */
#ifndef QCOW2_CHECK_H
#define QCOW2_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct storage;
struct qcow2_header;

enum qcow2_repair {
	QCOW2_REPAIR_NONE,
	QCOW2_REPAIR_LEAKS, /* only lower counts that are too high */
	QCOW2_REPAIR_ALL,
};

enum qcow2_finding {
	QCOW2_FINDING_LEAK,
	QCOW2_FINDING_CORRUPTION,
	QCOW2_FINDING_ERROR,  /* something could not be checked */
	QCOW2_FINDING_REPAIR, /* says what is being repaired */
};

#define QCOW2_CHECK_DEFAULT_MEMORY ((uint64_t)2 << 30)

struct qcow2_check_options {
	enum qcow2_repair repair;
	uint64_t memory_bytes; /* bound of what the check may allocate; 0: the default */
	/*
	 * Bound of the bytes of L2 tables looked at, or 0. In a hostile image all entries of all L1
	 * tables may lead to the same few tables, so that a small file takes forever.
	 */
	uint64_t work_bytes;
	/* Called for each finding, or NULL; @text is printable and has no newline. */
	void (*finding)(void *arg, enum qcow2_finding kind, const char *text);
	/* Called now and then; @done of @total, in units of nothing in particular. Or NULL. */
	void (*progress)(void *arg, uint64_t done, uint64_t total);
	void *arg;
};

struct qcow2_check_result {
	uint64_t corruptions, leaks, errors; /* what is left after repairing */
	uint64_t corruptions_fixed, leaks_fixed;
	uint64_t total_clusters; /* of the guest's disk */
	uint64_t allocated_clusters, compressed_clusters, fragmented_clusters;
	uint64_t image_end_offset; /* past the last cluster with a refcount */
};

/*
 * @res is filled in also where it fails (what was found until then). An error is for what stopped
 * the check itself: an unreadable header or table, no memory; what is wrong with the image is a
 * finding.
 */
int qcow2_check(struct storage *st, const struct qcow2_check_options *opts,
		struct qcow2_check_result *res, struct error *err) must_check;

/*
 * What a read-write open of an image with the dirty bit does: repairs all, makes it durable, and
 * clears the bit, durably. @h is the image's header and is updated. Errors if the image is still
 * broken afterwards.
 */
int qcow2_repair_dirty(struct storage *st, struct qcow2_header *h, struct error *err) must_check;

#endif
