// SPDX-License-Identifier: MIT
/*
 * info.c: what an image is, in qemu-img's words.
 *
 * Field names and their order are those of `qemu-img info`, so that scripts read either. Only the
 * named file is opened, read-only and without locks: a name inside the image may lead anywhere, and is
 * printed, escaped, and never followed. What qemu-img takes from the snapshots themselves is left out;
 * their number is given instead.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "base/math.h"
#include "base/size.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/status.h"
#include "qcow2.h"
#include "storage/storage.h"

enum { OPT_OUTPUT = CLI_OPT_FIRST, OPT_JSON };

static const struct option long_options[] = {
	{"json", no_argument, NULL, OPT_JSON},
	{"output", required_argument, NULL, OPT_OUTPUT},
	{"force-share", no_argument, NULL, 'U'},
	CLI_LONG_HELP,
	{0},
};

struct bitmap {
	char *name;
	uint64_t granularity_bytes;
	bool in_use, enabled;
};

struct image {
	const char *filename;
	uint64_t actual_bytes;
	struct qcow2_info info;
	struct bitmap *bitmaps;
	size_t bitmaps_count;
	bool bitmaps_broken; /* they cannot be listed */
	char *backing_path; /* what the backing file's name leads to from here; NULL: no backing file */
};

/* Whether QEMU takes @name for "protocol:rest" and not for a path. */
static bool has_protocol(const char *name)
{
	size_t len = strcspn(name, ":/");

	return name[len] == ':';
}

/* A relative backing name is relative to the image's folder. */
static char *backing_path(const char *filename, const char *backing)
{
	const char *slash = strrchr(filename, '/');
	char *path;

	if (!slash || backing[0] == '/' || has_protocol(backing))
		return strdup(backing);
	if (asprintf(&path, "%.*s%s", (int)(slash - filename + 1), filename, backing) < 0)
		return NULL;
	return path;
}

static void bitmap_add(void *arg, const struct qcow2_bitmap *bitmap)
{
	struct image *image = arg;
	struct bitmap *grown = realloc(image->bitmaps, (image->bitmaps_count + 1) * sizeof(*grown));
	char *name = strdup(bitmap->name);

	if (grown)
		image->bitmaps = grown;
	if (!grown || !name) {
		image->bitmaps_broken = true;
		free(name);
		return;
	}
	grown[image->bitmaps_count++] = (struct bitmap){.name = name,
							 .granularity_bytes = bitmap->granularity_bytes,
							 .in_use = bitmap->in_use,
							 .enabled = bitmap->enabled};
}

static void image_free(struct image *image)
{
	for (size_t i = 0; i < image->bitmaps_count; i++)
		free(image->bitmaps[i].name);
	free(image->bitmaps);
	free(image->backing_path);
}

static int image_read(struct image *image, const char *filename, struct error *err)
{
	struct storage_file_options options = {.read_only = true};
	struct storage *storage = NULL;
	struct stat st;
	int ret;

	image->filename = filename;
	ret = image_check(filename, &st, err);
	if (ret)
		return ret;
	image->actual_bytes = (uint64_t)st.st_blocks * 512;
	ret = storage_file_open(&storage, filename, &options, err);
	if (ret)
		return ret;
	ret = qcow2_info(storage, &image->info, err);
	/* what is broken in a list is no reason to say nothing of the rest */
	if (!ret && image->info.bitmaps && qcow2_bitmap_list(storage, bitmap_add, image, NULL))
		image->bitmaps_broken = true;
	storage_close(storage);
	if (ret)
		return ret;
	if (image->info.backing_file[0]) {
		image->backing_path = backing_path(filename, image->info.backing_file);
		if (!image->backing_path)
			return error_set(err, -ENOMEM, "out of memory");
	}
	return 0;
}

/* ---- human ---- */

static void field_name(const char *label, const char *name)
{
	printf("%s: ", label);
	cli_print_name(stdout, name);
	putchar('\n');
}

static const char *truth(bool value)
{
	return value ? "true" : "false";
}

static void backing_print(const struct image *image)
{
	const struct qcow2_info *info = &image->info;

	fputs("backing file: ", stdout);
	cli_print_name(stdout, info->backing_file);
	if (strcmp(info->backing_file, image->backing_path) != 0) {
		fputs(" (actual path: ", stdout);
		cli_print_name(stdout, image->backing_path);
		putchar(')');
	}
	putchar('\n');
	if (info->backing_format[0])
		field_name("backing file format", info->backing_format);
}

