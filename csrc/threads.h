/* A pool of threads a model, and the team that one forward call makes of it: tasks are handed out
 * one by one, the calling thread polls between its own. */
#ifndef Q35_THREADS_H
#define Q35_THREADS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

typedef struct q35_pool q35_pool;

/* A pool of `threads`, the calling one included; the others are born when first needed, and where
   the system gives fewer there are fewer. */
q35_pool *q35_pool_new(int threads, qwen35_status *status);
/* No call may be running in it. In a forked child, where only the memory came along, that is freed.
 */
void q35_pool_free(q35_pool *pool);

int q35_pool_threads(const q35_pool *pool);

/* Told of every matrix product before it is made: y = x W^T, x [T, cols] with row stride ldx. By
   the calling thread; nonzero stops the team. `weights` are those of the matrix. */
typedef int q35_observer(void *arg, const void *weights, const float *x, size_t ldx, size_t T,
                         size_t cols);

typedef struct q35_team {
    q35_pool *pool; /* or NULL: the caller alone */
    int threads;
    int (*poll)(void *arg); /* called by the calling thread every POLL_MS; nonzero stops the team;
                               may be NULL */
    void *poll_arg;
    double next_poll_s;    /* on the monotonic clock */
    q35_observer *observe; /* may be NULL */
    void *observe_arg;
    atomic_int cancelled;
} q35_team;

/* One task: `index` of `n_tasks`, run by `worker` in [0, threads). */
typedef void q35_task(void *arg, size_t index, int worker);

void q35_team_init(q35_team *team, q35_pool *pool, int (*poll)(void *), void *poll_arg);

/* Runs task(arg, 0 .. n_tasks-1) over the team and waits. `work` is roughly the multiply-adds of
   one task: where all of them together are done sooner than other threads wake, the caller does
   them alone; so it does while another call has the pool. Once cancelled, the remaining tasks are
   skipped; then the result is nonzero, and what the tasks write is incomplete. */
int q35_parallel(q35_team *team, size_t n_tasks, size_t work, q35_task *task, void *arg);

double q35_monotonic_s(void);

#endif
