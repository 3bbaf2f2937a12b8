// SPDX-License-Identifier: MIT
/*
 * resize.c: another size for an image's disk.
 *
 * Nobody's image is opened and resized here; that of an attached device by its daemon, which is asked.
 * Whatever happens on the way, the image has the old size or the new one.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/math.h"
#include "base/secret.h"
#include "base/size.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/key.h"
#include "cli/select.h"
#include "daemon/control.h"
#include "qcow2.h"
#include "storage/storage.h"

/* For the daemon: as long as the write-back of all its metadata may take. */
#define RESIZE_TIMEOUT_MS 120000

enum { OPT_SHRINK = CLI_OPT_FIRST, OPT_BACKING_DIR, OPT_BACKING_ANY };

static const struct option long_options[] = {
	{"shrink", no_argument, NULL, OPT_SHRINK},
	{"quiet", no_argument, NULL, 'q'},
	{"backing-dir", required_argument, NULL, OPT_BACKING_DIR},
	{"backing-any", no_argument, NULL, OPT_BACKING_ANY},
	CLI_KEY_OPTIONS,
	CLI_LONG_HELP,
	{0},
};

struct resize {
	char sign; /* '+', '-', or 0: the size itself */
	uint64_t bytes;
	bool shrink, quiet;
	struct cli_names names;
	struct secret *passphrase;
};

/* The size that is asked for, of a disk that has @now bytes. */
static int size_resolve(const struct resize *r, uint64_t now, uint64_t *out, struct error *err)
{
	*out = r->bytes;
	if (r->sign == '+' && !checked_add(now, r->bytes, out))
		return error_set(err, -EFBIG, "the new size is too large");
	if (r->sign == '-') {
		if (r->bytes >= now)
			return error_set(err, -EINVAL, "the new size would be 0 or less");
		*out = now - r->bytes;
	}
	if (!*out)
		return error_set(err, -EINVAL, "the new size is 0");
	if (*out < now && !r->shrink)
		return error_set(err, -EINVAL,
				 "the new size is smaller: what is past its end would be lost; --shrink "
				 "means that");
	return 0;
}

/* ---- an attached device ---- */

static int attached_resize(const struct entry *e, struct statedir *dir, void *arg, struct error *err)
{
	const struct resize *r = arg;
	uint64_t size_bytes;
	int ret = size_resolve(r, e->size_bytes, &size_bytes, err);

	if (ret)
		return ret;
	if (e->state != ENTRY_LIVE)
		return error_set(err, -EBUSY, "is not being served: %s", entry_state_name(e->state));
	ret = control_ask_resize(dir, e, size_bytes, RESIZE_TIMEOUT_MS, err);
	if (!ret && !r->quiet)
		puts("Image resized.");
	return ret;
}

/* ---- an image ---- */

static int image_open(struct qcow2_image **img, const struct resize *r, const char *path,
		      struct error *err)
{
	struct storage_file_options file = {.exclusive_device = true};
	struct qcow2_options options = {
		.image_path = path, .names = &r->names.policy, .passphrase = r->passphrase};
	struct storage *st;
	int ret = storage_file_open(&st, path, &file, err);

	if (ret)
		return ret;
	ret = qcow2_open(img, st, &options, err);
	if (ret)
		storage_close(st);
	return ret;
}

static int image_resize(const struct resize *r, const char *path, struct error *err)
{
	struct error close_err = {0};
	struct qcow2_image *img;
	uint64_t size_bytes;
	int ret = image_open(&img, r, path, err), close_ret;

	if (ret)
		return ret;
	ret = size_resolve(r, qcow2_size_bytes(img), &size_bytes, err);
	if (!ret)
		ret = qcow2_resize(img, size_bytes, err);
	close_ret = qcow2_close(img, &close_err);
	if (!ret && close_ret)
		ret = error_set(err, close_ret, "%s", error_text(&close_err, close_ret));
	return ret;
}

