/* Products of rows of bfloat16 with weights in tiles of columns, results as their format holds
   them. Reading the weights or the multiplier's own speed is the limit, for few rows or many. */

#include "amx.h"
#include "packed.h"
#include "sums.h"

#define PIECE 524288 /* bytes of weights that a thread reads in order */
#define AHEAD 4096   /* bytes of weights that memory is asked for before they are needed */
#define MOST_WIDE (LANES == 16 ? 2 : 1) /* tiles at once */
#define MOST_ROWS (LANES == 16 ? 12 : 2) /* whose sums stay in registers */

static inline uint16_t *goal_of(const struct multiply *p, int64_t goal, int64_t row) {
  const int64_t *to = p->goals + 2 * goal;
  return p->out + (to[0] * p->rows + row) * p->width + to[1];
}

/* Whether two tiles have the same goals, which get the sum of their products. */
static inline int is_one_sum(const int64_t *tile, const int64_t *other) { return tile[3] == other[3]; }

/* Where rounded products go: results, or a sum of several tiles' [MOST_SUMMED, TILE] on its way. */
typedef struct {
  float *sum;    /* NULL: results */
  int64_t first; /* row of it */
} Target;

static const Target results = {0};

static inline void copy_to_other_goals(const struct multiply *p, const int64_t *tile, int64_t row,
                                       int64_t end) {
  for (int64_t more = tile[3] + 1; more < tile[4]; more++)
    for (int64_t i = row; i < end; i++)
      memcpy(goal_of(p, more, i), goal_of(p, tile[3], i), TILE * sizeof(uint16_t));
}

/* Sums [count, TILE] of rows from `row` on, rounded, to all goals of their tile or to its sum. */
static __attribute__((noinline)) void put_sums(const struct multiply *p, const int64_t *tile,
                                               const Target *target, int64_t row, int64_t count,
                                               const float *sums) {
  const int64_t bits = p->mantissa_bits, is_wide = p->is_wide;
  if (target->sum) {
    add_rows(sums, count, bits, is_wide, target->sum + (row - target->first) * TILE);
    return;
  }
  put_rows(sums, count, bits, is_wide, goal_of(p, tile[3], row), p->width);
  copy_to_other_goals(p, tile, row, row + count);
}

/* Nothing to read, nothing to add. */
static void put_zeros(const struct multiply *p, const int64_t *tile, int64_t row, int64_t end) {
  for (int64_t goal = tile[3]; goal < tile[4]; goal++)
    for (int64_t i = row; i < end; i++)
      memset(goal_of(p, goal, i), 0, TILE * sizeof(uint16_t));
}

/* One pair of rows of a tile as bfloat16, two rows in a word. */
typedef struct {
  const uint32_t *weights;
  const uint8_t *mantissas;
  const uint32_t *exponents;
  int64_t last, jump; /* pairs from `last` on lie `jump` further on: those of a later tile */
} Pairs;

#define WORDS 0 /* of a pair, not packed */

static inline Pairs pairs_of(const struct multiply *p, int64_t first) {
  if (p->weights) return (Pairs){p->weights + first * TILE, 0, 0, INT64_MAX, 0};
  return (Pairs){0, p->mantissas + first * p->packed, p->exponents + first * 2, INT64_MAX, 0};
}

static inline Pairs moved(Pairs from, int64_t pairs, const int packed) {
  if (packed == WORDS)
    from.weights += pairs * TILE;
  else
    from.mantissas += pairs * packed, from.exponents += pairs * 2;
  return from;
}

/* What memory is asked for while pair k is multiplied. */
static inline __attribute__((always_inline)) Pairs later_pairs(const Pairs *from, int64_t k,
                                                               const int packed) {
  const int64_t later = k + AHEAD / (packed == WORDS ? TILE * (int64_t)sizeof(uint32_t) : packed);
  return moved(*from, later < from->last ? later : later + from->jump, packed);
}

