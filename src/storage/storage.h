/* SPDX-License-Identifier: MIT */
/*
 * storage.h: where an image's bytes live, behind one small interface.
 *
 * A storage is a flat range of bytes with a length. I/O is asynchronous on the calling thread's
 * loop; called outside of any loop (the main thread, opening or checking an image) it is done when
 * storage_submit() returns. The blocking forms below suspend the calling coroutine.
 *
 * Contract:
 *  1. Reads past the end give zeros. A short read or write is continued inside; the result is 0 or
 *     -errno, and after -errno any part may have been done.
 *  2. offset, length, and each memory segment's address and length are multiples of block_bytes
 *     (for the data path's buffers the address is a multiple of 512 at least; the storage chose
 *     block_bytes so that this suffices).
 *  3. SYNC makes durable what completed before it was submitted: data, length, punched holes.
 *  4. I/O in flight is not ordered.
 *  5. No allocation after storage_attach().
 */
#ifndef STORAGE_STORAGE_H
#define STORAGE_STORAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/blk.h"
#include "base/error.h"
#include "ring/loop.h"

enum storage_op {
	STORAGE_READ,
	STORAGE_WRITE,
	STORAGE_SYNC,
	/* The range reads as zeros; its space is given back (PUNCH) or kept; or -EOPNOTSUPP. */
	STORAGE_PUNCH,
	STORAGE_ZERO,
	STORAGE_TRUNCATE, /* to offset_bytes, either way; what is gained reads as zeros */
};

enum {
	STORAGE_DSYNC = 1 << 0, /* WRITE: durable at completion, the data itself only */
	STORAGE_FILL = 1 << 1,	/* READ: of zeros, into a registered buffer; the storage is not looked at */
};

struct storage;

struct storage_io {
	enum storage_op op;
	uint32_t flags;
	uint64_t offset_bytes;
	uint64_t len_bytes;
	/*
	 * The payload, of len_bytes: @iov, or if iovcnt is 0 @buf (memory or a registered buffer).
	 * The array must stay valid until completion; the storage may change its elements.
	 */
	struct iovec *iov;
	unsigned iovcnt;
	struct blk_buf buf;

	void (*complete)(struct storage_io *io, int ret);

	/* the backend's */
	struct {
		struct storage *storage;
		void *attached;
		struct loop_op op;
		struct loop *loop;
		struct list list;
		uint64_t done_bytes;
		struct iovec one;
		uint64_t aux[2];
	} impl;
};

/* Who may do what to the file at the same time: QEMU's image locks. Bits of storage_lock(). */
enum {
	STORAGE_PERM_CONSISTENT_READ = 1 << 0,
	STORAGE_PERM_WRITE = 1 << 1,
	STORAGE_PERM_WRITE_UNCHANGED = 1 << 2,
	STORAGE_PERM_RESIZE = 1 << 3,
	STORAGE_PERM_ALL = 15,
	/* Not a permission: nobody is looked for, as a process above this one holds the same locks. */
	STORAGE_LOCK_BESIDE = 1 << 4,
};

struct storage_ops {
	void (*submit)(struct storage *st, struct storage_io *io);
	/* Prepares I/O from @loop's thread, before that loop runs or on it. May be NULL. */
	int (*attach)(struct storage *st, struct loop *loop, struct error *err);
	void (*detach)(struct storage *st, struct loop *loop);
	int (*lock)(struct storage *st, unsigned perms, unsigned shared, struct error *err);
	int (*mark_get)(struct storage *st);
	int (*mark_set)(struct storage *st, bool set);
	int (*claim)(struct storage *st, unsigned timeout_ms, struct error *err);
	void (*look)(struct storage *st);
	void (*close)(struct storage *st);
};

struct storage {
	const struct storage_ops *ops;
	const char *name; /* for messages; printable */
	char id[64];	  /* the same for every name of one file or device; empty: not known */
	/*
	 * Bytes; follows what this program does to the file, at completion. May be read from any
	 * thread; written by one at a time.
	 */
	_Atomic uint64_t size_bytes;
	uint32_t block_bytes; /* see contract 2; 512 to 4096 */
	bool read_only;
	bool fixed_size; /* a block device: cannot grow, and past the used part lies garbage */
	bool can_punch;
	bool direct; /* the page cache is bypassed */
	bool rotational;
	bool in_memory; /* tmpfs: io_uring hands every request to a thread of the kernel's */
};

