/* SPDX-License-Identifier: MIT */
/*
 * halfway.c: see halfway.h.
 *
 * A queue counts as ready in the driver when it has a fetch for each of the queue's tags; then, and not
 * before, the driver knows whose thread the queue's is. Drivers up to that of 6.14 begin anew with nothing but
 * START_USER_RECOVERY, and that command takes for granted that all queues were ready: it is refused if none is, and
 * follows a null pointer in the kernel, to the thread of a queue that is not, if some are. A server that is killed
 * between that command and its last fetch leaves such a device. (Later drivers begin anew when the char device
 * is closed.)
 *
 * What is missing is made up for here: a thread fetches all tags of all queues and ends. Of a queue that is
 * ready (its owner is dead) each fetch is refused and nothing changes; another becomes ready with this thread as
 * its owner, who then is dead like the others. All is as it is after the death of a server that served.
 *
 * Invariants:
 *  1. The device is quiesced, and no END_USER_RECOVERY comes: no request reaches this thread. If one did (of
 *     a helper of the dead server's), its payload could not be copied to NOWHERE: the driver tries again later.
 *  2. A queue's tags are fetched by one system call, which SIGKILL does not cut in two, here as in queue.c: a
 *     process that dies has fetched all of a queue's tags or none. (Of one that is fetched in part, while no
 *     other is ready, these drivers keep the char device open for ever; it can then be deleted only.)
 *  3. The descriptors are not mapped: the driver would let no other process do that until the next
 *     START_USER_RECOVERY.
 *  4. The caller sees to it that no two processes take a device over at once.
 *  5. Each queue that lost its thread has made the driver queue a work item, which cancels all that is fetched when it
 *     comes to run, and is not meant to meet a fetch on its way in. Nothing tells when it has run; so there is a
 *     pause before the first fetch that follows a death, as a rule far longer than it takes.
 */
#include "ublk/halfway.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "ring/restrict.h"

#define OPEN_MS	  30000 /* for the dead process's files to go */
#define STEP_MS	  10
#define SETTLE_MS 100	/* for a work item of the driver's: invariant 5 */
#define NOWHERE	  4096	/* no memory of this process is there */

struct finisher {
	int char_fd;
	const struct ublk_dev_info *info;
	struct io_uring ring;
	bool fetched; /* some queue was not ready */
	int ret;
};

static void pause_ms(unsigned ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&ts, NULL);
}

static void fetch_prepare(struct finisher *f, unsigned queue, unsigned tag)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&f->ring);
	struct ublk_io_cmd *cmd;

	assert(sqe); /* there are as many as tags */
	memset(sqe, 0, 2 * sizeof(*sqe)); /* the ring's entries are of 128 bytes */
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, f->char_fd, NULL, 0, 0);
	sqe->cmd_op = UBLK_OP_FETCH_REQ;
	cmd = (struct ublk_io_cmd *)sqe->cmd;
	cmd->q_id = (uint16_t)queue;
	cmd->tag = (uint16_t)tag;
	cmd->addr = f->info->flags & UBLK_F_USER_COPY ? 0 : NOWHERE;
}

static int queue_fetch(struct finisher *f, unsigned queue)
{
	unsigned depth = f->info->queue_depth, refused = 0;
	struct io_uring_cqe *cqe;
	int ret = 0;

	for (unsigned tag = 0; tag < depth; tag++)
		fetch_prepare(f, queue, tag);
	while (!ret && io_uring_sq_ready(&f->ring)) {
		int n = io_uring_submit(&f->ring);

		if (n <= 0 && n != -EINTR)
			ret = n ? n : -EIO;
	}
	/* what is refused is so at once */
	while (io_uring_peek_cqe(&f->ring, &cqe) == 0) {
		if (cqe->res != -EINVAL && cqe->res != -EBUSY && !ret)
			ret = cqe->res < 0 ? cqe->res : -EPROTO;
		io_uring_cqe_seen(&f->ring, cqe);
		refused++;
	}
	f->fetched |= refused < depth;
	return ret;
}

static int ring_make(struct finisher *f)
{
	static const uint8_t operations[] = {IORING_OP_URING_CMD};
	/* of 128 bytes: the kernel takes both, and the queues' fetches, of 64, are told from these by tests */
	int ret = io_uring_queue_init(f->info->queue_depth, &f->ring,
				      IORING_SETUP_SQE128 | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED);

	if (ret)
		return ret;
	ret = ring_restrict(&f->ring, operations, 1);
	if (ret)
		log_debug("a device half taken over: what may be submitted is not restricted: %s", strerror(-ret));
	ret = ring_enable(&f->ring);
	if (ret)
		io_uring_queue_exit(&f->ring);
	return ret;
}

static void *finisher_thread(void *arg)
{
	struct finisher *f = arg;

	f->ret = ring_make(f);
	if (f->ret)
		return NULL;
	for (unsigned i = 0; !f->ret && i < f->info->nr_hw_queues; i++)
		f->ret = queue_fetch(f, i);
	io_uring_queue_exit(&f->ring);
	return NULL;
}

static int finisher_run(struct finisher *f)
{
	sigset_t all, old;
	pthread_t thread;
	int ret;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = pthread_create(&thread, NULL, finisher_thread, f);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret)
		return -ret;
	pthread_join(thread, NULL);
	return f->ret;
}

/* It can be open once, so that this is a wait for the dead server's last I/O as well. */
static int char_open(uint32_t id, struct error *err)
{
	char path[32];
	int fd, ret = 0;

	snprintf(path, sizeof(path), "/dev/ublkc%u", id);
	for (unsigned waited_ms = 0; waited_ms <= OPEN_MS; waited_ms += STEP_MS) {
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0)
			return fd;
		ret = -errno;
		if (ret != -EBUSY && ret != -EINTR)
			return error_set(err, ret, "cannot open %s: %s", path, strerror(-ret));
		pause_ms(STEP_MS);
	}
	return error_set(err, ret,
			 "ublk device %u is still served, or its last server has I/O under way (waited %u s)", id,
			 OPEN_MS / 1000);
}

/* 6.16 has this feature; 6.15, which is taken for an older one, forgets what is fetched here. */
static bool driver_needs_it(uint64_t features)
{
	return !(features & UBLK_F_UPDATE_SIZE);
}

int ublk_halfway_finish(uint64_t features, const struct ublk_dev_info *info, struct error *err)
{
	struct finisher f = {.info = info};
	int ret;

	/* one that is live still had all its fetches when its server died */
	if (!driver_needs_it(features) || !(info->flags & UBLK_F_USER_RECOVERY) ||
	    (info->state != UBLK_STATE_QUIESCED && info->state != UBLK_STATE_FAIL_IO))
		return 0;
	f.char_fd = char_open(info->dev_id, err);
	if (f.char_fd < 0)
		return f.char_fd;
	pause_ms(SETTLE_MS);
	ret = finisher_run(&f);
	close(f.char_fd);
	if (ret)
		return error_set(err, ret, "ublk device %u: what its last server left undone cannot be done: %s",
				 info->dev_id, strerror(-ret));
	if (!f.fetched)
		return 0;
	log_info("ublk device %u: its last server died while it took the device over", info->dev_id);
	pause_ms(SETTLE_MS);
	return 0;
}
