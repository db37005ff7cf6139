/* Loops over rows of few numbers, where the number of torch calls would decide the time. */

#include "blocks.h"

#define MANY 12 /* blocks that are rounded together */
#define WIDE (MANY * BLOCK)

/* How many of MANY blocks from this column on there are. */
static inline int64_t blocks_at(int64_t column, int64_t width) {
  return (column + WIDE < width ? WIDE : width - column) / BLOCK;
}

static inline void widen(const uint16_t *x, int64_t blocks, float *out) {
  for (int64_t j = 0; j < blocks * BLOCK; j += LANES) {
    const floats wide = widened_all(x + j);
    memcpy(out + j, &wide, sizeof wide);
  }
}

void round_blocks(const void *given, Share *share) {
  ARGUMENTS(round_blocks);
  EACH(many, (a.blocks + MANY - 1) / MANY, WIDE) {
    const int64_t at = many * WIDE, some = blocks_at(at, a.blocks * BLOCK);
    float wide[WIDE];
    if (a.is_wide)
      memcpy(wide, (const float *)a.x + at, (size_t)(some * BLOCK) * sizeof *wide);
    else
      widen(((const uint16_t *)a.x) + at, some, wide);
    store_as(wide, some, a.out + at, a.mantissa_bits);
  }
}

#define CHUNK 256 /* columns worked on at once: memory gives whole stretches of rows */
#define STRIDE (CHUNK + 32) /* so that rows do not contend for the same lines of a cache */

/* LANES columns of one block each [BLOCK, STRIDE], rounded in place. Returns where exponents call
   for more care. */
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

void round_columns(const void *given, Share *share) {
  ARGUMENTS(round_columns);
  EACH(g, a.groups, a.width * BLOCK)
  for (int64_t first = 0; first < a.width; first += CHUNK) {
    const int64_t some = a.width - first < CHUNK ? a.width - first : CHUNK;
    float room[BLOCK * STRIDE];
    for (int i = 0; i < BLOCK; i++) {
      const int64_t at = (g * BLOCK + i) * a.width + first;
      if (a.is_wide)
        memcpy(room + i * STRIDE, (const float *)a.x + at, (size_t)some * sizeof(float));
      else
        for (int64_t j = 0; j < some; j++)
          room[i * STRIDE + j] = widened(((const uint16_t *)a.x)[at + j]);
    }
    words found = {0};
    for (int64_t j = 0; j < some; j += LANES)
      found |= a.is_wide ? round_lanes(room + j, (int)a.mantissa_bits, 1)
                         : round_lanes(room + j, (int)a.mantissa_bits, 0);
    for (int i = 0; i < LANES; i++)
      if (found[i]) refuse(share);
    for (int i = 0; i < BLOCK; i++)
      for (int64_t j = 0; j < some; j++)
        a.out[(g * BLOCK + i) * a.width + first + j] =
            (uint16_t)(as_bits(room[i * STRIDE + j]) >> 16);
  }
}

void cut_bits(const void *given, Share *share) {
  ARGUMENTS(cut_bits);
  EACH(i, a.count, 1) a.out[i] = a.x[i] & (uint16_t)a.mask;
}

void add_blocks(const void *given, Share *share) {
  ARGUMENTS(add_blocks);
  EACH(many, (a.blocks + MANY - 1) / MANY, WIDE) {
    const int64_t at = many * WIDE, some = blocks_at(at, a.blocks * BLOCK);
    float sum[WIDE];
    for (int64_t i = 0; i < some * BLOCK; i += LANES) {
      const floats own = widened_all(a.x + at + i) + widened_all(a.y + at + i);
      memcpy(sum + i, &own, sizeof own);
    }
    store_narrow(sum, some, a.out + at, a.mantissa_bits); /* operands meet in bfloat16 */
  }
}

void add_integers(const void *given, Share *share) {
  ARGUMENTS(add_integers);
  EACH(i, a.count, 1) {
    const uint32_t more = a.y ? (uint32_t)a.y[i] : a.x[i] >= 0 || !a.skips_negative;
    a.out[i] = (int32_t)((uint32_t)a.x[i] + more);
  }
}

static inline float squares_of(const uint16_t *x, int64_t width) {
  floats squares = {0};
  for (int64_t j = 0; j < width; j += LANES) {
    const floats wide = widened_all(x + j);
    squares += wide * wide;
  }
  return total(squares);
}

void sum_squares(const void *given, Share *share) {
  ARGUMENTS(sum_squares);
  EACH(r, a.rows, a.width) {
    memset(a.out + r * TILE, 0, TILE * sizeof(uint16_t));
    a.out[r * TILE] = narrowed(squares_of(a.x + r * a.width, a.width));
  }
}

