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
    size_t D, F, V, L;      /* hidden, MLP width, vocabulary rows, layers */
    size_t Hq, Hkv, Dh, Dr; /* attention: query heads, kv heads, head dim, rotary dims */
    size_t Hk, Hv, Dk, Dv;  /* DeltaNet: key heads, value heads, their dims */
    size_t K;               /* convolution taps */
    int tiled_heads;        /* value head h uses key head h % Hk (GGUF), not h / (Hv / Hk) */
    float eps;              /* of every RMSNorm */
    int tied;               /* the head is the embedding */
    int integers; /* not exact: matrices of blocks are multiplied by tokens in 8 bits, not decoded
                     to f32, those of bf16 and f16 in fixed point where that is faster */
    size_t mrope_section[3];              /* frequencies that follow time, height, width */
    float rope_scaling;                   /* multiplies cos and sin */
    const float *inv_freq;                /* [Dr / 2]; copied */
    const uint8_t *kinds;                 /* [L] QWEN35_LINEAR or QWEN35_FULL; copied */
    const qwen35_vision_geometry *vision; /* or NULL: text only; copied */
} qwen35_geometry;

#define QWEN35_MAX_RANK 5

/* Read-only bytes of one tensor, checked by the caller: `data` holds the product of `shape`
 * elements. */
typedef struct qwen35_tensor {
    const void *data;
    q35_dtype dtype;
    int mapped; /* data lies in a mapped file: what is copied from it may be let go */
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
    size_t screen;       /* the copy of the head, whole; 0: none */
} qwen35_memory;

/* Calls `visit` with every tensor the geometry asks for, in file order, until it returns nonzero.
 */
int qwen35_expected_tensors(const qwen35_geometry *geometry,
                            int (*visit)(void *arg, const char *name, int rank,
                                         const size_t *shape),
                            void *arg);

qwen35_model *qwen35_model_new(const qwen35_geometry *geometry, qwen35_lookup *lookup, void *arg,
                               int threads, q35_dtype kv_dtype, qwen35_status *status);
/* Who watches a computation; either may be NULL. poll is asked every 20 ms by the calling thread,
   progress is told of bytes or tokens done and in all; nonzero cancels. */
typedef struct qwen35_watch {
    int (*poll)(void *arg);
    int (*progress)(void *arg, size_t done, size_t total);
    void *arg;
} qwen35_watch;

/* Lays matrices of blocks out for the processor, where the geometry asks for integer products;
   once, before the first session. `watch` may be NULL; progress is told after each matrix. */
int qwen35_model_pack(qwen35_model *model, const qwen35_watch *watch, qwen35_status *status);
/* Lets draws that need few logits look for them in a smaller copy of the head first, which is made
   little by little by the first of them; what they draw stays the same. Once, before the first
   session. Heads in blocks stay as they are. */
int qwen35_model_screen(qwen35_model *model, qwen35_status *status);
/* Draws that the copy decided so far, and that it left to the head. */
void qwen35_model_screened(const qwen35_model *model, size_t *chosen, size_t *given);
/* Whether the matrix that was given at `data` has been laid out anew and is not read there any
   more, so that its caller may free it; its rows and columns then, and with y not NULL its numbers.
 */
int qwen35_model_read(qwen35_model *model, const void *data, size_t shape[2], float *y);
void qwen35_model_free(qwen35_model *model);
void qwen35_model_memory(const qwen35_model *model, qwen35_memory *memory);
/* What a model of this geometry will say, before there is one; `weights` is left 0, and `screen` is
   what one would take. */
int qwen35_plan_memory(const qwen35_geometry *geometry, int threads, q35_dtype kv_dtype,
                       qwen35_memory *memory, qwen35_status *status);
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
/* Whether there are logits to be had: the timeline has a last token. */
int qwen35_session_has_logits(const qwen35_session *session);
/* Logits after the last token, [V], computed when they are first asked for; NULL while there are
   none. They stay until the session changes. Cancelled: nothing has changed. */
