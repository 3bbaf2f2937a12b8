/* SPDX-License-Identifier: MIT */
/*
 * fuse-serve: the FUSE front end by itself, for its tests. Not installed.
 *
 *	fuse-serve [OPTION]... TARGET [IMAGE]	serve until SIGTERM or the device is gone
 *	fuse-serve --orphans RUN_DIR		list what killed ones left: "ID DEVICE BUSY"
 *	fuse-serve --remove ID RUN_DIR		remove it
 *
 * It prints the device's path on a line of standard output when it is usable, "busy N" for each
 * SIGUSR1, "size MIB RESULT" for each SIGUSR2, whose value is the new size in MiB (kill -q), "gone" if the device went away by itself, and at the end "stopped". Exit status: 0; 1 if
 * starting or stopping failed; --remove: 2 if the device was busy.
 *
 * --trace FILE writes what the target is asked to do, one line each, in order: a request when it is
 * submitted ("WRITE OFFSET LENGTH FLAGS"), and "done WRITE OFFSET LENGTH RESULT" when it completes.
 * --fail-start: the target's queue fails to start. --cycles N starts and stops it N times and fails if descriptors were left open.
 */
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/list.h"
#include "base/log.h"
#include "base/math.h"
#include "fuse/fuse.h"
#include "target/frontend.h"

/* ---- a target that writes down what another one does ---- */

enum { WRAP_BYTES = 64 };

struct wrap {
	struct target target;
	struct target_ops ops;
	struct target *inner;
	FILE *trace;
};

struct wrap_request {
	struct wrap *wrap;
	void (*complete)(struct blk_request *req, int ret);
};

_Static_assert(sizeof(struct wrap_request) <= WRAP_BYTES, "fits before the other target's memory");

static const char *const op_names[] = {
	[BLK_READ] = "READ",
	[BLK_WRITE] = "WRITE",
	[BLK_FLUSH] = "FLUSH",
	[BLK_DISCARD] = "DISCARD",
	[BLK_WRITE_ZEROES] = "WRITE_ZEROES",
};

static struct wrap *wrap_of(struct target *t)
{
	return container_of(t, struct wrap, target);
}

static unsigned wrap_coroutines(const struct target *t, unsigned queue)
{
	const struct target *inner = container_of(t, struct wrap, target)->inner;

	return inner->ops->coroutines(inner, queue);
}

static bool fail_start;

static int wrap_queue_start(struct target *t, unsigned queue, struct loop *loop, struct error *err)
{
	struct target *inner = wrap_of(t)->inner;

	if (fail_start)
		return error_set(err, -ENXIO, "this queue does not start");
	return inner->ops->queue_start ? inner->ops->queue_start(inner, queue, loop, err) : 0;
}

static void wrap_queue_stop(struct target *t, unsigned queue)
{
	struct target *inner = wrap_of(t)->inner;

	if (inner->ops->queue_stop)
		inner->ops->queue_stop(inner, queue);
}

static void wrap_done(struct blk_request *req, int ret)
{
	struct wrap_request *wr = (struct wrap_request *)((char *)req->priv - WRAP_BYTES);

	fprintf(wr->wrap->trace, "done %s %llu %llu %d\n", op_names[req->op],
		(unsigned long long)req->offset_bytes, (unsigned long long)req->len_bytes, ret);
	req->priv = wr;
	req->complete = wr->complete;
	blk_request_complete(req, ret);
}

static void wrap_submit(struct target *t, unsigned queue, struct blk_request *req)
{
	struct wrap *wrap = wrap_of(t);
	struct wrap_request *wr = req->priv;

	fprintf(wrap->trace, "%s %llu %llu %u\n", op_names[req->op],
		(unsigned long long)req->offset_bytes, (unsigned long long)req->len_bytes,
		req->flags);
	if ((uintptr_t)req->buf.base % 4096)
		fprintf(wrap->trace, "unaligned buffer\n");
	wr->wrap = wrap;
	wr->complete = req->complete;
	req->priv = (char *)wr + WRAP_BYTES;
	req->complete = wrap_done;
	wrap->inner->ops->submit(wrap->inner, queue, req);
}

static int wrap_close(struct target *t, struct error *err)
{
	struct wrap *wrap = wrap_of(t);
	int ret = wrap->inner->ops->close(wrap->inner, err);

	fclose(wrap->trace);
	free(wrap);
	return ret;
}

static struct target *wrap_open(struct target *inner, const char *path)
{
	struct wrap *wrap = calloc(1, sizeof(*wrap));

	if (!wrap || !(wrap->trace = fopen(path, "w"))) {
		perror(path);
		exit(1);
	}
	setvbuf(wrap->trace, NULL, _IOLBF, 0);
	wrap->inner = inner;
	wrap->ops = (struct target_ops){
		.name = inner->ops->name,
		.request_bytes = WRAP_BYTES + inner->ops->request_bytes,
		.coroutines = inner->ops->coroutines ? wrap_coroutines : NULL,
		.queue_start = wrap_queue_start,
		.submit = wrap_submit,
		.queue_stop = wrap_queue_stop,
		.close = wrap_close,
	};
	wrap->target.ops = &wrap->ops;
	wrap->target.limits = inner->limits;
	return &wrap->target;
}

/* ---- serving ---- */

static int fail(const struct error *err, int ret)
{
	fprintf(stderr, "fuse-serve: %s\n", error_text(err, ret));
	return 1;
}

static void resize(struct frontend *f, int mib)
{
	struct error err = {0};
	int ret = frontend_fuse.resize(f, (uint64_t)mib << 20, &err);

	printf("size %d %d\n", mib, ret);
	if (ret)
		fail(&err, ret);
}

