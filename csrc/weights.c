/* weights.c: the table of expected tensors, and the one place that knows checkpoint names.
 *
 * table -> name and shape for this geometry -> lookup -> pointer kept (matrices) or f32 copy
 * (vectors). Matrices stay where the file is mapped; vectors are small and are stored as the
 * formulae use them. */
#include "weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/kernels.h"
#include "mem.h"
#include "pack.h"

#define ROOT "model.language_model."
#define VISUAL "model.visual."
#define MAX_NAME 128

/* What becomes of a tensor when it is bound: matrices and tables stay where they are. FINE matrices
   are multiplied by tokens of 16 bits where the others take 8: those of attention, DeltaNet's way
   out, whose gated input has few large values among many small ones, and the head, whose errors
   nothing evens out. A sixth of the multiplications; KL of q8_0 on tiny 8e-5 nats, 2.4e-4 without.
 */
typedef enum { MATRIX, FINE, TABLE, PLAIN, PLUS_ONE, MINUS_EXP, TAPS } treatment;

/* Dimensions by letter, as in MODEL.md; C is the convolution's channels, Q the rows of q_proj. */
typedef struct rule {
    const char *name;
    char shape[QWEN35_MAX_RANK + 1]; /* letters, outermost first, '1' is one */
    treatment treatment;
    size_t offset; /* of the field in its struct */
} rule;

#define W(field) offsetof(q35_weights, field)
#define LAYER(field) offsetof(q35_layer, field)
#define BLOCK(field) offsetof(q35_vision_block, field)
#define MERGER(field) offsetof(q35_merger, field)

static const rule global_rules[] = {
    {ROOT "embed_tokens.weight", "VD", FINE, W(embedding)},
    {ROOT "norm.weight", "D", PLUS_ONE, W(final_norm)},
    {"lm_head.weight", "VD", FINE, W(head)}, /* only where it is not tied */
};
static const rule every_layer_rules[] = {
    {"mlp.gate_proj.weight", "FD", MATRIX, LAYER(gate)},
    {"mlp.up_proj.weight", "FD", MATRIX, LAYER(up)},
    {"mlp.down_proj.weight", "DF", MATRIX, LAYER(down)},
    {"input_layernorm.weight", "D", PLUS_ONE, LAYER(input_norm)},
    {"post_attention_layernorm.weight", "D", PLUS_ONE, LAYER(post_norm)},
};
static const rule full_rules[] = {
    {"self_attn.q_proj.weight", "QD", FINE, LAYER(q)},
    {"self_attn.k_proj.weight", "kD", FINE, LAYER(k)},
    {"self_attn.v_proj.weight", "kD", FINE, LAYER(v)},
    {"self_attn.o_proj.weight", "Dq", FINE, LAYER(o)},
    {"self_attn.q_norm.weight", "h", PLUS_ONE, LAYER(q_norm)},
    {"self_attn.k_norm.weight", "h", PLUS_ONE, LAYER(k_norm)},
};
static const rule linear_rules[] = {
    {"linear_attn.in_proj_qkv.weight", "CD", MATRIX, LAYER(qkv)},
    {"linear_attn.in_proj_z.weight", "zD", MATRIX, LAYER(z)},
    {"linear_attn.in_proj_b.weight", "HD", MATRIX, LAYER(b)},
    {"linear_attn.in_proj_a.weight", "HD", MATRIX, LAYER(a)},
    {"linear_attn.conv1d.weight", "C1K", TAPS, LAYER(conv)},
    {"linear_attn.out_proj.weight", "Dz", FINE, LAYER(out)},
    {"linear_attn.norm.weight", "v", PLAIN, LAYER(gated_norm)},
    {"linear_attn.A_log", "H", MINUS_EXP, LAYER(A)},
    {"linear_attn.dt_bias", "H", PLAIN, LAYER(dt_bias)},
};

