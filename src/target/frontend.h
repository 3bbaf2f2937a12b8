/* SPDX-License-Identifier: MIT */
/*
 * frontend.h: how a target becomes a block device.
 *
 * A front end starts threads, one for each queue, each with a loop, starts the target's queues on
 * them, and makes the device appear. All functions below are called on the main thread, which owns
 * the front end; none of them blocks without bound.
 */
#ifndef TARGET_FRONTEND_H
#define TARGET_FRONTEND_H

#include "target/helper.h"
#include "target/target.h"

struct frontend;

/* What becomes of the device when the process that serves it dies. */
enum frontend_recovery {
	FRONTEND_RECOVERY_OFF,	   /* it goes away */
	FRONTEND_RECOVERY_REISSUE, /* it waits for another process, which gets the I/O in flight again */
	FRONTEND_RECOVERY_FAIL,	   /* the same, but I/O fails until that process is there */
};

/* How the payload of requests gets from the kernel to the target and back. */
enum frontend_data_path {
	FRONTEND_DATA_AUTO,	 /* without a copy where kernel and target can, else the kernel copies */
	FRONTEND_DATA_COPY,	 /* the kernel copies */
	FRONTEND_DATA_USER_COPY, /* this program copies */
	FRONTEND_DATA_ZERO_COPY, /* nobody copies, where that is possible */
};

struct frontend_options {
	int id;		      /* device number wanted; -1: any */
	unsigned queues;      /* already bounded by limits.max_queues */
	unsigned depth;	      /* requests in flight in each queue */
	enum frontend_recovery recovery; /* what the front end cannot do is left out */
	enum frontend_data_path data_path; /* a front end that has one alone ignores it */
	bool unprivileged;    /* ublk: a device of this user's, who is not root; without recovery */
	bool recover;	      /* take over device @id, whose process died, instead of making one */
	bool no_part_scan;    /* partitions are not looked for */
	bool wait_partitions; /* start() returns when their nodes are there, too */
	bool no_loop;	      /* fuse: the file alone, no loop device on it */
	bool hold_enospc;     /* requests that meet the end of space wait for more (hold.h) */
	struct helper *helper; /* does what needs privileges; NULL: this process has them */
	/* Called by start() as soon as a device is made that is left behind if this process dies. NULL: nobody. */
	void (*made)(void *arg, int id);
	void *made_arg;
	/* Called on every thread of a queue as soon as the kernel has made the device; NULL: nothing. */
	void (*settled)(void);
	const char *run_dir;  /* the program's folder of state, such as /run/ublk-qcow2 */
	const char *name;     /* the image's base name, for the FUSE file; "null" if there is none */
};

/* What a queue has done. Of the loop it runs on: see struct loop_counts. */
struct frontend_figures {
	uint64_t reads, writes, others; /* requests that came in */
	uint64_t enters, messages, coroutines, locks;
	uint64_t fallbacks; /* requests that came in without the registered buffer that was asked for */
};

struct frontend_ops {
	const char *name; /* "ublk", "fuse" */
	unsigned queues_max; /* 0: as many as one likes */
	bool can_recover; /* knows options.recovery and options.recover */
	/* What a request can hold at most, and what all in flight are to hold together. */
	uint32_t request_max_bytes;
	uint32_t loop_request_max_bytes; /* the same through the loop device; 0: there is none */
	uint64_t requests_max_bytes;

	/* 0 if this host has it; else -errno and @err says why in one phrase ("no /dev/ublk-control"). */
	int (*probe)(struct error *err);
	/* What a helper answers for this front end; NULL: it asks no such thing. */
	helper_fn help[HELPER_QUESTIONS];
	void (*help_ended)(void); /* and what it does when it ends; NULL: nothing */
	/*
	 * Makes the device and returns when it is usable (its node is there). The target stays the
	 * caller's. On error nothing is left behind, but with -EUCLEAN.
	 */
	int (*start)(struct frontend **out, struct target *t, const struct frontend_options *opts,
		     struct error *err);
	/* The device number that was given, and its path (/dev/ublkb0, /dev/loop0, or the FUSE file). */
	int (*id)(const struct frontend *f);
	const char *(*device)(const struct frontend *f);
	/* How many queues there are: maybe fewer than were asked for. */
	unsigned (*queues)(const struct frontend *f);
	/* Of how many requests each is; NULL: of as many as were asked for. */
	unsigned (*depth)(const struct frontend *f);
	/* "copy", "user-copy", "zero-copy"; NULL if there is but one. */
	const char *(*data_path)(const struct frontend *f);
	/* NULL if there are none. */
	void (*figures)(const struct frontend *f, unsigned queue, struct frontend_figures *out);
	/*
	 * A file descriptor that polls readable when the device has gone away by itself (deleted from
	 * outside, unmounted, a queue thread failed); -1: none.
	 */
	int (*gone_fd)(const struct frontend *f);
	/* Whether that is since a part of this process failed: its io_uring. NULL: never. */
	bool (*failed)(const struct frontend *f);
	/* Whether somebody has the device open or mounted: > 0 yes, 0 no, -errno unknown. */
	int (*busy)(const struct frontend *f);
	/*
	 * With options.hold_enospc: a descriptor that is an eventfd, written to when the first request is held
	 * and when the last one has gone on; how many are held; and a try of all of them now.
	 */
	int (*hold_fd)(const struct frontend *f);
	unsigned (*held)(const struct frontend *f);
	void (*retry)(struct frontend *f);
	/*
	 * Takes the device from its node if nobody has it open; -EBUSY, with nothing changed, if somebody has.
	 * What busy() said may have changed since; this cannot. Then stop() is due. -EOPNOTSUPP: this kernel
	 * cannot; NULL: nor can this front end.
	 */
	int (*release)(struct frontend *f, struct error *err);
	/*
	 * The device gets another size, a multiple of the logical block, and with it target_size(). The
	 * target serves that size already if it is larger, and still serves the old one if it is smaller.
	 * -EOPNOTSUPP: a running device cannot be resized here. On error the size is what it was, but for
	 * -ETIMEDOUT and -EPIPE: the device may get the new one yet, the larger of the two is served, and the call
	 * can be repeated. Nothing is done where the device is known to have that size.
	 */
	int (*resize)(struct frontend *f, uint64_t size_bytes, struct error *err);
	/*
	 * Takes the device away, letting I/O in flight finish, and frees @f. What is held for want of space
	 * gets one more try, and fails if that does. Afterwards every queue of
	 * the target has been stopped. Bounded in time; on error the device may be left behind, @err
	 * says so, and @f is freed all the same.
	 *
	 * -ETIMEDOUT, from here or from start: a request in the target does not end, so its queue's
	 * thread could not be ended either. The target must not be closed then: the caller exits.
	 */
	int (*stop)(struct frontend *f, struct error *err);
};

/*
 * The block device is part of how the kernel gets memory back (it writes dirty pages to it), so what
 * serves it must not wait for memory to be got back. The allocations in the kernel of this thread, and of
 * those and of the processes that it starts afterwards, start no I/O, where the privileges suffice; a
 * warning is logged once where they do not. And the start of its stack is there.
 *
 * The program calls it before it opens a target, so that the target's own threads inherit it; a front end
 * calls it again in its threads. Locking memory (base/memlock.h) is the program's.
 */
void frontend_protect_thread(void);

extern const struct frontend_ops frontend_ublk;
extern const struct frontend_ops frontend_fuse;

#endif
