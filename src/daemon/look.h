/* SPDX-License-Identifier: MIT */
/*
 * look.h: what a process that keeps its privileges has to know of an image's header. It is read by a child
 * that has none (confine.h), as whoever made the image may have made it for whoever reads it.
 */
#ifndef DAEMON_LOOK_H
#define DAEMON_LOOK_H

#include <stdbool.h>

#include "base/error.h"
#include "qcow2.h"

struct storage;

struct look {
	bool dirty, data_file;
	bool encrypted, aes; /* aes: by the old method */
	/* Hostile strings, as in struct qcow2_info. */
	char backing_file[QCOW2_NAME_MAX];
	char backing_format[QCOW2_NAME_MAX];
	char data_file_name[QCOW2_NAME_MAX];
};

/* Of a file that is open (storage_file_open()), while this process has one thread. 0 or -errno. */
int look_at(struct storage *st, struct look *out) must_check;

#endif
