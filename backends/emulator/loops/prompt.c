/* Attention of prompts with products of 16-bit integers, which processors sum in pairs twice as
   fast as floats and without rounding.

   Queries and keys are scaled by powers of two so that their lengths fit 15 bits: no score
   overflows, and bfloat16 numbers are exact in this but for those below some hundredth of the
   largest. Values are scaled key by key; what that takes away is given to the softmax weights, which
   become integers anew for every PROMPT_KEYS keys, as large as their sum allows: of 15 bits, or of
   13 where all keys count alike. From there on sums are floats. Vectors hold neighbouring queries. */

#include "vectors.h"

#define MANY 32 /* queries at work at once */
#define ACROSS (MANY / LANES)
#define AT_ONCE (LANES == 16 ? PROMPT_ROWS : 2) /* keys, or columns, whose sums stay in registers */
#define HALF (PROMPT_KEYS / 2)

#define LENGTH_BITS 15            /* of queries and keys */
#define VALUE_BITS 12             /* of values, 8 of which count: at most 255 / 256 of that */
#define MOST_WEIGHT 32767.0f      /* and together 2^19, for 2^31 in a product */
#define MOST_WEIGHTS 524288.0f
#define FAR 60                    /* powers of two from 1: what is larger is refused */
#define NOTHING (-FAR - 1)        /* exponent of a value that is all zeros */
#define LOG2_E 1.4426950408889634
#define NO_KEY (-1e30f)           /* score of a key that is not seen */
#define OLD 10                    /* powers of two by which scores may exceed their reference */

static inline floats all(float x) { return (floats){0} + x; }

static inline floats larger(floats x, floats y) {
#ifdef __AVX512F__
  return (floats)_mm512_max_ps((__m512)x, (__m512)y);
#else
  return (floats)chosen((words)x, (words)y, (words)(x > y));
#endif
}

/* 2 to the power of x, right to 18 bits. */
static inline floats power_of(floats x) {
#ifdef __AVX512DQ__
  const floats rest = (floats)_mm512_reduce_ps((__m512)x, 1); /* above the next whole number */
#else
  x = larger(x, all(-126));
  floats whole = (x + INTEGERS) - INTEGERS;
  whole += __builtin_convertvector(whole > x, floats); /* which is -1 where it is so */
  const floats rest = x - whole;
#endif
  floats series = rest * 0.0135341678f + 0.0520114601f;
  series = series * rest + 0.241442755f;
  series = series * rest + 0.693003833f;
  series = series * rest + 1.00000262f;
#ifdef __AVX512DQ__
  return (floats)_mm512_scalef_ps((__m512)series, (__m512)x);
#else
  return series * (floats)(__builtin_convertvector(whole + 127, words) << PLACE);
#endif
}

static inline float power_of_two(int64_t n) { return as_float((uint32_t)(n + 127) << PLACE); }

/* The power of two that a size is below, within limits. 0 where it is too large, or no number. */
static inline int exponent_of(float size, int *exponent) {
  *exponent = (int)(as_bits(size) >> PLACE) - 126;
  if (*exponent < -FAR) *exponent = -FAR;
  return *exponent <= FAR;
}

#define SIDE 8

/* Words [SIDE, SIDE] with rows and columns changed, both of which lie apart. */
static inline void turn_over(const uint32_t *x, int64_t x_apart, uint32_t *out, int64_t out_apart) {
#ifdef __AVX2__
  __m256 rows[SIDE], pairs[SIDE], fours[SIDE];
  UNROLLED
  for (int i = 0; i < SIDE; i++) rows[i] = _mm256_loadu_ps((const float *)x + i * x_apart);
  UNROLLED
  for (int i = 0; i < SIDE; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  UNROLLED
  for (int i = 0; i < SIDE; i += 4)
    UNROLLED
    for (int j = 0; j < 2; j++) {
      fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xEE);
    }
  UNROLLED
  for (int i = 0; i < SIDE / 2; i++) {
    const __m256 upper = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    const __m256 lower = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    _mm256_storeu_ps((float *)out + i * out_apart, upper);
    _mm256_storeu_ps((float *)out + (i + SIDE / 2) * out_apart, lower);
  }
#else
  for (int i = 0; i < SIDE; i++)
    for (int j = 0; j < SIDE; j++) out[j * out_apart + i] = x[i * x_apart + j];
#endif
}

