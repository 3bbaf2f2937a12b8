/* SPDX-License-Identifier: MIT */
/*
 * encrypt.h: encrypted images at a price that allows for many of them.
 *
 * Making a LUKS header and unlocking one take milliseconds at the least, as they should. So each is done in
 * earnest once in a process, for each cipher; from then on luks_format() and luks_unlock() (wrapped by
 * the linker) give what they gave before. All images of one cipher have the same key, so that a seed gives
 * the same run again; what the engine does with the key is not touched by this.
 */
#ifndef SIM_ENCRYPT_H
#define SIM_ENCRYPT_H

#include "qcow2.h"
#include "util.h"

#define ENCRYPT_PASSPHRASE "simulated"

/* Makes a new image an encrypted one, of some cipher. */
void encrypt_choose(struct qcow2_create_options *create, struct rng *r);

#endif
