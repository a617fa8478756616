/* session.c: one timeline: tokens go in, logits come out, any point can be kept and returned to.
 *
 * append: ids -> chunks -> reserve pages -> forward -> the last hidden state. A chunk is all or
 * nothing: before a long one the recurrent state is copied aside, and put back when the chunk is
 * cancelled (K/V behind `position` are simply not there).
 * logits: the last hidden state -> head, once, when they are asked for. */
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "mem.h"
#include "session.h"

/* A single token is so short that it is not worth keeping a copy for, unless the model is so large
   that even one would make a user wait for the cancellation. */
#define LONG_CHUNK_TOKENS 16
#define SLOW_MODEL_BYTES ((size_t)4 << 30)

/* Largest rotary position taken from outside: far beyond any context, far from overflow. */
#define ROPE_LIMIT (1 << 30)

struct qwen35_snapshot {
    q35_cache cache;
    int32_t *ids;
    float *hidden; /* [D] */
    int has_hidden;
    size_t D;
};

qwen35_session *qwen35_session_new(qwen35_model *model, size_t context, qwen35_status *status) {
    qwen35_session *session = q35_alloc(1, sizeof *session, "session", status);
    if (!session) return NULL;
    session->model = model;
    session->context = context;
    session->hidden = q35_alloc(model->g.D, sizeof(float), "session", status);
    if (!session->hidden || q35_cache_init(&session->cache, &model->cache_shape, status)) {
        qwen35_session_free(session);
        return NULL;
    }
    return session;
}

void qwen35_session_free(qwen35_session *session) {
    if (!session) return;
    if (session->cache.shape) q35_cache_free(&session->cache);
    q35_free(session->hidden);
    q35_free(session->logits);
    q35_free(session->ids);
    q35_free(session);
}

size_t qwen35_session_position(const qwen35_session *session) { return session->cache.position; }
size_t qwen35_session_context(const qwen35_session *session) { return session->context; }
const int32_t *qwen35_session_ids(const qwen35_session *session) { return session->ids; }
int qwen35_session_has_logits(const qwen35_session *session) { return session->has_hidden; }
size_t qwen35_session_bytes(const qwen35_session *session) {
    const qwen35_geometry *g = &session->model->g;
    return q35_cache_bytes(&session->cache) +
           (g->D + (session->logits ? g->V : 0)) * sizeof(float) +
           session->ids_capacity * sizeof(int32_t);
}

static int reserve_ids(qwen35_session *session, size_t n, qwen35_status *status) {
    if (n <= session->ids_capacity) return Q35_OK;
    size_t capacity = 2 * session->ids_capacity > n ? 2 * session->ids_capacity : n;
    int32_t *ids = q35_alloc(capacity, sizeof *ids, "token history", status);
    if (!ids) return status->code;
    if (session->cache.position) memcpy(ids, session->ids, session->cache.position * sizeof *ids);
    q35_free(session->ids);
    session->ids = ids;
    session->ids_capacity = capacity;
    return Q35_OK;
}

int q35_session_reserve(qwen35_session *session, size_t T, qwen35_status *status) {
    if (q35_cache_reserve(&session->cache, T, status)) return status->code;
    return reserve_ids(session, session->cache.position + T, status);
}

