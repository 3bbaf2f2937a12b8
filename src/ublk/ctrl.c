/* SPDX-License-Identifier: MIT */
/*
 * ctrl.c: see ctrl.h.
 *
 * A control command is an SQE of 128 bytes with its payload inside, and usually a buffer that the
 * driver reads or writes. The driver runs all of them in io_uring's worker threads, so submitting
 * never blocks and the wait for the completion is where the bound is kept.
 *
 * A command whose time is up is cancelled, which interrupts the waits inside the driver that can be
 * interrupted (START_DEV's for the queues, DEL_DEV's for the last user). One that cannot be stays
 * in flight, perhaps for ever, and may still write to its buffer. Hence slots: each command in
 * flight has one, with its own buffer, from submission to completion, whoever waits. With all slots
 * stuck no more commands are sent.
 *
 * Invariants:
 *  1. A slot is busy exactly from its submission until its completion was reaped.
 *  2. A caller's memory is never given to the driver, only a slot's; ublk_ctrl_close() frees the
 *     slots only if none is busy.
 *  3. With a helper (target/helper.h) this process has neither the control device open nor a ring for it.
 *     The helper serves one device: see `served`.
 */
#include "ublk/ctrl.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/math.h"
#include "ring/restrict.h"
#include "ublk/request.h"

#define SLOTS	    8
#define SLOT_BUF    1024
#define CANCEL_BIT  ((uint64_t)1 << 32)
#define SLICE_MS    100
#define CANCEL_MS   1000
#define QUICK_MS    10000 /* commands that wait for nobody */
#define START_MS    60000 /* reads the partition table, through the target */
#define LINGER_MS   5000
#define RECOVERY_MS 30000 /* for the last of a dead process to go */
#define NODE_MS	    10000

struct slot {
	bool busy;
	int res;
	size_t path_len; /* in front of the payload in buf */
	_Alignas(8) char buf[SLOT_BUF];
};

struct ublk_ctrl {
	struct helper *helper; /* NULL: by ourselves, with what follows */
	int fd;
	bool ring_ok;
	struct io_uring ring;
	uint64_t features;
	bool by_path; /* the device is an unprivileged one: see ublk_ctrl_unprivileged() */
	struct slot slots[SLOTS];
};

struct call {
	const char *name;
	uint32_t op;
	uint32_t id;
	uint16_t queue;
	uint64_t data;
	bool no_path;	   /* there is no device yet */
	const char *path; /* in front of the buffer, if not NULL; else where ctrl->by_path says so */
	void *buf;
	size_t len;
	bool to_driver, from_driver; /* which way @buf goes */
	unsigned timeout_ms;
	bool (*given_up)(void *arg);
	void *arg;
};

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void sleep_ms(unsigned ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&ts, NULL);
}

/* Takes in what has completed, after waiting for the first of it for at most @ms. */
static void reap(struct ublk_ctrl *ctrl, unsigned ms)
{
	struct __kernel_timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
	struct io_uring_cqe *cqe;

	if (io_uring_wait_cqe_timeout(&ctrl->ring, &cqe, &ts) < 0)
		return; /* timeout, or a signal: the caller looks at its clock */
	while (io_uring_peek_cqe(&ctrl->ring, &cqe) == 0) {
		uint64_t data = cqe->user_data;

		if (data < SLOTS) {
			assert(ctrl->slots[data].busy);
			ctrl->slots[data].busy = false;
			ctrl->slots[data].res = cqe->res;
		}
		io_uring_cqe_seen(&ctrl->ring, cqe);
	}
}

static struct slot *slot_get(struct ublk_ctrl *ctrl)
{
	for (unsigned i = 0; i < SLOTS; i++)
		if (!ctrl->slots[i].busy)
			return &ctrl->slots[i];
	return NULL;
}

