// SPDX-License-Identifier: MIT
/*
 * control.c: both ends of the control socket; see control.h.
 *
 * A socket's path has 108 bytes, the folder of state any length: both ends reach it through
 * /proc/self/fd/FOLDER.
 */
#include "daemon/control.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "base/log.h"
#include "base/math.h"

/* With the figures of all queues. */
#define ANSWER_MAX (64 * 1024)

uint64_t control_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int address_make(struct sockaddr_un *addr, const struct statedir *dir, const char *key)
{
	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	if (snprintf(addr->sun_path, sizeof(addr->sun_path), "/proc/self/fd/%d/%s.sock", dir->fd,
		     key) >= (int)sizeof(addr->sun_path))
		return -ENAMETOOLONG;
	return 0;
}

/* ---- server ---- */

int control_open(struct control *control, const struct statedir *dir, const char *key,
		 struct error *err)
{
	struct sockaddr_un addr;
	int ret;

	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		control->clients[i].fd = -1;
	control->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (control->fd < 0) {
		ret = -errno;
		return error_set(err, ret, "cannot make a socket: %s", strerror(-ret));
	}
	ret = address_make(&addr, dir, key);
	if (!ret) {
		unlink(addr.sun_path);
		/* The folder's mode keeps others out as well. */
		if (fchmod(control->fd, 0600) ||
		    bind(control->fd, (struct sockaddr *)&addr, sizeof(addr)) ||
		    listen(control->fd, CONTROL_CLIENTS_MAX))
			ret = -errno;
	}
	if (ret) {
		control_close(control);
		return error_set(err, ret, "%s/%s.sock: cannot listen: %s", dir->path, key,
				 strerror(-ret));
	}
	return 0;
}

static void client_close(struct control_client *client)
{
	if (client->fd >= 0)
		close(client->fd);
	client->fd = -1;
	client->used = 0;
}

void control_close(struct control *control)
{
	if (control->fd < 0)
		return;
	close(control->fd);
	control->fd = -1;
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		client_close(&control->clients[i]);
}

/* One line, if the socket's buffer takes it: it is empty, and a line is short. */
static void line_send(struct control_client *client, json_t *o)
{
	char *text = json_dumps(o, JSON_COMPACT);
	char *line = NULL;
	int len = text ? asprintf(&line, "%s\n", text) : -1;

	if (len > 0 && send(client->fd, line, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT) != len)
		log_warn("an answer to a control request was not taken");
	if (len > 0)
		free(line);
	free(text);
	client_close(client);
}

void control_reply_ok(struct control_client *client, json_t *body)
{
	json_t *o = body ? json_copy(body) : json_object();

	json_object_set_new(o, "ok", json_true());
	line_send(client, o);
	json_decref(o);
	json_decref(body);
}

/* @why: a member that tells what kind of error it is; NULL: none of these. */
static void error_send(struct control_client *client, const char *text, const char *why)
{
	json_t *value = json_string(text);
	json_t *o = json_object();

	if (why)
		json_object_set_new(o, why, json_true());
	json_object_set_new(o, "ok", json_false());
	json_object_set_new(o, "error", value ? value : json_string("failed"));
	line_send(client, o);
	json_decref(o);
}

void control_reply_error(struct control_client *client, const char *text)
{
	error_send(client, text, NULL);
}

void control_reply_busy(struct control_client *client, const char *text)
{
	error_send(client, text, "busy");
}

void control_reply_left(struct control_client *client, const char *text)
{
	error_send(client, text, "left");
}

static bool peer_allowed(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return false;
	return cred.uid == 0 || cred.uid == geteuid();
}

static void client_accept(struct control *control)
{
	struct control_client *oldest = &control->clients[0];
	int fd = accept4(control->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	if (!peer_allowed(fd)) {
		log_warn("a control request of another user was refused");
		close(fd);
		return;
	}
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX && oldest->fd >= 0; i++) {
		struct control_client *c = &control->clients[i];

		if (c->fd < 0 || c->deadline_ms < oldest->deadline_ms)
			oldest = c;
	}
	client_close(oldest);
	oldest->fd = fd;
	oldest->deadline_ms = control_now_ms() + CONTROL_TIMEOUT_MS;
}

static const char *const snapshot_actions[] = {
	[CONTROL_SNAPSHOT_CREATE] = "create",
	[CONTROL_SNAPSHOT_APPLY] = "apply",
	[CONTROL_SNAPSHOT_DELETE] = "delete",
};

