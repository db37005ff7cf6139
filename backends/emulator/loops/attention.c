/* Attention of one query per head over pages of a cache. */

#include "blocks.h"

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

/* What is there of a vector's worth of scores; others are nothing beside them. */
static inline floats scores_at(const float *scores, int64_t count) {
  if (count >= LANES) return loaded(scores);
  floats own = (floats){0} - INFINITY;
  memcpy(&own, scores, (size_t)count * sizeof(float));
  return own;
}

/* Softmax of scores [count], in place. */
static inline void make_weights(float *scores, int64_t count) {
  floats largest = (floats){0} - INFINITY, sum = {0};
  for (int64_t t = 0; t < count; t += LANES) {
    const floats own = scores_at(scores + t, count - t);
    largest = (floats)chosen((words)own, (words)largest, (words)(own > largest));
  }
  float most = largest[0];
  for (int i = 1; i < LANES; i++) most = largest[i] > most ? largest[i] : most;
  for (int64_t t = 0; t < count; t += LANES) {
    const floats own = exponentials(scores_at(scores + t, count - t) - most);
    sum += own;
    memcpy(scores + t, &own, (size_t)(count - t < LANES ? count - t : LANES) * sizeof(float));
  }
  const float all = total(sum);
  for (int64_t t = 0; t < count; t++) scores[t] /= all;
}

/* Attention of `group` queries [group, width] over the positions from `first` to `last` of one
   head's pages, which lie `apart`; `after`: the keys that are read next. Made for each group and
   width in use, so that loops have no ends to care for. */
static inline __attribute__((always_inline)) void
attend_head(const float *q, const uint16_t *keys, const uint16_t *values, const int32_t *page,
            int64_t apart, float *out, float *scores, int64_t group, int64_t width, int64_t length,
            int64_t size, uint16_t mask, int64_t first, int64_t last, const uint16_t *after) {
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
    const uint16_t *next = to < last ? keys + page_at(page, to / size) * apart : after;
    const uint16_t *value = values + (key - keys);
    int64_t t = from;
    for (; t + 4 <= to; t += 4, key += 4 * width, value += 4 * width, next += 4 * width) {
      fetch(next, 4 * width);
      fetch(value, 4 * width);
      floats products[MOST_QUERIES][4] = {0};
      UNROLLED
      for (int j = 0; j < vectors; j++)
        UNROLLED
        for (int i = 0; i < 4; i++) {
          const floats own = seen_of(key + i * width + j * LANES, mask);
          UNROLLED
          for (int g = 0; g < group; g++) products[g][i] += loaded(q + g * width + j * LANES) * own;
        }
      for (int g = 0; g < group; g++) {
        const four found = totals(products[g]);
        memcpy(scores + g * length + t, &found, sizeof found);
      }
    }
    for (; t < to; t++, key += width)
      for (int g = 0; g < group; g++) {
        floats product = {0};
        for (int j = 0; j < vectors; j++)
          product += loaded(q + g * width + j * LANES) * seen_of(key + j * LANES, mask);
        scores[g * length + t] = total(product);
      }
  }
  for (int g = 0; g < group; g++) make_weights(scores + g * length + first, last - first);
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

/* Of one user's head on a chip: where its keys begin and its queries lie. */
typedef struct {
  const int32_t *page;
  int64_t at, first, begin, chip, query;
} Place;

static inline Place place_of(const struct attend *a, int64_t number) {
  const int64_t per_chip = a->users * a->heads, chip = number / per_chip;
  const int64_t row = chip / a->cols, col = chip % a->cols, in_chip = number % per_chip;
  const int64_t user = in_chip / a->heads, head = in_chip % a->heads;
  Place p;
  p.chip = chip;
  p.at = a->positions[row * a->at_r + col * a->at_c + user];
  p.page = a->table + row * a->table_r + col * a->table_c + user * a->pages;
  p.first = a->window && p.at >= a->window ? p.at - a->window + 1 : 0;
  p.begin = chip * a->apart + head * a->size * a->width;
  p.query = in_chip * a->group * a->width;
  return p;
}
/* A query as it is multiplied; 0 if all of it is. */
static inline int take_query(const struct attend *a, int64_t chip, int64_t query, float *own) {
  const uint16_t *q = a->q + chip / a->cols * a->q_r + chip % a->cols * a->q_c + query;
  uint16_t some = 0;
  for (int64_t j = 0; j < a->width; j++) {
    some |= q[j] & (uint16_t)a->q_seen;
    own[j] = widened(q[j] & (uint16_t)a->q_seen) * (float)a->scale;
  }
  return (some & 0x7FFF) != 0;
}

void attend(const void *given, Share *share) {
  ARGUMENTS(attend);
  const int64_t length = a.pages * a.size, per_chip = a.users * a.heads, chips = a.rows * a.cols;
  const int64_t width = a.width, whole = per_chip * a.group * width;
  EACH_BY(number, chips * per_chip, 1) {
    const Place p = place_of(&a, number);
    if (a.chain[p.chip] < 0) /* values are zeros */
      memset(a.out + p.chip * whole + p.query, 0, (size_t)(a.group * width) * sizeof *a.out);
    if (a.chain[p.chip] != p.chip) continue; /* done with the first of its kind */
    const Place then = number + 1 < chips * per_chip ? place_of(&a, number + 1) : p;
    const uint16_t *after = a.keys + p.begin;
    if (then.at >= 0)
      after = a.keys + then.begin + page_at(then.page, then.first / a.size) * a.heads * a.size * width;
    float *room = a.room + share->thread * MOST_QUERIES * length;
    float own[MOST_QUERIES * MOST_WIDTH], found[MOST_QUERIES * MOST_WIDTH];
    int64_t some = 0, query[MOST_QUERIES], idle = -1;
    for (int64_t other = p.chip; other >= 0; other = a.chain[chips + other])
      for (int64_t g = 0; g < a.group; g++) {
        const int is_last = g == a.group - 1 && a.chain[chips + other] < 0;
        query[some] = other * whole + p.query + g * width;
        if (take_query(&a, other, p.query + g * width, own + some * width))
          some++;
        else if (idle < 0) /* others of zeros, as of heads that fill up a chip, are like the first */
          idle = query[some++];
        if (!some || (some < MOST_QUERIES && !is_last)) continue;
#define HEAD(some, width)                                                                         \
  attend_head(own, a.keys + p.begin, a.values + p.begin, p.page, a.heads * a.size * width, found, \
              room, some, width, length, a.size, (uint16_t)a.seen, p.first, p.at + 1, after)
        if (p.at < 0)
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
          store_as(found + i * width, width / BLOCK, a.out + query[i], 0);
        some = 0;
      }
    for (int64_t other = p.chip; idle >= 0 && other >= 0; other = a.chain[chips + other])
      for (int64_t g = 0; g < a.group; g++) {
        uint16_t *out = a.out + other * whole + p.query + g * width;
        if (out != a.out + idle && !take_query(&a, other, p.query + g * width, own))
          memcpy(out, a.out + idle, (size_t)width * sizeof *out);
      }
  }
}
