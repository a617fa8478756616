/* formats.c: the table of storage types, and what the blocks of all but the codebook formats say.
 *
 * block bytes -> splitter of the type (table) -> codes, scales, mins -> f32. The formats are those
 * of GGUF files: what the bytes mean is taken from there, to the bit. One static function a type;
 * its comment is the layout (fields in order, with shapes; u2, u4, u6: bits of unsigned codes) and
 * the formula. In all of them d is an f16 and i counts elements of the block from 0.
 *
 * This file knows nothing of files or matrices. */
#include "block.h"

/* ---- blocks of 32 with one scale ---- */

/* All 32 or 256 elements of a block share one scale of their own, 1. */
static void one_scale(q35_parts *p, float d) {
    p->d = d;
    p->dmin = 0;
    memset(p->scale, 1, sizeof p->scale);
    memset(p->min, 0, sizeof p->min);
}

/* The same with a smallest number: -dmin. */
static void one_scale_min(q35_parts *p, float d, float smallest) {
    one_scale(p, d);
    p->dmin = -smallest;
    memset(p->min, 1, sizeof p->min);
}

/* d | codes [2, 16] u4, the halves of the block in the low and the high bits of 16 bytes
   y[i] = d (code[i] - 8) */
static void split_q4_0(q35_parts *p, const uint8_t *x) {
    one_scale(p, half_at(x));
    for (int c = 0; c < 16; c++) p->code[c] = (int8_t)((x[2 + c] & 15) - 8);
    for (int c = 0; c < 16; c++) p->code[16 + c] = (int8_t)((x[2 + c] >> 4) - 8);
}

/* d | m f16 | codes as in q4_0
   y[i] = d code[i] + m */
static void split_q4_1(q35_parts *p, const uint8_t *x) {
    one_scale_min(p, half_at(x), half_at(x + 2));
    for (int c = 0; c < 16; c++) p->code[c] = (int8_t)(x[4 + c] & 15);
    for (int c = 0; c < 16; c++) p->code[16 + c] = (int8_t)(x[4 + c] >> 4);
}

/* Code of 5 bits: 4 as in q4_0, and bit i of 32 above them. */
static inline int code5(const uint8_t *high, const uint8_t *low, int i) {
    return (low[i % 16] >> i / 16 * 4 & 15) | (high[i / 8] >> i % 8 & 1) << 4;
}

/* d | high bits [32] u1 | low bits as in q4_0
   y[i] = d (code[i] - 16) */
static void split_q5_0(q35_parts *p, const uint8_t *x) {
    one_scale(p, half_at(x));
    for (int i = 0; i < 32; i++) p->code[i] = (int8_t)(code5(x + 2, x + 6, i) - 16);
}

/* d | m f16 | high bits [32] u1 | low bits as in q4_0
   y[i] = d code[i] + m */
static void split_q5_1(q35_parts *p, const uint8_t *x) {
    one_scale_min(p, half_at(x), half_at(x + 2));
    for (int i = 0; i < 32; i++) p->code[i] = (int8_t)code5(x + 4, x + 8, i);
}

/* d | codes [32] int8
   y[i] = d code[i] */
static void split_q8_0(q35_parts *p, const uint8_t *x) {
    one_scale(p, half_at(x));
    memcpy(p->code, x + 2, 32);
}

/* Finer near 0, where weights are dense. */
const int8_t q35_iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

/* d | codes as in q4_0
   y[i] = d levels[code[i]] */
static void split_iq4_nl(q35_parts *p, const uint8_t *x) {
    one_scale(p, half_at(x));
    for (int c = 0; c < 16; c++) p->code[c] = q35_iq4_levels[x[2 + c] & 15];
    for (int c = 0; c < 16; c++) p->code[16 + c] = q35_iq4_levels[x[2 + c] >> 4];
}

/* e u8 | codes as in q4_0, each a float of 1 sign, 2 exponent and 1 mantissa bits
   y[i] = 2^(e - 127) fp4(code[i]); no e stands for NaN. Levels are doubled to be integers, and the
   power of two is halved, subnormal for e < 2. */
