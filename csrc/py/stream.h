/* A native stream's inside, for stream_type.c (alone) and batch_type.c (together): what it reads
 * next, how its next token is chosen, and how it ends. */
#ifndef Q35_PY_STREAM_H
#define Q35_PY_STREAM_H

#include "py.h"

typedef struct StreamObject {
    PyObject_HEAD SessionObject *session;
    prompt_arrays prompt;
    qwen35_input rest;  /* what the session is to read next: of the prompt, later the last token */
    PyObject *progress; /* or NULL */
    qwen35_sampling sampling;
    int32_t *stops, *forced; /* forced is a queue */
    size_t n_stops, n_forced;
    qwen35_bias *bias;
    float *work; /* [2 V] */
    Py_ssize_t max_tokens, min_tokens, n_logprobs;
    uint64_t seed;
    size_t produced, n_prompt;
    int started;  /* the prompt is in the session */
    int32_t last; /* the token yielded last */
    atomic_int cancel;
    const char *finish; /* reason, or NULL while it runs */
    double prefill_s, decode_s;
    size_t prefilled;
} StreamObject;

/* The session has read n tokens of `rest`, which has moved on. */
void q35_stream_note(StreamObject *self, size_t n);
/* After all of `rest` is read. 1: a token comes next; 0: the stream ends here; -1: an exception. */
int q35_stream_goes_on(StreamObject *self);
/* Everything about the next draw but its result; 0 where its id is there already: a forced one. */
int q35_stream_draw(StreamObject *self, qwen35_draw *draw);
/* (id, logprob | None, [(id, logprob), ...]) of the token that was chosen, which the session reads
   next; NULL with an exception for id -1: none was left. */
PyObject *q35_stream_deliver(StreamObject *self, int32_t id);
/* Where the time of a step that began at `start` (q35_seconds) goes. */
double *q35_stream_phase(StreamObject *self);

double q35_seconds(void);

#endif
