/* machine_limits.c: what the processor can do, the roofs of all figures. machine_limits.py compiles
 * it for this very processor (-march=native) and reads what it prints.
 *
 * threads -> each reads a buffer of its own, or multiplies in registers alone -> the best of RUNS
 * -> one line of JSON, in bytes and operations (a multiply-add is two) a second; null where the
 * processor has no such instruction. Nothing of qwen35 is in it. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define RUNS 7
#define MAX_THREADS 1024
#define READ_BYTES ((size_t)256 << 20) /* of all threads together: beyond any cache */
#define READ_LEAST ((size_t)32 << 20)  /* of each */
#define STREAMS 4
#define AHEAD_BYTES 512
#define HUGE_PAGE ((size_t)2 << 20)
#define STEPS 2000000 /* of a loop of register arithmetic */
#define CHAINS 12     /* independent sums: latency times width, and no more registers */

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
typedef float floats __attribute__((vector_size(WIDTH)));
typedef uint64_t words __attribute__((vector_size(WIDTH)));

/* Returns what was done (bytes or operations); `sink` keeps the compiler from leaving it out. */
typedef double work_fn(const void *buffer, size_t size, volatile double *sink);

/* In several places at once, some lines ahead: what the memory gives, not what one stream gets. */
static double read_all(const void *buffer, size_t size, volatile double *sink) {
    const words *p = buffer;
    const size_t n = size / sizeof *p / STREAMS;
    words sum[STREAMS] = {0};
    for (size_t i = 0; i < n; i++) {
        for (int c = 0; c < STREAMS; c++) {
            sum[c] |= p[c * n + i];
            __builtin_prefetch((const char *)(p + c * n + i) + AHEAD_BYTES);
        }
    }
    for (int c = 1; c < STREAMS; c++) sum[0] |= sum[c];
    *sink = (double)sum[0][0];
    return (double)size;
}

static double multiply_f32(const void *buffer, size_t size, volatile double *sink) {
    (void)size;
    const float one = ((const uint8_t *)buffer)[0] ? 0.5f : 2.0f; /* known at run time alone */
    floats sum[CHAINS], a = {0}, b = {0};
    a += one, b += one;
    memcpy(sum, buffer, sizeof sum); /* chains that look alike would be made one */
    for (long i = 0; i < STEPS; i++)
        for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * a + b;
    for (int c = 1; c < CHAINS; c++) sum[0] += sum[c];
    *sink = sum[0][0];
    return 2.0 * STEPS * CHAINS * (WIDTH / sizeof(float));
}

/* One step of int8: `sum` += products of bytes of a and b; HAS_INT8 counts its multiply-adds. */
#if defined(__AVX512VNNI__)
typedef __m512i bytes;
#define HAS_INT8 64
static inline bytes step_int8(bytes sum, bytes a, bytes b) {
    return _mm512_dpbusd_epi32(sum, a, b);
}
#elif defined(__AVXVNNI__)
typedef __m256i bytes;
#define HAS_INT8 32
static inline bytes step_int8(bytes sum, bytes a, bytes b) {
    return _mm256_dpbusd_avx_epi32(sum, a, b);
}
#elif defined(__AVX2__)
typedef __m256i bytes;
#define HAS_INT8 32
static inline bytes step_int8(bytes sum, bytes a, bytes b) {
    __asm__ volatile("" : "+x"(a)); /* or the product would be made once, before the loop */
    __m256i pairs = _mm256_maddubs_epi16(a, b);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int32x4_t bytes;
#define HAS_INT8 16
static inline bytes step_int8(bytes sum, bytes a, bytes b) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
#endif

#ifdef HAS_INT8
static double multiply_int8(const void *buffer, size_t size, volatile double *sink) {
    (void)size;
    bytes sum[CHAINS], a, b;
    memcpy(sum, buffer, sizeof sum);
    memcpy(&a, buffer, sizeof a);
    memcpy(&b, buffer, sizeof b);
    for (long i = 0; i < STEPS; i++)
        for (int c = 0; c < CHAINS; c++) sum[c] = step_int8(sum[c], a, b);
    int32_t first[CHAINS];
    for (int c = 0; c < CHAINS; c++) memcpy(&first[c], &sum[c], sizeof *first);
    for (int c = 0; c < CHAINS; c++) *sink = first[c];
    return 2.0 * STEPS * CHAINS * HAS_INT8;
}
#endif

typedef struct member {
    work_fn *work;
    void *buffer;
    size_t size;
    pthread_barrier_t *gate;
    double done, start_s, end_s;
} member;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *run(void *arg) {
    member *m = arg;
    volatile double sink;
    pthread_barrier_wait(m->gate);
    m->start_s = now_s();
    m->done = m->work(m->buffer, m->size, &sink);
    m->end_s = now_s();
    return NULL;
}

/* Of all threads together, from the first start to the last end; 0 where threads cannot be had. */
static double best_rate(work_fn *work, member *team, int threads) {
    double best = 0;
    for (int r = 0; r < RUNS; r++) {
        pthread_t id[MAX_THREADS];
        pthread_barrier_t gate;
        pthread_barrier_init(&gate, NULL, (unsigned)threads);
        for (int t = 0; t < threads; t++) {
            team[t].work = work, team[t].gate = &gate;
            if (pthread_create(&id[t], NULL, run, &team[t])) return 0;
        }
        double done = 0, start = 1e300, end = 0;
        for (int t = 0; t < threads; t++) {
            pthread_join(id[t], NULL);
            done += team[t].done;
            if (team[t].start_s < start) start = team[t].start_s;
            if (team[t].end_s > end) end = team[t].end_s;
        }
        pthread_barrier_destroy(&gate);
        if (done / (end - start) > best) best = done / (end - start);
    }
    return best;
}

int main(int argc, char **argv) {
    static member team[MAX_THREADS];
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    if (threads < 1 || threads > MAX_THREADS) return 2;
    size_t size = READ_BYTES / (size_t)threads / HUGE_PAGE * HUGE_PAGE;
    if (size < READ_LEAST) size = READ_LEAST;
    for (int t = 0; t < threads; t++) {
        team[t].size = size;
        team[t].buffer = aligned_alloc(HUGE_PAGE, size);
        if (!team[t].buffer) return 1;
#ifdef MADV_HUGEPAGE
        madvise(team[t].buffer, size, MADV_HUGEPAGE);
#endif
        memset(team[t].buffer, 1, size);
    }
    printf("{\"read\": %.6g, \"float32\": %.6g, ", best_rate(read_all, team, threads),
           best_rate(multiply_f32, team, threads));
#ifdef HAS_INT8
    printf("\"int8\": %.6g}\n", best_rate(multiply_int8, team, threads));
#else
    printf("\"int8\": null}\n");
#endif
    return 0;
}
