/* block.h: how the fields of blocks are read and written: byte by byte, little-endian, at any
 * address. */
#ifndef Q35_BLOCK_H
#define Q35_BLOCK_H

#include <stdint.h>
#include <string.h>

#include "formats.h"

#define HALF_MAX 65504.0f

static inline uint32_t u16_at(const uint8_t *b) { return (uint32_t)b[0] | (uint32_t)b[1] << 8; }
static inline uint32_t u32_at(const uint8_t *b) { return u16_at(b) | u16_at(b + 2) << 16; }

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float float_of_half(uint32_t half) {
    uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) /* infinity, NaN (made quiet) */
        return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 |
                             (magnitude > 0x7c00u ? 0x400000u : 0u));
    if (magnitude >= 0x400u) return float_of_bits(sign | ((magnitude << 13) + (112u << 23)));
    float subnormal = (float)magnitude * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}

static inline float half_at(const uint8_t *b) { return float_of_half(u16_at(b)); }

/* The nearest f16 that is finite, as a float; and not 0 unless the value is: a scale of 0 would
   lose the whole block. */
static inline float half_near(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0x7fffffffu;
    const float magnitude = float_of_bits(bits);
    if (magnitude >= HALF_MAX) return value < 0 ? -HALF_MAX : HALF_MAX;
    /* One unit of an f16: 2^-10 of the power of two in the value, 2^-24 at least. Adding and taking
       away 1.5 x 2^23 units rounds to even. */
    const uint32_t exponent = bits >> 23 < 113 ? 113 : bits >> 23;
    const float unit = float_of_bits((exponent - 10) << 23), rounder = unit * 12582912.0f;
    float near = (magnitude + rounder) - rounder;
    if (near == 0 && magnitude > 0) near = unit;
    return value < 0 ? -near : near;
}

/* A number that is an f16, as half_near returns it. */
static inline void put_half(uint8_t *b, float value) {
    uint32_t bits, half;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude >= 113u << 23)
        half = (magnitude - (112u << 23)) >> 13;
    else
        half = (uint32_t)(float_of_bits(magnitude) * 0x1p24f);
    b[0] = (uint8_t)half;
    b[1] = (uint8_t)((half | sign) >> 8);
}

/* The nearest finite f16 that is not nearer to 0. */
static inline float half_beyond(float value) {
    const float near = half_near(value);
    if ((value < 0 ? near <= value : near >= value) || near == HALF_MAX || near == -HALF_MAX)
        return near;
    uint8_t half[2];
    put_half(half, near);
    return float_of_half(u16_at(half) + 1);
}

/* Of the codebook formats: formats_iq.c */
void q35_split_iq1_s(q35_parts *p, const uint8_t *x);
void q35_split_iq1_m(q35_parts *p, const uint8_t *x);
void q35_split_iq2_xxs(q35_parts *p, const uint8_t *x);
void q35_split_iq2_xs(q35_parts *p, const uint8_t *x);
void q35_split_iq2_s(q35_parts *p, const uint8_t *x);
void q35_split_iq3_xxs(q35_parts *p, const uint8_t *x);
void q35_split_iq3_s(q35_parts *p, const uint8_t *x);

#endif
