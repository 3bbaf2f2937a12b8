/* SPDX-License-Identifier: MIT */
/*
 * harden.h: what keeps a block device's server alive and moving when memory is short.
 */
#ifndef DAEMON_HARDEN_H
#define DAEMON_HARDEN_H

#include <stdbool.h>

#include "base/error.h"

enum harden_mlock { HARDEN_MLOCK_AUTO, HARDEN_MLOCK_ON, HARDEN_MLOCK_OFF };

/*
 * For supervisor and worker, each, before it starts a thread: its allocations in the kernel start no I/O,
 * which threads and children inherit; the out-of-memory killer takes others first; it may open many files;
 * and its memory is locked, with *@locked saying whether that was possible. All but what was asked for
 * (HARDEN_MLOCK_ON) is done without where privileges or limits do not allow it.
 */
int harden_process(enum harden_mlock mlock, bool *locked, struct error *err) must_check;

/*
 * In a worker, when all that serving needs has been allocated and all threads run: under a limit, what there
 * is is locked now, if it fits. An error is that of HARDEN_MLOCK_ON.
 */
int harden_ready(enum harden_mlock mlock, bool *locked, struct error *err) must_check;

#endif