/* Until a signal or the device's end. */
static void serve(struct frontend *f)
{
	struct signalfd_siginfo info;
	sigset_t set;
	int sfd;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sfd = signalfd(-1, &set, SFD_CLOEXEC);
	for (;;) {
		struct pollfd fds[] = {
			{.fd = sfd, .events = POLLIN},
			{.fd = frontend_fuse.gone_fd(f), .events = POLLIN},
		};

		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[1].revents) {
			puts("gone");
			break;
		}
		if (fds[0].revents && read(sfd, &info, sizeof(info)) == sizeof(info)) {
			if (info.ssi_signo == SIGUSR1)
				printf("busy %d\n", frontend_fuse.busy(f));
			else if (info.ssi_signo == SIGUSR2)
				resize(f, info.ssi_int);
			else
				break;
		}
	}
	close(sfd);
}

static int open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static int cycles(struct target *t, const struct frontend_options *opts, int n)
{
	struct error err = {0};
	struct frontend *f;
	int before = 0, ret;

	for (int i = 0; i < n; i++) {
		ret = frontend_fuse.start(&f, t, opts, &err);
		if (ret)
			return fail(&err, ret);
		ret = frontend_fuse.stop(f, &err);
		if (ret)
			return fail(&err, ret);
		if (i == 0)
			before = open_descriptors();
	}
	if (open_descriptors() != before) {
		fprintf(stderr,
			"fuse-serve: %d descriptors after the first cycle, %d after the last\n",
			before, open_descriptors());
		return 1;
	}
	return 0;
}

static int orphan_print(const struct fuse_orphan *orphan, void *arg)
{
	printf("%d %s %d\n", orphan->id, orphan->device, orphan->busy);
	return 0;
}

struct settings {
	struct target_options target;
	struct frontend_options frontend;
	const char *trace;
	const char *orphans;
	int remove, cycles;
};

static void settings_read(struct settings *set, int argc, char **argv)
{
	static const struct option options[] = {
		{"no-loop", no_argument, NULL, 'n'},
		{"run-dir", required_argument, NULL, 'r'},
		{"name", required_argument, NULL, 'N'},
		{"id", required_argument, NULL, 'i'},
		{"depth", required_argument, NULL, 'd'},
		{"read-only", no_argument, NULL, 'R'},
		{"direct", no_argument, NULL, 'D'},
		{"size", required_argument, NULL, 's'},
		{"trace", required_argument, NULL, 't'},
		{"cycles", required_argument, NULL, 'c'},
		{"orphans", required_argument, NULL, 'o'},
		{"remove", required_argument, NULL, 'x'},
		{"fail-start", no_argument, NULL, 'f'},
		{"debug", no_argument, NULL, 'g'},
		{NULL, 0, NULL, 0},
	};
	int c;

	*set = (struct settings){
		.target = {.queues = 1, .depth = 64},
		.frontend =
			{.id = -1, .queues = 1, .depth = 64, .run_dir = "/run", .name = "image"},
		.remove = -1,
	};
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'n':
			set->frontend.no_loop = true;
			break;
		case 'r':
			set->frontend.run_dir = optarg;
			break;
		case 'N':
			set->frontend.name = optarg;
			break;
		case 'i':
			set->frontend.id = atoi(optarg);
			break;
		case 'd':
			set->target.depth = set->frontend.depth = (unsigned)atoi(optarg);
			break;
		case 'R':
			set->target.read_only = true;
			break;
		case 'D':
			set->target.direct = true;
			break;
		case 's':
			set->target.size_bytes = strtoull(optarg, NULL, 0);
			break;
		case 't':
			set->trace = optarg;
			break;
		case 'c':
			set->cycles = atoi(optarg);
			break;
		case 'o':
			set->orphans = optarg;
			break;
		case 'x':
			set->remove = atoi(optarg);
			break;
		case 'f':
			fail_start = true;
			set->trace = "/dev/null";
			break;
		case 'g':
			log_open(false, "fuse-serve", LOG_LEVEL_DEBUG);
			break;
		default:
			exit(1);
		}
	}
}

int main(int argc, char **argv)
{
	const struct target_ops *ops;
	struct error err = {0};
	struct settings set;
	struct frontend *f;
	struct target *t;
	sigset_t mask;
	int ret, status = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	settings_read(&set, argc, argv);
	if (set.orphans) {
		ret = fuse_orphans_each(set.orphans, orphan_print, NULL, &err);
		return ret ? fail(&err, ret) : 0;
	}
	ops = optind < argc ? target_find(argv[optind]) : NULL;
	if (set.remove >= 0) {
		ret = fuse_orphan_remove(argv[optind], set.remove, &err);
		return ret ? fail(&err, ret) + (ret == -EBUSY) : 0;
	}
	if (!ops) {
		fprintf(stderr, "fuse-serve: which target?\n");
		return 1;
	}
	sigemptyset(&mask);
	sigaddset(&mask, SIGTERM);
	sigaddset(&mask, SIGINT);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGUSR2);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	set.target.path = argv[optind + 1];
	ret = ops->open(&t, &set.target, &err);
	if (ret)
		return fail(&err, ret);
	if (set.trace)
		t = wrap_open(t, set.trace);
	if (set.cycles) {
		status = cycles(t, &set.frontend, set.cycles);
	} else {
		ret = frontend_fuse.start(&f, t, &set.frontend, &err);
		if (ret) {
			status = fail(&err, ret);
			goto out;
		}
		printf("%s\n", frontend_fuse.device(f));
		serve(f);
		ret = frontend_fuse.stop(f, &err);
		if (ret)
			status = fail(&err, ret);
		if (ret == -ETIMEDOUT)
			_exit(1);
	}
out:
	err.text[0] = '\0';
	ret = t->ops->close(t, &err);
	if (ret)
		status = fail(&err, ret);
	puts("stopped");
	return status;
}
