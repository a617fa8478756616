/* screen.c: the copy of a head, its bounds, and what they leave.
 *
 * rows -> six bits and an f16 for each 32 columns (kernels/panel.h), and a bound each; a part of
 * them at each of the first draws. Then h -> copy -> approximate logits -> the k-th largest lower
 * end -> rows that reach it -> their logits.
 *
 * The bound. Let w be a row, v its copy, h the hidden state and g what its 16-bit integers stand
 * for. The head computes l, a sum of D products in f32, and the copy's product is a, one of D / 32
 * groups whose integer sums are exact. With u = 2^-24 and by Cauchy-Schwarz
 *
 *   |l - w h| <= (D + 2) u |w| |h|        |v g - a| <= (D / 32 + 4) u |v| |g|
 *   |w h - v h| <= |w - v| |h|            |v h - v g| <= |v| |h - g| <= |v| 1.8e-4 |h|
 *
 * whatever the order of the sums: a number and its integer are apart by less than 1.01 / (127 256)
 * of the largest of 32, and sqrt(32) 1.01 / (127 256) < 1.8e-4. With |v| <= |w| + |w - v| the sum
 * of these is below (|w - v| + (|w| + |w - v|) e) |h| for the e of `slack_of`, and that factor of
 * |h| is a row's reach. A Gaussian row in six bits has a reach of 0.022 |w|: its 248,320 logits
 * spread by 0.031 |w| |h|, and about 1 % of them come that near the largest. In five bits it would
 * be a tenth of them, in four nearly all. */
#include "screen.h"

#include <math.h>
#include <string.h>

#include "block.h"
#include "kernels/kernels.h"
#include "linear.h"
#include "mem.h"
#include "pack.h"

#define PARTS_OF_COPY 16 /* made one by one */
#define PANELS_PER_TASK 4
#define COLUMNS 1024     /* of a row, read at once */
#define LIMIT_SHARE 16   /* of all rows are looked at, at most */
#define SCAN 64          /* rows at once */
#define LEAST_NORM 1e-24 /* added to |h|: what underflows is far below */
#define LARGEST 1e15     /* reach and |h|: products are far from overflow */

int q35_screenable(const q35_matrix *head) {
    return head->dtype < Q35_DTYPES && head->cols % Q35_GROUP == 0;
}

static size_t panels_of(size_t V) { return (V + Q35_PANEL - 1) / Q35_PANEL; }

static q35_matrix copy_of(size_t V, size_t D) {
    return (q35_matrix){.dtype = Q35_Q6_0, .rows = V, .cols = D, .integers = 1, .fine = 1};
}

size_t q35_screen_bytes(size_t V, size_t D) {
    const q35_matrix copy = copy_of(V, D);
    return q35_packed_bytes(&copy) + V * sizeof(float);
}

q35_screen *q35_screen_new(const q35_matrix *head, qwen35_status *status) {
    q35_screen *screen = q35_alloc(1, sizeof *screen, "screen", status);
    if (!screen) return NULL;
    screen->head = head;
    screen->copy = copy_of(head->rows, head->cols);
    pthread_mutex_init(&screen->making, NULL);
    screen->reach = q35_alloc(head->rows, sizeof(float), "screen", status);
    screen->copy.packed = q35_alloc(q35_packed_bytes(&screen->copy), 1, "copy of the head", status);
    if (screen->reach && screen->copy.packed) return screen;
    q35_screen_free(screen);
    return NULL;
}

void q35_screen_free(q35_screen *screen) {
    if (!screen) return;
    pthread_mutex_destroy(&screen->making);
    q35_free(screen->reach);
    q35_free((void *)screen->copy.packed);
    q35_free(screen);
}

/* ---- the copy ---- */

/* Sums of squares of a row, by place in its groups of 32: of its numbers, and of what their codes
   leave. */
typedef struct squares {
    float number[Q35_GROUP], rest[Q35_GROUP];
} squares;

/* The number among 32 that is largest in magnitude. */
static float extreme(const float *x) {
    float high[16], low[16];
    for (size_t i = 0; i < 16; i++) {
        high[i] = x[i] > x[i + 16] ? x[i] : x[i + 16];
        low[i] = x[i] < x[i + 16] ? x[i] : x[i + 16];
    }
    for (size_t half = 8; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++) {
            high[i] = high[i] > high[i + half] ? high[i] : high[i + half];
            low[i] = low[i] < low[i + half] ? low[i] : low[i + half];
        }
    return high[0] > -low[0] ? high[0] : low[0];
}

