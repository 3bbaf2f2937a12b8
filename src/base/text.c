// SPDX-License-Identifier: MIT
/*
 * text.c: see text.h.
 */
#include "base/text.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The length of the UTF-8 sequence at @p that may be shown as it is; 0: none starts here. Shortest
 * forms only, no surrogates, none of the control characters and none that reorder the text.
 */
static size_t utf8_printable(const unsigned char *p)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	uint32_t code;
	size_t len;

	if (p[0] < 0x80)
		return p[0] >= 0x20 && p[0] != 0x7f;
	if (p[0] >= 0xc2 && p[0] <= 0xdf)
		len = 2;
	else if ((p[0] & 0xf0) == 0xe0)
		len = 3;
	else if (p[0] >= 0xf0 && p[0] <= 0xf4)
		len = 4;
	else
		return 0;
	code = p[0] & (0x7fu >> len);
	for (size_t i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (p[i] & 0x3f);
	}
	if (code < least[len] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
		return 0;
	if (code < 0xa0 || (code >= 0x200b && code <= 0x200f) ||
	    (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) ||
	    code == 0xfeff)
		return 0;
	return len;
}

char *text_escape(const char *name)
{
	const unsigned char *p = (const unsigned char *)name;
	char *text = malloc(4 * strlen(name) + 1);
	char *out = text;

	if (!text)
		return NULL;
	while (*p) {
		size_t len = utf8_printable(p);

		if (len) {
			memcpy(out, p, len);
			out += len;
			p += len;
		} else {
			out += sprintf(out, "\\x%02x", *p++);
		}
	}
	*out = '\0';
	return text;
}

void text_clean(char *text)
{
	unsigned char *p = (unsigned char *)text;

	while (*p) {
		size_t len = utf8_printable(p);

		if (!len)
			*p = '?';
		p += len ? len : 1;
	}
}
