/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c: the snapshot table; see snapshot.h.
 *
 * Entries have no fixed length, so the table's is known when its last entry has been read. Each entry
 * is kept as it is in the file, so that what this program does not know of it (extra data of a later
 * version) survives a new table.
 *
 * Bounds: QCOW2_MAX_SNAPSHOTS entries, QCOW2_MAX_SNAPSHOT_EXTRA_BYTES of extra data in each, and
 * QCOW2_MAX_SNAPSHOT_TABLE_BYTES in all, whatever the file says.
 */
#include "qcow2/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/math.h"
#include "qcow2.h"
#include "qcow2/header.h"
#include "storage/storage.h"

/* What QEMU keeps behind the fixed part (qcow2: "Snapshots"). */
struct disk_extra {
	be64_t vm_state_size;
	be64_t disk_size;
	be64_t icount;
};

static_assert(sizeof(struct disk_extra) == 24, "layout");

/* Version 3 asks for the first two. */
#define EXTRA_NEEDED_BYTES offsetof(struct disk_extra, icount)

/* ---- reading ---- */

/* A window on the table that moves forward. */
struct window {
	struct storage *st;
	uint64_t base, filled; /* in the file */
	uint8_t *buf;
};

#define WINDOW_BYTES ((uint64_t)64 << 10)

/* Copies [@offset, @offset + @len) out; past the end of the file are zeros. */
static int window_copy(struct window *w, uint64_t offset, void *out, uint64_t len)
{
	uint8_t *to = out;

	while (len) {
		uint64_t n;

		if (offset < w->base || offset >= w->base + w->filled) {
			int ret;

			w->base = align_down(offset, 4096);
			w->filled = WINDOW_BYTES;
			ret = storage_pread(w->st, w->base, w->buf, WINDOW_BYTES);
			if (ret)
				return ret;
		}
		n = min_of(len, w->base + w->filled - offset);
		memcpy(to, w->buf + (offset - w->base), n);
		to += n;
		offset += n;
		len -= n;
	}
	return 0;
}

static int entry_decode(struct snapshot *s, const struct qcow2_header *h)
{
	struct qcow2_disk_snapshot d;
	struct disk_extra extra = {.disk_size = be64_make(h->size_bytes),
				   .icount = be64_make(UINT64_MAX)};
	const uint8_t *tail = s->raw + sizeof(d);
	uint32_t extra_len;

	memcpy(&d, s->raw, sizeof(d));
	extra_len = be32_get(d.extra_len);
	extra.vm_state_size = be64_make(be32_get(d.vm_state_size));
	/* whole fields only */
	memcpy(&extra, tail, min_of(align_down(extra_len, 8), sizeof(extra)));
	s->l1_offset = be64_get(d.l1_table_offset);
	s->l1_entries = be32_get(d.l1_size);
	s->date_sec = be32_get(d.date_sec);
	s->date_nsec = be32_get(d.date_nsec);
	s->vm_clock_ns = be64_get(d.vm_clock_ns);
	s->vm_state_bytes = be64_get(extra.vm_state_size);
	s->disk_bytes = align_down(be64_get(extra.disk_size), 512);
	s->icount = be64_get(extra.icount);
	tail += extra_len;
	s->id = strndup((const char *)tail, be16_get(d.id_len));
	s->name = strndup((const char *)tail + be16_get(d.id_len), be16_get(d.name_len));
	return s->id && s->name ? 0 : -ENOMEM;
}

static void entry_free(struct snapshot *s)
{
	free(s->raw);
	free(s->id);
	free(s->name);
	*s = (struct snapshot){0};
}

static int entry_read(struct snapshot *s, struct window *w, uint64_t at, const struct qcow2_header *h)
{
	struct qcow2_disk_snapshot d;
	int ret = window_copy(w, at, &d, sizeof(d));

	if (ret)
		return ret;
	if (be32_get(d.extra_len) > QCOW2_MAX_SNAPSHOT_EXTRA_BYTES)
		return -EFBIG;
	s->raw_bytes = snapshot_entry_bytes(&d);
	s->raw = malloc(s->raw_bytes);
	if (!s->raw)
		return -ENOMEM;
	ret = window_copy(w, at, s->raw, s->raw_bytes);
	/* the lengths just judged are those that are used, whoever writes to the file meanwhile */
	memcpy(s->raw, &d, sizeof(d));
	return ret ? ret : entry_decode(s, h);
}

static int entries_read(struct snapshot_list *l, struct window *w, const struct qcow2_header *h,
			struct error *err)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < h->nb_snapshots; i++) {
		int ret;

		at = align_up(at, 8);
		l->count = i + 1;
		ret = entry_read(&l->v[i], w, h->snapshots_offset + at, h);
		if (ret == -EFBIG)
			return error_set(err, ret, "%s: snapshot %u has more than %u bytes of extra data",
					 h->file_name, i, QCOW2_MAX_SNAPSHOT_EXTRA_BYTES);
		if (ret)
			return error_set(err, ret, "%s: cannot read the snapshot table: %s",
					 h->file_name, strerror(-ret));
		at += l->v[i].raw_bytes;
		if (at > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
			return error_set(err, -EFBIG, "%s: the snapshot table is too big",
					 h->file_name);
	}
	l->table_bytes = at;
	return 0;
}

