// SPDX-License-Identifier: MIT
/*
 * cli.c: options, messages and names, the same for every subcommand; see cli.h.
 */
#include "cli/cli.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "base/size.h"
#include "base/text.h"

static const char program[] = "ublk-qcow2";

static void message_print(const char *subject, const char *fmt, va_list args)
{
	char text[2048];

	vsnprintf(text, sizeof(text), fmt, args);
	fprintf(stderr, "%s: ", program);
	if (subject) {
		cli_print_name(stderr, subject);
		fputs(": ", stderr);
	}
	cli_print_name(stderr, text);
	fputc('\n', stderr);
}

int cli_error(const char *subject, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	message_print(subject, fmt, args);
	va_end(args);
	return CLI_FAILED;
}

void cli_note(const char *subject, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	message_print(subject, fmt, args);
	va_end(args);
}

int cli_fail(const char *subject, const struct error *err, int ret)
{
	const char *text = error_text(err, ret);
	size_t len = subject ? strlen(subject) : 0;
	char *shown = len ? strdup(subject) : NULL;

	/* it may begin with the name already, as a message has it */
	if (shown)
		text_clean(shown);
	if (shown && strncmp(text, shown, len) == 0 && strncmp(text + len, ": ", 2) == 0)
		text += len + 2;
	free(shown);
	return cli_error(subject, "%s", text);
}

int cli_usage(const struct cli_command *cmd, const char *fmt, ...)
{
	char text[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	cli_note(cmd->name, "%s (see '%s %s --help')", text, program, cmd->name);
	return CLI_USAGE;
}

static void help_print(const struct cli_command *cmd)
{
	printf("Usage: %s %s %s\n\n%s", program, cmd->name, cmd->synopsis, cmd->help);
}

int cli_option(const struct cli_command *cmd, int argc, char **argv)
{
	char letters[64];
	int option, first = optind ? optind : 1;

	snprintf(letters, sizeof(letters), ":h%s", cmd->short_options ? cmd->short_options : "");
	opterr = 0;
	option = getopt_long(argc, argv, letters, cmd->long_options, NULL);
	switch (option) {
	case 'h':
		help_print(cmd);
		exit(fflush(stdout) ? CLI_FAILED : CLI_OK);
	case ':':
		exit(cli_usage(cmd, "%s needs a value", argv[optind - 1]));
	case '?':
		/* A letter is named by optopt; a long option is the word just passed. */
		if (optopt > 0 && optopt < CLI_OPT_FIRST && argv[first] && argv[first][1] != '-')
			exit(cli_usage(cmd, "unknown option -%c", optopt));
		exit(cli_usage(cmd, "unknown or ambiguous option %s", argv[optind - 1]));
	default:
		return option;
	}
}

uint64_t cli_size_arg(const struct cli_command *cmd, const char *option, const char *text)
{
	uint64_t bytes;

	switch (size_parse(text, &bytes)) {
	case 0:
		return bytes;
	case -ERANGE:
		exit(cli_usage(cmd, "%s: '%s' is too large", option, text));
	default:
		exit(cli_usage(
			cmd,
			"%s: '%s' is not a size: a number and b, k, M, G, T, P or E are wanted",
			option, text));
	}
}

unsigned cli_number_arg(const struct cli_command *cmd, const char *option, const char *text,
			unsigned min, unsigned max)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end)
		exit(cli_usage(cmd, "%s: '%s' is not a number", option, text));
	if (errno || value < min || value > max)
		exit(cli_usage(cmd, "%s: %s is not between %u and %u", option, text, min, max));
	return (unsigned)value;
}

unsigned cli_word_arg(const struct cli_command *cmd, const char *option, const char *text,
		      const char *const words[])
{
	char all[128];
	size_t len = 0;

	for (unsigned i = 0; words[i]; i++) {
		const char *between = i == 0 ? "" : words[i + 1] ? ", " : " or ";

		if (strcmp(text, words[i]) == 0)
			return i;
		len += (size_t)snprintf(all + len, sizeof(all) - len, "%s%s", between, words[i]);
		assert(len < sizeof(all));
	}
	exit(cli_usage(cmd, "%s is %s, not '%s'", option, all, text));
}

json_t *cli_name_json(const char *name)
{
	json_t *value = json_string(name);
	char *text;

	if (value)
		return value;
	text = text_escape(name);
	value = text ? json_string(text) : NULL;
	free(text);
	return value;
}

void cli_print_name(FILE *out, const char *name)
{
	char *text = text_escape(name);

	fputs(text ? text : "?", out);
	free(text);
}

int cli_backing_dir(const struct cli_command *cmd, struct cli_names *names, const char *dir)
{
	struct names_policy *p = &names->policy;
	struct stat st;
	char *path;

	if (p->nr_dirs == NAMES_DIRS_MAX)
		return cli_usage(cmd, "--backing-dir more than %d times", NAMES_DIRS_MAX);
	path = realpath(dir, NULL);
	if (!path || stat(path, &st)) {
		free(path);
		return cli_error(dir, "%s", strerror(errno));
	}
	if (!S_ISDIR(st.st_mode)) {
		free(path);
		return cli_error(dir, "%s", strerror(ENOTDIR));
	}
	p->dirs[p->nr_dirs++] = path;
	return CLI_OK;
}

int cli_names_image(struct cli_names *names, const char *image, const char *real)
{
	const char *slash = strrchr(image, '/'), *name = slash ? slash + 1 : image;
	char *folder = names_folder(image);
	char *in = folder ? realpath(folder, NULL) : NULL, *as = NULL;

	free(folder);
	if (!in || asprintf(&as, "%s/%s", strcmp(in, "/") == 0 ? "" : in, name) < 0)
		as = NULL;
	free(in);
	if (!as)
		return -ENOMEM;
	if (strcmp(as, real) == 0) {
		free(as);
		as = NULL;
	}
	names->policy.image_as = as;
	return 0;
}

void cli_names_free(struct cli_names *names)
{
	free((char *)(uintptr_t)names->policy.image_as);
	names->policy.image_as = NULL;
	for (unsigned i = 0; i < names->policy.nr_dirs; i++)
		free((char *)(uintptr_t)names->policy.dirs[i]);
	names->policy.nr_dirs = 0;
}
