/* SPDX-License-Identifier: MIT */
/*
 * daemon.h: the life of one attached device, from the image to the end of the process.
 */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include <stdbool.h>

#include "base/error.h"
#include "daemon/harden.h"
#include "qcow2.h"
#include "storage/names.h"
#include "target/frontend.h"
#include "target/target.h"

struct supervision;
struct entry;

/* What an image's locks are on: itself, its data file, and the backing files from the top. */
enum { HELD_IMAGE, HELD_DATA, HELD_LAYERS, HELD_FDS = HELD_LAYERS + QCOW2_BACKING_MAX };

struct daemon_config {
	const struct target_ops *target;
	struct target_options target_options; /* path absolute; queues as asked for */
	const struct frontend_ops *frontend;  /* NULL: ublk if it is there, else fuse */
	int id;				      /* -1: any */
	bool no_loop;
	bool no_part_scan;
	bool unprivileged; /* ublk: the device is this user's, who is not root */
	bool hold_enospc; /* requests that meet the end of space are held until there is more */
	/*
	 * Whether a device whose daemon is killed waits for another one; only in the background and
	 * with a front end that can, otherwise it goes away.
	 */
	enum frontend_recovery recovery;
	enum frontend_data_path data_path;
	enum harden_mlock mlock;
	bool foreground; /* in the process that was called: it keeps the caller's view of the file system */

	/* For a supervisor (supervise.h): the entry of a device that waits, and who holds its locks. */
	const char *resume_key;
	bool locks_inherited;
	struct names_policy names; /* what supervise_config() points target_options.names to */
	int held[HELD_FDS]; /* + 1: the descriptors that hold them; 0: none */
	/* Set in its workers. */
	const struct supervision *supervision;
};

/* What the user is told while a device is attached. Texts are one line. */
struct daemon_report {
	void (*note)(struct daemon_report *report, const char *text);
	/* 0: somebody still wants the device. */
	int (*usable)(struct daemon_report *report, const char *device);
};

struct daemon;

/* The front end of that name; NULL if there is none. */
const struct frontend_ops *daemon_frontend_find(const char *name);

/*
 * Attaches the device in this process; on error nothing is left. Blocks SIGTERM, SIGINT and SIGHUP
 * for good: daemon_serve() takes them.
 */
int daemon_attach(struct daemon **out, const struct daemon_config *config,
		  struct daemon_report *report, struct error *err) must_check;
/*
 * Serves until the device is detached, by whatever cause, and frees @d. An error is one that lost
 * something, or left something behind; it has been logged.
 */
int daemon_serve(struct daemon *d) must_check;
/* Takes the device away at once, and frees @d. */
int daemon_detach(struct daemon *d) must_check;
const char *daemon_device(const struct daemon *d);

/*
 * Attaches in the foreground: returns when the device is gone. Messages go to standard error, the
 * device's path to standard output.
 */
int daemon_run(const struct daemon_config *config, struct daemon_report *report,
	       struct error *err) must_check;
/*
 * Attaches in a new process, which serves in the background. Returns when the device is usable, or
 * with the error that the process met. A process that dies or hangs is an error as well.
 */
int daemon_spawn(const struct daemon_config *config, struct daemon_report *report,
		 struct error *err) must_check;

struct statedir;

/* 0 unless a device that is registered is in the way of this one; @err then names it. */
int daemon_conflicts(const struct daemon_config *config, const struct statedir *dir,
		     const struct frontend_ops *frontend, struct error *err) must_check;

/*
 * Takes over a device that waits for it (ENTRY_QUIESCED), like daemon_spawn() does for a new one. Of an
 * encrypted image the passphrase is asked for again (NULL: none): nobody kept it.
 */
int daemon_recover(const struct entry *e, struct secret *passphrase, struct daemon_report *report,
		   struct error *err) must_check;
/*
 * This process becomes the supervisor of the device with entry @key, whose former supervisor ran this
 * program in its place, and left it descriptors: @held as SUPERVISE_COMMAND has them, @secret_fd with the
 * passphrase in it (-1: none). Returns an exit status.
 */
int daemon_resume(const char *key, const char *held, int secret_fd, struct error *err);

#endif
