/* What the loops share: numbers in vectors as wide as registers are. Each function of these files has
   a twin in torch with the same results, used where no compiler is. */

#ifndef VECTORS_H
#define VECTORS_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "steps.h"
#include "team.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif
#define HALF_UNROLLED _Pragma("GCC unroll 4")
#define UNROLLED _Pragma("GCC unroll 16") /* vectors of an array stay in registers */

#define EXPONENT 0x7F800000
#define PLACE 23
#define SMALLEST 16 /* biased exponent below which a block's values are nothing */
#define LARGEST 240 /* beyond it the host's conversion has rules of its own */
#define INTEGERS 12582912.0f /* 1.5 * 2^23: numbers near it are whole */

static inline float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static inline uint32_t as_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

static inline float widened(uint16_t x) { return as_float((uint32_t)x << 16); }

static inline uint16_t narrowed(float x) {
  const uint32_t bits = as_bits(x), up = bits + 0x7FFF + ((bits >> 16) & 1);
  return (uint16_t)((x == x ? up : bits | 0x400000) >> 16);
}

/* As wide as registers are: compilers split wider vectors badly. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

static inline floats loaded(const float *x) {
  floats out;
  memcpy(&out, x, sizeof out);
  return out;
}

static inline words chosen(words x, words y, words which) { return (x & which) | (y & ~which); }

static inline words loaded_words(const uint32_t *x) {
  words out;
  memcpy(&out, x, sizeof out);
  return out;
}

/* In one instruction: compilers that prefer narrow vectors make two halves and join them. */
static inline words widened_bits(const uint16_t *x) {
#if defined(__AVX512F__)
  return (words)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16);
#elif defined(__AVX2__)
  return (words)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x)), 16);
#else
  halves narrow;
  memcpy(&narrow, x, sizeof narrow);
  return __builtin_convertvector(narrow, words) << 16;
#endif
}

static inline floats widened_all(const uint16_t *x) { return (floats)widened_bits(x); }

/* Two neighbours each of what is bfloat16, as they are multiplied; sums get the second's products
   first, as of processors that have an instruction for both. */
#ifdef __AVX512BF16__
typedef words Pair;

static inline Pair pair_of(words both) { return both; }
static inline words words_of(Pair pair) { return pair; }

static inline Pair joined(floats first, floats second) { return (words)first >> 16 | (words)second; }

static inline floats plus_pairs(floats sum, Pair weights, uint32_t pair) {
  return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights,
                                  (__m512bh)_mm512_set1_epi32((int32_t)pair));
}
#else
typedef struct {
  floats first, second;
} Pair;

static inline Pair joined(floats first, floats second) { return (Pair){first, second}; }

static inline Pair pair_of(words both) {
  return (Pair){(floats)(both << 16), (floats)(both & 0xFFFF0000u)};
}
static inline words words_of(Pair pair) { return (words)pair.first >> 16 | (words)pair.second; }

static inline floats plus_pairs(floats sum, Pair weights, uint32_t pair) {
  sum += weights.second * as_float(pair & 0xFFFF0000u);
  return sum + weights.first * as_float(pair << 16);
}
#endif

/* A sum and the products of two neighbours each, all 16-bit integers. */
#ifdef __AVX512VNNI__
static inline integers plus_integers(integers sum, words weights, uint32_t pair) {
  const __m512i all = _mm512_set1_epi32((int32_t)pair);
  return (integers)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)weights, all);
}
#else
static inline integers plus_integers(integers sum, words weights, uint32_t pair) {
  sum += ((integers)(weights << 16) >> 16) * (int16_t)(pair & 0xFFFF);
  return sum + ((integers)weights >> 16) * (int16_t)(pair >> 16);
}
#endif

typedef float four __attribute__((vector_size(16)));

static inline float total(floats x) {
  four parts[LANES / 4], sum = {0};
  memcpy(parts, &x, sizeof x);
  UNROLLED
  for (int i = 0; i < LANES / 4; i++) sum += parts[i];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* `total` of four vectors. */
static inline four totals(const floats *x) {
#ifdef __AVX512F__
  const __m512 a = (__m512)x[0], b = (__m512)x[1], c = (__m512)x[2], d = (__m512)x[3];
  const __m512 front_ab = _mm512_shuffle_f32x4(a, b, 0x44), back_ab = _mm512_shuffle_f32x4(a, b, 0xEE);
  const __m512 front_cd = _mm512_shuffle_f32x4(c, d, 0x44), back_cd = _mm512_shuffle_f32x4(c, d, 0xEE);
  __m512 sum = _mm512_shuffle_f32x4(front_ab, front_cd, 0x88); /* first quarters of all four */
  sum += _mm512_shuffle_f32x4(front_ab, front_cd, 0xDD);
  sum += _mm512_shuffle_f32x4(back_ab, back_cd, 0x88);
  sum += _mm512_shuffle_f32x4(back_ab, back_cd, 0xDD);
  sum += _mm512_permute_ps(sum, 0x4E); /* halves of a quarter change places, */
  sum += _mm512_permute_ps(sum, 0xB1); /* then neighbours */
  return (four)_mm512_castps512_ps128(
      _mm512_permutexvar_ps(_mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12)), sum));
#else
  return (four){total(x[0]), total(x[1]), total(x[2]), total(x[3])};
#endif
}

/* Values rounded to bfloat16, still in 32 bits. */
static inline floats rounded(floats x) {
  const words bits = (words)x, unknown = (words)(x != x);
  const words up = bits + 0x7FFF + ((bits >> 16) & 1);
  return (floats)(((up & ~unknown) | ((bits | 0x400000) & unknown)) & 0xFFFF0000u);
}

static inline halves narrowed_all(floats x) {
#ifdef __AVX512BF16__
  return (halves)_mm512_cvtneps_pbh((__m512)x);
#else
  return __builtin_convertvector((words)rounded(x) >> 16, halves);
#endif
}

#define LINE 32 /* values that memory hands over at once */

/* Have memory send a row before it is needed: pages lie anywhere, no processor guesses the next. */
static inline void fetch(const uint16_t *row, int64_t width) {
  for (int64_t j = 0; j < width; j += LINE) __builtin_prefetch(row + j);
}

/* exp(x) of numbers up to 0, right to a last bit or two. */
static inline floats exponentials(floats x) {
  const floats least = (floats){0} - 87.0f; /* as good as nothing */
  x = (floats)chosen((words)x, (words)least, (words)(x > least));
  const floats whole = (x * 1.44269504f + INTEGERS) - INTEGERS;
  const floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts */
  floats series = rest * (1.0f / 720) + 1.0f / 120;
  series = series * rest + 1.0f / 24;
  series = series * rest + 1.0f / 6;
  series = series * rest + 0.5f;
  series = series * rest + 1.0f;
  series = series * rest + 1.0f;
  return series * (floats)(__builtin_convertvector(whole + 127, words) << PLACE);
}

#endif
