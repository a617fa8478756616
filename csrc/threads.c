/* threads.c: the pool of threads. No other file starts or wakes any.
 *
 * q35_parallel -> the region is announced in one atomic word -> every worker takes the next index
 * from a shared counter until none is left -> the caller waits for those that took part. Taking
 * tasks one by one costs an atomic add each and evens out cores that are slowed by neighbours.
 *
 * Who waits looks at its word for some microseconds, as long as the pause between two regions of a
 * forward call, and then sleeps: a busy neighbour gets the core. OpenMP's own team spins for
 * milliseconds, or sleeps at once; beside a busy process it made a token take 20 times as long. */
#include "threads.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "mem.h"

#define POLL_S 0.02
#define LONE_WORK \
    ((size_t)128 << 10) /* multiply-adds: about 5 us of one core, the price of a wake-up */
#define LOOKS 2000      /* at a word before sleeping: 20 to 80 us */

/* A region's word: its number above, the workers that take part below. */
#define WORKER_BITS 12
#define WORKERS(word) ((word) & ((1u << WORKER_BITS) - 1))

struct q35_pool {
    pthread_mutex_t owner; /* held by the caller whose region runs */
    pid_t pid;             /* the process the workers live in */
    int threads, started;  /* wanted and born, the caller not counted in `started` */
    pthread_t *workers;
    /* the region under way */
    atomic_uint word;
    atomic_int running; /* workers that have not left it */
    atomic_int stop;
    atomic_size_t next; /* task */
    q35_team *team;
    q35_task *task;
    void *arg;
    size_t n_tasks;
    /* sleep */
    pthread_mutex_t bed;
    pthread_cond_t wake, done;
    atomic_int sleepers, caller_sleeps;
};

typedef struct birth {
    q35_pool *pool;
    unsigned index; /* of the worker, 1 .. */
    atomic_int read;
} birth;

double q35_monotonic_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void q35_team_init(q35_team *team, q35_pool *pool, int (*poll)(void *), void *poll_arg) {
    team->pool = pool;
    team->threads = pool ? pool->threads : 1;
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

static void look_away(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* ---- a worker's life ---- */

static unsigned next_word(q35_pool *pool, unsigned seen) {
    for (int i = 0; i < LOOKS; i++) {
        unsigned word = atomic_load_explicit(&pool->word, memory_order_acquire);
        if (word != seen) return word;
        look_away();
    }
    pthread_mutex_lock(&pool->bed);
    atomic_fetch_add(&pool->sleepers, 1);
    unsigned word;
    while ((word = atomic_load(&pool->word)) == seen) pthread_cond_wait(&pool->wake, &pool->bed);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->bed);
    return word;
}

static void leave_region(q35_pool *pool) {
    if (atomic_fetch_sub(&pool->running, 1) != 1 || !atomic_load(&pool->caller_sleeps)) return;
    pthread_mutex_lock(&pool->bed);
    pthread_cond_signal(&pool->done);
    pthread_mutex_unlock(&pool->bed);
}

static void *work(void *arg) {
    birth *born = arg;
    q35_pool *pool = born->pool;
    const unsigned index = born->index;
    unsigned seen = atomic_load(&pool->word);
    atomic_store(&born->read, 1);
    for (;;) {
        seen = next_word(pool, seen);
        if (atomic_load(&pool->stop)) return NULL;
        if (index >= WORKERS(seen)) continue;
        take_tasks(pool->team, &pool->next, pool->n_tasks, pool->task, pool->arg, (int)index);
        leave_region(pool);
    }
}

/* Signals are for the threads that Python knows. */
static void start_workers(q35_pool *pool) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool->started < pool->threads - 1) {
        birth born = {.pool = pool, .index = (unsigned)pool->started + 1};
        if (pthread_create(&pool->workers[pool->started], NULL, work, &born)) break;
        while (!atomic_load(&born.read)) look_away();
        pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* ---- the pool ---- */

q35_pool *q35_pool_new(int threads, qwen35_status *status) {
    const int most = 1 << (WORKER_BITS - 1);
    q35_pool *pool = q35_alloc(1, sizeof *pool, "thread pool", status);
    if (!pool) return NULL;
    pool->threads = threads < 1 ? 1 : threads < most ? threads : most;
    pool->workers = q35_alloc((size_t)pool->threads, sizeof *pool->workers, "threads", status);
    if (!pool->workers) {
        q35_free(pool);
        return NULL;
    }
    pool->pid = getpid();
    pthread_mutex_init(&pool->owner, NULL);
    pthread_mutex_init(&pool->bed, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    return pool;
}

int q35_pool_threads(const q35_pool *pool) { return pool->threads; }

/* A new region for workers 1 .. count - 1. */
static void announce(q35_pool *pool, unsigned count) {
    unsigned number = (atomic_load(&pool->word) >> WORKER_BITS) + 1;
    atomic_store(&pool->word, number << WORKER_BITS | count);
    if (!atomic_load(&pool->sleepers)) return;
    pthread_mutex_lock(&pool->bed);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->bed);
}

void q35_pool_free(q35_pool *pool) {
    if (!pool) return;
    if (pool->pid == getpid()) {
        atomic_store(&pool->stop, 1);
        announce(pool, 0);
        for (int i = 0; i < pool->started; i++) pthread_join(pool->workers[i], NULL);
        pthread_cond_destroy(&pool->wake);
        pthread_cond_destroy(&pool->done);
        pthread_mutex_destroy(&pool->bed);
        pthread_mutex_destroy(&pool->owner);
    }
    q35_free(pool->workers);
    q35_free(pool);
}

static void wait_for_workers(q35_pool *pool) {
    for (int i = 0; i < LOOKS; i++) {
        if (!atomic_load_explicit(&pool->running, memory_order_acquire)) return;
        look_away();
    }
    pthread_mutex_lock(&pool->bed);
    atomic_store(&pool->caller_sleeps, 1);
    while (atomic_load(&pool->running)) pthread_cond_wait(&pool->done, &pool->bed);
    atomic_store(&pool->caller_sleeps, 0);
    pthread_mutex_unlock(&pool->bed);
}

static void run_region(q35_team *team, int wanted, size_t n_tasks, q35_task *task, void *arg) {
    q35_pool *pool = team->pool;
    if (pool->started < pool->threads - 1) start_workers(pool);
    if (wanted > pool->started + 1) wanted = pool->started + 1;
    pool->team = team;
    pool->task = task;
    pool->arg = arg;
    pool->n_tasks = n_tasks;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->running, wanted - 1, memory_order_relaxed);
    announce(pool, (unsigned)wanted);
    take_tasks(team, &pool->next, n_tasks, task, arg, 0);
    wait_for_workers(pool);
}

int q35_parallel(q35_team *team, size_t n_tasks, size_t work_each, q35_task *task, void *arg) {
    q35_pool *pool = team->pool;
    size_t wanted = n_tasks < (size_t)team->threads ? n_tasks : (size_t)team->threads;
    int alone = wanted <= 1 || n_tasks * work_each < LONE_WORK || pool->pid != getpid();
    if (alone || pthread_mutex_trylock(&pool->owner)) {
        atomic_size_t next;
        atomic_init(&next, 0);
        take_tasks(team, &next, n_tasks, task, arg, 0);
        return atomic_load(&team->cancelled);
    }
    run_region(team, (int)wanted, n_tasks, task, arg);
    pthread_mutex_unlock(&pool->owner);
    return atomic_load(&team->cancelled);
}
