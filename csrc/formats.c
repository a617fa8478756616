/* formats.c: the table of storage types, and decoders of all but the codebook formats.
 *
 * block bytes -> decoder of the type (table) -> f32. The formats are those of GGUF files: what the
 * bytes mean is taken from there, to the bit. One static function a type; its comment is the layout
 * (fields in order, with shapes; u2, u4, u6: bits of unsigned codes) and the formula. In all of
 * them d is an f16 and i counts elements of the block from 0.
 *
 * Loops run over bytes and write each part of a block in order, which compilers vectorize. This
 * file knows nothing of files or matrices. */
#include "block.h"

/* ---- dense ---- */

static void decode_f32(float *y, const uint8_t *x, size_t blocks) { memcpy(y, x, blocks * 4); }

static void decode_f16(float *y, const uint8_t *x, size_t blocks) {
    for (size_t i = 0; i < blocks; i++) y[i] = half_at(x + 2 * i);
}

static void decode_bf16(float *y, const uint8_t *x, size_t blocks) {
    for (size_t i = 0; i < blocks; i++) y[i] = float_of_bits(u16_at(x + 2 * i) << 16);
}

/* ---- blocks of 32 with one scale ---- */

#define EACH_BLOCK(elements, bytes) \
    for (const uint8_t *end = x + blocks * (bytes); x < end; x += (bytes), y += (elements))

/* d | codes [2, 16] u4, the halves of the block in the low and the high bits of 16 bytes
   y[i] = d (code[i] - 8) */
static void decode_q4_0(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(32, 18) {
        const float d = half_at(x);
        for (int c = 0; c < 16; c++) y[c] = d * (float)((x[2 + c] & 15) - 8);
        for (int c = 0; c < 16; c++) y[16 + c] = d * (float)((x[2 + c] >> 4) - 8);
    }
}

/* d | m f16 | codes as in q4_0
   y[i] = d code[i] + m */
static void decode_q4_1(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(32, 20) {
        const float d = half_at(x), m = half_at(x + 2);
        for (int c = 0; c < 16; c++) y[c] = d * (float)(x[4 + c] & 15) + m;
        for (int c = 0; c < 16; c++) y[16 + c] = d * (float)(x[4 + c] >> 4) + m;
    }
}

/* Code of 5 bits: 4 as in q4_0, and bit i of 32 above them. */
static inline int code5(const uint8_t *high, const uint8_t *low, int i) {
    return (low[i % 16] >> i / 16 * 4 & 15) | (high[i / 8] >> i % 8 & 1) << 4;
}

/* d | high bits [32] u1 | low bits as in q4_0
   y[i] = d (code[i] - 16) */
static void decode_q5_0(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(32, 22) {
        const float d = half_at(x);
        for (int i = 0; i < 32; i++) y[i] = d * (float)(code5(x + 2, x + 6, i) - 16);
    }
}

/* d | m f16 | high bits [32] u1 | low bits as in q4_0
   y[i] = d code[i] + m */
static void decode_q5_1(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(32, 24) {
        const float d = half_at(x), m = half_at(x + 2);
        for (int i = 0; i < 32; i++) y[i] = d * (float)code5(x + 4, x + 8, i) + m;
    }
}

/* d | codes [32] int8
   y[i] = d code[i] */
static void decode_q8_0(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(32, 34) {
        const float d = half_at(x);
        for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)x[2 + i];
    }
}

/* Finer near 0, where weights are dense. */
const int8_t q35_iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

/* d | codes as in q4_0
   y[i] = d levels[code[i]] */
static void decode_iq4_nl(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(32, 18) {
        const float d = half_at(x);
        for (int c = 0; c < 16; c++) y[c] = d * (float)q35_iq4_levels[x[2 + c] & 15];
        for (int c = 0; c < 16; c++) y[16 + c] = d * (float)q35_iq4_levels[x[2 + c] >> 4];
    }
}

/* e u8 | codes as in q4_0, each a float of 1 sign, 2 exponent and 1 mantissa bits
   y[i] = 2^(e - 127) fp4(code[i]); no e stands for NaN. Levels are doubled to be integers, and the
   power of two is halved, subnormal for e < 2. */
