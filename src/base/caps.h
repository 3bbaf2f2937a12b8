/* SPDX-License-Identifier: MIT */
/*
 * caps.h: a thread's capabilities (capabilities(7)), as sets of bits. Each thread has its own, and gives them
 * to the threads and processes that it starts.
 */
#ifndef BASE_CAPS_H
#define BASE_CAPS_H

#include <stdbool.h>
#include <stdint.h>

#define CAPS_BIT(name) ((uint64_t)1 << (name))

bool caps_get(uint64_t *effective, uint64_t *permitted);

/*
 * This thread drops all but @kept, for good: what is not kept cannot be had again, by no program that it runs
 * either. CAP_IPC_LOCK stays where there is a limit on locked memory: what is locked beyond it (memlock.h)
 * could not grow without. 0 or -errno.
 */
int caps_keep(uint64_t kept) __attribute__((warn_unused_result));

#endif
