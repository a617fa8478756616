/* batch.c: many timelines in one forward.
 *
 * inputs -> a share of the rows each -> spans -> forward -> last hidden states to their sessions;
 * the draws (draw.c) make logits of them, together. What a session gets has the bits it would get
 * alone (kernels.h). Nothing is kept from step to step: which sessions share a step is the caller's
 * choice, every time. */
#include <string.h>

#include "draw.h"
#include "mem.h"

struct qwen35_batch {
    qwen35_model *model;
    size_t size;
    float *logits; /* [size, V] */
};

qwen35_batch *qwen35_batch_new(qwen35_model *model, size_t size, qwen35_status *status) {
    if (size < 1 || size > QWEN35_MAX_BATCH) {
        q35_fail(status, Q35_ARGUMENT, "batch: size %zu, expected 1 to %d", size, QWEN35_MAX_BATCH);
        return NULL;
    }
    qwen35_batch *batch = q35_alloc(1, sizeof *batch, "batch", status);
    if (!batch) return NULL;
    batch->model = model;
    batch->size = size;
    batch->logits = q35_alloc(size * model->g.V, sizeof(float), "logits of a batch", status);
    if (batch->logits) return batch;
    q35_free(batch);
    return NULL;
}

void qwen35_batch_free(qwen35_batch *batch) {
    if (batch) q35_free(batch->logits);
    q35_free(batch);
}

size_t qwen35_batch_size(const qwen35_batch *batch) { return batch->size; }

/* One step under way: the sessions that read something, and their spans. */
typedef struct step {
    qwen35_session *sessions[QWEN35_MAX_BATCH];
    q35_span spans[QWEN35_MAX_BATCH];
    size_t n;
} step;

/* Everything that can fail, before anything is changed. Every session that reads gets a row, and
   the first of them what is left. */
static int begin(step *s, qwen35_session *const *sessions, const qwen35_input *inputs, size_t n,
                 size_t *takes, qwen35_status *status) {
    size_t readers = 0, rows = Q35_CHUNK;
    for (size_t i = 0; i < n; i++) readers += inputs[i].T > 0;
    for (size_t i = 0; i < n; i++) {
        takes[i] = 0;
        if (q35_session_check(sessions[i], &inputs[i], status)) return status->code;
        if (!inputs[i].T) continue;
        size_t most = rows - --readers;
        takes[i] = inputs[i].T < most ? inputs[i].T : most;
        rows -= takes[i];
        if (q35_session_reserve(sessions[i], takes[i], status)) return status->code;
        s->sessions[s->n++] = sessions[i];
    }
    return Q35_OK;
}

int qwen35_batch_step(qwen35_batch *batch, qwen35_session *const *sessions, qwen35_input *inputs,
                      size_t n, int (*poll)(void *arg), void *arg, qwen35_status *status) {
    size_t takes[QWEN35_MAX_BATCH];
    step s = {.n = 0};
    status->code = Q35_OK;
    if (n > batch->size)
        return q35_fail(status, Q35_ARGUMENT, "batch: %zu sessions, made for %zu", n, batch->size);
    if (begin(&s, sessions, inputs, n, takes, status)) return status->code;
    if (s.n == 0) return Q35_OK;
    q35_scratch *scratch = q35_scratch_take(batch->model, status);
    if (!scratch) return status->code;
    for (size_t i = 0, k = 0; i < n; i++) {
        if (!takes[i]) continue;
        s.spans[k] = q35_session_span(sessions[i], &inputs[i], takes[i]);
        s.spans[k++].wanted = inputs[i].T == 0;
    }
    q35_team team;
    q35_team_init(&team, batch->model->pool, poll, arg);
    int stopped = q35_forward(batch->model, &team, scratch, s.spans, s.n);
    for (size_t k = 0; k < s.n; k++) {
        const q35_span *span = &s.spans[k];
        const float *last = span->wanted ? scratch->h + span->out * batch->model->g.D : NULL;
        if (stopped) {
            q35_cache_clear(&s.sessions[k]->cache);
            s.sessions[k]->has_hidden = s.sessions[k]->has_logits = 0;
        } else {
            q35_session_note(s.sessions[k], span, last);
        }
    }
    q35_scratch_give(batch->model, scratch);
    return stopped ? q35_fail(status, Q35_CANCELLED, "cancelled: its sessions are empty") : Q35_OK;
}

int qwen35_batch_draw(qwen35_batch *batch, qwen35_draw *draws, size_t n, const qwen35_watch *watch,
                      qwen35_status *status) {
    return q35_draw(batch->model, batch->logits, draws, n, watch, status);
}
