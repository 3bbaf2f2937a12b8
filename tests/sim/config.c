/* SPDX-License-Identifier: MIT */
/*
 * config.c: what a seed stands for: the shape of the image and the character of the workload.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/math.h"
#include "encrypt.h"
#include "run.h"

const char *const run_profile_names[RUN_PROFILES] = {"tiny", "small", "mixed", "churn", "grow",
								"overlap", "snaps"};

static void image_shape(struct run_config *cfg, struct rng *r)
{
	struct qcow2_create_options *c = &cfg->create;
	unsigned cluster_bits = 9;
	uint64_t size = 0;

	switch (cfg->profile) {
	case RUN_TINY:
		cluster_bits = 9 + rng_below(r, 2);
		size = rng_range(r, 16, 128) * KiB;
		break;
	case RUN_SMALL:
		cluster_bits = 9 + rng_below(r, 4);
		size = rng_range(r, 64, 512) * KiB;
		break;
	case RUN_MIXED:
		cluster_bits = 9 + rng_below(r, 8);
		if (rng_chance(r, 30))
			cluster_bits = 14; /* the smallest that may have subclusters */
		size = rng_range(r, 64, 1024) * KiB;
		break;
	case RUN_CHURN:
		cluster_bits = 9 + rng_below(r, 3);
		size = rng_range(r, 16, 96) * KiB;
		break;
	case RUN_OVERLAP:
		cluster_bits = 14 + rng_below(r, 3);
		size = (uint64_t)rng_range(r, 1, 3) << cluster_bits;
		break;
	case RUN_SNAPS:
		cluster_bits = 10 + rng_below(r, 3);
		size = rng_range(r, 16, 96) * KiB;
		break;
	default:
		size = rng_range(r, 2048, 4096) * KiB;
		break;
	}
	if (cfg->profile != RUN_OVERLAP && rng_chance(r, 50))
		size -= rng_below(r, 16) * SECTOR_BYTES;
	c->size_bytes = size;
	c->cluster_bytes = 1u << cluster_bits;
	c->version = rng_chance(r, 70) || cfg->profile == RUN_OVERLAP ? 3 : 2;
	c->refcount_bits = c->version == 2 ? 16 : 1u << rng_below(r, 7);
	if (cfg->profile == RUN_GROW) {
		c->version = 3;
		c->refcount_bits = 64;
	}
	if (cfg->profile == RUN_SNAPS) /* one bit has room for no snapshot, two for two */
		c->refcount_bits = max_of(c->refcount_bits, 4u);
	if (c->version == 3 && c->cluster_bytes >= 16 * KiB && rng_chance(r, 50))
		c->extended_l2 = true;
	if (cfg->profile != RUN_GROW && rng_chance(r, 15))
		c->preallocation = QCOW2_PREALLOC_METADATA + rng_below(r, 3);
}

