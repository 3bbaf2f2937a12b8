// SPDX-License-Identifier: MIT
/*
 * volatile-disk.c: a file that behaves like a disk with a volatile write cache, for the tests that cut the
 * power.
 *
 *   volatile-disk FOLDER FILE
 *
 * Mounts a FUSE file system on FOLDER, in the foreground; in it is one file, `disk`, with the content and
 * the length of FILE. What is written to it stays in this process's memory until an fsync, which brings
 * all of it to FILE. So when this process is killed, FILE is what a disk holds of whose cache nothing
 * was left: each write that no fsync followed is gone. What a real disk may do as well, keep some of
 * them, is left to the simulation (tests/sim/).
 *
 * One thread serves all requests, one after the other. cache[n] is the content of page n if it differs from
 * FILE's, else NULL.
 */
#define FUSE_USE_VERSION 35

#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE_BYTES 4096u

static int backing;
static uint64_t size_bytes;
static char **cache;

static int load_page(uint64_t page, char *to)
{
	ssize_t got = pread(backing, to, PAGE_BYTES, (off_t)(page * PAGE_BYTES));

	if (got < 0)
		return -errno;
	memset(to + got, 0, PAGE_BYTES - (size_t)got);
	return 0;
}

static int disk_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	memset(st, 0, sizeof(*st));
	if (!strcmp(path, "/")) {
		st->st_mode = S_IFDIR | 0700;
		st->st_nlink = 2;
		return 0;
	}
	if (strcmp(path, "/disk"))
		return -ENOENT;
	st->st_mode = S_IFREG | 0600;
	st->st_nlink = 1;
	st->st_size = (off_t)size_bytes;
	return 0;
}

static int disk_open(const char *path, struct fuse_file_info *fi)
{
	if (strcmp(path, "/disk"))
		return -ENOENT;
	fi->direct_io = 1;
	return 0;
}

static int disk_read(const char *path, char *buf, size_t len, off_t offset,
		     struct fuse_file_info *fi)
{
	uint64_t at = (uint64_t)offset, end, n;
	char page[PAGE_BYTES], *from;
	int ret;

	if (at >= size_bytes)
		return 0;
	end = len < size_bytes - at ? at + len : size_bytes;
	for (; at < end; at += n, buf += n) {
		n = PAGE_BYTES - at % PAGE_BYTES;
		if (n > end - at)
			n = end - at;
		from = cache[at / PAGE_BYTES];
		if (!from) {
			ret = load_page(at / PAGE_BYTES, page);
			if (ret < 0)
				return ret;
			from = page;
		}
		memcpy(buf, from + at % PAGE_BYTES, n);
	}
	return (int)(end - (uint64_t)offset);
}

static int disk_write(const char *path, const char *buf, size_t len, off_t offset,
		      struct fuse_file_info *fi)
{
	uint64_t at = (uint64_t)offset, end = at + len, n;
	char **page;
	int ret;

	if (end < at || end > size_bytes)
		return -ENOSPC;
	for (; at < end; at += n, buf += n) {
		n = PAGE_BYTES - at % PAGE_BYTES;
		if (n > end - at)
			n = end - at;
		page = &cache[at / PAGE_BYTES];
		if (!*page) {
			*page = malloc(PAGE_BYTES);
			if (!*page)
				return -ENOMEM;
			ret = load_page(at / PAGE_BYTES, *page);
			if (ret < 0) {
				free(*page);
				*page = NULL;
				return ret;
			}
		}
		memcpy(*page + at % PAGE_BYTES, buf, n);
	}
	return (int)len;
}

static int disk_fsync(const char *path, int data_only, struct fuse_file_info *fi)
{
	uint64_t page;

	for (page = 0; page < size_bytes / PAGE_BYTES; page++) {
		if (!cache[page])
			continue;
		if (pwrite(backing, cache[page], PAGE_BYTES, (off_t)(page * PAGE_BYTES)) !=
		    PAGE_BYTES)
			return -EIO;
		free(cache[page]);
		cache[page] = NULL;
	}
	return 0;
}

static const struct fuse_operations operations = {
	.getattr = disk_getattr,
	.open = disk_open,
	.read = disk_read,
	.write = disk_write,
	.fsync = disk_fsync,
};

int main(int argc, char **argv)
{
	char *args[] = {argv[0], "-f", "-s", argc > 1 ? argv[1] : NULL, NULL};
	struct stat st;

	if (argc != 3) {
		fprintf(stderr, "usage: volatile-disk FOLDER FILE\n");
		return 2;
	}
	backing = open(argv[2], O_RDWR | O_CLOEXEC);
	if (backing < 0 || fstat(backing, &st)) {
		perror(argv[2]);
		return 2;
	}
	size_bytes = (uint64_t)st.st_size;
	if (!size_bytes || size_bytes % PAGE_BYTES) {
		fprintf(stderr, "volatile-disk: the length of %s is no multiple of %u\n", argv[2],
			PAGE_BYTES);
		return 2;
	}
	cache = calloc(size_bytes / PAGE_BYTES, sizeof(*cache));
	if (!cache) {
		perror("volatile-disk");
		return 2;
	}
	return fuse_main(4, args, &operations, NULL);
}
