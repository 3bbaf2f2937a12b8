// SPDX-License-Identifier: MIT
/* memory.c: see memory.h. */
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"

struct memory {
	struct storage st;
	uint8_t *data;
	uint64_t cap_bytes;
	struct memory_counts counts;
};

#define GROWTH_BYTES (512 * MiB)

static struct memory *memory_of(struct storage *st)
{
	return container_of(st, struct memory, st);
}

static int transfer(struct memory *m, struct storage_io *io)
{
	struct iovec one = {io->buf.base, io->len_bytes}, *iov = io->iovcnt ? io->iov : &one;
	uint64_t at = io->offset_bytes;

	if (at > m->cap_bytes || io->len_bytes > m->cap_bytes - at)
		return -ENOSPC;
	for (unsigned i = 0; i < (io->iovcnt ? io->iovcnt : 1); i++) {
		if (io->op == STORAGE_READ)
			memcpy(iov[i].iov_base, m->data + at, iov[i].iov_len);
		else
			memcpy(m->data + at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	if (io->op == STORAGE_WRITE && at > m->st.size_bytes)
		m->st.size_bytes = at;
	return 0;
}

static int perform(struct memory *m, struct storage_io *io)
{
	switch (io->op) {
	case STORAGE_READ:
		m->counts.reads++;
		return transfer(m, io);
	case STORAGE_WRITE:
		m->counts.writes++;
		return transfer(m, io);
	case STORAGE_SYNC:
		m->counts.syncs++;
		return 0;
	case STORAGE_TRUNCATE:
		if (io->offset_bytes > m->cap_bytes)
			return -ENOSPC;
		m->st.size_bytes = io->offset_bytes;
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static void memory_complete(struct loop_op *op, int res, uint32_t cqe_flags)
{
	struct storage_io *io = container_of(op, struct storage_io, impl.op);

	io->complete(io, (int)(int64_t)io->impl.aux[0]);
}

static void memory_submit(struct storage *st, struct storage_io *io)
{
	struct loop *loop = loop_self();
	int ret = perform(memory_of(st), io);

	if (!loop) {
		io->complete(io, ret);
		return;
	}
	io->impl.aux[0] = (uint64_t)(int64_t)ret;
	io->impl.op.complete = memory_complete;
	loop_sqe(loop, &io->impl.op)->opcode = IORING_OP_NOP;
}

static int memory_lock(struct storage *st, unsigned perms, unsigned shared, struct error *err)
{
	return 0;
}

static int memory_claim(struct storage *st, unsigned timeout_ms, struct error *err)
{
	return 0;
}

static void memory_close(struct storage *st)
{
	struct memory *m = memory_of(st);

	munmap(m->data, m->cap_bytes);
	free(m);
}

static const struct storage_ops memory_ops = {
	.submit = memory_submit,
	.lock = memory_lock,
	.claim = memory_claim,
	.close = memory_close,
};

struct memory_counts memory_counts(struct storage *st)
{
	return memory_of(st)->counts;
}

/* The file, private, with zeros behind it; sparse as it may be, so it reserves nothing. */
static uint8_t *map_with_room(int fd, uint64_t len_bytes, uint64_t cap_bytes)
{
	int flags = MAP_PRIVATE | MAP_NORESERVE, prot = PROT_READ | PROT_WRITE;
	uint8_t *data = mmap(NULL, cap_bytes, prot, flags | MAP_ANONYMOUS, -1, 0);

	if (data == MAP_FAILED)
		return NULL;
	if (mmap(data, len_bytes, prot, flags | MAP_FIXED, fd, 0) == MAP_FAILED) {
		munmap(data, cap_bytes);
		return NULL;
	}
	(void)madvise(data, len_bytes, MADV_RANDOM); /* holes are not to be read ahead in */
	return data;
}

struct storage *memory_load(const char *path)
{
	struct memory *m = calloc(1, sizeof(*m));
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (m && fd >= 0 && !fstat(fd, &st)) {
		m->cap_bytes = align_up((uint64_t)st.st_size, 4096) + GROWTH_BYTES;
		m->data = map_with_room(fd, (uint64_t)st.st_size, m->cap_bytes);
	}
	if (fd >= 0)
		close(fd);
	if (!m || !m->data) {
		free(m);
		return NULL;
	}
	m->st.ops = &memory_ops;
	m->st.name = "memory";
	m->st.block_bytes = 512;
	m->st.size_bytes = (uint64_t)st.st_size;
	return &m->st;
}
