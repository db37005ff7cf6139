/* Loops over rows of few numbers, where the number of torch calls would decide the time. */

#include "vectors.h"

void round_bfloat16(const uint16_t *x, uint16_t *out, int64_t blocks, int64_t mantissa_bits,
                    int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t b = 0; b < blocks; b++) {
    float wide[BLOCK];
    for (int i = 0; i < BLOCK; i++) wide[i] = widened(x[b * BLOCK + i]);
    store_as(wide, out + b * BLOCK, mantissa_bits);
  }
}

void round_float32(const float *x, uint16_t *out, int64_t blocks, int64_t mantissa_bits,
                   int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t b = 0; b < blocks; b++) store_as(x + b * BLOCK, out + b * BLOCK, mantissa_bits);
}

static inline words chosen(words a, words b, words which) { return (a & which) | (b & ~which); }

#define CHUNK 256 /* columns worked on at once: memory gives whole stretches of rows */
#define STRIDE (CHUNK + 32) /* so that rows do not contend for the same lines of a cache */

/* LANES columns of one block each [BLOCK, STRIDE], rounded in place: the host's conversion, in which
   the alignment of float32 values (`is_wide`) to the largest shifts bits out before they are
   rounded, and zeros are positive. Returns where exponents call for more care. */
static inline __attribute__((always_inline)) words round_lanes(float *x, int mantissa_bits,
                                                               int is_wide) {
  const int below = mantissa_bits - 1;
  const float most = (float)((1 << mantissa_bits) - 1), kept = (float)(1 << (24 - mantissa_bits));
  words top = {0};
  UNROLLED
  for (int i = 0; i < BLOCK; i++) {
    const words exponent = (words)loaded(x + i * STRIDE) & EXPONENT;
    top = chosen(exponent, top, (words)(exponent > top));
  }
  const words is_small = (words)(top < SMALLEST << PLACE);
  const words strange = (is_small & (words)(top > 0)) | (words)(top > (uint32_t)LARGEST << PLACE);
  top = chosen((words){0} + (SMALLEST << PLACE), top, is_small);
  const floats per_unit = (floats)(((uint32_t)(254 + below) << PLACE) - top);
  const floats unit = (floats)(top - ((uint32_t)below << PLACE));
  UNROLLED
  for (int i = 0; i < BLOCK; i++) {
    floats units = loaded(x + i * STRIDE) * per_unit;
    if (is_wide) /* towards zero */
      units = __builtin_convertvector(__builtin_convertvector(units * kept, integers), floats) / kept;
    units = (units + INTEGERS) - INTEGERS;
    units = (floats)chosen((words)((floats){0} + most), (words)units, (words)(units > most));
    units = (floats)chosen((words)((floats){0} - most), (words)units, (words)(units < -most));
    units = units * unit + 0.0f;
    memcpy(x + i * STRIDE, &units, sizeof units);
  }
  return strange;
}

/* Blocks down the columns of [groups, BLOCK, width] rounded as the host does; x is of bfloat16, or
   of float where `is_wide`. Returns whether no exponents called for more care. */
int64_t round_columns(const void *x, uint16_t *out, int64_t groups, int64_t width,
                      int64_t mantissa_bits, int64_t is_wide, int64_t threads) {
  int64_t strange = 0;
#pragma omp parallel for num_threads((int)threads) if (threads > 1) reduction(+ : strange)
  for (int64_t g = 0; g < groups; g++)
    for (int64_t first = 0; first < width; first += CHUNK) {
      const int64_t some = width - first < CHUNK ? width - first : CHUNK;
      float room[BLOCK * STRIDE];
      for (int i = 0; i < BLOCK; i++) {
        const int64_t at = (g * BLOCK + i) * width + first;
        if (is_wide)
          memcpy(room + i * STRIDE, (const float *)x + at, (size_t)some * sizeof(float));
        else
          for (int64_t j = 0; j < some; j++)
            room[i * STRIDE + j] = widened(((const uint16_t *)x)[at + j]);
      }
      words found = {0};
      for (int64_t j = 0; j < some; j += LANES)
        found |= is_wide ? round_lanes(room + j, (int)mantissa_bits, 1)
                         : round_lanes(room + j, (int)mantissa_bits, 0);
      for (int i = 0; i < LANES; i++) strange += found[i] != 0;
      for (int i = 0; i < BLOCK; i++)
        for (int64_t j = 0; j < some; j++)
          out[(g * BLOCK + i) * width + first + j] = (uint16_t)(as_bits(room[i * STRIDE + j]) >> 16);
    }
  return strange == 0;
}

