/* The emulator's loops over few numbers, where the number of torch calls would decide the time.
   Each function has a twin in torch with the same results, which is used where no compiler is. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 16 /* values that share one exponent */
#define EXPONENT 0x7F800000
#define PLACE 23
#define SMALLEST 16 /* biased exponent below which a block's values are nothing */

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

/* One block: values in units of the last mantissa bit, rounded to even, limited. */
static inline void round_block(const uint32_t *bits, uint16_t *out, int mantissa_bits) {
  const int below = mantissa_bits - 1;
  const float most = (float)((1 << mantissa_bits) - 1);
  uint32_t top = SMALLEST << PLACE;
  for (int i = 0; i < BLOCK; i++) {
    uint32_t exponent = bits[i] & EXPONENT;
    top = exponent > top ? exponent : top;
  }
  const float per_unit = as_float(((uint32_t)(254 + below) << PLACE) - top);
  const float unit = as_float(top - ((uint32_t)below << PLACE));
  for (int i = 0; i < BLOCK; i++) {
    float units = rintf(as_float(bits[i]) * per_unit);
    units = units > most ? most : units;
    units = units < -most ? -most : units;
    out[i] = (uint16_t)(as_bits(units * unit) >> 16); /* exact: few bits are left */
  }
}

void round_bfloat16(const uint16_t *x, uint16_t *out, int64_t blocks, int64_t mantissa_bits) {
  for (int64_t b = 0; b < blocks; b++, x += BLOCK, out += BLOCK) {
    uint32_t bits[BLOCK];
    for (int i = 0; i < BLOCK; i++) bits[i] = (uint32_t)x[i] << 16;
    round_block(bits, out, (int)mantissa_bits);
  }
}

void round_float32(const uint32_t *x, uint16_t *out, int64_t blocks, int64_t mantissa_bits) {
  for (int64_t b = 0; b < blocks; b++, x += BLOCK, out += BLOCK)
    round_block(x, out, (int)mantissa_bits);
}

static inline float widened(uint16_t x) { return as_float((uint32_t)x << 16); }

static inline uint16_t narrowed(float x) {
  uint32_t bits = as_bits(x);
  if (x != x) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

static inline float dot(const float *a, const float *b, int64_t width) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < width; j++) sum += a[j] * b[j];
  return sum;
}

/* exp(x) of numbers up to 0, right to a last bit or two, in a form that vector units take. */
static inline float exponential(float x) {
  x = x > -87.0f ? x : -87.0f; /* as good as nothing */
  const float whole = rintf(x * 1.44269504f);
  const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts */
  float series = 1.0f / 720;
  series = series * rest + 1.0f / 120;
  series = series * rest + 1.0f / 24;
  series = series * rest + 1.0f / 6;
  series = series * rest + 0.5f;
  series = series * rest + 1.0f;
  series = series * rest + 1.0f;
  return series * as_float((uint32_t)((int32_t)whole + 127) << PLACE);
}

/* Rows of bfloat16 divided by their root mean square, times `weight` (or NULL). */
void rms_norm(const uint16_t *x, const float *weight, uint16_t *out, float *wide, int64_t rows,
              int64_t width, float epsilon) {
  for (int64_t r = 0; r < rows; r++, x += width, out += width) {
    for (int64_t j = 0; j < width; j++) wide[j] = widened(x[j]);
    const float inverse = 1.0f / sqrtf(dot(wide, wide, width) / (float)width + epsilon);
    if (weight)
      for (int64_t j = 0; j < width; j++) out[j] = narrowed(wide[j] * inverse * weight[j]);
    else
      for (int64_t j = 0; j < width; j++) out[j] = narrowed(wide[j] * inverse);
  }
}

/* Neighbours (a, b) of x [outer, inner, width] turned to (a cos - b sin, b cos + a sin); the row
   of the tables is outer * per_outer + inner * per_inner. */
