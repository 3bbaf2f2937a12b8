/* SPDX-License-Identifier: MIT */
/*
 * image.h: an open image, inside the engine.
 *
 * Who does what: every queue reads and writes data on its own thread; whatever changes the map or the
 * refcounts runs on the metadata loop, in the coroutine that needs it. With one queue both are one
 * loop, and image_call() is a plain call. With no loop (open and close) everything is a plain call and
 * nothing has to wait.
 *
 * What excludes what:
 *  - locks.h: allocate-write-link, discard and write-zeroes hold a lock on their guest clusters (rule 8).
 *  - epochs (queue.c): reads and in-place writes hold their queue's epoch from lookup to last
 *    completion; a freed cluster is reused after all that were under way have finished (rules 4, 11).
 *  - alloc_lock: one allocation at a time. Held across a pass; a pass never takes it.
 *
 * What may wait for what (no cycle): budget for frees -> reclaim -> epochs -> cluster locks ->
 * alloc_lock -> cache room -> pass -> I/O. So a request waits for budget only while it holds neither
 * an epoch nor a lock.
 */
#ifndef QCOW2_IMAGE_H
#define QCOW2_IMAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/blk.h"
#include "base/error.h"
#include "base/list.h"
#include "qcow2.h"
#include "qcow2/bitmaps.h"
#include "qcow2/cache.h"
#include "qcow2/chain.h"
#include "qcow2/format.h"
#include "qcow2/frees.h"
#include "qcow2/header.h"
#include "qcow2/locks.h"
#include "qcow2/metaset.h"
#include "qcow2/mutant.h"
#include "qcow2/pack.h"
#include "qcow2/reclaim.h"
#include "qcow2/reclog.h"
#include "qcow2/writeback.h"
#include "ring/co.h"
#include "ring/workers.h"
#include "storage/storage.h"

/* A resident table of big-endian 64-bit entries, and what of it is on disk or about to be. */
struct table {
	uint64_t offset_bytes; /* in the file */
	uint64_t entries;
	/* Live values, in host order: changed on the metadata loop, read anywhere. */
	_Atomic uint64_t *live;
	/*
	 * What the disk has or is about to get: entries are copied here at a pass's cut, so that an
	 * entry made after it is not written with its neighbours (rule 2). Whole blocks long.
	 */
	be64_t *disk;
	uint64_t disk_bytes; /* of disk[], as the file has it */
	uint64_t max_bytes;  /* that it may grow to, in place */
	uint64_t *pending;   /* a bit for each entry that differs from disk[] */
	uint64_t *write;     /* a bit for each block of disk[] that is to be written */
	uint64_t pending_count, write_count;
};

/* In an L1 entry in memory: cannot be used; a reserved bit, so that no good entry has it. */
#define L1_BROKEN ((uint64_t)1 << 56)

/* Memory that is always zero, for filling clusters; as long as ZEROS_BYTES. */
#define ZEROS_BYTES ((uint64_t)256 << 10)

#define QUEUES_MAX 128

/* What a file is extended in multiples of: no file system has larger blocks here than pages. */
#define FILE_BLOCK_BYTES 4096u

struct bounce_pool;
struct crypto;
struct inflate_cache;

/* What a queue holds back at its entrance, see image_hold(). */
enum held_back { HOLD_NONE, HOLD_WRITES, HOLD_ALL };

struct qcow2_image {
	struct storage *st;
	struct storage *data; /* guest data: @st, or the external data file's, owned */
	bool data_raw;	      /* that file alone is to be a raw image of the disk */
	struct qcow2_header hdr;
	bool read_only;
	bool discard_ignore;
	enum qcow2_detect_zeroes detect_zeroes;
	bool is_layer;		/* in the backing chain of another one: its own is not opened */
	struct chain *chain;	/* NULL: no backing file */
	struct crypto *crypto;	/* NULL: not encrypted */
	_Atomic uint64_t size_bytes; /* guest; changes on a resize */
	unsigned cluster_bits;
	uint32_t cluster_bytes;
	uint32_t slice_bytes;
	bool extended_l2;	/* entries of two words; a cluster has 32 subclusters */
	unsigned subcluster_bits; /* cluster_bits where there are none */
	unsigned l2_bits;	/* log2 of the entries of an L2 table */
	unsigned l2_slice_bits; /* log2 of the entries of a slice of one */
	unsigned rb_bits;	/* log2 of the entries of a refcount block */
	unsigned rc_slice_bits; /* log2 of the entries of a slice of one */
	unsigned refcount_order;
	uint64_t refcount_max;
	uint64_t hclusters_max; /* host clusters that the file may ever have */
	void *zeros;		/* ZEROS_BYTES, never written to */
	void *scratch;		/* a cluster, under alloc_lock */
	void *l2_scratch; /* a cluster, under l1_lock */

