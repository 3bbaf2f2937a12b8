// SPDX-License-Identifier: MIT
/*
 * del.c: detaching.
 *
 * The daemon is asked, does it, and answers when the device is gone and the image is flushed and
 * closed; then its process is waited for. So when this returns 0, everything written is on the disk
 * and the image is nobody's. A dead daemon cannot be asked: what it left is removed instead.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
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

/* ---- which device is meant ---- */

struct wanted {
	const char *text;
	long id;	/* -1: not a number */
	char *path;	/* absolute; NULL: no such file */
	char image_id[64];
	bool is_block;
	dev_t rdev;
};

static void wanted_init(struct wanted *w, const char *text)
{
	struct stat st;
	char *end;

	memset(w, 0, sizeof(*w));
	w->text = text;
	w->id = strtol(text, &end, 10);
	if (*end || text[0] < '0' || text[0] > '9')
		w->id = -1;
	w->path = realpath(text, NULL);
	if (w->path && stat(w->path, &st) == 0) {
		entry_image_id(w->image_id, &st);
		w->is_block = S_ISBLK(st.st_mode);
		w->rdev = st.st_rdev;
	}
}

static bool device_matches(const struct wanted *w, const struct entry *e)
{
	struct stat st;

	if (!e->device[0])
		return false;
	if (strcmp(e->device, w->text) == 0 || (w->path && strcmp(e->device, w->path) == 0))
		return true;
	return w->is_block && stat(e->device, &st) == 0 && S_ISBLK(st.st_mode) &&
	       st.st_rdev == w->rdev;
}

static bool image_matches(const struct wanted *w, const struct entry *e)
{
	if (!e->image[0])
		return false;
	/* By its name as well: the file may have been removed or replaced. */
	return strcmp(e->image, w->text) == 0 || (w->path && strcmp(e->image, w->path) == 0) ||
	       (w->image_id[0] && strcmp(e->image_id, w->image_id) == 0);
}

/* A device by its path goes before a number, and a number before an image's path. */
static int wanted_rank(const struct wanted *w, const struct entry *e)
{
	if (device_matches(w, e))
		return 3;
	if (w->id >= 0 && e->id == w->id)
		return 2;
	return image_matches(w, e) ? 1 : 0;
}

static int wanted_find(const struct wanted *w, const struct entry_list *list,
		       const struct entry **out, struct error *err)
{
	const struct entry *found = NULL, *other = NULL;
	int best = 0;

	for (size_t i = 0; i < list->count; i++) {
		const struct entry *e = &list->entries[i];
		int rank = wanted_rank(w, e);

		if (!rank || rank < best)
			continue;
		other = rank == best ? e : NULL;
		if (rank > best)
			found = e;
		best = rank;
	}
	if (!found)
		return error_set(err, -ENODEV, "is not attached by ublk-qcow2");
	if (other)
		return error_set(err, -EINVAL, "is more than one device, %s and %s: say which",
				 found->device, other->device);
	*out = found;
	return 0;
}

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

static int entry_del(const struct entry *e, struct statedir *dir, bool force, struct error *err)
{
	return e->state == ENTRY_DEAD ? dead_del(e, dir, err) : live_del(e, dir, force, err);
}

static int all_del(const struct entry_list *list, struct statedir *dir, bool force)
{
	int status = CLI_OK;

	for (size_t i = 0; i < list->count; i++) {
		const struct entry *e = &list->entries[i];
		struct error err = {0};
		int ret = entry_del(e, dir, force, &err);

		if (ret)
			status = cli_fail(e->device[0] ? e->device : e->image, &err, ret);
	}
	return status;
}

static int one_del(const char *text, const struct entry_list *list, struct statedir *dir, bool force)
{
	const struct entry *e = NULL;
	struct error err = {0};
	struct wanted wanted;
	int ret;

	wanted_init(&wanted, text);
	ret = wanted_find(&wanted, list, &e, &err);
	free(wanted.path);
	if (ret)
		return cli_fail(text, &err, ret);
	ret = entry_del(e, dir, force, &err);
	/* A bare number says little in a message. */
	return ret ? cli_fail(wanted.id >= 0 && e->device[0] ? e->device : text, &err, ret) : CLI_OK;
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	bool all = false, force = false;
	struct entry_list list = {0};
	struct error err = {0};
	struct statedir dir;
	int option, ret, status;

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

	ret = statedir_open(&dir, false, &err);
	if (ret && err.text[0])
		return cli_fail(NULL, &err, ret);
	ret = entry_list_read(&list, &dir, &err);
	if (ret) {
		status = cli_fail(NULL, &err, ret);
	} else if (all) {
		status = all_del(&list, &dir, force);
	} else {
		status = CLI_OK;
		for (int i = optind; i < argc; i++)
			if (one_del(argv[i], &list, &dir, force))
				status = CLI_FAILED;
	}
	entry_list_free(&list);
	statedir_close(&dir);
	return status;
}

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
