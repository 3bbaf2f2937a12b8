/* SPDX-License-Identifier: MIT */
/*
 * make-script.c: writes a random sequence of commands that qemu-io and qcow2-io both understand.
 *
 * The same arguments give the same script on every machine. Requests of one batch (aio_ commands up
 * to the next aio_flush) that change data never overlap, so that the outcome does not depend on their
 * order, but often share a cluster; reads may overlap anything. Offsets favour what goes wrong: cluster
 * and L2 boundaries, the end of the disk, and a few hot places that are written again and again.
 *
 * With -A the script is for qcow2-io: zero-writes and discards of a batch are in flight with the rest.
 * Without it, for qemu-io, they are the only request in flight: it has no aio_discard, and QEMU 7.2
 * loses a cluster when part of it is zeroed (with unmapping) while another part is being written: the
 * zeroing sees a cluster that reads as zeros, and frees the host cluster that the write goes to.
 */
#include <assert.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define SECTOR	   512
#define HOT_PLACES 12
#define BATCH_MAX  32
#define PATTERNS   8 /* pattern files that the caller has made: p0 .. p7 */

struct range {
	uint64_t start, end;
};

struct gen {
	uint64_t state;
	uint64_t size, cluster, max_len;
	const char *patterns; /* folder of the pattern files; NULL: single bytes only */
	bool no_discard, for_ours;
	uint64_t hot[HOT_PLACES];
	struct range batch[BATCH_MAX];
	unsigned batch_count;
};

/* splitmix64 */
static uint64_t next(struct gen *g)
{
	uint64_t z = g->state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint64_t below(struct gen *g, uint64_t n)
{
	return next(g) % n;
}

static bool chance(struct gen *g, unsigned percent)
{
	return below(g, 100) < percent;
}

static uint64_t pick_offset(struct gen *g)
{
	uint64_t l2_covers = g->cluster * (g->cluster / 8);
	uint64_t base;

	switch (below(g, 6)) {
	case 0:
		base = below(g, g->size);
		break;
	case 1: /* near the end */
		base = g->size - 1 - below(g, g->size < 3 * g->cluster ? g->size : 3 * g->cluster);
		break;
	case 2: /* around an L2 table's edge */
		base = below(g, g->size / l2_covers + 1) * l2_covers;
		base += below(g, 3) * g->cluster;
		base = base < g->cluster ? 0 : base - g->cluster;
		break;
	default:
		base = g->hot[below(g, HOT_PLACES)] + below(g, 4 * g->cluster);
		break;
	}
	if (chance(g, 40))
		base -= base % g->cluster;
	base -= base % SECTOR;
	return base < g->size ? base : g->size - SECTOR;
}

static uint64_t pick_len(struct gen *g, uint64_t offset)
{
	uint64_t len;

	switch (below(g, 5)) {
	case 0:
		len = SECTOR * (1 + below(g, 8));
		break;
	case 1:
		len = 4096 * (1 + below(g, 4));
		break;
	case 2: /* to a cluster's end, or a few whole ones */
		len = g->cluster - offset % g->cluster + below(g, 4) * g->cluster;
		break;
	case 3:
		len = SECTOR * (1 + below(g, 2 * g->cluster / SECTOR));
		break;
	default:
		len = SECTOR * (1 + below(g, g->max_len / SECTOR));
		break;
	}
	if (len > g->max_len)
		len = g->max_len;
	if (chance(g, 3) || len > g->size - offset)
		len = g->size - offset < g->max_len ? g->size - offset : g->max_len;
	return len;
}

static bool overlaps_batch(const struct gen *g, uint64_t offset, uint64_t len)
{
	for (unsigned i = 0; i < g->batch_count; i++)
		if (offset < g->batch[i].end && g->batch[i].start < offset + len)
			return true;
	return false;
}

static void print_write(struct gen *g, bool aio, uint64_t offset, uint64_t len)
{
	if (!aio && g->patterns && chance(g, 60))
		printf("write -q -s %s/p%u", g->patterns, (unsigned)below(g, PATTERNS));
	else
		printf("%swrite -q%s -P 0x%02x", aio ? "aio_" : "", chance(g, 5) ? " -f" : "",
		       (unsigned)(1 + below(g, 255)));
	printf(" %" PRIu64 " %" PRIu64 "\n", offset, len);
}

static void print_op(struct gen *g, bool aio)
{
	uint64_t offset = pick_offset(g), len = pick_len(g, offset);
	const char *prefix = aio ? "aio_" : "";
	unsigned kind = below(g, 100);

	if (kind < 15) {
		printf("%sread -q %" PRIu64 " %" PRIu64 "\n", prefix, offset, len);
		return;
	}
	if (aio && overlaps_batch(g, offset, len))
		return;
	if (aio)
		g->batch[g->batch_count++] = (struct range){offset, offset + len};
	if (kind >= 75 && aio && !g->for_ours) {
		printf("aio_flush\n");
		prefix = "";
	}
	if (kind >= 85 && !g->no_discard)
		printf("%sdiscard -q %" PRIu64 " %" PRIu64 "\n", prefix, offset, len);
	else if (kind >= 75)
		printf("%swrite -q -z%s %" PRIu64 " %" PRIu64 "\n", prefix, chance(g, 50) ? " -u" : "",
		       offset, len);
	else
		print_write(g, aio, offset, len);
}

static void generate(struct gen *g, unsigned ops)
{
	for (unsigned i = 0; i < HOT_PLACES; i++)
		g->hot[i] = below(g, g->size) / g->cluster * g->cluster;
	for (unsigned i = 0; i < ops;) {
		unsigned n = chance(g, 50) ? 1 : 2 + below(g, BATCH_MAX - 1);

		if (chance(g, 8))
			printf("flush\n");
		g->batch_count = 0;
		for (unsigned j = 0; j < n; j++)
			print_op(g, n > 1);
		if (n > 1)
			printf("aio_flush\n");
		i += n;
	}
}

int main(int argc, char **argv)
{
	struct gen g = {.max_len = 1 << 20};
	unsigned ops;
	int opt;

	while ((opt = getopt(argc, argv, "p:m:DA")) != -1) {
		switch (opt) {
		case 'p': g.patterns = optarg; break;
		case 'm': g.max_len = strtoull(optarg, NULL, 0); break;
		case 'D': g.no_discard = true; break;
		case 'A': g.for_ours = true; break;
		default: return 2;
		}
	}
	if (argc - optind != 4) {
		fprintf(stderr, "usage: make-script [-p FOLDER] [-m MAX_LENGTH] [-D] [-A] SEED SIZE CLUSTER OPS\n");
		return 2;
	}
	g.state = strtoull(argv[optind], NULL, 0);
	g.size = strtoull(argv[optind + 1], NULL, 0);
	g.cluster = strtoull(argv[optind + 2], NULL, 0);
	ops = strtoul(argv[optind + 3], NULL, 0);
	if (!g.size || g.size % SECTOR || g.cluster < SECTOR || g.max_len < SECTOR)
		return 2;
	generate(&g, ops);
	return 0;
}
