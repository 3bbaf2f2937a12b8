// SPDX-License-Identifier: MIT
/*
 * few-buffers.c: a library to preload into the program: a ring's table of registered buffers has $FEW_BUFFERS
 * places, however many were asked for; with 0 there is none to be had. The ublk driver then cannot put the pages
 * of some requests where it was told to, and says so.
 */
#include <dlfcn.h>
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

int io_uring_register_buffers_sparse(struct io_uring *ring, unsigned nr)
{
	int (*real)(struct io_uring *, unsigned) = dlsym(RTLD_NEXT, "io_uring_register_buffers_sparse");
	const char *text = getenv("FEW_BUFFERS");
	unsigned few = text ? (unsigned)atoi(text) : nr;

	if (!real)
		abort();
	return few ? real(ring, few < nr ? few : nr) : -ENOMEM;
}
