/* SPDX-License-Identifier: MIT */
/*
 * status.h: what an attached device is and has done, for `info`.
 */
#ifndef CLI_STATUS_H
#define CLI_STATUS_H

#include <stdbool.h>

/* Whether @name is a device of ours, by path or by a number that is no file's name; an image is not. */
bool status_is_device(const char *name);
/* Prints what is known of it; a cli_status. */
int status_print(const char *name, bool json);

#endif
