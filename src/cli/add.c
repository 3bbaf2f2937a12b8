// SPDX-License-Identifier: MIT
/*
 * add.c: an image becomes a block device.
 *
 * What is served is told by the file's content, with one exception that protects the host: a file that
 * is not qcow2 is served raw only on demand (--target loop) or read-only. Whoever writes to a raw disk
 * decides what its first bytes are, so they cannot tell what it is.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"
#include "base/secret.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/key.h"
#include "daemon/daemon.h"

#define QUEUES_DEFAULT 0 /* the daemon chooses */
#define QUEUES_MAX     64
#define DEPTH_DEFAULT  128
#define DEPTH_MAX      4096
#define ID_MAX	       (1 << 20)
#define WRITEBACK_DELAY_MS_MAX 60000

enum {
	OPT_FRONTEND = CLI_OPT_FIRST,
	OPT_TARGET,
	OPT_QUEUES,
	OPT_DEPTH,
	OPT_ID,
	OPT_CACHE,
	OPT_CACHE_SIZE,
	OPT_NO_LOOP,
	OPT_FOREGROUND,
	OPT_SIZE,
	OPT_RECOVERY,
	OPT_WRITEBACK_DELAY,
	OPT_DATA_PATH,
	OPT_NO_PART_SCAN,
	OPT_BACKING_DIR,
	OPT_BACKING_ANY,
	OPT_COMPRESS,
	OPT_DISCARD,
	OPT_DETECT_ZEROES,
	OPT_BACKING_FORMAT,
	OPT_SNAPSHOT,
	OPT_MLOCK,
	OPT_NO_MLOCK,
	OPT_ON_ENOSPC,
	OPT_UNPRIVILEGED,
};

static const struct option long_options[] = {
	{"frontend", required_argument, NULL, OPT_FRONTEND},
	{"target", required_argument, NULL, OPT_TARGET},
	{"read-only", no_argument, NULL, 'r'},
	{"queues", required_argument, NULL, OPT_QUEUES},
	{"depth", required_argument, NULL, OPT_DEPTH},
	{"id", required_argument, NULL, OPT_ID},
	{"cache", required_argument, NULL, OPT_CACHE},
	{"cache-size", required_argument, NULL, OPT_CACHE_SIZE},
	{"no-part-scan", no_argument, NULL, OPT_NO_PART_SCAN},
	{"no-loop", no_argument, NULL, OPT_NO_LOOP},
	{"foreground", no_argument, NULL, OPT_FOREGROUND},
	{"size", required_argument, NULL, OPT_SIZE},
	{"recovery", required_argument, NULL, OPT_RECOVERY},
	{"data-path", required_argument, NULL, OPT_DATA_PATH},
	{"writeback-delay", required_argument, NULL, OPT_WRITEBACK_DELAY},
	{"compress", no_argument, NULL, OPT_COMPRESS},
	{"discard", required_argument, NULL, OPT_DISCARD},
	{"detect-zeroes", required_argument, NULL, OPT_DETECT_ZEROES},
	{"backing-dir", required_argument, NULL, OPT_BACKING_DIR},
	{"backing-any", no_argument, NULL, OPT_BACKING_ANY},
	{"backing-format", required_argument, NULL, OPT_BACKING_FORMAT},
	{"snapshot", required_argument, NULL, OPT_SNAPSHOT},
	{"mlock", no_argument, NULL, OPT_MLOCK},
	{"no-mlock", no_argument, NULL, OPT_NO_MLOCK},
	{"on-enospc", required_argument, NULL, OPT_ON_ENOSPC},
	{"unprivileged", no_argument, NULL, OPT_UNPRIVILEGED},
	CLI_KEY_OPTIONS,
	CLI_LONG_HELP,
	{0},
};

struct add {
	struct daemon_config config;
	const char *image; /* as given; NULL: none */
	char *path;	   /* absolute, links followed */
	bool foreground;
	bool have_size;
	bool have_recovery;
	struct cli_names names;
};

/* ---- options ---- */

