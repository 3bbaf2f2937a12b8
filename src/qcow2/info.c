/* SPDX-License-Identifier: MIT */
/*
 * info.c: what the header says about an image, without opening anything that it names.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"
#include "qcow2/format.h"
#include "qcow2/header.h"
#include "storage/storage.h"

static_assert(QCOW2_NAME_MAX == QCOW2_HEADER_NAME_MAX, "names fit");

static void fill(struct qcow2_info *info, const struct qcow2_header *h)
{
	*info = (struct qcow2_info){
		.version = h->version,
		.size_bytes = h->size_bytes,
		.cluster_bytes = h->cluster_bytes,
		.refcount_bits = h->refcount_bits,
		.lazy_refcounts = h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS,
		.dirty = h->incompatible & QCOW2_INCOMPAT_DIRTY,
		.corrupt = h->incompatible & QCOW2_INCOMPAT_CORRUPT,
		.extended_l2 = qcow2_header_extended_l2(h),
		.data_file = h->incompatible & QCOW2_INCOMPAT_DATA_FILE,
		.data_file_raw = h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW,
		.bitmaps = h->has_bitmaps_ext && (h->autoclear & QCOW2_AUTOCLEAR_BITMAPS),
		.compression_type = h->compression_type == QCOW2_COMPRESSION_ZSTD ? "zstd" : "zlib",
		.snapshots = h->nb_snapshots,
		.unknown_incompatible = h->incompatible & ~QCOW2_INCOMPAT_KNOWN,
		.unknown_compatible = h->compatible & ~QCOW2_COMPAT_KNOWN,
		.unknown_autoclear = h->autoclear & ~QCOW2_AUTOCLEAR_KNOWN,
		.l1_entries = h->l1_entries,
		.l1_offset = h->l1_offset,
		.refcount_table_offset = h->rt_offset,
		.refcount_table_clusters = h->rt_clusters,
	};
	if (h->crypt_method != QCOW2_CRYPT_NONE)
		info->encryption = h->crypt_method == QCOW2_CRYPT_AES ? "aes" : "luks";
	memcpy(info->backing_file, h->backing_file, sizeof(info->backing_file));
	memcpy(info->backing_format, h->backing_format, sizeof(h->backing_format));
	memcpy(info->data_file_name, h->data_file_name, sizeof(info->data_file_name));
}

int qcow2_info(struct storage *storage, struct qcow2_info *info, struct error *err)
{
	struct qcow2_header *h = malloc(sizeof(*h));
	int ret;

	if (!h)
		return error_set(err, -ENOMEM, "%s: no memory for the header", storage->name);
	ret = qcow2_header_read(storage, h, err);
	if (!ret)
		fill(info, h);
	free(h);
	return ret;
}
