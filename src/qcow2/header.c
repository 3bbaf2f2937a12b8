/* SPDX-License-Identifier: MIT */
/*
 * header.c: reading, judging and updating the header; see header.h.
 *
 * Reading goes in three steps: the fixed part, decoded into numbers; the checks that need numbers
 * only, one function for each group of fields; the rest of the first cluster (extensions and the
 * backing file's name). A check names the field, its value, and what was allowed.
 *
 * Invariants:
 *  1. After qcow2_header_read() succeeded, every shift and product of the header's numbers that
 *     format.h makes is defined and fits 64 bits.
 *  2. No name from the file has a NUL inside or lacks one at its end.
 *  3. An update touches the first sector of the file only; all that the update does not know
 *     (extensions, later fields) is written back as it was read. So two at a time could land in either
 *     order, and the older one take back what the newer one wrote: h->updating.
 */
#include "qcow2/header.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "storage/storage.h"

/* ---- reading: the fixed part ---- */

#define FIRST_READ_BYTES 4096

static void decode_fixed(const struct qcow2_disk_header *d, struct qcow2_header *h)
{
	h->version = be32_get(d->version);
	h->cluster_bits = be32_get(d->cluster_bits);
	h->size_bytes = align_down(be64_get(d->size), 512);
	h->crypt_method = be32_get(d->crypt_method);
	h->l1_entries = be32_get(d->l1_size);
	h->l1_offset = be64_get(d->l1_table_offset);
	h->rt_offset = be64_get(d->refcount_table_offset);
	h->rt_clusters = be32_get(d->refcount_table_clusters);
	h->nb_snapshots = be32_get(d->nb_snapshots);
	h->snapshots_offset = be64_get(d->snapshots_offset);
	h->backing_file_offset = be64_get(d->backing_file_offset);
	h->refcount_order = 4;
	h->header_length = QCOW2_V2_HEADER_BYTES;
	if (h->version < 3)
		return;
	h->incompatible = be64_get(d->incompatible_features);
	h->compatible = be64_get(d->compatible_features);
	h->autoclear = be64_get(d->autoclear_features);
	h->refcount_order = be32_get(d->refcount_order);
	h->header_length = be32_get(d->header_length);
	if (h->header_length > offsetof(struct qcow2_disk_header, compression_type))
		h->compression_type = d->compression_type;
}

static int check_geometry(struct qcow2_header *h, struct error *err)
{
	if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS || h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
		return error_set(err, -EINVAL, "%s: cluster_bits is %u, not %u to %u", h->file_name,
				 h->cluster_bits, QCOW2_MIN_CLUSTER_BITS, QCOW2_MAX_CLUSTER_BITS);
	h->cluster_bytes = (uint32_t)1 << h->cluster_bits;
	if (h->refcount_order > QCOW2_MAX_REFCOUNT_ORDER)
		return error_set(err, -EINVAL, "%s: refcount_order is %u, more than %u",
				 h->file_name, h->refcount_order, QCOW2_MAX_REFCOUNT_ORDER);
	h->refcount_bits = 1u << h->refcount_order;
	h->rb_bits = qcow2_rb_bits(h->cluster_bits, h->refcount_order);
	if (h->version >= 3 &&
	    (h->header_length < QCOW2_V3_MIN_HEADER_BYTES || h->header_length > h->cluster_bytes))
		return error_set(err, -EINVAL,
				 "%s: header_length is %u, not %u to %u (the cluster size)",
				 h->file_name, h->header_length, QCOW2_V3_MIN_HEADER_BYTES,
				 h->cluster_bytes);
	if (h->header_length % 8)
		return error_set(err, -EINVAL, "%s: header_length is %u, not a multiple of 8",
				 h->file_name, h->header_length);
	return 0;
}

