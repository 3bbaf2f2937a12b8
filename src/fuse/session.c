/* SPDX-License-Identifier: MIT */
/*
 * session.c: the FUSE connection.
 *
 * libfuse's low-level interface decodes requests and encodes replies; it neither reads nor writes
 * here, nor has it a thread. The ring does both: a slot reads a request into its buffer, libfuse
 * calls one of the op_ functions, that starts a flat_io and returns, its completion makes libfuse
 * encode the reply, and session_writev() sends that by the ring.
 *
 *	     +--------- -EAGAIN: nothing there -----------+
 *	     v                                            |
 *	   FREE --> READING --> AT WORK --> REPLYING --> FREE
 *	                           |                      ^
 *	                           +- no reply (FORGET) --+
 *
 * Reading. A few reads are in flight all the time; the ring makes each wait for a request without
 * a thread. The descriptor does not block all the same: a request that is taken back (its sender
 * was killed) between the wait and the read would leave the thread asleep in the kernel, with
 * other requests in its hands. Each request wakes all reads that wait, so they are few: enough to
 * take in what one turn of the loop brings; more made no difference at any depth. Kernels that
 * answer such a read with EAGAIN are asked by a poll when the next one is there.
 *
 * A slot's memory, from one page boundary to the next slot's:
 *
 *	page 0: at its start small replies are put together. A request is read to its last
 *		80 bytes (fuse_in_header and fuse_write_in) and on, so that on
 *	page 1	begins the payload of a WRITE, aligned for direct I/O of the storage below. A
 *		READ goes to the same place, and is sent from there, with its fuse_out_header
 *		in the bytes before it.
 *	...	payload_max bytes of it, and FLAT_SLACK_BYTES
 *
 * Invariants:
 *  1. Every slot is on the free list, or has a ring operation in flight, or its flat_io.
 *  2. libfuse replies to a slot's request only inside fuse_session_process_buf() or in
 *     slot_complete(), and then `current` is that slot.
 *  3. A reply's memory is its slot's; the slot is free when the ring has sent it.
 *
 * All memory of ours is allocated and touched before the mount. libfuse itself allocates and frees
 * one small structure (about 200 bytes) for each request; its interface offers no way around that.
 *
 * Threads: the loop's, but for what session.h lists for the main thread, which runs before
 * session_start() or reads atomics.
 */
#define FUSE_USE_VERSION 314
#include "fuse/session.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/math.h"
#include "fuse/flat.h"
#include "ring/loop.h"

enum {
	PAGE_BYTES = 4096,
	REQUEST_HEAD_BYTES = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in),
	SMALL_REPLY_BYTES = PAGE_BYTES - REQUEST_HEAD_BYTES,
	PAYLOAD_MIN = 128 << 10,
	READS = 4,		 /* in flight at once */
	ATTR_SECONDS = 1,
};

_Static_assert(REQUEST_HEAD_BYTES == 80, "the payload of a FUSE_WRITE begins after 80 bytes");

enum { FH_OTHER = 1, FH_LOOP = 2 };

struct slot {
	struct session *session;
	struct list list;  /* free */
	struct loop_op op; /* read, then write */
	uint8_t *page;	   /* see above */
	uint64_t unique;   /* the kernel's number of the request */
	fuse_req_t req;
	struct flat_io io;
	bool reading;	   /* op is in flight, with a read */
	bool at_work;	   /* io is in flight */
	bool replying;	   /* op is, with the reply */
	const void *reply; /* for a second try */
	size_t reply_bytes;
};

struct session {
	struct session_params params;
	struct target *target;
	struct flat *flat;
	struct fuse_session *se;
	int fd;	       /* libfuse's descriptor of the connection; -1: not mounted */
	int file_slot; /* among the ring's registered files; -1: not there */
	struct loop *loop;

	struct slot *slots;
	uint8_t *mem;
	size_t slot_bytes;
	uint32_t payload_max;
	struct list free;
	unsigned used; /* slots that are not free */
	struct slot *current;

	struct loop_op poll_op, cancel_op; /* the latter for all cancellations */
	unsigned reading;		   /* reads in flight */
	bool polling;
	unsigned cancelling; /* cancellations in flight */
	bool dry;	     /* a read found nothing: poll when the others are back */
	bool quitting, ended;

