/* SPDX-License-Identifier: MIT */
/*
 * compress.h: the two compressions that a qcow2 image may have, cluster by cluster.
 *
 * Deflate is a raw stream without header. What is read may use any window; what is written keeps to
 * 4 KiB, since QEMU inflates with that much. Zstd is frames with their own header. A cluster's length is
 * known in sectors only, so behind the data there is whatever the next cluster left there.
 *
 * An inflater or deflater is the memory that one cluster at a time needs: made in advance, so that
 * nothing is allocated while I/O is served. It may move between threads.
 */
#ifndef QCOW2_COMPRESS_H
#define QCOW2_COMPRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum compression { COMPRESSION_DEFLATE, COMPRESSION_ZSTD }; /* as in the header */

/* NULL if unknown. */
const char *compression_name(enum compression type);

/* ---- reading ---- */

struct inflater;

/* For either compression. -ENOMEM. */
int inflater_create(struct inflater **out) must_check;
void inflater_destroy(struct inflater *inf); /* accepts NULL */

/*
 * Inflates the @in_bytes at @in, the end of which may be anything, to exactly @out_bytes at @out. -EIO if
 * the data does not give as much; then @out holds rubbish. What QEMU reads this reads: a deflate stream
 * that goes on, or lacks its last block, once the cluster is full; several zstd frames.
 */
int inflater_run(struct inflater *inf, enum compression type, const void *in, size_t in_bytes,
		 void *out, size_t out_bytes) must_check;

/* ---- writing ---- */

struct deflater;

/* -ENOMEM. */
int deflater_create(struct deflater **out, enum compression type, size_t cluster_bytes) must_check;
void deflater_destroy(struct deflater *def); /* accepts NULL */

/*
 * Compresses a cluster of @in_bytes to fewer bytes: how many, at @out, which has room for @in_bytes.
 * 0: it does not get smaller, and is to be stored as it is.
 */
size_t deflater_run(struct deflater *def, const void *in, size_t in_bytes, void *out) must_check;

#endif
