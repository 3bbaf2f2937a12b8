/* SPDX-License-Identifier: MIT */
/*
 * cli.h: what the subcommands share.
 *
 * A subcommand is one file that defines a struct cli_command, and one line in the table of main.c.
 * Exit statuses: 0, 1 (it failed), 2 (it was called wrongly). An error is one line on standard error,
 * "ublk-qcow2: IMAGE: what is wrong"; results go to standard output and nothing else does.
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "storage/names.h"

#define CLI_VERSION "0.1.0"

enum cli_status { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct cli_command {
	const char *name;
	const char *summary;  /* a phrase, for the list of commands */
	const char *synopsis; /* what follows the command's name */
	const char *help;     /* options and notes, whole lines */
	/* getopt's string; cli_option() adds ":" in front and -h */
	const char *short_options;
	const struct option *long_options; /* ends with CLI_LONG_HELP, {0} */
	/* It reads or changes detached images, and first gives up what that does not take (confine.h). */
	bool confined;
	int (*run)(const struct cli_command *cmd, int argc, char **argv); /* argv[0]: the command */
};

/* clang-format off */
#define CLI_LONG_HELP {"help", no_argument, NULL, 'h'}
/* clang-format on */

/* Values of long options that have no letter. */
enum { CLI_OPT_FIRST = 256 };

/* The next option, or -1 behind the last. --help and errors do not return. */
int cli_option(const struct cli_command *cmd, int argc, char **argv);

/* One line that says what was called wrongly and where the help is; returns CLI_USAGE. */
__attribute__((format(printf, 2, 3))) int cli_usage(const struct cli_command *cmd, const char *fmt, ...);

/*
 * One line on standard error: "ublk-qcow2: SUBJECT: text"; @subject may be NULL. Control characters
 * are replaced. cli_error() returns CLI_FAILED.
 */
__attribute__((format(printf, 2, 3))) int cli_error(const char *subject, const char *fmt, ...);
__attribute__((format(printf, 2, 3))) void cli_note(const char *subject, const char *fmt, ...);
/* The same for the text in @err, or that of errno -ret; the subject is not repeated if it is in it. */
int cli_fail(const char *subject, const struct error *err, int ret);

/* Arguments of options; exit with a usage error where the text is wrong. */
uint64_t cli_size_arg(const struct cli_command *cmd, const char *option, const char *text);
unsigned cli_number_arg(const struct cli_command *cmd, const char *option, const char *text,
			unsigned min, unsigned max);
/* Which of @words, two or more and a NULL behind them, @text is. */
unsigned cli_word_arg(const struct cli_command *cmd, const char *option, const char *text,
		      const char *const words[]);

/* --backing-dir and --backing-any. The folders' names are the structure's. */
struct cli_names {
	struct names_policy policy;
};
/* Takes a folder, which must exist; CLI_OK, or an error that was printed. */
int cli_backing_dir(const struct cli_command *cmd, struct cli_names *names, const char *dir);
/*
 * Names in @image, of which @real is where it really is, start beside it, also where it is a symbolic link.
 * 0 or -ENOMEM.
 */
int cli_names_image(struct cli_names *names, const char *image, const char *real) must_check;
void cli_names_free(struct cli_names *names);

/*
 * Whoever wrote it, a name is printed such that it is one line and moves no cursor: see text.h.
 */
void cli_print_name(FILE *out, const char *name);
/* The same as JSON; only what is not UTF-8, which a JSON string cannot be, is escaped. NULL without memory. */
struct json_t *cli_name_json(const char *name);

extern const struct cli_command cli_command_add;
extern const struct cli_command cli_command_bench;
extern const struct cli_command cli_command_check;
extern const struct cli_command cli_command_create;
extern const struct cli_command cli_command_del;
extern const struct cli_command cli_command_info;
extern const struct cli_command cli_command_list;
extern const struct cli_command cli_command_owner;
extern const struct cli_command cli_command_recover;
extern const struct cli_command cli_command_resize;
extern const struct cli_command cli_command_resume;
extern const struct cli_command cli_command_snapshot;
extern const struct cli_command cli_command_stop;
extern const struct cli_command cli_command_upgrade;

#endif
