/* SPDX-License-Identifier: MIT */
/*
 * image.c: opening and closing an image.
 *
 * Opening reads the header, the L1 table and the refcount table, whatever the size of the image, and
 * changes nothing in the file unless the image is dirty and is opened for writing.
 */
#include "qcow2/image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "qcow2/alloc.h"
#include "qcow2/check.h"
#include "qcow2/crypto.h"
#include "qcow2/inflate.h"
#include "qcow2/map.h"
#include "qcow2/snapshot.h"
#include "storage/names.h"

#ifdef QCOW2_MUTANTS
int qcow2_mutant;
#endif

/* Maps 256 GiB at 64 KiB clusters; an eighth as much for refcounts. */
#define CACHE_DEFAULT_BYTES (32 * MiB)
#define CACHE_MAX_BYTES	    (4 * GiB)

bool qcow2_probe(const void *head, size_t len)
{
	be32_t magic;

	if (len < sizeof(magic))
		return false;
	memcpy(&magic, head, sizeof(magic));
	return be32_get(magic) == QCOW2_MAGIC;
}

void image_corrupt(struct qcow2_image *img, const char *fmt, ...)
{
	uint64_t n = atomic_fetch_add(&img->corruption_reports, 1);
	char text[256];
	va_list ap;

	if (n >= 20)
		return; /* a broken image has no end of them */
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log_err("%s: the image is corrupt: %s%s", img->st->name, text,
		n == 19 ? " (further reports are left out)" : "");
}

void image_metadata_dirtied(struct qcow2_image *img)
{
	writeback_kick(img);
}

int image_write_zeros(struct qcow2_image *img, uint64_t hoff, uint64_t len_bytes)
{
	int ret = 0;

	while (!ret && len_bytes) {
		uint64_t n = min_of(len_bytes, ZEROS_BYTES);

		ret = storage_pwrite(img->st, hoff, img->zeros, n);
		hoff += n;
		len_bytes -= n;
	}
	img->wb.meta_writes++;
	return ret;
}

/* Clears the autoclear bits of what is not kept up to date, durably (rule 7). */
static int clear_autoclear(struct qcow2_image *img)
{
	/* a raw data file stays one: see data_raw */
	uint64_t known = QCOW2_AUTOCLEAR_DATA_FILE_RAW | (bitmaps_stay(img) ? QCOW2_AUTOCLEAR_BITMAPS : 0);
	uint64_t kept = img->hdr.autoclear & known;
	int ret;

	if (img->hdr.autoclear == kept)
		return 0;
	ret = qcow2_header_set_features(img->st, &img->hdr, img->hdr.incompatible,
					img->hdr.compatible, kept);
	return ret ? ret : writeback_sync(img);
}

/*
 * Whether the file ends inside a block of its file system. Extending such a file zeroes the rest of that
 * block in the page cache (ext4 does not wait for direct writes first), and a direct write to the block
 * that is in flight then collides with it: the next sync fails, and either may be lost.
 */
static bool end_is_ragged(const struct qcow2_image *img)
{
	return img->st->direct && !img->st->fixed_size &&
	       !is_aligned(img->st->size_bytes, FILE_BLOCK_BYTES);
}

/* While nothing is in flight yet; what is not used is cut off again on close. */
static int even_out_end(struct qcow2_image *img)
{
	uint64_t to = align_up(img->st->size_bytes, FILE_BLOCK_BYTES);
	int ret;

	if (!end_is_ragged(img))
		return 0;
	ret = storage_truncate(img->st, to);
	if (!ret)
		img->extended_bytes = to;
	return ret;
}

/* So that no write makes it longer, for the reason above. A raw one is exactly as long as the disk. */
uint64_t image_data_file_bytes(const struct qcow2_image *img, uint64_t size_bytes)
{
	uint64_t unit = max_of(img->cluster_bytes, FILE_BLOCK_BYTES);

	return img->data_raw ? size_bytes : align_up(size_bytes, unit);
}

static int extend_data_file(struct qcow2_image *img)
{
	uint64_t bytes = image_data_file_bytes(img, img->size_bytes);

	if (!image_has_data_file(img) || img->data->fixed_size || img->data->size_bytes >= bytes)
		return 0;
	return storage_truncate(img->data, bytes);
}

