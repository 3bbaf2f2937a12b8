/* SPDX-License-Identifier: MIT */
/*
 * file.c: an image in a regular file or on a block device, by io_uring.
 *
 * The file is opened once. All I/O, from any loop, and QEMU's locks use that one open file
 * description: while a request is in flight, even one of a process that was killed, the locks hold.
 * A loop that is attached has the descriptor in its ring's table of registered files; one that is
 * not uses the plain descriptor. Outside of a loop with a ring the same steps are made by system
 * calls.
 *
 * A file in memory (tmpfs) is never waited for, but io_uring hands its requests to a kernel thread all the
 * same, one by one, with a wake-up for each. Small ones are therefore made by system calls there, and
 * complete before file_submit() returns; large ones copy for long enough to be worth a thread.
 *
 * A request is a sequence of steps, each one submission: file_step() judges what a step did and
 * says whether there is another one. A read that meets the end of the file fills the rest with
 * zeros; if its payload is a registered buffer, which may be memory that this process cannot see,
 * they are read from /dev/zero. So is all of a request to fill one.
 *
 * Threads: size_bytes may be raised by several queues at once and is a compare-and-swap; the table
 * of loops is changed under a mutex, and read without one by the loop that an entry belongs to.
 */
#include "storage/storage.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <liburing.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/math.h"
#include "ring/restrict.h"
#include "storage/lock.h"

enum {
	FILE_LOOPS_MAX = 64,
	BLOCK_MIN = 512,
	BLOCK_MAX = 4096,
	STEP_BYTES_MAX = 1 << 30, /* a submission's length is 32 bits wide, a result 31 */
	INLINE_BYTES_MAX = 65536, /* of a request that is made by system calls on a file in memory */
	RETRIES_MAX = 64,	  /* of EAGAIN, EINTR and steps that did nothing, in a row */
};

/* storage_io.impl.aux */
enum {
	AUX_RETRIES,
	AUX_SEGMENT, /* index in iov of the segment that is next */
};
#define AUX_FILLING (1ULL << 32) /* in AUX_RETRIES: the rest is read from /dev/zero */

struct file_loop {
	_Atomic(struct loop *) loop; /* NULL: the entry is free */
	int slot;		     /* in the registered table; -1: the plain descriptor */
	bool can_truncate;	     /* the ring has it: RING_OP_FTRUNCATE */
	unsigned in_flight;
};

struct file {
	struct storage st;
	int fd;
	int zero_fd; /* /dev/zero; -1: there is none */
	char *name;
	struct image_lock lock;
	pthread_mutex_t attach_lock;
	struct file_loop loops[FILE_LOOPS_MAX];
};

static struct file *to_file(struct storage *st)
{
	return container_of(st, struct file, st);
}

static struct file_loop *file_loop_find(struct file *f, struct loop *loop)
{
	for (unsigned i = 0; i < FILE_LOOPS_MAX; i++)
		if (atomic_load_explicit(&f->loops[i].loop, memory_order_relaxed) == loop)
			return &f->loops[i];
	return NULL;
}

/* ---- what a step did ---- */

static void size_raise(struct file *f, uint64_t end_bytes)
{
	uint64_t size = atomic_load_explicit(&f->st.size_bytes, memory_order_relaxed);

	while (size < end_bytes && !f->st.fixed_size &&
	       !atomic_compare_exchange_weak(&f->st.size_bytes, &size, end_bytes))
		;
}

/* Takes @n bytes off the front of the payload. */
static void payload_advance(struct storage_io *io, uint64_t n)
{
	io->impl.done_bytes += n;
	if (!io->iovcnt)
		return;
	while (n) {
		struct iovec *v = &io->iov[io->impl.aux[AUX_SEGMENT]];
		uint64_t here = min_of((uint64_t)v->iov_len, n);

		v->iov_base = (char *)v->iov_base + here;
		v->iov_len -= here;
		n -= here;
		if (!v->iov_len)
			io->impl.aux[AUX_SEGMENT]++;
	}
}

