/* SPDX-License-Identifier: MIT */
/*
 * qcow2.h: the engine: a qcow2 image as a range of guest bytes.
 *
 * The engine reads and writes an image over a storage (src/storage/storage.h), on loops
 * (src/ring/loop.h). It knows nothing of block devices. One image, any number of queues, each on a
 * loop of its own; what changes the map or the refcounts runs on the image's metadata loop, which may
 * be the only queue's loop.
 *
 * Every function returns 0 or -errno unless it says otherwise. Specification: QEMU's
 * docs/interop/qcow2.rst, called "qcow2" in comments.
 */
#ifndef QCOW2_H
#define QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct blk_request;
struct error;
struct loop;
struct names_policy;
struct secret;
struct storage;
struct qcow2_image;
struct qcow2_queue;

/* What a write of nothing but zeros becomes, as QEMU's detect-zeroes: */
enum qcow2_detect_zeroes {
	QCOW2_DETECT_ZEROES_OFF,   /* a write */
	QCOW2_DETECT_ZEROES_ON,	   /* a WRITE_ZEROES with NOUNMAP */
	QCOW2_DETECT_ZEROES_UNMAP, /* a WRITE_ZEROES */
};

/* Files in a backing chain, the image itself not counted. */
#define QCOW2_BACKING_MAX 256

struct qcow2_options {
	bool read_only;
	uint64_t cache_size_bytes; /* bound of the cached L2 slices and refcounts; 0: the default */
	unsigned max_inflight;	   /* requests in flight over all queues; 0: 256 */
	uint64_t writeback_delay_ms; /* dirty metadata is written back after this; 0: the default */
	/* DISCARD does nothing, WRITE_ZEROES keeps its clusters, and nothing is punched out of the file */
	bool discard_ignore;
	/* Of writes whose payload is in memory: one in a registered buffer is not looked at. */
	enum qcow2_detect_zeroes detect_zeroes;
	/* Writes of full clusters that are not written in place are compressed, where they get smaller. */
	bool compress;
	/*
	 * For operations on the image alone, such as on its snapshots, without queues: the files that the
	 * image names are not opened, nor is a passphrase needed.
	 */
	bool tables_only;
	const char *snapshot; /* read-only: the disk as it was then, by id or name; NULL: as it is */
	uint64_t reclaim_delay_ms;   /* leaks of a crash are looked for after this; 0: the default */
	bool no_lock;		   /* QEMU's image locks are not taken */
	bool lock_beside;	   /* they are, beside a process that holds them already */
	/*
	 * For the files that the image names (storage/names.h): where it is itself, absolute; NULL: an image
	 * that names any is refused. And what the user allows; NULL: its own folder and below.
	 */
	const char *image_path;
	const struct names_policy *names;
	/* Opens encrypted images, those of a backing chain as well (base/secret.h); NULL: none. */
	const struct secret *passphrase;
	/*
	 * How long a writable open waits for I/O of a killed process that may still reach the file
	 * (storage_claim()).
	 */
	unsigned claim_timeout_ms;

	/*
	 * The recovery log: memory that outlives the process, QCOW2_LOG_BYTES long or so, page aligned;
	 * it stays the caller's, and mapped until qcow2_close() returned. NULL: none. The identity (at
	 * most 256 bytes) says which image, boot and device it is for. With log_recover the log is
	 * replayed: an error then means that the image must not be served, and the log is unchanged.
	 * Without, it is started anew. After a close without error it is empty.
	 */
	void *log_base;
	uint64_t log_bytes;
	const void *log_identity;
	uint64_t log_identity_bytes;
	bool log_recover;
	/*
	 * With log_recover: somebody else may have written to the image meanwhile, as its locks were not held
	 * all the time. Dirty bitmaps that were being kept up to date are inconsistent then.
	 */
	bool log_lapsed;
};

#define QCOW2_LOG_BYTES (8 * 1024 * 1024)

/*
 * For who watches over the process that has the image open, when that one has died: a sync of the image
 * has failed with -@error, so that no FLUSH succeeds any more (log_recover finds it). -EINVAL: this is
 * no log.
 */
int qcow2_log_sync_failed(void *log_base, uint64_t log_bytes, int error);

/* Whether the @len bytes at @head, the start of a file, are a qcow2 image's. */
bool qcow2_probe(const void *head, size_t len);

/*
 * Opens an image. Called outside of any loop, or in a coroutine. On success the image owns @storage
 * and closes it; on error the storage stays the caller's, the file is unchanged to the byte, and @err
 * says in one line what is wrong.
 */
