/* SPDX-License-Identifier: MIT */
/*
 * create.c: a new image in an empty storage.
 *
 * Layout, cluster by cluster and without a gap:
 *
 *	header | refcount table | refcount blocks | L1 table | L2 tables | LUKS header | data
 *
 * L2 tables and data are there with preallocation only. Preallocated clusters of an encrypted image have the
 * zero flag, since the zeros that lie in them mean nothing; over a backing file, which needs extended L2
 * entries, they are a place only, with no subcluster allocated, so that nothing is hidden. All but the data
 * is produced as one stream from front to back, so that it is written in a few large aligned pieces whatever
 * the cluster size is.
 *
 * Order: on a device what lies at the start is overwritten and synced first; then everything but
 * the header's magic; sync; then the first block again, now with the header; sync. A crash before
 * the last write leaves a file that is no qcow2 image.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/secret.h"
#include "qcow2.h"
#include "qcow2/format.h"
#include "qcow2/luks.h"
#include "storage/storage.h"

struct layout {
	unsigned cluster_bits;
	uint32_t cluster_bytes;
	unsigned refcount_order;
	unsigned rb_bits;
	uint64_t size_bytes;
	bool prealloc, extended_l2, encrypted, backed;
	bool data_file; /* data clusters are there, and counted nowhere */

	/* clusters of each part; the host cluster where each starts follows from the order */
	uint64_t rt, rb, l1, l2, luks, data;
	uint64_t luks_bytes;
	uint64_t l1_entries;
	uint64_t total;
};

static void fill_defaults(struct qcow2_create_options *o)
{
	if (!o->version)
		o->version = 3;
	if (!o->cluster_bytes)
		o->cluster_bytes = 64 * KiB;
	if (!o->refcount_bits)
		o->refcount_bits = 16;
}

/* ---- what is allowed ---- */

static int check_options(const struct qcow2_create_options *o, struct error *err)
{
	if (o->version != 2 && o->version != 3)
		return error_set(err, -EINVAL, "version is %u, not 2 or 3", o->version);
	if (!is_pow2(o->cluster_bytes) || o->cluster_bytes < 1u << QCOW2_MIN_CLUSTER_BITS ||
	    o->cluster_bytes > 1u << QCOW2_MAX_CLUSTER_BITS)
		return error_set(err, -EINVAL,
				 "the cluster size is %u, not a power of two from 512 to 2 MiB",
				 o->cluster_bytes);
	if (!is_pow2(o->refcount_bits) || o->refcount_bits > 64)
		return error_set(err, -EINVAL,
				 "the refcount width is %u bits, not a power of two from 1 to 64",
				 o->refcount_bits);
	if (o->version == 2 && o->refcount_bits != 16)
		return error_set(err, -EINVAL,
				 "the refcount width is %u bits, but version 2 images have 16",
				 o->refcount_bits);
	if (o->version == 2 && o->lazy_refcounts)
		return error_set(err, -EINVAL, "lazy refcounts need version 3");
	if (o->version == 2 && o->extended_l2)
		return error_set(err, -EINVAL, "extended L2 entries need version 3");
	if (o->extended_l2 && o->cluster_bytes < 1u << QCOW2_MIN_EXTENDED_L2_CLUSTER_BITS)
		return error_set(err, -EINVAL,
				 "extended L2 entries need clusters of at least %u bytes, not %u",
				 1u << QCOW2_MIN_EXTENDED_L2_CLUSTER_BITS, o->cluster_bytes);
	if (o->luks && o->version == 2 && o->preallocation)
		return error_set(err, -EINVAL, "preallocation of an encrypted image needs version 3");
	if (o->luks && luks_options_check(&o->luks_options, err))
		return -ENOTSUP;
	if (o->version == 2 && o->zstd)
		return error_set(err, -EINVAL, "compression type zstd needs version 3");
	if (o->version == 2 && o->data_file)
		return error_set(err, -EINVAL, "an external data file needs version 3");
	if (o->data_file_raw && (!o->data_file || o->backing_file))
		return error_set(err, -EINVAL, o->data_file ? "a raw external data file and a backing file "
							      "exclude each other"
							    : "data_file_raw needs a data_file");
	if (o->backing_file && !o->backing_format)
		return error_set(err, -EINVAL, "a backing file needs its format");
	if (o->backing_file && o->preallocation != QCOW2_PREALLOC_OFF && !o->extended_l2)
		return error_set(err, -EINVAL, "preallocated clusters would hide the backing file "
					       "(not so with extended L2 entries)");
	if (o->data_file_raw && o->luks)
		return error_set(err, -EINVAL, "a raw external data file cannot be encrypted");
	if ((unsigned)o->preallocation > QCOW2_PREALLOC_FULL)
		return error_set(err, -EINVAL, "the preallocation mode %d is not known",
				 (int)o->preallocation);
	return 0;
}

