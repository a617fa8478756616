/* attention.c: h -> q gate k v -> norm, rotate -> K/V to their page -> online softmax over pages ->
 * gate -> o -> x.
 *
 * A task is one kv head and a few tokens of a span; the query heads that share the kv head go
 * together, so that every K and V row read from the cache serves all of them. Scores exist for one
 * page at a time; so do decoded K and V where the cache keeps them in blocks (q8_0). */
#include "attention.h"

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "linear.h"
#include "norm_rope.h"

#define TILE_ROWS 32 /* (token, query head) pairs of one task */
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

static size_t tile_tokens(const qwen35_geometry *g) {
    size_t group = g->Hq / g->Hkv;
    return group >= TILE_ROWS ? 1 : TILE_ROWS / group;
}

size_t q35_attention_worker_floats(const qwen35_geometry *g) {
    size_t rows = tile_tokens(g) * (g->Hq / g->Hkv);
    return rows * (2 * g->Dh + Q35_PAGE + 2) + Q35_PAGE * g->Dh;
}

static void store(q35_dtype kv, void *y, const float *x, size_t n) {
    if (kv < Q35_DTYPES)
        q35_kernel->narrow[kv](y, x, n);
    else
        q35_encode(y, kv, x, NULL, n);
}

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
    const size_t offset = position % Q35_PAGE * q35_row_bytes(type, Dh);
    float *k = j->s->proj + (span->row + t) * j->ld + g->Hq * 2 * Dh, *v = k + g->Hkv * Dh;
    for (size_t h = 0; h < g->Hkv; h++, k += Dh, v += Dh) {
        q35_kernel->rms_norm(k, k, j->layer->k_norm, g->eps, Dh);
        q35_rope_apply(k, j->s->cosine + turn, j->s->sine + turn, half);
        store(type, (char *)q35_cache_kv(span->cache, page, j->n, 0, h) + offset, k, Dh);
        store(type, (char *)q35_cache_kv(span->cache, page, j->n, 1, h) + offset, v, Dh);
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

/* What one task carries from page to page: rows are (token, query head of the group). */
typedef struct tile {
    const q35_span *span;
    size_t t0, tokens, group, rows;
    float *q;      /* [rows, Dh] scaled by 1 / sqrt(Dh) */
    float *sum;    /* [rows, Dh] of exp(score - top) v */
    float *scores; /* [rows, Q35_PAGE] */
    float *top;    /* [rows] running maximum */
    float *total;  /* [rows] of exp(score - top) */
    float *wide;   /* [Q35_PAGE, Dh] K or V of a page, decoded */
} tile;

/* K (which = 0) or V (1) of a head on a page, [n, Dh] of a dense type. */
static const void *page_rows(const attention_job *j, const tile *a, size_t page, int which,
                             size_t head, size_t n, q35_dtype *type) {
    const void *rows = q35_cache_kv(a->span->cache, page, j->n, which, head);
    *type = j->shape->kv_dtype;
    if (*type < Q35_DTYPES) return rows;
    q35_decode(a->wide, *type, rows, n * j->g->Dh);
    *type = Q35_F32;
    return a->wide;
}

/* One page of K and V against the tile: token t sees the positions up to its own. */
static void attend_page(const attention_job *j, const tile *a, size_t page, size_t head) {
    const size_t Dh = j->g->Dh, start = page * Q35_PAGE, first = a->span->cache->position + a->t0;
    q35_dtype type;
    size_t last = first + a->tokens - 1; /* the newest position of the tile */
    size_t seen = last - start + 1 < Q35_PAGE ? last - start + 1 : Q35_PAGE;
    const void *keys = page_rows(j, a, page, 0, head, seen, &type);
    q35_kernel->dot[type](a->scores, Q35_PAGE, keys, Dh, a->q, Dh, seen, a->rows, Dh, 0);
    for (size_t r = 0; r < a->rows; r++) {
        float *scores = a->scores + r * Q35_PAGE;
        size_t own = first + r / a->group;
        size_t mine = own < start ? 0 : own - start + 1 < seen ? own - start + 1 : seen;
        memset(scores + mine, 0, (seen - mine) * sizeof *scores);
        if (mine == 0) continue;
        float page_total;
        float top = q35_kernel->softmax_step(scores, mine, a->top[r], &page_total);
        float shrink = expf(a->top[r] - top);
        a->total[r] = a->total[r] * shrink + page_total;
        a->top[r] = top;
        if (shrink != 1.0f) q35_kernel->scale(a->sum + r * Dh, shrink, Dh);
    }
    const void *values = page_rows(j, a, page, 1, head, seen, &type);
    q35_kernel->mix[type](a->sum, Dh, a->scores, Q35_PAGE, values, Dh, a->rows, seen, Dh);
}

static size_t span_tiles(const qwen35_geometry *g, const q35_span *span) {
    return (span->T - span->from + tile_tokens(g) - 1) / tile_tokens(g);
}

static void attend_tile(void *arg, size_t index, int worker) {
    const attention_job *j = arg;
    const qwen35_geometry *g = j->g;
    const size_t Dh = g->Dh, group = g->Hq / g->Hkv;
    const float scale = 1.0f / sqrtf((float)Dh);
    const q35_span *span = j->batch->spans;
    size_t head = index % g->Hkv, number = index / g->Hkv;
    for (; number >= span_tiles(g, span); span++) number -= span_tiles(g, span);
    size_t t0 = span->from + number * tile_tokens(g), row = span->out + number * tile_tokens(g);
    tile a = {.span = span, .t0 = t0, .group = group};
    a.tokens = span->T - t0 < tile_tokens(g) ? span->T - t0 : tile_tokens(g);
    a.rows = a.tokens * group;
    a.q = j->s->worker + (size_t)worker * j->s->worker_floats;
    a.sum = a.q + a.rows * Dh;
    a.scores = a.sum + a.rows * Dh;
    a.top = a.scores + a.rows * Q35_PAGE;
    a.total = a.top + a.rows;
    a.wide = a.total + a.rows;
    for (size_t r = 0; r < a.rows; r++) {
        const float *q =
            j->s->proj + (row + r / group) * j->ld + (head * group + r % group) * 2 * Dh;
        for (size_t i = 0; i < Dh; i++) a.q[r * Dh + i] = q[i] * scale;
        a.top[r] = -INFINITY;
        a.total[r] = 0;
    }
    memset(a.sum, 0, a.rows * Dh * sizeof *a.sum);
    size_t last_page = (span->cache->position + t0 + a.tokens - 1) / Q35_PAGE;
    for (size_t page = 0; page <= last_page; page++) attend_page(j, &a, page, head);
    for (size_t r = 0; r < a.rows; r++) {
        size_t out = row + r / group, h = head * group + r % group;
        const float *gate = j->s->proj + out * j->ld + h * 2 * Dh + Dh;
        q35_kernel->scale(a.sum + r * Dh, 1.0f / a.total[r], Dh);
        q35_kernel->sigmoid_mul(j->s->mix + out * g->Hq * Dh + h * Dh, gate, a.sum + r * Dh, Dh);
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
    size_t tiles = 0, positions = 0;
    for (size_t i = 0; i < batch->n; i++) {
        const q35_span *span = &batch->spans[i];
        tiles += span_tiles(g, span);
        positions += span_tiles(g, span) * (span->cache->position + span->T);
    }
    if (tiles) work = 2 * tile_tokens(g) * (g->Hq / g->Hkv) * g->Dh * (positions / tiles);
    if (q35_parallel(team, tiles * g->Hkv, work, attend_tile, &j)) return 1;
    return q35_linear(team, &out, 1, s->mix, g->Hq * g->Dh, batch->outputs, 1, s->panel);
}