static inline float squares_of(const uint16_t *x, int64_t width) {
  floats squares = {0};
  for (int64_t j = 0; j < width; j += LANES) {
    const floats wide = widened_all(x + j);
    squares += wide * wide;
  }
  return total(squares);
}

/* The sum of squares of every row, in the first column of a tile. */
void sum_squares(const uint16_t *x, uint16_t *out, int64_t rows, int64_t width, int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t r = 0; r < rows; r++) {
    memset(out + r * TILE, 0, TILE * sizeof(uint16_t));
    out[r * TILE] = narrowed(squares_of(x + r * width, width));
  }
}

/* Rows x [chips, rows, width] divided by their root mean square, times `weight` [1 or chips, width]
   (or NULL). Sums of squares are the row's own, or the first columns of the tiles of `sums` [1 or
   chips, rows, tiles, TILE]; `share` of them is the mean. */
void rms_norm(const uint16_t *x, const float *weight, const uint16_t *sums, uint16_t *out,
              int64_t chips, int64_t rows, int64_t width, int64_t tiles, int64_t has_weights,
              int64_t has_sums, float share, float epsilon, int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t r = 0; r < chips * rows; r++) {
    const uint16_t *own = x + r * width;
    uint16_t *to = out + r * width;
    float sum = 0;
    if (sums)
      for (int64_t t = 0; t < tiles; t++)
        sum += widened(sums[((has_sums ? r : r % rows) * tiles + t) * TILE]);
    else
      sum = squares_of(own, width);
    const float inverse = 1.0f / sqrtf(sum * share + epsilon);
    if (weight) {
      const float *scale = weight + (has_weights ? r / rows * width : 0);
      for (int64_t j = 0; j < width; j++) to[j] = narrowed(widened(own[j]) * inverse * scale[j]);
    } else {
      for (int64_t j = 0; j < width; j++) to[j] = narrowed(widened(own[j]) * inverse);
    }
  }
}

#define PIECE 256 /* values worked on at once */

/* silu(x) y, each step rounded to bfloat16, then as the result's format holds it. */
void silu_multiply(const uint16_t *x, const uint16_t *y, uint16_t *out, int64_t blocks,
                   int64_t mantissa_bits, int64_t threads) {
  const int64_t count = blocks * BLOCK;
  SHARED_OUT(threads)
  for (int64_t first = 0; first < count; first += PIECE) {
    const int64_t some = count - first < PIECE ? count - first : PIECE;
    float result[PIECE];
#pragma omp simd
    for (int64_t i = 0; i < some; i++) {
      const float a = widened(x[first + i]), small = exponential(-fabsf(a));
      const float share = (a < 0 ? small : 1.0f) / (1.0f + small);
      const float gate = widened(narrowed(a * share));
      result[i] = widened(narrowed(gate * widened(y[first + i])));
    }
    for (int64_t i = 0; i < some; i += BLOCK) store_as(result + i, out + first + i, mantissa_bits);
  }
}

/* The `most` largest of every row, largest first and then by place. Returns whether all of x are
   numbers; if not, results mean nothing. */
int64_t largest_first(const uint16_t *x, uint16_t *values, int64_t *places, int64_t rows,
                      int64_t width, int64_t most, int64_t threads) {
  int64_t strange = 0;
#pragma omp parallel for num_threads((int)threads) if (threads > 1) reduction(+ : strange)
  for (int64_t r = 0; r < rows; r++) {
    const uint16_t *own = x + r * width;
    uint16_t *value = values + r * most;
    int64_t *place = places + r * most, count = 0;
    float limit = 0; /* that a value must exceed, once there are `most` */
    for (int64_t from = 0; from < width; from += BLOCK) {
      const int64_t to = from + BLOCK < width ? from + BLOCK : width;
      int is_strange = 0, is_larger = count < most;
      for (int64_t j = from; j < to; j++) {
        const float v = widened(own[j]);
        is_strange |= v != v;
        is_larger |= v > limit;
      }
      strange += is_strange;
      if (!is_larger) continue;
      for (int64_t j = from; j < to; j++) {
        const float v = widened(own[j]);
        if (count == most && !(v > limit)) continue;
        int64_t at = count < most ? count++ : most - 1;
        for (; at > 0 && v > widened(value[at - 1]); at--) {
          value[at] = value[at - 1];
          place[at] = place[at - 1];
        }
        value[at] = own[j];
        place[at] = j;
        if (count == most) limit = widened(value[most - 1]);
      }
    }
  }
  return strange == 0;
}

static inline floats first_of(words pairs) { return (floats)(pairs << 16); }
static inline floats second_of(words pairs) { return (floats)(pairs & 0xFFFF0000u); }

