// SPDX-License-Identifier: MIT
/*
 * upgrade.c: hands attached devices to this program, newly installed, while they are in use.
 */
#include <stdio.h>

#include "cli/cli.h"
#include "cli/select.h"
#include "daemon/supervise.h"

enum { OPT_ALL = CLI_OPT_FIRST };

static const struct option long_options[] = {
	{"all", no_argument, NULL, OPT_ALL},
	CLI_LONG_HELP,
	{0},
};

static bool upgradable(const struct entry *e)
{
	return e->state == ENTRY_LIVE && e->recovery;
}

static int entry_upgrade(const struct entry *e, struct statedir *dir, void *arg, struct error *err)
{
	int ret = supervise_upgrade(dir, e, err);

	if (!ret)
		puts(e->device);
	return ret;
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	return select_or_all(cmd, argc, argv, OPT_ALL, upgradable, entry_upgrade);
}

const struct cli_command cli_command_upgrade = {
	.name = "upgrade",
	.summary = "hand a device to this version of the program",
	.synopsis = "DEVICE|NUMBER|IMAGE...\n       ublk-qcow2 upgrade --all",
	.help = "Hands devices in use to the program that this command is run from; their users see a short\n"
		"pause and no error. For devices with the ublk front end and recovery.\n"
		"\n"
		"      --all   all devices that can be\n"
		"  -h, --help  this text\n",
	.short_options = "",
	.long_options = long_options,
	.run = run,
};
