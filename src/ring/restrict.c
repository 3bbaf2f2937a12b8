/* SPDX-License-Identifier: MIT */
/* restrict.c: see restrict.h. */
#include "ring/restrict.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <stddef.h>

#include "base/math.h"

/* What may be registered afterwards: files and memory that the process has, and the ring's own descriptor. */
static const uint8_t registrations[] = {
	IORING_REGISTER_BUFFERS, IORING_UNREGISTER_BUFFERS, IORING_REGISTER_FILES_UPDATE,
	IORING_REGISTER_PROBE,	 IORING_REGISTER_RING_FDS,  IORING_UNREGISTER_RING_FDS,
};

static int restrictions_set(struct io_uring *ring, const uint8_t *ops, unsigned count)
{
	struct io_uring_restriction all[RING_OPS_MAX + ARRAY_LEN(registrations) + 1] = {0};
	unsigned n = 0;

	for (unsigned i = 0; i < count; i++, n++) {
		all[n].opcode = IORING_RESTRICTION_SQE_OP;
		all[n].sqe_op = ops[i];
	}
	for (size_t i = 0; i < ARRAY_LEN(registrations); i++, n++) {
		all[n].opcode = IORING_RESTRICTION_REGISTER_OP;
		all[n].register_op = registrations[i];
	}
	all[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
	all[n++].sqe_flags = IOSQE_FIXED_FILE;
	/* liburing 2.3 declares functions for this and the next, but its library lacks them. */
	return io_uring_register((unsigned)ring->ring_fd, IORING_REGISTER_RESTRICTIONS, all, n);
}

/* -EINVAL is for all of them if the kernel does not know one; a probe says which it knows. */
int ring_restrict(struct io_uring *ring, const uint8_t *ops, unsigned count)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
	uint8_t known[RING_OPS_MAX];
	unsigned n = 0;
	int ret;

	assert(count <= RING_OPS_MAX);
	for (unsigned i = 0; i < count; i++)
		if (!probe || ops[i] <= probe->last_op)
			known[n++] = ops[i];
	io_uring_free_probe(probe);
	ret = restrictions_set(ring, known, n);
	return ret < 0 ? ret : 0;
}

int ring_enable(struct io_uring *ring)
{
	int ret = io_uring_register((unsigned)ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);

	return ret < 0 ? ret : 0;
}
