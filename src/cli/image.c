// SPDX-License-Identifier: MIT
/*
 * image.c: see image.h. Errors that belong to the name itself are found here, once, so that every
 * subcommand says them alike. Messages carry no file name: the program prints it in front.
 */
#include "cli/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "qcow2.h"
#include "storage/storage.h"

/* Enough for the magic and version that qcow2_probe() looks at, and then some. */
#define PROBE_BYTES 512

int image_check(const char *path, struct stat *st, struct error *err)
{
	if (stat(path, st)) {
		int ret = -errno;

		return error_set(err, ret, "%s", strerror(-ret));
	}
	if (S_ISDIR(st->st_mode))
		return error_set(err, -EISDIR, "is a directory, not an image");
	if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
		return error_set(err, -EINVAL, "is neither a regular file nor a block device");
	return 0;
}

int image_probe(const char *path, bool *qcow2, bool *direct_works, struct error *err)
{
	unsigned char head[PROBE_BYTES];
	/* Non-blocking: the name may have become a pipe since image_check(). */
	int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
	ssize_t len;
	int fd, ret;

	fd = open(path, flags);
	if (fd < 0) {
		ret = -errno;
		return error_set(err, ret, "cannot open: %s", strerror(-ret));
	}
	len = pread(fd, head, sizeof(head), 0);
	ret = len < 0 ? -errno : 0;
	close(fd);
	if (ret)
		return error_set(err, ret, "cannot read: %s", strerror(-ret));
	*qcow2 = qcow2_probe(head, (size_t)len);

	fd = open(path, flags | O_DIRECT);
	*direct_works = fd >= 0;
	if (fd >= 0)
		close(fd);
	return 0;
}

void image_look(const char *path, bool *dirty, bool *aes)
{
	const struct storage_file_options options = {.read_only = true};
	struct qcow2_info *info = calloc(1, sizeof(*info));
	struct storage *st;

	*dirty = *aes = false;
	/* What is wrong with it is said by who opens it. */
	if (info && storage_file_open(&st, path, &options, NULL) == 0) {
		if (qcow2_info(st, info, NULL) == 0) {
			*dirty = info->dirty;
			*aes = info->encryption && strcmp(info->encryption, "aes") == 0;
		}
		storage_close(st);
	}
	free(info);
}

static void count_in_use(void *arg, const struct qcow2_bitmap *bitmap)
{
	*(unsigned *)arg += bitmap->in_use;
}

void image_note_bitmaps(const char *image, const char *path)
{
	const struct storage_file_options options = {.read_only = true};
	struct storage *st;
	unsigned lost = 0;
	int ret;

	if (storage_file_open(&st, path, &options, NULL))
		return;
	ret = qcow2_bitmap_list(st, count_in_use, &lost, NULL);
	storage_close(st);
	if (ret == -EINVAL || ret == -EFBIG)
		cli_note(image, "its dirty bitmaps cannot be kept up to date: the first write makes them invalid");
	else if (lost)
		cli_note(image, "%u of its dirty bitmaps %s inconsistent, and stay%s so: whoever had the image before "
				"has not saved %s",
			 lost, lost == 1 ? "is" : "are", lost == 1 ? "s" : "", lost == 1 ? "it" : "them");
}
