/* SPDX-License-Identifier: MIT */
/*
 * ublk-serve.c: a target on a ublk device, in the foreground: the front end and the targets without
 * the daemon around them, for tests.
 *
 *	ublk-serve [-r] [-b] [-p DATA_PATH] [-q QUEUES] [-d DEPTH] [-i ID] [-s SIZE_BYTES] TARGET [PATH]
 *
 * -r read only, -b through the page cache. Prints the device's path when it is usable; ends at
 * SIGTERM or when the device is gone, whether it is in use or not. At SIGUSR2 the device gets the size in
 * MiB that is the signal's value (kill -q), and "size MIB RESULT" is printed. Exit status 0; 1 if
 * something failed, also the last flush; 2 usage. And for looking at what others serve:
 *
 *	ublk-serve list			each device: ID STATE QUEUES DEPTH PID served|orphan
 *	ublk-serve del ID		prints "lingers" if somebody still has it open
 *	ublk-serve busy DEVICE		prints "busy" or "free"
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "qcow2.h"
#include "target/frontend.h"
#include "target/target.h"
#include "ublk/ublk.h"

static int fail(const struct error *err, int ret)
{
	fprintf(stderr, "ublk-serve: %s\n", error_text(err, ret));
	return 1;
}

static int list(void)
{
	struct ublk_device devices[64];
	struct error err = {""};
	int n = ublk_devices(devices, 64, &err);

	if (n < 0)
		return fail(&err, n);
	for (int i = 0; i < n; i++)
		printf("%u %s %u %u %d %s\n", devices[i].id, devices[i].state, devices[i].queues,
		       devices[i].depth, devices[i].server_pid,
		       devices[i].served ? "served" : "orphan");
	return 0;
}

static int del(const char *id)
{
	struct error err = {""};
	bool lingers;
	int ret = ublk_device_delete((unsigned)atoi(id), &lingers, &err);

	if (ret)
		return fail(&err, ret);
	if (lingers)
		puts("lingers");
	return 0;
}

static int busy(const char *device)
{
	int ret = ublk_block_busy(device);

	if (ret < 0)
		return fail(NULL, ret);
	puts(ret ? "busy" : "free");
	return 0;
}

static void resize(struct frontend *f, int mib)
{
	struct error err = {""};
	int ret = frontend_ublk.resize(f, (uint64_t)mib << 20, &err);

	printf("size %d %d\n", mib, ret);
	fflush(stdout);
	if (ret)
		fail(&err, ret);
}

static void wait_for_end(struct frontend *f, int signal_fd)
{
	struct pollfd fds[2] = {
		{.fd = signal_fd, .events = POLLIN},
		{.fd = frontend_ublk.gone_fd(f), .events = POLLIN},
	};
	struct signalfd_siginfo info;

	for (;;) {
		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[1].revents || read(signal_fd, &info, sizeof(info)) != sizeof(info) ||
		    info.ssi_signo != SIGUSR2)
			break;
		resize(f, info.ssi_int);
	}
	if (fds[1].revents)
		fprintf(stderr, "ublk-serve: the device is gone\n");
}

static int serve(const struct target_ops *ops, struct target_options *topts,
		 struct frontend_options *fopts, int signal_fd)
{
	struct error err = {""};
	struct frontend *f;
	struct target *t;
	int ret, closed;

	frontend_protect_thread();
	ret = ops->open(&t, topts, &err);
	if (ret)
		return fail(&err, ret);
	if (fopts->queues > t->limits.max_queues)
		fopts->queues = t->limits.max_queues;
	ret = frontend_ublk.start(&f, t, fopts, &err);
	if (ret == -ETIMEDOUT)
		return fail(&err, ret);
	if (!ret) {
		printf("%s\n", frontend_ublk.device(f));
		fflush(stdout);
		wait_for_end(f, signal_fd);
		ret = frontend_ublk.stop(f, &err);
		if (ret == -ETIMEDOUT)
			return fail(&err, ret);
	}
	closed = t->ops->close(t, &err);
	if (ret || closed)
		return fail(&err, ret ? ret : closed);
	return 0;
}

static int log_map(const char *path, struct target_recovery *recovery)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, QCOW2_LOG_BYTES)) {
		perror(path);
		return -1;
	}
	recovery->log_bytes = QCOW2_LOG_BYTES;
	recovery->log_base =
		mmap(NULL, QCOW2_LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return recovery->log_base == MAP_FAILED ? -1 : 0;
}

static int usage(void)
{
	fprintf(stderr,
		"usage: ublk-serve [-rbRT] [-L LOG] [-p DATA_PATH] [-q QUEUES] [-d DEPTH] [-i ID] [-s SIZE] TARGET [PATH]\n"
		"       ublk-serve list | del ID | busy DEVICE\n");
	return 2;
}

int main(int argc, char **argv)
{
	struct target_options topts = {.direct = true};
	struct frontend_options fopts = {
		.id = -1, .queues = 1, .depth = 64, .run_dir = "/run", .name = "test"};
	const struct target_ops *ops;
	struct target_recovery recovery = {.identity = "ublk-serve", .identity_bytes = 10};
	sigset_t signals;
	int opt;

	if (argc == 2 && !strcmp(argv[1], "list"))
		return list();
	if (argc == 3 && !strcmp(argv[1], "del"))
		return del(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "busy"))
		return busy(argv[2]);
	while ((opt = getopt(argc, argv, "rbRTL:p:q:d:i:s:")) != -1) {
		switch (opt) {
		case 'R':
			fopts.recovery = FRONTEND_RECOVERY_REISSUE;
			break;
		case 'T':
			fopts.recover = recovery.replay = true;
			break;
		case 'L':
			if (log_map(optarg, &recovery))
				return 1;
			topts.recovery = &recovery;
			break;
		case 'p':
			fopts.data_path = !strcmp(optarg, "copy")	 ? FRONTEND_DATA_COPY
					  : !strcmp(optarg, "user-copy") ? FRONTEND_DATA_USER_COPY
					  : !strcmp(optarg, "zero-copy") ? FRONTEND_DATA_ZERO_COPY
									 : FRONTEND_DATA_AUTO;
			break;
		case 'r':
			topts.read_only = true;
			break;
		case 'b':
			topts.direct = false;
			break;
		case 'q':
			fopts.queues = (unsigned)atoi(optarg);
			break;
		case 'd':
			fopts.depth = (unsigned)atoi(optarg);
			break;
		case 'i':
			fopts.id = atoi(optarg);
			break;
		case 's':
			topts.size_bytes = strtoull(optarg, NULL, 10);
			break;
		default:
			return usage();
		}
	}
	if (optind >= argc || argc - optind > 2)
		return usage();
	ops = target_find(argv[optind]);
	if (!ops) {
		fprintf(stderr, "ublk-serve: no target %s\n", argv[optind]);
		return 2;
	}
	topts.path = argv[optind + 1];
	topts.queues = fopts.queues;
	topts.depth = fopts.depth;
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGUSR2);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	return serve(ops, &topts, &fopts, signalfd(-1, &signals, SFD_CLOEXEC));
}
