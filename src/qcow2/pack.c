/* SPDX-License-Identifier: MIT */
/* pack.c: see pack.h. */
#include "qcow2/pack.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/alloc.h"
#include "qcow2/compress.h"
#include "qcow2/image.h"

/* ---- deflaters ---- */

static int make_deflaters(struct qcow2_image *img)
{
	struct pack *p = &img->pack;
	unsigned count = work_pool_threads(img->workers);
	int ret = 0;

	p->deflaters = calloc(count, sizeof(struct deflater *));
	if (!p->deflaters)
		return -ENOMEM;
	while (!ret && p->deflaters_made < count) {
		ret = deflater_create(&p->deflaters[p->idle_deflaters],
				      (enum compression)img->hdr.compression_type,
				      img->cluster_bytes);
		if (!ret)
			p->deflaters_made = ++p->idle_deflaters;
	}
	return ret;
}

int pack_init(struct qcow2_image *img, bool on, struct error *err)
{
	struct pack *p = &img->pack;

	co_mutex_init(&p->lock);
	if (!on || img->read_only)
		return 0;
	if (img->hdr.incompatible & QCOW2_INCOMPAT_DATA_FILE)
		return error_set(err, -ENOTSUP,
				 "%s: clusters in an external data file cannot be compressed",
				 img->st->name);
	if (img->hdr.crypt_method)
		return error_set(err, -ENOTSUP, "%s: what is encrypted cannot be compressed",
				 img->st->name);
	pthread_mutex_init(&p->deflaters_lock, NULL);
	pthread_cond_init(&p->deflaters_cond, NULL);
	p->on = true;
	p->tail = calloc(1, img->st->block_bytes);
	if (!p->tail || make_deflaters(img))
		return error_set(err, -ENOMEM, "no memory to compress clusters");
	return 0;
}

void pack_destroy(struct qcow2_image *img)
{
	struct pack *p = &img->pack;

	if (!p->on)
		return;
	assert(p->idle_deflaters == p->deflaters_made);
	for (unsigned i = 0; i < p->idle_deflaters; i++)
		deflater_destroy(p->deflaters[i]);
	free(p->deflaters);
	free(p->tail);
	pthread_cond_destroy(&p->deflaters_cond);
	pthread_mutex_destroy(&p->deflaters_lock);
	p->on = false;
}

struct deflater *pack_deflater_get(struct pack *p)
{
	struct deflater *def;

	loop_mutex_lock(&p->deflaters_lock);
	while (!p->idle_deflaters)
		pthread_cond_wait(&p->deflaters_cond, &p->deflaters_lock);
	def = p->deflaters[--p->idle_deflaters];
	pthread_mutex_unlock(&p->deflaters_lock);
	return def;
}

void pack_deflater_put(struct pack *p, struct deflater *def)
{
	loop_mutex_lock(&p->deflaters_lock);
	p->deflaters[p->idle_deflaters++] = def;
	pthread_cond_signal(&p->deflaters_cond);
	pthread_mutex_unlock(&p->deflaters_lock);
}

/* ---- room ---- */

void pack_lock(struct qcow2_image *img)
{
	co_lock(&img->pack.lock);
}

void pack_unlock(struct qcow2_image *img)
{
	co_unlock(&img->pack.lock);
}

void pack_forget(struct qcow2_image *img, uint64_t hcluster, uint64_t count)
{
	struct pack *p = &img->pack;
	uint64_t at = p->next >> img->cluster_bits;

	if (p->next && at >= hcluster && at - hcluster < count)
		p->next = 0;
}

static void move_to(struct qcow2_image *img, uint64_t next)
{
	/* a cluster's end is another one's start, which may be in use */
	img->pack.next = next & (img->cluster_bytes - 1) ? next : 0;
}

/* Invariants 2 and 3, asked when nothing suspends any more. */
static bool may_share(struct qcow2_image *img, uint64_t hoff)
{
	struct pack *p = &img->pack;

	if (p->next != hoff)
		return false;
	return is_aligned(hoff, img->st->block_bytes) || p->passes == img->wb.passes;
}

/*
 * Takes @bytes at next, where its host cluster is in use already; or in a new one, if it came to that.
 * -EAGAIN: next is another place now.
 */
static int alloc_behind(struct qcow2_image *img, uint32_t bytes, uint64_t *hoff)
{
	struct pack *p = &img->pack;
	uint64_t at = p->next, hcluster = at >> img->cluster_bits, got, other = 0;
	bool zeroed, crosses = ((at + bytes - 1) >> img->cluster_bits) != hcluster;
	int ret = crosses ? alloc_clusters(img, 1, &other, &got, &zeroed) : 0;

	if (ret)
		return ret;
	*hoff = at;
	if (!crosses || other == hcluster + 1)
		ret = refcount_share(img, hcluster, may_share, at);
	else
		ret = -EAGAIN;
	if (crosses && (!ret || ret == -EAGAIN || ret == -ERANGE))
		reclog_table(img, RECLOG_REFCOUNT, other, 0, 1);
	if (crosses && (ret == -EAGAIN || ret == -ERANGE)) {
		*hoff = other << img->cluster_bits;
		return 0;
	}
	if (crosses && ret)
		alloc_undo(img, other, 1);
	if (ret != -ERANGE)
		return ret;
	if (p->next == at)
		p->next = 0; /* it has as many references as there can be */
	return -EAGAIN;
}

int pack_alloc(struct qcow2_image *img, uint32_t bytes, uint64_t *hoff)
{
	struct pack *p = &img->pack;
	uint64_t got, hcluster,
		limit = (uint64_t)1 << qcow2_compressed_offset_bits(img->cluster_bits);
	bool zeroed;
	int ret = -EAGAIN;

	assert(bytes && bytes < img->cluster_bytes && p->lock.locked);
	while (ret == -EAGAIN && p->next) {
		if (!may_share(img, p->next))
			move_to(img, align_up(p->next, img->st->block_bytes));
		if (p->next)
			ret = alloc_behind(img, bytes, hoff);
	}
	if (ret == -EAGAIN) {
		ret = alloc_clusters(img, 1, &hcluster, &got, &zeroed);
		*hoff = ret ? 0 : hcluster << img->cluster_bits;
		if (!ret)
			reclog_table(img, RECLOG_REFCOUNT, hcluster, 0, 1);
	}
	if (!ret && *hoff > limit - bytes) { /* a descriptor cannot say that */
		pack_undo(img, *hoff, bytes);
		ret = -ENOSPC;
	}
	if (ret)
		return ret;
	move_to(img, *hoff + bytes);
	p->passes = img->wb.passes;
	return 0;
}

void pack_undo(struct qcow2_image *img, uint64_t hoff, uint32_t bytes)
{
	uint64_t first = hoff >> img->cluster_bits, last = (hoff + bytes - 1) >> img->cluster_bits;

	refcount_undo(img, first, last - first + 1);
}

void pack_written(struct qcow2_image *img, const void *block)
{
	struct pack *p = &img->pack;
	uint32_t block_bytes = img->st->block_bytes;

	if (!block)
		p->next = 0;
	else if (p->next & (block_bytes - 1))
		memcpy(p->tail, block, block_bytes);
}
