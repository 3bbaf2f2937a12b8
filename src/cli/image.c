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
#include "daemon/confine.h"
#include "daemon/look.h"
#include "qcow2.h"
#include "storage/storage.h"
#include "target/child.h"

/* Enough for the magic and version that qcow2_probe() looks at, and then some. */
#define PROBE_BYTES 512
/* For the list of bitmaps to be read, from a disk that may be slow. */
#define BITMAPS_MS 30000

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

struct image_nature image_look(const char *path)
{
	const struct storage_file_options options = {.read_only = true};
	struct look *look = calloc(1, sizeof(*look));
	struct image_nature nature = {0};
	struct storage *st;

	/* What is wrong with it is said by who opens it. */
	if (look && storage_file_open(&st, path, &options, NULL) == 0) {
		if (look_at(st, look) == 0)
			nature = (struct image_nature){
				.dirty = look->dirty,
				.aes = look->aes,
				.needs_no_passphrase = !look->encrypted && !look->backing_file[0],
			};
		storage_close(st);
	}
	free(look);
	return nature;
}

static void count_in_use(void *arg, const struct qcow2_bitmap *bitmap)
{
	*(unsigned *)arg += bitmap->in_use;
}

/* How many were not saved, or why that is not known; in a child, as the list is whoever's made the image. */
static int bitmaps_in_child(void *arg, struct error *err)
{
	const struct storage_file_options options = {.read_only = true};
	struct qcow2_info *info = malloc(sizeof(*info));
	struct storage *st;
	unsigned lost = 0;
	int ret = 0;

	confine(CONFINE_TOOL);
	if (!info || storage_file_open(&st, arg, &options, NULL)) {
		free(info);
		return 0;
	}
	/* what is wrong with the header is said by who opens it */
	if (qcow2_info(st, info, NULL) == 0 && info->bitmaps)
		ret = qcow2_bitmap_list(st, count_in_use, &lost, NULL);
	storage_close(st);
	free(info);
	return ret ? ret : (int)lost;
}

void image_note_bitmaps(const char *image, const char *path)
{
	int lost = child_call(bitmaps_in_child, (void *)path, BITMAPS_MS, NULL);

	if (lost == -EINVAL || lost == -EFBIG)
		cli_note(image, "its dirty bitmaps cannot be kept up to date: the first write makes them invalid");
	else if (lost > 0)
		cli_note(image, "%d of its dirty bitmaps %s inconsistent, and stay%s so: whoever had the image before "
				"has not saved %s",
			 lost, lost == 1 ? "is" : "are", lost == 1 ? "s" : "", lost == 1 ? "it" : "them");
}
