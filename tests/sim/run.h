/* SPDX-License-Identifier: MIT */
/*
 * run.h: one run of the engine over the simulated disk: an image, its loops and queues, and a guest
 * that keeps many requests in flight.
 *
 * Everything that happens follows from the seed: the image's shape, the requests, and the schedule,
 * which picks one thing at a time: turn a loop that is ready, let a pending I/O land, submit a
 * request, move the clock. When nothing is left to pick while requests are in flight, they hang,
 * and that is a failure; so is a run that takes more steps than RUN_MAX_STEPS.
 */
#ifndef SIM_RUN_H
#define SIM_RUN_H

#include "bits.h"
#include "guest.h"
#include "named.h"
#include "qcow2.h"
#include "simdisk.h"
#include "snaps.h"
#include "target/hold.h"

#define RUN_MAX_QUEUES 3
#define RUN_MAX_STEPS  2000000
#define RUN_HOLD_OPS   200 /* for how many other I/Os one may be held up */

/* Which kind of run a seed gives. */
enum run_profile {
	RUN_TINY,  /* a few requests on an image of some KiB: explored exhaustively */
	RUN_SMALL, /* 512-byte to 4 KiB clusters, small caches */
	RUN_MIXED, /* any geometry */
	RUN_CHURN, /* few clusters, allocated and freed all the time, with I/O that takes long */
	RUN_GROW,  /* much allocation in 512-byte clusters: the refcount structures grow */
	RUN_OVERLAP, /* a handful of large clusters, of which small parts are written, zeroed and read at once */
	RUN_SNAPS, /* one snapshot after the other, and writes that meet in two clusters, with I/O that takes long */
	RUN_PROFILES,
};

extern const char *const run_profile_names[RUN_PROFILES];

/* Where the guest's data lies. */
enum run_data {
	RUN_DATA_NONE, /* in the image */
	RUN_DATA_FILE, /* in an external data file */
	RUN_DATA_RAW,  /* the same, and that file alone is the disk */
};

struct run_config {
	enum run_profile profile;
	uint64_t seed;
	struct qcow2_create_options create;
	struct qcow2_options open;
	uint64_t below_seed;  /* of a backing file; 0: none */
	enum run_data data;
	bool data_device; /* the data file is a block device */
	uint32_t block_bytes; /* the storage's: what its I/O is a multiple of */
	bool device; /* the image lies on a block device: of fixed size, garbage past what is used */
	unsigned bitmaps;      /* dirty bitmaps in the image */
	unsigned snapshots;    /* operations on snapshots on the way */
	uint64_t resize_bytes; /* the disk gets this size on the way; 0: it does not */
	unsigned queues, depth, requests;
	bool meta_apart;	  /* the metadata loop serves no queue */
	uint64_t log_bytes;	  /* of the recovery log; 0: none */
	unsigned kills;		  /* how often the process is killed during the run */
	unsigned reissue_percent; /* of requests in flight at a kill; the others fail */
	bool close_inside; /* close in a coroutine, so that its I/O is scheduled like any other */
	bool can_punch, no_zero;
	bool registered; /* payloads lie in registered buffers, which a request has to ask for the bytes of */
	unsigned max_sectors; /* of a request */
	unsigned hot_percent; /* of requests go to a small part of the disk */
	unsigned weight_write, weight_read, weight_flush, weight_discard, weight_zero;
	unsigned fua_percent, nounmap_percent;
	unsigned zeros_percent; /* of writes have nothing but zeros */
	unsigned turn_weight, io_weight, submit_weight, time_weight;
	unsigned io_order; /* see pick_io() */
	enum storage_op starved;
};

void run_config_make(struct run_config *cfg, enum run_profile profile, uint64_t seed);
/*
 * Of some seeds the disk is resized, of others there are operations on snapshots. For run_whole() alone:
 * it is not part of the above.
 */
void run_config_resize(struct run_config *cfg);
void run_config_snapshots(struct run_config *cfg);
/* For kills_whole(), snapshots and a disk that grows included, and for faults_whole(); of more seeds than else the data lies apart. */
void run_config_kills(struct run_config *cfg);
void run_config_faults(struct run_config *cfg);
void run_config_print(const struct run_config *cfg);

/* Where a run goes on from, instead of a new image. */
struct run_origin {
	struct sim_map map;
	struct sim_map data;  /* of the data file, if there is one */
	struct snaps snaps;   /* that are in the map */
	uint32_t *values;     /* what each guest sector holds */
	uint32_t next_number; /* of requests; those before have been given away */
	struct arena arena;   /* of sectors that only this map has */
};

struct run;

struct slot {
	struct run *run;
	unsigned queue;
	struct blk_request req;
	struct loop_msg msg;
	struct loop_msg memory_msg; /* registered: the bytes come */
	void (*memory_ready)(struct blk_request *req, int ret);
	uint32_t number;
	bool busy, started;
	bool zeros; /* WRITE: of zeros, as WRITE_ZEROES */
	int ret;
	uint8_t *mem;
};

struct inside;

