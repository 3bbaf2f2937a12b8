/* SPDX-License-Identifier: MIT */
/*
 * entry.h: what is known of one attached device, as a file KEY.json in the folder of state.
 *
 * The daemon alone writes its entry, as a whole and by rename, so that a reader sees an old state or a
 * new one. It removes it when the device is gone. An entry whose process is gone is *dead*: the device,
 * a mount or a loop device may be left, and `del` cleans them up and removes the entry. KEY is made of
 * the process number and start time (of the supervisor, if there is one: supervise.h); the daemon's
 * control socket is KEY.sock.
 */
#ifndef DAEMON_ENTRY_H
#define DAEMON_ENTRY_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/error.h"
#include "daemon/process.h"
#include "daemon/statedir.h"

struct json_t;

enum entry_state {
	ENTRY_STARTING, /* the device is not there yet */
	ENTRY_LIVE,
	ENTRY_STOPPING,
	/* These are never in a file, but seen by the reader: the daemon is dead, ... */
	ENTRY_RECOVERING, /* ... and its supervisor starts another */
	ENTRY_QUIESCED,	  /* ... and its supervisor; the device waits for `recover` */
	ENTRY_DEAD,	  /* ... and the device is of no use */
};

#define ENTRY_KEY_MAX 48
/* For all folders of --backing-dir together, each with its NUL, and one more. */
#define ENTRY_DIRS_BYTES 8192

struct entry {
	char key[ENTRY_KEY_MAX];
	struct process process;
	struct process supervisor; /* pid 0: none */
	enum entry_state state;
	int id; /* -1: not known yet */
	char frontend[16];
	char target[16];
	char device[PATH_MAX];	 /* empty: not known yet */
	char image[PATH_MAX];	 /* absolute; empty: none */
	char image_id[64];	 /* the same for every name of one file; empty: none */
	uint64_t size_bytes;
	unsigned queues, depth;
	char data_path[16]; /* empty: not known yet, or there is but one */
	bool read_only;
	bool direct;
	bool recovery; /* the device outlives its daemon */
	bool recovery_fail; /* ... and its I/O fails meanwhile, instead of waiting */
	uint64_t cache_size_bytes, writeback_delay_ms; /* as asked for; 0: default */
	bool compress;
	bool discard_ignore;
	unsigned detect_zeroes; /* enum qcow2_detect_zeroes */
	unsigned mlock;		/* enum harden_mlock, as asked for */
	bool memory_locked;
	bool hold_enospc; /* --on-enospc stop */
	bool no_space;	  /* ... and requests are held right now */
	/* where names in the image may lead (storage/names.h): folders one after the other, ended by "" */
	char backing_dirs[ENTRY_DIRS_BYTES];
	bool backing_any;
	char image_as[PATH_MAX]; /* the link that was given for the image; empty: none */
	char backing_format[8]; /* of --backing-format; empty: none */
	char snapshot[256];	/* of --snapshot; empty: none */
	int64_t started; /* seconds since 1970 */
};

const char *entry_state_name(enum entry_state state);
/* Nobody is there to be asked; what is left can be cleaned up. */
static inline bool entry_is_dead(const struct entry *e)
{
	return e->state == ENTRY_DEAD || e->state == ENTRY_QUIESCED;
}

/* A daemon serves a ublk device that is not there any more: it is about to notice, or it hangs. */
bool entry_lost_device(const struct entry *e);

/* The identity of a file or block device, for entry.image_id. */
void entry_image_id(char out[64], const struct stat *st);

/* Fills in key and process for this process. */
int entry_init(struct entry *e, struct error *err) must_check;
int entry_write(const struct entry *e, const struct statedir *dir, struct error *err) must_check;
/* Removes the file and the socket. */
void entry_remove(const struct entry *e, const struct statedir *dir);

/*
 * Removes files that belong to no entry, of processes that are gone: one that is killed may leave its log
 * before it has an entry, or when it has it no more. Under the lock of the folder.
 */
void entry_sweep(const struct statedir *dir);

struct entry_list {
	struct entry *entries;
	size_t count;
	unsigned unreadable; /* files that are no entries */
};

/*
 * All entries, by device id, with dead ones recognised. A folder that does not exist has none. The
 * list is to be freed also on error.
 */
int entry_list_read(struct entry_list *list, const struct statedir *dir, struct error *err) must_check;
void entry_list_free(struct entry_list *list);

/* What `list --json` and a status request show; NULL without memory. */
struct json_t *entry_to_json(const struct entry *e);

#endif
