/* SPDX-License-Identifier: MIT */
/*
 * ctrl.h: commands to /dev/ublk-control.
 *
 * Used on one thread, which waits for each command; every wait has a bound. Functions return 0 or
 * -errno and say in @err what failed. -ETIMEDOUT: the driver did not answer; the command may still
 * be under way in the kernel.
 */
#ifndef UBLK_CTRL_H
#define UBLK_CTRL_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "target/helper.h"
#include "ublk/uapi.h"

struct ublk_ctrl;

/* Opens the control device and asks it for its features; refuses a driver that is too old. */
int ublk_ctrl_open(struct ublk_ctrl **out, struct error *err) must_check;
/* The same for a process that has dropped its privileges: @helper, whose HELPER_COMMAND is below, does it. */
int ublk_ctrl_open_by(struct ublk_ctrl **out, struct helper *helper, struct error *err) must_check;
void ublk_ctrl_close(struct ublk_ctrl *ctrl); /* accepts NULL */

/*
 * In the helper: the commands that one server needs for one device, which is the one that it added or
 * took over; all others are refused with -EPERM.
 */
int ublk_ctrl_help(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg);
/* Once nobody asks any more: deletes the device if it was added and never started. */
void ublk_ctrl_help_ended(void);

uint64_t ublk_ctrl_features(const struct ublk_ctrl *ctrl);

/*
 * Whether the device that is spoken of from now on is an unprivileged one: its commands name it by its char
 * device's path, and whoever may use that may give them. ublk_ctrl_add() sets it.
 */
void ublk_ctrl_unprivileged(struct ublk_ctrl *ctrl, bool unprivileged);

/* @info says what is wanted and is overwritten with what was made. dev_id UINT32_MAX: any. */
int ublk_ctrl_add(struct ublk_ctrl *ctrl, struct ublk_dev_info *info, struct error *err) must_check;
/* Reads them back and fails if the driver dropped any. */
int ublk_ctrl_set_params(struct ublk_ctrl *ctrl, uint32_t id, const struct ublk_params *params,
			 struct error *err) must_check;
/* How large the driver has the device. */
int ublk_ctrl_size(struct ublk_ctrl *ctrl, uint32_t id, uint64_t *size_bytes, struct error *err) must_check;
/* The CPUs whose I/O comes in on @queue. */
int ublk_ctrl_queue_affinity(struct ublk_ctrl *ctrl, uint32_t id, unsigned queue, cpu_set_t *set,
			     struct error *err) must_check;
/*
 * Waits until every tag of every queue is fetched and the disk is there. Asks @given_up(@arg) now
 * and then; when that says true, it stops waiting and returns -ECANCELED.
 */
int ublk_ctrl_start(struct ublk_ctrl *ctrl, uint32_t id, pid_t pid, bool (*given_up)(void *arg),
		    void *arg, struct error *err) must_check;
/*
 * The two ends of a recovery. start waits, within a bound, until the process that served the device
 * is gone and its char device closed; then the device is opened and its tags are fetched as if it were
 * new, and end waits for them as ublk_ctrl_start() does. Before start: ublk_halfway_finish().
 */
int ublk_ctrl_recovery_start(struct ublk_ctrl *ctrl, uint32_t id, struct error *err) must_check;
int ublk_ctrl_recovery_end(struct ublk_ctrl *ctrl, uint32_t id, pid_t pid,
			   bool (*given_up)(void *arg), void *arg, struct error *err) must_check;
/* The running device becomes this large; -EOPNOTSUPP from a driver that cannot (before 6.16). */
int ublk_ctrl_update_size(struct ublk_ctrl *ctrl, uint32_t id, uint64_t size_bytes,
			  struct error *err) must_check;
/* Enough for STOP_DEV and DEL_DEV, which wait for the I/O in flight. */
#define UBLK_STOP_MS 60000

/* Lets I/O in flight finish, removes the disk, and ends every fetch. */
int ublk_ctrl_stop(struct ublk_ctrl *ctrl, uint32_t id, struct error *err) must_check;
/* The same, unless somebody has it open: then -EBUSY, and nothing has changed. -EOPNOTSUPP before 7.0. */
int ublk_ctrl_try_stop(struct ublk_ctrl *ctrl, uint32_t id, struct error *err) must_check;
/*
 * Deletes the device, whose char device this process has closed by now. Where somebody still uses
 * the disk, the number stays taken until he lets go; *@lingers then says so, without an error. A
 * device that still runs is stopped first, for which @timeout_ms is meant.
 */
int ublk_ctrl_del(struct ublk_ctrl *ctrl, uint32_t id, unsigned timeout_ms, bool *lingers,
		  struct error *err) must_check;
/* -ENODEV if there is none. */
int ublk_ctrl_info(struct ublk_ctrl *ctrl, uint32_t id, struct ublk_dev_info *info,
		   struct error *err) must_check;

/*
 * Opens the char device of a device that was just added, or made ready for recovery. Its node comes
 * late (udev), so this waits for it, within a bound. Returns the descriptor.
 */
int ublk_char_open(uint32_t id, struct error *err) must_check;

#endif
