/* SPDX-License-Identifier: MIT */
/*
 * bench.h: a front end without a kernel: it makes requests itself, hands them to a target as any other
 * front end does, and measures. `ublk-qcow2 bench` is its user.
 */
#ifndef TARGET_BENCH_H
#define TARGET_BENCH_H

#include "base/histogram.h"
#include "target/target.h"

#define BENCH_QUEUES_MAX 64

struct bench_job {
	const struct target_ops *target;
	struct target_options open; /* with queues and depth */
	uint64_t requests; /* reads and writes, over all queues; 0: no bound */
	uint64_t time_ns;  /* none is begun after this; 0: no bound */
	uint64_t request_bytes;
	/*
	 * In order: the n-th request is at offset + n * step, modulo the size. At random: at any
	 * multiple of request_bytes.
	 */
	bool random;
	uint64_t offset_bytes, step_bytes;
	uint64_t seed;
	unsigned read_percent; /* of the requests; the others write */
	/*
	 * A queue flushes after this many writes of its own, 0: never; what it has in flight is waited
	 * for before, unless flush_at_once, and the flush itself always.
	 */
	uint64_t flush_interval;
	bool flush_at_once;
};

struct bench_figures {
	uint64_t size_bytes;	   /* of the device */
	unsigned queues;	   /* as many as the target has */
	uint64_t open_ns;	   /* from nothing to a target that takes requests */
	uint64_t run_ns;	   /* from the first request to the last completion */
	uint64_t close_ns;	   /* to the last flush, and all released */
	uint64_t user_ns, system_ns; /* CPU time of the run, all threads */
	uint64_t enters;	   /* io_uring_enter calls of the run */
	uint64_t resident_bytes;   /* of the process, at the end of the run */
	uint64_t resident_idle_bytes; /* before the first request */
	struct histogram reads, writes, flushes; /* ns from submit to completion */
};

/*
 * Opens, runs, closes. An error of a request ends the run and is returned, as is one of opening or
 * closing; @out is then to be ignored. The device's content is overwritten if anything writes.
 */
int bench_run(const struct bench_job *job, struct bench_figures *out, struct error *err) must_check;

#endif