static bool snapshot_parse(struct control_request *request, const json_t *o)
{
	const char *action = json_string_value(json_object_get(o, "action"));

	request->command = CONTROL_SNAPSHOT;
	request->name = json_string_value(json_object_get(o, "name"));
	for (unsigned i = 0; action && request->name && i < ARRAY_LEN(snapshot_actions); i++) {
		request->snapshot = (enum control_snapshot)i;
		if (strcmp(action, snapshot_actions[i]) == 0)
			return true;
	}
	return false;
}

static void line_serve(struct control *control, struct control_client *client)
{
	struct control_request request = {0};
	/* Depth is bounded by jansson, size by the line. */
	json_t *o = json_loadb(client->line, client->used, JSON_REJECT_DUPLICATES, NULL);
	const char *command = json_string_value(json_object_get(o, "command"));

	request.force = json_is_true(json_object_get(o, "force"));
	if (!command) {
		control_reply_error(client, "not a request");
	} else if (strcmp(command, "status") == 0) {
		request.command = CONTROL_STATUS;
		control->serve(control->arg, client, &request);
	} else if (strcmp(command, "stop") == 0) {
		request.command = CONTROL_STOP;
		control->serve(control->arg, client, &request);
	} else if (strcmp(command, "retry") == 0) {
		request.command = CONTROL_RETRY;
		control->serve(control->arg, client, &request);
	} else if (strcmp(command, "resize") == 0) {
		json_t *size = json_object_get(o, "size");

		request.command = CONTROL_RESIZE;
		request.size_bytes = (uint64_t)json_integer_value(size);
		if (json_is_integer(size) && json_integer_value(size) > 0)
			control->serve(control->arg, client, &request);
		else
			control_reply_error(client, "the size is not a number above 0");
	} else if (strcmp(command, "snapshot") == 0) {
		if (snapshot_parse(&request, o))
			control->serve(control->arg, client, &request);
		else
			control_reply_error(client, "not a request");
	} else {
		control_reply_error(client, "unknown command");
	}
	json_decref(o);
}

/* Rule 3. Who has only closed his end for writing still listens. */
static bool client_is_gone(const struct control_client *client)
{
	struct pollfd pfd = {.fd = client->fd};

	return poll(&pfd, 1, 0) > 0 && pfd.revents & POLLHUP;
}

static void client_read(struct control *control, struct control_client *client)
{
	size_t space = sizeof(client->line) - client->used;
	ssize_t n = recv(client->fd, client->line + client->used, space, MSG_DONTWAIT);
	char *end;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		client_close(client);
		return;
	}
	end = memchr(client->line + client->used, '\n', (size_t)n);
	client->used += (size_t)n;
	if (end && client_is_gone(client)) {
		log_info("a control request was dropped, as nobody waits for its answer any more");
		client_close(client);
	} else if (end) {
		client->used = (size_t)(end - client->line);
		line_serve(control, client);
	} else if (client->used == sizeof(client->line)) {
		control_reply_error(client, "the request is too long");
	}
}

unsigned control_poll_prepare(struct control *control, struct pollfd *pfds, int *timeout_ms)
{
	uint64_t now = control_now_ms();

	pfds[0] = (struct pollfd){.fd = control->fd, .events = POLLIN};
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		const struct control_client *c = &control->clients[i];
		int left = 0;

		/* A free place has -1, which poll passes over. */
		pfds[1 + i] = (struct pollfd){.fd = c->fd, .events = POLLIN};
		if (c->fd < 0)
			continue;
		if (c->deadline_ms > now)
			left = (int)(c->deadline_ms - now);
		if (*timeout_ms < 0 || left < *timeout_ms)
			*timeout_ms = left;
	}
	return CONTROL_POLL_MAX;
}

void control_poll_done(struct control *control, const struct pollfd *pfds, unsigned count)
{
	uint64_t now = control_now_ms();

	for (unsigned i = 0; i + 1 < count; i++) {
		struct control_client *c = &control->clients[i];

		if (c->fd >= 0 && pfds[1 + i].fd == c->fd && pfds[1 + i].revents)
			client_read(control, c);
		if (c->fd >= 0 && c->deadline_ms <= now)
			client_close(c);
	}
	if (pfds[0].revents)
		client_accept(control);
}

/* ---- client ---- */

