/* qwen35.h: the engine as its binding sees it. The only header py/ includes from here.
 *
 * A model is immutable and shared by threads. A session is one timeline with one user at a time; it
 * borrows its model, which must outlive it. No function prints, exits or reads the environment;
 * failures fill a status. */
#ifndef QWEN35_H
#define QWEN35_H

#include <stddef.h>
#include <stdint.h>

#include "formats.h"
#include "status.h"

enum { QWEN35_LINEAR = 0, QWEN35_FULL = 1 }; /* kinds of layer: Gated DeltaNet, gated attention */

/* The vision tower; letters are its own. */
typedef struct qwen35_vision_geometry {
    size_t D, F, L, H;                /* hidden, MLP width, blocks, heads */
    size_t channels, frames, patch;   /* a patch: channels x frames x patch x patch values */
    size_t merge;                     /* merge x merge patches become one token */
    size_t side;                      /* of the square position table */
    const float *inv_freq;            /* [D / H / 4], for rows and for columns; copied */
    const size_t *deep;               /* [n_deep] blocks whose output is merged too (DeepStack) */
    size_t n_deep;                    /* copied */
    int exact;                        /* never round the factors of products */
    int32_t image_token, video_token; /* ids that stand for a token of an image, of a video */
} qwen35_vision_geometry;

typedef struct qwen35_geometry {
    size_t D, F, V, L;       /* hidden, MLP width, vocabulary rows, layers */
    size_t Hq, Hkv, Dh, Dr;  /* attention: query heads, kv heads, head dim, rotary dims */
    size_t Hk, Hv, Dk, Dv;   /* DeltaNet: key heads, value heads, their dims */
    size_t K;                /* convolution taps */
    int tiled_heads;         /* value head h uses key head h % Hk (GGUF), not h / (Hv / Hk) */
    float eps;               /* of every RMSNorm */
    int tied;                /* the head is the embedding */
    size_t mrope_section[3]; /* frequencies that follow time, height, width */
    float rope_scaling;      /* multiplies cos and sin */
    const float *inv_freq;   /* [Dr / 2]; copied */
    const uint8_t *kinds;    /* [L] QWEN35_LINEAR or QWEN35_FULL; copied */
    const qwen35_vision_geometry *vision; /* or NULL: text only; copied */
} qwen35_geometry;

#define QWEN35_MAX_RANK 5

/* Read-only bytes of one tensor, checked by the caller: `data` holds the product of `shape`
 * elements. */
typedef struct qwen35_tensor {
    const void *data;
    q35_dtype dtype;
    int rank;
    size_t shape[QWEN35_MAX_RANK];
} qwen35_tensor;

/* Finds a tensor by its checkpoint name; nonzero when there is none. */
typedef int qwen35_lookup(void *arg, const char *name, qwen35_tensor *tensor);

typedef struct qwen35_model qwen35_model;
typedef struct qwen35_session qwen35_session;
typedef struct qwen35_snapshot qwen35_snapshot;

typedef struct qwen35_memory {
    size_t weights;      /* bytes of the tensors in use, as given */
    size_t owned;        /* f32 copies of small vectors */
    size_t kv_per_token; /* K/V of one position over all attention layers */
    size_t state;        /* recurrent and convolution state of one session */
    size_t scratch;      /* of one forward call */
} qwen35_memory;

/* Calls `visit` with every tensor the geometry asks for, in file order, until it returns nonzero.
 */
int qwen35_expected_tensors(const qwen35_geometry *geometry,
                            int (*visit)(void *arg, const char *name, int rank,
                                         const size_t *shape),
                            void *arg);

qwen35_model *qwen35_model_new(const qwen35_geometry *geometry, qwen35_lookup *lookup, void *arg,
                               int threads, q35_dtype kv_dtype, qwen35_status *status);
void qwen35_model_free(qwen35_model *model);
void qwen35_model_memory(const qwen35_model *model, qwen35_memory *memory);
int qwen35_model_threads(const qwen35_model *model);
size_t qwen35_model_vocabulary(const qwen35_model *model);
size_t qwen35_model_width(const qwen35_model *model); /* D */

/* ---- images and video (vision.c) ---- */

int qwen35_has_vision(const qwen35_model *model);
/* Floats of one patch; tokens of a grid; floats of one token's features: D for the embedding, and D
   for each of the first n_deep layers. The model must have a tower, here and below. */
size_t qwen35_vision_patch_floats(const qwen35_model *model);
size_t qwen35_vision_tokens(const qwen35_model *model, const size_t grid[3]);
size_t qwen35_vision_feature_floats(const qwen35_model *model);
/* Features [tokens, feature_floats] of pixels [grid[0] grid[1] grid[2], patch_floats], patches in
   the order of transformers' image processor. grid: patches in time, height, width. `poll` is asked
   every 20 ms by the calling thread; nonzero cancels. */
