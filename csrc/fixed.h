/* Matrix products in 16-bit fixed point: as q35_linear, but weights and tokens are rounded to 15
 * bits of their blocks' norms (kernels.h) on the way, ten times finer than bf16, and the processor
 * then multiplies twice as many at a time. For many tokens: weights are converted anew in every
 * call. */
#ifndef Q35_FIXED_H
#define Q35_FIXED_H

#include "linear.h"

/* f32 elements that `work` must hold for up to T tokens of `cols` columns; 0: this target has no
   such products. */
size_t q35_fixed_floats(size_t cols, size_t T, int threads);

/* One product, as q35_linear. Nonzero when the team was cancelled. */
int q35_fixed_linear(q35_team *team, const q35_product *product, const float *x, size_t ldx,
                     size_t T, int add, float *work);

#endif
