/* The emulator's loops over few numbers, where the number of torch calls would decide the time.
   Each function has a twin in torch with the same results, which is used where no compiler is. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
static int own_thread(void) { return omp_get_thread_num(); }
#else
static int own_thread(void) { return 0; }
#endif
#define PRAGMA(text) _Pragma(#text)
#define SHARED_OUT(threads) PRAGMA(omp parallel for num_threads((int)threads) if (threads > 1))

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

void round_bfloat16(const uint16_t *x, uint16_t *out, int64_t blocks, int64_t mantissa_bits,
                    int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t b = 0; b < blocks; b++) {
    uint32_t bits[BLOCK];
    for (int i = 0; i < BLOCK; i++) bits[i] = (uint32_t)x[b * BLOCK + i] << 16;
    round_block(bits, out + b * BLOCK, (int)mantissa_bits);
  }
}

void round_float32(const uint32_t *x, uint16_t *out, int64_t blocks, int64_t mantissa_bits,
                   int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t b = 0; b < blocks; b++)
    round_block(x + b * BLOCK, out + b * BLOCK, (int)mantissa_bits);
}

static inline float widened(uint16_t x) { return as_float((uint32_t)x << 16); }

static inline uint16_t narrowed(float x) {
  uint32_t bits = as_bits(x);
  if (x != x) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/* Vectors of one block's values; compilers split them where registers are narrower. */
typedef float floats __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

static inline floats loaded(const float *x) {
  floats out;
  memcpy(&out, x, sizeof out);
  return out;
}

static inline floats widened_block(const uint16_t *x, uint16_t mask) {
  halves narrow;
  memcpy(&narrow, x, sizeof narrow);
  const words bits = __builtin_convertvector(narrow & mask, words) << 16;
  floats out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

#define LINE 32 /* values that memory hands over at once */

/* Have memory send a row before it is needed: pages lie anywhere, no processor guesses the next. */
static inline void fetch(const uint16_t *row, int64_t width) {
  for (int64_t j = 0; j < width; j += LINE) __builtin_prefetch(row + j);
}

typedef float eight __attribute__((vector_size(32)));
typedef float four __attribute__((vector_size(16)));

static inline float total(floats x) {
  eight half[2];
  memcpy(half, &x, sizeof x);
  half[0] += half[1];
  four quarter[2];
  memcpy(quarter, &half[0], sizeof quarter);
  quarter[0] += quarter[1];
  return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
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
void rms_norm(const uint16_t *x, const float *weight, uint16_t *out, int64_t rows, int64_t width,
              float epsilon, int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t r = 0; r < rows; r++) {
    const uint16_t *own = x + r * width;
    uint16_t *to = out + r * width;
    floats squares = {0};
    for (int64_t j = 0; j < width; j += BLOCK) {
      const floats wide = widened_block(own + j, 0xFFFF);
      squares += wide * wide;
    }
    const float inverse = 1.0f / sqrtf(total(squares) / (float)width + epsilon);
    if (weight)
      for (int64_t j = 0; j < width; j++) to[j] = narrowed(widened(own[j]) * inverse * weight[j]);
    else
      for (int64_t j = 0; j < width; j++) to[j] = narrowed(widened(own[j]) * inverse);
  }
}

/* Neighbours (a, b) of x [outer, inner, width] turned to (a cos - b sin, b cos + a sin). There are
   `tables` [per_table, width] for the outer ones to take in turns; every row of x has its own of
   the table (per_row 1) or all the first (0). */
void rotate(const uint16_t *x, const uint16_t *cosine, const uint16_t *sine, uint16_t *out,
            int64_t outer, int64_t inner, int64_t width, int64_t tables, int64_t per_table,
            int64_t per_row, int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t o = 0; o < outer; o++)
    for (int64_t i = 0; i < inner; i++) {
      const uint16_t *from = x + (o * inner + i) * width;
      uint16_t *to = out + (o * inner + i) * width;
      const int64_t row = (o % tables * per_table + i * per_row) * width;
      for (int64_t j = 0; j < width; j += 2) {
        const float a = widened(from[j]), b = widened(from[j + 1]);
        const float c0 = widened(cosine[row + j]), s0 = widened(sine[row + j]);
        const float c1 = widened(cosine[row + j + 1]), s1 = widened(sine[row + j + 1]);
        to[j] = narrowed(a * c0 - b * s0);
        to[j + 1] = narrowed(b * c1 + a * s1);
      }
    }
}

/* Rows [count, width] put where `places` says in the table. */
void put_rows(uint16_t *table, const int64_t *places, const uint16_t *rows, int64_t count,
              int64_t width) {
  for (int64_t r = 0; r < count; r++) fetch(table + places[r] * width, width);
  for (int64_t r = 0; r < count; r++)
    memcpy(table + places[r] * width, rows + r * width, (size_t)width * sizeof(uint16_t));
}

/* Sum [outer, inner] of x [outer, places, inner] over the places. */
void sum_places(const uint16_t *x, float *out, int64_t outer, int64_t places, int64_t inner,
                int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t piece = 0; piece < outer * inner / BLOCK; piece++) {
    const int64_t at = piece * BLOCK, o = at / inner, i = at % inner;
    floats sum = {0};
    for (int64_t p = 0; p < places; p++)
      sum += widened_block(x + (o * places + p) * inner + i, 0xFFFF);
    memcpy(out + at, &sum, sizeof sum);
  }
}

#define TILE 32

/* Rows [count, kept tiles of TILE] as rows [all, tiles], a tile the one that `index` says; rows
   beyond `count` are zero. */