static void payload_zero_rest(struct storage_io *io)
{
	if (io->iovcnt) {
		for (uint64_t i = io->impl.aux[AUX_SEGMENT]; i < io->iovcnt; i++)
			memset(io->iov[i].iov_base, 0, io->iov[i].iov_len);
	} else {
		memset((char *)io->buf.base + io->impl.done_bytes, 0,
		       io->len_bytes - io->impl.done_bytes);
	}
	io->impl.done_bytes = io->len_bytes;
}

static bool payload_is_fixed(const struct storage_io *io)
{
	return !io->iovcnt && !io->buf.base;
}

/* The file's end is reached: what is left of a read is zeros. True: they are there. */
static bool read_past_end(struct file *f, struct storage_io *io, int *ret)
{
	*ret = 0;
	if (!payload_is_fixed(io)) {
		payload_zero_rest(io);
		return true;
	}
	if (io->impl.aux[AUX_RETRIES] & AUX_FILLING || f->zero_fd < 0) {
		*ret = -EIO;
		return true;
	}
	io->impl.aux[AUX_RETRIES] = AUX_FILLING;
	return false;
}

/* Judges a transfer of @res bytes; true: the request is done, with *@ret. */
static bool transfer_step(struct file *f, struct storage_io *io, uint64_t res, int *ret)
{
	uint64_t left = io->len_bytes - io->impl.done_bytes, whole;

	*ret = 0;
	if (res > left) {
		*ret = -EIO;
		return true;
	}
	if (res == left) {
		io->impl.done_bytes = io->len_bytes;
		return true;
	}
	/* What ends inside a block was cut there by the end of the file, or (a write) by space. */
	whole = align_down(res, f->st.block_bytes);
	if (io->impl.aux[AUX_RETRIES] & AUX_FILLING && res) {
		payload_advance(io, res);
		return false;
	}
	if (io->op == STORAGE_READ) {
		payload_advance(io, res);
		if (!res || whole != res)
			return read_past_end(f, io, ret);
	} else {
		payload_advance(io, whole);
	}
	if (whole)
		io->impl.aux[AUX_RETRIES] &= AUX_FILLING;
	else if ((++io->impl.aux[AUX_RETRIES] & ~AUX_FILLING) > RETRIES_MAX)
		*ret = -EIO;
	return *ret != 0;
}

/* The errors of a device that is gone all read the same; the rest is handed on. */
static int error_normalize(const struct storage_io *io, int ret)
{
	switch (ret) {
	case -ENODEV:
	case -ENXIO:
	case -ESHUTDOWN:
	case -EAGAIN:
	case -EINTR:
		return -EIO;
	case -ENOSYS:
	case -ENOTTY:
		return io->op == STORAGE_PUNCH || io->op == STORAGE_ZERO ? -EOPNOTSUPP : -EIO;
	default:
		return ret;
	}
}

/* Judges a step's result; true: the request is done, with *@ret. */
static bool file_step(struct file *f, struct storage_io *io, int64_t res, int *ret)
{
	if ((res == -EAGAIN || res == -EINTR) &&
	    (++io->impl.aux[AUX_RETRIES] & ~AUX_FILLING) <= RETRIES_MAX)
		return false;
	if (res < 0) {
		*ret = error_normalize(io, (int)res);
		return true;
	}
	if (io->op == STORAGE_READ || io->op == STORAGE_WRITE)
		return transfer_step(f, io, (uint64_t)res, ret);
	*ret = 0;
	return true;
}

/* Brings size_bytes up to date once the request is done. */
static void file_account(struct file *f, const struct storage_io *io, int ret)
{
	struct stat s;

	switch (io->op) {
	case STORAGE_WRITE:
	case STORAGE_ZERO:
		if (!ret)
			size_raise(f, io->offset_bytes + io->len_bytes);
		else if (!f->st.fixed_size && !fstat(f->fd, &s)) /* some of it may have been done */
			size_raise(f, (uint64_t)s.st_size);
		break;
	case STORAGE_TRUNCATE:
		if (!ret)
			atomic_store(&f->st.size_bytes, io->offset_bytes);
		break;
	default:
		break;
	}
}

