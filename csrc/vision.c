/* vision.c: pixels -> patches -> + position -> [norm -> attention -> norm -> mlp] x L -> merger ->
 * features (transformers models/qwen3_5, Qwen3_5VisionModel; DeepStack: models/qwen3_vl).
 *
 * A frame, the patches of one temporal position, attends to itself alone and is done before the
 * next begins, so memory depends on the size of a frame and not on their number. Within a block
 * keys and values of the whole frame are made first; queries and MLP then go by in chunks.
 *
 * All is f32, but where weights are bf16 and the caller allows it: then the linear layers multiply
 * in fixed point (fixed.h; those of f16 too), and so do the two products of attention, keys and
 * values lying as the text model's do (kv.h). That is twice as fast; features of a random tower of
 * 0.8B's size stay within 4e-4 of the largest, 6e-4 for an image of one colour, which is the linear
 * layers' doing: attention in f32 leaves them there. */
#include "vision.h"

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kv.h"
#include "linear.h"
#include "mem.h"

#define CHUNK 1536         /* about so many patches have their projections at a time */
#define KEYS Q35_PAGE      /* in a block */
#define QUERIES 64         /* of one task */
#define PATCHES_PER_TASK 8 /* where a task is a few passes over single vectors */
#define LAYER_NORM_EPS 1e-6f

/* One frame under way. m patches a side are one token; Dh = D / H. */
typedef struct tower {
    const qwen35_vision_geometry *g;
    const q35_vision_weights *w;
    q35_team *team;
    size_t rows, cols, S; /* patches of the frame */
    size_t chunk;         /* of them at a time: whole tokens, in parts of one size */
    size_t Dh;            /* head dim */
    size_t blocks;        /* of keys */
    size_t block_bytes;   /* of one head's keys or values */
    size_t t0, T;         /* the chunk under way */
    const q35_vision_block *block;
    const q35_merger *merger;
    size_t norm_width; /* of the merger under way: D, or of DeepStack's M */
    float *x;          /* [S, D] residual stream */
    /* [H, blocks] as kv.h says, in fixed point; or f32, keys transposed so that a block of scores
       is a mix: [Dh, KEYS] and [KEYS, Dh]. */
    int integers;
    void *keys, *values;
    float *cosine, *sine; /* [max(rows, cols), Dh / 4] */
    float *h;             /* [chunk, D] normed */
    float *proj;          /* [chunk, max(2 D, F)], of the merger [chunk / m^2, M] */
    float *mix;           /* [chunk, D] */
    float *worker;        /* [threads, worker_floats] */
    float *panel;         /* of q35_linear */
    size_t worker_floats;
} tower;

static size_t min(size_t a, size_t b) { return a < b ? a : b; }
static size_t max(size_t a, size_t b) { return a > b ? a : b; }

int q35_vision_check(const qwen35_vision_geometry *g, qwen35_status *status) {
    if (!g->D || !g->F || !g->L || !g->H || !g->channels || !g->frames || !g->patch || !g->merge ||
        !g->side)
        return q35_fail(status, Q35_ARGUMENT, "vision: every dimension must be at least 1");
    if (g->D % g->H || g->D / g->H % 4)
        return q35_fail(status, Q35_ARGUMENT, "vision: %zu dims for %zu heads of a multiple of 4",
                        g->D, g->H);
    if (g->D / g->H > Q35_MAX_HEAD)
        return q35_fail(status, Q35_ARGUMENT, "vision: heads of %zu, at most %d", g->D / g->H,
                        Q35_MAX_HEAD);
    for (size_t i = 0; i < g->n_deep; i++) {
        if (g->deep[i] >= g->L)
            return q35_fail(status, Q35_ARGUMENT, "vision: DeepStack after block %zu of %zu",
                            g->deep[i], g->L);
        for (size_t j = 0; j < i; j++)
            if (g->deep[i] == g->deep[j])
                return q35_fail(status, Q35_ARGUMENT, "vision: DeepStack twice after block %zu",
                                g->deep[i]);
    }
    return Q35_OK;
}

