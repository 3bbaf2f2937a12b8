// SPDX-License-Identifier: MIT
/*
 * look.c: see look.h. The child has the file, and a page or two to put its answer; what is in there is
 * taken for no better than the image itself.
 */
#include "daemon/look.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/confine.h"
#include "storage/storage.h"
#include "target/child.h"

#define LOOK_MS 30000 /* a header, from a disk that may be slow */

struct call {
	struct storage *st;
	struct look *shared;
};

static int look_in_child(void *arg, struct error *err)
{
	const struct call *call = arg;
	struct qcow2_info *info = calloc(1, sizeof(*info));
	int ret;

	if (!info)
		return -ENOMEM;
	confine(CONFINE_TOOL);
	ret = qcow2_info(call->st, info, err);
	if (ret)
		return ret;
	call->shared->dirty = info->dirty;
	call->shared->data_file = info->data_file;
	call->shared->encrypted = info->encryption;
	call->shared->aes = info->encryption && strcmp(info->encryption, "aes") == 0;
	memcpy(call->shared->backing_file, info->backing_file, QCOW2_NAME_MAX);
	memcpy(call->shared->backing_format, info->backing_format, QCOW2_NAME_MAX);
	memcpy(call->shared->data_file_name, info->data_file_name, QCOW2_NAME_MAX);
	return 0;
}

int look_at(struct storage *st, struct look *out)
{
	struct call call = {.st = st};
	struct error err = {0};
	struct child child;
	int ret;

	call.shared = mmap(NULL, sizeof(*call.shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			   -1, 0);
	if (call.shared == MAP_FAILED)
		return -ENOMEM;
	ret = child_start(&child, look_in_child, &call, storage_file_fd(st), &err);
	if (!ret)
		ret = child_finish(&child, LOOK_MS, &err);
	*out = *call.shared;
	out->backing_file[QCOW2_NAME_MAX - 1] = '\0';
	out->backing_format[QCOW2_NAME_MAX - 1] = '\0';
	out->data_file_name[QCOW2_NAME_MAX - 1] = '\0';
	munmap(call.shared, sizeof(*call.shared));
	return ret > 0 ? -EIO : ret;
}
