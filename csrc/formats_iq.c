/* formats_iq.c: what blocks of the codebook formats say, which weigh two to four bits an element or
 * less.
 *
 * Eight (iq1, iq2) or four (iq3) neighbouring elements share one index into a codebook of
 * magnitudes (iq_grids.h); their signs and the scale of their group stand beside it. All are blocks
 * of 256. Layouts are written as in formats.c.
 *
 * Nothing here is encoded: choosing among thousands of entries well needs more than a block. */
#include "block.h"

#include "iq_grids.h"

/* d of the block; every part has a scale of its own. */
static void start(q35_parts *p, float d) {
    p->d = d;
    p->dmin = 0;
    memset(p->min, 0, sizeof p->min);
}

/* The level, negative where bit c of the signs is set; without a branch. */
static inline int8_t with_sign(int level, unsigned signs, int c) {
    const int mask = -(int)(signs >> c & 1);
    return (int8_t)((level ^ mask) - mask);
}

/* Magnitudes of a packed entry, 2 bits each of {8, 25, 43}, negative where bit c of the signs is
   set. */
static inline void put_eight(int8_t *code, unsigned entry, unsigned signs) {
    static const int8_t magnitude[4] = {8, 25, 43, 0};
    for (int c = 0; c < 8; c++) code[c] = with_sign(magnitude[entry >> 2 * c & 3], signs, c);
}

/* Seven signs are stored; the eighth makes the number of negative ones even. */
static inline unsigned eight_signs(unsigned seven) {
    unsigned parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    return seven | ((parity ^ parity >> 1) & 1) << 7;
}

/* 2 u + 1, twice the scale u + 1/2 of most of these formats */
static inline int8_t odd(unsigned u) { return (int8_t)(2 * u + 1); }

/* d | groups of 32 [8]: index u8 [4], then u32: signs u7 [4], scale u4 on top
   y[i] = d (scale + 1/2) / 4 +-iq2_xxs[index[i / 8]][i % 8] */
void q35_split_iq2_xxs(q35_parts *p, const uint8_t *x) {
    start(p, half_at(x) * 0.125f);
    for (int g = 0; g < 8; g++) {
        const uint8_t *const index = x + 2 + 8 * g;
        const uint32_t rest = u32_at(index + 4);
        p->scale[2 * g] = p->scale[2 * g + 1] = odd(rest >> 28);
        for (int l = 0; l < 4; l++)
            put_eight(p->code + 32 * g + 8 * l, iq2_xxs_grid[index[l]],
                      eight_signs(rest >> 7 * l & 127));
    }
}

/* d | [32] u16: index u9, signs u7 | scales [16] u4
   y[i] = d (scale[i / 16] + 1/2) / 4 +-iq2_xs[index[i / 8]][i % 8] */
void q35_split_iq2_xs(q35_parts *p, const uint8_t *x) {
    start(p, half_at(x) * 0.125f);
    for (int l = 0; l < 32; l++) {
        const uint32_t code = u16_at(x + 2 + 2 * l);
        p->scale[l / 2] = odd(x[66 + l / 4] >> l / 2 % 2 * 4 & 15u);
        put_eight(p->code + 8 * l, iq2_xs_grid[code & 511], eight_signs(code >> 9));
    }
}

/* d | index, low bits [32] u8 | signs [32, 8] u1 | index, high bits [32] u2 | scales [16] u4
   y[i] = d (scale[i / 16] + 1/2) / 4 +-iq2_s[index[i / 8]][i % 8] */
void q35_split_iq2_s(q35_parts *p, const uint8_t *x) {
    start(p, half_at(x) * 0.125f);
    for (int l = 0; l < 32; l++) {
        const unsigned index = x[2 + l] | (x[66 + l / 4] >> l % 4 * 2 & 3u) << 8;
        p->scale[l / 2] = odd(x[74 + l / 4] >> l / 2 % 2 * 4 & 15u);
        put_eight(p->code + 8 * l, iq2_s_grid[index], x[34 + l]);
    }
}