static void decode_mxfp4(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    static const int8_t levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    EACH_BLOCK(32, 17) {
        const uint32_t e = x[0];
        const float d = float_of_bits(e < 2 ? 0x200000u << e : (e - 1) << 23);
        for (int c = 0; c < 16; c++) y[c] = d * (float)levels[x[1 + c] & 15];
        for (int c = 0; c < 16; c++) y[16 + c] = d * (float)levels[x[1 + c] >> 4];
    }
}

/* ---- blocks of 256, whose parts have scales that are codes themselves ---- */

/* (scale, min) [16] u4 u4 | codes [2, 4, 32] u2: element (h, p, c) is byte 32 h + c, bits 2 p | d |
   dmin f16
   y[i] = d scale[i / 16] code[i] - dmin min[i / 16] */
static void decode_q2_k(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(256, 84) {
        const float d = half_at(x + 80), dmin = half_at(x + 82);
        for (int j = 0; j < 16; j++) {
            const uint8_t *codes = x + 16 + j / 8 * 32 + j % 2 * 16;
            const int shift = j / 2 % 4 * 2;
            const float scale = d * (float)(x[j] & 15), min = dmin * (float)(x[j] >> 4);
            for (int c = 0; c < 16; c++)
                y[16 * j + c] = scale * (float)(codes[c] >> shift & 3) - min;
        }
    }
}

/* high bits [8, 32] u1: element (p, c) is bit p of byte c | low bits as q2_k's codes | scales: low
   bits [2, 8] u4 (byte j % 8), then high bits [4, 4] u2 (byte j % 4) | d
   y[i] = d (scale[i / 16] - 32) (code[i] - 4) */
static void decode_q3_k(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(256, 110) {
        const uint8_t *const scales = x + 96;
        const float d = half_at(x + 108);
        for (int j = 0; j < 16; j++) {
            const uint8_t *high = x + j % 2 * 16, *low = x + 32 + j / 8 * 32 + j % 2 * 16;
            const int high_shift = j / 2, shift = j / 2 % 4 * 2;
            const int code =
                (scales[j % 8] >> j / 8 * 4 & 15) | (scales[8 + j % 4] >> j / 4 * 2 & 3) << 4;
            const float scale = d * (float)(code - 32);
            for (int c = 0; c < 16; c++)
                y[16 * j + c] =
                    scale * (float)((low[c] >> shift & 3) + (high[c] >> high_shift & 1) * 4 - 4);
        }
    }
}

/* The j-th of 8 pairs of u6 in 12 bytes: scales 0..3 in the low bits of bytes 0..3, mins 0..3 in
   those of bytes 4..7; 4..7 of both have their low four bits in bytes 8..11, and the two bits above
   them on top of bytes 0..3 and 4..7. */
static inline void scale_min(const uint8_t *b, int j, int *scale, int *min) {
    if (j < 4) {
        *scale = b[j] & 63;
        *min = b[j + 4] & 63;
    } else {
        *scale = (b[j + 4] & 15) | b[j - 4] >> 6 << 4;
        *min = b[j + 4] >> 4 | b[j] >> 6 << 4;
    }
}

/* d | dmin f16 | (scale, min) [8] u6 u6 | codes [4, 2, 32] u4: element (g, p, c) is byte 32 g + c,
   bits 4 p
   y[i] = d scale[i / 32] code[i] - dmin min[i / 32] */
static void decode_q4_k(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(256, 144) {
        const float d = half_at(x), dmin = half_at(x + 2);
        for (int g = 0; g < 4; g++) {
            const uint8_t *codes = x + 16 + 32 * g;
            int s0, s1, m0, m1;
            scale_min(x + 4, 2 * g, &s0, &m0);
            scale_min(x + 4, 2 * g + 1, &s1, &m1);
            const float scale0 = d * (float)s0, min0 = dmin * (float)m0;
            const float scale1 = d * (float)s1, min1 = dmin * (float)m1;
            for (int c = 0; c < 32; c++) y[64 * g + c] = scale0 * (float)(codes[c] & 15) - min0;
            for (int c = 0; c < 32; c++)
                y[64 * g + 32 + c] = scale1 * (float)(codes[c] >> 4) - min1;
        }
    }
}

/* d | dmin f16 | (scale, min) [8] u6 u6 | high bits [8, 32] u1 as in q3_k | low bits as q4_k's
   codes; formula of q4_k */
