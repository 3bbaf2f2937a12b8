/* SPDX-License-Identifier: MIT */
/*
 * broken.c: whether rule 6 is in force in a run: nothing becomes durable any more.
 */
#include "qcow2/image.h"
#include "run.h"

void run_note_given_up(struct run *r)
{
	unsigned written = 0, read = 0; /* headers, and the sector was read for each */

	if (r->gave_up || !r->img || !r->img->wb.sync_failed)
		return;
	for (size_t i = 0; i < r->disk->ops.n; i++) {
		const struct sim_op *op = r->disk->ops.at[i];

		if (op->sector || op->file != r->file->number || !op->ret)
			continue;
		written += op->op == STORAGE_WRITE;
		read += op->op == STORAGE_READ;
	}
	r->gave_up = written && written + read > 1;
}

bool run_sync_failed(const struct run *r)
{
	if (r->gave_up)
		return true;
	for (size_t i = 0; i < r->disk->ops.n; i++) {
		const struct sim_op *op = r->disk->ops.at[i];

		if (op->ret && op->done != SIM_NEVER && !op->killed &&
		    (op->op == STORAGE_SYNC ||
		     (op->op == STORAGE_WRITE && op->flags & STORAGE_DSYNC)))
			return true;
	}
	return false;
}
