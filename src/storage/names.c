/* SPDX-License-Identifier: MIT */
/*
 * names.c: see names.h for the rules.
 *
 * realpath() says where a name leads at the moment. That answer may be out of date a moment later, so
 * it only chooses the allowed folder and the way down from it; the walk down opens one component at a
 * time, by descriptor and without following links, and what it ends at is examined by the descriptor
 * and opened again through it (/proc/self/fd), never by name.
 */
#include "storage/names.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/math.h"
#include "base/text.h"
#include "storage/storage.h"

struct opening {
	const char *image_path;
	const struct names_policy *policy;
	const struct names_options *opts;
	struct error *err;
	char *shown;	  /* the name, printable */
	char *reached;	  /* the name with its folder, links in it as they are */
	char *real;	  /* where it leads */
	bool user_folder; /* the user allowed it, not the image's place */
};

bool names_has_protocol(const char *name)
{
	size_t len = strcspn(name, ":/");

	return name[len] == ':';
}

__attribute__((format(printf, 3, 4))) static int fail(const struct opening *o, int ret,
						       const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return error_set(o->err, ret, "%s '%s': %s", o->opts->what, o->shown, text);
}

/* ---- where the name leads ---- */

char *names_folder(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? strndup(path, (size_t)(slash - path) + 1) : strdup("./");
}

/* The name that the user gave for the naming image, if that is a link. */
static const char *given_as(const struct opening *o)
{
	return o->opts->top ? o->policy->image_as : NULL;
}

static int name_resolve(struct opening *o, const char *name)
{
	const char *as = given_as(o) ? given_as(o) : o->opts->reached_as;
	const char *image = as ? as : o->image_path;
	char *folder = name[0] == '/' ? strdup("") : names_folder(image);
	int ret = 0;

	if (!folder || asprintf(&o->reached, "%s%s", folder, name) < 0) {
		o->reached = NULL;
		free(folder);
		return error_set(o->err, -ENOMEM, "out of memory");
	}
	o->real = realpath(o->reached, NULL);
	if (!o->real)
		ret = fail(o, -errno, "%s", strerror(errno));
	free(folder);
	return ret;
}

/* The part of @path below the folder @dir, both without links; NULL: it is not below. */
static const char *path_below(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	if (len == 1) /* "/" */
		return path[1] ? path + 1 : NULL;
	if (strncmp(path, dir, len) != 0 || path[len] != '/' || !path[len + 1])
		return NULL;
	return path + len + 1;
}

/* Opens the folder @dir if the name leads below it; -ENOENT if not. *@rest is the way down. */
static int folder_try(struct opening *o, const char *dir, const char **rest)
{
	char *real = realpath(dir, NULL);
	int fd;

	*rest = real ? path_below(o->real, real) : NULL;
	fd = *rest ? open(real, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	free(real);
	return fd >= 0 ? fd : -ENOENT;
}

/* A descriptor of the allowed folder, or -EPERM. */
static int folder_open(struct opening *o, const char **rest)
{
	const struct names_policy *p = o->policy;
	const char *const own[] = {o->image_path, given_as(o)};
	int fd = -ENOENT;

	if (p->any) {
		o->user_folder = true;
		fd = folder_try(o, "/", rest);
	}
	for (unsigned i = 0; i < p->nr_dirs && fd < 0; i++) {
		fd = folder_try(o, p->dirs[i], rest);
		o->user_folder = fd >= 0;
	}
	if (fd >= 0)
		return fd;
	for (unsigned i = 0; i < ARRAY_LEN(own) && fd < 0; i++) {
		char *folder = own[i] ? names_folder(own[i]) : NULL;

		if (own[i] && !folder)
			return error_set(o->err, -ENOMEM, "out of memory");
		if (folder)
			fd = folder_try(o, folder, rest);
		free(folder);
	}
	if (fd < 0)
		return fail(o, -EPERM, "is not in the image's folder or below; --backing-dir allows "
				       "another folder, --backing-any all");
	return fd;
}

/* ---- the way down ---- */

/* Takes @dir_fd. A descriptor of what @rest leads to, of any kind, not opened for I/O; or -errno. */
static int walk(int dir_fd, const char *rest)
{
	int flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, fd = dir_fd;

	while (fd >= 0 && *rest) {
		size_t len = strcspn(rest, "/");
		char component[NAME_MAX + 1];
		int next = -ENAMETOOLONG;

		if (len <= NAME_MAX) {
			memcpy(component, rest, len);
			component[len] = '\0';
			next = openat(fd, component, rest[len] ? flags | O_DIRECTORY : flags);
			next = next < 0 ? -errno : next;
		}
		close(fd);
		fd = next;
		rest += len + (rest[len] == '/');
	}
	return fd;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static int kind_check(const struct opening *o, int fd)
{
	struct stat st, image;

	if (fstat(fd, &st))
		return fail(o, -errno, "%s", strerror(errno));
	if (!stat(o->image_path, &image) && same_file(&st, &image))
		return fail(o, -EINVAL, "is the image itself");
	if (S_ISREG(st.st_mode) || (S_ISBLK(st.st_mode) && o->user_folder))
		return 0;
	if (S_ISBLK(st.st_mode))
		return fail(o, -EPERM, "is a block device; --backing-dir or --backing-any allows it");
	if (S_ISDIR(st.st_mode))
		return fail(o, -EISDIR, "is a directory");
	if (S_ISLNK(st.st_mode))
		return fail(o, -EAGAIN, "changed while it was being opened");
	return fail(o, -EINVAL, "is neither a regular file nor a block device");
}

static int file_open(struct opening *o, struct storage **out)
{
	struct storage_file_options file = {
		.read_only = o->opts->read_only,
		.direct = o->opts->direct,
		.exclusive_device = !o->opts->read_only,
		.name = o->real,
	};
	const char *rest;
	char path[64];
	int fd, ret;

	fd = folder_open(o, &rest);
	if (fd < 0)
		return fd;
	fd = walk(fd, rest);
	if (fd < 0)
		return fail(o, fd, "%s", strerror(-fd));
	ret = kind_check(o, fd);
	if (!ret) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		ret = storage_file_open(out, path, &file, o->err);
	}
	close(fd);
	return ret;
}

int names_open(struct storage **out, char **path_out, const char *image_path, const char *name,
	       const struct names_policy *policy, const struct names_options *opts, struct error *err)
{
	static const struct names_policy narrow;
	struct opening o = {
		.image_path = image_path,
		.policy = policy ? policy : &narrow,
		.opts = opts,
		.err = err,
		.shown = text_escape(name),
	};
	int ret = 0;

	*out = NULL;
	if (path_out)
		*path_out = NULL;
	if (opts->reached_out)
		*opts->reached_out = NULL;
	if (!o.shown)
		return error_set(err, -ENOMEM, "out of memory");
	if (policy && policy->open) {
		ret = policy->open(policy->arg, out, path_out, name, opts->read_only, err);
		free(o.shown);
		return ret;
	}
	if (!*name)
		ret = fail(&o, -EINVAL, "the image gives it no name");
	else if (!opts->plain && names_has_protocol(name))
		ret = fail(&o, -ENOTSUP, "only paths are followed, no 'json:' or 'protocol:' names");
	if (!ret)
		ret = name_resolve(&o, name);
	if (!ret)
		ret = file_open(&o, out);
	if (!ret && path_out) {
		*path_out = o.real;
		o.real = NULL;
	}
	if (!ret && opts->reached_out) {
		*opts->reached_out = o.reached;
		o.reached = NULL;
	}
	free(o.real);
	free(o.reached);
	free(o.shown);
	return ret;
}
