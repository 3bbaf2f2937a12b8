// SPDX-License-Identifier: MIT
/*
 * create.c: a new, empty image.
 *
 * The image is written under another name in the same folder and takes its own name when it is whole
 * and durable: whatever fails, and whenever, FILE is either what it was before or a good image.
 * Exceptions are an empty file and a block device, which are written in place (somebody prepared them
 * with an owner and a place of their own); a failure leaves the file empty again.
 *
 * What is there already is not overwritten without --force, and not at all while somebody has it open:
 * QEMU's image locks, which this program's devices hold as well, are taken first and kept until the
 * new image is in place.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"
#include "base/secret.h"
#include "base/size.h"
#include "cli/cli.h"
#include "cli/hints.h"
#include "cli/image.h"
#include "cli/key.h"
#include "qcow2.h"
#include "storage/storage.h"

enum { OPT_FORCE = CLI_OPT_FIRST };

static const struct option long_options[] = {
	{"quiet", no_argument, NULL, 'q'},
	{"force", no_argument, NULL, OPT_FORCE},
	CLI_KEY_OPTIONS,
	CLI_LONG_HELP,
	{0},
};

struct create {
	const char *file;
	char *path; /* FILE with symbolic links followed */
	bool quiet, force;
	bool have_size, have_encrypt;
	bool old_encryption; /* what qemu-img has had before encrypt.format */
	/* As given, for the output; NULL: not given. */
	const char *compat, *preallocation;
	bool unsafe; /* the backing file is not looked at */
	bool data_file_made;
	struct file_hints hints; /* for the image, and for its data file */
	struct qcow2_create_options options;
	struct secret *key; /* the passphrase */
};

/* ---- -o KEY=VALUE ---- */

static const char key_help[] =
	"Supported options:\n"
	"  backing_file=<str>     - name of the file that this one is an overlay of\n"
	"  backing_fmt=<str>      - its format: qcow2 or raw\n"
	"  cluster_size=<size>    - cluster size, a power of two from 512 to 2M (64k)\n"
	"  compat=<str>           - compatibility level: 0.10 or v2, 1.1 or v3 (1.1)\n"
	"  compression_type=<str> - of clusters that are compressed: zlib or zstd (zlib)\n"
	"  data_file=<str>        - name of the file that the data are in, which is made\n"
	"  data_file_raw=<bool>   - that file alone is a raw image of the disk: on or off (off)\n"
	"  encrypt.format=<str>   - luks: the content is encrypted; needs --key-file or the like\n"
	"  encrypt.cipher-alg=<str> - aes-128, -192, -256, serpent-..., twofish-..., cast5-128 (aes-256)\n"
	"  encrypt.cipher-mode=<str> - xts, cbc, ctr or ecb (xts)\n"
	"  encrypt.ivgen-alg=<str> - plain64, plain or essiv (plain64)\n"
	"  encrypt.ivgen-hash-alg=<str> - with essiv: sha256 or md5 (sha256)\n"
	"  encrypt.hash-alg=<str> - sha1, sha224, sha256, sha384, sha512, md5 or ripemd160 (sha256)\n"
	"  encrypt.iter-time=<num> - milliseconds that a passphrase takes to be tried (2000)\n"
	"  extended_l2=<bool>     - 32 subclusters in each cluster: on or off (off)\n"
	"  extent_size_hint=<size> - XFS: allocate the file in pieces of this size; 0: do not (1M)\n"
	"  lazy_refcounts=<bool>  - postpone refcount updates: on or off (off)\n"
	"  nocow=<bool>           - btrfs: write the file in place, without copies: on or off (off)\n"
	"  preallocation=<str>    - off, metadata, falloc or full (off)\n"
	"  refcount_bits=<num>    - width of a reference count, a power of two from 1 to 64 (16)\n"
	"  size=<size>            - virtual disk size\n";