/* Ask memory for pair k of a stretch. */
static inline __attribute__((always_inline)) void ask_for(const Pairs *later, int64_t k,
                                                          const int packed) {
  if (packed == WORDS)
    for (int j = 0; j < TILE; j += LINE / 2) __builtin_prefetch(later->weights + k * TILE + j);
  else if (k * packed % (2 * LINE) == 0)
    __builtin_prefetch(later->mantissas + k * packed);
  if (packed != WORDS && k % STRETCH == 0) __builtin_prefetch(later->exponents + k * 2);
}

static inline __attribute__((always_inline)) void read_pair(const Pairs *from, int64_t k,
                                                            const int packed, Pair *own) {
  if (packed == WORDS)
    UNROLLED
    for (int v = 0; v < VECTORS; v++)
      own[v] = pair_of(loaded_words(from->weights + k * TILE + v * LANES));
  else if (packed == 64)
    unpack_bytes(from->mantissas + k * 64, from->exponents + k * 2, own);
  else
    unpack_nibbles(from->mantissas + k * 32, from->exponents + k * 2, own);
}

/* To the sums of `count` rows x their products with pair k of a stretch of `wide` tiles. */
static inline __attribute__((always_inline)) void
add_pair(const uint16_t *x, int64_t depth, const Pairs *here, const Pairs *later, int64_t k,
         const int count, const int packed, const int wide, floats (*sums)[VECTORS * MOST_WIDE]) {
  Pair own[VECTORS * MOST_WIDE];
  UNROLLED
  for (int w = 0; w < wide; w++) {
    ask_for(later + w, k, packed);
    read_pair(here + w, k, packed, own + w * VECTORS);
  }
  UNROLLED
  for (int i = 0; i < count; i++) {
    uint32_t pair;
    memcpy(&pair, x + i * depth + 2 * k, sizeof pair);
    UNROLLED
    for (int v = 0; v < VECTORS * wide; v++) sums[i][v] = plus_pairs(sums[i][v], own[v], pair);
  }
}

/* Rows from `row` on, as many as `count` says, times `wide` tiles of one place and depth, to their
   goals. Made for each count in use, so that sums stay in registers; of few rows several tiles are
   taken at once, so that a sum need not wait for the one before it. */
static inline __attribute__((always_inline)) void
multiply_rows(const struct multiply *p, const int64_t *tile, const Pairs *from,
              const Target *target, int64_t row, const int count, const int packed, const int wide) {
  const uint16_t *x = p->x + tile[0] * p->rows * p->depth + row * p->span;
  int64_t strip = p->span / 2;
  floats sums[MOST_ROWS][VECTORS * MOST_WIDE];
  UNROLLED
  for (int i = 0; i < count; i++)
    UNROLLED
    for (int v = 0; v < VECTORS * wide; v++) sums[i][v] = (floats){0};
  for (int64_t k = 0; k < tile[1]; k += STRETCH) {
    Pairs here[MOST_WIDE], later[MOST_WIDE];
    if (k == strip) strip += p->span / 2, x += (p->rows - 1) * p->span;
    UNROLLED
    for (int w = 0; w < wide; w++) {
      here[w] = moved(from[w], k, packed);
      later[w] = later_pairs(from + w, k, packed);
    }
    if (tile[1] - k >= STRETCH)
      HALF_UNROLLED /* whole stretches are too much code */
      for (int s = 0; s < STRETCH; s++)
        add_pair(x + 2 * k, p->span, here, later, s, count, packed, wide, sums);
    else
      for (int64_t s = 0; s < tile[1] - k; s++)
        add_pair(x + 2 * k, p->span, here, later, s, count, packed, wide, sums);
  }
  float found[MOST_ROWS * TILE];
  UNROLLED
  for (int w = 0; w < wide; w++) {
    UNROLLED
    for (int i = 0; i < count; i++)
      UNROLLED
      for (int v = 0; v < VECTORS; v++)
        memcpy(found + i * TILE + v * LANES, &sums[i][w * VECTORS + v], sizeof(floats));
    put_sums(p, tile + w * 5, target, row, count, found);
  }
}

/* Few rows times `wide` tiles that are unpacked as they are read, while memory is asked for as many
   more. */
