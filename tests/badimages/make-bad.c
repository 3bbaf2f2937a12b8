/* SPDX-License-Identifier: MIT */
/*
 * make-bad.c: makes the corpus of malformed images from good ones.
 *
 *   make-bad list                 one line for each case: name, base, outcome, range, pattern; tabs
 *   make-bad make FOLDER OUT NAME...   from FOLDER/BASE.qcow2 to OUT/NAME.qcow2; no NAME: all
 *   make-bad layout IMAGE         stops unless IMAGE is laid out as the cases assume
 */
#include "bad.h"

#include <assert.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const outcome_names[] = {
	[REFUSE] = "refuse",	 [UNSERVED] = "unserved", [READ_ONLY] = "read-only",
	[RANGE_EIO] = "range-eio", [READ_EIO] = "read-eio", [READ_ANY] = "read-any",
	[ALLOC] = "alloc",	 [SERVED] = "served",	  [BITMAPS_KEPT] = "bitmaps-kept",
	[BITMAP_SPOILED] = "bitmap-spoiled", [BITMAPS_BROKEN] = "bitmaps-broken",
	[BITMAPS_IGNORED] = "bitmaps-ignored",
};

static const struct {
	const struct bad_case *cases;
	const size_t *count;
} groups[] = {
	{header_cases, &header_case_count},
	{table_cases, &table_case_count},
	{map_cases, &map_case_count},
	{compressed_cases, &compressed_case_count},
	{bitmap_cases, &bitmap_case_count},
};

#define FOR_EACH_CASE(c)                                                                           \
	for (size_t g_ = 0; g_ < sizeof(groups) / sizeof(groups[0]); g_++)                         \
		for (const struct bad_case *c = groups[g_].cases;                                  \
		     c < groups[g_].cases + *groups[g_].count; c++)

static bool load(struct image *img, const char *path)
{
	FILE *f = fopen(path, "rb");
	long len;
	bool ok;

	if (!f)
		return false;
	ok = !fseek(f, 0, SEEK_END) && (len = ftell(f)) >= 0 && !fseek(f, 0, SEEK_SET);
	if (ok) {
		resize(img, len);
		ok = fread(img->data, 1, len, f) == (size_t)len;
	}
	fclose(f);
	return ok;
}

/* Leaves holes where there are zeros: some images are long. */
static bool store(const struct image *img, const char *path)
{
	static const uint8_t zeros[4096];
	FILE *f = fopen(path, "wb");
	bool ok = f;

	for (size_t at = 0; ok && at < img->len; at += sizeof(zeros)) {
		size_t n = img->len - at < sizeof(zeros) ? img->len - at : sizeof(zeros);

		if (memcmp(img->data + at, zeros, n) || at + n == img->len)
			ok = fwrite(img->data + at, 1, n, f) == n;
		else
			ok = !fseek(f, n, SEEK_CUR);
	}
	if (f && fclose(f))
		ok = false;
	return ok;
}

static int make(const char *folder, const char *out, const struct bad_case *c)
{
	struct image img = {0};
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s.qcow2", folder, c->base);
	if (!load(&img, path)) {
		perror(path);
		return 1;
	}
	c->spoil(&img, c->a, c->b);
	snprintf(path, sizeof(path), "%s/%s.qcow2", out, c->name);
	if (!store(&img, path)) {
		perror(path);
		return 1;
	}
	free(img.data);
	return 0;
}

static bool wanted(const char *name, int argc, char **argv)
{
	for (int i = 0; i < argc; i++)
		if (!strcmp(argv[i], name))
			return true;
	return argc == 0;
}

static int make_all(const char *folder, const char *out, int argc, char **argv)
{
	unsigned made = 0;

	FOR_EACH_CASE(c) {
		if (!wanted(c->name, argc, argv))
			continue;
		if (make(folder, out, c))
			return 1;
		made++;
	}
	return made ? 0 : 1;
}

static int list(void)
{
	FOR_EACH_CASE(c)
		printf("%s\t%s\t%s\t%" PRIu64 "\t%" PRIu64 "\t%s\n", c->name, c->base,
		       outcome_names[c->outcome], c->range_offset, c->range_len, c->pattern);
	return 0;
}

/* What the cases rely on; see bad.h. */
static int check_layout(const char *path)
{
	struct image img = {0};

	if (!load(&img, path)) {
		perror(path);
		return 1;
	}
	assert(get32(&img, F_CLUSTER_BITS) == 12 && get64(&img, F_SIZE) == GOOD_SIZE);
	assert(get32(&img, F_L1_SIZE) == 5 && get32(&img, F_RT_CLUSTERS) == 1);
	for (unsigned i = 0; i < 3; i++)
		assert(get64(&img, l2_table(&img, i)));
	assert(!get64(&img, l1_at(&img, 3)));
	for (uint64_t g = 0; g < 8 * GOOD_CLUSTER; g += GOOD_CLUSTER)
		assert(get64(&img, l2_at(&img, g)) & COPIED);
	assert(get16(&img, refcount_at(&img, img.len - 1)) == 1);
	free(img.data);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "list"))
		return list();
	if (argc == 3 && !strcmp(argv[1], "layout"))
		return check_layout(argv[2]);
	if (argc >= 4 && !strcmp(argv[1], "make"))
		return make_all(argv[2], argv[3], argc - 4, argv + 4);
	fprintf(stderr, "usage: make-bad list | make FOLDER OUT [NAME]... | layout IMAGE\n");
	return 2;
}
