/* SPDX-License-Identifier: MIT */
/*
 * usercopy.h: what the data paths share: buffers of this program's own, and copying by hand.
 */
#ifndef UBLK_USERCOPY_H
#define UBLK_USERCOPY_H

#include "ublk/queue.h"

/* A buffer for each tag, zeroed, touched and locked; see copy.c. */
int ublk_copy_setup(struct ublk_queue *q, struct error *err) must_check;
void ublk_copy_teardown(struct ublk_queue *q);
void *ublk_copy_buffer(const struct ublk_tag *t);
/* The same for @bytes that are not one buffer for each tag; q->path_data and path_bytes are set. */
int ublk_copy_memory(struct ublk_queue *q, size_t bytes, struct error *err) must_check;

/*
 * Copies all of a request's payload between @buf and the driver, which has to have granted
 * UBLK_F_USER_COPY. On the queue's thread, while the request is served.
 */
int ublk_user_copy(struct ublk_tag *t, void *buf, bool to_driver) must_check;

#endif
