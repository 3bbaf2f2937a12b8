/* SPDX-License-Identifier: MIT */
/* reclog.c: see reclog.h. */
#include "qcow2/reclog.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "qcow2/alloc.h"
#include "qcow2/map.h"

#define RECLOG_MAGIC	      0x71326c6f67303031u /* "q2log001" */
#define RECLOG_HEADER_BYTES   4096
#define RECLOG_IDENTITY_BYTES 320

/* Native byte order: the log lives no longer than the boot. */
struct reclog_header {
	uint64_t magic;
	uint64_t capacity;
	uint64_t identity_bytes;
	uint8_t identity[RECLOG_IDENTITY_BYTES];
	_Atomic uint64_t size_bytes; /* the image's */
	_Atomic uint64_t next_size_bytes; /* what it is about to be; or 0 */
	uint64_t cluster_bits;
	_Atomic uint64_t head, tail;
	_Atomic uint64_t sync_failed; /* an errno */
	uint64_t extra_bytes; /* behind the records; 0 as well where an older program began the log */
};

static_assert(sizeof(struct reclog_header) <= RECLOG_HEADER_BYTES, "the first page");
static_assert(sizeof(struct reclog_record) == 32, "layout");

/* ---- attaching ---- */

/* A log as long as it needs to be at least is left. */
static uint64_t extra_max(uint64_t len_bytes)
{
	uint64_t spare = align_down(len_bytes, RECLOG_HEADER_BYTES) - RECLOG_MIN_BYTES;

	return min_of(align_down(len_bytes / 2, RECLOG_HEADER_BYTES), spare);
}

static uint64_t capacity_for(uint64_t len_bytes, uint64_t extra_bytes)
{
	return (len_bytes - RECLOG_HEADER_BYTES - extra_bytes) / sizeof(struct reclog_record);
}

static int log_check(const struct qcow2_image *img, const struct reclog_header *h, uint64_t len_bytes,
		     const void *identity, uint64_t identity_bytes, struct error *err)
{
	uint64_t head = atomic_load(&h->head), tail = atomic_load(&h->tail), capacity = h->capacity;

	if (h->magic != RECLOG_MAGIC)
		return error_set(err, -EINVAL, "the recovery log is damaged, or another version's");
	if (h->identity_bytes != identity_bytes || memcmp(h->identity, identity, identity_bytes))
		return error_set(err, -EINVAL, "the recovery log belongs to another image or boot");
	if (h->extra_bytes > extra_max(len_bytes) || !is_aligned(h->extra_bytes, RECLOG_HEADER_BYTES) ||
	    capacity != capacity_for(len_bytes, h->extra_bytes) || tail > head || head - tail > capacity)
		return error_set(err, -EINVAL, "the recovery log is damaged");
	if ((h->size_bytes != img->size_bytes && h->next_size_bytes != img->size_bytes) ||
	    h->cluster_bits != img->cluster_bits)
		return error_set(err, -EINVAL, "the recovery log belongs to another state of the image");
	return 0;
}

int reclog_attach(struct qcow2_image *img, void *base, uint64_t len_bytes, const void *identity,
		  uint64_t identity_bytes, bool recover, uint64_t extra_bytes, struct error *err)
{
	struct reclog *log = &img->reclog;
	struct reclog_header *h = base;
	int ret;

	if (len_bytes < RECLOG_MIN_BYTES || identity_bytes > RECLOG_IDENTITY_BYTES)
		return error_set(err, -EINVAL, "a recovery log of %llu bytes is too small",
				 (unsigned long long)len_bytes);
	len_bytes = align_down(len_bytes, RECLOG_HEADER_BYTES);
	if (recover) {
		ret = log_check(img, h, len_bytes, identity, identity_bytes, err);
		if (ret)
			return ret;
	} else {
		memset(h, 0, RECLOG_HEADER_BYTES);
		h->extra_bytes = min_of(extra_bytes, extra_max(len_bytes));
		if (h->extra_bytes) /* what lies there is about nothing */
			memset((uint8_t *)base + len_bytes - h->extra_bytes, 0, RECLOG_HEADER_BYTES);
		h->capacity = capacity_for(len_bytes, h->extra_bytes);
		h->identity_bytes = identity_bytes;
		memcpy(h->identity, identity, identity_bytes);
		h->size_bytes = img->size_bytes;
		h->cluster_bits = img->cluster_bits;
		atomic_thread_fence(memory_order_release);
		h->magic = RECLOG_MAGIC;
	}
	log->header = h;
	log->records = (void *)((uint8_t *)base + RECLOG_HEADER_BYTES);
	log->capacity = h->capacity;
	log->extra_bytes = h->extra_bytes;
	log->head = atomic_load(&h->head);
	log->cut = log->head;
	return 0;
}