/* As qemu-img prints lists. */
static void bitmaps_print(const struct image *image)
{
	if (image->bitmaps_broken)
		puts("    bitmaps: present, but they cannot be listed");
	else
		puts("    bitmaps:");
	for (size_t i = 0; i < image->bitmaps_count && !image->bitmaps_broken; i++) {
		const struct bitmap *b = &image->bitmaps[i];
		unsigned flags = 0;

		printf("        [%zu]:\n            flags:\n", i);
		if (b->in_use)
			printf("                [%u]: in-use\n", flags++);
		if (b->enabled)
			printf("                [%u]: auto\n", flags++);
		field_name("            name", b->name);
		printf("            granularity: %" PRIu64 "\n", b->granularity_bytes);
	}
}

static void format_specific_print(const struct image *image)
{
	const struct qcow2_info *info = &image->info;

	puts("Format specific information:");
	printf("    compat: %s\n", info->version >= 3 ? "1.1" : "0.10");
	printf("    compression type: %s\n", info->compression_type);
	if (info->version >= 3)
		printf("    lazy refcounts: %s\n", truth(info->lazy_refcounts));
	if (info->bitmaps)
		bitmaps_print(image);
	printf("    refcount bits: %u\n", info->refcount_bits);
	if (info->encryption)
		printf("    encrypt:\n        format: %s\n", info->encryption);
	if (info->data_file) {
		field_name("    data file", info->data_file_name);
		printf("    data file raw: %s\n", truth(info->data_file_raw));
	}
	if (info->version >= 3) {
		printf("    corrupt: %s\n", truth(info->corrupt));
		printf("    extended l2: %s\n", truth(info->extended_l2));
	}
	if (info->unknown_incompatible)
		printf("    unknown incompatible features: 0x%" PRIx64 "\n",
		       info->unknown_incompatible);
	if (info->unknown_compatible)
		printf("    unknown compatible features: 0x%" PRIx64 "\n",
		       info->unknown_compatible);
	if (info->unknown_autoclear)
		printf("    unknown autoclear features: 0x%" PRIx64 "\n", info->unknown_autoclear);
}

static void human_print(const struct image *image)
{
	const struct qcow2_info *info = &image->info;
	char size[SIZE_TEXT_MAX];

	field_name("image", image->filename);
	puts("file format: qcow2");
	printf("virtual size: %s (%" PRIu64 " bytes)\n", size_format(info->size_bytes, size),
	       info->size_bytes);
	printf("disk size: %s\n", size_format(image->actual_bytes, size));
	if (info->encryption)
		puts("encrypted: yes");
	printf("cluster_size: %" PRIu32 "\n", info->cluster_bytes);
	if (info->dirty)
		puts("cleanly shut down: no");
	if (image->backing_path)
		backing_print(image);
	if (info->snapshots)
		printf("snapshots: %" PRIu32 "\n", info->snapshots);
	format_specific_print(image);
}

/* ---- JSON ---- */

/* Takes @value; a NULL one makes *ret -ENOMEM. */
static void put(json_t *object, const char *key, json_t *value, int *ret)
{
	if (json_object_set_new(object, key, value))
		*ret = -ENOMEM;
}

static json_t *bitmaps_json(const struct image *image, int *ret)
{
	json_t *list = json_array();

	for (size_t i = 0; i < image->bitmaps_count; i++) {
		const struct bitmap *b = &image->bitmaps[i];
		json_t *o = json_object(), *flags = json_array();

		if ((b->in_use && json_array_append_new(flags, json_string("in-use"))) ||
		    (b->enabled && json_array_append_new(flags, json_string("auto"))))
			*ret = -ENOMEM;
		put(o, "flags", flags, ret);
		put(o, "name", cli_name_json(b->name), ret);
		put(o, "granularity", json_integer((json_int_t)b->granularity_bytes), ret);
		if (json_array_append_new(list, o))
			*ret = -ENOMEM;
	}
	return list;
}

