// SPDX-License-Identifier: MIT
/*
 * recover.c: takes over devices whose daemon and supervisor were both killed.
 *
 * The device is still there and its I/O waits in the driver. A new daemon replays the recovery log, gets
 * what was in flight again, and goes on. Without the log it does not: writes that were acknowledged
 * would be missing.
 */
#include <errno.h>
#include <stdio.h>

#include "base/secret.h"
#include "cli/cli.h"
#include "cli/key.h"
#include "cli/select.h"
#include "daemon/daemon.h"

enum { OPT_ALL = CLI_OPT_FIRST };

static const struct option long_options[] = {
	{"all", no_argument, NULL, OPT_ALL},
	CLI_KEY_OPTIONS,
	CLI_LONG_HELP,
	{0},
};

static void note_print(struct daemon_report *report, const char *text)
{
	cli_note(NULL, "%s", text);
}

static int usable_print(struct daemon_report *report, const char *device)
{
	puts(device);
	return 0; /* it is served, whether anybody reads this or not */
}

static bool waits(const struct entry *e)
{
	return e->state == ENTRY_QUIESCED;
}

static int entry_recover(const struct entry *e, struct statedir *dir, void *arg, struct error *err)
{
	struct daemon_report report = {.note = note_print, .usable = usable_print};

	if (e->state == ENTRY_DEAD)
		return error_set(err, -EINVAL,
				 "was made without recovery: 'ublk-qcow2 del' cleans up what is left");
	if (!waits(e))
		return error_set(err, -EBUSY, "does not wait for recovery: it is %s",
				 entry_state_name(e->state));
	return daemon_recover(e, arg, &report, err);
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	struct secret *key = NULL;
	bool all = false;
	int option, status;

	while ((option = cli_option(cmd, argc, argv)) != -1) {
		all |= option == OPT_ALL;
		status = cli_is_key_option(option) ? cli_key_set(cmd, &key, option, optarg) : CLI_OK;
		if (status)
			return status;
	}
	if (all ? optind < argc : optind == argc)
		return cli_usage(cmd, all ? "--all takes no device" : "no device given");
	status = select_each(argv + optind, all, waits, entry_recover, key);
	secret_destroy(key);
	return status;
}

const struct cli_command cli_command_recover = {
	.name = "recover",
	.summary = "take over a device whose daemon was killed",
	.synopsis = "DEVICE|NUMBER|IMAGE...\n       ublk-qcow2 recover --all",
	.help = "Starts a new daemon for devices in state \"quiesced\", prints their paths, and returns when they\n"
		"serve again. Nothing that was acknowledged is lost, and their users see no error.\n"
		"\n"
		"      --all                  all devices that wait\n"
		"      --key-file FILE        the passphrase of an encrypted image is all of FILE, as for 'add'\n"
		"      --key-fd N             ... is what can be read from this descriptor\n"
		"      --key-credential NAME  ... is this file in systemd's $CREDENTIALS_DIRECTORY\n"
		"  -h, --help                 this text\n",
	.short_options = "",
	.long_options = long_options,
	.run = run,
};