void *reclog_extra(const struct reclog *log, uint64_t *bytes)
{
	uint64_t before = RECLOG_HEADER_BYTES + log->capacity * sizeof(struct reclog_record);

	*bytes = log->extra_bytes;
	if (!log->extra_bytes)
		return NULL;
	return (uint8_t *)log->header + align_up(before, RECLOG_HEADER_BYTES);
}

/* ---- room ---- */

static uint64_t log_used(const struct reclog *log)
{
	return log->head - atomic_load_explicit(&log->header->tail, memory_order_relaxed) +
	       log->reserved;
}

uint64_t reclog_need(const struct qcow2_image *img, uint64_t clusters)
{
	/*
	 * Each cluster may be a record of its own, where hosts are not adjacent; each L2 table and
	 * refcount block that is made is one more. An extended entry is two records.
	 */
	return (2 + img->extended_l2) * clusters + (clusters >> img->rb_bits) + 8;
}

int reclog_reserve(struct qcow2_image *img, uint64_t records)
{
	struct reclog *log = &img->reclog;

	if (!log->header)
		return 0;
	assert(records <= log->capacity / 4);
	while (log_used(log) + records > log->capacity) {
		uint64_t kept = log_used(log) - log->reserved;
		int ret = 0;

		/* A pass makes room only of records, and after a failed sync not even that (rule 6). */
		if (log->reserved && (!kept || img->wb.sync_failed) && kept + records <= log->capacity) {
			co_wait(&img->idle);
			continue;
		}
		ret = writeback_run(img);
		if (ret)
			return ret;
		if (log_used(log) + records > log->capacity && log->reserved)
			co_wait(&img->idle);
	}
	log->reserved += records;
	return 0;
}

void reclog_unreserve(struct qcow2_image *img, uint64_t records)
{
	if (!img->reclog.header)
		return;
	assert(img->reclog.reserved >= records);
	img->reclog.reserved -= records;
	co_wake_all(&img->idle);
}

/* ---- recording ---- */

static uint64_t step(const struct qcow2_image *img, uint64_t value, uint64_t n)
{
	if (value & QCOW2_COMPRESSED)
		return value;
	return value & MAP_PLACED ? value + (n << img->cluster_bits) : value;
}

static struct reclog_record *record_at(const struct reclog *log, uint64_t position)
{
	return &log->records[position % log->capacity];
}

static void publish(struct reclog *log)
{
	log->head++;
	atomic_store_explicit(&log->header->head, log->head, memory_order_release);
}

/* Lengthens the last record by an entry that goes on there. */
static bool lengthen(struct qcow2_image *img, uint64_t gcluster, uint64_t old, uint64_t value)
{
	struct reclog *log = &img->reclog;
	struct reclog_record *last;

	/*
	 * In place, as long as no pass has cut behind it: the count is one store, and either value of
	 * it is a record.
	 */
	if (log->head <= log->cut ||
	    log->head <= atomic_load_explicit(&log->header->tail, memory_order_relaxed))
		return false;
	last = record_at(log, log->head - 1);
	if (last->type != RECLOG_L2 || last->index + last->count != gcluster ||
	    last->count == UINT32_MAX || step(img, last->value, last->count) != value ||
	    step(img, last->old, last->count) != old)
		return false;
	__atomic_store_n(&last->count, last->count + 1, __ATOMIC_RELEASE);
	return true;
}

void reclog_entry(struct qcow2_image *img, uint64_t gcluster, struct map_entry old,
		  struct map_entry value)
{
	struct reclog *log = &img->reclog;