static void split_mxfp4(q35_parts *p, const uint8_t *x) {
    static const int8_t levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const uint32_t e = x[0];
    one_scale(p, float_of_bits(e < 2 ? 0x200000u << e : (e - 1) << 23));
    for (int c = 0; c < 16; c++) p->code[c] = levels[x[1 + c] & 15];
    for (int c = 0; c < 16; c++) p->code[16 + c] = levels[x[1 + c] >> 4];
}

/* ---- blocks of 256, whose parts have scales that are codes themselves ---- */

/* (scale, min) [16] u4 u4 | codes [2, 4, 32] u2: element (h, p, c) is byte 32 h + c, bits 2 p | d |
   dmin f16
   y[i] = d scale[i / 16] code[i] - dmin min[i / 16] */
static void split_q2_k(q35_parts *p, const uint8_t *x) {
    p->d = half_at(x + 80);
    p->dmin = half_at(x + 82);
    for (int j = 0; j < 16; j++) {
        const uint8_t *codes = x + 16 + j / 8 * 32 + j % 2 * 16;
        const int shift = j / 2 % 4 * 2;
        p->scale[j] = (int8_t)(x[j] & 15);
        p->min[j] = x[j] >> 4;
        for (int c = 0; c < 16; c++) p->code[16 * j + c] = (int8_t)(codes[c] >> shift & 3);
    }
}

/* high bits [8, 32] u1: element (p, c) is bit p of byte c | low bits as q2_k's codes | scales: low
   bits [2, 8] u4 (byte j % 8), then high bits [4, 4] u2 (byte j % 4) | d
   y[i] = d (scale[i / 16] - 32) (code[i] - 4) */
static void split_q3_k(q35_parts *p, const uint8_t *x) {
    const uint8_t *const scales = x + 96;
    one_scale(p, half_at(x + 108));
    for (int j = 0; j < 16; j++) {
        const uint8_t *high = x + j % 2 * 16, *low = x + 32 + j / 8 * 32 + j % 2 * 16;
        const int high_shift = j / 2, shift = j / 2 % 4 * 2;
        const int code = (scales[j % 8] >> j / 8 * 4 & 15) | (scales[8 + j % 4] >> j / 4 * 2 & 3)
                                                                 << 4;
        p->scale[j] = (int8_t)(code - 32);
        for (int c = 0; c < 16; c++)
            p->code[16 * j + c] =
                (int8_t)((low[c] >> shift & 3) + (high[c] >> high_shift & 1) * 4 - 4);
    }
}

/* The j-th of 8 pairs of u6 in 12 bytes: scales 0..3 in the low bits of bytes 0..3, mins 0..3 in
   those of bytes 4..7; 4..7 of both have their low four bits in bytes 8..11, and the two bits above
   them on top of bytes 0..3 and 4..7. A pair serves 32 elements. */
static void scale_min(q35_parts *p, const uint8_t *b, int j) {
    int scale = b[j] & 63, min = b[j + 4] & 63;
    if (j >= 4) {
        scale = (b[j + 4] & 15) | b[j - 4] >> 6 << 4;
        min = b[j + 4] >> 4 | b[j] >> 6 << 4;
    }
    p->scale[2 * j] = p->scale[2 * j + 1] = (int8_t)scale;
    p->min[2 * j] = p->min[2 * j + 1] = (uint8_t)min;
}

/* d | dmin f16 | (scale, min) [8] u6 u6 | codes [4, 2, 32] u4: element (g, p, c) is byte 32 g + c,
   bits 4 p
   y[i] = d scale[i / 32] code[i] - dmin min[i / 32] */
static void split_q4_k(q35_parts *p, const uint8_t *x) {
    p->d = half_at(x);
    p->dmin = half_at(x + 2);
    for (int j = 0; j < 8; j++) scale_min(p, x + 4, j);
    for (int g = 0; g < 4; g++) {
        const uint8_t *codes = x + 16 + 32 * g;
        for (int c = 0; c < 32; c++) p->code[64 * g + c] = (int8_t)(codes[c] & 15);
        for (int c = 0; c < 32; c++) p->code[64 * g + 32 + c] = (int8_t)(codes[c] >> 4);
    }
}

