// SPDX-License-Identifier: MIT
/*
 * entry.c: see entry.h.
 *
 * A file name may be any bytes, a JSON string may not: names are stored twice where it matters, as
 * text for people ("image") and in hexadecimal ("image_bytes").
 */
#include "daemon/entry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <jansson.h>

#include "base/math.h"
#include "base/text.h"
#include "daemon/harden.h"
#include "qcow2.h"

#define FILE_BYTES_MAX (64 * 1024)
#define ENTRIES_MAX    65536

static const char *const state_names[] = {
	[ENTRY_STARTING] = "starting",
	[ENTRY_LIVE] = "live",
	[ENTRY_STOPPING] = "stopping",
	[ENTRY_RECOVERING] = "recovering",
	[ENTRY_QUIESCED] = "quiesced",
	[ENTRY_DEAD] = "dead",
};

const char *entry_state_name(enum entry_state state)
{
	return state_names[state];
}

bool entry_lost_device(const struct entry *e)
{
	return e->state == ENTRY_LIVE && strcmp(e->frontend, "ublk") == 0 && e->device[0] &&
	       access(e->device, F_OK) && errno == ENOENT;
}

void entry_image_id(char out[64], const struct stat *st)
{
	if (S_ISBLK(st->st_mode))
		snprintf(out, 64, "block:%u:%u", major(st->st_rdev), minor(st->st_rdev));
	else
		snprintf(out, 64, "file:%ju:%ju", (uintmax_t)st->st_dev, (uintmax_t)st->st_ino);
}

int entry_init(struct entry *e, struct error *err)
{
	int ret = process_self(&e->process);

	if (ret)
		return error_set(err, ret, "cannot read /proc: %s", strerror(-ret));
	snprintf(e->key, sizeof(e->key), "%d-%" PRIu64, (int)e->process.pid, e->process.start_ticks);
	return 0;
}

/* ---- to JSON ---- */

/* *@object is NULL after a failure, and stays so. */
static void put(json_t **object, const char *key, json_t *value)
{
	if (!*object) {
		json_decref(value);
	} else if (json_object_set_new(*object, key, value)) {
		json_decref(*object);
		*object = NULL;
	}
}

static json_t *text_json(const char *name)
{
	char *text = text_escape(name);
	json_t *value = text ? json_string(text) : NULL;

	free(text);
	return value;
}

static json_t *name_json(const char *name)
{
	return *name ? text_json(name) : json_null();
}

json_t *entry_to_json(const struct entry *e)
{
	json_t *o = json_object();

	put(&o, "id", e->id >= 0 ? json_integer(e->id) : json_null());
	put(&o, "device", name_json(e->device));
	put(&o, "image", name_json(e->image));
	put(&o, "pid", json_integer(e->process.pid));
	put(&o, "frontend", json_string(e->frontend));
	put(&o, "target", json_string(e->target));
	put(&o, "state", json_string(entry_state_name(e->state)));
	put(&o, "size", json_integer((json_int_t)e->size_bytes));
	put(&o, "queues", json_integer(e->queues));
	put(&o, "depth", json_integer(e->depth));
	put(&o, "data_path", e->data_path[0] ? json_string(e->data_path) : json_null());
	put(&o, "read_only", json_boolean(e->read_only));
	put(&o, "cache", json_string(e->direct ? "direct" : "buffered"));
	put(&o, "memory_locked", json_boolean(e->memory_locked));
	put(&o, "started", json_integer(e->started));
	put(&o, "recovery", json_boolean(e->recovery));
	put(&o, "recovery_policy",
	    json_string(!e->recovery ? "off" : e->recovery_fail ? "fail" : "reissue"));
	put(&o, "on_enospc", json_string(e->hold_enospc ? "stop" : "report"));
	put(&o, "no_space", json_boolean(e->no_space));
	put(&o, "supervisor", e->supervisor.pid ? json_integer(e->supervisor.pid) : json_null());
	return o;
}