int q35_session_check(const qwen35_session *session, const qwen35_input *input,
                      qwen35_status *status) {
    const qwen35_model *model = session->model;
    const size_t V = model->g.V, T = input->T, position = session->cache.position;
    if (q35_check_process(model, status)) return status->code;
    if (T > session->context || position > session->context - T)
        return q35_fail(status, Q35_CONTEXT,
                        "%zu tokens after the %zu already there are more than the context of %zu; "
                        "load the model with a larger context=",
                        T, position, session->context);
    for (size_t t = 0; t < T; t++)
        if (input->ids[t] < 0 || (size_t)input->ids[t] >= V)
            return q35_fail(status, Q35_ARGUMENT,
                            "token ids: ids[%zu] is %d, expected 0 <= id < %zu", t,
                            (int)input->ids[t], V);
    if (input->features && input->n_features != q35_count_visual(model, input->ids, T))
        return q35_fail(status, Q35_ARGUMENT,
                        "features of %zu tokens, but %zu image and video tokens among the ids",
                        input->n_features, q35_count_visual(model, input->ids, T));
    for (size_t i = 0; input->positions && i < 3; i++)
        for (size_t t = 0; t < T; t++) {
            int32_t position_id = input->positions[i * input->ldp + t];
            if (position_id < 0 || position_id > ROPE_LIMIT)
                return q35_fail(status, Q35_ARGUMENT,
                                "position_ids[%zu, %zu] is %d, expected 0 to %d", i, t,
                                (int)position_id, ROPE_LIMIT);
        }
    return Q35_OK;
}

q35_span q35_session_span(qwen35_session *session, qwen35_input *input, size_t T) {
    q35_span span = {.cache = &session->cache,
                     .ids = input->ids,
                     .T = T,
                     .positions = input->positions,
                     .ldp = input->ldp};
    if (input->n_features) {
        const size_t visual = q35_count_visual(session->model, input->ids, T);
        span.features = input->features;
        input->features += visual * qwen35_vision_feature_floats(session->model);
        input->n_features -= visual;
    }
    input->ids += T;
    input->T -= T;
    if (input->positions) input->positions += T;
    return span;
}

void q35_session_note(qwen35_session *session, const q35_span *span, const float *hidden) {
    memcpy(session->ids + session->cache.position - span->T, span->ids,
           span->T * sizeof *span->ids);
    if (hidden) memcpy(session->hidden, hidden, session->model->g.D * sizeof *hidden);
    session->has_hidden = hidden != NULL;
    session->has_logits = 0;
}

/* ---- logits, when they are asked for ---- */

int q35_session_reserve_logits(qwen35_session *session, qwen35_status *status) {
    if (!session->logits)
        session->logits = q35_alloc(session->model->g.V, sizeof(float), "session logits", status);
    return session->logits ? Q35_OK : status->code;
}

int qwen35_session_logits(qwen35_session *session, const qwen35_watch *watch, const float **logits,
                          qwen35_status *status) {
    qwen35_model *model = session->model;
    *logits = NULL;
    status->code = Q35_OK;
    if (session->has_hidden && !session->has_logits) {
        if (q35_check_process(model, status) || q35_session_reserve_logits(session, status))
            return status->code;
        q35_scratch *scratch = q35_scratch_take(model, status);
        if (!scratch) return status->code;
        q35_team team;
        q35_team_init(&team, model->pool, watch->poll, watch->arg);
        session->has_logits = !q35_head(model, &team, scratch, session->logits, session->hidden, 1);
        q35_scratch_give(model, scratch);
        if (!session->has_logits)
            return q35_fail(status, Q35_CANCELLED, "cancelled while logits were computed");
    }
    if (session->has_hidden) *logits = session->logits;
    return Q35_OK;
}

/* ---- append ---- */

/* What is wanted of a chunk beside its last hidden state: logits after each of its tokens h [T, D],
   or the log-probability of each under the tokens before it. */
static int chunk_logits(qwen35_session *session, q35_team *team, q35_scratch *s, const int32_t *ids,
                        size_t T, size_t done, const qwen35_append_options *options) {
    const size_t V = session->model->g.V, D = session->model->g.D;
    const float *h = s->h;
    if (options->logprobs) { /* a token is foretold by the one before it; x is free by now */
        memcpy(s->x, session->hidden, D * sizeof *h);
        memcpy(s->x + D, s->h, (T - 1) * D * sizeof *h);
        h = s->x;
    }
    for (size_t t = 0; t < T; t += Q35_LOGIT_ROWS) {
        const size_t rows = T - t < Q35_LOGIT_ROWS ? T - t : Q35_LOGIT_ROWS;
        float *logits = options->all_logits ? options->all_logits + (done + t) * V : s->logits;
        if (q35_head(session->model, team, s, logits, h + t * D, rows)) return 1;
        for (size_t i = 0; options->logprobs && i < rows; i++) {
            const size_t at = done + t + i;
            float ignored;
            options->logprobs[at] = (float)qwen35_logprob(logits + i * V, V, ids[t + i]);
            qwen35_top_logprobs(logits + i * V, V, 1, &options->most_likely[at], &ignored);
        }
    }
    return 0;
}