	if (!log->header || log->replaying)
		return;
	if (!img->extended_l2 && lengthen(img, gcluster, old.word, value.word))
		return;
	assert(log_used(log) - log->reserved + img->extended_l2 < log->capacity);
	*record_at(log, log->head) = (struct reclog_record){.type = RECLOG_L2,
							    .count = 1,
							    .index = gcluster,
							    .value = value.word,
							    .old = old.word};
	if (img->extended_l2)
		*record_at(log, ++log->head) = (struct reclog_record){.type = RECLOG_BITMAP,
								      .count = 1,
								      .index = gcluster,
								      .value = value.bitmap,
								      .old = old.bitmap};
	publish(log);
}

void reclog_table(struct qcow2_image *img, enum reclog_type type, uint64_t index, uint64_t old,
		  uint64_t value)
{
	struct reclog *log = &img->reclog;

	if (!log->header || log->replaying)
		return;
	assert(log_used(log) - log->reserved < log->capacity);
	*record_at(log, log->head) = (struct reclog_record){
		.type = type, .count = 1, .index = index, .value = value, .old = old};
	publish(log);
}

void reclog_cut(struct qcow2_image *img)
{
	img->reclog.cut = img->reclog.head;
	if (mutant(MUTANT_LOG_RETIRED_EARLY))
		reclog_pass_done(img);
}

void reclog_pass_done(struct qcow2_image *img)
{
	struct reclog *log = &img->reclog;

	if (log->header && !log->replaying)
		atomic_store_explicit(&log->header->tail, log->cut, memory_order_release);
}

void reclog_sync_failed(struct qcow2_image *img)
{
	if (img->reclog.header)
		atomic_store(&img->reclog.header->sync_failed, (uint64_t)-img->wb.sync_failed);
}

void reclog_resize(struct qcow2_image *img, uint64_t next_size_bytes)
{
	struct reclog_header *h = img->reclog.header;

	if (!h)
		return;
	if (!next_size_bytes)
		h->size_bytes = img->hdr.size_bytes;
	h->next_size_bytes = next_size_bytes;
}

int qcow2_log_sync_failed(void *log_base, uint64_t log_bytes, int error)
{
	struct reclog_header *h = log_base;

	if (log_bytes < RECLOG_MIN_BYTES || h->magic != RECLOG_MAGIC)
		return -EINVAL;
	atomic_store(&h->sync_failed, (uint64_t)error);
	return 0;
}

/* ---- replay ---- */

/* What the log says of one guest cluster, or of one host cluster's count. */
struct seen {
	uint64_t gcluster; /* + 1; 0: empty */
	struct map_entry final; /* the last value */
	bool matched;	   /* the image holds one of the values that it went through */
};

struct seen_map {
	struct seen *slots;
	uint64_t mask;
};

/* Room for @count of them. */
static int seen_map_init(struct seen_map *m, uint64_t count)
{
	m->mask = 63;
	while (m->mask < 2 * count)
		m->mask = m->mask * 2 + 1;
	m->slots = calloc(m->mask + 1, sizeof(*m->slots));
	return m->slots ? 0 : -ENOMEM;
}

static struct seen *seen_find(struct seen_map *m, uint64_t gcluster)
{
	uint64_t i = (gcluster * 0x9e3779b97f4a7c15u >> 20) & m->mask;

	while (m->slots[i].gcluster && m->slots[i].gcluster != gcluster + 1)
		i = (i + 1) & m->mask;
	return &m->slots[i];
}

