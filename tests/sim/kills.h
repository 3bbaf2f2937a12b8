/* SPDX-License-Identifier: MIT */
/*
 * kills.h: the process is killed, and another one recovers by the log.
 *
 * At a random step everything in memory but the recovery log is gone; what was under way lands in
 * any part and then nothing of it any more (rule 15 is kept by whoever waits for the dead process's
 * I/O). A new process opens the image with the log, may itself be killed while it does, is given
 * the requests again that were in flight (or those fail), and the whole disk is read: all that was
 * acknowledged is there, flushed or not. Then it goes on, to the next kill. At last the image is
 * closed; and the power is cut at moments before, between and after the kills, which nothing of the
 * log survives.
 */
#ifndef SIM_KILLS_H
#define SIM_KILLS_H

#include "explore.h"

/* A whole run with kills. False: something is wrong, which has been reported. */
bool kills_whole(struct run *r, const struct run_config *cfg, const char *extra);

/* The same, and its crash states; @r is freed already, but for its figures. */
bool kills_explore(struct explorer *e, enum run_profile profile, uint64_t seed, struct run *r);

/* Prints what it did; 0, or 1 if something is wrong. Bounds as of faults_run(). */
int kills_run(uint64_t seed, uint64_t runs, uint64_t seconds);

#endif
