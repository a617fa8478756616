/* The model's inside, for session.c: weights, sizes, idle scratch, and forward(). */
#ifndef Q35_MODEL_H
#define Q35_MODEL_H

#include <pthread.h>
#include <sys/types.h>

#include "scratch.h"
#include "screen.h"
#include "span.h"
#include "threads.h"
#include "weights.h"

struct qwen35_model {
    qwen35_geometry g; /* what it points to lies in the fields below */
    float *inv_freq;
    uint8_t *kinds, *rope_axis;
    qwen35_vision_geometry vision;
    float *vision_inv_freq;
    size_t *vision_deep;
    q35_weights weights;
    q35_cache_shape cache_shape;
    q35_screen *screen; /* or NULL */
    q35_pool *pool;
    pid_t pid; /* the process whose threads may compute */
    pthread_mutex_t lock;
    q35_scratch *idle; /* guarded by lock */
};

q35_scratch *q35_scratch_take(qwen35_model *model, qwen35_status *status);
void q35_scratch_give(qwen35_model *model, q35_scratch *scratch);

/* How many of the ids stand for a token of an image or video. */
size_t q35_count_visual(const qwen35_model *model, const int32_t *ids, size_t T);

/* Runs spans of Q35_CHUNK tokens together at most through all layers. The final-normed hidden
   states of the last `wanted` of each are left in the first rows of scratch->h, span after span:
   what only the others would need of the last layer is not computed. The caches have moved on.
   Nonzero when cancelled: the caches are half done. */
int q35_forward(qwen35_model *model, q35_team *team, q35_scratch *scratch, q35_span *spans,
                size_t n);

/* Q35_FORKED in a child of the process that loaded the model: its threads did not come along. */
int q35_check_process(const qwen35_model *model, qwen35_status *status);

/* logits [T, V] of hidden states h [T, D]. */
int q35_head(qwen35_model *model, q35_team *team, q35_scratch *scratch, float *logits,
             const float *h, size_t T);

#endif
