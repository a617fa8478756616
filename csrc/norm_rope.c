/* norm_rope.c: the two things done to single vectors before they meet a matrix. */
#include "norm_rope.h"

#include <math.h>

#include "kernels/kernels.h"

#define TOKENS_PER_TASK 16

typedef struct norm_job {
    float *y;
    const float *x, *scale;
    float eps;
    size_t T, D;
} norm_job;

static void norm_some(void *arg, size_t index, int worker) {
    (void)worker;
    const norm_job *j = arg;
    size_t end = (index + 1) * TOKENS_PER_TASK < j->T ? (index + 1) * TOKENS_PER_TASK : j->T;
    for (size_t t = index * TOKENS_PER_TASK; t < end; t++)
        q35_kernel->rms_norm(j->y + t * j->D, j->x + t * j->D, j->scale, j->eps, j->D);
}

int q35_norm_tokens(q35_team *team, float *y, const float *x, const float *scale, float eps,
                    size_t T, size_t D) {
    norm_job j = {y, x, scale, eps, T, D};
    return q35_parallel(team, (T + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK, TOKENS_PER_TASK * D,
                        norm_some, &j);
}

void q35_rope_axes(uint8_t *axis, const size_t section[3], size_t half) {
    for (size_t j = 0; j < half; j++) {
        size_t row = j % 3;
        axis[j] = (uint8_t)(row != 0 && j < 3 * section[row] ? row : 0);
    }
}

void q35_rope_table(float *cosine, float *sine, const qwen35_geometry *g, const uint8_t *axis,
                    const int32_t *positions, size_t ldp, int32_t next, size_t T) {
    size_t half = g->Dr / 2;
    for (size_t t = 0; t < T; t++) {
        for (size_t j = 0; j < half; j++) {
            int32_t position = positions ? positions[axis[j] * ldp + t] : next + (int32_t)t;
            float angle =
                (float)position * g->inv_freq[j]; /* in f32, as the reference multiplies it */
            cosine[t * half + j] = cosf(angle) * g->rope_scaling;
            sine[t * half + j] = sinf(angle) * g->rope_scaling;
        }
    }
}

void q35_rope_apply(float *x, const float *cosine, const float *sine, size_t half) {
    for (size_t j = 0; j < half; j++) {
        float a = x[j], b = x[j + half];
        x[j] = a * cosine[j] - b * sine[j];
        x[j + half] = b * cosine[j] + a * sine[j];
    }
}