/* d | index [64] u8 | groups of 32 [8] u32: signs u7 [4], scale u4 on top
   y[i] = d (scale[i / 32] + 1/2) / 2 +-iq3_xxs[index[i / 4]][i % 4]; an entry is 3 bits for each of
   {4, 12, 20, ..., 52, 62} */
void q35_split_iq3_xxs(q35_parts *p, const uint8_t *x) {
    static const int8_t magnitude[8] = {4, 12, 20, 28, 36, 44, 52, 62};
    start(p, half_at(x) * 0.25f);
    for (int l = 0; l < 64; l++) {
        const uint32_t rest = u32_at(x + 66 + l / 8 * 4);
        const unsigned signs = eight_signs(rest >> l / 2 % 4 * 7 & 127) >> l % 2 * 4;
        const unsigned entry = iq3_xxs_grid[x[2 + l]];
        p->scale[l / 4] = odd(rest >> 28);
        for (int c = 0; c < 4; c++)
            p->code[4 * l + c] = with_sign(magnitude[entry >> 3 * c & 7], signs, c);
    }
}

/* d | index, low bits [64] u8 | index, high bits [64] u1 | signs [32, 8] u1 | scales [8] u4
   y[i] = d (2 scale[i / 32] + 1) +-iq3_s[index[i / 4]][i % 4]; an entry is 3 bits for each of {1,
   3, ..., 15} */
void q35_split_iq3_s(q35_parts *p, const uint8_t *x) {
    start(p, half_at(x));
    for (int l = 0; l < 64; l++) {
        const unsigned index = x[2 + l] | (x[66 + l / 8] >> l % 8 & 1u) << 8;
        const unsigned signs = x[74 + l / 2] >> l % 2 * 4, entry = iq3_s_grid[index];
        p->scale[l / 4] = odd(x[106 + l / 16] >> l / 8 % 2 * 4 & 15u);
        for (int c = 0; c < 4; c++)
            p->code[4 * l + c] = with_sign(odd(entry >> 3 * c & 7), signs, c);
    }
}

/* 8 level + shift, levels -1, 0, 1 of 2 bits each, shift 1 or -1 */
static inline void put_signed(int8_t *code, unsigned entry, int shift) {
    for (int c = 0; c < 8; c++) code[c] = (int8_t)(((int)(entry >> 2 * c & 3) - 1) * 8 + shift);
}

/* d | index, low bits [32] u8 | groups of 32 [8] u16: index, high bits u3 [4], scale u3, sign u1
   y[i] = d (2 scale[i / 32] + 1) (iq1_s[index[i / 8]][i % 8] +- 1/8) */
void q35_split_iq1_s(q35_parts *p, const uint8_t *x) {
    start(p, half_at(x) * 0.125f);
    for (int l = 0; l < 32; l++) {
        const uint32_t group = u16_at(x + 34 + l / 4 * 2);
        const unsigned index = x[2 + l] | (group >> l % 4 * 3 & 7u) << 8;
        p->scale[l / 2] = odd(group >> 12 & 7);
        put_signed(p->code + 8 * l, iq1_s_grid[index], group >> 15 ? -1 : 1);
    }
}

/* index, low bits [32] u8 | [32] u4: index, high bits u3, sign u1 | [4] u16: scales u3 [4] and four
   bits of d, its lowest first
   y[i] = d (2 scale[i / 16] + 1) (iq1_s[index[i / 8]][i % 8] +- 1/8) */
void q35_split_iq1_m(q35_parts *p, const uint8_t *x) {
    uint32_t half = 0;
    for (int k = 0; k < 4; k++) half |= u16_at(x + 48 + 2 * k) >> 12 << 4 * k;
    start(p, float_of_half(half) * 0.125f);
    for (int l = 0; l < 32; l++) {
        const unsigned high = x[32 + l / 2] >> l % 2 * 4, index = x[l] | (high & 7) << 8;
        p->scale[l / 2] = odd(u16_at(x + 48 + l / 8 * 2) >> l / 2 % 4 * 3 & 7);
        put_signed(p->code + 8 * l, iq1_s_grid[index], high & 8 ? -1 : 1);
    }
}
