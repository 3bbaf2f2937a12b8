// SPDX-License-Identifier: MIT
/*
 * spawn.c: the daemon in the foreground, and in a process of its own.
 *
 * In the background the parent forks twice with a session in between, so that the daemon has no
 * terminal and cannot get one, and stays until the daemon has said how it went. Messages go through a
 * sequenced-packet socket: one letter and a text.
 *
 *     P pid | N note | E error, ends it | D device, ends it
 *
 * The parent is the subreaper meanwhile, so that it learns how a daemon died that said nothing. The
 * daemon closes everything it inherited but standard error (for a failed assertion), which it gives up
 * right before it says D: whoever waits for the end of a pipe that the caller has, gets it.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/cleanup.h"
#include "daemon/control.h"
#include "daemon/daemon.h"
#include "daemon/entry.h"
#include "daemon/supervise.h"

#define START_TIMEOUT_MS 120000
#define BURY_TIMEOUT_MS	 10000
#define MESSAGE_MAX	 (PATH_MAX + 1024)
/* Where the daemon keeps its end of the socket. */
#define REPORT_FD 3

static const char ident[] = "ublk-qcow2";

/* In a supervisor and the workers after the first one: REPORT_FD is something else. */
static bool nobody_waits;


int daemon_run(const struct daemon_config *config, struct daemon_report *report, struct error *err)
{
	struct daemon_config here = *config;
	struct daemon *d;
	int ret;

	log_open(false, ident, LOG_LEVEL_INFO);
	here.foreground = true;
	ret = daemon_attach(&d, &here, report, err);
	if (ret)
		return ret;
	ret = report->usable(report, daemon_device(d));
	if (ret) {
		error_set(err, ret, "cannot say where the device is: %s", strerror(-ret));
		/* Its errors are logged. */
		(void)!daemon_detach(d);
		return ret;
	}
	ret = daemon_serve(d);
	return ret ? error_set(err, ret, "did not end well: see above") : 0;
}

/* ---- the daemon's side ---- */

static int message_send(char letter, const char *text)
{
	char message[MESSAGE_MAX];
	int len = snprintf(message, sizeof(message), "%c%s", letter, text);

	if (len >= (int)sizeof(message))
		len = sizeof(message) - 1;
	return send(REPORT_FD, message, (size_t)len, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void note_send(struct daemon_report *report, const char *text)
{
	/* Nobody may be there to read it any more; usable_send() finds out. */
	(void)!message_send('N', text);
}

static int usable_send(struct daemon_report *report, const char *device)
{
	return message_send('D', device);
}

static void null_onto(int first, int last)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int i = first; fd >= 0 && i <= last; i++)
		dup2(fd, i);
	if (fd > last)
		close(fd);
}

/* The device is there, or another one's, and nobody waits to be told. */
static void note_log(struct daemon_report *report, const char *text)
{
	log_info("%s", text);
}

static int usable_log(struct daemon_report *report, const char *device)
{
	log_info("%s: taken over", device);
	return 0;
}

/* A worker that a supervisor starts after the first one, or without anybody who waits. */
static int worker_alone(const struct daemon_config *config)
{
	struct daemon_report report = {.note = note_log, .usable = usable_log};
	struct error err = {0};
	struct daemon *d;
	int ret = daemon_attach(&d, config, &report, &err);

	if (ret) {
		log_err("%s: %s", config->target_options.path ? config->target_options.path
							      : config->target->name,
			error_text(&err, ret));
		return 1;
	}
	(void)!usable_log(&report, daemon_device(d));
	return daemon_serve(d) ? 1 : 0;
}

/* In the process that serves; returns its exit status. */
static int worker_main(const struct daemon_config *config)
{
	struct daemon_report report = {.note = note_send, .usable = usable_send};
	struct error err = {0};
	char pid[16];
	struct daemon *d;
	int ret;

	if (nobody_waits)
		return worker_alone(config);
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	(void)!message_send('P', pid);
	ret = daemon_attach(&d, config, &report, &err);
	if (ret) {
		message_send('E', error_text(&err, ret));
		return 1;
	}
	null_onto(STDERR_FILENO, STDERR_FILENO);
	/* A device that nobody has heard of is not left behind. One that was taken over has its users. */
	if (report.usable(&report, daemon_device(d)) &&
	    !(config->supervision && config->supervision->replay))
		return daemon_detach(d) ? 1 : 0;
	close(REPORT_FD);
	return daemon_serve(d) ? 1 : 0;
}

