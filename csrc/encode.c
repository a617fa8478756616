/* encode.c: numbers -> block bytes.
 *
 * x, importance -> one block's values and weights, in range -> scales and codes (encode_fit.c) ->
 * their bits, where formats.c reads them.
 *
 * The weight of element i is its importance and nothing else. Where x is multiplied by inputs a
 * that are independent, the squared error of sum_i x[i] a[i] is the sum of (x[i] - y[i])^2
 * mean(a[i]^2): those means are what importance stands for, and without them all are taken to be
 * equal. Weights that grow with |x|, which other encoders add, would minimise something else. */
#include "encode.h"

#include <math.h>

#include "block.h"

/* ---- blocks of 32 ---- */

/* The two halves of 32 codes in the low and the high bits of 16 bytes; what is above 4 bits is left
   out. */
static void put_halves(uint8_t *y, const uint8_t *code) {
    for (int c = 0; c < 16; c++) y[c] = (uint8_t)((code[c] & 15) | (code[c + 16] & 15) << 4);
}

static void put_fifth_bits(uint8_t *y, const uint8_t *code) {
    memset(y, 0, 4);
    for (int i = 0; i < 32; i++) y[i / 8] |= (uint8_t)((code[i] >> 4) << i % 8);
}

/* Codes count levels from the lowest, which is `lo`. */
static void codes_of(uint8_t *code, const float *q, int lo, int n) {
    for (int i = 0; i < n; i++) code[i] = (uint8_t)((int)q[i] - lo);
}

static void curved_codes_of(uint8_t *code, const float *q, int n) {
    for (int i = 0; i < n; i++) {
        code[i] = 0;
        for (int k = 0; k < 15; k++) code[i] += q[i] > (float)q35_iq4_levels[k];
    }
}

static void pack_q4_0(uint8_t *y, const super *s, const float *q) {
    uint8_t code[32];
    put_half(y, s->d);
    codes_of(code, q, -8, 32);
    put_halves(y + 2, code);
}

static void pack_q4_1(uint8_t *y, const super *s, const float *q) {
    uint8_t code[32];
    put_half(y, s->d);
    put_half(y + 2, 0 - s->dmin);
    codes_of(code, q, 0, 32);
    put_halves(y + 4, code);
}

static void pack_q5_0(uint8_t *y, const super *s, const float *q) {
    uint8_t code[32];
    put_half(y, s->d);
    codes_of(code, q, -16, 32);
    put_fifth_bits(y + 2, code);
    put_halves(y + 6, code);
}

static void pack_q5_1(uint8_t *y, const super *s, const float *q) {
    uint8_t code[32];
    put_half(y, s->d);
    put_half(y + 2, 0 - s->dmin);
    codes_of(code, q, 0, 32);
    put_fifth_bits(y + 4, code);
    put_halves(y + 8, code);
}

static void pack_q8_0(uint8_t *y, const super *s, const float *q) {
    put_half(y, s->d);
    codes_of(y + 2, q, 0, 32);
}

static void pack_iq4_nl(uint8_t *y, const super *s, const float *q) {
    uint8_t code[32];
    put_half(y, s->d);
    curved_codes_of(code, q, 32);
    put_halves(y + 2, code);
}

/* ---- blocks of 256 ---- */

/* Bits of element (h, p, c) of [2, 4, 32] at 2 p of byte 32 h + c. */
static void put_quarters(uint8_t *y, const uint8_t *code, int shift) {
    for (int h = 0; h < 2; h++, y += 32, code += 128)
        for (int c = 0; c < 32; c++)
            y[c] = (uint8_t)((code[c] >> shift & 3) | (code[32 + c] >> shift & 3) << 2 |
                             (code[64 + c] >> shift & 3) << 4 | (code[96 + c] >> shift & 3) << 6);
}

/* One bit of element (p, c) of [8, 32] at p of byte c. */
static void put_eighths(uint8_t *y, const uint8_t *code, int shift) {
    memset(y, 0, 32);
    for (int i = 0; i < 256; i++) y[i % 32] |= (uint8_t)((code[i] >> shift & 1) << i / 32);
}

/* Four bits of element (g, p, c) of [groups, 2, n] at 4 p of byte n g + c. */
static void put_pairs(uint8_t *y, const uint8_t *code, int n) {
    for (int g = 0; g < 128 / n; g++, y += n, code += 2 * n)
        for (int c = 0; c < n; c++) y[c] = (uint8_t)((code[c] & 15) | (code[n + c] & 15) << 4);
}

static void pack_q2_k(uint8_t *y, const super *s, const float *q) {
    uint8_t code[256];
    codes_of(code, q, 0, 256);
    for (int j = 0; j < 16; j++) y[j] = (uint8_t)(s->scale[j] | s->min[j] << 4);
    put_quarters(y + 16, code, 0);
    put_half(y + 80, s->d);
    put_half(y + 82, s->dmin);
}

static void pack_q3_k(uint8_t *y, const super *s, const float *q) {
    uint8_t code[256], *const scales = y + 96;
    codes_of(code, q, -4, 256);
    put_eighths(y, code, 2);
    put_quarters(y + 32, code, 0);
    memset(scales, 0, 12);
    for (int j = 0; j < 16; j++) {
        const int scale = s->scale[j] + 32;
        scales[j % 8] |= (uint8_t)((scale & 15) << j / 8 * 4);
        scales[8 + j % 4] |= (uint8_t)((scale >> 4) << j / 4 * 2);
    }
    put_half(y + 108, s->d);
}