int image_first_write(void *arg)
{
	struct qcow2_image *img = arg;
	int ret = 0;

	co_lock(&img->first_write_lock);
	if (img->first_write_pending) {
		ret = even_out_end(img);
		if (!ret)
			ret = extend_data_file(img);
		if (!ret)
			ret = bitmaps_first_write(img);
		if (!ret)
			ret = clear_autoclear(img);
		if (!ret)
			img->first_write_pending = false;
	}
	co_unlock(&img->first_write_lock);
	return ret;
}

/* ---- opening ---- */

static int lock_storage(struct qcow2_image *img, const struct qcow2_options *opts, struct error *err)
{
	unsigned used = STORAGE_PERM_CONSISTENT_READ;

	if (opts->no_lock)
		return 0;
	if (!opts->read_only)
		used |= STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE;
	if (opts->lock_beside)
		used |= STORAGE_LOCK_BESIDE;
	return storage_lock(img->st, used,
			    STORAGE_PERM_ALL & ~(STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE), err);
}

static int read_header(struct qcow2_image *img, struct error *err)
{
	struct qcow2_header *h = &img->hdr;
	int ret = qcow2_header_read(img->st, h, err);

	if (!ret)
		ret = qcow2_header_servable(h, img->read_only, err);
	if (!ret)
		ret = qcow2_header_check_tables(h, img->st->size_bytes, err);
	if (!ret && img->st->block_bytes > qcow2_header_subcluster_bytes(h))
		ret = error_set(err, -EINVAL,
				"clusters or subclusters of %u bytes are smaller than the storage's blocks of %u",
				qcow2_header_subcluster_bytes(h), img->st->block_bytes);
	if (!ret && !h->size_bytes)
		ret = 0; /* an empty disk is a disk */
	return ret;
}

static void set_geometry(struct qcow2_image *img)
{
	const struct qcow2_header *h = &img->hdr;
	uint64_t counted;

	img->size_bytes = h->size_bytes;
	img->cluster_bits = h->cluster_bits;
	img->cluster_bytes = h->cluster_bytes;
	img->slice_bytes = min_of(h->cluster_bytes, (uint32_t)SLICE_MAX_BYTES);
	img->l2_bits = h->l2_bits;
	img->extended_l2 = qcow2_header_extended_l2(h);
	img->subcluster_bits = h->cluster_bits - (img->extended_l2 ? QCOW2_SUBCLUSTER_BITS : 0);
	img->l2_slice_bits = (unsigned)__builtin_ctz(img->slice_bytes) - (img->extended_l2 ? 4 : 3);
	img->rb_bits = h->rb_bits;
	img->refcount_order = h->refcount_order;
	img->refcount_max = qcow2_refcount_max(h->refcount_order);
	img->rc_slice_bits = (unsigned)__builtin_ctz(img->slice_bytes) + 3 - h->refcount_order;
	/* what the largest refcount table counts, and what an entry can say */
	counted = QCOW2_MAX_REFCOUNT_TABLE_BYTES / sizeof(be64_t) << img->rb_bits;
	img->hclusters_max = min_of(counted, QCOW2_MAX_HOST_BYTES >> img->cluster_bits);
}

static int read_tables(struct qcow2_image *img, struct error *err)
{
	const struct qcow2_header *h = &img->hdr;
	uint64_t rt_entries = (uint64_t)h->rt_clusters << img->cluster_bits >> 3;
	int ret;

	/* room for what the disk may grow to: pages that are not touched cost nothing */
	ret = table_read(&img->l1, img, "the L1 table", h->l1_offset, h->l1_entries,
			 img->read_only ? h->l1_entries : QCOW2_MAX_L1_BYTES / sizeof(be64_t), err);
	if (ret)
		return ret;
	return table_read(&img->rt, img, "the refcount table", h->rt_offset, rt_entries,
			  img->read_only ? rt_entries
					 : QCOW2_MAX_REFCOUNT_TABLE_BYTES / sizeof(be64_t),
			  err);
}

static uint64_t used_entries(const struct table *t)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < t->entries; i++)
		n += table_get(t, i) != 0;
	return n;
}

