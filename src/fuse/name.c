/* SPDX-License-Identifier: MIT */
/*
 * name.c: names that are safe as one component of a path. An image's name is its owner's, who may
 * be hostile to the one who attaches it.
 */
#include "fuse/name.h"

#include <stddef.h>
#include <string.h>

static char safe(unsigned char c)
{
	return c < 0x20 || c == 0x7f || c == '/' || c == '\\' ? '_' : (char)c;
}

void fuse_name_sanitize(char out[FUSE_NAME_BYTES], const char *name)
{
	size_t len;

	if (!name || !*name)
		name = "image";
	len = strnlen(name, FUSE_NAME_BYTES);
	if (len == FUSE_NAME_BYTES) {
		/* back to where a UTF-8 sequence begins; four bytes is the longest there is */
		len--;
		for (int i = 0; i < 3 && ((unsigned char)name[len] & 0xc0) == 0x80; i++)
			len--;
	}
	for (size_t i = 0; i < len; i++)
		out[i] = safe((unsigned char)name[i]);
	if (out[0] == '.' || out[0] == '-')
		out[0] = '_';
	out[len] = '\0';
}
