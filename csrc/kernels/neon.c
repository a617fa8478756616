/* neon.c: 4 lanes, 32 registers (Advanced SIMD, which every 64-bit ARM processor has).
 *
 * There is no `dot_fixed`: two products of int16 take two multiplications of half the rate of two
 * in f32. Nor is there a target with the 2 x 2 products of i8mm: panels hold 4 columns of 4 rows in
 * a register where it wants 8 of 2, and rearranging them costs half of what it saves. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "target.h"

#define NAME(op) op##_neon
#define LANES 4
#define DOT_TOKENS 6 /* 4 x 6 sums + 6 tokens + 1 row = 31 registers */
#define MIX_TOKENS 4 /* 4 x 4 sums + 4 rows + 1 weight = 21 registers */
#define MIX_VECTORS 4

#include "elementwise.inl"

typedef float32x4_t V;
#define INLINE static inline __attribute__((always_inline))

INLINE V vzero(void) { return vdupq_n_f32(0); }
INLINE V vset(float a) { return vdupq_n_f32(a); }
INLINE V vload(const float *p) { return vld1q_f32(p); }
INLINE V vload_n(const float *p, size_t n) {
    V v = vld1q_lane_f32(p, vzero(), 0);
    if (n > 1) v = vld1q_lane_f32(p + 1, v, 1);
    if (n > 2) v = vld1q_lane_f32(p + 2, v, 2);
    return v;
}
INLINE void vstore(float *p, V v) { vst1q_f32(p, v); }
INLINE void vstore_n(float *p, V v, size_t n) {
    vst1q_lane_f32(p, v, 0);
    if (n > 1) vst1q_lane_f32(p + 1, v, 1);
    if (n > 2) vst1q_lane_f32(p + 2, v, 2);
}
INLINE V vfma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
INLINE V vmul(V a, V b) { return vmulq_f32(a, b); }
INLINE V vsub(V a, V b) { return vsubq_f32(a, b); }
INLINE V vadd(V a, V b) { return vaddq_f32(a, b); }
INLINE V vdiv(V a, V b) { return vdivq_f32(a, b); }
INLINE V vmin(V a, V b) { return vminq_f32(a, b); }
INLINE V vmax(V a, V b) { return vmaxq_f32(a, b); }
INLINE V vpower(V a, V t) {
    int32x4_t n = vshlq_n_s32(vreinterpretq_s32_f32(t), 23);
    return vmul(a, vreinterpretq_f32_s32(vaddq_s32(n, vdupq_n_s32(0x3f800000))));
}
INLINE float vlargest(V v) { return vmaxvq_f32(v); }

INLINE V widen(uint16x4_t half, const q35_dtype dtype) {
    if (dtype == Q35_F16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

INLINE V vload_as(const void *w, size_t i, const q35_dtype dtype) {
    if (dtype == Q35_F32) return vload((const float *)w + i);
    return widen(vld1_u16((const uint16_t *)w + i), dtype);
}

INLINE V vload_as_n(const void *w, size_t i, size_t n, const q35_dtype dtype) {
    if (dtype == Q35_F32) return vload_n((const float *)w + i, n);
    const uint16_t *p = (const uint16_t *)w + i;
    uint16x4_t half = vld1_lane_u16(p, vdup_n_u16(0), 0);
    if (n > 1) half = vld1_lane_u16(p + 1, half, 1);
    if (n > 2) half = vld1_lane_u16(p + 2, half, 2);
    return widen(half, dtype);
}

/* (v0 + v1) + (v2 + v3), in both */
INLINE float vsum(V v) { return vaddvq_f32(v); }
INLINE V vsum4(V a, V b, V c, V d) { return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)); }
INLINE void store_sums(float *y, int add, V sums) {
    vst1q_f32(y, add ? vadd(vload(y), sums) : sums);
}

#include "simd.inl"

typedef int32x4_t I;

INLINE int8x16_t bytes_of(I v) { return vreinterpretq_s8_s32(v); }
INLINE I of_bytes(int8x16_t v) { return vreinterpretq_s32_s8(v); }
INLINE I izero(void) { return vdupq_n_s32(0); }
INLINE I iload(const void *p) { return of_bytes(vld1q_s8(p)); }
INLINE void istore(void *p, I v) { vst1q_s8(p, bytes_of(v)); }
INLINE I ipair(const void *p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return vdupq_n_s32(pair);
}
INLINE V itof(I v) { return vcvtq_f32_s32(v); }
INLINE I iset8(char a) { return of_bytes(vdupq_n_s8((int8_t)a)); }
INLINE I isub8(I a, I b) { return of_bytes(vsubq_s8(bytes_of(a), bytes_of(b))); }
INLINE I iand(I a, I b) { return vandq_s32(a, b); }
INLINE I imerge(I a, I b, I m) { return vorrq_s32(a, vandq_s32(b, m)); }
INLINE I ishl32(I a, const int n) { return a << n; }
INLINE I iadd(I a, I b) { return vaddq_s32(a, b); }
INLINE I ishl(I a, const int n) { return (I)(vreinterpretq_u16_s32(a) << (uint16_t)n); }
INLINE I ishr(I a, const int n) { return (I)(vreinterpretq_u16_s32(a) >> (uint16_t)n); }
INLINE V ibytes(const int8_t *p) {
    int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vget_low_s32(ipair(p))));
    return itof(vmovl_s16(vget_low_s16(words)));
}
INLINE I ilevels(I codes) {
    return of_bytes(vqtbl1q_s8(vld1q_s8(q35_iq4_levels), vreinterpretq_u8_s32(codes)));
}

