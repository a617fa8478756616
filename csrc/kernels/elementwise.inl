/* elementwise.inl: the kernels that are plain loops. Included once by each target, whose compiler
 * flags decide how the loops become vector instructions. The includer defines NAME(op), the
 * target's own name of a function.
 *
 * Sums run over 16 independent lanes, so that a compiler may vectorize them without being allowed
 * to reorder. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#define SUM_LANES 16

/* Before a loop whose i-th step touches element i of its arrays alone: it may be vectorized
   although an output may be an input. Without it compilers compare the pointers and fall back to
   scalars. */
#if defined(__clang__)
#define ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define ELEMENTWISE _Pragma("GCC ivdep")
#endif

static inline float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The lanes of a sum, as one value: compilers take an array of them for so many scalars. */
typedef float lanes __attribute__((vector_size(SUM_LANES * sizeof(float))));
typedef int32_t lane_bits __attribute__((vector_size(SUM_LANES * sizeof(int32_t))));

static inline float sum_lanes(const float *lane) {
    float half[SUM_LANES / 2];
    for (int j = 0; j < 8; j++) half[j] = lane[j] + lane[j + 8];
    for (int j = 0; j < 4; j++) half[j] += half[j + 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
}

/* lane[j] = sum_i (x_i - shift)^power, i = j modulo SUM_LANES, power 1 or 2 */
static inline __attribute__((always_inline)) void lane_sums(float *lane, const float *x,
                                                            float shift, const int power,
                                                            size_t n) {
    lanes sum = {0};
    size_t i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES) {
        lanes a;
        memcpy(&a, x + i, sizeof a);
        a -= shift;
        sum += power == 2 ? a * a : a;
    }
    memcpy(lane, &sum, sizeof sum);
    for (size_t j = 0; i + j < n; j++) {
        float a = x[i + j] - shift;
        lane[j] += power == 2 ? a * a : a;
    }
}

static inline __attribute__((always_inline)) float sum_of(const float *x, float shift,
                                                          const int power, size_t n) {
    float lane[SUM_LANES];
    lane_sums(lane, x, shift, power, n);
    return sum_lanes(lane);
}

static float sum_of_squares(const float *x, size_t n) { return sum_of(x, 0.0f, 2, n); }

static void NAME(rms_norm)(float *y, const float *x, const float *scale, float eps, size_t n) {
    float factor = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps);
    ELEMENTWISE for (size_t i = 0; i < n; i++) y[i] = x[i] * factor * scale[i];
}

static void NAME(layer_norm)(float *y, const float *x, const float *scale, const float *shift,
                             float eps, size_t n) {
    float mean = sum_of(x, 0.0f, 1, n) / (float)n;
    float factor = 1.0f / sqrtf(sum_of(x, mean, 2, n) / (float)n + eps);
    ELEMENTWISE for (size_t i = 0; i < n; i++) y[i] = (x[i] - mean) * factor * scale[i] + shift[i];
}

static void NAME(l2_norm)(float *x, float scale, size_t n) {
    float factor = scale / sqrtf(sum_of_squares(x, n) + 1e-6f);
    for (size_t i = 0; i < n; i++) x[i] *= factor;
}

static float NAME(fix_all)(int16_t *y, const float *x, size_t n, float most) {
    float lane[SUM_LANES], top = 0;
    lane_sums(lane, x, 0.0f, 2, n);
    for (size_t j = 0; j < SUM_LANES; j++) top = lane[j] > top ? lane[j] : top;
    float squares = sum_lanes(lane), norm = sqrtf(squares);
    /* Where no lane has more than half of the squares, no value is above norm / sqrt(2). */
    float length = most > 32767.0f && top > 0.5f * squares ? 32767.0f : most;
    /* The norm of squares below the least normal number is too rough: zeros. */
    float inverse = squares < FLT_MIN ? 0.0f : length / norm;
    /* Adding 1.5 * 2^23 rounds to an integer held in the low bits. */
    ELEMENTWISE for (size_t i = 0; i < n; i++) y[i] =
        (int16_t)float_to_bits(x[i] * inverse + 12582912.0f);
    return norm / length;
}

static void NAME(fix)(int16_t *y, float *factor, const float *x, size_t n) {
    for (size_t k = 0; k < n; k += Q35_FIXED) {
        size_t block = n - k < Q35_FIXED ? n - k : Q35_FIXED;
        factor[k / Q35_FIXED] = NAME(fix_all)(y + k, x + k, block, 46000.0f);
    }
    if (n % 2) y[n] = 0;
}

static void NAME(add)(float *y, const float *x, size_t n) {
    ELEMENTWISE for (size_t i = 0; i < n; i++) y[i] += x[i];
}

static void NAME(scale)(float *x, float a, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] *= a;
}

/* ---- storage types ---- */

static void NAME(expand_f32)(float *y, const void *x, size_t n) { memcpy(y, x, n * sizeof *y); }

static void NAME(narrow_f32)(void *y, const float *x, size_t n) { memcpy(y, x, n * sizeof *x); }

static void NAME(expand_bf16)(float *y, const void *x, size_t n) {
    const uint16_t *h = x;
    for (size_t i = 0; i < n; i++) y[i] = bits_to_float((uint32_t)h[i] << 16);
}

static void NAME(narrow_bf16)(void *y, const float *x, size_t n) {
    uint16_t *h = y;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = float_to_bits(x[i]);
        uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        int is_nan =
            (bits & 0x7fffffffu) > 0x7f800000u; /* rounding up would turn some NaN into infinity */
        h[i] = (uint16_t)(is_nan ? (bits >> 16) | 0x40u : rounded);
    }
}

static inline float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) /* infinity, NaN (made quiet, as the hardware does) */
        return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 |
                             (magnitude > 0x7c00u ? 0x400000u : 0u));
    if (magnitude >= 0x400u) return bits_to_float(sign | ((magnitude << 13) + (112u << 23)));
    /* subnormal: magnitude x 2^-24, exact */
    return bits_to_float(sign | float_to_bits((float)magnitude * 5.9604644775390625e-8f));
}

static inline uint16_t float_to_half(float value) {
    uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((bits >> 13) & 0x1ffu));
    if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to 65536 or more */
    if (bits <
        0x38800000u) { /* subnormal half: adding 0.5 leaves the rounded magnitude in the low bits */
        float shifted = bits_to_float(bits) + 0.5f;
        return (uint16_t)(sign | (float_to_bits(shifted) - 0x3f000000u));
    }
    bits += 0xfffu + ((bits >> 13) & 1u) - (112u << 23);
    return (uint16_t)(sign | bits >> 13);
}

static void NAME(expand_f16)(float *y, const void *x, size_t n) {
    const uint16_t *h = x;
    for (size_t i = 0; i < n; i++) y[i] = half_to_float(h[i]);
}

static void NAME(narrow_f16)(void *y, const float *x, size_t n) {
    uint16_t *h = y;
    for (size_t i = 0; i < n; i++) h[i] = float_to_half(x[i]);
}

/* The table's members that every target fills the same way. */
#define ELEMENTWISE_MEMBERS                                                                        \
    .expand = {NAME(expand_f32), NAME(expand_f16), NAME(expand_bf16)},                             \
    .narrow = {NAME(narrow_f32), NAME(narrow_f16), NAME(narrow_bf16)}, .rms_norm = NAME(rms_norm), \
    .l2_norm = NAME(l2_norm), .fix = NAME(fix), .fix_all = NAME(fix_all),                          \
    .layer_norm = NAME(layer_norm), .add = NAME(add), .scale = NAME(scale)
