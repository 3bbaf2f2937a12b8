// SPDX-License-Identifier: MIT
/*
 * status.c: see status.h. The daemon is asked; of one that is dead or does not answer, what its entry says.
 */
#include "cli/status.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "base/math.h"
#include "base/size.h"
#include "cli/cli.h"
#include "cli/select.h"
#include "daemon/control.h"
#include "daemon/entry.h"

#define ANSWER_MS 10000

static bool names_device(const char *name, const struct entry *e)
{
	char *path = realpath(name, NULL);
	bool same = path && strcmp(path, e->device) == 0;
	struct stat st, device;

	free(path);
	if (same || strcmp(name, e->device) == 0)
		return true;
	if (stat(name, &st)) /* then it was the number */
		return name[0] != '/';
	return S_ISBLK(st.st_mode) && e->device[0] && stat(e->device, &device) == 0 &&
	       S_ISBLK(device.st_mode) && device.st_rdev == st.st_rdev;
}

bool status_is_device(const char *name)
{
	struct error ignored = {0};
	struct statedir dir;
	struct entry e;

	if (select_one(name, &e, &dir, &ignored))
		return false;
	statedir_close(&dir);
	return names_device(name, &e);
}

static void queues_print(const json_t *figures)
{
	static const char *const columns[] = {"reads",	  "writes",	"others", "enters",
					      "messages", "coroutines", "locks",  "fallbacks"};
	size_t i;
	json_t *queue;

	if (!json_array_size(figures))
		return;
	fputs("queue", stdout);
	for (size_t c = 0; c < ARRAY_LEN(columns); c++)
		printf(" %10s", columns[c]);
	putchar('\n');
	json_array_foreach(figures, i, queue)
	{
		printf("%5zu", i);
		for (size_t c = 0; c < ARRAY_LEN(columns); c++)
			printf(" %10" JSON_INTEGER_FORMAT,
			       json_integer_value(json_object_get(queue, columns[c])));
		putchar('\n');
	}
}

static void human_print(const struct entry *e, const json_t *status)
{
	json_int_t held = json_integer_value(json_object_get(status, "held"));
	char size[SIZE_TEXT_MAX];

	printf("device: %s\n", e->device[0] ? e->device : "-");
	fputs("image: ", stdout);
	cli_print_name(stdout, e->image[0] ? e->image : "-");
	printf("\nstate: %s\n", entry_state_name(e->state));
	printf("size: %s (%llu bytes)\n", size_format(e->size_bytes, size),
	       (unsigned long long)e->size_bytes);
	printf("front end: %s%s%s\n", e->frontend, e->data_path[0] ? ", " : "", e->data_path);
	printf("target: %s%s, %s\n", e->target, e->read_only ? ", read-only" : "",
	       e->direct ? "direct" : "buffered");
	printf("queues: %u of %u requests\n", e->queues, e->depth);
	printf("daemon: process %d%s\n", (int)e->process.pid,
	       !e->recovery	  ? ", without recovery"
	       : e->recovery_fail ? ", with recovery, until which I/O fails"
				  : ", with recovery, for which I/O waits");
	printf("without space: requests are %s", e->hold_enospc ? "held" : "failed");
	if (held)
		printf("; %d now", (int)held);
	putchar('\n');
	queues_print(json_object_get(status, "figures"));
}

static int json_print(json_t *status)
{
	char *text;

	json_object_del(status, "ok");
	text = json_dumps(status, JSON_INDENT(4) | JSON_ENSURE_ASCII);
	if (!text)
		return cli_error(NULL, "out of memory");
	puts(text);
	free(text);
	return CLI_OK;
}

int status_print(const char *name, bool json)
{
	json_t *status = NULL;
	struct error err = {0};
	struct statedir dir;
	struct entry e;
	int ret = select_one(name, &e, &dir, &err), result = CLI_OK;

	if (ret)
		return cli_fail(name, &err, ret);
	if (e.state == ENTRY_LIVE)
		ret = control_ask_status(&dir, &e, ANSWER_MS, &status, &err);
	if (ret)
		cli_note(e.device, "%s", error_text(&err, ret));
	if (!status)
		status = entry_to_json(&e);
	if (!status)
		result = cli_error(NULL, "out of memory");
	else if (json)
		result = json_print(status);
	else
		human_print(&e, status);
	json_decref(status);
	statedir_close(&dir);
	return ret ? CLI_FAILED : result;
}
