/* SPDX-License-Identifier: MIT */
/*
 * shadow.c: see shadow.h. The bytes lie in one sparse mapping; each sector has a small record of the
 * writes in flight on it and of the moment it changed last. A moment is a count of begins and ends,
 * so that "nothing happened to it since" is one comparison.
 */
#include "shadow.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SECTOR 512

struct sector {
	uint32_t writers; /* in flight */
	bool unknown;
	uint64_t changed; /* moment of the last begin or end */
};

struct shadow {
	uint64_t size_bytes;
	uint64_t moment;
	uint8_t *data;
	struct sector *sectors;
};

static void *map_zeroed(uint64_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

struct shadow *shadow_create(uint64_t size_bytes)
{
	struct shadow *s;

	if (!size_bytes || size_bytes > SHADOW_MAX_BYTES)
		return NULL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	s->size_bytes = size_bytes;
	s->moment = 1;
	s->data = map_zeroed(size_bytes);
	s->sectors = map_zeroed(size_bytes / SECTOR * sizeof(struct sector));
	if (!s->data || !s->sectors) {
		shadow_destroy(s);
		return NULL;
	}
	return s;
}

void shadow_destroy(struct shadow *s)
{
	if (!s)
		return;
	if (s->data)
		munmap(s->data, s->size_bytes);
	if (s->sectors)
		munmap(s->sectors, s->size_bytes / SECTOR * sizeof(struct sector));
	free(s);
}

/* The data at @offset up to the next hole, or @end. */
static int load_part(struct shadow *s, int fd, uint64_t offset, uint64_t end)
{
	while (offset < end) {
		ssize_t n = pread(fd, s->data + offset, end - offset, (off_t)offset);

		if (n < 0)
			return -errno;
		if (!n)
			break;
		offset += n;
	}
	return 0;
}

/* One byte for each sector: 1 if it is not known. */
static int load_unknown(struct shadow *s, const char *path)
{
	char name[4096];
	FILE *f;
	int c;

	snprintf(name, sizeof(name), "%s.unknown", path);
	f = fopen(name, "rb");
	if (!f)
		return errno == ENOENT ? 0 : -errno;
	for (uint64_t i = 0; i < s->size_bytes / SECTOR && (c = fgetc(f)) != EOF; i++)
		s->sectors[i].unknown = c;
	fclose(f);
	return 0;
}

static int save_unknown(const struct shadow *s, const char *path)
{
	char name[4096];
	FILE *f;

	snprintf(name, sizeof(name), "%s.unknown", path);
	f = fopen(name, "wb");
	if (!f)
		return -errno;
	for (uint64_t i = 0; i < s->size_bytes / SECTOR; i++)
		fputc(s->sectors[i].unknown || s->sectors[i].writers, f);
	return fclose(f) ? -EIO : 0;
}

int shadow_save(const struct shadow *s, const char *path)
{
	int ret = 0, fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)s->size_bytes) < 0)
		ret = -errno;
	for (uint64_t off = 0; ret == 0 && off < s->size_bytes; off += SECTOR) {
		static const uint8_t zeros[SECTOR];

		if (memcmp(s->data + off, zeros, SECTOR) &&
		    pwrite(fd, s->data + off, SECTOR, (off_t)off) != SECTOR)
			ret = -EIO;
	}
	close(fd);
	return ret ? ret : save_unknown(s, path);
}

int shadow_load(struct shadow *s, const char *path)
{
	int ret = 0, fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t start, end = 0;

	if (fd < 0)
		return -errno;
	while (ret == 0 && (start = lseek(fd, end, SEEK_DATA)) >= 0 &&
	       (uint64_t)start < s->size_bytes) {
		end = lseek(fd, start, SEEK_HOLE);
		if (end < 0)
			ret = -errno;
		else if ((uint64_t)end > s->size_bytes)
			ret = load_part(s, fd, start, s->size_bytes);
		else
			ret = load_part(s, fd, start, end);
	}
	close(fd);
	return ret ? ret : load_unknown(s, path);
}

static void check_range(const struct shadow *s, uint64_t offset_bytes, uint64_t len_bytes)
{
	assert(offset_bytes % SECTOR == 0 && len_bytes % SECTOR == 0);
	assert(offset_bytes <= s->size_bytes && len_bytes <= s->size_bytes - offset_bytes);
}

void shadow_write_begin(struct shadow *s, uint64_t offset_bytes, const void *data, uint64_t len_bytes)
{
	check_range(s, offset_bytes, len_bytes);
	s->moment++;
	for (uint64_t i = offset_bytes / SECTOR; i < (offset_bytes + len_bytes) / SECTOR; i++) {
		struct sector *sec = &s->sectors[i];

		sec->unknown = sec->writers > 0;
		sec->writers++;
		sec->changed = s->moment;
	}
	if (data)
		memcpy(s->data + offset_bytes, data, len_bytes);
	else
		memset(s->data + offset_bytes, 0, len_bytes);
}

void shadow_write_end(struct shadow *s, uint64_t offset_bytes, uint64_t len_bytes, bool failed)
{
	check_range(s, offset_bytes, len_bytes);
	s->moment++;
	for (uint64_t i = offset_bytes / SECTOR; i < (offset_bytes + len_bytes) / SECTOR; i++) {
		struct sector *sec = &s->sectors[i];

		assert(sec->writers > 0);
		sec->writers--;
		sec->unknown |= failed;
		sec->changed = s->moment;
	}
}

uint64_t shadow_now(const struct shadow *s)
{
	return s->moment;
}

uint64_t shadow_compare(const struct shadow *s, uint64_t offset_bytes, const void *data,
			uint64_t len_bytes, uint64_t since)
{
	const uint8_t *p = data;

	check_range(s, offset_bytes, len_bytes);
	for (uint64_t off = offset_bytes; off < offset_bytes + len_bytes; off += SECTOR, p += SECTOR) {
		const struct sector *sec = &s->sectors[off / SECTOR];

		if (sec->unknown || sec->writers || sec->changed > since)
			continue;
		if (memcmp(s->data + off, p, SECTOR))
			return off;
	}
	return SHADOW_EQUAL;
}
