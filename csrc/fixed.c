/* fixed.c: some rows of a matrix of bf16 or f16 times all tokens, in 16-bit fixed point.
 *
 * few tokens: rows -> int16 in registers -> dot, as fast as memory gives the rows. Many: a block of
 * columns of all the rows -> int16 packed by pairs, in the first-level cache -> dot over all
 * tokens. Both give the same bits. */
#include "fixed.h"

#include <string.h>

/* Up to so many tokens weights become integers anew for every Q35_FIXED_FEW of them: packing costs
   more (measured: the same time at 8 to 12 tokens). */
#define FEW 8

int q35_is_fixed(const q35_matrix *w) {
    return w->integers && (w->dtype == Q35_F16 || w->dtype == Q35_BF16) && q35_kernel->dot_fixed;
}

int q35_fixed_is_few(size_t T) { return T <= FEW; }

size_t q35_fixed_blocks(size_t cols) { return (cols + Q35_FIXED - 1) / Q35_FIXED; }

void q35_fix_token(const q35_fixed_tokens *tokens, size_t t, const float *x) {
    for (size_t k = 0, at = t; k < tokens->cols; k += Q35_FIXED, at += tokens->T) {
        const size_t left = tokens->cols - k, n = left < Q35_FIXED ? left : Q35_FIXED;
        int16_t *code = tokens->code + at * Q35_FIXED;
        if (n < Q35_FIXED) memset(code, 0, Q35_FIXED * sizeof *code);
        q35_kernel->fix(code, tokens->factor + at, x + k, n);
    }
}

/* Tokens from t on, T of them. */
static void multiply_packed(float *y, size_t ldy, const q35_matrix *w, size_t r, size_t rows,
                            const q35_fixed_tokens *tokens, size_t t, size_t T, int add,
                            q35_fixed_space *space, float *sum) {
    memset(sum, 0, T * Q35_FIXED_ROWS * sizeof *sum);
    for (size_t i = 0; i < T && add; i++)
        memcpy(sum + i * Q35_FIXED_ROWS, y + i * ldy, rows * sizeof *y);
    const uint16_t *data = (const uint16_t *)w->data + r * w->cols;
    for (size_t k = 0; k < w->cols; k += Q35_FIXED) {
        const size_t n = w->cols - k < Q35_FIXED ? w->cols - k : Q35_FIXED;
        const size_t at = k / Q35_FIXED * tokens->T + t;
        q35_kernel->pack_fixed(space->packed, space->factor, w->dtype, data + k, w->cols, rows, n);
        q35_kernel->dot_fixed(sum, space->packed, space->factor, tokens->code + at * Q35_FIXED,
                              tokens->factor + at, T, n);
    }
    for (size_t i = 0; i < T; i++) memcpy(y + i * ldy, sum + i * Q35_FIXED_ROWS, rows * sizeof *y);
}

void q35_fixed_rows(float *y, size_t ldy, const q35_matrix *w, size_t r, size_t rows,
                    const q35_fixed_tokens *tokens, int add, q35_fixed_space *space, float *sum) {
    const uint16_t *data = (const uint16_t *)w->data + r * w->cols;
    if (q35_fixed_is_few(tokens->T)) {
        for (size_t t = 0; t < tokens->T; t += Q35_FIXED_FEW) {
            const size_t left = tokens->T - t, T = left < Q35_FIXED_FEW ? left : Q35_FIXED_FEW;
            q35_kernel->dot_stored(y + t * ldy, ldy, w->dtype, data, w->cols,
                                   tokens->code + t * Q35_FIXED, tokens->factor + t, tokens->T,
                                   rows, T, w->cols, add);
        }
        return;
    }
    for (size_t t = 0; t < tokens->T; t += Q35_FIXED_TOKENS) {
        const size_t left = tokens->T - t, T = left < Q35_FIXED_TOKENS ? left : Q35_FIXED_TOKENS;
        multiply_packed(y + t * ldy, ldy, w, r, rows, tokens, t, T, add, space, sum);
    }
}
