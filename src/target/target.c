/* SPDX-License-Identifier: MIT */
/*
 * target.c: the targets by name.
 */
#include "target/target.h"

#include <string.h>

#include "base/math.h"

const struct target_ops *target_find(const char *name)
{
	const struct target_ops *all[] = {&target_qcow2, &target_loop, &target_null};

	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		if (strcmp(all[i]->name, name) == 0)
			return all[i];
	return NULL;
}