static json_t *bytes_json(const char *name)
{
	size_t len = strlen(name);
	char *text = malloc(2 * len + 1);
	json_t *value;

	if (!text)
		return NULL;
	for (size_t i = 0; i < len; i++)
		sprintf(text + 2 * i, "%02x", (unsigned char)name[i]);
	text[2 * len] = '\0';
	value = json_string(text);
	free(text);
	return value;
}

static json_t *dirs_json(const struct entry *e)
{
	json_t *a = json_array();

	for (const char *dir = e->backing_dirs; *dir; dir += strlen(dir) + 1) {
		if (json_array_append_new(a, bytes_json(dir))) {
			json_decref(a);
			return NULL;
		}
	}
	return a;
}

static char *file_text(const struct entry *e)
{
	json_t *o = entry_to_json(e);
	char *text;

	put(&o, "image_bytes", bytes_json(e->image));
	put(&o, "device_bytes", bytes_json(e->device));
	put(&o, "image_as_bytes", bytes_json(e->image_as));
	put(&o, "image_id", json_string(e->image_id));
	put(&o, "start_ticks", json_integer((json_int_t)e->process.start_ticks));
	put(&o, "boot_id", json_string(e->process.boot_id));
	put(&o, "supervisor_ticks", json_integer((json_int_t)e->supervisor.start_ticks));
	put(&o, "cache_size", json_integer((json_int_t)e->cache_size_bytes));
	put(&o, "writeback_delay_ms", json_integer((json_int_t)e->writeback_delay_ms));
	put(&o, "compress", json_boolean(e->compress));
	put(&o, "discard_ignore", json_boolean(e->discard_ignore));
	put(&o, "detect_zeroes", json_integer(e->detect_zeroes));
	put(&o, "mlock", json_integer(e->mlock));
	put(&o, "backing_any", json_boolean(e->backing_any));
	put(&o, "backing_dirs", dirs_json(e));
	put(&o, "backing_format", json_string(e->backing_format));
	put(&o, "snapshot", text_json(e->snapshot));
	put(&o, "snapshot_bytes", bytes_json(e->snapshot));
	text = o ? json_dumps(o, JSON_INDENT(4)) : NULL;
	json_decref(o);
	return text;
}

static int all_write(int fd, const char *text)
{
	size_t len = strlen(text), done = 0;

	while (done < len) {
		ssize_t n = write(fd, text + done, len - done);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			done += (size_t)n;
	}
	return 0;
}

int entry_write(const struct entry *e, const struct statedir *dir, struct error *err)
{
	char name[ENTRY_KEY_MAX + 8], temp[ENTRY_KEY_MAX + 8];
	char *text = file_text(e);
	int fd, ret = 0;

	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	snprintf(name, sizeof(name), "%s.json", e->key);
	snprintf(temp, sizeof(temp), "%s.tmp", e->key);
	fd = openat(dir->fd, temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		ret = -errno;
	} else {
		ret = all_write(fd, text);
		if (close(fd) && !ret)
			ret = -errno;
		if (!ret && renameat(dir->fd, temp, dir->fd, name))
			ret = -errno;
		if (ret)
			unlinkat(dir->fd, temp, 0);
	}
	free(text);
	return ret ? error_set(err, ret, "%s/%s: cannot write: %s", dir->path, name, strerror(-ret))
		   : 0;
}

/* The entry last: as long as anything is left, somebody can find it. */
static const char *const suffixes[] = {"sock", "tmp", "upgrade", "log", "json"};

void entry_remove(const struct entry *e, const struct statedir *dir)
{
	for (size_t i = 0; i < ARRAY_LEN(suffixes); i++) {
		char name[ENTRY_KEY_MAX + 8];

		snprintf(name, sizeof(name), "%s.%s", e->key, suffixes[i]);
		unlinkat(dir->fd, name, 0);
	}
}

