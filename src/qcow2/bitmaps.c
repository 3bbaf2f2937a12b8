/* SPDX-License-Identifier: MIT */
/* bitmaps.c: see bitmaps.h. Opening, recording, and what is set in the file before the first write. */
#include "qcow2/bitmaps.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "base/text.h"
#include "qcow2/alloc.h"
#include "qcow2/image.h"

#define WORD_BITS 64
#define PIECE_BYTES 65536u /* of a table that is only looked through */

/*
 * What outlives the process, with the map behind it. Native byte order: it lives no longer than the boot.
 * A log of a program that knew nothing of it has no room for it (reclog.h).
 */
struct bitmap_session {
	_Atomic uint64_t on; /* the rest holds; set last */
	uint64_t dir_offset, dir_bytes, count; /* the directory that it is about */
	uint64_t map_bits;
	_Atomic uint64_t all; /* everything has changed, whatever the map says */
	_Atomic uint64_t ours[BITMAP_DIR_MAX_COUNT / WORD_BITS];
};

static_assert(sizeof(struct bitmap_session) <= BITMAPS_SESSION_BYTES, "before the map");

/* ---- the log ---- */

void bitmaps_warn(const struct qcow2_image *img, uint32_t i, const char *fmt, ...)
{
	char *name = text_escape(img->bitmaps.dir.v[i].name);
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log_warn("%s: the dirty bitmap \"%.64s\" %s", img->st->name, name ? name : "", text);
	free(name);
}

/* ---- recording ---- */

void bitmaps_record(struct bitmaps *b, uint64_t goff, uint64_t len_bytes)
{
	uint64_t end = min_of(goff + len_bytes, atomic_load_explicit(&b->end_bytes, memory_order_relaxed));
	uint64_t bit = goff >> b->map_bits, last;

	if (goff >= end)
		return;
	last = (end - 1) >> b->map_bits;
	while (bit <= last) {
		_Atomic uint64_t *word = &b->map[bit / WORD_BITS];
		unsigned from = (unsigned)(bit % WORD_BITS);
		uint64_t n = min_of((uint64_t)WORD_BITS - from, last - bit + 1);
		uint64_t mask = (UINT64_MAX >> (WORD_BITS - n)) << from;

		/* most are set already, and nobody's cache line is taken away */
		if ((atomic_load_explicit(word, memory_order_relaxed) & mask) != mask)
			atomic_fetch_or(word, mask);
		bit += n;
	}
}

static void say_coarse(const struct qcow2_image *img)
{
	log_info("%s: for its dirty bitmaps what changes is recorded in pieces of %" PRIu64
		 " KiB, which is coarser than they are",
		 img->st->name, ((uint64_t)1 << img->bitmaps.map_bits) / KiB);
}

void bitmaps_mark_all(struct qcow2_image *img)
{
	if (img->bitmaps.map)
		atomic_store(&img->bitmaps.session->all, 1);
}

static bool map_covers(const struct bitmaps *b, uint64_t size_bytes)
{
	return div_up(size_bytes, (uint64_t)1 << b->map_bits) <= b->map_bytes * 8;
}

/* Of each pair of bits whether one is set; in the lower half. */
static uint64_t pairs(uint64_t v)
{
	v = (v | v >> 1) & 0x5555555555555555u;
	v = (v | v >> 1) & 0x3333333333333333u;
	v = (v | v >> 2) & 0x0f0f0f0f0f0f0f0fu;
	v = (v | v >> 4) & 0x00ff00ff00ff00ffu;
	v = (v | v >> 8) & 0x0000ffff0000ffffu;
	return (v | v >> 16) & 0x00000000ffffffffu;
}

/* Each bit stands for twice as much. Who is killed meanwhile leaves a session in which all has changed. */
static void map_fold(struct bitmaps *b)
{
	uint64_t words = b->map_bytes / sizeof(uint64_t), all = atomic_load(&b->session->all);

	atomic_store(&b->session->all, 1);
	for (uint64_t i = 0; i < words / 2; i++)
		b->map[i] = pairs(b->map[2 * i]) | pairs(b->map[2 * i + 1]) << 32;
	for (uint64_t i = words / 2; i < words; i++)
		b->map[i] = 0;
	b->session->map_bits = ++b->map_bits;
	atomic_store(&b->session->all, all);
}

