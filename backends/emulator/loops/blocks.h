/* Values as their formats hold them: bfloat16, or blocks of BLOCK values that share an exponent, each
   an integer number of units of their last mantissa bit, rounded to even and limited. */

#ifndef BLOCKS_H
#define BLOCKS_H
#include "vectors.h"

/* One block; few bits are left. */
#ifdef __AVX512F__
static inline void store_block(const float *x, uint16_t *out, int mantissa_bits) {
  const int below = mantissa_bits - 1;
  const __m512 values = _mm512_loadu_ps(x), most = _mm512_set1_ps((1 << mantissa_bits) - 1);
  __m512i top = _mm512_and_si512((__m512i)values, _mm512_set1_epi32(EXPONENT));
  top = _mm512_max_epu32(top, _mm512_shuffle_i64x2(top, top, 0x4E)); /* halves, */
  top = _mm512_max_epu32(top, _mm512_shuffle_i64x2(top, top, 0xB1)); /* quarters, */
  top = _mm512_max_epu32(top, _mm512_shuffle_epi32(top, 0x4E));      /* pairs, */
  top = _mm512_max_epu32(top, _mm512_shuffle_epi32(top, 0xB1));      /* single ones change places */
  top = _mm512_max_epu32(top, _mm512_set1_epi32(SMALLEST << PLACE));
  const __m512i per_unit = _mm512_sub_epi32(_mm512_set1_epi32((int)((uint32_t)(254 + below) << PLACE)), top);
  const __m512i unit = _mm512_sub_epi32(top, _mm512_set1_epi32(below << PLACE));
  __m512 units = _mm512_roundscale_ps(values * (__m512)per_unit, _MM_FROUND_TO_NEAREST_INT);
  units = _mm512_min_ps(most, _mm512_max_ps(-most, units)); /* what is no number stays so */
  const __m512i bits = _mm512_srli_epi32((__m512i)(units * (__m512)unit), 16);
  _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi32_epi16(bits));
}
#else
static inline void store_block(const float *x, uint16_t *out, int mantissa_bits) {
  const int below = mantissa_bits - 1;
  const float most = (float)((1 << mantissa_bits) - 1);
  uint32_t top = SMALLEST << PLACE;
  for (int i = 0; i < BLOCK; i++) {
    uint32_t exponent = as_bits(x[i]) & EXPONENT;
    top = exponent > top ? exponent : top;
  }
  const float per_unit = as_float(((uint32_t)(254 + below) << PLACE) - top);
  const float unit = as_float(top - ((uint32_t)below << PLACE));
  for (int i = 0; i < BLOCK; i++) {
    float units = rintf(x[i] * per_unit);
    units = units > most ? most : units;
    units = units < -most ? -most : units;
    out[i] = (uint16_t)(as_bits(units * unit) >> 16);
  }
}
#endif

/* Two blocks, which find their largest exponents together. */
#ifdef __AVX512BW__
typedef uint16_t Halves __attribute__((vector_size(64)));

static inline void store_two_blocks(const float *x, uint16_t *out, int mantissa_bits) {
  const int below = mantissa_bits - 1;
  const __m512i exponent = _mm512_set1_epi32(EXPONENT);
  const __m512 values[2] = {_mm512_loadu_ps(x), _mm512_loadu_ps(x + BLOCK)};
  const __m512 most = _mm512_set1_ps((1 << mantissa_bits) - 1);
  const __m512i first = _mm512_and_si512((__m512i)values[0], exponent);
  const __m512i second = _mm512_and_si512((__m512i)values[1], exponent);
  __m512i top = _mm512_max_epu32(_mm512_shuffle_i64x2(first, second, 0x44), /* halves meet, */
                                 _mm512_shuffle_i64x2(first, second, 0xEE));
  top = _mm512_max_epu32(top, _mm512_shuffle_i64x2(top, top, 0xB1)); /* quarters, */
  top = _mm512_max_epu32(top, _mm512_shuffle_epi32(top, 0x4E));      /* pairs, */
  top = _mm512_max_epu32(top, _mm512_shuffle_epi32(top, 0xB1));      /* single ones */
  top = _mm512_max_epu32(top, _mm512_set1_epi32(SMALLEST << PLACE));
  const __m512i tops[2] = {_mm512_shuffle_i64x2(top, top, 0x00), _mm512_shuffle_i64x2(top, top, 0xFF)};
  __m512i bits[2];
  UNROLLED
  for (int i = 0; i < 2; i++) {
    const __m512i per_unit =
        _mm512_sub_epi32(_mm512_set1_epi32((int)((uint32_t)(254 + below) << PLACE)), tops[i]);
    const __m512i unit = _mm512_sub_epi32(tops[i], _mm512_set1_epi32(below << PLACE));
    __m512 units = _mm512_roundscale_ps(values[i] * (__m512)per_unit, _MM_FROUND_TO_NEAREST_INT);
    units = _mm512_min_ps(most, _mm512_max_ps(-most, units)); /* what is no number stays so */
    bits[i] = (__m512i)(units * (__m512)unit);
  }
  const Halves upper = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  _mm512_storeu_si512(out, _mm512_permutex2var_epi16(bits[0], (__m512i)upper, bits[1]));
}
#else
static inline void store_two_blocks(const float *x, uint16_t *out, int mantissa_bits) {
  store_block(x, out, mantissa_bits);
  store_block(x + BLOCK, out + BLOCK, mantissa_bits);
}
#endif

