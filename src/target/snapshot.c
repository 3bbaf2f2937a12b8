/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c: see snapshot.h.
 *
 * The asker and the loop share a job, which the last of the two frees: an asker that has waited too long
 * leaves (the storage hangs, or the device went away with its loop), and the loop may still come to it.
 * One lock and one condition do for all jobs: there is one at a time, but for those whose asker has left.
 */
#include "target/snapshot.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/list.h"
#include "base/math.h"
#include "qcow2.h"
#include "ring/co.h"
#include "ring/loop.h"

struct job {
	struct loop_msg msg;
	struct co_task task;
	struct qcow2_image *img;
	int (*operate)(struct job *job);
	enum target_snapshot what;
	char name[1024];
	uint64_t size_bytes;
	bool done, left; /* by the loop, by the asker */
	int ret;
	uint64_t pause_ns;
	struct error err;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond;
static pthread_once_t cond_once = PTHREAD_ONCE_INIT;

static void cond_make(void)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&cond, &attr);
	pthread_condattr_destroy(&attr);
}

static bool a_loop_failed; /* under the lock: a process with such a one comes to its end */

static void loop_failed(void)
{
	pthread_once(&cond_once, cond_make);
	pthread_mutex_lock(&lock);
	a_loop_failed = true;
	pthread_cond_broadcast(&cond);
	pthread_mutex_unlock(&lock);
}

void snapshot_loop_set(struct loop *loop)
{
	loop_on_failure(loop, loop_failed);
}

static int resize_operate(struct job *job)
{
	return qcow2_resize(job->img, job->size_bytes, &job->err);
}

static int settle_operate(struct job *job)
{
	return qcow2_settle(job->img);
}

static int snapshot_operate(struct job *job)
{
	switch (job->what) {
	case TARGET_SNAPSHOT_CREATE:
		return qcow2_snapshot_create(job->img, job->name, &job->pause_ns, &job->err);
	case TARGET_SNAPSHOT_APPLY:
		return qcow2_snapshot_apply(job->img, job->name, &job->pause_ns, &job->err);
	default:
		return qcow2_snapshot_delete(job->img, job->name, &job->pause_ns, &job->err);
	}
}

static void job_task(struct co_task *task)
{
	struct job *job = container_of(task, struct job, task);
	bool left;

	job->ret = job->operate(job);
	pthread_mutex_lock(&lock);
	job->done = true;
	left = job->left;
	pthread_cond_broadcast(&cond);
	pthread_mutex_unlock(&lock);
	if (left)
		free(job);
}

static void job_arrived(struct loop_msg *msg)
{
	struct job *job = container_of(msg, struct job, msg);

	job->task.fn = job_task;
	list_init(&job->task.list);
	loop_spawn(loop_self(), &job->task);
}

static struct job *job_make(struct qcow2_image *img, int (*operate)(struct job *job))
{
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return NULL;
	pthread_once(&cond_once, cond_make);
	job->img = img;
	job->operate = operate;
	job->msg.fn = job_arrived;
	return job;
}

/* Runs @job, and frees it unless the loop is still at it. */
static int job_run(struct job *job, unsigned wait_ms, uint64_t *pause_ns, struct error *err)
{
	struct timespec until;
	int ret = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += wait_ms / 1000;
	loop_post(qcow2_metadata_loop(job->img), &job->msg);
	pthread_mutex_lock(&lock);
	while (!job->done && !ret && !a_loop_failed)
		ret = pthread_cond_timedwait(&cond, &lock, &until);
	if (!job->done) {
		job->left = true;
		pthread_mutex_unlock(&lock);
		if (!ret)
			return error_set(err, -EIO, "the io_uring of a queue has failed");
		return error_set(err, -ETIMEDOUT,
				 "the image's storage did not do it within %u s; it may still be done",
				 wait_ms / 1000);
	}
	pthread_mutex_unlock(&lock);
	ret = job->ret;
	*pause_ns = job->pause_ns;
	if (ret)
		error_set(err, ret, "%s", error_text(&job->err, ret));
	free(job);
	return ret;
}

int snapshot_run(struct qcow2_image *img, enum target_snapshot what, const char *name,
		 uint64_t *pause_ns, struct error *err)
{
	struct job *job;

	if (strlen(name) >= sizeof(job->name))
		return error_set(err, -EINVAL, "the snapshot's name is too long");
	job = job_make(img, snapshot_operate);
	if (!job)
		return error_set(err, -ENOMEM, "out of memory");
	job->what = what;
	strcpy(job->name, name);
	return job_run(job, SNAPSHOT_WAIT_MS, pause_ns, err);
}

int settle_run(struct qcow2_image *img, struct error *err)
{
	struct job *job = job_make(img, settle_operate);
	uint64_t ignored;

	return job ? job_run(job, SETTLE_WAIT_MS, &ignored, err) : error_set(err, -ENOMEM, "out of memory");
}

int resize_run(struct qcow2_image *img, uint64_t size_bytes, struct error *err)
{
	struct job *job = job_make(img, resize_operate);
	uint64_t ignored;

	if (!job)
		return error_set(err, -ENOMEM, "out of memory");
	job->size_bytes = size_bytes;
	return job_run(job, RESIZE_WAIT_MS, &ignored, err);
}
