/* SPDX-License-Identifier: MIT */
/* metaset.c: see metaset.h; open addressing, at most half full. */
#include "qcow2/metaset.h"

#include <errno.h>
#include <stdlib.h>

static uint64_t slot_of(const struct metaset *m, uint64_t hcluster)
{
	uint64_t i = (hcluster * 0x9e3779b97f4a7c15u >> 20) & m->mask;

	while (m->slots[i] && m->slots[i] != hcluster + 1)
		i = (i + 1) & m->mask;
	return i;
}

int metaset_init(struct metaset *m, uint64_t expected)
{
	uint64_t size = 64;

	while (size < expected * 2 + 64)
		size *= 2;
	*m = (struct metaset){.mask = size - 1};
	m->slots = calloc(size, sizeof(*m->slots));
	return m->slots ? 0 : -ENOMEM;
}

void metaset_destroy(struct metaset *m)
{
	free(m->slots);
	*m = (struct metaset){0};
}

void metaset_set_range(struct metaset *m, enum metaset_range which, uint64_t first, uint64_t count)
{
	m->ranges[which].first = first;
	m->ranges[which].count = count;
}

static int metaset_grow(struct metaset *m)
{
	struct metaset bigger;

	if (metaset_init(&bigger, m->mask + 1))
		return -ENOMEM;
	for (uint64_t i = 0; i <= m->mask; i++)
		if (m->slots[i])
			bigger.slots[slot_of(&bigger, m->slots[i] - 1)] = m->slots[i];
	free(m->slots);
	m->slots = bigger.slots;
	m->mask = bigger.mask;
	return 0;
}

bool metaset_has_own(const struct metaset *m, uint64_t hcluster)
{
	for (int i = 0; i < METASET_RANGES; i++)
		if (hcluster - m->ranges[i].first < m->ranges[i].count)
			return true;
	return m->slots[slot_of(m, hcluster)] != 0;
}

int metaset_add(struct metaset *m, uint64_t hcluster)
{
	if (metaset_has_own(m, hcluster))
		return -EEXIST;
	if ((m->used + 1) * 2 > m->mask) {
		int ret = metaset_grow(m);

		if (ret)
			return ret;
	}
	m->slots[slot_of(m, hcluster)] = hcluster + 1;
	m->used++;
	return 0;
}

void metaset_remove(struct metaset *m, uint64_t hcluster)
{
	uint64_t i = slot_of(m, hcluster), next;

	if (!m->slots[i])
		return;
	m->slots[i] = 0;
	m->used--;
	/* what a collision put further on may be looked for from here: put it in again */
	for (next = (i + 1) & m->mask; m->slots[next]; next = (next + 1) & m->mask) {
		uint64_t value = m->slots[next];

		m->slots[next] = 0;
		m->slots[slot_of(m, value - 1)] = value;
	}
}

bool metaset_has(const struct metaset *m, uint64_t hcluster)
{
	return metaset_has_own(m, hcluster) || (m->behind && metaset_has_own(m->behind, hcluster));
}
