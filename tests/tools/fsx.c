/* SPDX-License-Identifier: MIT */
/*
 * fsx.c: random operations on a block device (or file), each checked against a model in memory; in the
 * manner of the file system exerciser of that name.
 *
 *	fsx [-s SEED] [-j THREADS] [-n OPERATIONS] [-t SECONDS] [-e FILE] [-d GRANULARITY] [-b] [-v]
 *	    [-m MODEL] DEVICE
 *
 *	-s	what the choice of operations comes from (default 1)
 *	-j	threads, 1 to 16 (default 1): what they do to the same sectors at once is not compared
 *	-n, -t	ends after so many operations of all threads, or seconds (default: 1000 operations)
 *	-e	ends when there is this file
 *	-d	discards too: a discard zeroes the wholly covered units of this size, and changes nothing
 *		else (0: it zeroes just what it is given). The device's end completes a unit
 *	-b	through the page cache; the kernel drops what a discard touches of that, so discards are of
 *		whole units then
 *	-v	only compares all of the device with MODEL
 *	-m	the model lies in this file, and in FILE.unknown which sectors it does not know, between
 *		runs. What is on the device is compared with it before anything else is done, and all of
 *		the device at the end
 *
 * Without a MODEL that exists, the device must be all zeros. Operations: reads, writes, zeroing,
 * discards, writes with FUA, fsync; lengths of a block to 1 MiB; three of four in the device's first
 * 8 MiB, where they meet. Each written sector has words of its own, some of them compressible, some zero.
 *
 * The first sector that is wrong is printed with the operations that touched it last. Exit status: 0 all
 * right, 1 bytes differ, 2 usage, 3 an operation failed.
 *
 * Invariants: the model, the list of operations and `result` are used under `lock` only; an operation is
 * begun in the model before it is submitted and ended after it returned.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/math.h"
#include "io/shadow.h"

#define SECTOR	    512u
#define MAX_BYTES   (1u << 20)
#define HOT_BYTES   (8u << 20)
#define THREADS_MAX 16
#define OPS_KEPT    65536u

enum op { OP_READ, OP_WRITE, OP_FUA, OP_ZERO, OP_DISCARD, OP_FSYNC, OP_COUNT };

static const char *const op_names[] = {"read", "write",	  "write with FUA",
				       "zero", "discard", "fsync"};

struct record {
	uint64_t number; /* from 1; 0: none */
	uint64_t offset;
	uint32_t len;
	uint8_t op, thread;
};

struct range {
	uint64_t offset, len;
};

struct worker {
	pthread_t thread;
	unsigned number;
	uint64_t random;
	uint8_t *buf;
};

static struct {
	const char *path, *model, *end_file;
	uint64_t seed, ops_max, seconds, granularity;
	unsigned threads;
	bool discards, buffered, verify_only;

	int fd;
	bool is_file;
	uint64_t size;
	uint32_t block;
	time_t until;

	pthread_mutex_t lock;
	struct shadow *shadow;
	uint64_t ops;
	uint64_t counts[OP_COUNT];
	struct record records[OPS_KEPT];
	int result;
} fsx = {.seed = 1, .threads = 1, .lock = PTHREAD_MUTEX_INITIALIZER};

static void die(const char *what)
{
	fprintf(stderr, "fsx: %s: %s\n", what, strerror(errno));
	exit(3);
}

static uint64_t rnd(struct worker *w, uint64_t below)
{
	w->random ^= w->random >> 12;
	w->random ^= w->random << 25;
	w->random ^= w->random >> 27;
	return (w->random * 0x2545f4914f6cdd1dull >> 8) % below;
}

/* ---- what is wrong ---- */

static void print_history(uint64_t offset)
{
	uint64_t first = fsx.ops > OPS_KEPT ? fsx.ops - OPS_KEPT + 1 : 1;

	for (uint64_t n = first; n <= fsx.ops; n++) {
		const struct record *r = &fsx.records[n % OPS_KEPT];

		if (r->op == OP_FSYNC || (r->offset <= offset && offset < r->offset + r->len))
			if (r->op != OP_FSYNC || fsx.ops - n < 4)
				printf("fsx:   %llu of thread %u: %s %llu+%u\n",
				       (unsigned long long)r->number, r->thread, op_names[r->op],
				       (unsigned long long)r->offset, r->len);
	}
}