static inline __attribute__((always_inline)) void
multiply_few(const struct multiply *p, const int64_t *tile, int64_t row, int64_t end,
             const int packed, const int wide) {
  const int64_t *end_of_tiles = p->tiles + 5 * p->count;
  Pairs from[MOST_WIDE];
  UNROLLED
  for (int w = 0; w < wide; w++) {
    const int64_t *own = tile + 5 * w, *later = own + 5 * wide;
    from[w] = pairs_of(p, own[2]);
    from[w].last = own[1];
    from[w].jump = later < end_of_tiles ? later[2] - own[2] - own[1] : 0;
  }
#define SOME_ROWS(count) multiply_rows(p, tile, from, &results, row, count, packed, wide)
  for (; MOST_ROWS > 2 && end - row >= 4; row += 4) SOME_ROWS(4);
  for (; end - row >= 2; row += 2) SOME_ROWS(2);
  for (; end - row >= 1; row += 1) SOME_ROWS(1);
#undef SOME_ROWS
}

/* How many rows of a place there are without those at the end that repeat the one before: users that
   are idle are all alike. */
static inline int64_t different_rows(const struct multiply *p, int64_t place) {
  const uint16_t *x = p->x + place * p->rows * p->depth;
  int64_t count = p->rows;
  while (count > 1 && !memcmp(x + (count - 1) * p->depth, x + (count - 2) * p->depth,
                              (size_t)p->depth * sizeof *x))
    count--;
  return count;
}

/* Whether what a row gives is known. */
static inline int is_known(const struct multiply *p, int64_t place, int64_t row) {
  return p->known && !memcmp(p->x + (place * p->rows + row) * p->depth, p->known + place * p->depth,
                             (size_t)p->depth * sizeof *p->x);
}

static inline const uint16_t *known_of(const struct multiply *p, int64_t goal) {
  const int64_t *to = p->goals + 2 * goal;
  return p->known_results + to[0] * p->width + to[1];
}

/* Results of a tile to all rows from `row` on: what is known, or what the row before has. */
static inline void fill_rows(const struct multiply *p, const int64_t *tile, int64_t row, int has_known) {
  for (int64_t goal = tile[3]; goal < tile[4] && row < p->rows; goal++) {
    uint16_t *to = goal_of(p, goal, row);
    const uint16_t *from = has_known ? known_of(p, goal) : to - p->width;
    for (int64_t i = row; i < p->rows; i++, to += p->width) memcpy(to, from, TILE * sizeof(uint16_t));
  }
}

/* How many tiles from this one on are of one place and depth, up to MOST_WIDE. */
static inline int width_of(const struct multiply *p, int64_t at, int64_t end) {
  const int64_t *tile = p->tiles + at * 5;
  int wide = 1;
  while (wide < MOST_WIDE && at + wide < end && tile[wide * 5] == tile[0] &&
         tile[wide * 5 + 1] == tile[1])
    wide++;
  return wide == MOST_WIDE ? wide : 1;
}

/* A whole tile unpacked in a cache. */
static const uint32_t *unpacked(const struct multiply *p, const Pairs *from, int64_t pairs,
                                uint32_t *room) {
  Pair own[VECTORS];
  for (int64_t begin = 0; begin < pairs; begin += STRETCH) {
    const int64_t some = pairs - begin < STRETCH ? pairs - begin : STRETCH;
    const Pairs here = moved(*from, begin, (int)p->packed);
    const Pairs later = later_pairs(from, begin, (int)p->packed);
    for (int64_t k = 0; k < some; k++) {
      if (p->packed == 64)
        ask_for(&later, k, 64), read_pair(&here, k, 64, own);
      else
        ask_for(&later, k, 32), read_pair(&here, k, 32, own);
      UNROLLED
      for (int v = 0; v < VECTORS; v++) {
        const words both = words_of(own[v]);
        memcpy(room + (begin + k) * TILE + v * LANES, &both, sizeof both);
      }
    }
  }
  return room;
}