static inline float sum_of_tiles(const struct rms_norm *p, int64_t row) {
  float sum = 0;
  for (int64_t t = 0; t < p->tiles; t++) sum += widened(p->sums[row * p->sums_row + t * p->sums_tile]);
  return sum;
}

static void norm_row(const struct rms_norm *p, const uint16_t *x, const float *scale, float inverse,
                     uint16_t *out) {
  if (p->mantissa_bits) {
    for (int64_t j = 0; j < p->width; j += WIDE) {
      const int64_t some = blocks_at(j, p->width);
      float own[WIDE];
      for (int64_t i = 0; i < some * BLOCK; i += LANES) {
        floats normed = widened_all(x + j + i) * inverse;
        if (scale) normed *= loaded(scale + j + i);
        memcpy(own + i, &normed, sizeof normed);
      }
      store_as(own, some, out + j, p->mantissa_bits);
    }
  } else if (scale) {
    for (int64_t j = 0; j < p->width; j++) out[j] = narrowed(widened(x[j]) * inverse * scale[j]);
  } else {
    for (int64_t j = 0; j < p->width; j++) out[j] = narrowed(widened(x[j]) * inverse);
  }
}

#define NORMED 16 /* rows of one chip after the other: those of all chips lie far apart */

void rms_norm(const void *given, Share *share) {
  ARGUMENTS(rms_norm);
  EACH(some, (a.rows + NORMED - 1) / NORMED, NORMED * a.chips * a.width) {
    const int64_t first = some * NORMED, last = first + NORMED < a.rows ? first + NORMED : a.rows;
    float inverse[NORMED];
    for (int64_t chip = 0; chip < a.chips; chip++) {
      const float *scale = a.weight ? a.weight + (a.has_weights ? chip * a.width : 0) : 0;
      const int is_shared = a.sums && !a.has_sums && chip > 0;
      for (int64_t row = first; row < last; row++) {
        const int64_t at = chip * a.rows + row;
        const uint16_t *x = a.x + at * a.width;
        float *own = inverse + row - first;
        if (!is_shared) {
          const float sum = a.sums ? sum_of_tiles(&a, at) : squares_of(x, a.width);
          *own = 1.0f / sqrtf(sum * (float)a.share + (float)a.epsilon);
        }
        norm_row(&a, x, scale, *own, a.out + at * a.width);
      }
    }
  }
}

static inline int are_equal(const uint16_t *x, const uint16_t *y, int64_t blocks) {
  return !memcmp(x, y, (size_t)(blocks * BLOCK) * sizeof *x);
}

void silu_multiply(const void *given, Share *share) {
  ARGUMENTS(silu_multiply);
  const int64_t width = a.across * BLOCK, all = a.rows * width;
  EACH(many, (all + WIDE - 1) / WIDE, 4 * WIDE) { /* an exponential is worth more than a sum */
    const int64_t at = many * WIDE, above = at - width, some = blocks_at(at, all);
    if (above >= range.first * WIDE && are_equal(a.x + at, a.x + above, some) &&
        are_equal(a.y + at, a.y + above, some)) { /* idle users are alike */
      memcpy(a.out + at, a.out + above, (size_t)(some * BLOCK) * sizeof *a.out);
      continue;
    }
    float result[WIDE];
    for (int64_t i = 0; i < some * BLOCK; i += LANES) {
      const floats x = widened_all(a.x + at + i), size = (floats)((words)x & 0x7FFFFFFF);
      const floats small = exponentials(-size), one = (floats){0} + 1.0f;
      const floats part = (floats)chosen((words)small, (words)one, (words)(x < 0)) / (one + small);
      const floats found = rounded(x * part) * widened_all(a.y + at + i);
      memcpy(result + i, &found, sizeof found);
    }
    store_narrow(result, some, a.out + at, a.mantissa_bits);
  }
}

#define GROUPS MOST_LARGEST
#define LEAST_ORDER (-0x8000) /* below that of every number */

/* Values of a row that may be among its largest, as integers of the same order, by place. */
typedef struct {
  int32_t orders[4 * MOST_LARGEST + BLOCK], places[4 * MOST_LARGEST + BLOCK];
  int64_t count;
} Candidates;

