/* SPDX-License-Identifier: MIT */
/*
 * queue.c: what an image asks of all its queues at once.
 *
 * A *quiet point* of a queue is any moment between two runs of its callbacks and coroutines: there
 * nobody stands on a cached slice. A *grace period* is over when every request that was in an epoch
 * when it began has left it. Both are asked for by a message to each queue, whose handler runs on the
 * queue's own loop; a queue on the metadata loop itself is asked directly.
 *
 * One grace period at a time.
 *
 * A *hold* keeps requests at the entrance while a structural operation runs (rules 10 and 17): each queue
 * is told what to hold back, and answers when what it has of that in flight has completed. A queue that is
 * made meanwhile holds as well. One hold at a time (img->barrier).
 *
 * A question on its way keeps its queue: who destroys one waits until it has answered.
 */
#include <errno.h>
#include <stdlib.h>

#include "qcow2/image.h"
#include "qcow2/inflate.h"
#include "qcow2/request.h"

/* A question to one queue, and the way back. Static in number: one for each queue, per asker. */
struct ask {
	struct loop_msg msg;
	struct qcow2_queue *q;
	struct loop *back;
	struct co_latch *latch;
	void (*fn)(struct ask *ask);
};

static void ask_answered(struct loop_msg *msg)
{
	co_latch_done(container_of(msg, struct ask, msg)->latch, 0);
}

/* On the queue's loop. */
static void ask_answer(struct ask *ask)
{
	struct qcow2_queue *q = ask->q;

	ask->msg.fn = ask_answered;
	if (ask->back == q->loop) {
		ask_answered(&ask->msg);
		return;
	}
	loop_mutex_lock(&q->img->queues_lock);
	q->asks--;
	pthread_mutex_unlock(&q->img->queues_lock);
	co_wake_all(&q->answered);
	loop_post(ask->back, &ask->msg);
}

static void ask_arrived(struct loop_msg *msg)
{
	struct ask *ask = container_of(msg, struct ask, msg);

	ask->fn(ask);
}

/* Asks every queue but, with @others_only, those on the metadata loop; waits for all answers. */
static void ask_all(struct qcow2_image *img, void (*fn)(struct ask *ask), bool others_only)
{
	struct ask asks[QUEUES_MAX];
	struct co_latch latch;

	co_latch_init(&latch);
	loop_mutex_lock(&img->queues_lock);
	for (unsigned i = 0; i < img->nr_queues; i++) {
		struct qcow2_queue *q = img->queues[i];
		bool here = q && q->loop == img->meta_loop;

		if (!q || (here && others_only))
			continue;
		asks[i] = (struct ask){.msg = {.fn = ask_arrived},
				       .q = q,
				       .back = img->meta_loop,
				       .latch = &latch,
				       .fn = fn};
		co_latch_add(&latch);
		if (here) {
			fn(&asks[i]);
		} else {
			q->asks++;
			loop_post(q->loop, &asks[i].msg);
		}
	}
	pthread_mutex_unlock(&img->queues_lock);
	(void)co_latch_wait(&latch);
}

void image_quiesce_lookups(struct qcow2_image *img)
{
	/* The metadata loop's own lookups are over when this coroutine runs. */
	ask_all(img, ask_answer, true);
}

static void grace_begin(struct ask *ask)
{
	struct qcow2_queue *q = ask->q;
	unsigned old = q->epoch;

	assert(!q->grace_msg && !q->epoch_count[!old]);
	q->epoch = !old;
	if (q->epoch_count[old])
		q->grace_msg = &ask->msg;
	else
		ask_answer(ask);
}

void epoch_drained(struct qcow2_queue *q)
{
	struct ask *ask = container_of(q->grace_msg, struct ask, msg);

	q->grace_msg = NULL;
	ask_answer(ask);
}

void image_grace(struct qcow2_image *img)
{
	co_lock(&img->grace_lock);
	ask_all(img, grace_begin, false);
	co_unlock(&img->grace_lock);
}

/* ---- holding requests back ---- */

static void hold_begin(struct ask *ask)
{
	struct qcow2_queue *q = ask->q;

	assert(!q->hold_msg);
	q->hold = q->img->hold;
	if (hold_is_drained(q))
		ask_answer(ask);
	else
		q->hold_msg = &ask->msg;
}

void hold_drained(struct qcow2_queue *q)
{
	struct ask *ask = container_of(q->hold_msg, struct ask, msg);

	q->hold_msg = NULL;
	ask_answer(ask);
}