/* The refcount structures count themselves, so their size is found by repetition. */
static void layout_refcounts(struct layout *l)
{
	uint64_t others = 1 + l->l1 + l->l2 + l->luks + (l->data_file ? 0 : l->data);
	uint64_t before;

	l->rt = l->rb = 1;
	do {
		before = l->rt + l->rb;
		l->total = others + before;
		l->rb = div_up(l->total, (uint64_t)1 << l->rb_bits);
		l->rt = div_up(l->rb * sizeof(be64_t), l->cluster_bytes);
	} while (l->rt + l->rb != before);
}

/* @o has its defaults and passed check_options(). */
static int layout_init(struct layout *l, const struct qcow2_create_options *o, struct error *err)
{
	uint64_t l1_max = QCOW2_MAX_L1_BYTES / sizeof(be64_t);
	unsigned l2_bits;

	*l = (struct layout){
		.cluster_bytes = o->cluster_bytes,
		.cluster_bits = (unsigned)__builtin_ctz(o->cluster_bytes),
		.refcount_order = (unsigned)__builtin_ctz(o->refcount_bits),
		.prealloc = o->preallocation != QCOW2_PREALLOC_OFF,
		.extended_l2 = o->extended_l2,
		.encrypted = o->luks,
		.backed = o->backing_file,
		.luks_bytes = o->luks ? luks_area_bytes(&o->luks_options) : 0,
		.data_file = o->data_file,
	};
	l->luks = div_up(l->luks_bytes, l->cluster_bytes);
	l2_bits = qcow2_l2_bits(l->cluster_bits, o->extended_l2);
	l->rb_bits = qcow2_rb_bits(l->cluster_bits, l->refcount_order);
	if (o->size_bytes > l1_max << (l->cluster_bits + l2_bits))
		return error_set(err, -EFBIG,
				 "the size is %" PRIu64 " bytes, more than the %" PRIu64
				 " that clusters of %u bytes allow",
				 o->size_bytes, l1_max << (l->cluster_bits + l2_bits),
				 l->cluster_bytes);
	l->size_bytes = align_up(o->size_bytes, 512);
	l->l1_entries = qcow2_l1_entries_for(l->size_bytes, l->cluster_bits, l2_bits);
	l->l1 = div_up(l->l1_entries * sizeof(be64_t), l->cluster_bytes);
	if (l->prealloc) {
		l->l2 = l->l1_entries;
		l->data = div_up(l->size_bytes, l->cluster_bytes);
	}
	layout_refcounts(l);
	if (l->rt << l->cluster_bits > QCOW2_MAX_REFCOUNT_TABLE_BYTES ||
	    l->total > QCOW2_MAX_HOST_BYTES >> l->cluster_bits)
		return error_set(err, -EFBIG,
				 "the size is %" PRIu64
				 " bytes, more than can be preallocated with "
				 "clusters of %u bytes and refcounts of %u bits",
				 o->size_bytes, l->cluster_bytes, o->refcount_bits);
	return 0;
}

static int check_names(const struct layout *l, const struct qcow2_create_options *o, struct error *err);

int qcow2_create_validate(const struct qcow2_create_options *opts, struct error *err)
{
	struct qcow2_create_options o = *opts;
	struct layout l;
	int ret;

	fill_defaults(&o);
	ret = check_options(&o, err);
	if (!ret)
		ret = layout_init(&l, &o, err);
	return ret ? ret : check_names(&l, &o, err);
}

/* ---- the stream ---- */

#define STREAM_BYTES (1 * MiB)
#define HEAD_BYTES   4096

