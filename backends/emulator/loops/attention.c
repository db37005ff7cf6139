/* Attention of one query per head over pages of a cache. */

#include "vectors.h"

#define MOST_VECTORS (MOST_WIDTH / LANES)

/* What the multiplier sees of a vector. */
static inline floats seen_of(const uint16_t *x, uint16_t mask) {
  return (floats)(widened_bits(x) & (uint32_t)mask << 16);
}

static inline int64_t end_of_page(int64_t from, int64_t last, int64_t size) {
  const int64_t end = (from / size + 1) * size;
  return end < last ? end : last;
}

static inline int64_t page_at(const int32_t *page, int64_t number) {
  return page[number] < 0 ? 0 : page[number]; /* no page reads as page 0 */
}

/* Attention of `group` queries [group, width] over the positions from `first` to `last` of one
   head's pages, which lie `apart`. Made for each group and width in use, so that loops have no ends
   to care for. */
static inline __attribute__((always_inline)) void
attend_head(const float *q, const uint16_t *keys, const uint16_t *values, const int32_t *page,
            int64_t apart, float *out, float *scores, int64_t group, int64_t width, int64_t length,
            int64_t size, uint16_t mask, int64_t first, int64_t last) {
  const int vectors = (int)width / LANES;
  floats sums[MOST_QUERIES * MOST_VECTORS];
  int is_padding = 1; /* whose queries are zero: no need to look at keys */
  for (int64_t i = 0; i < group * width; i++) is_padding &= q[i] == 0;
  if (is_padding)
    for (int g = 0; g < group; g++)
      memset(scores + g * length + first, 0, (size_t)(last - first) * sizeof(float));
  for (int64_t from = first, to; !is_padding && from < last; from = to) {
    to = end_of_page(from, last, size);
    const uint16_t *key = keys + page_at(page, from / size) * apart + from % size * width;
    const uint16_t *next = to < last ? keys + page_at(page, to / size) * apart : key;
    const uint16_t *value = values + (key - keys);
    for (int64_t t = from; t < to; t++, key += width, value += width, next += width) {
      fetch(next, width);
      fetch(value, width);
      floats products[MOST_QUERIES] = {0};
      UNROLLED
      for (int j = 0; j < vectors; j++) {
        const floats own = seen_of(key + j * LANES, mask);
        UNROLLED
        for (int g = 0; g < group; g++) products[g] += loaded(q + g * width + j * LANES) * own;
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
    const uint16_t *value = values + page_at(page, from / size) * apart + from % size * width;
    const uint16_t *next = to < last ? values + page_at(page, to / size) * apart : value;
    for (int64_t t = from; t < to; t++, value += width, next += width) {
      if (is_padding) fetch(next, width);
      UNROLLED
      for (int j = 0; j < vectors; j++) {
        const floats own = seen_of(value + j * LANES, mask);
        UNROLLED
        for (int g = 0; g < group; g++) sums[g * vectors + j] += own * scores[g * length + t];
      }
    }
  }
  memcpy(out, sums, (size_t)(group * width) * sizeof(float));
}

void attend(const void *given, Share *share) {
  ARGUMENTS(attend);
  const int64_t length = a.pages * a.size, per_chip = a.users * a.heads, chips = a.rows * a.cols;
  const int64_t group = a.group, width = a.width;
  const uint16_t mask = (uint16_t)a.seen, q_mask = (uint16_t)a.q_seen;
  EACH_BY(pair, chips * per_chip, 1) {
    const int64_t chip = pair / per_chip, row = chip / a.cols, col = chip % a.cols;
    const int64_t user = pair / a.heads % a.users, head = pair % a.heads;
    if (a.chain[chip] != chip) continue; /* done with the first of its kind */
    const int64_t at = a.positions[row * a.at_r + col * a.at_c + user];
    const int32_t *page = a.table + row * a.table_r + col * a.table_c + user * a.pages;
    const int64_t first = a.window && at >= a.window ? at - a.window + 1 : 0, last = at + 1;
    const int64_t block = a.size * width, begin = (chip * a.blocks * a.heads + head) * block;
    float *room = a.room + share->thread * MOST_QUERIES * length;
    float own[MOST_QUERIES * MOST_WIDTH], found[MOST_QUERIES * MOST_WIDTH];
    int64_t some = 0, query[MOST_QUERIES];
    for (int64_t other = chip; other >= 0; other = a.chain[chips + other])
      for (int64_t g = 0; g < group; g++) {
        const int64_t in_chip = ((pair - chip * per_chip) * group + g) * width;
        const uint16_t *q = a.q + other / a.cols * a.q_r + other % a.cols * a.q_c + in_chip;
        query[some] = other * per_chip * group * width + in_chip;
        for (int64_t j = 0; j < width; j++)
          own[some * width + j] = widened(q[j] & q_mask) * (float)a.scale;
        if (++some < MOST_QUERIES && (g < group - 1 || a.chain[chips + other] >= 0)) continue;
#define HEAD(some, width)                                                                         \
  attend_head(own, a.keys + begin, a.values + begin, page, a.heads * block, found, room, some,    \
              width, length, a.size, mask, first, last)
        if (at < 0)
          memset(found, 0, sizeof found);
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
        for (int64_t i = 0; i < some; i++)
          for (int64_t j = 0; j < width; j += BLOCK)
            store_as(found + i * width + j, a.out + query[i] + j, 0);
        some = 0;
      }
  }
}
