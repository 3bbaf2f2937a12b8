/* SPDX-License-Identifier: MIT */
/*
 * memory.h: a storage in memory, for unit tests outside of any loop. It counts what is done, fails
 * an I/O of the test's choice, and can stop taking writes, as after a power cut. With a journal it
 * also knows what was synced, and yields crash states: that, and any sectors of what came after.
 */
#ifndef TEST_MEMORY_H
#define TEST_MEMORY_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "storage/storage.h"

struct memory {
	struct storage st;
	uint8_t *data;
	size_t room;
	unsigned reads, writes, syncs;
	unsigned ios;
	unsigned fail_at;     /* this I/O, counted from 1, fails with -EIO; 0: none */
	unsigned writes_left; /* then writes and truncations are forgotten, as is said in lost */
	bool lost;
	uint64_t last_offset, last_len; /* of a write */

	bool journal;
	uint8_t *durable;
	uint64_t durable_size;
};

static inline void memory_resize(struct memory *m, uint64_t size)
{
	if (size > m->room) {
		m->room = size + size / 2 + 4096;
		m->data = realloc(m->data, m->room);
		if (!m->data)
			abort();
		memset(m->data + m->st.size_bytes, 0, m->room - m->st.size_bytes);
	}
	if (size < m->st.size_bytes)
		memset(m->data + size, 0, m->st.size_bytes - size);
	m->st.size_bytes = size;
}

/* Whether a change still gets through. */
static inline bool memory_changes(struct memory *m)
{
	if (!m->writes_left) {
		m->lost = true;
		return false;
	}
	m->writes_left--;
	return true;
}

static inline void memory_write(struct memory *m, uint64_t offset, const void *buf, uint64_t len)
{
	m->writes++;
	m->last_offset = offset;
	m->last_len = len;
	if (!memory_changes(m))
		return;
	if (offset + len > m->st.size_bytes)
		memory_resize(m, offset + len);
	memcpy(m->data + offset, buf, len);
}

static inline void memory_settle(struct memory *m)
{
	m->durable = realloc(m->durable, m->st.size_bytes + 1);
	if (!m->durable)
		abort();
	memcpy(m->durable, m->data, m->st.size_bytes);
	m->durable_size = m->st.size_bytes;
}

static inline void memory_submit(struct storage *st, struct storage_io *io)
{
	struct memory *m = (struct memory *)st;
	uint64_t have = io->offset_bytes < st->size_bytes ? st->size_bytes - io->offset_bytes : 0;
	int ret = 0;

	m->ios++;
	if (m->fail_at && m->ios == m->fail_at) {
		io->complete(io, -EIO);
		return;
	}
	switch (io->op) {
	case STORAGE_READ:
		m->reads++;
		have = have < io->len_bytes ? have : io->len_bytes;
		memset((uint8_t *)io->buf.base + have, 0, io->len_bytes - have);
		if (have)
			memcpy(io->buf.base, m->data + io->offset_bytes, have);
		break;
	case STORAGE_WRITE:
		if (!io->iovcnt)
			memory_write(m, io->offset_bytes, io->buf.base, io->len_bytes);
		for (unsigned i = 0; i < io->iovcnt; i++) {
			memory_write(m, io->offset_bytes, io->iov[i].iov_base, io->iov[i].iov_len);
			io->offset_bytes += io->iov[i].iov_len;
		}
		break;
	case STORAGE_SYNC:
		m->syncs++;
		if (m->journal && !m->lost)
			memory_settle(m);
		break;
	case STORAGE_TRUNCATE:
		if (memory_changes(m))
			memory_resize(m, io->offset_bytes);
		break;
	case STORAGE_PUNCH:
	case STORAGE_ZERO:
		ret = -EOPNOTSUPP;
		break;
	}
	io->complete(io, ret);
}

static inline void memory_reset_counters(struct memory *m)
{
	m->reads = m->writes = m->syncs = m->ios = m->fail_at = 0;
	m->writes_left = UINT32_MAX;
	m->lost = false;
}

static inline void memory_init(struct memory *m)
{
	static const struct storage_ops ops = {.submit = memory_submit};

	memset(m, 0, sizeof(*m));
	m->st.ops = &ops;
	m->st.name = "memory";
	m->st.block_bytes = 512;
	memory_reset_counters(m);
}

static inline void memory_destroy(struct memory *m)
{
	free(m->data);
	m->data = NULL;
}

/* @to becomes a copy of the bytes of @from. */
static inline void memory_copy(struct memory *to, const struct memory *from)
{
	memory_resize(to, 0);
	memory_resize(to, from->st.size_bytes);
	memcpy(to->data, from->data, from->st.size_bytes);
	memory_reset_counters(to);
}

static inline void memory_journal(struct memory *m, bool on)
{
	m->journal = on;
	if (on) {
		memory_settle(m);
	} else {
		free(m->durable);
		m->durable = NULL;
	}
}

/* A state that a power cut now may leave: which sectors made it depends on @seed. */
static inline void memory_crash_state(struct memory *to, const struct memory *m, unsigned seed)
{
	uint64_t size = m->durable_size > m->st.size_bytes ? m->durable_size : m->st.size_bytes;

	/* 0: nothing made it; 1: everything. A length that did not make it takes its sectors along.
	 */
	srand(seed);
	if (!seed || (seed > 1 && rand() % 4 == 0))
		size = m->durable_size;
	memory_resize(to, size);
	for (uint64_t at = 0; at < size; at += 512) {
		uint64_t len = size - at < 512 ? size - at : 512;
		bool old = !seed || (seed > 1 && rand() % 2);
		const uint8_t *from = old ? m->durable : m->data;
		uint64_t have = old ? m->durable_size : m->st.size_bytes;

		have = have > at ? have - at : 0;
		memcpy(to->data + at, from + at, have < len ? have : len);
	}
}

#endif