void bitmaps_make_room(struct qcow2_image *img, uint64_t size_bytes)
{
	struct bitmaps *b = &img->bitmaps;

	if (!b->map || map_covers(b, size_bytes))
		return;
	image_hold(img, HOLD_WRITES);
	while (!map_covers(b, size_bytes))
		map_fold(b);
	image_release(img);
	say_coarse(img);
}

void bitmaps_resize(struct qcow2_image *img, uint64_t size_bytes)
{
	struct bitmaps *b = &img->bitmaps;

	b->resized = true;
	if (b->map && map_covers(b, size_bytes))
		atomic_store(&b->end_bytes, size_bytes);
	else if (b->map) /* nobody made room */
		atomic_store(&b->session->all, 1);
}

bool bitmaps_next(const struct bitmaps *b, uint64_t from, uint64_t to, uint64_t *first, uint64_t *end)
{
	uint64_t bit = from >> b->map_bits, bits, at;

	if (!b->map || from >= to)
		return false;
	*first = from;
	*end = to;
	if (atomic_load(&b->session->all))
		return true;
	bits = min_of(((to - 1) >> b->map_bits) + 1, b->map_bytes * 8);
	while (bit < bits && !(b->map[bit / WORD_BITS] >> (bit % WORD_BITS))) /* the rest of a word */
		bit = align_down(bit, WORD_BITS) + WORD_BITS;
	if (bit >= bits)
		return false;
	bit += (uint64_t)__builtin_ctzll(b->map[bit / WORD_BITS] >> (bit % WORD_BITS));
	if (bit >= bits)
		return false;
	for (at = bit; at < bits && b->map[at / WORD_BITS] >> (at % WORD_BITS) & 1; at++)
		;
	*first = max_of(from, bit << b->map_bits);
	*end = min_of(to, at << b->map_bits);
	return true;
}

bool bitmaps_any(const struct bitmaps *b, uint64_t from, uint64_t to)
{
	uint64_t first, end;

	return bitmaps_next(b, from, to, &first, &end);
}

/* ---- one bitmap's table ---- */

/* Whether cluster @hoff can be a bitmap's, and only that; then it is protected (invariant 5). @hoff is aligned. */
static int cluster_take(struct qcow2_image *img, uint64_t hoff, bool *good)
{
	uint64_t hcluster = hoff >> img->cluster_bits, count = 0;
	int ret;

	*good = hoff < img->st->size_bytes &&
		hcluster < min_of(img->hclusters_max, img->end_hcluster) &&
		!metaset_has(&img->metaset, hcluster);
	if (!*good)
		return 0;
	ret = refcount_get(img, hcluster, &count);
	*good = !ret && count == 1;
	if (!*good)
		return ret;
	return metaset_add(&img->metaset, hcluster);
}

/* A bitmap's table, as it is taken. */
struct taking {
	bool broken;	/* an entry has a value that none can have: who looks at it goes no further */
	bool misplaced; /* it, or what it refers to, is not a bitmap's */
	uint64_t table_bytes; /* of it so far, and of its entries: */
	uint32_t entries;
};

static bool entry_is_good(const struct qcow2_image *img, uint64_t entry)
{
	uint64_t hoff = entry & QCOW2_BITMAP_ENTRY_OFFSET;

	return !(entry & QCOW2_BITMAP_ENTRY_RESERVED) && !(hoff && entry & QCOW2_BITMAP_ENTRY_ALL_ONES) &&
	       is_aligned(hoff, img->cluster_bytes);
}

static int table_take(struct qcow2_image *img, const struct bitmap_state *s, uint32_t entries,
		      struct taking *t)
{
	int ret = 0;