static void hold_end(struct ask *ask)
{
	struct list held = LIST_INIT(held);
	struct qcow2_queue *q = ask->q;

	q->hold = HOLD_NONE;
	list_splice_tail(&held, &q->held);
	request_start_held(&held);
	ask_answer(ask);
}

static void hold_set(struct qcow2_image *img, enum held_back what)
{
	loop_mutex_lock(&img->queues_lock);
	img->hold = what;
	pthread_mutex_unlock(&img->queues_lock);
}

void image_hold(struct qcow2_image *img, enum held_back what)
{
	/* with reads let through, an apply could go anywhere */
	if (mutant(MUTANT_SNAPSHOT_WITHOUT_DRAIN) && what == HOLD_WRITES)
		return;
	hold_set(img, what);
	ask_all(img, hold_begin, false);
}

void image_release(struct qcow2_image *img)
{
	hold_set(img, HOLD_NONE);
	ask_all(img, hold_end, false);
}

uint64_t image_writes_done(struct qcow2_image *img)
{
	uint64_t sum = img->wb.meta_writes;

	loop_mutex_lock(&img->queues_lock);
	sum += img->gone_writes;
	for (unsigned i = 0; i < img->nr_queues; i++)
		if (img->queues[i])
			sum += atomic_load_explicit(&img->queues[i]->writes_done,
						    memory_order_acquire);
	pthread_mutex_unlock(&img->queues_lock);
	return sum;
}

static void queue_free(struct qcow2_queue *q)
{
	bounce_pool_destroy(q->bounces);
	batches_destroy(q);
	free(q->copy_buf);
	free(q);
}

/* Into the image's list of queues, which others may be changing at the same time. */
static bool queue_register(struct qcow2_queue *q)
{
	struct qcow2_image *img = q->img;
	unsigned index = 0;
	bool room;

	loop_mutex_lock(&img->queues_lock);
	while (index < img->nr_queues && img->queues[index])
		index++;
	room = index < QUEUES_MAX;
	if (room) {
		q->index = index;
		q->hold = img->hold;
		img->queues[index] = q;
		img->nr_queues = max_of(img->nr_queues, index + 1);
	}
	pthread_mutex_unlock(&img->queues_lock);
	return room;
}

int qcow2_queue_create(struct qcow2_queue **out, struct qcow2_image *img, struct loop *loop,
		       struct error *err)
{
	struct qcow2_queue *q = calloc(1, sizeof(*q));
	int ret = 0;

	if (!q)
		return error_set(err, -ENOMEM, "%s: no memory for a queue", img->st->name);
	q->img = img;
	q->loop = loop;
	co_mutex_init(&q->copy_lock);
	co_waitq_init(&q->answered);
	list_init(&q->held);
	q->copy_buf = aligned_alloc(4096, max_of(img->cluster_bytes, 4096u));
	if (!q->copy_buf || batches_create(q) ||
	    (img->crypto && !img->read_only && bounce_pool_create(&q->bounces)))
		ret = error_set(err, -ENOMEM, "%s: no memory for a queue", img->st->name);
	else if (loop != img->meta_loop)
		ret = image_attach(img, loop, err);
	if (ret) {
		queue_free(q);
		return ret;
	}
	if (!queue_register(q)) {
		if (loop != img->meta_loop)
			image_detach(img, loop);
		queue_free(q);
		return error_set(err, -E2BIG, "%s: more than %d queues", img->st->name, QUEUES_MAX);
	}
	*out = q;
	return 0;
}

void qcow2_queue_destroy(struct qcow2_queue *q)
{
	struct qcow2_image *img;

	if (!q)
		return;
	img = q->img;
	assert(!q->epoch_count[0] && !q->epoch_count[1] && !q->inflight && list_empty(&q->held));
	loop_mutex_lock(&img->queues_lock);
	img->gone_writes += q->writes_done; /* they stay counted */
	img->queues[q->index] = NULL;	    /* no more questions */
	while (q->asks) {
		pthread_mutex_unlock(&img->queues_lock);
		co_wait(&q->answered);
		loop_mutex_lock(&img->queues_lock);
	}
	pthread_mutex_unlock(&img->queues_lock);
	if (q->loop != img->meta_loop) {
		inflate_drain(img->inflate);
		image_detach(img, q->loop);
	}
	queue_free(q);
}