void rotate(const uint16_t *x, const uint16_t *cosine, const uint16_t *sine, uint16_t *out,
            int64_t outer, int64_t inner, int64_t width, int64_t per_outer, int64_t per_inner) {
  for (int64_t o = 0; o < outer; o++)
    for (int64_t i = 0; i < inner; i++, x += width, out += width) {
      const int64_t row = (o * per_outer + i * per_inner) * width;
      for (int64_t j = 0; j < width; j += 2) {
        const float a = widened(x[j]), b = widened(x[j + 1]);
        const float c0 = widened(cosine[row + j]), s0 = widened(sine[row + j]);
        const float c1 = widened(cosine[row + j + 1]), s1 = widened(sine[row + j + 1]);
        out[j] = narrowed(a * c0 - b * s0);
        out[j + 1] = narrowed(b * c1 + a * s1);
      }
    }
}

/* Decode attention: scaled queries [users, heads, group, width] over keys and values in pages
   [*, size, width], of which `pages` [users, heads, count] are looked at. `hidden` [users, length]
   is 0 or -inf, length = count * size; `idle` [users] (or NULL) marks those that get zeros; `seen`
   are the multiplier's bits of keys and values. `scores` [group, length] and `row` [width] are
   room to work in. */
static inline __attribute__((always_inline)) void
attend_any(const float *q, const uint16_t *keys, const uint16_t *values, const int64_t *pages,
           const float *hidden, const uint8_t *idle, float *out, float *scores, float *row,
            int64_t users, int64_t heads, int64_t group, int64_t width, int64_t count,
            int64_t size, int64_t seen) {
  const int64_t length = count * size;
  const uint16_t mask = (uint16_t)seen;
  for (int64_t pair = 0; pair < users * heads; pair++, q += group * width, out += group * width) {
    const float *unseen = hidden + pair / heads * length;
    const int64_t *page = pages + pair * count;
    const uint16_t *key = keys, *value = values;
    memset(out, 0, (size_t)(group * width) * sizeof(float));
    if (idle && idle[pair / heads]) continue;
    for (int64_t t = 0; t < length; t++, key += width) {
      if (t % size == 0) key = keys + page[t / size] * size * width;
      const int is_seen = unseen[t] == 0;
      if (is_seen)
        for (int64_t j = 0; j < width; j++) row[j] = widened(key[j] & mask);
      for (int64_t g = 0; g < group; g++)
        scores[g * length + t] = is_seen ? dot(q + g * width, row, width) : -INFINITY;
    }
    for (int64_t g = 0; g < group; g++) {
      float *own = scores + g * length, largest = -INFINITY, total = 0;
      for (int64_t t = 0; t < length; t++) largest = own[t] > largest ? own[t] : largest;
#pragma omp simd reduction(+ : total)
      for (int64_t t = 0; t < length; t++) {
        own[t] = exponential(own[t] - largest);
        total += own[t];
      }
      for (int64_t t = 0; t < length; t++) own[t] /= total;
    }
    for (int64_t t = 0; t < length; t++, value += width) {
      if (t % size == 0) value = values + page[t / size] * size * width;
      if (unseen[t] != 0) continue;
      for (int64_t j = 0; j < width; j++) row[j] = widened(value[j] & mask);
      for (int64_t g = 0; g < group; g++)
        for (int64_t j = 0; j < width; j++) out[g * width + j] += scores[g * length + t] * row[j];
    }
  }
}

#define OPERANDS                                                                                 \
  const float *q, const uint16_t *keys, const uint16_t *values, const int64_t *pages,           \
      const float *hidden, const uint8_t *idle, float *out, float *scores, float *row,          \
      int64_t users, int64_t heads, int64_t group
#define GIVEN q, keys, values, pages, hidden, idle, out, scores, row, users, heads, group

/* Widths that are constants make loops without ends to care for. */
void attend(OPERANDS, int64_t width, int64_t count, int64_t size, int64_t seen) {
  if (width == 64)
    attend_any(GIVEN, 64, count, size, seen);
  else if (width == 128)
    attend_any(GIVEN, 128, count, size, seen);
  else
    attend_any(GIVEN, width, count, size, seen);
}
