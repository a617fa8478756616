/* deltanet.c: h -> qkv z b a -> causal conv + SiLU -> L2 norm of q, k; gates -> delta rule -> gated
 * norm -> out -> x.
 *
 * The rule runs token after token with the state in cache: on CPUs that beats the chunked form at
 * every length tried (a head's 128 x 32 column block is 16 KiB). A head of a span is a task, or a
 * column block of one where there are few heads for the threads; nothing is shared between them. */
#include "deltanet.h"

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "linear.h"

#define CONV_CHANNELS 128 /* handled together: K rows of them stay in the first-level cache */
#define SCAN_TOKENS 64    /* whose q and k stay in cache while all column blocks use them */
#define HEADS_EACH 3      /* heads for each thread are enough to share them out */
#define NORM_TOKENS 8     /* a task norms so many */

typedef struct mixer_job {
    const qwen35_geometry *g;
    const q35_layer *layer;
    q35_scratch *s;
    const q35_batch *batch;
    size_t n;     /* index among the DeltaNet layers */
    size_t C, ld; /* convolved channels; floats of a proj row: qkv C, z Hv Dv, b Hv, a Hv */
    size_t cols;  /* of a head's state, in one task */
} mixer_job;

size_t q35_deltanet_worker_floats(const qwen35_geometry *g) { return (g->K - 1) * CONV_CHANNELS; }

/* Convolves channels c .. c+n of a span in place. Runs from the last token back: a row is
   overwritten only when no earlier row needs it any more. The raw tail is saved first, and stored
   last, since the first rows still read the old one. */
static void convolve(const mixer_job *j, const q35_span *span, float *saved, size_t c, size_t n) {
    const size_t K = j->g->K, ld = j->ld, T = span->T;
    float *x = j->s->proj + span->row * ld + c, *tail = q35_cache_conv(span->cache, j->n) + c;
    const float *taps[Q35_MAX_TAPS];
    for (size_t i = 0; i + 1 < K; i++) {
        size_t row = T + i; /* in the sequence: tail rows 0 .. K-2, then tokens */
        const float *from = row < K - 1 ? tail + row * j->C : x + (row - (K - 1)) * ld;
        memcpy(saved + i * n, from, n * sizeof *saved);
    }
    for (size_t t = T; t-- > 0;) {
        for (size_t i = 0; i < K; i++) {
            size_t row = t + i;
            taps[i] = row < K - 1 ? tail + row * j->C : x + (row - (K - 1)) * ld;
        }
        q35_kernel->conv_silu(x + t * ld, taps, j->layer->conv + c, j->C, K, n);
    }
    for (size_t i = 0; i + 1 < K; i++) memcpy(tail + i * j->C, saved + i * n, n * sizeof *saved);
}

static float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

/* [decay, beta] of the tokens of a span, Q35_CHUNK each, for a value head. */
static float *gates_of(const mixer_job *j, const q35_span *span, size_t h) {
    return j->s->gates + h * 2 * Q35_CHUNK + span->row;
}

/* decay = exp(g), g = -exp(A_log) softplus(a + dt_bias); beta = sigmoid(b) */
static void head_gates(const mixer_job *j, const q35_span *span, size_t h) {
    const qwen35_geometry *g = j->g;
    float *decay = gates_of(j, span, h), *beta = decay + Q35_CHUNK;
    for (size_t t = 0; t < span->T; t++) {
        const float *row = j->s->proj + (span->row + t) * j->ld + j->C + g->Hv * g->Dv;
        float b = row[h], a = row[g->Hv + h];
        decay[t] = expf(j->layer->A[h] * softplus(a + j->layer->dt_bias[h]));
        beta[t] = 1.0f / (1.0f + expf(-b));
    }
}

/* Task: one head of q, of k, or of v of a span. q and k leave it normalised, q also times
   1 / sqrt(Dk); with v go the gates. */
static void prepare_head(void *arg, size_t index, int worker) {
    const mixer_job *j = arg;
    const qwen35_geometry *g = j->g;
    const size_t heads = 2 * g->Hk + g->Hv;
    const q35_span *span = &j->batch->spans[index / heads];
    index %= heads;
    const int is_value = index >= 2 * g->Hk;
    const size_t h = index - 2 * g->Hk, dim = is_value ? g->Dv : g->Dk;
    const size_t c0 = is_value ? 2 * g->Hk * g->Dk + h * g->Dv : index * g->Dk;
    float *saved = j->s->worker + (size_t)worker * j->s->worker_floats;
    for (size_t c = 0; c < dim; c += CONV_CHANNELS)
        convolve(j, span, saved, c0 + c, dim - c < CONV_CHANNELS ? dim - c : CONV_CHANNELS);
    if (is_value) {
        head_gates(j, span, h);
        return;
    }
    float scale = index < g->Hk ? 1.0f / sqrtf((float)g->Dk) : 1.0f;
    float *x = j->s->proj + span->row * j->ld + c0;
    for (size_t t = 0; t < span->T; t++) q35_kernel->l2_norm(x + t * j->ld, scale, dim);
}

