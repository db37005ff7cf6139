/* Sums of products on their way out: rows of a tile rounded to their format, as results or as parts
   of a further sum. What is rounded to fewer bits passes through bfloat16, unless sums are wide. */

#ifndef SUMS_H
#define SUMS_H
#include "blocks.h"

#ifdef __AVX512BF16__
/* To a sum, in turns; products are exact. */
static inline void add_turns(Turns x, __m512 units, float *sum) {
  _mm512_storeu_ps(sum, _mm512_fmadd_ps(x.first, units, _mm512_loadu_ps(sum)));
  _mm512_storeu_ps(sum + BLOCK, _mm512_fmadd_ps(x.second, units, _mm512_loadu_ps(sum + BLOCK)));
}

static inline __attribute__((always_inline)) void
add_narrow_rows(const float *x, const int count, int mantissa_bits, float *sum) {
  Turns rows[AT_A_TIME];
  __m512 units[AT_A_TIME];
  in_units(x, count, mantissa_bits, rows, units);
  EACH_ROW add_turns(rows[i], units[i], sum + i * TILE);
}
#endif

/* Rows [count, TILE] rounded, put where they lie `apart`. */
static inline void put_rows(const float *x, int64_t count, int64_t mantissa_bits, int64_t is_wide,
                            uint16_t *out, int64_t apart) {
#ifdef __AVX512BF16__
  for (; !is_wide && mantissa_bits && count >= AT_A_TIME; count -= AT_A_TIME) {
    store_narrow_rows(x, AT_A_TIME, (int)mantissa_bits, out, apart);
    x += AT_A_TIME * TILE, out += AT_A_TIME * apart;
  }
#endif
  for (; count > 0; count--, x += TILE, out += apart)
    if (is_wide)
      store_as(x, TILE / BLOCK, out, mantissa_bits);
    else
      store_narrow(x, TILE / BLOCK, out, mantissa_bits);
}

/* The same added to a sum [count, TILE]. */
static inline void add_rows(const float *x, int64_t count, int64_t mantissa_bits, int64_t is_wide,
                            float *sum) {
#ifdef __AVX512BF16__
  if (!mantissa_bits) {
    for (int64_t i = 0; i < count * TILE; i += TILE)
      add_turns(turns_of(narrow_row(x + i)), _mm512_set1_ps(1), sum + i);
    return;
  }
  if (!is_wide) {
    for (; count >= AT_A_TIME; count -= AT_A_TIME, x += AT_A_TIME * TILE, sum += AT_A_TIME * TILE)
      add_narrow_rows(x, AT_A_TIME, (int)mantissa_bits, sum);
    for (; count > 0; count--, x += TILE, sum += TILE)
      add_narrow_rows(x, 1, (int)mantissa_bits, sum);
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

/* Rows of such a sum, rounded to `sum_bits`, put where they lie `apart`. */
static inline void end_rows(const float *sum, int64_t count, int64_t mantissa_bits, int64_t is_wide,
                            int64_t sum_bits, uint16_t *out, int64_t apart) {
  const int is_in_turns = !is_wide || !mantissa_bits; /* where there are turns */
#ifdef __AVX512BF16__
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
#endif
  for (; count > 0; count--, sum += TILE, out += apart) {
    float row[TILE];
#ifdef __AVX512BF16__
    const __m512 first = _mm512_loadu_ps(sum), second = _mm512_loadu_ps(sum + BLOCK);
    _mm512_storeu_ps(row, is_in_turns ? _mm512_permutex2var_ps(first, low, second) : first);
    _mm512_storeu_ps(row + BLOCK, is_in_turns ? _mm512_permutex2var_ps(first, high, second) : second);
#else
    (void)is_in_turns;
    memcpy(row, sum, sizeof row);
#endif
    for (int j = 0; j < TILE; j++) row[j] += 0.0f; /* negative zeros are zero together */
    store_as(row, TILE / BLOCK, out, sum_bits);
  }
}
#endif
