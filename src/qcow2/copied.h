/* SPDX-License-Identifier: MIT */
/*
 * copied.h: COPIED flags of the active tables that are clear though they could be set, and are set.
 *
 * An operation on snapshots leaves them so, for as long as it takes or, where it was killed, until somebody looks.
 * Nothing is wrong with such a cluster but that the next write to it copies it, and that checkers report it.
 *
 * Metadata loop only, or no loop.
 */
#ifndef QCOW2_COPIED_H
#define QCOW2_COPIED_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct qcow2_image;

/*
 * Sets the flag wherever there is one reference, in memory, for a pass to write; requests may go on. The caller
 * sees to it that nobody adds references to normal clusters meanwhile: operations on snapshots alone do.
 * @between is asked after each step, with the time at which that began, while nothing is locked, and may
 * suspend; false: -ECANCELED.
 */
int copied_restore(struct qcow2_image *img,
		   bool (*between)(struct qcow2_image *img, uint64_t since_ns)) must_check;

#endif
