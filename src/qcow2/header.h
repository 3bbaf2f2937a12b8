/* SPDX-License-Identifier: MIT */
/*
 * header.h: an image's header and its extensions, read and validated, and the few updates of it.
 *
 * Four questions, each its own function, because different callers ask different ones:
 *   read          is this a qcow2 header that makes sense? (everybody; features that nobody here
 * can serve are fine, a value that no valid image has is not) check_tables  do the tables that it
 * points to lie where tables can lie? (who opens the image; not the checker, which is there to say
 * what is wrong with them) servable      does it use nothing that the engine cannot serve? set_*
 * change it.
 *
 * The structure holds some kilobytes of names: allocate it, do not put it on a coroutine's stack.
 */
#ifndef QCOW2_HEADER_H
#define QCOW2_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "qcow2/format.h"
#include "ring/co.h"

struct storage;

#define QCOW2_HEADER_NAME_MAX 1024

struct qcow2_header {
	const char *file_name; /* the storage's, for messages; lives as long as the storage */

	unsigned version; /* 2 or 3 */
	unsigned cluster_bits;
	uint32_t cluster_bytes;
	uint64_t size_bytes; /* of the guest's disk, rounded down to 512 */

	unsigned l2_bits; /* log2 of the entries of an L2 table */
	uint64_t l1_offset;
	uint32_t l1_entries; /* may be more than the disk's size needs: keep the rest */

	unsigned refcount_order;
	unsigned refcount_bits;
	unsigned rb_bits; /* log2 of the entries of a refcount block */
	uint64_t rt_offset;
	uint32_t rt_clusters;

	uint64_t incompatible, compatible, autoclear; /* 0 in version 2 */
	uint32_t header_length;
	unsigned compression_type;
	uint32_t crypt_method;

	uint32_t nb_snapshots;
	uint64_t snapshots_offset;

	/* Hostile names: NUL-terminated, without a NUL inside, otherwise as they are in the file.
	 */
	uint64_t backing_file_offset; /* 0: none */
	char backing_file[QCOW2_HEADER_NAME_MAX];
	char backing_format[QCOW2_MAX_BACKING_FORMAT_BYTES + 1];
	char data_file_name[QCOW2_HEADER_NAME_MAX];

	bool has_bitmaps_ext;
	uint32_t nb_bitmaps;
	uint64_t bitmap_directory_offset;
	uint64_t bitmap_directory_bytes;

	bool has_luks_ext;
	uint64_t luks_offset;
	uint64_t luks_bytes;

	struct co_mutex updating;
	bool update_wrote; /* the last update came so far that the file may have changed */

	/* The image's own name for each incompatible bit; empty if it has none. */
	char incompatible_names[64][sizeof(((struct qcow2_disk_feature_name *)0)->name) + 1];
};

static inline bool qcow2_header_extended_l2(const struct qcow2_header *h)
{
	return h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
}

/* What is allocated by itself: subclusters, or where there are none clusters. */
static inline uint32_t qcow2_header_subcluster_bytes(const struct qcow2_header *h)
{
	return h->cluster_bytes >> (qcow2_header_extended_l2(h) ? QCOW2_SUBCLUSTER_BITS : 0);
}

/*
 * Reads and validates header and extensions; the first cluster at most. In a coroutine, or outside
 * of any loop. -EINVAL, -ENOTSUP (a version nobody knows), -EFBIG (past a limit), or an I/O error;
 * @h is undefined then.
 */
int qcow2_header_read(struct storage *st, struct qcow2_header *h, struct error *err) must_check;

/*
 * L1, refcount and snapshot table: inside a file of @file_bytes, clear of the header and of each
 * other. No I/O.
 */
int qcow2_header_check_tables(const struct qcow2_header *h, uint64_t file_bytes,
			      struct error *err) must_check;

/*
 * -ENOTSUP, naming it, if there is an incompatible feature bit that this program does not know:
 * then nothing in the image has a known meaning, not even for the checker.
 */
int qcow2_header_check_features(const struct qcow2_header *h, struct error *err) must_check;

/*
 * -ENOTSUP and the feature's name for the first feature that the engine cannot serve (an unknown
 * one included); -EROFS for an image marked corrupt that is to be written.
 */
int qcow2_header_servable(const struct qcow2_header *h, bool read_only,
			  struct error *err) must_check;

/*
 * Updates: each is one write inside the header's first sector (as many whole blocks as the storage
 * asks for, the rest of them read and written back), without a sync. In a coroutine or outside of
 * any loop; one at a time, others wait for it: each writes all of the sector. @h changes when the write
 * succeeded; after an error the file has the old values or, if update_wrote says so right then, maybe the new
 * ones. No allocation.
 */
int qcow2_header_set_refcount_table(struct storage *st, struct qcow2_header *h, uint64_t rt_offset,
				    uint32_t rt_clusters) must_check;
int qcow2_header_set_l1(struct storage *st, struct qcow2_header *h, uint64_t l1_offset,
			uint32_t l1_entries) must_check;
/* The active L1 table and the disk's size together. */
int qcow2_header_set_disk(struct storage *st, struct qcow2_header *h, uint64_t l1_offset,
			  uint32_t l1_entries, uint64_t size_bytes) must_check;
int qcow2_header_set_snapshots(struct storage *st, struct qcow2_header *h, uint64_t offset,
			       uint32_t count) must_check;
/* Feature bits; version 3, or all 0. */
int qcow2_header_set_features(struct storage *st, struct qcow2_header *h, uint64_t incompatible,
			      uint64_t compatible, uint64_t autoclear) must_check;

#endif
