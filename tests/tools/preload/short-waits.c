// SPDX-License-Identifier: MIT
/*
 * short-waits.c: a library to preload into the program: who would wait for an answer for 45 s or more waits for
 * three. So a test sees the end of a bound of a minute, or of five.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define LONG_S	45
#define SHORT_S 3

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *lock, const struct timespec *until)
{
	int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
	struct timespec now, soon;

	/* glibc had another one before 2.3.2, which is what dlsym() may find */
	*(void **)&real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
	if (!real)
		abort();
	/* the program's conditions go by the monotonic clock */
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (until->tv_sec - now.tv_sec < LONG_S)
		return real(cond, lock, until);
	soon = *until;
	soon.tv_sec = now.tv_sec + SHORT_S;
	return real(cond, lock, &soon);
}
