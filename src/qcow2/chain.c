/* SPDX-License-Identifier: MIT */
/* chain.c: see chain.h. */
#include "qcow2/chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "qcow2/image.h"
#include "qcow2/map.h"
#include "storage/names.h"

/* What a layer's own map may keep cached: it is read once for each slice of the merged map. */
#define LAYER_CACHE_BYTES (256 * KiB)
/* Of the merged map, where no layer has clusters that ask for smaller ones. */
#define GRAIN_BITS_DEFAULT 16

/*
 * An entry of the merged map: kind, layer, and for DATA the host offset in sectors. All zeros is
 * MAP_UNALLOCATED: nobody has it.
 */
#define ENTRY_KIND_BITS	  3
#define ENTRY_LAYER_BITS  12
#define ENTRY_SHIFT	  (ENTRY_KIND_BITS + ENTRY_LAYER_BITS)
#define SECTOR_BITS	  9
#define GRAINS_BITS	  9 /* entries of a slice */
#define LAYER_BYTES_MAX	  QCOW2_MAX_HOST_BYTES

/* Of an entry only: the layer could not be read there. Who meets it has the slice built anew. */
#define MAP_UNREAD (MAP_BROKEN + 1)

static_assert(CHAIN_LAYERS_MAX <= 1 << ENTRY_LAYER_BITS, "layers fit");
static_assert(MAP_UNREAD < 1 << ENTRY_KIND_BITS, "kinds fit");
static_assert(LAYER_BYTES_MAX >> SECTOR_BITS <= UINT64_MAX >> ENTRY_SHIFT, "offsets fit");
static_assert(sizeof(uint64_t) << GRAINS_BITS == SLICE_MAX_BYTES, "a slice's entries");

static uint64_t entry_make(enum map_kind kind, unsigned layer, uint64_t hoff)
{
	return (uint64_t)kind | (uint64_t)layer << ENTRY_KIND_BITS |
	       hoff >> SECTOR_BITS << ENTRY_SHIFT;
}

static enum map_kind entry_kind(uint64_t entry)
{
	return (enum map_kind)(entry & ((1u << ENTRY_KIND_BITS) - 1));
}

static unsigned entry_layer(uint64_t entry)
{
	return (unsigned)(entry >> ENTRY_KIND_BITS & ((1u << ENTRY_LAYER_BITS) - 1));
}

static uint64_t entry_hoff(uint64_t entry)
{
	return entry >> ENTRY_SHIFT << SECTOR_BITS;
}

static bool kind_is_zero(enum map_kind kind)
{
	return kind == MAP_UNALLOCATED || kind == MAP_ZERO || kind == MAP_ZERO_ALLOC;
}

/* ---- looking up ---- */

static uint64_t slice_span(const struct chain *chain)
{
	return (uint64_t)1 << (chain->grain_bits + GRAINS_BITS);
}

/* Whether @next, @n grains on, goes on where the extent from @first ended. */
static bool entry_continues(const struct chain *chain, uint64_t first, uint64_t next, uint64_t n)
{
	enum map_kind kind = entry_kind(first);

	if (kind_is_zero(kind))
		return kind_is_zero(entry_kind(next));
	return kind == MAP_DATA &&
	       next == entry_make(kind, entry_layer(first), entry_hoff(first) + (n << chain->grain_bits));
}

static int slice_extent(struct chain *chain, const struct slice *s, uint64_t goff, uint64_t max_bytes,
			struct map_extent *ext)
{
	const uint64_t *entries = s->data;
	uint64_t grain = (uint64_t)1 << chain->grain_bits, in_grain = goff & (grain - 1);
	unsigned index = goff >> chain->grain_bits & ((1u << GRAINS_BITS) - 1), i = index + 1;
	uint64_t entry = entries[index], len = grain - in_grain;
	enum map_kind kind = entry_kind(entry);
	struct chain_layer *layer = &chain->layers[entry_layer(entry)];

	if (!kind_is_zero(kind) && goff >= layer->end_bytes) {
		*ext = (struct map_extent){.kind = MAP_ZERO, .len_bytes = min_of(len, max_bytes)};
		return 0;
	}
	while (len < max_bytes && i < 1u << GRAINS_BITS &&
	       entry_continues(chain, entry, entries[i], i - index)) {
		len += grain;
		i++;
	}
	if (!kind_is_zero(kind))
		len = min_of(len, layer->end_bytes - goff);
	*ext = (struct map_extent){
		.kind = kind_is_zero(kind) ? MAP_ZERO : kind,
		.len_bytes = min_of(len, max_bytes),
		.hoff = entry_hoff(entry) + in_grain,
		.img = layer->img,
		.st = layer->st ? layer->st : layer->img->data,
	};
	return kind == MAP_COMPRESSED || kind == MAP_UNREAD ? -EAGAIN : 0;
}