	struct work_pool *workers;     /* for what burns CPU */
	struct inflate_cache *inflate; /* of the image and its backing chain */
	struct loop *meta_loop; /* NULL: no loop runs */
	struct qcow2_queue *queues[QUEUES_MAX];
	unsigned nr_queues;
	pthread_mutex_t queues_lock; /* queues come and go on their own threads */
	enum held_back hold;		     /* what is held back at their entrances; under queues_lock */
	struct co_mutex barrier;     /* one structural operation at a time (rule 17) */
	struct co_mutex grace_lock;  /* one grace period at a time */

	uint64_t gone_writes; /* of queues that are gone */

	struct table l1;
	struct table rt;
	struct cache l2_cache;
	struct cache rc_cache;
	struct co_mutex l1_lock; /* making L2 tables, and copying shared ones */
	struct metaset metaset;
	struct metaset snapset; /* behind it: what snapshots have */
	struct cluster_locks locks;
	struct co_waitq idle; /* a background task ended */

	/* alloc.c */
	struct co_mutex alloc_lock;
	uint64_t append_hcluster; /* everything from here on was never allocated in this session */
	uint64_t zero_hcluster;	  /* everything from here on reads as zeros */
	uint64_t end_hcluster;	  /* a device's end; UINT64_MAX for a file */
	uint64_t extended_bytes;  /* the file has been made this long */
	uint64_t opened_bytes;	  /* the file's length when it was opened */
	uint64_t foreign_bytes;	  /* it was found longer than extended_bytes: this long */
	uint8_t *group_free;	  /* for each refcount slice: whether it may have free clusters */
	uint64_t groups;
	uint64_t group_hint;	 /* no group below has */
	uint64_t reuse_hcluster; /* where the search in the group in use goes on */
	bool scan_started, scan_stop;
	struct co_task scan_task;
	bool scan_running;

	struct frees frees;
	struct pack pack;
	struct reclog reclog;
	struct reclaim reclaim;
	struct bitmaps bitmaps;
	struct writeback wb;

	/* rule 7: autoclear bits are cleared before the first write; and the file's end is evened out */
	_Atomic bool first_write_pending;
	struct co_mutex first_write_lock;

	_Atomic uint64_t corruption_reports;
};

/* A queue: the part of an image that belongs to one thread. */
struct qcow2_queue {
	struct qcow2_image *img;
	struct loop *loop;
	unsigned index;

	/* Rule 5: data writes that completed on this queue; sampled by the pass. */
	_Atomic uint64_t writes_done;

	/*
	 * Epochs: requests that use host clusters are counted in the current one of two slots; a grace
	 * period makes the other one current and waits until the old one is empty.
	 */
	unsigned epoch;
	unsigned epoch_count[2];
	struct loop_msg *grace_msg; /* answered when the old slot is empty */

	unsigned inflight; /* not those that are held back */
	unsigned writes_inflight; /* those of them that may change the disk */
	enum held_back hold;
	struct list held; /* requests, in order of submission */
	struct loop_msg *hold_msg; /* answered when what is to be held back has ended */

	unsigned asks; /* questions of the metadata loop on their way here; under queues_lock */
	struct co_waitq answered;

	struct read_stream {
		uint64_t next;	 /* where it goes on; 0: unused */
		uint64_t ahead;	 /* inflating was started up to here */
		unsigned length; /* requests that went on where one ended */
	} streams[4];		 /* of reads that met compressed clusters: readahead.c */
	unsigned stream_hand;

	struct batch *batches; /* write_compressed.c */
	struct list idle_batches;
	struct co_waitq batch_wait;

	/* copy on write: one cluster at a time */
	struct co_mutex copy_lock;
	void *copy_buf;
	struct bounce_pool *bounces; /* for encrypted writes; NULL: there are none */
};

static inline bool image_has_data_file(const struct qcow2_image *img)
{
	return img->data != img->st;
}

/* Where guest data ends at the latest: a raw data file is not to grow past the disk, a device cannot. */
static inline uint64_t image_data_end(const struct qcow2_image *img)
{
	if (img->data_raw)
		return align_up(img->size_bytes, img->data->block_bytes);
	if (image_has_data_file(img) && img->data->fixed_size)
		return align_down(img->data->size_bytes, img->data->block_bytes);
	return UINT64_MAX;
}

/* ---- image.c ---- */