/* One chunk, all or nothing: `done` tokens of `total` went before it. */
static int append_chunk(qwen35_session *session, q35_team *team, q35_scratch *s, q35_span *span,
                        size_t done, size_t total, const qwen35_append_options *options) {
    qwen35_model *model = session->model;
    q35_cache *cache = &session->cache;
    size_t state_bytes = q35_cache_state_floats(cache->shape) * sizeof(float),
           position = cache->position;
    int32_t rope_next = cache->rope_next;
    int keep_copy = span->T >= LONG_CHUNK_TOKENS || model->weights.given_bytes > SLOW_MODEL_BYTES;
    int (*poll)(void *) = team->poll;
    if (keep_copy)
        memcpy(s->backup, cache->state, state_bytes);
    else
        team->poll = NULL;
    /* An observer sees the last layer and the head at work on every token. */
    int all = options->all_logits || options->logprobs || options->observe;
    span->wanted = all ? span->T : done + span->T == total ? 1 : 0;
    int stopped = q35_forward(model, team, s, span, 1);
    if (!stopped && all)
        stopped = chunk_logits(session, team, s, span->ids, span->T, done, options);
    team->poll = poll;
    if (stopped) {
        memcpy(cache->state, s->backup, state_bytes);
        cache->position = position;
        cache->rope_next = rope_next;
        return 1;
    }
    const float *last = s->h + (span->wanted - 1) * model->g.D;
    q35_session_note(session, span, span->wanted ? last : NULL);
    return 0;
}

int qwen35_session_append(qwen35_session *session, const qwen35_input *input,
                          const qwen35_append_options *options, qwen35_status *status) {
    const size_t T = input->T;
    if (q35_session_check(session, input, status)) return status->code;
    if (options->logprobs && !session->has_hidden)
        return q35_fail(status, Q35_ARGUMENT,
                        "scoring needs at least one token before the scored ones");
    if (T == 0) return Q35_OK;
    if (q35_session_reserve(session, T, status)) return status->code;
    q35_scratch *scratch = q35_scratch_take(session->model, status);
    if (!scratch) return status->code;
    q35_team team;
    q35_team_init(&team, session->model->pool, options->poll, options->arg);
    team.observe = options->observe;
    team.observe_arg = options->arg;
    status->code = Q35_OK;
    qwen35_input rest = *input;
    for (size_t done = 0; done < T && !status->code;) {
        q35_span span = q35_session_span(session, &rest, rest.T < Q35_CHUNK ? rest.T : Q35_CHUNK);
        if (append_chunk(session, &team, scratch, &span, done, T, options)) {
            q35_fail(status, Q35_CANCELLED, "cancelled after %zu of %zu tokens", done, T);
            break;
        }
        done += span.T;
        if (options->progress && options->progress(options->arg, done, T) && done < T)
            q35_fail(status, Q35_CANCELLED, "cancelled after %zu of %zu tokens", done, T);
    }
    q35_scratch_give(session->model, scratch);
    return status->code;
}

/* ---- points in time ---- */

void qwen35_snapshot_free(qwen35_snapshot *snapshot) {
    if (!snapshot) return;
    if (snapshot->cache.shape) q35_cache_free(&snapshot->cache);
    q35_free(snapshot->ids);
    q35_free(snapshot->hidden);
    q35_free(snapshot);
}