static int record_check(const struct qcow2_image *img, const struct reclog_record *r,
			const struct reclog_record *next)
{
	/* past the disk's end as well: of a resize that was under way */
	uint64_t gclusters = max_of(div_up(img->size_bytes, img->cluster_bytes),
				    img->l1.entries << img->l2_bits);
	uint64_t clusters, hcluster = map_entry_hclusters(img, r->value, &clusters);

	if (r->type == RECLOG_BITMAP)
		return img->extended_l2 ? 0 : -EINVAL; /* its entry has looked at it */
	if (r->type == RECLOG_L2 && img->extended_l2 &&
	    (r->count != 1 || !next || next->type != RECLOG_BITMAP || next->index != r->index))
		return -EINVAL;

	if (r->type == RECLOG_L1)
		hcluster = (r->value & QCOW2_L1_OFFSET_MASK) >> img->cluster_bits;
	else if (r->type == RECLOG_RT)
		hcluster = (r->value & QCOW2_RT_OFFSET_MASK) >> img->cluster_bits;
	if (r->type != RECLOG_REFCOUNT &&
	    (!r->count || hcluster + max_of((uint64_t)r->count, clusters) > img->hclusters_max))
		return -EINVAL;
	switch (r->type) {
	case RECLOG_L2:
		return r->index < gclusters && r->count <= gclusters - r->index ? 0 : -EINVAL;
	case RECLOG_L1:
		return r->index < img->l1.entries && r->count == 1 && hcluster ? 0 : -EINVAL;
	case RECLOG_RT:
		return r->index < img->rt.entries && r->count == 1 ? 0 : -EINVAL;
	case RECLOG_REFCOUNT:
		return r->index < img->hclusters_max && r->count == 1 && r->value <= img->refcount_max
			       ? 0
			       : -EINVAL;
	default:
		return -EINVAL;
	}
}

/*
 * Whether @now is @value, COPIED aside: that may be set or clear without a record, by an operation on
 * snapshots, and follows from the refcounts.
 */
static bool same_entry(uint64_t now, uint64_t value)
{
	return !((now ^ value) & ~QCOW2_COPIED);
}

static bool same_but_copied(struct map_entry now, struct map_entry value)
{
	return same_entry(now.word, value.word) && now.bitmap == value.bitmap;
}

/*
 * A cluster that was linked has a reference; and if it is exclusive no other one, whatever the disk has of
 * the time before it was freed and given out again: lowered counts may not have got there.
 */
static int count_linked(struct qcow2_image *img, uint64_t hcluster, bool exclusive)
{
	return exclusive ? refcount_assign(img, hcluster, 1) : refcount_ensure(img, hcluster, 1);
}

/* Tables first: L2 entries of a new table need it. */
static int replay_table(struct qcow2_image *img, const struct reclog_record *r)
{
	struct table *t = r->type == RECLOG_L1 ? &img->l1 : &img->rt;
	uint64_t mask = r->type == RECLOG_L1 ? QCOW2_L1_OFFSET_MASK : QCOW2_RT_OFFSET_MASK;
	uint64_t now = table_get(t, r->index), hcluster = (r->value & mask) >> img->cluster_bits;
	int ret;

	if (!same_entry(now, r->value) && !same_entry(now, r->old))
		return -ESTALE;
	if (!same_entry(now, r->value)) {
		if (r->old) /* a table that was shared, or a block that was not needed */
			metaset_remove(&img->metaset, (r->old & mask) >> img->cluster_bits);
		ret = r->value ? metaset_add(&img->metaset, hcluster) : 0;
		if (ret)
			return ret == -EEXIST ? -ESTALE : ret;
	}
	if (now != r->value)
		table_set(t, img, r->index, r->value);
	return r->value ? count_linked(img, hcluster, r->type == RECLOG_L1 && r->value & QCOW2_COPIED)
			: 0;
}

/* Entry @i of an L2 record; an extended one's bitmap is in the record after it. */
static struct map_entry record_entry(const struct qcow2_image *img, uint64_t position, uint32_t i,
				     bool old)
{
	const struct reclog_record *r = record_at(&img->reclog, position);
	const struct reclog_record *b = record_at(&img->reclog, position + 1);

	return (struct map_entry){step(img, old ? r->old : r->value, i),
				  !img->extended_l2 ? 0 : old ? b->old : b->value};
}