void spread_tiles(const uint16_t *x, const int64_t *index, uint16_t *out, int64_t count,
                  int64_t kept, int64_t all, int64_t tiles, int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t r = 0; r < all; r++)
    for (int64_t t = 0; t < tiles; t++) {
      uint16_t *to = out + (r * tiles + t) * TILE;
      if (r < count)
        memcpy(to, x + (r * kept + index[t]) * TILE, TILE * sizeof(uint16_t));
      else
        memset(to, 0, TILE * sizeof(uint16_t));
    }
}

#define MOST_QUERIES 4 /* whose vectors stay in registers for heads of 64 */
#define MOST_BLOCKS 16 /* of a head: 256 values */

static inline int64_t end_of_page(int64_t from, int64_t last, int64_t size) {
  const int64_t end = (from / size + 1) * size;
  return end < last ? end : last;
}

/* Attention of `group` queries [group, width] over the positions from `first` to `last` of one
   head's pages. Made for each group and width in use, so that loops have no ends to care for. */
static inline __attribute__((always_inline)) void
attend_head(const float *q, const uint16_t *keys, const uint16_t *values, const int64_t *page,
            float *out, float *scores, int64_t group, int64_t width,
            int64_t length, int64_t size, uint16_t mask, int64_t first, int64_t last) {
  const int blocks = (int)width / BLOCK;
  floats sums[MOST_QUERIES * MOST_BLOCKS];
  int is_padding = 1; /* whose queries are zero: no need to look at keys */
  for (int64_t i = 0; i < group * width; i++) is_padding &= q[i] == 0;
  if (is_padding)
    for (int g = 0; g < group; g++)
      memset(scores + g * length + first, 0, (size_t)(last - first) * sizeof(float));
  for (int64_t from = first, to; !is_padding && from < last; from = to) {
    to = end_of_page(from, last, size);
    const uint16_t *key = keys + (page[from / size] * size + from % size) * width;
    const uint16_t *next = to < last ? keys + page[to / size] * size * width : key;
    const uint16_t *value = values + (key - keys);
    for (int64_t t = from; t < to; t++, key += width, value += width, next += width) {
      fetch(next, width);
      fetch(value, width);
      floats products[MOST_QUERIES] = {0};
      for (int j = 0; j < blocks; j++) {
        const floats own = widened_block(key + j * BLOCK, mask);
        for (int g = 0; g < group; g++) products[g] += loaded(q + g * width + j * BLOCK) * own;
      }
      for (int g = 0; g < group; g++) scores[g * length + t] = total(products[g]);
    }
  }
  for (int g = 0; g < group; g++) {
    float *own = scores + g * length, largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t t = first; t < last; t++) largest = own[t] > largest ? own[t] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = first; t < last; t++) {
      own[t] = exponential(own[t] - largest);
      sum += own[t];
    }
#pragma omp simd
    for (int64_t t = first; t < last; t++) own[t] /= sum;
  }
  memset(sums, 0, sizeof sums);
  for (int64_t from = first, to; from < last; from = to) {
    to = end_of_page(from, last, size);
    const uint16_t *value = values + (page[from / size] * size + from % size) * width;
    const uint16_t *next = to < last ? values + page[to / size] * size * width : value;
    for (int64_t t = from; t < to; t++, value += width, next += width) {
      if (is_padding) fetch(next, width);
      for (int j = 0; j < blocks; j++) {
        const floats own = widened_block(value + j * BLOCK, mask);
        for (int g = 0; g < group; g++) sums[g * blocks + j] += own * scores[g * length + t];
      }
    }
  }
  memcpy(out, sums, (size_t)(group * width) * sizeof(float));
}

/* Decode attention: scaled queries [users, heads, group, width] over keys and values in pages
   [*, size, width], of which `pages` [users, heads, count] are looked at. `hidden` [users, length],
   length = count * size, is 0 over the one stretch where a user looks; `idle` [users] (or NULL)
   marks those that get zeros; `seen` are the multiplier's bits of keys and values. `scores`
   [threads, MOST_QUERIES, length] is room to work in. */
void attend(const float *q, const uint16_t *keys, const uint16_t *values, const int64_t *pages,
            const float *hidden, const uint8_t *idle, float *out, float *scores, int64_t users,
            int64_t heads, int64_t group, int64_t width, int64_t count, int64_t size,
            int64_t seen, int64_t threads) {
  const int64_t length = count * size;
  const uint16_t mask = (uint16_t)seen;
  SHARED_OUT(threads)
  for (int64_t pair = 0; pair < users * heads; pair++) {
    float *room = scores + own_thread() * MOST_QUERIES * length;
    const int64_t user = pair / heads, *page = pages + pair * count;
    const float *unseen = hidden + user * length;
    int64_t first = 0, last = length;
    while (first < last && unseen[first] != 0) first++;
    while (last > first && unseen[last - 1] != 0) last--;
    for (int64_t g = 0; g < group; g += MOST_QUERIES) {
      const int64_t some = group - g < MOST_QUERIES ? group - g : MOST_QUERIES;
      const float *own = q + (pair * group + g) * width;
      float *result = out + (pair * group + g) * width;
#define HEAD(some, width)                                                                         \
  attend_head(own, keys, values, page, result, room, some, width, length, size, mask, first, last)
      if (idle && idle[user])
        memset(result, 0, (size_t)(some * width) * sizeof(float));
      else if (width == 64 && some == 1)
        HEAD(1, 64);
      else if (width == 64 && some == 2)
        HEAD(2, 64);
      else if (width == 64 && some == 3)
        HEAD(3, 64);
      else if (width == 64)
        HEAD(4, 64);
      else if (width == 128 && some == 4)
        HEAD(4, 128);
      else
        HEAD(some, width);
    }
  }
}