struct stream {
	struct storage *st;
	uint8_t *buf;
	size_t used;
	uint64_t base; /* where buf[0] goes */
	bool skip_zeros;
	int ret;       /* the first error; then nothing more is written */
	uint8_t *head; /* the first HEAD_BYTES of the stream, kept */
};

static bool all_zero(const uint8_t *buf, size_t len)
{
	return !len || (!buf[0] && !memcmp(buf, buf + 1, len - 1));
}

static void stream_flush(struct stream *s)
{
	size_t len = align_up(s->used, max_of(s->st->block_bytes, 512u));

	if (s->ret || !s->used)
		return;
	memset(s->buf + s->used, 0, len - s->used);
	if (!s->base)
		memcpy(s->head, s->buf, min_of(len, (size_t)HEAD_BYTES));
	if (!s->skip_zeros || !all_zero(s->buf, len))
		s->ret = storage_pwrite(s->st, s->base, s->buf, len);
	s->base += s->used;
	s->used = 0;
}

static void stream_put(struct stream *s, const void *data, size_t len)
{
	const uint8_t *from = data;

	while (len) {
		size_t part = min_of(len, STREAM_BYTES - s->used);

		if (from) {
			memcpy(s->buf + s->used, from, part);
			from += part;
		} else {
			memset(s->buf + s->used, 0, part);
		}
		s->used += part;
		len -= part;
		if (s->used == STREAM_BYTES)
			stream_flush(s);
	}
}

/* Zeros up to the end of the cluster. */
static void stream_align(struct stream *s, uint32_t cluster_bytes)
{
	uint64_t at = s->base + s->used;

	stream_put(s, NULL, align_up(at, cluster_bytes) - at);
}

static void put_be64(struct stream *s, uint64_t v)
{
	be64_t be = be64_make(v);

	stream_put(s, &be, sizeof(be));
}

/* ---- the parts ---- */

static void put_refcount_table(struct stream *s, const struct layout *l)
{
	uint64_t first = 1 + l->rt;

	for (uint64_t i = 0; i < l->rb; i++)
		put_be64(s, qcow2_hcluster_to_host(first + i, l->cluster_bits));
	stream_align(s, l->cluster_bytes);
}

/* Every cluster of the file has one reference. @block is a cluster of scratch memory. */
static void put_refcount_blocks(struct stream *s, const struct layout *l, void *block)
{
	uint32_t entries = (uint32_t)1 << l->rb_bits;
	uint64_t left = l->total;

	memset(block, 0, l->cluster_bytes);
	for (uint32_t i = 0; i < entries; i++)
		qcow2_refcount_set(block, i, l->refcount_order, 1);
	for (; left >= entries; left -= entries)
		stream_put(s, block, l->cluster_bytes);
	if (!left)
		return;
	memset(block, 0, l->cluster_bytes);
	for (uint32_t i = 0; i < left; i++)
		qcow2_refcount_set(block, i, l->refcount_order, 1);
	stream_put(s, block, l->cluster_bytes);
}

/* A table that points to the L2 tables, one cluster after the other from host cluster @first on. */
static void put_l1(struct stream *s, const struct layout *l, uint64_t first)
{
	for (uint64_t i = 0; i < l->l1_entries; i++)
		put_be64(s, QCOW2_COPIED | qcow2_hcluster_to_host(first + i, l->cluster_bits));
	stream_align(s, l->cluster_bytes);
}

/* All L2 tables: the data's clusters, all of each allocated, or zeros with a place, or a place alone. */
static void put_l2(struct stream *s, const struct layout *l, uint64_t first)
{
	uint64_t flags = QCOW2_COPIED | (l->encrypted && !l->extended_l2 ? QCOW2_ZERO : 0);
	uint64_t bitmap = l->encrypted ? QCOW2_SUBCLUSTERS_ALLOC_MASK << QCOW2_SUBCLUSTERS
				       : QCOW2_SUBCLUSTERS_ALLOC_MASK;

	if (l->backed)
		bitmap = 0;
	for (uint64_t i = 0; i < l->data; i++) {
		put_be64(s, flags | qcow2_hcluster_to_host(first + i, l->cluster_bits));
		if (l->extended_l2)
			put_be64(s, bitmap);
	}
	stream_align(s, l->cluster_bytes);
}

