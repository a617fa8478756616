/* avx2.c: 8 lanes, 16 registers (AVX2, FMA, F16C). */
#if defined(__x86_64__)
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "target.h"

TARGET_BEGIN("avx2,fma,f16c,bmi2")

#define NAME(op) op##_avx2
#define LANES 8
#define DOT_TOKENS 3 /* 4 x 3 sums + 3 tokens + 1 row = 16 registers */
#define MIX_TOKENS 4 /* 4 x 2 sums + 2 rows + 1 weight = 11 registers */
#define MIX_VECTORS 2

#include "elementwise.inl"

typedef __m256 V;
#define INLINE static inline __attribute__((always_inline))

/* -1 in the first n lanes: the mask of maskload and maskstore */
INLINE __m256i first(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE V vzero(void) { return _mm256_setzero_ps(); }
INLINE V vset(float a) { return _mm256_set1_ps(a); }
INLINE V vload(const float *p) { return _mm256_loadu_ps(p); }
INLINE V vload_n(const float *p, size_t n) { return _mm256_maskload_ps(p, first(n)); }
INLINE void vstore(float *p, V v) { _mm256_storeu_ps(p, v); }
INLINE void vstore_n(float *p, V v, size_t n) { _mm256_maskstore_ps(p, first(n), v); }
INLINE V vfma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
INLINE V vmul(V a, V b) { return _mm256_mul_ps(a, b); }
INLINE V vsub(V a, V b) { return _mm256_sub_ps(a, b); }
INLINE V vadd(V a, V b) { return _mm256_add_ps(a, b); }
INLINE V vdiv(V a, V b) { return _mm256_div_ps(a, b); }
INLINE V vmin(V a, V b) { return _mm256_min_ps(a, b); }
INLINE V vmax(V a, V b) { return _mm256_max_ps(a, b); }
INLINE V vpower(V a, V t) {
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return vmul(a, _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(0x3f800000))));
}
INLINE float vlargest(V v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
INLINE V widen(__m128i half, const q35_dtype dtype) {
    if (dtype == Q35_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

INLINE V vload_as(const void *w, size_t i, const q35_dtype dtype) {
    if (dtype == Q35_F32) return vload((const float *)w + i);
    return widen(_mm_loadu_si128((const void *)((const uint16_t *)w + i)), dtype);
}

INLINE V vload_as_n(const void *w, size_t i, size_t n, const q35_dtype dtype) {
    if (dtype == Q35_F32) return vload_n((const float *)w + i, n);
    uint16_t part[LANES] = {0}; /* 16-bit lanes have no masked load before AVX-512 */
    memcpy(part, (const uint16_t *)w + i, n * sizeof *part);
    return widen(_mm_loadu_si128((const void *)part), dtype);
}

#include "sum.inl"

INLINE float vsum(V v) { return sum8(v); }
INLINE __m128 vsum4(V a, V b, V c, V d) { return sum8x4(a, b, c, d); }

#include "simd.inl"

typedef __m256i I;

INLINE I izero(void) { return _mm256_setzero_si256(); }
INLINE I iload(const void *p) { return _mm256_loadu_si256((const void *)p); }
INLINE void istore(void *p, I v) { _mm256_storeu_si256((void *)p, v); }
INLINE I ipair(const void *p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return _mm256_set1_epi32(pair);
}
INLINE I idot(I acc, I a, I b) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
    IN_REGISTER(acc);
    return acc;
}
INLINE V itof(I v) { return _mm256_cvtepi32_ps(v); }
INLINE void itranspose(I *v) {
    I t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int h = 0; h < 2; h++) { /* lane l of v[i + j]: column 4 l + j of four rows */
            v[i + 2 * h] = _mm256_unpacklo_epi64(t[i + h], t[i + h + 2]);
            v[i + 2 * h + 1] = _mm256_unpackhi_epi64(t[i + h], t[i + h + 2]);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) v[i] = t[i];
}
INLINE __m128i isum4(I a, I b, I c, I d) {
    I all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
INLINE I icodes(const uint16_t *w, V scale, const q35_dtype dtype) {
    if (dtype == Q35_F16) {
        I low = _mm256_cvtps_epi32(vmul(vload_as(w, 0, dtype), scale));
        I high = _mm256_cvtps_epi32(vmul(vload_as(w, LANES, dtype), scale));
        return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    }
    /* Adding 1.5 * 2^23 rounds to an integer held in the low bits. */
    const V round = vset(12582912.0f);
    I pairs = iload(w), odd = _mm256_and_si256(pairs, _mm256_set1_epi32((int32_t)0xffff0000));
    V even = vfma(_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), scale, round);
    odd = _mm256_castps_si256(vfma(_mm256_castsi256_ps(odd), scale, round));
    return _mm256_blend_epi16(_mm256_castps_si256(even), _mm256_slli_epi32(odd, 16), 0xaa);
}
INLINE uint32_t largest_bits(const uint16_t *w) {
    const I unsign = _mm256_set1_epi16(0x7fff);
    I most = _mm256_and_si256(iload(w), unsign);
    for (int i = 16; i < Q35_FIXED; i += 16)
        most = _mm256_max_epu16(most, _mm256_and_si256(iload(w + i), unsign));
    return largest16(most);
}

#define FIXED_TOKENS 4 /* 4 x 2 sums + 2 rows + 1 token + 1 product = 12 registers */
#define FIXED_VECTORS 2
#define FIXED(op) op##_avx2
#include "fixed.inl"
#undef FIXED
#define PAIRS(op) op##_avx2
#include "pairs.inl"
#undef PAIRS

/* Bytes as two vectors of int16, the even ones and the odd. */
typedef struct even_odd {
    I even, odd;
} even_odd;

INLINE even_odd isplit(I v, const int wide) {
    if (!wide)
        return (even_odd){_mm256_and_si256(v, _mm256_set1_epi16(255)), _mm256_srli_epi16(v, 8)};
    return (even_odd){_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)};
}
INLINE V magnitude(V v) { return _mm256_andnot_ps(vset(-0.0f), v); }
INLINE float largest32(const float *x) {
    V a = _mm256_max_ps(magnitude(vload(x)), magnitude(vload(x + LANES)));
    V b = _mm256_max_ps(magnitude(vload(x + 2 * LANES)), magnitude(vload(x + 3 * LANES)));
    return vlargest(vmax(a, b));
}
INLINE int32_t sum16(I low, I high) {
    I both = _mm256_add_epi32(low, high);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}
