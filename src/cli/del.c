// SPDX-License-Identifier: MIT
/*
 * del.c: detaching.
 *
 * The daemon is asked, does it, and answers when the device is gone and the image is flushed and closed;
 * then its process is waited for, and its supervisor's, which gives up the image's locks last. So when
 * this returns 0, everything written is on the disk and the image is nobody's. A dead daemon cannot be
 * asked: what it left is removed instead, and with it what it had acknowledged and not written yet. So
 * one that has a supervisor is waited for: the next daemon has all of that, and is asked.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/select.h"
#include "daemon/cleanup.h"
#include "daemon/control.h"
#include "daemon/entry.h"
#include "ublk/ublk.h"

#define STOP_TIMEOUT_MS 120000
#define EXIT_TIMEOUT_MS 10000
/* For a device to be taken over. */
#define TAKEOVER_TIMEOUT_MS	  60000
#define TAKEOVER_TIMEOUT_FORCE_MS 15000
#define TAKEOVER_TRIES		  5

#define WAIT_MAX_S	86400
#define WAIT_STEP_MS	200
#define ORPHANS_MAX	256

enum { OPT_ALL = CLI_OPT_FIRST, OPT_ORPHANS, OPT_SAFE };

struct del {
	bool all, orphans, force;
	unsigned wait_s; /* for a device in use */
};

static const struct option long_options[] = {
	{"all", no_argument, NULL, OPT_ALL},
	{"orphans", no_argument, NULL, OPT_ORPHANS},
	{"force", no_argument, NULL, 'f'},
	{"wait", required_argument, NULL, 'w'},
	CLI_LONG_HELP,
	{0},
};

static const struct option stop_options[] = {
	{"all", no_argument, NULL, OPT_ALL},
	{"safe", no_argument, NULL, OPT_SAFE},
	{"wait", required_argument, NULL, 'w'},
	CLI_LONG_HELP,
	{0},
};

/* ---- detaching ---- */

/*
 * -ESTALE: it is not dead any more, as somebody takes it over. @forced: whoever is about to, is too late;
 * one who serves it, or has begun to, is not.
 */
static int dead_del(const struct entry *e, struct statedir *dir, bool forced, struct error *err)
{
	struct error note = {0};
	struct entry_list list;
	int ret;

	/* Under the lock, and looked at anew: two of us may be at it, or a `recover`. */
	ret = statedir_lock(dir, err);
	if (ret)
		return ret;
	ret = entry_list_read(&list, dir, err);
	for (size_t i = 0; !ret && i < list.count; i++) {
		const struct entry *now = &list.entries[i];

		if (strcmp(now->key, e->key))
			continue;
		if (entry_is_dead(now) || (forced && now->state == ENTRY_RECOVERING))
			ret = cleanup_entry(dir, now, &note, err);
		else
			ret = error_set(err, -ESTALE, "is taken over by process %d",
					(int)now->process.pid);
	}
	entry_list_free(&list);
	statedir_unlock(dir);
	if (note.text[0])
		cli_note(e->device, "%s", note.text);
	return ret;
}

/* Asks the daemon to detach, for as long as the device is in use and the user wants to wait. */
static int stop_ask(const struct entry *e, struct statedir *dir, const struct del *del, struct error *err)
{
	const struct timespec pause = {.tv_nsec = WAIT_STEP_MS * 1000000L};
	uint64_t deadline_ms = control_now_ms() + del->wait_s * 1000ull;
	int ret;

	for (;;) {
		memset(err, 0, sizeof(*err));
		ret = control_ask(dir, e, CONTROL_STOP, del->force, STOP_TIMEOUT_MS, err);
		if (ret != -EBUSY || !del->wait_s)
			return ret;
		if (control_now_ms() >= deadline_ms) {
			char text[sizeof(err->text)];

			memcpy(text, err->text, sizeof(text));
			memset(err, 0, sizeof(*err));
			return error_set(err, ret, "%s, still after %u s", text, del->wait_s);
		}
		nanosleep(&pause, NULL);
	}
}

