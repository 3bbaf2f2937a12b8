// SPDX-License-Identifier: MIT
/*
 * size.c: see size.h. All in integers: a fraction is carried as digits over a power of ten, so that
 * what a user wrote is not bent by binary floating point.
 */
#include "base/size.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/math.h"

/* Digits of a fraction that are looked at: 10^18 fits, and 10^-18 of an exbibyte is one byte. */
#define FRACTION_DIGITS_MAX 18

static int digits_parse(const char **pos, unsigned base, uint64_t *out)
{
	uint64_t value = 0;
	const char *p = *pos;

	while (isxdigit((unsigned char)*p)) {
		unsigned digit = isdigit((unsigned char)*p) ? (unsigned)(*p - '0')
							    : (unsigned)((*p | 0x20) - 'a' + 10);

		if (digit >= base)
			break;
		if (!checked_mul(value, (uint64_t)base, &value) ||
		    !checked_add(value, (uint64_t)digit, &value))
			return -ERANGE;
		p++;
	}
	if (p == *pos)
		return -EINVAL;
	*pos = p;
	*out = value;
	return 0;
}

/* The digits after a point, as *num / *den; none is zero. */
static void fraction_parse(const char **pos, uint64_t *num, uint64_t *den)
{
	const char *p = *pos;
	unsigned n = 0;

	*num = 0;
	*den = 1;
	for (; isdigit((unsigned char)*p); p++) {
		if (n++ >= FRACTION_DIGITS_MAX)
			continue;
		*num = *num * 10 + (uint64_t)(*p - '0');
		*den *= 10;
	}
	*pos = p;
}

/* The power of two of a suffix, which may be absent; -1: no suffix of ours. */
static int suffix_shift(const char **pos)
{
	static const char letters[] = "bkmgtpe";
	const char *found;

	if (!**pos)
		return 0;
	found = strchr(letters, tolower((unsigned char)**pos));
	if (!found || (*pos)[1])
		return -1;
	(*pos)++;
	return (int)(found - letters) * 10;
}

int size_parse(const char *text, uint64_t *out)
{
	uint64_t whole, num = 0, den = 1;
	int ret, shift;

	if (text[0] == '0' && (text[1] | 0x20) == 'x') {
		text += 2;
		ret = digits_parse(&text, 16, &whole);
		if (ret)
			return ret;
		if (*text)
			return -EINVAL;
		shift = 0;
	} else {
		ret = digits_parse(&text, 10, &whole);
		if (ret)
			return ret;
		if (*text == '.') {
			text++;
			fraction_parse(&text, &num, &den);
		}
		shift = suffix_shift(&text);
		if (shift < 0 || (shift == 0 && num))
			return -EINVAL;
	}
	if (whole > (uint64_t)INT64_MAX >> shift)
		return -ERANGE;
	/* num < den, so that the sum stays below whole + 1 units. */
	whole = (whole << shift) + (uint64_t)(((unsigned __int128)num << shift) / den);
	if (whole > INT64_MAX)
		return -ERANGE;
	*out = whole;
	return 0;
}

const char *size_format(uint64_t bytes, char buf[SIZE_TEXT_MAX])
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double value = (double)bytes;
	unsigned unit = 0;

	/* Four digits never show: 1000 KiB are 0.977 MiB. */
	while (value >= 1000.0 && unit + 1 < ARRAY_LEN(units)) {
		value /= 1024.0;
		unit++;
	}
	snprintf(buf, SIZE_TEXT_MAX, "%.3g %s", value, units[unit]);
	return buf;
}
