/* SPDX-License-Identifier: MIT */
/*
 * helper.c: see helper.h.
 *
 * The two talk through a socket of packets: a question and its answer are one each, with a number that
 * tells an answer that came too late from the one that is waited for. A packet that holds no more than the
 * head takes the question back: the helper's function is told so, and answers soon.
 *
 * Invariants:
 *  1. The helper is a child that is forked while this process has one thread; it does not exec, and has no
 *     descriptor of its parent's but its end of the socket. So the files of a process that is killed are
 *     closed at once, and the end of the socket ends the helper.
 *  2. It reads no more of a packet than fits, and gives it to the function for that question alone.
 *  3. A descriptor that comes with a question is closed before the answer goes out.
 */
#include "target/helper.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/math.h"

#define HELPER_FD 3
#define SLICE_MS  100
#define GRACE_MS  3000 /* for an answer to what was taken back */

struct packet {
	uint32_t number;
	uint32_t question;
	int32_t result;
	char data[HELPER_BYTES];
};

#define HEAD offsetof(struct packet, data)

struct helper {
	int fd;
	pid_t pid;
	uint32_t number;
};

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* ---- in the helper ---- */

static int given_fd = -1;
static char run_dir[PATH_MAX];

int helper_given_fd(void)
{
	return given_fd;
}

const char *helper_run_dir(void)
{
	return run_dir;
}

static void given_close(void)
{
	if (given_fd >= 0)
		close(given_fd);
	given_fd = -1;
}

/* A packet, and what comes with it. */
static ssize_t question_take(struct packet *p)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {p, sizeof(*p)};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n = recvmsg(HELPER_FD, &msg, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;

	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
	    c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&given_fd, CMSG_DATA(c), sizeof(int));
	return n;
}

/* While a question is at work nothing comes but its being taken back, or the end. */
static bool taken_back(void *arg)
{
	struct pollfd pfd = {.fd = HELPER_FD, .events = POLLIN};

	return poll(&pfd, 1, 0) > 0;
}

static _Noreturn void helper_end(const struct helper_config *config)
{
	if (config->ended)
		config->ended();
	_exit(0);
}

static _Noreturn void helper_main(const struct helper_config *config)
{
	struct packet p;

	for (;;) {
		ssize_t n = question_take(&p);
		helper_fn fn;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < (ssize_t)HEAD)
			helper_end(config);
		if (n == (ssize_t)HEAD) { /* it has been answered already */
			given_close();
			continue;
		}
		fn = p.question < HELPER_QUESTIONS ? config->fns[p.question] : NULL;
		p.result = fn ? fn(p.data, (size_t)n - HEAD, taken_back, NULL) : -EOPNOTSUPP;
		given_close();
		if (send(HELPER_FD, &p, (size_t)n, MSG_NOSIGNAL) != n)
			helper_end(config);
	}
}

static void helper_begin(const struct helper_config *config, int fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	sigset_t none;

	/* signals to the group are the parent's business; its end is seen at the socket */
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* whoever called the program waits for the end of its standard error, maybe */
	for (int i = 0; null >= 0 && i < HELPER_FD; i++)
		dup2(null, i);
	if (dup2(fd, HELPER_FD) < 0 || close_range(HELPER_FD + 1, ~0u, 0))
		_exit(1);
	snprintf(run_dir, sizeof(run_dir), "%s", config->run_dir ? config->run_dir : "");
	if (config->confine)
		config->confine();
	helper_main(config);
}

/* ---- in who asks ---- */

int helper_start(struct helper **out, const struct helper_config *config, struct error *err)
{
	struct helper *h = calloc(1, sizeof(*h));
	int pair[2], ret;

	if (!h)
		return error_set(err, -ENOMEM, "out of memory");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		ret = error_set(err, -errno, "socketpair: %s", strerror(errno));
		free(h);
		return ret;
	}
	h->pid = fork();
	if (h->pid == 0)
		helper_begin(config, pair[1]);
	close(pair[1]);
	h->fd = pair[0];
	if (h->pid < 0) {
		ret = error_set(err, -errno, "no process can be started: %s", strerror(errno));
		close(h->fd);
		free(h);
		return ret;
	}
	*out = h;
	return 0;
}

void helper_stop(struct helper *h)
{
	if (!h)
		return;
	close(h->fd);
	/* it ends at once, unless the kernel holds it: then it is not waited for */
	for (unsigned i = 0; i < 100 && waitpid(h->pid, NULL, WNOHANG) == 0; i++) {
		struct timespec pause = {.tv_nsec = 1000000};

		nanosleep(&pause, NULL);
	}
	free(h);
}

int helper_fd(const struct helper *h)
{
	return h->fd;
}

/* 0: no answer within @ms; else that of the kernel, or 1 for ours. */
static int answer_take(struct helper *h, struct packet *p, size_t bytes, uint64_t ms)
{
	struct pollfd pfd = {.fd = h->fd, .events = POLLIN};
	ssize_t n;

	if (poll(&pfd, 1, (int)min_of(ms, (uint64_t)SLICE_MS)) <= 0)
		return 0;
	n = recv(h->fd, p, sizeof(*p), MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return -EPIPE;
	return p->number == h->number && n == (ssize_t)(HEAD + bytes);
}

static bool packet_send(struct helper *h, struct packet *p, size_t bytes, int fd)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {p, bytes};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd >= 0) {
		control.head = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(sizeof(int)),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
		};
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(int));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
	}
	return sendmsg(h->fd, &msg, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static int question_ask(struct helper *h, enum helper_question question, void *data, size_t bytes, int fd,
			unsigned timeout_ms, bool (*given_up)(void *arg), void *arg)
{
	struct packet p = {.number = ++h->number, .question = (uint32_t)question};
	uint64_t deadline = now_ms() + timeout_ms;
	bool back = false;
	int got = 0;

	assert(bytes > 0 && bytes <= HELPER_BYTES);
	memcpy(p.data, data, bytes);
	if (!packet_send(h, &p, HEAD + bytes, fd))
		return -EPIPE;
	while (got == 0) {
		uint64_t now = now_ms();

		if (back && now >= deadline)
			return -ETIMEDOUT;
		if (!back && (now >= deadline || (given_up && given_up(arg)))) {
			back = true;
			deadline = now + GRACE_MS;
			if (send(h->fd, &p, HEAD, MSG_NOSIGNAL) != (ssize_t)HEAD)
				return -EPIPE;
			continue;
		}
		got = answer_take(h, &p, bytes, deadline - now);
	}
	if (got < 0)
		return got;
	memcpy(data, p.data, bytes);
	return p.result;
}

int helper_ask(struct helper *h, enum helper_question question, void *data, size_t bytes,
	       unsigned timeout_ms, bool (*given_up)(void *arg), void *arg)
{
	return question_ask(h, question, data, bytes, -1, timeout_ms, given_up, arg);
}

int helper_ask_with(struct helper *h, enum helper_question question, void *data, size_t bytes, int fd,
		    unsigned timeout_ms)
{
	return question_ask(h, question, data, bytes, fd, timeout_ms, NULL, NULL);
}
