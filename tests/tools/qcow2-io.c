/* SPDX-License-Identifier: MIT */
/*
 * qcow2-io.c: drives the engine over a real file, from a script in the style of qemu-io's commands, so
 * that one script can be run through both and the results compared. A test tool; it is not installed.
 *
 * Commands come from -c options, else from standard input, one a line; `help` in usage() lists them.
 * Offsets and lengths take k, M, G, T and are multiples of 512. Commands that begin with aio_ return
 * when the request is submitted; aio_flush waits for all of them. A command before which `fail ERRNO`
 * stands must fail with that error; one after `try` may fail with EIO.
 *
 * With --shadow the tool keeps a copy of the disk in memory (shadow.h) and compares every read with it,
 * so that a script need not say what it expects.
 *
 * Exit status: 0 all went well, 1 the image did not open or a command failed, 2 usage, 3 data differed.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/math.h"
#include "base/secret.h"
#include "cli/key.h"
#include "io/rig.h"
#include "io/shadow.h"

#define SECTOR	    512
#define REQUEST_MAX ((uint64_t)64 << 20) /* of data in memory */
#define ARGS_MAX    16
#define DEFAULT_PATTERN 0xcd

struct io {
	const char *path;
	struct rig_options opts;
	const char *key_path;
	const char *shadow_path; /* NULL: no shadow; "zero": all zeros */
	struct rig *rig;
	struct shadow *shadow;
	uint64_t line;
	int expected; /* of the current command: 0 or -errno */
	bool tolerant; /* the current command may fail */
	bool failed, differed;
};

struct args {
	bool zero, unmap, fua;
	int pattern; /* -1: none given */
	const char *source;
	uint64_t offset, len;
};

static void complain(struct io *io, const char *what, int ret)
{
	const char *name = strerrorname_np(-ret);

	printf("line %" PRIu64 ": %s failed: %s\n", io->line, what, name ? name : "?");
	io->failed = true;
}

static const char *const op_names[] = {
	[BLK_READ] = "read",	   [BLK_WRITE] = "write",
	[BLK_FLUSH] = "flush",	   [BLK_DISCARD] = "discard",
	[BLK_WRITE_ZEROES] = "write -z",
};

/* ---- requests ---- */

static uint64_t end_of(const struct io *io, uint64_t offset, uint64_t len)
{
	uint64_t size = rig_size_bytes(io->rig);

	return offset + len > size ? size : offset + len;
}

/* What a DISCARD is to zero: whole clusters, the last one of the disk counts as whole. */
static void discard_range(const struct io *io, uint64_t *offset, uint64_t *len)
{
	uint64_t cluster = rig_cluster_bytes(io->rig);
	uint64_t start = align_up(*offset, cluster);
	uint64_t end = end_of(io, *offset, *len);

	if (end != rig_size_bytes(io->rig))
		end = align_down(end, cluster);
	*offset = start;
	*len = end > start && !io->opts.discard_ignore ? end - start : 0;
}

static void shadow_begin(struct io *io, struct rig_request *req)
{
	uint64_t offset = req->blk.offset_bytes, len = req->blk.len_bytes;

	if (!io->shadow)
		return;
	if (req->blk.op == BLK_DISCARD)
		discard_range(io, &offset, &len);
	if (req->blk.op == BLK_WRITE || req->blk.op == BLK_WRITE_ZEROES || req->blk.op == BLK_DISCARD)
		if (len)
			shadow_write_begin(io->shadow, offset, req->buf, len);
	req->moment = shadow_now(io->shadow);
}

static void check_pattern(struct io *io, const struct rig_request *req)
{
	const uint8_t *p = req->buf;

	for (uint64_t i = 0; i < req->blk.len_bytes; i++) {
		if (p[i] == req->pattern)
			continue;
		printf("line %" PRIu64 ": pattern 0x%02x not found at offset %" PRIu64 ": 0x%02x\n",
		       req->line, req->pattern, req->blk.offset_bytes + i, p[i]);
		io->differed = true;
		return;
	}
}

