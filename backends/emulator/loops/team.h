/* How threads share out the pieces of a step, and how a list of steps is walked.

   No thread waits for another to arrive: a step is over when its pieces are, and a thread that other
   programs kept away finds the steps it missed done. So a busy machine slows a walk down by what it
   takes, no more. */

#ifndef TEAM_H
#define TEAM_H
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#ifdef __linux__
#include <sched.h>
#endif

/* Of one step; a cache line each, so that steps do not disturb each other. */
typedef struct {
  _Atomic int64_t next, done, refused;
  int64_t space[5];
} Counter;

/* What a thread has to know. */
typedef struct {
  Counter *counter;
  int64_t thread, threads;
} Share;

typedef void Loop(const void *given, Share *share);

typedef void Shared(void *given, int64_t thread, int64_t threads);

/* Do work as thread 0, and have up to `threads` - 1 others do it that come in time. */
void together(Shared *work, void *given, int64_t threads);

typedef struct {
  int64_t first, last;
} Range;

static inline void pause_a_little(int64_t times) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
#ifdef __linux__
  if (times > 500) sched_yield(); /* some 20 microseconds: somebody else may need the core */
#else
  (void)times;
#endif
}

#define SHARES 4 /* of what is left a thread takes one in so many, times threads, at once */

/* The next pieces of a step; 0 when all `count` are done, by whomever. Long stretches first, for
   memory is read best in order, and ever shorter ones, down to `grain`, so that all end together. */
static inline int take(Share *share, int64_t count, int64_t grain, Range *range) {
  Counter *counter = share->counter;
  if (range->last)
    atomic_fetch_add_explicit(&counter->done, range->last - range->first, memory_order_release);
  int64_t first = atomic_load_explicit(&counter->next, memory_order_relaxed), last = first;
  while (first < count) {
    const int64_t left = count - first, long_one = left / (SHARES * share->threads);
    const int64_t some = long_one > grain ? long_one : grain;
    last = share->threads == 1 || some > left ? count : first + some;
    if (atomic_compare_exchange_weak_explicit(&counter->next, &first, last, memory_order_relaxed,
                                              memory_order_relaxed)) {
      range->first = first, range->last = last;
      return 1;
    }
  }
  for (int64_t times = 0; atomic_load_explicit(&counter->done, memory_order_acquire) < count; times++)
    pause_a_little(times);
  return 0;
}

#define WORTH_SHARING 16384 /* values whose loop takes longer than telling another thread */
#define WORTH_TAKING 4096   /* that are taken at once */

/* How many pieces of `values` each to take at once. */
static inline int64_t grain_of(int64_t count, int64_t values) {
  if (count * values < WORTH_SHARING) return count > 0 ? count : 1;
  return values < WORTH_TAKING ? WORTH_TAKING / (values > 0 ? values : 1) : 1;
}

/* for every i below count, a thread's share of them; `values` says how large one is */
#define EACH(i, count, values)                                                                    \
  for (Range range = {0, 0}; take(share, count, grain_of(count, values), &range);)                \
    for (int64_t i = range.first; i < range.last; i++)
/* the same, `grain` at a time */
#define EACH_BY(i, count, grain)                                                                  \
  for (Range range = {0, 0}; take(share, count, grain, &range);)                                  \
    for (int64_t i = range.first; i < range.last; i++)

/* This step is for the caller to do in another way. */
static inline void refuse(Share *share) {
  atomic_store_explicit(&share->counter->refused, 1, memory_order_relaxed);
}

static inline int has_refused(Share *share) {
  return atomic_load_explicit(&share->counter->refused, memory_order_relaxed) != 0;
}

#define ARGUMENTS(name)                                                                           \
  struct name a;                                                                                  \
  memcpy(&a, given, sizeof a)

#endif
