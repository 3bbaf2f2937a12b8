// SPDX-License-Identifier: MIT
/*
 * bench.c: requests on an image, made and timed in this process; the driver is src/target/bench.c.
 *
 * The options are those of `qemu-img bench` where it has them, with its defaults, so that the two can be
 * compared word by word.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/math.h"
#include "base/secret.h"
#include "base/size.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/key.h"
#include "target/bench.h"

#define COUNT_DEFAULT	75000
#define DEPTH_DEFAULT	64
#define DEPTH_MAX	4096
#define BUFFER_DEFAULT	4096
#define BUFFER_MAX	(64 * MiB)
/* What the buffers of all requests may take. */
#define BUFFERS_MAX (4 * GiB)

enum {
	OPT_FLUSH_INTERVAL = CLI_OPT_FIRST,
	OPT_NO_DRAIN,
	OPT_PATTERN,
	OPT_RWMIX,
	OPT_TIME,
	OPT_QUEUES,
	OPT_TARGET,
	OPT_CACHE,
	OPT_CACHE_SIZE,
	OPT_SIZE,
	OPT_SEED,
	OPT_JSON,
};

static const struct option long_options[] = {
	{"count", required_argument, NULL, 'c'},
	{"depth", required_argument, NULL, 'd'},
	{"buffer-size", required_argument, NULL, 's'},
	{"step-size", required_argument, NULL, 'S'},
	{"offset", required_argument, NULL, 'o'},
	{"write", no_argument, NULL, 'w'},
	{"flush-interval", required_argument, NULL, OPT_FLUSH_INTERVAL},
	{"no-drain", no_argument, NULL, OPT_NO_DRAIN},
	{"pattern", required_argument, NULL, OPT_PATTERN},
	{"rwmix", required_argument, NULL, OPT_RWMIX},
	{"time", required_argument, NULL, OPT_TIME},
	{"queues", required_argument, NULL, OPT_QUEUES},
	{"target", required_argument, NULL, OPT_TARGET},
	{"cache", required_argument, NULL, OPT_CACHE},
	{"cache-size", required_argument, NULL, OPT_CACHE_SIZE},
	{"size", required_argument, NULL, OPT_SIZE},
	{"seed", required_argument, NULL, OPT_SEED},
	{"json", no_argument, NULL, OPT_JSON},
	CLI_KEY_OPTIONS,
	CLI_LONG_HELP,
	{0},
};

struct run {
	struct bench_job job;
	const char *image;
	bool have_count, have_step, have_mix, write, json;
};

/* ---- options ---- */

static const char *const pattern_words[] = {"seq", "random", NULL};
static const char *const cache_words[] = {"direct", "buffered", NULL};

static void number_set(const struct cli_command *cmd, struct run *run, int option, const char *value)
{
	struct bench_job *job = &run->job;

	switch (option) {
	case 'c':
		job->requests = cli_number_arg(cmd, "--count", value, 1, UINT32_MAX);
		run->have_count = true;
		break;
	case 'd':
		job->open.depth = cli_number_arg(cmd, "--depth", value, 1, DEPTH_MAX);
		break;
	case OPT_FLUSH_INTERVAL:
		job->flush_interval = cli_number_arg(cmd, "--flush-interval", value, 1, UINT32_MAX);
		break;
	case OPT_RWMIX:
		job->read_percent = cli_number_arg(cmd, "--rwmix", value, 0, 100);
		run->have_mix = true;
		break;
	case OPT_TIME:
		job->time_ns = cli_number_arg(cmd, "--time", value, 1, 86400) * (uint64_t)1000000000;
		break;
	case OPT_QUEUES:
		job->open.queues = cli_number_arg(cmd, "--queues", value, 1, BENCH_QUEUES_MAX);
		break;
	case OPT_SEED:
		job->seed = cli_number_arg(cmd, "--seed", value, 0, UINT32_MAX);
		break;
	}
}

