/* SPDX-License-Identifier: MIT */
/*
 * ublkdev-try.c: a 64 MiB device of memory that behaves in a chosen way, to try the ublk library.
 *
 *	ublkdev-try MODE [QUEUES [DEPTH]]
 *
 *	inline		completes requests inside submit
 *	threads		two threads of its own complete them, out of order, some after a delay
 *	uring		a memfd, read and written through the queue's io_uring
 *	fixed		as uring, from and to registered buffers where there are any; but for every third
 *			request it asks for memory
 *	eio		as inline; reads and writes of the second quarter fail with -EIO
 *	enospc		as inline; writes of the second quarter fail with -ENOSPC
 *	hang		as inline; requests of the last quarter are never completed. Ends at SIGTERM
 *			even if it is in use
 *	resize		as inline; at SIGUSR1 it loses its last quarter, and prints "resized RESULT". Ends as hang
 *	order		as inline; counts the writes of each queue that come after one of a higher offset,
 *			and prints "writes N out of order M" at the end
 *	start-killed	once the other queues wait for requests, the process is killed in the start of the
 *			last one
 *	open-fails	open returns an error with a text
 *	no-text		open returns an error without one
 *	bad-block, bad-physical, bad-optimal, bad-size, no-size, bad-granularity, bad-request, bad-chunk,
 *	bad-align, big-block, big-size
 *			open gives an impossible one
 *	start-fails	the start of the last queue returns an error
 *	start-dies	the thread of the last queue ends in queue_start
 *
 * Prints the device's path, then serves as ublkdev_run() does. At the end it prints what the
 * library has called: "open O start S stop T close C", and each queue that had requests.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <liburing.h>

#include <ublkdev.h>

#define SIZE	  (64ull << 20)
#define WORKERS	  2
#define QUEUE_MAX 16

struct job {
	struct job *next;
	struct ublkdev_request *req;
	struct ublkdev_sqe_op op;
};

static struct {
	const char *mode;
	unsigned queues;
	int fd;
	char *mem;
	unsigned opened, started, stopped, closed;
	unsigned long requests[QUEUE_MAX];
	unsigned long fixed; /* requests with a registered buffer */
	uint64_t highest[QUEUE_MAX];
	unsigned long writes, out_of_order;

	pthread_t workers[WORKERS];
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct job *jobs; /* the newest first: out of order on purpose */
	bool ending;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

static bool mode(const char *name)
{
	return strcmp(state.mode, name) == 0;
}

static void work(struct ublkdev_request *req)
{
	char *at = state.mem + ublkdev_request_offset(req);
	uint64_t length = ublkdev_request_length(req);

	switch (ublkdev_request_op(req)) {
	case UBLKDEV_READ:
		memcpy(ublkdev_request_buffer(req), at, length);
		break;
	case UBLKDEV_WRITE:
		memcpy(at, ublkdev_request_buffer(req), length);
		break;
	case UBLKDEV_DISCARD:
	case UBLKDEV_WRITE_ZEROES:
		memset(at, 0, length);
		break;
	case UBLKDEV_FLUSH:
		break;
	}
}

static void *worker(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	pthread_mutex_lock(&state.lock);
	for (;;) {
		struct job *job = state.jobs;

		if (!job && state.ending)
			break;
		if (!job) {
			pthread_cond_wait(&state.more, &state.lock);
			continue;
		}
		state.jobs = job->next;
		pthread_mutex_unlock(&state.lock);
		if (rand_r(&seed) % 8 == 0)
			usleep(1000);
		work(job->req);
		ublkdev_complete(job->req, 0);
		pthread_mutex_lock(&state.lock);
	}
	pthread_mutex_unlock(&state.lock);
	return NULL;
}