static int submit(struct ublk_ctrl *ctrl, struct slot *slot, const struct call *call)
{
	const char *path = call->path;
	char own_path[32];
	size_t path_len;
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ctrl->ring);
	struct ublk_ctrl_cmd *cmd;
	int ret;

	if (!path && ctrl->by_path && !call->no_path) {
		snprintf(own_path, sizeof(own_path), "/dev/ublkc%u", call->id);
		path = own_path;
	}
	path_len = slot->path_len = path ? strlen(path) + 1 : 0;
	assert(path_len + call->len <= SLOT_BUF);
	if (!sqe)
		return -EBUSY;
	if (path_len)
		memcpy(slot->buf, path, path_len);
	if (call->to_driver)
		memcpy(slot->buf + path_len, call->buf, call->len);
	else
		memset(slot->buf + path_len, 0, call->len);
	memset(sqe, 0, 2 * sizeof(*sqe)); /* the ring's entries are of 128 bytes */
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, ctrl->fd, NULL, 0, 0);
	sqe->cmd_op = call->op;
	sqe->user_data = (uint64_t)(slot - ctrl->slots);
	cmd = (struct ublk_ctrl_cmd *)sqe->cmd;
	cmd->dev_id = call->id;
	cmd->queue_id = call->queue;
	cmd->data = call->data;
	if (path_len + call->len) {
		cmd->addr = (uintptr_t)slot->buf;
		cmd->len = (uint16_t)(path_len + call->len);
		cmd->dev_path_len = (uint16_t)path_len;
	}
	slot->busy = true;
	do
		ret = io_uring_submit(&ctrl->ring);
	while (ret == -EINTR);
	if (ret < 0) {
		slot->busy = false;
		return ret;
	}
	return 0;
}

static void cancel(struct ublk_ctrl *ctrl, struct slot *slot)
{
	uint64_t deadline = now_ms() + CANCEL_MS;
	uint64_t id = (uint64_t)(slot - ctrl->slots);
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ctrl->ring);

	if (!sqe)
		return;
	memset(sqe, 0, 2 * sizeof(*sqe));
	io_uring_prep_cancel64(sqe, id, 0);
	sqe->user_data = CANCEL_BIT;
	io_uring_submit(&ctrl->ring);
	while (slot->busy && now_ms() < deadline)
		reap(ctrl, SLICE_MS);
}

/* A struct call on its way to the helper and back. */
struct message {
	uint32_t op, id;
	uint16_t queue, path_bytes; /* of the name at the start of buf, with its NUL */
	uint32_t bytes;		    /* behind the name */
	uint64_t data;
	uint32_t timeout_ms;
	bool to_driver, from_driver;
	char buf[SLOT_BUF];
};

static_assert(sizeof(struct message) <= HELPER_BYTES, "a question");

static int call_by_helper(struct ublk_ctrl *ctrl, const struct call *call)
{
	size_t path_len = call->path ? strlen(call->path) + 1 : 0;
	struct message m = {
		.op = call->op,
		.id = call->id,
		.queue = call->queue,
		.path_bytes = (uint16_t)path_len,
		.bytes = (uint32_t)call->len,
		.data = call->data,
		.timeout_ms = call->timeout_ms,
		.to_driver = call->to_driver,
		.from_driver = call->from_driver,
	};
	int ret;

	assert(path_len + call->len <= SLOT_BUF);
	if (path_len)
		memcpy(m.buf, call->path, path_len);
	if (call->to_driver)
		memcpy(m.buf + path_len, call->buf, call->len);
	ret = helper_ask(ctrl->helper, HELPER_COMMAND, &m, sizeof(m), call->timeout_ms + 2 * CANCEL_MS,
			 call->given_up, call->arg);
	if (ret >= 0 && call->from_driver)
		memcpy(call->buf, m.buf + path_len, call->len);
	return min_of(ret, 0);
}

/* The driver's result; -ETIMEDOUT and -ECANCELED are ours. Says nothing. */
static int call_quietly(struct ublk_ctrl *ctrl, const struct call *call)
{
	uint64_t deadline = now_ms() + call->timeout_ms;
	struct slot *slot;
	bool given_up = false;
	int ret;

	if (ctrl->helper)
		return call_by_helper(ctrl, call);
	reap(ctrl, 0);
	slot = slot_get(ctrl);
	if (!slot)
		return -ETIMEDOUT;
	ret = submit(ctrl, slot, call);
	if (ret)
		return ret;
	while (slot->busy && now_ms() < deadline) {
		reap(ctrl, SLICE_MS);
		if (slot->busy && call->given_up && call->given_up(call->arg)) {
			given_up = true;
			break;
		}
	}
	if (slot->busy) {
		cancel(ctrl, slot);
		/* it may have come through in the meantime */
		if (slot->busy || slot->res == -EINTR || slot->res == -ECANCELED)
			return given_up ? -ECANCELED : -ETIMEDOUT;
	}
	if (slot->res < 0)
		return slot->res;
	if (call->from_driver)
		memcpy(call->buf, slot->buf + slot->path_len, call->len);
	return 0;
}