/* Whether @name is a file beside an entry, which is not there; and the process that it is named for, neither. */
static bool is_left_over(const struct statedir *dir, const char *name)
{
	const char *dot = strchr(name, '.');
	char entry[ENTRY_KEY_MAX + 8];
	struct process process;
	uint64_t ticks;
	bool ours = false;
	int pid, end = 0;

	for (size_t i = 0; dot && i < ARRAY_LEN(suffixes) - 1; i++)
		ours |= strcmp(dot + 1, suffixes[i]) == 0;
	if (!ours || dot - name >= ENTRY_KEY_MAX || process_self(&process) ||
	    sscanf(name, "%d-%" SCNu64 "%n", &pid, &ticks, &end) != 2 || name + end != dot)
		return false;
	snprintf(entry, sizeof(entry), "%.*s.json", (int)(dot - name), name);
	if (!faccessat(dir->fd, entry, F_OK, AT_SYMLINK_NOFOLLOW) || errno != ENOENT)
		return false;
	process.pid = pid; /* of this boot */
	process.start_ticks = ticks;
	return !process_alive(&process);
}

void entry_sweep(const struct statedir *dir)
{
	int fd = openat(dir->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *file;

	if (!d && fd >= 0)
		close(fd);
	while (d && (file = readdir(d)))
		if (is_left_over(dir, file->d_name))
			unlinkat(dir->fd, file->d_name, 0);
	if (d)
		closedir(d);
}

/* ---- from JSON: the folder is ours, yet what is read is checked ---- */

static int string_get(const json_t *o, const char *key, char *out, size_t size)
{
	const char *text = json_string_value(json_object_get(o, key));

	if (!text || strlen(text) >= size)
		return -EINVAL;
	strcpy(out, text);
	return 0;
}

/* Empty where there is none. */
static const char *string_or(const json_t *o, const char *key)
{
	const char *text = json_string_value(json_object_get(o, key));

	return text ? text : "";
}

static int bytes_value(const json_t *value, char *out, size_t size)
{
	const char *text = json_string_value(value);
	size_t len = text ? strlen(text) : 0;

	if (!text || len % 2 || len / 2 >= size)
		return -EINVAL;
	for (size_t i = 0; i < len / 2; i++) {
		unsigned byte;

		if (sscanf(text + 2 * i, "%2x", &byte) != 1 || !byte)
			return -EINVAL;
		out[i] = (char)byte;
	}
	out[len / 2] = '\0';
	return 0;
}

static int bytes_get(const json_t *o, const char *key, char *out, size_t size)
{
	return bytes_value(json_object_get(o, key), out, size);
}

static int dirs_get(const json_t *o, struct entry *e)
{
	const json_t *a = json_object_get(o, "backing_dirs");
	size_t at = 0;

	if (!json_is_array(a))
		return -EINVAL;
	for (size_t i = 0; i < json_array_size(a); i++) {
		/* one byte stays for the end of the list */
		if (at + 1 >= sizeof(e->backing_dirs) ||
		    bytes_value(json_array_get(a, i), e->backing_dirs + at,
				sizeof(e->backing_dirs) - 1 - at) ||
		    !e->backing_dirs[at])
			return -EINVAL;
		at += strlen(e->backing_dirs + at) + 1;
	}
	e->backing_dirs[at] = '\0';
	return 0;
}

static int integer_get(const json_t *o, const char *key, int64_t min, int64_t max, int64_t *out)
{
	const json_t *value = json_object_get(o, key);

	if (!json_is_integer(value))
		return -EINVAL;
	*out = json_integer_value(value);
	return *out < min || *out > max ? -ERANGE : 0;
}

static int state_get(const json_t *o, enum entry_state *out)
{
	const char *text = json_string_value(json_object_get(o, "state"));

	for (size_t i = 0; text && i <= ENTRY_STOPPING; i++) {
		if (strcmp(text, state_names[i]) == 0) {
			*out = (enum entry_state)i;
			return 0;
		}
	}
	return -EINVAL;
}

static int entry_from_json(struct entry *e, const json_t *o)
{
	int64_t pid, ticks, size, queues, depth, cache_size, delay, detect, mlock;
	int64_t sup_ticks, sup_pid = 0, id = -1;
	char cache[16];

	if (state_get(o, &e->state) || string_get(o, "frontend", e->frontend, sizeof(e->frontend)) ||
	    string_get(o, "target", e->target, sizeof(e->target)) ||
	    string_get(o, "image_id", e->image_id, sizeof(e->image_id)) ||
	    string_get(o, "boot_id", e->process.boot_id, sizeof(e->process.boot_id)) ||
	    string_get(o, "cache", cache, sizeof(cache)) ||
	    bytes_get(o, "image_bytes", e->image, sizeof(e->image)) ||
	    bytes_get(o, "device_bytes", e->device, sizeof(e->device)) ||
	    integer_get(o, "pid", 1, INT_MAX, &pid) ||
	    integer_get(o, "start_ticks", 0, INT64_MAX, &ticks) ||
	    integer_get(o, "size", 0, INT64_MAX, &size) ||
	    integer_get(o, "queues", 0, UINT16_MAX, &queues) ||
	    integer_get(o, "depth", 0, UINT16_MAX, &depth) ||
	    integer_get(o, "started", 0, INT64_MAX, &e->started) ||
	    integer_get(o, "supervisor_ticks", 0, INT64_MAX, &sup_ticks) ||
	    integer_get(o, "cache_size", 0, INT64_MAX, &cache_size) ||
	    integer_get(o, "writeback_delay_ms", 0, INT64_MAX, &delay) ||
	    integer_get(o, "detect_zeroes", 0, QCOW2_DETECT_ZEROES_UNMAP, &detect) || dirs_get(o, e) ||
	    string_get(o, "backing_format", e->backing_format, sizeof(e->backing_format)) ||
	    (bytes_get(o, "snapshot_bytes", e->snapshot, sizeof(e->snapshot)) &&
	     string_get(o, "snapshot", e->snapshot, sizeof(e->snapshot)))) /* an older program's */
		return -EINVAL;
	/* not in what an older program has written, which one that takes over reads */
	if (string_get(o, "data_path", e->data_path, sizeof(e->data_path)))
		e->data_path[0] = '\0';
	if (integer_get(o, "mlock", 0, HARDEN_MLOCK_OFF, &mlock))
		mlock = HARDEN_MLOCK_AUTO;
	e->mlock = (unsigned)mlock;
	e->memory_locked = json_is_true(json_object_get(o, "memory_locked"));
	if (!json_is_null(json_object_get(o, "supervisor")) &&
	    integer_get(o, "supervisor", 1, INT_MAX, &sup_pid))
		return -EINVAL;
	if (sup_pid) {
		e->supervisor = e->process; /* of the same boot */
		e->supervisor.pid = (pid_t)sup_pid;
		e->supervisor.start_ticks = (uint64_t)sup_ticks;
	}
	e->cache_size_bytes = (uint64_t)cache_size;
	e->writeback_delay_ms = (uint64_t)delay;
	e->compress = json_is_true(json_object_get(o, "compress"));
	e->discard_ignore = json_is_true(json_object_get(o, "discard_ignore"));
	e->detect_zeroes = (unsigned)detect;
	e->backing_any = json_is_true(json_object_get(o, "backing_any"));
	/* these, too, are not in what an older program has written */
	if (bytes_get(o, "image_as_bytes", e->image_as, sizeof(e->image_as)))
		e->image_as[0] = '\0';
	e->hold_enospc = strcmp(string_or(o, "on_enospc"), "stop") == 0;
	e->no_space = json_is_true(json_object_get(o, "no_space"));
	e->recovery = json_is_true(json_object_get(o, "recovery"));
	e->recovery_fail = strcmp(string_or(o, "recovery_policy"), "fail") == 0;
	if (!json_is_null(json_object_get(o, "id")) && integer_get(o, "id", 0, INT_MAX, &id))
		return -EINVAL;
	e->process.pid = (pid_t)pid;
	e->process.start_ticks = (uint64_t)ticks;
	e->size_bytes = (uint64_t)size;
	e->queues = (unsigned)queues;
	e->depth = (unsigned)depth;
	e->id = (int)id;
	e->read_only = json_is_true(json_object_get(o, "read_only"));
	e->direct = strcmp(cache, "direct") == 0;
	return 0;
}

/* -ENOENT: it has just been removed. */
static int entry_read(struct entry *e, const struct statedir *dir, const char *name)
{
	size_t stem = strlen(name) - strlen(".json");
	int fd, ret = -EINVAL;
	char *text = NULL;
	ssize_t len;
	json_t *o;

	memset(e, 0, sizeof(*e));
	if (stem >= sizeof(e->key))
		return -EINVAL;
	memcpy(e->key, name, stem);
	fd = openat(dir->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	text = malloc(FILE_BYTES_MAX);
	len = text ? read(fd, text, FILE_BYTES_MAX) : -1;
	close(fd);
	if (len > 0 && len < FILE_BYTES_MAX) {
		o = json_loadb(text, (size_t)len, 0, NULL);
		if (o)
			ret = entry_from_json(e, o);
		json_decref(o);
	}
	free(text);
	if (!ret && !process_alive(&e->process)) {
		/* A daemon that ends in order removes its entry first. */
		if (faccessat(dir->fd, name, F_OK, AT_SYMLINK_NOFOLLOW))
			return -ENOENT;
		if (e->supervisor.pid && process_alive(&e->supervisor))
			e->state = ENTRY_RECOVERING;
		else if (e->recovery && e->id >= 0 && process_of_this_boot(&e->process))
			e->state = ENTRY_QUIESCED;
		else
			e->state = ENTRY_DEAD;
	}
	return ret;
}

static int entry_compare(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	if (x->id != y->id)
		return x->id < y->id ? -1 : 1;
	return strcmp(x->device, y->device);
}

static bool is_entry_name(const char *name)
{
	size_t len = strlen(name);

	return len > 5 && strcmp(name + len - 5, ".json") == 0;
}

static int list_grow(struct entry_list *list)
{
	struct entry *entries;

	if (list->count & (list->count - 1))
		return 0;
	/* A power of two, or none: full. */
	entries = realloc(list->entries, (list->count ? 2 * list->count : 1) * sizeof(*entries));
	if (!entries)
		return -ENOMEM;
	list->entries = entries;
	return 0;
}

int entry_list_read(struct entry_list *list, const struct statedir *dir, struct error *err)
{
	struct dirent *file;
	int fd, ret = 0;
	DIR *d;

	memset(list, 0, sizeof(*list));
	if (dir->fd < 0)
		return 0;
	fd = openat(dir->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	d = fd >= 0 ? fdopendir(fd) : NULL;
	if (!d) {
		ret = -errno;
		if (fd >= 0)
			close(fd);
		return error_set(err, ret, "%s: cannot read this folder: %s", dir->path,
				 strerror(-ret));
	}
	while (!ret && list->count < ENTRIES_MAX && (file = readdir(d))) {
		if (!is_entry_name(file->d_name))
			continue;
		ret = list_grow(list);
		if (ret) {
			error_set(err, ret, "out of memory");
			break;
		}
		switch (entry_read(&list->entries[list->count], dir, file->d_name)) {
		case 0:
			list->count++;
			break;
		case -ENOENT:
			break;
		default:
			list->unreadable++;
		}
	}
	closedir(d);
	if (list->count)
		qsort(list->entries, list->count, sizeof(*list->entries), entry_compare);
	return ret;
}

void entry_list_free(struct entry_list *list)
{
	free(list->entries);
	memset(list, 0, sizeof(*list));
}