struct run {
	struct run_config cfg;
	struct rng rng;
	struct simdisk *base, *disk; /* the image as created; the run's */
	struct simfile *file;
	struct named named;
	struct guest guest;
	struct snaps snaps;
	struct bits_before bits_before;
	struct loop *loops[RUN_MAX_QUEUES + 1]; /* 0: the metadata loop */
	struct loop *queue_loops[RUN_MAX_QUEUES];
	unsigned nloops;
	struct qcow2_image *img;
	struct qcow2_queue *queues[RUN_MAX_QUEUES];
	struct slot *slots;
	unsigned nslots, inflight, left;
	uint64_t stream_sector; /* where sequential requests go on */
	uint64_t steps;
	uint8_t *log;	  /* the recovery log's memory */
	unsigned kills;	  /* so far */
	unsigned refused; /* recoveries that the disk made fail */
	uint64_t opened;  /* time when the image was open */
	unsigned errors;  /* requests that failed */
	unsigned flush_errors;
	int close_ret;
	bool failed;
	char text[512];
	bool unservable;     /* see run_recover() */
	struct inside *resizing; /* run_resize_begin(): it has not ended */
	/* run_hold(): requests that meet the end of space are held, as front ends do */
	bool holding;
	struct hold_device hold_device;
	struct hold holds[RUN_MAX_QUEUES];
	uint64_t hold_tries, hold_tries_max; /* with the latter the disk is not full any more */
	unsigned most_held;
	bool healed, broken; /* no fault is to come; and a sync had failed */
	bool gave_up; /* the engine, after a write of the header had failed, and the way back */
	/* Called after each completion; may change disk->fault. Or NULL. */
	void (*on_complete)(struct run *r, struct slot *s);
	void *arg;
};

/* Sets where the slot's payload lies, by the run's configuration; before it is submitted, also once more. */
void slot_set_payload(struct slot *s);

/*
 * Creates the image (or takes @origin's, if not NULL) and the model. What is below is called in this
 * order, on a run that has not failed.
 */
int run_init(struct run *r, const struct run_config *cfg, const struct run_origin *origin);
/* Opens the image and starts its queues; -errno is the engine's. */
int run_open(struct run *r, struct error *err);
/* A request of the character that the configuration gives it. */
enum blk_op run_choose(struct run *r, unsigned *flags, uint64_t *sector, uint64_t *sectors);
/* Submits @requests random requests and waits until all are done. */
void run_requests(struct run *r, unsigned requests);
/* The same with cfg.snapshots operations on snapshots, each while requests are being made. */
void run_requests_and_snapshots(struct run *r, unsigned requests);
/*
 * From now on no request fails for want of space: it is given to the engine again, later. After so many
 * @tries the disk's limit ends.
 */
void run_hold(struct run *r, uint64_t tries);
/* Ends the disk's fault, and waits until no I/O is under way that it still makes fail. */
void run_end_fault(struct run *r);
/* One request, of the caller's choice, alone; its result. */
int run_one(struct run *r, enum blk_op op, unsigned flags, uint64_t sector, uint64_t sectors);
/*
 * The disk begins to grow to cfg.resize_bytes, if it has not done so and is not at it: it goes on while requests
 * are made, and may be killed; then a later call is another try.
 */
void run_resize_begin(struct run *r);
/*
 * Steps through random requests, @requests in all, and kills the process after @steps. What it had
 * in memory is gone, but for the log; its loops, coroutines and memory are left behind.
 */
void run_kill(struct run *r, unsigned requests, uint64_t steps);
/*
 * A new process recovers: opens the image with the log, starts queues, and issues the requests again
 * that were in flight. False, and there is no process: it was killed once more, after @steps, or it
 * could not open the image, as the disk failed. If a sync had failed before the kill, and there is not
 * room for all that the log holds, the image cannot be served any more: unservable, and true.
 */
bool run_recover(struct run *r, uint64_t steps);
/*
 * Whether the engine knows of a sync that failed, or has a header of which nobody knows what it says: rule 6 is in
 * force.
 */
bool run_sync_failed(const struct run *r);
/* To be called before that is asked, when no fault is to come any more. */
void run_note_given_up(struct run *r);
/* Reads the whole disk, while other requests may be in flight. */
void run_read_all(struct run *r);
/* Queues, metadata loop, image; close_ret is qcow2_close()'s. */
void run_close(struct run *r);
/*
 * All of it: open, requests, a close that counts as a FLUSH; the closed image has no corruption, and
 * no leaks unless it began with some. False: it failed, which has been reported.
 */
bool run_whole(struct run *r, const struct run_config *cfg, const struct run_origin *origin,
	       const char *extra);
/* Reports the failure, with the command that replays it. */
void run_report(const struct run *r, const char *extra);
/* From any point; an image that is still open is closed without looking. */
void run_free(struct run *r);

/* Sectors that requests are a multiple of. */
static inline uint64_t run_unit(const struct run *r)
{
	return r->cfg.block_bytes / SECTOR_BYTES;
}

/*
 * After a failed sync nothing is written back, so what changes the map goes on only as long as there
 * is room for it. Whether there always is.
 */
static inline bool run_roomy(const struct run *r)
{
	return !r->cfg.open.cache_size_bytes && (!r->cfg.log_bytes || r->cfg.log_bytes >= 1 << 20);
}

/* Marks the run as failed, with a message; the first one stays. */
__attribute__((format(printf, 2, 3))) void run_fail(struct run *r, const char *fmt, ...);

#endif
