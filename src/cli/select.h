/* SPDX-License-Identifier: MIT */
/*
 * select.h: which attached devices a command line means: by device, number, image, or all of them.
 */
#ifndef CLI_SELECT_H
#define CLI_SELECT_H

#include <stdbool.h>

#include "base/error.h"
#include "daemon/entry.h"
#include "daemon/statedir.h"

struct cli_command;

/*
 * Runs @fn for each device that @names (a NULL-terminated list) mean, or with @all for all that @wanted
 * (NULL: any) agrees to. Errors are printed behind the device's name. Returns an exit status.
 */
int select_each(char *const *names, bool all, bool (*wanted)(const struct entry *e),
		int (*fn)(const struct entry *e, struct statedir *dir, void *arg, struct error *err),
		void *arg);

/* select_each() for a command whose one option is --all, of value @all. */
int select_or_all(const struct cli_command *cmd, int argc, char **argv, int all,
		  bool (*wanted)(const struct entry *e),
		  int (*fn)(const struct entry *e, struct statedir *dir, void *arg, struct error *err));

/* Whether @name means a device that is attached, or waits to be recovered. */
bool select_is_attached(const char *name);
/*
 * The one that @name means, copied to @e, with the folder of state open: statedir_close(). -ENODEV: none
 * does; the folder is closed then, and there may be none.
 */
int select_one(const char *name, struct entry *e, struct statedir *dir, struct error *err) must_check;

#endif