/* Compares one L2 record with the image, and notes its clusters' last values. */
static int note_l2(struct qcow2_image *img, struct seen_map *m, uint64_t position)
{
	const struct reclog_record *r = record_at(&img->reclog, position);

	for (uint32_t i = 0; i < r->count; i++) {
		uint64_t g = r->index + i;
		struct map_entry now = {0};
		struct seen *seen = seen_find(m, g);
		struct slice *s;
		int ret = map_slice_get(img, g, &s);

		if (ret)
			return ret;
		if (s) {
			now = map_entry_load(img, s, map_slice_index(img, g));
			cache_put(&img->l2_cache, s);
		}
		if (!seen->gcluster)
			*seen = (struct seen){.gcluster = g + 1};
		seen->final = record_entry(img, position, i, false);
		seen->matched |= same_but_copied(now, seen->final) ||
				 same_but_copied(now, record_entry(img, position, i, true));
	}
	return 0;
}

static int apply_l2(struct qcow2_image *img, struct seen_map *m)
{
	for (uint64_t i = 0; i <= m->mask; i++) {
		struct seen *seen = &m->slots[i];
		uint64_t g = seen->gcluster - 1;
		uint64_t clusters, host = map_entry_hclusters(img, seen->final.word, &clusters);
		struct slice *s;
		uint32_t index = map_slice_index(img, g);
		int ret = 0;

		if (!seen->gcluster)
			continue;
		if (!seen->matched)
			return -ESTALE;
		while (!ret && clusters)
			ret = count_linked(img, host + --clusters,
					   !(seen->final.word & QCOW2_COMPRESSED) &&
						   seen->final.word & QCOW2_COPIED);
		if (!ret)
			ret = map_slice_get(img, g, &s);
		if (!ret && !s)
			ret = -ESTALE;
		if (ret)
			return ret;
		if (!map_entry_equal(map_entry_load(img, s, index), seen->final)) {
			ret = slice_begin_change(&img->l2_cache, s);
			if (!ret)
				map_entry_store(img, s, index, seen->final);
		}
		cache_put(&img->l2_cache, s);
		if (ret)
			return ret;
	}
	return 0;
}

static bool same_host(uint64_t a, uint64_t b)
{
	if ((a | b) & QCOW2_COMPRESSED)
		return a == b;
	return !((a ^ b) & QCOW2_L2_OFFSET_MASK);
}

/* One reference less to each host cluster of an entry. */
static int free_entry(struct qcow2_image *img, uint64_t entry)
{
	uint64_t count, first = map_entry_hclusters(img, entry, &count);
	unsigned reserved = MAP_ENTRY_HCLUSTERS_MAX;
	int ret = count ? frees_reserve(img, reserved) : 0;

	if (!count || ret)
		return ret;
	for (uint64_t i = 0; i < count; i++)
		if (refcount_read(img, first + i))
			frees_add(img, first + i, &reserved);
	frees_unreserve(img, reserved);
	return 0;
}

/* What the log unlinked is free now; best effort, what is missed is a leak. */
static void free_unlinked(struct qcow2_image *img, struct seen_map *m, uint64_t from, uint64_t to)
{
	for (uint64_t p = from; p < to; p++) {
		const struct reclog_record *r = record_at(&img->reclog, p);

		/* a table that was shared with a snapshot */
		if (r->type == RECLOG_L1 && r->old && !same_host(r->old, r->value) &&
		    free_entry(img, r->old & QCOW2_L1_OFFSET_MASK))
			return;
		for (uint32_t i = 0; r->type == RECLOG_L2 && i < r->count; i++) {
			uint64_t old = step(img, r->old, i), next = step(img, r->value, i);
			uint64_t final = seen_find(m, r->index + i)->final.word;

			/* One that only sets or clears the zero flag unlinks nothing. */
			if (same_host(old, next) || same_host(old, final))
				continue;
			if (free_entry(img, old))
				return;
		}
	}
}

/*
 * The counts of shared clusters: the last that the log has of each is what its references need. Of one that
 * was lowered to nothing the log says nothing more.
 */
static int replay_counts(struct qcow2_image *img, struct seen_map *counts, uint64_t from, uint64_t to)
{
	int ret = 0;

	for (uint64_t p = from; p < to; p++) {
		const struct reclog_record *r = record_at(&img->reclog, p);
		struct seen *seen;

		if (r->type != RECLOG_REFCOUNT)
			continue;
		seen = seen_find(counts, r->index);
		seen->gcluster = r->index + 1;
		seen->final.word = r->value;
	}
	for (uint64_t i = 0; !ret && i <= counts->mask; i++) {
		const struct seen *seen = &counts->slots[i];

		if (seen->gcluster && seen->final.word)
			ret = refcount_assign(img, seen->gcluster - 1, seen->final.word);
	}
	return ret;
}

