/* avx2.c: 8 lanes, 16 registers (AVX2, FMA, F16C). */
#if defined(__x86_64__)
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
INLINE I idot(I acc, I a, I b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
INLINE V itof(I v) { return _mm256_cvtepi32_ps(v); }

#define FIXED_TOKENS 4 /* 4 x 2 sums + 2 rows + 1 token + 1 product = 12 registers */
#define FIXED_VECTORS 2
#define FIXED(op) op##_avx2
#include "fixed.inl"

TARGET_END

const q35_kernels q35_kernels_avx2 = {
    .name = "avx2", SIMD_MEMBERS, ELEMENTWISE_MEMBERS, .dot_fixed = dot_fixed_avx2};
#else
typedef int q35_no_avx2; /* ISO C wants a declaration in every file */
#endif
