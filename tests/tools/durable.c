// SPDX-License-Identifier: MIT
/*
 * durable.c: writes numbered blocks with fsync, and later tells which of those that were acknowledged
 * are not there.
 *
 *   durable write DEVICE STATE OFFSET BLOCKS SEED [SECONDS [STOP]]
 *   durable verify DEVICE STATE OFFSET BLOCKS
 *   durable verify-all DEVICE STATE OFFSET BLOCKS
 *
 * The blocks are 4 KiB each, BLOCKS of them from byte OFFSET of the device (or file). STATE is a file
 * that outlives the device (and the machine: each change is written at once, by pwrite): for each block
 * the highest version whose write was submitted, and the highest whose write was followed by an fsync
 * that completed.
 *
 * `write` has four threads, each with a quarter of the blocks, so that fsyncs overlap with writes and
 * with each other. A thread writes a random number of random blocks, then fsyncs, then records them as
 * acknowledged. It ends after SECONDS, or when there is a file STOP, or when the device fails (status 3).
 *
 * `verify` reads every block and requires that its content is one version throughout, that this version is
 * at least the acknowledged one and at most the submitted one, and that a block never written is
 * zero. It then records what it found, as that is what a later run starts from. Status 1 if a block is
 * wrong; each one is printed (up to 20). `verify-all` is for when no write failed: it requires the submitted
 * version of every block.
 *
 * Invariants of STATE, per block:
 *  1. submitted is raised before the write is issued, acked after the fsync that followed its
 *     completion has returned 0; so acked <= submitted always.
 *  2. Only the thread that owns a block changes its entry.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_BYTES   4096u
#define THREADS	      4
#define BATCH_MAX     16
#define READ_BLOCKS   256
#define WRONG_PRINTED 20
#define WORDS	      (BLOCK_BYTES / sizeof(uint64_t))

struct entry {
	uint32_t submitted;
	uint32_t acked;
};

/* The entries in memory, and the file that has the same. */
struct state {
	int fd;
	const char *path;
	struct entry *entries;
};

struct job {
	pthread_t thread;
	int fd;
	struct state *state;
	uint64_t offset_bytes;
	uint64_t first_block;
	uint64_t num_blocks;
	uint64_t random;
	time_t end;
	const char *stop; /* a file whose presence ends the run; NULL: none */
	uint64_t num_acked; /* result: writes acknowledged by an fsync */
	uint64_t num_syncs;
	int error; /* result: why it ended early, -errno */
};

static void die(const char *what)
{
	fprintf(stderr, "durable: %s: %s\n", what, strerror(errno));
	exit(2);
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (errno || *end || end == text) {
		fprintf(stderr, "durable: not a number: %s\n", text);
		exit(2);
	}
	return value;
}

/* xorshift64*: repeatable, and good enough to choose blocks. */
static uint64_t next_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dull;
}

/* The content of a version: every word differs, so that a torn or misplaced sector shows. */
static void fill(uint64_t *words, uint64_t block, uint32_t version)
{
	uint64_t i;

	words[0] = (uint64_t)version << 32 | 0xb10cu;
	for (i = 1; i < WORDS; i++)
		words[i] = (block << 32 | i << 20) ^ ((uint64_t)version * 0x9e3779b97f4a7c15ull);
}

static void entry_store(struct state *state, uint64_t block)
{
	if (pwrite(state->fd, &state->entries[block], sizeof(struct entry),
		   (off_t)(block * sizeof(struct entry))) != sizeof(struct entry))
		die(state->path);
}

static void *write_blocks(void *arg)
{
	struct job *job = arg;
	uint64_t *buf;
	uint32_t batch, i;
	uint64_t blocks[BATCH_MAX];
	struct entry *e;

	if (posix_memalign((void **)&buf, BLOCK_BYTES, BLOCK_BYTES))
		abort();
	while (time(NULL) < job->end && !job->error && (!job->stop || access(job->stop, F_OK))) {
		batch = 1 + next_random(&job->random) % BATCH_MAX;
		for (i = 0; i < batch; i++) {
			blocks[i] = job->first_block + next_random(&job->random) % job->num_blocks;
			e = &job->state->entries[blocks[i]];
			e->submitted++;
			entry_store(job->state, blocks[i]);
			fill(buf, blocks[i], e->submitted);
			if (pwrite(job->fd, buf, BLOCK_BYTES,
				   (off_t)(job->offset_bytes + blocks[i] * BLOCK_BYTES)) != BLOCK_BYTES) {
				job->error = errno ? -errno : -EIO;
				break;
			}
		}
		if (job->error)
			break;
		if (fsync(job->fd)) {
			job->error = -errno;
			break;
		}
		job->num_syncs++;
		for (i = 0; i < batch; i++) {
			e = &job->state->entries[blocks[i]];
			e->acked = e->submitted;
			entry_store(job->state, blocks[i]);
		}
		job->num_acked += batch;
	}
	free(buf);
	return NULL;
}

static void state_load(struct state *state, const char *path, uint64_t num_blocks)
{
	size_t bytes = num_blocks * sizeof(struct entry);

	state->path = path;
	state->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	state->entries = calloc(num_blocks, sizeof(struct entry));
	if (state->fd < 0 || !state->entries || pread(state->fd, state->entries, bytes, 0) < 0)
		die(path);
}

