/* SPDX-License-Identifier: MIT */
/*
 * verify_qemu.h: what QEMU says of a state: `qemu-img check` agrees with the judge, and what `qemu-img
 * convert` reads (decrypted, out of a data file) the model allows. Not where there is a backing file: outside
 * of the simulation there is none. The files lie in /dev/shm for the time.
 */
#ifndef SIM_VERIFY_QEMU_H
#define SIM_VERIFY_QEMU_H

#include "verify.h"

/* The judge has judged the image under @view. */
bool verify_qemu(struct verifier *v, struct run *r, struct simview *view, char *text, size_t len);

#endif