static void put_tables(struct stream *s, const struct layout *l, const struct secret *luks)
{
	uint64_t l2_first = 1 + l->rt + l->rb + l->l1;

	if (l->prealloc) {
		put_l1(s, l, l2_first);
		put_l2(s, l, l->data_file ? 0 : l2_first + l->l2 + l->luks);
	} else {
		stream_put(s, NULL, l->l1 << l->cluster_bits);
	}
	if (luks) {
		stream_put(s, luks->data, l->luks_bytes);
		stream_align(s, l->cluster_bytes);
	}
}

/* Where the key material is. */
static size_t encode_luks(uint8_t *out, const struct layout *l)
{
	struct qcow2_disk_extension ext = {
		.type = be32_make(QCOW2_EXT_LUKS),
		.len_bytes = be32_make(sizeof(struct qcow2_disk_luks_ext)),
	};
	struct qcow2_disk_luks_ext luks = {
		.offset = be64_make((1 + l->rt + l->rb + l->l1 + l->l2) << l->cluster_bits),
		.length = be64_make(l->luks_bytes),
	};

	memcpy(out, &ext, sizeof(ext));
	memcpy(out + sizeof(ext), &luks, sizeof(luks));
	return sizeof(ext) + sizeof(luks);
}

/*
 * So that programs which do not know a feature can name it. In an encrypted image there is no room for the last
 * one in the first sector.
 */
static size_t encode_feature_names(uint8_t *out, bool encrypted)
{
	static const struct qcow2_disk_feature_name rows[] = {
		{0, 0, "dirty bit"},
		{0, 1, "corrupt bit"},
		{0, 2, "external data file"},
		{0, 3, "compression type"},
		{0, 4, "extended L2 entries"},
		{1, 0, "lazy refcounts"},
		{2, 0, "bitmaps"},
		{2, 1, "raw external data"},
	};
	size_t len = sizeof(rows) - (encrypted ? sizeof(rows[0]) : 0);
	struct qcow2_disk_extension ext = {
		.type = be32_make(QCOW2_EXT_FEATURE_NAMES),
		.len_bytes = be32_make((uint32_t)len),
	};

	memcpy(out, &ext, sizeof(ext));
	memcpy(out + sizeof(ext), rows, len);
	return sizeof(ext) + len;
}

/* An extension at @len, if it is there; what follows it. */
static size_t encode_extension(uint8_t *out, size_t len, uint32_t type, const char *text)
{
	size_t bytes = text ? strlen(text) : 0;
	struct qcow2_disk_extension ext = {
		.type = be32_make(type),
		.len_bytes = be32_make((uint32_t)bytes),
	};

	if (!text)
		return len;
	memcpy(out + len, &ext, sizeof(ext));
	memcpy(out + len + sizeof(ext), text, bytes);
	return len + sizeof(ext) + align_up(bytes, 8);
}

static void encode_features(struct qcow2_disk_header *h, const struct qcow2_create_options *o)
{
	uint64_t incompatible = 0;

	if (o->extended_l2)
		incompatible |= QCOW2_INCOMPAT_EXTENDED_L2;
	if (o->data_file)
		incompatible |= QCOW2_INCOMPAT_DATA_FILE;
	if (o->zstd)
		incompatible |= QCOW2_INCOMPAT_COMPRESSION;
	h->incompatible_features = be64_make(incompatible);
	h->compatible_features = be64_make(o->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0);
	h->autoclear_features = be64_make(o->data_file_raw ? QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0);
	h->compression_type = o->zstd ? QCOW2_COMPRESSION_ZSTD : QCOW2_COMPRESSION_DEFLATE;
}

/* What the header, its extensions and the names in it take at most. */
#define HEADER_AREA_MAX 4096

/*
 * Header, extensions, name of the backing file. @out is zeroed, HEADER_AREA_MAX long. Returns the length,
 * which may be more than the cluster has.
 */