/* `bytes` of neighbouring pairs, turned. */
static inline __attribute__((always_inline)) void
turn(const uint16_t *x, const uint16_t *cosine, const uint16_t *sine, uint16_t *out, size_t bytes) {
  words pairs = {0}, c = {0}, s = {0};
  memcpy(&pairs, x, bytes);
  memcpy(&c, cosine, bytes);
  memcpy(&s, sine, bytes);
  const floats a = first_of(pairs), b = second_of(pairs);
  const floats turned_a = a * first_of(c) - b * first_of(s);
  const floats turned_b = b * second_of(c) + a * second_of(s);
  const words turned = (words)rounded(turned_a) >> 16 | (words)rounded(turned_b);
  memcpy(out, &turned, bytes);
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
      int64_t j = 0;
      for (; j + 2 * LANES <= width; j += 2 * LANES)
        turn(from + j, cosine + row + j, sine + row + j, to + j, sizeof(words));
      if (j < width)
        turn(from + j, cosine + row + j, sine + row + j, to + j, (size_t)(width - j) * 2);
    }
}

#define FAR 24 /* rows that memory is asked for before they are needed */

/* Rows [*, width], the `count` that `kept` says (or all, if NULL), put where `places` [count] says
   in the table, as its format holds them. */
void put_rows(uint16_t *table, const int64_t *places, const uint16_t *rows, const int64_t *kept,
              int64_t count, int64_t width, int64_t mantissa_bits, int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t r = 0; r < count; r++) {
    if (r + FAR < count) fetch(table + places[r + FAR] * width, width);
    uint16_t *to = table + places[r] * width;
    const uint16_t *from = rows + (kept ? kept[r] : r) * width;
    if (!mantissa_bits)
      memcpy(to, from, (size_t)width * sizeof(uint16_t));
    else
      for (int64_t j = 0; j < width; j += BLOCK) {
        float block[BLOCK];
        for (int i = 0; i < BLOCK; i++) block[i] = widened(from[j + i]);
        store_as(block, to + j, mantissa_bits);
      }
  }
}

/* Prompts x [sources, users, heads, count, page bytes] put into pages of a table [*, heads, page
   bytes]: chip c, of which `sources` says whose x it takes, wants them at `pages` [chips, users,
   count], not those below zero. */
void put_pages(uint8_t *table, const int64_t *pages, const int64_t *sources, const uint8_t *x,
               int64_t chips, int64_t users, int64_t heads, int64_t count, int64_t bytes,
               int64_t threads) {
  SHARED_OUT(threads)
  for (int64_t page = 0; page < chips * users * count; page++) {
    const int64_t chip = page / (users * count), user = page / count % users;
    const uint8_t *from = x + (sources[chip] * users + user) * heads * count * bytes;
    if (pages[page] < 0) continue;
    for (int64_t h = 0; h < heads; h++)
      memcpy(table + (pages[page] * heads + h) * bytes, from + (h * count + page % count) * bytes,
             (size_t)bytes);
  }
}

/* Whether of rows [*, bytes] those in each of `pairs` [count, 2] are the same. */
int64_t all_equal(const uint8_t *rows, const int64_t *pairs, int64_t count, int64_t bytes) {
  for (int64_t p = 0; p < count; p++) {
    const uint8_t *a = rows + pairs[2 * p] * bytes, *b = rows + pairs[2 * p + 1] * bytes;
    if (memcmp(a, b, (size_t)bytes)) return 0;
  }
  return 1;
}

/* Sum of x [outer, places, rows, width] over the places, as its format holds it, its columns dealt
   out: out [outer, parts, rows, width / parts]. */
void sum_places(const uint16_t *x, uint16_t *out, int64_t outer, int64_t places, int64_t rows,
                int64_t width, int64_t parts, int64_t mantissa_bits, int64_t threads) {
  const int64_t share = width / parts;
  SHARED_OUT(threads)
  for (int64_t piece = 0; piece < outer * rows * parts; piece++) {
    const int64_t part = piece % parts, row = piece / parts % rows, o = piece / parts / rows;
    const uint16_t *from = x + (o * places * rows + row) * width + part * share;
    uint16_t *to = out + ((o * parts + part) * rows + row) * share;
    for (int64_t i = 0; i < share; i += BLOCK) {
      float sum[BLOCK];
      for (int j = 0; j < BLOCK; j += LANES) {
        floats some = {0};
        for (int64_t p = 0; p < places; p++)
          some += widened_all(from + p * rows * width + i + j);
        memcpy(sum + j, &some, sizeof some);
      }
      store_as(sum, to + i, mantissa_bits);
    }
  }
}