/* Under the lock. */
static void differs(uint64_t at, const uint8_t *found)
{
	const uint64_t *words = (const uint64_t *)found;

	if (fsx.result)
		return;
	fsx.result = 1;
	printf("fsx: seed %llu: after %llu operations the sector at %llu is not as the model has "
	       "it; it begins with"
	       " %016llx %016llx %016llx. What touched it:\n",
	       (unsigned long long)fsx.seed, (unsigned long long)fsx.ops, (unsigned long long)at,
	       (unsigned long long)words[0], (unsigned long long)words[1],
	       (unsigned long long)words[2]);
	print_history(at);
}

static void op_failed(enum op op, uint64_t offset, uint32_t len)
{
	int error = errno;

	pthread_mutex_lock(&fsx.lock);
	if (!fsx.result) {
		fsx.result = 3;
		printf("fsx: %s %llu+%u failed: %s\n", op_names[op], (unsigned long long)offset,
		       len, strerror(error));
	}
	pthread_mutex_unlock(&fsx.lock);
}

/* ---- one operation ---- */

/* Sectors that differ from each other and from what was there; one write of eight is zeros. */
static void fill(struct worker *w, uint64_t number, uint64_t offset, uint32_t len)
{
	uint64_t *words = (uint64_t *)w->buf, kind = rnd(w, 8);

	if (!kind) {
		memset(w->buf, 0, len);
		return;
	}
	for (uint32_t i = 0; i < len / 8; i++) {
		uint64_t sector = (offset + (uint64_t)i * 8) / SECTOR;

		if (i % (SECTOR / 8) == 0)
			words[i] = number;
		else if (i % (SECTOR / 8) == 1)
			words[i] = sector;
		else if (kind < 5) /* this can be compressed */
			words[i] = number * 0x9e3779b97f4a7c15ull;
		else
			words[i] = (sector << 32 ^ number ^ i) * 0x9e3779b97f4a7c15ull * (i + 1);
	}
}

/* What is other bytes afterwards; of a discard, the part that must be zeros. */
static struct range changed_by(enum op op, uint64_t offset, uint32_t len)
{
	uint64_t end = offset + len;

	if (op == OP_READ || op == OP_FSYNC)
		return (struct range){offset, 0};
	if (op == OP_DISCARD && fsx.granularity && !fsx.is_file) {
		offset = align_up(offset, fsx.granularity);
		if (end != fsx.size)
			end = align_down(end, fsx.granularity);
	}
	return (struct range){offset, end > offset ? end - offset : 0};
}

static bool transfer(struct worker *w, enum op op, uint64_t offset, uint32_t len)
{
	uint32_t done = 0;

	while (done < len) {
		struct iovec part = {w->buf + done, len - done};
		ssize_t n = op == OP_READ ? preadv(fsx.fd, &part, 1, (off_t)(offset + done))
					  : pwritev2(fsx.fd, &part, 1, (off_t)(offset + done),
						     op == OP_FUA ? RWF_DSYNC : 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			errno = n ? errno : ENODATA;
			return false;
		}
		done += (uint32_t)n;
	}
	return true;
}

static bool perform(struct worker *w, enum op op, uint64_t offset, uint32_t len)
{
	uint64_t range[2] = {offset, len};
	int mode = FALLOC_FL_KEEP_SIZE;

	switch (op) {
	case OP_READ:
	case OP_WRITE:
	case OP_FUA:
		return transfer(w, op, offset, len);
	case OP_FSYNC:
		return fsync(fsx.fd) == 0;
	case OP_DISCARD:
		if (!fsx.is_file)
			return ioctl(fsx.fd, BLKDISCARD, range) == 0;
		return fallocate(fsx.fd, mode | FALLOC_FL_PUNCH_HOLE, (off_t)offset, len) == 0;
	default:
		/* with and without the space given back */
		mode |= rnd(w, 2) ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
		return fallocate(fsx.fd, mode, (off_t)offset, len) == 0;
	}
}

