// SPDX-License-Identifier: MIT
/*
 * namespace.c: see namespace.h.
 *
 *     entered (a copy, which follows unmounts outside) --> image opened, device made --> empty
 *
 * It is emptied by a child in the same namespace, which is forked before the privileges are dropped and
 * waits: changing the root of a namespace (pivot_root(2)) changes that of every process in it.
 *
 * Invariants:
 *  1. What happens inside does not get out: all mounts are slaves before anything is changed.
 *  2. A file system that the image's files are on cannot be unmounted outside, as if there were no
 *     namespace: descriptors of before pin it there. (They have no access, O_PATH.)
 *  3. No mount of the former root's is left, or all that can go are gone: if the root cannot be changed
 *     (it is the kernel's initial one), the mounts are taken away one by one.
 */
#include "daemon/namespace.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "storage/names.h"

#define EMPTY_MS   10000
#define MOUNTS_MAX 100000

/* ---- in the child ---- */

/* An empty file or folder below the working directory, with the folders to it; @path is relative. */
static int place_make(char *path, bool folder)
{
	int fd;

	for (char *p = strchr(path, '/'); p; p = strchr(p + 1, '/')) {
		*p = '\0';
		if (mkdir(path, 0755) && errno != EEXIST)
			return -errno;
		*p = '/';
	}
	if (folder)
		return mkdir(path, 0755) && errno != EEXIST ? -errno : 0;
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : close(fd);
}

static int place_bind(const char *source, bool folder)
{
	char path[PATH_MAX];
	int ret;

	snprintf(path, sizeof(path), "%s", source + 1);
	ret = place_make(path, folder);
	return ret || mount(source, path, NULL, MS_BIND, NULL) ? -1 : 0;
}

/* The log's socket may be made anew while we are here: its folder is what is taken along. */
static void log_bind(void)
{
	char real[PATH_MAX], *slash;

	if (!realpath("/dev/log", real))
		return;
	slash = strrchr(real, '/');
	if (strncmp(real, "/dev/", 5) == 0) {
		(void)place_bind(real, false);
		return;
	}
	if (slash == real || symlink(real, "dev/log"))
		return;
	*slash = '\0';
	(void)place_bind(real, true);
}

static int root_change(const char *folder, struct error *err)
{
	if (mount("none", folder, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64k,mode=755") ||
	    chdir(folder))
		return error_set(err, -errno, "%s: %s", folder, strerror(errno));
	if (place_bind("/dev/null", false))
		return error_set(err, -errno, "/dev/null: %s", strerror(errno));
	log_bind();
	if (mount("none", ".", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) ||
	    syscall(SYS_pivot_root, ".", "."))
		return error_set(err, -errno, "pivot_root: %s", strerror(errno));
	/* the old one lies on top of the new one */
	if (umount2(".", MNT_DETACH))
		return error_set(err, -errno, "the former root: %s", strerror(errno));
	return 0;
}

/* What a process expects to be there. */
static bool is_basic(const char *point)
{
	static const char *const basic[] = {"/", "/dev", "/proc", "/sys", "/run"};

	for (size_t i = 0; i < sizeof(basic) / sizeof(basic[0]); i++)
		if (strcmp(point, basic[i]) == 0)
			return true;
	return false;
}

/* The last mount that can go; false: none. */
static bool mount_find(char point[PATH_MAX])
{
	FILE *f = fopen("/proc/self/mounts", "re");
	char *line = NULL, at[PATH_MAX];
	size_t space = 0;
	bool found = false;

	while (f && getline(&line, &space, f) > 0) {
		char *out = at;

		if (sscanf(line, "%*s %4095s", at) != 1 || is_basic(at))
			continue;
		/* blanks and the like are in octal */
		for (const char *p = at; *p; out++) {
			unsigned code;

			if (sscanf(p, "\\%3o", &code) == 1) {
				*out = (char)code;
				p += 4;
			} else {
				*out = *p++;
			}
		}
		*out = '\0';
		strcpy(point, at);
		found = true;
	}
	free(line);
	if (f)
		fclose(f);
	return found;
}

static int empty_in_child(void *arg, struct error *err)
{
	const struct namespace *ns = arg;
	char point[PATH_MAX];
	int ret = root_change(ns->folder, err);

	if (!ret)
		return 0;
	if (chdir("/"))
		return ret;
	for (unsigned i = 0; i < MOUNTS_MAX && mount_find(point); i++)
		if (umount2(point, MNT_DETACH | UMOUNT_NOFOLLOW))
			return ret;
	err->text[0] = '\0';
	return 0;
}

/* ---- in the daemon ---- */

static void pin(struct namespace *ns, const char *path)
{
	int fd = ns->nr_pins < NAMESPACE_PINS ? open(path, O_PATH | O_CLOEXEC) : -1;

	if (fd >= 0)
		ns->pins[ns->nr_pins++] = fd;
}

static void pin_folder(struct namespace *ns, const char *path)
{
	char *folder = names_folder(path);

	if (folder)
		pin(ns, folder);
	free(folder);
}

void namespace_enter(struct namespace *ns, const char *folder, const struct target_options *options)
{
	struct error err = {0};
	int ret;

	snprintf(ns->folder, sizeof(ns->folder), "%s", folder);
	if (options->path)
		pin(ns, options->path);
	if (options->names && options->names->image_as)
		pin_folder(ns, options->names->image_as);
	for (unsigned i = 0; options->names && i < options->names->nr_dirs; i++)
		pin(ns, options->names->dirs[i]);
	if (unshare(CLONE_NEWNS)) {
		log_info("no mount namespace of its own: %s", strerror(errno));
		return;
	}
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL))
		log_warn("mounts: %s", strerror(errno));
	ret = child_start(&ns->trimmer, empty_in_child, ns, -1, &err);
	if (ret)
		log_warn("the mount namespace stays as it is: %s", error_text(&err, ret));
	ns->entered = !ret;
}

void namespace_empty(struct namespace *ns)
{
	struct error err = {0};
	int ret;

	if (!ns->entered)
		return;
	ns->entered = false;
	ret = child_finish(&ns->trimmer, EMPTY_MS, &err);
	if (ret)
		log_warn("the daemon may keep file systems busy that are not its own: %s",
			 error_text(&err, ret));
}

void namespace_leave(struct namespace *ns)
{
	if (ns->entered)
		child_cancel(&ns->trimmer);
	ns->entered = false;
	while (ns->nr_pins)
		close(ns->pins[--ns->nr_pins]);
}