/* `blocks` of them as their format holds them: blocks of `bits` mantissa bits, or bfloat16 (0). */
static inline void store_as(const float *x, int64_t blocks, uint16_t *out, int64_t mantissa_bits) {
  if (!mantissa_bits) {
    for (int64_t j = 0; j < blocks * BLOCK; j += LANES) {
      const halves narrow = narrowed_all(loaded(x + j));
      memcpy(out + j, &narrow, sizeof narrow);
    }
    return;
  }
  for (; blocks >= 2; blocks -= 2, x += 2 * BLOCK, out += 2 * BLOCK)
    store_two_blocks(x, out, (int)mantissa_bits);
  if (blocks) store_block(x, out, (int)mantissa_bits);
}

/* One block of what passes through bfloat16. */
#ifdef __AVX512BF16__
static inline void store_narrow_block(const float *x, uint16_t *out, int mantissa_bits) {
  const int below = mantissa_bits - 1;
  const __m256i narrow = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x));
  const __m256i left = _mm256_andnot_si256(narrow, _mm256_set1_epi16(EXPONENT >> 16)); /* to the most */
  __m128i least = _mm_min_epu16(_mm256_castsi256_si128(left), _mm256_extracti128_si256(left, 1));
  least = _mm_min_epu16(_mm_minpos_epu16(least), _mm_set1_epi16((255 - SMALLEST) << (PLACE - 16)));
  const __m512i rest = _mm512_slli_epi32(_mm512_broadcastd_epi32(least), 16);
  const __m512i per_unit = _mm512_add_epi32(rest, _mm512_set1_epi32((below - 1) << PLACE));
  const __m512i unit = _mm512_sub_epi32(_mm512_set1_epi32((255 - below) << PLACE), rest);
  const __m512 values = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
  const __m512 most = _mm512_set1_ps((1 << mantissa_bits) - 1);
  __m512 units = _mm512_roundscale_ps(values * (__m512)per_unit, _MM_FROUND_TO_NEAREST_INT);
  units = _mm512_min_ps(most, _mm512_max_ps(-most, units));
  _mm256_storeu_si256((__m256i *)out, (__m256i)_mm512_cvtneps_pbh(units * (__m512)unit));
}
#else
static inline void store_narrow_block(const float *x, uint16_t *out, int mantissa_bits) {
  float narrow[BLOCK];
  for (int j = 0; j < BLOCK; j += LANES) {
    const floats value = rounded(loaded(x + j));
    memcpy(narrow + j, &value, sizeof value);
  }
  store_block(narrow, out, mantissa_bits);
}
#endif

#ifdef __AVX512BF16__
#define AT_A_TIME 3 /* rows at once, so that none waits for its own largest exponent */
#define SECOND 0xFFFF0000u

/* A row of a tile in two vectors, of its first, third ... and of its other columns. */
typedef struct {
  __m512 first, second;
} Turns;

static inline __m512i narrow_row(const float *x) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + BLOCK), _mm512_loadu_ps(x));
}