/* Whether the cluster at @hoff can be a table: aligned, and in the file as a whole. */
static bool table_place_valid(const struct qcow2_image *img, uint64_t hoff)
{
	return !(hoff & (img->cluster_bytes - 1)) && hoff < img->st->size_bytes &&
	       img->cluster_bytes <= img->st->size_bytes - hoff;
}

/* Something that makes writing unsafe: such an image is served read-only. */
__attribute__((format(printf, 3, 4))) static int refuse_writing(const struct qcow2_image *img,
								struct error *err, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!img->read_only)
		return error_set(err, -EINVAL,
				 "%s: the image is corrupt: %s (it can be attached with --read-only)",
				 img->st->name, text);
	log_warn("%s: the image is corrupt: %s", img->st->name, text);
	return 0;
}

/*
 * Nothing can be allocated safely where a refcount block is not found. Who only reads does not use them,
 * and rescues what a wrong entry here claims.
 */
static int add_refcount_blocks(struct qcow2_image *img, struct error *err)
{
	if (img->read_only)
		return 0;
	for (uint64_t i = 0; i < img->rt.entries; i++) {
		uint64_t entry = table_get(&img->rt, i);
		int ret;

		if (!entry)
			continue;
		if (!table_place_valid(img, entry))
			return refuse_writing(img, err, "refcount table entry %llu (%#llx) is invalid",
					      (unsigned long long)i, (unsigned long long)entry);
		ret = metaset_add(&img->metaset, entry >> img->cluster_bits);
		if (ret == -EEXIST)
			ret = refuse_writing(img, err,
					     "refcount block %llu is at offset %#llx, where other "
					     "metadata lies",
					     (unsigned long long)i, (unsigned long long)entry);
		if (ret)
			return error_set(err, ret, "no memory for the map of metadata");
	}
	return 0;
}

/* The L2 table of L1 entry @index at @hoff; *@broken if it cannot be used. */
static int add_l2_table(struct qcow2_image *img, uint64_t index, uint64_t hoff, bool *broken,
			struct error *err)
{
	int ret;

	*broken = !table_place_valid(img, hoff);
	if (*broken && is_aligned(hoff, img->cluster_bytes))
		return refuse_writing(img, err,
				      "the L2 table of L1 entry %llu at offset %#llx is outside the file",
				      (unsigned long long)index, (unsigned long long)hoff);
	if (*broken)
		return 0;
	ret = metaset_add(&img->metaset, hoff >> img->cluster_bits);
	if (ret == -ENOMEM)
		return error_set(err, ret, "no memory for the map of metadata");
	*broken = ret == -EEXIST;
	if (*broken)
		return refuse_writing(img, err,
				      "the L2 table of L1 entry %llu is at offset %#llx, where other "
				      "metadata lies",
				      (unsigned long long)index, (unsigned long long)hoff);
	return 0;
}

/* What an entry maps that is no good, in whatever way, gives EIO; see L1_BROKEN. */
static int add_l2_tables(struct qcow2_image *img, struct error *err)
{
	for (uint64_t i = 0; i < img->l1.entries; i++) {
		uint64_t entry = table_get(&img->l1, i), hoff = entry & QCOW2_L1_OFFSET_MASK;
		bool broken = entry & QCOW2_L1_RESERVED;
		int ret = 0;

		/* Reserved bits may be a feature that we do not know: no guess at where it points. */
		if (hoff && !broken)
			ret = add_l2_table(img, i, hoff, &broken, err);
		if (ret)
			return ret;
		if (broken)
			atomic_store(&img->l1.live[i], entry | L1_BROKEN);
	}
	return 0;
}

