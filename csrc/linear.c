/* linear.c: all matrix products, and the only file that knows BLAS.
 *
 * products -> blocks of rows whose weights fit the second-level cache -> one task a block -> dot
 * kernel over all tokens. Weights are read once from memory whatever T is; a result's bits do not
 * depend on T (see kernels.h). Matrices of blocks are multiplied as integers: tokens are brought to
 * 8 bits once a call; those of bf16 and f16 in 16-bit fixed point (fixed.c). In the exact mode all
 * is f32, and rows of blocks are decoded to it. Targets whose own kernel is slow at many tokens
 * expand blocks to f32 and leave the product to OpenBLAS. */
#include "linear.h"

#include <pthread.h>
#include <string.h>

#include "fixed.h"
#include "kernels/kernels.h"
#include "mem.h"
#include "pack.h"

/* Of weights in one task: they stay in the second-level cache beside the tokens. With few tokens
   they are read once, and longer runs of memory are read faster. */
#define BLOCK_BYTES ((size_t)128 << 10)
#define BLOCK_BYTES_FEW ((size_t)256 << 10)
#define FEW_TOKENS 16
#define TILE_TOKENS 8    /* that kernels multiply together */
#define CACHED_TOKENS 64 /* that stay in the second-level cache with all their columns */
#define BLOCKS_EACH 4    /* tasks for each thread then, at least */
#define BLOCK_ROWS 24    /* blocks are a multiple: whole register tiles of every target */
#define WIDE_ROWS 8      /* of a block type, decoded at once */
#define PANEL_ROWS 256   /* rows expanded at once for BLAS */
#define MAX_PRODUCTS 4
#define BLOCK_PANELS 4              /* of 16 rows, in one task with many tokens */
#define SUM_ROWS 64                 /* those, or Q35_FIXED_ROWS */
#define TOKENS_PER_TASK TILE_TOKENS /* become integers; no two tasks write one line */

/* The part of CBLAS in use, under the prefix of the scipy-openblas32 build. */
enum { CBLAS_ROW_MAJOR = 101, CBLAS_NO_TRANS = 111, CBLAS_TRANS = 112 };
void scipy_cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                       const float *a, int lda, const float *b, int ldb, float beta, float *c,
                       int ldc);
void scipy_openblas_set_num_threads(int threads);

/* How a matrix is multiplied. */
typedef enum { DENSE, DECODED, PANELS, FIXED } road;

static road road_of(const q35_matrix *w) {
    if (q35_is_fixed(w)) return FIXED;
    if (w->dtype < Q35_DTYPES) return DENSE;
    return w->integers ? PANELS : DECODED;
}

/* Of a matrix of blocks: whether tokens have 16 bits. */
static int wants_fine(const q35_matrix *w) {
    return w->fine || (q35_kernel->words && (!w->packed || q35_is_wide(q35_packing_of(w->dtype))));
}

/* Memory of one call: first what f32 products need, then what integers do. */
typedef struct room {
    float *wide;             /* [threads, WIDE_ROWS, cols] of a block type, or [PANEL_ROWS, cols] */
    q35_tokens coarse, fine; /* all tokens in 8 bits and in 16, each where a matrix asks for it */
    q35_panel *panel;        /* [threads] */
    q35_fixed_tokens fixed;
    q35_fixed_space *fixed_space; /* [threads] */
    float *sum;                   /* [threads, sum_tokens, SUM_ROWS] */
    size_t sum_tokens;
} room;

static size_t min(size_t a, size_t b) { return a < b ? a : b; }

/* Sets the pointers, given memory; returns the floats in all. */
static size_t lay_out(room *at, size_t cols, size_t T, size_t threads, int panels, float *memory) {
    size_t wide = threads * WIDE_ROWS * cols, panel = PANEL_ROWS * cols;
    size_t bytes = (cols + 3) / 4, panel_T = panels ? T : 0;
    size_t groups = cols / Q35_GROUP * (sizeof(q35_token_group) / sizeof(float));
    size_t fixed_T = q35_kernel->dot_fixed ? T : 0;
    at->coarse = (q35_tokens){.T = T, .columns = cols};
    at->fine = (q35_tokens){.T = T, .columns = cols, .fine = 1};
    at->fixed = (q35_fixed_tokens){.T = T, .cols = cols};
    at->sum_tokens = panels ? T : min(T, Q35_FIXED_TOKENS);
    const q35_buffer parts[] = {
        {&at->wide, q35_kernel->blas_tokens && panel > wide ? panel : wide},
        {&at->coarse.q, panel_T * bytes},
        {&at->coarse.group, panel_T * groups},
        {&at->fine.q, 2 * panel_T * bytes},
        {&at->fine.group, panel_T * groups},
        {&at->panel, panel_T ? threads * sizeof(q35_panel) / sizeof(float) : 0},
        {&at->fixed.code, fixed_T * q35_fixed_blocks(cols) * Q35_FIXED / 2},
        {&at->fixed.factor, fixed_T * q35_fixed_blocks(cols)},
        {&at->fixed_space, fixed_T ? threads * sizeof(q35_fixed_space) / sizeof(float) : 0},
        {&at->sum, threads * at->sum_tokens * SUM_ROWS},
    };
    return q35_lay_out(parts, sizeof parts / sizeof *parts, memory);
}