/* The supervisor, when its first worker has started: who waits is that one's business from now on. */
static void report_forget(void)
{
	nobody_waits = true;
	null_onto(STDERR_FILENO, STDERR_FILENO);
	close(REPORT_FD);
}

/* Whether the device is to outlive its daemon, which only the ublk front end's can. */
static bool supervisable(const struct daemon_config *config)
{
	if (config->recovery == FRONTEND_RECOVERY_OFF || config->no_loop)
		return false;
	if (config->frontend)
		return config->frontend->can_recover;
	return frontend_ublk.probe(NULL) == 0;
}

/* In the last process that `add` starts; returns its exit status. */
static int background_main(const struct daemon_config *config)
{
	struct error err = {0};
	int ret;

	if (chdir("/")) {
		message_send('E', "cannot enter /");
		return 1;
	}
	umask(077);
	/* What the user has to know of these first moments comes as a message. */
	log_open(true, ident, LOG_LEVEL_INFO);
	if (!supervisable(config))
		return worker_main(config);
	ret = supervise(config, worker_main, report_forget, &err);
	message_send('E', error_text(&err, ret));
	return 1;
}

static void background_start(const struct daemon_config *config, int fd)
{
	pid_t pid;

	setsid();
	pid = fork();
	if (pid < 0)
		_exit(1);
	if (pid > 0)
		_exit(0);
	null_onto(STDIN_FILENO, STDOUT_FILENO);
	if (dup2(fd, REPORT_FD) < 0 || close_range(REPORT_FD + 1, ~0u, 0))
		_exit(1);
	fcntl(REPORT_FD, F_SETFD, FD_CLOEXEC);
	exit(background_main(config));
}

/* ---- the parent's side ---- */

struct parent {
	int fd;
	pid_t daemon; /* 0: not known */
	int daemon_fd; /* -1: not known, or gone */
	bool takes_over; /* a device that waits: what is left of it is not to be removed */
	struct daemon_report *report;
	bool ended; /* E or D came */
	int ret;
};

static void message_take(struct parent *p, char *message, struct error *err)
{
	switch (message[0]) {
	case 'P':
		if (p->daemon_fd >= 0)
			close(p->daemon_fd);
		p->daemon = (pid_t)atoi(message + 1);
		p->daemon_fd = p->daemon > 0 ? (int)syscall(SYS_pidfd_open, p->daemon, 0) : -1;
		break;
	case 'N':
		p->report->note(p->report, message + 1);
		break;
	case 'E':
		p->ended = true;
		p->ret = error_set(err, -EIO, "%s", message + 1);
		break;
	case 'D':
		p->ended = true;
		p->ret = p->report->usable(p->report, message + 1);
		break;
	}
}