int qwen35_vision_encode(qwen35_model *model, const float *pixels, const size_t grid[3],
                         float *features, int (*poll)(void *arg), void *arg, qwen35_status *status);

qwen35_session *qwen35_session_new(qwen35_model *model, size_t context, qwen35_status *status);
void qwen35_session_free(qwen35_session *session);
qwen35_session *qwen35_session_fork(qwen35_session *session, qwen35_status *status);
size_t qwen35_session_position(const qwen35_session *session); /* tokens in the timeline */
size_t qwen35_session_context(const qwen35_session *session);
const int32_t *qwen35_session_ids(const qwen35_session *session); /* [position] */
size_t qwen35_session_bytes(const qwen35_session *session);
/* Logits after the last token, [V]; NULL while there are none. */
const float *qwen35_session_logits(const qwen35_session *session);

/* How one call of qwen35_session_append is watched and what it returns besides the session's
 * logits. */
typedef struct qwen35_append_options {
    const int32_t *positions; /* [3, T] rotary positions, or NULL: they continue */
    const float *features;    /* [n_features, feature_floats] of the image and video tokens among */
    size_t n_features;        /* ids, in their order; none: those tokens are read as text */
    int (*poll)(void *arg);   /* asked every 20 ms by the calling thread; nonzero cancels */
    int (*progress)(void *arg, size_t done, size_t total); /* after each chunk; nonzero cancels */
    void *arg;
    /* told of the input x [T, cols] (row stride ldx) of every matrix product; or NULL */
    int (*observe)(void *arg, const void *weights, const float *x, size_t ldx, size_t T,
                   size_t cols);
    float *all_logits;    /* [T, V] logits after each token, or NULL */
    float *logprobs;      /* [T] log-probability of each token under what precedes it, or NULL */
    int32_t *most_likely; /* [T] with logprobs: the likeliest token at each place */
} qwen35_append_options;

/* Appends T tokens. When cancelled or failed, the session stands where the last whole chunk ended.
 */
int qwen35_session_append(qwen35_session *session, const int32_t *ids, size_t T,
                          const qwen35_append_options *options, qwen35_status *status);

/* A snapshot shares K/V pages with its session and owns a copy of the recurrent state. */
qwen35_snapshot *qwen35_session_snapshot(qwen35_session *session, qwen35_status *status);
int qwen35_session_restore(qwen35_session *session, const qwen35_snapshot *snapshot,
                           qwen35_status *status);
void qwen35_snapshot_free(qwen35_snapshot *snapshot);
size_t qwen35_snapshot_position(const qwen35_snapshot *snapshot);
size_t qwen35_snapshot_bytes(const qwen35_snapshot *snapshot);

/* The whole timeline as bytes, for a file: `write` is called with consecutive pieces. */
size_t qwen35_session_dump_bytes(const qwen35_session *session);
void qwen35_session_dump(const qwen35_session *session, void *bytes);
int qwen35_session_undump(qwen35_session *session, const void *bytes, size_t n,
                          qwen35_status *status);

/* ---- sampling (sample.c) ---- */

typedef struct qwen35_bias {
    int32_t id;
    float add;
} qwen35_bias;

/* Names and meanings are vLLM's SamplingParams; values are checked by the caller. */
typedef struct qwen35_sampling {
    float temperature, top_p, min_p;
    float presence_penalty, frequency_penalty, repetition_penalty;
    size_t top_k;            /* 0: all */
    const qwen35_bias *bias; /* [n_bias] */
    size_t n_bias;
    const int32_t *banned; /* [n_banned] never drawn */
    size_t n_banned;
} qwen35_sampling;

/* Draws one token from logits [V]. history [n] holds prompt and answer, the first n_prompt are the
   prompt. coin in [0, 1) decides. work [2 V] is overwritten. Returns -1 when no token is left. */
int32_t qwen35_sample(const qwen35_sampling *sampling, const float *logits, size_t V,
                      const int32_t *history, size_t n, size_t n_prompt, double coin, float *work);

/* The next number in [0, 1) of the generator seeded by `seed` at step `step`. */
double qwen35_coin(uint64_t seed, uint64_t step);

/* log-softmax of logits [V] at the given token, and the n most likely tokens with theirs, likeliest
 * first. */
double qwen35_logprob(const float *logits, size_t V, int32_t id);
void qwen35_top_logprobs(const float *logits, size_t V, size_t n, int32_t *ids, float *logprobs);

/* Targets this machine can run; the one in use is a process-wide choice made at import. */
int qwen35_select_target(const char *name);
const char *qwen35_target(void);

/* Names of the processor features found that the kernels could use; returns their number. */
#define QWEN35_MAX_FEATURES 8
size_t qwen35_cpu_features(const char *names[QWEN35_MAX_FEATURES]);

#endif
