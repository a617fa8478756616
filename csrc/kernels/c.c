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

/* ---- with exponentials ---- */

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; exp(r) by its Taylor polynomial of
   degree 7 (remainder below 6e-9 on that interval). ln 2 in two parts keeps r exact to f32. */
static inline float exp_f32(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float magic =
        12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer held in the low bits */
    float t = x * 1.44269504f + magic;
    float n = t - magic;
    float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * bits_to_float((float_to_bits(t) << 23) + 0x3f800000u);
}

static void silu_mul_c(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = gate[i] / (1.0f + exp_f32(-gate[i])) * up[i];
}

static void sigmoid_mul_c(float *y, const float *gate, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = x[i] / (1.0f + exp_f32(-gate[i]));
}

/* tanh-GELU: 0.5 a (1 + tanh(u)) = a / (1 + exp(-2 u)), u = sqrt(2 / pi) (a + 0.044715 a^3) */
static void gelu_bias_c(float *x, const float *bias, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float a = x[i] + bias[i];
        x[i] = a / (1.0f + exp_f32(-1.5957691216f * (a + 0.044715f * a * a * a)));
    }
}

static void conv_silu_c(float *y, const float *const *taps, const float *w, size_t ldw, size_t K,
                        size_t n) {
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (size_t j = 0; j < K; j++) sum += w[j * ldw + i] * taps[j][i];
        y[i] = sum / (1.0f + exp_f32(-sum));
    }
}

static float softmax_step_c(float *s, size_t n, float m, float *sum) {
    float top = m;
    for (size_t i = 0; i < n; i++) top = s[i] > top ? s[i] : top;
    for (size_t i = 0; i < n; i++) s[i] = exp_f32(s[i] - top);
    *sum = sum_of(s, 0.0f, 1, n);
    return top;
}

static float weigh_c(int16_t *y, float *factor, float *s, const float *v_factor, size_t n,
                     size_t all, float norm, float m, float *sum) {
    for (size_t i = n; i < all; i++) s[i] = -INFINITY;
    float top = softmax_step_c(s, all, m, sum);
    for (size_t i = 0; i < all; i++) s[i] *= v_factor[i];
    *factor = fix_all_c(y, s, all, norm);
    return top;
}

static void exp_c(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = exp_f32(x[i]);
}

/* ---- integers ---- */

static void dot_pairs_c(float *y, size_t ldy, const int16_t *w, size_t width, const float *w_factor,
                        const int16_t *x, size_t ldx, const float *x_factor, size_t tokens,
                        size_t pairs, int add) {
    for (size_t t = 0; t < tokens; t++, y += ldy, x += ldx)
        for (size_t c = 0; c < width; c += 16) {
            uint32_t sum[16] = {0}; /* what a damaged session file holds may wrap */
            for (size_t i = 0; i < pairs; i++)
                for (size_t k = 0; k < 16; k++) {
                    const int16_t *pair = w + (i * width + c + k) * 2;
                    sum[k] += (uint32_t)(pair[0] * x[2 * i]);
                    sum[k] += (uint32_t)(pair[1] * x[2 * i + 1]);
                }
            for (size_t k = 0; k < 16; k++) {
                float factor = w_factor ? w_factor[c + k] * x_factor[t] : x_factor[t];
                y[c + k] = (add ? y[c + k] : 0) + factor * (float)(int32_t)sum[k];
            }
        }
}

static inline float largest32(const float *x) {
    float top = 0;
    for (int i = 0; i < 32; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    return top;
}
/* Adding 1.5 * 2^23 rounds to an integer held in the low bits. */
static inline int32_t nearest(float x) {
    return (int32_t)float_to_bits(x + 12582912.0f) - 0x4b400000;
}
static inline int32_t round16(int8_t *q, const float *x, float a) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) {
        int32_t code = nearest(x[i] * a);
        q[i] = (int8_t)code;
        sum += code;
    }
    return sum;
}
static inline int32_t round16_twice(int8_t *q, int8_t *low, const float *x, float a) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) {
        float scaled = x[i] * a;
        int32_t code = nearest(scaled), rest = nearest((scaled - (float)code) * 256.0f);
        rest = rest > 127 ? 127 : rest;
        q[i] = (int8_t)code;
        low[i] = (int8_t)rest;
        sum += 256 * code + rest;
    }
    return sum;
}
#define PANEL(op) op##_c
#define PANEL_TOKENS 1
#define PANEL_FINE 1
#define PANEL_WORDS 0
#include "quantize.inl"

/* 32 columns of a record as they are multiplied. */
static inline void unpack_codes(int8_t *codes, const uint8_t *low, q35_packing p) {
    const uint8_t *high = low + 256;
    if (p.bits == 8) memcpy(codes, low, Q35_GROUP * Q35_PANEL);
    for (int j = 0; p.bits < 8 && j < 8; j++)
        for (int i = 0; i < 64; i++) {
            int code = low[64 * (j % 4) + i] >> j / 4 * 4 & 15;
            if (p.bits == 5) code |= (high[i] >> j & 1) << 4;
            if (p.bits == 6) code |= (high[64 * (j % 2) + i] >> j / 2 * 2 & 3) << 4;
            codes[64 * j + i] = (int8_t)(p.leveled ? q35_iq4_levels[code] : code - p.offset);
        }
}