/* code[i] = 32 + x[i] / d to nearest, 0 to 63; NaN is 0 */
static void round_group(uint8_t *restrict code, squares *restrict sum, const float *restrict x,
                        float d) {
    const float rounder = 12582912.0f; /* 1.5 x 2^23: whole numbers follow from there on */
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    float level[Q35_GROUP];
    uint32_t bits[Q35_GROUP];
    for (size_t i = 0; i < Q35_GROUP; i++) {
        const float up = x[i] * inverse > -32.0f ? x[i] * inverse : -32.0f;
        level[i] = (up < 31.0f ? up : 31.0f) + rounder;
    }
    memcpy(bits, level, sizeof bits); /* the lowest are the whole number's */
    for (size_t i = 0; i < Q35_GROUP; i++) code[i] = (uint8_t)((bits[i] + 32) & 63);
    for (size_t i = 0; i < Q35_GROUP; i++) {
        const float left = x[i] - d * (level[i] - rounder);
        sum->number[i] += x[i] * x[i];
        sum->rest[i] += left * left;
    }
}

/* 32 numbers of one row among those of the others. */
static void put_group(uint8_t *record, const q35_record *r, size_t row, const float *x,
                      squares *sum) {
    const float d = half_near(extreme(x) / -32.0f);
    uint8_t code[Q35_GROUP];
    round_group(code, sum, x, d);
    put_half(record + 2 * row, d);
    q35_put_codes(record + r->codes, code, 6, row);
}

/* Of the head of this file; a thousandth of it for the rounding of what is computed with it. */
static double slack_of(size_t D) {
    return 1.001 * (1.8e-4 + 1.001 * ((double)D + (double)D / Q35_GROUP + 16) * 0x1p-24);
}

/* Norms are of sums in f32, whose terms are rounded, too: 1e-4 and 1e-6 cover that. */
static float reach_of(const squares *sum, size_t D) {
    double norm = 0, left = 0;
    for (size_t i = 0; i < Q35_GROUP; i++) norm += sum->number[i], left += sum->rest[i];
    norm = 1.0001 * sqrt(norm) + 1e-18;
    left = 1.0001 * sqrt(left) + 1e-6 * norm + 1e-18;
    const double reach = 1.0001 * (left + (norm + left) * slack_of(D));
    return reach < LARGEST ? (float)reach : NAN; /* products might leave f32 */
}

static void make_row(q35_screen *screen, size_t panel, size_t row) {
    const q35_matrix *w = screen->head;
    const q35_record r = q35_record_of(q35_packing_of(Q35_Q6_0));
    const size_t at = panel * Q35_PANEL + row;
    uint8_t *records = (uint8_t *)q35_packed_at(&screen->copy, panel, 0);
    float wide[COLUMNS];
    squares sum = {0};
    for (size_t k = 0; k < w->cols; k += COLUMNS) {
        const size_t n = w->cols - k < COLUMNS ? w->cols - k : COLUMNS;
        q35_matrix_read(wide, w, at, k, n);
        for (size_t i = 0; i < n; i += Q35_GROUP)
            put_group(records + (k + i) / Q35_GROUP * r.bytes, &r, row, wide + i, &sum);
    }
    screen->reach[at] = reach_of(&sum, w->cols);
}

typedef struct making {
    q35_screen *screen;
    size_t from, to; /* panels */
} making;

static void make_panels(void *arg, size_t index, int worker) {
    (void)worker;
    const making *m = arg;
    const size_t V = m->screen->head->rows, first = m->from + index * PANELS_PER_TASK;
    for (size_t panel = first; panel < first + PANELS_PER_TASK && panel < m->to; panel++)
        for (size_t row = 0; row < Q35_PANEL && panel * Q35_PANEL + row < V; row++)
            make_row(m->screen, panel, row);
}

