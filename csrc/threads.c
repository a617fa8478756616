/* threads.c: OpenMP seen as one function. No other file knows OpenMP.
 *
 * q35_parallel -> every worker takes the next index from a shared counter until none is left ->
 * barrier. Taking tasks one by one costs an atomic add each and evens out cores that are slowed by
 * neighbours. */
#include "threads.h"

#include <time.h>
#include <unistd.h>

#define POLL_S 0.02
#define LONE_WORK \
    ((size_t)128 << 10) /* multiply-adds: about 5 us of one core, the price of a wake-up */

double q35_monotonic_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void q35_team_init(q35_team *team, int threads, int (*poll)(void *), void *poll_arg) {
    team->threads = threads < 1 ? 1 : threads;
    team->poll = poll;
    team->poll_arg = poll_arg;
    team->next_poll_s = q35_monotonic_s() + POLL_S;
    team->observe = NULL;
    team->observe_arg = NULL;
    atomic_init(&team->cancelled, 0);
}

static void maybe_poll(q35_team *team) {
    if (!team->poll) return;
    double now = q35_monotonic_s();
    if (now < team->next_poll_s) return;
    if (team->poll(team->poll_arg)) atomic_store(&team->cancelled, 1);
    team->next_poll_s = q35_monotonic_s() + POLL_S;
}

static void take_tasks(q35_team *team, atomic_size_t *next, size_t n_tasks, q35_task *task,
                       void *arg, int worker) {
    while (!atomic_load_explicit(&team->cancelled, memory_order_relaxed)) {
        size_t index = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
        if (index >= n_tasks) break;
        task(arg, index, worker);
        if (worker == 0) maybe_poll(team);
    }
}

#ifdef _OPENMP
#include <omp.h>
#endif

/* OpenMP's workers do not follow a fork, and the thread that forked would wait for them for ever in
   the child. So each thread remembers in which process it first had a team, and works alone in any
   other. Threads born in the child have workers of their own. */
static _Thread_local pid_t team_pid;

int q35_parallel(q35_team *team, size_t n_tasks, size_t work, q35_task *task, void *arg) {
    atomic_size_t next;
    atomic_init(&next, 0);
    size_t wanted = n_tasks < (size_t)team->threads ? n_tasks : (size_t)team->threads;
    if (wanted > 1 && !team_pid) team_pid = getpid();
    if (wanted <= 1 || n_tasks * work < LONE_WORK || team_pid != getpid()) {
        take_tasks(team, &next, n_tasks, task, arg, 0);
        return atomic_load(&team->cancelled);
    }
#ifdef _OPENMP
#pragma omp parallel num_threads((int)wanted)
    take_tasks(team, &next, n_tasks, task, arg, omp_get_thread_num());
#else
    take_tasks(team, &next, n_tasks, task, arg, 0);
#endif
    return atomic_load(&team->cancelled);
}
