/* model.c: forward() is the table of contents of the engine.
 *
 * ids of all spans -> embedding -> [norm -> deltanet | attention -> norm -> mlp] x L -> norm ->
 * head The rest of the file makes and frees the model and keeps its idle scratch. It knows nothing
 * of sessions. */
#include "model.h"

#include <string.h>
#include <unistd.h>

#include "attention.h"
#include "cpu.h"
#include "deltanet.h"
#include "kernels/kernels.h"
#include "linear.h"
#include "mem.h"
#include "mlp.h"
#include "norm_rope.h"
#include "pack.h"
#include "vision.h"

int q35_check_process(const qwen35_model *model, qwen35_status *status) {
    if (model->pid == getpid()) return Q35_OK;
    return q35_fail(status, Q35_FORKED,
                    "this process was forked after the model was loaded, and its threads stayed "
                    "behind; load the model in the child, or start processes with \"spawn\"");
}

static int is_visual(const qwen35_model *model, int32_t id) {
    const qwen35_vision_geometry *v = model->g.vision;
    return v && (id == v->image_token || id == v->video_token);
}

size_t q35_count_visual(const qwen35_model *model, const int32_t *ids, size_t T) {
    size_t n = 0;
    for (size_t t = 0; t < T; t++) n += (size_t)is_visual(model, ids[t]);
    return n;
}

/* x = the tokens' rows of the embedding, or of the features where they stand for an image. */
static void embed(const qwen35_model *model, float *x, const q35_span *span) {
    const q35_matrix *table = &model->weights.embedding;
    const size_t D = table->cols;
    const float *feature = span->features;
    for (size_t t = 0; t < span->T; t++) {
        if (feature && is_visual(model, span->ids[t])) {
            memcpy(x + t * D, feature, D * sizeof *x);
            feature += qwen35_vision_feature_floats(model);
            continue;
        }
        q35_matrix_read(x + t * D, table, (size_t)span->ids[t], 0, D);
    }
}

/* DeepStack: the features' part for this layer is added to its outputs. */
static void add_deep_features(const qwen35_model *model, float *x, const q35_span *span,
                              size_t layer) {
    const size_t D = model->g.D;
    if (!span->features || layer >= model->vision.n_deep) return;
    const float *feature = span->features + (1 + layer) * D;
    for (size_t t = 0; t < span->T; t++) {
        if (!is_visual(model, span->ids[t])) continue;
        if (t >= span->from) q35_kernel->add(x + (span->out + t - span->from) * D, feature, D);
        feature += qwen35_vision_feature_floats(model);
    }
}

/* Gives every span its rows, and puts what the first layer reads there. */
static q35_batch lay_out(const qwen35_model *model, q35_scratch *s, q35_span *spans, size_t n) {
    const qwen35_geometry *g = &model->g;
    q35_batch batch = {spans, n, 0, 0};
    for (size_t i = 0; i < n; i++) {
        q35_span *span = &spans[i];
        span->row = span->out = batch.T;
        span->from = 0;
        batch.T += span->T;
        embed(model, s->x + span->row * g->D, span);
        const size_t turn = span->row * (g->Dr / 2);
        q35_rope_table(s->cosine + turn, s->sine + turn, g, model->rope_axis, span->positions,
                       span->ldp, span->cache->rope_next, span->T);
    }
    batch.outputs = batch.T;
    return batch;
}

/* From here on only the wanted tokens have outputs. */
static void keep_wanted(q35_batch *batch) {
    batch->outputs = 0;
    for (size_t i = 0; i < batch->n; i++) {
        q35_span *span = &batch->spans[i];
        span->from = span->T - span->wanted;
        span->out = batch->outputs;
        batch->outputs += span->wanted;
    }
}

static void move_on(const q35_span *span) {
    q35_cache *cache = span->cache;
    cache->position += span->T;
    if (!span->positions) cache->rope_next += (int32_t)span->T;
    for (size_t i = 0; span->positions && i < 3; i++)
        for (size_t t = 0; t < span->T; t++)
            if (span->positions[i * span->ldp + t] >= cache->rope_next)
                cache->rope_next = span->positions[i * span->ldp + t] + 1;
}

