// SPDX-License-Identifier: MIT
/*
 * cleanup.c: see cleanup.h. Each front end knows what its devices leave; here it is decided that they
 * are ours.
 *
 * A device number may have been given to somebody else since: after a reboot, or when somebody else had deleted the
 * device. A ublk device is removed only if it was made since the machine is up, is not that of another entry, and
 * nobody serves it or is about to; what the fuse front end left is in the folder of state, with marks of its own.
 *
 * I/O that a dead daemon had submitted may still land on the image (durability, rule 15). The open file
 * description that does it carries the daemon's image locks, or its claim, and the I/O keeps it alive:
 * when the locks are gone, so is the I/O.
 */
#include "daemon/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fuse/fuse.h"
#include "storage/storage.h"
#include "ublk/ublk.h"

#define UBLK_DEVICES_MAX 4096
#define FUSE_FOLDERS_MAX 256 /* in one go */

/* QEMU's image locks lie at 100 to 103 and 200 to 203. */
#define LOCK_FIRST	100
#define LOCK_BYTES	104
#define LOCK_TIMEOUT_MS 10000
#define LOCK_RETRY_MS	20

/* Somebody else may have taken the image at once; that cannot be told apart, so the wait is bounded. */
static void image_wait(const struct entry *e)
{
	struct timespec pause = {.tv_nsec = LOCK_RETRY_MS * 1000000L};
	int fd;

	if (!e->image[0])
		return;
	fd = open(e->image, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return;
	for (int waited_ms = 0; waited_ms < LOCK_TIMEOUT_MS; waited_ms += LOCK_RETRY_MS) {
		struct flock lock = {
			.l_type = F_WRLCK,
			.l_whence = SEEK_SET,
			.l_start = LOCK_FIRST,
			.l_len = LOCK_BYTES,
		};

		struct flock claim = {
			.l_type = F_WRLCK,
			.l_whence = SEEK_SET,
			.l_start = STORAGE_CLAIM_BYTE,
			.l_len = 1,
		};

		if (fcntl(fd, F_OFD_GETLK, &lock) || fcntl(fd, F_OFD_GETLK, &claim) ||
		    (lock.l_type == F_UNLCK && claim.l_type == F_UNLCK))
			break;
		nanosleep(&pause, NULL);
	}
	close(fd);
}

/* Whether the number in @e, which is dead, is that of a later device by now. */
static bool number_reused(const struct statedir *dir, const struct entry *e)
{
	struct entry_list list;
	bool reused = entry_list_read(&list, dir, NULL) != 0; /* who cannot tell leaves it alone */

	for (size_t i = 0; i < list.count; i++) {
		const struct entry *other = &list.entries[i];

		if (other->id != e->id || strcmp(other->key, e->key) == 0 || strcmp(other->frontend, e->frontend))
			continue;
		/* of two that are dead, the device is that of the later one */
		if (process_of_this_boot(&other->process) &&
		    (!entry_is_dead(other) || other->started > e->started ||
		     (other->started == e->started && other->process.start_ticks > e->process.start_ticks)))
			reused = true;
	}
	entry_list_free(&list);
	return reused;
}

static int ublk_clean(const struct statedir *dir, const struct entry *e, struct error *note, struct error *err)
{
	struct ublk_device *devices;
	bool lingers = false, left = false;
	int count, ret = 0;

	if (e->id < 0 || !process_of_this_boot(&e->process) || number_reused(dir, e))
		return 0;
	devices = calloc(UBLK_DEVICES_MAX, sizeof(*devices));
	if (!devices)
		return error_set(err, -ENOMEM, "out of memory");
	count = ublk_devices(devices, UBLK_DEVICES_MAX, err);
	for (int i = 0; i < count && i < UBLK_DEVICES_MAX; i++)
		left |= devices[i].id == (unsigned)e->id && !devices[i].served &&
			(devices[i].server_pid == e->process.pid || !ublk_device_is_starting(&devices[i]));
	free(devices);
	if (count < 0)
		return count;
	if (left)
		ret = ublk_device_delete((unsigned)e->id, &lingers, err);
	if (ret == -ENODEV)
		return 0;
	if (!ret && lingers)
		error_set(note, -EBUSY, "is open somewhere: its number is free when it is closed");
	return ret;
}

static int fuse_clean(const struct statedir *dir, const struct entry *e, struct error *note,
		      struct error *err)
{
	struct error text = {0};
	int ret;

	if (e->id < 0)
		return 0;
	ret = fuse_orphan_remove(dir->path, e->id, &text);
	if (ret == -ENOENT)
		return 0;
	if (ret == -EBUSY) {
		error_set(note, -EBUSY, "%s", error_text(&text, ret));
		return 0;
	}
	return ret ? error_set(err, ret, "%s", error_text(&text, ret)) : 0;
}

int cleanup_entry(const struct statedir *dir, const struct entry *e, struct error *note,
		  struct error *err)
{
	int ret = 0;

	if (strcmp(e->frontend, "ublk") == 0)
		ret = ublk_clean(dir, e, note, err);
	else if (strcmp(e->frontend, "fuse") == 0)
		ret = fuse_clean(dir, e, note, err);
	if (ret)
		return ret;
	image_wait(e);
	entry_remove(e, dir);
	return 0;
}

static bool entry_knows(const struct entry_list *list, unsigned id)
{
	for (size_t i = 0; i < list->count; i++)
		if (list->entries[i].id == (int)id && strcmp(list->entries[i].frontend, "ublk") == 0)
			return true;
	return false;
}

int cleanup_orphans(const struct entry_list *list, struct ublk_device *out, size_t max,
		    struct error *err)
{
	struct ublk_device *devices = calloc(UBLK_DEVICES_MAX, sizeof(*devices));
	int count, orphans = 0;

	if (!devices)
		return error_set(err, -ENOMEM, "out of memory");
	count = ublk_devices(devices, UBLK_DEVICES_MAX, err);
	for (int i = 0; i < count && i < UBLK_DEVICES_MAX; i++) {
		if (entry_knows(list, devices[i].id) || !ublk_device_is_orphan(&devices[i]))
			continue;
		if ((size_t)orphans < max)
			out[orphans] = devices[i];
		orphans++;
	}
	free(devices);
	return count < 0 ? count : orphans;
}

struct folders {
	unsigned count;
	int ids[FUSE_FOLDERS_MAX];
};

static int folder_note(const struct fuse_orphan *orphan, void *arg)
{
	struct folders *f = arg;

	if (f->count < FUSE_FOLDERS_MAX)
		f->ids[f->count++] = orphan->id;
	return 0;
}

void cleanup_left_over(const struct statedir *dir)
{
	struct folders folders = {0};
	struct entry_list list;
	bool known = entry_list_read(&list, dir, NULL) != 0;

	entry_sweep(dir);
	if (!known && !fuse_orphans_each(dir->path, folder_note, &folders, NULL)) {
		for (unsigned i = 0; i < folders.count; i++) {
			known = false;
			for (size_t k = 0; k < list.count; k++)
				known |= list.entries[k].id == folders.ids[i] && !strcmp(list.entries[k].frontend, "fuse");
			if (!known)
				(void)!fuse_orphan_remove(dir->path, folders.ids[i], NULL);
		}
	}
	entry_list_free(&list);
}

int cleanup_process(struct statedir *dir, pid_t pid, struct error *err)
{
	struct error note = {0};
	struct entry_list list;
	int ret;

	ret = statedir_lock(dir, err);
	if (ret)
		return ret;
	ret = entry_list_read(&list, dir, err);
	for (size_t i = 0; !ret && i < list.count; i++) {
		const struct entry *e = &list.entries[i];

		if (e->process.pid == pid && entry_is_dead(e))
			ret = cleanup_entry(dir, e, &note, err);
	}
	entry_list_free(&list);
	cleanup_left_over(dir);
	statedir_unlock(dir);
	return ret;
}