int qcow2_open(struct qcow2_image **out, struct storage *storage, const struct qcow2_options *opts,
	       struct error *err);

/* Guest size in bytes, a multiple of 512. */
uint64_t qcow2_size_bytes(const struct qcow2_image *img);
uint32_t qcow2_cluster_bytes(const struct qcow2_image *img);
bool qcow2_read_only(const struct qcow2_image *img);
/* Every payload is looked at (it is encrypted, or searched for zeros): one out of sight is no use. */
bool qcow2_looks_at_data(const struct qcow2_image *img);

/*
 * Says on which loop the metadata work runs; before the first queue. That loop needs a coroutine
 * for every request in flight, and QCOW2_EXTRA_COROUTINES.
 */
#define QCOW2_EXTRA_COROUTINES 8
int qcow2_set_metadata_loop(struct qcow2_image *img, struct loop *loop, struct error *err);
struct loop *qcow2_metadata_loop(const struct qcow2_image *img);

/* A queue that submits on @loop. Called on that loop's thread before it runs, or on it. */
int qcow2_queue_create(struct qcow2_queue **out, struct qcow2_image *img, struct loop *loop,
		       struct error *err);
/*
 * After its last request completed; on the same thread. Accepts NULL. Where the metadata loop is
 * another one, in a coroutine, with both loops running: it may have to answer that one first.
 */
void qcow2_queue_destroy(struct qcow2_queue *queue);

/* Bytes that a request's priv must have for qcow2_submit(), aligned to 64. */
#define QCOW2_REQUEST_BYTES 10240
size_t qcow2_request_bytes(void); /* the same, of the library that is linked */

/*
 * Starts a request, on the queue's thread; blk_request_complete() is called there when it is done.
 * Errors: -EIO (also: the image is broken there), -ENOSPC, -EROFS.
 */
void qcow2_submit(struct qcow2_queue *queue, struct blk_request *req);

/*
 * The same as a FLUSH request: everything that completed before the call is durable when this
 * returns 0. In a coroutine of the metadata loop, or outside of any loop when none is running.
 */
int qcow2_flush(struct qcow2_image *img);

/*
 * The same before the end, with what a close gives back, and room for the dirty bitmaps: when this returns 0, and
 * nothing is written any more, the close does not meet an end of space. In a coroutine of the metadata loop.
 */
int qcow2_settle(struct qcow2_image *img);

/*
 * Stops background work on the metadata loop; in a coroutine of it. Queues are gone by then.
 * Afterwards the loop may be destroyed, and only qcow2_close() may be called.
 */
void qcow2_detach_loop(struct qcow2_image *img);

/*
 * Flushes, and frees everything, also where the flush failed: its error is returned. Outside of any
 * loop, or in a coroutine.
 */
int qcow2_close(struct qcow2_image *img, struct error *err);

/* ---- resizing ---- */

/*
 * Gives the disk another size, a multiple of 512: durably, and at every moment a power cut leaves the
 * old disk or the new one. What is gained reads as zeros. Called in a coroutine of the metadata loop,
 * or outside of any loop when none is running.
 *
 * A disk that is being used grows at once: requests past the old end may be submitted when this has
 * returned. To shrink, no request may be in flight, no recovery log be in use, and afterwards the image
 * be closed and nothing else. -ENOTSUP: it has snapshots that are in the way.
 */
int qcow2_resize(struct qcow2_image *img, uint64_t size_bytes, struct error *err);

/* ---- creating ---- */

enum qcow2_preallocation {
	QCOW2_PREALLOC_OFF,
	QCOW2_PREALLOC_METADATA,
	QCOW2_PREALLOC_FALLOC,
	QCOW2_PREALLOC_FULL,
};

/* How LUKS encrypts a new image, as `qemu-img create -o encrypt.*` has it; NULL or 0: QEMU's default. */
struct qcow2_luks_options {
	const char *cipher_alg;	    /* aes-256 */
	const char *cipher_mode;    /* xts */
	const char *ivgen_alg;	    /* plain64 */
	const char *ivgen_hash_alg; /* sha256, with essiv */
	const char *hash_alg;	    /* sha256 */
	unsigned iter_time_ms;	    /* 2000: that long a passphrase takes to be tried */
};