static void choose_range(struct worker *w, uint64_t *offset, uint32_t *len)
{
	uint64_t area = rnd(w, 4) ? min_of(fsx.size, (uint64_t)HOT_BYTES) : fsx.size;
	uint64_t longest = rnd(w, 8) ? 64 * KiB : MAX_BYTES;

	if (!rnd(w, 3))
		longest = 16 * KiB;
	*len = (uint32_t)((1 + rnd(w, longest / fsx.block)) * fsx.block);
	*offset = rnd(w, area / fsx.block) * fsx.block;
	if (!rnd(w, 4)) /* whole clusters */
		*offset = align_down(*offset, 64 * KiB);
	if (*len > fsx.size - *offset)
		*len = (uint32_t)(fsx.size - *offset);
}

static enum op choose_op(struct worker *w)
{
	uint64_t n = rnd(w, 100);

	return n < 36	? OP_READ
	       : n < 74 ? OP_WRITE
	       : n < 80 ? OP_FUA
	       : n < 88 ? OP_ZERO
	       : n < 96 ? (fsx.discards ? OP_DISCARD : OP_ZERO)
			: OP_FSYNC;
}

/* Counts the operation and, if it changes anything, begins it in the model; false: there is no next one. */
static bool op_begin(struct worker *w, enum op op, uint64_t offset, uint32_t len,
		     const struct range *changed, uint64_t *moment)
{
	bool data = op == OP_WRITE || op == OP_FUA;
	uint64_t number;

	pthread_mutex_lock(&fsx.lock);
	if (fsx.result || (fsx.ops_max && fsx.ops >= fsx.ops_max)) {
		pthread_mutex_unlock(&fsx.lock);
		return false;
	}
	number = ++fsx.ops;
	fsx.counts[op]++;
	fsx.records[number % OPS_KEPT] =
		(struct record){number, offset, len, (uint8_t)op, (uint8_t)w->number};
	if (data)
		fill(w, number + (fsx.seed << 32), offset, len);
	if (changed->len)
		shadow_write_begin(fsx.shadow, changed->offset, data ? w->buf : NULL, changed->len);
	*moment = shadow_now(fsx.shadow);
	pthread_mutex_unlock(&fsx.lock);
	return true;
}

/* False: it was the last one. */
static bool one_op(struct worker *w)
{
	enum op op = choose_op(w);
	uint64_t offset, moment, at;
	struct range changed;
	uint32_t len;
	bool ok;

	choose_range(w, &offset, &len);
	changed = changed_by(op, offset, len);
	if (op == OP_DISCARD && fsx.buffered) {
		if (!changed.len)
			return true;
		offset = changed.offset;
		len = (uint32_t)changed.len;
	}
	if (!op_begin(w, op, offset, len, &changed, &moment))
		return false;
	ok = perform(w, op, offset, len);
	if (!ok)
		op_failed(op, offset, len);
	pthread_mutex_lock(&fsx.lock);
	if (changed.len)
		shadow_write_end(fsx.shadow, changed.offset, changed.len, !ok);
	if (ok && op == OP_READ) {
		at = shadow_compare(fsx.shadow, offset, w->buf, len, moment);
		if (at != SHADOW_EQUAL)
			differs(at, w->buf + (at - offset));
	}
	pthread_mutex_unlock(&fsx.lock);
	return ok;
}

static void *work(void *arg)
{
	struct worker *w = arg;

	for (unsigned n = 0;; n++) {
		if (n % 16 == 0 && fsx.end_file && access(fsx.end_file, F_OK) == 0)
			break;
		if ((fsx.until && time(NULL) >= fsx.until) || !one_op(w))
			break;
	}
	return NULL;
}

/* ---- all of it ---- */

static void compare_all(struct worker *w)
{
	for (uint64_t offset = 0; offset < fsx.size && !fsx.result; offset += MAX_BYTES) {
		uint32_t len = (uint32_t)min_of(fsx.size - offset, (uint64_t)MAX_BYTES);
		uint64_t at;

		if (!transfer(w, OP_READ, offset, len)) {
			op_failed(OP_READ, offset, len);
			return;
		}
		at = shadow_compare(fsx.shadow, offset, w->buf, len, shadow_now(fsx.shadow));
		if (at != SHADOW_EQUAL)
			differs(at, w->buf + (at - offset));
	}
}

