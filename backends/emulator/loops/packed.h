/* Block weights as their format stores them: mantissas with a sign, in bytes or half bytes, and what
   to subtract from the exponents of bfloat16 integers. Unpacking gives the very bits of bfloat16. */

#ifndef PACKED_H
#define PACKED_H
#include "vectors.h"

#define VECTORS (TILE / LANES) /* of a tile's columns */

#if defined(__AVX512VBMI__) && defined(__AVX512BW__)
#define PACKING 1 /* the order of mantissas, by which files say whose loops can read them */

/* Where a column's mantissa of a row of the pair lies: as a register is unpacked by quarters. */
static inline int64_t byte_of(int column, int row) {
  const int word = column % BLOCK * 2 + row;
  return 16 * (word / 8) + 8 * (column / BLOCK) + word % 8;
}

static inline int64_t nibbles_of(int column, int row) { return column * 2 + row; }

static inline uint8_t as_byte(int mantissa) {
  return (uint8_t)(mantissa < 0 ? -mantissa | 0x80 : mantissa);
}

static inline uint8_t as_nibble(int mantissa) {
  return (uint8_t)(mantissa < 0 ? -mantissa | 8 : mantissa);
}

static uint8_t bytes_of[4][64]; /* of bfloat16 integers up to 127: low ones, then high ones */
static uint16_t halves_of[32];  /* of bfloat16 integers up to 7, those below zero from 8 on; twice */

static __attribute__((constructor, unused)) void fill_tables(void) {
  for (int m = 0; m < 128; m++) {
    const uint16_t bits = narrowed((float)m);
    bytes_of[m / 64][m % 64] = (uint8_t)bits;
    bytes_of[2 + m / 64][m % 64] = (uint8_t)(bits >> 8);
  }
  for (int i = 0; i < 32; i++)
    halves_of[i] = (uint16_t)(narrowed((float)(i % 8)) | (i & 8 && i % 8 ? 0x8000 : 0));
}

/* Exponents of 2^-less; what is zero stays so. */
static inline Pair scaled(__m512i integers, uint32_t less) {
  return pair_of((words)_mm512_subs_epu16(integers, _mm512_set1_epi32((int)less)));
}

static inline __attribute__((always_inline)) void
unpack_bytes(const uint8_t *mantissas, const uint32_t *less, Pair *own) {
  const __m512i each = _mm512_loadu_si512(mantissas);
  const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(bytes_of[0]), each,
                                               _mm512_loadu_si512(bytes_of[1]));
  __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(bytes_of[2]), each,
                                          _mm512_loadu_si512(bytes_of[3]));
  high = _mm512_ternarylogic_epi32(high, each, _mm512_set1_epi8((char)0x80), 0xF8); /* signs */
  own[0] = scaled(_mm512_unpacklo_epi8(low, high), less[0]);
  own[1] = scaled(_mm512_unpackhi_epi8(low, high), less[1]);
}

static inline __attribute__((always_inline)) void
unpack_nibbles(const uint8_t *mantissas, const uint32_t *less, Pair *own) {
  const __m512i table = _mm512_loadu_si512(halves_of); /* of whose places 5 bits count */
  const __m512i each = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)mantissas));
  own[0] = scaled(_mm512_permutexvar_epi16(each, table), less[0]);
  own[1] = scaled(_mm512_permutexvar_epi16(_mm512_srli_epi16(each, 4), table), less[1]);
}
#else
#define PACKING 0

static inline int64_t byte_of(int column, int row) { return row * TILE + column; }

static inline int64_t nibbles_of(int column, int row) { return row * BLOCK + column; }

static inline uint8_t as_byte(int mantissa) { return (uint8_t)mantissa; }

static inline uint8_t as_nibble(int mantissa) { return (uint8_t)(mantissa & 15); }

/* Mantissas of two rows times their units. */
static inline Pair scaled_pair(integers first, integers second, uint32_t less) {
  const words ones = (words){0} + (127u << PLACE), both = (words){0} + less;
  const floats unit = (floats)(ones - (both << 16)), other = (floats)(ones - (both & 0xFFFF0000u));
  return joined(__builtin_convertvector(first, floats) * unit,
                __builtin_convertvector(second, floats) * other);
}

/* By hand where it can be: compilers convert vectors of bytes one by one. */
static inline integers wide_bytes(const uint8_t *mantissas) {
#if LANES == 16
  return (integers)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)mantissas));
#elif defined(__AVX2__)
  return (integers)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)mantissas));
#else
  int8_t narrow __attribute__((vector_size(LANES)));
  memcpy(&narrow, mantissas, sizeof narrow);
  return __builtin_convertvector(narrow, integers);
#endif
}

static inline __attribute__((always_inline)) void
unpack_bytes(const uint8_t *mantissas, const uint32_t *less, Pair *own) {
  UNROLLED
  for (int v = 0; v < VECTORS; v++)
    own[v] = scaled_pair(wide_bytes(mantissas + v * LANES), wide_bytes(mantissas + TILE + v * LANES),
                      less[v * LANES / BLOCK]);
}

static inline __attribute__((always_inline)) void
unpack_nibbles(const uint8_t *mantissas, const uint32_t *less, Pair *own) {
  UNROLLED
  for (int v = 0; v < VECTORS; v++) {
    const int column = v * LANES % BLOCK, up = v * LANES / BLOCK ? 24 : 28;
    const words first = (words)wide_bytes(mantissas + column);
    const words second = (words)wide_bytes(mantissas + BLOCK + column);
    own[v] = scaled_pair((integers)(first << up) >> 28, (integers)(second << up) >> 28,
                      less[v * LANES / BLOCK]);
  }
}
#endif

#endif
