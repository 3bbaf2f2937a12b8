/* SPDX-License-Identifier: MIT */
/*
 * below.h: the backing file of a simulated image: a raw file, some of whose sectors are stamped as if
 * a write had put them there before the run.
 */
#ifndef SIM_BELOW_H
#define SIM_BELOW_H

#include "simdisk.h"
#include "simview.h"

/* The number of the write that stamped it; a run's own numbers begin behind it. */
#define BELOW_NUMBER 1

struct run_config;

struct below {
	struct sim_map map; /* empty: there is none */
	struct arena arena;
	uint32_t block_bytes;
	struct simdisk *disk;	     /* where a run's reads of it are scheduled */
	struct simfile *file;	     /* there, once it was opened */
	vec(struct simview *) views; /* of crash states, whose reads are not */
};

/* What @cfg asks for, maybe none; and what it makes of a new image's map and of the guest's sectors. */
void below_init(struct below *b, const struct run_config *cfg, struct simdisk *disk);
void below_free(struct below *b);
/* Open it for a run, and for a crash state. */
struct storage *below_open_live(struct below *b, const char *name, bool read_only);
struct storage *below_open_still(struct below *b, const char *name, bool read_only);
/* Writes its name into the header of a new image, in place of the table of feature names. */
void below_name(struct below *b, struct sim_map *image);
/* What guest sector @s holds before anything was written to it: a number, or 0. */
uint32_t below_value(const struct below *b, uint64_t s);

#endif
