/* Attention of prompts with products of bfloat16: scores are exact before they are summed, and their
   softmax weights go in as two bfloat16 numbers each, so 16 bits of them count. */

#include "amx.h"

#if HAS_TILES
#define ROWS EDGE
#else
#define ROWS (PROMPT_ROWS / 4 * 3)
#endif
#define VECTORS (TILE / LANES)
#define AT_ONCE (LANES != 16 ? 2 : ROWS == 12 ? 12 : 8) /* rows whose sums stay in registers */

void arrange_keys(const void *given, Share *share) {
  ARGUMENTS(arrange_keys);
  const uint32_t mask = (uint32_t)a.mask | (uint32_t)a.mask << 16;
  EACH(piece, a.matrices * a.tiles, TILE * a.width) {
    const int64_t first = piece % a.tiles * TILE;
    const uint16_t *x = a.x + piece / a.tiles * a.length * a.width;
    uint32_t *out = a.out + piece * a.half * TILE;
    for (int64_t j = 0; j < TILE; j++)
      for (int64_t p = 0; p < a.half; p++) {
        uint32_t pair = 0;
        if (first + j < a.length) memcpy(&pair, x + (first + j) * a.width + 2 * p, sizeof pair);
        out[p * TILE + j] = pair & mask;
      }
  }
}

void arrange_values(const void *given, Share *share) {
  ARGUMENTS(arrange_values);
  const uint32_t mask = (uint32_t)a.mask | (uint32_t)a.mask << 16;
  EACH(piece, a.matrices * a.pairs, 2 * a.width) {
    const int64_t matrix = piece / a.pairs, pair = piece % a.pairs, at = 2 * pair;
    const uint16_t *x = a.x + (matrix * a.length + at) * a.width;
    for (int64_t c = 0; c < a.width; c++) {
      const uint32_t low = at < a.length ? x[c] : 0;
      const uint32_t high = at + 1 < a.length ? x[a.width + c] : 0;
      uint32_t *tile = a.out + (matrix * a.columns + c / TILE) * a.pairs * TILE;
      tile[pair * TILE + c % TILE] = (low | high << 16) & mask;
    }
  }
}

/* Sums [ROWS, VECTORS] of rows of pairs, `apart` from each other, with a tile of as many pairs. */
static inline __attribute__((always_inline)) void
add_products(floats *sums, const uint16_t *x, int64_t apart, const uint32_t *tile, int64_t pairs) {
  for (int row = 0; row < ROWS; row += AT_ONCE) {
    floats own[AT_ONCE][VECTORS];
    memcpy(own, sums + row * VECTORS, sizeof own);
    for (int64_t k = 0; k < pairs; k++) {
      words weights[VECTORS];
      memcpy(weights, tile + k * TILE, sizeof weights);
      UNROLLED
      for (int i = 0; i < AT_ONCE; i++) {
        uint32_t pair;
        memcpy(&pair, x + (row + i) * apart + 2 * k, sizeof pair);
        UNROLLED
        for (int v = 0; v < VECTORS; v++) own[i][v] = plus_pairs(own[i][v], weights[v], pair);
      }
    }
    memcpy(sums + row * VECTORS, own, sizeof own);
  }
}

/* Sums [ROWS, TILE], `to` apart, of one or two sets of rows of pairs with a tile. */
static void multiply_rows(const uint16_t *x, const uint16_t *more, int64_t apart,
                          const uint32_t *tile, int64_t pairs, float *out, int64_t to) {
#if HAS_TILES
  if (may_use_tiles) {
    clear_sums();
    add_tiles(x, apart, tile, pairs);
    if (more) add_tiles(more, apart, tile, pairs);
    store_sums(out, to);
    return;
  }
#endif
  floats sums[ROWS * VECTORS];
  memset(sums, 0, sizeof sums);
  add_products(sums, x, apart, tile, pairs);
  if (more) add_products(sums, more, apart, tile, pairs);
  for (int i = 0; i < ROWS; i++) memcpy(out + i * to, sums + i * VECTORS, TILE * sizeof(float));
}

/* Softmax of scores from `low` to `high`, not yet divided by their sum, as two bfloat16 numbers
   each; zeros up to `end`. Returns one over the sum. */
