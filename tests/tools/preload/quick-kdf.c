// SPDX-License-Identifier: MIT
/*
 * quick-kdf.c: a library to preload into qemu-img, which takes seconds to find out how many iterations a passphrase
 * of LUKS is worth: its thread's time is said to be a thousand times as long. The fewest it takes are left.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/resource.h>

static void lengthen(struct timeval *tv)
{
	long long us = (tv->tv_sec * 1000000ll + tv->tv_usec) * 1000;

	tv->tv_sec = us / 1000000;
	tv->tv_usec = us % 1000000;
}

int getrusage(__rusage_who_t who, struct rusage *usage)
{
	int (*real)(__rusage_who_t, struct rusage *) = dlsym(RTLD_NEXT, "getrusage");
	int ret;

	if (!real)
		abort();
	ret = real(who, usage);
	if (!ret && who == RUSAGE_THREAD) {
		lengthen(&usage->ru_utime);
		lengthen(&usage->ru_stime);
	}
	return ret;
}