/* The nearest integers, in 16 bits: the last ones of numbers near INTEGERS are the integer. */
static inline words last_bits(floats x) { return (words)(x + INTEGERS) & 0xFFFF; }

/* Integers [width] of a query or key, two in a word, and what a unit is. 0 where it is not for C. */
static int whole_numbers(const uint16_t *x, int64_t width, uint32_t *out, float *unit) {
  floats squares = {0};
  int exponent;
  for (int64_t j = 0; j < width; j += LANES) squares += widened_all(x + j) * widened_all(x + j);
  if (!exponent_of(sqrtf(total(squares)), &exponent)) return 0;
  const float scale = power_of_two(LENGTH_BITS - exponent);
  for (int64_t j = 0; j < width; j += LANES) {
    const halves whole = __builtin_convertvector(last_bits(widened_all(x + j) * scale), halves);
    memcpy(out + j / 2, &whole, sizeof whole);
  }
  *unit = power_of_two(exponent - LENGTH_BITS);
  return 1;
}

void arrange_keys(const void *given, Share *share) {
  ARGUMENTS(arrange_keys);
  EACH(piece, a.matrices * a.groups, PROMPT_ROWS * a.width) {
    const int64_t first = piece % a.groups * PROMPT_ROWS;
    const uint16_t *x = a.x + piece / a.groups * a.length * a.width;
    uint32_t *out = a.out + piece * a.half * PROMPT_ROWS;
    uint32_t own[PROMPT_ROWS][MOST_WIDTH / 2];
    for (int64_t j = 0; j < PROMPT_ROWS; j++) {
      float *unit = a.units + piece * PROMPT_ROWS + j;
      if (first + j >= a.length) {
        memset(own[j], 0, sizeof own[j]);
        *unit = 0;
      } else if (!whole_numbers(x + (first + j) * a.width, a.width, own[j], unit))
        refuse(share);
    }
    for (int64_t p = 0; p < a.half; p += SIDE)
      turn_over(own[0] + p, MOST_WIDTH / 2, out + p * PROMPT_ROWS, PROMPT_ROWS);
  }
}

