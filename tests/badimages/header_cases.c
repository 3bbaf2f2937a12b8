/* SPDX-License-Identifier: MIT */
/*
 * header_cases.c: images whose header or extensions are wrong, or ask for what is not supported.
 *
 * Cases named cve_* are the classes of published vulnerabilities of qcow2 readers; the others follow
 * the format's fields in order.
 */
#include "bad.h"

#include <string.h>

static void field32(struct image *img, uint64_t at, uint64_t v)
{
	set32(img, at, v);
}

static void field64(struct image *img, uint64_t at, uint64_t v)
{
	set64(img, at, v);
}

static void field8(struct image *img, uint64_t at, uint64_t v)
{
	set8(img, at, v);
}

static void cut(struct image *img, uint64_t len, uint64_t unused)
{
	resize(img, len);
}

static void zeros(struct image *img, uint64_t len, uint64_t unused)
{
	resize(img, 0);
	resize(img, len);
}

static void text(struct image *img, uint64_t a, uint64_t b)
{
	static const char lines[] = "This is a plain text and no image at all, long enough for a header.\n";

	resize(img, 0);
	resize(img, 200);
	memcpy(img->data, lines, sizeof(lines));
}

/* An extension of @type that claims @len bytes. */
static void extension(struct image *img, uint64_t type, uint64_t len)
{
	set32(img, F_EXTENSIONS, type);
	set32(img, F_EXTENSIONS + 4, len);
}

/* The same with its end: the rest is filled with the letter x. */
static void long_extension(struct image *img, uint64_t type, uint64_t len)
{
	extension(img, type, len);
	memset(img->data + F_EXTENSIONS + 8, 'x', len);
	set64(img, F_EXTENSIONS + 8 + (len + 7) / 8 * 8, 0);
}

/* Extensions that fill the cluster to its last byte, without an end mark. */
static void full_cluster(struct image *img, uint64_t type, uint64_t unused)
{
	extension(img, type, GOOD_CLUSTER - F_EXTENSIONS - 8);
	memset(img->data + F_EXTENSIONS + 8, 'x', GOOD_CLUSTER - F_EXTENSIONS - 8);
}

static void backing(struct image *img, uint64_t at, uint64_t len)
{
	set64(img, F_BACKING_OFFSET, at);
	set32(img, F_BACKING_SIZE, len);
	if (at < GOOD_CLUSTER)
		memset(img->data + at, 'b', len < GOOD_CLUSTER - at ? len : GOOD_CLUSTER - at);
}

static void backing_with_nul(struct image *img, uint64_t a, uint64_t b)
{
	backing(img, 2000, 20);
	img->data[2005] = 0;
}

static void backing_hostile(struct image *img, uint64_t a, uint64_t b)
{
	static const char name[] = "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}\n\033[31m";

	backing(img, 2000, sizeof(name) - 1);
	memcpy(img->data + 2000, name, sizeof(name) - 1);
}

static void data_file(struct image *img, uint64_t a, uint64_t b)
{
	static const char name[] = "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}";

	set64(img, F_INCOMPATIBLE, 4);
	long_extension(img, 0x44415441, sizeof(name) - 1);
	memcpy(img->data + F_EXTENSIONS + 8, name, sizeof(name) - 1);
}

static void named_feature(struct image *img, uint64_t bit, uint64_t unused)
{
	set64(img, F_INCOMPATIBLE, (uint64_t)1 << bit);
	long_extension(img, 0x6803f857, 48);
	memset(img->data + F_EXTENSIONS + 8, 0, 48);
	img->data[F_EXTENSIONS + 8] = 0;
	img->data[F_EXTENSIONS + 9] = bit;
	strcpy((char *)img->data + F_EXTENSIONS + 10, "shiny\033[31mthing");
}

/* Feature and row of feature names are both there, but the row's extension is cut short. */
static void short_feature_names(struct image *img, uint64_t bit, uint64_t unused)
{
	named_feature(img, bit, 0);
	set32(img, F_EXTENSIONS + 4, 47);
}