int q35_forward(qwen35_model *model, q35_team *team, q35_scratch *s, q35_span *spans, size_t n) {
    const qwen35_geometry *g = &model->g;
    const size_t D = g->D;
    q35_batch batch = lay_out(model, s, spans, n);
    size_t n_full = 0, n_linear = 0;
    for (size_t l = 0; l < g->L; l++) {
        const q35_layer *layer = &model->weights.layers[l];
        if (q35_norm_tokens(team, s->h, s->x, layer->input_norm, g->eps, batch.T, D)) return 1;
        if (l + 1 == g->L) {
            keep_wanted(&batch);
            q35_keep_outputs(&batch, s->x, D);
        }
        if (layer->kind == QWEN35_FULL) {
            if (q35_attention(team, g, layer, &batch, n_full++, s)) return 1;
        } else {
            if (q35_deltanet(team, g, layer, &batch, n_linear++, s)) return 1;
        }
        if (q35_norm_tokens(team, s->h, s->x, layer->post_norm, g->eps, batch.outputs, D)) return 1;
        if (q35_mlp(team, g, layer, s, batch.outputs)) return 1;
        for (size_t i = 0; i < n; i++) add_deep_features(model, s->x, &spans[i], l);
    }
    const float *norm = model->weights.final_norm;
    if (q35_norm_tokens(team, s->h, s->x, norm, g->eps, batch.outputs, D)) return 1;
    for (size_t i = 0; i < n; i++) move_on(&spans[i]);
    return 0;
}

int q35_head(qwen35_model *model, q35_team *team, q35_scratch *s, float *logits, const float *h,
             size_t T) {
    q35_product head = {&model->weights.head, logits, model->g.V};
    return q35_linear(team, &head, 1, h, model->g.D, T, 0, s->panel);
}

size_t qwen35_vision_patch_floats(const qwen35_model *model) {
    const qwen35_vision_geometry *v = &model->vision;
    return v->channels * v->frames * v->patch * v->patch;
}

size_t qwen35_vision_tokens(const qwen35_model *model, const size_t grid[3]) {
    size_t merge = model->vision.merge;
    return grid[0] * (grid[1] / merge) * (grid[2] / merge);
}

size_t qwen35_vision_feature_floats(const qwen35_model *model) {
    return (1 + model->vision.n_deep) * model->g.D;
}

int qwen35_has_vision(const qwen35_model *model) { return model->g.vision != NULL; }

int qwen35_vision_encode(qwen35_model *model, const float *pixels, const size_t grid[3],
                         float *features, int (*poll)(void *arg), void *arg,
                         qwen35_status *status) {
    if (q35_check_process(model, status)) return status->code;
    q35_team team;
    q35_team_init(&team, model->pool, poll, arg);
    return q35_vision_encode(&team, &model->vision, &model->weights.vision, pixels, grid, features,
                             qwen35_vision_feature_floats(model), status);
}

q35_scratch *q35_scratch_take(qwen35_model *model, qwen35_status *status) {
    pthread_mutex_lock(&model->lock);
    q35_scratch *scratch = model->idle;
    if (scratch) model->idle = scratch->next;
    pthread_mutex_unlock(&model->lock);
    size_t state_floats = q35_cache_state_floats(&model->cache_shape);
    return scratch
               ? scratch
               : q35_scratch_new(&model->g, q35_pool_threads(model->pool), state_floats, status);
}

void q35_scratch_give(qwen35_model *model, q35_scratch *scratch) {
    pthread_mutex_lock(&model->lock);
    scratch->next = model->idle;
    model->idle = scratch;
    pthread_mutex_unlock(&model->lock);
}

/* The relations that the loops rely on. config.py has told the user in the file's words before this
 * is reached. */
static int check_geometry(const qwen35_geometry *g, qwen35_status *status) {
    if (!g->D || !g->F || !g->V || !g->L || !g->Hq || !g->Hkv || !g->Dh || !g->Hk || !g->Hv ||
        !g->Dk || !g->Dv || !g->K)
        return q35_fail(status, Q35_ARGUMENT, "geometry: every dimension must be at least 1");
    if (g->Hq % g->Hkv || g->Hv % g->Hk)
        return q35_fail(
            status, Q35_ARGUMENT,
            "geometry: heads must be multiples: %zu query of %zu kv, %zu value of %zu key", g->Hq,
            g->Hkv, g->Hv, g->Hk);
    if (g->Dr > g->Dh || g->Dr % 2 || g->Dr == 0)
        return q35_fail(status, Q35_ARGUMENT, "geometry: %zu rotary dims of a head of %zu", g->Dr,
                        g->Dh);
    if (g->Dh > Q35_MAX_HEAD)
        return q35_fail(status, Q35_ARGUMENT, "geometry: heads of %zu, at most %d", g->Dh,
                        Q35_MAX_HEAD);
    if (g->K > Q35_MAX_TAPS)
        return q35_fail(status, Q35_ARGUMENT, "geometry: %zu convolution taps, at most %d", g->K,
                        Q35_MAX_TAPS);
    return g->vision ? q35_vision_check(g->vision, status) : Q35_OK;
}

