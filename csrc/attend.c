/* attend.c: q, K/V pages -> online softmax page by page within a segment -> segments in their order
 * -> gate -> mix.
 *
 * A tile is one kv head and a few tokens of a span; the query heads that share the kv head go
 * together, so that every K and V row read from the cache serves all of them. Scores exist for one
 * page at a time. Positions fall into segments of fixed length whose sums are added up in order,
 * whoever made them: where there are fewer tiles than threads, as in decode, the segments of a tile
 * are tasks of their own, and the result has the same bits. */
#include "attend.h"

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "mem.h"

#define SEGMENT 16      /* pages */
#define TILE_ROWS 96    /* (token, query head) pairs of one tile at most: whole register tiles */
#define LEAST_ROWS 24   /* where there would be few tiles */
#define TILES_EACH 3    /* tiles for each thread are enough to share them out */
#define FEW_ROWS 16     /* that wait for memory */
#define SPLIT_OUTPUTS 8 /* at most, of a call whose segments are tasks */
#define SLOTS 64        /* partial sums of one output, each over a segment */

typedef struct attend_job {
    const qwen35_geometry *g;
    const q35_cache_shape *shape;
    const q35_batch *batch;
    size_t n; /* index among the attention layers */
    q35_scratch *s;
    size_t ld, tile_tokens, tiles;
    size_t first, segments; /* split: the segments of this round */
} attend_job;

typedef struct tile {
    const q35_span *span;
    size_t t0, tokens, out; /* the first token, how many, and the row of its output */
    size_t head, group;
    q35_queries q; /* its rows: (token, query head of the group) */
    float *wide;   /* [Q35_PAGE, Dh] K or V of a page, decoded */
} tile;

static size_t group_of(const qwen35_geometry *g) { return g->Hq / g->Hkv; }

static size_t most_rows(const qwen35_geometry *g) {
    return group_of(g) > TILE_ROWS ? group_of(g) : TILE_ROWS;
}

static size_t sums_floats(const qwen35_geometry *g, size_t rows) {
    return rows * (2 + q35_kv_dims(g->Dh));
}

static q35_sums sums_at(size_t rows, float *memory) {
    return (q35_sums){memory, memory + rows, memory + 2 * rows};
}

/* Sets the pointers, given memory; returns the floats in all. */
static size_t lay_out(tile *a, q35_sums *carried, const qwen35_geometry *g, float *memory) {
    const size_t rows = most_rows(g);
    float *queries = NULL, *sums = NULL;
    const q35_buffer parts[] = {
        {&queries, q35_queries_lay_out(&a->q, rows, NULL)},
        {&sums, sums_floats(g, rows)},
        {&a->wide, Q35_PAGE * g->Dh},
    };
    size_t floats = q35_lay_out(parts, sizeof parts / sizeof *parts, memory);
    if (!memory) return floats;
    q35_queries_lay_out(&a->q, rows, queries);
    *carried = sums_at(rows, sums);
    return floats;
}

size_t q35_attend_worker_floats(const qwen35_geometry *g) {
    tile a = {.q.Dh = g->Dh};
    return lay_out(&a, NULL, g, NULL);
}

size_t q35_attend_floats(const qwen35_geometry *g) {
    return (SLOTS + SPLIT_OUTPUTS) * sums_floats(g, g->Hq);
}

/* ---- one page ---- */

/* K (which = 0) or V (1) of the tile's head on a page: [n, Dh] of a dense type, or int16. */
static const void *page_rows(const attend_job *j, const tile *a, size_t page, int which, size_t n,
                             q35_dtype *type) {
    const void *rows = q35_cache_kv(a->span->cache, page, j->n, which, a->head);
    *type = j->shape->kv_dtype;
    if (*type < Q35_DTYPES || *type == Q35_INT16) return rows;
    q35_decode(a->wide, *type, rows, n * j->g->Dh);
    *type = Q35_F32;
    return a->wide;
}

/* Asks for K (which = 0) or V (1) of a page before its turn: few rows wait for memory, and read it
   in an order that the processor does not foresee. */
static void ask_ahead(const attend_job *j, const tile *a, size_t page, int which) {
    if (a->q.n > FEW_ROWS || page >= a->span->cache->n_pages) return;
    const char *rows = q35_cache_kv(a->span->cache, page, j->n, which, a->head);
    for (size_t i = 0; i < j->shape->head_bytes; i += 64) __builtin_prefetch(rows + i);
}

/* Row r does not see the page. */
static void skip_row(const q35_queries *q, size_t r) {
    memset(q->scores + r * Q35_PAGE, 0, Q35_PAGE * sizeof *q->scores);
    memset(q->weights + r * Q35_PAGE, 0, Q35_PAGE * sizeof *q->weights);
    q->weight_factor[r] = 0;
}