static const rule vision_rules[] = {
    {"patch_embed.proj.weight", "Dctpp", MATRIX, W(vision.patch)},
    {"patch_embed.proj.bias", "D", PLAIN, W(vision.patch_bias)},
    {"pos_embed.weight", "SD", TABLE, W(vision.position)},
};
static const rule block_rules[] = {
    {"norm1.weight", "D", PLAIN, BLOCK(norm1)},
    {"norm1.bias", "D", PLAIN, BLOCK(shift1)},
    {"norm2.weight", "D", PLAIN, BLOCK(norm2)},
    {"norm2.bias", "D", PLAIN, BLOCK(shift2)},
    {"attn.qkv.weight", "3D", MATRIX, BLOCK(qkv)},
    {"attn.qkv.bias", "3", PLAIN, BLOCK(qkv_bias)},
    {"attn.proj.weight", "DD", MATRIX, BLOCK(proj)},
    {"attn.proj.bias", "D", PLAIN, BLOCK(proj_bias)},
    {"mlp.linear_fc1.weight", "FD", MATRIX, BLOCK(fc1)},
    {"mlp.linear_fc1.bias", "F", PLAIN, BLOCK(fc1_bias)},
    {"mlp.linear_fc2.weight", "DF", MATRIX, BLOCK(fc2)},
    {"mlp.linear_fc2.bias", "D", PLAIN, BLOCK(fc2_bias)},
};
/* N: the width that is normed, D or M. */
static const rule merger_rules[] = {
    {"norm.weight", "N", PLAIN, MERGER(norm)},
    {"norm.bias", "N", PLAIN, MERGER(shift)},
    {"linear_fc1.weight", "MM", MATRIX, MERGER(fc1)},
    {"linear_fc1.bias", "M", PLAIN, MERGER(bias1)},
    {"linear_fc2.weight", "OM", MATRIX, MERGER(fc2)},
    {"linear_fc2.bias", "O", PLAIN, MERGER(bias2)},
};

static size_t dimension(const qwen35_geometry *g, char letter) {
    switch (letter) {
    case 'V': return g->V;
    case 'D': return g->D;
    case 'F': return g->F;
    case 'Q': return g->Hq * 2 * g->Dh;
    case 'q': return g->Hq * g->Dh;
    case 'k': return g->Hkv * g->Dh;
    case 'h': return g->Dh;
    case 'C': return 2 * g->Hk * g->Dk + g->Hv * g->Dv;
    case 'z': return g->Hv * g->Dv;
    case 'H': return g->Hv;
    case 'v': return g->Dv;
    case 'K': return g->K;
    default: return 1;
    }
}

static size_t vision_dimension(const qwen35_geometry *g, char letter) {
    const qwen35_vision_geometry *v = g->vision;
    switch (letter) {
    case 'D': return v->D;
    case 'F': return v->F;
    case '3': return 3 * v->D;
    case 'M': return v->merge * v->merge * v->D;
    case 'S': return v->side * v->side;
    case 'O': return g->D;
    case 'c': return v->channels;
    case 't': return v->frames;
    case 'p': return v->patch;
    default: return 1;
    }
}

static size_t merger_dimension(const qwen35_geometry *g, char letter) {
    return vision_dimension(g, letter == 'N' ? 'D' : letter);
}

static size_t deep_merger_dimension(const qwen35_geometry *g, char letter) {
    return vision_dimension(g, letter == 'N' ? 'M' : letter);
}

/* One expected tensor: its full name, its rule, and the struct its field is in. */
typedef struct expected {
    char name[MAX_NAME];
    const rule *rule;
    int rank;
    size_t shape[QWEN35_MAX_RANK];
    size_t count;
    void *owner;
} expected;

typedef int visitor(void *arg, const expected *tensor);

/* A walk over the tables: for which geometry, and who looks at each tensor. */
typedef struct walk {
    const qwen35_geometry *g;
    visitor *visit;
    void *arg;
} walk;

typedef size_t dimension_of(const qwen35_geometry *g, char letter);

static int visit_rules(const walk *w, const rule *rules, size_t n, dimension_of *of,
                       const char *prefix, void *owner) {
    for (size_t i = 0; i < n; i++) {
        expected tensor = {.rule = &rules[i], .owner = owner, .count = 1};
        snprintf(tensor.name, sizeof tensor.name, "%s%s", prefix, rules[i].name);
        for (const char *letter = rules[i].shape; *letter; letter++) {
            tensor.shape[tensor.rank] = of(w->g, *letter);
            tensor.count *= tensor.shape[tensor.rank++];
        }
        int stop = w->visit(w->arg, &tensor);
        if (stop) return stop;
    }
    return 0;
}

#define COUNT(rules) (sizeof(rules) / sizeof(rules)[0])
#define VISIT(w, rules, of, prefix, owner) visit_rules(w, rules, COUNT(rules), of, prefix, owner)

/* The text model's tensors. `weights` may be NULL where only names and shapes are wanted. */
static int visit_text(const walk *w, q35_weights *weights) {
    const qwen35_geometry *g = w->g;
    size_t n_global = COUNT(global_rules) - (g->tied ? 1 : 0);
    int stop = visit_rules(w, global_rules, n_global, dimension, "", weights);
    for (size_t l = 0; l < g->L && !stop; l++) {
        void *layer = weights ? &weights->layers[l] : NULL;
        char prefix[MAX_NAME];
        snprintf(prefix, sizeof prefix, ROOT "layers.%zu.", l);
        stop = VISIT(w, every_layer_rules, dimension, prefix, layer);
        if (stop) break;
        stop = g->kinds[l] == QWEN35_FULL ? VISIT(w, full_rules, dimension, prefix, layer)
                                          : VISIT(w, linear_rules, dimension, prefix, layer);
    }
    return stop;
}

