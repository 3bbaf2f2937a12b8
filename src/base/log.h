/* SPDX-License-Identifier: MIT */
/*
 * log.h: what the daemon says while it runs: to standard error, or to syslog (and so the journal).
 * Any thread may log; a message is one line, control characters in it are replaced by '?'.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Before log_open(): standard error, level INFO. @ident is kept, not copied. */
void log_open(bool to_syslog, const char *ident, enum log_level max_level);

__attribute__((format(printf, 2, 3))) void log_msg(enum log_level level, const char *fmt, ...);

#define log_err(...)   log_msg(LOG_LEVEL_ERR, __VA_ARGS__)
#define log_warn(...)  log_msg(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_msg(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_msg(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