static int option_set(const struct cli_command *cmd, struct run *run, int option, const char *value)
{
	struct bench_job *job = &run->job;

	switch (option) {
	case 's':
		job->request_bytes = cli_size_arg(cmd, "--buffer-size", value);
		break;
	case 'S':
		job->step_bytes = cli_size_arg(cmd, "--step-size", value);
		run->have_step = true;
		break;
	case 'o':
		job->offset_bytes = cli_size_arg(cmd, "--offset", value);
		break;
	case OPT_CACHE_SIZE:
		job->open.cache_size_bytes = cli_size_arg(cmd, "--cache-size", value);
		break;
	case OPT_SIZE:
		job->open.size_bytes = cli_size_arg(cmd, "--size", value);
		break;
	case 'w':
		run->write = true;
		break;
	case OPT_NO_DRAIN:
		job->flush_at_once = true;
		break;
	case OPT_JSON:
		run->json = true;
		break;
	case OPT_PATTERN:
		job->random = cli_word_arg(cmd, "--pattern", value, pattern_words) == 1;
		break;
	case OPT_CACHE:
		job->open.direct = cli_word_arg(cmd, "--cache", value, cache_words) == 0;
		break;
	case OPT_TARGET:
		job->target = target_find(value);
		if (!job->target)
			return cli_usage(cmd, "--target is qcow2, loop or null, not '%s'", value);
		break;
	default:
		number_set(cmd, run, option, value);
	}
	return CLI_OK;
}

/* What the options mean together. */
static int options_settle(const struct cli_command *cmd, struct run *run)
{
	struct bench_job *job = &run->job;
	bool null = job->target == &target_null;

	if (!run->image && !null)
		return cli_usage(cmd, "no image given");
	if (run->image && null)
		return cli_usage(cmd, "the null target takes no image");
	if (job->open.size_bytes && !null)
		return cli_usage(cmd, "--size is for --target null");
	if (run->have_mix && run->write)
		return cli_usage(cmd, "--write and --rwmix exclude each other");
	if (!job->request_bytes || job->request_bytes > BUFFER_MAX)
		return cli_usage(cmd, "--buffer-size is between 512 and 64M");
	if (job->request_bytes * job->open.depth * job->open.queues > BUFFERS_MAX)
		return cli_usage(cmd, "the buffers of all requests would take more than 4G");
	if (!run->have_mix)
		job->read_percent = run->write ? 0 : 100;
	if (job->flush_interval && job->read_percent == 100)
		return cli_usage(cmd, "--flush-interval is for writes");
	if (job->random && (run->have_step || job->offset_bytes))
		return cli_usage(cmd, "--step-size and --offset are for --pattern seq");
	if (!run->have_step)
		job->step_bytes = job->request_bytes;
	if (!run->have_count)
		job->requests = job->time_ns ? 0 : COUNT_DEFAULT;
	job->open.read_only = job->read_percent == 100;
	job->open.path = run->image;
	return CLI_OK;
}

static int image_prepare(struct run *run, struct error *err)
{
	bool qcow2, direct_works;
	struct stat st;
	int ret;

	if (!run->image)
		return 0;
	ret = image_check(run->image, &st, err);
	if (!ret)
		ret = image_probe(run->image, &qcow2, &direct_works, err);
	if (ret)
		return ret;
	if (!run->job.target && !qcow2 && !run->job.open.read_only)
		return error_set(err, -EINVAL,
				 "is not a qcow2 image; '--target loop' takes it as a raw disk");
	if (!run->job.target)
		run->job.target = qcow2 ? &target_qcow2 : &target_loop;
	if (run->job.open.direct && !direct_works) {
		cli_note(run->image, "its file system has no direct I/O: the page cache is used");
		run->job.open.direct = false;
	}
	return 0;
}

/* ---- what came out ---- */

static double seconds(uint64_t ns)
{
	return (double)ns / 1e9;
}

static double per_second(uint64_t count, uint64_t ns)
{
	return ns ? (double)count / seconds(ns) : 0;
}

static double each(uint64_t total, uint64_t count)
{
	return count ? (double)total / (double)count : 0;
}

static void kind_print(const char *name, const struct histogram *h, const struct bench_figures *f,
		       uint64_t request_bytes)
{
	char rate[SIZE_TEXT_MAX];

	if (!h->count)
		return;
	printf("%-8s %" PRIu64 ", %.0f/s", name, h->count, per_second(h->count, f->run_ns));
	if (request_bytes)
		printf(", %s/s",
		       size_format((uint64_t)per_second(h->count * request_bytes, f->run_ns), rate));
	printf("; microseconds: median %.1f, 99%% %.1f, 99.9%% %.1f, mean %.1f, most %.1f\n",
	       (double)histogram_percentile(h, 500000) / 1e3,
	       (double)histogram_percentile(h, 990000) / 1e3,
	       (double)histogram_percentile(h, 999000) / 1e3, (double)histogram_mean(h) / 1e3,
	       (double)h->max / 1e3);
}