/* Add those of the values `from` to `to`, BLOCK at most, that exceed a limit; 0 if one is no number. */
static inline int add_larger(Candidates *c, const uint16_t *x, int64_t from, int64_t to, int32_t limit) {
#ifdef __AVX512F__
  if (to - from == BLOCK) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(x + from)));
    const __m512i size = _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFF));
    const __mmask16 is_negative = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x8000));
    const __m512i orders = _mm512_mask_sub_epi32(size, is_negative, _mm512_setzero_si512(), size);
    const __mmask16 is_larger = _mm512_cmpgt_epi32_mask(orders, _mm512_set1_epi32(limit));
    if (is_larger) {
      const __m512i each = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m512i places = _mm512_add_epi32(_mm512_set1_epi32((int32_t)from), each);
      _mm512_storeu_si512(c->orders + c->count, _mm512_maskz_compress_epi32(is_larger, orders));
      _mm512_storeu_si512(c->places + c->count, _mm512_maskz_compress_epi32(is_larger, places));
      c->count += __builtin_popcount(is_larger);
    }
    return !_mm512_cmpgt_epi32_mask(size, _mm512_set1_epi32(EXPONENT >> 16));
  }
#endif
  int32_t orders[BLOCK];
  int is_strange = 0, is_larger = 0;
  for (int64_t j = 0; j < to - from; j++) {
    const int32_t sign = (int16_t)x[from + j] >> 15, size = x[from + j] & 0x7FFF;
    orders[j] = (size ^ sign) - sign;
    is_larger |= orders[j] > limit;
    is_strange |= size > EXPONENT >> 16;
  }
  for (int64_t j = 0; is_larger && j < to - from; j++) {
    c->orders[c->count] = orders[j];
    c->places[c->count] = (int32_t)(from + j);
    c->count += orders[j] > limit;
  }
  return !is_strange;
}

/* How many are larger than an order. */
static inline int32_t larger_than(const Candidates *c, int32_t order) {
  int32_t count = 0;
  for (int32_t i = 0; i < (int32_t)c->count; i++) count += c->orders[i] > order;
  return count;
}

/* Leave the `most` largest, of equal ones the first, none of which is below `least`. The least of
   them. */
static int32_t keep_largest(Candidates *c, int64_t most, int32_t least) {
  int32_t low = least - 1, high = least; /* too many are larger than `low`, not so `high` */
  for (int32_t i = 0; i < (int32_t)c->count; i++) high = c->orders[i] > high ? c->orders[i] : high;
  while (high - low > 1) {
    const int32_t middle = (low + high) >> 1;
    if (larger_than(c, middle) >= most)
      low = middle;
    else
      high = middle;
  }
  int64_t equals = most - larger_than(c, high), kept = 0;
  for (int64_t i = 0; i < c->count; i++) {
    const int32_t order = c->orders[i], place = c->places[i];
    const int is_equal = order == high && equals > 0;
    c->orders[kept] = order;
    c->places[kept] = place;
    kept += order > high || is_equal;
    equals -= is_equal;
  }
  c->count = kept;
  return high;
}

/* What the `most` largest of a row, or as many equal ones, must exceed: `most` of its columns, each
   of every GROUPS-th value, have a value above it. */
static int32_t limit_of(Candidates *c, const uint16_t *x, int64_t width, int64_t most) {
  int16_t largest[GROUPS];
  if (width < 2 * GROUPS) return LEAST_ORDER;
  for (int i = 0; i < GROUPS; i++) largest[i] = LEAST_ORDER;
  for (int64_t from = 0; from + GROUPS <= width; from += GROUPS)
    for (int i = 0; i < GROUPS; i++) {
      const int16_t sign = (int16_t)((int16_t)x[from + i] >> 15), size = x[from + i] & 0x7FFF;
      const int16_t order = (int16_t)((size ^ sign) - sign);
      largest[i] = order > largest[i] ? order : largest[i];
    }
  for (int i = 0; i < GROUPS; i++) c->orders[i] = largest[i], c->places[i] = i;
  c->count = GROUPS;
  return keep_largest(c, most, LEAST_ORDER) - 1;
}

void largest_first(const void *given, Share *share) {
  ARGUMENTS(largest_first);
  EACH(r, a.rows, a.width) {
    const uint16_t *own = a.x + r * a.apart;
    uint16_t *values = a.values + r * a.most;
    int32_t *places = a.places + r * a.most;
    if (r > range.first && !memcmp(own, own - a.apart, (size_t)a.width * sizeof *own)) {
      memcpy(values, values - a.most, (size_t)a.most * sizeof *values); /* idle users are alike */
      memcpy(places, places - a.most, (size_t)a.most * sizeof *places);
      continue;
    }
    Candidates found;
    int32_t limit = limit_of(&found, own, a.width, a.most);
    found.count = 0;
    for (int64_t from = 0; from < a.width; from += BLOCK) {
      const int64_t to = from + BLOCK < a.width ? from + BLOCK : a.width;
      if (!add_larger(&found, own, from, to, limit)) refuse(share);
      if (found.count > 4 * a.most) limit = keep_largest(&found, a.most, limit);
    }
    if (found.count > a.most) keep_largest(&found, a.most, limit);
    int32_t keys[MOST_LARGEST]; /* all different: of equal values the first is the largest */
    for (int32_t i = 0; i < (int32_t)found.count; i++) keys[i] = found.orders[i] * 0x10000 - i;
    for (int32_t i = 0; i < (int32_t)found.count; i++) {
      int32_t rank = 0;
      for (int32_t j = 0; j < (int32_t)found.count; j++) rank += keys[j] > keys[i];
      values[rank] = own[found.places[i]];
      places[rank] = found.places[i];
    }
  }
}

