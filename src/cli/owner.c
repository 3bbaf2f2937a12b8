// SPDX-License-Identifier: MIT
/*
 * owner.c: who a ublk device belongs to, for a rule of udev's that gives it to him.
 *
 * Asked as root, when the kernel has just made the device's node. A privileged device is root's, whoever
 * asks.
 */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "ublk/ublk.h"

static const struct option long_options[] = {
	CLI_LONG_HELP,
	{0},
};

/* The number in "ublkc3", "/dev/ublkb3", "ublkb3p1"; -1: it is none of these. */
static long device_number(const char *name)
{
	const char *slash = strrchr(name, '/');
	char *end;
	long id;

	if (slash)
		name = slash + 1;
	if ((strncmp(name, "ublkc", 5) != 0 && strncmp(name, "ublkb", 5) != 0) ||
	    !isdigit((unsigned char)name[5]))
		return -1;
	errno = 0;
	id = strtol(name + 5, &end, 10);
	return errno || id > INT_MAX || (*end && *end != 'p') ? -1 : id;
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	struct ublk_device device = {0};
	struct error err = {0};
	long id;
	int ret;

	while (cli_option(cmd, argc, argv) != -1)
		;
	if (argc - optind != 1)
		return cli_usage(cmd, argc == optind ? "no device given" : "one device at a time");
	id = device_number(argv[optind]);
	if (id < 0)
		return cli_usage(cmd, "'%s' is not the name of a ublk device", argv[optind]);
	ret = ublk_device_get((unsigned)id, &device, &err);
	if (ret)
		return cli_fail(argv[optind], &err, ret);
	if (device.unprivileged)
		printf("%u %u\n", (unsigned)device.owner_uid, (unsigned)device.owner_gid);
	else
		puts("0 0");
	return CLI_OK;
}

const struct cli_command cli_command_owner = {
	.name = "owner",
	.summary = "say whose a ublk device is (for udev)",
	.synopsis = "DEVICE",
	.help = "Prints the user and the group, as numbers, that an unprivileged ublk device belongs to: DEVICE is\n"
		"its name, such as ublkc3 or /dev/ublkb3. Those of root are 0 0. For the udev rule that gives\n"
		"devices of 'add --unprivileged' to their owners.\n"
		"\n"
		"  -h, --help  this text\n",
	.short_options = "",
	.long_options = long_options,
	.run = run,
};