static void shadow_end(struct io *io, const struct rig_request *req)
{
	uint64_t offset = req->blk.offset_bytes, len = req->blk.len_bytes, at;

	if (!io->shadow)
		return;
	switch (req->blk.op) {
	case BLK_DISCARD:
		discard_range(io, &offset, &len);
		if (!len)
			break;
		/* fall through */
	case BLK_WRITE:
	case BLK_WRITE_ZEROES:
		shadow_write_end(io->shadow, offset, len, req->ret < 0);
		break;
	case BLK_READ:
		if (req->ret < 0)
			break;
		at = shadow_compare(io->shadow, offset, req->buf, len, req->moment);
		if (at == SHADOW_EQUAL)
			break;
		printf("line %" PRIu64 ": read %" PRIu64 " %" PRIu64 ": wrong data at offset %" PRIu64
		       "\n", req->line, offset, len, at);
		io->differed = true;
		break;
	case BLK_FLUSH:
		break;
	}
}

/* Takes one finished request; returns it unless it belongs to nobody any more. */
static struct rig_request *reap_one(struct io *io, bool wait)
{
	struct rig_request *req = rig_reap(io->rig, wait);

	if (!req)
		return NULL;
	shadow_end(io, req);
	if (req->blk.op == BLK_READ && req->ret == 0 && req->pattern >= 0)
		check_pattern(io, req);
	return req;
}

static void finish(struct io *io, struct rig_request *req)
{
	free(req->buf);
	req->buf = NULL;
	rig_request_put(io->rig, req);
}

static void finish_aio(struct io *io, struct rig_request *req)
{
	uint64_t line = io->line;

	io->line = req->line;
	if (req->ret < 0)
		complain(io, op_names[req->blk.op], req->ret);
	io->line = line;
	finish(io, req);
}

static struct rig_request *get_request(struct io *io, enum blk_op op, uint64_t offset, uint64_t len)
{
	struct rig_request *req;

	while (!(req = rig_request_get(io->rig)))
		finish_aio(io, reap_one(io, true));
	req->blk.op = op;
	req->blk.flags = 0;
	req->blk.offset_bytes = offset;
	req->blk.len_bytes = len;
	req->buf = NULL;
	req->pattern = -1;
	req->line = io->line;
	if (op == BLK_READ || op == BLK_WRITE) {
		req->buf = aligned_alloc(4096, align_up(len, 4096));
		if (!req->buf) {
			fprintf(stderr, "qcow2-io: no memory\n");
			exit(1);
		}
		memset(req->buf, op == BLK_READ ? 0xa5 : DEFAULT_PATTERN, len);
	}
	req->blk.buf = (struct blk_buf){.base = req->buf};
	return req;
}

/* Submits and waits for this one; requests of aio_ commands that finish meanwhile are taken too. */
static int run_sync(struct io *io, struct rig_request *req)
{
	struct rig_request *done;

	shadow_begin(io, req);
	rig_submit(io->rig, req);
	while ((done = reap_one(io, true)) != req)
		finish_aio(io, done);
	return req->ret;
}

static void drain(struct io *io)
{
	while (rig_in_flight(io->rig))
		finish_aio(io, reap_one(io, true));
}

/* ---- parsing ---- */

static int parse_size(const char *text, uint64_t *out)
{
	char *end;
	unsigned shift = 0;

	errno = 0;
	*out = strtoull(text, &end, 0);
	switch (*end) {
	case 'T': case 't': shift += 10; /* fall through */
	case 'G': case 'g': shift += 10; /* fall through */
	case 'M': case 'm': shift += 10; /* fall through */
	case 'K': case 'k': shift += 10; end++; break;
	default: break;
	}
	if (errno || end == text || *end || *out > UINT64_MAX >> shift)
		return -EINVAL;
	*out <<= shift;
	return 0;
}