static int visit_vision(const walk *w, q35_weights *weights) {
    const qwen35_vision_geometry *v = w->g->vision;
    q35_vision_weights *vision = weights ? &weights->vision : NULL;
    int stop = VISIT(w, vision_rules, vision_dimension, VISUAL, weights);
    char prefix[MAX_NAME];
    for (size_t l = 0; l < v->L && !stop; l++) {
        snprintf(prefix, sizeof prefix, VISUAL "blocks.%zu.", l);
        stop = VISIT(w, block_rules, vision_dimension, prefix, vision ? &vision->blocks[l] : NULL);
    }
    if (!stop)
        stop = VISIT(w, merger_rules, merger_dimension, VISUAL "merger.",
                     vision ? &vision->merger : NULL);
    for (size_t i = 0; i < v->n_deep && !stop; i++) {
        snprintf(prefix, sizeof prefix, VISUAL "deepstack_merger_list.%zu.", i);
        stop =
            VISIT(w, merger_rules, deep_merger_dimension, prefix, vision ? &vision->deep[i] : NULL);
    }
    return stop;
}

static int visit_all(const qwen35_geometry *g, q35_weights *weights, visitor *visit, void *arg) {
    walk w = {g, visit, arg};
    int stop = visit_text(&w, weights);
    return stop || !g->vision ? stop : visit_vision(&w, weights);
}

typedef struct names_visit {
    int (*visit)(void *arg, const char *name, int rank, const size_t *shape);
    void *arg;
} names_visit;

static int visit_name(void *arg, const expected *tensor) {
    const names_visit *names = arg;
    return names->visit(names->arg, tensor->name, tensor->rank, tensor->shape);
}

int qwen35_expected_tensors(const qwen35_geometry *geometry,
                            int (*visit)(void *, const char *, int, const size_t *), void *arg) {
    names_visit names = {visit, arg};
    return visit_all(geometry, NULL, visit_name, &names);
}

static int count_owned(void *arg, const expected *tensor) {
    if (tensor->rule->treatment > TABLE) *(size_t *)arg += tensor->count;
    return 0;
}

typedef struct binding {
    qwen35_lookup *lookup;
    void *arg;
    float *next; /* where the next vector goes */
    size_t given_bytes;
    int integers; /* what matrices of dense types are told; those of blocks when they are packed */
    qwen35_status *status;
} binding;

static void treat(float *y, const qwen35_tensor *given, const expected *tensor) {
    q35_kernel->expand[given->dtype](y, given->data, tensor->count);
    if (tensor->rule->treatment == PLUS_ONE)
        for (size_t i = 0; i < tensor->count; i++) y[i] += 1.0f;
    if (tensor->rule->treatment == MINUS_EXP)
        for (size_t i = 0; i < tensor->count; i++) y[i] = -expf(y[i]);
}

/* [C, 1, K] as stored -> [K, C] */
static void transpose_taps(float *y, const qwen35_tensor *given, size_t C, size_t K) {
    const char *data = given->data;
    size_t bytes = q35_dtype_bytes(given->dtype);
    for (size_t c = 0; c < C; c++)
        for (size_t k = 0; k < K; k++)
            q35_kernel->expand[given->dtype](y + k * C + c, data + (c * K + k) * bytes, 1);
}