INLINE float largest32(const float *x) {
    V top = vzero();
    for (int i = 0; i < 32; i += LANES) top = vmax(top, vabsq_f32(vload(x + i)));
    return vlargest(top);
}
INLINE int32_t put16(int8_t *q, const I code[4]) {
    int16x8_t low = vcombine_s16(vqmovn_s32(code[0]), vqmovn_s32(code[1]));
    int16x8_t high = vcombine_s16(vqmovn_s32(code[2]), vqmovn_s32(code[3]));
    int8x16_t bytes = vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
    vst1q_s8(q, bytes);
    return vaddlvq_s8(bytes);
}
INLINE int32_t round16(int8_t *q, const float *x, float a) {
    I code[4];
    for (int h = 0; h < 4; h++) code[h] = vcvtnq_s32_f32(vmul(vload(x + h * LANES), vset(a)));
    return put16(q, code);
}
INLINE int32_t round16_twice(int8_t *q, int8_t *low, const float *x, float a) {
    I code[4], rest[4]; /* put16 saturates at 127 */
    for (int h = 0; h < 4; h++) {
        V scaled = vmul(vload(x + h * LANES), vset(a));
        code[h] = vcvtnq_s32_f32(scaled);
        rest[h] = vcvtnq_s32_f32(vmul(vsub(scaled, itof(code[h])), vset(256)));
    }
    int32_t sum = put16(q, code);
    return 256 * sum + put16(low, rest);
}
INLINE void halves(float *y, const void *x) {
    for (size_t i = 0; i < Q35_PANEL; i += LANES) vstore(y + i, vload_as(x, i, Q35_F16));
}

/* Four products a lane by way of int16. Pairs of them fit but for -128 x -128 twice. */
INLINE I dot_signed(I acc, I w, I x) {
    int8x16_t a = bytes_of(w), b = bytes_of(x);
    int16x8_t first = vmull_s8(vget_low_s8(a), vget_low_s8(b)), second = vmull_high_s8(a, b);
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(first), vpaddlq_s16(second)));
}

/* Of two steps. Where codes have at most 6 bits 4 x 63 x 128 still fits 16. */
INLINE I dot_two(I acc, I w, I x, I v, I z, const int bits) {
    if (bits == 8) return dot_signed(dot_signed(acc, w, x), v, z);
    int8x16_t a = bytes_of(w), b = bytes_of(x), c = bytes_of(v), d = bytes_of(z);
    int16x8_t first = vmull_s8(vget_low_s8(a), vget_low_s8(b)), second = vmull_high_s8(a, b);
    first = vmlal_s8(first, vget_low_s8(c), vget_low_s8(d));
    return vpadalq_s16(acc, vpaddq_s16(first, vmlal_high_s8(second, c, d)));
}

/* Pairs of int16, as K and V may be kept. */
INLINE I idot(I acc, I a, I b) {
    int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    I low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
    return vaddq_s32(acc, vpaddq_s32(low, high));
}
#define FIXED_TOKENS 4 /* 4 x 4 sums + 4 rows + 1 token + 2 products */
#define FIXED_VECTORS 4
#define PAIRS(op) op##_neon
#include "pairs.inl"

#define PANEL(op) op##_neon
#define PANEL_TOKENS 4 /* 4 x 4 sums, 4 of rows, a token and two products */
#define PANEL_FINE 2
#define PANEL_APART 1
#define PANEL_SIGNED 1
#define PANEL_WORDS 0
#define idot8 dot_two
#include "panel.inl"
#undef PANEL
#undef idot8

const q35_kernels q35_kernels_neon = {.name = "neon",
                                      .dot_pairs = dot_pairs_neon,
                                      SIMD_MEMBERS,
                                      ELEMENTWISE_MEMBERS,
                                      PANEL_MEMBERS(_neon)};

/* ---- the same with four products of bytes added up in one instruction (dotprod) ---- */

#if defined(__clang__)
TARGET_BEGIN("dotprod")
#else
TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif

/* vdotq_s32, which clang before 16 hides from functions that have the feature by attribute */
INLINE I dot_four(I acc, I w, I x) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(w), "w"(x));
    return acc;
}

#define PANEL(op) op##_neondotprod
#define idot8(acc, w, x, v, z, bits) ((void)(bits), dot_four(dot_four(acc, w, x), v, z))
#include "panel.inl"

TARGET_END

const q35_kernels q35_kernels_neondotprod = {.name = "neondotprod",
                                             .dot_pairs = dot_pairs_neon,
                                             SIMD_MEMBERS,
                                             ELEMENTWISE_MEMBERS,
                                             PANEL_MEMBERS(_neondotprod)};
#else
typedef int q35_no_neon; /* ISO C wants a declaration in every file */
#endif