/* d | dmin f16 | (scale, min) [8] u6 u6 | high bits [8, 32] u1 as in q3_k | low bits as q4_k's
   codes; formula of q4_k */
static void split_q5_k(q35_parts *p, const uint8_t *x) {
    p->d = half_at(x);
    p->dmin = half_at(x + 2);
    for (int j = 0; j < 8; j++) {
        const uint8_t *high = x + 16, *low = x + 48 + j / 2 * 32;
        const int shift = j % 2 * 4;
        scale_min(p, x + 4, j);
        for (int c = 0; c < 32; c++)
            p->code[32 * j + c] = (int8_t)((low[c] >> shift & 15) | (high[c] >> j & 1) << 4);
    }
}

/* low bits [2, 2, 64] u4: element (h, p, c) is byte 64 h + c, bits 4 p | high bits as q2_k's codes
   | scales [16] int8 | d
   y[i] = d scale[i / 16] (code[i] - 32) */
static void split_q6_k(q35_parts *p, const uint8_t *x) {
    one_scale(p, half_at(x + 208));
    memcpy(p->scale, x + 192, 16);
    for (int j = 0; j < 16; j++) {
        const uint8_t *low = x + j / 8 * 64 + j % 4 * 16;
        const uint8_t *high = x + 128 + j / 8 * 32 + j % 2 * 16;
        const int low_shift = j / 4 % 2 * 4, high_shift = j / 2 % 4 * 2;
        for (int c = 0; c < 16; c++)
            p->code[16 * j + c] =
                (int8_t)(((low[c] >> low_shift & 15) | (high[c] >> high_shift & 3) << 4) - 32);
    }
}

/* d | high bits of scales [8] u2 | low bits of scales [8] u4 | codes [8, 2, 16] u4: q4_0's order in
   each 32
   y[i] = d (scale[i / 32] - 32) levels[code[i]], levels of iq4_nl */
static void split_iq4_xs(q35_parts *p, const uint8_t *x) {
    const uint32_t high = u16_at(x + 2);
    one_scale(p, half_at(x));
    for (int j = 0; j < 8; j++) {
        const uint8_t *codes = x + 8 + 16 * j;
        const int code = (x[4 + j / 2] >> j % 2 * 4 & 15) | (int)(high >> 2 * j & 3) << 4;
        p->scale[2 * j] = p->scale[2 * j + 1] = (int8_t)(code - 32);
        for (int c = 0; c < 16; c++) p->code[32 * j + c] = q35_iq4_levels[codes[c] & 15];
        for (int c = 0; c < 16; c++) p->code[32 * j + 16 + c] = q35_iq4_levels[codes[c] >> 4];
    }
}

/* ---- tables ---- */