static int parse_args(int argc, char **argv, struct args *a)
{
	int i = 1;

	*a = (struct args){.pattern = -1};
	for (; i < argc && argv[i][0] == '-'; i++) {
		if (!strcmp(argv[i], "-z"))
			a->zero = true;
		else if (!strcmp(argv[i], "-u"))
			a->unmap = true;
		else if (!strcmp(argv[i], "-f"))
			a->fua = true;
		else if (!strcmp(argv[i], "-P") && i + 1 < argc)
			a->pattern = strtoul(argv[++i], NULL, 0) & 0xff;
		else if (!strcmp(argv[i], "-s") && i + 1 < argc)
			a->source = argv[++i];
		else if (strcmp(argv[i], "-q") && strcmp(argv[i], "-C"))
			return -EINVAL;
	}
	if (i + 2 != argc || parse_size(argv[i], &a->offset) < 0 || parse_size(argv[i + 1], &a->len) < 0)
		return -EINVAL;
	if (a->offset % SECTOR || a->len % SECTOR || !a->len)
		return -EINVAL;
	return 0;
}

/* Repeats the file's contents over @buf, as qemu-io does. */
static int fill_from_file(const char *path, uint8_t *buf, uint64_t len)
{
	uint64_t have = 0;
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	while (have < len && (n = read(fd, buf + have, len - have)) > 0)
		have += n;
	close(fd);
	if (!have)
		return -EINVAL;
	for (uint64_t i = have; i < len; i++)
		buf[i] = buf[i - have];
	return 0;
}

/* ---- commands ---- */

static int do_data(struct io *io, int argc, char **argv)
{
	bool async = !strncmp(argv[0], "aio_", 4);
	const char *verb = async ? argv[0] + 4 : argv[0];
	struct rig_request *req;
	struct args a;
	enum blk_op op;
	int ret = parse_args(argc, argv, &a);

	if (ret < 0)
		return ret;
	if (!strcmp(verb, "read"))
		op = BLK_READ;
	else if (!strcmp(verb, "discard"))
		op = BLK_DISCARD;
	else
		op = a.zero ? BLK_WRITE_ZEROES : BLK_WRITE;
	if ((op == BLK_READ || op == BLK_WRITE) && a.len > REQUEST_MAX)
		return -E2BIG;
	/* Outside of the disk: what qemu-io says; the engine's contract is that it does not happen. */
	if (a.offset > rig_size_bytes(io->rig) || a.len > rig_size_bytes(io->rig) - a.offset)
		return -EIO;
	req = get_request(io, op, a.offset, a.len);
	if (a.fua)
		req->blk.flags |= BLK_FUA;
	if (op == BLK_WRITE_ZEROES && !a.unmap)
		req->blk.flags |= BLK_NOUNMAP;
	if (op == BLK_READ)
		req->pattern = a.pattern;
	if (op == BLK_WRITE && a.pattern >= 0)
		memset(req->buf, a.pattern, a.len);
	if (op == BLK_WRITE && a.source)
		ret = fill_from_file(a.source, req->buf, a.len);
	if (ret == 0 && async) {
		shadow_begin(io, req);
		rig_submit(io->rig, req);
		return 0;
	}
	if (ret == 0)
		ret = run_sync(io, req);
	finish(io, req);
	return ret;
}

static int do_flush(struct io *io, int argc, char **argv)
{
	struct rig_request *req = get_request(io, BLK_FLUSH, 0, 0);
	int ret;

	if (!strncmp(argv[0], "aio_", 4)) {
		rig_submit(io->rig, req);
		return 0;
	}
	ret = run_sync(io, req);
	finish(io, req);
	return ret;
}

static int do_aio_flush(struct io *io, int argc, char **argv)
{
	drain(io);
	return 0;
}

#define DUMP_CHUNK ((uint64_t)1 << 20)

static bool all_zero(const uint8_t *p, uint64_t len)
{
	return !p[0] && !memcmp(p, p + 1, len - 1);
}

/* Reads every byte; into a sparse raw file, if one is named. */
static int do_dump(struct io *io, int argc, char **argv)
{
	uint64_t size = rig_size_bytes(io->rig);
	int fd = -1, ret = 0;

	if (!strcmp(argv[0], "dump")) {
		if (argc != 2)
			return -EINVAL;
		fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
		if (fd < 0 || ftruncate(fd, size) < 0)
			return -errno;
	}
	for (uint64_t off = 0; off < size && ret == 0; off += DUMP_CHUNK) {
		uint64_t len = min_of(DUMP_CHUNK, size - off);
		struct rig_request *req = get_request(io, BLK_READ, off, len);

		ret = run_sync(io, req);
		if (ret == 0 && fd >= 0 && !all_zero(req->buf, len) &&
		    pwrite(fd, req->buf, len, off) != (ssize_t)len)
			ret = -errno;
		finish(io, req);
	}
	if (fd >= 0)
		close(fd);
	return ret;
}