static int find_metadata(struct qcow2_image *img, struct error *err)
{
	const struct qcow2_header *h = &img->hdr;
	uint64_t l1_bytes = (uint64_t)h->l1_entries * sizeof(be64_t);
	/* every table and block that the disk can come to need, so that nothing grows later */
	uint64_t blocks = (div_up(img->size_bytes, img->cluster_bytes) >> img->rb_bits) + 64;
	int ret = metaset_init(&img->metaset, h->l1_entries + max_of(blocks, used_entries(&img->rt)));

	if (!ret)
		ret = metaset_init(&img->snapset, 0);
	if (ret)
		return error_set(err, ret, "no memory for the map of metadata");
	metaset_set_range(&img->metaset, METASET_HEADER, 0, 1);
	metaset_set_range(&img->metaset, METASET_L1, h->l1_offset >> img->cluster_bits,
			  div_up(l1_bytes, img->cluster_bytes));
	if (h->has_luks_ext)
		metaset_set_range(&img->metaset, METASET_LUKS, h->luks_offset >> img->cluster_bits,
				  div_up(h->luks_bytes, img->cluster_bytes));
	metaset_set_range(&img->metaset, METASET_RT, h->rt_offset >> img->cluster_bits,
			  h->rt_clusters);
	img->metaset.behind = &img->snapset;
	ret = add_refcount_blocks(img, err);
	if (!ret)
		ret = add_l2_tables(img, err);
	return ret ? ret : snapshot_protect_all(img, err);
}

static int make_caches(struct qcow2_image *img, const struct qcow2_options *opts, struct error *err)
{
	uint64_t bytes = opts->cache_size_bytes ? opts->cache_size_bytes
						: CACHE_DEFAULT_BYTES + CACHE_DEFAULT_BYTES / 8;
	uint64_t all_l2 = div_up(div_up(img->size_bytes, img->cluster_bytes),
				 (uint64_t)1 << img->l2_slice_bits);
	uint64_t all_rc = (max_of(div_up(img->size_bytes, img->cluster_bytes),
				  div_up(img->st->size_bytes, img->cluster_bytes)) >>
			   img->rc_slice_bits) * 2 + CACHE_MIN_SLICES;
	uint64_t slices = min_of(bytes, CACHE_MAX_BYTES) / img->slice_bytes;
	bool chain = img->hdr.backing_file[0];
	uint64_t l2 = max_of(slices * 8 / 9 / (chain ? 2 : 1), (uint64_t)CACHE_MIN_SLICES);
	uint64_t rc = max_of(slices / 9, (uint64_t)CACHE_MIN_SLICES);
	int ret;

	ret = cache_init(&img->l2_cache, img, "L2 tables", img->slice_bytes,
			 min_of(l2, max_of(cache_count_for(all_l2), (uint64_t)CACHE_MIN_SLICES)),
			 img->read_only, err);
	if (ret)
		return ret;
	img->l2_cache.validate = map_slice_validate;
	img->l2_cache.locate = map_slice_locate;
	ret = cache_init(&img->rc_cache, img, "refcounts", img->slice_bytes,
			 min_of(rc, cache_count_for(all_rc)), img->read_only, err);
	/* half of the map's share */
	if (ret || img->is_layer || opts->tables_only)
		return ret;
	return chain_open(img, opts, l2 * img->slice_bytes, err);
}

/* One cache for the whole chain, which is the overlay's. */
static int make_inflate(struct qcow2_image *img, struct error *err)
{
	uint32_t largest = img->cluster_bytes;

	if (img->is_layer)
		return 0;
	for (unsigned i = 0; img->chain && i < img->chain->count; i++)
		if (img->chain->layers[i].img)
			largest = max_of(largest, img->chain->layers[i].img->cluster_bytes);
	return inflate_cache_create(&img->inflate, img->workers, largest, err);
}

static int make_parts(struct qcow2_image *img, const struct qcow2_options *opts, struct error *err)
{
	int ret;

	img->zeros = mmap(NULL, ZEROS_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1,
			  0);
	if (img->zeros == MAP_FAILED)
		img->zeros = NULL;
	img->scratch = aligned_alloc(4096, max_of(img->cluster_bytes, 4096u));
	img->l2_scratch = aligned_alloc(4096, max_of(img->cluster_bytes, 4096u));
	if (!img->zeros || !img->scratch || !img->l2_scratch)
		return error_set(err, -ENOMEM, "no memory for the image's buffers");
	ret = work_pool_create(&img->workers, 0, err);
	if (ret)
		return ret;
	ret = make_caches(img, opts, err);
	if (ret)
		return ret;
	if (writeback_init(img, opts->writeback_delay_ms) || frees_init(&img->frees))
		return error_set(err, -ENOMEM, "no memory for writing metadata back");
	ret = make_inflate(img, err);
	if (!ret)
		ret = pack_init(img, opts->compress, err);
	return ret ? ret : alloc_init(img, err);
}

