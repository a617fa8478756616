/* linear.c: all matrix products, and the only file that knows BLAS.
 *
 * products -> blocks of rows whose weights fit the second-level cache -> one task a block -> dot
 * kernel over all tokens. Weights are read once from memory whatever T is; a result's bits do not
 * depend on T (see kernels.h). Rows of block types are decoded a few at a time on their way.
 * Targets whose own kernel is slow at many tokens expand blocks to f32 and leave the product to
 * OpenBLAS. */
#include "linear.h"

#include <pthread.h>

#include "kernels/kernels.h"

/* Of weights in one task: they stay in the second-level cache beside the tokens. With few tokens
   they are read once, and longer runs of memory are read faster. */
#define BLOCK_BYTES ((size_t)128 << 10)
#define BLOCK_BYTES_FEW ((size_t)256 << 10)
#define FEW_TOKENS 16
#define BLOCK_ROWS 24  /* blocks are a multiple: whole register tiles of every target */
#define WIDE_ROWS 8    /* of a block type, decoded at once */
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
    float *wide; /* [threads, WIDE_ROWS, cols] */
    size_t wide_floats;
} job;

static size_t rows_per_block(const q35_matrix *w, size_t T) {
    size_t bytes = T < FEW_TOKENS ? BLOCK_BYTES_FEW : BLOCK_BYTES;
    size_t rows = bytes / q35_row_bytes(w->dtype, w->cols);
    return rows < BLOCK_ROWS ? BLOCK_ROWS : rows / BLOCK_ROWS * BLOCK_ROWS;
}

/* y [T, rows] of rows r .. r + rows of a block type */
static void multiply_decoded(const job *j, const q35_product *product, size_t r, size_t rows,
                             float *wide) {
    const q35_matrix *w = product->w;
    for (size_t i = 0; i < rows; i += WIDE_ROWS) {
        size_t n = rows - i < WIDE_ROWS ? rows - i : WIDE_ROWS;
        for (size_t k = 0; k < n; k++)
            q35_matrix_read(wide + k * w->cols, w, r + i + k, 0, w->cols);
        q35_kernel->dot[Q35_F32](product->y + r + i, product->ldy, wide, w->cols, j->x, j->ldx, n,
                                 j->T, w->cols, j->add);
    }
}

static void multiply_block(void *arg, size_t index, int worker) {
    const job *j = arg;
    size_t p = 0;
    while (index >= j->first_block[p + 1]) p++;
    const q35_product *product = &j->products[p];
    const q35_matrix *w = product->w;
    size_t r = (index - j->first_block[p]) * j->rows_per_block[p];
    size_t rows = w->rows - r < j->rows_per_block[p] ? w->rows - r : j->rows_per_block[p];
    if (w->dtype >= Q35_DTYPES) {
        multiply_decoded(j, product, r, rows, j->wide + (size_t)worker * j->wide_floats);
        return;
    }
    const char *data = (const char *)w->data + r * q35_row_bytes(w->dtype, w->cols);
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
    q35_matrix_read(e->panel + index * e->w->cols, e->w, e->row + index, 0, e->w->cols);
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

size_t q35_linear_panel_floats(size_t cols, int threads) {
    size_t wide = (size_t)threads * WIDE_ROWS * cols, panel = PANEL_ROWS * cols;
    return q35_kernel->blas_tokens && panel > wide ? panel : wide;
}

int q35_linear(q35_team *team, const q35_product *products, size_t n, const float *x, size_t ldx,
               size_t T, int add, float *panel) {
    for (size_t p = 0; team->observe && p < n; p++) {
        const q35_matrix *w = products[p].w;
        if (team->observe(team->observe_arg, w->data, x, ldx, T, w->cols))
            atomic_store(&team->cancelled, 1);
    }
    if (q35_kernel->blas_tokens && T >= q35_kernel->blas_tokens) {
        for (size_t p = 0; p < n; p++)
            if (multiply_with_blas(team, &products[p], x, ldx, T, add, panel)) return 1;
        return 0;
    }
    job j = {.products = products, .n = n, .x = x, .ldx = ldx, .T = T, .add = add, .wide = panel};
    j.wide_floats = WIDE_ROWS * products[0].w->cols; /* all have the columns of x */
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