/* For a process that has no more to do than to end. */
static int end_wait(int pidfd, const struct process *process, const char *what, struct error *err)
{
	int ret = process_wait(pidfd, EXIT_TIMEOUT_MS);

	if (!ret)
		return 0;
	return error_set(err, ret, "the device is gone, but its %s (process %d) has not ended within %d s",
			 what, (int)process->pid, EXIT_TIMEOUT_MS / 1000);
}

/* One that takes over is in the list before its end of the line is there: that comes, or the process ends. */
static int stop_ask_new(const struct entry *e, struct statedir *dir, const struct del *del, int pidfd,
			struct error *err)
{
	for (unsigned waited_ms = 0;; waited_ms += WAIT_STEP_MS) {
		int ret = stop_ask(e, dir, del, err);

		if ((ret != -ECONNREFUSED && ret != -ENOENT) || waited_ms >= EXIT_TIMEOUT_MS ||
		    process_wait(pidfd, WAIT_STEP_MS) != -ETIMEDOUT)
			return ret;
	}
}

/* -ESTALE: its daemon has ended without an answer. */
static int live_del(const struct entry *e, struct statedir *dir, const struct del *del, struct error *err)
{
	int pidfd = process_open(&e->process), supervisor_fd;
	int ret, wait_ret;

	if (pidfd == -ESRCH)
		return error_set(err, -ESTALE, "its daemon (process %d) has just ended", (int)e->process.pid);
	if (pidfd < 0)
		return error_set(err, pidfd, "process %d: %s", (int)e->process.pid,
				 strerror(-pidfd));
	supervisor_fd = process_open(&e->supervisor); /* negative: it has none, or none any more */
	ret = stop_ask_new(e, dir, del, pidfd, err);
	if (ret == -EPIPE || ret == -ECONNREFUSED || ret == -ECONNRESET || ret == -ENOENT) {
		/* Its end of the line is gone: is it on its way out, or was it killed meanwhile? */
		wait_ret = process_wait(pidfd, EXIT_TIMEOUT_MS);
		if (wait_ret)
			goto out;
		memset(err, 0, sizeof(*err));
		ret = error_set(err, -ESTALE, "its daemon (process %d) died", (int)e->process.pid);
	}
	if (!ret || ret == -EUCLEAN) {
		wait_ret = end_wait(pidfd, &e->process, "daemon", ret ? NULL : err);
		ret = wait_ret ? wait_ret : ret;
	}
	/* the image is whole, and closed; what is left of the device is nobody's */
	if (ret == -EUCLEAN)
		ret = -ESTALE;
	if (!ret && supervisor_fd >= 0)
		ret = end_wait(supervisor_fd, &e->supervisor, "supervisor", err);
out:
	if (supervisor_fd >= 0)
		close(supervisor_fd);
	close(pidfd);
	return ret;
}

/* The entry as it is now; -ENODEV: there is none any more. */
static int entry_again(struct entry *e, struct statedir *dir, struct error *err)
{
	struct entry_list list;
	int ret = entry_list_read(&list, dir, err), found = -ENODEV;

	for (size_t i = 0; !ret && found && i < list.count; i++) {
		if (strcmp(list.entries[i].key, e->key))
			continue;
		*e = list.entries[i];
		found = 0;
	}
	entry_list_free(&list);
	return ret ? ret : found;
}

/* Until it is known who serves the device, or that nobody will. */
static int takeover_wait(struct entry *e, struct statedir *dir, unsigned timeout_ms, struct error *err)
{
	const struct timespec pause = {.tv_nsec = WAIT_STEP_MS * 1000000L};
	uint64_t deadline_ms = control_now_ms() + timeout_ms;
	int ret = 0;

	while (!ret && e->state == ENTRY_RECOVERING && control_now_ms() < deadline_ms) {
		nanosleep(&pause, NULL);
		ret = entry_again(e, dir, err);
	}
	if (ret || e->state != ENTRY_RECOVERING)
		return ret;
	return error_set(err, -EBUSY, "is being taken over by another daemon, still after %u s",
			 timeout_ms / 1000);
}

