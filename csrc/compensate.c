/* compensate.c: blocks whose errors make up for each other in products with inputs that are alike.
 *
 * The squared error of sum_i x[i] a[i], a the inputs, is e^T H e with e = x - y and H the mean of
 * a a^T: where columns are correlated, an error in one can undo that of another. Two ways there,
 * over a window of at most 256 columns at a time; products between windows are the caller's:
 *   feed:   columns in order, each rounded after the errors before it were added to what it should
 *           be: with H = (U + 1) D (U + 1)^T, U strictly upper, that makes e^T H e the sum of
 *           D[i] times the rounding of i alone (LDLQ, arXiv:2307.13304; GPTQ, arXiv:2210.17323,
 *           is the same procedure)
 *   polish: every code, multiple and scale in turn moved to where e^T H e is least, the others
 *           staying
 * A fitted block keeps scales and levels apart until it is packed. */
#include <math.h>
#include <string.h>

#include "block.h"
#include "encode.h"

#define WINDOW 256

struct q35_fitted {
    float d, dmin;
    int8_t scale[16], min[16];
    int8_t q[256];
};

size_t q35_fitted_bytes(void) { return sizeof(q35_fitted); }

static void store(q35_fitted *f, const super *s, const float *q, size_t elements) {
    memset(f, 0, sizeof *f);
    f->d = s->d, f->dmin = s->dmin;
    for (int j = 0; j < 16; j++) f->scale[j] = (int8_t)s->scale[j], f->min[j] = (int8_t)s->min[j];
    for (size_t i = 0; i < elements; i++) f->q[i] = (int8_t)q[i];
}

/* The part of a block that element i lies in, as a line. */
static line line_of(const q35_fitted *f, size_t j) {
    return (line){f->d * (float)f->scale[j], f->dmin * (float)f->min[j]};
}

static float nearest_level(float v, levels range) {
    if (!range.curved) return v < range.lo ? range.lo : v > range.hi ? range.hi : rintf(v);
    int k = 0;
    while (k < 15 && 2 * v > (float)(q35_iq4_levels[k] + q35_iq4_levels[k + 1])) k++;
    return q35_iq4_levels[k];
}

static float level_for(line y, float value, levels range) {
    return y.d != 0 ? nearest_level((value + y.m) / y.d, range) : 0;
}

/* ---- feed ---- */

int q35_feed_window(q35_fitted *fitted, float *error, q35_dtype dtype, const float *x,
                    const float *fed, const float *importance, const float *u, size_t n) {
    const q35_codec *codec = q35_codec_of(dtype);
    const size_t elements = q35_formats[dtype].elements;
    if (!codec || n > WINDOW) return -1;
    const size_t part = elements / (size_t)codec->parts;
    float target[WINDOW], v[256], w[256], q[256];
    memcpy(target, fed, n * sizeof *fed);
    for (size_t b = 0; b < n; b += elements, fitted++) {
        super s;
        q35_take_block(v, w, target + b, importance + b, elements);
        codec->fit(&s, q, v, w);
        store(fitted, &s, q, elements);
        for (size_t i = b; i < b + elements; i++) {
            const line y = line_of(fitted, (i - b) / part);
            const float level = level_for(y, target[i], codec->range);
            const float e = x[i] - (y.d * level - y.m);
            fitted->q[i - b] = (int8_t)level;
            error[i] = e;
            for (size_t k = i + 1; k < n; k++) target[k] += e * u[i * n + k];
        }
    }
    return 0;
}

/* ---- polish ---- */

typedef struct polish {
    const float *h; /* [n, n] */
    float *e, *g;   /* [n] errors; H e, with what other windows add to it */
    size_t n;
} polish;

/* y[i] moves by `by`. */
static void move_one(polish *p, size_t i, float by) {
    const float *row = p->h + i * p->n;
    p->e[i] -= by;
    for (size_t k = 0; k < p->n; k++) p->g[k] -= by * row[k];
}

/* Where y moves along `along` [count], from element `begin` on: by t, the error falls by
   2 t slope - t^2 curve. */
typedef struct direction {
    const float *along;
    size_t begin, count;
    float slope, curve;
    float product[WINDOW]; /* [count] H along, of these elements */
} direction;

static void look_along(const polish *p, direction *d) {
    memset(d->product, 0, d->count * sizeof *d->product);
    for (size_t i = 0; i < d->count; i++) {
        const float *row = p->h + (d->begin + i) * p->n + d->begin;
        for (size_t k = 0; k < d->count; k++) d->product[k] += d->along[i] * row[k];
    }
    d->slope = d->curve = 0;
    for (size_t i = 0; i < d->count; i++) {
        d->slope += d->along[i] * p->g[d->begin + i];
        d->curve += d->along[i] * d->product[i];
    }
}

static int gains(const direction *d, float t) { return 2 * t * d->slope > t * t * d->curve; }

