// SPDX-License-Identifier: MIT
/*
 * check.c: looks for, and repairs, damage in an image, in qemu-img's words.
 *
 * Output, field names and exit statuses are those of `qemu-img check`: 0 nothing wrong, 1 the check
 * could not be done, 2 corruptions, 3 leaked clusters and nothing worse. As there, an image that
 * was repaired is checked once more, and the status is that of the second look.
 *
 * The check runs in a coroutine on a loop, so that it reads ahead; where there is no io_uring it
 * runs without.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "cli/cli.h"
#include "cli/image.h"
#include "qcow2/check.h"
#include "ring/co.h"
#include "ring/loop.h"
#include "storage/storage.h"

enum { CHECK_CORRUPTIONS = 2, CHECK_LEAKS = 3 };

enum { OPT_JSON = CLI_OPT_FIRST, OPT_OUTPUT };

static const struct option long_options[] = {
	{"json", no_argument, NULL, OPT_JSON},
	{"output", required_argument, NULL, OPT_OUTPUT},
	{"repair", required_argument, NULL, 'r'},
	{"quiet", no_argument, NULL, 'q'},
	{"force-share", no_argument, NULL, 'U'},
	CLI_LONG_HELP,
	{0},
};

struct job {
	struct co_task task;
	struct loop *loop;
	struct storage *storage;
	struct qcow2_check_options options;
	struct qcow2_check_result result;
	struct error err;
	int ret;

	const char *file;
	bool json, quiet, force_share;
	int percent; /* what the progress bar shows; -1: none */
};

/* ---- what is said on the way ---- */

static void progress_clear(struct job *job)
{
	if (job->percent >= 0)
		fputs("\r\033[K", stderr);
	job->percent = -1;
}

static void progress(void *arg, uint64_t done, uint64_t total)
{
	struct job *job = arg;
	int percent = total ? (int)((double)done * 100 / (double)total) : 100;

	if (percent == job->percent)
		return;
	job->percent = percent;
	fprintf(stderr, "\r    (%d/100%%)", percent);
	fflush(stderr);
}

static void finding(void *arg, enum qcow2_finding kind, const char *text)
{
	static const char *const words[] = {
		[QCOW2_FINDING_LEAK] = "Leaked",
		[QCOW2_FINDING_CORRUPTION] = "ERROR",
		[QCOW2_FINDING_ERROR] = "ERROR",
		[QCOW2_FINDING_REPAIR] = "Repairing",
	};
	struct job *job = arg;

	progress_clear(job);
	fprintf(stderr, "%s: %s\n", words[kind], text);
}

/* ---- running ---- */

static void task_run(struct co_task *task)
{
	struct job *job = container_of(task, struct job, task);

	job->ret = qcow2_check(job->storage, &job->options, &job->result, &job->err);
	loop_stop(job->loop);
}

static void check_run(struct job *job)
{
	static const struct loop_params params = {
		.name = "check",
		.sq_entries = 32,
		.coroutines = 1,
	};
	struct error ignored = {0};
	int ret;

	memset(&job->err, 0, sizeof(job->err));
	if (loop_create(&job->loop, &params, &ignored)) {
		job->ret = qcow2_check(job->storage, &job->options, &job->result, &job->err);
		return;
	}
	job->ret = storage_attach(job->storage, job->loop, &job->err);
	if (!job->ret) {
		job->task.fn = task_run;
		loop_spawn(job->loop, &job->task);
		ret = loop_run(job->loop);
		if (ret)
			job->ret = error_set(&job->err, ret, "the event loop failed: %s",
					     strerror(-ret));
		storage_detach(job->storage, job->loop);
	}
	loop_destroy(job->loop);
	progress_clear(job);
}

static int image_open(struct job *job)
{
	bool repair = job->options.repair != QCOW2_REPAIR_NONE;
	struct storage_file_options options = {.read_only = !repair, .exclusive_device = repair};
	unsigned perms = STORAGE_PERM_CONSISTENT_READ;
	struct stat st;
	int ret;

	if (repair)
		perms |= STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE;
	ret = image_check(job->file, &st, &job->err);
	if (!ret)
		ret = storage_file_open(&job->storage, job->file, &options, &job->err);
	if (ret || job->force_share)
		return ret;
	return storage_lock(job->storage, perms,
			    STORAGE_PERM_CONSISTENT_READ | STORAGE_PERM_WRITE_UNCHANGED, &job->err);
}

/* ---- the outcome ---- */

static void human_print(const struct qcow2_check_result *r)
{
	if (!r->corruptions && !r->leaks && !r->errors)
		puts("No errors were found on the image.");
	if (r->corruptions)
		printf("\n%" PRIu64 " errors were found on the image.\n"
		       "Data may be corrupted, or further writes to the image may corrupt it.\n",
		       r->corruptions);
	if (r->leaks)
		printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
		       "This means waste of disk space, but no harm to data.\n",
		       r->leaks);
	if (r->errors)
		printf("\n%" PRIu64 " internal errors have occurred during the check.\n",
		       r->errors);
	if (r->total_clusters && r->allocated_clusters)
		printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, "
		       "%0.2f%% compressed clusters\n",
		       r->allocated_clusters, r->total_clusters,
		       (double)r->allocated_clusters * 100 / (double)r->total_clusters,
		       (double)r->fragmented_clusters * 100 / (double)r->allocated_clusters,
		       (double)r->compressed_clusters * 100 / (double)r->allocated_clusters);
	if (r->image_end_offset)
		printf("Image end offset: %" PRIu64 "\n", r->image_end_offset);
}

