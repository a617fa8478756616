/* attention.c: h -> q gate k v -> norm, rotate -> K/V to their page -> softmax over the pages
 * (attend.c) -> o -> x. */
#include "attention.h"

#include "attend.h"
#include "kernels/kernels.h"
#include "linear.h"
#include "norm_rope.h"

#define TOKENS_PER_TASK 8

typedef struct attention_job {
    const qwen35_geometry *g;
    const q35_layer *layer;
    const q35_cache_shape *shape;
    const q35_batch *batch;
    size_t n; /* index among the attention layers */
    q35_scratch *s;
    size_t ld; /* floats of a proj row: (query, gate) Hq 2 Dh by output; k, v Hkv Dh by token */
} attention_job;

/* Norms and rotates the queries of token t of a span. */
static void prepare_query(const attention_job *j, const q35_span *span, size_t t) {
    const qwen35_geometry *g = j->g;
    const size_t half = g->Dr / 2, turn = (span->row + t) * half;
    float *q = j->s->proj + (span->out + t - span->from) * j->ld;
    for (size_t h = 0; h < g->Hq; h++, q += 2 * g->Dh) {
        q35_kernel->rms_norm(q, q, j->layer->q_norm, g->eps, g->Dh);
        q35_rope_apply(q, j->s->cosine + turn, j->s->sine + turn, half);
    }
}

/* Norms and rotates the keys of token t of a span; stores K and V. */
static void store_token(const attention_job *j, const q35_span *span, size_t t) {
    const qwen35_geometry *g = j->g;
    const size_t half = g->Dr / 2, turn = (span->row + t) * half, Dh = g->Dh;
    const size_t position = span->cache->position + t, page = position / Q35_PAGE;
    const q35_dtype type = j->shape->kv_dtype;
    float *k = j->s->proj + (span->row + t) * j->ld + g->Hq * 2 * Dh, *v = k + g->Hkv * Dh;
    for (size_t h = 0; h < g->Hkv; h++, k += Dh, v += Dh) {
        q35_kernel->rms_norm(k, k, j->layer->k_norm, g->eps, Dh);
        q35_rope_apply(k, j->s->cosine + turn, j->s->sine + turn, half);
        void *keys = q35_cache_kv(span->cache, page, j->n, 0, h);
        void *values = q35_cache_kv(span->cache, page, j->n, 1, h);
        q35_kv_store(keys, type, 0, position % Q35_PAGE, k, Dh);
        q35_kv_store(values, type, 1, position % Q35_PAGE, v, Dh);
    }
}

/* Task: some tokens, of whatever spans. */
static void prepare_tokens(void *arg, size_t index, int worker) {
    (void)worker;
    const attention_job *j = arg;
    const size_t T = j->batch->T;
    size_t end = (index + 1) * TOKENS_PER_TASK < T ? (index + 1) * TOKENS_PER_TASK : T;
    for (size_t row = index * TOKENS_PER_TASK; row < end; row++) {
        const q35_span *span = q35_span_at(j->batch, row);
        size_t t = row - span->row;
        if (t >= span->from) prepare_query(j, span, t);
        store_token(j, span, t);
    }
}

int q35_attention(q35_team *team, const qwen35_geometry *g, const q35_layer *layer,
                  const q35_batch *batch, size_t n, q35_scratch *s) {
    const size_t qd = g->Hq * 2 * g->Dh, kd = g->Hkv * g->Dh, ld = qd + 2 * kd, D = g->D;
    q35_product kv[] = {{&layer->k, s->proj + qd, ld}, {&layer->v, s->proj + qd + kd, ld}};
    q35_product q = {&layer->q, s->proj, ld}, out = {&layer->o, s->x, D};
    attention_job j = {g, layer, batch->spans->cache->shape, batch, n, s, ld};
    if (q35_linear(team, kv, 2, s->h, D, batch->T, 0, s->panel)) return 1;
    q35_keep_outputs(batch, s->h, D);
    if (q35_linear(team, &q, 1, s->h, D, batch->outputs, 0, s->panel)) return 1;
    size_t work = TOKENS_PER_TASK * ld, tasks = (batch->T + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK;
    if (q35_parallel(team, tasks, work, prepare_tokens, &j)) return 1;
    if (q35_attend(team, g, batch, n, s, ld)) return 1;
    return q35_linear(team, &out, 1, s->mix, g->Hq * g->Dh, batch->outputs, 1, s->panel);
}