	/* what the file looks like; nobody but its owner gets at it until he is let */
	mode_t mode;
	uid_t uid;
	gid_t gid;
	struct timespec atime, mtime, ctime;
	bool written; /* since mtime was last shown */

	uint64_t requests, payloads_moved;

	atomic_int loop_opener; /* process that opens the file for the loop device; 0: none */
	atomic_bool loop_released;
	atomic_uint opens;
};

/* ---- slots ---- */

static void session_check_end(struct session *s)
{
	if (!s->quitting || s->ended || s->used || s->polling || s->cancelling)
		return;
	s->ended = true;
	if (s->file_slot >= 0)
		loop_file_unregister(s->loop, s->file_slot);
	s->file_slot = -1;
	loop_on_idle(s->loop, NULL, NULL);
	log_debug("fuse: %llu requests, %llu payloads moved", (unsigned long long)s->requests,
		  (unsigned long long)s->payloads_moved);
	s->params.ended(s->params.arg);
}

static struct slot *slot_get(struct session *s)
{
	struct list *entry = list_pop(&s->free);

	if (!entry)
		return NULL;
	s->used++;
	return list_entry(entry, struct slot, list);
}

static void slot_put(struct slot *slot)
{
	struct session *s = slot->session;

	assert(!slot->at_work && !slot->replying && s->used > 0);
	/* the one used last is the next: its memory is in the cache */
	list_add(&s->free, &slot->list);
	s->used--;
}

static struct io_uring_sqe *session_sqe(struct session *s, struct loop_op *op, int *fd,
					uint8_t *flags)
{
	*fd = s->file_slot >= 0 ? s->file_slot : s->fd;
	*flags = s->file_slot >= 0 ? IOSQE_FIXED_FILE : 0;
	return loop_sqe(s->loop, op);
}

/* ---- replies ---- */

static void slot_sent(struct loop_op *op, int res, uint32_t cqe_flags)
{
	struct slot *slot = container_of(op, struct slot, op);
	struct session *s = slot->session;

	if (res == -EAGAIN || res == -EINTR) {
		ssize_t len = write(s->fd, slot->reply, slot->reply_bytes);

		res = len < 0 ? -errno : (int)len;
	}
	/* ENOENT: the one who asked was killed meanwhile. ENODEV: the connection is gone. */
	if (res < 0 && res != -ENOENT && res != -ENODEV)
		log_err("fuse: a reply was not taken: %s", strerror(-res));
	slot->replying = false;
	slot_put(slot);
}

/*
 * libfuse sends a reply. What is returned stands for the outcome, which comes later.
 *
 * Not only to the request at hand: of the interrupts that it was sent, it answers those whose
 * request it does not know (any more) when it gets the next one. These are few and go out at once.
 */
static ssize_t session_writev(int unused, struct iovec *iov, int count, void *userdata)
{
	const struct fuse_out_header *out = iov[0].iov_base;
	struct session *s = userdata;
	struct slot *slot = s->current;
	struct io_uring_sqe *sqe;
	uint8_t *start, flags;
	size_t len = 0;
	int fd;

	if (!slot || out->unique != slot->unique)
		return writev(s->fd, iov, count);
	for (int i = 0; i < count; i++)
		len += iov[i].iov_len;
	assert(!slot->replying && count > 0);
	if (count == 2 && iov[1].iov_len && iov[1].iov_base == slot->io.data) {
		start = slot->io.data - iov[0].iov_len;
		memcpy(start, iov[0].iov_base, iov[0].iov_len);
	} else {
		assert(len <= SMALL_REPLY_BYTES);
		start = slot->page;
		for (int i = 0; i < count; start += iov[i].iov_len, i++)
			memcpy(start, iov[i].iov_base, iov[i].iov_len);
		start = slot->page;
	}
	slot->replying = true;
	slot->reply = start;
	slot->reply_bytes = len;
	slot->op.complete = slot_sent;
	sqe = session_sqe(s, &slot->op, &fd, &flags);
	io_uring_prep_write(sqe, fd, start, (unsigned)len, 0);
	sqe->flags |= flags;
	loop_sqe_bind(sqe, &slot->op);
	return (ssize_t)len;
}

/* Never called: nothing here asks libfuse to read. It insists on having one. */
static ssize_t session_read(int fd, void *buf, size_t len, void *userdata)
{
	errno = ENOSYS;
	return -1;
}