static const char *const preallocation_names[] = {
	[QCOW2_PREALLOC_OFF] = "off",
	[QCOW2_PREALLOC_METADATA] = "metadata",
	[QCOW2_PREALLOC_FALLOC] = "falloc",
	[QCOW2_PREALLOC_FULL] = "full",
};

static int bool_parse(const char *text, bool *out)
{
	static const char *const yes[] = {"on", "yes", "true", "y"};
	static const char *const no[] = {"off", "no", "false", "n"};

	for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
		if (strcmp(text, yes[i]) == 0 || strcmp(text, no[i]) == 0) {
			*out = strcmp(text, yes[i]) == 0;
			return 0;
		}
	}
	return -EINVAL;
}

static int compat_parse(const char *text, unsigned *version)
{
	if (strcmp(text, "0.10") == 0 || strcmp(text, "v2") == 0)
		*version = 2;
	else if (strcmp(text, "1.1") == 0 || strcmp(text, "v3") == 0)
		*version = 3;
	else
		return -EINVAL;
	return 0;
}

static int preallocation_parse(const char *text, enum qcow2_preallocation *out)
{
	for (size_t i = 0; i < ARRAY_LEN(preallocation_names); i++) {
		if (strcmp(text, preallocation_names[i]) == 0) {
			*out = (enum qcow2_preallocation)i;
			return 0;
		}
	}
	return -EINVAL;
}

static int size_set(const struct cli_command *cmd, struct create *create, uint64_t bytes)
{
	if (create->have_size && create->options.size_bytes != bytes)
		return cli_usage(cmd, "two different sizes are given");
	create->have_size = true;
	create->options.size_bytes = bytes;
	return CLI_OK;
}

/* encrypt.KEY */
static int encrypt_set(const struct cli_command *cmd, struct create *create, const char *key,
		       const char *value)
{
	struct qcow2_luks_options *l = &create->options.luks_options;
	const struct {
		const char *key, **value;
	} names[] = {
		{"cipher-alg", &l->cipher_alg},		{"cipher-mode", &l->cipher_mode},
		{"ivgen-alg", &l->ivgen_alg},		{"ivgen-hash-alg", &l->ivgen_hash_alg},
		{"hash-alg", &l->hash_alg},
	};

	if (strcmp(key, "key-secret") == 0)
		return cli_usage(cmd, "encrypt.key-secret is qemu-img's; the passphrase is given by --key-file");
	if (!value)
		return cli_usage(cmd, "option 'encrypt.%s' needs a value", key);
	create->have_encrypt = true;
	if (strcmp(key, "format") == 0) {
		if (strcmp(value, "luks") != 0)
			return cli_error(create->file, "encrypt.format '%s' is not supported: luks is", value);
		create->options.luks = true;
		return CLI_OK;
	}
	if (strcmp(key, "iter-time") == 0) {
		l->iter_time_ms = cli_number_arg(cmd, "encrypt.iter-time", value, 1, 60000);
		return CLI_OK;
	}
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (strcmp(key, names[i].key) == 0) {
			*names[i].value = value;
			return CLI_OK;
		}
	}
	return cli_usage(cmd, "unknown option 'encrypt.%s'; '-o help' lists them", key);
}

static int encrypt_check(const struct cli_command *cmd, const struct create *create)
{
	if (create->old_encryption)
		return cli_error(create->file, "encryption=on is the old AES method, which is not supported: "
					       "encrypt.format=luks is");
	if (create->have_encrypt && !create->options.luks)
		return cli_usage(cmd, "encrypt.format=luks is missing");
	if (create->options.luks && !create->key)
		return cli_usage(cmd, "an encrypted image needs a passphrase: --key-file, --key-fd or "
				      "--key-credential");
	if (create->key && !create->options.luks)
		return cli_usage(cmd, "a passphrase is given, but not -o encrypt.format=luks");
	return CLI_OK;
}

