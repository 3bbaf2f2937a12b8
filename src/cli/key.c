// SPDX-License-Identifier: MIT
/* key.c: see key.h. */
#include "cli/key.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/secret.h"

int key_read_fd(struct secret **out, int fd, struct error *err)
{
	/* one more than there may be, so that more is noticed */
	struct secret *s = secret_create(SECRET_MAX_BYTES + 1);
	ssize_t n = 1;
	int ret = 0;

	if (!s)
		ret = error_set(err, -ENOMEM, "out of memory");
	while (!ret && n && s->bytes < s->capacity) {
		n = read(fd, s->data + s->bytes, s->capacity - s->bytes);
		if (n < 0 && errno != EINTR)
			ret = error_set(err, -errno, "cannot read the passphrase: %s", strerror(errno));
		if (n > 0)
			s->bytes += (size_t)n;
	}
	close(fd);
	if (!ret && !s->bytes)
		ret = error_set(err, -EINVAL, "the passphrase is empty");
	if (!ret && s->bytes > SECRET_MAX_BYTES)
		ret = error_set(err, -EFBIG, "the passphrase is longer than %d bytes", SECRET_MAX_BYTES);
	if (ret)
		secret_destroy(s);
	else
		*out = s;
	return ret;
}

int key_read_file(struct secret **out, const char *path, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

	if (fd < 0)
		return error_set(err, -errno, "cannot open: %s", strerror(errno));
	return key_read_fd(out, fd, err);
}

int key_read_credential(struct secret **out, const char *name, struct error *err)
{
	const char *folder = getenv("CREDENTIALS_DIRECTORY");
	char path[PATH_MAX];

	if (!*name || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return error_set(err, -EINVAL, "is no name of a credential");
	if (!folder || *folder != '/')
		return error_set(err, -ENOENT, "there are no credentials: CREDENTIALS_DIRECTORY is not set "
					       "(see systemd.exec(5), LoadCredential=)");
	if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path))
		return error_set(err, -ENAMETOOLONG, "%s", strerror(ENAMETOOLONG));
	return key_read_file(out, path, err);
}

int cli_key_set(const struct cli_command *cmd, struct secret **key, int option, const char *value)
{
	struct error err = {0};
	int ret;

	if (*key)
		return cli_usage(cmd, "one passphrase at a time: one of --key-file, --key-fd and "
				      "--key-credential");
	/* From here on: it is about to be all over this process's memory, and its children's. */
	secret_protect_process();
	if (option == CLI_OPT_KEY_FD)
		ret = key_read_fd(key, (int)cli_number_arg(cmd, "--key-fd", value, 0, INT_MAX), &err);
	else if (option == CLI_OPT_KEY_FILE)
		ret = key_read_file(key, value, &err);
	else
		ret = key_read_credential(key, value, &err);
	return ret ? cli_fail(value, &err, ret) : CLI_OK;
}