static int check_features(struct qcow2_header *h, struct error *err)
{
	bool compression_bit = h->incompatible & QCOW2_INCOMPAT_COMPRESSION;

	if (h->compression_type > QCOW2_COMPRESSION_ZSTD)
		return error_set(err, -ENOTSUP, "%s: compression_type is %u, which is not known",
				 h->file_name, h->compression_type);
	if (compression_bit != (h->compression_type != QCOW2_COMPRESSION_DEFLATE))
		return error_set(
			err, -EINVAL,
			"%s: the compression type feature bit is %s, but compression_type is %u",
			h->file_name, compression_bit ? "set" : "clear", h->compression_type);
	if (qcow2_header_extended_l2(h) && h->cluster_bits < QCOW2_MIN_EXTENDED_L2_CLUSTER_BITS)
		return error_set(
			err, -EINVAL,
			"%s: cluster_bits is %u, less than %u, which extended L2 entries need",
			h->file_name, h->cluster_bits, QCOW2_MIN_EXTENDED_L2_CLUSTER_BITS);
	if ((h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) &&
	    !(h->incompatible & QCOW2_INCOMPAT_DATA_FILE))
		return error_set(
			err, -EINVAL,
			"%s: marked as having a raw external data file, but has no data file",
			h->file_name);
	if (h->crypt_method > QCOW2_CRYPT_LUKS)
		return error_set(err, -ENOTSUP, "%s: crypt_method is %u, which is not known",
				 h->file_name, h->crypt_method);
	h->l2_bits = qcow2_l2_bits(h->cluster_bits, qcow2_header_extended_l2(h));
	return 0;
}

static int check_aligned(const struct qcow2_header *h, uint64_t offset, const char *field,
			 struct error *err)
{
	if (is_aligned(offset, h->cluster_bytes))
		return 0;
	return error_set(err, -EINVAL,
			 "%s: %s is %" PRIu64 ", not a multiple of the cluster size %u",
			 h->file_name, field, offset, h->cluster_bytes);
}

static int check_limits(const struct qcow2_header *h, struct error *err)
{
	uint32_t l1_max = QCOW2_MAX_L1_BYTES / sizeof(uint64_t);
	uint32_t rt_max = (uint32_t)(QCOW2_MAX_REFCOUNT_TABLE_BYTES >> h->cluster_bits);
	uint64_t l1_needed = qcow2_l1_entries_for(h->size_bytes, h->cluster_bits, h->l2_bits);
	int ret;

	if (h->l1_entries > l1_max)
		return error_set(err, -EFBIG, "%s: l1_size is %u, more than %u", h->file_name,
				 h->l1_entries, l1_max);
	if (l1_needed > h->l1_entries)
		return error_set(err, -EINVAL,
				 "%s: l1_size is %u, less than the %" PRIu64
				 " that a disk of %" PRIu64 " bytes needs",
				 h->file_name, h->l1_entries, l1_needed, h->size_bytes);
	if (h->rt_clusters > rt_max)
		return error_set(err, -EFBIG, "%s: refcount_table_clusters is %u, more than %u",
				 h->file_name, h->rt_clusters, rt_max);
	ret = check_aligned(h, h->l1_offset, "l1_table_offset", err);
	if (!ret)
		ret = check_aligned(h, h->rt_offset, "refcount_table_offset", err);
	return ret;
}

/* ---- reading: extensions and names ---- */

struct parse {
	struct qcow2_header *h;
	const uint8_t *cluster; /* the file's first h->cluster_bytes */
	struct error *err;
};

/* A name may end in NULs, which are dropped, but not hold one. @room includes the final NUL. */
static int copy_name(const struct parse *p, char *out, size_t room, const uint8_t *name, size_t len,
		     const char *what)
{
	if (len >= room)
		return error_set(p->err, -EINVAL, "%s: %s has %zu bytes, more than %zu",
				 p->h->file_name, what, len, room - 1);
	memcpy(out, name, len);
	out[len] = '\0';
	for (size_t i = strlen(out); i < len; i++)
		if (name[i])
			return error_set(p->err, -EINVAL, "%s: %s has a NUL inside",
					 p->h->file_name, what);
	return 0;
}

