/* draw.c: last hidden states -> logits of all rows, or of those that a screen leaves -> tokens.
 *
 * Draws that few rows can decide, greedy ones and those of a small top_k, whose penalties, biases
 * and bans concern rows that can be named, go by a screen where there is one; the rest share one
 * product with the head. In either case the sampler then sees those few rows alone. What it gives
 * is what it gives of all, to the bit. */
#include "draw.h"

#include <math.h>
#include <string.h>

#include "screen.h"

#define SLICE 64 /* rows whose logits are one task */

typedef struct drawing {
    const q35_screen *screen;
    qwen35_draw *draws;
    size_t V, D;
    float *logits[QWEN35_MAX_BATCH]; /* each draw's, [V]; NULL: the screen decided it */
    float *rows;                     /* [n, V] where those are that are not its session's */
    /* draws that are screened: their places, approximate logits [n_screened, V] and rows found */
    size_t screened[QWEN35_MAX_BATCH], n_screened, found[QWEN35_MAX_BATCH], slices;
} drawing;

/* ---- few rows ---- */

/* A draw's own memory, [2 V] floats. */
typedef struct room {
    int32_t *rows;   /* [limit] that were found */
    float *logits;   /* [limit] theirs */
    float *work;     /* [2 limit] for qwen35_sample */
    int32_t *always; /* [V] rows that are found in any case; later the history by place in `rows` */
    qwen35_bias *bias;
    int32_t *banned; /* both by place, too */
} room;

static size_t always_of(const qwen35_draw *draw) {
    const qwen35_sampling *s = draw->sampling;
    const int penalties = s->repetition_penalty != 1.0f || s->presence_penalty != 0.0f ||
                          s->frequency_penalty != 0.0f;
    return s->n_bias + s->n_banned + (penalties ? draw->session->cache.position : 0);
}

static room room_of(const drawing *d, const qwen35_draw *draw) {
    const size_t limit = q35_screen_limit(d->V);
    room r = {.rows = (int32_t *)draw->work};
    r.logits = draw->work + limit;
    r.work = r.logits + limit;
    r.always = (int32_t *)(r.work + 2 * limit);
    r.bias = (qwen35_bias *)(r.always + d->V);
    r.banned = (int32_t *)(r.bias + draw->sampling->n_bias);
    return r;
}

/* Whether few rows can decide, and what must be held for it fits beside them. */
static int is_of_few(const drawing *d, const qwen35_draw *draw) {
    const qwen35_sampling *s = draw->sampling;
    if (!s) return 0;
    if (s->temperature != 0.0f && (s->top_k == 0 || s->top_k > Q35_SCREEN_TOP)) return 0;
    const size_t limit = q35_screen_limit(d->V), always = always_of(draw);
    return s->top_k < limit && always <= d->V &&
           4 * limit + d->V + 2 * s->n_bias + s->n_banned <= 2 * d->V;
}

/* Rows whose logits are not what the head gives. */
static void name_always(room *r, const qwen35_draw *draw) {
    const qwen35_sampling *s = draw->sampling;
    int32_t *next = r->always;
    for (size_t i = 0; i < s->n_bias; i++) *next++ = s->bias[i].id;
    for (size_t i = 0; i < s->n_banned; i++) *next++ = s->banned[i];
    if (always_of(draw) > s->n_bias + s->n_banned)
        memcpy(next, draw->session->ids, draw->session->cache.position * sizeof *next);
}

/* Rows that decide a draw, of its approximate logits, or with no screen of its logits; 0: too many.
   A sampled one looks at one more than it keeps, so that there is something to cut off. The sampler
   compares weights, exp((logit - top) / temperature) in f32, and weights of different logits may be
   equal: within 87 temperatures of the top f32 tells those apart that are 3e-5 temperatures apart.
 */
static size_t find_rows(const drawing *d, const q35_screen *screen, const room *r, float *approx,
                        const qwen35_draw *draw) {
    const qwen35_sampling *s = draw->sampling;
    const q35_screening wanted = {.k = s->temperature == 0.0f ? 1 : s->top_k + 1,
                                  .margin = 3e-5f * s->temperature,
                                  .always = r->always,
                                  .n_always = always_of(draw)};
    return q35_screen_find(screen, r->rows, approx, d->V, draw->session->hidden, &wanted);
}