/* ---- requests ---- */

static void slot_received(struct slot *slot, size_t len)
{
	struct session *s = slot->session;
	struct fuse_buf buf = {.size = len, .mem = slot->page + SMALL_REPLY_BYTES};
	const struct fuse_in_header *in = buf.mem;

	assert(!s->current);
	slot->unique = in->unique;
	s->requests++;
	s->current = slot;
	fuse_session_process_buf(s->se, &buf);
	s->current = NULL;
	if (!slot->at_work && !slot->replying)
		slot_put(slot);
	if (fuse_session_exited(s->se))
		session_quit(s);
}

static void slot_read(struct loop_op *op, int res, uint32_t cqe_flags)
{
	struct slot *slot = container_of(op, struct slot, op);
	struct session *s = slot->session;

	slot->reading = false;
	s->reading--;
	if (res > 0) {
		slot_received(slot, (size_t)res);
	} else {
		slot_put(slot);
		/* ENOENT: the request was interrupted while it was read. */
		if (res == -EAGAIN)
			s->dry = true;
		else if (res != -ENOENT && res != -EINTR)
			session_quit(s);
		if (res < 0 && res != -EAGAIN && res != -ENOENT && res != -EINTR &&
		    res != -ENODEV && res != -ECANCELED)
			log_err("fuse: the connection cannot be read: %s", strerror(-res));
	}
}

static void session_polled(struct loop_op *op, int res, uint32_t cqe_flags)
{
	struct session *s = container_of(op, struct session, poll_op);

	s->polling = false;
	if (res < 0 && res != -ECANCELED) {
		log_err("fuse: the connection cannot be polled: %s", strerror(-res));
		session_quit(s);
	}
}

static void session_poll(struct session *s)
{
	struct io_uring_sqe *sqe;
	uint8_t flags;
	int fd;

	s->dry = false;
	s->polling = true;
	s->poll_op.complete = session_polled;
	sqe = session_sqe(s, &s->poll_op, &fd, &flags);
	io_uring_prep_poll_add(sqe, fd, POLLIN);
	sqe->flags |= flags;
	loop_sqe_bind(sqe, &s->poll_op);
}

/* Once in a turn of the loop, before it waits. */
static void session_fetch(void *arg)
{
	struct session *s = arg;
	struct io_uring_sqe *sqe;
	struct slot *slot;
	uint8_t flags;
	int fd;

	if (s->quitting) {
		session_check_end(s);
		return;
	}
	if (s->polling)
		return;
	if (s->dry) {
		if (!s->reading)
			session_poll(s);
		return;
	}
	while (s->reading < READS && (slot = slot_get(s))) {
		slot->op.complete = slot_read;
		sqe = session_sqe(s, &slot->op, &fd, &flags);
		io_uring_prep_read(sqe, fd, slot->page + SMALL_REPLY_BYTES,
				   REQUEST_HEAD_BYTES + s->payload_max, 0);
		sqe->flags |= flags;
		loop_sqe_bind(sqe, &slot->op);
		slot->reading = true;
		s->reading++;
	}
}

static void op_cancelled(struct loop_op *op, int res, uint32_t cqe_flags)
{
	struct session *s = container_of(op, struct session, cancel_op);

	s->cancelling--;
}

static void op_cancel(struct session *s, struct loop_op *op)
{
	struct io_uring_sqe *sqe = loop_sqe(s->loop, &s->cancel_op);

	io_uring_prep_cancel(sqe, op, 0);
	loop_sqe_bind(sqe, &s->cancel_op);
	s->cancelling++;
}

void session_quit(struct session *s)
{
	if (s->quitting)
		return;
	s->quitting = true;
	s->cancel_op.complete = op_cancelled;
	if (s->polling)
		op_cancel(s, &s->poll_op);
	for (unsigned i = 0; i < s->params.depth && s->reading; i++)
		if (s->slots[i].reading)
			op_cancel(s, &s->slots[i].op);
}

/* ---- data ---- */

static void slot_reply(struct slot *slot, int ret)
{
	const struct flat_io *io = &slot->io;

	if (ret)
		fuse_reply_err(slot->req, -ret);
	else if (io->op == FLAT_READ)
		fuse_reply_buf(slot->req, (char *)io->data, io->len_bytes);
	else if (io->op == FLAT_WRITE)
		fuse_reply_write(slot->req, io->len_bytes);
	else
		fuse_reply_err(slot->req, 0);
}