	for (uint32_t i = 0; i < entries; i++)
		t->broken |= !entry_is_good(img, s->table[i]);
	while (!ret && !t->broken && !t->misplaced && t->entries < entries) {
		uint64_t hoff = s->table[t->entries] & QCOW2_BITMAP_ENTRY_OFFSET;
		bool good = true;

		if (hoff)
			ret = cluster_take(img, hoff, &good);
		t->misplaced = !good;
		t->entries += !ret && good;
	}
	return ret;
}

/* A bitmap that is broken may name what is not its own: clusters of the guest, which is to have them. */
static void table_untake(struct qcow2_image *img, uint32_t i, const struct taking *t)
{
	const struct bitmap_state *s = &img->bitmaps.v[i];
	uint64_t table_hoff = img->bitmaps.dir.v[i].table_offset;

	for (uint64_t at = 0; at < t->table_bytes; at += img->cluster_bytes)
		metaset_remove(&img->metaset, (table_hoff + at) >> img->cluster_bits);
	for (uint32_t n = 0; n < t->entries; n++)
		if (s->table[n] & QCOW2_BITMAP_ENTRY_OFFSET)
			metaset_remove(&img->metaset, (s->table[n] & QCOW2_BITMAP_ENTRY_OFFSET) >>
							      img->cluster_bits);
}

/* The table of bitmap @i, whose clusters are taken, from the file to bitmaps.v[i]. */
static int table_read_entries(struct qcow2_image *img, uint32_t i)
{
	const struct bitmap_entry *e = &img->bitmaps.dir.v[i];
	struct bitmap_state *s = &img->bitmaps.v[i];
	uint64_t room = align_up(e->table_entries * sizeof(be64_t), max_of(img->st->block_bytes, 512u));
	be64_t *raw = aligned_alloc(4096, align_up(room, 4096));
	int ret = -ENOMEM;

	free(s->table); /* of a try that failed */
	s->table = calloc(e->table_entries, sizeof(*s->table));
	if (raw && s->table)
		ret = storage_pread(img->st, e->table_offset, raw, room);
	for (uint32_t n = 0; !ret && n < e->table_entries; n++)
		s->table[n] = be64_get(raw[n]);
	free(raw);
	return ret;
}

/* Reads and judges the table of bitmap @i; its clusters are protected from now on, if it is good. */
static int table_load(struct qcow2_image *img, uint32_t i, struct taking *t, struct error *err)
{
	const struct bitmap_entry *e = &img->bitmaps.dir.v[i];
	int ret = 0;

	while (!ret && !t->misplaced && t->table_bytes < e->table_entries * sizeof(be64_t)) {
		bool good;

		ret = cluster_take(img, e->table_offset + t->table_bytes, &good);
		t->misplaced = !good;
		t->table_bytes += !ret && good ? img->cluster_bytes : 0;
	}
	if (!ret && !t->misplaced)
		ret = table_read_entries(img, i);
	if (!ret && !t->misplaced)
		ret = table_take(img, &img->bitmaps.v[i], e->table_entries, t);
	if (!ret && (t->misplaced || t->broken))
		table_untake(img, i, t);
	return ret ? error_set(err, ret, "cannot read a bitmap's table: %s", error_text(NULL, ret)) : 0;
}

/*
 * Bitmap @i is to be ours, if it can be; @exact: its table is as long as the disk needs. Why it cannot be is
 * said, but for one that is *@misplaced.
 */