/* ---- steps by system calls ---- */

static int fallocate_mode(const struct file *f, const struct storage_io *io)
{
	if (io->op == STORAGE_PUNCH)
		return FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	/* A device has no length to keep. */
	return FALLOC_FL_ZERO_RANGE | (f->st.fixed_size ? FALLOC_FL_KEEP_SIZE : 0);
}

static int64_t file_transfer_sync(struct file *f, struct storage_io *io)
{
	off_t offset = (off_t)(io->offset_bytes + io->impl.done_bytes);
	struct iovec one, *iov = &one;
	int count = 1;

	if (io->iovcnt) {
		iov = &io->iov[io->impl.aux[AUX_SEGMENT]];
		count = (int)min_of(io->iovcnt - io->impl.aux[AUX_SEGMENT], (uint64_t)IOV_MAX);
	} else {
		one.iov_base = (char *)io->buf.base + io->impl.done_bytes;
		one.iov_len = min_of(io->len_bytes - io->impl.done_bytes, (uint64_t)STEP_BYTES_MAX);
		/* The kernel need not fetch a vector of one. */
		if (io->op == STORAGE_READ)
			return pread(f->fd, one.iov_base, one.iov_len, offset);
		if (!(io->flags & STORAGE_DSYNC))
			return pwrite(f->fd, one.iov_base, one.iov_len, offset);
	}
	if (io->op == STORAGE_READ)
		return preadv(f->fd, iov, count, offset);
	return pwritev2(f->fd, iov, count, offset, io->flags & STORAGE_DSYNC ? RWF_DSYNC : 0);
}

static int64_t file_call(struct file *f, struct storage_io *io)
{
	int64_t ret = -1;

	switch (io->op) {
	case STORAGE_READ:
	case STORAGE_WRITE:
		ret = file_transfer_sync(f, io);
		break;
	case STORAGE_SYNC:
		ret = fdatasync(f->fd);
		break;
	case STORAGE_PUNCH:
	case STORAGE_ZERO:
		ret = fallocate(f->fd, fallocate_mode(f, io), (off_t)io->offset_bytes,
				(off_t)io->len_bytes);
		break;
	case STORAGE_TRUNCATE:
		ret = ftruncate(f->fd, (off_t)io->offset_bytes);
		break;
	}
	return ret < 0 ? -errno : ret;
}

static void file_run_sync(struct file *f, struct storage_io *io)
{
	int ret;

	assert(!((io->op == STORAGE_READ || io->op == STORAGE_WRITE) && payload_is_fixed(io)));
	while (!file_step(f, io, file_call(f, io), &ret))
		;
	file_account(f, io, ret);
	io->complete(io, ret);
}

/* ---- steps by the ring ---- */

/* The entry comes zeroed: only what differs is set. */
static void prep(struct io_uring_sqe *sqe, uint8_t opcode, uint64_t offset, const void *addr,
		 uint64_t len)
{
	sqe->opcode = opcode;
	sqe->off = offset;
	sqe->addr = (uintptr_t)addr;
	sqe->len = (uint32_t)len;
}

static void prep_transfer(struct storage_io *io, struct io_uring_sqe *sqe)
{
	uint64_t done = io->impl.done_bytes, offset = io->offset_bytes + done;
	uint64_t len = min_of(io->len_bytes - done, (uint64_t)STEP_BYTES_MAX);
	bool read = io->op == STORAGE_READ;

	if (io->iovcnt > 1) {
		uint64_t at = io->impl.aux[AUX_SEGMENT];

		prep(sqe, read ? IORING_OP_READV : IORING_OP_WRITEV, offset, &io->iov[at],
		     min_of(io->iovcnt - at, (uint64_t)IOV_MAX));
	} else if (io->iovcnt) {
		prep(sqe, read ? IORING_OP_READ : IORING_OP_WRITE, offset, io->iov[0].iov_base,
		     len);
	} else if (io->buf.base) {
		prep(sqe, read ? IORING_OP_READ : IORING_OP_WRITE, offset,
		     (char *)io->buf.base + done, len);
	} else {
		/* The address is an offset in the buffer. */
		prep(sqe, read ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED, offset,
		     (void *)(uintptr_t)(io->buf.fixed_offset + done), len);
		sqe->buf_index = (uint16_t)io->buf.fixed_index;
	}
	if (io->flags & STORAGE_DSYNC && !read)
		sqe->rw_flags = RWF_DSYNC;
}