/* The shadow does not know what is there, until it is written. */
static int do_forget(struct io *io, int argc, char **argv)
{
	struct args a;
	int ret = parse_args(argc, argv, &a);

	if (ret == 0 && io->shadow) {
		shadow_write_begin(io->shadow, a.offset, NULL, a.len);
		shadow_write_end(io->shadow, a.offset, a.len, true);
	}
	return ret;
}

static int load_shadow(struct io *io, const char *path)
{
	shadow_destroy(io->shadow);
	io->shadow = shadow_create(rig_size_bytes(io->rig));
	return io->shadow ? shadow_load(io->shadow, path) : -ENOMEM;
}

/* With requests in flight, but for apply; then FILE is what the shadow goes on from. */
static int do_snapshot(struct io *io, int argc, char **argv)
{
	static const char *const names[] = {"create", "apply", "delete"};
	struct error err = {0};
	uint64_t pause_ns;
	int what = 0, ret;

	while (argc > 1 && what < 3 && strcmp(argv[1], names[what]))
		what++;
	if (argc < 3 || argc > 4 || what == 3)
		return -EINVAL;
	if (what == 1)
		drain(io);
	ret = rig_snapshot(io->rig, what, argv[2], &pause_ns, &err);
	if (ret && ret != io->expected)
		printf("line %" PRIu64 ": %s\n", io->line, error_text(&err, ret));
	return ret || argc < 4 || !io->shadow ? ret : load_shadow(io, argv[3]);
}

static int do_sleep(struct io *io, int argc, char **argv)
{
	if (argc != 2)
		return -EINVAL;
	usleep(strtoul(argv[1], NULL, 0) * 1000);
	return 0;
}

/* Ends at once, as if killed: nothing is flushed, nothing in flight is waited for. */
static int do_abort(struct io *io, int argc, char **argv)
{
	if (argc == 2 && (!io->shadow || shadow_save(io->shadow, argv[1]) < 0))
		io->failed = true;
	fflush(stdout);
	_exit(io->differed ? 3 : io->failed ? 1 : 0);
}

static int do_length(struct io *io, int argc, char **argv)
{
	printf("%" PRIu64 "\n", rig_size_bytes(io->rig));
	return 0;
}

static int open_rig(struct io *io, struct error *err)
{
	int ret = rig_open(&io->rig, io->path, &io->opts, err);

	if (ret < 0) {
		io->rig = NULL;
		fprintf(stderr, "qcow2-io: %s\n", error_text(err, ret));
	}
	return ret;
}

static int do_reopen(struct io *io, int argc, char **argv)
{
	struct error err = {0};
	int ret;

	drain(io);
	ret = rig_close(io->rig, &err);
	io->rig = NULL;
	io->opts.recover = false; /* the log is empty after a close */
	if (ret < 0) {
		fprintf(stderr, "qcow2-io: %s: close: %s\n", io->path, error_text(&err, ret));
		return ret;
	}
	return open_rig(io, &err);
}

static const struct command {
	const char *name;
	int (*run)(struct io *io, int argc, char **argv);
} commands[] = {
	{"read", do_data},	  {"write", do_data},	     {"discard", do_data},
	{"aio_read", do_data},	  {"aio_write", do_data},    {"aio_discard", do_data},
	{"flush", do_flush},	  {"aio_flush_req", do_flush}, {"aio_flush", do_aio_flush},
	{"dump", do_dump},	  {"readall", do_dump},	     {"sleep", do_sleep},
	{"abort", do_abort},	  {"length", do_length},     {"reopen", do_reopen},
	{"forget", do_forget},	  {"snapshot", do_snapshot},
};

static int run_words(struct io *io, int argc, char **argv)
{
	for (unsigned i = 0; i < ARRAY_LEN(commands); i++)
		if (!strcmp(commands[i].name, argv[0]))
			return commands[i].run(io, argc, argv);
	return -EINVAL;
}