#if HAS_TILES
/* Rows by tile registers; the last ones overlap those before, so that all rows sum alike. */
static void multiply_by_tiles(const struct multiply *p, const int64_t *tile, const uint32_t *weights,
                              const Target *target, int64_t row, int64_t end) {
  const uint16_t *x = p->x + tile[0] * p->rows * p->depth;
  float sums[2 * EDGE * TILE];
  for (; end - row >= 2 * EDGE; row += 2 * EDGE) {
    multiply_two(x + row * p->depth, p->depth, weights, tile[1], sums);
    put_sums(p, tile, target, row, 2 * EDGE, sums);
  }
  while (row < end) {
    const int64_t known = row + EDGE > end ? row + EDGE - end : 0;
    row -= known;
    clear_sums();
    add_tiles(x + row * p->depth, p->depth, weights, tile[1]);
    store_sums(sums, TILE);
    put_sums(p, tile, target, row + known, EDGE - known, sums + known * TILE);
    row += EDGE;
  }
}
#endif

/* Whether vectors multiply pairs of bfloat16 faster than floats: Intel's take two cycles for one of
   AMD's, and four of floats. */
static inline int pairs_are_fast(void) {
#ifdef __AVX512BF16__
  return __builtin_cpu_is("amd") != 0;
#else
  return 0;
#endif
}

/* What sums products of bfloat16 here, each in an order of its own. */
const char *products(void) {
#if HAS_TILES
  if (may_use_tiles) return "tiles";
#endif
  if (pairs_are_fast()) return "pairs";
#ifdef __AVX512BF16__
  return "pairs of few rows";
#endif
  return "floats";
}

/* How many of the rows that are left are multiplied at once; there may be fewer. */
static inline int64_t rows_at_once(int64_t left) {
  const int64_t some = MOST_ROWS > 2 ? 4 : 2;
  return left < MOST_ROWS ? (left + some - 1) / some * some : MOST_ROWS;
}

/* Rows [count, depth], of which `some` exist, as floats side by side; zeros for a rest. */
static inline __attribute__((always_inline)) void widen(const uint16_t *x, int64_t depth, int64_t some,
                                                        const int count, float *out) {
  const uint16_t *rows[MOST_ROWS];
  for (int i = 0; i < count; i++) rows[i] = x + (i < some ? i : 0) * depth;
  for (int64_t k = 0; k < depth; k++)
    UNROLLED
    for (int i = 0; i < count; i++) out[k * count + i] = widened(rows[i][k]);
  for (int i = (int)some; i < count; i++)
    for (int64_t k = 0; k < depth; k++) out[k * count + i] = 0;
}

/* Rows from `row` on as floats, those that are multiplied at once side by side. */
static void widen_rows(const struct multiply *p, int64_t place, int64_t row, int64_t end, float *out) {
  for (int64_t some; row < end; row += some, out += some * p->depth) {
    const uint16_t *x = p->x + (place * p->rows + row) * p->depth;
    some = rows_at_once(end - row);
    if (some == MOST_ROWS) /* known when compiled */
      widen(x, p->depth, end - row, MOST_ROWS, out);
    else
      widen(x, p->depth, end - row, (int)some, out);
  }
}

static inline __attribute__((always_inline)) void
multiply_floats(const struct multiply *p, const int64_t *tile, const uint32_t *weights,
                const Target *target, const float *x, int64_t row, int64_t end, const int count) {
  floats sums[MOST_ROWS][VECTORS];
  UNROLLED
  for (int i = 0; i < count; i++)
    UNROLLED
    for (int v = 0; v < VECTORS; v++) sums[i][v] = (floats){0};
  for (int64_t k = 0; k < tile[1]; k++, x += 2 * count) {
    floats low[VECTORS], high[VECTORS];
    UNROLLED
    for (int v = 0; v < VECTORS; v++) {
      const words own = loaded_words(weights + k * TILE + v * LANES);
      low[v] = (floats)(own << 16);
      high[v] = (floats)(own & 0xFFFF0000u);
    }
    UNROLLED
    for (int i = 0; i < count; i++)
      UNROLLED
      for (int v = 0; v < VECTORS; v++) sums[i][v] += high[v] * x[count + i];
    UNROLLED
    for (int i = 0; i < count; i++)
      UNROLLED
      for (int v = 0; v < VECTORS; v++) sums[i][v] += low[v] * x[i];
  }
  float found[MOST_ROWS * TILE];
  UNROLLED
  for (int i = 0; i < count; i++)
    UNROLLED
    for (int v = 0; v < VECTORS; v++)
      memcpy(found + i * TILE + v * LANES, &sums[i][v], sizeof(floats));
  put_sums(p, tile, target, row, end - row < count ? end - row : count, found);
}