INLINE int32_t put16(int8_t *q, I low, I high) {
    I words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    I bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(words, words), 0xd8);
    _mm_storeu_si128((void *)q, _mm256_castsi256_si128(bytes));
    return sum16(low, high);
}
INLINE int32_t round16(int8_t *q, const float *x, float a) {
    return put16(q, _mm256_cvtps_epi32(vmul(vload(x), vset(a))),
                 _mm256_cvtps_epi32(vmul(vload(x + LANES), vset(a))));
}
INLINE int32_t round16_twice(int8_t *q, int8_t *low, const float *x, float a) {
    I code[2], rest[2];
    for (int h = 0; h < 2; h++) {
        V scaled = vmul(vload(x + h * LANES), vset(a));
        code[h] = _mm256_cvtps_epi32(scaled);
        V exact = vmul(vsub(scaled, itof(code[h])), vset(256));
        rest[h] = _mm256_min_epi32(_mm256_cvtps_epi32(exact), _mm256_set1_epi32(127));
    }
    int32_t sum = put16(q, code[0], code[1]);
    return 256 * sum + put16(low, rest[0], rest[1]);
}
INLINE void halves(float *y, const void *x) {
    const __m128i *half = x;
    vstore(y, _mm256_cvtph_ps(_mm_loadu_si128(half)));
    vstore(y + LANES, _mm256_cvtph_ps(_mm_loadu_si128(half + 1)));
}
INLINE I iset8(char a) { return _mm256_set1_epi8(a); }
INLINE I isub8(I a, I b) { return _mm256_sub_epi8(a, b); }
INLINE I iand(I a, I b) { return _mm256_and_si256(a, b); }
INLINE I imerge(I a, I b, I m) { return _mm256_or_si256(a, _mm256_and_si256(b, m)); }
INLINE I ishl32(I a, const int n) { return _mm256_slli_epi32(a, n); }
INLINE I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
INLINE I ishl(I a, const int n) { return _mm256_slli_epi16(a, n); }
INLINE I ishr(I a, const int n) { return _mm256_srli_epi16(a, n); }
INLINE V ibytes(const int8_t *p) {
    return itof(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
INLINE I ilevels(I codes) {
    const I levels = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)q35_iq4_levels));
    return _mm256_shuffle_epi8(levels, codes);
}
/* With a w of 4 bits two products are at most 2 x 15 x 128: those of 8 steps fit int16, or of 4
   with 5 bits, or of 2 with 6. */
