/* SPDX-License-Identifier: MIT */
/*
 * memory.c: allocations that fail at open, and that the I/O path makes none; see faults.h.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "faults.h"
#include "memfault.h"

/*
 * Opens with allocation number @n failing. 1: that many were not made, all is open; 0: a clean
 * error and the image is unchanged; -1: something is wrong.
 */
static int open_failing(const struct run_config *cfg, uint64_t n)
{
	struct error err = {0};
	uint64_t made;
	struct run r;
	int ret, result = -1;

	if (run_init(&r, cfg, NULL)) {
		printf("FAILED: %s\n", r.text);
		return -1;
	}
	memfault_arm(n);
	ret = run_open(&r, &err);
	made = memfault_disarm();
	if (r.failed)
		printf("FAILED: allocation %" PRIu64 ": %s\n", n, r.text);
	else if (!ret)
		result = made < n;
	else if (ret != -ENOMEM || !err.text[0])
		printf("FAILED: allocation %" PRIu64 " failed: open says %d \"%s\"\n", n, ret,
		       err.text);
	else
		result = 0;
	if (result == 0 && !ret)
		printf("allocation %" PRIu64 " failed and open went on\n", n);
	for (size_t i = 0; i < r.disk->ops.n && result == 0 && ret; i++) {
		if (sim_op_mutates(r.disk->ops.at[i])) {
			printf("FAILED: allocation %" PRIu64
			       " failed, and open changed the image\n",
			       n);
			result = -1;
		}
	}
	if (r.img)
		run_close(&r);
	run_free(&r);
	return result;
}

/* A whole workload; how many allocations it made. */
static uint64_t count_allocations(const struct run_config *cfg, bool *ok)
{
	struct error err = {0};
	uint64_t made = 0;
	struct run r;
	int ret = run_init(&r, cfg, NULL);

	if (!ret)
		ret = run_open(&r, &err);
	if (ret)
		run_fail(&r, "open: %s", error_text(&err, ret));
	if (!r.failed) {
		memfault_arm(0);
		run_requests(&r, cfg->requests);
		made = memfault_disarm();
	}
	if (!r.failed)
		run_close(&r);
	if (r.failed) {
		printf("FAILED: %s\n", r.text);
		run_config_print(cfg);
	}
	*ok = !r.failed;
	run_free(&r);
	return made;
}

int memory_run(void)
{
	struct run_config cfg;
	uint64_t places = 0, workloads = 0;
	int result;

	for (uint64_t seed = 1; seed <= 3; seed++) {
		run_config_make(&cfg, RUN_SMALL, seed);
		for (uint64_t n = 1;; n++) {
			result = open_failing(&cfg, n);
			if (result)
				break;
			places++;
		}
		if (result < 0)
			return 1;
	}
	for (uint64_t seed = 1; seed <= 60; seed++) {
		uint64_t made;
		bool ok;

		run_config_make(&cfg, seed % 20 ? seed % 3 : RUN_GROW, seed);
		made = count_allocations(&cfg, &ok);
		workloads++;
		if (!ok)
			return 1;
		if (made) {
			printf("FAILED: %s seed %" PRIu64 ": the I/O path made %" PRIu64
			       " allocations\n",
			       run_profile_names[cfg.profile], seed, made);
			return 1;
		}
	}
	printf("%" PRIu64 " allocations failed at open, each with a clean error; %" PRIu64
	       " workloads made none\n",
	       places, workloads);
	return 0;
}