size_t q35_linear_floats(size_t cols, size_t T, int threads, int panels) {
    room r;
    return lay_out(&r, cols, T, (size_t)threads, panels, NULL);
}

typedef struct job {
    const q35_product *products;
    size_t n, first_block[MAX_PRODUCTS + 1], rows_per_block[MAX_PRODUCTS];
    const float *x;
    size_t ldx, T, cols;
    int add;
    int coarse, fine, fixed; /* whether tokens are wanted in 8, in 16 bits, in fixed point */
    room at;
} job;

/* Few tokens wait for memory: runs as long as may be, but several for each thread of the team. */
static size_t few_bytes(const job *j, int threads) {
    size_t all = 0;
    for (size_t p = 0; p < j->n; p++)
        all += j->products[p].w->rows * q35_row_bytes(j->products[p].w->dtype, j->cols);
    size_t each = all / ((size_t)threads * BLOCKS_EACH);
    return each < BLOCK_BYTES_FEW ? each : BLOCK_BYTES_FEW;
}

/* Rows whose weights take `bytes`; of integers with many tokens those that are summed at once. */
static size_t rows_per_block(const q35_matrix *w, size_t T, size_t bytes) {
    const road way = road_of(w);
    if (way == PANELS && T >= FEW_TOKENS) return BLOCK_PANELS * Q35_PANEL;
    if (way == FIXED && !q35_fixed_is_few(T)) return Q35_FIXED_ROWS;
    size_t rows = bytes / q35_row_bytes(w->dtype, w->cols);
    size_t whole = way == PANELS ? Q35_PANEL : way == FIXED ? 1 : BLOCK_ROWS;
    return rows < whole ? whole : rows / whole * whole;
}

/* y [T, rows] of rows r .. r + rows of a block type, in f32 */
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

/* y [T, 16], ld elements apart: columns k .. k + n of the p-th 16 rows; from codebook formats by
   way of `panel`. */
static void multiply_panel(const job *j, const q35_matrix *w, size_t p, size_t k, size_t n,
                           float *y, size_t ld, q35_panel *panel) {
    const q35_tokens *tokens = wants_fine(w) ? &j->at.fine : &j->at.coarse;
    if (w->packed) {
        q35_kernel->dot_packed(y, ld, k > 0, w->dtype, q35_packed_at(w, p, k), tokens, k, n);
        return;
    }
    q35_panel_read(panel, w, p, k, n);
    q35_kernel->dot_panel(y, ld, k > 0, panel, tokens, k, n);
}

/* y [T, rows], ld elements apart, of `rows` rows from row r on, both multiples of 16. Tokens of one
   tile meet each weight once, as it comes from memory. Otherwise rows are cut into pieces that stay
   in the first-level cache for all tiles, and among many tokens a piece of all rows goes first, for
   the tokens' part of it to stay in the second. */
static void multiply_pieces(const job *j, const q35_matrix *w, size_t r, size_t rows, float *y,
                            size_t ld, q35_panel *panel) {
    const size_t cols = j->cols, first = r / Q35_PANEL, panels = rows / Q35_PANEL;
    const size_t piece = w->packed && j->T <= TILE_TOKENS ? cols : Q35_PIECE;
    const size_t pieces = (cols + piece - 1) / piece;
    const int by_rows = j->T <= CACHED_TOKENS;
    for (size_t i = 0; i < panels * pieces; i++) {
        const size_t p = by_rows ? i / pieces : i % panels;
        const size_t k = (by_rows ? i % pieces : i / panels) * piece;
        const size_t n = cols - k < piece ? cols - k : piece;
        multiply_panel(j, w, first + p, k, n, y + p * Q35_PANEL, ld, panel);
    }
}

/* As integers, r a multiple of 16. Sums are made in y itself unless they are added to it, or reach
   beyond its rows, or are of many tokens: rows of y may be a power of two apart, and then all share
   a few lines of the caches. */
