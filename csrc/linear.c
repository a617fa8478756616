/* linear.c: all matrix products, and the only file that knows BLAS.
 *
 * products -> blocks of rows whose weights fit the second-level cache -> one task a block -> dot
 * kernel over all tokens. Weights are read once from memory whatever T is; a result's bits do not
 * depend on T (see kernels.h). Targets whose own kernel is slow at many tokens expand blocks to f32
 * and leave the product to OpenBLAS. */
#include "linear.h"

#include <pthread.h>

#include "kernels/kernels.h"

/* Of weights in one task: they stay in the second-level cache beside the tokens. With few tokens
   they are read once, and longer runs of memory are read faster. */
#define BLOCK_BYTES ((size_t)128 << 10)
#define BLOCK_BYTES_FEW ((size_t)256 << 10)
#define FEW_TOKENS 16
#define BLOCK_ROWS 24  /* blocks are a multiple: whole register tiles of every target */
#define PANEL_ROWS 256 /* rows expanded at once for BLAS */
#define MAX_PRODUCTS 4

/* The part of CBLAS in use, under the prefix of the scipy-openblas32 build. */
enum { CBLAS_ROW_MAJOR = 101, CBLAS_NO_TRANS = 111, CBLAS_TRANS = 112 };
void scipy_cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                       const float *a, int lda, const float *b, int ldb, float beta, float *c,
                       int ldc);
void scipy_openblas_set_num_threads(int threads);

typedef struct job {
    const q35_product *products;
    size_t n, first_block[MAX_PRODUCTS + 1], rows_per_block[MAX_PRODUCTS];
    const float *x;
    size_t ldx, T;
    int add;
} job;

static size_t rows_per_block(const q35_matrix *w, size_t T) {
    size_t bytes = T < FEW_TOKENS ? BLOCK_BYTES_FEW : BLOCK_BYTES;
    size_t rows = bytes / (w->cols * q35_dtype_bytes(w->dtype));
    return rows < BLOCK_ROWS ? BLOCK_ROWS : rows / BLOCK_ROWS * BLOCK_ROWS;
}

static void multiply_block(void *arg, size_t index, int worker) {
    (void)worker;
    const job *j = arg;
    size_t p = 0;
    while (index >= j->first_block[p + 1]) p++;
    const q35_product *product = &j->products[p];
    const q35_matrix *w = product->w;
    size_t r = (index - j->first_block[p]) * j->rows_per_block[p];
    size_t rows = w->rows - r < j->rows_per_block[p] ? w->rows - r : j->rows_per_block[p];
    const char *data = (const char *)w->data + r * w->cols * q35_dtype_bytes(w->dtype);
    q35_kernel->dot[w->dtype](product->y + r, product->ldy, data, w->cols, j->x, j->ldx, rows, j->T,
                              w->cols, j->add);
}

/* ---- the OpenBLAS road ---- */

typedef struct expansion {
    const q35_matrix *w;
    size_t row;
    float *panel;
} expansion;

static void expand_row(void *arg, size_t index, int worker) {
    (void)worker;
    const expansion *e = arg;
    const q35_matrix *w = e->w;
    const char *data =
        (const char *)w->data + (e->row + index) * w->cols * q35_dtype_bytes(w->dtype);
    q35_kernel->expand[w->dtype](e->panel + index * w->cols, data, w->cols);
}

/* OpenBLAS ends the process when too many threads call it at once: one caller, its own threads
 * inside. */
static pthread_mutex_t blas_lock = PTHREAD_MUTEX_INITIALIZER;

static int multiply_with_blas(q35_team *team, const q35_product *product, const float *x,
                              size_t ldx, size_t T, int add, float *panel) {
    const q35_matrix *w = product->w;
    for (size_t r = 0; r < w->rows; r += PANEL_ROWS) {
        size_t rows = w->rows - r < PANEL_ROWS ? w->rows - r : PANEL_ROWS;
        expansion e = {w, r, panel};
        if (q35_parallel(team, rows, w->cols, expand_row, &e)) return 1;
        pthread_mutex_lock(&blas_lock);
        scipy_openblas_set_num_threads(team->threads);
        scipy_cblas_sgemm(CBLAS_ROW_MAJOR, CBLAS_NO_TRANS, CBLAS_TRANS, (int)T, (int)rows,
                          (int)w->cols, 1.0f, x, (int)ldx, panel, (int)w->cols, add ? 1.0f : 0.0f,
                          product->y + r, (int)product->ldy);
        pthread_mutex_unlock(&blas_lock);
    }
    return 0;
}

size_t q35_linear_panel_floats(size_t cols) {
    return q35_kernel->blas_tokens ? PANEL_ROWS * cols : 0;
}

int q35_linear(q35_team *team, const q35_product *products, size_t n, const float *x, size_t ldx,
               size_t T, int add, float *panel) {
    if (panel && q35_kernel->blas_tokens && T >= q35_kernel->blas_tokens) {
        for (size_t p = 0; p < n; p++)
            if (multiply_with_blas(team, &products[p], x, ldx, T, add, panel)) return 1;
        return 0;
    }
    job j = {.products = products, .n = n, .x = x, .ldx = ldx, .T = T, .add = add};
    size_t all_rows = 0;
    for (size_t p = 0; p < n; p++) {
        j.rows_per_block[p] = rows_per_block(products[p].w, T);
        size_t blocks = (products[p].w->rows + j.rows_per_block[p] - 1) / j.rows_per_block[p];
        j.first_block[p + 1] = j.first_block[p] + blocks;
        all_rows += products[p].w->rows;
    }
    size_t blocks = j.first_block[n], work = all_rows * products[0].w->cols * T / blocks;
    return q35_parallel(team, blocks, work, multiply_block, &j);
}