static int try_open(void *data, struct ublkdev_limits *limits, struct ublkdev_error *err)
{
	if (mode("open-fails")) {
		snprintf(err->text, sizeof(err->text), "this one does not open");
		return -EBADMSG;
	}
	if (mode("no-text"))
		return -EBADMSG;
	state.opened++;
	limits->size = SIZE;
	limits->logical_block = mode("bad-block") ? 700 : mode("big-block") ? 65536 : 0;
	limits->physical_block = mode("bad-physical") ? 256 : 0;
	limits->io_opt = mode("bad-optimal") ? 12345 : 0;
	limits->discard_granularity = mode("big-block") ? 65536 : 4096;
	limits->max_request = mode("bad-request") ? 2048 : 0;
	limits->chunk = mode("bad-chunk") ? 3 << 16 : 0;
	limits->memory_align = mode("bad-align") ? 65536 : 0;
	limits->max_write_zeroes = 16 << 20;
	limits->volatile_cache = true;
	limits->fua = true;
	if (mode("bad-size") || mode("no-size") || mode("big-size"))
		limits->size = mode("bad-size") ? SIZE + 1 : mode("no-size") ? 0 : UINT64_MAX & ~4095ull;
	if (mode("bad-granularity"))
		limits->discard_granularity = 700;
	if (mode("uring") || mode("fixed"))
		limits->discard_granularity = limits->max_write_zeroes = 0;
	for (uintptr_t i = 0; mode("threads") && i < WORKERS; i++)
		if (pthread_create(&state.workers[i], NULL, worker, (void *)(i + 1)))
			abort();
	return 0;
}

static int try_queue_start(void *data, struct ublkdev_queue *queue, struct ublkdev_error *err)
{
	bool last = ublkdev_queue_index(queue) == state.queues - 1;

	if (last && mode("start-fails")) {
		snprintf(err->text, sizeof(err->text), "this queue does not start");
		return -EBADMSG;
	}
	if (last && mode("start-dies"))
		pthread_exit(NULL);
	if (last && mode("start-killed")) {
		usleep(300000); /* the fetches of the others have reached the driver */
		kill(getpid(), SIGKILL);
	}
	state.started++;
	return 0;
}

static void uring_done(struct ublkdev_sqe_op *op, int res, uint32_t flags)
{
	struct job *job = (struct job *)((char *)op - offsetof(struct job, op));

	if (res >= 0 && (uint64_t)res != ublkdev_request_length(job->req))
		res = -EIO;
	ublkdev_complete(job->req, res < 0 ? res : 0);
}

static void uring(struct ublkdev_queue *queue, struct job *job);

static void in_memory(struct ublkdev_request *req, int result)
{
	if (result)
		ublkdev_complete(req, result);
	else
		uring(ublkdev_request_queue(req), ublkdev_request_data(req));
}

static void fixed(struct ublkdev_queue *queue, struct job *job)
{
	int index = ublkdev_request_buffer_index(job->req);
	struct io_uring_sqe *sqe;

	if (index < 0 || __atomic_fetch_add(&state.fixed, 1, __ATOMIC_RELAXED) % 3 == 0) {
		ublkdev_request_to_memory(job->req, in_memory);
		return;
	}
	job->op.complete = uring_done;
	sqe = ublkdev_sqe(queue, &job->op);
	sqe->opcode = ublkdev_request_op(job->req) == UBLKDEV_READ ? IORING_OP_READ_FIXED
								    : IORING_OP_WRITE_FIXED;
	sqe->fd = state.fd;
	sqe->off = ublkdev_request_offset(job->req);
	sqe->len = (unsigned)ublkdev_request_length(job->req);
	sqe->buf_index = (uint16_t)index;
}

static void uring(struct ublkdev_queue *queue, struct job *job)
{
	struct ublkdev_request *req = job->req;
	void *buf = ublkdev_request_buffer(req);
	unsigned length = (unsigned)ublkdev_request_length(req);
	uint64_t offset = ublkdev_request_offset(req);
	struct io_uring_sqe *sqe;

	job->op.complete = uring_done;
	sqe = ublkdev_sqe(queue, &job->op);
	switch (ublkdev_request_op(req)) {
	case UBLKDEV_READ:
		io_uring_prep_read(sqe, state.fd, buf, length, offset);
		break;
	case UBLKDEV_WRITE:
		io_uring_prep_write(sqe, state.fd, buf, length, offset);
		break;
	default:
		io_uring_prep_fsync(sqe, state.fd, 0);
	}
	ublkdev_sqe_bind(sqe, &job->op);
}

static void note_order(unsigned queue, const struct ublkdev_request *req)
{
	uint64_t offset = ublkdev_request_offset(req);

	if (ublkdev_request_op(req) != UBLKDEV_WRITE)
		return;
	__atomic_fetch_add(&state.writes, 1, __ATOMIC_RELAXED);
	if (offset < state.highest[queue])
		__atomic_fetch_add(&state.out_of_order, 1, __ATOMIC_RELAXED);
	else
		state.highest[queue] = offset;
}