INLINE I iadd_bytes(I acc, I w, I x) {
    acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x));
    IN_REGISTER(acc);
    return acc;
}
INLINE I irun(I acc, I run) { return idot(acc, run, _mm256_set1_epi16(1)); }

#define PANEL(op) op##_avx2
#define PANEL_TOKENS 4 /* 4 x 2 sums, 4 of rows, a token and a product; f32 in memory */
#define PANEL_FINE 4
#define PANEL_APART 1
#define PANEL_SIGNED 1
#define PANEL_WORDS 1
#define PANEL_RUN(bits) ((bits) == 4 ? 8 : (bits) == 5 ? 4 : 2)
#include "panel.inl"
#undef PANEL
#undef PANEL_FINE
#undef PANEL_SIGNED
#undef PANEL_WORDS
#undef PANEL_RUN

TARGET_END

const q35_kernels q35_kernels_avx2 = {.name = "avx2",
                                      SIMD_MEMBERS,
                                      ELEMENTWISE_MEMBERS,
                                      FIXED_MEMBERS(_avx2),
                                      .dot_pairs = dot_pairs_avx2,
                                      PANEL_MEMBERS(_avx2)};

#if Q35_AVXVNNI
/* ---- the same with products of bytes and of int16 pairs added up in one instruction (AVX-VNNI,
 * which processors without AVX-512 have) ---- */

#ifdef Q35_TEST_AVXVNNI /* encoded for AVX-512 instead, where tests can run it */
TARGET_BEGIN("avx512vnni,avx512vl,avx512f,avx2,fma,f16c,bmi2")
#else
TARGET_BEGIN("avxvnni,avx2,fma,f16c,bmi2")
#endif

#define idot _mm256_dpwssd_epi32
#define FIXED(op) op##_avx2vnni
#include "fixed.inl"
#define PAIRS(op) op##_avx2vnni
#include "pairs.inl"

#define PANEL(op) op##_avx2vnni
#define PANEL_FINE 2 /* with two sums each */
#define PANEL_SIGNED 0
#define PANEL_WORDS 0
#define idot8(acc, w, x, v, z, bits) \
    ((void)(bits), _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(acc, w, x), v, z))
#include "panel.inl"

TARGET_END

const q35_kernels q35_kernels_avx2vnni = {.name = "avx2vnni",
                                          SIMD_MEMBERS,
                                          ELEMENTWISE_MEMBERS,
                                          FIXED_MEMBERS(_avx2vnni),
                                          .dot_pairs = dot_pairs_avx2vnni,
                                          PANEL_MEMBERS(_avx2vnni)};
#endif
#else
typedef int q35_no_avx2; /* ISO C wants a declaration in every file */
#endif