/* Reads up to the end of the line; the deadline is for all of it. */
static int line_receive(int fd, char *line, size_t size, uint64_t deadline_ms)
{
	size_t used = 0;

	for (;;) {
		uint64_t now = control_now_ms();
		struct pollfd pfd = {.fd = fd, .events = POLLIN};
		ssize_t n;

		if (now >= deadline_ms || poll(&pfd, 1, (int)(deadline_ms - now)) == 0)
			return -ETIMEDOUT;
		n = recv(fd, line + used, size - 1 - used, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			return n ? -errno : -EPIPE;
		used += (size_t)n;
		line[used] = '\0';
		if (memchr(line, '\n', used))
			return 0;
		if (used == size - 1)
			return -EMSGSIZE;
	}
}

/* *@out is set where the answer is one of ok. */
static int answer_judge(const char *line, json_t **out, struct error *err)
{
	json_t *o = json_loads(line, 0, NULL);
	const char *text = json_string_value(json_object_get(o, "error"));
	int ret = 0;

	if (json_is_true(json_object_get(o, "busy")))
		ret = -EBUSY;
	else if (json_is_true(json_object_get(o, "left")))
		ret = -EUCLEAN;
	else if (!json_is_true(json_object_get(o, "ok")))
		ret = -EIO;
	if (ret)
		error_set(err, ret, "%s", text ? text : "the daemon gave no answer to be read");
	if (!ret && out)
		*out = o;
	else
		json_decref(o);
	return ret;
}

/* Sends @request, a line, and waits for the answer. */
static int line_ask(const struct statedir *dir, const struct entry *e, const char *request,
		    int timeout_ms, json_t **out, struct error *err)
{
	uint64_t deadline_ms = control_now_ms() + (uint64_t)timeout_ms;
	struct timeval patience = {timeout_ms / 1000, timeout_ms % 1000 * 1000};
	ssize_t len = (ssize_t)strlen(request);
	struct sockaddr_un addr;
	char line[ANSWER_MAX];
	int fd, ret;

	ret = address_make(&addr, dir, e->key);
	if (ret)
		return ret;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* where a daemon that hangs has been asked often, connecting is what would wait for ever */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) ||
	    connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
	    send(fd, request, (size_t)len, MSG_NOSIGNAL) != len)
		ret = errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (!ret)
		ret = line_receive(fd, line, sizeof(line), deadline_ms);
	close(fd);
	if (ret == -ETIMEDOUT)
		return error_set(err, ret, "no answer from its daemon (process %d) within %d s",
				 (int)e->process.pid, timeout_ms / 1000);
	if (ret)
		return error_set(err, ret, "cannot talk to its daemon (process %d): %s",
				 (int)e->process.pid, strerror(-ret));
	return answer_judge(line, out, err);
}

int control_ask(const struct statedir *dir, const struct entry *e, enum control_command command,
		bool force, int timeout_ms, struct error *err)
{
	static const char *const names[] = {
		[CONTROL_STATUS] = "status",
		[CONTROL_STOP] = "stop",
		[CONTROL_RETRY] = "retry",
	};
	char line[128];

	snprintf(line, sizeof(line), "{\"command\":\"%s\",\"force\":%s}\n", names[command],
		 force ? "true" : "false");
	return line_ask(dir, e, line, timeout_ms, NULL, err);
}

int control_ask_status(const struct statedir *dir, const struct entry *e, int timeout_ms,
		       json_t **out, struct error *err)
{
	return line_ask(dir, e, "{\"command\":\"status\"}\n", timeout_ms, out, err);
}

int control_ask_snapshot(const struct statedir *dir, const struct entry *e,
			 enum control_snapshot action, const char *name, bool force, int timeout_ms,
			 uint64_t *pause_us, struct error *err)
{
	json_t *o = json_pack("{s:s, s:s, s:s, s:b}", "command", "snapshot", "action",
			      snapshot_actions[action], "name", name, "force", force);
	char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
	char *line = NULL;
	json_t *answer = NULL;
	int ret;

	if (!o)
		ret = error_set(err, -EINVAL, "a snapshot's name has to be UTF-8");
	else if (!text || asprintf(&line, "%s\n", text) < 0)
		ret = error_set(err, -ENOMEM, "out of memory");
	else if (strlen(line) > CONTROL_LINE_MAX)
		ret = error_set(err, -EINVAL, "the name is too long");
	else
		ret = line_ask(dir, e, line, timeout_ms, &answer, err);
	if (answer)
		*pause_us = (uint64_t)json_integer_value(json_object_get(answer, "pause_us"));
	json_decref(answer);
	if (text)
		free(line);
	free(text);
	json_decref(o);
	return ret;
}

int control_ask_resize(const struct statedir *dir, const struct entry *e, uint64_t size_bytes,
		       int timeout_ms, struct error *err)
{
	char line[128];

	snprintf(line, sizeof(line), "{\"command\":\"resize\",\"size\":%" PRIu64 "}\n", size_bytes);
	return line_ask(dir, e, line, timeout_ms, NULL, err);
}