static void slot_complete(struct flat_io *io, int ret)
{
	struct slot *slot = container_of(io, struct slot, io);
	struct session *s = slot->session;
	struct slot *outer = s->current;

	assert(slot->at_work);
	slot->at_work = false;
	s->current = slot;
	slot_reply(slot, ret);
	s->current = outer;
	assert(slot->replying);
}

static void slot_work(fuse_req_t req, enum flat_op op, uint64_t offset_bytes, uint64_t len_bytes,
		      bool durable)
{
	struct session *s = fuse_req_userdata(req);
	struct slot *slot = s->current;

	slot->req = req;
	slot->io.op = op;
	slot->io.durable = durable;
	slot->io.offset_bytes = offset_bytes;
	slot->io.len_bytes = len_bytes;
	slot->at_work = true;
	flat_submit(s->flat, &slot->io);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);

	if (size > s->payload_max || off < 0)
		fuse_reply_err(req, EINVAL);
	else
		slot_work(req, FLAT_READ, (uint64_t)off, size, false);
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
		     struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);
	uint8_t *mem = s->current->io.mem;

	if (size > s->payload_max || off < 0) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	if ((const uint8_t *)buf != mem) {
		/* a header of another size, as kernels of before 2008 have; right, but slow */
		memmove(mem, buf, size);
		s->payloads_moved++;
	}
	s->written = true;
	slot_work(req, FLAT_WRITE, (uint64_t)off, size, fi->flags & O_DSYNC);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	slot_work(req, FLAT_FLUSH, 0, 0, false);
}

static void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	slot_work(req, FLAT_FLUSH, 0, 0, false);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
			 struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);
	uint64_t size_bytes = flat_size(s->flat);
	enum flat_op op;

	if (off < 0 || len <= 0) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	if (mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))
		op = FLAT_PUNCH;
	else if ((mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE)
		op = FLAT_ZERO;
	else {
		fuse_reply_err(req, EOPNOTSUPP);
		return;
	}
	if (!(mode & FALLOC_FL_KEEP_SIZE) &&
	    ((uint64_t)off > size_bytes || (uint64_t)len > size_bytes - (uint64_t)off)) {
		fuse_reply_err(req, EFBIG);
		return;
	}
	s->written = true;
	slot_work(req, op, (uint64_t)off, (uint64_t)len, false);
}

/* ---- the file itself ---- */

static struct timespec now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts;
}

static void reply_attr(struct session *s, fuse_req_t req)
{
	struct stat st = {
		.st_ino = FUSE_ROOT_ID,
		.st_mode = S_IFREG | s->mode,
		.st_nlink = 1,
		.st_uid = s->uid,
		.st_gid = s->gid,
		.st_size = (off_t)flat_size(s->flat),
		.st_blocks = (blkcnt_t)(flat_size(s->flat) / 512),
		.st_blksize = 64 << 10,
	};

	if (s->written)
		s->mtime = s->ctime = now();
	s->written = false;
	st.st_atim = s->atime;
	st.st_mtim = s->mtime;
	st.st_ctim = s->ctime;
	fuse_reply_attr(req, &st, ATTR_SECONDS);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	reply_attr(fuse_req_userdata(req), req);
}

/*
 * The size is the device's; others are refused. So is O_TRUNC, which is size 0: a block device
 * would ignore it, but what is copied to a file is written with the holes left out (cp does), in
 * the belief that after O_TRUNC they read as zeros.
 */