/* Of all values, or what is no number. */
static float largest_size(const uint16_t *x, int64_t width) {
  words most = {0};
  uint32_t largest = 0;
  for (int64_t j = 0; j < width; j += LANES) {
    const words size = widened_bits(x + j) & 0x7FFFFFFF;
    most = chosen(size, most, (words)(size > most));
  }
#ifdef __AVX512F__
  largest = _mm512_reduce_max_epu32((__m512i)most);
#else
  for (int i = 0; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
#endif
  return as_float(largest);
}

#define TOGETHER (LANES < PROMPT_ROWS ? LANES : PROMPT_ROWS) /* columns that stay neighbours */

void arrange_values(const void *given, Share *share) {
  ARGUMENTS(arrange_values);
  static const uint16_t nothing[MOST_WIDTH] = {0};
  EACH(piece, a.matrices * a.pairs, 2 * a.width) {
    const int64_t first = piece % a.pairs * 2;
    uint32_t *out = a.out + piece / HALF * a.width * HALF + piece % HALF * PROMPT_ROWS;
    const uint16_t *x[2];
    float scale[2];
    for (int64_t j = 0; j < 2; j++) {
      const int64_t row = piece / a.pairs * a.length + first + j;
      x[j] = first + j < a.length ? a.x + row * a.width : nothing;
      const float most = largest_size(x[j], a.width);
      int exponent;
      if (!exponent_of(most, &exponent)) refuse(share);
      if (most == 0) exponent = NOTHING;
      scale[j] = power_of_two(VALUE_BITS - exponent);
      a.exponents[2 * piece + j] = (float)exponent;
      a.shrinks[2 * piece + j] = power_of_two(-exponent);
    }
    for (int64_t c = 0; c < a.width; c += LANES) {
      const words low = last_bits(widened_all(x[0] + c) * scale[0]);
      const words both = low | last_bits(widened_all(x[1] + c) * scale[1]) << 16;
      for (int64_t at = c; at < c + LANES; at += TOGETHER)
        memcpy(out + at / PROMPT_ROWS * PROMPT_ROWS * HALF + at % PROMPT_ROWS,
               (const uint32_t *)&both + (at - c), TOGETHER * sizeof(uint32_t));
    }
  }
}

/* Sums [PROMPT_ROWS, MANY] of words [pairs, PROMPT_ROWS] with words [pairs, MANY]. */
static inline __attribute__((always_inline)) void
multiply(const uint32_t *x, const uint32_t *y, int64_t pairs, integers (*sums)[ACROSS]) {
  UNROLLED
  for (int row = 0; row < PROMPT_ROWS; row += AT_ONCE) {
    integers own[AT_ONCE][ACROSS];
    UNROLLED
    for (int i = 0; i < AT_ONCE; i++)
      UNROLLED
      for (int v = 0; v < ACROSS; v++) own[i][v] = (integers){0};
    for (int64_t k = 0; k < pairs; k++) {
      words many[ACROSS];
      UNROLLED
      for (int v = 0; v < ACROSS; v++) many[v] = loaded_words(y + k * MANY + v * LANES);
      UNROLLED
      for (int i = 0; i < AT_ONCE; i++) {
        const uint32_t pair = x[k * PROMPT_ROWS + row + i];
        UNROLLED
        for (int v = 0; v < ACROSS; v++) own[i][v] = plus_integers(own[i][v], many[v], pair);
      }
    }
    UNROLLED
    for (int i = 0; i < AT_ONCE; i++)
      UNROLLED
      for (int v = 0; v < ACROSS; v++) sums[row + i][v] = own[i][v];
  }
}

/* Of MANY queries. Keys count with 2 to the power of their scores, the size of values included. */
typedef struct {
  uint32_t q[MOST_WIDTH / 2][MANY];
  floats unit[ACROSS];                 /* of scores */
  integers first[ACROSS], end[ACROSS]; /* of the keys that each sees */
  floats scores[PROMPT_KEYS][ACROSS];
  floats largest[ACROSS];
  uint32_t weights[HALF][MANY];
  floats weight_unit[ACROSS];
  floats reference[ACROSS]; /* 2 to its power is the unit of what has been summed: */
  floats total[ACROSS];     /* softmax weights */
  floats found[MOST_WIDTH][ACROSS]; /* and weighted values */
  int64_t place[MANY];              /* in q and out */
} Work;

static void score(Work *work, const uint32_t *keys, const float *units, const float *exponents,
                  int64_t half) {
  for (int v = 0; v < ACROSS; v++) work->largest[v] = all(NO_KEY);
  for (int64_t k = 0; k < PROMPT_KEYS; k += PROMPT_ROWS) {
    integers sums[PROMPT_ROWS][ACROSS];
    multiply(keys + k * half, work->q[0], half, sums);
    UNROLLED
    for (int i = 0; i < PROMPT_ROWS; i++)
      UNROLLED
      for (int v = 0; v < ACROSS; v++) {
        const floats own = __builtin_convertvector(sums[i][v], floats) * units[k + i];
        work->scores[k + i][v] = own * work->unit[v] + exponents[k + i];
        work->largest[v] = larger(work->largest[v], work->scores[k + i][v]);
      }
  }
}

/* Leaves out keys, the first of which is `begin`, that a query does not see. */
static void cut(Work *work, int64_t begin) {
  for (int v = 0; v < ACROSS; v++) {
    work->largest[v] = all(NO_KEY);
    for (int k = 0; k < PROMPT_KEYS; k++) {
      const integers at = (integers){0} + (int32_t)(begin + k);
      const words seen = (words)((at >= work->first[v]) & (at < work->end[v]));
      work->scores[k][v] = (floats)chosen((words)work->scores[k][v], (words)all(NO_KEY), seen);
      work->largest[v] = larger(work->largest[v], work->scores[k][v]);
    }
  }
}

/* Has sums follow scores that have become much larger. */
static void renew(Work *work, int64_t width) {
  for (int v = 0; v < ACROSS; v++) {
    const floats most = work->largest[v], before = work->reference[v];
    const words is_old = (words)(most > before + OLD);
    uint32_t any = 0;
    for (int i = 0; i < LANES; i++) any |= is_old[i];
    if (!any) continue;
    const floats part = (floats)chosen((words)power_of(before - most), (words)all(1), is_old);
    work->reference[v] = (floats)chosen((words)most, (words)before, is_old);
    work->total[v] *= part;
    for (int64_t j = 0; j < width; j++) work->found[j][v] *= part;
  }
}

/* Softmax weights as integers. */
static void weigh(Work *work, const float *shrinks) {
  for (int v = 0; v < ACROSS; v++) {
    const floats largest = work->largest[v], power = power_of(largest - work->reference[v]);
    floats sum = {0}, own = {0};
    for (int k = 0; k < PROMPT_KEYS; k++) {
      const floats weight = power_of(work->scores[k][v] - largest);
      work->scores[k][v] = weight;
      own += weight * shrinks[k];
      sum += weight;
    }
    work->total[v] += own * power;
    const floats unit = larger(sum * (1 / MOST_WEIGHTS), all(1 / MOST_WEIGHT));
    const floats scale = 1 / unit;
    work->weight_unit[v] = power * unit;
    for (int k = 0; k < HALF; k++) {
      const words low = last_bits(work->scores[2 * k][v] * scale);
      const words both = low | last_bits(work->scores[2 * k + 1][v] * scale) << 16;
      memcpy(work->weights[k] + v * LANES, &both, sizeof both);
    }
  }
}

static void add_values(Work *work, const uint32_t *values, int64_t width) {
  for (int64_t c = 0; c < width; c += PROMPT_ROWS) {
    integers sums[PROMPT_ROWS][ACROSS];
    multiply(values + c * HALF, work->weights[0], HALF, sums);
    UNROLLED
    for (int i = 0; i < PROMPT_ROWS; i++)
      UNROLLED
      for (int v = 0; v < ACROSS; v++)
        work->found[c + i][v] += __builtin_convertvector(sums[i][v], floats) * work->weight_unit[v];
  }
}

/* Those of a group whose queries are not zeros. */
typedef struct {
  int64_t count, heads[MOST_GROUP];
} Busy;

static void find_busy(const struct attend_prompt *a, int64_t head, Busy *busy) {
  busy->count = 0;
  for (int64_t i = 0; i < a->group; i++)
    if (!a->idle[head * a->group + i]) busy->heads[busy->count++] = i;
}

/* Everything about MANY queries of a head of keys, from this number on: neighbours in a group, then
   in time; those after the last repeat it. 0 where they are not for C. */
static int begin_work(const struct attend_prompt *a, int64_t head, const Busy *busy, int64_t number,
                      Work *work) {
  const int64_t count = busy->count * a->length;
  for (int v = 0; v < ACROSS; v++) {
    work->reference[v] = all(NO_KEY);
    work->total[v] = all(0);
    for (int64_t j = 0; j < a->width; j++) work->found[j][v] = all(0);
  }
  uint32_t whole[MANY][MOST_WIDTH / 2];
  for (int64_t i = 0; i < MANY; i++) {
    const int64_t own = number + i < count ? number + i : count - 1, row = own / busy->count;
    const int64_t at = a->start + row, v = i / LANES, lane = i % LANES;
    float unit;
    const int64_t at_head = head * a->group + busy->heads[own % busy->count];
    work->place[i] = (at_head * a->length + row) * a->width;
    if (!whole_numbers(a->q + work->place[i], a->width, whole[i], &unit)) return 0;
    work->unit[v][lane] = unit * (float)(a->scale * LOG2_E);
    work->first[v][lane] = a->window && at >= a->window ? (int32_t)(at - a->window + 1) : 0;
    work->end[v][lane] = (int32_t)(a->is_causal && at + 1 < a->total ? at + 1 : a->total);
  }
  for (int64_t i = 0; i < MANY; i += SIDE)
    for (int64_t p = 0; p < a->half; p += SIDE)
      turn_over(whole[i] + p, MOST_WIDTH / 2, work->q[p] + i, MANY);
  return 1;
}

/* The results of all but those that repeat the last, by way of where queries were. */
static void end_work(const struct attend_prompt *a, int64_t left, Work *work) {
  for (int64_t v = 0; v < ACROSS; v++) {
    const floats share = power_of_two(-VALUE_BITS) / work->total[v];
    for (int64_t p = 0; p < a->half; p++) {
      const halves low = narrowed_all(work->found[2 * p][v] * share);
      const halves high = narrowed_all(work->found[2 * p + 1][v] * share);
      const words both =
          __builtin_convertvector(low, words) | __builtin_convertvector(high, words) << 16;
      memcpy(work->q[p] + v * LANES, &both, sizeof both);
    }
  }
  for (int64_t i = 0; i < MANY; i += SIDE)
    for (int64_t p = 0; p < a->half; p += SIDE) {
      uint32_t rows[SIDE][SIDE];
      turn_over(work->q[p] + i, MANY, rows[0], SIDE);
      for (int64_t j = 0; j < SIDE && i + j < left; j++)
        memcpy(a->out + work->place[i + j] + 2 * p, rows[j], sizeof rows[j]);
    }
}

static int attend_rows(const struct attend_prompt *a, int64_t head, const Busy *busy,
                       int64_t number) {
  const int64_t width = a->width, wide = a->tiles * PROMPT_KEYS, from = head * wide;
  Work work;
  if (!begin_work(a, head, busy, number, &work)) return 0;
  const int last = ACROSS - 1, lane = LANES - 1;
  const int64_t last_first = work.first[last][lane], end = work.end[last][lane];
  int64_t begin = work.first[0][0] / PROMPT_KEYS * PROMPT_KEYS;
  for (; begin < end; begin += PROMPT_KEYS) {
    const int64_t at = from + begin;
    score(&work, a->keys + at * a->half, a->units + at, a->exponents + at, a->half);
    if (begin < last_first || begin + PROMPT_KEYS > work.end[0][0]) cut(&work, begin);
    renew(&work, width);
    weigh(&work, a->shrinks + at);
    add_values(&work, a->values + at / 2 * width, width);
  }
  end_work(a, busy->count * a->length - number, &work);
  return 1;
}

typedef double doubles __attribute__((vector_size(8 * LANES))); /* in which large numbers come and go */

/* Queries that are zeros: means of the values that each sees. */
static void attend_evenly(const struct attend_prompt *a, int64_t head, int64_t of_group) {
  const uint16_t *values = a->plain + head * a->total * a->width;
  uint16_t *out = a->out + (head * a->group + of_group) * a->length * a->width;
  doubles sums[MOST_WIDTH / LANES] = {0};
  int64_t first = 0, end = 0;
  for (int64_t at = a->start; at < a->start + a->length; at++, out += a->width) {
    const int64_t last = a->is_causal && at + 1 < a->total ? at + 1 : a->total;
    const int64_t begin = a->window && at >= a->window ? at - a->window + 1 : 0;
    for (; end < last; end++)
      for (int64_t j = 0; j < a->width; j += LANES)
        sums[j / LANES] += __builtin_convertvector(widened_all(values + end * a->width + j), doubles);
    for (; first < begin; first++)
      for (int64_t j = 0; j < a->width; j += LANES)
        sums[j / LANES] -= __builtin_convertvector(widened_all(values + first * a->width + j), doubles);
    const double part = 1.0 / (double)(end - first);
    for (int64_t j = 0; j < a->width; j += LANES) {
      const halves narrow = narrowed_all(__builtin_convertvector(sums[j / LANES] * part, floats));
      memcpy(out + j, &narrow, sizeof narrow);
    }
  }
}

void find_zeros(const void *given, Share *share) {
  ARGUMENTS(find_zeros);
  EACH(row, a.rows, a.width / 8) { /* most end at their first numbers */
    const uint16_t *x = a.x + row * a.width;
    uint64_t bits = 0;
    for (int64_t j = 0; j < a.width && !bits; j += TILE)
      for (int64_t i = 0; i < TILE; i += 4) {
        uint64_t four;
        memcpy(&four, x + j + i, sizeof four);
        bits |= four & 0x7FFF7FFF7FFF7FFF;
      }
    a.out[row] = !bits;
  }
}

/* Whether a head's values are zeros, as of chips that have no head of their own. */
static int is_idle(const struct attend_prompt *a, int64_t head) {
  const float *exponents = a->exponents + head * a->tiles * PROMPT_KEYS;
  int64_t last = a->total - 1;
  while (last >= 0 && exponents[last] == NOTHING) last--;
  return last < 0;
}

void attend_prompt(const void *given, Share *share) {
  ARGUMENTS(attend_prompt);
  const int64_t count = a.group * a.length, blocks = (count + MANY - 1) / MANY;
  EACH_BY(job, a.heads * blocks, 1) { /* the longest rows first */
    const int64_t head = job % a.heads, number = (blocks - 1 - job / a.heads) * MANY;
    const int64_t many = number + MANY < count ? MANY : count - number;
    if (has_refused(share)) continue;
    if (is_idle(&a, head)) {
      memset(a.out + (head * count + number) * a.width, 0, (size_t)(many * a.width) * sizeof *a.out);
      continue;
    }
    Busy busy;
    find_busy(&a, head, &busy);
    if (number < busy.count * a.length && !attend_rows(&a, head, &busy, number)) refuse(share);
    for (int64_t i = 0; i < a.group && number == 0; i++)
      if (a.idle[head * a.group + i]) attend_evenly(&a, head, i);
  }
}