/* Says why @call failed, if it did. */
static int call_result(const struct call *call, int ret, struct error *err)
{
	if (ret == -ETIMEDOUT)
		return error_set(err, ret, "the ublk driver did not answer %s in %u s", call->name,
				 call->timeout_ms / 1000);
	if (ret)
		return error_set(err, ret, "ublk %s failed: %s", call->name, strerror(-ret));
	return 0;
}

static int call_driver(struct ublk_ctrl *ctrl, const struct call *call, struct error *err)
{
	return call_result(call, call_quietly(ctrl, call), err);
}

static int features_get(struct ublk_ctrl *ctrl, struct error *err)
{
	struct call call = {
		.name = "GET_FEATURES",
		.op = UBLK_OP_GET_FEATURES,
		.queue = UBLK_NO_QUEUE,
		.buf = &ctrl->features,
		.len = sizeof(ctrl->features),
		.from_driver = true,
		.timeout_ms = QUICK_MS,
	};
	int ret = call_quietly(ctrl, &call);

	/* a driver that does not know the command: before 6.5, which lacks more that is needed */
	if (ret == -EOPNOTSUPP || ret == -EINVAL || ret == -ENODEV)
		return error_set(err, -EOPNOTSUPP,
				 "the kernel's ublk driver is too old (6.12 or later is needed)");
	if (ret)
		return call_result(&call, ret, err);
	if (!(ctrl->features & UBLK_F_CMD_IOCTL_ENCODE))
		return error_set(err, -EOPNOTSUPP,
				 "the kernel's ublk driver lacks encoded commands");
	return 0;
}

static int ring_make(struct ublk_ctrl *ctrl)
{
	static const uint8_t operations[] = {IORING_OP_URING_CMD, IORING_OP_ASYNC_CANCEL};
	int ret = io_uring_queue_init(2 * SLOTS, &ctrl->ring,
				      IORING_SETUP_SQE128 | IORING_SETUP_R_DISABLED);

	if (ret)
		return ret;
	ctrl->ring_ok = true;
	ret = ring_restrict(&ctrl->ring, operations, 2);
	if (ret)
		log_debug("ublk's commands: what may be submitted is not restricted: %s", strerror(-ret));
	return ring_enable(&ctrl->ring);
}

int ublk_ctrl_open(struct ublk_ctrl **out, struct error *err)
{
	struct ublk_ctrl *ctrl = calloc(1, sizeof(*ctrl));
	int ret;

	if (!ctrl)
		return error_set(err, -ENOMEM, "out of memory");
	ctrl->fd = open(UBLK_CTRL_PATH, O_RDWR | O_CLOEXEC);
	if (ctrl->fd < 0) {
		ret = -errno;
		if (ret == -ENOENT || ret == -ENXIO || ret == -ENODEV)
			error_set(err, ret, "no %s (is the module ublk_drv loaded?)",
				  UBLK_CTRL_PATH);
		else
			error_set(err, ret, "cannot open %s: %s", UBLK_CTRL_PATH, strerror(-ret));
		goto fail;
	}
	ret = ring_make(ctrl);
	if (ret) {
		error_set(err, ret, "no io_uring for ublk's commands: %s", strerror(-ret));
		goto fail;
	}
	ret = features_get(ctrl, err);
	if (ret)
		goto fail;
	*out = ctrl;
	return 0;
fail:
	ublk_ctrl_close(ctrl);
	return ret;
}

int ublk_ctrl_open_by(struct ublk_ctrl **out, struct helper *helper, struct error *err)
{
	struct ublk_ctrl *ctrl = calloc(1, sizeof(*ctrl));
	int ret;

	if (!ctrl)
		return error_set(err, -ENOMEM, "out of memory");
	ctrl->fd = -1;
	ctrl->helper = helper;
	ret = features_get(ctrl, err);
	if (ret)
		ublk_ctrl_close(ctrl);
	else
		*out = ctrl;
	return ret;
}

/* ---- in the helper ---- */

/* The device that is ours: the first that was added, or taken over. */
static struct {
	struct ublk_ctrl *ctrl;
	bool known;
	bool half_made; /* added, and neither started nor deleted */
	uint32_t id;
} served;

