/* A timeline's inside, for session.c and batch.c: what both check, reserve and note. */
#ifndef Q35_SESSION_H
#define Q35_SESSION_H

#include "model.h"

struct qwen35_session {
    qwen35_model *model;
    q35_cache cache;
    size_t context, ids_capacity;
    int32_t *ids;  /* [position] */
    float *logits; /* [V] after the last token */
    int has_logits;
};

/* Whether the session can read all of the input: context, process, ids, positions, features. */
int q35_session_check(const qwen35_session *session, const qwen35_input *input,
                      qwen35_status *status);
/* Room for T more tokens. */
int q35_session_reserve(qwen35_session *session, size_t T, qwen35_status *status);
/* The span of the input's first T tokens; the input moves on. */
q35_span q35_session_span(qwen35_session *session, qwen35_input *input, size_t T);
/* The span was read: its ids join the history. */
void q35_session_note(qwen35_session *session, const q35_span *span);

#endif
