/* Matrices of bf16 or f16 times tokens in 16-bit fixed point: blocks along a row become integers of
 * one power of two, those along a token integers of their norm (kernels.h), and the processor
 * multiplies twice as many at a time as in f32. Errors are ten times below those of tokens in bf16.
 * For linear.c, which hands out the rows. */
#ifndef Q35_FIXED_H
#define Q35_FIXED_H

#include "kernels/kernels.h"
#include "weights.h"

typedef struct q35_fixed_tokens {
    int16_t *code; /* [blocks, T, Q35_FIXED] */
    float *factor; /* [blocks, T] */
    size_t T, cols;
} q35_fixed_tokens;

/* Of one worker, while it multiplies. */
typedef struct q35_fixed_space {
    int16_t packed[Q35_FIXED * Q35_FIXED_ROWS];
    float factor[Q35_FIXED_ROWS];
} q35_fixed_space;

/* Tokens that are multiplied at once: their part of a block, and their sums, stay in the
   second-level cache. */
#define Q35_FIXED_TOKENS 512

/* Whether this target multiplies a matrix so. */
int q35_is_fixed(const q35_matrix *w);

/* Whether so many tokens are multiplied by rows as they are stored: as many at once as are wanted.
 */
int q35_fixed_is_few(size_t T);

/* Of so many columns. */
size_t q35_fixed_blocks(size_t cols);

/* The t-th token from x [cols]. */
void q35_fix_token(const q35_fixed_tokens *tokens, size_t t, const float *x);

/* y[t, i] (+)= sum_k w[r + i, k] x[t, k], i < rows; at most Q35_FIXED_ROWS rows where tokens are
   not few. sum [min(T, Q35_FIXED_TOKENS), Q35_FIXED_ROWS]. */
void q35_fixed_rows(float *y, size_t ldy, const q35_matrix *w, size_t r, size_t rows,
                    const q35_fixed_tokens *tokens, int add, q35_fixed_space *space, float *sum);

#endif