static int bitmap_take(struct qcow2_image *img, uint32_t i, bool exact, bool *misplaced, struct error *err)
{
	struct bitmaps *b = &img->bitmaps;
	const struct bitmap_entry *e = &b->dir.v[i];
	uint64_t bytes = (uint64_t)e->table_entries << img->cluster_bits;
	struct taking t = {0};
	const char *why = NULL;
	int ret = 0;

	if (e->extra && !(e->flags & QCOW2_BITMAP_EXTRA_COMPAT))
		why = "has extra data of an unknown kind";
	else if (exact && e->table_entries != bitmap_entries_for(img->hdr.size_bytes, e->granularity_bits,
								 img->cluster_bits))
		why = "is not as long as the disk";
	else if (bytes > BITMAPS_DATA_MAX_BYTES - b->data_bytes)
		why = "would make more bitmaps than can be kept up to date";
	else
		ret = table_load(img, i, &t, err);
	*misplaced = t.misplaced;
	if (ret)
		return ret;
	if (!why)
		b->data_bytes += bytes; /* broken ones as well, or there would be no end of them */
	if (t.broken)
		why = "is broken";
	b->v[i].role = why || t.misplaced ? BITMAP_SPOILED : BITMAP_OURS;
	if (why || t.misplaced) {
		free(b->v[i].table);
		b->v[i].table = NULL;
	}
	if (why)
		bitmaps_warn(img, i, "%s: it is not kept up to date, and is marked as inconsistent before "
				     "the %s",
			     why, e->flags & QCOW2_BITMAP_AUTO ? "first write" : "disk gets another size");
	return 0;
}

/* ---- the session ---- */

static bool session_ours(const struct bitmap_session *s, uint32_t i)
{
	return atomic_load(&s->ours[i / WORD_BITS]) >> (i % WORD_BITS) & 1;
}

/* What could not be taken again is not recorded from now on: nobody may take it later. */
static void session_disown(struct bitmaps *b)
{
	for (uint32_t i = 0; i < b->dir.count; i++)
		if (b->v[i].role != BITMAP_OURS)
			atomic_fetch_and(&b->session->ours[i / WORD_BITS],
					 ~((uint64_t)1 << (i % WORD_BITS)));
}

static void session_set_ours(struct bitmap_session *s, uint32_t i)
{
	atomic_fetch_or(&s->ours[i / WORD_BITS], (uint64_t)1 << (i % WORD_BITS));
}

/* Whether what a killed process left is about this directory. */
static bool session_fits(const struct qcow2_image *img, const struct bitmap_session *s)
{
	const struct qcow2_header *h = &img->hdr;

	return atomic_load(&s->on) == 1 && s->dir_offset == h->bitmap_directory_offset &&
	       s->dir_bytes == h->bitmap_directory_bytes && s->count == h->nb_bitmaps &&
	       s->map_bits >= QCOW2_MIN_BITMAP_GRANULARITY_BITS && s->map_bits < 63;
}

/* The finest granule among those that are to record; 0: there is none. */
static unsigned finest(const struct bitmaps *b)
{
	unsigned bits = 0;

	for (uint32_t i = 0; i < b->dir.count; i++) {
		const struct bitmap_entry *e = &b->dir.v[i];

		if (b->v[i].role == BITMAP_OURS && e->flags & QCOW2_BITMAP_AUTO &&
		    (!bits || e->granularity_bits < bits))
			bits = e->granularity_bits;
	}
	return bits;
}

/* The log's memory, or where there is none some of our own. */
static int session_memory(struct qcow2_image *img, struct error *err)
{
	struct bitmaps *b = &img->bitmaps;
	uint64_t bytes;
	void *base = reclog_extra(&img->reclog, &bytes);

	if (!base || bytes <= BITMAPS_SESSION_BYTES) {
		/* pages that are not touched cost nothing */
		bytes = BITMAPS_SESSION_BYTES + BITMAPS_MAP_MAX_BYTES;
		base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (base == MAP_FAILED)
			return error_set(err, -ENOMEM, "no memory for dirty bitmaps");
		b->own_bytes = bytes;
	}
	b->session = base;
	b->map_bytes = bytes - BITMAPS_SESSION_BYTES;
	return 0;
}

