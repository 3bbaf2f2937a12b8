/* SPDX-License-Identifier: MIT */
/*
 * bitmaps.h: persistent dirty bitmaps, kept up to date while the image is open for writing.
 *
 * The bitmaps in the file stay as they are. What is written in the meantime is recorded in one *map* for
 * all of them, a bit for each piece of the disk as long as the finest bitmap's granule (longer where that
 * would take more memory than there is), and merged into each enabled bitmap when the image is closed. So
 * a write costs one test of a bit, however many bitmaps there are.
 *
 * In the file a bitmap is *valid*, or has in_use set and is *inconsistent*: nobody may use it but to
 * remove it. Of those that are valid at open:
 *
 *	enabled ("auto")  in_use is set before the first write, and cleared when all has been merged
 *	disabled	  is left alone, but for a resize, which changes its length: then the same, unmerged
 *	not to be used	  in_use is set before the first write, for good: extra data of an unknown kind, a
 *			  table that is broken or not as long as the disk, more than BITMAPS_DATA_MAX_BYTES
 *
 * Those that are inconsistent at open stay so. Where the directory itself is broken the autoclear bit is
 * cleared before the first write, which says that nothing of it holds.
 *
 * Order of writes, with a sync between the lines; each change is of one aligned word, so that it cannot be
 * torn:
 *
 *	first write	in_use, in place
 *			the first write of data
 *	close		(all data and the map of clusters have been synced)
 *			clusters of bitmaps: in place, for a bit is only ever added, or new ones; refcounts
 *			table entries of new ones, in place; tables that must be longer, elsewhere
 *			the place of such tables, in the directory
 *			their lengths, and in_use cleared, in the directory
 *
 * The map lies in the memory of the recovery log (the *session*), if there is one; then a killed process loses
 * nothing of it, and the next one goes on with it. The session says which bitmaps' in_use is its own.
 *
 * Invariants:
 *  1. (rule 7) When the first data write is issued, in_use of every enabled bitmap is durable.
 *  2. A write's bits are in the map before its data is submitted. None is ever cleared in a session.
 *  3. in_use is cleared only where it was set by this session, when everything that the map says has been
 *     merged and synced.
 *  4. A session is resumed only by who knows that nobody wrote to the image in between: the image's locks
 *     have been held all the time. Else what is in_use stays so.
 *  5. What a bitmap's table refers to lies in the file, in clusters of refcount 1 that hold no other
 *     metadata, and no data are written there.
 *
 * Threads: bits are set on the queues' threads, everything else is the metadata loop's, or is called with
 * no loop.
 */
#ifndef QCOW2_BITMAPS_H
#define QCOW2_BITMAPS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "qcow2/bitmap_dir.h"

struct qcow2_image;

/* Of the map: exact for 2 TiB with granules of 64 KiB. */
#define BITMAPS_MAP_MAX_BYTES ((uint64_t)4 << 20)
/* Of all bitmaps whose tables are read, as they are in the file: bounds memory, and a close. */
#define BITMAPS_DATA_MAX_BYTES ((uint64_t)512 << 20)
/* The session's part of the recovery log's memory, before the map. */
#define BITMAPS_SESSION_BYTES 4096u

enum bitmap_role {
	BITMAP_ALONE,	/* disabled, or inconsistent before we came */
	BITMAP_OURS,	/* in_use is ours to set and to clear */
	BITMAP_SPOILED, /* in_use is set, for good */
};

struct bitmap_state {
	enum bitmap_role role;
	/* OURS: the table, in host order, as it is in the file; @next as it is to be, at close. */
	uint64_t *table, *next;
	uint32_t next_entries;
	uint64_t next_offset;
	bool failed; /* it could not be saved */
};

struct bitmap_session;

