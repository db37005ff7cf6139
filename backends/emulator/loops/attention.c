/* Attention of one query per head over pages of a cache. */

#include "vectors.h"

#define MOST_QUERIES 4 /* whose vectors stay in registers for heads of 64 */
#define MOST_WIDTH 256 /* of a head */
#define MOST_VECTORS (MOST_WIDTH / LANES)

/* What the multiplier sees of a vector. */
static inline floats seen_of(const uint16_t *x, uint16_t mask) {
  return (floats)(widened_bits(x) & (uint32_t)mask << 16);
}

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
  const int vectors = (int)width / LANES;
  floats sums[MOST_QUERIES * MOST_VECTORS];
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
    const uint16_t *value = values + (page[from / size] * size + from % size) * width;
    const uint16_t *next = to < last ? values + page[to / size] * size * width : value;
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

/* Decode attention: queries [chips, users, heads, group, width], scaled by `scale`, over keys and
   values in pages [*, size, width], of which `pages` [chips, users, heads, count] are looked at.
   `hidden` [chips, users, length], length = count * size, is 0 over the one stretch where a user
   looks; `idle` [chips, users] (or NULL) marks those that get zeros; `q_seen` and `seen` are the
   multiplier's bits of queries, and of keys and values. `links` [2, chips] says which chips have
   the same pages: the first of them, and the next one (or -1). `scores` [threads, MOST_QUERIES,
   length] is room to work in. */
void attend(const uint16_t *q, const uint16_t *keys, const uint16_t *values, const int64_t *pages,
            const float *hidden, const uint8_t *idle, const int64_t *links, uint16_t *out,
            float *scores, int64_t chips, int64_t users, int64_t heads, int64_t group,
            int64_t width, int64_t count, int64_t size, float scale, int64_t q_seen, int64_t seen,
            int64_t threads) {
  const int64_t length = count * size, per_chip = users * heads;
  const uint16_t mask = (uint16_t)seen, q_mask = (uint16_t)q_seen;
  DEALT_OUT(threads)
  for (int64_t pair = 0; pair < chips * per_chip; pair++) {
    const int64_t chip = pair / per_chip, user = pair / heads, *page = pages + pair * count;
    if (links[chip] != chip) continue; /* done with the first of its kind */
    float *room = scores + own_thread() * MOST_QUERIES * length;
    const float *unseen = hidden + user * length;
    int64_t first = 0, last = length;
    while (first < last && unseen[first] != 0) first++;
    while (last > first && unseen[last - 1] != 0) last--;
    float own[MOST_QUERIES * MOST_WIDTH], found[MOST_QUERIES * MOST_WIDTH];
    int64_t some = 0, query[MOST_QUERIES];
    for (int64_t at = chip; at >= 0; at = links[chips + at])
      for (int64_t g = 0; g < group; g++) {
        query[some] = ((pair + (at - chip) * per_chip) * group + g) * width;
        for (int64_t j = 0; j < width; j++)
          own[some * width + j] = widened(q[query[some] + j] & q_mask) * scale;
        if (++some < MOST_QUERIES && (g < group - 1 || links[chips + at] >= 0)) continue;
#define HEAD(some, width)                                                                         \
  attend_head(own, keys, values, page, found, room, some, width, length, size, mask, first, last)
        if (idle && idle[user])
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
            store_as(found + i * width + j, out + query[i] + j, 0);
        some = 0;
      }
  }
}
