/* SPDX-License-Identifier: MIT */
/*
 * target.c: the targets by name.
 */
#include "target/target.h"

#include <string.h>

#include "base/math.h"

/* Not in every build: a program that links the block device side alone has no qcow2 engine. */
extern const struct target_ops target_qcow2 __attribute__((weak));

const struct target_ops *target_find(const char *name)
{
	const struct target_ops *all[] = {&target_qcow2, &target_loop, &target_null};

	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		if (all[i] && strcmp(all[i]->name, name) == 0)
			return all[i];
	return NULL;
}