static int errno_by_name(const char *name)
{
	for (int e = 1; e < 200; e++) {
		const char *n = strerrorname_np(e);

		if (n && !strcmp(n, name))
			return -e;
	}
	return 0;
}

static void run_line(struct io *io, char *line)
{
	char *argv[ARGS_MAX + 1], *save = NULL, **words = argv;
	int argc = 0, ret;

	io->line++;
	for (char *w = strtok_r(line, " \t\n", &save); w && argc < ARGS_MAX;
	     w = strtok_r(NULL, " \t\n", &save))
		argv[argc++] = w;
	argv[argc] = NULL;
	if (!argc || argv[0][0] == '#')
		return;
	io->expected = 0;
	io->tolerant = false;
	if (!strcmp(argv[0], "try") && argc >= 2) {
		io->tolerant = true;
		words++;
		argc--;
	}
	if (!strcmp(argv[0], "fail") && argc >= 3) {
		io->expected = errno_by_name(argv[1]);
		words += 2;
		argc -= 2;
	}
	ret = run_words(io, argc, words);
	if (io->expected && ret == 0) {
		printf("line %" PRIu64 ": %s did not fail\n", io->line, words[0]);
		io->failed = true;
	} else if (ret != io->expected && !(io->tolerant && ret == -EIO)) {
		complain(io, words[0], ret);
	}
	/* What finished meanwhile is reported near where it was asked for. */
	for (struct rig_request *req; io->rig && (req = reap_one(io, false));)
		finish_aio(io, req);
}

static int run_stdin(struct io *io)
{
	char *line = NULL;
	size_t cap = 0;

	while (io->rig && getline(&line, &cap, stdin) >= 0)
		run_line(io, line);
	free(line);
	return 0;
}

/* ---- main ---- */

static const char usage_text[] =
	"usage: qcow2-io [OPTION]... [-c COMMAND]... IMAGE\n"
	"\n"
	"  -r, --read-only      -t, --direct           -n, --no-lock\n"
	"  -q, --queues N       -d, --depth N          -C, --cache-size BYTES\n"
	"  -w, --writeback-delay MS                    -i, --ignore-discard\n"
	"  -z, --detect-zeroes 0|1|2                   off, on, unmap\n"
	"  -Z, --compress       full clusters are written compressed\n"
	"  -l, --log FILE       the recovery log       -R, --recover   from the log\n"
	"  -s, --snapshot NAME  the disk as it was then, read-only\n"
	"  -k, --key-file FILE  the passphrase of an encrypted image\n"
	"  -S, --shadow FILE    compare every read with a copy in memory that starts as the raw\n"
	"                       FILE's contents, or as zeros (--shadow zero)\n"
	"\n"
	"commands: [aio_]read [-P BYTE] OFFSET LENGTH\n"
	"          [aio_]write [-f] [-P BYTE | -s FILE | -z [-u]] OFFSET LENGTH\n"
	"          [aio_]discard OFFSET LENGTH\n"
	"          flush, aio_flush_req    a FLUSH request\n"
	"          aio_flush               wait for all aio_ requests\n"
	"          dump FILE, readall      read every byte, into a raw file or to nowhere\n"
	"          reopen, sleep MS, length\n"
	"          abort [FILE]            end as if killed; what --shadow can take goes to FILE\n"
	"          forget OFFSET LENGTH    the shadow does not know what is there\n"
	"          snapshot create|apply|delete NAME [FILE]\n"
	"                                  FILE: what the shadow is to be then\n"
	"          fail ERRNO COMMAND      the command must fail so\n"
	"          try COMMAND             the command may fail with EIO\n";

