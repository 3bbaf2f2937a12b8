/* SPDX-License-Identifier: MIT */
/*
 * memfault.h: the allocator of memory, wrapped by the linker (--wrap): counts what the program
 * under test allocates, and makes its n-th allocation fail.
 *
 * Single-threaded, like the simulation.
 */
#ifndef SIM_MEMFAULT_H
#define SIM_MEMFAULT_H

#include <stdint.h>

/*
 * While not 0, allocations are the harness's own: neither counted nor failed. Volatile, since compilers
 * know that malloc() does not look at it.
 */
extern volatile unsigned memfault_exempt;

/* Starts counting from 0; the allocation number @fail_at (1 is the first) fails, 0: none does. */
void memfault_arm(uint64_t fail_at);
/* Stops, and returns how many allocations there were. */
uint64_t memfault_disarm(void);

#endif
