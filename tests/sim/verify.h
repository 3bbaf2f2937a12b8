/* SPDX-License-Identifier: MIT */
/*
 * verify.h: whether one state of the disk keeps what was promised.
 *
 * Always: the judge finds no corruption (where the dirty bit is set: after the engine's repair),
 * the engine opens the image read-only, and every guest sector holds a value that the model allows.
 * Deeper, for a sample: the engine opens it for writing, writes, discards, flushes and closes, and
 * the same holds again. Elsewhere, for a sample: the engine's own checker and `qemu-img check`
 * agree with the judge, and what QEMU reads is allowed as well.
 */
#ifndef SIM_VERIFY_H
#define SIM_VERIFY_H

#include "judge.h"
#include "run.h"
#include "simview.h"

enum {
	VERIFY_DEEP = 1 << 0,
	VERIFY_CHECKER = 1 << 1,
	VERIFY_QEMU = 1 << 2,
	VERIFY_NO_LEAKS = 1 << 3,
};

/* Of struct verifier's memory. */
#define VERIFY_CHUNK_BYTES ((uint64_t)64 << 10)

struct verifier {
	struct loop *loop;
	struct judge judge;
	struct blk_request req;
	bool done;
	int ret;
	uint8_t *mem;
	const char *snapshot; /* what verify_values() looks at; NULL: the disk */
	bool broken; /* a failure has left coroutines behind: it cannot be used again */

	struct bits bits; /* of the state that is looked at */

	uint64_t bitmaps; /* states in which there was a valid bitmap */
	uint64_t states, deep, checker, qemu, dirty, leaky; /* how many there were */
};

int verifier_init(struct verifier *v);
void verifier_free(struct verifier *v);

/* What each guest sector holds, by the engine; false if it cannot be read. */
bool verify_values(struct verifier *v, struct run *r, struct simview *view, uint32_t *values,
		   char *text, size_t len);

/*
 * Looks at the map under @view; guest_crash_at() has been called. False, and a message in @text, if
 * it is bad. Changes to the map are undone by simview_rewind().
 */
bool verify_state(struct verifier *v, struct run *r, struct simview *view, unsigned how,
		  uint64_t seed, char *text, size_t len);

#endif
