/* formats_iq.c: decoders of the codebook formats, which weigh two to four bits an element or less.
 *
 * Eight (iq1, iq2) or four (iq3) neighbouring elements share one index into a codebook of
 * magnitudes (iq_grids.h); their signs and the scale of their group stand beside it. All are blocks
 * of 256. Layouts are written as in formats.c.
 *
 * Nothing here is encoded: choosing among thousands of entries well needs more than a block. */
#include "block.h"

#include "iq_grids.h"

#define EACH_BLOCK(bytes) \
    for (const uint8_t *end = x + blocks * (bytes); x < end; x += (bytes), y += 256)

/* The level, negative where bit c of the signs is set; without a branch. */
static inline float with_sign(int level, unsigned signs, int c) {
    const int mask = -(int)(signs >> c & 1);
    return (float)((level ^ mask) - mask);
}

/* y[c] = scale magnitude[c], negative where bit c of the signs is set. Magnitudes are those of a
   packed entry: 2 bits each of {8, 25, 43}. */
static inline void put_eight(float *y, float scale, unsigned entry, unsigned signs) {
    static const int8_t magnitude[4] = {8, 25, 43, 0};
    for (int c = 0; c < 8; c++) y[c] = scale * with_sign(magnitude[entry >> 2 * c & 3], signs, c);
}

/* Seven signs are stored; the eighth makes the number of negative ones even. */
static inline unsigned eight_signs(unsigned seven) {
    unsigned parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    return seven | ((parity ^ parity >> 1) & 1) << 7;
}

/* d | groups of 32 [8]: index u8 [4], then u32: signs u7 [4], scale u4 on top
   y[i] = d (scale + 1/2) / 4 +-iq2_xxs[index[i / 8]][i % 8] */
void q35_decode_iq2_xxs(float *y, const uint8_t *x, size_t blocks) {
    EACH_BLOCK(66) {
        const float d = half_at(x);
        for (int g = 0; g < 8; g++) {
            const uint8_t *const index = x + 2 + 8 * g;
            const uint32_t rest = u32_at(index + 4);
            const float scale = d * (0.5f + (float)(rest >> 28)) * 0.25f;
            for (int l = 0; l < 4; l++)
                put_eight(y + 32 * g + 8 * l, scale, iq2_xxs_grid[index[l]],
                          eight_signs(rest >> 7 * l & 127));
        }
    }
}

/* d | [32] u16: index u9, signs u7 | scales [16] u4
   y[i] = d (scale[i / 16] + 1/2) / 4 +-iq2_xs[index[i / 8]][i % 8] */
void q35_decode_iq2_xs(float *y, const uint8_t *x, size_t blocks) {
    EACH_BLOCK(74) {
        const float d = half_at(x);
        for (int l = 0; l < 32; l++) {
            const uint32_t code = u16_at(x + 2 + 2 * l);
            const int scale = x[66 + l / 4] >> l / 2 % 2 * 4 & 15;
            put_eight(y + 8 * l, d * (0.5f + (float)scale) * 0.25f, iq2_xs_grid[code & 511],
                      eight_signs(code >> 9));
        }
    }
}

/* d | index, low bits [32] u8 | signs [32, 8] u1 | index, high bits [32] u2 | scales [16] u4
   y[i] = d (scale[i / 16] + 1/2) / 4 +-iq2_s[index[i / 8]][i % 8] */
void q35_decode_iq2_s(float *y, const uint8_t *x, size_t blocks) {
    EACH_BLOCK(82) {
        const float d = half_at(x);
        for (int l = 0; l < 32; l++) {
            const unsigned index = x[2 + l] | (x[66 + l / 4] >> l % 4 * 2 & 3u) << 8;
            const int scale = x[74 + l / 4] >> l / 2 % 2 * 4 & 15;
            put_eight(y + 8 * l, d * (0.5f + (float)scale) * 0.25f, iq2_s_grid[index], x[34 + l]);
        }
    }
}

/* d | index [64] u8 | groups of 32 [8] u32: signs u7 [4], scale u4 on top
   y[i] = d (scale[i / 32] + 1/2) / 2 +-iq3_xxs[index[i / 4]][i % 4]; an entry is 3 bits for each of
   {4, 12, 20, ..., 52, 62} */