/* A device that is just being taken over: nobody is to do that any more. */
static int recovering_del(const struct entry *e, struct statedir *dir, struct error *err)
{
	int pidfd = process_open(&e->supervisor);

	if (pidfd >= 0) {
		(void)process_signal(pidfd, SIGKILL);
		if (process_wait(pidfd, EXIT_TIMEOUT_MS))
			log_debug("process %d does not end", (int)e->supervisor.pid);
		close(pidfd);
	}
	return dead_del(e, dir, true, err);
}

static int entry_del(const struct entry *e, struct statedir *dir, void *arg, struct error *err)
{
	unsigned timeout_ms = TAKEOVER_TIMEOUT_MS;
	const struct del *del = arg;
	struct entry now = *e;
	int ret = -ESTALE;

	if (del->force)
		timeout_ms = TAKEOVER_TIMEOUT_FORCE_MS;
	for (unsigned i = 0; ret == -ESTALE && i < TAKEOVER_TRIES; i++) {
		memset(err, 0, sizeof(*err));
		ret = takeover_wait(&now, dir, timeout_ms, err);
		if (ret == -EBUSY && del->force) {
			memset(err, 0, sizeof(*err));
			ret = recovering_del(&now, dir, err);
		} else if (!ret && entry_is_dead(&now)) {
			ret = dead_del(&now, dir, false, err);
		} else if (!ret) {
			ret = live_del(&now, dir, del, err);
		}
		if (ret == -ESTALE && entry_again(&now, dir, err) == -ENODEV)
			ret = -ENODEV;
	}
	/* somebody else's work, or its own end */
	return ret == -ENODEV ? 0 : ret;
}

/* Those that `del` can do nothing about, since they have an entry no more, or never had one of ours. */
static int orphans_del(const struct del *del)
{
	struct ublk_device orphans[ORPHANS_MAX];
	struct entry_list list = {0};
	struct error err = {0};
	struct statedir dir;
	int status = CLI_OK, count = 0;
	int ret = statedir_open(&dir, false, &err);

	if (ret && err.text[0])
		return cli_fail(NULL, &err, ret);
	memset(&err, 0, sizeof(err));
	if (!ret && !statedir_lock(&dir, NULL)) { /* who holds it sweeps, or the next one does */
		cleanup_left_over(&dir);
		statedir_unlock(&dir);
	}
	ret = entry_list_read(&list, &dir, &err);
	if (!ret)
		count = cleanup_orphans(&list, orphans, ORPHANS_MAX, &err);
	if (count == -ENOENT || count == -ENXIO || count == -ENODEV) /* this kernel has no ublk, so nobody left any */
		count = 0;
	if (ret || count < 0)
		status = cli_fail(NULL, &err, ret ? ret : count);
	for (int i = 0; i < count && i < ORPHANS_MAX; i++) {
		struct error why = {0};
		char path[32];
		bool lingers;

		snprintf(path, sizeof(path), "/dev/ublkb%u", orphans[i].id);
		/* its own program may still come for it */
		if (orphans[i].recoverable && !del->force) {
			cli_note(path, "waits for recovery by whoever made it: left alone without --force");
			continue;
		}
		ret = ublk_device_delete(orphans[i].id, &lingers, &why);
		if (ret)
			status = cli_fail(path, &why, ret);
		else if (lingers)
			cli_note(path, "is open somewhere: its number is free when it is closed");
	}
	entry_list_free(&list);
	statedir_close(&dir);
	return status;
}

/* Only what somebody serves can be stopped. */
static int entry_stop(const struct entry *e, struct statedir *dir, void *arg, struct error *err)
{
	if (entry_is_dead(e) || e->state == ENTRY_RECOVERING)
		return error_set(err, -EINVAL, "is %s: 'ublk-qcow2 %s'", entry_state_name(e->state),
				 e->state == ENTRY_DEAD ? "del' cleans up" : "recover' takes it over again, 'del' gives it up");
	return live_del(e, dir, arg, err);
}

