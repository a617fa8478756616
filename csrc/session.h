/* A timeline's inside, for session.c and batch.c: what both check, reserve and note.
 *
 * What is kept of the last token is its hidden state: logits are made of it when they are asked
 * for, and a token that nobody asks about costs no head. */
#ifndef Q35_SESSION_H
#define Q35_SESSION_H

#include "model.h"

struct qwen35_session {
    qwen35_model *model;
    q35_cache cache;
    size_t context, ids_capacity;
    int32_t *ids;   /* [position] */
    float *hidden;  /* [D] of the last token, behind the final norm */
    float *logits;  /* [V] after it; NULL until they are asked for the first time */
    int has_hidden; /* there is a last token */
    int has_logits; /* `logits` are its */
};

/* Whether the session can read all of the input: context, process, ids, positions, features. */
int q35_session_check(const qwen35_session *session, const qwen35_input *input,
                      qwen35_status *status);
/* Room for T more tokens. */
int q35_session_reserve(qwen35_session *session, size_t T, qwen35_status *status);
/* The span of the input's first T tokens; the input moves on. */
q35_span q35_session_span(qwen35_session *session, qwen35_input *input, size_t T);
/* The span was read: its ids join the history, and `hidden` [D], of its last token, is kept; NULL:
   the span was not wanted. */
void q35_session_note(qwen35_session *session, const q35_span *span, const float *hidden);
/* Memory for the session's logits. */
int q35_session_reserve_logits(qwen35_session *session, qwen35_status *status);

#endif