static void try_submit(void *data, struct ublkdev_queue *queue, struct ublkdev_request *req)
{
	struct job *job = ublkdev_request_data(req);
	uint64_t quarter = ublkdev_request_offset(req) / (SIZE / 4);
	bool flush = ublkdev_request_op(req) == UBLKDEV_FLUSH;

	if (ublkdev_request_queue(req) != queue)
		abort();
	__atomic_fetch_add(&state.requests[ublkdev_queue_index(queue)], 1, __ATOMIC_RELAXED);
	job->req = req;
	if (mode("order"))
		note_order(ublkdev_queue_index(queue), req);
	if (mode("uring") || (flush && mode("fixed"))) {
		uring(queue, job);
		return;
	}
	if (mode("fixed")) {
		fixed(queue, job);
		return;
	}
	if (mode("threads")) {
		pthread_mutex_lock(&state.lock);
		job->next = state.jobs;
		state.jobs = job;
		pthread_cond_signal(&state.more);
		pthread_mutex_unlock(&state.lock);
		return;
	}
	if (mode("hang") && quarter == 3)
		return;
	if (!flush && quarter == 1 && mode("eio")) {
		ublkdev_complete(req, -EIO);
		return;
	}
	if (quarter == 1 && mode("enospc") && ublkdev_request_op(req) == UBLKDEV_WRITE) {
		ublkdev_complete(req, -ENOSPC);
		return;
	}
	work(req);
	ublkdev_complete(req, 0);
}

static void try_queue_stop(void *data, struct ublkdev_queue *queue)
{
	state.stopped++;
}

static void try_close(void *data)
{
	state.closed++;
	pthread_mutex_lock(&state.lock);
	state.ending = true;
	pthread_cond_broadcast(&state.more);
	pthread_mutex_unlock(&state.lock);
	for (unsigned i = 0; mode("threads") && i < WORKERS; i++)
		pthread_join(state.workers[i], NULL);
}

static struct ublkdev_ops try_ops = {
	.name = "try",
	.request_bytes = sizeof(struct job),
	.open = try_open,
	.queue_start = try_queue_start,
	.submit = try_submit,
	.queue_stop = try_queue_stop,
	.close = try_close,
};

static void ready(void *data, const char *path)
{
	puts(path);
	fflush(stdout);
}

/* As ublkdev_run(), but does not ask whether the device is in use. */
static int run_heedless(const struct ublkdev_options *options, struct ublkdev_error *err)
{
	struct ublkdev *dev;
	sigset_t signals;
	int ret, signal;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	ret = ublkdev_start(&dev, &try_ops, NULL, options, err);
	if (ret)
		return ret;
	ready(NULL, ublkdev_path(dev));
	while (sigwait(&signals, &signal) == 0 && signal == SIGUSR1) {
		printf("resized %d\n", ublkdev_update_size(dev, SIZE / 4 * 3, err));
		fflush(stdout);
	}
	return ublkdev_stop(dev, err);
}

int main(int argc, char **argv)
{
	struct ublkdev_options options = {.id = -1};
	struct ublkdev_error err = {""};
	int ret;

	if (argc < 2 || argc > 4) {
		fprintf(stderr, "usage: ublkdev-try MODE [QUEUES [DEPTH]]\n");
		return 2;
	}
	state.mode = argv[1];
	state.queues = options.queues = argc > 2 ? (unsigned)atoi(argv[2]) : 1;
	options.depth = argc > 3 ? (unsigned)atoi(argv[3]) : 0;
	try_ops.registered_buffers = mode("fixed");
	state.fd = memfd_create("try", MFD_CLOEXEC);
	if (state.fd < 0 || ftruncate(state.fd, SIZE))
		return 1;
	state.mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, state.fd, 0);
	if (state.mem == MAP_FAILED)
		return 1;
	ret = mode("hang") || mode("resize") ? run_heedless(&options, &err)
			   : ublkdev_run(&try_ops, NULL, &options, ready, &err);
	printf("open %u start %u stop %u close %u", state.opened, state.started, state.stopped,
	       state.closed);
	for (unsigned i = 0; i < QUEUE_MAX; i++)
		if (state.requests[i])
			printf(" queue%u", i);
	if (state.fixed)
		printf(" fixed");
	if (mode("order"))
		printf(" writes %lu out of order %lu", state.writes, state.out_of_order);
	putchar('\n');
	if (ret) {
		fprintf(stderr, "ublkdev-try: %s\n", err.text);
		return 1;
	}
	return 0;
}