static void requests_shape(struct run_config *cfg, struct rng *r)
{
	unsigned cluster_sectors = cfg->create.cluster_bytes / SECTOR_BYTES;

	cfg->weight_write = rng_range(r, 20, 80);
	cfg->weight_read = rng_range(r, 0, 30);
	cfg->weight_flush = rng_range(r, 2, 30);
	cfg->weight_discard = rng_chance(r, 60) ? rng_range(r, 0, 40) : 0;
	cfg->weight_zero = rng_chance(r, 60) ? rng_range(r, 0, 40) : 0;
	cfg->fua_percent = rng_chance(r, 50) ? rng_range(r, 0, 40) : 0;
	cfg->hot_percent = rng_range(r, 0, 100);
	cfg->max_sectors = rng_range(r, 1, max_of(8u, cluster_sectors * 3));
	cfg->depth = rng_range(r, 1, 16);
	cfg->queues = rng_range(r, 1, RUN_MAX_QUEUES);
	if (rng_chance(r, 40))
		cfg->queues = 1;
	cfg->requests = rng_range(r, 30, 200);
	cfg->nounmap_percent = 40;
	if (cfg->profile == RUN_TINY) {
		cfg->requests = rng_range(r, 3, 14);
		cfg->depth = rng_range(r, 1, 4);
		cfg->max_sectors = rng_range(r, 1, 4);
	} else if (cfg->profile == RUN_CHURN) {
		cfg->depth = rng_range(r, 4, 16);
		cfg->max_sectors = rng_range(r, 1, cluster_sectors * 4);
		cfg->weight_read = rng_range(r, 10, 40);
		cfg->weight_discard = rng_range(r, 20, 60);
		cfg->weight_flush = rng_range(r, 5, 20);
	} else if (cfg->profile == RUN_OVERLAP) {
		cfg->requests = rng_range(r, 200, 600);
		cfg->depth = rng_range(r, 8, 16);
		cfg->max_sectors = rng_range(r, 1, 4);
		cfg->weight_write = rng_range(r, 20, 60);
		cfg->weight_read = rng_range(r, 40, 80);
		cfg->weight_discard = rng_chance(r, 30) ? rng_range(r, 1, 20) : 0;
		cfg->weight_zero = rng_range(r, 5, 30);
		cfg->weight_flush = rng_range(r, 0, 5);
		cfg->nounmap_percent = rng_range(r, 30, 100);
		cfg->hot_percent = 0;
	} else if (cfg->profile == RUN_SNAPS) {
		cfg->requests = 300;
		cfg->depth = rng_range(r, 4, 16);
		cfg->max_sectors = rng_range(r, 1, cluster_sectors * 2);
	} else if (cfg->profile == RUN_GROW) {
		cfg->requests = rng_range(r, 60, 160);
		cfg->max_sectors = rng_range(r, 32, 128);
		cfg->hot_percent = 10;
		cfg->weight_write = 100;
	}
	cfg->max_sectors = min_of(cfg->max_sectors, cfg->create.size_bytes / SECTOR_BYTES);
}

static void schedule_shape(struct run_config *cfg, struct rng *r)
{
	cfg->turn_weight = rng_range(r, 1, 50);
	cfg->io_weight = rng_range(r, 1, 50);
	cfg->submit_weight = rng_range(r, 1, 50);
	cfg->time_weight = rng_chance(r, 50) ? rng_range(r, 1, 10) : 0;
	cfg->io_order = rng_below(r, 5);
	if (cfg->profile == RUN_CHURN || cfg->profile == RUN_OVERLAP || cfg->profile == RUN_SNAPS)
		cfg->io_order = 4;
	if (cfg->profile == RUN_OVERLAP) { /* as much as possible is in flight */
		cfg->io_weight = rng_range(r, 5, 20);
		cfg->turn_weight = cfg->submit_weight = 50;
	}
	cfg->starved = rng_below(r, 3); /* READ, WRITE, SYNC */
	cfg->meta_apart = rng_chance(r, 50);
	cfg->close_inside = rng_chance(r, 75);
	cfg->can_punch = rng_chance(r, 80);
	cfg->no_zero = rng_chance(r, 30);
}

static void data_apart(struct run_config *cfg, struct rng *r)
{
	struct qcow2_create_options *c = &cfg->create;

	c->version = 3;
	cfg->data = rng_chance(r, 35) ? RUN_DATA_RAW : RUN_DATA_FILE;
	cfg->data_device = rng_chance(r, 20);
	cfg->open.compress = false;
	c->data_file = NAMED_DATA_FILE;
	c->data_file_raw = cfg->data == RUN_DATA_RAW; /* not as it may have been chosen before */
	if (!c->data_file_raw)
		return;
	c->preallocation = QCOW2_PREALLOC_METADATA;
	cfg->below_seed = 0;
}

/* Of some seeds the data lies in a file of its own. */
static void data_shape(struct run_config *cfg)
{
	struct rng r = rng_make(cfg->seed, cfg->profile, 0xda7a);

	if (cfg->create.version == 3 && cfg->profile != RUN_SNAPS && rng_chance(&r, 16))
		data_apart(cfg, &r);
}

static void encrypted(struct run_config *cfg, struct rng *r)
{
	struct qcow2_create_options *c = &cfg->create;

	encrypt_choose(c, r);
	cfg->open.passphrase = c->passphrase;
	cfg->open.compress = false;
	if (c->version < 3)
		c->preallocation = QCOW2_PREALLOC_OFF;
}

/* Of some it is encrypted; the LUKS header makes the image larger. */
static void crypto_shape(struct run_config *cfg)
{
	struct rng r = rng_make(cfg->seed, cfg->profile, 0xc41f);

	if (cfg->profile != RUN_GROW && cfg->data != RUN_DATA_RAW &&
	    rng_chance(&r, cfg->data ? 35 : 12))
		encrypted(cfg, &r);
}