/* ---- whether somebody else has used the image (rule 18) ---- */

/*
 * What a host cluster is for by the log: a guest cluster, or a table (of which there is one each), or
 * compressed data, of any number.
 */
#define CLAIM_TABLE	 UINT64_MAX
#define CLAIM_COMPRESSED (UINT64_MAX - 1)

static void claim(struct seen_map *claims, uint64_t hcluster, uint64_t gcluster)
{
	struct seen *seen = seen_find(claims, hcluster);

	seen->gcluster = hcluster + 1;
	seen->final.word = gcluster;
}

static void claims_note(struct qcow2_image *img, const struct seen_map *m, struct seen_map *claims,
			uint64_t from, uint64_t to)
{
	for (uint64_t p = from; p < to; p++) {
		const struct reclog_record *r = record_at(&img->reclog, p);

		if ((r->type == RECLOG_L1 || r->type == RECLOG_RT) && r->value)
			claim(claims, (r->value & QCOW2_L1_OFFSET_MASK) >> img->cluster_bits, CLAIM_TABLE);
	}
	for (uint64_t i = 0; i <= m->mask; i++) {
		uint64_t word = m->slots[i].final.word, count, host = map_entry_hclusters(img, word, &count);

		if (!m->slots[i].gcluster)
			continue;
		if (word & QCOW2_COMPRESSED)
			for (uint64_t n = 0; n < count; n++)
				claim(claims, host + n, CLAIM_COMPRESSED);
		else if (count && word & QCOW2_COPIED)
			claim(claims, host, m->slots[i].gcluster - 1);
	}
}

/* Whether the entries of the table in @words refer to something that the log has for something else. */
static bool table_contradicts(struct qcow2_image *img, struct seen_map *claims, const be64_t *words,
			      uint64_t gcluster)
{
	unsigned step_words = img->extended_l2 ? 2 : 1;

	for (uint64_t i = 0; i < (uint64_t)1 << img->l2_bits; i++, gcluster++) {
		uint64_t word = be64_get(words[i * step_words]), count;
		uint64_t first = map_entry_hclusters(img, word, &count);
		uint64_t allowed = word & QCOW2_COMPRESSED ? CLAIM_COMPRESSED : gcluster;

		while (count--) {
			const struct seen *seen = seen_find(claims, first + count);

			if (seen->gcluster && seen->final.word != allowed)
				return true;
		}
	}
	return false;
}

static bool is_claimed(void *claims, uint64_t hcluster)
{
	return seen_find(claims, hcluster)->gcluster;
}

/*
 * While nobody held the image's locks, somebody may have taken a cluster that only the log knows to be in
 * use, shared a table with a snapshot, or made a dirty bitmap, which would miss what the log has: then
 * nothing of the log can be applied. -ESTALE.
 */
static int others_check(struct qcow2_image *img, const struct seen_map *m, struct seen_map *claims,
			bool maps)
{
	be64_t *words = aligned_alloc(4096, align_up(img->cluster_bytes, 4096));
	bool contradict = false;
	int ret = words ? 0 : -ENOMEM;

	if (!ret && maps)
		ret = bitmaps_contradict(img, is_claimed, claims, &contradict);
	if (!ret && contradict)
		ret = -ESTALE;
	for (uint64_t i = 0; !ret && i <= claims->mask; i++)
		if (claims->slots[i].gcluster && claims->slots[i].final.word != CLAIM_TABLE &&
		    metaset_has(&img->metaset, claims->slots[i].gcluster - 1))
			ret = -ESTALE;
	for (uint64_t i = 0; !ret && i <= m->mask; i++) {
		uint64_t entry = m->slots[i].gcluster ? table_get(&img->l1, (m->slots[i].gcluster - 1) >> img->l2_bits)
						      : QCOW2_COPIED;

		if (!(entry & QCOW2_COPIED) &&
		    refcount_read(img, (entry & QCOW2_L1_OFFSET_MASK) >> img->cluster_bits) > 1)
			ret = -ESTALE;
	}
	for (uint64_t i = 0; !ret && i < img->l1.entries; i++) {
		uint64_t entry = table_get(&img->l1, i), hoff = entry & QCOW2_L1_OFFSET_MASK;

		if (!hoff || entry & L1_BROKEN)
			continue;
		ret = storage_pread(img->st, hoff, words, img->cluster_bytes);
		if (!ret && table_contradicts(img, claims, words, i << img->l2_bits))
			ret = -ESTALE;
	}
	free(words);
	return ret;
}