qwen35_snapshot *qwen35_session_snapshot(qwen35_session *session, qwen35_status *status) {
    size_t position = session->cache.position, D = session->model->g.D;
    qwen35_snapshot *snapshot = q35_alloc(1, sizeof *snapshot, "snapshot", status);
    if (!snapshot) return NULL;
    snapshot->D = D;
    snapshot->has_hidden = session->has_hidden;
    snapshot->ids = q35_alloc(position + 1, sizeof(int32_t), "snapshot", status);
    snapshot->hidden = q35_alloc(D, sizeof(float), "snapshot", status);
    if (!snapshot->ids || !snapshot->hidden ||
        q35_cache_init(&snapshot->cache, session->cache.shape, status) ||
        q35_cache_copy(&snapshot->cache, &session->cache, status)) {
        qwen35_snapshot_free(snapshot);
        return NULL;
    }
    if (position) memcpy(snapshot->ids, session->ids, position * sizeof(int32_t));
    memcpy(snapshot->hidden, session->hidden, D * sizeof(float));
    return snapshot;
}

int qwen35_session_restore(qwen35_session *session, const qwen35_snapshot *snapshot,
                           qwen35_status *status) {
    if (snapshot->cache.shape != session->cache.shape)
        return q35_fail(status, Q35_ARGUMENT, "restore: the snapshot belongs to another model");
    if (snapshot->cache.position > session->context)
        return q35_fail(status, Q35_CONTEXT,
                        "restore: the snapshot holds %zu tokens, the session's context is %zu",
                        snapshot->cache.position, session->context);
    if (reserve_ids(session, snapshot->cache.position, status)) return status->code;
    if (q35_cache_copy(&session->cache, &snapshot->cache, status)) return status->code;
    if (snapshot->cache.position)
        memcpy(session->ids, snapshot->ids, snapshot->cache.position * sizeof(int32_t));
    memcpy(session->hidden, snapshot->hidden, snapshot->D * sizeof(float));
    session->has_hidden = snapshot->has_hidden;
    session->has_logits = 0;
    return Q35_OK;
}

qwen35_session *qwen35_session_fork(qwen35_session *session, qwen35_status *status) {
    qwen35_session *fork = qwen35_session_new(session->model, session->context, status);
    if (!fork) return NULL;
    size_t position = session->cache.position;
    if (reserve_ids(fork, position, status)) goto fail;
    if (q35_cache_copy(&fork->cache, &session->cache, status)) goto fail;
    if (position) memcpy(fork->ids, session->ids, position * sizeof(int32_t));
    memcpy(fork->hidden, session->hidden, session->model->g.D * sizeof(float));
    fork->has_hidden = session->has_hidden;
    return fork;
fail:
    qwen35_session_free(fork);
    return NULL;
}

size_t qwen35_snapshot_position(const qwen35_snapshot *snapshot) {
    return snapshot->cache.position;
}
size_t qwen35_snapshot_bytes(const qwen35_snapshot *snapshot) {
    return q35_cache_bytes(&snapshot->cache) + snapshot->D * sizeof(float) +
           snapshot->cache.position * sizeof(int32_t);
}

/* ---- the timeline as bytes: header, ids, last hidden state, state and tails, pages ---- */

typedef struct dump_header {
    uint64_t position, pages, page_bytes, state_bytes, V, D;
    int32_t rope_next, has_hidden;
} dump_header;

static dump_header header_of(const qwen35_session *session) {
    const q35_cache *cache = &session->cache;
    return (dump_header){.position = cache->position,
                         .pages = (cache->position + Q35_PAGE - 1) / Q35_PAGE,
                         .page_bytes = cache->shape->page_bytes,
                         .state_bytes = q35_cache_state_floats(cache->shape) * sizeof(float),
                         .V = session->model->g.V,
                         .D = session->model->g.D,
                         .rope_next = cache->rope_next,
                         .has_hidden = session->has_hidden};
}

static size_t bytes_of(const dump_header *h) {
    return sizeof *h + h->position * sizeof(int32_t) + h->D * sizeof(float) + h->state_bytes +
           h->pages * h->page_bytes;
}

