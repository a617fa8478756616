/* The buffers of one forward call. Taken from the model before it, given back after: nothing is
 * allocated within. */
#ifndef Q35_SCRATCH_H
#define Q35_SCRATCH_H

#include "qwen35.h"

#define Q35_CHUNK 256    /* tokens in one forward call at most */
#define Q35_LOGIT_ROWS 8 /* rows of logits computed at once where all are wanted */

typedef struct q35_scratch {
    struct q35_scratch *next; /* in the model's list of idle ones */
    size_t proj_cols, mix_cols, worker_floats;
    float *x;        /* [T, D] residual stream */
    float *h;        /* [T, D] normed input of a layer part */
    float *proj;     /* [T, proj_cols] projections of h: qkv z b a | q k v | gate up */
    float *mix;      /* [T, mix_cols] a mixer's output before its last projection */
    float *gates;    /* [Hv, 2, T] decay and beta of every value head */
    float *cosine;   /* [T, Dr / 2] */
    float *sine;     /* [T, Dr / 2] */
    float *logits;   /* [Q35_LOGIT_ROWS, V] */
    float *worker;   /* [threads, worker_floats] */
    float *partials; /* of q35_attend, where the positions are split over the threads */
    float *backup;   /* recurrent state of a session before the chunk under way */
    float *panel;    /* for q35_linear */
    float *block;    /* all of the above lie in it */
    size_t bytes;
} q35_scratch;

q35_scratch *q35_scratch_new(const qwen35_geometry *geometry, int threads, size_t state_floats,
                             qwen35_status *status);
void q35_scratch_free(q35_scratch *scratch);
size_t q35_scratch_bytes(const qwen35_geometry *geometry, int threads, size_t state_floats);

#endif