/* Where an id that was found in any case stands. */
static int32_t place_of(const room *r, size_t n, int32_t id) {
    size_t low = 0;
    for (size_t high = n; high - low > 1;) {
        const size_t middle = (low + high) / 2;
        if (r->rows[middle] <= id)
            low = middle;
        else
            high = middle;
    }
    return (int32_t)low;
}

/* A token of the n rows found, which stand in the order of their ids: the sampler's ties go to the
   smaller place as they would to the smaller id. */
static void sample_rows(qwen35_draw *draw, const room *r, size_t n) {
    qwen35_sampling s = *draw->sampling;
    size_t length = 0;
    if (always_of(draw) > s.n_bias + s.n_banned) length = draw->session->cache.position;
    for (size_t i = 0; i < length; i++) r->always[i] = place_of(r, n, draw->session->ids[i]);
    for (size_t i = 0; i < s.n_bias; i++)
        r->bias[i] = (qwen35_bias){place_of(r, n, s.bias[i].id), s.bias[i].add};
    for (size_t i = 0; i < s.n_banned; i++) r->banned[i] = place_of(r, n, s.banned[i]);
    s.bias = r->bias;
    s.banned = r->banned;
    const size_t n_prompt = draw->n_prompt < length ? draw->n_prompt : length;
    const int32_t place =
        qwen35_sample(&s, r->logits, n, r->always, length, n_prompt, draw->coin, r->work);
    draw->id = place < 0 ? place : r->rows[place];
}

/* ---- by the screen ---- */

/* Task: the rows of one draw. */
static void screen_draw(void *arg, size_t index, int worker) {
    (void)worker;
    drawing *d = arg;
    const qwen35_draw *draw = &d->draws[d->screened[index]];
    room r = room_of(d, draw);
    name_always(&r, draw);
    d->found[index] = find_rows(d, d->screen, &r, d->rows + index * d->V, draw);
}

/* Task: logits of some of the rows of one draw. */
static void multiply_rows(void *arg, size_t index, int worker) {
    (void)worker;
    const drawing *d = arg;
    const size_t at = index / d->slices, from = index % d->slices * SLICE;
    const qwen35_draw *draw = &d->draws[d->screened[at]];
    if (from >= d->found[at]) return;
    const size_t n = d->found[at] - from < SLICE ? d->found[at] - from : SLICE;
    const room r = room_of(d, draw);
    q35_screen_logits(d->screen, r.logits + from, r.rows + from, n, draw->session->hidden);
}

/* Task: a token of one draw. */
static void sample_screened(void *arg, size_t index, int worker) {
    (void)worker;
    const drawing *d = arg;
    qwen35_draw *draw = &d->draws[d->screened[index]];
    const room r = room_of(d, draw);
    if (d->found[index]) sample_rows(draw, &r, d->found[index]);
}

/* Draws what the screen decides; `open` [n] tells which draws it leaves. Nonzero: cancelled. */
static int draw_screened(drawing *d, q35_screen *screen, q35_team *team, q35_scratch *scratch,
                         size_t n, uint8_t *open) {
    d->n_screened = 0;
    for (size_t i = 0; i < n; i++) {
        const qwen35_draw *draw = &d->draws[i];
        if (!draw->logits && !draw->session->has_logits && is_of_few(d, draw))
            d->screened[d->n_screened++] = i;
    }
    if (!d->n_screened || !q35_screen_ready(screen, team)) return atomic_load(&team->cancelled);
    for (size_t i = 0; i < d->n_screened; i++)
        memcpy(scratch->h + i * d->D, d->draws[d->screened[i]].session->hidden,
               d->D * sizeof(float));
    if (q35_screen_multiply(screen, team, d->rows, scratch->h, d->n_screened, scratch->panel) ||
        q35_parallel(team, d->n_screened, d->V, screen_draw, d))
        return 1;
    size_t most = 0;
    for (size_t i = 0; i < d->n_screened; i++) {
        most = d->found[i] > most ? d->found[i] : most;
        open[d->screened[i]] = d->found[i] == 0;
        atomic_fetch_add(d->found[i] ? &screen->chosen : &screen->given, 1);
    }
    d->slices = (most + SLICE - 1) / SLICE;
    return q35_parallel(team, d->n_screened * d->slices, SLICE * d->D, multiply_rows, d) ||
           q35_parallel(team, d->n_screened, most, sample_screened, d);
}

