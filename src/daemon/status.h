/* SPDX-License-Identifier: MIT */
/*
 * status.h: what a daemon says of its device.
 */
#ifndef DAEMON_STATUS_H
#define DAEMON_STATUS_H

#include "daemon/entry.h"
#include "target/frontend.h"

/* What `list --json` says, and what only the running device knows; NULL without memory. @f may be NULL. */
struct json_t *status_json(const struct entry *e, const struct frontend_ops *ops, struct frontend *f);

#endif