static int key_set(const struct cli_command *cmd, struct create *create, const char *key,
		   const char *value)
{
	struct qcow2_create_options *o = &create->options;
	const struct {
		const char *key;
		bool *out;
	} bools[] = {{"extended_l2", &o->extended_l2},
		     {"lazy_refcounts", &o->lazy_refcounts},
		     {"data_file_raw", &o->data_file_raw},
		     {"nocow", &create->hints.nocow},
		     {"encryption", &create->old_encryption}};
	const struct {
		const char *key;
		const char **out;
	} names[] = {{"backing_file", &o->backing_file},
		     {"backing_fmt", &o->backing_format},
		     {"data_file", &o->data_file}};
	uint64_t bytes;
	int ret = 0;

	if (strncmp(key, "encrypt.", 8) == 0)
		return encrypt_set(cmd, create, key + 8, value);
	for (size_t i = 0; i < ARRAY_LEN(bools); i++) {
		if (strcmp(key, bools[i].key) != 0)
			continue;
		ret = bool_parse(value ? value : "on", bools[i].out);
		return ret ? cli_usage(cmd, "%s is 'on' or 'off'", key) : CLI_OK;
	}
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (strcmp(key, names[i].key) != 0)
			continue;
		*names[i].out = value;
		return value ? CLI_OK : cli_usage(cmd, "option '%s' needs a value", key);
	}
	if (strcmp(key, "size") && strcmp(key, "compat") && strcmp(key, "cluster_size") &&
	    strcmp(key, "refcount_bits") && strcmp(key, "preallocation") &&
	    strcmp(key, "compression_type") && strcmp(key, "extent_size_hint"))
		return cli_usage(cmd, "unknown option '%s'; '-o help' lists them", key);
	if (!value)
		return cli_usage(cmd, "option '%s' needs a value", key);

	if (strcmp(key, "size") == 0)
		return size_set(cmd, create, cli_size_arg(cmd, key, value));
	if (strcmp(key, "compression_type") == 0) {
		o->zstd = strcmp(value, "zstd") == 0;
		return o->zstd || strcmp(value, "zlib") == 0
			       ? CLI_OK
			       : cli_usage(cmd, "compression_type is zlib or zstd");
	}
	if (strcmp(key, "compat") == 0) {
		create->compat = value;
		ret = compat_parse(value, &o->version);
		return ret ? cli_usage(cmd, "compat is 0.10, 1.1, v2 or v3") : CLI_OK;
	}
	if (strcmp(key, "preallocation") == 0) {
		create->preallocation = value;
		ret = preallocation_parse(value, &o->preallocation);
		return ret ? cli_usage(cmd, "preallocation is off, metadata, falloc or full")
			   : CLI_OK;
	}
	if (strcmp(key, "refcount_bits") == 0) {
		o->refcount_bits = cli_number_arg(cmd, key, value, 1, 64);
		return CLI_OK;
	}
	bytes = cli_size_arg(cmd, key, value);
	if (strcmp(key, "extent_size_hint") == 0) {
		create->hints.extent_size_given = true;
		create->hints.extent_size_bytes = (uint32_t)bytes;
		return bytes > UINT32_MAX ? cli_usage(cmd, "extent_size_hint is less than 4G") : CLI_OK;
	}
	if (!bytes || bytes > UINT32_MAX)
		return cli_usage(cmd, "cluster_size is a power of two from 512 to 2M");
	o->cluster_bytes = (uint32_t)bytes;
	return CLI_OK;
}

/* Like strsep() at commas, of which two stand for one in a value, as in qemu-img. */
static char *item_take(char **list)
{
	char *item = *list, *to = item, *from = item;

	if (!item)
		return NULL;
	while (*from && (*from != ',' || from[1] == ',')) {
		from += *from == ',';
		*to++ = *from++;
	}
	*list = *from ? from + 1 : NULL;
	*to = '\0';
	return item;
}

static int keys_parse(const struct cli_command *cmd, struct create *create, char *list)
{
	char *item;

	while ((item = item_take(&list))) {
		char *value = strchr(item, '=');
		int status;

		if (value)
			*value++ = '\0';
		if (!*item)
			return cli_usage(cmd, "-o: an option is empty");
		status = key_set(cmd, create, item, value);
		if (status)
			return status;
	}
	return CLI_OK;
}

