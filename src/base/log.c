/* SPDX-License-Identifier: MIT */
/*
 * log.c: one line for each message, to standard error or syslog.
 *
 * A line is built in a buffer on the stack and goes out in one write(2) or one syslog(3), so that
 * lines of several threads do not mix and nothing here needs a lock. The settings are read by
 * threads that log while log_open() may still run: they are atomics.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include "base/text.h"

static _Atomic(const char *) log_ident = "ublk-qcow2";
static atomic_bool log_to_syslog;
static atomic_int log_max_level = LOG_LEVEL_INFO;

static const struct {
	int priority;
	const char *prefix;
} log_levels[] = {
	[LOG_LEVEL_ERR] = {LOG_ERR, "error: "},
	[LOG_LEVEL_WARN] = {LOG_WARNING, "warning: "},
	[LOG_LEVEL_INFO] = {LOG_INFO, ""},
	[LOG_LEVEL_DEBUG] = {LOG_DEBUG, "debug: "},
};

void log_open(bool to_syslog, const char *ident, enum log_level max_level)
{
	if (to_syslog)
		openlog(ident, LOG_PID, LOG_DAEMON);
	else if (atomic_load(&log_to_syslog))
		closelog();
	atomic_store(&log_ident, ident);
	atomic_store(&log_max_level, (int)max_level);
	atomic_store(&log_to_syslog, to_syslog);
}

/* Nothing to do about a standard error that cannot be written. */
static void log_write(const char *line, size_t len)
{
	while (len) {
		ssize_t n = write(STDERR_FILENO, line, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		line += n;
		len -= (size_t)n;
	}
}

void log_msg(enum log_level level, const char *fmt, ...)
{
	int saved_errno = errno;
	char text[1024], line[1200];
	va_list ap;
	int n;

	if ((int)level > atomic_load_explicit(&log_max_level, memory_order_relaxed))
		return;
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0)
		text[0] = '\0';
	text_clean(text);
	if (atomic_load(&log_to_syslog)) {
		syslog(log_levels[level].priority, "%s%s", log_levels[level].prefix, text);
	} else {
		n = snprintf(line, sizeof(line), "%.100s: %s%s\n", atomic_load(&log_ident),
			     log_levels[level].prefix, text);
		if (n > 0)
			log_write(line, (size_t)n < sizeof(line) ? (size_t)n : sizeof(line) - 1);
	}
	errno = saved_errno;
}