int q35_screen_ready(q35_screen *screen, q35_team *team) {
    const size_t all = panels_of(screen->head->rows);
    if (atomic_load_explicit(&screen->panels, memory_order_acquire) == all) return 1;
    if (pthread_mutex_trylock(&screen->making)) return 0;
    const size_t from = atomic_load(&screen->panels), each = all / PARTS_OF_COPY + 1;
    making m = {screen, from, all - from < each ? all : from + each};
    const size_t tasks = (m.to - from + PANELS_PER_TASK - 1) / PANELS_PER_TASK;
    const size_t work = PANELS_PER_TASK * Q35_PANEL * screen->head->cols;
    if (!q35_parallel(team, tasks, work, make_panels, &m))
        atomic_store_explicit(&screen->panels, m.to, memory_order_release);
    pthread_mutex_unlock(&screen->making);
    return 0;
}

int q35_screen_multiply(const q35_screen *screen, q35_team *team, float *approx, const float *h,
                        size_t T, float *memory) {
    q35_product product = {&screen->copy, approx, screen->copy.rows};
    return q35_linear(team, &product, 1, h, screen->copy.cols, T, 0, memory);
}

/* ---- what is left ---- */

static float norm_of(const float *h, size_t D) {
    double sum = 0;
    for (size_t i = 0; i < D; i++) sum += (double)h[i] * h[i];
    const double norm = 1.000001 * sqrt(sum) + LEAST_NORM;
    return norm < LARGEST ? (float)norm : NAN;
}

/* The upper ends of n rows, with a negative norm the lower ones; without reach both are the numbers
   themselves. */
static void ends_of(float *end, const float *approx, const float *reach, float norm, size_t n) {
    if (!reach)
        memcpy(end, approx, n * sizeof *end);
    else
        for (size_t i = 0; i < n; i++) end[i] = approx[i] + reach[i] * norm;
}

/* The k-th largest lower end of V rows, or -infinity. */
static float threshold(const float *approx, const float *reach, float norm, size_t V, size_t k) {
    float top[Q35_SCREEN_TOP + 1]; /* [k] descending */
    for (size_t i = 0; i < k; i++) top[i] = -INFINITY;
    for (size_t r = 0; r < V; r += SCAN) {
        const size_t n = V - r < SCAN ? V - r : SCAN;
        float low[SCAN];
        int any = 0;
        ends_of(low, approx + r, reach ? reach + r : NULL, -norm, n);
        for (size_t i = 0; i < n; i++) any |= low[i] > top[k - 1];
        for (size_t i = 0; any && i < n; i++) {
            if (!(low[i] > top[k - 1])) continue;
            size_t at = k - 1;
            for (; at > 0 && low[i] > top[at - 1]; at--) top[at] = top[at - 1];
            top[at] = low[i];
        }
    }
    return top[k - 1];
}

size_t q35_screen_limit(size_t V) { return V / LIMIT_SHARE; }

size_t q35_screen_find(const q35_screen *screen, int32_t *rows, float *approx, size_t V,
                       const float *h, const q35_screening *wanted) {
    const size_t limit = q35_screen_limit(V);
    const float *reach = screen ? screen->reach : NULL;
    const float norm = screen ? norm_of(h, screen->head->cols) : 0;
    for (size_t i = 0; i < wanted->n_always; i++) approx[wanted->always[i]] = -INFINITY;
    float least = threshold(approx, reach, norm, V, wanted->k);
    least -= wanted->margin + 1e-6f * fabsf(least);
    for (size_t i = 0; i < wanted->n_always; i++) approx[wanted->always[i]] = INFINITY;
    size_t found = 0;
    for (size_t r = 0; r < V; r += SCAN) {
        const size_t n = V - r < SCAN ? V - r : SCAN;
        float high[SCAN];
        int any = 0;
        ends_of(high, approx + r, reach ? reach + r : NULL, norm, n);
        for (size_t i = 0; i < n; i++) any |= !(high[i] < least); /* or NaN */
        for (size_t i = 0; any && i < n; i++) {
            if (high[i] < least) continue;
            if (found == limit || high[i] != high[i]) return 0;
            rows[found++] = (int32_t)(r + i);
        }
    }
    return found;
}

void q35_screen_logits(const q35_screen *screen, float *logits, const int32_t *rows, size_t n,
                       const float *h) {
    const q35_matrix *w = screen->head;
    const size_t D = w->cols, row_bytes = q35_row_bytes(w->dtype, D);
    for (size_t i = 0; i < n; i++) {
        const char *row = (const char *)w->data + (size_t)rows[i] * row_bytes;
        q35_kernel->dot[w->dtype](logits + i, 1, row, D, h, D, 1, 1, D, 0);
    }
}