static bool past_the_end(const struct chain *chain, uint64_t goff, uint64_t max_bytes,
			 struct map_extent *ext)
{
	if (chain_reaches(chain, goff))
		return false;
	*ext = (struct map_extent){.kind = MAP_ZERO, .len_bytes = max_bytes};
	return true;
}

int chain_peek(struct chain *chain, uint64_t goff, uint64_t max_bytes, struct map_extent *ext)
{
	struct slice *s;

	if (past_the_end(chain, goff, max_bytes, ext))
		return 0;
	s = cache_peek(&chain->map, goff >> (chain->grain_bits + GRAINS_BITS));
	return s ? slice_extent(chain, s, goff, max_bytes, ext) : -EAGAIN;
}

int chain_lookup(struct chain *chain, uint64_t goff, uint64_t max_bytes, struct map_extent *ext)
{
	struct slice *s;
	int ret;

	if (past_the_end(chain, goff, max_bytes, ext))
		return 0;
	ret = cache_get(&chain->map, goff >> (chain->grain_bits + GRAINS_BITS), 0, false, &s);
	if (ret)
		return ret;
	ret = slice_extent(chain, s, goff, max_bytes, ext);
	if (ret == -EAGAIN && ext->kind == MAP_UNREAD) {
		if (s->pins == 1)
			cache_drop(&chain->map, s);
		else
			cache_put(&chain->map, s);
		return -EIO;
	}
	cache_put(&chain->map, s);
	if (ret == -EAGAIN)
		ret = map_lookup(ext->img, goff, ext->len_bytes, ext);
	return ret;
}

int chain_lookup_cached(struct chain *chain, uint64_t goff, uint64_t max_bytes, struct map_extent *ext)
{
	int ret;

	ext->kind = MAP_BROKEN;
	ret = chain_peek(chain, goff, max_bytes, ext);
	if (ret == -EAGAIN && ext->kind == MAP_COMPRESSED)
		ret = map_peek(ext->img, goff, ext->len_bytes, ext);
	return ret;
}

/* ---- building a slice ---- */

/* As map_lookup(); where that fails, MAP_UNREAD as far as one slice of the layer's map goes. */
static void layer_lookup(struct qcow2_image *img, uint64_t goff, uint64_t max_bytes,
			 struct map_extent *ext)
{
	uint64_t span = (uint64_t)img->cluster_bytes << img->l2_slice_bits;

	if (map_lookup(img, goff, max_bytes, ext) == 0)
		return;
	*ext = (struct map_extent){.kind = MAP_UNREAD,
				   .len_bytes = min_of(span - (goff & (span - 1)), max_bytes)};
}

/* What layer @n has of grains [@first, @end) of the slice at @base, which nobody above has. */
static void merge_run(struct chain *chain, unsigned n, uint64_t base, uint64_t *entries,
		      unsigned first, unsigned end)
{
	struct chain_layer *layer = &chain->layers[n];
	unsigned bits = chain->grain_bits;
	uint64_t pos = base + ((uint64_t)first << bits), to = base + ((uint64_t)end << bits);

	while (pos < to) {
		struct map_extent ext = {.kind = MAP_DATA, .hoff = pos, .len_bytes = to - pos};
		unsigned i = (unsigned)((pos - base) >> bits), last;

		if (pos >= layer->end_bytes)
			ext.kind = MAP_ZERO;
		else if (layer->img)
			layer_lookup(layer->img, pos, min_of(to, layer->end_bytes) - pos, &ext);
		else
			ext.len_bytes = min_of(to, layer->end_bytes) - pos;
		last = (unsigned)((pos + ext.len_bytes - 1 - base) >> bits);
		for (uint64_t at = 0; i <= last; i++, at += (uint64_t)1 << bits)
			if (ext.kind != MAP_UNALLOCATED)
				entries[i] = entry_make(kind_is_zero(ext.kind) ? MAP_ZERO : ext.kind, n,
							ext.kind == MAP_DATA ? ext.hoff + at : 0);
		pos = base + ((uint64_t)i << bits);
	}
}