/* Token t of the span sees the positions up to its own. */
static void attend_page(const attend_job *j, const tile *a, size_t page) {
    const q35_queries *q = &a->q;
    const size_t start = page * Q35_PAGE, first = a->span->cache->position + a->t0;
    const size_t last = first + a->tokens - 1; /* the newest position of the tile */
    const size_t seen = last - start + 1 < Q35_PAGE ? last - start + 1 : Q35_PAGE;
    q35_dtype type;
    ask_ahead(j, a, page, 1);
    const void *keys = page_rows(j, a, page, 0, seen, &type);
    const int integers = type == Q35_INT16;
    if (integers)
        q35_queries_score(q, keys);
    else
        q35_kernel->dot[type](q->scores, Q35_PAGE, keys, q->Dh, q->x, q->Dh, seen, q->n, q->Dh, 0);
    const void *values = page_rows(j, a, page, 1, seen, &type);
    for (size_t r = 0; r < q->n; r++) {
        const size_t own = first + r / a->group;
        if (own < start)
            skip_row(q, r);
        else
            q35_queries_weigh(q, r, integers ? values : NULL,
                              own - start + 1 < seen ? own - start + 1 : seen);
    }
    ask_ahead(j, a, page + 1, 0);
    if (integers)
        q35_queries_mix(q, values);
    else
        q35_kernel->mix[type](q->now.sum, q35_kv_dims(q->Dh), q->scores, Q35_PAGE, values, q->Dh,
                              q->n, seen, q->Dh);
}

/* ---- segments and tiles ---- */

static size_t pages_of(const tile *a) {
    return (a->span->cache->position + a->t0 + a->tokens + Q35_PAGE - 1) / Q35_PAGE;
}

static size_t segments_of(const tile *a) { return (pages_of(a) + SEGMENT - 1) / SEGMENT; }

static void attend_segment(const attend_job *j, const tile *a, size_t segment) {
    const size_t end = (segment + 1) * SEGMENT, pages = pages_of(a);
    q35_sums_begin(&a->q.now, a->q.n, a->q.Dh);
    for (size_t page = segment * SEGMENT; page < end && page < pages; page++)
        attend_page(j, a, page);
}

/* carried += more, where more has seen anything. */
static void merge(const tile *a, const q35_sums *carried, const q35_sums *more) {
    const size_t dims = q35_kv_dims(a->q.Dh);
    for (size_t r = 0; r < a->q.n; r++) {
        if (!(more->top[r] > -INFINITY)) continue;
        const float top = carried->top[r] > more->top[r] ? carried->top[r] : more->top[r];
        const float old = expf(carried->top[r] - top), new = expf(more->top[r] - top);
        float *sum = carried->sum + r * dims, *add = more->sum + r * dims;
        if (old != 1.0f) q35_kernel->scale(sum, old, dims);
        if (new != 1.0f) q35_kernel->scale(add, new, dims);
        q35_kernel->add(sum, add, dims);
        carried->total[r] = carried->total[r] * old + more->total[r] * new;
        carried->top[r] = top;
    }
}

static size_t span_tiles(const attend_job *j, const q35_span *span) {
    return (span->T - span->from + j->tile_tokens - 1) / j->tile_tokens;
}

/* The tile of a number below tiles x Hkv. */
static tile tile_at(const attend_job *j, size_t index) {
    const qwen35_geometry *g = j->g;
    const q35_span *span = j->batch->spans;
    size_t number = index / g->Hkv;
    for (; number >= span_tiles(j, span); span++) number -= span_tiles(j, span);
    tile a = {.span = span,
              .head = index % g->Hkv,
              .group = group_of(g),
              .q.Dh = g->Dh,
              .t0 = span->from + number * j->tile_tokens,
              .out = span->out + number * j->tile_tokens};
    a.tokens = span->T - a.t0 < j->tile_tokens ? span->T - a.t0 : j->tile_tokens;
    a.q.n = a.tokens * a.group;
    return a;
}

/* Query and gate [2, Dh] of a row of the tile. */
static float *query_of(const attend_job *j, const tile *a, size_t r) {
    return j->s->proj + (a->out + r / a->group) * j->ld +
           (a->head * a->group + r % a->group) * 2 * j->g->Dh;
}

static void load_queries(const attend_job *j, const tile *a) {
    const size_t Dh = j->g->Dh;
    const float scale = 1.0f / sqrtf((float)Dh);
    for (size_t r = 0; r < a->q.n; r++) {
        const float *q = query_of(j, a, r);
        if (j->shape->kv_dtype == Q35_INT16) {
            int16_t *y = (int16_t *)a->q.x + r * q35_kv_dims(Dh);
            if (Dh % 2) y[Dh] = 0; /* half of the last pair */
            a->q.x_factor[r] = scale * q35_kernel->fix_all(y, q, Dh, Q35_KV_NORM);
            continue;
        }
        for (size_t i = 0; i < Dh; i++) ((float *)a->q.x)[r * Dh + i] = q[i] * scale;
    }
}

