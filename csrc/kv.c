/* kv.c: a head's K or V of one position -> its place on a page; queries, page after page -> scores
 * -> weights -> sums of V. */
#include "kv.h"

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "mem.h"

size_t q35_kv_bytes(q35_dtype type, size_t Dh) {
    if (type == Q35_INT16) return Q35_PAGE * (q35_kv_dims(Dh) * sizeof(int16_t) + sizeof(float));
    return Q35_PAGE * q35_row_bytes(type, Dh);
}

static void store_integers(int16_t *head, int which, size_t position, const float *x, size_t Dh) {
    const size_t dims = q35_kv_dims(Dh);
    int16_t y[Q35_MAX_HEAD];
    float *factors = (float *)(head + Q35_PAGE * dims);
    factors[position] = q35_kernel->fix_all(y, x, Dh, Q35_KV_NORM);
    for (size_t i = Dh; i < dims; i++) y[i] = 0;
    for (size_t i = 0; which == 0 && i < dims; i++)
        head[(i / 2 * Q35_PAGE + position) * 2 + i % 2] = y[i];
    for (size_t k = 0; which == 1 && k < dims; k += Q35_KV_BLOCK) {
        const size_t width = dims - k < Q35_KV_BLOCK ? dims - k : Q35_KV_BLOCK;
        int16_t *row = head + k * Q35_PAGE + position / 2 * width * 2 + position % 2;
        for (size_t i = 0; i < width; i++) row[2 * i] = y[k + i];
    }
}

void q35_kv_store(void *head, q35_dtype type, int which, size_t position, const float *x,
                  size_t Dh) {
    char *row = (char *)head + (type == Q35_INT16 ? 0 : position * q35_row_bytes(type, Dh));
    if (type == Q35_INT16)
        store_integers(head, which, position, x, Dh);
    else if (type < Q35_DTYPES)
        q35_kernel->narrow[type](row, x, Dh);
    else
        q35_encode(row, type, x, NULL, Dh);
}

/* ---- queries ---- */

void q35_sums_begin(const q35_sums *s, size_t n, size_t Dh) {
    for (size_t r = 0; r < n; r++) {
        s->top[r] = -INFINITY;
        s->total[r] = 0;
    }
    memset(s->sum, 0, n * q35_kv_dims(Dh) * sizeof *s->sum);
}

size_t q35_queries_lay_out(q35_queries *q, size_t most, float *memory) {
    const size_t dims = q35_kv_dims(q->Dh);
    const q35_buffer parts[] = {
        {&q->now.top, most},
        {&q->now.total, most},
        {&q->now.sum, most * dims},
        {&q->x, most * dims},
        {&q->x_factor, most},
        {&q->scores, most * Q35_PAGE},
        {&q->weights, most * Q35_PAGE / 2},
        {&q->weight_factor, most},
    };
    return q35_lay_out(parts, sizeof parts / sizeof *parts, memory);
}

void q35_queries_score(const q35_queries *q, const void *keys) {
    q35_kernel->dot_pairs(q->scores, Q35_PAGE, keys, Q35_PAGE, q35_kv_factors(keys, q->Dh), q->x,
                          q35_kv_dims(q->Dh), q->x_factor, q->n, (q->Dh + 1) / 2, 0);
}

void q35_queries_weigh(const q35_queries *q, size_t r, const void *values, size_t seen) {
    const q35_sums *s = &q->now;
    const size_t dims = q35_kv_dims(q->Dh);
    float *scores = q->scores + r * Q35_PAGE, top, total;
    if (values) {
        top = q35_kernel->weigh(q->weights + r * Q35_PAGE, &q->weight_factor[r], scores,
                                q35_kv_factors(values, q->Dh), seen, Q35_PAGE, Q35_WEIGHT_NORM,
                                s->top[r], &total);
    } else {
        top = q35_kernel->softmax_step(scores, seen, s->top[r], &total);
        memset(scores + seen, 0, (Q35_PAGE - seen) * sizeof *scores);
    }
    const float shrink = top == s->top[r] ? 1.0f : expf(s->top[r] - top);
    s->total[r] = s->total[r] * shrink + total;
    s->top[r] = top;
    if (shrink != 1.0f) q35_kernel->scale(s->sum + r * dims, shrink, dims);
}

void q35_queries_mix(const q35_queries *q, const void *values) {
    const size_t dims = q35_kv_dims(q->Dh);
    for (size_t k = 0; k < dims; k += Q35_KV_BLOCK) {
        const size_t width = dims - k < Q35_KV_BLOCK ? dims - k : Q35_KV_BLOCK;
        q35_kernel->dot_pairs(q->now.sum + k, dims, (const int16_t *)values + k * Q35_PAGE, width,
                              NULL, q->weights, Q35_PAGE, q->weight_factor, q->n, Q35_PAGE / 2, 1);
    }
}