static int slice_build(struct cache *c, struct slice *s)
{
	struct chain *chain = container_of(c, struct chain, map);
	uint64_t base = s->key * slice_span(chain);
	uint64_t *entries = s->data;
	unsigned grains = 1u << GRAINS_BITS;

	memset(entries, 0, SLICE_MAX_BYTES);
	for (unsigned n = 0; n < chain->count; n++) {
		bool any = false;

		for (unsigned i = 0, end; i < grains; i = end) {
			for (end = i + 1; end < grains && !entries[end] == !entries[i]; end++)
				;
			if (!entries[i]) {
				any = true;
				merge_run(chain, n, base, entries, i, end);
			}
		}
		if (!any)
			break;
	}
	return 0;
}

/* ---- opening ---- */

/* The image whose header names the next layer, and where that image is. */
struct naming {
	const struct qcow2_header *hdr;
	const char *path;
	const char *reached; /* see names.h; NULL: as path */
	const char *name;    /* for messages */
	bool top;	     /* it is the overlay */
	const char *format;
};

static int format_of(struct naming *by, const struct qcow2_options *opts, struct error *err)
{
	by->format = by->hdr->backing_format;
	if (!by->format[0] && opts->names && opts->names->backing_format)
		by->format = opts->names->backing_format;
	if (!by->format[0])
		return error_set(err, -EINVAL,
				 "%s: the image does not say in what format its backing file is, and a guess "
				 "would let its content decide (say it with --backing-format)",
				 by->name);
	if (strcmp(by->format, "raw") != 0 && strcmp(by->format, "qcow2") != 0) {
		char *text = text_escape(by->format);
		int ret = error_set(err, -ENOTSUP, "%s: a backing file of format '%s' is not supported",
				    by->name, text ? text : "?");

		free(text);
		return ret;
	}
	return 0;
}

static int open_storage(struct storage **out, struct chain_layer *layer, const struct naming *by,
			const struct qcow2_options *opts, bool direct, struct error *err)
{
	const struct names_options names = {.what = "backing file",
					    .top = by->top,
					    .read_only = true,
					    .direct = direct,
					    .reached_as = by->reached,
					    .reached_out = &layer->reached};

	return names_open(out, &layer->path, by->path, by->hdr->backing_file, opts->names, &names, err);
}

static int open_layer_image(struct chain_layer *layer, struct storage *st,
			    const struct qcow2_options *opts, struct error *err)
{
	const struct qcow2_options layer_opts = {
		.read_only = true,
		.cache_size_bytes = LAYER_CACHE_BYTES,
		.max_inflight = opts->max_inflight,
		.passphrase = opts->passphrase,
		.image_path = layer->path,
		.names = opts->names,
	};

	return image_open_layer(&layer->img, st, layer->reached, &layer_opts, err);
}

static int lock_raw(struct storage *st, struct error *err)
{
	return storage_lock(st, STORAGE_PERM_CONSISTENT_READ,
			    STORAGE_PERM_ALL & ~(STORAGE_PERM_WRITE | STORAGE_PERM_RESIZE), err);
}

static uint64_t layer_size(const struct chain_layer *layer)
{
	return layer->img ? layer->img->size_bytes : align_up(layer->st->size_bytes, 512);
}

static int layer_attach(struct chain_layer *layer, struct loop *loop, struct error *err)
{
	return layer->img ? image_attach(layer->img, loop, err) : storage_attach(layer->st, loop, err);
}

static void layer_detach(struct chain_layer *layer, struct loop *loop)
{
	if (layer->img)
		image_detach(layer->img, loop);
	else
		storage_detach(layer->st, loop);
}

static void layer_close(struct chain_layer *layer)
{
	if (layer->img)
		image_close_layer(layer->img);
	storage_close(layer->st);
	free(layer->path);
	free(layer->reached);
	*layer = (struct chain_layer){0};
}

/*
 * Opens @layer. @block_bytes is what reads of it begin and end at, cut by what the layers above have;
 * @end_bytes where those end.
 */
static int layer_open(struct chain_layer *layer, const struct naming *by,
		      const struct qcow2_options *opts, bool direct, uint32_t block_bytes,
		      uint64_t end_bytes, struct error *err)
{
	struct storage *st;
	int ret = open_storage(&st, layer, by, opts, direct, err);

	if (ret)
		return ret;
	if (!strcmp(by->format, "raw")) {
		ret = lock_raw(st, err);
		if (!ret)
			layer->st = st;
	} else {
		ret = open_layer_image(layer, st, opts, err);
	}
	if (ret)
		storage_close(st);
	/* Reads may be cut where no block of direct I/O ends: the page cache helps. */
	if (direct && (ret == -EINVAL ||
		       (!ret && (st->block_bytes > block_bytes ||
				 !is_aligned(min_of(end_bytes, layer_size(layer)), st->block_bytes))))) {
		layer_close(layer);
		return layer_open(layer, by, opts, false, block_bytes, end_bytes, err);
	}
	if (ret)
		layer_close(layer);
	return ret;
}