static bool command_allowed(const struct message *m)
{
	char path[32];

	snprintf(path, sizeof(path), "/dev/ublkc%u", m->id);
	if (m->path_bytes && (m->path_bytes != strlen(path) + 1 || memcmp(m->buf, path, m->path_bytes)))
		return false;
	switch (m->op) {
	case UBLK_OP_GET_FEATURES:
		return true;
	case UBLK_OP_ADD_DEV:
	case UBLK_OP_START_USER_RECOVERY:
		return !served.known;
	case UBLK_OP_GET_DEV_INFO:
	case UBLK_OP_GET_DEV_INFO2: /* before a device is taken over as well */
		return !served.known || m->id == served.id;
	case UBLK_OP_SET_PARAMS:
	case UBLK_OP_GET_PARAMS:
	case UBLK_OP_GET_QUEUE_AFFINITY:
	case UBLK_OP_START_DEV:
	case UBLK_OP_END_USER_RECOVERY:
	case UBLK_OP_UPDATE_SIZE:
	case UBLK_OP_STOP_DEV:
	case UBLK_OP_TRY_STOP_DEV:
	case UBLK_OP_DEL_DEV:
	case UBLK_OP_DEL_DEV_ASYNC:
		return served.known && m->id == served.id;
	default:
		return false;
	}
}

static void command_done(const struct message *m, const struct call *call)
{
	switch (m->op) {
	case UBLK_OP_ADD_DEV:
	case UBLK_OP_START_USER_RECOVERY:
		served.known = true;
		served.half_made = m->op == UBLK_OP_ADD_DEV;
		served.id = m->id;
		if (m->op == UBLK_OP_ADD_DEV && m->bytes >= sizeof(struct ublk_dev_info))
			served.id = ((const struct ublk_dev_info *)call->buf)->dev_id;
		break;
	case UBLK_OP_START_DEV:
	case UBLK_OP_DEL_DEV:
	case UBLK_OP_DEL_DEV_ASYNC:
		served.half_made = false;
		break;
	default:
		break;
	}
}

int ublk_ctrl_help(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg)
{
	struct message *m = data;
	struct call call;
	int ret;

	if (bytes != sizeof(*m) || m->bytes > SLOT_BUF || m->bytes + m->path_bytes > SLOT_BUF)
		return -EINVAL;
	if (!command_allowed(m))
		return -EPERM;
	/* who is dead serves nothing: old drivers would not find out once these were through */
	if ((m->op == UBLK_OP_START_DEV || m->op == UBLK_OP_END_USER_RECOVERY) && given_up && given_up(arg))
		return -ECANCELED;
	if (!served.ctrl && ublk_ctrl_open(&served.ctrl, NULL))
		return -ENODEV;
	call = (struct call){
		.op = m->op,
		.id = m->id,
		.queue = m->queue,
		.data = m->data,
		.path = m->path_bytes ? m->buf : NULL,
		.buf = m->buf + m->path_bytes,
		.len = m->bytes,
		.to_driver = m->to_driver,
		.from_driver = m->from_driver,
		.timeout_ms = m->timeout_ms,
		.given_up = given_up,
		.arg = arg,
	};
	ret = call_quietly(served.ctrl, &call);
	if (!ret)
		command_done(m, &call);
	return ret;
}

/* Who asked may have been killed in the middle of making a device. */
void ublk_ctrl_help_ended(void)
{
	bool lingers;

	if (served.half_made)
		(void)!ublk_ctrl_del(served.ctrl, served.id, UBLK_STOP_MS, &lingers, NULL);
}

void ublk_ctrl_close(struct ublk_ctrl *ctrl)
{
	bool stuck = false;

	if (!ctrl)
		return;
	if (ctrl->ring_ok) {
		reap(ctrl, 0);
		for (unsigned i = 0; i < SLOTS; i++)
			stuck |= ctrl->slots[i].busy;
		io_uring_queue_exit(&ctrl->ring);
	}
	if (ctrl->fd >= 0)
		close(ctrl->fd);
	if (!stuck) /* else the driver may still write to a slot */
		free(ctrl);
}

void ublk_ctrl_unprivileged(struct ublk_ctrl *ctrl, bool unprivileged)
{
	ctrl->by_path = unprivileged;
}

