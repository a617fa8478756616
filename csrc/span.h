/* span.h: what one forward call reads: B >= 1 spans of T >= 1 tokens, each from a timeline of its
 * own.
 *
 * The spans' tokens lie one after the other in the rows of the scratch. Norms, matrix products and
 * the MLP see rows alone; what looks back (convolution, recurrence, attention) takes span by span.
 * The last layer computes only the outputs that are wanted: they move to the first rows. */
#ifndef Q35_SPAN_H
#define Q35_SPAN_H

#include <string.h>

#include "cache.h"

typedef struct q35_span {
    q35_cache *cache;   /* with room for T more positions */
    const int32_t *ids; /* [T] */
    size_t T, wanted;   /* tokens, and of how many of the last ones the hidden state is wanted */
    const int32_t *positions; /* [3, ldp] or NULL: they continue */
    size_t ldp;
    const float *features; /* of the image and video tokens among ids, in their order; or NULL */
    /* Set by q35_forward: */
    size_t row;  /* of the first token */
    size_t from; /* the first token with an output in this layer */
    size_t out;  /* the row of that output */
} q35_span;

typedef struct q35_batch {
    q35_span *spans;
    size_t n;
    size_t T;       /* tokens of all spans: rows going into a layer */
    size_t outputs; /* rows coming out of it: T, but in the last layer */
} q35_batch;

/* The span that has a row. */
static inline const q35_span *q35_span_at(const q35_batch *batch, size_t row) {
    const q35_span *span = batch->spans;
    while (row >= span->row + span->T) span++;
    return span;
}

/* Moves the rows [T, width] of tokens with an output to where the outputs are. */
static inline void q35_keep_outputs(const q35_batch *batch, float *rows, size_t width) {
    for (size_t i = 0; i < batch->n; i++) {
        const q35_span *s = &batch->spans[i];
        if (s->out != s->row + s->from)
            memmove(rows + s->out * width, rows + (s->row + s->from) * width,
                    (s->T - s->from) * width * sizeof *rows);
    }
}

#endif