int snapshot_list_read(struct snapshot_list *l, struct storage *st, const struct qcow2_header *h,
		       struct error *err)
{
	struct window w = {.st = st};
	int ret;

	*l = (struct snapshot_list){0};
	if (!h->nb_snapshots)
		return 0;
	if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS)
		return error_set(err, -EFBIG, "%s: nb_snapshots is %u, more than %u", h->file_name,
				 h->nb_snapshots, QCOW2_MAX_SNAPSHOTS);
	if (!is_aligned(h->snapshots_offset, h->cluster_bytes) ||
	    h->snapshots_offset > QCOW2_MAX_HOST_BYTES)
		return error_set(err, -EINVAL,
				 "%s: snapshots_offset is %" PRIu64
				 ", not a multiple of the cluster size %u inside a file",
				 h->file_name, h->snapshots_offset, h->cluster_bytes);
	l->v = calloc(h->nb_snapshots, sizeof(*l->v));
	w.buf = aligned_alloc(4096, WINDOW_BYTES);
	if (!l->v || !w.buf)
		ret = error_set(err, -ENOMEM, "%s: no memory for the snapshot table", h->file_name);
	else
		ret = entries_read(l, &w, h, err);
	free(w.buf);
	if (ret)
		snapshot_list_free(l);
	return ret;
}

void snapshot_list_free(struct snapshot_list *l)
{
	for (uint32_t i = 0; i < l->count; i++)
		entry_free(&l->v[i]);
	free(l->v);
	*l = (struct snapshot_list){0};
}

bool snapshot_l1_valid(const struct snapshot *s, const struct qcow2_header *h, uint64_t file_bytes)
{
	uint64_t bytes = (uint64_t)s->l1_entries * sizeof(be64_t), end;

	if (!bytes)
		return true;
	return bytes <= QCOW2_MAX_L1_BYTES && is_aligned(s->l1_offset, h->cluster_bytes) &&
	       s->l1_offset && checked_add(s->l1_offset, bytes, &end) && end <= file_bytes;
}

/* ---- looking and changing ---- */

int64_t snapshot_find(const struct snapshot_list *l, const char *id_or_name)
{
	for (uint32_t i = 0; i < l->count; i++)
		if (!strcmp(l->v[i].id, id_or_name))
			return i;
	for (uint32_t i = 0; i < l->count; i++)
		if (!strcmp(l->v[i].name, id_or_name))
			return i;
	return -1;
}

/* One more than the largest number among the ids, as QEMU counts. */
static uint64_t next_id(const struct snapshot_list *l)
{
	uint64_t largest = 0;

	for (uint32_t i = 0; i < l->count; i++) {
		uint64_t id = strtoull(l->v[i].id, NULL, 10);

		if (id < UINT64_MAX)
			largest = max_of(largest, id);
	}
	return largest + 1;
}

static int entry_make(struct snapshot *s, const char *id, const char *name, uint64_t l1_offset,
		      uint32_t l1_entries, uint64_t disk_bytes)
{
	struct timespec now;
	struct disk_extra extra = {.disk_size = be64_make(disk_bytes),
				   .icount = be64_make(UINT64_MAX)};
	struct qcow2_disk_snapshot d = {
		.l1_table_offset = be64_make(l1_offset),
		.l1_size = be32_make(l1_entries),
		.id_len = be16_make((uint16_t)strlen(id)),
		.name_len = be16_make((uint16_t)strlen(name)),
		.extra_len = be32_make(sizeof(extra)),
	};
	const struct qcow2_header size = {.size_bytes = disk_bytes};
	uint8_t *to;

	clock_gettime(CLOCK_REALTIME, &now);
	d.date_sec = be32_make((uint32_t)now.tv_sec);
	d.date_nsec = be32_make((uint32_t)now.tv_nsec);
	s->raw_bytes = snapshot_entry_bytes(&d);
	s->raw = to = malloc(s->raw_bytes);
	if (!s->raw)
		return -ENOMEM;
	memcpy(to, &d, sizeof(d));
	memcpy(to + sizeof(d), &extra, sizeof(extra));
	memcpy(to + sizeof(d) + sizeof(extra), id, strlen(id));
	memcpy(to + sizeof(d) + sizeof(extra) + strlen(id), name, strlen(name));
	return entry_decode(s, &size);
}

int snapshot_list_add(struct snapshot_list *l, const char *name, uint64_t l1_offset,
		      uint32_t l1_entries, uint64_t disk_bytes, struct error *err)
{
	struct snapshot *v;
	char id[32];

	if (l->count == QCOW2_MAX_SNAPSHOTS)
		return error_set(err, -EFBIG, "there are %u snapshots, as many as an image can have",
				 l->count);
	snprintf(id, sizeof(id), "%" PRIu64, next_id(l));
	v = realloc(l->v, (l->count + 1) * sizeof(*l->v));
	if (v) {
		l->v = v;
		v[l->count] = (struct snapshot){0};
		if (!entry_make(&v[l->count], id, name, l1_offset, l1_entries, disk_bytes)) {
			l->count++;
			return 0;
		}
		entry_free(&v[l->count]);
	}
	return error_set(err, -ENOMEM, "no memory for the snapshot table");
}