static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
		       struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);

	if ((to_set & FUSE_SET_ATTR_SIZE) && (uint64_t)attr->st_size != flat_size(s->flat)) {
		fuse_reply_err(req, EPERM);
		return;
	}
	if (to_set & FUSE_SET_ATTR_MODE)
		s->mode = attr->st_mode & 0777;
	if (to_set & FUSE_SET_ATTR_UID)
		s->uid = attr->st_uid;
	if (to_set & FUSE_SET_ATTR_GID)
		s->gid = attr->st_gid;
	s->ctime = now();
	if (to_set & FUSE_SET_ATTR_ATIME)
		s->atime = to_set & FUSE_SET_ATTR_ATIME_NOW ? s->ctime : attr->st_atim;
	if (to_set & FUSE_SET_ATTR_MTIME) {
		s->mtime = to_set & FUSE_SET_ATTR_MTIME_NOW ? s->ctime : attr->st_mtim;
		s->written = false;
	}
	reply_attr(s, req);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);
	int opener = fuse_req_ctx(req)->pid;
	bool loop = opener > 0 && atomic_compare_exchange_strong(&s->loop_opener, &opener, 0);

	/* The page cache of the file would be a second one below that of the loop device. */
	fi->direct_io = 1;
	fi->fh = loop ? FH_LOOP : FH_OTHER;
	if (!loop)
		atomic_fetch_add(&s->opens, 1);
	fuse_reply_open(req, fi);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct session *s = fuse_req_userdata(req);

	if (fi->fh == FH_LOOP) {
		atomic_store(&s->loop_released, true);
		s->params.loop_gone(s->params.arg);
	} else {
		atomic_fetch_sub(&s->opens, 1);
	}
	fuse_reply_err(req, 0);
}

/*
 * The loop driver takes f_bsize for the granularity of discards. No blocks at all: df does not
 * list it, it is not a file system to put files in.
 */
static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct session *s = fuse_req_userdata(req);
	const struct target_limits *limits = &s->target->limits;
	struct statvfs st = {
		.f_bsize = max_of(limits->discard_granularity, limits->logical_block_bytes),
		.f_frsize = limits->logical_block_bytes,
		.f_namemax = 255,
	};

	fuse_reply_statfs(req, &st);
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	struct session *s = userdata;

	conn->want = conn->capable & (FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO);
	conn->max_write = s->payload_max;
	conn->max_background = s->params.depth;
	conn->congestion_threshold = s->params.depth;
	s->params.ready(s->params.arg);
}

static const struct fuse_lowlevel_ops session_ops = {
	.init = op_init,
	.getattr = op_getattr,
	.setattr = op_setattr,
	.open = op_open,
	.release = op_release,
	.read = op_read,
	.write = op_write,
	.flush = op_flush,
	.fsync = op_fsync,
	.fallocate = op_fallocate,
	.statfs = op_statfs,
};

/* ---- life ---- */

__attribute__((format(printf, 2, 0))) static void fuse_logged(enum fuse_log_level level,
							      const char *fmt, va_list ap)
{
	char text[256];
	size_t len;

	vsnprintf(text, sizeof(text), fmt, ap);
	len = strlen(text);
	if (len && text[len - 1] == '\n')
		text[len - 1] = '\0';
	log_warn("%s", text);
}