/* 0, or -ETIMEDOUT, or -EPIPE: it ended without a word. */
static int messages_take(struct parent *p, struct error *err)
{
	uint64_t deadline_ms = control_now_ms() + START_TIMEOUT_MS;

	while (!p->ended) {
		struct pollfd pfd = {.fd = p->fd, .events = POLLIN};
		uint64_t now = control_now_ms();
		char message[MESSAGE_MAX + 1];
		ssize_t len;

		if (now >= deadline_ms)
			return -ETIMEDOUT;
		if (poll(&pfd, 1, (int)(deadline_ms - now)) <= 0)
			continue;
		len = recv(p->fd, message, MESSAGE_MAX, MSG_DONTWAIT);
		if (len < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (len <= 0)
			return -EPIPE;
		message[len] = '\0';
		message_take(p, message, err);
	}
	return 0;
}

/* A supervisor's child is not ours to wait for, until that has ended. */
static bool daemon_ended(const struct parent *p, int *status)
{
	if (p->daemon_fd < 0)
		return true;
	if (process_wait(p->daemon_fd, 0) == -ETIMEDOUT)
		return false;
	(void)!waitpid(p->daemon, status, WNOHANG);
	return true;
}

/*
 * Waits for a daemon that has failed, ends it if it hangs, and removes what is left of it. Returns the
 * signal that it died of, if any.
 */
static int daemon_bury(struct parent *p, bool at_once)
{
	struct timespec pause = {.tv_nsec = 20000000};
	struct error err = {0};
	struct statedir dir;
	int status = 0;

	if (at_once && p->daemon_fd >= 0)
		(void)process_signal(p->daemon_fd, SIGKILL);
	/* Bounded, for a process may be stuck in the kernel. */
	for (int waited_ms = 0; !daemon_ended(p, &status); waited_ms += 20) {
		if (waited_ms == BURY_TIMEOUT_MS)
			(void)process_signal(p->daemon_fd, SIGKILL);
		if (waited_ms >= 2 * BURY_TIMEOUT_MS)
			return 0;
		nanosleep(&pause, NULL);
	}
	/* its supervisor ends after it, and its helper, which may have a device to delete: they are ours by now */
	for (int waited_ms = 0; !p->takes_over && waited_ms < BURY_TIMEOUT_MS && waitpid(-1, NULL, WNOHANG) >= 0;
	     waited_ms += 20)
		nanosleep(&pause, NULL);
	if (!p->takes_over && statedir_open(&dir, false, &err) == 0) {
		if (cleanup_process(&dir, p->daemon, &err))
			p->report->note(p->report, err.text);
		statedir_close(&dir);
	}
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

/* What the parent makes of the messages' end. */
static int outcome(struct parent *p, int ret, struct error *err)
{
	int sig;

	if (ret == -ETIMEDOUT) {
		daemon_bury(p, true);
		return error_set(err, ret, "the daemon did not get the device ready within %d s",
				 START_TIMEOUT_MS / 1000);
	}
	if (ret) {
		sig = daemon_bury(p, false);
		return error_set(err, ret, "the daemon died while it started%s%s", sig ? ": " : "",
				 sig ? strsignal(sig) : "");
	}
	if (p->ret)
		daemon_bury(p, false);
	return p->ret;
}

int daemon_spawn(const struct daemon_config *config, struct daemon_report *report,
		 struct error *err)
{
	struct parent parent = {.report = report, .takes_over = config->resume_key != NULL, .daemon_fd = -1};
	int pair[2], ret;
	pid_t pid;

	fflush(NULL);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return error_set(err, -errno, "socketpair: %s", strerror(errno));
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	pid = fork();
	if (pid < 0) {
		ret = -errno;
		close(pair[0]);
		close(pair[1]);
		return error_set(err, ret, "fork: %s", strerror(-ret));
	}
	if (pid == 0)
		background_start(config, pair[1]);
	close(pair[1]);
	waitpid(pid, NULL, 0);

	parent.fd = pair[0];
	ret = messages_take(&parent, err);
	ret = outcome(&parent, ret, err);
	close(parent.fd);
	if (parent.daemon_fd >= 0)
		close(parent.daemon_fd);
	return ret;
}

int daemon_recover(const struct entry *e, struct secret *passphrase, struct daemon_report *report,
		   struct error *err)
{
	struct daemon_config config;
	int ret = supervise_config(&config, e, err);

	config.target_options.passphrase = passphrase;
	return ret ? ret : daemon_spawn(&config, report, err);
}

int daemon_resume(const char *key, const char *held, int secret_fd, struct error *err)
{
	struct daemon_config config = {0};
	struct entry_list list = {0};
	struct statedir dir;
	int ret;

	/* the process is the former program's: its session, its folder and its streams */
	log_open(true, ident, LOG_LEVEL_INFO);
	ret = statedir_open(&dir, false, err);
	if (!ret)
		ret = entry_list_read(&list, &dir, err);
	if (ret)
		return ret;
	ret = -ENODEV;
	for (size_t i = 0; i < list.count; i++)
		if (strcmp(list.entries[i].key, key) == 0)
			ret = supervise_config(&config, &list.entries[i], err);
	if (ret)
		return error_set(err, ret, "there is no device to supervise");
	config.locks_inherited = true;
	supervise_held_take(&config, held);
	statedir_close(&dir);
	if (secret_fd >= 0)
		ret = supervise_secret_take(&config, secret_fd, err);
	if (ret)
		return ret;
	return supervise(&config, worker_alone, NULL, err);
}