static const struct option long_options[] = {
	{"read-only", no_argument, NULL, 'r'},
	{"direct", no_argument, NULL, 't'},
	{"no-lock", no_argument, NULL, 'n'},
	{"queues", required_argument, NULL, 'q'},
	{"depth", required_argument, NULL, 'd'},
	{"cache-size", required_argument, NULL, 'C'},
	{"writeback-delay", required_argument, NULL, 'w'},
	{"ignore-discard", no_argument, NULL, 'i'},
	{"detect-zeroes", required_argument, NULL, 'z'},
	{"compress", no_argument, NULL, 'Z'},
	{"shadow", required_argument, NULL, 'S'},
	{"log", required_argument, NULL, 'l'},
	{"recover", no_argument, NULL, 'R'},
	{"snapshot", required_argument, NULL, 's'},
	{"key-file", required_argument, NULL, 'k'},
	{"help", no_argument, NULL, 'h'},
	{0},
};

#define COMMANDS_MAX 256

static int parse_options(struct io *io, int argc, char **argv, char **lines, unsigned *count)
{
	uint64_t value = 0;
	int opt;

	while ((opt = getopt_long(argc, argv, "rtnRiZq:d:C:w:z:S:l:c:k:hs:", long_options, NULL)) != -1) {
		if (strchr("qdCwz", opt) && parse_size(optarg, &value) < 0)
			return -EINVAL;
		switch (opt) {
		case 'r': io->opts.read_only = true; break;
		case 't': io->opts.direct = true; break;
		case 'n': io->opts.no_lock = true; break;
		case 'q': io->opts.queues = value; break;
		case 'd': io->opts.depth = value; break;
		case 'C': io->opts.cache_size_bytes = value; break;
		case 'w': io->opts.writeback_delay_ms = value; break;
		case 'Z': io->opts.compress = true; break;
		case 'i': io->opts.discard_ignore = true; break;
		case 'z': io->opts.detect_zeroes = value; break;
		case 'S': io->shadow_path = optarg; break;
		case 'l': io->opts.log_path = optarg; break;
		case 'R': io->opts.recover = true; break;
		case 's':
			io->opts.snapshot = optarg;
			io->opts.read_only = true;
			break;
		case 'k': io->key_path = optarg; break;
		case 'c':
			if (*count == COMMANDS_MAX)
				return -E2BIG;
			lines[(*count)++] = optarg;
			break;
		default: return -EINVAL;
		}
	}
	if (optind + 1 != argc || io->opts.queues - 1 > 15 || io->opts.depth - 1 > 1023)
		return -EINVAL;
	io->path = argv[optind];
	return 0;
}

static int open_shadow(struct io *io)
{
	int ret = 0;

	if (!io->shadow_path)
		return 0;
	io->shadow = shadow_create(rig_size_bytes(io->rig));
	if (!io->shadow)
		ret = -E2BIG;
	else if (strcmp(io->shadow_path, "zero"))
		ret = shadow_load(io->shadow, io->shadow_path);
	if (ret < 0)
		fprintf(stderr, "qcow2-io: shadow %s: %s\n", io->shadow_path, strerror(-ret));
	return ret;
}

int main(int argc, char **argv)
{
	char *lines[COMMANDS_MAX];
	unsigned count = 0;
	struct io io = {.opts = {.queues = 1, .depth = 64}};
	struct secret *key = NULL;
	struct error err = {0};
	int ret;

	if (parse_options(&io, argc, argv, lines, &count) < 0) {
		fputs(usage_text, stderr);
		return 2;
	}
	if (io.key_path) {
		ret = key_read_file(&key, io.key_path, &err);
		if (ret < 0) {
			fprintf(stderr, "qcow2-io: %s: %s\n", io.key_path, error_text(&err, ret));
			return 1;
		}
		io.opts.passphrase = key;
	}
	if (open_rig(&io, &err) < 0)
		return 1;
	if (open_shadow(&io) < 0) {
		io.failed = true;
	} else if (count) {
		for (unsigned i = 0; i < count && io.rig; i++)
			run_line(&io, lines[i]);
	} else {
		run_stdin(&io);
	}
	if (io.rig) {
		drain(&io);
		ret = rig_close(io.rig, &err);
		if (ret < 0) {
			fprintf(stderr, "qcow2-io: %s: close: %s\n", io.path, error_text(&err, ret));
			io.failed = true;
		}
	}
	shadow_destroy(io.shadow);
	secret_destroy(key);
	return io.differed ? 3 : io.failed || !io.rig ? 1 : 0;
}