static int parse_feature_names(const struct parse *p, const uint8_t *data, uint32_t len)
{
	struct qcow2_disk_feature_name row;

	for (; len >= sizeof(row); data += sizeof(row), len -= sizeof(row)) {
		memcpy(&row, data, sizeof(row));
		if (row.type != 0 || row.bit >= ARRAY_LEN(p->h->incompatible_names))
			continue;
		memcpy(p->h->incompatible_names[row.bit], row.name, sizeof(row.name));
		p->h->incompatible_names[row.bit][sizeof(row.name)] = '\0';
	}
	return 0;
}

static int check_extension_bytes(const struct parse *p, uint32_t len, size_t want, const char *what)
{
	if (len == want)
		return 0;
	return error_set(p->err, -EINVAL, "%s: the %s header extension has %u bytes, not %zu",
			 p->h->file_name, what, len, want);
}

static int parse_bitmaps(const struct parse *p, const uint8_t *data, uint32_t len)
{
	struct qcow2_header *h = p->h;
	struct qcow2_disk_bitmaps_ext ext;
	int ret = check_extension_bytes(p, len, sizeof(ext), "bitmaps");

	if (ret)
		return ret;
	memcpy(&ext, data, sizeof(ext));
	h->has_bitmaps_ext = true;
	h->nb_bitmaps = be32_get(ext.nb_bitmaps);
	h->bitmap_directory_bytes = be64_get(ext.directory_size);
	h->bitmap_directory_offset = be64_get(ext.directory_offset);
	/* Written to by a program that does not know bitmaps: then it need not make sense. */
	if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	if (be32_get(ext.reserved))
		return error_set(p->err, -EINVAL,
				 "%s: the bitmaps header extension's reserved field is not zero",
				 h->file_name);
	if (!h->nb_bitmaps || h->nb_bitmaps > QCOW2_MAX_BITMAPS)
		return error_set(p->err, -EINVAL, "%s: nb_bitmaps is %u, not 1 to %u", h->file_name,
				 h->nb_bitmaps, QCOW2_MAX_BITMAPS);
	if (h->bitmap_directory_bytes > QCOW2_MAX_BITMAP_DIRECTORY_BYTES)
		return error_set(p->err, -EFBIG,
				 "%s: bitmap_directory_size is %" PRIu64 ", more than %" PRIu64,
				 h->file_name, h->bitmap_directory_bytes,
				 QCOW2_MAX_BITMAP_DIRECTORY_BYTES);
	return check_aligned(h, h->bitmap_directory_offset, "bitmap_directory_offset", p->err);
}

static int parse_luks(const struct parse *p, const uint8_t *data, uint32_t len)
{
	struct qcow2_header *h = p->h;
	struct qcow2_disk_luks_ext ext;
	int ret = check_extension_bytes(p, len, sizeof(ext), "LUKS");

	if (ret)
		return ret;
	if (h->crypt_method != QCOW2_CRYPT_LUKS)
		return error_set(p->err, -EINVAL,
				 "%s: has a LUKS header extension, but crypt_method is %u",
				 h->file_name, h->crypt_method);
	memcpy(&ext, data, sizeof(ext));
	h->has_luks_ext = true;
	h->luks_offset = be64_get(ext.offset);
	h->luks_bytes = be64_get(ext.length);
	return check_aligned(h, h->luks_offset, "the LUKS header's offset", p->err);
}

static int parse_extension(const struct parse *p, uint32_t type, const uint8_t *data, uint32_t len)
{
	struct qcow2_header *h = p->h;

	switch (type) {
	case QCOW2_EXT_BACKING_FORMAT:
		return copy_name(p, h->backing_format, sizeof(h->backing_format), data, len,
				 "the backing file's format");
	case QCOW2_EXT_DATA_FILE:
		return copy_name(p, h->data_file_name, sizeof(h->data_file_name), data, len,
				 "the data file's name");
	case QCOW2_EXT_FEATURE_NAMES:
		return parse_feature_names(p, data, len);
	case QCOW2_EXT_BITMAPS:
		return parse_bitmaps(p, data, len);
	case QCOW2_EXT_LUKS:
		return parse_luks(p, data, len);
	default:
		return 0; /* may be ignored (qcow2: "Header extensions"), and is kept */
	}
}