size_t qwen35_session_dump_bytes(const qwen35_session *session) {
    dump_header header = header_of(session);
    return bytes_of(&header);
}

/* Writes n bytes at *out and moves it on. */
static void put(char **out, const void *bytes, size_t n) {
    if (n) memcpy(*out, bytes, n);
    *out += n;
}

static void get(void *bytes, const char **in, size_t n) {
    if (n) memcpy(bytes, *in, n);
    *in += n;
}

void qwen35_session_dump(const qwen35_session *session, void *bytes) {
    dump_header h = header_of(session);
    char *out = bytes;
    put(&out, &h, sizeof h);
    put(&out, session->ids, h.position * sizeof(int32_t));
    put(&out, session->hidden, h.D * sizeof(float));
    put(&out, session->cache.state, h.state_bytes);
    for (size_t i = 0; i < h.pages; i++) put(&out, session->cache.pages[i]->data, h.page_bytes);
}

/* What a dump must satisfy before anything of it is used. */
static int check_dump(const qwen35_session *session, const dump_header *h, const char *ids,
                      size_t n, qwen35_status *status) {
    dump_header own = header_of(session);
    if (h->page_bytes != own.page_bytes || h->state_bytes != own.state_bytes || h->V != own.V ||
        h->D != own.D)
        return q35_fail(status, Q35_FORMAT,
                        "session dump: made by a model of another shape or kv_dtype");
    if (h->position > session->context)
        return q35_fail(status, Q35_CONTEXT,
                        "session dump: %zu tokens, the session's context is %zu",
                        (size_t)h->position, session->context);
    if (h->pages != (h->position + Q35_PAGE - 1) / Q35_PAGE || h->rope_next < 0 ||
        h->rope_next > ROPE_LIMIT)
        return q35_fail(
            status, Q35_FORMAT,
            "session dump: %zu pages and rotary position %d do not belong to %zu tokens",
            (size_t)h->pages, (int)h->rope_next, (size_t)h->position);
    if (n != bytes_of(h))
        return q35_fail(status, Q35_FORMAT, "session dump: %zu bytes, its header asks for %zu", n,
                        bytes_of(h));
    for (size_t t = 0; t < h->position; t++) {
        int32_t id;
        get(&id, &ids, sizeof id);
        if (id < 0 || (uint64_t)id >= h->V)
            return q35_fail(status, Q35_FORMAT,
                            "session dump: token %zu is %d, expected 0 <= id < %zu", t, (int)id,
                            (size_t)h->V);
    }
    return Q35_OK;
}

int qwen35_session_undump(qwen35_session *session, const void *bytes, size_t n,
                          qwen35_status *status) {
    dump_header h;
    const char *in = bytes;
    if (n < sizeof h)
        return q35_fail(status, Q35_FORMAT, "session dump: %zu bytes, a header has %zu", n,
                        sizeof h);
    get(&h, &in, sizeof h);
    if (check_dump(session, &h, in, n, status)) return status->code;
    /* Pages that others share must not be written into: start from none. */
    q35_cache fresh;
    if (q35_cache_init(&fresh, session->cache.shape, status)) return status->code;
    if (q35_cache_reserve(&fresh, h.position, status) || reserve_ids(session, h.position, status)) {
        q35_cache_free(&fresh);
        return status->code;
    }
    q35_cache_free(&session->cache);
    session->cache = fresh;
    get(session->ids, &in, h.position * sizeof(int32_t));
    get(session->hidden, &in, h.D * sizeof(float));
    get(session->cache.state, &in, h.state_bytes);
    for (size_t i = 0; i < h.pages; i++) get(session->cache.pages[i]->data, &in, h.page_bytes);
    session->cache.position = h.position;
    session->cache.rope_next = h.rope_next;
    session->has_hidden = h.has_hidden != 0;
    session->has_logits = 0;
    return Q35_OK;
}
