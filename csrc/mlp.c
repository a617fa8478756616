/* mlp.c: gate and up in one region, their product in place of gate, down added to the residual
 * stream. */
#include "mlp.h"

#include "kernels/kernels.h"
#include "linear.h"

#define TOKENS_PER_TASK 4

typedef struct swiglu_job {
    float *proj;
    size_t F, T;
} swiglu_job;

static void swiglu_some(void *arg, size_t index, int worker) {
    (void)worker;
    const swiglu_job *j = arg;
    size_t end = (index + 1) * TOKENS_PER_TASK < j->T ? (index + 1) * TOKENS_PER_TASK : j->T;
    for (size_t t = index * TOKENS_PER_TASK; t < end; t++) {
        float *gate = j->proj + t * 2 * j->F, *up = gate + j->F;
        q35_kernel->silu_mul(gate, gate, up, j->F);
    }
}

int q35_mlp(q35_team *team, const qwen35_geometry *g, const q35_layer *layer, q35_scratch *s,
            size_t T) {
    size_t ld = 2 * g->F;
    q35_product in[] = {{&layer->gate, s->proj, ld}, {&layer->up, s->proj + g->F, ld}};
    if (q35_linear(team, in, 2, s->h, g->D, T, 0, s->panel)) return 1;
    swiglu_job j = {s->proj, g->F, T};
    if (q35_parallel(team, (T + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK, TOKENS_PER_TASK * 16 * g->F,
                     swiglu_some, &j))
        return 1;
    q35_product out = {&layer->down, s->x, g->D};
    return q35_linear(team, &out, 1, s->proj, ld, T, 1, s->panel);
}
