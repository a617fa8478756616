/* scratch.c: one block, cut into the buffers of a forward call. */
#include "scratch.h"

#include "attend.h"
#include "deltanet.h"
#include "linear.h"
#include "mem.h"

static size_t max(size_t a, size_t b) { return a > b ? a : b; }

/* Sets the sizes of `s` and, given a block, its pointers; returns the floats in all. */
static size_t lay_out(q35_scratch *s, const qwen35_geometry *g, int threads, size_t state_floats,
                      float *block) {
    const size_t T = Q35_CHUNK, vd = g->Hv * g->Dv;
    size_t linear_cols = 2 * g->Hk * g->Dk + 2 * vd + 2 * g->Hv,
           full_cols = (2 * g->Hq + 2 * g->Hkv) * g->Dh;
    s->proj_cols = max(max(linear_cols, full_cols), 2 * g->F);
    s->mix_cols = max(vd, g->Hq * g->Dh);
    s->worker_floats = max(q35_attend_worker_floats(g), q35_deltanet_worker_floats(g));
    size_t widest = max(max(g->D, g->F), s->mix_cols);
    const q35_buffer parts[] = {
        {&s->x, T * g->D},
        {&s->h, T * g->D},
        {&s->proj, T * s->proj_cols},
        {&s->mix, T * s->mix_cols},
        {&s->gates, g->Hv * 2 * T},
        {&s->cosine, T * g->Dr / 2},
        {&s->sine, T * g->Dr / 2},
        {&s->logits, Q35_LOGIT_ROWS * g->V},
        {&s->worker, (size_t)threads * s->worker_floats},
        {&s->partials, q35_attend_floats(g)},
        {&s->backup, state_floats + 1},
        {&s->panel, q35_linear_floats(widest, T, threads, 1)},
    };
    return q35_lay_out(parts, sizeof parts / sizeof *parts, block);
}

size_t q35_scratch_bytes(const qwen35_geometry *geometry, int threads, size_t state_floats) {
    q35_scratch sizes;
    return lay_out(&sizes, geometry, threads, state_floats, NULL) * sizeof(float);
}

q35_scratch *q35_scratch_new(const qwen35_geometry *geometry, int threads, size_t state_floats,
                             qwen35_status *status) {
    q35_scratch *s = q35_alloc(1, sizeof *s, "scratch", status);
    if (!s) return NULL;
    s->bytes = q35_scratch_bytes(geometry, threads, state_floats);
    s->block = q35_alloc(s->bytes, 1, "scratch", status);
    if (!s->block) {
        q35_free(s);
        return NULL;
    }
    lay_out(s, geometry, threads, state_floats, s->block);
    return s;
}

void q35_scratch_free(q35_scratch *scratch) {
    if (scratch) q35_free(scratch->block);
    q35_free(scratch);
}
