/* Loops over rows of few numbers, where the number of torch calls would decide the time. */

#include "vectors.h"

void round_blocks(const void *given, Share *share) {
  ARGUMENTS(round_blocks);
  EACH(b, a.blocks, BLOCK) {
    float wide[BLOCK];
    if (a.is_wide)
      memcpy(wide, (const float *)a.x + b * BLOCK, sizeof wide);
    else
      for (int i = 0; i < BLOCK; i++) wide[i] = widened(((const uint16_t *)a.x)[b * BLOCK + i]);
    store_as(wide, a.out + b * BLOCK, a.mantissa_bits);
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
  EACH(b, a.blocks, BLOCK) {
    float sum[BLOCK];
    for (int i = 0; i < BLOCK; i += LANES) {
      const floats some = widened_all(a.x + b * BLOCK + i) + widened_all(a.y + b * BLOCK + i);
      memcpy(sum + i, &some, sizeof some);
    }
    if (a.mantissa_bits) /* operands meet in bfloat16 */
      for (int i = 0; i < BLOCK; i += LANES) {
        const floats some = rounded(loaded(sum + i));
        memcpy(sum + i, &some, sizeof some);
      }
    store_as(sum, a.out + b * BLOCK, a.mantissa_bits);
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

void rms_norm(const void *given, Share *share) {
  ARGUMENTS(rms_norm);
  EACH(r, a.chips * a.rows, a.width) {
    const uint16_t *own = a.x + r * a.width;
    uint16_t *to = a.out + r * a.width;
    float sum = 0;
    if (a.sums)
      for (int64_t t = 0; t < a.tiles; t++)
        sum += widened(a.sums[((a.has_sums ? r : r % a.rows) * a.tiles + t) * TILE]);
    else
      sum = squares_of(own, a.width);
    const float inverse = 1.0f / sqrtf(sum * (float)a.share + (float)a.epsilon);
    const float *scale = a.weight ? a.weight + (a.has_weights ? r / a.rows * a.width : 0) : 0;
    if (a.mantissa_bits) {
      for (int64_t j = 0; j < a.width; j += BLOCK) {
        float block[BLOCK];
        for (int i = 0; i < BLOCK; i++)
          block[i] = widened(own[j + i]) * inverse * (scale ? scale[j + i] : 1.0f);
        store_as(block, to + j, a.mantissa_bits);
      }
    } else if (scale) {
      for (int64_t j = 0; j < a.width; j++)
        to[j] = narrowed(widened(own[j]) * inverse * scale[j]);
    } else {
      for (int64_t j = 0; j < a.width; j++) to[j] = narrowed(widened(own[j]) * inverse);
    }
  }
}

/* `exponential` of a vector: compilers make narrow ones of a loop over it. */
static inline floats exponentials(floats x) {
  const floats least = (floats){0} - 87.0f;
  x = (floats)chosen((words)x, (words)least, (words)(x > least));
  const floats whole = (x * 1.44269504f + INTEGERS) - INTEGERS;
  const floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  floats series = rest * (1.0f / 720) + 1.0f / 120;
  series = series * rest + 1.0f / 24;
  series = series * rest + 1.0f / 6;
  series = series * rest + 0.5f;
  series = series * rest + 1.0f;
  series = series * rest + 1.0f;
  return series * (floats)(__builtin_convertvector(whole + 127, words) << PLACE);
}

void silu_multiply(const void *given, Share *share) {
  ARGUMENTS(silu_multiply);
  EACH(b, a.blocks, 4 * BLOCK) { /* an exponential is worth more than a sum */
    float result[BLOCK];
    for (int i = 0; i < BLOCK; i += LANES) {
      const floats x = widened_all(a.x + b * BLOCK + i), size = (floats)((words)x & 0x7FFFFFFF);
      const floats small = exponentials(-size), one = (floats){0} + 1.0f;
      const floats part = (floats)chosen((words)small, (words)one, (words)(x < 0)) / (one + small);
      const floats found = rounded(rounded(x * part) * widened_all(a.y + b * BLOCK + i));
      memcpy(result + i, &found, sizeof found);
    }
    store_as(result, a.out + b * BLOCK, a.mantissa_bits);
  }
}

void largest_first(const void *given, Share *share) {
  ARGUMENTS(largest_first);
  EACH(r, a.rows, a.width) {
    const uint16_t *own = a.x + r * a.apart;
    uint16_t *value = a.values + r * a.most;
    int32_t *place = a.places + r * a.most;
    if (r > range.first && !memcmp(own, own - a.apart, (size_t)a.width * sizeof *own)) {
      memcpy(value, value - a.most, (size_t)a.most * sizeof *value); /* idle users are alike */
      memcpy(place, place - a.most, (size_t)a.most * sizeof *place);
      continue;
    }
    int64_t count = 0;
    float limit = 0; /* that a value must exceed, once there are `most` */
    for (int64_t from = 0; from < a.width; from += BLOCK) {
      const int64_t to = from + BLOCK < a.width ? from + BLOCK : a.width;
      int is_strange = 0, is_larger = count < a.most;
      for (int64_t j = from; j < to; j++) {
        const float v = widened(own[j]);
        is_strange |= v != v;
        is_larger |= v > limit;
      }
      if (is_strange) refuse(share);
      if (!is_larger) continue;
      for (int64_t j = from; j < to; j++) {
        const float v = widened(own[j]);
        if (count == a.most && !(v > limit)) continue;
        int64_t at = count < a.most ? count++ : a.most - 1;
        for (; at > 0 && v > widened(value[at - 1]); at--) {
          value[at] = value[at - 1];
          place[at] = place[at - 1];
        }
        value[at] = own[j];
        place[at] = (int32_t)j;
        if (count == a.most) limit = widened(value[a.most - 1]);
      }
    }
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

void rotate(const void *given, Share *share) {
  ARGUMENTS(rotate);
  const int64_t width = a.width;
  EACH(r, a.outer * a.inner, width) {
    const int64_t o = r / a.inner, i = r % a.inner;
    const uint16_t *from = a.x + o * a.apart + i * a.stride;
    uint16_t *to = a.out + r * width;
    const int64_t row = (o % a.tables * a.per_table + i * a.per_row) * width;
    int64_t j = 0;
    for (; j + 2 * LANES <= width; j += 2 * LANES)
      turn(from + j, a.cosine + row + j, a.sine + row + j, to + j, 4 * LANES);
    if (j < width)
      turn(from + j, a.cosine + row + j, a.sine + row + j, to + j, (size_t)(width - j) * 2);
  }
}

void sum_places(const void *given, Share *share) {
  ARGUMENTS(sum_places);
  const int64_t width = a.width / a.parts;
  EACH(piece, a.outer * a.rows * a.parts, a.places * width) {
    const int64_t part = piece % a.parts, row = piece / a.parts % a.rows;
    const int64_t outer = piece / a.parts / a.rows;
    const uint16_t *from = a.x + (outer * a.places * a.rows + row) * a.width + part * width;
    uint16_t *to = a.out + ((outer * a.parts + part) * a.rows + row) * width;
    for (int64_t i = 0; i < width; i += BLOCK) {
      float sum[BLOCK];
      for (int j = 0; j < BLOCK; j += LANES) {
        floats some = {0};
        for (int64_t p = 0; p < a.places; p++)
          some += widened_all(from + p * a.rows * a.width + i + j);
        memcpy(sum + j, &some, sizeof some);
      }
      store_as(sum, to + i, a.mantissa_bits);
    }
  }
}