static void put(json_t *object, const char *key, uint64_t value, bool always, int *ret)
{
	if ((value || always) && json_object_set_new(object, key, json_integer((json_int_t)value)))
		*ret = -ENOMEM;
}

static int json_print(const struct job *job, const struct qcow2_check_result *fixed)
{
	const struct qcow2_check_result *r = &job->result;
	json_t *root = json_object();
	json_t *name = json_string(job->file);
	int ret = 0;
	char *text;

	put(root, "image-end-offset", r->image_end_offset, false, &ret);
	put(root, "total-clusters", r->total_clusters, false, &ret);
	put(root, "allocated-clusters", r->allocated_clusters, false, &ret);
	put(root, "fragmented-clusters", r->fragmented_clusters, false, &ret);
	put(root, "compressed-clusters", r->compressed_clusters, false, &ret);
	put(root, "corruptions", r->corruptions, false, &ret);
	put(root, "leaks", r->leaks, false, &ret);
	put(root, "corruptions-fixed", fixed->corruptions_fixed, false, &ret);
	put(root, "leaks-fixed", fixed->leaks_fixed, false, &ret);
	put(root, "check-errors", r->errors, true, &ret);
	/* A name that is not UTF-8 is left out: it cannot be a JSON string. */
	if (name && json_object_set_new(root, "filename", name))
		ret = -ENOMEM;
	if (json_object_set_new(root, "format", json_string("qcow2")))
		ret = -ENOMEM;
	text = ret ? NULL : json_dumps(root, JSON_INDENT(4) | JSON_ENSURE_ASCII);
	if (text)
		puts(text);
	free(text);
	json_decref(root);
	return text ? 0 : -ENOMEM;
}

static int outcome(struct job *job)
{
	struct qcow2_check_result fixed;

	check_run(job);
	fixed = job->result;
	if (!job->ret && (fixed.corruptions_fixed || fixed.leaks_fixed)) {
		if (!job->json && !job->quiet)
			printf("The following inconsistencies were found and repaired:\n\n"
			       "    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions\n\n"
			       "Double checking the fixed image now...\n",
			       fixed.leaks_fixed, fixed.corruptions_fixed);
		job->options.repair = QCOW2_REPAIR_NONE;
		check_run(job);
	}
	if (job->ret)
		return cli_fail(job->file, &job->err, job->ret);
	if (job->json) {
		int ret = json_print(job, &fixed);

		if (ret)
			return cli_fail(job->file, NULL, ret);
	} else if (!job->quiet) {
		human_print(&job->result);
	}
	if (job->result.errors)
		return cli_error(job->file, "the check is not complete");
	if (job->result.corruptions)
		return CHECK_CORRUPTIONS;
	return job->result.leaks ? CHECK_LEAKS : CLI_OK;
}

static int option_take(const struct cli_command *cmd, struct job *job, int option)
{
	switch (option) {
	case OPT_JSON:
		job->json = true;
		break;
	case OPT_OUTPUT:
		if (strcmp(optarg, "json") != 0 && strcmp(optarg, "human") != 0)
			return cli_usage(cmd, "--output is 'human' or 'json'");
		job->json = strcmp(optarg, "json") == 0;
		break;
	case 'r':
		if (strcmp(optarg, "all") == 0)
			job->options.repair = QCOW2_REPAIR_ALL;
		else if (strcmp(optarg, "leaks") == 0)
			job->options.repair = QCOW2_REPAIR_LEAKS;
		else
			return cli_usage(cmd, "--repair is 'leaks' or 'all'");
		break;
	case 'q':
		job->quiet = true;
		break;
	case 'U':
		job->force_share = true;
		break;
	case 'f':
		if (strcmp(optarg, "qcow2") != 0)
			return cli_usage(cmd, "the only format is qcow2");
		break;
	case 'p':
		break;
	}
	return 0;
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	struct job job = {.percent = -1};
	int option, ret;

	while ((option = cli_option(cmd, argc, argv)) != -1) {
		ret = option_take(cmd, &job, option);
		if (ret)
			return ret;
	}
	if (argc - optind != 1)
		return cli_usage(cmd, argc == optind ? "no image given" : "one image at a time");
	if (job.force_share && job.options.repair != QCOW2_REPAIR_NONE)
		return cli_usage(cmd, "--force-share does not go with --repair");
	job.file = argv[optind];
	job.options.arg = &job;
	if (!job.quiet) {
		job.options.finding = finding;
		if (isatty(STDERR_FILENO))
			job.options.progress = progress;
	}
	ret = image_open(&job);
	ret = ret ? cli_fail(job.file, &job.err, ret) : outcome(&job);
	storage_close(job.storage);
	return ret;
}

const struct cli_command cli_command_check = {
	.name = "check",
	.summary = "look for damage in an image, and repair it",
	.synopsis = "[--json] [--repair leaks|all] [-q] FILE",
	.help = "Checks that the references in a qcow2 image and its refcounts agree, as 'qemu-img "
		"check'\n"
		"does, and with its exit statuses: 0 nothing wrong, 1 the check could not be "
		"done,\n"
		"2 corruptions, 3 leaked clusters only.\n"
		"\n"
		"  --json, --output=json    as JSON, with the field names of 'qemu-img check'\n"
		"  -r, --repair leaks|all   repair leaked clusters, or everything that can be\n"
		"  -q, --quiet              say nothing but errors\n"
		"  -U, --force-share        look also if somebody is writing to the image; what is "
		"found\n"
		"                           may then be wrong\n"
		"  -h, --help               this text\n",
	.short_options = "f:pqr:U",
	.long_options = long_options,
	.confined = true,
	.run = run,
};