/* They end at type 0, at the backing file's name, or at the end of the cluster. */
static int parse_extensions(const struct parse *p)
{
	struct qcow2_header *h = p->h;
	uint64_t end = h->backing_file_offset ? h->backing_file_offset : h->cluster_bytes;
	uint64_t at = h->header_length;
	struct qcow2_disk_extension ext;

	while (at + sizeof(ext) <= end) {
		uint32_t type, len;
		int ret;

		memcpy(&ext, p->cluster + at, sizeof(ext));
		type = be32_get(ext.type);
		len = be32_get(ext.len_bytes);
		at += sizeof(ext);
		if (type == QCOW2_EXT_END)
			break;
		if (len > end - at)
			return error_set(
				p->err, -EINVAL,
				"%s: header extension 0x%08x has %u bytes, but only %" PRIu64
				" are left for it",
				h->file_name, type, len, end - at);
		ret = parse_extension(p, type, p->cluster + at, len);
		if (ret)
			return ret;
		at += align_up(len, 8);
	}
	if (h->crypt_method == QCOW2_CRYPT_LUKS && !h->has_luks_ext)
		return error_set(p->err, -EINVAL,
				 "%s: is encrypted with LUKS, but has no LUKS header extension",
				 h->file_name);
	return 0;
}

static int check_backing_place(const struct qcow2_header *h, uint32_t len, struct error *err)
{
	uint64_t offset = h->backing_file_offset;

	if (!offset)
		return 0;
	if (offset < h->header_length || offset > h->cluster_bytes)
		return error_set(err, -EINVAL,
				 "%s: backing_file_offset is %" PRIu64
				 ", not %u to %u (the first cluster)",
				 h->file_name, offset, h->header_length, h->cluster_bytes);
	if (len > QCOW2_MAX_BACKING_NAME_BYTES || len > h->cluster_bytes - offset)
		return error_set(
			err, -EINVAL,
			"%s: backing_file_size is %u, more than %u or past the first cluster",
			h->file_name, len, QCOW2_MAX_BACKING_NAME_BYTES);
	return 0;
}

static int parse_cluster(const struct parse *p)
{
	struct qcow2_header *h = p->h;
	struct qcow2_disk_header fixed;
	uint32_t len;
	int ret;

	memcpy(&fixed, p->cluster, sizeof(fixed));
	len = be32_get(fixed.backing_file_size);
	ret = check_backing_place(h, len, p->err);
	if (!ret)
		ret = parse_extensions(p);
	if (!ret && h->backing_file_offset)
		ret = copy_name(p, h->backing_file, sizeof(h->backing_file),
				p->cluster + h->backing_file_offset, len,
				"the backing file's name");
	return ret;
}

/* ---- reading: the whole ---- */

static int check_magic(const struct storage *st, const struct qcow2_disk_header *d,
		       struct error *err)
{
	uint32_t version = be32_get(d->version);

	if (st->size_bytes < QCOW2_V2_HEADER_BYTES || be32_get(d->magic) != QCOW2_MAGIC)
		return error_set(err, -EINVAL, "%s: is not a qcow2 image", st->name);
	if (version != 2 && version != 3)
		return error_set(err, -ENOTSUP, "%s: qcow2 version %u is not supported", st->name,
				 version);
	return 0;
}

/* A buffer that any storage takes for direct I/O. */
static void *alloc_blocks(uint64_t len_bytes)
{
	return aligned_alloc(4096, align_up(len_bytes, 4096));
}

/* The file's first cluster; @first is its beginning, already read. */
static int read_cluster(struct storage *st, struct qcow2_header *h, const uint8_t *first,
			struct error *err)
{
	struct parse p = {.h = h, .cluster = first, .err = err};
	uint8_t *cluster;
	int ret;

