/* SPDX-License-Identifier: MIT */
/*
 * key.h: where the passphrase of an encrypted image comes from: a file, a descriptor, or systemd's folder
 * of credentials; never the command line or the environment, which others can read.
 *
 * The passphrase is what is there, to the last byte: a newline at its end is part of it, as it is for
 * `qemu-img --object secret,file=` and `cryptsetup --key-file`.
 */
#ifndef CLI_KEY_H
#define CLI_KEY_H

#include "base/error.h"
#include "cli/cli.h"

struct secret;

/* Values of the options, apart from any subcommand's own. */
enum { CLI_OPT_KEY_FILE = 0x1000, CLI_OPT_KEY_FD, CLI_OPT_KEY_CREDENTIAL };

/* clang-format off */
#define CLI_KEY_OPTIONS \
	{"key-file", required_argument, NULL, CLI_OPT_KEY_FILE}, \
	{"key-fd", required_argument, NULL, CLI_OPT_KEY_FD}, \
	{"key-credential", required_argument, NULL, CLI_OPT_KEY_CREDENTIAL}
/* clang-format on */

static inline bool cli_is_key_option(int option)
{
	return option >= CLI_OPT_KEY_FILE && option <= CLI_OPT_KEY_CREDENTIAL;
}

/*
 * Takes one of these options: reads the passphrase into *@key, which is NULL before; another one is a
 * usage error. A status; the error was printed.
 */
int cli_key_set(const struct cli_command *cmd, struct secret **key, int option, const char *value);

/* The whole of a file: not empty, SECRET_MAX_BYTES at most. */
int key_read_file(struct secret **out, const char *path, struct error *err) must_check;
/* Up to the end; closes @fd. */
int key_read_fd(struct secret **out, int fd, struct error *err) must_check;
/* A file in $CREDENTIALS_DIRECTORY. */
int key_read_credential(struct secret **out, const char *name, struct error *err) must_check;

#endif
