// SPDX-License-Identifier: MIT
/*
 * main.c: finds the subcommand and runs it. The table below is all there is to add a new one.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/math.h"
#include "cli/cli.h"
#include "daemon/confine.h"
#include "daemon/daemon.h"
#include "daemon/supervise.h"

/* One line for each command, and the help as it is printed. */
/* clang-format off */
static const struct cli_command *const commands[] = {
	&cli_command_add,
	&cli_command_list,
	&cli_command_del,
	&cli_command_stop,
	&cli_command_create,
	&cli_command_info,
	&cli_command_check,
	&cli_command_resize,
	&cli_command_snapshot,
	&cli_command_recover,
	&cli_command_resume,
	&cli_command_upgrade,
	&cli_command_bench,
	&cli_command_owner,
};

static void help_print(FILE *out)
{
	fputs("Usage: ublk-qcow2 COMMAND [OPTION]... [ARGUMENT]...\n"
	      "\n"
	      "Attach qcow2 images as block devices.\n"
	      "\n"
	      "Commands:\n",
	      out);
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		fprintf(out, "  %-8s %s\n", commands[i]->name, commands[i]->summary);
	fputs("\n"
	      "'ublk-qcow2 COMMAND --help' says more about each; the manual is ublk-qcow2(8).\n"
	      "Exit status: 0, 1 (it failed), 2 (it was called wrongly).\n",
	      out);
}
/* clang-format on */

static const struct cli_command *command_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		if (strcmp(commands[i]->name, name) == 0)
			return commands[i];
	return NULL;
}

/* Not for people: what a supervisor runs to become another version of itself. */
static int supervise_main(const char *key, const char *held_fds, const char *secret_fd)
{
	struct error err = {0};
	int ret = daemon_resume(key, held_fds, secret_fd ? atoi(secret_fd) : -1, &err);

	log_err("%s", error_text(&err, ret));
	return CLI_FAILED;
}

static int run(int argc, char **argv)
{
	const char *word = argc > 1 ? argv[1] : NULL;
	const struct cli_command *cmd;

	if (!word) {
		cli_note(NULL, "no command given (see 'ublk-qcow2 --help')");
		return CLI_USAGE;
	}
	if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 ||
	    (strcmp(word, "help") == 0 && argc == 2)) {
		help_print(stdout);
		return CLI_OK;
	}
	if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
		puts("ublk-qcow2 " CLI_VERSION);
		return CLI_OK;
	}
	if (strcmp(word, "help") == 0) {
		static char help[] = "--help";

		/* "help add" is "add --help" */
		argv[1] = argv[2];
		argv[2] = help;
		argc = 3;
		word = argv[1];
	}
	if (strcmp(word, SUPERVISE_COMMAND) == 0 && argc >= 3 && argc <= 5)
		return supervise_main(argv[2], argv[3], argc == 5 ? argv[4] : NULL);
	cmd = command_find(word);
	if (!cmd) {
		cli_note(NULL, "unknown %s '%s' (see 'ublk-qcow2 --help')",
			 word[0] == '-' ? "option" : "command", word);
		return CLI_USAGE;
	}
	if (cmd->confined)
		confine(CONFINE_TOOL);
	return cmd->run(cmd, argc - 1, argv + 1);
}

int main(int argc, char **argv)
{
	int status = run(argc, argv);

	if (fflush(stdout) || ferror(stdout)) {
		cli_note(NULL, "cannot write to standard output");
		if (status == CLI_OK)
			status = CLI_FAILED;
	}
	return status;
}