static int frontend_set(const struct cli_command *cmd, struct add *add, const char *name)
{
	add->config.frontend = NULL;
	if (strcmp(name, "auto") == 0)
		return CLI_OK;
	add->config.frontend = daemon_frontend_find(name);
	return add->config.frontend ? CLI_OK
				    : cli_usage(cmd, "--frontend is auto, ublk or fuse, not '%s'", name);
}

static int target_set(const struct cli_command *cmd, struct add *add, const char *name)
{
	add->config.target = target_find(name);
	return add->config.target ? CLI_OK
				  : cli_usage(cmd, "--target is qcow2, loop or null, not '%s'", name);
}

/* Words that options take; where an enum stands behind them, in its order. */
static const char *const cache_words[] = {"direct", "buffered", NULL};
static const char *const discard_words[] = {"unmap", "ignore", NULL};
static const char *const enospc_words[] = {"report", "stop", NULL};
static const char *const format_words[] = {"raw", "qcow2", NULL};
static const char *const detect_zeroes_words[] = {
	[QCOW2_DETECT_ZEROES_OFF] = "off",
	[QCOW2_DETECT_ZEROES_ON] = "on",
	[QCOW2_DETECT_ZEROES_UNMAP] = "unmap",
	NULL,
};
static const char *const recovery_words[] = {"reissue", "fail", "off", NULL};
static const enum frontend_recovery recovery_values[] = {
	FRONTEND_RECOVERY_REISSUE,
	FRONTEND_RECOVERY_FAIL,
	FRONTEND_RECOVERY_OFF,
};
static const char *const data_path_words[] = {
	[FRONTEND_DATA_AUTO] = "auto",
	[FRONTEND_DATA_COPY] = "copy",
	[FRONTEND_DATA_USER_COPY] = "user-copy",
	[FRONTEND_DATA_ZERO_COPY] = "zero-copy",
	NULL,
};

/* What the target is told. */
static int target_option_set(const struct cli_command *cmd, struct add *add, int option, const char *value)
{
	struct target_options *o = &add->config.target_options;

	switch (option) {
	case 'r':
		o->read_only = true;
		break;
	case OPT_QUEUES:
		o->queues = cli_number_arg(cmd, "--queues", value, 1, QUEUES_MAX);
		break;
	case OPT_DEPTH:
		o->depth = cli_number_arg(cmd, "--depth", value, 1, DEPTH_MAX);
		break;
	case OPT_CACHE:
		o->direct = cli_word_arg(cmd, "--cache", value, cache_words) == 0;
		break;
	case OPT_CACHE_SIZE:
		o->cache_size_bytes = cli_size_arg(cmd, "--cache-size", value);
		if (!o->cache_size_bytes)
			return cli_usage(cmd, "--cache-size is more than 0");
		break;
	case OPT_WRITEBACK_DELAY:
		o->writeback_delay_ms =
			cli_number_arg(cmd, "--writeback-delay", value, 1, WRITEBACK_DELAY_MS_MAX);
		break;
	case OPT_COMPRESS:
		o->compress = true;
		break;
	case OPT_DISCARD:
		o->discard_ignore = cli_word_arg(cmd, "--discard", value, discard_words) == 1;
		break;
	case OPT_DETECT_ZEROES:
		o->detect_zeroes = (enum qcow2_detect_zeroes)cli_word_arg(cmd, "--detect-zeroes", value,
									  detect_zeroes_words);
		break;
	case OPT_SNAPSHOT:
		if (!value[0] || strlen(value) > QCOW2_SNAPSHOT_NAME_MAX)
			return cli_usage(cmd, "--snapshot is a name of 1 to %d bytes",
					 QCOW2_SNAPSHOT_NAME_MAX);
		o->snapshot = value;
		o->read_only = true;
		break;
	case OPT_SIZE:
		o->size_bytes = cli_size_arg(cmd, "--size", value);
		add->have_size = true;
		break;
	}
	return CLI_OK;
}