/* ---- memory ---- */

/* Sets the sizes and, given memory, the pointers; returns the floats in all. */
static size_t lay_out(tower *v, int threads, float *memory) {
    const qwen35_vision_geometry *g = v->g;
    const size_t D = g->D, m2 = g->merge * g->merge, T = v->chunk;
    const size_t quarter = v->Dh / 4, kv = v->blocks * g->H * v->block_bytes / sizeof(float);
    const size_t widest = max(max(m2 * D, g->F), v->w->patch.cols);
    q35_queries q = {.Dh = v->Dh};
    v->worker_floats = q35_queries_lay_out(&q, QUERIES, NULL);
    const q35_buffer parts[] = {
        {&v->x, v->S * D},
        {&v->keys, kv},
        {&v->values, kv},
        {&v->cosine, max(v->rows, v->cols) * quarter},
        {&v->sine, max(v->rows, v->cols) * quarter},
        {&v->h, T * D},
        {&v->proj, T * max(2 * D, g->F)},
        {&v->mix, T * D},
        {&v->worker, (size_t)threads * v->worker_floats},
        {&v->panel, q35_linear_floats(widest, g->exact ? 0 : T, threads, 0)},
    };
    return q35_lay_out(parts, sizeof parts / sizeof *parts, memory);
}

static void rotary_tables(tower *v) {
    size_t quarter = v->Dh / 4;
    for (size_t position = 0; position < max(v->rows, v->cols); position++)
        for (size_t j = 0; j < quarter; j++) {
            float angle = (float)position * v->g->inv_freq[j];
            v->cosine[position * quarter + j] = cosf(angle);
            v->sine[position * quarter + j] = sinf(angle);
        }
}

/* Row and column of patch i: tokens go by rows, and within a token its patches do. */
static void locate(const tower *v, size_t i, size_t *row, size_t *col) {
    size_t m = v->g->merge, token = i / (m * m), inner = i % (m * m);
    *row = token / (v->cols / m) * m + inner / m;
    *col = token % (v->cols / m) * m + inner % m;
}

/* y [T, rows] (+)= w x, x [T, cols] without gaps */
static int multiply(tower *v, const q35_matrix *w, float *y, size_t ldy, const float *x, size_t T,
                    int add) {
    q35_product product = {w, y, ldy};
    return q35_linear(v->team, &product, 1, x, w->cols, T, add, v->panel);
}

/* Runs a task over the patches t0 .. t0+T of the chunk, a few at a time. */
static int over_patches(tower *v, size_t work, q35_task *task) {
    size_t tasks = (v->T + PATCHES_PER_TASK - 1) / PATCHES_PER_TASK;
    return q35_parallel(v->team, tasks, PATCHES_PER_TASK * work, task, v);
}

/* ---- patches ---- */

/* Where position `index` of `size` falls in a table of `side`: its tap and the weight of the next.
 */
static size_t tap(size_t index, size_t size, size_t side, float *next) {
    float at = (float)(index * (side - 1)) / (float)max(size - 1, 1), floor = floorf(at);
    *next = at - floor;
    return (size_t)floor;
}

/* Task: x += bias + position, the square table interpolated to the frame (corners on corners). */
static void place_patches(void *arg, size_t index, int worker) {
    (void)worker;
    const tower *v = arg;
    const q35_matrix *table = &v->w->position;
    const size_t D = v->g->D, side = v->g->side;
    const size_t row_bytes = D * q35_dtype_bytes(table->dtype);
    size_t end = min((index + 1) * PATCHES_PER_TASK, v->T);
    for (size_t t = index * PATCHES_PER_TASK; t < end; t++) {
        size_t row, col;
        locate(v, v->t0 + t, &row, &col);
        float down, right, *x = v->x + (v->t0 + t) * D;
        size_t r = tap(row, v->rows, side, &down), c = tap(col, v->cols, side, &right);
        float weight[2][2] = {{(1 - down) * (1 - right), (1 - down) * right},
                              {down * (1 - right), down * right}};
        q35_kernel->add(x, v->w->patch_bias, D);
        for (size_t i = 0; i < 2 && r + i < side; i++)
            q35_kernel->mix[table->dtype](
                x, D, weight[i], 2, (const char *)table->data + ((r + i) * side + c) * row_bytes, D,
                1, min(2, side - c), D);
    }
}

