/* Matrix products of weights and tokens, over the team. */
#ifndef Q35_LINEAR_H
#define Q35_LINEAR_H

#include "threads.h"
#include "weights.h"

/* y[t, r] (+)= sum_k w[r, k] x[t, k]        y [T, rows] with row stride ldy */
typedef struct q35_product {
    const q35_matrix *w;
    float *y;
    size_t ldy;
} q35_product;

/* f32 elements that `memory` must hold for q35_linear with up to T tokens of up to `cols` columns;
   T is 0 where no matrix is multiplied as integers, panels whether some are of blocks. */
size_t q35_linear_floats(size_t cols, size_t T, int threads, int panels);

/* Products of the same x [T, cols] (row stride ldx) with one or more matrices, in one parallel
   region. add: to what y holds, instead of replacing it. Nonzero when the team was cancelled. */
int q35_linear(q35_team *team, const q35_product *products, size_t n, const float *x, size_t ldx,
               size_t T, int add, float *memory);

#endif
