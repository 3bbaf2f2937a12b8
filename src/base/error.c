/* SPDX-License-Identifier: MIT */
/*
 * error.c: writes the message that a user will read; see error.h.
 */
#include "base/error.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/text.h"

int error_set(struct error *err, int ret, const char *fmt, ...)
{
	va_list ap;

	assert(ret < 0);
	if (!err || err->text[0])
		return ret;
	va_start(ap, fmt);
	if (vsnprintf(err->text, sizeof(err->text), fmt, ap) < 0)
		err->text[0] = '\0';
	va_end(ap);
	text_clean(err->text);
	return ret;
}

const char *error_text(const struct error *err, int ret)
{
	const char *text;

	if (err && err->text[0])
		return err->text;
	text = strerrordesc_np(-ret);
	return text ? text : "unknown error";
}
