/* SPDX-License-Identifier: MIT */
/*
 * session.h: a target as one mounted file, its FUSE connection served by a loop.
 */
#ifndef FUSE_SESSION_H
#define FUSE_SESSION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "target/target.h"

struct hold_device;
struct loop;
struct session;

struct session_params {
	struct target *target;
	unsigned depth;	  /* requests from the kernel that are worked on at once */
	struct hold_device *hold;
	bool allow_other; /* users besides the one who mounts; the file's mode still applies */
	/* All on the loop's thread. The kernel has begun to talk: the file can be opened. */
	void (*ready)(void *arg);
	/* The loop device let go of the file. */
	void (*loop_gone)(void *arg);
	/* Once: the connection is gone and nothing is in flight any more. */
	void (*ended)(void *arg);
	void *arg;
};

#define SESSION_PAYLOAD_MAX (1u << 20)	/* what libfuse and the kernel's default allow */
#define SESSION_MEMORY_BYTES (32u << 20) /* of all requests' payloads; many requests get smaller ones */

/* ---- on the main thread ---- */

int session_create(struct session **out, const struct session_params *params,
		   struct error *err) must_check;
/* The longest READ and WRITE. */
uint32_t session_payload_max(const struct session *s);
/* Accepts NULL. After the session has ended, or if it was never started. Does not unmount. */
void session_destroy(struct session *s);

/* @path is an empty file. From here on requests wait in the kernel until the session is started. */
int session_mount(struct session *s, const char *path, struct error *err) must_check;

/*
 * The next opening of the file by process @opener is the loop device's; session_loop_gone() tells
 * when that was closed again, session_opens() does not count it.
 */
void session_expect_loop(struct session *s, pid_t opener);
bool session_loop_gone(const struct session *s);
/* How often the file is open. */
unsigned session_opens(const struct session *s);

/* While it runs: what waits for space is tried again now. */
void session_retry(struct session *s);

/* How many coroutines and submission entries it needs on its loop. */
unsigned session_coroutines(const struct session *s);
unsigned session_sq_entries(const struct session *s);

/* ---- on the loop's thread ---- */

/* After the target's queue 0 was started on @loop. */
void session_start(struct session *s, struct loop *loop);
/*
 * Takes no more requests and ends when those at work have completed. The connection breaks with
 * session_destroy(), if it is not gone by then.
 */
void session_quit(struct session *s);
/* The loop has failed: whoever waits for an answer from the file gets an error. */
void session_break(struct session *s);

#endif
