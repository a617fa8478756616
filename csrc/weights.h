/* Names -> layer structs, once, against one table of expected shapes. */
#ifndef Q35_WEIGHTS_H
#define Q35_WEIGHTS_H

#include "qwen35.h"

/* A weight matrix as stored, row-major: y = W x. */
typedef struct q35_matrix {
    const void *data; /* [rows, cols] */
    q35_dtype dtype;
    size_t rows, cols;
    int gone;              /* data may not be read any more, only compared: `packed` has it all */
    int mapped;            /* data lies in a mapped file: its pages may be let go */
    int integers;          /* multiplied as integers, not in f32: blocks by tokens of 8 bits, f16
                              and bf16 in fixed point (fixed.h) */
    int fine;              /* blocks: tokens then of 16 bits */
    const uint8_t *packed; /* those of a packable type (pack.h), else NULL */
} q35_matrix;

typedef struct q35_layer {
    int kind;
    float *input_norm, *post_norm; /* [D] 1 + w */
    q35_matrix gate, up, down;     /* [F, D], [F, D], [D, F] */
    /* QWEN35_FULL */
    q35_matrix q, k, v, o;  /* [Hq 2 Dh, D] (per head: query, gate), [Hkv Dh, D] x 2, [D, Hq Dh] */
    float *q_norm, *k_norm; /* [Dh] 1 + w */
    /* QWEN35_LINEAR */
    q35_matrix qkv, z, b, a, out; /* [2 Hk Dk + Hv Dv, D], [Hv Dv, D], [Hv, D] x 2, [D, Hv Dv] */
    float *conv;        /* [K, 2 Hk Dk + Hv Dv]: taps outermost, so that channels are a vector */
    float *A, *dt_bias; /* [Hv] -exp(A_log), and the bias of softplus */
    float *gated_norm;  /* [Dv] w, without the 1 */
} q35_layer;

typedef struct q35_vision_block {
    float *norm1, *shift1, *norm2, *shift2; /* [D] LayerNorm: scale and shift */
    q35_matrix qkv, proj, fc1, fc2;         /* [3 D, D], [D, D], [F, D], [D, F] */
    float *qkv_bias, *proj_bias, *fc1_bias, *fc2_bias;
} q35_vision_block;

/* merge x merge patches -> one token. M = merge^2 D. */
typedef struct q35_merger {
    float *norm, *shift; /* [D] each patch by itself; of a DeepStack merger [M] */
    q35_matrix fc1, fc2; /* [M, M], [text D, M] */
    float *bias1, *bias2;
} q35_merger;

typedef struct q35_vision_weights {
    q35_matrix patch;         /* [D, channels frames patch patch] */
    float *patch_bias;        /* [D] */
    q35_matrix position;      /* [side side, D] */
    q35_vision_block *blocks; /* [L] */
    q35_merger merger, *deep; /* deep [n_deep] */
} q35_vision_weights;

typedef struct q35_weights {
    q35_matrix embedding, head; /* [V, D]; the same bytes when tied */
    float *final_norm;          /* [D] 1 + w */
    q35_layer *layers;          /* [L] */
    q35_vision_weights vision;  /* empty for a text model */
    float *owned;               /* the block all float vectors above lie in */
    uint8_t *packed;            /* that of all packed matrices (pack.c) */
    size_t owned_bytes, given_bytes, packed_bytes;
} q35_weights;

/* y[i] = w[row, col + i] in f32, i < n; of block types col is a multiple of their block, and so is
   n but where the row ends. */
void q35_matrix_read(float *y, const q35_matrix *w, size_t row, size_t col, size_t n);

/* Binds every tensor or fails naming the first that is missing or has another shape. */
int q35_weights_bind(q35_weights *weights, const qwen35_geometry *geometry, qwen35_lookup *lookup,
                     void *arg, qwen35_status *status);
/* Bytes of the f32 copies that binding makes. */
size_t q35_weights_owned_bytes(const qwen35_geometry *geometry);
void q35_weights_free(q35_weights *weights);

/* Calls `visit` with every matrix that the text model multiplies tokens by, until it returns
   nonzero; returns that. */
int q35_weights_each(q35_weights *weights, const qwen35_geometry *geometry,
                     int (*visit)(void *arg, q35_matrix *matrix), void *arg);

#endif