/* ---- the unfinished file, which a signal must not leave behind ---- */

static char unfinished[PATH_MAX];

static void signal_handle(int sig)
{
	unlink(unfinished);
	/* SA_RESETHAND: this ends the program in the default way. */
	raise(sig);
}

static void signals_catch(void)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXFSZ, SIGXCPU};
	struct sigaction action = {.sa_handler = signal_handle, .sa_flags = SA_RESETHAND};

	for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
		struct sigaction old;

		if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			sigaction(signals[i], &action, NULL);
	}
}

/* ---- writing ---- */

/* As one who writes an image. `qemu-img info -U` may look on; nobody else may have it open. */
static int image_lock(struct storage *storage, struct error *err)
{
	return storage_lock(storage,
			    STORAGE_PERM_CONSISTENT_READ | STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE,
			    STORAGE_PERM_CONSISTENT_READ | STORAGE_PERM_WRITE_UNCHANGED, err);
}

/* Into an empty file or a block device. */
static int write_in_place(const struct create *create, struct storage *storage, struct error *err)
{
	int ret;

	file_hints_apply(storage, &create->hints);
	ret = qcow2_create(storage, &create->options, err);
	if (ret && !storage->fixed_size && storage_truncate(storage, 0))
		cli_note(create->file, "cannot be emptied again");
	return ret;
}