static int slots_create(struct session *s, struct error *err)
{
	unsigned depth = s->params.depth;
	int ret;

	s->payload_max = (uint32_t)align_down(SESSION_MEMORY_BYTES / depth, PAYLOAD_MIN);
	s->payload_max =
		min_of(max_of(s->payload_max, (uint32_t)PAYLOAD_MIN), SESSION_PAYLOAD_MAX);
	s->slot_bytes = PAGE_BYTES + s->payload_max + FLAT_SLACK_BYTES;
	ret = flat_create(&s->flat, s->target, depth, s->payload_max, err);
	if (ret)
		return ret;
	s->mem = mmap(NULL, depth * s->slot_bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (s->mem == MAP_FAILED)
		s->mem = NULL;
	else /* a child has no use for it, and must not make the kernel copy what is in flight */
		madvise(s->mem, depth * s->slot_bytes, MADV_DONTFORK);
	s->slots = calloc(depth, sizeof(*s->slots));
	if (!s->mem || !s->slots)
		return error_set(err, -ENOMEM, "out of memory for %u requests", depth);
	for (unsigned i = 0; i < depth; i++) {
		struct slot *slot = &s->slots[i];

		slot->session = s;
		slot->page = s->mem + i * s->slot_bytes;
		slot->io.mem = slot->page + PAGE_BYTES;
		slot->io.complete = slot_complete;
		flat_io_init(s->flat, &slot->io, i);
		list_add_tail(&s->free, &slot->list);
	}
	return 0;
}

static int libfuse_create(struct session *s, struct error *err)
{
	char opts[128];
	char *argv[] = {"ublk-qcow2", "-o", opts, NULL};
	struct fuse_args args = FUSE_ARGS_INIT(3, argv);

	snprintf(opts, sizeof(opts), "fsname=ublk-qcow2,default_permissions%s%s",
		 s->params.allow_other ? ",allow_other" : "",
		 s->target->limits.read_only ? ",ro" : "");
	fuse_set_log_func(fuse_logged);
	s->se = fuse_session_new(&args, &session_ops, sizeof(session_ops), s);
	fuse_opt_free_args(&args);
	return s->se ? 0 : error_set(err, -ENOMEM, "libfuse cannot be set up");
}

uint32_t session_payload_max(const struct session *s)
{
	return s->payload_max;
}

int session_create(struct session **out, const struct session_params *params, struct error *err)
{
	struct session *s = calloc(1, sizeof(*s));
	int ret;

	if (!s)
		return error_set(err, -ENOMEM, "out of memory");
	assert(params->depth > 0);
	s->params = *params;
	s->target = params->target;
	s->fd = s->file_slot = -1;
	s->mode = s->target->limits.read_only ? 0400 : 0600;
	s->uid = geteuid();
	s->gid = getegid();
	s->atime = s->mtime = s->ctime = now();
	list_init(&s->free);
	ret = slots_create(s, err);
	if (ret == 0)
		ret = libfuse_create(s, err);
	if (ret) {
		session_destroy(s);
		return ret;
	}
	*out = s;
	return 0;
}

/*
 * libfuse frees the mount point's name only where it unmounts. Of a connection that is gone it sees
 * that there is nothing to unmount; for another one, cut off from its users, it would look at the
 * path again, which is not ours any more. Then the name is lost.
 */
static void libfuse_destroy(struct session *s)
{
	struct pollfd pfd = {.fd = s->fd};

	if (s->fd >= 0 && poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLERR))
		fuse_session_unmount(s->se);
	fuse_session_destroy(s->se); /* closes the descriptor, if that is still to be done */
}

void session_destroy(struct session *s)
{
	if (!s)
		return;
	assert(!s->loop || s->ended);
	if (s->se)
		libfuse_destroy(s);
	if (s->mem)
		munmap(s->mem, s->params.depth * s->slot_bytes);
	free(s->slots);
	flat_destroy(s->flat);
	free(s);
}

void session_break(struct session *s)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (s->file_slot >= 0)
		loop_file_unregister(s->loop, s->file_slot);
	s->file_slot = -1;
	/* libfuse keeps the number; what it stood for is closed */
	if (null >= 0 && s->fd >= 0)
		dup3(null, s->fd, O_CLOEXEC);
	if (null >= 0)
		close(null);
	s->quitting = s->ended = true;
}

int session_mount(struct session *s, const char *path, struct error *err)
{
	static const struct fuse_custom_io io = {.writev = session_writev, .read = session_read};
	int fd, flags;

	if (fuse_session_mount(s->se, path))
		return error_set(err, -EIO, "%s cannot be mounted on", path);
	fd = fuse_session_fd(s->se);
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return error_set(err, -errno, "/dev/fuse: %s", strerror(errno));
	if (fuse_session_custom_io(s->se, &io, fd))
		return error_set(err, -ENOMEM, "out of memory");
	s->fd = fd;
	return 0;
}

void session_expect_loop(struct session *s, pid_t opener)
{
	atomic_store(&s->loop_opener, opener);
}

bool session_loop_gone(const struct session *s)
{
	return atomic_load(&s->loop_released);
}

unsigned session_opens(const struct session *s)
{
	return atomic_load(&s->opens);
}

unsigned session_coroutines(const struct session *s)
{
	return FLAT_COROUTINES;
}

unsigned session_sq_entries(const struct session *s)
{
	return s->params.depth + 2; /* each slot's, the poll, and its removal */
}

void session_retry(struct session *s)
{
	flat_retry(s->flat);
}

void session_start(struct session *s, struct loop *loop)
{
	assert(s->fd >= 0 && !s->loop);
	s->loop = loop;
	flat_attach(s->flat, loop, s->params.hold);
	s->file_slot = loop_file_register(loop, s->fd);
	if (s->file_slot < 0)
		s->file_slot = -1;
	loop_on_idle(loop, session_fetch, s);
}
