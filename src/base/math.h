/* SPDX-License-Identifier: MIT */
/*
 * math.h: rounding, and arithmetic that says when it overflows. What comes from an image goes
 * through the checked forms, which return false on overflow and leave *@out undefined.
 */
#ifndef BASE_MATH_H
#define BASE_MATH_H

#include <stdbool.h>
#include <stdint.h>

#define KiB ((uint64_t)1 << 10)
#define MiB ((uint64_t)1 << 20)
#define GiB ((uint64_t)1 << 30)
#define TiB ((uint64_t)1 << 40)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#define checked_add(a, b, out) (!__builtin_add_overflow((a), (b), (out)))
#define checked_mul(a, b, out) (!__builtin_mul_overflow((a), (b), (out)))

#define min_of(a, b)                                                                               \
	({                                                                                         \
		__typeof__(a) min_a_ = (a);                                                        \
		__typeof__(b) min_b_ = (b);                                                        \
		min_a_ < min_b_ ? min_a_ : min_b_;                                                 \
	})
#define max_of(a, b)                                                                               \
	({                                                                                         \
		__typeof__(a) max_a_ = (a);                                                        \
		__typeof__(b) max_b_ = (b);                                                        \
		max_a_ > max_b_ ? max_a_ : max_b_;                                                 \
	})

/* @unit is a power of two in the align_ functions, anything but 0 in the div_ ones. */
static inline uint64_t align_down(uint64_t v, uint64_t unit)
{
	return v & ~(unit - 1);
}

/* The caller knows that @v + @unit does not overflow. */
static inline uint64_t align_up(uint64_t v, uint64_t unit)
{
	return (v + unit - 1) & ~(unit - 1);
}

static inline bool is_aligned(uint64_t v, uint64_t unit)
{
	return (v & (unit - 1)) == 0;
}

static inline bool is_pow2(uint64_t v)
{
	return v && !(v & (v - 1));
}

static inline uint64_t div_up(uint64_t v, uint64_t unit)
{
	return v / unit + (v % unit != 0);
}

#endif
