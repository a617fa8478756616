/* RMSNorm over tokens, and rotary positions. */
#ifndef Q35_NORM_ROPE_H
#define Q35_NORM_ROPE_H

#include "qwen35.h"
#include "threads.h"

/* y[t] = rms_norm(x[t]) * scale        x, y [T, D] */
int q35_norm_tokens(q35_team *team, float *y, const float *x, const float *scale, float eps,
                    size_t T, size_t D);

/* Which of the three position rows each frequency follows (interleaved mRoPE): axis [Dr / 2] of 0,
 * 1, 2. */
void q35_rope_axes(uint8_t *axis, const size_t section[3], size_t half);

/* cosine, sine [T, Dr / 2] of positions [3, T] with row stride ldp; NULL: next, next + 1, ... in
 * all three rows */
void q35_rope_table(float *cosine, float *sine, const qwen35_geometry *geometry,
                    const uint8_t *axis, const int32_t *positions, size_t ldp, int32_t next,
                    size_t T);

/* Rotates the first 2 * half elements of x: (x_j, x_{j + half}) by angle j. */
void q35_rope_apply(float *x, const float *cosine, const float *sine, size_t half);

#endif
