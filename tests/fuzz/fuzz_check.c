/* SPDX-License-Identifier: MIT */
/*
 * fuzz_check.c: checking any file, and repairing it; what a repair of everything leaves has no
 * corruption when it says so.
 */
#include "fuzz.h"

#include <assert.h>
#include <string.h>

#include "memdisk.h"
#include "qcow2/check.h"

#define CHECK_MEMORY ((uint64_t)64 << 20)

static void finding(void *arg, enum qcow2_finding kind, const char *text)
{
	assert(text[0] && !strchr(text, '\n'));
}

static int run(struct storage *st, enum qcow2_repair repair, struct qcow2_check_result *res)
{
	struct qcow2_check_options opts = {
		.repair = repair,
		.memory_bytes = CHECK_MEMORY,
		.finding = finding,
	};
	struct error err = {0};
	int ret = qcow2_check(st, &opts, res, &err);

	assert(ret == 0 || (err.text[0] && !strchr(err.text, '\n')));
	return ret;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct qcow2_check_result res, again;
	struct storage *st;
	enum qcow2_repair repair;
	int ret;

	if (size > FUZZ_INPUT_MAX)
		return 0;
	repair = fuzz_control(data, size, 0) & 1 ? QCOW2_REPAIR_ALL : QCOW2_REPAIR_LEAKS;
	st = memdisk_create(data, size, FUZZ_FILE_MAX, 1);
	ret = run(st, QCOW2_REPAIR_NONE, &res);
	if (ret == 0)
		ret = run(st, repair, &res);
	if (ret == 0 && run(st, QCOW2_REPAIR_NONE, &again) == 0 && repair == QCOW2_REPAIR_ALL &&
	    !res.corruptions && !res.errors)
		assert(!again.corruptions);
	storage_close(st);
	return 0;
}