static void file_issue(struct file *f, struct storage_io *io)
{
	const struct file_loop *fl = io->impl.attached;
	struct io_uring_sqe *sqe = loop_sqe(io->impl.loop, &io->impl.op);

	if (fl && fl->slot >= 0) {
		sqe->fd = fl->slot;
		sqe->flags = IOSQE_FIXED_FILE;
	} else {
		sqe->fd = f->fd;
	}
	switch (io->op) {
	case STORAGE_READ:
	case STORAGE_WRITE:
		prep_transfer(io, sqe);
		if (io->impl.aux[AUX_RETRIES] & AUX_FILLING) {
			sqe->fd = f->zero_fd;
			sqe->flags = 0;
		}
		break;
	case STORAGE_SYNC:
		sqe->opcode = IORING_OP_FSYNC;
		sqe->fsync_flags = IORING_FSYNC_DATASYNC;
		break;
	case STORAGE_PUNCH:
	case STORAGE_ZERO:
		/* Not a mistake: the length travels in addr, the mode in len. */
		prep(sqe, IORING_OP_FALLOCATE, io->offset_bytes, NULL,
		     (uint64_t)fallocate_mode(f, io));
		sqe->addr = io->len_bytes;
		break;
	case STORAGE_TRUNCATE:
		prep(sqe, RING_OP_FTRUNCATE, io->offset_bytes, NULL, 0);
		break;
	}
}

static void file_complete(struct loop_op *op, int res, uint32_t cqe_flags)
{
	struct storage_io *io = container_of(op, struct storage_io, impl.op);
	struct file *f = to_file(io->impl.storage);
	struct file_loop *fl = io->impl.attached;
	int ret;

	if (__builtin_expect(io->op == STORAGE_READ && res > 0 && (uint64_t)res == io->len_bytes,
			     1)) {
		ret = 0; /* all of it in one step */
	} else if (!file_step(f, io, res, &ret)) {
		file_issue(f, io);
		return;
	} else {
		file_account(f, io, ret);
	}
	if (fl)
		fl->in_flight--;
	io->complete(io, ret);
}

/* Whether a system call is over sooner than a submission is made. */
static bool better_called(const struct file *f, const struct storage_io *io)
{
	switch (io->op) {
	case STORAGE_READ:
	case STORAGE_WRITE:
		return f->st.in_memory && io->len_bytes <= INLINE_BYTES_MAX && !payload_is_fixed(io);
	case STORAGE_SYNC:
		return f->st.in_memory;
	default:
		return false;
	}
}

static void file_submit(struct storage *st, struct storage_io *io)
{
	struct file *f = to_file(st);
	struct loop *loop = loop_self();
	struct file_loop *fl;

	io->impl.storage = st;
	io->impl.loop = loop;
	io->impl.op.complete = file_complete;
	io->impl.done_bytes = 0;
	io->impl.aux[AUX_RETRIES] = 0;
	io->impl.aux[AUX_SEGMENT] = 0;
	if (io->op == STORAGE_TRUNCATE && st->fixed_size) {
		io->complete(io, -EOPNOTSUPP);
		return;
	}
	if (better_called(f, io)) {
		file_run_sync(f, io);
		return;
	}
	fl = loop ? file_loop_find(f, loop) : NULL; /* implies a ring */
	if ((!fl && !(loop && loop_ring(loop))) ||
	    (io->op == STORAGE_TRUNCATE && !(fl && fl->can_truncate))) {
		file_run_sync(f, io);
		return;
	}
	if (io->flags & STORAGE_FILL) {
		assert(io->op == STORAGE_READ && payload_is_fixed(io));
		io->impl.aux[AUX_RETRIES] = AUX_FILLING;
		if (f->zero_fd < 0) {
			io->complete(io, -EIO);
			return;
		}
	}
	io->impl.attached = fl;
	if (fl)
		fl->in_flight++;
	file_issue(f, io);
}

