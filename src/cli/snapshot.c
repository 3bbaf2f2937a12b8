// SPDX-License-Identifier: MIT
/*
 * snapshot.c: the snapshots inside an image: made, listed, gone back to, deleted.
 *
 * Of an image that is attached the device's daemon does it, while I/O goes on; else it is done here, with
 * the image's locks held. A list is read from the file in either case: what is there is always whole.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <jansson.h>

#include "base/text.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/select.h"
#include "daemon/control.h"
#include "qcow2.h"
#include "storage/storage.h"

/* The tables of a large image on a slow disk take their time. */
#define OPERATION_TIMEOUT_MS 600000

static const struct option long_options[] = {
	{"force", no_argument, NULL, 'f'},
	{"json", no_argument, NULL, 'J'},
	{"verbose", no_argument, NULL, 'v'},
	CLI_LONG_HELP,
	{0},
};

struct options {
	bool force, json, verbose;
};

/* ---- list ---- */

struct listing {
	json_t *array; /* NULL: for people */
	unsigned count;
	bool failed;
};

/* The members are those of `qemu-img info --output=json`. */
static void json_add(struct listing *l, const struct qcow2_snapshot *s)
{
	json_t *o = json_pack("{s:o, s:o, s:I, s:I, s:I, s:I, s:I}", "id", cli_name_json(s->id), "name",
			      cli_name_json(s->name), "vm-state-size", (json_int_t)s->vm_state_bytes,
			      "date-sec", (json_int_t)s->date_sec, "date-nsec",
			      (json_int_t)s->date_nsec, "vm-clock-sec",
			      (json_int_t)(s->vm_clock_ns / 1000000000), "vm-clock-nsec",
			      (json_int_t)(s->vm_clock_ns % 1000000000));

	if (o && s->has_icount)
		json_object_set_new(o, "icount", json_integer((json_int_t)s->icount));
	if (o)
		json_object_set_new(o, "disk-size", json_integer((json_int_t)s->disk_bytes));
	if (!o || json_array_append_new(l->array, o))
		l->failed = true;
}

/* As QEMU prints sizes here: three digits, and no unit before KiB but B. */
static void size_print(uint64_t bytes, char *out, size_t size)
{
	static const char *const units[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
	double value = (double)bytes;
	size_t unit = 0;

	while (value > 999.0 && unit < 6) {
		value /= 1024;
		unit++;
	}
	snprintf(out, size, "%0.3g %sB", value, units[unit]);
}

/* In columns of a width, to which the name is cut by nobody. */
static void name_print(const char *name, int width)
{
	char *text = text_escape(name);

	printf("%-*s ", width, text ? text : "?");
	free(text);
}

static void human_add(struct listing *l, const struct qcow2_snapshot *s)
{
	uint64_t ms = s->vm_clock_ns / 1000000;
	time_t seconds = s->date_sec;
	char date[32] = "?", clock[32], size[32], icount[24] = "";
	struct tm tm;

	if (!l->count++)
		printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE",
		       "VM CLOCK", "ICOUNT");
	if (localtime_r(&seconds, &tm))
		strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
	snprintf(clock, sizeof(clock), "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64,
		 ms / 3600000, ms / 60000 % 60, ms / 1000 % 60, ms % 1000);
	if (s->has_icount)
		snprintf(icount, sizeof(icount), "%" PRIu64, s->icount);
	size_print(s->vm_state_bytes, size, sizeof(size));
	name_print(s->id, 9);
	name_print(s->name, 16);
	printf("%8s%20s%13s%11s\n", size, date, clock, icount);
}

static void each(void *arg, const struct qcow2_snapshot *s)
{
	struct listing *l = arg;

	if (l->array)
		json_add(l, s);
	else
		human_add(l, s);
}

static int list(const char *subject, const char *path, const struct options *options)
{
	struct storage_file_options file = {.read_only = true};
	struct listing l = {.array = options->json ? json_array() : NULL};
	struct error err = {0};
	struct storage *st;
	char *text = NULL;
	int ret = storage_file_open(&st, path, &file, &err);

	if (!ret) {
		ret = qcow2_snapshot_list(st, each, &l, &err);
		storage_close(st);
	}
	if (!ret && l.failed)
		ret = -ENOMEM;
	if (!ret && l.array)
		text = json_dumps(l.array, JSON_INDENT(4) | JSON_ENSURE_ASCII);
	if (text)
		puts(text);
	free(text);
	json_decref(l.array);
	return ret ? cli_fail(subject, &err, ret) : CLI_OK;
}

/* ---- on an image that is not attached ---- */

static int operate(struct qcow2_image *img, enum control_snapshot action, const char *name,
		   struct error *err)
{
	switch (action) {
	case CONTROL_SNAPSHOT_CREATE:
		return qcow2_snapshot_create(img, name, NULL, err);
	case CONTROL_SNAPSHOT_APPLY:
		return qcow2_snapshot_apply(img, name, NULL, err);
	default:
		return qcow2_snapshot_delete(img, name, NULL, err);
	}
}