static int replay_records(struct qcow2_image *img, struct seen_map *m, struct seen_map *counts,
			  struct seen_map *claims, uint64_t from, uint64_t to)
{
	bool maps = false;
	int ret = 0;

	/* the refcount table before what is counted by it, counts before what links exclusively, L1 before L2 */
	for (unsigned type = RECLOG_RT; !ret && type >= RECLOG_L1; type--) {
		for (uint64_t p = from; !ret && p < to; p++)
			if (record_at(&img->reclog, p)->type == type)
				ret = replay_table(img, record_at(&img->reclog, p));
		if (!ret && type == RECLOG_RT)
			ret = replay_counts(img, counts, from, to);
	}
	for (uint64_t p = from; !ret && p < to; p++)
		if (record_at(&img->reclog, p)->type == RECLOG_L2) {
			ret = note_l2(img, m, p);
			maps = true;
		}
	if (!ret && claims->slots) {
		claims_note(img, m, claims, from, to);
		ret = others_check(img, m, claims, maps);
	}
	return ret ? ret : apply_l2(img, m);
}

int reclog_replay(struct qcow2_image *img, bool lapsed, struct error *err)
{
	struct reclog *log = &img->reclog;
	uint64_t to = log->head, from = atomic_load(&log->header->tail), clusters = 0, counted = 0;
	struct seen_map m = {0}, counts = {0}, claims = {0};
	int ret = 0, sync_failed;

	for (uint64_t p = from; !ret && p < to; p++) {
		ret = record_check(img, record_at(log, p), p + 1 < to ? record_at(log, p + 1) : NULL);
		clusters += record_at(log, p)->type == RECLOG_L2 ? record_at(log, p)->count : 0;
		counted += record_at(log, p)->type == RECLOG_REFCOUNT;
	}
	if (ret)
		return error_set(err, ret, "the recovery log is damaged: it is not applied");
	if (seen_map_init(&m, clusters) || seen_map_init(&counts, counted) ||
	    (lapsed && seen_map_init(&claims, MAP_ENTRY_HCLUSTERS_MAX * clusters + (to - from)))) {
		free(m.slots);
		free(counts.slots);
		free(claims.slots);
		return error_set(err, -ENOMEM, "no memory to replay the recovery log");
	}
	log->replaying = true;
	/* Rule 6 goes on: nothing becomes durable, and the log keeps what it has. */
	sync_failed = -(int)atomic_load(&log->header->sync_failed);
	img->wb.sync_failed = sync_failed;
	ret = replay_records(img, &m, &counts, &claims, from, to);
	free(counts.slots);
	free(claims.slots);
	if (!ret && !sync_failed)
		ret = writeback_run(img);
	log->replaying = false;
	if (ret) {
		free(m.slots);
		if (ret == -ESTALE)
			return error_set(err, ret, "the image was changed since the recovery log was "
						   "written: the log is not applied");
		return error_set(err, ret, "cannot replay the recovery log: %s",
				 error_text(NULL, ret));
	}
	if (!sync_failed) {
		atomic_store_explicit(&log->header->tail, to, memory_order_release);
		reclog_resize(img, 0); /* by rule 16 the header is durable as it was read */
		free_unlinked(img, &m, from, to);
	}
	free(m.slots);
	log_info("%s: recovered: %llu changes of the map were replayed", img->st->name,
		 (unsigned long long)(to - from));
	return 0;
}
