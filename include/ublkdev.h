/* SPDX-License-Identifier: MIT */
/*
 * ublkdev.h: block devices made of whatever you like (libublkdev).
 *
 * A program fills in a struct ublkdev_ops, a few functions that say what the device is and do its
 * I/O, and gets a /dev/ublkbN from Linux's ublk driver (6.12 or later). examples/ramdisk.c is a
 * whole one in a page or two, examples/stripe.c one that uses more of it; ublkdev(3) is the manual.
 *
 * Threads. The program's own thread, called the main thread here, calls ublkdev_run(), or
 * ublkdev_start() and ublkdev_stop(). The device has one or more queues, each served by a thread of
 * the library with an io_uring. Each function below says where it may be called.
 *
 * Errors are 0 or a negative errno. Functions that take a struct ublkdev_error also leave a
 * sentence for the user there; NULL is allowed.
 *
 * Sizes and offsets are in bytes.
 */
#ifndef UBLKDEV_H
#define UBLKDEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct io_uring_sqe;
struct ublkdev;		/* a device that is attached */
struct ublkdev_queue;	/* one of its queues */
struct ublkdev_request; /* one request of the kernel's */

struct ublkdev_error {
	char text[1024]; /* one line without a newline; empty: nothing to say */
};

/* ---- what the device is ---- */

struct ublkdev_limits {
	uint64_t size;		 /* a multiple of logical_block */
	uint32_t logical_block;	 /* unit of every request: a power of two, 512 to a page; 0: 512 */
	uint32_t physical_block; /* what it writes best in; 0: 4096, or logical_block if larger */
	uint32_t io_opt;	 /* preferred size of large requests; 0: none */
	uint32_t discard_granularity; /* a power of two, logical_block at least; 0: the device
					 does not take UBLKDEV_DISCARD */
	uint64_t max_discard;	      /* in one request; 0: 1 GiB */
	uint64_t max_write_zeroes;    /* in one request; 0: the device does not take
					 UBLKDEV_WRITE_ZEROES */
	uint32_t max_request;  /* of READ and WRITE: a power of two, a page at least; 0, and at most: 512 KiB */
	uint32_t chunk;	       /* a power of two, logical_block at least: no READ or WRITE crosses a multiple
				  of it; 0: no such bounds */
	uint32_t memory_align; /* what registered buffers are to be aligned to in memory, for I/O past a page
				  cache: a power of two, 512 to a page; 0: 512 */
	bool read_only;
	bool rotational;
	/*
	 * Writes that are completed may be lost when power fails, until a UBLKDEV_FLUSH is
	 * completed. Without this the kernel sends no FLUSH.
	 */
	bool volatile_cache;
	bool fua; /* UBLKDEV_FUA is understood; only with volatile_cache */
};

/*
 * @data is what was passed to ublkdev_start(). Functions other than open and submit may be NULL.
 */
struct ublkdev_ops {
	const char *name;     /* for messages */
	size_t request_bytes; /* memory of the program's own in each request; see
				 ublkdev_request_data() */
	/*
	 * The program can do without memory in most requests: see ublkdev_request_buffer_index(). If not set,
	 * every READ and WRITE has memory, whatever the data path.
	 */
	bool registered_buffers;

	/* Main thread. Fills in *@limits, which is zeroed. */
	int (*open)(void *data, struct ublkdev_limits *limits, struct ublkdev_error *err);

	/* The queue's thread, before its first request. The queues start one after the other. */
	int (*queue_start)(void *data, struct ublkdev_queue *queue, struct ublkdev_error *err);

	/*
	 * The queue's thread. The request belongs to the program until ublkdev_complete(), which
	 * may be called before this returns, or later. This function must not wait for anything: as
	 * long as it runs, the queue does nothing else. Work that takes long goes to a thread of
	 * the program's, or through the queue's io_uring (ublkdev_sqe()).
	 */
	void (*submit)(void *data, struct ublkdev_queue *queue, struct ublkdev_request *req);

	/* The queue's thread, after its last request was completed. */
	void (*queue_stop)(void *data, struct ublkdev_queue *queue);

	/* Main thread, when all queues have stopped, also if the device could not be attached. */
	void (*close)(void *data);
};

/* ---- requests ---- */