uint64_t ublk_ctrl_features(const struct ublk_ctrl *ctrl)
{
	return ctrl->features;
}

int ublk_ctrl_add(struct ublk_ctrl *ctrl, struct ublk_dev_info *info, struct error *err)
{
	bool unprivileged = info->flags & UBLK_F_UNPRIVILEGED_DEV;
	uint32_t wanted = info->dev_id;
	struct call call = {
		.no_path = true,
		.name = "ADD_DEV",
		.op = UBLK_OP_ADD_DEV,
		.id = info->dev_id,
		.queue = UBLK_NO_QUEUE,
		.buf = info,
		.len = sizeof(*info),
		.to_driver = true,
		.from_driver = true,
		.timeout_ms = QUICK_MS,
	};
	int ret = call_quietly(ctrl, &call);

	switch (ret) {
	case 0:
		ublk_ctrl_unprivileged(ctrl, info->flags & UBLK_F_UNPRIVILEGED_DEV);
		return 0;
	case -EEXIST:
		return error_set(err, ret, "device number %u is taken", wanted);
	case -EPERM:
	case -EACCES:
		if (unprivileged)
			return error_set(err, ret, "the ublk driver makes no more unprivileged devices (%s)",
					 strerror(-ret));
		return error_set(err, ret, "making a ublk device needs root (CAP_SYS_ADMIN), or "
					   "--unprivileged");
	case -EINVAL:
		if (wanted != UINT32_MAX)
			return error_set(err, ret, "the ublk driver refuses device number %u",
					 wanted);
		/* fallthrough */
	default:
		return call_result(&call, ret, err);
	}
}

static int params_call(struct ublk_ctrl *ctrl, uint32_t id, struct ublk_params *params, bool set,
		       struct error *err)
{
	struct call call = {
		.name = set ? "SET_PARAMS" : "GET_PARAMS",
		.op = set ? UBLK_OP_SET_PARAMS : UBLK_OP_GET_PARAMS,
		.id = id,
		.queue = UBLK_NO_QUEUE,
		.buf = params,
		.len = params->len,
		.to_driver = true, /* GET as well: the length it may write */
		.from_driver = !set,
		.timeout_ms = QUICK_MS,
	};

	return call_driver(ctrl, &call, err);
}

int ublk_ctrl_set_params(struct ublk_ctrl *ctrl, uint32_t id, const struct ublk_params *params,
			 struct error *err)
{
	struct ublk_params copy = *params;
	struct ublk_params got = {.len = params->len};
	int ret;

	assert(params->len <= sizeof(*params));
	ret = params_call(ctrl, id, &copy, true, err);
	if (!ret)
		ret = params_call(ctrl, id, &got, false, err);
	if (!ret)
		ret = ublk_params_check(params, &got, err);
	return ret;
}

int ublk_ctrl_size(struct ublk_ctrl *ctrl, uint32_t id, uint64_t *size_bytes, struct error *err)
{
	struct ublk_params params = {.len = UBLK_PARAMS_BYTES};
	int ret = params_call(ctrl, id, &params, false, err);

	*size_bytes = params.basic.dev_sectors << UBLK_SECTOR_SHIFT;
	return ret;
}

int ublk_ctrl_queue_affinity(struct ublk_ctrl *ctrl, uint32_t id, unsigned queue, cpu_set_t *set,
			     struct error *err)
{
	struct call call = {
		.name = "GET_QUEUE_AFFINITY",
		.op = UBLK_OP_GET_QUEUE_AFFINITY,
		.id = id,
		.queue = UBLK_NO_QUEUE,
		.data = queue,
		.buf = set,
		.len = sizeof(*set),
		.from_driver = true,
		.timeout_ms = QUICK_MS,
	};

	static_assert(sizeof(*set) % 8 == 0 && sizeof(*set) <= SLOT_BUF, "what the driver takes");
	return call_driver(ctrl, &call, err);
}

/*
 * Whether the device was taken away from under a start that failed: the driver says -EBUSY, and so do the
 * queues, perhaps a moment later.
 */
static bool taken_away(int ret, bool (*given_up)(void *arg), void *arg)
{
	if (ret != -EBUSY || !given_up)
		return ret == -ECANCELED;
	for (unsigned waited_ms = 0; waited_ms < CANCEL_MS; waited_ms += 10) {
		if (given_up(arg))
			return true;
		sleep_ms(10);
	}
	return false;
}