static void multiply_panels(const job *j, const q35_product *product, size_t r, size_t rows,
                            int worker) {
    const size_t T = j->T;
    const q35_matrix *w = product->w;
    float *sum = j->at.sum + (size_t)worker * j->at.sum_tokens * SUM_ROWS;
    for (size_t done = 0; done < rows; done += BLOCK_PANELS * Q35_PANEL) {
        const size_t left = rows - done, most = BLOCK_PANELS * Q35_PANEL;
        const size_t n = left < most ? left : most;
        const size_t whole = (n + Q35_PANEL - 1) / Q35_PANEL * Q35_PANEL;
        const int direct = n == whole && !j->add && T <= TILE_TOKENS;
        float *y = product->y + r + done, *out = direct ? y : sum;
        const size_t ld = direct ? product->ldy : whole;
        multiply_pieces(j, w, r + done, whole, out, ld, j->at.panel + worker);
        for (size_t t = 0; t < T && !direct; t++) {
            if (j->add)
                q35_kernel->add(y + t * product->ldy, sum + t * whole, n);
            else
                memcpy(y + t * product->ldy, sum + t * whole, n * sizeof *y);
        }
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
    switch (road_of(w)) {
    case DENSE:
        q35_kernel->dot[w->dtype](product->y + r, product->ldy,
                                  (const char *)w->data + r * q35_row_bytes(w->dtype, w->cols),
                                  w->cols, j->x, j->ldx, rows, j->T, w->cols, j->add);
        break;
    case DECODED:
        multiply_decoded(j, product, r, rows, j->at.wide + (size_t)worker * WIDE_ROWS * j->cols);
        break;
    case PANELS: multiply_panels(j, product, r, rows, worker); break;
    case FIXED:
        q35_fixed_rows(product->y + r, product->ldy, w, r, rows, &j->at.fixed, j->add,
                       j->at.fixed_space + worker,
                       j->at.sum + (size_t)worker * j->at.sum_tokens * SUM_ROWS);
        break;
    }
}

static void quantize_some(void *arg, size_t index, int worker) {
    (void)worker;
    const job *j = arg;
    size_t end = min((index + 1) * TOKENS_PER_TASK, j->T);
    for (size_t t = index * TOKENS_PER_TASK; t < end; t++) {
        const float *x = j->x + t * j->ldx;
        if (j->coarse) q35_kernel->quantize(&j->at.coarse, t, x);
        if (j->fine) q35_kernel->quantize(&j->at.fine, t, x);
        if (j->fixed) q35_fix_token(&j->at.fixed, t, x);
    }
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

/* Products that BLAS does not do, in one region. */
static int multiply(q35_team *team, job *j) {
    size_t all_rows = 0, bytes = j->T < FEW_TOKENS ? few_bytes(j, team->threads) : BLOCK_BYTES;
    for (size_t p = 0; p < j->n; p++) {
        const q35_matrix *w = j->products[p].w;
        j->rows_per_block[p] = rows_per_block(w, j->T, bytes);
        size_t blocks = (w->rows + j->rows_per_block[p] - 1) / j->rows_per_block[p];
        j->first_block[p + 1] = j->first_block[p] + blocks;
        all_rows += w->rows;
    }
    if ((j->coarse || j->fine || j->fixed) &&
        q35_parallel(team, (j->T + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK,
                     TOKENS_PER_TASK * j->cols * 2, quantize_some, j))
        return 1;
    size_t blocks = j->first_block[j->n], work = all_rows * j->cols * j->T / blocks;
    return q35_parallel(team, blocks, work, multiply_block, j);
}

int q35_linear(q35_team *team, const q35_product *products, size_t n, const float *x, size_t ldx,
               size_t T, int add, float *memory) {
    if (T == 0) return 0; /* the last layer of a chunk whose outputs nobody wants */
    for (size_t p = 0; team->observe && p < n; p++) {
        const q35_matrix *w = products[p].w;
        if (team->observe(team->observe_arg, w->data, x, ldx, T, w->cols))
            atomic_store(&team->cancelled, 1);
    }
    const size_t cols = products[0].w->cols; /* all have the columns of x */
    q35_product rest[MAX_PRODUCTS];
    job j = {.products = rest, .x = x, .ldx = ldx, .T = T, .cols = cols, .add = add};
    for (size_t p = 0; p < n; p++) {
        const road way = road_of(products[p].w);
        j.fine |= way == PANELS && wants_fine(products[p].w);
        j.coarse |= way == PANELS && !wants_fine(products[p].w);
        j.fixed |= way == FIXED;
    }
    lay_out(&j.at, cols, T, (size_t)team->threads, j.coarse || j.fine, memory);
    const int blas = q35_kernel->blas_tokens && T >= q35_kernel->blas_tokens;
    for (size_t p = 0; p < n; p++) {
        const road way = road_of(products[p].w);
        if (!blas || way == PANELS || way == FIXED)
            rest[j.n++] = products[p];
        else if (multiply_with_blas(team, &products[p], x, ldx, T, add, j.at.wide))
            return 1;
    }
    return j.n ? multiply(team, &j) : 0;
}
