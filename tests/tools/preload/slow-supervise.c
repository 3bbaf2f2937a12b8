// SPDX-License-Identifier: MIT
/*
 * slow-supervise.c: a library that lets a supervisor which has just become another program wait for a second
 * before it does anything, so that whatever lapses meanwhile can be seen.
 *
 *   LD_PRELOAD=slow-supervise.so
 */
#include <string.h>
#include <unistd.h>

__attribute__((constructor)) static void wait_here(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "supervise") == 0)
		sleep(1);
}