static void open_device(void)
{
	struct stat st;
	int block = (int)SECTOR;

	fsx.fd = open(fsx.path, (fsx.verify_only ? O_RDONLY : O_RDWR) | O_CLOEXEC |
					(fsx.buffered ? 0 : O_DIRECT));
	if (fsx.fd < 0 || fstat(fsx.fd, &st))
		die(fsx.path);
	fsx.is_file = S_ISREG(st.st_mode);
	if (fsx.is_file)
		fsx.size = (uint64_t)st.st_size;
	else if (ioctl(fsx.fd, BLKGETSIZE64, &fsx.size) || ioctl(fsx.fd, BLKSSZGET, &block))
		die(fsx.path);
	fsx.block = fsx.is_file ? 4096 : (uint32_t)block;
	if (fsx.size < fsx.block || fsx.size % SECTOR) {
		fprintf(stderr, "fsx: %s has %llu bytes\n", fsx.path, (unsigned long long)fsx.size);
		exit(3);
	}
	fsx.shadow = shadow_create(fsx.size);
	if (!fsx.shadow)
		die("the model");
	if (fsx.model && !access(fsx.model, F_OK)) {
		errno = -shadow_load(fsx.shadow, fsx.model);
		if (errno)
			die(fsx.model);
	} else if (fsx.verify_only) {
		die(fsx.model ? fsx.model : "no model");
	}
}

static void run(struct worker *workers)
{
	fsx.until = fsx.seconds ? time(NULL) + (time_t)fsx.seconds : 0;
	for (unsigned i = 0; i < fsx.threads; i++)
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			die("pthread_create");
	for (unsigned i = 0; i < fsx.threads; i++)
		pthread_join(workers[i].thread, NULL);
}

static void report(void)
{
	printf("fsx: seed %llu: %llu operations", (unsigned long long)fsx.seed,
	       (unsigned long long)fsx.ops);
	for (int i = 0; i < OP_COUNT; i++)
		if (fsx.counts[i])
			printf(", %llu %s", (unsigned long long)fsx.counts[i], op_names[i]);
	printf("; %s\n", fsx.result ? "FAILED" : "all as the model has it");
}

static int usage(void)
{
	fprintf(stderr, "usage: fsx [-s SEED] [-j THREADS] [-n OPERATIONS] [-t SECONDS] [-e FILE]\n"
			"           [-d GRANULARITY] [-b] [-v] [-m MODEL] DEVICE\n");
	return 2;
}

static bool arguments(int argc, char **argv)
{
	int opt;

	while ((opt = getopt(argc, argv, "s:j:n:t:e:d:bvm:")) != -1) {
		switch (opt) {
		case 's':
			fsx.seed = strtoull(optarg, NULL, 0);
			break;
		case 'j':
			fsx.threads = (unsigned)atoi(optarg);
			break;
		case 'n':
			fsx.ops_max = strtoull(optarg, NULL, 0);
			break;
		case 't':
			fsx.seconds = strtoull(optarg, NULL, 0);
			break;
		case 'e':
			fsx.end_file = optarg;
			break;
		case 'd':
			fsx.discards = true;
			fsx.granularity = strtoull(optarg, NULL, 0);
			break;
		case 'b':
			fsx.buffered = true;
			break;
		case 'v':
			fsx.verify_only = true;
			break;
		case 'm':
			fsx.model = optarg;
			break;
		default:
			return false;
		}
	}
	if (!fsx.ops_max && !fsx.seconds && !fsx.end_file)
		fsx.ops_max = 1000;
	fsx.path = argv[optind];
	return argc == optind + 1 && fsx.threads >= 1 && fsx.threads <= THREADS_MAX &&
	       (!fsx.granularity || is_pow2(fsx.granularity));
}

int main(int argc, char **argv)
{
	struct worker workers[THREADS_MAX] = {0};

	if (!arguments(argc, argv))
		return usage();
	open_device();
	for (unsigned i = 0; i < fsx.threads; i++) {
		workers[i].number = i;
		workers[i].random = (fsx.seed * THREADS_MAX + i + 1) * 0x9e3779b97f4a7c15ull;
		if (posix_memalign((void **)&workers[i].buf, 4096, MAX_BYTES))
			die("memory");
	}
	compare_all(&workers[0]);
	if (!fsx.verify_only && !fsx.result) {
		run(workers);
		if (!fsx.result)
			compare_all(&workers[0]);
		if (fsx.model && !fsx.result) {
			errno = -shadow_save(fsx.shadow, fsx.model);
			if (errno)
				die(fsx.model);
		}
	}
	report();
	return fsx.result;
}
