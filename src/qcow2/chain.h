/* SPDX-License-Identifier: MIT */
/*
 * chain.h: an image's backing chain, and the merged map of what is in it.
 *
 * The layers below the image, its backing file first, are opened read-only and never change while it is
 * open; so neither does what they hold together. The merged map says for each *grain* of the guest's disk
 * (the smallest cluster or subcluster of any layer) which layer it is in and where, or that it reads as zeros: one
 * lookup whatever the chain's length. It is built slice by slice, on demand, and cached like the map.
 *
 * Invariants:
 *  1. A layer that ends before its overlay reads as zeros from there on, and nothing below it shows
 *     there: what is found in layer n is cut at the shortest of the layers 0 to n (end_bytes).
 *  2. A compressed cluster's merged entry names the layer only; its descriptor is in the layer's map.
 *  3. Layers' own caches are used on the metadata loop alone; queues look at the merged map only.
 *
 * chain_peek() is for any thread, the rest for the metadata loop.
 */
#ifndef QCOW2_CHAIN_H
#define QCOW2_CHAIN_H

#include <stdint.h>

#include "base/error.h"
#include "qcow2.h"
#include "qcow2/cache.h"

struct loop;
struct map_extent;
struct qcow2_image;
struct qcow2_options;
struct storage;

#define CHAIN_LAYERS_MAX QCOW2_BACKING_MAX

struct chain_layer {
	struct storage *st;	 /* a raw file's, owned */
	struct qcow2_image *img; /* or a qcow2 image, owned */
	char *path;		 /* absolute */
	char *reached;		 /* the name it was reached by, which may be a link; or NULL */
	uint64_t end_bytes;	 /* see invariant 1 */
};

struct chain {
	struct chain_layer *layers; /* CHAIN_LAYERS_MAX of them */
	unsigned count;
	unsigned grain_bits;
	struct cache map;
};

/*
 * Opens what the header of @img names, and what that names, in img->chain; nothing if it names nothing.
 * @map_bytes bounds the cache of the merged map. Outside of any loop.
 */
int chain_open(struct qcow2_image *img, const struct qcow2_options *opts, uint64_t map_bytes,
	       struct error *err) must_check;
void chain_close(struct chain *chain); /* accepts NULL */

/* As storage_attach() and storage_detach(), for every layer. */
int chain_attach(struct chain *chain, struct loop *loop, struct error *err) must_check;
void chain_detach(struct chain *chain, struct loop *loop);

/* Whether the chain may hold something at or after @goff. */
static inline bool chain_reaches(const struct chain *chain, uint64_t goff)
{
	return goff < chain->layers[0].end_bytes;
}

/*
 * The extent at @goff below the image, @max_bytes long at most: DATA, COMPRESSED, ZERO or BROKEN, never
 * copied. chain_peek() says -EAGAIN where only chain_lookup() can tell.
 */
int chain_peek(struct chain *chain, uint64_t goff, uint64_t max_bytes, struct map_extent *ext);
int chain_lookup(struct chain *chain, uint64_t goff, uint64_t max_bytes,
		 struct map_extent *ext) must_check;
/* The same without suspending; -EAGAIN: not cached. */
int chain_lookup_cached(struct chain *chain, uint64_t goff, uint64_t max_bytes, struct map_extent *ext);

#endif