static bool entry_is_served(const struct entry *e)
{
	return !entry_is_dead(e) && e->state != ENTRY_RECOVERING;
}

static int stop_run(const struct cli_command *cmd, int argc, char **argv)
{
	struct del del = {0};
	int option;

	while ((option = cli_option(cmd, argc, argv)) != -1) {
		if (option == OPT_ALL)
			del.all = true;
		else if (option == 'w')
			del.wait_s = cli_number_arg(cmd, "--wait", optarg, 0, WAIT_MAX_S);
	}
	if (del.all ? optind < argc : optind == argc)
		return cli_usage(cmd, del.all ? "--all takes no device" : "no device given");
	return select_each(argv + optind, del.all, entry_is_served, entry_stop, &del);
}

static bool entry_is_lost(const struct entry *e)
{
	return e->state == ENTRY_DEAD || entry_lost_device(e);
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	struct del del = {0};
	int option, status, orphans_status;

	while ((option = cli_option(cmd, argc, argv)) != -1) {
		switch (option) {
		case OPT_ALL:
			del.all = true;
			break;
		case OPT_ORPHANS:
			del.orphans = true;
			break;
		case 'f':
			del.force = true;
			break;
		case 'w':
			del.wait_s = cli_number_arg(cmd, "--wait", optarg, 0, WAIT_MAX_S);
			break;
		}
	}
	if (del.all && del.orphans)
		return cli_usage(cmd, "either --all or --orphans");
	if (del.all || del.orphans ? optind < argc : optind == argc)
		return cli_usage(cmd, del.all	    ? "--all takes no device"
				      : del.orphans ? "--orphans takes no device"
						    : "no device given");
	if (!del.orphans)
		return select_each(argv + optind, del.all, NULL, entry_del, &del);
	/* both ways of being lost: with an entry, and without */
	status = select_each(NULL, true, entry_is_lost, entry_del, &del);
	orphans_status = orphans_del(&del);
	return status ? status : orphans_status;
}

/* The help is laid out as it is printed. */
/* clang-format off */
const struct cli_command cli_command_del = {
	.name = "del",
	.summary = "detach a device",
	.synopsis = "[OPTION]... DEVICE|NUMBER|IMAGE...\n       ublk-qcow2 del [OPTION]... --all|--orphans",
	.help = "Detaches devices, and returns when they are gone and what was written to them is on the disk.\n"
		"One that is mounted or open is refused. Cleans up after a daemon that was killed.\n"
		"\n"
		"      --all           all devices\n"
		"      --orphans       what nobody serves any more: of this program's, what a killed daemon left\n"
		"                      and cannot be recovered; daemons whose device is gone; and ublk devices of\n"
		"                      any other program\n"
		"  -f, --force         also where it is in use: its users get I/O errors from then on\n"
		"  -w, --wait SECONDS  let a device in use become free for so long; then it is refused\n"
		"  -h, --help          this text\n",
	.short_options = "fw:",
	.long_options = long_options,
	.run = run,
};

const struct cli_command cli_command_stop = {
	.name = "stop",
	.summary = "detach a device if nobody uses it",
	.synopsis = "[--safe] [--wait SECONDS] DEVICE|NUMBER|IMAGE...\n       ublk-qcow2 stop [--safe] --all",
	.help = "Detaches devices that are neither mounted nor open, as 'del' without --force does; looking and taking\n"
		"away are one step where the kernel can (7.0). One in use goes on as if nothing had happened, and the\n"
		"exit status is 1. What nobody serves is not touched: that is for 'recover' and 'del'.\n"
		"\n"
		"      --all           all devices; one in use does not keep the others\n"
		"      --safe          there is no other way: for who wants to say it\n"
		"  -w, --wait SECONDS  let a device in use become free for so long; then it is refused\n"
		"  -h, --help          this text\n",
	.short_options = "w:",
	.long_options = stop_options,
	.run = stop_run,
};
/* clang-format on */
