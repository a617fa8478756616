/* fixed.c: matrix products in 16-bit fixed point.
 *
 * tokens -> int16, all of them -> rows of weights, a task each few -> int16, packed by pairs -> dot
 * kernel over all tokens. What one worker packs stays in its second-level cache. */
#include "fixed.h"

#include <string.h>

#include "kernels/kernels.h"
#include "mem.h"

#define TOKENS 8 /* a task rounds so many */
/* Of a row of weights, packed at once: whole blocks of every storage type. */
#define COLUMNS (2 * Q35_FIXED)

typedef struct job {
    const q35_product *product;
    const float *x;
    size_t ldx, T, blocks, pairs; /* of a row: factors, pairs of int16 */
    int add;
    int16_t *tokens;      /* [T, 2 pairs] */
    float *token_factors; /* [T, blocks] */
    /* For each worker */
    int16_t *packed;    /* [pairs, Q35_FIXED_ROWS, 2] */
    float *row_factors; /* [blocks, Q35_FIXED_ROWS] */
    int16_t *rows;      /* [Q35_FIXED_ROWS, COLUMNS] before packing */
    float *wide;        /* [COLUMNS] of one row of them */
} job;

/* Sets the pointers, given memory; returns the floats in all. */
static size_t lay_out(job *j, size_t cols, size_t T, int threads, float *memory) {
    j->blocks = (cols + Q35_FIXED - 1) / Q35_FIXED;
    j->pairs = (cols + 1) / 2;
    const size_t n = (size_t)threads;
    const q35_buffer parts[] = {
        {&j->tokens, T * j->pairs},
        {&j->token_factors, T * j->blocks},
        {&j->packed, n * j->pairs * Q35_FIXED_ROWS},
        {&j->row_factors, n * j->blocks * Q35_FIXED_ROWS},
        {&j->rows, n * Q35_FIXED_ROWS * COLUMNS / 2},
        {&j->wide, n * COLUMNS},
    };
    return q35_lay_out(parts, sizeof parts / sizeof *parts, memory);
}

size_t q35_fixed_floats(size_t cols, size_t T, int threads) {
    job j;
    return q35_kernel->dot_fixed ? lay_out(&j, cols, T, threads, NULL) : 0;
}

static void fix_tokens(void *arg, size_t index, int worker) {
    (void)worker;
    const job *j = arg;
    size_t end = (index + 1) * TOKENS < j->T ? (index + 1) * TOKENS : j->T;
    for (size_t t = index * TOKENS; t < end; t++)
        q35_kernel->fix(j->tokens + t * 2 * j->pairs, j->token_factors + t * j->blocks,
                        j->x + t * j->ldx, j->product->w->cols);
}

/* COLUMNS columns from k on (fewer at the end) of some rows, side by side by pairs. */
static void pack_columns(const job *j, size_t r, size_t rows, size_t k, int16_t *packed,
                         float *factors, int worker) {
    const q35_matrix *w = j->product->w;
    const size_t n = w->cols - k < COLUMNS ? w->cols - k : COLUMNS;
    int16_t *row = j->rows + (size_t)worker * Q35_FIXED_ROWS * COLUMNS;
    float *wide = j->wide + (size_t)worker * COLUMNS, factor[COLUMNS / Q35_FIXED];
    for (size_t i = 0; i < rows; i++) {
        q35_matrix_read(wide, w, r + i, k, n);
        q35_kernel->fix(row + i * COLUMNS, factor, wide, n);
        for (size_t b = 0; b * Q35_FIXED < n; b++) factors[b * Q35_FIXED_ROWS + i] = factor[b];
    }
    for (size_t p = 0; p < (n + 1) / 2; p++)
        for (size_t i = 0; i < rows; i++)
            memcpy(packed + (p * Q35_FIXED_ROWS + i) * 2, row + i * COLUMNS + 2 * p,
                   2 * sizeof *row);
}

static void multiply_rows(void *arg, size_t index, int worker) {
    const job *j = arg;
    const q35_matrix *w = j->product->w;
    const size_t r = index * Q35_FIXED_ROWS;
    const size_t rows = w->rows - r < Q35_FIXED_ROWS ? w->rows - r : Q35_FIXED_ROWS;
    int16_t *packed = j->packed + (size_t)worker * j->pairs * Q35_FIXED_ROWS * 2;
    float *factors = j->row_factors + (size_t)worker * j->blocks * Q35_FIXED_ROWS;
    if (rows < Q35_FIXED_ROWS) { /* the others are multiplied, too */
        memset(packed, 0, j->pairs * Q35_FIXED_ROWS * 2 * sizeof *packed);
        memset(factors, 0, j->blocks * Q35_FIXED_ROWS * sizeof *factors);
    }
    for (size_t k = 0; k < w->cols; k += COLUMNS)
        pack_columns(j, r, rows, k, packed + k * Q35_FIXED_ROWS,
                     factors + k / Q35_FIXED * Q35_FIXED_ROWS, worker);
    q35_kernel->dot_fixed(j->product->y + r, j->product->ldy, packed, factors, j->tokens,
                          2 * j->pairs, j->token_factors, j->blocks, rows, j->T, w->cols, j->add);
}

int q35_fixed_linear(q35_team *team, const q35_product *product, const float *x, size_t ldx,
                     size_t T, int add, float *work) {
    const q35_matrix *w = product->w;
    job j = {.product = product, .x = x, .ldx = ldx, .T = T, .add = add};
    lay_out(&j, w->cols, T, team->threads, work);
    if (q35_parallel(team, (T + TOKENS - 1) / TOKENS, TOKENS * w->cols, fix_tokens, &j)) return 1;
    size_t tasks = (w->rows + Q35_FIXED_ROWS - 1) / Q35_FIXED_ROWS;
    return q35_parallel(team, tasks, Q35_FIXED_ROWS * w->cols * T, multiply_rows, &j);
}
