/* immintrin.h in place of the compiler's, for programs built with -DQ35_TEST_EMULATED: AVX-512 and
 * VNNI on a machine that has AVX2, so that tests reach kernels for them. SIMDe has most of the
 * instructions; here is the rest of what avx512.c and avx2.c use, and what SIMDe has too slow or
 * wrong. */
#ifndef Q35_EMULATED_H
#define Q35_EMULATED_H

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512/types.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#define EMULATED static __attribute__((noinline, unused)) /* compiles in half the time */
#undef SIMDE_FUNCTION_ATTRIBUTES
#define SIMDE_FUNCTION_ATTRIBUTES EMULATED
#include <simde/x86/avx512.h>

#undef I /* of complex.h, which SIMDe includes */

/* 16 lanes, as halves and one by one */
typedef union emulated_16 {
    __m512 f;
    __m512i i;
    __m256 f_half[2];
    __m256i i_half[2];
    float f32[16];
    int32_t i32[16];
} emulated_16;

#define F_HALVES(...) (((emulated_16){.f_half = {__VA_ARGS__}}).f)
#define I_HALVES(...) (((emulated_16){.i_half = {__VA_ARGS__}}).i)

/* ---- masks ---- */

EMULATED __m512 emulated_maskz_loadu_ps(__mmask16 mask, const float *p) {
    emulated_16 v = {.f32 = {0}};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) v.f32[i] = p[i];
    return v.f;
}
EMULATED void emulated_mask_storeu_ps(float *p, __mmask16 mask, __m512 v) {
    const emulated_16 from = {.f = v};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) p[i] = from.f32[i];
}
EMULATED __m256i emulated_maskz_loadu_epi16(__mmask16 mask, const uint16_t *p) {
    uint16_t v[16] = {0};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) v[i] = p[i];
    return _mm256_loadu_si256((const void *)v);
}
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm256_maskz_loadu_epi16 emulated_maskz_loadu_epi16

/* ---- from one type to another ---- */

#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(v, half) (((emulated_16){.f = (v)}).f_half[half])

EMULATED __m512 emulated_cvtph_ps(__m256i v) {
    return F_HALVES(_mm256_cvtph_ps(_mm256_castsi256_si128(v)),
                    _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)));
}
EMULATED __m512i emulated_cvtepu16_epi32(__m256i v) {
    return I_HALVES(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)),
                    _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1)));
}
EMULATED __m512i emulated_cvtepi8_epi32(__m128i v) {
    return I_HALVES(_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v)));
}
EMULATED __m512 emulated_cvtepi32_ps(__m512i v) {
    const emulated_16 from = {.i = v};
    return F_HALVES(_mm256_cvtepi32_ps(from.i_half[0]), _mm256_cvtepi32_ps(from.i_half[1]));
}
EMULATED __m512i emulated_cvtps_epi32(__m512 v) {
    const emulated_16 from = {.f = v};
    return I_HALVES(_mm256_cvtps_epi32(from.f_half[0]), _mm256_cvtps_epi32(from.f_half[1]));
}
EMULATED __m256i emulated_cvtepi32_epi16(__m512i v) {
    const emulated_16 from = {.i = v};
    int16_t low[16];
    for (int i = 0; i < 16; i++) low[i] = (int16_t)from.i32[i];
    return _mm256_loadu_si256((const void *)low);
}
EMULATED __m128i emulated_cvtepi32_epi8(__m512i v) {
    const emulated_16 from = {.i = v};
    int8_t low[16];
    for (int i = 0; i < 16; i++) low[i] = (int8_t)from.i32[i];
    return _mm_loadu_si128((const void *)low);
}
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8

/* ---- all lanes to one ---- */

EMULATED int emulated_reduce_add_epi32(__m512i v) {
    const emulated_16 from = {.i = v};
    uint32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += (uint32_t)from.i32[i];
    return (int)sum;
}
/* Halves as in gcc's: where there are NaN, the order decides. */
EMULATED float emulated_reduce_max_ps(__m512 v) {
    const emulated_16 from = {.f = v};
    const __m256 eight = _mm256_max_ps(from.f_half[1], from.f_half[0]);
    __m128 m = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
    m = _mm_max_ps(_mm_movehl_ps(m, m), m);
    return _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(m), m));
}
#define _mm512_reduce_add_epi32 emulated_reduce_add_epi32
#define _mm512_reduce_max_ps emulated_reduce_max_ps

/* ---- products ---- */

#undef _mm512_madd_epi16 /* takes four arguments in SIMDe 0.7.4 */
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)

/* SIMDe's VNNI, correct too, takes most of the tests' time. */
EMULATED __m256i emulated_dpwssd_8(__m256i acc, __m256i a, __m256i b) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
}
EMULATED __m256i emulated_dpbusd_8(__m256i acc, __m256i a, __m256i b) {
    const __m256i b_even = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8);
    acc = emulated_dpwssd_8(acc, _mm256_and_si256(a, _mm256_set1_epi16(255)), b_even);
    return emulated_dpwssd_8(acc, _mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
}
EMULATED __m512i emulated_dpwssd_16(__m512i acc, __m512i a, __m512i b) {
    const emulated_16 c = {.i = acc}, x = {.i = a}, y = {.i = b};
    return I_HALVES(emulated_dpwssd_8(c.i_half[0], x.i_half[0], y.i_half[0]),
                    emulated_dpwssd_8(c.i_half[1], x.i_half[1], y.i_half[1]));
}
EMULATED __m512i emulated_dpbusd_16(__m512i acc, __m512i a, __m512i b) {
    const emulated_16 c = {.i = acc}, x = {.i = a}, y = {.i = b};
    return I_HALVES(emulated_dpbusd_8(c.i_half[0], x.i_half[0], y.i_half[0]),
                    emulated_dpbusd_8(c.i_half[1], x.i_half[1], y.i_half[1]));
}
#undef _mm256_dpwssd_epi32
#undef _mm256_dpbusd_epi32
#undef _mm512_dpwssd_epi32
#undef _mm512_dpbusd_epi32
#define _mm256_dpwssd_epi32 emulated_dpwssd_8
#define _mm256_dpbusd_epi32 emulated_dpbusd_8
#define _mm512_dpwssd_epi32 emulated_dpwssd_16
#define _mm512_dpbusd_epi32 emulated_dpbusd_16

#endif