static void move_along(polish *p, const direction *d, float t) {
    if (d->count < p->n) {
        for (size_t i = 0; i < d->count; i++)
            if (d->along[i] != 0) move_one(p, d->begin + i, t * d->along[i]);
        return;
    }
    for (size_t i = 0; i < p->n; i++) p->e[i] -= t * d->along[i], p->g[i] -= t * d->product[i];
}

static int polish_codes(polish *p, q35_fitted *f, const q35_codec *codec, size_t begin,
                        size_t elements) {
    const size_t part = elements / (size_t)codec->parts;
    int moved = 0;
    for (size_t i = 0; i < elements; i++) {
        const line y = line_of(f, i / part);
        const float own = p->h[(begin + i) * p->n + begin + i];
        if (y.d == 0 || !(own > 0)) continue;
        const float value = y.d * f->q[i] - y.m + p->g[begin + i] / own;
        const float level = level_for(y, value, codec->range);
        if (level == f->q[i]) continue;
        move_one(p, begin + i, y.d * (level - f->q[i]));
        f->q[i] = (int8_t)level;
        moved++;
    }
    return moved;
}

/* A multiple by one up or down, where that gains. `along`: what y moves by for one up. */
static void polish_multiple(polish *p, int8_t *multiple, int least, int most, const float *along,
                            size_t begin, size_t count) {
    direction d = {.along = along, .begin = begin, .count = count};
    look_along(p, &d);
    const int step = d.slope > 0 ? 1 : -1, next = *multiple + step;
    if (next < least || next > most || !gains(&d, (float)step)) return;
    *multiple = (int8_t)next;
    move_along(p, &d, (float)step);
}

static void polish_parts(polish *p, q35_fitted *f, const q35_codec *codec, size_t begin,
                         size_t elements) {
    const size_t part = elements / (size_t)codec->parts;
    float along[256] = {0};
    for (size_t j = 0; j < (size_t)codec->parts; j++) {
        const size_t first = begin + j * part;
        for (size_t i = 0; i < part; i++) along[i] = f->d * f->q[j * part + i];
        polish_multiple(p, &f->scale[j], codec->least, codec->most, along, first, part);
        if (!codec->shifts) continue;
        for (size_t i = 0; i < part; i++) along[i] = -f->dmin;
        polish_multiple(p, &f->min[j], 0, codec->most, along, first, part);
    }
}

/* An f16 to where the error is least. `along`: what y moves by where it grows by 1. */
static void polish_half(polish *p, float *scale, int signed_, const float *along, size_t begin,
                        size_t count) {
    direction d = {.along = along, .begin = begin, .count = count};
    look_along(p, &d);
    if (!(d.curve > 0)) return;
    const float wanted = *scale + d.slope / d.curve;
    const float next = !signed_ && wanted < 0 ? 0 : half_near(wanted);
    if (next == *scale || !gains(&d, next - *scale)) return;
    move_along(p, &d, next - *scale);
    *scale = next;
}

static void polish_scales(polish *p, q35_fitted *f, const q35_codec *codec, size_t begin,
                          size_t elements) {
    const size_t part = elements / (size_t)codec->parts;
    float along[256] = {0};
    for (size_t i = 0; i < elements; i++) along[i] = (float)f->scale[i / part] * f->q[i];
    polish_half(p, &f->d, 1, along, begin, elements);
    if (!codec->shifts) return;
    for (size_t i = 0; i < elements; i++) along[i] = -(float)f->min[i / part];
    polish_half(p, &f->dmin, codec->shifts == 2, along, begin, elements);
}

int q35_polish_window(q35_fitted *fitted, float *error, float *gradient, q35_dtype dtype,
                      const float *h, size_t n, int sweeps) {
    const q35_codec *codec = q35_codec_of(dtype);
    const size_t elements = q35_formats[dtype].elements;
    if (!codec || n > WINDOW) return -1;
    polish p = {h, error, gradient, n};
    for (int sweep = 0; sweep < sweeps; sweep++) {
        int moved = 0;
        for (size_t b = 0; b < n; b += elements) {
            q35_fitted *f = fitted + b / elements;
            moved += polish_codes(&p, f, codec, b, elements);
            if (codec->parts > 1) polish_parts(&p, f, codec, b, elements);
            if (sweep == 0) polish_scales(&p, f, codec, b, elements);
        }
        if (!moved) break;
    }
    return 0;
}

/* ---- pack ---- */

int q35_pack_fitted(void *y, q35_dtype dtype, const q35_fitted *fitted, size_t n) {
    const q35_codec *codec = q35_codec_of(dtype);
    if (!codec) return -1;
    const size_t elements = q35_formats[dtype].elements, bytes = q35_formats[dtype].bytes;
    for (size_t k = 0; k < n / elements; k++, fitted++) {
        super s = {.d = fitted->d, .dmin = fitted->dmin};
        float q[256];
        for (int j = 0; j < 16; j++) s.scale[j] = fitted->scale[j], s.min[j] = fitted->min[j];
        for (size_t i = 0; i < elements; i++) q[i] = fitted->q[i];
        codec->pack((uint8_t *)y + k * bytes, &s, q);
    }
    return 0;
}
