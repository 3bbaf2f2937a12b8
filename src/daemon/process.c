// SPDX-License-Identifier: MIT
/*
 * process.c: see process.h.
 */
#include "daemon/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The start of a small file, as a string without the last newline. */
static int text_read(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len;
	int ret = 0;

	if (fd < 0)
		return -errno;
	len = read(fd, buf, size - 1);
	if (len < 0)
		ret = -errno;
	close(fd);
	if (ret)
		return ret;
	if (len && buf[len - 1] == '\n')
		len--;
	buf[len] = '\0';
	return 0;
}

/* Fields 3 (state) and 22 (start time) of /proc/PID/stat; see proc(5). */
static int stat_read(pid_t pid, char *state, uint64_t *start_ticks)
{
	char path[64], text[1024];
	char *p;
	int ret;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	ret = text_read(path, text, sizeof(text));
	if (ret)
		return ret == -ENOENT ? -ESRCH : ret;
	/* Field 2 is the name in parentheses, and may hold anything: the last one ends it. */
	p = strrchr(text, ')');
	if (!p || p[1] != ' ')
		return -EINVAL;
	p += 2;
	*state = *p;
	for (int field = 3; field < 22; field++) {
		p = strchr(p, ' ');
		if (!p)
			return -EINVAL;
		p++;
	}
	*start_ticks = strtoull(p, NULL, 10);
	return 0;
}

int process_self(struct process *out)
{
	char state;
	int ret;

	memset(out, 0, sizeof(*out));
	out->pid = getpid();
	ret = stat_read(out->pid, &state, &out->start_ticks);
	if (ret)
		return ret;
	return text_read("/proc/sys/kernel/random/boot_id", out->boot_id, sizeof(out->boot_id));
}

bool process_of_this_boot(const struct process *p)
{
	char boot_id[BOOT_ID_MAX];

	return text_read("/proc/sys/kernel/random/boot_id", boot_id, sizeof(boot_id)) == 0 &&
	       strcmp(boot_id, p->boot_id) == 0;
}

int process_open(const struct process *p)
{
	char boot_id[BOOT_ID_MAX];
	uint64_t start_ticks;
	char state;
	int fd, ret;

	if (p->pid <= 0)
		return -ESRCH;
	ret = text_read("/proc/sys/kernel/random/boot_id", boot_id, sizeof(boot_id));
	if (ret)
		return ret;
	if (strcmp(boot_id, p->boot_id) != 0)
		return -ESRCH;
	/* The handle first: what is read afterwards is about the process that it holds, or its end. */
	fd = (int)syscall(SYS_pidfd_open, p->pid, 0);
	if (fd < 0)
		return -errno;
	ret = stat_read(p->pid, &state, &start_ticks);
	if (!ret && (start_ticks != p->start_ticks || state == 'Z' || state == 'X'))
		ret = -ESRCH;
	if (ret) {
		close(fd);
		return ret;
	}
	return fd;
}

bool process_alive(const struct process *p)
{
	int fd = process_open(p);

	if (fd >= 0)
		close(fd);
	/* Where it cannot be told (no memory, no descriptors) nothing is torn down. */
	return fd != -ESRCH;
}

int process_signal(int pidfd, int sig)
{
	return syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0) ? -errno : 0;
}

int process_wait(int pidfd, int timeout_ms)
{
	struct pollfd pfd = {.fd = pidfd, .events = POLLIN};
	int n = poll(&pfd, 1, timeout_ms);

	if (n < 0)
		return -errno;
	return n ? 0 : -ETIMEDOUT;
}