static int embed_patches(tower *v, const float *pixels) {
    const q35_matrix *w = &v->w->patch;
    for (v->t0 = 0; v->t0 < v->S; v->t0 += v->chunk) {
        v->T = min(v->chunk, v->S - v->t0);
        float *x = v->x + v->t0 * v->g->D;
        if (multiply(v, w, x, v->g->D, pixels + v->t0 * w->cols, v->T, 0)) return 1;
        if (over_patches(v, 6 * v->g->D, place_patches)) return 1;
    }
    return 0;
}

/* ---- attention ---- */

/* Task: h = norm1(x) */
static void norm_before_attention(void *arg, size_t index, int worker) {
    (void)worker;
    const tower *v = arg;
    const size_t D = v->g->D;
    size_t end = min((index + 1) * PATCHES_PER_TASK, v->T);
    for (size_t t = index * PATCHES_PER_TASK; t < end; t++)
        q35_kernel->layer_norm(v->h + t * D, v->x + (v->t0 + t) * D, v->block->norm1,
                               v->block->shift1, LAYER_NORM_EPS, D);
}

/* Bias, then rotation by the patch's row (first quarter of the angles) and column (second). */
static void rotate_head(const tower *v, float *x, const float *bias, size_t row, size_t col) {
    const size_t Dh = v->Dh, quarter = Dh / 4;
    q35_kernel->add(x, bias, Dh);
    for (size_t axis = 0; axis < 2; axis++) {
        size_t position = (axis ? col : row) * quarter;
        float *a = x + axis * quarter;
        for (size_t j = 0; j < quarter; j++) {
            float c = v->cosine[position + j], s = v->sine[position + j];
            float low = a[j], high = a[j + Dh / 2];
            a[j] = low * c - high * s;
            a[j + Dh / 2] = high * c + low * s;
        }
    }
}

/* A head's block of keys or values. */
static void *block_at(const tower *v, const void *all, size_t head, size_t block) {
    return (char *)all + (head * v->blocks + block) * v->block_bytes;
}

/* One head's key and value of patch s to where the whole frame finds them. */
static void store(const tower *v, size_t head, size_t s, const float *key, const float *value) {
    const q35_dtype type = v->integers ? Q35_INT16 : Q35_F32;
    const size_t at = s % KEYS;
    float *keys = block_at(v, v->keys, head, s / KEYS);
    q35_kv_store(block_at(v, v->values, head, s / KEYS), type, 1, at, value, v->Dh);
    if (v->integers)
        q35_kv_store(keys, type, 0, at, key, v->Dh);
    else
        for (size_t i = 0; i < v->Dh; i++) keys[i * KEYS + at] = key[i];
}

/* Task: biases, rotation, and keys and values from proj [T, 2 D] to their blocks. */
static void store_keys(void *arg, size_t index, int worker) {
    (void)worker;
    const tower *v = arg;
    const size_t D = v->g->D, Dh = v->Dh;
    size_t end = min((index + 1) * PATCHES_PER_TASK, v->T);
    for (size_t t = index * PATCHES_PER_TASK; t < end; t++) {
        size_t s = v->t0 + t, row, col;
        locate(v, s, &row, &col);
        for (size_t head = 0; head < v->g->H; head++) {
            float *k = v->proj + t * 2 * D + head * Dh, *value = k + D;
            rotate_head(v, k, v->block->qkv_bias + D + head * Dh, row, col);
            q35_kernel->add(value, v->block->qkv_bias + 2 * D + head * Dh, Dh);
            store(v, head, s, k, value);
        }
    }
}