/* Of some seeds there are writes of zeros, which may be noticed; of a few discards do nothing. */
static void zeros_shape(struct run_config *cfg)
{
	struct rng r = rng_make(cfg->seed, cfg->profile, 0x2e05);

	cfg->open.discard_ignore = rng_chance(&r, 6);
	if (!rng_chance(&r, 25))
		return;
	cfg->zeros_percent = rng_range(&r, 10, 60);
	cfg->open.detect_zeroes = rng_below(&r, 3);
}

void run_config_make(struct run_config *cfg, enum run_profile profile, uint64_t seed)
{
	static const uint64_t delays_ms[] = {0, 1, 20, 1000};
	struct rng r = rng_make(seed, profile, 0xc0f);
	struct qcow2_create_options *c = &cfg->create;

	*cfg = (struct run_config){.profile = profile, .seed = seed};
	image_shape(cfg, &r);
	requests_shape(cfg, &r);
	schedule_shape(cfg, &r);
	cfg->open.no_lock = true;
	cfg->open.cache_size_bytes = rng_chance(&r, 70) ? rng_range(&r, 1, 8) * 4096 : 0;
	cfg->open.writeback_delay_ms = delays_ms[rng_below(&r, ARRAY_LEN(delays_ms))];
	if (rng_chance(&r, 50))
		cfg->log_bytes = rng_chance(&r, 50) ? 128 * KiB : MiB;
	cfg->device = profile != RUN_GROW && rng_chance(&r, 15);
	cfg->block_bytes = SECTOR_BYTES;
	/* what is allocated has whole blocks: clusters, or 32 subclusters of one */
	if (cfg->create.cluster_bytes >= (cfg->create.extended_l2 ? 32 * 4096u : 4096u) &&
	    rng_chance(&r, 40))
		cfg->block_bytes = 4096;
	cfg->create.size_bytes = align_down(cfg->create.size_bytes, cfg->block_bytes);
	cfg->max_sectors = align_up(cfg->max_sectors, cfg->block_bytes / SECTOR_BYTES);
	cfg->max_sectors = min_of(cfg->max_sectors, cfg->create.size_bytes / SECTOR_BYTES);
	cfg->reissue_percent = rng_chance(&r, 70) ? 100 : rng_range(&r, 0, 100);
	cfg->open.compress = rng_chance(&r, 25);
	if (c->version >= 3)
		c->zstd = rng_chance(&r, 50);
	cfg->open.max_inflight = cfg->queues * cfg->depth;
	if (rng_chance(&r, 30) && cfg->create.preallocation == QCOW2_PREALLOC_OFF)
		cfg->below_seed = 1 + rng_below(&r, 1000000);
	cfg->open.reclaim_delay_ms = rng_chance(&r, 70) ? 1 : 0;
	data_shape(cfg);
	crypto_shape(cfg);
	zeros_shape(cfg);
	if (c->version >= 3 && rng_chance(&r, 40))
		cfg->bitmaps = rng_range(&r, 1, BITS_MAX);
	if (cfg->bitmaps && cfg->log_bytes)
		cfg->log_bytes = 256 * KiB; /* the smallest has no room for what they need */
	cfg->registered = rng_chance(&r, 40);
}

void run_config_resize(struct run_config *cfg)
{
	struct rng r = rng_make(cfg->seed, cfg->profile, 0x5125);
	uint64_t old = cfg->create.size_bytes, size;

	/* a second run begins with this one's disk on other seeds */
	if (cfg->seed % 3 != 1 || cfg->profile == RUN_SNAPS || rng_chance(&r, 30))
		return;
	if (rng_chance(&r, 50) && !cfg->device) {
		/* by what more L1 entries cover, where that is little */
		size = old + rng_range(&r, 1, rng_chance(&r, 30) ? 16 * cfg->create.cluster_bytes
							       : max_of(old, 160 * KiB));
	} else {
		size = rng_range(&r, cfg->block_bytes, old);
		cfg->log_bytes = 0;
	}
	size = align_down(size, cfg->block_bytes);
	cfg->resize_bytes = size == old ? 0 : size;
}

