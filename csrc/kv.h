/* How the K and V rows of one head lie on a page, and what queries make of them.
 *
 * Of a dense or block type, row after row [Q35_PAGE, Dh]. Of Q35_INT16 in fixed point, as dot_pairs
 * reads them: K [ceil(Dh / 2), Q35_PAGE, 2], pairs of dimensions with the positions side by side; V
 * in blocks of up to 64 dimensions, each [Q35_PAGE / 2, width, 2], pairs of positions with the
 * dimensions side by side; and behind either the factors [Q35_PAGE] of the positions. A vector of
 * 256 numbers is kept to 1e-4 of its norm there, as close as f16 keeps it, in as many bytes but for
 * the factor. */
#ifndef Q35_KV_H
#define Q35_KV_H

#include "formats.h"

#define Q35_PAGE 64     /* positions */
#define Q35_KV_BLOCK 64 /* dimensions of V side by side */

/* Integers of K and of P (the weights of V) have these Euclidean norms, V as K does. |k| |q| <=
   46000^2 and, V's integers being at most 32767 and 64 of them meeting one P, |p| sqrt(64) 32767
   stay below 2^31, rounding included (kernels.h). */
#define Q35_KV_NORM 46000.0f
#define Q35_WEIGHT_NORM 8000.0f

#define Q35_MAX_HEAD 1024 /* dimensions */

/* Dh in int16: padded by zeros to whole vectors. */
static inline size_t q35_kv_dims(size_t Dh) { return (Dh + 15) / 16 * 16; }

/* Of K, or of V, of a head on a page. */
size_t q35_kv_bytes(q35_dtype type, size_t Dh);

/* Stores x [Dh] as K (which = 0) or V (1) of one position of the page. */
void q35_kv_store(void *head, q35_dtype type, int which, size_t position, const float *x,
                  size_t Dh);

/* Where the factors [Q35_PAGE] are. */
static inline const float *q35_kv_factors(const void *head, size_t Dh) {
    return (const float *)((const int16_t *)head + Q35_PAGE * q35_kv_dims(Dh));
}

/* Softmax of some queries over the positions that they have seen. */
typedef struct q35_sums {
    float *top;   /* [n] largest score */
    float *total; /* [n] of exp(score - top) */
    float *sum;   /* [n, q35_kv_dims(Dh)] of exp(score - top) v */
} q35_sums;

/* They have seen none. */
void q35_sums_begin(const q35_sums *s, size_t n, size_t Dh);

/* Queries of one head on their way over its pages. */
typedef struct q35_queries {
    size_t n, Dh;
    q35_sums now;
    void *x;              /* [n, Dh] f32, scaled by 1 / sqrt(Dh); or [n, q35_kv_dims(Dh)] int16 */
    float *x_factor;      /* [n] of the int16, 1 / sqrt(Dh) included */
    float *scores;        /* [n, Q35_PAGE] */
    int16_t *weights;     /* [n, Q35_PAGE] of V, from the scores, in fixed point */
    float *weight_factor; /* [n] */
} q35_queries;

/* Sets the pointers for `most` queries of Dh, given memory; returns the floats in all. */
size_t q35_queries_lay_out(q35_queries *q, size_t most, float *memory);

/* scores = x K^T, both in fixed point */
void q35_queries_score(const q35_queries *q, const void *keys);

/* Scores of query r, of which it sees the first `seen` -> weights of V, 0 behind them: of
   `values` in fixed point; without (NULL) in f32, in place of the scores. Its sums so far follow
   the new top. */
void q35_queries_weigh(const q35_queries *q, size_t r, const void *values, size_t seen);

/* sum += weights V, both in fixed point */
void q35_queries_mix(const q35_queries *q, const void *values);

#endif
