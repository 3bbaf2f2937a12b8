/* SPDX-License-Identifier: MIT */
/*
 * confine.h: what a process gives up before it looks into an image.
 *
 * docs/confinement.md says what this keeps somebody from who has found a fault in the engine, and what not.
 */
#ifndef DAEMON_CONFINE_H
#define DAEMON_CONFINE_H

#include <stdbool.h>

enum confine_role {
	CONFINE_TOOL,	/* a command that reads or changes a detached image */
	CONFINE_WORKER, /* serves a device through ublk, with a helper (target/helper.h) */
	CONFINE_FUSE,	/* serves one through FUSE as root, with a helper */
	CONFINE_HELPER,	/* of the former */
	CONFINE_FUSE_HELPER, /* of the latter: it mounts and unmounts */
};

/* Whether this process has something to give up: root's, that is, and not in a build with sanitizers. */
bool confine_privileged(void);

/*
 * For good, with all threads and children that this thread starts: no more privileges can be got
 * (no_new_privs), all but the role's are dropped, and so are all system calls but those that are needed.
 * Called with one thread. Where the kernel cannot filter system calls that is logged, and the rest is done.
 * Without sanitizers only, which need more.
 */
void confine(enum confine_role role);

/* When the files that the image consists of are open: drops what it took to open them. One thread. */
void confine_opened(enum confine_role role, bool foreign);

/*
 * When the device is there, on each thread that there is: drops what it took to make it. @foreign: the
 * image is another user's, and its mark of being in use (an extended attribute, whose permissions are looked at
 * whenever it is changed) is to be taken away in the end.
 */
void confine_serving(enum confine_role role, bool foreign);

/*
 * When all rings of io_uring are there, after confine(): whoever of this process's threads makes another one is
 * killed.
 */
void confine_rings(void);

#endif