/* Whether the data file can be used with its present alignment. */
static bool data_file_fits(const struct qcow2_image *img, const struct storage *st)
{
	uint64_t end = max_of(st->size_bytes, img->data_raw ? img->hdr.size_bytes : 0);

	return st->block_bytes <= img->st->block_bytes &&
	       (!st->direct || st->fixed_size || is_aligned(end, FILE_BLOCK_BYTES));
}

/* Stricter than QEMU, which lets others write to it. */
static int data_file_lock(struct qcow2_image *img, const struct qcow2_options *opts, struct error *err)
{
	unsigned denied = STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE;
	unsigned used = STORAGE_PERM_CONSISTENT_READ;
	int ret = 0;

	if (!img->read_only)
		used |= STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE;
	if (opts->lock_beside)
		used |= STORAGE_LOCK_BESIDE;
	if (!opts->no_lock)
		ret = storage_lock(img->data, used, STORAGE_PERM_ALL & ~denied, err);
	if (!ret && !img->read_only && !mutant(MUTANT_RECOVER_AT_ONCE) &&
	    !mutant(MUTANT_DATA_FILE_UNCLAIMED))
		ret = storage_claim(img->data, opts->claim_timeout_ms, err);
	return ret;
}

/* The name in the image is a plain path, and goes as far as the user allows. */
static int open_data_file(struct qcow2_image *img, const char *reached, const struct qcow2_options *opts,
			  struct error *err)
{
	struct names_options names = {.what = "data file",
				      .plain = true,
				      .top = !img->is_layer,
				      .reached_as = reached,
				      .read_only = img->read_only,
				      .direct = img->st->direct};
	struct storage *st;
	int ret;

	if (!(img->hdr.incompatible & QCOW2_INCOMPAT_DATA_FILE))
		return 0;
	img->data_raw = img->hdr.autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW;
	if (!opts->image_path && !(opts->names && opts->names->open))
		return error_set(err, -ENOTSUP, "has an external data file, which is not opened here");
	ret = names_open(&st, NULL, opts->image_path ? opts->image_path : "", img->hdr.data_file_name,
			 opts->names, &names, err);
	if (!ret && !data_file_fits(img, st)) {
		storage_close(st);
		names.direct = false;
		ret = names_open(&st, NULL, opts->image_path ? opts->image_path : "",
				 img->hdr.data_file_name, opts->names, &names, err);
	}
	if (ret)
		return ret;
	img->data = st;
	if (st->fixed_size && st->size_bytes < img->hdr.size_bytes)
		return error_set(err, -EINVAL, "the data file %s is smaller than the disk", st->name);
	return data_file_lock(img, opts, err);
}

/* The log is of both files: what it says of the one is of no use with another of the other. */
static int attach_log(struct qcow2_image *img, const struct qcow2_options *opts, struct error *err)
{
	size_t len = opts->log_identity_bytes;
	char identity[256 + sizeof(img->data->id)];

	if (!opts->log_base || img->read_only)
		return 0;
	if (len > 256)
		return error_set(err, -EINVAL, "the recovery log's identity is too long");
	memcpy(identity, opts->log_identity, len);
	if (image_has_data_file(img)) {
		memcpy(identity + len, img->data->id, sizeof(img->data->id));
		len += strlen(img->data->id);
	}
	return reclog_attach(img, opts->log_base, opts->log_bytes, identity, len, opts->log_recover,
			     bitmaps_wanted(img) ? BITMAPS_SESSION_BYTES + BITMAPS_MAP_MAX_BYTES : 0, err);
}

/* Before a writable image is used: what lies in the file is durable, and its refcounts are right. */
static int settle(struct qcow2_image *img, struct error *err)
{
	int ret;

	if (img->read_only)
		return 0;
	/* Rule 16; and that it failed is known to whoever recovers next (rule 6). */
	ret = mutant(MUTANT_OPEN_WITHOUT_SYNC) ? 0 : storage_sync(img->st);
	if (!ret && image_has_data_file(img) && !mutant(MUTANT_DATA_FILE_OPEN_UNSYNCED))
		ret = storage_sync(img->data);
	if (ret && img->reclog.header)
		writeback_give_up(img, ret);
	if (ret)
		return error_set(err, ret, "cannot sync: %s", error_text(NULL, ret));
	if (!(img->hdr.incompatible & QCOW2_INCOMPAT_DIRTY))
		return 0;
	log_warn("%s: the image was not closed properly; repairing it", img->st->name);
	return qcow2_repair_dirty(img->st, &img->hdr, err);
}

