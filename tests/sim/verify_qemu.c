/* SPDX-License-Identifier: MIT */
/* verify_qemu.c: see verify_qemu.h. */
#include "verify_qemu.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/math.h"
#include "encrypt.h"

/* The files of one state, and what names them to qemu-img. */
struct outside {
	char image[64], data[64], raw[64];
	char options[512];
};

static void names_make(struct outside *o, const struct run *r)
{
	size_t n;

	snprintf(o->image, sizeof(o->image), "/dev/shm/sim-%d.qcow2", getpid());
	snprintf(o->data, sizeof(o->data), "/dev/shm/sim-%d.data", getpid());
	snprintf(o->raw, sizeof(o->raw), "/dev/shm/sim-%d.raw", getpid());
	n = snprintf(o->options, sizeof(o->options), "%s--image-opts driver=qcow2,file.driver=file,file.filename=%s",
		     r->cfg.create.luks ? "--object secret,id=k,data=" ENCRYPT_PASSPHRASE " " : "",
		     o->image);
	if (r->cfg.create.luks)
		n += snprintf(o->options + n, sizeof(o->options) - n, ",encrypt.key-secret=k");
	if (r->cfg.data)
		snprintf(o->options + n, sizeof(o->options) - n,
			 ",data-file.driver=file,data-file.filename=%s", o->data);
}

static void names_unlink(const struct outside *o)
{
	unlink(o->image);
	unlink(o->data);
	unlink(o->raw);
}

static bool write_map(const struct sim_map *map, const char *path, bool image)
{
	FILE *f = fopen(path, "wb");
	uint64_t sectors = map->size_bytes / SECTOR_BYTES;
	bool ok = f;

	for (uint64_t s = 0; ok && s < sectors; s++) {
		uint8_t data[SECTOR_BYTES];

		memcpy(data, sim_map_get(map, s), sizeof(data));
		if (!s && image) /* there is no backing file outside of the simulation */
			memset(data + 8, 0, 12), data[SECTOR_BYTES - 1] = 0;
		ok = fwrite(data, SECTOR_BYTES, 1, f) == 1;
	}
	if (f && fclose(f))
		ok = false;
	return ok;
}

/* Runs `qemu-img @command @options @rest`; its status, and the first line of what it says. */
static int qemu_img(const struct outside *o, const char *command, const char *rest,
		    void (*line_read)(void *arg, const char *line), void *arg, char *first, size_t len)
{
	char text[1024], line[400];
	FILE *pipe;

	*first = 0;
	snprintf(text, sizeof(text), "qemu-img %s %s %s 2>&1", command, o->options, rest);
	pipe = popen(text, "r");
	while (pipe && fgets(line, sizeof(line), pipe)) {
		if (!*first)
			snprintf(first, len, "%.*s", (int)len - 1, line);
		if (line_read)
			line_read(arg, line);
	}
	return pipe ? pclose(pipe) : -1;
}

struct findings {
	uint64_t corruptions, leaks;
};

static void finding_read(void *arg, const char *line)
{
	struct findings *f = arg;

	sscanf(line, " \"corruptions\": %" SCNu64, &f->corruptions);
	sscanf(line, " \"leaks\": %" SCNu64, &f->leaks);
}

static bool check_agrees(struct verifier *v, const struct outside *o, char *text, size_t len)
{
	const struct judge *j = &v->judge;
	struct findings f = {0};
	char first[200];
	int status = qemu_img(o, "check --output=json", "", finding_read, &f, first, sizeof(first));

	if (!WIFEXITED(status) ||
	    (WEXITSTATUS(status) && WEXITSTATUS(status) != 2 && WEXITSTATUS(status) != 3))
		snprintf(text, len, "qemu-img check: status %#x: %s", status, first);
	else if (!f.corruptions != !j->corruptions || (!f.corruptions && f.leaks != j->leaks))
		snprintf(text, len,
			 "qemu-img check says %" PRIu64 " corruptions and %" PRIu64
			 " leaks, the judge %" PRIu64 " and %" PRIu64 " (%s)",
			 f.corruptions, f.leaks, j->corruptions, j->leaks, j->text);
	else
		return true;
	return false;
}

static bool contents_allowed(struct verifier *v, struct run *r, const struct outside *o, char *text,
			     size_t len)
{
	char first[200], rest[100];
	uint64_t at = 0, bad;
	bool ok = true;
	int status;
	size_t n;
	FILE *f;

	snprintf(rest, sizeof(rest), "-O raw %s", o->raw);
	status = qemu_img(o, "convert", rest, NULL, NULL, first, sizeof(first));
	f = status ? NULL : fopen(o->raw, "rb");
	if (!f) {
		snprintf(text, len, "qemu-img convert: status %#x: %s", status, first);
		return false;
	}
	while (ok && (n = fread(v->mem, SECTOR_BYTES, VERIFY_CHUNK_BYTES / SECTOR_BYTES, f))) {
		if (at + n > r->guest.sectors)
			break;
		ok = guest_check_crash(&r->guest, at, n, v->mem, &bad, text, len);
		at += n;
	}
	fclose(f);
	if (ok && !guest_size_allowed(&r->guest, at)) {
		snprintf(text, len, "QEMU reads a disk of %" PRIu64 " sectors", at);
		return false;
	}
	if (!ok)
		memmove(text + 6, text, len - 7), memcpy(text, "QEMU: ", 6), text[len - 1] = 0;
	return ok;
}

bool verify_qemu(struct verifier *v, struct run *r, struct simview *view, char *text, size_t len)
{
	struct outside o;
	bool ok;

	names_make(&o, r);
	ok = write_map(view->map, o.image, true) &&
	     (!view->data || write_map(view->data->map, o.data, false));
	if (!ok)
		snprintf(text, len, "cannot write %s", o.image);
	ok = ok && check_agrees(v, &o, text, len) &&
	     (r->cfg.below_seed || contents_allowed(v, r, &o, text, len));
	names_unlink(&o);
	return ok;
}