struct bitmaps {
	_Atomic uint64_t *map;	    /* NULL: nothing is recorded */
	_Atomic uint64_t end_bytes; /* of the disk, as far as it is recorded */
	unsigned map_bits;	    /* log2 of the bytes that a bit stands for */
	uint64_t map_bytes;
	struct bitmap_session *session; /* before the map; NULL: nothing is open */
	uint64_t own_bytes; /* session and map are not the log's, but of this length, by mmap() */
	struct bitmap_dir dir;
	struct bitmap_state *v; /* of each entry of dir */
	uint64_t data_bytes;	/* of those whose tables were read */
	bool broken;		/* the directory */
	bool resized;		/* bits past the disk's end may be left */
	bool unsynced;		/* in_use was set, and it is not known to be durable */
};

/* Whether the image has bitmaps that writing must know of. */
bool bitmaps_wanted(const struct qcow2_image *img);

/*
 * At open, when the map of metadata and the refcounts can be used, the log has been replayed, and nothing is
 * written yet. @resume: by invariant 4. Nothing is changed in the file.
 */
int bitmaps_open(struct qcow2_image *img, bool resume, struct error *err) must_check;
void bitmaps_destroy(struct bitmaps *b);

/*
 * At open, before changes of the map are replayed, when others were not kept out since. *@contradict:
 * somebody has made a bitmap meanwhile, which does not know of them, or one in a cluster that @taken
 * says is in use.
 */
int bitmaps_contradict(struct qcow2_image *img, bool (*taken)(void *arg, uint64_t hcluster),
		       void *arg, bool *contradict) must_check;

/* Before the first write: invariant 1; and whether the autoclear bit stays. */
int bitmaps_first_write(struct qcow2_image *img) must_check;
bool bitmaps_stay(const struct qcow2_image *img);

/* Records that [@goff, @goff + @len_bytes) may change; before it does; any thread. */
void bitmaps_record(struct bitmaps *b, uint64_t goff, uint64_t len_bytes);

static inline void bitmaps_mark(struct bitmaps *b, uint64_t goff, uint64_t len_bytes)
{
	if (__builtin_expect(b->map != NULL, 0))
		bitmaps_record(b, goff, len_bytes);
}

/* The whole disk is about to change. */
void bitmaps_mark_all(struct qcow2_image *img);
/* After image_first_write(), before the disk gets another size in the header: disabled ones are ours, too. */
int bitmaps_claim(struct qcow2_image *img) must_check;
/* Before the disk grows; where what is recorded has to become coarser, writes are held back meanwhile. */
void bitmaps_make_room(struct qcow2_image *img, uint64_t size_bytes);
/* The disk has another size, or is about to have. What is gained counts as unchanged, as it does in QEMU. */
void bitmaps_resize(struct qcow2_image *img, uint64_t size_bytes);

/* ---- bitmaps_save.c ---- */

/*
 * Shortly before that, while the image is in use: gets the clusters that the bitmaps need as things are now, so
 * that bitmaps_save() does not find that there is no space for them. An error is that there is none, and nothing
 * else; all others are for bitmaps_save() to meet.
 */
int bitmaps_get_room(struct qcow2_image *img) must_check;
/*
 * At close, after everything else is durable. What could not be saved stays inconsistent, which is said; an
 * error only after a failed sync.
 */
int bitmaps_save(struct qcow2_image *img) must_check;

/* ---- between the two ---- */

/* Whether any of [@from, @to) was recorded. */
bool bitmaps_any(const struct bitmaps *b, uint64_t from, uint64_t to);
/* The first recorded range inside of [@from, @to), in bytes; false: there is none. */
bool bitmaps_next(const struct bitmaps *b, uint64_t from, uint64_t to, uint64_t *first, uint64_t *end);
/* Writes the directory, in place. */
int bitmaps_write_dir(struct qcow2_image *img) must_check;
/* One line in the log about bitmap @i. */
__attribute__((format(printf, 3, 4))) void bitmaps_warn(const struct qcow2_image *img, uint32_t i,
							const char *fmt, ...);

#endif