static size_t encode_header(uint8_t *out, const struct layout *l, const struct qcow2_create_options *o)
{
	struct qcow2_disk_header h = {
		.magic = be32_make(QCOW2_MAGIC),
		.version = be32_make(o->version),
		.cluster_bits = be32_make(l->cluster_bits),
		.size = be64_make(l->size_bytes),
		.l1_size = be32_make((uint32_t)l->l1_entries),
		.l1_table_offset = be64_make((1 + l->rt + l->rb) << l->cluster_bits),
		.refcount_table_offset = be64_make((uint64_t)1 << l->cluster_bits),
		.refcount_table_clusters = be32_make((uint32_t)l->rt),
	};
	size_t fixed = o->version >= 3 ? QCOW2_HEADER_BYTES : QCOW2_V2_HEADER_BYTES, len = fixed;
	size_t name_bytes = o->backing_file ? strlen(o->backing_file) : 0;
	uint8_t names[512] = {0};
	size_t names_bytes;

	len = encode_extension(out, len, QCOW2_EXT_BACKING_FORMAT, o->backing_file ? o->backing_format : NULL);
	len = encode_extension(out, len, QCOW2_EXT_DATA_FILE, o->data_file);
	if (o->version >= 3) {
		encode_features(&h, o);
		h.refcount_order = be32_make(l->refcount_order);
		h.header_length = be32_make(QCOW2_HEADER_BYTES);
	}
	h.crypt_method = be32_make(o->luks ? QCOW2_CRYPT_LUKS : QCOW2_CRYPT_NONE);
	if (o->luks)
		len += encode_luks(out + len, l);
	if (o->version >= 3) {
		/* for people only: left out where there is no room */
		names_bytes = encode_feature_names(names, o->luks);
		if (len + names_bytes + sizeof(struct qcow2_disk_extension) + name_bytes <= l->cluster_bytes) {
			memcpy(out + len, names, names_bytes);
			len += names_bytes;
		}
	}
	len += sizeof(struct qcow2_disk_extension); /* the end */
	if (o->backing_file) {
		h.backing_file_offset = be64_make(len);
		h.backing_file_size = be32_make((uint32_t)name_bytes);
		memcpy(out + len, o->backing_file, name_bytes);
		len += name_bytes;
	}
	memcpy(out, &h, fixed);
	return len;
}

static int check_names(const struct layout *l, const struct qcow2_create_options *o, struct error *err)
{
	static const char *const what[] = {"backing file", "backing file's format", "data file"};
	const char *const names[] = {o->backing_file, o->backing_format, o->data_file};
	const size_t max[] = {QCOW2_MAX_BACKING_NAME_BYTES, QCOW2_MAX_BACKING_FORMAT_BYTES,
			      QCOW2_MAX_BACKING_NAME_BYTES};
	uint8_t area[HEADER_AREA_MAX] = {0};

	for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
		if (names[i] && (!names[i][0] || strlen(names[i]) > max[i]))
			return error_set(err, -EINVAL, "the name of the %s is empty or longer than %zu bytes",
					 what[i], max[i]);
	}
	if (encode_header(area, l, o) > l->cluster_bytes)
		return error_set(err, -EINVAL, "clusters of %u bytes have no room for the names",
				 l->cluster_bytes);
	return 0;
}

/* ---- the whole ---- */

static int prepare(struct storage *st, const struct layout *l, uint8_t *head, struct error *err)
{
	uint64_t end = align_up(l->total << l->cluster_bits, max_of(st->block_bytes, 512u));
	int ret;

	if (!st->fixed_size) {
		if (st->size_bytes)
			return error_set(err, -EEXIST, "%s: is not empty", st->name);
		ret = storage_truncate(st, end);
		return ret ? error_set(err, ret,
				       "%s: cannot extend the file to %" PRIu64 " bytes: %s",
				       st->name, end, strerror(-ret))
			   : 0;
	}
	if (st->size_bytes < end)
		return error_set(err, -ENOSPC,
				 "%s: has %" PRIu64 " bytes, less than the %" PRIu64
				 " that are needed",
				 st->name, st->size_bytes, end);
	memset(head, 0, HEAD_BYTES);
	ret = storage_pwrite(st, 0, head, max_of(st->block_bytes, 512u));
	if (!ret)
		ret = storage_sync(st);
	return ret ? error_set(err, ret, "%s: cannot write: %s", st->name, strerror(-ret)) : 0;
}

