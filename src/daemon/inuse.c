// SPDX-License-Identifier: MIT
/*
 * inuse.c: see inuse.h. From /proc and /sys only: the device itself is not opened, which would make it
 * busy.
 */
#include "daemon/inuse.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* Undoes the octal escapes of the kernel's tables of mounts. */
static void octal_unescape(char *text)
{
	char *out = text;

	for (const char *p = text; *p;) {
		unsigned code;

		if (p[0] == '\\' && sscanf(p + 1, "%3o", &code) == 1 && p[1] && p[2] && p[3]) {
			*out++ = (char)code;
			p += 4;
		} else {
			*out++ = *p++;
		}
	}
	*out = '\0';
}

static bool mounted_find(dev_t dev, char *out, size_t size)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t space = 0;
	bool found = false;

	while (f && !found && getline(&line, &space, f) > 0) {
		char *point = NULL;
		unsigned maj, min;

		/* id parent major:minor root mount-point ... */
		if (sscanf(line, "%*d %*d %u:%u %*s %ms", &maj, &min, &point) == 3 &&
		    makedev(maj, min) == dev) {
			octal_unescape(point);
			snprintf(out, size, "is mounted on %s", point);
			found = true;
		}
		free(point);
	}
	free(line);
	if (f)
		fclose(f);
	return found;
}

static bool swap_find(dev_t dev, char *out, size_t size)
{
	FILE *f = fopen("/proc/swaps", "re");
	char *line = NULL;
	size_t space = 0;
	bool found = false;

	while (f && !found && getline(&line, &space, f) > 0) {
		char *name = NULL;
		struct stat st;

		if (sscanf(line, "%ms", &name) == 1 && name[0] == '/') {
			octal_unescape(name);
			found = stat(name, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == dev;
		}
		free(name);
	}
	free(line);
	if (f)
		fclose(f);
	if (found)
		snprintf(out, size, "is used as swap");
	return found;
}

/* A device built on this one, such as a device mapper's. */
static bool holder_find(const char *sysfs, char *out, size_t size)
{
	char path[512];
	struct dirent *file;
	bool found = false;
	DIR *d;

	snprintf(path, sizeof(path), "%s/holders", sysfs);
	d = opendir(path);
	while (d && !found && (file = readdir(d))) {
		if (file->d_name[0] == '.')
			continue;
		snprintf(out, size, "is used by %s", file->d_name);
		found = true;
	}
	if (d)
		closedir(d);
	return found;
}

static bool device_find(dev_t dev, const char *sysfs, char *out, size_t size)
{
	return mounted_find(dev, out, size) || swap_find(dev, out, size) ||
	       holder_find(sysfs, out, size);
}

/* The device number of a partition's folder in sysfs. */
static bool partition_number(const char *sysfs, dev_t *dev)
{
	char path[600];
	unsigned maj, min;
	struct stat st;
	bool ok;
	FILE *f;

	snprintf(path, sizeof(path), "%s/partition", sysfs);
	if (stat(path, &st))
		return false;
	snprintf(path, sizeof(path), "%s/dev", sysfs);
	f = fopen(path, "re");
	if (!f)
		return false;
	ok = fscanf(f, "%u:%u", &maj, &min) == 2;
	fclose(f);
	if (ok)
		*dev = makedev(maj, min);
	return ok;
}

void inuse_describe(const char *device, char *out, size_t size)
{
	char sysfs[64], path[512];
	struct dirent *file;
	bool found;
	struct stat st;
	DIR *d;

	snprintf(out, size, "is open");
	if (stat(device, &st) || !S_ISBLK(st.st_mode))
		return;
	snprintf(sysfs, sizeof(sysfs), "/sys/dev/block/%u:%u", major(st.st_rdev),
		 minor(st.st_rdev));
	found = device_find(st.st_rdev, sysfs, out, size);
	d = opendir(sysfs);
	while (d && !found && (file = readdir(d))) {
		dev_t dev;

		if (file->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", sysfs, file->d_name);
		found = partition_number(path, &dev) && device_find(dev, path, out, size);
	}
	if (d)
		closedir(d);
}
