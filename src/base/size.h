/* SPDX-License-Identifier: MIT */
/*
 * size.h: sizes as users write them, read and printed as qemu-img does.
 */
#ifndef BASE_SIZE_H
#define BASE_SIZE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/*
 * Reads "4096", "0x1000", "64k", "1.5G": decimal with an optional suffix b, k, M, G, T, P or E of
 * either case (powers of 1024; none: bytes), and a fraction where the suffix is more than b; what is
 * left below a byte is cut off. Hexadecimal takes no suffix. No sign, no blanks, nothing behind.
 *
 * -EINVAL: not a size; -ERANGE: more than INT64_MAX. *out is written on success only.
 */
int size_parse(const char *text, uint64_t *out) must_check;

/* Three significant digits and a unit: "1.5 GiB". Returns @buf. */
#define SIZE_TEXT_MAX 24
const char *size_format(uint64_t bytes, char buf[SIZE_TEXT_MAX]);

#endif
