/* SPDX-License-Identifier: MIT */
/*
 * halfway.h: a device whose last server died while it took the device over, on a driver that does not see
 * to that by itself.
 */
#ifndef UBLK_HALFWAY_H
#define UBLK_HALFWAY_H

#include <stdint.h>

#include "base/error.h"
#include "ublk/uapi.h"

/*
 * Before START_USER_RECOVERY, with what GET_FEATURES and GET_DEV_INFO have said. Afterwards that command is
 * safe, and is not refused for what a former server left undone. Waits, within a bound, until nobody has the char
 * device open; -EBUSY if somebody keeps it. Nothing is changed on a device that needs nothing.
 */
int ublk_halfway_finish(uint64_t features, const struct ublk_dev_info *info, struct error *err) must_check;

#endif