void best_of(const void *given, Share *share) {
  ARGUMENTS(best_of);
  EACH(r, a.rows, a.width) {
    const uint16_t *own = a.x + r * a.width;
    float best = widened(own[0]);
    int64_t place = 0, is_strange = a.most[r] != 1 || best != best;
    for (int64_t j = 1; j < a.width; j++) {
      const float value = widened(own[j]);
      is_strange |= value != value;
      place = value > best ? j : place;
      best = value > best ? value : best;
    }
    if (is_strange) refuse(share);
    a.out[r] = a.places[r * a.width + place];
  }
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
  const floats first = first_of(pairs), second = second_of(pairs);
  const floats turned_first = first * first_of(c) - second * first_of(s);
  const floats turned_second = second * second_of(c) + first * second_of(s);
  const words turned = (words)rounded(turned_first) >> 16 | (words)rounded(turned_second);
  memcpy(out, &turned, bytes);
}

#define TURNED 32     /* rows of a matrix, for which is reckoned once where it lies */
#define ROWS_AHEAD 16 /* that memory is asked for where they lie apart */

void rotate(const void *given, Share *share) {
  ARGUMENTS(rotate);
  const int64_t width = a.width, pieces = (a.inner + TURNED - 1) / TURNED;
  EACH(piece, a.outer * pieces, TURNED * width) {
    const int64_t o = piece / pieces, first = piece % pieces * TURNED;
    const int64_t last = first + TURNED < a.inner ? first + TURNED : a.inner;
    const uint16_t *from = a.x + o / a.some * a.apart + o % a.some * a.beside + first * a.stride;
    uint16_t *to = a.out + (o * a.inner + first) * width;
    int64_t row = (o % a.tables * a.per_table + first * a.per_row) * width;
    for (int64_t i = first; i < last; i++, from += a.stride, to += width, row += a.per_row * width) {
      if (a.stride != width && i + ROWS_AHEAD < a.inner) fetch(from + ROWS_AHEAD * a.stride, width);
      int64_t j = 0;
      for (; j + 2 * LANES <= width; j += 2 * LANES)
        turn(from + j, a.cosine + row + j, a.sine + row + j, to + j, 4 * LANES);
      if (j < width)
        turn(from + j, a.cosine + row + j, a.sine + row + j, to + j, (size_t)(width - j) * 2);
    }
  }
}

/* A row's columns of one part, summed over places that lie `apart`. */
static inline __attribute__((always_inline)) void
sum_part(const uint16_t *from, int64_t apart, uint16_t *to, int64_t width, int64_t bits,
         const int64_t places) {
  for (int64_t i = 0; i < width; i += WIDE) {
    const int64_t some = blocks_at(i, width);
    float own[WIDE];
    for (int64_t j = 0; j < some * BLOCK; j += LANES) {
      floats sum = widened_all(from + i + j);
      UNROLLED
      for (int64_t p = 1; p < places; p++) sum += widened_all(from + p * apart + i + j);
      sum += (floats){0}; /* two negative zeros are zero */
      memcpy(own + j, &sum, sizeof sum);
    }
    store_as(own, some, to + i, bits);
  }
}

void sum_places(const void *given, Share *share) {
  ARGUMENTS(sum_places);
  const int64_t width = a.width / a.parts, apart = a.rows * a.width;
  EACH(number, a.outer * a.rows, a.places * a.width) {
    const int64_t outer = number / a.rows, row = number % a.rows;
    const uint16_t *from = a.x + outer * a.places * apart + row * a.width;
    uint16_t *to = a.out + outer * apart + row * width;
    for (int64_t part = 0; part < a.parts; part++, from += width, to += a.rows * width)
      if (a.places == 4)
        sum_part(from, apart, to, width, a.mantissa_bits, 4);
      else if (a.places == 8)
        sum_part(from, apart, to, width, a.mantissa_bits, 8);
      else
        sum_part(from, apart, to, width, a.mantissa_bits, a.places);
  }
}