static int own_vision(qwen35_model *model, const qwen35_vision_geometry *v, qwen35_status *status) {
    size_t quarter = v->D / v->H / 4;
    model->vision_inv_freq = q35_alloc(quarter, sizeof(float), "vision frequencies", status);
    model->vision_deep = q35_alloc(v->n_deep + 1, sizeof(size_t), "DeepStack blocks", status);
    if (!model->vision_inv_freq || !model->vision_deep) return status->code;
    memcpy(model->vision_inv_freq, v->inv_freq, quarter * sizeof(float));
    if (v->n_deep) memcpy(model->vision_deep, v->deep, v->n_deep * sizeof(size_t));
    model->vision = *v;
    model->vision.inv_freq = model->vision_inv_freq;
    model->vision.deep = model->vision_deep;
    model->g.vision = &model->vision;
    return Q35_OK;
}

/* Copies what the caller's geometry only points to. */
static int own_geometry(qwen35_model *model, const qwen35_geometry *g, qwen35_status *status) {
    size_t half = g->Dr / 2;
    model->inv_freq = q35_alloc(half, sizeof(float), "rotary frequencies", status);
    model->kinds = q35_alloc(g->L, 1, "layer kinds", status);
    model->rope_axis = q35_alloc(half, 1, "rotary axes", status);
    if (!model->inv_freq || !model->kinds || !model->rope_axis) return status->code;
    memcpy(model->inv_freq, g->inv_freq, half * sizeof(float));
    memcpy(model->kinds, g->kinds, g->L);
    q35_rope_axes(model->rope_axis, g->mrope_section, half);
    model->g = *g;
    model->g.inv_freq = model->inv_freq;
    model->g.kinds = model->kinds;
    return g->vision ? own_vision(model, g->vision, status) : Q35_OK;
}

static int check_kv_dtype(const qwen35_geometry *g, q35_dtype kv_dtype, qwen35_status *status) {
    if (kv_dtype == Q35_INT16 || g->Dh % q35_formats[kv_dtype].elements == 0) return Q35_OK;
    return q35_fail(status, Q35_ARGUMENT,
                    "kv_dtype %s: heads of %zu are no multiple of its blocks of %zu",
                    q35_formats[kv_dtype].name, g->Dh, q35_formats[kv_dtype].elements);
}

qwen35_model *qwen35_model_new(const qwen35_geometry *geometry, qwen35_lookup *lookup, void *arg,
                               int threads, q35_dtype kv_dtype, qwen35_status *status) {
    if (check_geometry(geometry, status) || check_kv_dtype(geometry, kv_dtype, status)) return NULL;
    qwen35_model *model = q35_alloc(1, sizeof *model, "model", status);
    if (!model) return NULL;
    pthread_mutex_init(&model->lock, NULL);
    model->pid = getpid();
    model->pool = q35_pool_new(threads, status);
    if (!model->pool) goto fail;
    if (own_geometry(model, geometry, status)) goto fail;
    if (q35_weights_bind(&model->weights, &model->g, lookup, arg, status)) goto fail;
    q35_cache_shape_init(&model->cache_shape, &model->g, kv_dtype);
    return model;
fail:
    qwen35_model_free(model);
    return NULL;
}

/* ---- packing ---- */

typedef struct packing {
    q35_team *team;
    const qwen35_watch *watch;
    uint8_t *next; /* where the next matrix goes; NULL while sizes are counted */
    size_t bytes, done, total;
} packing;

static int pack_matrix(void *arg, q35_matrix *w) {
    packing *p = arg;
    if (w->dtype < Q35_DTYPES) return 0;
    w->integers = 1;
    if (!q35_packable(w->dtype)) {
        w->fine = 1; /* taking the rows apart costs more than the second byte of the tokens */
        return 0;
    }
    const size_t bytes = (q35_packed_bytes(w) + Q35_ALIGN - 1) / Q35_ALIGN * Q35_ALIGN;
    p->bytes += bytes;
    if (!p->next) return 0;
    if (q35_pack(p->team, w, p->next)) return 1;
    w->packed = p->next;
    p->next += bytes;
    p->done += bytes;
    if (w->mapped) q35_let_go(w->data, w->rows * q35_row_bytes(w->dtype, w->cols));
    w->gone = !w->mapped;
    return p->watch && p->watch->progress && p->watch->progress(p->watch->arg, p->done, p->total);
}

int qwen35_model_pack(qwen35_model *model, const qwen35_watch *watch, qwen35_status *status) {
    if (!model->g.integers || model->weights.packed) return Q35_OK;
    q35_team team;
    q35_team_init(&team, model->pool, watch ? watch->poll : NULL, watch ? watch->arg : NULL);
    packing p = {.team = &team, .watch = watch};
    q35_weights_each(&model->weights, &model->g, pack_matrix, &p);
    if (!p.bytes) return Q35_OK;
    p.next = q35_alloc(p.bytes, 1, "packed weights", status);
    if (!p.next) return status->code;
    model->weights.packed = p.next;
    model->weights.packed_bytes = p.total = p.bytes;
    if (q35_weights_each(&model->weights, &model->g, pack_matrix, &p))
        return q35_fail(status, Q35_CANCELLED, "cancelled while weights were packed");
    if (model->g.tied) model->weights.embedding = model->weights.head;
    return Q35_OK;
}

