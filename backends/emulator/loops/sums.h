/* Sums of products on their way out: rows of a tile rounded to their format, as results or as parts
   of a further sum. What is rounded to fewer bits passes through bfloat16, unless sums are wide. */

#ifndef SUMS_H
#define SUMS_H
#include "vectors.h"

#ifdef __AVX512BF16__
#define AT_A_TIME 3 /* rows, so that none waits for its own largest exponent */
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

/* To a sum, in turns; products are exact. */
static inline void add_turns(Turns x, __m512 units, float *sum) {
  _mm512_storeu_ps(sum, _mm512_fmadd_ps(x.first, units, _mm512_loadu_ps(sum)));
  _mm512_storeu_ps(sum + BLOCK, _mm512_fmadd_ps(x.second, units, _mm512_loadu_ps(sum + BLOCK)));
}

static inline __attribute__((always_inline)) void
store_blocks(const float *x, const int count, int mantissa_bits, uint16_t *out, int64_t apart) {
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

static inline __attribute__((always_inline)) void
add_blocks_to(float *sum, const float *x, const int count, int mantissa_bits) {
  Turns rows[AT_A_TIME];
  __m512 units[AT_A_TIME];
  in_units(x, count, mantissa_bits, rows, units);
  EACH_ROW add_turns(rows[i], units[i], sum + i * TILE);
}
#undef EACH_ROW
#endif

/* Rows [count, TILE] rounded, put where they lie `apart`. */
static inline void put_rows(const float *x, int64_t count, int64_t mantissa_bits, int64_t is_wide,
                            uint16_t *out, int64_t apart) {
#ifdef __AVX512BF16__
  if (!is_wide && mantissa_bits) {
    for (; count >= AT_A_TIME; count -= AT_A_TIME, x += AT_A_TIME * TILE, out += AT_A_TIME * apart)
      store_blocks(x, AT_A_TIME, (int)mantissa_bits, out, apart);
    for (; count > 0; count--, x += TILE, out += apart) store_blocks(x, 1, (int)mantissa_bits, out, apart);
    return;
  }
#endif
  for (int64_t i = 0; i < count; i++)
    for (int j = 0; j < TILE; j += BLOCK)
      if (is_wide || !mantissa_bits)
        store_as(x + i * TILE + j, out + i * apart + j, mantissa_bits);
      else
        store_narrow_block(x + i * TILE + j, out + i * apart + j, (int)mantissa_bits);
}

/* The same added to a sum [count, TILE]. */
static inline void add_rows(const float *x, int64_t count, int64_t mantissa_bits, int64_t is_wide,
                            float *sum) {
#ifdef __AVX512BF16__
  if (!mantissa_bits) {
    const __m512 ones = _mm512_set1_ps(1);
    for (int64_t i = 0; i < count * TILE; i += TILE)
      add_turns(turns_of(narrow_row(x + i)), ones, sum + i);
    return;
  }
  if (!is_wide) {
    for (; count >= AT_A_TIME; count -= AT_A_TIME, x += AT_A_TIME * TILE, sum += AT_A_TIME * TILE)
      add_blocks_to(sum, x, AT_A_TIME, (int)mantissa_bits);
    for (; count > 0; count--, x += TILE, sum += TILE)
      add_blocks_to(sum, x, 1, (int)mantissa_bits);
    return;
  }
#endif
  for (int64_t i = 0; i < count * TILE; i += TILE) {
    uint16_t row[TILE];
    put_rows(x + i, 1, mantissa_bits, is_wide, row, TILE);
    for (int j = 0; j < TILE; j += LANES) {
      const floats own = loaded(sum + i + j) + widened_all(row + j);
      memcpy(sum + i + j, &own, sizeof own);
    }
  }
}

/* A row of such a sum, rounded to `sum_bits`. */
static inline void end_row(const float *sum, int64_t mantissa_bits, int64_t is_wide, int64_t sum_bits,
                           uint16_t *out) {
  float row[TILE];
#ifdef __AVX512BF16__
  const int is_in_turns = !is_wide || !mantissa_bits;
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const __m512 first = _mm512_loadu_ps(sum), second = _mm512_loadu_ps(sum + BLOCK);
  _mm512_storeu_ps(row, is_in_turns ? _mm512_permutex2var_ps(first, low, second) : first);
  _mm512_storeu_ps(row + BLOCK, is_in_turns ? _mm512_permutex2var_ps(first, high, second) : second);
#else
  memcpy(row, sum, sizeof row);
#endif
  for (int j = 0; j < TILE; j++) row[j] += 0.0f; /* negative zeros are zero together */
  for (int j = 0; j < TILE; j += BLOCK) store_as(row + j, out + j, sum_bits);
}
#endif
