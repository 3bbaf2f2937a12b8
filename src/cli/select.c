// SPDX-License-Identifier: MIT
/*
 * select.c: see select.h.
 */
#include "cli/select.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"

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

/*
 * A device by its path goes before a number, and a number before an image's path; and before one that is dead,
 * whose number somebody else may have got since.
 */
static int wanted_rank(const struct wanted *w, const struct entry *e)
{
	int there = e->state != ENTRY_DEAD;

	if (device_matches(w, e))
		return 6 + there;
	if (w->id >= 0 && e->id == w->id)
		return 4 + there;
	return image_matches(w, e) ? 2 + there : 0;
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

struct action {
	int (*fn)(const struct entry *e, struct statedir *dir, void *arg, struct error *err);
	void *arg;
	struct statedir *dir;
};

static int all_run(const struct entry_list *list, bool (*wants)(const struct entry *e),
		   const struct action *action)
{
	int status = CLI_OK;

	for (size_t i = 0; i < list->count; i++) {
		const struct entry *e = &list->entries[i];
		struct error err = {0};
		int ret;

		if (wants && !wants(e))
			continue;
		ret = action->fn(e, action->dir, action->arg, &err);
		if (ret)
			status = cli_fail(e->device[0] ? e->device : e->image, &err, ret);
	}
	return status;
}

static int one_run(const char *text, const struct entry_list *list, const struct action *action)
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
	ret = action->fn(e, action->dir, action->arg, &err);
	/* A bare number says little in a message. */
	return ret ? cli_fail(wanted.id >= 0 && e->device[0] ? e->device : text, &err, ret) : CLI_OK;
}

int select_each(char *const *names, bool all, bool (*wants)(const struct entry *e),
		int (*fn)(const struct entry *e, struct statedir *dir, void *arg, struct error *err),
		void *arg)
{
	struct entry_list list = {0};
	struct error err = {0};
	struct statedir dir;
	struct action action = {fn, arg, &dir};
	int ret, status = CLI_OK;

	ret = statedir_open(&dir, false, &err);
	if (ret && err.text[0])
		return cli_fail(NULL, &err, ret);
	ret = entry_list_read(&list, &dir, &err);
	if (ret)
		status = cli_fail(NULL, &err, ret);
	else if (all)
		status = all_run(&list, wants, &action);
	for (; !ret && !all && *names; names++)
		if (one_run(*names, &list, &action))
			status = CLI_FAILED;
	entry_list_free(&list);
	statedir_close(&dir);
	return status;
}

bool select_is_attached(const char *name)
{
	struct entry_list list = {0};
	const struct entry *e;
	struct wanted wanted;
	struct statedir dir;
	bool attached = false;

	if (statedir_open(&dir, false, NULL))
		return false;
	if (!entry_list_read(&list, &dir, NULL)) {
		wanted_init(&wanted, name);
		/* more than one is for select_each() to complain about */
		attached = wanted_find(&wanted, &list, &e, NULL) != -ENODEV;
		free(wanted.path);
	}
	entry_list_free(&list);
	statedir_close(&dir);
	return attached;
}

int select_or_all(const struct cli_command *cmd, int argc, char **argv, int all,
		  bool (*wanted)(const struct entry *e),
		  int (*fn)(const struct entry *e, struct statedir *dir, void *arg, struct error *err))
{
	bool every = false;
	int option;

	while ((option = cli_option(cmd, argc, argv)) != -1)
		every |= option == all;
	if (every ? optind < argc : optind == argc)
		return cli_usage(cmd, every ? "--all takes no device" : "no device given");
	return select_each(argv + optind, every, wanted, fn, NULL);
}

int select_one(const char *name, struct entry *e, struct statedir *dir, struct error *err)
{
	const struct entry *found = NULL;
	struct entry_list list = {0};
	struct wanted wanted;
	int ret = statedir_open(dir, false, err);

	if (ret)
		return err->text[0] ? ret : -ENODEV; /* no folder: nothing was ever attached */
	ret = entry_list_read(&list, dir, err);
	if (!ret) {
		wanted_init(&wanted, name);
		ret = wanted_find(&wanted, &list, &found, err);
		free(wanted.path);
	}
	if (!ret)
		*e = *found;
	entry_list_free(&list);
	if (ret)
		statedir_close(dir);
	return ret;
}
