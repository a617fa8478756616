/* c.c: portable C, compiled everywhere: the fallback, and the plainest statement of what a kernel
 * does. */
#define NAME(op) op##_c
#include "elementwise.inl"

typedef float load_fn(const void *x, size_t i);

static inline float load_f32(const void *x, size_t i) { return ((const float *)x)[i]; }
static inline float load_f16(const void *x, size_t i) {
    return half_to_float(((const uint16_t *)x)[i]);
}
static inline float load_bf16(const void *x, size_t i) {
    return bits_to_float((uint32_t)((const uint16_t *)x)[i] << 16);
}

/* Inlined into one function per storage type, where `load` is a constant. */
static inline __attribute__((always_inline)) void dot_c(float *y, size_t ldy, const void *w,
                                                        size_t ldw, const float *x, size_t ldx,
                                                        size_t rows, size_t tokens, size_t n,
                                                        int add, load_fn *load) {
    for (size_t r = 0; r < rows; r++) {
        for (size_t t = 0; t < tokens; t++) {
            const float *xt = x + t * ldx;
            float lane[SUM_LANES] = {0};
            size_t k = 0;
            for (; k + SUM_LANES <= n; k += SUM_LANES)
                for (size_t j = 0; j < SUM_LANES; j++)
                    lane[j] += load(w, r * ldw + k + j) * xt[k + j];
            for (size_t j = 0; k + j < n; j++) lane[j] += load(w, r * ldw + k + j) * xt[k + j];
            float sum = sum_lanes(lane);
            y[t * ldy + r] = add ? y[t * ldy + r] + sum : sum;
        }
    }
}

static inline __attribute__((always_inline)) void mix_c(float *y, size_t ldy, const float *p,
                                                        size_t ldp, const void *v, size_t ldv,
                                                        size_t tokens, size_t positions, size_t n,
                                                        load_fn *load) {
    for (size_t t = 0; t < tokens; t++)
        for (size_t s = 0; s < positions; s++)
            for (size_t j = 0; j < n; j++) y[t * ldy + j] += p[t * ldp + s] * load(v, s * ldv + j);
}

#define TYPED(type)                                                                             \
    static void dot_##type##_c(float *y, size_t ldy, const void *w, size_t ldw, const float *x, \
                               size_t ldx, size_t rows, size_t tokens, size_t n, int add) {     \
        dot_c(y, ldy, w, ldw, x, ldx, rows, tokens, n, add, load_##type);                       \
    }                                                                                           \
    static void mix_##type##_c(float *y, size_t ldy, const float *p, size_t ldp, const void *v, \
                               size_t ldv, size_t tokens, size_t positions, size_t n) {         \
        mix_c(y, ldy, p, ldp, v, ldv, tokens, positions, n, load_##type);                       \
    }
TYPED(f32)
TYPED(f16)
TYPED(bf16)

static void delta_c(float *out, size_t ldo, float *state, const float *q, const float *k,
                    size_t ldqk, const float *v, size_t ldv, const float *decay, const float *beta,
                    size_t tokens, size_t Dk, size_t cols) {
    for (size_t t = 0; t < tokens; t++) {
        const float *qt = q + t * ldqk, *kt = k + t * ldqk, *vt = v + t * ldv;
        float read_k[Q35_DELTA_COLS] = {0}, read_q[Q35_DELTA_COLS] = {0}, d[Q35_DELTA_COLS];
        float kq = 0;
        for (size_t i = 0; i < Dk; i++) {
            const float *row = state + i * cols;
            for (size_t j = 0; j < cols; j++) read_k[j] += row[j] * kt[i];
            for (size_t j = 0; j < cols; j++) read_q[j] += row[j] * qt[i];
            kq += kt[i] * qt[i];
        }
        for (size_t j = 0; j < cols; j++) d[j] = beta[t] * (vt[j] - decay[t] * read_k[j]);
        /* S^T q after the update = decay S^T q + (k . q) d: the state is read once for both
         * products */
        for (size_t j = 0; j < cols; j++) out[t * ldo + j] = decay[t] * read_q[j] + kq * d[j];
        for (size_t i = 0; i < Dk; i++)
            for (size_t j = 0; j < cols; j++) {
                float *s = state + i * cols + j;
                *s = decay[t] * *s + kt[i] * d[j];
            }
    }
}

const q35_kernels q35_kernels_c = {
    .name = "c",
    .blas_tokens = 8,
    .dot = {dot_f32_c, dot_f16_c, dot_bf16_c},
    .mix = {mix_f32_c, mix_f16_c, mix_bf16_c},
    .delta = delta_c,
    ELEMENTWISE_MEMBERS,
};