static int file_resize(struct resize *r, const char *name, struct error *err)
{
	struct stat st;
	char *path;
	int ret = image_check(name, &st, err);

	if (ret)
		return ret;
	path = realpath(name, NULL);
	if (!path)
		return error_set(err, -errno, "%s", strerror(errno));
	ret = cli_names_image(&r->names, name, path);
	if (ret)
		error_set(err, ret, "out of memory");
	else
		ret = image_resize(r, path, err);
	free(path);
	if (!ret && !r->quiet)
		puts("Image resized.");
	return ret;
}

/* ---- the command line ---- */

static int size_take(const struct cli_command *cmd, struct resize *r, const char *text)
{
	if (*text == '+' || *text == '-')
		r->sign = *text++;
	r->bytes = cli_size_arg(cmd, "SIZE", text);
	return CLI_OK;
}

static int options_take(const struct cli_command *cmd, struct resize *r, int argc, char **argv)
{
	int option;

	while ((option = cli_option(cmd, argc, argv)) != -1) {
		int status = CLI_OK;

		if (cli_is_key_option(option))
			status = cli_key_set(cmd, &r->passphrase, option, optarg);
		switch (option) {
		case OPT_SHRINK:
			r->shrink = true;
			break;
		case 'q':
			r->quiet = true;
			break;
		case 'f':
			if (strcmp(optarg, "qcow2") != 0)
				return cli_usage(cmd, "the only format is qcow2");
			break;
		case OPT_BACKING_DIR:
			status = cli_backing_dir(cmd, &r->names, optarg);
			break;
		case OPT_BACKING_ANY:
			r->names.policy.any = true;
			break;
		}
		if (status)
			return status;
	}
	return CLI_OK;
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	/* "-1G" is a size; an option comes nowhere behind the first two words but before them */
	char *size = argc > 2 ? argv[argc - 1] : NULL;
	struct resize r = {0};
	struct error err = {0};
	int status, ret;

	if (size && *size != '-' && *size != '+' && (*size < '0' || *size > '9'))
		size = NULL;
	status = options_take(cmd, &r, size ? argc - 1 : argc, argv);
	if (status)
		goto out;
	if (!size || argc - 1 - optind != 1) {
		status = cli_usage(cmd, "an image or device, and a size");
		goto out;
	}
	argv[argc - 1] = NULL; /* behind the name, for select_each() */
	status = size_take(cmd, &r, size);
	if (status)
		goto out;
	if (select_is_attached(argv[optind])) {
		status = select_each(argv + optind, false, NULL, attached_resize, &r);
	} else {
		ret = file_resize(&r, argv[optind], &err);
		status = ret ? cli_fail(argv[optind], &err, ret) : CLI_OK;
	}
out:
	cli_names_free(&r.names);
	secret_destroy(r.passphrase);
	return status;
}

/* The help is laid out as it is printed. */
/* clang-format off */
const struct cli_command cli_command_resize = {
	.name = "resize",
	.summary = "give an image's disk another size",
	.synopsis = "[--shrink] [-q] FILE|DEVICE [+|-]SIZE",
	.help = "Gives the disk in a qcow2 image, attached or not, the size SIZE, or that much more or less. What\n"
		"is gained reads as zeros. An attached device can grow; its users see that at once.\n"
		"\n"
		"      --shrink           the new size may be smaller: what is past its end is lost\n"
		"      --backing-dir DIR  names in FILE (backing file, data file) may also lead to DIR and below;\n"
		"                         may be repeated\n"
		"      --backing-any      names in FILE may lead anywhere\n"
		"      --key-file FILE    the passphrase of an encrypted image is all of FILE, as for 'add'\n"
		"      --key-fd N         ... is what can be read from this descriptor\n"
		"      --key-credential NAME  ... is this file in systemd's $CREDENTIALS_DIRECTORY\n"
		"  -q, --quiet            say nothing\n"
		"  -h, --help             this text\n",
	.short_options = "f:q",
	.long_options = long_options,
	.confined = true,
	.run = run,
};
/* clang-format on */
