/* avx512.c: 16 lanes, 32 registers (AVX-512 F, BW, VL, DQ). */
#if defined(__x86_64__)
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "target.h"

TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")

#define NAME(op) op##_avx512
#define LANES 16
#define DOT_TOKENS 6 /* 4 x 6 sums + 6 tokens + 1 row = 31 registers */
#define MIX_TOKENS 4 /* 4 x 4 sums + 4 rows + 1 weight = 21 registers */
#define MIX_VECTORS 4

#include "elementwise.inl"

typedef __m512 V;
#define INLINE static inline __attribute__((always_inline))

INLINE __mmask16 first(size_t n) { return (__mmask16)((1u << n) - 1u); }
INLINE V vzero(void) { return _mm512_setzero_ps(); }
INLINE V vset(float a) { return _mm512_set1_ps(a); }
INLINE V vload(const float *p) { return _mm512_loadu_ps(p); }
INLINE V vload_n(const float *p, size_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
INLINE void vstore(float *p, V v) { _mm512_storeu_ps(p, v); }
INLINE void vstore_n(float *p, V v, size_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
INLINE V vfma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE V vmul(V a, V b) { return _mm512_mul_ps(a, b); }
INLINE V vsub(V a, V b) { return _mm512_sub_ps(a, b); }
INLINE V vadd(V a, V b) { return _mm512_add_ps(a, b); }
INLINE V vdiv(V a, V b) { return _mm512_div_ps(a, b); }
INLINE V vmin(V a, V b) { return _mm512_min_ps(a, b); }
INLINE V vmax(V a, V b) { return _mm512_max_ps(a, b); }
INLINE V vpower(V a, V t) {
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return vmul(a, _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3f800000))));
}
INLINE float vlargest(V v) { return _mm512_reduce_max_ps(v); }
INLINE __m256 fold(V v) {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

INLINE V widen(__m256i half, const q35_dtype dtype) {
    if (dtype == Q35_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

INLINE V vload_as(const void *w, size_t i, const q35_dtype dtype) {
    if (dtype == Q35_F32) return vload((const float *)w + i);
    return widen(_mm256_loadu_si256((const void *)((const uint16_t *)w + i)), dtype);
}

INLINE V vload_as_n(const void *w, size_t i, size_t n, const q35_dtype dtype) {
    if (dtype == Q35_F32) return vload_n((const float *)w + i, n);
    return widen(_mm256_maskz_loadu_epi16(first(n), (const uint16_t *)w + i), dtype);
}

#include "sum.inl"

INLINE float vsum(V v) { return sum8(fold(v)); }
INLINE __m128 vsum4(V a, V b, V c, V d) { return sum8x4(fold(a), fold(b), fold(c), fold(d)); }

#include "simd.inl"

typedef __m512i I;

INLINE I izero(void) { return _mm512_setzero_si512(); }
INLINE I iload(const void *p) { return _mm512_loadu_si512(p); }
INLINE void istore(void *p, I v) { _mm512_storeu_si512(p, v); }
INLINE I ipair(const void *p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
}
INLINE I idot(I acc, I a, I b) {
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
    IN_REGISTER(acc);
    return acc;
}
INLINE I iset(int32_t a) { return _mm512_set1_epi32(a); }
INLINE V itof(I v) { return _mm512_cvtepi32_ps(v); }
INLINE void itranspose(I *v) {
    I t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; h++) { /* lane l of v[i + j]: column 4 l + j of four rows */
            v[i + 2 * h] = _mm512_unpacklo_epi64(t[i + h], t[i + h + 2]);
            v[i + 2 * h + 1] = _mm512_unpackhi_epi64(t[i + h], t[i + h + 2]);
        }
    for (int j = 0; j < 4; j++) {
        t[j] = _mm512_shuffle_i32x4(v[j], v[j + 4], 0x88);
        t[j + 4] = _mm512_shuffle_i32x4(v[j], v[j + 4], 0xdd);
        t[j + 8] = _mm512_shuffle_i32x4(v[j + 8], v[j + 12], 0x88);
        t[j + 12] = _mm512_shuffle_i32x4(v[j + 8], v[j + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
INLINE __m128i isum4(I a, I b, I c, I d) {
    I ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    I cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    I all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
/* Adding 1.5 * 2^23 rounds to an integer held in the low bits. */
INLINE I round_scaled(V x, V scale) {
    return _mm512_castps_si512(vfma(x, scale, vset(12582912.0f)));
}
INLINE I icodes(const uint16_t *w, V scale, const q35_dtype dtype) {
    if (dtype == Q35_F16) {
        I low = round_scaled(vload_as(w, 0, dtype), scale);
        I high = round_scaled(vload_as(w, LANES, dtype), scale);
        const I all = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(low)),
                                         _mm512_cvtepi32_epi16(high), 1);
        return all;
    }
    I pairs = iload(w);
    I even = round_scaled(_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), scale);
    I odd = _mm512_and_si512(pairs, iset((int32_t)0xffff0000));
    odd = round_scaled(_mm512_castsi512_ps(odd), scale);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
}
INLINE uint32_t largest_bits(const uint16_t *w) {
    const I unsign = _mm512_set1_epi16(0x7fff);
    I most = _mm512_and_si512(iload(w), unsign);
    for (int i = 32; i < Q35_FIXED; i += 32)
        most = _mm512_max_epu16(most, _mm512_and_si512(iload(w + i), unsign));
    return largest16(
        _mm256_max_epu16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1)));
}

#define FIXED_TOKENS 6 /* 6 x 4 sums + 4 rows + 1 token = 29 registers */
#define FIXED_VECTORS 4
#define FIXED(op) op##_avx512
#include "fixed.inl"
#undef FIXED
#define PAIRS(op) op##_avx512
#include "pairs.inl"
#undef PAIRS

/* Bytes as two vectors of int16, the even ones and the odd. */
typedef struct even_odd {
    I even, odd;
} even_odd;

INLINE even_odd isplit(I v, const int wide) {
    if (!wide)
        return (even_odd){_mm512_and_si512(v, _mm512_set1_epi16(255)), _mm512_srli_epi16(v, 8)};
    return (even_odd){_mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8), _mm512_srai_epi16(v, 8)};
}
INLINE float largest32(const float *x) {
    return _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_abs_ps(vload(x)), _mm512_abs_ps(vload(x + LANES))));
}
INLINE int32_t put16(int8_t *q, I code) {
    _mm_storeu_si128((void *)q, _mm512_cvtepi32_epi8(code));
    return _mm512_reduce_add_epi32(code);
}
INLINE int32_t round16(int8_t *q, const float *x, float a) {
    return put16(q, _mm512_cvtps_epi32(vmul(vload(x), vset(a))));
}
INLINE int32_t round16_twice(int8_t *q, int8_t *low, const float *x, float a) {
    V scaled = vmul(vload(x), vset(a));
    I code = _mm512_cvtps_epi32(scaled);
    V rest = vmul(vsub(scaled, itof(code)), vset(256));
    int32_t sum = put16(q, code);
    return 256 * sum + put16(low, _mm512_min_epi32(_mm512_cvtps_epi32(rest), iset(127)));
}
INLINE void halves(float *y, const void *x) { vstore(y, _mm512_cvtph_ps(_mm256_loadu_si256(x))); }
INLINE I iset8(char a) { return _mm512_set1_epi8(a); }
INLINE I isub8(I a, I b) { return _mm512_sub_epi8(a, b); }
INLINE I iand(I a, I b) { return _mm512_and_si512(a, b); }
INLINE I imerge(I a, I b, I m) { return _mm512_ternarylogic_epi32(a, b, m, 0xf8); }
INLINE I ishl32(I a, const int n) { return _mm512_slli_epi32(a, (unsigned)n); }
INLINE I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
INLINE I ishl(I a, const int n) { return _mm512_slli_epi16(a, (unsigned)n); }
INLINE I ishr(I a, const int n) { return _mm512_srli_epi16(a, (unsigned)n); }
INLINE V ibytes(const int8_t *p) {
    return itof(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE I ilevels(I codes) {
    const I levels = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)q35_iq4_levels));
    return _mm512_shuffle_epi8(levels, codes);
}
/* With a w of 4 bits two products are at most 2 x 15 x 128: those of 8 steps fit int16, or of 4
   with 5 bits, or of 2 with 6. */