/* ---- by the whole head ---- */

/* A draw of few rows, of logits [V]; 0 where they are not few. */
static int sample_few(const drawing *d, qwen35_draw *draw, float *logits) {
    if (!is_of_few(d, draw)) return 0;
    room r = room_of(d, draw);
    float *kept = r.logits; /* what the search overwrites; there is room for three limits */
    const size_t always = always_of(draw);
    if (always > 3 * q35_screen_limit(d->V)) return 0;
    name_always(&r, draw);
    for (size_t i = 0; i < always; i++) kept[i] = logits[r.always[i]];
    const size_t n = find_rows(d, NULL, &r, logits, draw);
    for (size_t i = 0; i < always; i++) logits[r.always[i]] = kept[i];
    if (n == 0) return 0;
    for (size_t i = 0; i < n; i++) r.logits[i] = logits[r.rows[i]];
    sample_rows(draw, &r, n);
    return 1;
}

/* Task: one draw. What was computed for it goes to its session where it is wanted there. */
static void sample_open(void *arg, size_t index, int worker) {
    (void)worker;
    const drawing *d = arg;
    qwen35_draw *draw = &d->draws[index];
    qwen35_session *session = draw->session;
    float *logits = d->logits[index];
    if (!logits) return;
    if (draw->sampling && !sample_few(d, draw, logits))
        draw->id = qwen35_sample(draw->sampling, logits, d->V, session->ids,
                                 session->cache.position, draw->n_prompt, draw->coin, draw->work);
    if (!draw->logits || session->has_logits) return;
    memcpy(session->logits, logits, d->V * sizeof *logits);
    session->has_logits = 1;
}

static int draw_open(drawing *d, qwen35_model *model, q35_team *team, q35_scratch *scratch,
                     size_t n, const uint8_t *open) {
    size_t rows = 0;
    for (size_t i = 0; i < n; i++) {
        const qwen35_session *session = d->draws[i].session;
        d->logits[i] = NULL;
        if (!open[i]) continue;
        d->logits[i] = session->has_logits ? session->logits : d->rows + rows * d->V;
        if (!session->has_logits)
            memcpy(scratch->h + rows++ * d->D, session->hidden, d->D * sizeof(float));
    }
    if (!memchr(open, 1, n)) return 0;
    if (q35_head(model, team, scratch, d->rows, scratch->h, rows)) return 1;
    team->poll = NULL; /* all or none */
    q35_parallel(team, n, d->V, sample_open, d);
    return 0;
}

int q35_draw(qwen35_model *model, float *rows, qwen35_draw *draws, size_t n,
             const qwen35_watch *watch, qwen35_status *status) {
    status->code = Q35_OK;
    if (q35_check_process(model, status)) return status->code;
    for (size_t i = 0; i < n; i++)
        if (draws[i].logits && q35_session_reserve_logits(draws[i].session, status))
            return status->code;
    q35_scratch *scratch = q35_scratch_take(model, status);
    if (!scratch) return status->code;
    q35_team team;
    q35_team_init(&team, model->pool, watch->poll, watch->arg);
    drawing d = {.screen = model->screen,
                 .draws = draws,
                 .V = model->g.V,
                 .D = model->g.D,
                 .rows = rows ? rows : scratch->logits};
    uint8_t open[QWEN35_MAX_BATCH];
    memset(open, 1, sizeof open);
    int stopped = model->screen && draw_screened(&d, model->screen, &team, scratch, n, open);
    stopped = stopped || draw_open(&d, model, &team, scratch, n, open);
    q35_scratch_give(model, scratch);
    return stopped ? q35_fail(status, Q35_CANCELLED, "cancelled before the draw") : Q35_OK;
}

int qwen35_draw_one(qwen35_draw *draw, const qwen35_watch *watch, qwen35_status *status) {
    return q35_draw(draw->session->model, NULL, draw, 1, watch, status);
}