static void requests_print(const struct run *run)
{
	const struct bench_job *job = &run->job;
	const char *kind = job->read_percent == 100 ? "read" : job->read_percent ? "read and write" : "write";

	if (job->requests)
		printf("Sent %" PRIu64 " %s requests", job->requests, kind);
	else
		printf("Sent %s requests for %.0f seconds", kind, seconds(job->time_ns));
	printf(", %" PRIu64 " bytes each, %u in parallel", job->request_bytes, job->open.depth);
	if (job->open.queues > 1)
		printf(" in each of %u queues", job->open.queues);
	if (job->random)
		printf(" (at random offsets)\n");
	else
		printf(" (starting at offset %" PRIu64 ", step size %" PRIu64 ")\n", job->offset_bytes,
		       job->step_bytes);
	if (job->flush_interval)
		printf("Sent a flush after every %" PRIu64 " writes%s\n", job->flush_interval,
		       job->flush_at_once ? ", at once" : "");
}

static void human_print(const struct run *run, const struct bench_figures *f)
{
	uint64_t transfers = f->reads.count + f->writes.count;
	uint64_t all = transfers + f->flushes.count;
	char resident[SIZE_TEXT_MAX];

	requests_print(run);
	printf("Run completed in %.3f seconds: %" PRIu64 " requests, %.0f/s.\n", seconds(f->run_ns),
	       transfers, per_second(transfers, f->run_ns));
	kind_print("reads", &f->reads, f, run->job.request_bytes);
	kind_print("writes", &f->writes, f, run->job.request_bytes);
	kind_print("flushes", &f->flushes, f, 0);
	printf("each     CPU %.2f microseconds user, %.2f system; %.3f io_uring_enter calls\n",
	       each(f->user_ns, all) / 1e3, each(f->system_ns, all) / 1e3, each(f->enters, all));
	printf("process  opened in %.2f ms, closed in %.2f ms, %s resident\n", seconds(f->open_ns) * 1e3,
	       seconds(f->close_ns) * 1e3, size_format(f->resident_bytes, resident));
}

static json_t *kind_json(const struct histogram *h, const struct bench_figures *f, uint64_t bytes)
{
	return json_pack("{s:I, s:f, s:I, s:I, s:I, s:I, s:I, s:I}", "count", (json_int_t)h->count,
			 "per_second", per_second(h->count, f->run_ns), "bytes",
			 (json_int_t)(h->count * bytes), "latency_median_ns",
			 (json_int_t)histogram_percentile(h, 500000), "latency_99_ns",
			 (json_int_t)histogram_percentile(h, 990000), "latency_99_9_ns",
			 (json_int_t)histogram_percentile(h, 999000), "latency_mean_ns",
			 (json_int_t)histogram_mean(h), "latency_max_ns", (json_int_t)h->max);
}

static int json_print(const struct run *run, const struct bench_figures *f)
{
	const struct bench_job *job = &run->job;
	uint64_t transfers = f->reads.count + f->writes.count;
	json_t *root = json_pack(
		"{s:s, s:I, s:i, s:i, s:I, s:b, s:f, s:f, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
		"target", job->target->name, "size", (json_int_t)f->size_bytes, "queues", (int)f->queues,
		"depth", (int)job->open.depth, "buffer_size", (json_int_t)job->request_bytes, "direct",
		(int)job->open.direct, "seconds", seconds(f->run_ns), "per_second",
		per_second(transfers, f->run_ns), "reads", kind_json(&f->reads, f, job->request_bytes),
		"writes", kind_json(&f->writes, f, job->request_bytes), "flushes",
		kind_json(&f->flushes, f, 0), "user_ns", (json_int_t)f->user_ns, "system_ns",
		(json_int_t)f->system_ns, "enters", (json_int_t)f->enters, "open_ns",
		(json_int_t)f->open_ns, "close_ns", (json_int_t)f->close_ns, "resident_bytes",
		(json_int_t)f->resident_bytes, "resident_idle_bytes",
		(json_int_t)f->resident_idle_bytes);
	char *text = root ? json_dumps(root, JSON_INDENT(4) | JSON_REAL_PRECISION(6)) : NULL;

	if (text)
		puts(text);
	free(text);
	json_decref(root);
	return text ? 0 : -ENOMEM;
}