static int folder_sync(const char *path)
{
	char *copy = strdup(path);
	int fd, ret = 0;
	char *slash;

	if (!copy)
		return -ENOMEM;
	slash = strrchr(copy, '/');
	slash[slash == copy] = '\0';
	fd = open(copy, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	free(copy);
	if (fd < 0)
		return -errno;
	/* A file system that cannot sync a folder says EINVAL. */
	if (fsync(fd) && errno != EINVAL)
		ret = -errno;
	close(fd);
	return ret;
}

/* Gives the finished file its name; over an old one if @old, else only where there is none. */
static int name_take(const struct create *create, const struct stat *old, struct error *err)
{
	int ret = 0;

	if (old) {
		/* The owner is kept if we may; the mode is not widened if we may not. */
		if (chown(unfinished, old->st_uid, old->st_gid) == 0)
			ret = chmod(unfinished, old->st_mode & 07777);
		else
			ret = chmod(unfinished, old->st_mode & 0700);
		if (ret == 0)
			ret = rename(unfinished, create->path);
	} else {
		ret = renameat2(AT_FDCWD, unfinished, AT_FDCWD, create->path, RENAME_NOREPLACE);
		if (ret && errno == EINVAL) {
			/* A file system without that flag: link() does not replace either. */
			ret = link(unfinished, create->path);
			if (ret == 0)
				unlink(unfinished);
		}
	}
	if (ret) {
		ret = -errno;
		return error_set(err, ret, "%s",
				 ret == -EEXIST ? "was made by somebody else meanwhile"
						: strerror(-ret));
	}
	ret = folder_sync(create->path);
	return ret ? error_set(err, ret, "cannot make the name durable: %s", strerror(-ret)) : 0;
}

static int write_aside(const struct create *create, const struct stat *old, struct error *err)
{
	struct storage_file_options options = {.create = true};
	struct storage *storage = NULL;
	int ret;

	if (snprintf(unfinished, sizeof(unfinished), "%s.%d.new", create->path, (int)getpid()) >=
	    (int)sizeof(unfinished))
		return error_set(err, -ENAMETOOLONG, "%s", strerror(ENAMETOOLONG));
	signals_catch();
	ret = storage_file_open(&storage, unfinished, &options, NULL);
	if (ret)
		return error_set(err, ret, "cannot be made in its folder: %s", strerror(-ret));
	file_hints_apply(storage, &create->hints);
	ret = image_lock(storage, err);
	if (!ret)
		ret = qcow2_create(storage, &create->options, err);
	if (!ret)
		ret = name_take(create, old, err);
	storage_close(storage);
	if (ret)
		unlink(unfinished);
	return ret;
}

/* Over something that exists: it is locked while it is looked at and replaced. */
static int create_over(const struct create *create, const struct stat *st, struct error *err)
{
	struct storage_file_options options = {.exclusive_device = true};
	struct storage *storage = NULL;
	int ret;

	ret = storage_file_open(&storage, create->path, &options, err);
	if (ret)
		return ret;
	ret = image_lock(storage, err);
	if (!ret && st->st_size == 0 && S_ISREG(st->st_mode))
		ret = write_in_place(create, storage, err);
	else if (!ret && !create->force)
		ret = error_set(err, -EEXIST, "exists already; --force replaces it");
	else if (!ret && S_ISBLK(st->st_mode))
		ret = write_in_place(create, storage, err);
	else if (!ret)
		ret = write_aside(create, st, err);
	storage_close(storage);
	return ret;
}

/* ---- the files that the image names ---- */

/* The user names it, so it may lie anywhere; and by no format but the one that is given. */
static int backing_size(const struct create *create, uint64_t *size_bytes, struct error *err)
{
	const struct qcow2_create_options *o = &create->options;
	const struct names_policy any = {.any = true};
	const struct names_options options = {.what = "backing file", .read_only = true};
	struct qcow2_info *info;
	struct storage *st;
	int ret;

	if (!o->backing_format)
		return error_set(err, -EINVAL, "a backing file needs its format: -F");
	if (strcmp(o->backing_format, "raw") != 0 && strcmp(o->backing_format, "qcow2") != 0)
		return error_set(err, -EINVAL, "a backing file's format is raw or qcow2, not '%s'",
				 o->backing_format);
	ret = names_open(&st, NULL, create->file, o->backing_file, &any, &options, err);
	if (ret)
		return ret;
	*size_bytes = st->size_bytes;
	if (strcmp(o->backing_format, "qcow2") == 0) {
		info = malloc(sizeof(*info));
		ret = info ? qcow2_info(st, info, err) : error_set(err, -ENOMEM, "out of memory");
		*size_bytes = ret ? 0 : info->size_bytes;
		free(info);
	}
	storage_close(st);
	return ret;
}

static int backing_check(struct create *create, struct error *err)
{
	struct qcow2_create_options *o = &create->options;
	uint64_t size_bytes = 0;
	int ret = 0;

	if (!o->backing_file && o->backing_format)
		return error_set(err, -EINVAL, "a backing file's format, but no backing file");
	if (o->backing_file && !create->unsafe)
		ret = backing_size(create, &size_bytes, err);
	if (!ret && !create->have_size && !size_bytes)
		ret = error_set(err, -EINVAL, "no size given");
	if (!ret && !create->have_size)
		o->size_bytes = size_bytes;
	return ret;
}

/* A relative name is relative to the image, as it will be for who attaches it. */
static char *data_file_path(const struct create *create)
{
	const char *slash = strrchr(create->file, '/'), *name = create->options.data_file;
	char *path;

	if (name[0] == '/' || !slash)
		return strdup(name);
	return asprintf(&path, "%.*s%s", (int)(slash - create->file + 1), create->file, name) < 0 ? NULL
													: path;
}

static int data_file_fill(const struct create *create, struct storage *st, struct error *err)
{
	const struct qcow2_create_options *o = &create->options;
	uint64_t bytes = align_up(o->size_bytes, 512);
	int ret = image_lock(st, err);

	if (ret)
		return ret;
	if (st->fixed_size && st->size_bytes < bytes)
		return error_set(err, -ENOSPC, "%s: is smaller than the disk", st->name);
	if (!st->fixed_size)
		ret = storage_truncate(st, 0);
	if (!ret)
		file_hints_apply(st, &create->hints);
	if (!ret && !st->fixed_size)
		ret = storage_truncate(st, bytes);
	/* what lies on a device would be the disk's */
	if (!ret && (o->preallocation >= QCOW2_PREALLOC_FALLOC || (st->fixed_size && o->preallocation)))
		ret = storage_zero(st, 0, bytes);
	if (!ret)
		ret = storage_sync(st);
	return ret ? error_set(err, ret, "%s: %s", st->name, strerror(-ret)) : 0;
}

/* Made before the image that names it. One that is there already is lost only with --force. */
static int data_file_make(struct create *create, char *path, struct error *err)
{
	struct storage_file_options options = {.create = true, .exclusive_device = true};
	struct storage *st;
	struct stat image, data;
	int ret;

	if (!stat(path, &data)) {
		if (!stat(create->file, &image) && image.st_dev == data.st_dev && image.st_ino == data.st_ino)
			return error_set(err, -EINVAL, "the data file is the image itself");
		if (!create->force && !(S_ISREG(data.st_mode) && data.st_size == 0))
			return error_set(err, -EEXIST, "%s: exists already; --force replaces it", path);
		options.create = false;
	}
	ret = storage_file_open(&st, path, &options, err);
	if (ret)
		return ret;
	create->data_file_made = options.create;
	ret = data_file_fill(create, st, err);
	storage_close(st);
	return ret;
}

static int image_make(struct create *create, struct error *err)
{
	struct stat st;
	int ret;

	if (stat(create->file, &st) && errno == ENOENT && lstat(create->file, &st)) {
		if (asprintf(&create->path, "%s%s", strchr(create->file, '/') ? "" : "./",
			     create->file) < 0)
			return error_set(err, -ENOMEM, "out of memory");
		return write_aside(create, NULL, err);
	}
	ret = image_check(create->file, &st, err);
	if (ret)
		return ret;
	create->path = realpath(create->file, NULL);
	if (!create->path)
		return error_set(err, -errno, "%s", strerror(errno));
	return create_over(create, &st, err);
}

static int create_run(struct create *create, struct error *err)
{
	struct qcow2_create_options *o = &create->options;
	char *data_path = NULL;
	int ret = backing_check(create, err);

	/* "The data file can be read without the map": so the map must have all of it, as with qemu-img */
	if (o->data_file_raw && o->preallocation == QCOW2_PREALLOC_OFF)
		o->preallocation = QCOW2_PREALLOC_METADATA;
	if (!ret)
		ret = qcow2_create_validate(o, err);
	if (!ret && o->data_file) {
		data_path = data_file_path(create);
		ret = data_path ? data_file_make(create, data_path, err)
				: error_set(err, -ENOMEM, "out of memory");
	}
	if (!ret)
		ret = image_make(create, err);
	if (ret && create->data_file_made)
		unlink(data_path);
	free(data_path);
	return ret;
}

/* qemu-img's line, with the values that took effect. */
static void formatting_print(const struct create *create)
{
	const struct qcow2_create_options *o = &create->options;

	fputs("Formatting '", stdout);
	cli_print_name(stdout, create->file);
	printf("', fmt=qcow2%s cluster_size=%" PRIu32 " extended_l2=%s", o->luks ? " encrypt.format=luks" : "", o->cluster_bytes,
	       o->extended_l2 ? "on" : "off");
	if (create->preallocation)
		printf(" preallocation=%s", create->preallocation);
	printf(" compression_type=%s size=%" PRIu64, o->zstd ? "zstd" : "zlib", o->size_bytes);
	if (o->backing_file) {
		fputs(" backing_file=", stdout);
		cli_print_name(stdout, o->backing_file);
		printf(" backing_fmt=%s", o->backing_format);
	}
	if (o->data_file) {
		fputs(" data_file=", stdout);
		cli_print_name(stdout, o->data_file);
	}
	if (o->data_file_raw)
		fputs(" data_file_raw=on", stdout);
	if (create->compat)
		printf(" compat=%s", create->compat);
	printf(" lazy_refcounts=%s refcount_bits=%u", o->lazy_refcounts ? "on" : "off", o->refcount_bits);
	if (create->hints.nocow)
		fputs(" nocow=on", stdout);
	if (create->hints.extent_size_given)
		printf(" extent_size_hint=%" PRIu32, create->hints.extent_size_bytes);
	putchar('\n');
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	struct create create = {
		.options = {.cluster_bytes = 65536, .refcount_bits = 16, .version = 3},
		.hints = {.extent_size_bytes = FILE_HINTS_EXTENT_BYTES},
	};
	struct error err = {0};
	char *keys[64];
	unsigned key_lists = 0;
	int option, ret, status;

	while ((option = cli_option(cmd, argc, argv)) != -1) {
		if (cli_is_key_option(option)) {
			status = cli_key_set(cmd, &create.key, option, optarg);
			if (status)
				return status;
			create.options.passphrase = create.key;
		}
		switch (option) {
		case 'o':
			if (strcmp(optarg, "help") == 0 || strcmp(optarg, "?") == 0) {
				fputs(key_help, stdout);
				return CLI_OK;
			}
			if (key_lists == ARRAY_LEN(keys))
				return cli_usage(cmd, "too many -o");
			keys[key_lists++] = optarg;
			break;
		case 'f':
			if (strcmp(optarg, "qcow2") != 0)
				return cli_usage(cmd, "the only format is qcow2");
			break;
		case 'q':
			create.quiet = true;
			break;
		case OPT_FORCE:
			create.force = true;
			break;
		case 'b':
			create.options.backing_file = optarg;
			break;
		case 'F':
			create.options.backing_format = optarg;
			break;
		case 'u':
			create.unsafe = true;
			break;
		}
	}
	if (optind == argc)
		return cli_usage(cmd, "no file given");
	if (argc - optind > 2)
		return cli_usage(cmd, "too many arguments: a file and a size are wanted");
	create.file = argv[optind];
	for (unsigned i = 0; i < key_lists; i++) {
		status = keys_parse(cmd, &create, keys[i]);
		if (status)
			return status;
	}
	status = encrypt_check(cmd, &create);
	if (status)
		return status;
	if (optind + 1 < argc) {
		status = size_set(cmd, &create, cli_size_arg(cmd, "size", argv[optind + 1]));
		if (status)
			return status;
	}
	if (!create.have_size && !create.options.backing_file)
		return cli_usage(cmd, "no size given");

	ret = create_run(&create, &err);
	free(create.path);
	secret_destroy(create.key);
	if (ret)
		return cli_fail(create.file, &err, ret);
	if (!create.quiet)
		formatting_print(&create);
	return CLI_OK;
}

/* The help is laid out as it is printed. */
/* clang-format off */
const struct cli_command cli_command_create = {
	.name = "create",
	.summary = "make a new, empty image",
	.synopsis = "[-o KEY=VALUE,...] [-b FILE -F FORMAT [-u]] [--force] FILE [SIZE]",
	.help = "Makes a qcow2 image of SIZE bytes; b, k, M, G, T, P and E stand for powers of 1024, and 1.5G\n"
		"is a size. An existing file is refused unless it is empty, or --force is given; one that is\n"
		"in use is refused always.\n"
		"\n"
		"  -o KEY=VALUE,...  '-o help' lists the keys\n"
		"  -b FILE           the backing file; a relative name begins in the folder of the image\n"
		"  -F FORMAT         its format: qcow2 or raw. SIZE may be left out: it is the backing file's\n"
		"  -u                do not look at the backing file, which need not be there\n"
		"  --key-file FILE   for encrypt.format=luks: the passphrase is all of FILE, to the last byte\n"
		"  --key-fd N        ... is what can be read from this descriptor\n"
		"  --key-credential NAME  ... is this file in systemd's $CREDENTIALS_DIRECTORY\n"
		"  --force           replace an existing image; it is lost\n"
		"  -f qcow2          accepted for qemu-img's sake\n"
		"  -q, --quiet       print nothing but errors\n"
		"  -h, --help        this text\n",
	.short_options = "o:f:qb:F:u",
	.long_options = long_options,
	.confined = true,
	.run = run,
};
/* clang-format on */