/* ---- loops ---- */

static bool ring_has_truncate(struct loop *loop)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(loop_ring(loop));
	bool has = probe && probe->last_op >= RING_OP_FTRUNCATE &&
		   probe->ops[RING_OP_FTRUNCATE].flags & IO_URING_OP_SUPPORTED;

	io_uring_free_probe(probe);
	return has;
}

static int file_attach(struct storage *st, struct loop *loop, struct error *err)
{
	struct file *f = to_file(st);
	struct file_loop *fl;
	int ret = 0;

	if (!loop_ring(loop))
		return 0;
	pthread_mutex_lock(&f->attach_lock);
	assert(!file_loop_find(f, loop));
	fl = file_loop_find(f, NULL);
	if (fl) {
		fl->slot = loop_file_register(loop, f->fd);
		fl->can_truncate = ring_has_truncate(loop);
		fl->in_flight = 0;
		atomic_store(&fl->loop, loop);
	} else {
		ret = error_set(err, -ENFILE, "%s: more than %d queues", st->name, FILE_LOOPS_MAX);
	}
	pthread_mutex_unlock(&f->attach_lock);
	return ret;
}

static void file_detach(struct storage *st, struct loop *loop)
{
	struct file *f = to_file(st);
	struct file_loop *fl;

	if (!loop_ring(loop))
		return;
	pthread_mutex_lock(&f->attach_lock);
	fl = file_loop_find(f, loop);
	if (fl) {
		assert(!fl->in_flight);
		if (fl->slot >= 0)
			loop_file_unregister(loop, fl->slot);
		atomic_store(&fl->loop, NULL);
	}
	pthread_mutex_unlock(&f->attach_lock);
}

/* ---- locks ---- */

static int file_lock(struct storage *st, unsigned perms, unsigned shared, struct error *err)
{
	struct file *f = to_file(st);

	return image_lock_set(&f->lock, f->fd, st->name, perms, shared, err);
}

static int file_claim(struct storage *st, unsigned timeout_ms, struct error *err)
{
	struct file *f = to_file(st);
	struct stat s;
	int ret;

	if (st->read_only)
		return 0;
	ret = image_lock_claim(f->fd, st->name, timeout_ms, err);
	/* What was waited for may have made the file longer. */
	if (!ret && !st->fixed_size && !fstat(f->fd, &s))
		atomic_store(&st->size_bytes, (uint64_t)s.st_size);
	return ret;
}

/* ---- the mark ---- */

#define MARK_NAME "user.ublk-qcow2.in-use"

static int file_mark_get(struct storage *st)
{
	struct file *f = to_file(st);

	if (st->fixed_size)
		return -EOPNOTSUPP; /* a device's node is no place for one */
	if (fgetxattr(f->fd, MARK_NAME, NULL, 0) >= 0)
		return 1;
	return errno == ENODATA ? 0 : -EOPNOTSUPP;
}

static int file_mark_set(struct storage *st, bool set)
{
	struct file *f = to_file(st);
	int ret;

	if (st->fixed_size)
		return -EOPNOTSUPP;
	ret = set ? fsetxattr(f->fd, MARK_NAME, "", 0, 0) : fremovexattr(f->fd, MARK_NAME);
	return ret && errno != ENODATA ? -EOPNOTSUPP : 0;
}

/* ---- opening ---- */

/*
 * A registered file or a ring that is being torn down may keep the open file description for a
 * while, so the locks are dropped by hand. Nothing is in flight here.
 */
static void file_close(struct storage *st)
{
	struct file *f = to_file(st);

	if (f->fd >= 0) {
		image_lock_drop(&f->lock, f->fd);
		close(f->fd);
	}
	if (f->zero_fd >= 0)
		close(f->zero_fd);
	pthread_mutex_destroy(&f->attach_lock);
	free(f->name);
	free(f);
}