/* START_DEV and END_USER_RECOVERY: both wait until every tag is fetched. */
static int call_with_queues(struct ublk_ctrl *ctrl, const char *name, uint32_t op, uint32_t id,
			    pid_t pid, bool (*given_up)(void *arg), void *arg, struct error *err)
{
	struct call call = {
		.name = name,
		.op = op,
		.id = id,
		.queue = UBLK_NO_QUEUE,
		.data = (uint64_t)pid,
		.timeout_ms = START_MS,
		.given_up = given_up,
		.arg = arg,
	};
	int ret = call_quietly(ctrl, &call);

	if (taken_away(ret, given_up, arg))
		return error_set(err, ret, "ublk device %u was taken away while it started", id);
	return call_result(&call, ret, err);
}

int ublk_ctrl_start(struct ublk_ctrl *ctrl, uint32_t id, pid_t pid, bool (*given_up)(void *arg),
		    void *arg, struct error *err)
{
	return call_with_queues(ctrl, "START_DEV", UBLK_OP_START_DEV, id, pid, given_up, arg, err);
}

int ublk_ctrl_recovery_end(struct ublk_ctrl *ctrl, uint32_t id, pid_t pid,
			   bool (*given_up)(void *arg), void *arg, struct error *err)
{
	return call_with_queues(ctrl, "END_USER_RECOVERY", UBLK_OP_END_USER_RECOVERY, id, pid,
				given_up, arg, err);
}

/* Its last server died after it had stopped it, or somebody else has: nobody serves it any more. */
static bool is_stopped(struct ublk_ctrl *ctrl, uint32_t id)
{
	struct ublk_dev_info info;

	return !ublk_ctrl_info(ctrl, id, &info, NULL) && info.state == UBLK_STATE_DEAD;
}

int ublk_ctrl_recovery_start(struct ublk_ctrl *ctrl, uint32_t id, struct error *err)
{
	uint64_t deadline = now_ms() + RECOVERY_MS;
	struct call call = {
		.name = "START_USER_RECOVERY",
		.op = UBLK_OP_START_USER_RECOVERY,
		.id = id,
		.queue = UBLK_NO_QUEUE,
		.timeout_ms = QUICK_MS,
	};
	int ret;

	/* busy: the dead process's files, or its I/O, are not all gone, or it is not dead */
	while ((ret = call_quietly(ctrl, &call)) == -EBUSY && now_ms() < deadline && !is_stopped(ctrl, id))
		sleep_ms(10);
	if (ret == -EBUSY && is_stopped(ctrl, id))
		return error_set(err, ret, "ublk device %u was being taken away when its last server died", id);
	if (ret == -EBUSY)
		return error_set(
			err, ret,
			"ublk device %u is still served, or its last server has I/O under way "
			"(waited %u s)",
			id, RECOVERY_MS / 1000);
	if (ret == -EINVAL || ret == -EOPNOTSUPP)
		return error_set(err, ret, "ublk device %u was made without recovery", id);
	return call_result(&call, ret, err);
}

int ublk_ctrl_update_size(struct ublk_ctrl *ctrl, uint32_t id, uint64_t size_bytes,
			  struct error *err)
{
	struct call call = {
		.name = "UPDATE_SIZE",
		.op = UBLK_OP_UPDATE_SIZE,
		.id = id,
		.queue = UBLK_NO_QUEUE,
		.data = size_bytes >> UBLK_SECTOR_SHIFT,
		.timeout_ms = QUICK_MS,
	};

	if (!(ctrl->features & UBLK_F_UPDATE_SIZE))
		return error_set(err, -EOPNOTSUPP,
				 "the kernel's ublk driver cannot resize a device (6.16 and later can)");
	return call_driver(ctrl, &call, err);
}

int ublk_ctrl_stop(struct ublk_ctrl *ctrl, uint32_t id, struct error *err)
{
	struct call call = {
		.name = "STOP_DEV",
		.op = UBLK_OP_STOP_DEV,
		.id = id,
		.queue = UBLK_NO_QUEUE,
		.timeout_ms = UBLK_STOP_MS,
	};

	return call_driver(ctrl, &call, err);
}