static void decode_q5_k(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(256, 176) {
        const float d = half_at(x), dmin = half_at(x + 2);
        for (int j = 0; j < 8; j++) {
            const uint8_t *high = x + 16, *low = x + 48 + j / 2 * 32;
            const int shift = j % 2 * 4;
            int s, m;
            scale_min(x + 4, j, &s, &m);
            const float scale = d * (float)s, min = dmin * (float)m;
            for (int c = 0; c < 32; c++)
                y[32 * j + c] =
                    scale * (float)((low[c] >> shift & 15) | (high[c] >> j & 1) << 4) - min;
        }
    }
}

/* low bits [2, 2, 64] u4: element (h, p, c) is byte 64 h + c, bits 4 p | high bits as q2_k's codes
   | scales [16] int8 | d y[i] = d scale[i / 16] (code[i] - 32) */
static void decode_q6_k(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(256, 210) {
        const float d = half_at(x + 208);
        for (int j = 0; j < 16; j++) {
            const uint8_t *low = x + j / 8 * 64 + j % 4 * 16;
            const uint8_t *high = x + 128 + j / 8 * 32 + j % 2 * 16;
            const int low_shift = j / 4 % 2 * 4, high_shift = j / 2 % 4 * 2;
            const float scale = d * (float)(int8_t)x[192 + j];
            for (int c = 0; c < 16; c++)
                y[16 * j + c] =
                    scale *
                    (float)(((low[c] >> low_shift & 15) | (high[c] >> high_shift & 3) << 4) - 32);
        }
    }
}

/* d | high bits of scales [8] u2 | low bits of scales [8] u4 | codes [8, 2, 16] u4: q4_0's order in
   each 32
   y[i] = d (scale[i / 32] - 32) levels[code[i]], levels of iq4_nl */
static void decode_iq4_xs(float *restrict y, const uint8_t *restrict x, size_t blocks) {
    EACH_BLOCK(256, 136) {
        const float d = half_at(x);
        const uint32_t high = u16_at(x + 2);
        for (int j = 0; j < 8; j++) {
            const uint8_t *codes = x + 8 + 16 * j;
            const int code = (x[4 + j / 2] >> j % 2 * 4 & 15) | (int)(high >> 2 * j & 3) << 4;
            const float scale = d * (float)(code - 32);
            for (int c = 0; c < 16; c++)
                y[32 * j + c] = scale * (float)q35_iq4_levels[codes[c] & 15];
            for (int c = 0; c < 16; c++)
                y[32 * j + 16 + c] = scale * (float)q35_iq4_levels[codes[c] >> 4];
        }
    }
}

/* ---- tables ---- */

const q35_format q35_formats[Q35_FORMATS] = {
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
};

typedef void decode_fn(float *y, const uint8_t *x, size_t blocks);

static decode_fn *const decoders[Q35_FORMATS] = {
    [Q35_F32] = decode_f32,
    [Q35_F16] = decode_f16,
    [Q35_BF16] = decode_bf16,
    [Q35_Q4_0] = decode_q4_0,
    [Q35_Q4_1] = decode_q4_1,
    [Q35_Q5_0] = decode_q5_0,
    [Q35_Q5_1] = decode_q5_1,
    [Q35_Q8_0] = decode_q8_0,
    [Q35_Q2_K] = decode_q2_k,
    [Q35_Q3_K] = decode_q3_k,
    [Q35_Q4_K] = decode_q4_k,
    [Q35_Q5_K] = decode_q5_k,
    [Q35_Q6_K] = decode_q6_k,
    [Q35_IQ1_S] = q35_decode_iq1_s,
    [Q35_IQ1_M] = q35_decode_iq1_m,
    [Q35_IQ2_XXS] = q35_decode_iq2_xxs,
    [Q35_IQ2_XS] = q35_decode_iq2_xs,
    [Q35_IQ2_S] = q35_decode_iq2_s,
    [Q35_IQ3_XXS] = q35_decode_iq3_xxs,
    [Q35_IQ3_S] = q35_decode_iq3_s,
    [Q35_IQ4_NL] = decode_iq4_nl,
    [Q35_IQ4_XS] = decode_iq4_xs,
    [Q35_MXFP4] = decode_mxfp4,
};

size_t q35_row_bytes(q35_dtype dtype, size_t n) {
    return n / q35_formats[dtype].elements * q35_formats[dtype].bytes;
}

void q35_decode(float *y, q35_dtype dtype, const void *x, size_t n) {
    decoders[dtype](y, x, n / q35_formats[dtype].elements);
}