static inline Turns turns_of(__m512i narrow) {
  return (Turns){(__m512)_mm512_slli_epi32(narrow, 16),
                 (__m512)_mm512_and_si512(narrow, _mm512_set1_epi32((int)SECOND))};
}

/* Rows [count] in units of their blocks' last mantissa bits, limited, and the units. All rows take
   each step together: one alone would wait for what comes before. */
static inline __attribute__((always_inline)) void
in_units(const float *x, const int count, int mantissa_bits, Turns *rows, __m512 *units) {
  const int below = mantissa_bits - 1;
  const __m512 most = _mm512_set1_ps((1 << mantissa_bits) - 1);
  __m512i left[AT_A_TIME]; /* of exponents, to the most there are */
#define EACH_ROW UNROLLED for (int i = 0; i < count; i++)
#define SWAPPED(swap) EACH_ROW left[i] = _mm512_min_epu16(left[i], swap)
  EACH_ROW {
    const __m512i narrow = narrow_row(x + i * TILE);
    rows[i] = turns_of(narrow);
    left[i] = _mm512_andnot_si512(narrow, _mm512_set1_epi16(EXPONENT >> 16));
  }
  SWAPPED(_mm512_shuffle_i64x2(left[i], left[i], 0xB1)); /* halves of a block, */
  SWAPPED(_mm512_shuffle_epi32(left[i], 0x4E));          /* quarters, */
  SWAPPED(_mm512_shuffle_epi32(left[i], 0xB1));          /* pairs, */
  SWAPPED(_mm512_rol_epi32(left[i], 16));                /* single ones change places */
  SWAPPED(_mm512_set1_epi16((255 - SMALLEST) << (PLACE - 16)));
  EACH_ROW {
    left[i] = _mm512_and_si512(left[i], _mm512_set1_epi32((int)SECOND));
    units[i] = (__m512)_mm512_sub_epi32(_mm512_set1_epi32((255 - below) << PLACE), left[i]);
    const __m512 each = (__m512)_mm512_add_epi32(left[i], _mm512_set1_epi32((below - 1) << PLACE));
    rows[i].first *= each, rows[i].second *= each;
  }
  EACH_ROW {
    rows[i].first = _mm512_roundscale_ps(rows[i].first, _MM_FROUND_TO_NEAREST_INT);
    rows[i].second = _mm512_roundscale_ps(rows[i].second, _MM_FROUND_TO_NEAREST_INT);
  }
  EACH_ROW { /* what is no number stays so */
    rows[i].first = _mm512_min_ps(most, _mm512_max_ps(-most, rows[i].first));
    rows[i].second = _mm512_min_ps(most, _mm512_max_ps(-most, rows[i].second));
  }
#undef SWAPPED
}

static inline __attribute__((always_inline)) void
store_narrow_rows(const float *x, const int count, int mantissa_bits, uint16_t *out, int64_t apart) {
  Turns rows[AT_A_TIME];
  __m512 units[AT_A_TIME];
  in_units(x, count, mantissa_bits, rows, units);
  EACH_ROW {
    const __m512i first = (__m512i)(rows[i].first * units[i]);
    const __m512i second = (__m512i)(rows[i].second * units[i]);
    _mm512_storeu_si512(out + i * apart,
                        _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(first, 16), second));
  }
}

#endif

/* `blocks` of what passes through bfloat16 as their format holds them. */
static inline void store_narrow(const float *x, int64_t blocks, uint16_t *out, int64_t mantissa_bits) {
  if (!mantissa_bits) {
    store_as(x, blocks, out, 0);
    return;
  }
#ifdef __AVX512BF16__
  const int64_t many = AT_A_TIME * TILE / BLOCK;
  for (; blocks >= many; blocks -= many, x += many * BLOCK, out += many * BLOCK)
    store_narrow_rows(x, AT_A_TIME, (int)mantissa_bits, out, TILE);
  for (; blocks >= 2; blocks -= 2, x += TILE, out += TILE)
    store_narrow_rows(x, 1, (int)mantissa_bits, out, TILE);
#endif
  for (; blocks; blocks--, x += BLOCK, out += BLOCK) store_narrow_block(x, out, (int)mantissa_bits);
}
#endif