typedef struct search {
    const void *data;
    const q35_matrix *found;
} search;

static int is_it(void *arg, q35_matrix *w) {
    search *s = arg;
    if (w->data == s->data && w->gone) s->found = w;
    return s->found != NULL;
}

int qwen35_model_read(qwen35_model *model, const void *data, size_t shape[2], float *y) {
    search s = {data, NULL};
    q35_weights_each(&model->weights, &model->g, is_it, &s);
    if (!s.found) return 0;
    shape[0] = s.found->rows;
    shape[1] = s.found->cols;
    for (size_t row = 0; y && row < shape[0]; row++)
        q35_matrix_read(y + row * shape[1], s.found, row, 0, shape[1]);
    return 1;
}

void qwen35_model_free(qwen35_model *model) {
    if (!model) return;
    while (model->idle) {
        q35_scratch *next = model->idle->next;
        q35_scratch_free(model->idle);
        model->idle = next;
    }
    q35_pool_free(model->pool);
    q35_screen_free(model->screen);
    q35_weights_free(&model->weights);
    q35_free(model->inv_freq);
    q35_free(model->kinds);
    q35_free(model->rope_axis);
    q35_free(model->vision_inv_freq);
    q35_free(model->vision_deep);
    pthread_mutex_destroy(&model->lock);
    q35_free(model);
}

int qwen35_model_screen(qwen35_model *model, qwen35_status *status) {
    status->code = Q35_OK;
    if (!model->screen && q35_screenable(&model->weights.head))
        model->screen = q35_screen_new(&model->weights.head, status);
    return status->code;
}

void qwen35_model_screened(const qwen35_model *model, size_t *chosen, size_t *given) {
    *chosen = model->screen ? atomic_load(&model->screen->chosen) : 0;
    *given = model->screen ? atomic_load(&model->screen->given) : 0;
}

/* All but the weights. */
static void count_memory(qwen35_memory *memory, const qwen35_geometry *g,
                         const q35_cache_shape *shape, int threads) {
    size_t state_floats = q35_cache_state_floats(shape);
    memory->owned = q35_weights_owned_bytes(g);
    memory->kv_per_token = shape->page_bytes / Q35_PAGE;
    memory->state = state_floats * sizeof(float);
    memory->scratch = q35_scratch_bytes(g, threads, state_floats);
    memory->screen = q35_screen_bytes(g->V, g->D);
}

void qwen35_model_memory(const qwen35_model *model, qwen35_memory *memory) {
    count_memory(memory, &model->g, &model->cache_shape, q35_pool_threads(model->pool));
    memory->weights = model->weights.given_bytes;
    if (!model->screen) memory->screen = 0;
}

int qwen35_plan_memory(const qwen35_geometry *geometry, int threads, q35_dtype kv_dtype,
                       qwen35_memory *memory, qwen35_status *status) {
    if (check_geometry(geometry, status) || check_kv_dtype(geometry, kv_dtype, status))
        return status->code;
    q35_cache_shape shape;
    q35_cache_shape_init(&shape, geometry, kv_dtype);
    count_memory(memory, geometry, &shape, threads < 1 ? 1 : threads);
    memory->weights = 0;
    return Q35_OK;
}

int qwen35_model_threads(const qwen35_model *model) { return q35_pool_threads(model->pool); }
size_t qwen35_model_vocabulary(const qwen35_model *model) { return model->g.V; }
size_t qwen35_model_width(const qwen35_model *model) { return model->g.D; }

int qwen35_select_target(const char *name) { return q35_kernels_select(name); }
const char *qwen35_target(void) { return q35_kernel->name; }

/* Where pairs of int16 are no faster than f32, f16 needs fewer of them. */
const char *qwen35_fast_kv_dtype(void) { return q35_kernel->dot_fixed ? "int16" : "float16"; }

size_t qwen35_cpu_features(const char *names[QWEN35_MAX_FEATURES]) {
    q35_cpu cpu;
    q35_cpu_detect(&cpu);
    size_t n = 0;
    if (cpu.avx2) names[n++] = "avx2";
    if (cpu.avxvnni) names[n++] = "avxvnni";
    if (cpu.avx512) names[n++] = "avx512";
    if (cpu.avx512vnni) names[n++] = "avx512vnni";
    if (cpu.avx512bf16) names[n++] = "avx512bf16";
    if (cpu.neon) names[n++] = "neon";
    if (cpu.dotprod) names[n++] = "dotprod";
    return n;
}