	if (h->cluster_bytes <= FIRST_READ_BYTES)
		return parse_cluster(&p);
	cluster = alloc_blocks(h->cluster_bytes);
	if (!cluster)
		return error_set(err, -ENOMEM, "%s: no memory for the header", st->name);
	ret = storage_pread(st, 0, cluster, h->cluster_bytes);
	if (ret)
		error_set(err, ret, "%s: cannot read the header: %s", st->name, strerror(-ret));
	p.cluster = cluster;
	if (!ret)
		ret = parse_cluster(&p);
	free(cluster);
	return ret;
}

int qcow2_header_read(struct storage *st, struct qcow2_header *h, struct error *err)
{
	struct qcow2_disk_header fixed;
	uint8_t *first = alloc_blocks(FIRST_READ_BYTES);
	int ret;

	memset(h, 0, sizeof(*h));
	co_mutex_init(&h->updating);
	h->file_name = st->name;
	if (!first)
		return error_set(err, -ENOMEM, "%s: no memory for the header", st->name);
	ret = storage_pread(st, 0, first, FIRST_READ_BYTES);
	if (ret) {
		error_set(err, ret, "%s: cannot read the header: %s", st->name, strerror(-ret));
		goto out;
	}
	memcpy(&fixed, first, sizeof(fixed));
	ret = check_magic(st, &fixed, err);
	if (ret)
		goto out;
	decode_fixed(&fixed, h);
	ret = check_geometry(h, err);
	if (!ret && st->size_bytes < h->header_length)
		ret = error_set(err, -EINVAL, "%s: the file ends inside the header", st->name);
	if (!ret)
		ret = check_features(h, err);
	if (!ret)
		ret = check_limits(h, err);
	if (!ret)
		ret = read_cluster(st, h, first, err);
out:
	free(first);
	return ret;
}

/* ---- where tables lie ---- */

struct extent {
	const char *what;
	uint64_t offset;
	uint64_t bytes;
};

static int check_inside(const struct qcow2_header *h, const struct extent *e, uint64_t file_bytes,
			struct error *err)
{
	uint64_t end;

	if (!checked_add(e->offset, e->bytes, &end) || end > file_bytes)
		return error_set(err, -EINVAL,
				 "%s: the %s at %" PRIu64 ", %" PRIu64
				 " bytes long, lies outside the file of %" PRIu64 " bytes",
				 h->file_name, e->what, e->offset, e->bytes, file_bytes);
	return 0;
}

/* Both are inside the file. An empty one overlaps nothing. */
static int check_apart(const struct qcow2_header *h, const struct extent *a, const struct extent *b,
		       struct error *err)
{
	if (!a->bytes || !b->bytes || a->offset >= b->offset + b->bytes ||
	    b->offset >= a->offset + a->bytes)
		return 0;
	return error_set(err, -EINVAL, "%s: the %s at %" PRIu64 " overlaps the %s at %" PRIu64,
			 h->file_name, b->what, b->offset, a->what, a->offset);
}

static int check_snapshot_table(const struct qcow2_header *h, struct error *err)
{
	if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS)
		return error_set(err, -EFBIG, "%s: nb_snapshots is %u, more than %u", h->file_name,
				 h->nb_snapshots, QCOW2_MAX_SNAPSHOTS);
	if (!h->nb_snapshots)
		return 0;
	return check_aligned(h, h->snapshots_offset, "snapshots_offset", err);
}

int qcow2_header_check_tables(const struct qcow2_header *h, uint64_t file_bytes, struct error *err)
{
	const struct extent tables[] = {
		{"header", 0, h->cluster_bytes},
		{"L1 table", h->l1_offset, (uint64_t)h->l1_entries * sizeof(uint64_t)},
		{"refcount table", h->rt_offset, (uint64_t)h->rt_clusters << h->cluster_bits},
		{"LUKS header", h->luks_offset, h->luks_bytes},
		/* Of unknown length, but each entry has at least its fixed part. */
		{"snapshot table", h->snapshots_offset,
		 (uint64_t)h->nb_snapshots * sizeof(struct qcow2_disk_snapshot)},
	};
	int ret = check_snapshot_table(h, err);

	if (ret)
		return ret;
	if (!h->rt_clusters)
		return error_set(err, -EINVAL, "%s: refcount_table_clusters is 0", h->file_name);
	for (size_t i = 0; i < ARRAY_LEN(tables); i++) {
		if (tables[i].bytes) {
			ret = check_inside(h, &tables[i], file_bytes, err);
			if (ret)
				return ret;
		}
		for (size_t j = 0; j < i; j++) {
			ret = check_apart(h, &tables[j], &tables[i], err);
			if (ret)
				return ret;
		}
	}
	return 0;
}

