// SPDX-License-Identifier: MIT
/*
 * list.c: what is attached.
 */
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/math.h"
#include "base/size.h"
#include "cli/cli.h"
#include "daemon/cleanup.h"
#include "daemon/entry.h"
#include "ublk/ublk.h"

#define ORPHANS_MAX 256 /* that are shown */

static const struct option long_options[] = {
	{"json", no_argument, NULL, 'J'},
	{"all", no_argument, NULL, 'a'},
	CLI_LONG_HELP,
	{0},
};

/* While requests are held for want of space, that is what is worth a look. */
static const char *state_shown(const struct entry *e)
{
	if (entry_lost_device(e))
		return "lost";
	if (e->state == ENTRY_STARTING && e->device[0]) /* a daemon that takes over */
		return entry_state_name(ENTRY_RECOVERING);
	return e->state == ENTRY_LIVE && e->no_space ? "no-space" : entry_state_name(e->state);
}

/* The width of the column of devices: with --no-loop a device is a file with a long path. */
static int device_width(const struct entry_list *list)
{
	size_t width = strlen("/dev/ublkb0");

	for (size_t i = 0; i < list->count; i++)
		width = max_of(width, strlen(list->entries[i].device));
	return (int)min_of(width, (size_t)60);
}

static void human_print(const struct entry_list *list, const struct ublk_device *orphans,
			int nr_orphans)
{
	int width = device_width(list);

	if (!list->count && !nr_orphans)
		return;
	printf("%-3s %-*s %-8s %-8s %-6s %2s %9s %7s %s\n", "ID", width, "DEVICE", "STATE",
	       "FRONTEND", "TARGET", "RO", "SIZE", "PID", "IMAGE");
	for (size_t i = 0; i < list->count; i++) {
		const struct entry *e = &list->entries[i];
		char size[SIZE_TEXT_MAX], id[16] = "-";

		if (e->id >= 0)
			snprintf(id, sizeof(id), "%d", e->id);
		printf("%-3s %-*s %-8s %-8s %-6s %2d %9s %7d ", id, width,
		       e->device[0] ? e->device : "-", state_shown(e), e->frontend,
		       e->target, e->read_only, size_format(e->size_bytes, size),
		       (int)e->process.pid);
		cli_print_name(stdout, e->image[0] ? e->image : "-");
		putchar('\n');
	}
	for (int i = 0; i < nr_orphans; i++)
		printf("%-3u /dev/ublkb%-*u %-8s %-8s %-6s %2s %9s %7s %s\n", orphans[i].id,
		       width - (int)strlen("/dev/ublkb"), orphans[i].id, "orphan", "ublk", "-", "-", "-", "-",
		       "-");
}

static json_t *orphan_json(const struct ublk_device *d)
{
	char path[32];

	snprintf(path, sizeof(path), "/dev/ublkb%u", d->id);
	return json_pack("{s:i,s:s,s:n,s:n,s:s,s:n,s:s,s:i,s:i,s:b}", "id", (int)d->id, "device", path,
			 "image", "pid", "frontend", "ublk", "target", "state", "orphan", "queues",
			 (int)d->queues, "depth", (int)d->depth, "recovery", (int)d->recoverable);
}

static int json_print(const struct entry_list *list, const struct ublk_device *orphans, int nr_orphans)
{
	json_t *array = json_array();
	char *text;
	int ret = array ? 0 : -1;

	for (size_t i = 0; !ret && i < list->count; i++) {
		const struct entry *e = &list->entries[i];
		json_t *o = entry_to_json(e);

		if (entry_lost_device(e) || e->state == ENTRY_STARTING)
			json_object_set_new(o, "state", json_string(state_shown(e)));
		ret = json_array_append_new(array, o);
	}
	for (int i = 0; !ret && i < nr_orphans; i++)
		ret = json_array_append_new(array, orphan_json(&orphans[i]));
	text = ret ? NULL : json_dumps(array, JSON_INDENT(4) | JSON_ENSURE_ASCII);
	json_decref(array);
	if (!text)
		return cli_error(NULL, "out of memory");
	puts(text);
	free(text);
	return CLI_OK;
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	struct ublk_device orphans[ORPHANS_MAX];
	struct entry_list list = {0};
	struct error err = {0}, ignored = {0};
	int nr_orphans = 0;
	struct statedir dir;
	bool json = false;
	int option, ret, status = CLI_OK;

	while ((option = cli_option(cmd, argc, argv)) != -1)
		if (option == 'J')
			json = true;
	if (optind < argc)
		return cli_usage(cmd, "takes no arguments");

	ret = statedir_open(&dir, false, &err);
	if (ret && err.text[0])
		return cli_fail(NULL, &err, ret);
	ret = entry_list_read(&list, &dir, &err);
	/* Without ublk, or the right to ask it, there are none to be shown. */
	if (!ret)
		nr_orphans = cleanup_orphans(&list, orphans, ORPHANS_MAX, &ignored);
	nr_orphans = min_of(max_of(nr_orphans, 0), ORPHANS_MAX);
	if (ret)
		status = cli_fail(NULL, &err, ret);
	else if (json)
		status = json_print(&list, orphans, nr_orphans);
	else
		human_print(&list, orphans, nr_orphans);
	if (list.unreadable)
		status = cli_error(dir.path, "%u file(s) there are not the state of a device",
				   list.unreadable);
	entry_list_free(&list);
	statedir_close(&dir);
	return status;
}

/* The help is laid out as it is printed. */
/* clang-format off */
const struct cli_command cli_command_list = {
	.name = "list",
	.summary = "say what is attached",
	.synopsis = "[--json]",
	.help = "Lists the attached devices. State: starting; live; no-space, live, but requests are\n"
		"held until there is space (see 'add --on-enospc'); lost, where the daemon is there, but its\n"
		"device is gone, so that the daemon is ending or hangs; stopping; recovering; quiesced, where\n"
		"'ublk-qcow2 recover' is waited for; dead, where the daemon was killed and 'ublk-qcow2 del' has\n"
		"to clean up after it; orphan, a ublk device of whatever program that nobody serves (see 'del\n"
		"--orphans').\n"
		"\n"
		"  -J, --json  as a JSON array, one object for each device\n"
		"  -a, --all   accepted for losetup's sake: all are listed anyway\n"
		"  -h, --help  this text\n",
	.short_options = "Ja",
	.long_options = long_options,
	.run = run,
};
/* clang-format on */