int qwen35_session_logits(qwen35_session *session, const qwen35_watch *watch, const float **logits,
                          qwen35_status *status);

/* Tokens for a timeline, and what goes with them. */
typedef struct qwen35_input {
    const int32_t *ids; /* [T] */
    size_t T;
    const int32_t *positions; /* rotary positions, 3 rows of T that lie ldp apart; NULL: they */
    size_t ldp;               /* continue */
    const float *features;    /* [n_features, feature_floats] of the image and video tokens among */
    size_t n_features;        /* ids, in their order; none: those tokens are read as text */
} qwen35_input;

/* How one call of qwen35_session_append is watched, and what it returns. */
typedef struct qwen35_append_options {
    int (*poll)(void *arg); /* asked every 20 ms by the calling thread; nonzero cancels */
    int (*progress)(void *arg, size_t done, size_t total); /* after each chunk; nonzero cancels */
    void *arg;
    /* told of the input x [T, cols] (row stride ldx) of every matrix product; or NULL */
    int (*observe)(void *arg, const void *weights, const float *x, size_t ldx, size_t T,
                   size_t cols);
    float *all_logits;    /* [T, V] logits after each token, or NULL */
    float *logprobs;      /* [T] log-probability of each token under what precedes it, or NULL */
    int32_t *most_likely; /* [T] with logprobs: the likeliest token at each place */
} qwen35_append_options;

/* Appends the input. When cancelled or failed, the session stands where the last whole chunk ended.
 */
int qwen35_session_append(qwen35_session *session, const qwen35_input *input,
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

/* ---- batches (batch.c) ---- */

#define QWEN35_MAX_BATCH 64

typedef struct qwen35_batch qwen35_batch;

/* For up to `size` sessions at once, 1 to QWEN35_MAX_BATCH. It borrows the model. */
qwen35_batch *qwen35_batch_new(qwen35_model *model, size_t size, qwen35_status *status);
void qwen35_batch_free(qwen35_batch *batch);
size_t qwen35_batch_size(const qwen35_batch *batch);

/* One forward call for n sessions of the batch's model, all different. Each reads at least one
   token of its input, and the first of them as many more as the call has room for; inputs move on
   by what was read. A session whose input is all read has logits. An input of no tokens leaves its
   session alone. Failed: nothing has changed. Cancelled by `poll`, as with qwen35_session_append:
   the sessions that were to read something are empty, since undoing half a step would take a copy
   of every state at each. */
int qwen35_batch_step(qwen35_batch *batch, qwen35_session *const *sessions, qwen35_input *inputs,
                      size_t n, int (*poll)(void *arg), void *arg, qwen35_status *status);

/* One draw from what follows a session's last token, its timeline being the history: see
   qwen35_sample. */
typedef struct qwen35_draw {
    qwen35_session *session;
    const qwen35_sampling *sampling; /* NULL: nothing is drawn, only the logits are wanted */
    int logits;                      /* whether the session is to have its logits afterwards */
    size_t n_prompt;
    double coin;
    float *work; /* [2 V] of its own */
    int32_t id;  /* what was drawn */
} qwen35_draw;

/* Cancelled, here and below: nothing has changed. */
int qwen35_draw_one(qwen35_draw *draw, const qwen35_watch *watch, qwen35_status *status);
/* n draws, at most the batch's size, over the model's threads. */
int qwen35_batch_draw(qwen35_batch *batch, qwen35_draw *draws, size_t n, const qwen35_watch *watch,
                      qwen35_status *status);

/* Targets this machine can run; the one in use is a process-wide choice made at import. */
int qwen35_select_target(const char *name);
const char *qwen35_target(void);
/* The type of K and V that it attends to fastest. */
const char *qwen35_fast_kv_dtype(void);

/* Names of the processor features found that the kernels could use; returns their number. */
#define QWEN35_MAX_FEATURES 8
size_t qwen35_cpu_features(const char *names[QWEN35_MAX_FEATURES]);

#endif