/* Nothing is recorded yet; whatever was, is about nothing any more. */
static void session_begin(struct qcow2_image *img, unsigned map_bits)
{
	struct bitmaps *b = &img->bitmaps;
	struct bitmap_session *s = b->session;
	const struct qcow2_header *h = &img->hdr;
	uint64_t used = b->map_bytes;

	atomic_store(&s->on, 0);
	if (b->own_bytes) /* it is zeros: what is used of it is made present, before requests need it */
		used = min_of(div_up(img->size_bytes >> map_bits, 8) + 1, b->map_bytes);
	memset((uint8_t *)s + BITMAPS_SESSION_BYTES, 0, used);
	for (size_t i = 0; i < ARRAY_LEN(s->ours); i++)
		atomic_store(&s->ours[i], 0);
	for (uint32_t i = 0; i < b->dir.count; i++)
		if (b->v[i].role == BITMAP_OURS)
			session_set_ours(s, i);
	atomic_store(&s->all, 0);
	s->dir_offset = h->bitmap_directory_offset;
	s->dir_bytes = h->bitmap_directory_bytes;
	s->count = h->nb_bitmaps;
	s->map_bits = map_bits;
	atomic_store(&s->on, 1);
}

/* Recording begins, or goes on. */
static void map_start(struct qcow2_image *img)
{
	struct bitmaps *b = &img->bitmaps;

	b->map_bits = (unsigned)b->session->map_bits;
	b->map = (void *)((uint8_t *)b->session + BITMAPS_SESSION_BYTES);
	b->end_bytes = img->size_bytes;
	if (!map_covers(b, img->size_bytes)) {
		/* it grew, and its process was killed right then */
		atomic_store(&b->session->all, 1);
		b->end_bytes = 0;
	}
}

/* ---- opening ---- */

bool bitmaps_wanted(const struct qcow2_image *img)
{
	return !img->read_only && !img->is_layer && img->hdr.has_bitmaps_ext &&
	       img->hdr.autoclear & QCOW2_AUTOCLEAR_BITMAPS;
}

/* A directory that lies where other metadata does is no better than one that makes no sense. */
static int dir_take(struct qcow2_image *img, struct error *err)
{
	const struct qcow2_header *h = &img->hdr;
	uint64_t taken = 0;
	bool good = true;
	int ret = 0;

	while (!ret && good && taken < h->bitmap_directory_bytes) {
		ret = cluster_take(img, h->bitmap_directory_offset + taken, &good);
		taken += !ret && good ? h->cluster_bytes : 0;
	}
	if (ret)
		return error_set(err, ret, "cannot read refcounts: %s", error_text(NULL, ret));
	for (uint64_t at = 0; !good && at < taken; at += h->cluster_bytes)
		metaset_remove(&img->metaset, (h->bitmap_directory_offset + at) >> h->cluster_bits);
	return good ? 0
		    : error_set(err, -EINVAL, "%s: the bitmap directory is broken: something else lies there",
				img->st->name);
}

/* *@misplaced is set, and said, at the first bitmap that is. */
static int roles_take(struct qcow2_image *img, bool resumed, bool *misplaced, struct error *err)
{
	struct bitmaps *b = &img->bitmaps;
	int ret = 0;

	*misplaced = false;
	for (uint32_t i = 0; !ret && !*misplaced && i < b->dir.count; i++) {
		uint32_t flags = b->dir.v[i].flags;

		if (resumed && session_ours(b->session, i))
			ret = bitmap_take(img, i, false, misplaced, err);
		else if (flags & QCOW2_BITMAP_IN_USE || !(flags & QCOW2_BITMAP_AUTO))
			b->v[i].role = BITMAP_ALONE;
		else if (resumed) /* the process before could not use it */
			b->v[i].role = BITMAP_SPOILED;
		else
			ret = bitmap_take(img, i, true, misplaced, err);
		if (!ret && *misplaced)
			bitmaps_warn(img, i, "lies where it cannot; the dirty bitmaps are not kept up to date: "
					     "the first write marks them as invalid");
	}
	return ret;
}

/*
 * What such a bitmap refers to may be somebody else's, or come to be: whoever freed it with the bitmap would take it
 * away. So the first write leaves none that anybody believes.
 */
static void give_up(struct bitmaps *b)
{
	atomic_store(&b->session->on, 0);
	bitmaps_destroy(b);
	b->broken = true;
}

static void say_lost(const struct qcow2_image *img)
{
	const struct bitmaps *b = &img->bitmaps;

	for (uint32_t i = 0; i < b->dir.count; i++)
		if (b->v[i].role == BITMAP_ALONE && b->dir.v[i].flags & QCOW2_BITMAP_IN_USE)
			bitmaps_warn(img, i, "is inconsistent, and stays so: whoever wrote to the image "
					     "before has not saved it");
}