/* @io is the backend's until its complete function is called; that may be before this returns. */
void storage_submit(struct storage *st, struct storage_io *io);

/* These wait, in a coroutine or outside of any loop. */
int storage_pread(struct storage *st, uint64_t offset_bytes, void *buf,
		  uint64_t len_bytes) must_check;
int storage_pwrite(struct storage *st, uint64_t offset_bytes, const void *buf,
		   uint64_t len_bytes) must_check;
int storage_sync(struct storage *st) must_check;
int storage_truncate(struct storage *st, uint64_t size_bytes) must_check;
int storage_punch(struct storage *st, uint64_t offset_bytes, uint64_t len_bytes) must_check;
/* Zeros by STORAGE_ZERO, or by writing them where the backend cannot. */
int storage_zero(struct storage *st, uint64_t offset_bytes, uint64_t len_bytes) must_check;

/*
 * Before the loop runs, on its thread, or after its thread has ended; nothing may be in flight. In the
 * last case the kernel lets go of a file only some time after loop_destroy().
 */
int storage_attach(struct storage *st, struct loop *loop, struct error *err) must_check;
void storage_detach(struct storage *st, struct loop *loop);

/*
 * Takes QEMU's advisory locks: @perms is what this opener uses, @shared what it lets others use at
 * the same time. On conflict -EAGAIN and a message that says who or what is in the way; a repeated
 * call replaces what was held. close releases.
 */
int storage_lock(struct storage *st, unsigned perms, unsigned shared, struct error *err) must_check;
/*
 * Waits until no other storage that was claimed can still write to the file, requests of a killed
 * process included, and claims this one until its own last request is gone (rule 15). -ETIMEDOUT.
 */
int storage_claim(struct storage *st, unsigned timeout_ms, struct error *err) must_check;
/*
 * A block device may have become larger since it was opened: size_bytes is what it is now, if that is more. By
 * who writes size_bytes; does not wait.
 */
void storage_look(struct storage *st);
/*
 * A mark beside the contents, which says that the image is being written to: 1 it is set, 0 it is not.
 * -EOPNOTSUPP where there is no place for one. Setting it is durable by the syncs that follow, more or
 * less: nothing may depend on it but what is done out of kindness.
 */
int storage_mark_get(struct storage *st);
int storage_mark_set(struct storage *st, bool set);
/* Where in a file the claim lies: a write lock of one byte, far from QEMU's locks. */
#define STORAGE_CLAIM_BYTE 0x75626c6bL
void storage_close(struct storage *st); /* accepts NULL */

/* ---- file: a regular file or block device, by io_uring (src/storage/file.c) ---- */

struct storage_file_options {
	bool read_only;
	bool direct; /* O_DIRECT if the file system has it; see storage.direct for the outcome */
	bool create; /* a new empty file; -EEXIST if there is one */
	bool exclusive_device; /* O_EXCL for a block device, so that a mounted one is refused */
	const char *name; /* for messages, where the path says nothing; NULL: the path */
};

int storage_file_open(struct storage **out, const char *path,
		      const struct storage_file_options *opts, struct error *err) must_check;
/* The file descriptor, for fstat() and locks; the storage's own, do not close. */
int storage_file_fd(const struct storage *st);

/*
 * For a process that outlives those who write to a file, on a description of its own: waits like
 * storage_claim(), but claims nothing (-ETIMEDOUT), and then syncs (*@sync_ret). The kernel tells each
 * description once of an error in writing the file back, and one that is opened later not at all; so an
 * error that only a process which has died was told, or nobody, is found here, if @fd is older than it.
 */
int storage_file_settle(int fd, const char *name, unsigned timeout_ms, int *sync_ret,
			struct error *err) must_check;

#endif
