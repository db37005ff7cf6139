/* Walking a list of steps: the one way into the loops, for a single one as for a whole replay. */

#include "vectors.h"

int64_t lanes(void) { return LANES; }

/* Whether the processor sums products of 16-bit integers in pairs. */
int64_t sums_pairs(void) {
#ifdef __AVX512VNNI__
  return 1;
#else
  return 0;
#endif
}

static int64_t walk_share(const int64_t *words, const int64_t *starts, int64_t first, int64_t count,
                          Share *share, Counter *counters) {
  int64_t step = first;
  for (; step < count; step++) {
    const int64_t *own = words + starts[step];
    Loop *loop;
    if (!own[0]) break; /* the caller's */
    memcpy(&loop, own, sizeof loop);
    share->counter = counters + step;
    loop(own + 1, share);
    if (atomic_load_explicit(&share->counter->refused, memory_order_relaxed)) break;
  }
  return step;
}

/* Steps from `first` on, by a team of threads: for each, at its start in `words`, the address of its
   loop and what it takes; 0 where the caller has to do it. `counters` [count, 8] is room. Returns
   the first step that was not done, by a loop that refused or for want of one, or `count`. */
int64_t walk(const int64_t *words, const int64_t *starts, int64_t *counters, int64_t first,
             int64_t count, int64_t threads) {
  Counter *own = (Counter *)counters;
  int64_t reached = count;
  memset(own + first, 0, (size_t)(count - first) * sizeof *own);
  if (threads <= 1) {
    Share alone = {own, 0, 1};
    return walk_share(words, starts, first, count, &alone, own);
  }
#pragma omp parallel num_threads((int)threads)
  {
    Share share = {own, own_thread(), own_threads()};
    const int64_t found = walk_share(words, starts, first, count, &share, own);
    if (share.thread == 0) reached = found;
  }
  return reached;
}