static int bind_one(void *arg, const expected *tensor) {
    binding *b = arg;
    qwen35_tensor given;
    if (b->lookup(b->arg, tensor->name, &given))
        return q35_fail(b->status, Q35_FORMAT, "tensor %s is missing", tensor->name);
    int same = given.rank == tensor->rank;
    for (int i = 0; same && i < given.rank; i++) same = given.shape[i] == tensor->shape[i];
    if (!same)
        return q35_fail(b->status, Q35_FORMAT,
                        "tensor %s: shape differs from what config.json asks for", tensor->name);
    if (given.dtype >= Q35_DTYPES && tensor->rule->treatment > FINE)
        return q35_fail(b->status, Q35_FORMAT, "tensor %s is %s: expected f32, f16 or bf16",
                        tensor->name, q35_formats[given.dtype].name);
    b->given_bytes += q35_row_bytes(given.dtype, tensor->count);
    void *field = (char *)tensor->owner + tensor->rule->offset;
    if (tensor->rule->treatment <= TABLE) {
        /* A dense head stays in f32: a screen (screen.c) takes single rows of it. */
        const int fixed = given.dtype < Q35_DTYPES && tensor->rule->shape[0] != 'V';
        *(q35_matrix *)field = (q35_matrix){.data = given.data,
                                            .dtype = given.dtype,
                                            .rows = given.shape[0],
                                            .cols = tensor->count / given.shape[0],
                                            .mapped = given.mapped,
                                            .integers = fixed && b->integers,
                                            .fine = tensor->rule->treatment == FINE};
        return 0;
    }
    *(float **)field = b->next;
    if (tensor->rule->treatment == TAPS)
        transpose_taps(b->next, &given, tensor->shape[0], tensor->shape[2]);
    else
        treat(b->next, &given, tensor);
    b->next += tensor->count;
    return 0;
}

void q35_matrix_read(float *y, const q35_matrix *w, size_t row, size_t col, size_t n) {
    if (w->gone) {
        q35_packed_read(y, w, row, col, n);
        return;
    }
    const char *x = (const char *)w->data + row * q35_row_bytes(w->dtype, w->cols) +
                    q35_row_bytes(w->dtype, col);
    if (w->dtype < Q35_DTYPES)
        q35_kernel->expand[w->dtype](y, x, n);
    else
        q35_decode(y, w->dtype, x, n);
}

static int allocate_vision(q35_vision_weights *vision, const qwen35_vision_geometry *v,
                           qwen35_status *status) {
    vision->blocks = q35_alloc(v->L, sizeof *vision->blocks, "vision table", status);
    vision->deep = q35_alloc(v->n_deep + 1, sizeof *vision->deep, "vision table", status);
    return vision->blocks && vision->deep ? Q35_OK : status->code;
}

size_t q35_weights_owned_bytes(const qwen35_geometry *geometry) {
    size_t floats = 0;
    visit_all(geometry, NULL, count_owned, &floats);
    return floats * sizeof(float);
}

int q35_weights_bind(q35_weights *weights, const qwen35_geometry *geometry, qwen35_lookup *lookup,
                     void *arg, qwen35_status *status) {
    memset(weights, 0, sizeof *weights);
    weights->owned_bytes = q35_weights_owned_bytes(geometry);
    weights->layers = q35_alloc(geometry->L, sizeof *weights->layers, "layer table", status);
    weights->owned = q35_alloc(weights->owned_bytes, 1, "weight vectors", status);
    if (!weights->layers || !weights->owned) goto fail;
    if (geometry->vision && allocate_vision(&weights->vision, geometry->vision, status)) goto fail;
    for (size_t l = 0; l < geometry->L; l++) weights->layers[l].kind = geometry->kinds[l];
    binding b = {lookup, arg, weights->owned, 0, geometry->integers, status};
    walk w = {geometry, bind_one, &b};
    if (visit_text(&w, weights)) goto fail;
    b.integers = geometry->vision && !geometry->vision->exact;
    if (geometry->vision && visit_vision(&w, weights)) goto fail;
    if (geometry->tied) weights->head = weights->embedding;
    weights->given_bytes = b.given_bytes;
    return Q35_OK;
fail:
    q35_weights_free(weights);
    return status->code;
}

typedef struct matrices_visit {
    int (*visit)(void *arg, q35_matrix *matrix);
    void *arg;
} matrices_visit;

/* Tables of rows (embedding) are not multiplied; the head is visited by itself. */
static int visit_matrix(void *arg, const expected *tensor) {
    const matrices_visit *v = arg;
    if (tensor->rule->treatment > FINE || tensor->rule->shape[0] == 'V') return 0;
    return v->visit(v->arg, (q35_matrix *)((char *)tensor->owner + tensor->rule->offset));
}

int q35_weights_each(q35_weights *weights, const qwen35_geometry *geometry,
                     int (*visit)(void *arg, q35_matrix *matrix), void *arg) {
    matrices_visit v = {visit, arg};
    walk w = {geometry, visit_matrix, &v};
    /* The largest first: while it is packed its mapped pages are in memory beside the copy. */
    int stop = visit(arg, &weights->head);
    return stop ? stop : visit_text(&w, weights);
}

void q35_weights_free(q35_weights *weights) {
    q35_free(weights->packed);
    q35_free(weights->layers);
    q35_free(weights->vision.blocks);
    q35_free(weights->vision.deep);
    q35_free(weights->owned);
    memset(weights, 0, sizeof *weights);
}