void q35_decode_iq3_xxs(float *y, const uint8_t *x, size_t blocks) {
    static const int8_t magnitude[8] = {4, 12, 20, 28, 36, 44, 52, 62};
    EACH_BLOCK(98) {
        const float d = half_at(x);
        for (int l = 0; l < 64; l++) {
            const uint32_t rest = u32_at(x + 66 + l / 8 * 4);
            const unsigned signs = eight_signs(rest >> l / 2 % 4 * 7 & 127) >> l % 2 * 4;
            const unsigned entry = iq3_xxs_grid[x[2 + l]];
            const float scale = d * (0.5f + (float)(rest >> 28)) * 0.5f;
            for (int c = 0; c < 4; c++)
                y[4 * l + c] = scale * with_sign(magnitude[entry >> 3 * c & 7], signs, c);
        }
    }
}

/* d | index, low bits [64] u8 | index, high bits [64] u1 | signs [32, 8] u1 | scales [8] u4
   y[i] = d (2 scale[i / 32] + 1) +-iq3_s[index[i / 4]][i % 4]; an entry is 3 bits for each of {1,
   3, ..., 15} */
void q35_decode_iq3_s(float *y, const uint8_t *x, size_t blocks) {
    EACH_BLOCK(110) {
        const float d = half_at(x);
        for (int l = 0; l < 64; l++) {
            const unsigned index = x[2 + l] | (x[66 + l / 8] >> l % 8 & 1u) << 8;
            const unsigned signs = x[74 + l / 2] >> l % 2 * 4, entry = iq3_s_grid[index];
            const float scale = d * (float)(2 * (x[106 + l / 16] >> l / 8 % 2 * 4 & 15) + 1);
            for (int c = 0; c < 4; c++)
                y[4 * l + c] = scale * with_sign((int)(2 * (entry >> 3 * c & 7) + 1), signs, c);
        }
    }
}

/* y[c] = scale (level[c] + shift), levels -1, 0, 1 of 2 bits each */
static inline void put_signed(float *y, float scale, unsigned entry, float shift) {
    for (int c = 0; c < 8; c++) y[c] = scale * ((float)((int)(entry >> 2 * c & 3) - 1) + shift);
}

/* d | index, low bits [32] u8 | groups of 32 [8] u16: index, high bits u3 [4], scale u3, sign u1
   y[i] = d (2 scale[i / 32] + 1) (iq1_s[index[i / 8]][i % 8] +- 1/8) */
void q35_decode_iq1_s(float *y, const uint8_t *x, size_t blocks) {
    EACH_BLOCK(50) {
        const float d = half_at(x);
        for (int l = 0; l < 32; l++) {
            const uint32_t group = u16_at(x + 34 + l / 4 * 2);
            const unsigned index = x[2 + l] | (group >> l % 4 * 3 & 7u) << 8;
            put_signed(y + 8 * l, d * (float)(2 * (group >> 12 & 7) + 1), iq1_s_grid[index],
                       group >> 15 ? -0.125f : 0.125f);
        }
    }
}

/* index, low bits [32] u8 | [32] u4: index, high bits u3, sign u1 | [4] u16: scales u3 [4] and four
   bits of d, its lowest first
   y[i] = d (2 scale[i / 16] + 1) (iq1_s[index[i / 8]][i % 8] +- 1/8) */
void q35_decode_iq1_m(float *y, const uint8_t *x, size_t blocks) {
    EACH_BLOCK(56) {
        uint32_t half = 0;
        for (int k = 0; k < 4; k++) half |= u16_at(x + 48 + 2 * k) >> 12 << 4 * k;
        const float d = float_of_half(half);
        for (int l = 0; l < 32; l++) {
            const unsigned high = x[32 + l / 2] >> l % 2 * 4, index = x[l] | (high & 7) << 8;
            const uint32_t scale = u16_at(x + 48 + l / 8 * 2) >> l / 2 % 4 * 3 & 7;
            put_signed(y + 8 * l, d * (float)(2 * scale + 1), iq1_s_grid[index],
                       high & 8 ? -0.125f : 0.125f);
        }
    }
}