static void extended_l2(struct image *img, uint64_t a, uint64_t b)
{
	set64(img, F_INCOMPATIBLE, 1 << 4);
}

static void compression(struct image *img, uint64_t bit, uint64_t type)
{
	set64(img, F_INCOMPATIBLE, bit);
	set8(img, F_COMPRESSION, type);
}

static void crypt_luks(struct image *img, uint64_t header_offset, uint64_t len)
{
	set32(img, F_CRYPT, 2);
	extension(img, 0x0537be77, len);
	set64(img, F_EXTENSIONS + 8, header_offset);
	set64(img, F_EXTENSIONS + 16, 592);
	set64(img, F_EXTENSIONS + 8 + (len + 7) / 8 * 8, 0);
}

static void bitmaps(struct image *img, uint64_t count, uint64_t directory_bytes)
{
	set64(img, F_AUTOCLEAR, 1);
	extension(img, 0x23852875, 24);
	set32(img, F_EXTENSIONS + 8, count);
	set32(img, F_EXTENSIONS + 12, 0);
	set64(img, F_EXTENSIONS + 16, directory_bytes);
	set64(img, F_EXTENSIONS + 24, GOOD_CLUSTER);
	set64(img, F_EXTENSIONS + 32, 0);
}

const struct bad_case header_cases[] = {
	/* not an image */
	{"empty_file", "v3", REFUSE, "(not a qcow2 image|empty)", zeros, 0},
	{"zeros", "v3", REFUSE, "not a qcow2 image", zeros, 65536},
	{"text", "v3", REFUSE, "not a qcow2 image", text},
	{"magic", "v3", REFUSE, "not a qcow2 image", field32, F_MAGIC, 0x514649fa},
	{"version_0", "v3", REFUSE, "version 0", field32, F_VERSION, 0},
	{"version_1", "v3", REFUSE, "version 1", field32, F_VERSION, 1},
	{"version_4", "v3", REFUSE, "version 4", field32, F_VERSION, 4},
	{"version_max", "v3", REFUSE, "version 4294967295", field32, F_VERSION, 0xffffffff},

	/* truncated in the header */
	{"cut_1", "v3", REFUSE, "(not a qcow2 image|header)", cut, 1},
	{"cut_4", "v3", REFUSE, "(not a qcow2 image|header)", cut, 4},
	{"cut_8", "v3", REFUSE, "(not a qcow2 image|header)", cut, 8},
	{"cut_71", "v3", REFUSE, "(not a qcow2 image|header)", cut, 71},
	{"cut_72", "v3", REFUSE, "header", cut, 72},
	{"cut_100", "v3", REFUSE, "header", cut, 100},
	{"cut_104", "v3", REFUSE, "header", cut, 104},
	{"cut_111", "v3", REFUSE, "header", cut, 111},
	{"cut_512", "v3", UNSERVED, "outside the file", cut, 512},
	{"cut_72_v2", "v2", UNSERVED, "(header|outside the file)", cut, 72},

	/* geometry */
	{"cluster_bits_0", "v3", REFUSE, "cluster_bits is 0", field32, F_CLUSTER_BITS, 0},
	{"cluster_bits_5", "v3", REFUSE, "cluster_bits is 5", field32, F_CLUSTER_BITS, 5},
	{"cluster_bits_8", "v3", REFUSE, "cluster_bits is 8", field32, F_CLUSTER_BITS, 8},
	{"cluster_bits_22", "v3", REFUSE, "cluster_bits is 22", field32, F_CLUSTER_BITS, 22},
	{"cluster_bits_40", "v3", REFUSE, "cluster_bits is 40", field32, F_CLUSTER_BITS, 40},
	{"cluster_bits_max", "v3", REFUSE, "cluster_bits", field32, F_CLUSTER_BITS, 0xffffffff},
	{"refcount_order_7", "v3", REFUSE, "refcount_order is 7", field32, F_REFCOUNT_ORDER, 7},
	{"refcount_order_64", "v3", REFUSE, "refcount_order is 64", field32, F_REFCOUNT_ORDER, 64},
	{"refcount_order_max", "v3", REFUSE, "refcount_order", field32, F_REFCOUNT_ORDER, 0xffffffff},
	{"header_length_0", "v3", REFUSE, "header_length is 0", field32, F_HEADER_LENGTH, 0},
	{"header_length_1", "v3", REFUSE, "header_length is 1", field32, F_HEADER_LENGTH, 1},
	{"header_length_100", "v3", REFUSE, "header_length is 100", field32, F_HEADER_LENGTH, 100},
	{"header_length_105", "v3", REFUSE, "header_length is 105", field32, F_HEADER_LENGTH, 105},
	{"header_length_cluster_8", "v3", REFUSE, "header_length", field32, F_HEADER_LENGTH,
	 GOOD_CLUSTER + 8},
	{"cve_2014_0144_header_length", "v3", REFUSE, "header_length is 2147483648", field32,
	 F_HEADER_LENGTH, 0x80000000},
	{"header_length_max", "v3", REFUSE, "header_length", field32, F_HEADER_LENGTH, 0xffffffff},
	{"size_max", "v3", REFUSE, "(l1_size|size)", field64, F_SIZE, UINT64_MAX},
	{"size_2_63", "v3", REFUSE, "(l1_size|size)", field64, F_SIZE, (uint64_t)1 << 63},
	{"size_past_l1", "v3", REFUSE, "l1_size is 5, less than", field64, F_SIZE,
	 5 * GOOD_L2_COVERS + 512},
	{"l1_size_0", "v3", REFUSE, "l1_size is 0", field32, F_L1_SIZE, 0},
	{"l1_size_small", "v3", REFUSE, "l1_size is 4, less than", field32, F_L1_SIZE, 4},
	{"cve_2014_0144_l1_size", "v3", REFUSE, "l1_size is 4294967295", field32, F_L1_SIZE, 0xffffffff},
	{"cve_2014_0143_l1_size_overflow", "v3", REFUSE, "l1_size is 536870912", field32, F_L1_SIZE,
	 0x20000000},
	{"l1_size_limit_1", "v3", REFUSE, "l1_size is 4194305", field32, F_L1_SIZE, (32 << 20) / 8 + 1},

	/* backing file */
	{"backing_file", "v3", UNSERVED, "backing file", backing, 2000, 10},
	{"backing_hostile", "v3", UNSERVED, "backing file", backing_hostile},
	{"cve_2014_0144_backing_offset", "v3", REFUSE, "backing_file_offset", backing, GOOD_CLUSTER + 8, 10},
	{"backing_offset_max", "v3", REFUSE, "backing_file_offset", backing, UINT64_MAX, 10},
	{"backing_offset_in_header", "v3", REFUSE, "backing_file_offset", backing, 64, 10},
	{"cve_2014_0145_backing_size", "v3", REFUSE, "backing_file_size is 1024", backing, 2000, 1024},
	{"backing_size_max", "v3", REFUSE, "backing_file_size", backing, 2000, 0xffffffff},
	{"backing_past_cluster", "v3", REFUSE, "backing_file_size", backing, GOOD_CLUSTER - 8, 9},
	{"backing_nul", "v3", REFUSE, "NUL", backing_with_nul},

	/* features */
	{"crypt_aes", "v3", UNSERVED, "encryption|encrypted|AES", field32, F_CRYPT, 1},
	{"crypt_aes_v2", "v2", UNSERVED, "encryption|encrypted|AES", field32, F_CRYPT, 1},
	{"crypt_luks", "v3", UNSERVED, "encryption|encrypted|LUKS", crypt_luks, GOOD_CLUSTER, 16},
	{"crypt_luks_unaligned", "v3", REFUSE, "LUKS", crypt_luks, GOOD_CLUSTER + 512, 16},
	{"crypt_luks_short", "v3", REFUSE, "LUKS", crypt_luks, GOOD_CLUSTER, 15},
	{"crypt_luks_missing", "v3", REFUSE, "LUKS", field32, F_CRYPT, 2},
	{"crypt_3", "v3", REFUSE, "crypt_method is 3", field32, F_CRYPT, 3},
	{"crypt_max", "v3", REFUSE, "crypt_method", field32, F_CRYPT, 0xffffffff},
	{"corrupt_bit", "v3", READ_ONLY, "corrupt", field64, F_INCOMPATIBLE, 2},
	{"incompatible_5", "v3", UNSERVED, "unknown|unsupported", field64, F_INCOMPATIBLE, 1 << 5},
	{"incompatible_63", "v3", UNSERVED, "bit 63", field64, F_INCOMPATIBLE, (uint64_t)1 << 63},
	{"incompatible_named", "v3", UNSERVED, "shiny\\?\\[31mthing", named_feature, 40},
	{"cve_2014_0146_error_path", "v3", UNSERVED, "bit 40", short_feature_names, 40},
	{"data_file", "v3", UNSERVED, "data file", field64, F_INCOMPATIBLE, 4},
	{"cve_2024_4467_data_file_json", "v3", UNSERVED, "data file", data_file},
	{"raw_data_file_alone", "v3", REFUSE, "data file", field64, F_AUTOCLEAR, 2},
	{"extended_l2_small_clusters", "v3", REFUSE, "extended L2", extended_l2},
	{"zstd", "v3", SERVED, "", compression, 8, 1},
	{"compression_type_without_bit", "v3", REFUSE, "compression", compression, 0, 1},
	{"compression_bit_without_type", "v3", REFUSE, "compression", compression, 8, 0},
	{"compression_type_2", "v3", REFUSE, "compression_type is 2", compression, 8, 2},
	{"compression_type_255", "v3", REFUSE, "compression_type is 255", compression, 8, 255},
	{"compatible_unknown", "v3", SERVED, "", field64, F_COMPATIBLE, (uint64_t)1 << 63 | 2},
	{"autoclear_unknown", "v3", SERVED, "", field64, F_AUTOCLEAR, (uint64_t)1 << 63},
	{"lazy_refcounts", "v3", SERVED, "", field64, F_COMPATIBLE, 1},
	{"dirty", "v3", SERVED, "", field64, F_INCOMPATIBLE, 1},

	/* extensions */
	{"cve_2014_0144_extension", "v3", REFUSE, "extension", extension, 0x12345678, 0x7fffffff},
	{"extension_len_max", "v3", REFUSE, "extension", extension, 0x12345678, 0xffffffff},
	{"extension_len_wraps", "v3", REFUSE, "extension", extension, 0x12345678, 0xfffffff9},
	{"extension_past_cluster", "v3", REFUSE, "extension", extension, 0x12345678,
	 GOOD_CLUSTER - F_EXTENSIONS - 7},
	{"extension_full", "v3", SERVED, "", full_cluster, 0x12345678},
	{"extension_unknown", "v3", SERVED, "", long_extension, 0x12345678, 100},
	{"backing_format_long", "v3", REFUSE, "format", long_extension, 0xe2792aca, 16},
	{"data_file_name_long", "v3", REFUSE, "data file", long_extension, 0x44415441, 1024},
	{"feature_names_odd", "v3", SERVED, "", long_extension, 0x6803f857, 49},
	{"bitmaps_none", "v3", REFUSE, "bitmap", bitmaps, 0, 32},
	{"bitmaps_many", "v3", REFUSE, "bitmap", bitmaps, 65536, 32},
	{"bitmaps_directory_huge", "v3", REFUSE, "bitmap", bitmaps, 1, (uint64_t)1 << 60},
	{"bitmaps_short", "v3", REFUSE, "bitmap", long_extension, 0x23852875, 23},

	/* later header fields that nobody knows yet */
	{"header_padding", "v3", SERVED, "", field8, F_COMPRESSION + 1, 1},
};

const size_t header_case_count = sizeof(header_cases) / sizeof(header_cases[0]);