/* The map of a session that is new. */
static void record_begin(struct qcow2_image *img)
{
	struct bitmaps *b = &img->bitmaps;
	unsigned exact = finest(b), bits = exact;

	while (div_up(img->size_bytes, (uint64_t)1 << bits) > b->map_bytes * 8)
		bits++;
	session_begin(img, max_of(bits, (unsigned)QCOW2_MIN_BITMAP_GRANULARITY_BITS));
	if (exact) /* else none is enabled */
		map_start(img);
	if (exact && bits > exact)
		say_coarse(img);
}

int bitmaps_open(struct qcow2_image *img, bool resume, struct error *err)
{
	struct bitmaps *b = &img->bitmaps;
	struct error why = {0};
	bool misplaced;
	int ret;

	if (!bitmaps_wanted(img))
		return 0;
	ret = bitmap_dir_read(&b->dir, img->st, &img->hdr, &why);
	if (!ret)
		ret = dir_take(img, &why);
	if (ret == -EINVAL || ret == -EFBIG) {
		bitmap_dir_free(&b->dir);
		b->broken = true;
		log_warn("%s; the dirty bitmaps are not kept up to date: the first write marks them as "
			 "invalid",
			 error_text(&why, ret));
		return 0;
	}
	if (ret)
		return error_set(err, ret, "%s", error_text(&why, ret));
	b->v = calloc(b->dir.count, sizeof(*b->v));
	if (!b->v)
		return error_set(err, -ENOMEM, "no memory for dirty bitmaps");
	ret = session_memory(img, err);
	if (ret)
		return ret;
	resume = resume && !b->own_bytes && session_fits(img, b->session);
	if (resume && mutant(MUTANT_BITMAP_UNLOGGED))
		memset((uint8_t *)b->session + BITMAPS_SESSION_BYTES, 0, b->map_bytes);
	ret = roles_take(img, resume, &misplaced, err);
	if (!ret && misplaced)
		give_up(b);
	if (ret || misplaced)
		return ret;
	if (resume)
		session_disown(b);
	else
		record_begin(img);
	if (resume && finest(b))
		map_start(img);
	/* the disk may have got another size meanwhile */
	b->resized = resume;
	say_lost(img);
	return 0;
}

/* ---- what others did while nobody kept them out (rule 18) ---- */

struct taken {
	bool (*fn)(void *arg, uint64_t hcluster);
	void *arg;
};

static bool range_is_taken(const struct qcow2_image *img, const struct taken *t, uint64_t hoff,
			   uint64_t bytes)
{
	bool any = false;

	for (uint64_t at = 0; !any && at < bytes; at += img->cluster_bytes)
		any = t->fn(t->arg, (hoff + at) >> img->cluster_bits);
	return any;
}

/* The table of @e, and what it refers to. */
static int table_is_taken(struct qcow2_image *img, const struct taken *t,
			  const struct bitmap_entry *e, be64_t *piece, bool *any)
{
	uint64_t bytes = e->table_entries * sizeof(be64_t);
	int ret = 0;

	*any = range_is_taken(img, t, e->table_offset, bytes);
	for (uint64_t at = 0; !ret && !*any && at < bytes; at += PIECE_BYTES) {
		uint64_t n = min_of(bytes - at, (uint64_t)PIECE_BYTES);

		ret = storage_pread(img->st, e->table_offset + at, piece,
				    align_up(n, max_of(img->st->block_bytes, 512u)));
		for (uint64_t i = 0; !ret && !*any && i < n / sizeof(be64_t); i++) {
			uint64_t hoff = be64_get(piece[i]) & QCOW2_BITMAP_ENTRY_OFFSET;

			*any = hoff && t->fn(t->arg, hoff >> img->cluster_bits);
		}
	}
	return ret;
}