static void image_free(struct qcow2_image *img)
{
	chain_close(img->chain);
	if (image_has_data_file(img))
		storage_close(img->data);
	table_free(&img->l1);
	table_free(&img->rt);
	cache_destroy(&img->l2_cache);
	cache_destroy(&img->rc_cache);
	metaset_destroy(&img->metaset);
	metaset_destroy(&img->snapset);
	alloc_destroy(img);
	frees_destroy(&img->frees);
	reclaim_destroy(&img->reclaim);
	bitmaps_destroy(&img->bitmaps);
	writeback_destroy(&img->wb);
	if (img->zeros)
		munmap(img->zeros, ZEROS_BYTES);
	free(img->scratch);
	inflate_cache_destroy(img->inflate);
	free(img->l2_scratch);
	pack_destroy(img);
	work_pool_destroy(img->workers);
	crypto_destroy(img->crypto);
	pthread_mutex_destroy(&img->queues_lock);
	free(img);
}

static int image_open(struct qcow2_image **out, struct storage *storage, bool is_layer,
		      const char *reached, const struct qcow2_options *opts, struct error *err)
{
	struct qcow2_image *img = calloc(1, sizeof(*img));
	int ret;

	if (!img)
		return error_set(err, -ENOMEM, "no memory for the image");
	img->st = img->data = storage;
	img->is_layer = is_layer;
	img->read_only = opts->read_only || storage->read_only;
	img->discard_ignore = opts->discard_ignore;
	img->detect_zeroes = opts->detect_zeroes;
	pthread_mutex_init(&img->queues_lock, NULL);
	co_mutex_init(&img->l1_lock);
	co_mutex_init(&img->barrier);
	co_mutex_init(&img->grace_lock);
	co_mutex_init(&img->first_write_lock);
	co_waitq_init(&img->idle);
	cluster_locks_init(&img->locks);

	ret = lock_storage(img, opts, err);
	if (!ret && !img->read_only && !mutant(MUTANT_RECOVER_AT_ONCE))
		ret = storage_claim(storage, opts->claim_timeout_ms, err);
	if (!ret)
		ret = read_header(img, err);
	if (!ret && opts->snapshot)
		ret = img->read_only ? snapshot_select(img, opts->snapshot, err)
				     : error_set(err, -EROFS, "%s: a snapshot is read-only", storage->name);
	if (!ret)
		set_geometry(img);
	if (!ret && !opts->tables_only)
		ret = crypto_open(&img->crypto, storage, &img->hdr, img->read_only, opts->passphrase, err);
	if (!ret && !opts->tables_only)
		ret = open_data_file(img, reached, opts, err);
	if (!ret)
		ret = attach_log(img, opts, err);
	if (!ret)
		ret = settle(img, err);
	if (!ret)
		ret = read_tables(img, err);
	if (!ret)
		ret = find_metadata(img, err);
	if (!ret)
		ret = make_parts(img, opts, err);
	if (!ret)
		ret = reclaim_init(img, opts->reclaim_delay_ms, err);
	if (!ret && img->reclog.header && opts->log_recover)
		ret = reclog_replay(img, opts->log_lapsed, err);
	if (!ret)
		ret = bitmaps_open(img, opts->log_recover && !opts->log_lapsed, err);
	if (ret) {
		image_free(img);
		return ret;
	}
	if (!img->read_only)
		img->first_write_pending = img->hdr.autoclear || end_is_ragged(img) ||
					   image_has_data_file(img);
	reclaim_ready(img);
	*out = img;
	return 0;
}

int qcow2_open(struct qcow2_image **out, struct storage *storage, const struct qcow2_options *opts,
	       struct error *err)
{
	return image_open(out, storage, false, NULL, opts, err);
}

int image_open_layer(struct qcow2_image **out, struct storage *storage, const char *reached,
		     const struct qcow2_options *opts, struct error *err)
{
	assert(opts->read_only);
	return image_open(out, storage, true, reached, opts, err);
}

