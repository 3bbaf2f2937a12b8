/* SPDX-License-Identifier: MIT */
/*
 * file-exercise: whether a file of fixed size keeps exactly what is written to it, byte by byte.
 *
 *	file-exercise FILE SEED THREADS SECONDS [nofallocate]
 *
 * Threads write, zero, punch and read random ranges of random lengths at the same time. Each has
 * bytes of its own: the file is cut into pieces of odd length that are dealt out in turn, so that
 * each block of the file belongs to several threads. Each thread compares what it reads with its
 * model at once, and all of the file is compared at the end. Prints the number of operations.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1531, BIG_PIECE = 300007, THREADS_MAX = 16, BUF = 1 << 20 };

static int fd;
static uint8_t *model;
static size_t size;
static unsigned threads;
static bool with_fallocate = true;
static time_t until;

struct worker {
	pthread_t thread;
	unsigned number;
	uint64_t random;
	uint64_t count;
	uint8_t *buf;
};

static uint32_t rnd(struct worker *w, uint32_t below)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return (uint32_t)(w->random >> 24) % below;
}

static void die(const char *what, size_t at, size_t len, long got)
{
	fprintf(stderr, "file-exercise: %s at %zu, length %zu: got %ld, %s\n", what, at, len, got,
		strerror(errno));
	exit(1);
}

/* Half of the file is cut small, the other half large. */
static void range_choose(struct worker *w, size_t *at, size_t *len)
{
	bool big = rnd(w, 8) == 0;
	size_t piece = big ? BIG_PIECE : PIECE, start = big ? size / 2 : 0;
	size_t rounds = size / 2 / (piece * threads);
	size_t left;

	*at = start + (rnd(w, (uint32_t)rounds) * threads + w->number) * piece;
	left = rnd(w, (uint32_t)piece);
	*at += left;
	*len = rnd(w, (uint32_t)(piece - left)) + 1;
}

static void check_read(struct worker *w, size_t at, size_t len)
{
	ssize_t got = pread(fd, w->buf, len, (off_t)at);

	if (got != (ssize_t)len)
		die("read", at, len, got);
	for (size_t i = 0; i < len; i++) {
		if (w->buf[i] != model[at + i])
			die("wrong byte", at + i, len, w->buf[i]);
	}
}

static void change(struct worker *w, size_t at, size_t len)
{
	unsigned what = with_fallocate ? rnd(w, 5) : 0;

	if (what >= 3) {
		int mode = FALLOC_FL_KEEP_SIZE |
			   (what == 3 ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);

		memset(model + at, 0, len);
		if (fallocate(fd, mode, (off_t)at, (off_t)len))
			die("fallocate", at, len, -1);
		return;
	}
	for (size_t i = 0; i < len; i++)
		model[at + i] = (uint8_t)rnd(w, 256);
	memcpy(w->buf, model + at, len);

	ssize_t got = pwrite(fd, w->buf, len, (off_t)at);

	if (got != (ssize_t)len)
		die("write", at, len, got);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	size_t at, len;

	while (time(NULL) < until) {
		range_choose(w, &at, &len);
		if (rnd(w, 3))
			change(w, at, len);
		else
			check_read(w, at, len);
		if (rnd(w, 200) == 0 && fdatasync(fd))
			die("fdatasync", 0, 0, -1);
		w->count++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static struct worker workers[THREADS_MAX];
	uint64_t total = 0;
	struct stat st;

	if (argc < 5)
		return 2;
	threads = (unsigned)atoi(argv[3]);
	if (threads < 1 || threads > THREADS_MAX)
		return 2;
	with_fallocate = argc == 5;
	fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		die("open", 0, 0, fd);
	size = (size_t)st.st_size;
	model = malloc(size);
	if (!model)
		die("memory", 0, size, 0);
	workers[0].buf = malloc(BUF);
	for (size_t at = 0; at < size; at += BUF) {
		size_t len = size - at < BUF ? size - at : BUF;

		if (pread(fd, model + at, len, (off_t)at) != (ssize_t)len)
			die("first read", at, len, -1);
	}
	until = time(NULL) + atoi(argv[4]);
	for (unsigned i = 0; i < threads; i++) {
		struct worker *w = &workers[i];

		w->number = i;
		w->random = strtoull(argv[2], NULL, 0) * 1000003 + i + 1;
		if (!w->buf)
			w->buf = malloc(BUF);
		pthread_create(&w->thread, NULL, work, w);
	}
	for (unsigned i = 0; i < threads; i++) {
		pthread_join(workers[i].thread, NULL);
		total += workers[i].count;
	}
	for (size_t at = 0; at < size; at += BUF)
		check_read(&workers[0], at, size - at < BUF ? size - at : BUF);
	printf("seed %s: %llu operations\n", argv[2], (unsigned long long)total);
	return 0;
}