/* Some queries of one head, rotated, from proj + t0 D. */
static void load_queries(const tower *v, const q35_queries *q, size_t head, size_t t0) {
    const size_t D = v->g->D, Dh = v->Dh;
    const float scale = 1.0f / sqrtf((float)Dh);
    for (size_t t = 0; t < q->n; t++) {
        float *x = v->proj + (t0 + t) * D + head * Dh;
        size_t row, col;
        locate(v, v->t0 + t0 + t, &row, &col);
        rotate_head(v, x, v->block->qkv_bias + head * Dh, row, col);
        q35_kernel->scale(x, scale, Dh);
        if (v->integers)
            q->x_factor[t] =
                q35_kernel->fix_all((int16_t *)q->x + t * q35_kv_dims(Dh), x, Dh, Q35_KV_NORM);
        else
            memcpy((float *)q->x + t * Dh, x, Dh * sizeof *x);
    }
}

/* The queries against one block of keys, of which there are `seen`. */
static void attend_block(const tower *v, const q35_queries *q, const void *keys, const void *values,
                         size_t seen) {
    const size_t Dh = q->Dh;
    if (v->integers) {
        q35_queries_score(q, keys);
    } else {
        memset(q->scores, 0, q->n * KEYS * sizeof *q->scores);
        q35_kernel->mix[Q35_F32](q->scores, KEYS, q->x, Dh, keys, KEYS, q->n, Dh, seen);
    }
    for (size_t t = 0; t < q->n; t++) q35_queries_weigh(q, t, v->integers ? values : NULL, seen);
    if (v->integers)
        q35_queries_mix(q, values);
    else
        q35_kernel->mix[Q35_F32](q->now.sum, q35_kv_dims(Dh), q->scores, KEYS, values, Dh, q->n,
                                 seen, Dh);
}

/* Task: some queries of one head against the whole frame. */
static void attend(void *arg, size_t index, int worker) {
    const tower *v = arg;
    const size_t Dh = v->Dh, tiles = (v->T + QUERIES - 1) / QUERIES;
    const size_t head = index / tiles, t0 = index % tiles * QUERIES;
    q35_queries q = {.n = min(QUERIES, v->T - t0), .Dh = Dh};
    q35_queries_lay_out(&q, QUERIES, v->worker + (size_t)worker * v->worker_floats);
    load_queries(v, &q, head, t0);
    q35_sums_begin(&q.now, q.n, Dh);
    for (size_t b = 0; b < v->blocks; b++)
        attend_block(v, &q, block_at(v, v->keys, head, b), block_at(v, v->values, head, b),
                     min(KEYS, v->S - b * KEYS));
    for (size_t t = 0; t < q.n; t++) {
        float *sum = q.now.sum + t * q35_kv_dims(Dh);
        q35_kernel->scale(sum, 1.0f / q.now.total[t], Dh);
        memcpy(v->mix + (t0 + t) * v->g->D + head * Dh, sum, Dh * sizeof *sum);
    }
}

static q35_matrix rows_of(const q35_matrix *w, size_t first, size_t rows) {
    size_t offset = first * q35_row_bytes(w->dtype, w->cols);
    return (q35_matrix){.data = (const char *)w->data + offset,
                        .dtype = w->dtype,
                        .rows = rows,
                        .cols = w->cols,
                        .integers = w->integers};
}

