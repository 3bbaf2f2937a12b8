/* SPDX-License-Identifier: MIT */
/* fuzz_header.c: probing any file and showing what its header says. */
#include "fuzz.h"

#include <assert.h>
#include <string.h>

#include "memdisk.h"
#include "qcow2.h"

static struct qcow2_info info;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err = {0};
	struct storage *st;
	int ret;

	if (size > FUZZ_INPUT_MAX)
		return 0;
	st = memdisk_create(data, size, FUZZ_INPUT_MAX, 1);
	st->read_only = true;
	ret = qcow2_info(st, &info, &err);
	if (ret == 0) {
		assert(qcow2_probe(data, size));
		assert(memchr(info.backing_file, 0, sizeof(info.backing_file)));
		assert(memchr(info.data_file_name, 0, sizeof(info.data_file_name)));
		assert(info.cluster_bytes >= 512 && info.cluster_bytes <= 2 << 20);
	} else {
		assert(err.text[0] && !strchr(err.text, '\n'));
	}
	storage_close(st);
	return 0;
}
