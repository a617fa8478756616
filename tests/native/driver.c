/* driver.c: kernels and products without Python, so that tests reach those of a processor that is
 * only emulated: requests on the standard input -> memory beside a forbidden page -> csrc/trial.c
 * -> answers on the standard output. tests/kernels_under_test.py is the other end, and has the
 * protocol. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../csrc/trial.h"

#define MOST Q35_TRIAL_ARRAYS

/* The part of OpenBLAS that linear.c is linked against: c [m, n] = a [m, k] b [n, k]^T + beta c. */
void scipy_openblas_set_num_threads(int threads);
void scipy_openblas_set_num_threads(int threads) { (void)threads; }
void scipy_cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                       const float *a, int lda, const float *b, int ldb, float beta, float *c,
                       int ldc);
void scipy_cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                       const float *a, int lda, const float *b, int ldb, float beta, float *c,
                       int ldc) {
    (void)order, (void)trans_a, (void)trans_b, (void)alpha;
    for (size_t i = 0; i < (size_t)m; i++)
        for (size_t j = 0; j < (size_t)n; j++) {
            float *out = c + i * (size_t)ldc + j, sum = beta != 0 ? *out : 0;
            for (size_t p = 0; p < (size_t)k; p++)
                sum += a[i * (size_t)lda + p] * b[j * (size_t)ldb + p];
            *out = sum;
        }
}

typedef struct buffer {
    unsigned char *data, *area;
    size_t bytes, mapped;
} buffer;

static _Noreturn void ended(const char *why) {
    fprintf(stderr, "driver: %s\n", why);
    exit(2);
}

/* `bytes` with a forbidden page right after (at_end) or right before them. */
static void place(buffer *b, size_t bytes, int at_end) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    b->bytes = bytes;
    b->mapped = room + page;
    b->area = mmap(NULL, b->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->area == MAP_FAILED || mprotect(b->area + (at_end ? room : 0), page, PROT_NONE))
        ended("no memory");
    b->data = b->area + (at_end ? room - bytes : page);
}

/* What one request says. */
typedef struct request {
    char kind[16], target[32], name[32];
    int at_end;
    size_t n_buffers, n_arrays;
    double number[4];
    buffer buffers[MOST];
    q35_rows arrays[MOST];
} request;

static int read_request(request *r) {
    char line[256];
    if (!fgets(line, sizeof line, stdin)) return 0;
    if (sscanf(line, "%15s %31s %31s %d %zu %zu %lf %lf %lf %lf", r->kind, r->target, r->name,
               &r->at_end, &r->n_buffers, &r->n_arrays, &r->number[0], &r->number[1], &r->number[2],
               &r->number[3]) != 10 ||
        r->n_buffers > MOST || r->n_arrays > MOST)
        ended("not a request");
    for (size_t i = 0; i < r->n_arrays; i++) {
        q35_rows *a = &r->arrays[i];
        size_t from, dtype;
        if (!fgets(line, sizeof line, stdin) ||
            sscanf(line, "%zu %zu %zu %zu %zu", &from, &a->rows, &a->cols, &a->stride, &dtype) !=
                5 ||
            from >= r->n_buffers)
            ended("not an array");
        a->data = (void *)from; /* until the buffers are there */
        a->dtype = (q35_dtype)dtype;
    }
    for (size_t i = 0; i < r->n_buffers; i++) {
        size_t bytes;
        if (!fgets(line, sizeof line, stdin) || sscanf(line, "%zu", &bytes) != 1)
            ended("not a buffer");
        place(&r->buffers[i], bytes, r->at_end);
        if (fread(r->buffers[i].data, 1, bytes, stdin) != bytes) ended("a buffer ends early");
    }
    for (size_t i = 0; i < r->n_arrays; i++)
        r->arrays[i].data = r->buffers[(size_t)r->arrays[i].data].data;
    return 1;
}

/* blocks uint8 [rows, bytes of a row], x [T, cols], y [T, rows]; packed, fine, add, threads */
static int product(request *r, qwen35_status *status) {
    q35_dtype dtype = Q35_F32;
    while (dtype < Q35_FORMATS && strcmp(q35_formats[dtype].name, r->name) != 0) dtype++;
    if (dtype == Q35_FORMATS) return q35_fail(status, Q35_ARGUMENT, "no type '%s'", r->name);
    const q35_rows *a = r->arrays;
    double seconds;
    q35_matrix w = {.data = a[0].data,
                    .dtype = dtype,
                    .rows = a[0].rows,
                    .cols = a[1].cols,
                    .integers = 1,
                    .fine = r->number[1] != 0};
    return q35_try_product(r->target, &w, a[1].data, a[2].data, a[1].rows, r->number[0] != 0,
                           r->number[2] != 0, (int)r->number[3], &seconds, 1, status);
}

static void answer(request *r) {
    qwen35_status status = {0};
    double result[2] = {0};
    size_t n = r->n_arrays;
    if (strcmp(r->kind, "kernels") == 0) {
        const q35_kernels *tables[Q35_MAX_TARGETS];
        n = q35_kernels_available(tables);
        for (size_t i = 0; i < n; i++) printf("%s%c", tables[i]->name, i + 1 < n ? ' ' : '\n');
        return;
    }
    if (strcmp(r->kind, "product") == 0)
        n = 0, product(r, &status);
    else
        q35_try_kernel(r->target, r->name, r->arrays, &n, r->number, result, &status);
    if (status.code) {
        printf("error %s\n", status.message);
        return;
    }
    printf("done %zu %a %a\n", n, result[0], result[1]);
    for (size_t i = 0; i < r->n_buffers; i++)
        fwrite(r->buffers[i].data, 1, r->buffers[i].bytes, stdout);
}

int main(void) {
    request r;
    while (read_request(&r)) {
        answer(&r);
        fflush(stdout);
        for (size_t i = 0; i < r.n_buffers; i++) munmap(r.buffers[i].area, r.buffers[i].mapped);
    }
    return 0;
}