/* All of it. */
static void state_store(struct state *state, uint64_t num_blocks)
{
	size_t bytes = num_blocks * sizeof(struct entry);

	if (pwrite(state->fd, state->entries, bytes, 0) != (ssize_t)bytes)
		die(state->path);
}

static int run_writers(int fd, struct state *state, uint64_t offset_bytes, uint64_t num_blocks,
		       uint64_t seed, uint64_t seconds, const char *stop)
{
	struct job jobs[THREADS] = {0};
	uint64_t acked = 0, syncs = 0;
	int i, error = 0;

	for (i = 0; i < THREADS; i++) {
		jobs[i] = (struct job){
			.fd = fd,
			.state = state,
			.offset_bytes = offset_bytes,
			.first_block = num_blocks / THREADS * (uint64_t)i,
			.num_blocks = num_blocks / THREADS,
			.random = (seed * THREADS + (uint64_t)i + 1) * 0x9e3779b97f4a7c15ull,
			.end = time(NULL) + (time_t)seconds,
			.stop = stop,
		};
		if (pthread_create(&jobs[i].thread, NULL, write_blocks, &jobs[i]))
			die("pthread_create");
	}
	for (i = 0; i < THREADS; i++) {
		pthread_join(jobs[i].thread, NULL);
		acked += jobs[i].num_acked;
		syncs += jobs[i].num_syncs;
		if (jobs[i].error)
			error = jobs[i].error;
	}
	printf("durable: seed %llu: %llu writes acknowledged by %llu fsyncs; %s\n",
	       (unsigned long long)seed, (unsigned long long)acked, (unsigned long long)syncs,
	       error ? strerror(-error) : "done");
	return error ? 3 : 0;
}

/* The version that a block holds, 0 if it is all zero; -1 if it is no version's content. */
static int64_t version_of(const uint64_t *words, uint64_t block)
{
	static const uint64_t zeros[WORDS];
	uint64_t expected[WORDS];

	if (!memcmp(words, zeros, BLOCK_BYTES))
		return 0;
	fill(expected, block, (uint32_t)(words[0] >> 32));
	return memcmp(words, expected, BLOCK_BYTES) ? -1 : (int64_t)(words[0] >> 32);
}

/* Whether a block that holds @version is as promised; then that is what a later run starts from. */
static bool version_ok(struct entry *e, int64_t version, bool all)
{
	if (version < (all ? e->submitted : e->acked) || version > e->submitted)
		return false;
	e->acked = (uint32_t)version;
	return true;
}

static int verify(int fd, struct state *state, uint64_t offset_bytes, uint64_t num_blocks, bool all)
{
	uint64_t *buf;
	uint64_t block, wrong = 0, written = 0, acked = 0;
	int64_t version;
	struct entry *e;

	if (posix_memalign((void **)&buf, BLOCK_BYTES, READ_BLOCKS * BLOCK_BYTES))
		abort();
	for (block = 0; block < num_blocks; block++) {
		uint64_t ahead = block % READ_BLOCKS;
		uint64_t count = num_blocks - block < READ_BLOCKS ? num_blocks - block : READ_BLOCKS;

		if (ahead == 0 &&
		    pread(fd, buf, count * BLOCK_BYTES, (off_t)(offset_bytes + block * BLOCK_BYTES)) !=
			    (ssize_t)(count * BLOCK_BYTES))
			die("read");
		e = &state->entries[block];
		written += e->submitted > 0;
		acked += e->acked > 0;
		version = version_of(buf + ahead * WORDS, block);
		if (!version_ok(e, version, all) && wrong++ < WRONG_PRINTED)
			printf("durable: block %llu holds version %lld; acknowledged %u, submitted %u\n",
			       (unsigned long long)block, (long long)version, e->acked,
			       e->submitted);
	}
	free(buf);
	state_store(state, num_blocks);
	printf("durable: %llu blocks written, %llu with an acknowledged version, %llu wrong\n",
	       (unsigned long long)written, (unsigned long long)acked, (unsigned long long)wrong);
	return wrong != 0;
}

int main(int argc, char **argv)
{
	struct state state;
	uint64_t offset_bytes, num_blocks;
	bool writing;
	int fd;

	if (argc < 6 || (strcmp(argv[1], "write") && strcmp(argv[1], "verify") &&
			 strcmp(argv[1], "verify-all"))) {
		fprintf(stderr, "usage: durable write DEVICE STATE OFFSET BLOCKS SEED [SECONDS [STOP]]\n"
				"       durable verify|verify-all DEVICE STATE OFFSET BLOCKS\n");
		return 2;
	}
	writing = !strcmp(argv[1], "write");
	offset_bytes = number(argv[4]);
	num_blocks = number(argv[5]);
	if (num_blocks < THREADS || num_blocks >= 1u << 31 || (writing && argc < 7)) {
		fprintf(stderr, "durable: bad number of blocks, or no seed\n");
		return 2;
	}
	state_load(&state, argv[3], num_blocks);
	fd = open(argv[2], (writing ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		die(argv[2]);
	if (writing)
		return run_writers(fd, &state, offset_bytes, num_blocks, number(argv[6]),
				   argc > 7 ? number(argv[7]) : 3600, argc > 8 ? argv[8] : NULL);
	return verify(fd, &state, offset_bytes, num_blocks, !strcmp(argv[1], "verify-all"));
}
