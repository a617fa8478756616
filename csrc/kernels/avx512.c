/* avx512.c: 16 lanes, 32 registers (AVX-512 F, BW, VL, DQ). */
#if defined(__x86_64__)
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
INLINE V vadd(V a, V b) { return _mm512_add_ps(a, b); }
INLINE V vsub(V a, V b) { return _mm512_sub_ps(a, b); }
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

TARGET_END

const q35_kernels q35_kernels_avx512 = {.name = "avx512", SIMD_MEMBERS, ELEMENTWISE_MEMBERS};
#else
typedef int q35_no_avx512; /* ISO C wants a declaration in every file */
#endif
