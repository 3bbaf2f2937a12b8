/* SPDX-License-Identifier: MIT */
/*
 * named.h: the files that a simulated image names: its backing file, and its external data file.
 *
 * A run's engine opens them on the run's disk, where they crash together with the image and persist
 * independently of it; that of a crash state opens what the state has of them.
 */
#ifndef SIM_NAMED_H
#define SIM_NAMED_H

#include "below.h"
#include "simdisk.h"
#include "simview.h"
#include "storage/names.h"

#define NAMED_DATA_FILE "d" /* as the image has it */

struct run_config;

struct named {
	struct below below;
	struct simdisk *disk;
	struct simfile *data;	 /* the data file; NULL: there is none */
	struct simview *view;	 /* of it, for the crash state that is to be opened */
	bool data_device;	 /* it is a block device */
	uint32_t block_bytes;
	struct names_policy live, still; /* open them for the one and for the other */
};

/* What @cfg asks for, maybe nothing. */
void named_init(struct named *n, const struct run_config *cfg, struct simdisk *disk);
/*
 * Makes the data file, if there is to be one, after the image, as the second file on the disk. It begins as
 * @data, or if that is NULL with what a new image may find in it: a raw one's is the disk, any other's is
 * garbage.
 */
void named_make_data(struct named *n, const struct run_config *cfg, const struct sim_map *data);
void named_free(struct named *n);
/* What guest sector @s of a new image holds before anything was written to it: a number, or 0. */
uint32_t named_value(const struct named *n, const struct run_config *cfg, uint64_t s);

#endif
