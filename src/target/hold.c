/* SPDX-License-Identifier: MIT */
/* hold.c: see hold.h. */
#include "target/hold.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "base/math.h"

int hold_device_init(struct hold_device *device, bool on, struct error *err)
{
	atomic_init(&device->on, on);
	atomic_init(&device->count, 0);
	device->fd = on ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
	return on && device->fd < 0 ? error_set(err, -errno, "eventfd: %s", strerror(errno)) : 0;
}

void hold_device_destroy(struct hold_device *device)
{
	if (device->fd >= 0)
		close(device->fd);
	device->fd = -1;
}

/* Whoever watches looks at the count himself. */
static void tell(struct hold_device *device)
{
	uint64_t one = 1;

	if (write(device->fd, &one, sizeof(one)) != sizeof(one))
		log_debug("hold: %s", strerror(errno)); /* it is readable already */
}

/* Everything that waits gets its try; what fails again comes back to hold_take(), maybe at once. */
static void try_all(struct hold *hold)
{
	struct list now = LIST_INIT(now);
	struct list *l;

	list_splice_tail(&now, &hold->held);
	while ((l = list_pop(&now)))
		hold->again(hold, list_entry(l, struct blk_request, held));
}

static void timer_fired(struct loop_timer *timer)
{
	struct hold *hold = container_of(timer, struct hold, timer);

	hold->armed = false;
	hold->pause_ms = min_of(2 * hold->pause_ms, (unsigned)HOLD_MAX_MS);
	try_all(hold);
}

static void retry_asked(struct loop_msg *msg)
{
	struct hold *hold = container_of(msg, struct hold, msg);

	atomic_store(&hold->asked, false);
	if (hold->armed)
		loop_timer_cancel(hold->loop, &hold->timer);
	hold->armed = false;
	hold->pause_ms = HOLD_MIN_MS;
	try_all(hold);
}

void hold_init(struct hold *hold, struct hold_device *device, struct loop *loop,
	       void (*again)(struct hold *hold, struct blk_request *req))
{
	hold->device = device;
	hold->loop = loop;
	hold->again = again;
	list_init(&hold->held);
	loop_timer_init(&hold->timer, timer_fired);
	hold->armed = false;
	hold->pause_ms = HOLD_MIN_MS;
	hold->msg.fn = retry_asked;
	atomic_init(&hold->asked, false);
}

static bool no_space(int ret)
{
	return ret == -ENOSPC || ret == -EDQUOT;
}

bool hold_take(struct hold *hold, struct blk_request *req, int ret)
{
	struct hold_device *device = hold->device;

	if (!no_space(ret) || !atomic_load_explicit(&device->on, memory_order_acquire)) {
		if (!req->was_held)
			return false;
		req->was_held = false;
		hold->pause_ms = HOLD_MIN_MS; /* there may be room for others, too */
		if (atomic_fetch_sub(&device->count, 1) == 1)
			tell(device);
		return false;
	}
	if (!req->was_held && atomic_fetch_add(&device->count, 1) == 0)
		tell(device);
	req->was_held = true;
	list_init(&req->held);
	list_add_tail(&hold->held, &req->held);
	if (!hold->armed) {
		hold->armed = true;
		loop_timer_arm(hold->loop, &hold->timer, (uint64_t)hold->pause_ms * 1000000);
	}
	return true;
}

void hold_retry(struct hold *hold)
{
	if (!atomic_exchange(&hold->asked, true))
		loop_post(hold->loop, &hold->msg);
}

void hold_end(struct hold_device *device)
{
	atomic_store_explicit(&device->on, false, memory_order_release);
}