static void file_look(struct storage *st)
{
	struct file *f = container_of(st, struct file, st);
	uint64_t size;

	if (st->fixed_size && !ioctl(f->fd, BLKGETSIZE64, &size) && size > atomic_load(&st->size_bytes))
		atomic_store(&st->size_bytes, size);
}

static const struct storage_ops file_ops = {
	.submit = file_submit,
	.attach = file_attach,
	.detach = file_detach,
	.lock = file_lock,
	.look = file_look,
	.claim = file_claim,
	.mark_get = file_mark_get,
	.mark_set = file_mark_set,
	.close = file_close,
};

int storage_file_settle(int fd, const char *name, unsigned timeout_ms, int *sync_ret,
			struct error *err)
{
	int ret = image_lock_wait_claims(fd, name, timeout_ms, err);

	if (ret)
		return ret;
	*sync_ret = fdatasync(fd) ? -errno : 0;
	return 0;
}

int storage_file_fd(const struct storage *st)
{
	assert(st->ops == &file_ops);
	return container_of(st, const struct file, st)->fd;
}

static const char *refused_kind(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
	case S_IFBLK:
		return NULL;
	case S_IFDIR:
		return "a directory";
	case S_IFIFO:
		return "a FIFO";
	case S_IFSOCK:
		return "a socket";
	case S_IFCHR:
		return "a character device";
	default:
		return "neither a file nor a block device";
	}
}

static int refuse_kind(const char *name, mode_t mode, struct error *err)
{
	const char *kind = refused_kind(mode);

	if (!kind)
		return 0;
	return error_set(err, S_ISDIR(mode) ? -EISDIR : -EINVAL, "%s: is %s", name, kind);
}

/* One line of a disk's queue directory in sysfs, as a number; @fallback where there is none. */
static uint64_t queue_attribute(dev_t dev, const char *attribute, uint64_t fallback)
{
	/* A partition has no queue of its own. */
	static const char *const dirs[] = {"queue", "../queue"};
	uint64_t value = fallback;

	for (size_t i = 0; i < ARRAY_LEN(dirs); i++) {
		char path[128];
		FILE *file;

		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s/%s", major(dev), minor(dev),
			 dirs[i], attribute);
		file = fopen(path, "re");
		if (!file)
			continue;
		if (fscanf(file, "%" SCNu64, &value) != 1)
			value = fallback;
		fclose(file);
		break;
	}
	return value;
}

/*
 * The alignment that direct I/O on a regular file asks for; 0: it cannot be had. @s is the file's.
 * Kernels before 6.1 do not tell: then it is the block size of the disk below, or what a page asks
 * for.
 */
static uint64_t direct_align_file(int fd, const struct stat *s)
{
#ifdef STATX_DIOALIGN
	struct statx x;

	if (!statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) && (x.stx_mask & STATX_DIOALIGN))
		return x.stx_dio_mem_align > BLOCK_MIN ? 0 : x.stx_dio_offset_align;
#endif
	return queue_attribute(s->st_dev, "logical_block_size", BLOCK_MAX);
}

static uint64_t direct_align_device(int fd)
{
	int bytes;

	return ioctl(fd, BLKSSZGET, &bytes) || bytes <= 0 ? 0 : (uint64_t)bytes;
}

/* Sets direct and block_bytes. Without direct I/O the page cache takes any alignment. */
static void choose_direct(struct file *f, const struct stat *s, bool wanted)
{
	uint64_t align;
	int flags;

	f->st.direct = false;
	f->st.block_bytes = BLOCK_MIN;
	if (!wanted)
		return;
	align = S_ISBLK(s->st_mode) ? direct_align_device(f->fd) : direct_align_file(f->fd, s);
	if (!is_pow2(align) || align > BLOCK_MAX)
		return;
	flags = fcntl(f->fd, F_GETFL);
	if (flags < 0 || fcntl(f->fd, F_SETFL, flags | O_DIRECT) < 0)
		return;
	f->st.direct = true;
	f->st.block_bytes = (uint32_t)max_of(align, (uint64_t)BLOCK_MIN);
}