void snapshot_list_remove(struct snapshot_list *l, uint32_t index)
{
	assert(index < l->count);
	entry_free(&l->v[index]);
	memmove(&l->v[index], &l->v[index + 1], (l->count - index - 1) * sizeof(*l->v));
	l->count--;
}

/* ---- the table for the file ---- */

/* Makes room for what version 3 asks for, with what it stands for where it is missing. */
static int entry_complete(struct snapshot *s)
{
	struct disk_extra extra = {.vm_state_size = be64_make(s->vm_state_bytes),
				   .disk_size = be64_make(s->disk_bytes)};
	struct qcow2_disk_snapshot d;
	uint32_t extra_len;
	uint64_t rest, bytes;
	uint8_t *raw;

	memcpy(&d, s->raw, sizeof(d));
	extra_len = be32_get(d.extra_len);
	if (extra_len >= EXTRA_NEEDED_BYTES)
		return 0;
	rest = s->raw_bytes - sizeof(d) - extra_len;
	bytes = sizeof(d) + EXTRA_NEEDED_BYTES + rest;
	raw = malloc(bytes);
	if (!raw)
		return -ENOMEM;
	d.extra_len = be32_make(EXTRA_NEEDED_BYTES);
	memcpy(raw, &d, sizeof(d));
	memcpy(raw + sizeof(d), &extra, EXTRA_NEEDED_BYTES);
	memcpy(raw + sizeof(d) + EXTRA_NEEDED_BYTES, s->raw + sizeof(d) + extra_len, rest);
	free(s->raw);
	s->raw = raw;
	s->raw_bytes = bytes;
	return 0;
}

int snapshot_list_encode(struct snapshot_list *l, const struct qcow2_header *h, uint64_t unit_bytes,
			 void **out, uint64_t *bytes, struct error *err)
{
	uint64_t at = 0;
	uint8_t *table;

	for (uint32_t i = 0; i < l->count; i++) {
		if (h->version >= 3 && entry_complete(&l->v[i]))
			return error_set(err, -ENOMEM, "no memory for the snapshot table");
		at = align_up(at, 8) + l->v[i].raw_bytes;
	}
	if (at > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
		return error_set(err, -EFBIG, "the snapshot table would be larger than an image can have");
	*bytes = align_up(at, unit_bytes);
	table = aligned_alloc(4096, align_up(max_of(*bytes, (uint64_t)1), 4096));
	if (!table)
		return error_set(err, -ENOMEM, "no memory for the snapshot table");
	memset(table, 0, *bytes);
	at = 0;
	for (uint32_t i = 0; i < l->count; i++) {
		at = align_up(at, 8);
		memcpy(table + at, l->v[i].raw, l->v[i].raw_bytes);
		at += l->v[i].raw_bytes;
	}
	l->table_bytes = at;
	*out = table;
	return 0;
}

/* ---- for everybody ---- */

static int list_stable(struct storage *st, struct qcow2_header *h, struct qcow2_header *again,
		       struct snapshot_list *l, struct error *err)
{
	int ret;

	/* Who has the image attached may switch to another table meanwhile: then it is read again. */
	for (unsigned tries = 0; tries < 5; tries++) {
		ret = qcow2_header_read(st, h, err);
		if (!ret)
			ret = qcow2_header_check_features(h, err);
		if (ret)
			return ret;
		ret = snapshot_list_read(l, st, h, err);
		if (qcow2_header_read(st, again, NULL) == 0 &&
		    again->snapshots_offset == h->snapshots_offset &&
		    again->nb_snapshots == h->nb_snapshots)
			return ret;
		snapshot_list_free(l);
	}
	return error_set(err, -EAGAIN, "%s: the snapshots change all the time", st->name);
}

int qcow2_snapshot_list(struct storage *st,
			void (*each)(void *arg, const struct qcow2_snapshot *snapshot), void *arg,
			struct error *err)
{
	struct qcow2_header *h = malloc(2 * sizeof(*h));
	struct snapshot_list l;
	int ret;

	if (!h)
		return error_set(err, -ENOMEM, "%s: no memory for the header", st->name);
	ret = list_stable(st, &h[0], &h[1], &l, err);
	free(h);
	if (ret)
		return ret;
	for (uint32_t i = 0; i < l.count; i++) {
		const struct snapshot *s = &l.v[i];
		struct qcow2_snapshot out = {
			.id = s->id,
			.name = s->name,
			.vm_state_bytes = s->vm_state_bytes,
			.disk_bytes = s->disk_bytes,
			.date_sec = s->date_sec,
			.date_nsec = s->date_nsec,
			.vm_clock_ns = s->vm_clock_ns,
			.has_icount = s->icount != UINT64_MAX,
			.icount = s->icount,
		};

		each(arg, &out);
	}
	snapshot_list_free(&l);
	return 0;
}