/* Widened rows times a tile that lies in a cache. */
static void multiply_wide(const struct multiply *p, const int64_t *tile, const uint32_t *weights,
                          const Target *target, const float *x, int64_t row, int64_t end) {
  for (int64_t some; row < end; row += some, x += some * p->depth) {
    some = rows_at_once(end - row);
    if (some == MOST_ROWS)
      multiply_floats(p, tile, weights, target, x, row, end, MOST_ROWS);
    else if (some == 8)
      multiply_floats(p, tile, weights, target, x, row, end, MOST_ROWS > 2 ? 8 : 2);
    else
      multiply_floats(p, tile, weights, target, x, row, end, MOST_ROWS > 2 ? 4 : 2);
  }
}

/* Rows as floats, of as many tiles as one sum has. */
typedef struct {
  float *rows[MOST_SUMMED];
  int64_t known[MOST_SUMMED]; /* panel and place of those that are there */
} Widened;

/* Rows from `row` on, of the panel that begins at `start`, times tile `number` of a sum, which lies
   in a cache. */
static void multiply_many(const struct multiply *p, const int64_t *tile, const uint32_t *weights,
                          const Target *target, int64_t start, int64_t row, int64_t end,
                          Widened *widened, int64_t number) {
  const int64_t last = start + p->panel < p->rows ? start + p->panel : p->rows;
#if HAS_TILES
  if (may_use_tiles && last - start >= EDGE && tile[1] % EDGE == 0) {
    multiply_by_tiles(p, tile, weights, target, row, end);
    return;
  }
#endif
  if (!pairs_are_fast()) {
    float *wide = widened->rows[number];
    if (widened->known[number] != start * p->places + tile[0]) {
      widen_rows(p, tile[0], start, last, wide);
      widened->known[number] = start * p->places + tile[0];
    }
    multiply_wide(p, tile, weights, target, wide + (row - start) * p->depth, row, end);
    return;
  }
  const Pairs from = {weights, 0, 0, INT64_MAX, 0};
#define SOME_ROWS(count)                                                                          \
  for (; end - row >= count; row += count) multiply_rows(p, tile, &from, target, row, count, WORDS, 1)
#if LANES == 16
  SOME_ROWS(12);
  SOME_ROWS(8);
  SOME_ROWS(4);
#endif
  SOME_ROWS(2);
  SOME_ROWS(1);
#undef SOME_ROWS
}

/* The weights of a tile as pairs, unpacked in a cache where they have to be; pair `next` is
   read after them. */
static const uint32_t *weights_of(const struct multiply *p, const int64_t *tile, int64_t next,
                                  uint32_t *room) {
  Pairs from = pairs_of(p, tile[2]);
  if (p->weights) return from.weights;
  from.last = tile[1];
  from.jump = next - tile[2] - tile[1];
  return unpacked(p, &from, tile[1], room);
}

/* Rows of a panel times the tiles [count] whose sum their goals get. */
static void multiply_panel(const struct multiply *p, const int64_t *tile, int64_t count,
                           int64_t start, int64_t end, uint32_t *room, Widened *widened) {
  const uint32_t *weights[MOST_SUMMED];
  const int is_once = end - start <= SUMMED_ROWS; /* so one tile at a time is enough */
  float sum[SUMMED_ROWS * TILE];
  if (p->sum_bits < 0) {
    const uint32_t *own = weights_of(p, tile, tile[2] + tile[1], room);
    multiply_many(p, tile, own, &results, start, start, end, widened, 0);
    return;
  }
  for (int64_t row = start; row < end; row += SUMMED_ROWS) {
    const int64_t last = row + SUMMED_ROWS < end ? row + SUMMED_ROWS : end;
    memset(sum, 0, (size_t)((last - row) * TILE) * sizeof *sum);
    for (int64_t i = 0; i < count; i++) {
      const Target target = {sum, row};
      if (row == start) {
        const int64_t *own = tile + 5 * i;
        weights[i] = weights_of(p, own, i + 1 < count ? own[7] : own[2] + own[1], room);
        if (!is_once) room += tile[5 * i + 1] * TILE;
      }
      multiply_many(p, tile + 5 * i, weights[i], &target, start, row, last, widened, i);
    }
    uint16_t *out = goal_of(p, tile[3], row);
    end_rows(sum, last - row, p->mantissa_bits, p->is_wide, p->sum_bits, out, p->width);
    copy_to_other_goals(p, tile, row, last);
  }
}