INLINE I iadd_bytes(I acc, I w, I x) {
    acc = _mm512_add_epi16(acc, _mm512_maddubs_epi16(w, x));
    IN_REGISTER(acc);
    return acc;
}
INLINE I irun(I acc, I run) { return idot(acc, run, _mm512_set1_epi16(1)); }

#define PANEL(op) op##_avx512
#define PANEL_TOKENS 4 /* 4 sums of each kind, 2 of rows and of a token, products and masks */
#define PANEL_FINE 4
#define PANEL_APART 1
#define PANEL_SIGNED 1
#define PANEL_WORDS 1
#define PANEL_RUN(bits) ((bits) == 4 ? 8 : (bits) == 5 ? 4 : 2)
#include "panel.inl"
#undef PANEL
#undef PANEL_TOKENS
#undef PANEL_FINE
#undef PANEL_APART
#undef PANEL_SIGNED
#undef PANEL_WORDS
#undef PANEL_RUN

TARGET_END

const q35_kernels q35_kernels_avx512 = {.name = "avx512",
                                        SIMD_MEMBERS,
                                        ELEMENTWISE_MEMBERS,
                                        FIXED_MEMBERS(_avx512),
                                        .dot_pairs = dot_pairs_avx512,
                                        PANEL_MEMBERS(_avx512)};

/* ---- the same with products of int16 pairs added up in one instruction (AVX512-VNNI) ---- */

TARGET_BEGIN("avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")

#define idot _mm512_dpwssd_epi32
#define FIXED(op) op##_avx512vnni
#include "fixed.inl"
#define PAIRS(op) op##_avx512vnni
#include "pairs.inl"

#define PANEL(op) op##_avx512vnni
#define PANEL_TOKENS 8 /* 8 integer sums, 8 of f32, 2 of rows and 2 of a token */
#define PANEL_FINE 8   /* 8 integer sums more */
#define PANEL_APART 0
#define PANEL_SIGNED 0
#define PANEL_WORDS 0
#define idot8(acc, w, x, v, z, bits) \
    ((void)(bits), _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc, w, x), v, z))
#include "panel.inl"

TARGET_END

const q35_kernels q35_kernels_avx512vnni = {.name = "avx512vnni",
                                            SIMD_MEMBERS,
                                            ELEMENTWISE_MEMBERS,
                                            FIXED_MEMBERS(_avx512vnni),
                                            .dot_pairs = dot_pairs_avx512vnni,
                                            PANEL_MEMBERS(_avx512vnni)};
#else
typedef int q35_no_avx512; /* ISO C wants a declaration in every file */
#endif
