/* SPDX-License-Identifier: MIT */
/*
 * restrict.h: what may be asked of a ring, for good, once it is enabled.
 *
 * What is submitted to an io_uring is no system call, so that no filter of those sees it: a ring opens files,
 * connects sockets and deletes whatever its process may. A ring that is restricted does the operations that it
 * was made for, and answers all others with EACCES; the kernel holds it to that.
 */
#ifndef RING_RESTRICT_H
#define RING_RESTRICT_H

#include <stdint.h>

#include "base/error.h"

struct io_uring;

#define RING_OPS_MAX 32

/* liburing 2.3 does not know it; Linux 6.9. */
#define RING_OP_FTRUNCATE 55

/*
 * @ring was made with IORING_SETUP_R_DISABLED and is not enabled. It will take the operations in @ops (@count,
 * RING_OPS_MAX at most), those of them that the kernel has, with no flag but IOSQE_FIXED_FILE; of
 * io_uring_register() what loop.c calls while a loop runs. -errno: the kernel cannot do it, and nothing has changed.
 */
int ring_restrict(struct io_uring *ring, const uint8_t *ops, unsigned count) must_check;

/* Lets it go, on the thread that will submit to it. */
int ring_enable(struct io_uring *ring) must_check;

#endif