/* acc[r] += sum of the products of one group; `next` bytes from four columns of x to the next */
static inline void multiply_group(int32_t acc[Q35_PANEL], const int8_t *codes, const int8_t *x,
                                  size_t columns, size_t next) {
    for (size_t j = 0; j < columns / 4; j++)
        for (size_t r = 0; r < Q35_PANEL; r++)
            for (size_t c = 0; c < 4; c++)
                acc[r] += codes[(j * Q35_PANEL + r) * 4 + c] * x[next * j + c];
}

/* sum [T, 16] += one group, columns k .. k + n of the tokens */
static inline void add_group(float *sum, size_t ld, const int8_t *codes, const float *scale,
                             const float *min, const q35_tokens *x, size_t k, size_t n) {
    for (size_t t = 0; t < x->T; t++) {
        const size_t at = t * x->columns + k;
        const q35_token_group *f = x->group + at / Q35_GROUP;
        const float half = -f->scale * (float)f->less[k % Q35_GROUP / Q35_PART];
        int32_t acc[Q35_PANEL] = {0};
        if (x->fine) {
            multiply_group(acc, codes, x->q + 2 * at, n, 8);
            for (size_t r = 0; r < Q35_PANEL; r++) acc[r] *= 256;
            multiply_group(acc, codes, x->q + 2 * at + 4, n, 8);
        } else
            multiply_group(acc, codes, x->q + at, n, 4);
        for (size_t r = 0; r < Q35_PANEL; r++) {
            sum[t * ld + r] += (float)acc[r] * (scale[r] * f->scale);
            if (min) sum[t * ld + r] += min[r] * (n == Q35_GROUP ? f->sum : half);
        }
    }
}

static void clear_sums(float *sum, size_t ld, size_t T) {
    for (size_t t = 0; t < T; t++) memset(sum + t * ld, 0, Q35_PANEL * sizeof *sum);
}

static inline __attribute__((always_inline)) void dot_records(float *sum, size_t ld, int add,
                                                              const uint8_t *packed,
                                                              const q35_tokens *tokens, size_t k,
                                                              size_t n, const q35_packing p) {
    const q35_record r = q35_record_of(p);
    int8_t codes[Q35_GROUP * Q35_PANEL];
    if (!add) clear_sums(sum, ld, tokens->T);
    for (size_t i = 0; i < n; i += p.group) {
        const uint8_t *record = packed + i / r.columns * r.bytes;
        const size_t g = i % r.columns / p.group * Q35_PANEL;
        float scale[Q35_PANEL], min[Q35_PANEL];
        expand_f16_c(scale, record, Q35_PANEL);
        if (p.mins) expand_f16_c(min, record + r.dmin, Q35_PANEL);
        for (size_t row = 0; row < Q35_PANEL; row++) {
            if (p.scaled) scale[row] *= (float)(int8_t)record[r.scales + g + row];
            if (p.mins) min[row] *= p.scaled ? -(float)record[r.mins + g + row] : -1.0f;
        }
        if (i % Q35_GROUP == 0)
            unpack_codes(codes, record + r.codes + i % r.columns / Q35_GROUP * r.code_bytes, p);
        add_group(sum, ld, codes + i % Q35_GROUP * Q35_PANEL, scale, p.mins ? min : NULL, tokens,
                  k + i, p.group);
    }
}

static void dot_packed_c(float *sum, size_t ld, int add, q35_dtype dtype, const void *packed,
                         const q35_tokens *tokens, size_t k, size_t n) {
#define RECORDS(type) \
    case type: dot_records(sum, ld, add, packed, tokens, k, n, q35_packing_of(type)); break
    switch (dtype) { /* each a copy of its own, in which the layout is constant */
        Q35_PACKED_TYPES(RECORDS)
    default: break; /* not packed: q35_packing_of says so */
    }
#undef RECORDS
}

static void dot_panel_c(float *sum, size_t ld, int add, const q35_panel *w,
                        const q35_tokens *tokens, size_t k, size_t n) {
    if (!add) clear_sums(sum, ld, tokens->T);
    for (size_t i = 0; i < n; i += Q35_PART)
        add_group(sum, ld, w->codes + i * Q35_PANEL, w->scale + i, w->min + i, tokens, k + i,
                  Q35_PART);
}

const q35_kernels q35_kernels_c = {
    .name = "c",
    .blas_tokens = 8,
    .dot = {dot_f32_c, dot_f16_c, dot_bf16_c},
    .mix = {mix_f32_c, mix_f16_c, mix_bf16_c},
    .dot_pairs = dot_pairs_c,
    .delta = delta_c,
    ELEMENTWISE_MEMBERS,
    PANEL_MEMBERS(_c),
    .silu_mul = silu_mul_c,
    .sigmoid_mul = sigmoid_mul_c,
    .gelu_bias = gelu_bias_c,
    .conv_silu = conv_silu_c,
    .softmax_step = softmax_step_c,
    .weigh = weigh_c,
    .exp = exp_c,
};