/* What the open file is like. */
static int file_examine(struct file *f, const struct storage_file_options *opts, struct error *err)
{
	uint64_t size;
	struct statfs fs;
	struct stat s;
	dev_t disk;
	int ret;

	if (fstat(f->fd, &s))
		return error_set(err, -errno, "%s: %s", f->name, strerror(errno));
	ret = refuse_kind(f->name, s.st_mode, err);
	if (ret)
		return ret;
	disk = S_ISBLK(s.st_mode) ? s.st_rdev : s.st_dev;
	if (S_ISBLK(s.st_mode))
		snprintf(f->st.id, sizeof(f->st.id), "block:%u:%u", major(disk), minor(disk));
	else
		snprintf(f->st.id, sizeof(f->st.id), "file:%ju:%ju", (uintmax_t)s.st_dev,
			 (uintmax_t)s.st_ino);
	size = (uint64_t)s.st_size;
	if (S_ISBLK(s.st_mode)) {
		if (ioctl(f->fd, BLKGETSIZE64, &size))
			return error_set(err, -errno, "%s: cannot tell its size: %s", f->name,
					 strerror(errno));
		f->st.fixed_size = true;
		f->st.can_punch = queue_attribute(disk, "write_zeroes_max_bytes", 0) > 0;
	} else {
		f->st.can_punch = true;
	}
	atomic_store(&f->st.size_bytes, size);
	f->st.read_only = opts->read_only;
	f->st.rotational = queue_attribute(disk, "rotational", 0) > 0;
	choose_direct(f, &s, opts->direct);
	f->st.in_memory = S_ISREG(s.st_mode) && !fstatfs(f->fd, &fs) && fs.f_type == TMPFS_MAGIC;
	return 0;
}

static int file_open_fd(struct file *f, const char *path, const struct storage_file_options *opts,
			struct error *err)
{
	/* O_NONBLOCK for the moment of opening only: what is no file must not make us wait. */
	int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (opts->read_only ? O_RDONLY : O_RDWR);
	struct stat s;
	int ret;

	if (opts->create) {
		flags |= O_CREAT | O_EXCL;
	} else if (!stat(path, &s)) {
		/* Before opening it: that alone may do something to a device. */
		ret = refuse_kind(f->name, s.st_mode, err);
		if (ret)
			return ret;
		if (S_ISBLK(s.st_mode) && opts->exclusive_device)
			flags |= O_EXCL;
	}
	do
		f->fd = open(path, flags, 0644);
	while (f->fd < 0 && errno == EINTR);
	if (f->fd < 0 && errno == EBUSY)
		return error_set(err, -EBUSY, "%s: in use: mounted, or held by another program",
				 f->name);
	if (f->fd < 0)
		return error_set(err, -errno, "%s: %s", f->name, strerror(errno));
	if (fcntl(f->fd, F_SETFL, flags & (O_RDONLY | O_RDWR)) < 0)
		return error_set(err, -errno, "%s: %s", f->name, strerror(errno));
	return 0;
}

static char *printable_copy(const char *path)
{
	char *copy = strdup(path);

	for (char *p = copy; p && *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	return copy;
}

int storage_file_open(struct storage **out, const char *path,
		      const struct storage_file_options *opts, struct error *err)
{
	struct file *f = calloc(1, sizeof(*f));
	int ret;

	*out = NULL;
	if (!f)
		return error_set(err, -ENOMEM, "out of memory");
	f->st.ops = &file_ops;
	f->fd = f->zero_fd = -1;
	pthread_mutex_init(&f->attach_lock, NULL);
	f->name = printable_copy(opts->name ? opts->name : path);
	f->st.name = f->name;
	if (!f->name) {
		ret = error_set(err, -ENOMEM, "out of memory");
		goto fail;
	}
	ret = file_open_fd(f, path, opts, err);
	if (!ret)
		ret = file_examine(f, opts, err);
	if (ret) {
		if (opts->create && f->fd >= 0)
			unlink(path);
		goto fail;
	}
	f->zero_fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	*out = &f->st;
	return 0;
fail:
	file_close(&f->st);
	return ret;
}