int ublk_ctrl_try_stop(struct ublk_ctrl *ctrl, uint32_t id, struct error *err)
{
	struct call call = {
		.name = "TRY_STOP_DEV",
		.op = UBLK_OP_TRY_STOP_DEV,
		.id = id,
		.queue = UBLK_NO_QUEUE,
		.timeout_ms = UBLK_STOP_MS,
	};

	if (!(ctrl->features & UBLK_F_SAFE_STOP_DEV))
		return error_set(err, -EOPNOTSUPP, "the kernel's ublk driver lacks TRY_STOP_DEV");
	return call_driver(ctrl, &call, err);
}

static int info_quietly(struct ublk_ctrl *ctrl, uint32_t id, const char *path,
			struct ublk_dev_info *info)
{
	struct call call = {
		.name = "GET_DEV_INFO",
		.op = path ? UBLK_OP_GET_DEV_INFO2 : UBLK_OP_GET_DEV_INFO,
		.id = id,
		.queue = UBLK_NO_QUEUE,
		.path = path,
		.buf = info,
		.len = sizeof(*info),
		.from_driver = true,
		.timeout_ms = QUICK_MS,
	};

	return call_quietly(ctrl, &call);
}

int ublk_ctrl_info(struct ublk_ctrl *ctrl, uint32_t id, struct ublk_dev_info *info,
		   struct error *err)
{
	char path[32];
	int ret;

	snprintf(path, sizeof(path), "/dev/ublkc%u", id);
	ret = info_quietly(ctrl, id, path, info);
	if (ret == -ENOENT) /* deleted, but still in use: its node is gone already */
		ret = info_quietly(ctrl, id, NULL, info);
	if (ret == -ENODEV)
		return error_set(err, ret, "there is no ublk device %u", id);
	if (ret)
		return error_set(err, ret, "ublk device %u does not say what it is: %s", id,
				 strerror(-ret));
	return 0;
}

/*
 * Deleting proper, after which the device is gone for everybody who does not hold it already. The
 * number is free when the last holder let go; that is usually at once, and waited for a moment, so
 * that an `add` of the same number may follow.
 */
int ublk_ctrl_del(struct ublk_ctrl *ctrl, uint32_t id, unsigned timeout_ms, bool *lingers,
		  struct error *err)
{
	uint64_t deadline = now_ms() + LINGER_MS;
	struct call call = {
		.name = "DEL_DEV",
		.op = UBLK_OP_DEL_DEV_ASYNC,
		.id = id,
		.queue = UBLK_NO_QUEUE,
		.timeout_ms = timeout_ms,
	};
	struct ublk_dev_info info;
	int ret = call_quietly(ctrl, &call);

	*lingers = false;
	if (ret == -EOPNOTSUPP || ret == -EINVAL) {
		/* a driver without that command: the other one waits inside, and is interrupted */
		call.op = UBLK_OP_DEL_DEV;
		call.timeout_ms = LINGER_MS;
		ret = call_quietly(ctrl, &call);
		if (ret == -ETIMEDOUT)
			ret = 0;
	}
	if (ret == -ENODEV) /* somebody else has deleted it */
		return 0;
	if (ret)
		return call_result(&call, ret, err);
	for (;;) {
		if (info_quietly(ctrl, id, NULL, &info) == -ENODEV)
			return 0;
		if (now_ms() >= deadline)
			break;
		sleep_ms(20);
	}
	*lingers = true;
	return 0;
}

int ublk_char_open(uint32_t id, struct error *err)
{
	uint64_t deadline = now_ms() + NODE_MS;
	unsigned delay_ms = 1;
	char path[32];
	int fd, ret;

	snprintf(path, sizeof(path), "/dev/ublkc%u", id);
	for (;;) {
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0)
			return fd;
		ret = -errno;
		/* -EBUSY: it can be open once, and udev, or a server that is ending, may have it */
		if (ret != -ENOENT && ret != -ENXIO && ret != -ENODEV && ret != -EBUSY &&
		    ret != -EINTR)
			return error_set(err, ret, "cannot open %s: %s", path, strerror(-ret));
		if (now_ms() >= deadline)
			break;
		sleep_ms(delay_ms);
		delay_ms = min_of(delay_ms * 2, 100u);
	}
	if (ret == -EBUSY)
		return error_set(err, ret, "%s is held open by somebody else", path);
	return error_set(err, ret,
			 "the device node %s did not appear in %u s (no udev or devtmpfs?)", path,
			 NODE_MS / 1000);
}