static json_t *format_specific_json(const struct image *image, int *ret)
{
	const struct qcow2_info *info = &image->info;
	json_t *data = json_object();
	json_t *specific = json_object();

	put(data, "compat", json_string(info->version >= 3 ? "1.1" : "0.10"), ret);
	put(data, "compression-type", json_string(info->compression_type), ret);
	put(data, "refcount-bits", json_integer(info->refcount_bits), ret);
	if (info->version >= 3) {
		put(data, "lazy-refcounts", json_boolean(info->lazy_refcounts), ret);
		put(data, "corrupt", json_boolean(info->corrupt), ret);
		put(data, "extended-l2", json_boolean(info->extended_l2), ret);
	}
	if (info->data_file) {
		put(data, "data-file", cli_name_json(info->data_file_name), ret);
		put(data, "data-file-raw", json_boolean(info->data_file_raw), ret);
	}
	if (info->bitmaps && !image->bitmaps_broken)
		put(data, "bitmaps", bitmaps_json(image, ret), ret);
	if (info->encryption) {
		json_t *encrypt = json_object();

		put(encrypt, "format", json_string(info->encryption), ret);
		put(data, "encrypt", encrypt, ret);
	}
	if (info->unknown_incompatible)
		put(data, "unknown-incompatible-features",
		    json_integer((json_int_t)info->unknown_incompatible), ret);
	if (info->unknown_compatible)
		put(data, "unknown-compatible-features",
		    json_integer((json_int_t)info->unknown_compatible), ret);
	if (info->unknown_autoclear)
		put(data, "unknown-autoclear-features",
		    json_integer((json_int_t)info->unknown_autoclear), ret);
	put(specific, "type", json_string("qcow2"), ret);
	put(specific, "data", data, ret);
	return specific;
}

static int json_print(const struct image *image)
{
	const struct qcow2_info *info = &image->info;
	json_t *root = json_object();
	int ret = 0;

	put(root, "filename", cli_name_json(image->filename), &ret);
	put(root, "format", json_string("qcow2"), &ret);
	put(root, "virtual-size", json_integer((json_int_t)info->size_bytes), &ret);
	put(root, "actual-size", json_integer((json_int_t)image->actual_bytes), &ret);
	put(root, "cluster-size", json_integer(info->cluster_bytes), &ret);
	put(root, "dirty-flag", json_boolean(info->dirty), &ret);
	if (info->encryption)
		put(root, "encrypted", json_true(), &ret);
	if (image->backing_path) {
		put(root, "backing-filename", cli_name_json(info->backing_file), &ret);
		put(root, "full-backing-filename", cli_name_json(image->backing_path), &ret);
		if (info->backing_format[0])
			put(root, "backing-filename-format", cli_name_json(info->backing_format), &ret);
	}
	if (info->snapshots)
		put(root, "snapshot-count", json_integer(info->snapshots), &ret);
	put(root, "format-specific", format_specific_json(image, &ret), &ret);
	if (!ret) {
		char *text = json_dumps(root, JSON_INDENT(4) | JSON_ENSURE_ASCII);

		if (text)
			puts(text);
		else
			ret = -ENOMEM;
		free(text);
	}
	json_decref(root);
	return ret;
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	struct image image = {0};
	struct error err = {0};
	bool json = false;
	int option, ret;

	while ((option = cli_option(cmd, argc, argv)) != -1) {
		switch (option) {
		case OPT_JSON:
			json = true;
			break;
		case OPT_OUTPUT:
			if (strcmp(optarg, "json") != 0 && strcmp(optarg, "human") != 0)
				return cli_usage(cmd, "--output is 'human' or 'json'");
			json = strcmp(optarg, "json") == 0;
			break;
		case 'f':
			if (strcmp(optarg, "qcow2") != 0)
				return cli_usage(cmd, "the only format is qcow2");
			break;
		case 'U':
			break;
		}
	}
	if (argc - optind != 1)
		return cli_usage(cmd, argc == optind ? "no image given" : "one image at a time");

	if (status_is_device(argv[optind]))
		return status_print(argv[optind], json);
	ret = image_read(&image, argv[optind], &err);
	if (!ret && json)
		ret = json_print(&image);
	else if (!ret)
		human_print(&image);
	image_free(&image);
	return ret ? cli_fail(argv[optind], &err, ret) : CLI_OK;
}

/* The help is laid out as it is printed. */
/* clang-format off */
const struct cli_command cli_command_info = {
	.name = "info",
	.summary = "say what an image is, or what an attached device has done",
	.synopsis = "[--json] FILE|DEVICE|NUMBER",
	.help = "Says what the header of a qcow2 image says, in the form of 'qemu-img info'. Works while the\n"
		"image is in use. Names in the image (backing file, data file) are printed, never opened.\n"
		"\n"
		"Of an attached device it says what serves it and how, and what each of its queues has done:\n"
		"requests, system calls, messages to other threads, coroutines, locks, and requests whose pages\n"
		"the kernel could not register for zero copy.\n"
		"\n"
		"  --json, --output=json  as JSON, with the field names of 'qemu-img info --output=json'\n"
		"  -U, --force-share      accepted for qemu-img's sake: this never takes locks\n"
		"  -h, --help             this text\n",
	.short_options = "f:U",
	.long_options = long_options,
	.confined = true,
	.run = run,
};
/* clang-format on */