static void finish(const attend_job *j, const tile *a, const q35_sums *s) {
    const size_t Dh = j->g->Dh;
    for (size_t r = 0; r < a->q.n; r++) {
        float *sum = s->sum + r * q35_kv_dims(Dh);
        const size_t h = a->head * a->group + r % a->group;
        q35_kernel->scale(sum, 1.0f / s->total[r], Dh);
        q35_kernel->sigmoid_mul(j->s->mix + ((a->out + r / a->group) * j->g->Hq + h) * Dh,
                                query_of(j, a, r) + Dh, sum, Dh);
    }
}

static void attend_tile(void *arg, size_t index, int worker) {
    const attend_job *j = arg;
    tile a = tile_at(j, index);
    q35_sums carried;
    lay_out(&a, &carried, j->g, j->s->worker + (size_t)worker * j->s->worker_floats);
    load_queries(j, &a);
    q35_sums_begin(&carried, a.q.n, a.q.Dh);
    for (size_t segment = 0; segment < segments_of(&a); segment++) {
        attend_segment(j, &a, segment);
        merge(&a, &carried, &a.q.now);
    }
    finish(j, &a, &carried);
}

/* ---- split: a task is one segment of a tile ---- */

/* What is carried from round to round (slot 0), and what the segments of this one made. */
static q35_sums slot_at(const attend_job *j, const tile *a, size_t slot) {
    const size_t row =
        (slot * j->batch->outputs + a->out) * j->g->Hq + a->head * a->group * a->tokens;
    return sums_at(a->q.n, j->s->partials + sums_floats(j->g, row));
}

static void attend_one(void *arg, size_t index, int worker) {
    const attend_job *j = arg;
    const size_t n = j->tiles * j->g->Hkv, segment = j->first + index / n;
    tile a = tile_at(j, index % n);
    if (segment >= segments_of(&a)) return;
    q35_sums unused;
    lay_out(&a, &unused, j->g, j->s->worker + (size_t)worker * j->s->worker_floats);
    a.q.now = slot_at(j, &a, 1 + index / n);
    load_queries(j, &a);
    attend_segment(j, &a, segment);
}

static void merge_tile(void *arg, size_t index, int worker) {
    (void)worker;
    const attend_job *j = arg;
    const tile a = tile_at(j, index);
    const size_t end = segments_of(&a);
    const q35_sums carried = slot_at(j, &a, 0);
    if (j->first == 0) q35_sums_begin(&carried, a.q.n, a.q.Dh);
    for (size_t segment = j->first; segment < j->first + j->segments && segment < end; segment++) {
        const q35_sums more = slot_at(j, &a, 1 + segment - j->first);
        merge(&a, &carried, &more);
    }
    if (j->first < end && end <= j->first + j->segments) finish(j, &a, &carried);
}

static int attend_split(q35_team *team, attend_job *j, size_t segments) {
    const size_t round = SLOTS / j->batch->outputs, n = j->tiles * j->g->Hkv;
    const size_t row = 2 * group_of(j->g) * j->tile_tokens * j->g->Dh;
    for (j->first = 0; j->first < segments; j->first += round) {
        j->segments = segments - j->first < round ? segments - j->first : round;
        if (q35_parallel(team, n * j->segments, row * SEGMENT * Q35_PAGE, attend_one, j)) return 1;
        if (q35_parallel(team, n, row * j->segments, merge_tile, j)) return 1;
    }
    return 0;
}

static void choose_tiles(attend_job *j, size_t rows) {
    const size_t group = group_of(j->g);
    j->tile_tokens = group >= rows ? 1 : rows / group;
    j->tiles = 0;
    for (size_t i = 0; i < j->batch->n; i++) j->tiles += span_tiles(j, &j->batch->spans[i]);
}

int q35_attend(q35_team *team, const qwen35_geometry *g, const q35_batch *batch, size_t n,
               q35_scratch *s, size_t ld) {
    attend_job j = {
        .g = g, .shape = batch->spans->cache->shape, .batch = batch, .n = n, .s = s, .ld = ld};
    if (!batch->outputs) return 0;
    const size_t enough = TILES_EACH * (size_t)team->threads;
    size_t rows = TILE_ROWS, last = 0, positions = 0;
    for (choose_tiles(&j, rows); rows > LEAST_ROWS && j.tiles * g->Hkv < enough;)
        choose_tiles(&j, rows /= 2);
    for (size_t i = 0; i < batch->n; i++) {
        const q35_span *span = &batch->spans[i];
        const size_t end = span->cache->position + span->T;
        if (end > last) last = end;
        positions += span_tiles(&j, span) * end;
    }
    const size_t segments = (last + SEGMENT * Q35_PAGE - 1) / (SEGMENT * Q35_PAGE);
    if (segments > 1 && batch->outputs <= SPLIT_OUTPUTS && j.tiles * g->Hkv < enough)
        return attend_split(team, &j, segments);
    const size_t work = 2 * j.tile_tokens * group_of(g) * g->Dh * (positions / j.tiles);
    return q35_parallel(team, j.tiles * g->Hkv, work, attend_tile, &j);
}