const q35_format q35_formats[Q35_LAYOUTS] = {
    /* name, GGUF's number, elements and bytes of a block, encodable */
    [Q35_F32] = {"f32", 0, 1, 4, 0},
    [Q35_F16] = {"f16", 1, 1, 2, 0},
    [Q35_BF16] = {"bf16", 30, 1, 2, 0},
    [Q35_Q4_0] = {"q4_0", 2, 32, 18, 1},
    [Q35_Q4_1] = {"q4_1", 3, 32, 20, 1},
    [Q35_Q5_0] = {"q5_0", 6, 32, 22, 1},
    [Q35_Q5_1] = {"q5_1", 7, 32, 24, 1},
    [Q35_Q8_0] = {"q8_0", 8, 32, 34, 1},
    [Q35_Q2_K] = {"q2_k", 10, 256, 84, 1},
    [Q35_Q3_K] = {"q3_k", 11, 256, 110, 1},
    [Q35_Q4_K] = {"q4_k", 12, 256, 144, 1},
    [Q35_Q5_K] = {"q5_k", 13, 256, 176, 1},
    [Q35_Q6_K] = {"q6_k", 14, 256, 210, 1},
    [Q35_IQ1_S] = {"iq1_s", 19, 256, 50, 0},
    [Q35_IQ1_M] = {"iq1_m", 29, 256, 56, 0},
    [Q35_IQ2_XXS] = {"iq2_xxs", 16, 256, 66, 0},
    [Q35_IQ2_XS] = {"iq2_xs", 17, 256, 74, 0},
    [Q35_IQ2_S] = {"iq2_s", 22, 256, 82, 0},
    [Q35_IQ3_XXS] = {"iq3_xxs", 18, 256, 98, 0},
    [Q35_IQ3_S] = {"iq3_s", 21, 256, 110, 0},
    [Q35_IQ4_NL] = {"iq4_nl", 20, 32, 18, 1},
    [Q35_IQ4_XS] = {"iq4_xs", 23, 256, 136, 1},
    [Q35_MXFP4] = {"mxfp4", 39, 32, 17, 0},
    [Q35_Q6_0] = {"q6_0", -1, 32, 26, 0},
};

typedef void split_fn(q35_parts *p, const uint8_t *x);

static split_fn *const splitters[Q35_FORMATS] = {
    [Q35_Q4_0] = split_q4_0,           [Q35_Q4_1] = split_q4_1,
    [Q35_Q5_0] = split_q5_0,           [Q35_Q5_1] = split_q5_1,
    [Q35_Q8_0] = split_q8_0,           [Q35_Q2_K] = split_q2_k,
    [Q35_Q3_K] = split_q3_k,           [Q35_Q4_K] = split_q4_k,
    [Q35_Q5_K] = split_q5_k,           [Q35_Q6_K] = split_q6_k,
    [Q35_IQ1_S] = q35_split_iq1_s,     [Q35_IQ1_M] = q35_split_iq1_m,
    [Q35_IQ2_XXS] = q35_split_iq2_xxs, [Q35_IQ2_XS] = q35_split_iq2_xs,
    [Q35_IQ2_S] = q35_split_iq2_s,     [Q35_IQ3_XXS] = q35_split_iq3_xxs,
    [Q35_IQ3_S] = q35_split_iq3_s,     [Q35_IQ4_NL] = split_iq4_nl,
    [Q35_IQ4_XS] = split_iq4_xs,       [Q35_MXFP4] = split_mxfp4,
};

size_t q35_row_bytes(q35_dtype dtype, size_t n) {
    return n / q35_formats[dtype].elements * q35_formats[dtype].bytes;
}

void q35_split(q35_parts *parts, q35_dtype dtype, const void *block) {
    splitters[dtype](parts, block);
}

static void decode_dense(float *y, q35_dtype dtype, const uint8_t *x, size_t n) {
    if (dtype == Q35_F32)
        memcpy(y, x, n * sizeof *y);
    else if (dtype == Q35_F16)
        for (size_t i = 0; i < n; i++) y[i] = half_at(x + 2 * i);
    else
        for (size_t i = 0; i < n; i++) y[i] = float_of_bits(u16_at(x + 2 * i) << 16);
}

void q35_decode(float *y, q35_dtype dtype, const void *x, size_t n) {
    if (dtype < Q35_DTYPES) {
        decode_dense(y, dtype, x, n);
        return;
    }
    const size_t elements = q35_formats[dtype].elements, bytes = q35_formats[dtype].bytes;
    const uint8_t *block = x;
    q35_parts p;
    for (size_t i = 0; i < n; i += elements, block += bytes) {
        splitters[dtype](&p, block);
        for (size_t j = 0; j < elements / Q35_PART; j++) {
            const float scale = p.d * (float)p.scale[j], min = p.dmin * (float)p.min[j];
            const int8_t *code = p.code + j * Q35_PART;
            float *out = y + i + j * Q35_PART;
            for (int c = 0; c < Q35_PART; c++) out[c] = scale * (float)code[c] - min;
        }
    }
}
