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

typedef struct {
  const int64_t *words, *starts;
  Counter *counters;
  int64_t first, count, reached;
} Walk;

static void walk_share(void *given, int64_t thread, int64_t threads) {
  Walk *walk = given;
  Share share = {walk->counters, thread, threads};
  int64_t step = walk->first;
  for (; step < walk->count; step++) {
    const int64_t *own = walk->words + walk->starts[step];
    Loop *loop;
    if (!own[0]) break; /* the caller's */
    memcpy(&loop, own, sizeof loop);
    share.counter = walk->counters + step;
    loop(own + 1, &share);
    if (has_refused(&share)) break;
  }
  if (thread == 0) walk->reached = step;
}

/* Steps from `first` on, by a team of threads: for each, at its start in `words`, the address of its
   loop and what it takes; 0 where the caller has to do it. `counters` [count, 8] is room. Returns
   the first step that was not done, by a loop that refused or for want of one, or `count`. */
int64_t walk(const int64_t *words, const int64_t *starts, int64_t *counters, int64_t first,
             int64_t count, int64_t threads) {
  Walk own = {words, starts, (Counter *)counters, first, count, first};
  memset(own.counters + first, 0, (size_t)(count - first) * sizeof *own.counters);
  together(walk_share, &own, threads);
  return own.reached;
}
