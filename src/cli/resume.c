// SPDX-License-Identifier: MIT
/*
 * resume.c: what a device holds for want of space is tried again, now.
 *
 * The daemon tries by itself, now and then; this is for who has just made room and wants to know whether
 * it was enough.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "cli/cli.h"
#include "cli/select.h"
#include "daemon/control.h"

#define ANSWER_MS 10000
#define DONE_MS	  3000 /* for the requests to be done */
#define STEP_MS	  50

enum { OPT_ALL = CLI_OPT_FIRST };

static const struct option long_options[] = {
	{"all", no_argument, NULL, OPT_ALL},
	CLI_LONG_HELP,
	{0},
};

static bool holds(const struct entry *e)
{
	return e->state == ENTRY_LIVE && e->no_space;
}

static int held_get(const struct entry *e, const struct statedir *dir, json_int_t *held, struct error *err)
{
	json_t *status = NULL;
	int ret = control_ask_status(dir, e, ANSWER_MS, &status, err);

	*held = json_integer_value(json_object_get(status, "held"));
	json_decref(status);
	return ret;
}

static int entry_resume(const struct entry *e, struct statedir *dir, void *arg, struct error *err)
{
	const struct timespec pause = {.tv_nsec = STEP_MS * 1000000L};
	uint64_t deadline_ms = control_now_ms() + DONE_MS;
	json_int_t held = 0;
	int ret;

	if (e->state != ENTRY_LIVE)
		return error_set(err, -EINVAL, "is not being served");
	ret = control_ask(dir, e, CONTROL_RETRY, false, ANSWER_MS, err);
	while (!ret) {
		ret = held_get(e, dir, &held, err);
		if (!held || control_now_ms() >= deadline_ms)
			break;
		nanosleep(&pause, NULL);
	}
	if (!ret && held)
		ret = error_set(err, -ENOSPC, "there is still no space for %d request%s", (int)held,
				held == 1 ? "" : "s");
	return ret;
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	return select_or_all(cmd, argc, argv, OPT_ALL, holds, entry_resume);
}

const struct cli_command cli_command_resume = {
	.name = "resume",
	.summary = "go on with what was held for want of space",
	.synopsis = "DEVICE|NUMBER|IMAGE...\n       ublk-qcow2 resume --all",
	.help = "Tries at once what devices attached with 'add --on-enospc stop' hold until there is space; they\n"
		"try by themselves, too, every few seconds. Fails if there is not enough yet.\n"
		"\n"
		"      --all   all devices that hold something\n"
		"  -h, --help  this text\n",
	.short_options = "",
	.long_options = long_options,
	.run = run,
};
