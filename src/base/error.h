/* SPDX-License-Identifier: MIT */
/*
 * error.h: an error that a user will read.
 *
 * A function that can fail for a reason worth telling takes a `struct error *` and returns 0 or
 * -errno. The text is written once, where the cause is known, and carried up unchanged: the first
 * message wins. Callers above neither add to it nor replace it; the program prints it once, behind
 * "ublk-qcow2: ". A NULL error is allowed everywhere and only loses the text.
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stdarg.h>

#define must_check __attribute__((warn_unused_result))

struct error {
	char text[1024]; /* empty: nothing was said yet */
};

/*
 * Writes a message, unless one is there already. @ret is a negative errno and is returned, so that
 * a caller can `return error_set(err, -EINVAL, "...")`. What is not printable in the
 * result (a name inside an image is hostile) is replaced by '?'; it is valid UTF-8.
 */
__attribute__((format(printf, 3, 4))) int error_set(struct error *err, int ret, const char *fmt, ...);

/* The message, or the text of errno -ret where nobody has written one. Never NULL. */
const char *error_text(const struct error *err, int ret);

#endif