enum ublkdev_op {
	UBLKDEV_READ,	      /* fill the buffer */
	UBLKDEV_WRITE,	      /* take the buffer's contents */
	UBLKDEV_FLUSH,	      /* make durable what was completed before; no range, no buffer */
	UBLKDEV_DISCARD,      /* the range's contents are not needed any more */
	UBLKDEV_WRITE_ZEROES, /* the range reads as zeros from now on; no buffer */
};

enum {
	UBLKDEV_FUA = 1 << 0,	  /* WRITE, WRITE_ZEROES: durable when completed */
	UBLKDEV_NOUNMAP = 1 << 1, /* WRITE_ZEROES: rather keep the space reserved */
};

/*
 * What a request asks for: any thread, until it is completed. The range lies inside the device and
 * is made of whole logical blocks.
 */
enum ublkdev_op ublkdev_request_op(const struct ublkdev_request *req);
unsigned ublkdev_request_flags(const struct ublkdev_request *req);
uint64_t ublkdev_request_offset(const struct ublkdev_request *req);
uint64_t ublkdev_request_length(const struct ublkdev_request *req);
/* READ and WRITE: page-aligned memory of the request's length. Else, or with a registered buffer, NULL. */
void *ublkdev_request_buffer(const struct ublkdev_request *req);
/*
 * With ops.registered_buffers and the zero-copy data path: where the request's pages are in the table of
 * registered buffers of the queue's io_uring, for IORING_OP_READ_FIXED and IORING_OP_WRITE_FIXED of
 * ublkdev_sqe(), whose address is then an offset in the request. All I/O with it has to be complete before
 * the request is. -1: the payload is in memory.
 */
int ublkdev_request_buffer_index(const struct ublkdev_request *req);
/*
 * For a request of that kind whose bytes have to be seen: @ready is called when its payload is in memory,
 * on the queue's thread, maybe before this returns; or with an error, to complete the request with. Memory
 * is limited: call it before the request holds what another one may wait for.
 */
void ublkdev_request_to_memory(struct ublkdev_request *req,
			       void (*ready)(struct ublkdev_request *req, int result));
/*
 * ops.request_bytes of memory, aligned to 64, for the program to keep what it needs for a request.
 * Zeroed when the queue starts, and not touched by the library in between. NULL if request_bytes is
 * 0.
 */
void *ublkdev_request_data(const struct ublkdev_request *req);
struct ublkdev_queue *ublkdev_request_queue(const struct ublkdev_request *req);

/*
 * Ends a request, once: @result is 0 (all of it was done) or a negative errno. On the queue's
 * thread or on any other.
 */
void ublkdev_complete(struct ublkdev_request *req, int result);

/* ---- queues ---- */

/* Any thread. */
unsigned ublkdev_queue_index(const struct ublkdev_queue *queue); /* from 0 */
unsigned ublkdev_queue_depth(const struct ublkdev_queue *queue); /* requests at once, at most */

/*
 * I/O of the program's own through the queue's io_uring (with liburing, or by hand). On the queue's
 * thread: get an entry, prepare it, then bind it to an operation again, since preparing may
 * overwrite the link. It is submitted with everything else of this turn; @complete is then called
 * on the queue's thread, never before submit() has returned. queue_stop must not return before every operation has completed: begin
 * none that is not for a request.
 */
struct ublkdev_sqe_op {
	void (*complete)(struct ublkdev_sqe_op *op, int res, uint32_t cqe_flags);
	void *reserved[2]; /* the library's */
};

/* Never NULL: where the submission queue is full, it is submitted. */
struct io_uring_sqe *ublkdev_sqe(struct ublkdev_queue *queue, struct ublkdev_sqe_op *op);
void ublkdev_sqe_bind(struct io_uring_sqe *sqe, struct ublkdev_sqe_op *op);

/* ---- devices: main thread ---- */

/* How payloads get from the kernel to the program and back. */
enum ublkdev_data_path {
	UBLKDEV_DATA_AUTO,	/* ZERO_COPY for a program with registered_buffers, if there is; else COPY */
	UBLKDEV_DATA_COPY,	/* the kernel copies */
	UBLKDEV_DATA_USER_COPY, /* the library copies (Linux 6.5) */
	UBLKDEV_DATA_ZERO_COPY, /* pages are registered with io_uring (Linux 6.16) */
};