/*
 * A layer of a chain: without its own chain. It owns @storage on success; closing has no error. @reached is
 * the name that it was reached by, if that may be a link (storage/names.h).
 */
int image_open_layer(struct qcow2_image **out, struct storage *storage, const char *reached,
		     const struct qcow2_options *opts, struct error *err) must_check;
void image_close_layer(struct qcow2_image *img);

/* As storage_attach() and storage_detach(), for all storages of the image. */
int image_attach(struct qcow2_image *img, struct loop *loop, struct error *err) must_check;
void image_detach(struct qcow2_image *img, struct loop *loop);

/* Runs @fn on the metadata loop and waits for it. */
static inline int image_call(struct qcow2_image *img, int (*fn)(void *arg), void *arg)
{
	return co_call(img->meta_loop, fn, arg);
}

/* Says once in a while that the image is broken, and where. */
__attribute__((format(printf, 2, 3))) void image_corrupt(struct qcow2_image *img, const char *fmt,
							 ...);

/* Something is to be written back: the timer is set. */
void image_metadata_dirtied(struct qcow2_image *img);

/* Writes zeros to a host range, block aligned. */
int image_write_zeros(struct qcow2_image *img, uint64_t hoff, uint64_t len_bytes) must_check;

/* Everything on disk, freed clusters included; with no loop, or in a coroutine of the metadata loop. */
int image_settle(struct qcow2_image *img) must_check;

/* How long the external data file is to be for a disk of @size_bytes. */
uint64_t image_data_file_bytes(const struct qcow2_image *img, uint64_t size_bytes);

/* Metadata loop, before the first write: makes durable what rule 7 asks for. */
int image_first_write(void *img) must_check;

/* ---- queue.c ---- */

/* Returns when no queue can still be looking at what left the cache before the call. */
void image_quiesce_lookups(struct qcow2_image *img);
/*
 * Returns when every request that was in an epoch at the call has left it. Nobody waits for a cluster lock in
 * an epoch, so the caller may hold one.
 */
void image_grace(struct qcow2_image *img);
/*
 * Holds back requests that are submitted from now on, those that may change the disk or all, and returns
 * when those in flight have completed, links and all. As many are held as the front end has in flight. In
 * a coroutine under img->barrier, holding no lock, no epoch and nothing that a request may wait for; with
 * no loop there is nothing to hold.
 */
void image_hold(struct qcow2_image *img, enum held_back what);
/* What was held starts, in order. */
void image_release(struct qcow2_image *img);
/* The sum of the queues' counters of writes, and of the metadata's own. */
uint64_t image_writes_done(struct qcow2_image *img);

static inline unsigned epoch_enter(struct qcow2_queue *q)
{
	q->epoch_count[q->epoch]++;
	return q->epoch;
}

void epoch_drained(struct qcow2_queue *q);
void hold_drained(struct qcow2_queue *q);

/* Whether a queue has nothing in flight that is held back. */
static inline bool hold_is_drained(const struct qcow2_queue *q)
{
	return q->hold == HOLD_ALL ? !q->inflight : !q->writes_inflight;
}

static inline void epoch_exit(struct qcow2_queue *q, unsigned slot)
{
	if (!--q->epoch_count[slot] && q->grace_msg && slot != q->epoch)
		epoch_drained(q);
}

/* ---- crypt_io.c ---- */

int bounce_pool_create(struct bounce_pool **out) must_check;
void bounce_pool_destroy(struct bounce_pool *pool); /* accepts NULL */

/* ---- table.c ---- */

int table_read(struct table *t, struct qcow2_image *img, const char *name, uint64_t offset_bytes,
	       uint64_t entries, uint64_t max_entries, struct error *err) must_check;
int table_alloc(struct table *t, uint64_t offset_bytes, uint64_t entries, uint64_t max_entries,
		uint32_t block_bytes) must_check;
/* The table lies elsewhere now, is longer, and what is live is on disk there. */
void table_move(struct table *t, uint64_t offset_bytes, uint64_t entries, uint32_t block_bytes);
void table_free(struct table *t);

static inline uint64_t table_get(const struct table *t, uint64_t index)
{
	return atomic_load_explicit(&t->live[index], memory_order_acquire);
}

void table_set(struct table *t, struct qcow2_image *img, uint64_t index, uint64_t value);
/* At a pass's cut: what is pending is to be written. Does not suspend. */
void table_cut(struct table *t, uint32_t block_bytes);
/* Writes the blocks that are to be written; *@wrote says whether there were any. */
int table_write(struct table *t, struct qcow2_image *img, bool *wrote) must_check;

#endif