static int write_data(struct storage *st, const struct layout *l, enum qcow2_preallocation mode,
		      uint8_t *zeros)
{
	uint64_t at = (l->total - l->data) << l->cluster_bits;
	uint64_t end = l->total << l->cluster_bits;
	uint64_t block = max_of(st->block_bytes, 512u);
	int ret = 0;

	if (l->data_file)
		return 0;
	/* Where clusters are smaller than blocks the stream's last block has zeroed the part
	 * before. */
	at = align_up(at, block);
	end = align_up(end, block);
	if (at >= end)
		return 0;
	if (mode == QCOW2_PREALLOC_FALLOC || (mode == QCOW2_PREALLOC_METADATA && st->fixed_size))
		return storage_zero(st, at, end - at);
	if (mode != QCOW2_PREALLOC_FULL)
		return 0;
	memset(zeros, 0, STREAM_BYTES);
	for (; !ret && at < end; at += STREAM_BYTES)
		ret = storage_pwrite(st, at, zeros, min_of(STREAM_BYTES, end - at));
	return ret;
}

static int write_image(struct storage *st, const struct layout *l,
		       const struct qcow2_create_options *o, const struct secret *luks,
		       struct stream *s)
{
	void *block = malloc(l->cluster_bytes);
	uint8_t area[HEADER_AREA_MAX] = {0};
	be32_t magic = be32_make(QCOW2_MAGIC);
	size_t header_len;
	int ret;

	if (!block)
		return -ENOMEM;
	/* the header, but for its magic: what is beyond its first sector is in place before that is */
	header_len = min_of(encode_header(area, l, o), (size_t)HEADER_AREA_MAX);
	memset(area, 0, sizeof(be32_t));
	stream_put(s, area, header_len);
	stream_align(s, l->cluster_bytes);
	put_refcount_table(s, l);
	put_refcount_blocks(s, l, block);
	put_tables(s, l, luks);
	stream_flush(s);
	free(block);
	ret = s->ret;
	if (!ret)
		ret = write_data(st, l, o->preallocation, s->buf);
	if (!ret)
		ret = storage_sync(st);
	if (ret)
		return ret;
	memcpy(s->head, &magic, sizeof(magic));
	ret = storage_pwrite(st, 0, s->head, max_of(st->block_bytes, 512u));
	return ret ? ret : storage_sync(st);
}

/* A LUKS header, with a key slot; in secret memory, as it is made of the key. */
static int make_luks(const struct layout *l, const struct qcow2_create_options *o, struct secret **out,
		     struct error *err)
{
	int ret;

	if (!o->luks)
		return 0;
	if (!o->passphrase)
		return error_set(err, -ENOKEY, "encryption needs a passphrase");
	*out = secret_create(l->luks_bytes);
	if (!*out)
		return error_set(err, -ENOMEM, "no memory for the LUKS header");
	ret = luks_format(&o->luks_options, o->passphrase, (*out)->data, err);
	if (ret)
		secret_destroy(*out);
	return ret;
}

int qcow2_create(struct storage *st, const struct qcow2_create_options *opts, struct error *err)
{
	struct qcow2_create_options o = *opts;
	struct stream s = {.st = st, .skip_zeros = !st->fixed_size};
	struct secret *luks = NULL;
	struct layout l;
	int ret;

	assert(st->block_bytes <= HEAD_BYTES);
	fill_defaults(&o);
	ret = check_options(&o, err);
	if (!ret)
		ret = layout_init(&l, &o, err);
	if (!ret)
		ret = check_names(&l, &o, err);
	if (ret)
		return ret;
	/* It takes seconds, and may fail: before anything is changed. */
	ret = make_luks(&l, &o, &luks, err);
	if (ret)
		return ret;
	s.buf = aligned_alloc(4096, STREAM_BYTES);
	s.head = aligned_alloc(4096, HEAD_BYTES);
	if (!s.buf || !s.head) {
		ret = error_set(err, -ENOMEM, "%s: no memory", st->name);
		goto out;
	}
	ret = prepare(st, &l, s.head, err);
	if (ret)
		goto out;
	ret = write_image(st, &l, &o, luks, &s);
	if (ret)
		error_set(err, ret, "%s: cannot write the image: %s", st->name, strerror(-ret));
out:
	free(s.buf);
	free(s.head);
	secret_destroy(luks);
	return ret;
}