struct qcow2_create_options {
	uint64_t size_bytes;	/* guest size; rounded up to 512 */
	unsigned version;	/* 2 or 3; 0: 3 */
	uint32_t cluster_bytes; /* power of two, 512 to 2 MiB; 0: 64 KiB */
	unsigned refcount_bits; /* power of two, 1 to 64; 0: 16 */
	bool lazy_refcounts;
	bool extended_l2; /* subclusters; version 3, clusters of at least 16 KiB */
	bool zstd;	  /* compressed clusters are zstd, not deflate; version 3 */
	/* Names as they are to be in the image, nothing is opened; NULL: none. A backing file needs its format. */
	const char *backing_file, *backing_format;
	const char *data_file;	/* version 3; the file itself is the caller's to make */
	bool data_file_raw;	/* needs preallocation, and no backing file */
	enum qcow2_preallocation preallocation;
	bool luks; /* encrypted, with @passphrase */
	struct qcow2_luks_options luks_options;
	const struct secret *passphrase;
};

/* Checks @opts alone, without touching anything; what create itself would refuse, this refuses. */
int qcow2_create_validate(const struct qcow2_create_options *opts, struct error *err);
/* Writes a new image into the empty storage and makes it durable. Outside of any loop. */
int qcow2_create(struct storage *storage, const struct qcow2_create_options *opts, struct error *err);

/* ---- internal snapshots ---- */

struct qcow2_snapshot {
	const char *id, *name; /* hostile strings from the image; valid during the call */
	uint64_t vm_state_bytes;
	uint64_t disk_bytes;
	uint32_t date_sec, date_nsec; /* since the epoch */
	uint64_t vm_clock_ns;
	bool has_icount;
	uint64_t icount;
};

/* Calls @each for every snapshot, in the table's order. Somebody may have the image attached. */
int qcow2_snapshot_list(struct storage *storage,
			void (*each)(void *arg, const struct qcow2_snapshot *snapshot), void *arg,
			struct error *err);

/* Of names of snapshots that are made here, in bytes. QEMU has no room for more. */
#define QCOW2_SNAPSHOT_NAME_MAX 255

/*
 * Each in a coroutine of the metadata loop, with queues running and requests in flight, or outside of
 * any loop when none is running. For its switch a create waits for the writes in flight, and holds back those
 * that are submitted meanwhile; an apply does so with all requests, a delete with none. @pause_ns, if not
 * NULL: for how long that was. They return when all of it is done, and the file has room for what they freed.
 * On error the disk is what it was. An existing snapshot is found by its id, or else by its name.
 */
int qcow2_snapshot_create(struct qcow2_image *img, const char *name, uint64_t *pause_ns,
			  struct error *err);
/* The disk becomes the snapshot's; of another size only while no queue is running. */
int qcow2_snapshot_apply(struct qcow2_image *img, const char *id_or_name, uint64_t *pause_ns,
			 struct error *err);
int qcow2_snapshot_delete(struct qcow2_image *img, const char *id_or_name, uint64_t *pause_ns,
			  struct error *err);

/* ---- persistent dirty bitmaps ---- */

struct qcow2_bitmap {
	const char *name; /* a hostile string from the image; valid during the call */
	uint64_t granularity_bytes;
	bool in_use;  /* inconsistent, or somebody is writing to the image right now */
	bool enabled; /* what is written is recorded in it */
};

/*
 * Calls @each for every bitmap, in the directory's order; for none where the header says that they do not
 * hold. Somebody may have the image attached.
 */
int qcow2_bitmap_list(struct storage *storage,
		      void (*each)(void *arg, const struct qcow2_bitmap *bitmap), void *arg,
		      struct error *err);

/* ---- looking at an image without attaching it ---- */

#define QCOW2_NAME_MAX 1024

struct qcow2_info {
	unsigned version;
	uint64_t size_bytes;
	uint32_t cluster_bytes;
	unsigned refcount_bits;
	bool lazy_refcounts, dirty, corrupt, extended_l2, data_file, data_file_raw, bitmaps;
	const char *compression_type; /* "zlib", "zstd" */
	const char *encryption;	      /* NULL, "aes", "luks" */
	uint32_t snapshots;
	/* Hostile strings from the image, NUL-terminated; empty if there is none. Never opened here. */
	char backing_file[QCOW2_NAME_MAX];
	char backing_format[QCOW2_NAME_MAX];
	char data_file_name[QCOW2_NAME_MAX];
	uint64_t unknown_incompatible, unknown_compatible, unknown_autoclear;
	uint64_t l1_entries, l1_offset, refcount_table_offset, refcount_table_clusters;
};

/* Reads and validates the header of an image that need not be one this program can serve. */
int qcow2_info(struct storage *storage, struct qcow2_info *info, struct error *err);

#endif
