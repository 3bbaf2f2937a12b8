/* SPDX-License-Identifier: MIT */
/*
 * helper.h: a process beside the one that serves, which keeps the privileges that the other gives up.
 *
 * What parses an image and moves its data needs no privileges once its files are open. What it needs
 * now and then, commands to the driver and a look at who uses the device, is asked of a helper, which is
 * forked before the privileges are dropped and does these few things, for one device, and nothing else.
 * It sees nothing of the image but what is in the questions.
 *
 * One thread asks, one question at a time.
 */
#ifndef TARGET_HELPER_H
#define TARGET_HELPER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define HELPER_BYTES 2048 /* of a question, and of its answer */

enum helper_question {
	HELPER_COMMAND,	 /* to the driver */
	HELPER_BUSY,	 /* whether somebody has the device open */
	HELPER_DESCRIBE, /* who that is */
	HELPER_SCAN,	 /* look for partitions */
	HELPER_HOST,	 /* mounts and loop devices */
	HELPER_QUESTIONS,
};

struct helper;

/*
 * In the helper: answers the question in @data, of @bytes, in the same place; returns 0 or more, or -errno.
 * @given_up(): whether the other side waits no longer.
 */
typedef int (*helper_fn)(void *data, size_t bytes, bool (*given_up)(void *arg), void *arg);

struct helper_config {
	helper_fn fns[HELPER_QUESTIONS]; /* NULL: not answered, -EOPNOTSUPP */
	void (*confine)(void);		 /* called first in the helper; drops what it does not need */
	void (*ended)(void); /* called last, when nobody asks any more: the other side may have been killed; or NULL */
	const char *run_dir;		 /* the program's folder of state; NULL: none */
};

/* Of the descriptors above 2 the helper keeps none; it ends when this process does. */
int helper_start(struct helper **out, const struct helper_config *config, struct error *err) must_check;
void helper_stop(struct helper *helper); /* accepts NULL; for the sake of tidiness */
/* A descriptor that polls POLLHUP when there is no helper any more (it was killed); for that alone. */
int helper_fd(const struct helper *helper);

/*
 * Asks, and waits for the answer: what the function returned. Asks @given_up(@arg), if there is one, now
 * and then, and tells the helper. -ETIMEDOUT: no answer. -EPIPE: there is no helper any more.
 */
int helper_ask(struct helper *helper, enum helper_question question, void *data, size_t bytes,
	       unsigned timeout_ms, bool (*given_up)(void *arg), void *arg) must_check;

/* The same with a descriptor of ours, which the helper has for as long as it works on the answer. */
int helper_ask_with(struct helper *helper, enum helper_question question, void *data, size_t bytes, int fd,
		    unsigned timeout_ms) must_check;

/* ---- in the helper ---- */

/* What came with the question at hand; -1: nothing. Stays the helper's to close. */
int helper_given_fd(void);
/* As it was configured; empty: not. */
const char *helper_run_dir(void);

#endif
