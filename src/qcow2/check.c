/* SPDX-License-Identifier: MIT */
/*
 * check.c: the checker: what is done in which order; findings; memory.
 *
 * 1. The header is read (a broken one ends the check), then the list of snapshots.
 * 2. The refcount blocks are read once to know where the refcount is 1.
 * 3. All references are counted. The active tables' COPIED flags are compared with step 2 on the
 * way, so that each L2 table is read once.
 * 4. The refcount blocks are read again and compared with the counts.
 *
 * With repair, step 3 leaves the flags alone, and repair.c goes on after it.
 *
 * What is a corruption, what a leak, and how often one thing counts, is as in qemu-img: see
 * docs/check.md.
 */
#include "qcow2/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/check_internal.h"

void check_finding(struct check *c, enum qcow2_finding kind, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	switch (kind) {
	case QCOW2_FINDING_LEAK:
		c->res->leaks++;
		break;
	case QCOW2_FINDING_CORRUPTION:
		c->res->corruptions++;
		break;
	case QCOW2_FINDING_ERROR:
		c->res->errors++;
		break;
	case QCOW2_FINDING_REPAIR:
		break;
	}
	if (!c->opts->finding || c->quiet)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	c->opts->finding(c->opts->arg, kind, text);
}

int check_charge(struct check *c, uint64_t len_bytes, const char *what)
{
	if (len_bytes > c->memory_left)
		return error_set(c->err, -ENOMEM,
				 "%s: checking needs %" PRIu64
				 " MiB for %s, more than the bound allows",
				 c->st->name, len_bytes / MiB + 1, what);
	c->memory_left -= len_bytes;
	return 0;
}

/* Large ones are fresh pages of zeros, which take memory only where they are used. */
void *check_alloc(struct check *c, uint64_t len_bytes, const char *what)
{
	void *p;

	if (check_charge(c, len_bytes, what))
		return NULL;
	p = calloc(1, max_of(len_bytes, (uint64_t)1));
	if (!p)
		error_set(c->err, -ENOMEM, "%s: no memory for %s", c->st->name, what);
	return p;
}

void check_free(struct check *c, void *p, uint64_t len_bytes)
{
	if (!p)
		return;
	c->memory_left += len_bytes;
	free(p);
}

void check_progress(struct check *c, uint64_t units)
{
	c->progress_done = min_of(c->progress_done + units, c->progress_total);
	if (c->opts->progress)
		c->opts->progress(c->opts->arg, c->progress_done, c->progress_total);
}

int check_read_error(struct check *c, int ret, const char *what, uint64_t offset)
{
	check_finding(c, QCOW2_FINDING_ERROR, "cannot read the %s at %" PRIu64 ": %s", what, offset,
		      strerror(-ret));
	return error_set(c->err, ret, "%s: cannot read the %s at %" PRIu64 ": %s", c->st->name,
			 what, offset, strerror(-ret));
}

/* The table is read as it is; its entries are judged where they are used. */
static int read_refcount_table(struct check *c)
{
	uint64_t len = (uint64_t)c->h->rt_clusters << c->h->cluster_bits;
	int ret;

	/* What lies past the end of the file is zeros, and need not be held. */
	if (c->h->rt_offset >= c->stored_bytes)
		len = 0;
	else
		len = min_of(len, align_up(c->stored_bytes - c->h->rt_offset, sizeof(be64_t)));
	c->rt = check_alloc(c, len, "the refcount table");
	if (!c->rt)
		return -ENOMEM;
	ret = check_read(c, c->h->rt_offset, c->rt, len);
	if (ret)
		return check_read_error(c, ret, "refcount table", c->h->rt_offset);
	c->rt_entries = (uint32_t)(len / sizeof(be64_t));
	return 0;
}

static int open_image(struct check *c)
{
	int ret = qcow2_header_read(c->st, c->h, c->err);

	if (!ret)
		ret = qcow2_header_check_features(c->h, c->err);
	if (ret)
		return ret;
	c->file_bytes = c->stored_bytes = c->st->size_bytes;
	c->hclusters = div_up(c->file_bytes, c->h->cluster_bytes);
	c->capacity = c->hclusters + 1;
	c->res->total_clusters = div_up(c->h->size_bytes, c->h->cluster_bytes);
	ret = check_view_open(c);
	if (!ret)
		ret = check_read_snapshots(c);
	if (!ret)
		ret = read_refcount_table(c);
	if (!ret)
		ret = check_count_init(c);
	return ret;
}

static void estimate_progress(struct check *c)
{
	c->progress_total = c->h->l1_entries + 2 * (uint64_t)c->rt_entries;
	for (uint32_t i = 0; i < c->nb_snapshots; i++)
		c->progress_total += c->snapshots[i].l1_entries;
	if (c->repairing)
		c->progress_total += c->h->l1_entries;
}

static int run(struct check *c)
{
	int ret = open_image(c);

	if (ret)
		return ret;
	c->repairing = c->opts->repair == QCOW2_REPAIR_ALL;
	estimate_progress(c);
	if (c->opts->repair != QCOW2_REPAIR_NONE)
		return repair_run(c);
	ret = check_load_refcounts(c);
	if (!ret)
		ret = check_count_all(c, true);
	if (!ret)
		ret = check_compare(c, NULL);
	return ret;
}

static void destroy(struct check *c)
{
	free(c->h);
	free(c->whole);
	free(c->rt);
	free(c->block_places);
	free(c->block);
	free(c->counts.v);
	free(c->ones);
	free(c->snapshots);
}

int qcow2_check(struct storage *st, const struct qcow2_check_options *opts,
		struct qcow2_check_result *res, struct error *err)
{
	struct check c = {
		.st = st,
		.opts = opts,
		.res = res,
		.err = err,
		.memory_left = opts->memory_bytes ? opts->memory_bytes : QCOW2_CHECK_DEFAULT_MEMORY,
		.work_left = opts->work_bytes ? opts->work_bytes : UINT64_MAX,
		.block_index = UINT64_MAX,
	};
	int ret;

	memset(res, 0, sizeof(*res));
	if (opts->repair != QCOW2_REPAIR_NONE && st->read_only)
		return error_set(err, -EROFS, "%s: cannot be repaired, it is open read-only",
				 st->name);
	c.h = malloc(sizeof(*c.h));
	if (!c.h)
		return error_set(err, -ENOMEM, "%s: no memory for the header", st->name);
	ret = run(&c);
	destroy(&c);
	return ret;
}