static int option_set(const struct cli_command *cmd, struct add *add, int option, const char *value)
{
	struct daemon_config *c = &add->config;

	switch (option) {
	case OPT_FRONTEND:
		return frontend_set(cmd, add, value);
	case OPT_TARGET:
		return target_set(cmd, add, value);
	case OPT_ID:
		c->id = (int)cli_number_arg(cmd, "--id", value, 0, ID_MAX);
		break;
	case OPT_NO_PART_SCAN:
		c->no_part_scan = true;
		break;
	case OPT_NO_LOOP:
		c->no_loop = true;
		break;
	case OPT_FOREGROUND:
		add->foreground = true;
		break;
	case OPT_UNPRIVILEGED:
		c->unprivileged = true;
		break;
	case OPT_RECOVERY:
		add->have_recovery = true;
		c->recovery = recovery_values[cli_word_arg(cmd, "--recovery", value, recovery_words)];
		break;
	case OPT_DATA_PATH:
		c->data_path = (enum frontend_data_path)cli_word_arg(cmd, "--data-path", value,
								     data_path_words);
		break;
	case OPT_MLOCK:
	case OPT_NO_MLOCK:
		c->mlock = option == OPT_MLOCK ? HARDEN_MLOCK_ON : HARDEN_MLOCK_OFF;
		break;
	case OPT_BACKING_DIR:
		return cli_backing_dir(cmd, &add->names, value);
	case OPT_BACKING_ANY:
		add->names.policy.any = true;
		break;
	case OPT_BACKING_FORMAT:
		add->names.policy.backing_format =
			format_words[cli_word_arg(cmd, "--backing-format", value, format_words)];
		break;
	case OPT_ON_ENOSPC:
		c->hold_enospc = cli_word_arg(cmd, "--on-enospc", value, enospc_words) == 1;
		break;
	default:
		return target_option_set(cmd, add, option, value);
	}
	return CLI_OK;
}

/* What the kernel does not give to devices of users other than root, and what it would end. */
static int unprivileged_check(const struct cli_command *cmd, struct add *add)
{
	struct daemon_config *c = &add->config;

	if (!c->unprivileged)
		return CLI_OK;
	if (c->no_loop || (c->frontend && strcmp(c->frontend->name, "ublk") != 0))
		return cli_usage(cmd, "--unprivileged is for --frontend ublk");
	if (add->have_recovery && c->recovery != FRONTEND_RECOVERY_OFF)
		return cli_usage(cmd, "the kernel allows unprivileged devices no recovery: --recovery off");
	if (c->hold_enospc)
		return cli_usage(cmd, "--on-enospc stop is not for unprivileged devices: the kernel kills daemons "
				      "of those that let it wait");
	c->frontend = &frontend_ublk;
	c->recovery = FRONTEND_RECOVERY_OFF;
	return CLI_OK;
}

static int options_check(const struct cli_command *cmd, const struct add *add)
{
	const struct daemon_config *c = &add->config;

	if (c->no_loop && c->frontend && strcmp(c->frontend->name, "fuse") != 0)
		return cli_usage(cmd, "--no-loop is for --frontend fuse");
	if (c->target == &target_null) {
		if (add->image)
			return cli_usage(cmd, "the null target takes no image");
		if (add->have_size && (!c->target_options.size_bytes ||
				       !is_aligned(c->target_options.size_bytes, 512)))
			return cli_usage(cmd, "--size is a multiple of 512, and not 0");
		return CLI_OK;
	}
	if (!add->image)
		return cli_usage(cmd, "no image given");
	if (add->have_size)
		return cli_usage(cmd, "--size is for --target null");
	if (c->target == &target_loop && c->target_options.compress)
		return cli_usage(cmd, "--compress is for --target qcow2");
	if (c->target == &target_loop &&
	    (c->target_options.discard_ignore || c->target_options.detect_zeroes))
		return cli_usage(cmd, "--discard and --detect-zeroes are for --target qcow2");
	if (c->target == &target_loop && c->target_options.snapshot)
		return cli_usage(cmd, "--snapshot is for --target qcow2");
	if (c->target_options.discard_ignore &&
	    c->target_options.detect_zeroes == QCOW2_DETECT_ZEROES_UNMAP)
		return cli_usage(cmd, "--detect-zeroes unmap needs --discard unmap");
	return CLI_OK;
}

/* ---- the image ---- */