/* Task: the recurrence of some columns of one value head over a span. */
static void scan_columns(void *arg, size_t index, int worker) {
    (void)worker;
    const mixer_job *j = arg;
    const qwen35_geometry *g = j->g;
    const size_t Dk = g->Dk, Dv = g->Dv, ld = j->ld, ldm = g->Hv * Dv;
    const size_t parts = (Dv + j->cols - 1) / j->cols;
    const size_t h = index / parts % g->Hv, first = index % parts * j->cols;
    const size_t end = first + j->cols < Dv ? first + j->cols : Dv;
    const q35_span *span = &j->batch->spans[index / parts / g->Hv];
    const size_t key_head = g->tiled_heads ? h % g->Hk : h / (g->Hv / g->Hk);
    const float *decay = gates_of(j, span, h), *beta = decay + Q35_CHUNK;
    float *state = q35_cache_state(span->cache, j->n) + h * Dk * Dv;
    for (size_t t = 0; t < span->T; t += SCAN_TOKENS) {
        const size_t n = span->T - t < SCAN_TOKENS ? span->T - t : SCAN_TOKENS;
        const float *row = j->s->proj + (span->row + t) * ld;
        const float *q = row + key_head * Dk, *k = q + g->Hk * Dk;
        const float *v = row + 2 * g->Hk * Dk + h * Dv;
        float *out = j->s->mix + (span->row + t) * ldm + h * Dv;
        for (size_t c = first; c < end; c += Q35_DELTA_COLS) {
            const size_t cols = end - c < Q35_DELTA_COLS ? end - c : Q35_DELTA_COLS;
            q35_kernel->delta(out + c, ldm, state + Dk * c, q, k, ld, v + c, ld, decay + t,
                              beta + t, n, Dk, cols);
        }
    }
}

/* Task: the gated norm of some tokens, of whatever spans. */
static void norm_tokens(void *arg, size_t index, int worker) {
    (void)worker;
    const mixer_job *j = arg;
    const qwen35_geometry *g = j->g;
    const size_t T = j->batch->T, Dv = g->Dv, first = index * NORM_TOKENS;
    const size_t end = first + NORM_TOKENS < T ? first + NORM_TOKENS : T;
    for (size_t row = first; row < end; row++)
        for (size_t h = 0; h < g->Hv; h++) {
            float *y = j->s->mix + (row * g->Hv + h) * Dv;
            q35_kernel->rms_norm(y, y, j->layer->gated_norm, g->eps, Dv);
            q35_kernel->silu_mul(y, j->s->proj + row * j->ld + j->C + h * Dv, y, Dv);
        }
}

int q35_deltanet(q35_team *team, const qwen35_geometry *g, const q35_layer *layer,
                 const q35_batch *batch, size_t n, q35_scratch *s) {
    const size_t C = 2 * g->Hk * g->Dk + g->Hv * g->Dv, vd = g->Hv * g->Dv, ld = C + vd + 2 * g->Hv;
    q35_product in[] = {{&layer->qkv, s->proj, ld},
                        {&layer->z, s->proj + C, ld},
                        {&layer->b, s->proj + C + vd, ld},
                        {&layer->a, s->proj + C + vd + g->Hv, ld}};
    const size_t heads = batch->n * g->Hv, tokens = batch->T / batch->n;
    const int whole = heads >= HEADS_EACH * (size_t)team->threads || team->threads == 1;
    mixer_job j = {g, layer, s, batch, n, C, ld, whole ? g->Dv : Q35_DELTA_COLS};
    const size_t parts = (g->Dv + j.cols - 1) / j.cols, norms = batch->T + NORM_TOKENS - 1;
    const size_t scan = 4 * tokens * g->Dk * g->Dv / parts, norm = 4 * NORM_TOKENS * vd;
    if (q35_linear(team, in, 4, s->h, g->D, batch->T, 0, s->panel)) return 1;
    if (q35_parallel(team, heads + batch->n * 2 * g->Hk, 2 * tokens * g->K * g->Dk, prepare_head,
                     &j))
        return 1;
    if (q35_parallel(team, heads * parts, scan, scan_columns, &j)) return 1;
    if (q35_parallel(team, norms / NORM_TOKENS, norm, norm_tokens, &j)) return 1;
    q35_keep_outputs(batch, s->mix, vd);
    q35_product out = {&layer->out, s->x, g->D};
    return q35_linear(team, &out, 1, s->mix, vd, batch->outputs, 1, s->panel);
}
