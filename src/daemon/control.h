/* SPDX-License-Identifier: MIT */
/*
 * control.h: how a running daemon is asked for something.
 *
 * A UNIX stream socket in the folder of state. A client sends one line of JSON, {"command": "status"},
 * {"command": "stop", "force": false}, {"command": "retry"}, {"command": "resize", "size": 1073741824} or {"command": "snapshot",
 * "action": "create", "name": "NAME", "force": false}, and gets one line back: {"ok": true, ...} or {"ok": false,
 * "error": "text"}; then the connection is closed. Numbered:
 *  1. Only root and the daemon's own user are answered (SO_PEERCRED).
 *  2. A line of CONTROL_LINE_MAX bytes at most, within CONTROL_TIMEOUT_MS; CONTROL_CLIENTS_MAX clients
 *     at a time, the oldest has to go for a new one. Nothing a client does or leaves undone makes the
 *     daemon wait.
 *  3. What a client has asked for that is gone by the time its turn comes is not done: it was given up, or has
 *     said that there was no answer, and may have been asked for again.
 */
#ifndef DAEMON_CONTROL_H
#define DAEMON_CONTROL_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "daemon/entry.h"
#include "daemon/statedir.h"

#define CONTROL_LINE_MAX    4096
#define CONTROL_TIMEOUT_MS  5000
#define CONTROL_CLIENTS_MAX 8

/* ---- in the daemon ---- */

enum control_command { CONTROL_STATUS, CONTROL_STOP, CONTROL_RETRY, CONTROL_RESIZE, CONTROL_SNAPSHOT };

enum control_snapshot { CONTROL_SNAPSHOT_CREATE, CONTROL_SNAPSHOT_APPLY, CONTROL_SNAPSHOT_DELETE };

struct control_request {
	enum control_command command;
	bool force;	     /* STOP, SNAPSHOT */
	uint64_t size_bytes; /* RESIZE */
	enum control_snapshot snapshot;
	const char *name; /* SNAPSHOT; valid during the call */
};

struct control_client {
	int fd; /* -1: free */
	uint64_t deadline_ms;
	size_t used;
	char line[CONTROL_LINE_MAX];
};

struct control {
	int fd; /* listens; -1: not open */
	struct control_client clients[CONTROL_CLIENTS_MAX];
	/* Answers with control_reply_*() before it returns, or later: the client stays until then. */
	void (*serve)(void *arg, struct control_client *client,
		      const struct control_request *request);
	void *arg;
};

#define CONTROL_POLL_MAX (1 + CONTROL_CLIENTS_MAX)

int control_open(struct control *control, const struct statedir *dir, const char *key,
		 struct error *err) must_check;
void control_close(struct control *control); /* also what was never opened, but has fd -1 */
/* Fills in what to poll for, and lowers *timeout_ms to the nearest deadline; the count of entries. */
unsigned control_poll_prepare(struct control *control, struct pollfd *pfds, int *timeout_ms);
void control_poll_done(struct control *control, const struct pollfd *pfds, unsigned count);

/* Takes a reference of @body, which may be NULL: {"ok": true} and the members of it. Closes. */
void control_reply_ok(struct control_client *client, struct json_t *body);
void control_reply_error(struct control_client *client, const char *text);
/* An error that may pass: the device is in use. */
void control_reply_busy(struct control_client *client, const char *text);
/* The image is closed, in order, and the process ends, but the device could not be taken away. */
void control_reply_left(struct control_client *client, const char *text);

/* Milliseconds of the monotonic clock. */
uint64_t control_now_ms(void);

/* ---- in a client ---- */

/*
 * Asks the daemon of @e and waits for its answer. 0 and an answer of ok; -errno with the daemon's or
 * an own message else. -EBUSY: in use, as the message says. -EUCLEAN: see control_reply_left(). -ETIMEDOUT: no
 * answer in time; the daemon may still be at it.
 */
int control_ask(const struct statedir *dir, const struct entry *e, enum control_command command,
		bool force, int timeout_ms, struct error *err) must_check;
/* The same for STATUS, whose answer is the caller's to json_decref(). */
int control_ask_status(const struct statedir *dir, const struct entry *e, int timeout_ms,
		       struct json_t **out, struct error *err) must_check;
int control_ask_resize(const struct statedir *dir, const struct entry *e, uint64_t size_bytes,
		       int timeout_ms, struct error *err) must_check;

/* An operation on a snapshot; *@pause_us: for how long I/O was held back for it. */
int control_ask_snapshot(const struct statedir *dir, const struct entry *e,
			 enum control_snapshot action, const char *name, bool force, int timeout_ms,
			 uint64_t *pause_us, struct error *err) must_check;

#endif