/* Few rows of a place times tiles from this one on; how many of them. */
static int64_t multiply_stretch(const struct multiply *p, const int64_t *tile, int wide,
                                int64_t different, int has_known) {
  for (int64_t goal = tile[3]; goal < tile[5 * wide - 1]; goal++) {
    if (has_known) __builtin_prefetch(known_of(p, goal));
    for (int64_t i = 0; i < p->rows; i++) __builtin_prefetch(goal_of(p, goal, i), 1);
  }
#define FEW_ROWS(packed)                                                                          \
  wide == 1 ? multiply_few(p, tile, 0, different - has_known, packed, 1)                          \
            : multiply_few(p, tile, 0, different - has_known, packed, MOST_WIDE)
  if (p->packed == 64)
    FEW_ROWS(64);
  else if (p->packed == 32)
    FEW_ROWS(32);
  else
    FEW_ROWS(WORDS);
#undef FEW_ROWS
  for (int w = 0; w < wide; w++) fill_rows(p, tile + 5 * w, different - has_known, has_known);
  return wide;
}

/* How many tiles a thread takes at once for few rows: its whole share where that is not much, for
   memory is read best in order, for long. */
static inline int64_t stretch_of(const struct multiply *p, int64_t threads) {
  const int64_t bytes = p->most_pairs * (p->packed ? p->packed + 8 : TILE * 4);
  const int64_t own = (p->count + threads - 1) / threads, times = own * bytes / PIECE + 1;
  return (own + times - 1) / times;
}

void multiply(const void *given, Share *share) {
  ARGUMENTS(multiply);
  const int64_t panels = (a.rows + a.panel - 1) / a.panel;
  const int64_t grain = a.rows > FEW ? 1 : stretch_of(&a, share->threads);
  const int64_t wide = (a.panel + TILE) * a.depth;
  uint32_t *room = a.room ? a.room + share->thread * a.most_pairs * TILE : 0;
  int64_t place = -1, different = 0, has_known = 0;
  Widened widened;
  for (int64_t i = 0; i < a.summed; i++) {
    widened.rows[i] = a.wide + (share->thread * a.summed + i) * wide;
    widened.known[i] = -1;
  }
#if HAS_TILES
  const int has_tiles = may_use_tiles && a.rows >= EDGE;
  if (has_tiles) open_tiles();
#endif
  EACH_BY(piece, panels * a.count, grain) {
    const int64_t number = piece % a.count, start = piece / a.count * a.panel;
    const int64_t end = start + a.panel < a.rows ? start + a.panel : a.rows;
    const int64_t *tile = a.tiles + number * 5;
    if (tile[1] == 0) {
      put_zeros(&a, tile, start, end);
    } else if (a.rows <= FEW) {
      if (place != tile[0]) {
        different = different_rows(&a, place = tile[0]);
        has_known = is_known(&a, place, different - 1);
      }
      const int64_t left = a.count - number, own = range.last - piece;
      piece += multiply_stretch(&a, tile, width_of(&a, number, number + (own < left ? own : left)),
                                different, (int)has_known) - 1;
    } else if (number == 0 || !is_one_sum(tile - 5, tile)) {
      int64_t count = 1;
      while (number + count < a.count && is_one_sum(tile, tile + 5 * count)) count++;
      multiply_panel(&a, tile, count, start, end, room, &widened);
    }
  }
#if HAS_TILES
  if (has_tiles) close_tiles();
#endif
}