int bitmaps_contradict(struct qcow2_image *img, bool (*taken)(void *arg, uint64_t hcluster),
		       void *arg, bool *contradict)
{
	const struct qcow2_header *h = &img->hdr;
	const struct taken t = {taken, arg};
	struct bitmap_dir d;
	be64_t *piece;
	int ret;

	*contradict = false;
	if (!bitmaps_wanted(img))
		return 0;
	ret = bitmap_dir_read(&d, img->st, h, NULL);
	if (ret == -EINVAL || ret == -EFBIG) {
		/* of one that was broken then, the autoclear bit is clear by now */
		*contradict = true;
		return 0;
	}
	if (ret)
		return ret;
	piece = aligned_alloc(4096, PIECE_BYTES);
	ret = piece ? 0 : -ENOMEM;
	*contradict = range_is_taken(img, &t, h->bitmap_directory_offset, h->bitmap_directory_bytes);
	for (uint32_t i = 0; !ret && !*contradict && i < d.count; i++) {
		const struct bitmap_entry *e = &d.v[i];

		/* an enabled one that was there before the first write is in use since then */
		if (e->flags & QCOW2_BITMAP_AUTO && !(e->flags & QCOW2_BITMAP_IN_USE))
			*contradict = true;
		else
			ret = table_is_taken(img, &t, e, piece, contradict);
	}
	free(piece);
	bitmap_dir_free(&d);
	return ret;
}

void bitmaps_destroy(struct bitmaps *b)
{
	for (uint32_t i = 0; b->v && i < b->dir.count; i++) {
		free(b->v[i].table);
		free(b->v[i].next);
	}
	free(b->v);
	bitmap_dir_free(&b->dir);
	if (b->own_bytes)
		munmap(b->session, b->own_bytes);
	*b = (struct bitmaps){0};
}

/* ---- in_use ---- */

int bitmaps_write_dir(struct qcow2_image *img)
{
	const struct bitmap_dir *d = &img->bitmaps.dir;
	int ret = storage_pwrite(img->st, img->hdr.bitmap_directory_offset, d->raw, d->raw_bytes);

	img->wb.meta_writes++;
	return ret;
}

bool bitmaps_stay(const struct qcow2_image *img)
{
	return img->bitmaps.dir.count && !img->bitmaps.broken;
}

static void entry_set_flags(struct bitmap_dir *d, struct bitmap_entry *e, uint32_t flags)
{
	bitmap_dir_set(d, e, flags, e->table_offset, e->table_entries);
}

int bitmaps_first_write(struct qcow2_image *img)
{
	struct bitmaps *b = &img->bitmaps;
	bool any = false;
	int ret;

	for (uint32_t i = 0; i < b->dir.count; i++) {
		struct bitmap_entry *e = &b->dir.v[i];

		if (b->v[i].role == BITMAP_ALONE || e->flags & QCOW2_BITMAP_IN_USE)
			continue;
		entry_set_flags(&b->dir, e, e->flags | QCOW2_BITMAP_IN_USE);
		any = true;
	}
	if (any)
		b->unsynced = true;
	if (!b->unsynced)
		return 0;
	ret = bitmaps_write_dir(img);
	if (!ret && !mutant(MUTANT_BITMAP_IN_USE_LATE))
		ret = writeback_sync(img);
	if (!ret)
		b->unsynced = false;
	return ret;
}

int bitmaps_claim(struct qcow2_image *img)
{
	struct bitmaps *b = &img->bitmaps;
	bool misplaced;
	int ret = 0;

	for (uint32_t i = 0; !ret && i < b->dir.count; i++) {
		if (b->v[i].role != BITMAP_ALONE || b->dir.v[i].flags & QCOW2_BITMAP_IN_USE)
			continue;
		ret = bitmap_take(img, i, true, &misplaced, NULL);
		if (!ret && misplaced)
			bitmaps_warn(img, i, "lies where it cannot: it is marked as inconsistent before the disk gets "
					     "another size");
		if (!ret && b->v[i].role == BITMAP_OURS)
			session_set_ours(b->session, i);
	}
	return ret ? ret : bitmaps_first_write(img);
}
