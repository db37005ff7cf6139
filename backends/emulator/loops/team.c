/* Threads that wait for work, and share it with whoever has some.

   Nobody waits for a thread that has not come: one that other programs keep away finds the seats of
   a job closed. OpenMP's threads all have to arrive at its end, which beside other work takes a turn
   of the scheduler, some milliseconds, for every step. */

#include <pthread.h>
#include <signal.h>

#include "team.h"

#define MOST_JOBS 16
#define MOST_WORKERS 255
#define LOOKS 2000 /* for the next job before sleeping: tens of microseconds */

/* A thread comes in by taking one of `seats`; the owner closes what is left and waits for `left`. */
typedef struct {
  _Atomic int64_t seats, left;
  Shared *work;
  void *given;
  int64_t threads;
  _Atomic int is_owned;
  int64_t space[2];
} Job;

static Job jobs[MOST_JOBS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static int64_t workers; /* under the lock */
static _Atomic int64_t sleeping, most_wanted;

/* Sit down at a job, if there is one with a seat, and work on it. */
static int help(void) {
  for (int i = 0; i < MOST_JOBS; i++) {
    Job *job = jobs + i;
    int64_t seat = atomic_load(&job->seats);
    while (seat > 0 && !atomic_compare_exchange_weak(&job->seats, &seat, seat - 1)) continue;
    if (seat <= 0) continue;
    job->work(job->given, seat, job->threads);
    atomic_fetch_add(&job->left, 1);
    return 1;
  }
  return 0;
}

static int has_seats(void) {
  for (int i = 0; i < MOST_JOBS; i++)
    if (atomic_load(&jobs[i].seats) > 0) return 1;
  return 0;
}

static void *wait_for_work(void *nothing) {
  for (;;) {
    for (int64_t look = 0; look < LOOKS; look++)
      if (help())
        look = -1;
      else
        pause_a_little(0);
    pthread_mutex_lock(&lock);
    atomic_fetch_add(&sleeping, 1);
    while (!has_seats()) pthread_cond_wait(&more, &lock);
    atomic_fetch_sub(&sleeping, 1);
    pthread_mutex_unlock(&lock);
  }
  return nothing;
}

/* A child of fork has no threads but its own. */
static void forget(void) {
  memset(jobs, 0, sizeof jobs);
  pthread_mutex_init(&lock, 0);
  pthread_cond_init(&more, 0);
  workers = 0;
  atomic_store(&sleeping, 0);
  atomic_store(&most_wanted, 0);
}

static __attribute__((constructor)) void prepare(void) { pthread_atfork(0, 0, forget); }

/* Wake who sleeps, and see that there are threads enough. Signals are for the program's own. */
static void call_workers(int64_t count) {
  pthread_mutex_lock(&lock);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (; workers < count && workers < MOST_WORKERS; workers++) {
    pthread_t thread;
    if (pthread_create(&thread, 0, wait_for_work, 0)) break; /* then fewer do it */
    pthread_detach(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, 0);
  pthread_cond_broadcast(&more);
  pthread_mutex_unlock(&lock);
}

void together(Shared *work, void *given, int64_t threads) {
  Job *job = 0;
  for (int i = 0; threads > 1 && i < MOST_JOBS && !job; i++)
    if (!atomic_exchange(&jobs[i].is_owned, 1)) job = jobs + i;
  if (!job) {
    work(given, 0, 1);
    return;
  }
  job->work = work;
  job->given = given;
  job->threads = threads;
  atomic_store(&job->left, 0);
  atomic_store(&job->seats, threads - 1);
  if (atomic_load(&sleeping) || atomic_load(&most_wanted) < threads) {
    call_workers(threads - 1);
    if (atomic_load(&most_wanted) < threads) atomic_store(&most_wanted, threads);
  }
  work(given, 0, threads);
  const int64_t came = threads - 1 - atomic_exchange(&job->seats, 0);
  for (int64_t times = 0; atomic_load(&job->left) < came; times++) pause_a_little(times);
  atomic_store(&job->is_owned, 0);
}