static int make_keys(tower *v) {
    const size_t D = v->g->D;
    q35_matrix w = rows_of(&v->block->qkv, D, 2 * D);
    for (v->t0 = 0; v->t0 < v->S; v->t0 += v->chunk) {
        v->T = min(v->chunk, v->S - v->t0);
        if (over_patches(v, 4 * D, norm_before_attention)) return 1;
        if (multiply(v, &w, v->proj, 2 * D, v->h, v->T, 0)) return 1;
        if (over_patches(v, 8 * D, store_keys)) return 1;
    }
    return 0;
}

/* x += attention(norm1(x)), without the bias of its last projection */
static int attention(tower *v) {
    const size_t D = v->g->D, tiles = (v->T + QUERIES - 1) / QUERIES;
    q35_matrix w = rows_of(&v->block->qkv, 0, D);
    if (over_patches(v, 4 * D, norm_before_attention)) return 1;
    if (multiply(v, &w, v->proj, D, v->h, v->T, 0)) return 1;
    size_t work = 2 * QUERIES * v->S * v->Dh;
    if (q35_parallel(v->team, tiles * v->g->H, work, attend, v)) return 1;
    return multiply(v, &v->block->proj, v->x + v->t0 * D, D, v->mix, v->T, 1);
}

/* ---- MLP ---- */

/* Task: attention's bias, h = norm2(x), then the bias that the MLP would add. */
static void norm_before_mlp(void *arg, size_t index, int worker) {
    (void)worker;
    const tower *v = arg;
    const size_t D = v->g->D;
    size_t end = min((index + 1) * PATCHES_PER_TASK, v->T);
    for (size_t t = index * PATCHES_PER_TASK; t < end; t++) {
        float *x = v->x + (v->t0 + t) * D;
        q35_kernel->add(x, v->block->proj_bias, D);
        q35_kernel->layer_norm(v->h + t * D, x, v->block->norm2, v->block->shift2, LAYER_NORM_EPS,
                               D);
        q35_kernel->add(x, v->block->fc2_bias, D);
    }
}

static void activate(void *arg, size_t index, int worker) {
    (void)worker;
    const tower *v = arg;
    size_t end = min((index + 1) * PATCHES_PER_TASK, v->T);
    for (size_t t = index * PATCHES_PER_TASK; t < end; t++)
        q35_kernel->gelu_bias(v->proj + t * v->g->F, v->block->fc1_bias, v->g->F);
}

/* x += mlp(norm2(x)), and the bias that attention left out */
static int mlp(tower *v) {
    const size_t D = v->g->D, F = v->g->F;
    if (over_patches(v, 6 * D, norm_before_mlp)) return 1;
    if (multiply(v, &v->block->fc1, v->proj, F, v->h, v->T, 0)) return 1;
    if (over_patches(v, 16 * F, activate)) return 1;
    return multiply(v, &v->block->fc2, v->x + v->t0 * D, D, v->proj, v->T, 1);
}

/* ---- merger ---- */

/* Task: h = norm(x), each patch by itself or each token's patches together. */
static void norm_before_merge(void *arg, size_t index, int worker) {
    (void)worker;
    const tower *v = arg;
    const size_t D = v->g->D, width = v->norm_width, m2 = v->g->merge * v->g->merge;
    const float *x = v->x + (v->t0 + index * m2) * D;
    for (size_t i = 0; i < m2 * D; i += width)
        q35_kernel->layer_norm(v->h + index * m2 * D + i, x + i, v->merger->norm, v->merger->shift,
                               LAYER_NORM_EPS, width);
}

/* Task: GELU of one token's hidden layer, here the exact one. */
static void activate_merged(void *arg, size_t index, int worker) {
    (void)worker;
    const tower *v = arg;
    const size_t M = v->g->merge * v->g->merge * v->g->D;
    float *y = v->proj + index * M;
    for (size_t i = 0; i < M; i++) {
        float a = y[i] + v->merger->bias1[i];
        y[i] = 0.5f * a * (1.0f + erff(a * 0.70710678f));
    }
}