static float weigh(float *scores, int64_t low, int64_t high, int64_t begin, int64_t end, float scale,
                   uint16_t *large, uint16_t *small) {
  float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
  for (int64_t j = low; j < high; j++) most = scores[j] > most ? scores[j] : most;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = low; j < high; j++) {
    scores[j] = exponential((scores[j] - most) * scale);
    sum += scores[j];
  }
  for (int64_t j = begin; j < low; j++) scores[j] = 0;
  for (int64_t j = high; j < end; j++) scores[j] = 0;
  for (int64_t j = begin; j < end; j += LANES) {
    const floats all = loaded(scores + j);
    const halves first = narrowed_all(all);
    memcpy(large + j, &first, sizeof first);
    const halves rest = narrowed_all(all - widened_all(large + j));
    memcpy(small + j, &rest, sizeof rest);
  }
  return 1.0f / sum;
}

static void attend_rows(const struct attend_prompt *a, int64_t matrix, int64_t row, float *room) {
  const int64_t some = a->length - row < ROWS ? a->length - row : ROWS, wide = a->tiles * TILE;
  const int64_t first_at = a->start + row, last_at = first_at + some - 1;
  const int64_t high = a->is_causal && last_at + 1 < a->total ? last_at + 1 : a->total;
  const int64_t low = a->window && first_at >= a->window ? first_at - a->window + 1 : 0;
  const int64_t from = low / TILE, to = (high + TILE - 1) / TILE, begin = from * TILE;
  const uint32_t *keys = a->keys + matrix / a->group * a->tiles * a->half * TILE;
  const uint32_t *values = a->values + matrix / a->group * a->columns * a->pairs * TILE;
  uint16_t *large = (uint16_t *)(room + ROWS * wide), *small = large + ROWS * wide;
  uint32_t q[ROWS * MOST_WIDTH / 2];
  const uint32_t mask = (uint32_t)a->q_seen | (uint32_t)a->q_seen << 16;
  float share[ROWS];
  for (int i = 0; i < ROWS; i++) { /* rows after the last repeat it, and are not kept */
    const int64_t own = row + (i < some ? i : some - 1);
    memcpy(q + i * a->half, a->q + (matrix * a->length + own) * a->width, (size_t)a->width * 2);
  }
  for (int64_t j = 0; j < ROWS * a->half; j++) q[j] &= mask;
  for (int64_t t = from; t < to; t++)
    multiply_rows((const uint16_t *)q, 0, a->width, keys + t * a->half * TILE, a->half,
                  room + t * TILE, wide);
  for (int i = 0; i < ROWS; i++) {
    const int64_t at = first_at + (i < some ? i : some - 1);
    const int64_t last = a->is_causal && at + 1 < a->total ? at + 1 : a->total;
    const int64_t first = a->window && at >= a->window ? at - a->window + 1 : 0;
    share[i] = weigh(room + i * wide, first, last, begin, to * TILE, (float)a->scale,
                     large + i * wide, small + i * wide);
  }
  for (int64_t c = 0; c < a->columns; c++) {
    float found[ROWS * TILE];
    const uint32_t *tile = values + (c * a->pairs + begin / 2) * TILE;
    const int64_t pairs = (to - from) * TILE / 2;
    multiply_rows(large + begin, small + begin, wide, tile, pairs, found, TILE);
    for (int64_t i = 0; i < some; i++) {
      uint16_t *out = a->out + (matrix * a->length + row + i) * a->width + c * TILE;
      for (int64_t j = 0; j < TILE; j++) found[i * TILE + j] *= share[i];
      for (int64_t j = 0; j < TILE; j += BLOCK) store_as(found + i * TILE + j, out + j, 0);
    }
  }
}

void attend_prompt(const void *given, Share *share) {
  ARGUMENTS(attend_prompt);
  const int64_t blocks = (a.length + ROWS - 1) / ROWS;
#if HAS_TILES
  if (may_use_tiles) open_tiles();
#endif
  EACH_BY(job, a.matrices * blocks, 1) /* the longest rows first */
    attend_rows(&a, job % a.matrices, (blocks - 1 - job / a.matrices) * ROWS,
                a.room + share->thread * a.numbers);
#if HAS_TILES
  if (may_use_tiles) close_tiles();
#endif
}