/* The head of q4_k and q5_k. */
static void put_lines(uint8_t *y, const super *s) {
    put_half(y, s->d);
    put_half(y + 2, s->dmin);
    y += 4;
    for (int j = 0; j < 4; j++) {
        y[j] = (uint8_t)(s->scale[j] | s->scale[j + 4] >> 4 << 6);
        y[j + 4] = (uint8_t)(s->min[j] | s->min[j + 4] >> 4 << 6);
        y[j + 8] = (uint8_t)((s->scale[j + 4] & 15) | (s->min[j + 4] & 15) << 4);
    }
}

static void pack_q4_k(uint8_t *y, const super *s, const float *q) {
    uint8_t code[256];
    codes_of(code, q, 0, 256);
    put_lines(y, s);
    put_pairs(y + 16, code, 32);
}

static void pack_q5_k(uint8_t *y, const super *s, const float *q) {
    uint8_t code[256];
    codes_of(code, q, 0, 256);
    put_lines(y, s);
    put_eighths(y + 16, code, 4);
    put_pairs(y + 48, code, 32);
}

static void pack_q6_k(uint8_t *y, const super *s, const float *q) {
    uint8_t code[256];
    codes_of(code, q, -32, 256);
    put_pairs(y, code, 64);
    put_quarters(y + 128, code, 4);
    for (int j = 0; j < 16; j++) y[192 + j] = (uint8_t)s->scale[j];
    put_half(y + 208, s->d);
}

static void pack_iq4_xs(uint8_t *y, const super *s, const float *q) {
    uint8_t code[256];
    curved_codes_of(code, q, 256);
    put_half(y, s->d);
    memset(y + 2, 0, 6);
    for (int j = 0; j < 8; j++) {
        const int scale = s->scale[j] + 32;
        y[2 + j / 4] |= (uint8_t)((scale >> 4) << j % 4 * 2);
        y[4 + j / 2] |= (uint8_t)((scale & 15) << j % 2 * 4);
    }
    put_pairs(y + 8, code, 16);
}

/* ---- rows ---- */

#define CODEC(type, ...) {q35_fit_##type, pack_##type, __VA_ARGS__}
static const q35_codec codecs[Q35_FORMATS] = {
    [Q35_Q4_0] = CODEC(q4_0, {-8, 7, 0}, 1, 1, 1, 0),
    [Q35_Q4_1] = CODEC(q4_1, {0, 15, 0}, 1, 1, 1, 2),
    [Q35_Q5_0] = CODEC(q5_0, {-16, 15, 0}, 1, 1, 1, 0),
    [Q35_Q5_1] = CODEC(q5_1, {0, 31, 0}, 1, 1, 1, 2),
    [Q35_Q8_0] = CODEC(q8_0, {-127, 127, 0}, 1, 1, 1, 0),
    [Q35_Q2_K] = CODEC(q2_k, {0, 3, 0}, 16, 0, 15, 1),
    [Q35_Q3_K] = CODEC(q3_k, {-4, 3, 0}, 16, -32, 31, 0),
    [Q35_Q4_K] = CODEC(q4_k, {0, 15, 0}, 8, 0, 63, 1),
    [Q35_Q5_K] = CODEC(q5_k, {0, 31, 0}, 8, 0, 63, 1),
    [Q35_Q6_K] = CODEC(q6_k, {-32, 31, 0}, 16, -128, 127, 0),
    [Q35_IQ4_NL] = CODEC(iq4_nl, {-127, 113, 1}, 1, 1, 1, 0),
    [Q35_IQ4_XS] = CODEC(iq4_xs, {-127, 113, 1}, 8, -32, 31, 0),
};

const q35_codec *q35_codec_of(q35_dtype dtype) { return codecs[dtype].fit ? &codecs[dtype] : NULL; }

/* A block as encode_fit.c wants it. What is nearer to 0 than 2^-30 cannot be told from it, the
   least scale being 2^-24; what is beyond 2^30 is beyond every format. Weights are relative to the
   largest, and an element that does not matter still gets a millionth: no part of a block is
   without weights. */
void q35_take_block(float *v, float *w, const float *x, const float *importance, size_t n) {
    float top = 0;
    for (size_t i = 0; i < n; i++) {
        float a = x[i] > 0x1p30f ? 0x1p30f : x[i];
        a = a < -0x1p30f ? -0x1p30f : a;
        v[i] = fabsf(a) < 0x1p-30f ? 0 : a;
        w[i] = 1;
        if (importance) top = importance[i] > top ? importance[i] : top;
    }
    if (top == 0) return;
    for (size_t i = 0; i < n; i++) {
        w[i] = importance[i] / top;
        if (w[i] < 1e-6f) w[i] = 1e-6f;
    }
}

int q35_encode(void *y, q35_dtype dtype, const float *x, const float *importance, size_t n) {
    const q35_codec *codec = q35_codec_of(dtype);
    if (!codec) return -1;
    const size_t elements = q35_formats[dtype].elements, bytes = q35_formats[dtype].bytes;
    float v[256], w[256], q[256];
    super s;
    for (size_t k = 0; k < n / elements; k++) {
        const float *weights = importance ? importance + k * elements : NULL;
        q35_take_block(v, w, x + k * elements, weights, elements);
        codec->fit(&s, q, v, w);
        codec->pack((uint8_t *)y + k * bytes, &s, q);
    }
    return 0;
}