static int bench(struct run *run, struct error *err)
{
	struct bench_figures *figures = calloc(1, sizeof(*figures));
	int ret;

	if (!figures)
		return -ENOMEM;
	ret = image_prepare(run, err);
	if (!ret)
		ret = bench_run(&run->job, figures, err);
	if (!ret && figures->queues < run->job.open.queues)
		cli_note(run->image, "has %u queue%s, not %u", figures->queues,
			 figures->queues == 1 ? "" : "s", run->job.open.queues);
	if (!ret && run->json)
		ret = json_print(run, figures);
	else if (!ret)
		human_print(run, figures);
	free(figures);
	return ret;
}

static int run(const struct cli_command *cmd, int argc, char **argv)
{
	struct run run = {.job = {.request_bytes = BUFFER_DEFAULT, .seed = 1}};
	struct error err = {0};
	int option, ret, status;

	run.job.open.direct = true;
	run.job.open.queues = 1;
	run.job.open.depth = DEPTH_DEFAULT;
	while ((option = cli_option(cmd, argc, argv)) != -1) {
		status = cli_is_key_option(option)
				 ? cli_key_set(cmd, &run.job.open.passphrase, option, optarg)
				 : option_set(cmd, &run, option, optarg);
		if (status)
			return status;
	}
	if (argc - optind > 1)
		return cli_usage(cmd, "one image at a time");
	run.image = argv[optind];
	status = options_settle(cmd, &run);
	if (status)
		return status;
	ret = bench(&run, &err);
	secret_destroy(run.job.open.passphrase);
	return ret ? cli_fail(run.image, &err, ret) : CLI_OK;
}

/* The help is laid out as it is printed. */
/* clang-format off */
const struct cli_command cli_command_bench = {
	.name = "bench",
	.summary = "time requests on an image, without a device",
	.synopsis = "[OPTION]... IMAGE\n       ublk-qcow2 bench --target null [OPTION]...",
	.help = "Makes requests on IMAGE in this process, through the same code that serves a device, and says how\n"
		"fast they were. Options are those of 'qemu-img bench' where it has them. Requests that write\n"
		"overwrite what is in the image.\n"
		"\n"
		"  -c, --count N            requests to make (75000, without --time)\n"
		"      --time SECONDS       begin none after this long\n"
		"  -d, --depth N            requests in flight in each queue (64)\n"
		"  -s, --buffer-size BYTES  of each request (4k)\n"
		"  -S, --step-size BYTES    from one request to the next (the buffer size)\n"
		"  -o, --offset BYTES       where the first request is (0)\n"
		"      --pattern ORDER      seq: each a step behind the one before; random: anywhere (seq)\n"
		"      --seed N             of the random offsets (1)\n"
		"  -w, --write              write instead of reading\n"
		"      --rwmix PERCENT      so many of the requests read, the others write\n"
		"      --flush-interval N   each queue flushes after every N writes\n"
		"      --no-drain           it does so without waiting for what is in flight\n"
		"      --queues N           queues, each with a thread (1)\n"
		"      --target TARGET      what IMAGE is: qcow2; loop, a raw disk; null, a disk without a\n"
		"                           memory. Default: by content; raw is guessed for reading alone\n"
		"      --cache MODE         direct: past the page cache where the file system can;\n"
		"                           buffered: through it (direct)\n"
		"      --cache-size BYTES   bound of the memory for the image's metadata\n"
		"      --size BYTES         size of the null target\n"
		"      --key-file FILE      the passphrase of an encrypted image is all of FILE, as for 'add'\n"
		"      --key-fd N           ... is what can be read from this descriptor\n"
		"      --key-credential NAME  ... is this file in systemd's $CREDENTIALS_DIRECTORY\n"
		"      --json               print the figures as JSON\n"
		"  -h, --help               this text\n",
	.short_options = "c:d:s:S:o:w",
	.long_options = long_options,
	.run = run,
};
/* clang-format on */