/* What becomes of the device when the process that serves it ends without ublkdev_stop(). */
enum ublkdev_recovery {
	UBLKDEV_RECOVERY_OFF,	  /* its I/O fails, and it goes away */
	UBLKDEV_RECOVERY_REISSUE, /* it stays, and its I/O waits for another process (see @recover), which gets
				     those requests again that were not completed */
	UBLKDEV_RECOVERY_FAIL,	  /* it stays, and its I/O fails until that process is there (Linux 6.13) */
};

struct ublkdev_options {
	int id;		 /* the number N of /dev/ublkbN; -1: any */
	unsigned queues; /* 0: 1; the kernel makes at most one for each CPU */
	unsigned depth;	 /* requests at once in each queue; 0: 128 */
	enum ublkdev_data_path data_path;
	enum ublkdev_recovery recovery;
	/*
	 * Device @id is there and waits, since the process that served it has ended: go on with it, instead of
	 * making one. It keeps what it was made with: queues, depth, data_path, recovery and no_part_scan are
	 * ignored, and its users go on by the limits that it got then, so open() has to give the same ones. Only
	 * the size may be another, where ublkdev_update_size() has changed it; what is past the size that open()
	 * gives fails. A write that the other process had begun may be done once more.
	 */
	bool recover;
	bool no_part_scan; /* the kernel does not look for partitions (Linux 7.0) */
	bool wait_partitions; /* return when their nodes are there, too; a process is forked to wait for them */
};

/*
 * Attaches a device and returns when its node is there. Needs root. @ops and @data must stay valid
 * until ublkdev_stop(). Marks the process and its threads as part of the memory reclaim path
 * (PR_SET_IO_FLUSHER, mlockall()), so that a full machine does not deadlock on its own block
 * device. With @recover an error leaves the device as it is, for another try.
 */
int ublkdev_start(struct ublkdev **out, const struct ublkdev_ops *ops, void *data,
		  const struct ublkdev_options *options, struct ublkdev_error *err);

const char *ublkdev_path(const struct ublkdev *dev); /* "/dev/ublkb0" */
int ublkdev_id(const struct ublkdev *dev);
/* What was made of the options: how many queues, and how payloads come and go. Never UBLKDEV_DATA_AUTO. */
unsigned ublkdev_queues(const struct ublkdev *dev);
enum ublkdev_data_path ublkdev_data_path(const struct ublkdev *dev);
/* Polls readable when the device has gone away by itself: deleted by another program, or broken. */
int ublkdev_gone_fd(const struct ublkdev *dev);
/* Whether somebody has it open or mounted: > 0 yes, 0 no, a negative errno: unknown. */
int ublkdev_busy(const struct ublkdev *dev);

/*
 * The device gets another size, a multiple of its logical block. A program serves what is gained before
 * it calls this, and what is lost until this has returned. -EOPNOTSUPP before Linux 6.16; on error the
 * size is what it was.
 */
int ublkdev_update_size(struct ublkdev *dev, uint64_t size, struct ublkdev_error *err);

/*
 * Lets I/O in flight finish, takes the device away and frees @dev. If somebody has it open or
 * mounted, he gets I/O errors from now on. Bounded in time; -ETIMEDOUT: a request was never
 * completed, the program should exit (ops->close was not called).
 */
int ublkdev_stop(struct ublkdev *dev, struct ublkdev_error *err);

/*
 * All of the above for a program that does nothing else: attaches the device, calls @ready(@data,
 * its path) if that is not NULL, and serves until SIGINT or SIGTERM, or until the device is
 * deleted; then takes it away. A signal while somebody uses the device is answered with a message,
 * and it goes on serving. The signals are blocked in the calling thread meanwhile.
 */
int ublkdev_run(const struct ublkdev_ops *ops, void *data, const struct ublkdev_options *options,
		void (*ready)(void *data, const char *path), struct ublkdev_error *err);

/*
 * Messages of the library go to standard error; or, after this, to syslog under @ident, which is
 * kept and not copied.
 */
void ublkdev_log_to_syslog(const char *ident);

#ifdef __cplusplus
}
#endif

#endif