/* features [S / m^2, O] with row stride ldf */
static int merge(tower *v, const q35_merger *merger, size_t norm_width, float *features,
                 size_t ldf) {
    const size_t m2 = v->g->merge * v->g->merge, M = m2 * v->g->D, O = merger->fc2.rows;
    v->merger = merger;
    v->norm_width = norm_width;
    for (v->t0 = 0; v->t0 < v->S; v->t0 += v->chunk) {
        size_t n = min(v->chunk, v->S - v->t0) / m2;
        float *y = features + v->t0 / m2 * ldf;
        if (q35_parallel(v->team, n, 4 * M, norm_before_merge, v)) return 1;
        if (multiply(v, &merger->fc1, v->proj, M, v->h, n, 0)) return 1;
        if (q35_parallel(v->team, n, 32 * M, activate_merged, v)) return 1;
        if (multiply(v, &merger->fc2, y, ldf, v->proj, n, 0)) return 1;
        for (size_t t = 0; t < n; t++) q35_kernel->add(y + t * ldf, merger->bias2, O);
    }
    return 0;
}

/* ---- the tower ---- */

static int encode_frame(tower *v, const float *pixels, float *features, size_t ldf) {
    const qwen35_vision_geometry *g = v->g;
    const size_t O = v->w->merger.fc2.rows, M = g->merge * g->merge * g->D;
    size_t n_deep = 0; /* DeepStack's features follow each other by block */
    if (embed_patches(v, pixels)) return 1;
    for (size_t l = 0; l < g->L; l++) {
        v->block = &v->w->blocks[l];
        if (make_keys(v)) return 1;
        for (v->t0 = 0; v->t0 < v->S; v->t0 += v->chunk) {
            v->T = min(v->chunk, v->S - v->t0);
            if (attention(v) || mlp(v)) return 1;
        }
        for (size_t i = 0; i < g->n_deep; i++)
            if (g->deep[i] == l && merge(v, &v->w->deep[i], M, features + ++n_deep * O, ldf))
                return 1;
    }
    return merge(v, &v->w->merger, g->D, features, ldf);
}

int q35_vision_encode(q35_team *team, const qwen35_vision_geometry *g,
                      const q35_vision_weights *weights, const float *pixels, const size_t grid[3],
                      float *features, size_t ldf, qwen35_status *status) {
    if (!grid[0] || !grid[1] || !grid[2] || grid[1] % g->merge || grid[2] % g->merge)
        return q35_fail(status, Q35_ARGUMENT,
                        "grid_thw (%zu, %zu, %zu): expected multiples of (1, %zu, %zu)", grid[0],
                        grid[1], grid[2], g->merge, g->merge);
    tower v = {.g = g, .w = weights, .team = team, .rows = grid[1], .cols = grid[2]};
    v.S = grid[1] * grid[2];
    v.Dh = g->D / g->H;
    v.blocks = (v.S + KEYS - 1) / KEYS;
    size_t m2 = g->merge * g->merge, tokens = v.S / m2, parts = (v.S + CHUNK - 1) / CHUNK;
    v.chunk = (tokens + parts - 1) / parts * m2;
    v.integers = !g->exact && weights->blocks->qkv.dtype != Q35_F32 && q35_kernel->dot_fixed;
    v.block_bytes = q35_kv_bytes(v.integers ? Q35_INT16 : Q35_F32, v.Dh);
    size_t floats = lay_out(&v, team->threads, NULL);
    float *memory = q35_alloc(floats, sizeof *memory, "vision tower", status);
    if (!memory) return status->code;
    lay_out(&v, team->threads, memory);
    rotary_tables(&v);
    int stopped = 0;
    for (size_t t = 0; t < grid[0] && !stopped; t++)
        stopped = encode_frame(&v, pixels + t * v.S * weights->patch.cols,
                               features + t * tokens * ldf, ldf);
    q35_free(memory);
    return stopped ? q35_fail(status, Q35_CANCELLED, "cancelled while an image was read") : Q35_OK;
}