/* ---- what the engine can serve: one function for each feature that it cannot ---- */

int qcow2_header_check_features(const struct qcow2_header *h, struct error *err)
{
	uint64_t unknown = h->incompatible & ~QCOW2_INCOMPAT_KNOWN;
	int bit;

	if (!unknown)
		return 0;
	bit = __builtin_ctzll(unknown);
	if (h->incompatible_names[bit][0])
		return error_set(err, -ENOTSUP, "%s: has the unsupported feature \"%s\" (bit %d)",
				 h->file_name, h->incompatible_names[bit], bit);
	return error_set(err, -ENOTSUP, "%s: has an unknown incompatible feature (bit %d)",
			 h->file_name, bit);
}

static int refuse_corrupt(const struct qcow2_header *h, bool read_only, struct error *err)
{
	if (read_only || !(h->incompatible & QCOW2_INCOMPAT_CORRUPT))
		return 0;
	return error_set(err, -EROFS,
			 "%s: is marked corrupt; repair it, or open it read-only to rescue data",
			 h->file_name);
}

static int refuse_with_data_file(const struct qcow2_header *h, struct error *err)
{
	if (!(h->incompatible & QCOW2_INCOMPAT_DATA_FILE))
		return 0;
	if (h->nb_snapshots)
		return error_set(err, -ENOTSUP, "%s: has an external data file and internal snapshots, which "
						"no program makes",
				 h->file_name);
	if (h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW && h->crypt_method)
		return error_set(err, -EINVAL, "%s: has a raw external data file and is encrypted, which "
					       "exclude each other",
				 h->file_name);
	if (h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW && h->backing_file[0])
		return error_set(err, -EINVAL, "%s: has a raw external data file and a backing file, which "
					       "exclude each other",
				 h->file_name);
	return 0;
}

int qcow2_header_servable(const struct qcow2_header *h, bool read_only, struct error *err)
{
	static int (*const checks[])(const struct qcow2_header *, struct error *) = {
		qcow2_header_check_features,
		refuse_with_data_file,
	};
	int ret = 0;

	for (size_t i = 0; !ret && i < ARRAY_LEN(checks); i++)
		ret = checks[i](h, err);
	return ret ? ret : refuse_corrupt(h, read_only, err);
}

/* ---- updates ---- */

/* Puts the fields of @h that can change into @d. */
static void encode_changing(struct qcow2_disk_header *d, const struct qcow2_header *h)
{
	d->l1_size = be32_make(h->l1_entries);
	d->l1_table_offset = be64_make(h->l1_offset);
	d->refcount_table_offset = be64_make(h->rt_offset);
	d->refcount_table_clusters = be32_make(h->rt_clusters);
	d->nb_snapshots = be32_make(h->nb_snapshots);
	d->snapshots_offset = be64_make(h->snapshots_offset);
	/* one that is no multiple of a sector stays as it is */
	if (align_down(be64_get(d->size), 512) != h->size_bytes)
		d->size = be64_make(h->size_bytes);
	if (h->version < 3)
		return; /* what follows is no header field there */
	d->incompatible_features = be64_make(h->incompatible);
	d->compatible_features = be64_make(h->compatible);
	d->autoclear_features = be64_make(h->autoclear);
}