static int target_choose(struct add *add, bool qcow2, struct error *err)
{
	if (qcow2)
		add->config.target = &target_qcow2;
	else if (add->config.target_options.snapshot)
		return error_set(err, -EINVAL, "is not a qcow2 image and has no snapshots");
	else if (add->config.target_options.read_only)
		add->config.target = &target_loop;
	else
		return error_set(err, -EINVAL,
				 "is not a qcow2 image; '--target loop' serves it as a raw disk");
	return 0;
}

static int image_prepare(struct add *add, struct error *err)
{
	struct image_nature nature;
	bool qcow2, direct_works;
	struct stat st;
	int ret;

	ret = image_check(add->image, &st, err);
	if (ret)
		return ret;
	add->path = realpath(add->image, NULL);
	if (!add->path)
		return error_set(err, -errno, "%s", strerror(errno));
	add->config.target_options.path = add->path;
	if (cli_names_image(&add->names, add->image, add->path))
		return error_set(err, -ENOMEM, "out of memory");
	ret = image_probe(add->path, &qcow2, &direct_works, err);
	if (!ret && !add->config.target)
		ret = target_choose(add, qcow2, err);
	if (ret)
		return ret;
	/* The target finds out as well, but behind a front end that may have more to complain about. */
	if (!add->config.target_options.read_only && euidaccess(add->path, W_OK))
		return error_set(err, -errno, "cannot open for writing: %s", strerror(errno));
	if (add->config.target_options.direct && !direct_works) {
		cli_note(add->image, "its file system has no direct I/O: the page cache is used");
		add->config.target_options.direct = false;
	}
	if (add->config.target != &target_qcow2)
		return 0;
	nature = image_look(add->path);
	if (nature.needs_no_passphrase && add->config.target_options.passphrase)
		return error_set(err, -EINVAL, "is not encrypted, but a passphrase is given");
	if (nature.aes && add->config.target_options.read_only)
		cli_note(add->image, "its encryption (AES) is not secure, and a wrong passphrase is not noticed");
	if (nature.dirty && !add->config.target_options.read_only)
		cli_note(add->image, "it was not closed properly: its refcounts are repaired first");
	if (!add->config.target_options.read_only)
		image_note_bitmaps(add->image, add->path);
	return 0;
}

/* ---- the daemon's messages ---- */

static void note_print(struct daemon_report *report, const char *text)
{
	cli_note(NULL, "%s", text);
}

static int usable_print(struct daemon_report *report, const char *device)
{
	puts(device);
	return fflush(stdout) ? -errno : 0;
}

static int add_run(struct add *add, struct error *err)
{
	struct daemon_report report = {.note = note_print, .usable = usable_print};
	int ret;

	if (add->image) {
		ret = image_prepare(add, err);
		if (ret)
			return ret;
	}
	return add->foreground ? daemon_run(&add->config, &report, err)
			       : daemon_spawn(&add->config, &report, err);
}

/* An error names the image as the user did, and only once. */
static int add_fail(const struct add *add, struct error *err, int ret)
{
	size_t len = add->path ? strlen(add->path) : 0;

	if (len && strncmp(err->text, add->path, len) == 0 && err->text[len] == ':')
		return cli_fail(NULL, err, ret);
	return cli_fail(add->image, err, ret);
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	struct add add = {.config = {.id = -1, .recovery = FRONTEND_RECOVERY_REISSUE}};
	struct error err = {0};
	int option, ret, status;

	add.config.target_options = (struct target_options){
		.direct = true,
		.names = &add.names.policy,
		.queues = QUEUES_DEFAULT,
		.depth = DEPTH_DEFAULT,
	};
	while ((option = cli_option(cmd, argc, argv)) != -1) {
		status = cli_is_key_option(option)
				 ? cli_key_set(cmd, &add.config.target_options.passphrase, option, optarg)
				 : option_set(cmd, &add, option, optarg);
		if (status)
			return status;
	}
	if (argc - optind > 1)
		return cli_usage(cmd, "one image at a time");
	add.image = argv[optind];
	status = options_check(cmd, &add);
	if (!status)
		status = unprivileged_check(cmd, &add);
	if (status)
		return status;

	ret = add_run(&add, &err);
	status = ret ? add_fail(&add, &err, ret) : CLI_OK;
	free(add.path);
	cli_names_free(&add.names);
	secret_destroy(add.config.target_options.passphrase);
	return status;
}

