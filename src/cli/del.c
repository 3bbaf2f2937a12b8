// SPDX-License-Identifier: MIT
/*
 * del.c: detaching.
 *
 * The daemon is asked, does it, and answers when the device is gone and the image is flushed and
 * closed; then its process is waited for. So when this returns 0, everything written is on the disk
 * and the image is nobody's. A dead daemon cannot be asked: what it left is removed instead.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/select.h"
#include "daemon/cleanup.h"
#include "daemon/control.h"
#include "daemon/entry.h"

#define STOP_TIMEOUT_MS 120000
#define EXIT_TIMEOUT_MS 10000

enum { OPT_ALL = CLI_OPT_FIRST };

static const struct option long_options[] = {
	{"all", no_argument, NULL, OPT_ALL},
	{"force", no_argument, NULL, 'f'},
	CLI_LONG_HELP,
	{0},
};

/* ---- detaching ---- */

static int dead_del(const struct entry *e, struct statedir *dir, struct error *err)
{
	struct error note = {0};
	struct entry_list list;
	int ret;

	/* Under the lock, and looked at anew: two of us may be at it. */
	ret = statedir_lock(dir, err);
	if (ret)
		return ret;
	ret = entry_list_read(&list, dir, err);
	for (size_t i = 0; !ret && i < list.count; i++)
		if (strcmp(list.entries[i].key, e->key) == 0)
			ret = cleanup_entry(dir, e, &note, err);
	entry_list_free(&list);
	statedir_unlock(dir);
	if (note.text[0])
		cli_note(e->device, "%s", note.text);
	return ret;
}

static int live_del(const struct entry *e, struct statedir *dir, bool force, struct error *err)
{
	int pidfd = process_open(&e->process);
	int ret, wait_ret;

	/* It has ended since the list was read. */
	if (pidfd == -ESRCH)
		return dead_del(e, dir, err);
	if (pidfd < 0)
		return error_set(err, pidfd, "process %d: %s", (int)e->process.pid,
				 strerror(-pidfd));
	ret = control_ask(dir, e, CONTROL_STOP, force, STOP_TIMEOUT_MS, err);
	if (ret == -EPIPE || ret == -ECONNREFUSED || ret == -ECONNRESET || ret == -ENOENT) {
		/* Its end of the line is gone: is it on its way out, or was it killed meanwhile? */
		wait_ret = process_wait(pidfd, EXIT_TIMEOUT_MS);
		close(pidfd);
		if (wait_ret)
			return ret;
		memset(err, 0, sizeof(*err));
		return dead_del(e, dir, err);
	}
	if (!ret) {
		ret = process_wait(pidfd, EXIT_TIMEOUT_MS);
		if (ret)
			error_set(err, ret,
				  "the device is gone, but its daemon (process %d) has not ended "
				  "within %d s",
				  (int)e->process.pid, EXIT_TIMEOUT_MS / 1000);
	}
	close(pidfd);
	return ret;
}

/* A device that is just being taken over: nobody is to do that any more. */
static int recovering_del(const struct entry *e, struct statedir *dir, struct error *err)
{
	int pidfd = process_open(&e->supervisor);

	if (pidfd >= 0) {
		kill(e->supervisor.pid, SIGKILL);
		if (process_wait(pidfd, EXIT_TIMEOUT_MS))
			log_debug("process %d does not end", (int)e->supervisor.pid);
		close(pidfd);
	}
	return dead_del(e, dir, err);
}

static int entry_del(const struct entry *e, struct statedir *dir, void *arg, struct error *err)
{
	const bool *force = arg;

	if (entry_is_dead(e))
		return dead_del(e, dir, err);
	if (e->state == ENTRY_RECOVERING)
		return recovering_del(e, dir, err);
	return live_del(e, dir, *force, err);
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	bool all = false, force = false;
	int option;

	while ((option = cli_option(cmd, argc, argv)) != -1) {
		switch (option) {
		case OPT_ALL:
			all = true;
			break;
		case 'f':
			force = true;
			break;
		}
	}
	if (all ? optind < argc : optind == argc)
		return cli_usage(cmd, all ? "--all takes no device" : "no device given");
	return select_each(argv + optind, all, NULL, entry_del, &force);
}

/* The help is laid out as it is printed. */
/* clang-format off */
const struct cli_command cli_command_del = {
	.name = "del",
	.summary = "detach a device",
	.synopsis = "[--force] DEVICE|NUMBER|IMAGE...\n       ublk-qcow2 del [--force] --all",
	.help = "Detaches devices, and returns when they are gone and what was written to them is on the disk.\n"
		"One that is mounted or open is refused. Cleans up after a daemon that was killed.\n"
		"\n"
		"      --all    all devices\n"
		"  -f, --force  also where it is in use: its users get I/O errors from then on\n"
		"  -h, --help   this text\n",
	.short_options = "f",
	.long_options = long_options,
	.run = run,
};
/* clang-format on */
