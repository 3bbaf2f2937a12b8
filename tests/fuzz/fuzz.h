/* SPDX-License-Identifier: MIT */
/*
 * fuzz.h: what a fuzz target is: a function that takes the bytes of an image file and must return, in
 * bounded time and memory, whatever they are. Built with libFuzzer (make fuzz), or with main.c, which
 * replays files.
 */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#define FUZZ_INPUT_MAX ((size_t)1 << 20)
#define FUZZ_FILE_MAX  ((uint64_t)16 << 20) /* how far the image file may grow */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/*
 * Some bits that change with the input and are part of it: its last 16 bytes. An image is none the
 * worse for what its end holds, so a corpus file is a plain image.
 */
static inline uint64_t fuzz_control(const uint8_t *data, size_t size, unsigned which)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < 8; i++) {
		size_t back = 16 - which * 8 - i;

		v = v << 8 | (size >= back ? data[size - back] : 0);
	}
	return v;
}

#endif