void run_config_snapshots(struct run_config *cfg)
{
	struct rng r = rng_make(cfg->seed, cfg->profile, 0x54a9);

	/* a second run begins with this one's disk on other seeds, and those with 1 are resized */
	if (cfg->profile == RUN_SNAPS)
		cfg->snapshots = SNAPS_MAX;
	else if (cfg->seed % 3 == 2 && !cfg->data)
		cfg->snapshots = rng_range(&r, 1, cfg->profile == RUN_TINY ? 2 : 6);
}

void run_config_kills(struct run_config *cfg)
{
	uint64_t log_bytes = cfg->log_bytes;
	struct rng r = rng_make(cfg->seed, cfg->profile, 0x6111);

	run_config_snapshots(cfg);
	if (!cfg->snapshots)
		run_config_resize(cfg);
	else if (cfg->create.version >= 3 && !cfg->device && rng_chance(&r, 40))
		cfg->resize_bytes = cfg->create.size_bytes +
				    rng_range(&r, 1, 40) * max_of(cfg->block_bytes, cfg->create.cluster_bytes / 2);
	if (cfg->resize_bytes < cfg->create.size_bytes) { /* which is for who has no log */
		cfg->resize_bytes = 0;
		cfg->log_bytes = log_bytes;
	}
	if (!cfg->snapshots && !cfg->create.luks && rng_chance(&r, 30))
		data_apart(cfg, &r);
}

void run_config_faults(struct run_config *cfg)
{
	struct rng r = rng_make(cfg->seed, cfg->profile, 0xfa17);

	cfg->requests = min_of(cfg->requests, cfg->profile == RUN_GROW ? 120u : 40u);
	if (cfg->seed % 4 == 2 && !cfg->create.luks)
		data_apart(cfg, &r);
	if (cfg->seed % 6 == 4 && cfg->data != RUN_DATA_RAW && cfg->profile != RUN_GROW)
		encrypted(cfg, &r);
	if (cfg->seed % 5 == 3 && !cfg->data)
		cfg->snapshots = rng_range(&r, 1, cfg->profile == RUN_TINY ? 2 : 4);
}

void run_config_print(const struct run_config *cfg)
{
	const struct qcow2_create_options *c = &cfg->create;

	printf("  %s seed %" PRIu64 ": version %u, cluster %u, refcount bits %u, size %" PRIu64
	       ", preallocation %d%s%s\n",
	       run_profile_names[cfg->profile], cfg->seed, c->version, c->cluster_bytes,
	       c->refcount_bits, c->size_bytes, c->preallocation,
	       c->extended_l2 ? ", extended L2" : "", cfg->below_seed ? ", a backing file" : "");
	if (cfg->registered)
		printf("  payloads in registered buffers\n");
	if (cfg->open.compress)
		printf("  writes are compressed, %s\n", c->zstd ? "zstd" : "zlib");
	if (cfg->zeros_percent)
		printf("  %u%% of writes are of zeros, and zeros are looked for: %d\n", cfg->zeros_percent,
		       cfg->open.detect_zeroes);
	if (cfg->open.discard_ignore)
		printf("  discards do nothing\n");
	printf("  on a %s with blocks of %u\n", cfg->device ? "block device" : "file",
	       cfg->block_bytes);
	if (cfg->data)
		printf("  the data in a %s%s\n", cfg->data == RUN_DATA_RAW ? "raw " : "",
		       cfg->data_device ? "block device of its own" : "file of its own");
	if (cfg->create.luks)
		printf("  encrypted: %s\n", cfg->create.luks_options.cipher_mode);
	if (cfg->bitmaps)
		printf("  %u dirty bitmap(s)\n", cfg->bitmaps);
	if (cfg->snapshots)
		printf("  %u operations on snapshots\n", cfg->snapshots);
	if (cfg->resize_bytes)
		printf("  resized to %" PRIu64 "\n", cfg->resize_bytes);
	printf("  cache %" PRIu64 ", write-back %" PRIu64
	       " ms, %u queue(s) of %u%s, %u requests of "
	       "up to %u sectors\n",
	       cfg->open.cache_size_bytes, cfg->open.writeback_delay_ms, cfg->queues, cfg->depth,
	       cfg->meta_apart ? ", metadata loop apart" : "", cfg->requests, cfg->max_sectors);
}