static int check_loop(const struct chain *chain, const char *top, const struct chain_layer *layer,
		      struct error *err)
{
	bool again = !strcmp(layer->path, top);

	for (unsigned i = 0; !again && i < chain->count; i++)
		again = !strcmp(layer->path, chain->layers[i].path);
	return again ? error_set(err, -ELOOP, "%s: the backing chain comes back to this file",
				 layer->path)
		     : 0;
}

static int open_layers(struct chain *chain, struct qcow2_image *img, const struct qcow2_options *opts,
		       struct error *err)
{
	struct naming by = {
		.hdr = &img->hdr, .path = opts->image_path, .name = img->st->name, .top = true};
	uint64_t end = UINT64_MAX;
	int ret = 0;

	while (!ret && by.hdr && by.hdr->backing_file[0]) {
		struct chain_layer *layer = &chain->layers[chain->count];
		unsigned grain_bits = min_of(chain->grain_bits, img->subcluster_bits);
		uint64_t size;

		if (chain->count == CHAIN_LAYERS_MAX)
			return error_set(err, -E2BIG, "%s: more than %d backing files",
					 img->st->name, CHAIN_LAYERS_MAX);
		ret = format_of(&by, opts, err);
		if (!ret)
			ret = layer_open(layer, &by, opts, img->st->direct,
					 min_of(img->st->block_bytes, 1u << grain_bits), end, err);
		if (ret)
			return ret;
		ret = check_loop(chain, opts->image_path, layer, err);
		chain->count++; /* it is open: closed with the chain */
		size = layer_size(layer);
		if (!ret && size > LAYER_BYTES_MAX)
			ret = error_set(err, -EFBIG, "%s: too large", layer->path);
		end = layer->end_bytes = min_of(end, size);
		if (layer->img)
			chain->grain_bits = min_of(chain->grain_bits, layer->img->subcluster_bits);
		by = (struct naming){layer->img ? &layer->img->hdr : NULL, layer->path, layer->reached,
				     layer->path, false, NULL};
	}
	return ret;
}

int chain_open(struct qcow2_image *img, const struct qcow2_options *opts, uint64_t map_bytes,
	       struct error *err)
{
	struct chain *chain;
	uint64_t all;
	int ret;

	if (!img->hdr.backing_file[0])
		return 0;
	if (!opts->image_path)
		return error_set(err, -ENOTSUP, "%s: a backing file is not possible here", img->st->name);
	chain = calloc(1, sizeof(*chain));
	if (chain)
		chain->layers = calloc(CHAIN_LAYERS_MAX, sizeof(*chain->layers));
	img->chain = chain;
	if (!chain || !chain->layers)
		return error_set(err, -ENOMEM, "no memory for the backing chain");
	chain->grain_bits = GRAIN_BITS_DEFAULT;
	ret = open_layers(chain, img, opts, err);
	if (ret)
		return ret;
	all = div_up(min_of(img->size_bytes, chain->layers[0].end_bytes), slice_span(chain));
	ret = cache_init(&chain->map, img, "the backing chain's map", SLICE_MAX_BYTES,
			 max_of(min_of(map_bytes / SLICE_MAX_BYTES, all), (uint64_t)CACHE_MIN_SLICES),
			 true, err);
	if (!ret)
		chain->map.load = slice_build;
	return ret;
}

void chain_close(struct chain *chain)
{
	if (!chain)
		return;
	for (unsigned i = 0; chain->layers && i < chain->count; i++)
		layer_close(&chain->layers[i]);
	cache_destroy(&chain->map);
	free(chain->layers);
	free(chain);
}

int chain_attach(struct chain *chain, struct loop *loop, struct error *err)
{
	for (unsigned i = 0; chain && i < chain->count; i++) {
		int ret = layer_attach(&chain->layers[i], loop, err);

		if (!ret)
			continue;
		while (i--)
			layer_detach(&chain->layers[i], loop);
		return ret;
	}
	return 0;
}

void chain_detach(struct chain *chain, struct loop *loop)
{
	for (unsigned i = 0; chain && i < chain->count; i++)
		layer_detach(&chain->layers[i], loop);
}