static int operate_detached(const char *path, enum control_snapshot action, const char *name,
			    struct error *err)
{
	struct storage_file_options file = {.exclusive_device = true};
	struct qcow2_options options = {.tables_only = true};
	struct qcow2_image *img;
	struct error close_err = {0};
	struct storage *st;
	int ret = storage_file_open(&st, path, &file, err), close_ret;

	if (ret)
		return ret;
	ret = qcow2_open(&img, st, &options, err);
	if (ret) {
		storage_close(st);
		return ret;
	}
	ret = operate(img, action, name, err);
	close_ret = qcow2_close(img, &close_err);
	if (!ret && close_ret)
		ret = error_set(err, close_ret, "%s", error_text(&close_err, close_ret));
	return ret;
}

/* ---- on a device ---- */

static int operate_attached(const struct entry *e, const struct statedir *dir,
			    enum control_snapshot action, const char *name,
			    const struct options *options, struct error *err)
{
	uint64_t pause_us = 0;
	int ret;

	if (e->state != ENTRY_LIVE)
		return error_set(err, -EBUSY, "is %s", entry_state_name(e->state));
	ret = control_ask_snapshot(dir, e, action, name, options->force, OPERATION_TIMEOUT_MS,
				   &pause_us, err);
	if (!ret && options->verbose)
		printf("%s: I/O was held back for %" PRIu64 ".%03" PRIu64 " ms\n", e->device,
		       pause_us / 1000, pause_us % 1000);
	return ret;
}

static int action_find(const char *text, enum control_snapshot *action)
{
	static const char *const names[] = {
		[CONTROL_SNAPSHOT_CREATE] = "create",
		[CONTROL_SNAPSHOT_APPLY] = "apply",
		[CONTROL_SNAPSHOT_DELETE] = "delete",
	};

	for (*action = 0; *action < 3; ++*action)
		if (!strcmp(text, names[*action]))
			return 0;
	return -ENOENT;
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	struct options options = {0};
	enum control_snapshot action = 0;
	const char *what, *subject, *name;
	struct error err = {0};
	struct entry e = {0};
	struct statedir dir;
	struct stat st;
	bool listing;
	int option, ret;

	while ((option = cli_option(cmd, argc, argv)) != -1) {
		options.force |= option == 'f';
		options.json |= option == 'J';
		options.verbose |= option == 'v';
	}
	argc -= optind;
	argv += optind;
	if (argc < 2)
		return cli_usage(cmd, argc ? "no image or device given" : "what is to be done?");
	what = argv[0];
	subject = argv[1];
	listing = !strcmp(what, "list");
	if (!listing && action_find(what, &action))
		return cli_usage(cmd, "'%s' is not create, list, apply or delete", what);
	if (argc != (listing ? 2 : 3))
		return cli_usage(cmd, listing ? "list takes one image or device"
					      : "an image or device and one name are needed");
	name = argv[2];
	ret = select_one(subject, &e, &dir, &err);
	if (!ret) {
		int status = CLI_OK;

		if (listing)
			status = list(subject, e.image, &options);
		else
			ret = operate_attached(&e, &dir, action, name, &options, &err);
		statedir_close(&dir);
		return ret ? cli_fail(subject, &err, ret) : status;
	}
	/* A list does not mind who else has the image. */
	if (ret != -ENODEV && !(listing && ret == -EINVAL))
		return cli_fail(subject, &err, ret);
	err = (struct error){0};
	ret = image_check(subject, &st, &err);
	if (ret)
		return cli_fail(subject, &err, ret);
	if (listing)
		return list(subject, subject, &options);
	ret = operate_detached(subject, action, name, &err);
	return ret ? cli_fail(subject, &err, ret) : CLI_OK;
}

/* The help is laid out as it is printed. */
/* clang-format off */
const struct cli_command cli_command_snapshot = {
	.name = "snapshot",
	.summary = "make, list, apply or delete the snapshots in an image",
	.synopsis = "[OPTION]... create|apply|delete IMAGE|DEVICE NAME\n"
		    "       ublk-qcow2 snapshot [--json] list IMAGE|DEVICE",
	.help = "A snapshot is what the disk was at one moment, kept inside the image. Of a device that is attached\n"
		"it is made and deleted while I/O goes on, and holds what was written until then.\n"
		"\n"
		"  create  makes one; NAME must not be in use\n"
		"  list    prints them as 'qemu-img snapshot -l' does\n"
		"  apply   the disk becomes what it was then: what was written since is lost. NAME is an id, or\n"
		"          else a name. A device must not be in use, nor of another size than it was then\n"
		"  delete  removes one; NAME is an id, or else a name\n"
		"\n"
		"  -f, --force    apply although the device is in use: its users see the old data change\n"
		"  -J, --json     list as a JSON array, one object for each snapshot\n"
		"  -v, --verbose  say for how long I/O of a device was held back\n"
		"  -h, --help     this text\n",
	.short_options = "fJv",
	.long_options = long_options,
	.confined = true,
	.run = run,
};
/* clang-format on */