void image_close_layer(struct qcow2_image *img)
{
	(void)qcow2_close(img, NULL);
}

uint64_t qcow2_size_bytes(const struct qcow2_image *img)
{
	return img->size_bytes;
}

uint32_t qcow2_cluster_bytes(const struct qcow2_image *img)
{
	return img->cluster_bytes;
}

bool qcow2_looks_at_data(const struct qcow2_image *img)
{
	return img->crypto || img->detect_zeroes;
}

bool qcow2_read_only(const struct qcow2_image *img)
{
	return img->read_only;
}

/* ---- running and closing ---- */

int qcow2_set_metadata_loop(struct qcow2_image *img, struct loop *loop, struct error *err)
{
	int ret = image_attach(img, loop, err);

	if (!ret) {
		img->meta_loop = loop;
		reclaim_begin(img);
	}
	return ret;
}

int image_attach(struct qcow2_image *img, struct loop *loop, struct error *err)
{
	int ret = storage_attach(img->st, loop, err);

	if (ret)
		return ret;
	if (image_has_data_file(img))
		ret = storage_attach(img->data, loop, err);
	if (ret) {
		storage_detach(img->st, loop);
		return ret;
	}
	ret = chain_attach(img->chain, loop, err);
	if (ret) {
		if (image_has_data_file(img))
			storage_detach(img->data, loop);
		storage_detach(img->st, loop);
	}
	return ret;
}

void image_detach(struct qcow2_image *img, struct loop *loop)
{
	chain_detach(img->chain, loop);
	if (image_has_data_file(img))
		storage_detach(img->data, loop);
	storage_detach(img->st, loop);
}

struct loop *qcow2_metadata_loop(const struct qcow2_image *img)
{
	return img->meta_loop;
}

int qcow2_flush(struct qcow2_image *img)
{
	return img->read_only ? 0 : writeback_run(img);
}

void qcow2_detach_loop(struct qcow2_image *img)
{
	struct loop *loop = img->meta_loop;

	if (!loop)
		return;
	/* an operation that nobody waits for any more (target/snapshot.c) */
	co_lock(&img->barrier);
	reclaim_end(img);
	writeback_stop_timer(img);
	alloc_stop_scan(img);
	frees_reclaim(img);
	inflate_drain(img->inflate);
	img->meta_loop = NULL;
	image_detach(img, loop);
	co_unlock(&img->barrier);
}

/* A pass can make new work, but less each time. */
int image_settle(struct qcow2_image *img)
{
	int ret = writeback_run(img);

	while (!ret && (frees_pending(&img->frees) || writeback_needed(img))) {
		frees_reclaim(img);
		ret = writeback_run(img);
	}
	return ret;
}

int qcow2_settle(struct qcow2_image *img)
{
	int ret = 0;

	if (img->read_only)
		return 0;
	co_lock(&img->barrier); /* so that the loop is not detached meanwhile */
	if (img->meta_loop)
		ret = image_settle(img);
	if (!ret && img->meta_loop)
		ret = bitmaps_get_room(img);
	if (!ret && img->meta_loop)
		ret = writeback_run(img);
	co_unlock(&img->barrier);
	return ret;
}

/* What was extended in advance and not used. */
static void trim_end(struct qcow2_image *img)
{
	uint64_t end = max_of(img->append_hcluster << img->cluster_bits, img->opened_bytes);

	end = max_of(end, img->foreign_bytes);
	if (img->st->fixed_size || img->st->size_bytes <= end)
		return;
	if (img->st->size_bytes > img->extended_bytes) /* foreign since the last extension */
		return;
	if (storage_truncate(img->st, end))
		log_warn("%s: the file stays longer than it needs to be", img->st->name);
}

int qcow2_close(struct qcow2_image *img, struct error *err)
{
	int ret = 0;

	assert(!img->meta_loop);
	if (!img->read_only) {
		ret = image_settle(img);
		if (!ret)
			ret = bitmaps_save(img);
		if (ret)
			error_set(err, ret, "the last flush failed: %s; what was written since the one before is lost",
				  error_text(NULL, ret));
		else
			trim_end(img);
		if (!ret)
			reclaim_closed(img);
	}
	storage_close(img->st);
	image_free(img);
	return ret;
}