/* The help is laid out as it is printed. */
/* clang-format off */
const struct cli_command cli_command_add = {
	.name = "add",
	.summary = "attach an image as a block device",
	.synopsis = "[OPTION]... IMAGE\n       ublk-qcow2 add --target null [OPTION]...",
	.help = "Attaches IMAGE, prints the path of its block device, and returns when that is usable; a daemon\n"
		"serves it in the background.\n"
		"\n"
		"  -r, --read-only          attach read-only\n"
		"      --snapshot NAME      attach what the disk was at a snapshot, by id or name; read-only\n"
		"      --frontend FRONTEND  ublk, fuse, or auto: ublk if the host has it, else fuse (auto)\n"
		"      --target TARGET      what IMAGE is: qcow2; loop, a raw disk; null, a disk without a\n"
		"                           memory. Default: by content; raw is guessed with --read-only alone\n"
		"      --queues N           queues, each with a thread (ublk: one for each CPU, at most 4;\n"
		"                           fuse: 1)\n"
		"      --depth N            requests in flight in each queue (128)\n"
		"      --data-path PATH     ublk: copy: the kernel copies; user-copy: the daemon does; zero-copy:\n"
		"                           nobody, where that is possible; auto: zero-copy where the kernel has\n"
		"                           it (6.16) and it pays, else copy (auto)\n"
		"      --id N               the device's number, such as 3 in /dev/ublkb3 (any)\n"
		"      --cache MODE         direct: past the page cache where the file system can;\n"
		"                           buffered: through it (direct)\n"
		"      --cache-size BYTES   bound of the memory for the image's metadata\n"
		"      --writeback-delay MS how long changed metadata stays in memory without a flush (1000)\n"
		"      --recovery POLICY    what a killed daemon means for the device (ublk, in the background):\n"
		"                           reissue: another one goes on; fail: the same, and I/O fails until then;\n"
		"                           off: it goes away (reissue)\n"
		"      --compress           write full clusters that are new compressed: for filling an image\n"
		"      --discard MODE       unmap: DISCARD gives clusters and the file's space back; ignore: neither\n"
		"                           DISCARD nor zeros written do (unmap)\n"
		"      --detect-zeroes MODE a write of zeros is: off: a write; on: a WRITE_ZEROES that keeps the\n"
		"                           space; unmap: one that gives it back (off)\n"
		"      --on-enospc POLICY   what meets the end of the image's space: report: fails; stop: is held\n"
		"                           until there is room (see 'resume') (report)\n"
		"      --unprivileged       ublk: a device of your own, if you are not root; needs the udev rule that\n"
		"                           comes with this program, and does without recovery and zero copy\n"
		"      --backing-dir DIR    names in IMAGE (backing file, data file) may also lead to DIR and below,\n"
		"                           not only to IMAGE's own folder and below; may be repeated\n"
		"      --backing-any        names in IMAGE may lead anywhere\n"
		"      --backing-format FMT raw or qcow2: for images that do not say what their backing file is\n"
		"      --no-part-scan       do not look for partitions on the device\n"
		"      --mlock              fail if the daemon's memory cannot be locked; the default is to lock it\n"
		"                           where the limit allows that\n"
		"      --no-mlock           do not lock it\n"
		"      --key-file FILE      the passphrase of an encrypted image is all of FILE, to the last byte (a\n"
		"                           newline counts)\n"
		"      --key-fd N           ... is what can be read from this descriptor\n"
		"      --key-credential NAME  ... is this file in systemd's $CREDENTIALS_DIRECTORY\n"
		"      --no-loop            fuse: leave a raw file, without a loop device on it; needs no root\n"
		"      --size BYTES         size of the null target\n"
		"      --foreground         stay, and log to standard error\n"
		"  -h, --help               this text\n",
	.short_options = "r",
	.long_options = long_options,
	.run = run,
};
/* clang-format on */
