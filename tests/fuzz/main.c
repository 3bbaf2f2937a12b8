/* SPDX-License-Identifier: MIT */
/*
 * main.c: runs a fuzz target on files, without libFuzzer: main FILE... Each file must be done within
 * a time; the last name printed is the one that failed.
 */
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define SECONDS_MAX 20

static int run_file(const char *path)
{
	FILE *f = fopen(path, "rb");
	uint8_t *data = malloc(FUZZ_INPUT_MAX + 1);
	uint8_t *exact;
	size_t len;

	if (!f || !data) {
		perror(path);
		return 1;
	}
	len = fread(data, 1, FUZZ_INPUT_MAX + 1, f);
	fclose(f);
	/* A block of its own size: reading past its end is found. */
	exact = malloc(len ? len : 1);
	if (!exact)
		return 1;
	for (size_t i = 0; i < len; i++)
		exact[i] = data[i];
	free(data);
	LLVMFuzzerTestOneInput(exact, len);
	free(exact);
	return 0;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		printf("%s\n", argv[i]);
		fflush(stdout);
		alarm(SECONDS_MAX);
		if (run_file(argv[i]))
			return 1;
	}
	return argc > 1 ? 0 : 2;
}