static int store(struct storage *st, struct qcow2_header *h)
{
	_Alignas(4096) uint8_t block[4096];
	struct qcow2_disk_header disk;
	uint32_t len = max_of(st->block_bytes, 512u);
	int ret;

	assert(len <= sizeof(block));
	h->update_wrote = false;
	ret = storage_pread(st, 0, block, len);
	if (ret)
		return ret;
	memcpy(&disk, block, sizeof(disk));
	/* Somebody else wrote here: then nothing we hold is true. */
	if (be32_get(disk.magic) != QCOW2_MAGIC || be32_get(disk.version) != h->version)
		return -EIO;
	encode_changing(&disk, h);
	memcpy(block, &disk, sizeof(disk));
	h->update_wrote = true;
	return storage_pwrite(st, 0, block, len);
}

int qcow2_header_set_refcount_table(struct storage *st, struct qcow2_header *h, uint64_t rt_offset,
				    uint32_t rt_clusters)
{
	uint64_t old_offset;
	uint32_t old_clusters;
	int ret;

	assert(rt_clusters && is_aligned(rt_offset, h->cluster_bytes));
	assert((uint64_t)rt_clusters << h->cluster_bits <= QCOW2_MAX_REFCOUNT_TABLE_BYTES);
	co_lock(&h->updating);
	old_offset = h->rt_offset;
	old_clusters = h->rt_clusters;
	h->rt_offset = rt_offset;
	h->rt_clusters = rt_clusters;
	ret = store(st, h);
	if (ret) {
		h->rt_offset = old_offset;
		h->rt_clusters = old_clusters;
	}
	co_unlock(&h->updating);
	return ret;
}

int qcow2_header_set_l1(struct storage *st, struct qcow2_header *h, uint64_t l1_offset,
			uint32_t l1_entries)
{
	return qcow2_header_set_disk(st, h, l1_offset, l1_entries, h->size_bytes);
}

int qcow2_header_set_disk(struct storage *st, struct qcow2_header *h, uint64_t l1_offset,
			  uint32_t l1_entries, uint64_t size_bytes)
{
	uint64_t old_offset, old_size;
	uint32_t old_entries;
	int ret;

	assert(is_aligned(size_bytes, 512) && is_aligned(l1_offset, h->cluster_bytes));
	assert(l1_entries >= qcow2_l1_entries_for(size_bytes, h->cluster_bits, h->l2_bits));
	co_lock(&h->updating);
	old_offset = h->l1_offset;
	old_entries = h->l1_entries;
	old_size = h->size_bytes;
	h->l1_offset = l1_offset;
	h->l1_entries = l1_entries;
	h->size_bytes = size_bytes;
	ret = store(st, h);
	if (ret) {
		h->l1_offset = old_offset;
		h->l1_entries = old_entries;
		h->size_bytes = old_size;
	}
	co_unlock(&h->updating);
	return ret;
}

int qcow2_header_set_snapshots(struct storage *st, struct qcow2_header *h, uint64_t offset,
			       uint32_t count)
{
	uint64_t old_offset;
	uint32_t old_count;
	int ret;

	/* of a table that there is not the offset may be anything, and is put back after an error */
	assert((!count || is_aligned(offset, h->cluster_bytes)) && count <= QCOW2_MAX_SNAPSHOTS);
	co_lock(&h->updating);
	old_offset = h->snapshots_offset;
	old_count = h->nb_snapshots;
	h->snapshots_offset = offset;
	h->nb_snapshots = count;
	ret = store(st, h);
	if (ret) {
		h->snapshots_offset = old_offset;
		h->nb_snapshots = old_count;
	}
	co_unlock(&h->updating);
	return ret;
}

int qcow2_header_set_features(struct storage *st, struct qcow2_header *h, uint64_t incompatible,
			      uint64_t compatible, uint64_t autoclear)
{
	uint64_t old[3];
	int ret;

	assert(h->version >= 3 || !(incompatible | compatible | autoclear));
	co_lock(&h->updating);
	old[0] = h->incompatible;
	old[1] = h->compatible;
	old[2] = h->autoclear;
	h->incompatible = incompatible;
	h->compatible = compatible;
	h->autoclear = autoclear;
	ret = store(st, h);
	if (ret) {
		h->incompatible = old[0];
		h->compatible = old[1];
		h->autoclear = old[2];
	}
	co_unlock(&h->updating);
	return ret;
}
