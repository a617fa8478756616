/* attention.c: h -> q gate k v -> norm, rotate -> K/V to their page -> online softmax over pages ->
 * gate -> o -> x.
 *
 * A task is one kv head and a few tokens; the query heads that share the kv head go together, so
 * that every K and V row read from the cache serves all of them. Scores exist for one page at a
 * time; so do decoded K and V where the cache keeps them in blocks (q8_0). */
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
    q35_cache *cache;
    size_t n; /* index among the attention layers */
    q35_scratch *s;
    size_t T, from; /* tokens, and the first whose output is wanted */
    size_t ld;      /* floats of a proj row: (query, gate) Hq 2 Dh, k Hkv Dh, v Hkv Dh */
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

/* Task: norm and rotate the heads of some tokens; store K and V. */
static void prepare_tokens(void *arg, size_t index, int worker) {
    (void)worker;
    const attention_job *j = arg;
    const qwen35_geometry *g = j->g;
    const q35_cache_shape *shape = j->cache->shape;
    const size_t half = g->Dr / 2, Dh = g->Dh, row_bytes = q35_row_bytes(shape->kv_dtype, Dh);
    size_t end = (index + 1) * TOKENS_PER_TASK < j->T ? (index + 1) * TOKENS_PER_TASK : j->T;
    for (size_t t = index * TOKENS_PER_TASK; t < end; t++) {
        float *row = j->s->proj + t * j->ld, *k = row + g->Hq * 2 * Dh, *v = k + g->Hkv * Dh;
        const float *cosine = j->s->cosine + t * half, *sine = j->s->sine + t * half;
        for (size_t h = 0; t >= j->from && h < g->Hq; h++) {
            float *q = row + h * 2 * Dh;
            q35_kernel->rms_norm(q, q, j->layer->q_norm, g->eps, Dh);
            q35_rope_apply(q, cosine, sine, half);
        }
        size_t position = j->cache->position + t, page = position / Q35_PAGE,
               slot = position % Q35_PAGE;
        for (size_t h = 0; h < g->Hkv; h++) {
            q35_kernel->rms_norm(k + h * Dh, k + h * Dh, j->layer->k_norm, g->eps, Dh);
            q35_rope_apply(k + h * Dh, cosine, sine, half);
            char *k_page = q35_cache_kv(j->cache, page, j->n, 0, h);
            char *v_page = q35_cache_kv(j->cache, page, j->n, 1, h);
            store(shape->kv_dtype, k_page + slot * row_bytes, k + h * Dh, Dh);
            store(shape->kv_dtype, v_page + slot * row_bytes, v + h * Dh, Dh);
        }
    }
}

/* What one task carries from page to page: rows are (token, query head of the group). */
typedef struct tile {
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
    const void *rows = q35_cache_kv(j->cache, page, j->n, which, head);
    *type = j->cache->shape->kv_dtype;
    if (*type < Q35_DTYPES) return rows;
    q35_decode(a->wide, *type, rows, n * j->g->Dh);
    *type = Q35_F32;
    return a->wide;
}

/* One page of K and V against the tile: token t sees the positions up to its own. */
static void attend_page(const attention_job *j, const tile *a, size_t page, size_t head) {
    const size_t Dh = j->g->Dh, start = page * Q35_PAGE;
    q35_dtype type;
    size_t last = j->cache->position + a->t0 + a->tokens - 1; /* the newest position of the tile */
    size_t seen = last - start + 1 < Q35_PAGE ? last - start + 1 : Q35_PAGE;
    const void *keys = page_rows(j, a, page, 0, head, seen, &type);
    q35_kernel->dot[type](a->scores, Q35_PAGE, keys, Dh, a->q, Dh, seen, a->rows, Dh, 0);
    for (size_t r = 0; r < a->rows; r++) {
        float *scores = a->scores + r * Q35_PAGE;
        size_t own = j->cache->position + a->t0 + r / a->group;
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

static void attend_tile(void *arg, size_t index, int worker) {
    const attention_job *j = arg;
    const qwen35_geometry *g = j->g;
    const size_t Dh = g->Dh, group = g->Hq / g->Hkv;
    const float scale = 1.0f / sqrtf((float)Dh);
    size_t head = index % g->Hkv, t0 = j->from + index / g->Hkv * tile_tokens(g);
    tile a = {.t0 = t0, .group = group};
    a.tokens = j->T - t0 < tile_tokens(g) ? j->T - t0 : tile_tokens(g);
    a.rows = a.tokens * group;
    a.q = j->s->worker + (size_t)worker * j->s->worker_floats;
    a.sum = a.q + a.rows * Dh;
    a.scores = a.sum + a.rows * Dh;
    a.top = a.scores + a.rows * Q35_PAGE;
    a.total = a.top + a.rows;
    a.wide = a.total + a.rows;
    for (size_t r = 0; r < a.rows; r++) {
        const float *q =
            j->s->proj + (t0 + r / group) * j->ld + (head * group + r % group) * 2 * Dh;
        for (size_t i = 0; i < Dh; i++) a.q[r * Dh + i] = q[i] * scale;
        a.top[r] = -INFINITY;
        a.total[r] = 0;
    }
    memset(a.sum, 0, a.rows * Dh * sizeof *a.sum);
    size_t last_page = (j->cache->position + t0 + a.tokens - 1) / Q35_PAGE;
    for (size_t page = 0; page <= last_page; page++) attend_page(j, &a, page, head);
    for (size_t r = 0; r < a.rows; r++) {
        size_t t = t0 + r / group, h = head * group + r % group;
        const float *gate = j->s->proj + t * j->ld + h * 2 * Dh + Dh;
        q35_kernel->scale(a.sum + r * Dh, 1.0f / a.total[r], Dh);
        q35_kernel->sigmoid_mul(j->s->mix + t * g->Hq * Dh + h * Dh, gate, a.sum + r * Dh, Dh);
    }
}

int q35_attention(q35_team *team, const qwen35_geometry *g, const q35_layer *layer,
                  q35_cache *cache, size_t n, q35_scratch *s, size_t T, size_t from) {
    const size_t qd = g->Hq * 2 * g->Dh, kd = g->Hkv * g->Dh, ld = qd + 2 * kd, D = g->D;
    const size_t answers = T - from;
    q35_product kv[] = {{&layer->k, s->proj + qd, ld}, {&layer->v, s->proj + qd + kd, ld}};
    q35_product q = {&layer->q, s->proj + from * ld, ld};
    attention_job j = {g, layer, cache, n, s, T, from, ld};
    if (q35_linear(team, kv, 2, s->h, D, T, 0, s->panel)) return 1;
    if (q35_linear(team, &q, 1, s->h + from * D, D, answers, 0, s->panel)) return 1;
    size_t work = TOKENS_PER_TASK * ld, tasks = (T + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK;
    if (q35_parallel(team, tasks, work, prepare_tokens, &j)) return 1;
    size_t tiles = (answers + tile_tokens(g) - 1) / tile_tokens(g);
    work = 2 * tile_tokens(g) * (g->Hq / g->Hkv) * g->Dh * (cache->position + T);
    if (q35_parallel(team, tiles * g->Hkv, work, attend_tile, &j)) return 1;
    q35_product out = {&layer->o, s->x + from * D, D};
    float *mixed = s->mix + from * g->Hq * g->Dh;
    return q35_linear(team, &out, 1, mixed, g->Hq * g->Dh, answers, 1, s->panel);
}
