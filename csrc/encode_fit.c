/* encode_fit.c: scales and codes of a block, sought so that the weighted squared error is small.
 *
 * x, w -> scales that might do, each tried with the codes that are best for it -> the best one
 * -> least squares for the scale, given the codes, while that helps. Blocks of 256: that for each
 * part -> scales of the parts as multiples of one f16 -> neighbours of each multiple tried, least
 * squares for the f16, again and again. Every error is that of the numbers as they will be decoded:
 * rounding of scales is part of it, so codes make up for it.
 *
 * The search is exhaustive nowhere. What it tries was chosen by what still lowered the error. */
#include "encode.h"

#include <float.h>
#include <math.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "block.h"

#define INLINE static inline __attribute__((always_inline))

/* Of improving a block of 256: no more than this many, and none after one that gains less. */
#define ROUNDS 4
#define SETTLED 0.999

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

INLINE f4 load4(const float *x) {
    f4 v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE float sum4(f4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }

/* Compilers do not see that a comparison and a choice are one instruction: NaN might be there. */
#ifdef __SSE2__
INLINE f4 least4(f4 a, f4 b) { return _mm_min_ps(a, b); }
INLINE f4 most4(f4 a, f4 b) { return _mm_max_ps(a, b); }
#else
INLINE f4 choose4(i4 first, f4 a, f4 b) { return (f4)((first & (i4)a) | (~first & (i4)b)); }
INLINE f4 least4(f4 a, f4 b) { return choose4(a < b, a, b); }
INLINE f4 most4(f4 a, f4 b) { return choose4(a > b, a, b); }
#endif

/* ---- one part at one scale ---- */

/* The levels nearest to v. Of the curved ones: a sum of steps, one for each border that v is above.
   Integers: adding and taking away 1.5 x 2^23 rounds to one. */
INLINE f4 nearest(f4 v, levels range) {
    if (!range.curved) {
        v = least4(most4(v, (f4){0} + range.lo), (f4){0} + range.hi);
        return (v + 12582912.0f) - 12582912.0f;
    }
    f4 level = (f4){0} + (float)q35_iq4_levels[0];
    for (int k = 1; k < 16; k++) {
        const float low = q35_iq4_levels[k - 1], high = q35_iq4_levels[k];
        const f4 border = (f4){0} + 0.5f * (low + high), step = (f4){0} + (high - low);
        level += (f4)((i4)(v > border) & (i4)step);
    }
    return level;
}

INLINE float inverse_of(float d) { return d != 0 ? 1.0f / d : 0.0f; }

/* The best levels q [n] for y = d q - m. */
INLINE void choose(float *q, const float *x, line y, levels range, int n) {
    const float inverse = inverse_of(y.d), shift = y.m * inverse;
    for (int i = 0; i < n; i += 4) {
        const f4 level = nearest(load4(x + i) * inverse + shift, range);
        memcpy(q + i, &level, sizeof level);
    }
}

/* Sums over a part: w (x - y)^2, w q, w q^2, w x q */
typedef struct sums {
    float error, q, qq, xq;
} sums;

/* What the best levels for y = d q - m make of it, and what least squares wants to know; compilers
   leave out what the caller does not look at. */
INLINE sums attempt(const float *x, const float *w, line y, levels range, int n) {
    const float inverse = inverse_of(y.d), shift = y.m * inverse;
    f4 error = {0}, sq = {0}, sqq = {0}, sxq = {0};
#pragma GCC unroll 2
    for (int i = 0; i < n; i += 4) {
        const f4 a = load4(x + i), b = load4(w + i), q = nearest(a * inverse + shift, range);
        const f4 wq = b * q, off = a - (q * y.d - y.m);
        error += b * off * off;
        sq += wq;
        sqq += wq * q;
        sxq += wq * a;
    }
    return (sums){sum4(error), sum4(sq), sum4(sqq), sum4(sxq)};
}

/* ---- a scale ---- */

/* Scales to start from: the largest |x| becomes `first`, first + step, ... `count` times, with that
   sign and, where `mirrored`, with the other. */
typedef struct ladder {
    float first, step;
    int count, mirrored;
} ladder;

INLINE float rounded(float d, int half) { return half ? half_near(d) : d; }

/* d with which levels in the range come closest to x [n]; an f16 where `half`. */
INLINE float fit_scale(const float *x, const float *w, levels range, ladder rungs, int half,
                       int n) {
    float top = 0;
    for (int i = 0; i < n; i++) top = fabsf(x[i]) > fabsf(top) ? x[i] : top;
    if (top == 0) return 0;
    float best = 0, least = attempt(x, w, (line){0, 0}, range, n).error;
    for (int k = 0; k < rungs.count << rungs.mirrored; k++) {
        const float rung = rungs.first + rungs.step * (float)(k >> rungs.mirrored);
        const float d = rounded(k & rungs.mirrored ? -top / rung : top / rung, half);
        const float error = attempt(x, w, (line){d, 0}, range, n).error;
        if (error < least) least = error, best = d;
    }
    sums found = attempt(x, w, (line){best, 0}, range, n);
    for (int k = 0; k < 4 && found.qq > 0; k++) {
        const float d = rounded(found.xq / found.qq, half);
        if (d == best) break;
        const sums s = attempt(x, w, (line){d, 0}, range, n);
        if (s.error >= found.error) break;
        found = s, best = d;
    }
    return best;
}

/* ---- a scale and a shift ---- */

/* What does not depend on the codes: sum w, sum w x; and the ends of x. */
typedef struct part {
    float w, wx, lo, hi;
} part;

INLINE part look_at(const float *x, const float *w, int n) {
    part p = {0, 0, x[0], x[0]};
    f4 sw = {0}, swx = {0};
    for (int i = 0; i < n; i += 4) sw += load4(w + i), swx += load4(w + i) * load4(x + i);
    for (int i = 0; i < n; i++) {
        p.lo = x[i] < p.lo ? x[i] : p.lo;
        p.hi = x[i] > p.hi ? x[i] : p.hi;
    }
    p.w = sum4(sw), p.wx = sum4(swx);
    return p;
}

/* Least squares for y = d q - m given the codes. Blocks of 256 can only shift down, m >= 0. */
INLINE line refit_line(line was, sums s, part p, int down, int half) {
    const float det = p.w * s.qq - s.q * s.q;
    line y = was;
    if (det > 1e-4f * p.w * s.qq) {
        const float inverse = 1 / det;
        y.d = (p.w * s.xq - p.wx * s.q) * inverse;
        y.m = (s.q * s.xq - p.wx * s.qq) * inverse;
    }
    if (down && y.m < 0) y.m = 0;
    if (half) y.m = half_near(y.m);
    if ((half || y.m == 0) && s.qq > 0) y.d = (s.xq + y.m * s.q) / s.qq;
    if (half) y.d = half_near(y.d);
    return y.d > 0 ? y : was;
}

/* Where to look for the ends of the range that the codes span: those of x moved inwards by `first`,
   first + 1, ... `steps` times that share of the distance between two levels. */
typedef struct window {
    float share;
    int first, steps;
} window;

/* d and m with which levels in the range come closest to x [n], f16 both where `half`: for each
   lower end the best upper end, and least squares from there. */
INLINE line fit_line(const float *x, const float *w, part p, levels range, window ends, int down,
                     int half, int n) {
    if (down && p.lo > 0) p.lo = 0;
    line best = {0, half ? half_near(-p.lo) : -p.lo};
    const float unit = ends.share * (p.hi - p.lo) / range.hi;
    if (!(unit > 0)) return best;
    float found = FLT_MAX;
    for (int i = 0; i < ends.steps; i++) {
        float least = FLT_MAX;
        line near = best;
        for (int k = 0; k < ends.steps; k++) {
            const float lo = p.lo + unit * (float)(ends.first + i),
                        hi = p.hi - unit * (float)(ends.first + k);
            line y = {(hi - lo) / range.hi, down && lo > 0 ? 0 : -lo};
            if (half) y.d = half_near(y.d), y.m = half_near(y.m);
            const float error = attempt(x, w, y, range, n).error;
            if (error < least) least = error, near = y;
        }
        least = FLT_MAX;
        for (int k = 0; k < 5; k++) {
            const sums s = attempt(x, w, near, range, n);
            if (s.error >= least) break;
            least = s.error;
            if (least < found) found = least, best = near;
            near = refit_line(near, s, p, down, half);
        }
    }
    return best;
}

/* ---- blocks of 256: parts with a scale and a min ---- */

INLINE int nearest_multiple(float value, float unit, int lo, int hi) {
    const float v = unit != 0 ? value / unit : 0.0f;
    return v <= (float)lo ? lo : v >= (float)hi ? hi : (int)(v + 1024.5f) - 1024;
}

/* Sums over a block for least squares in d and dmin: y = d (scale q) - dmin min */
typedef struct normal {
    double ss, sm, mm, sx, mx, error;
} normal;

INLINE void add_part(normal *a, sums s, part p, float scale, float min) {
    a->ss += (double)scale * scale * s.qq;
    a->sm += (double)scale * min * s.q;
    a->mm += (double)min * min * p.w;
    a->sx += (double)scale * s.xq;
    a->mx += (double)min * p.wx;
    a->error += s.error;
}

/* The best of the multiples that part j has and those beside them; adds its sums to `a`. */
INLINE void improve_line(super *s, normal *a, int j, const float *x, const float *w, part p,
                         levels range, int top, int n) {
    const int scale = s->scale[j], min = s->min[j];
    line y = {s->d * (float)scale, s->dmin * (float)min};
    float least = attempt(x, w, y, range, n).error;
    for (int u = scale - 1; u <= scale + 1; u++) {
        for (int v = min - 1; v <= min + 1; v++) {
            if (u < 0 || u > top || v < 0 || v > top || (u == scale && v == min)) continue;
            y = (line){s->d * (float)u, s->dmin * (float)v};
            const float error = attempt(x, w, y, range, n).error;
            if (error < least) least = error, s->scale[j] = u, s->min[j] = v;
        }
    }
    y = (line){s->d * (float)s->scale[j], s->dmin * (float)s->min[j]};
    add_part(a, attempt(x, w, y, range, n), p, (float)s->scale[j], (float)s->min[j]);
}

INLINE void refit_lines(super *s, const normal *a) {
    const double det = a->ss * a->mm - a->sm * a->sm;
    double d = a->ss > 0 ? a->sx / a->ss : 0, dmin = 0;
    if (det > 1e-9 * a->ss * a->mm) {
        d = (a->sx * a->mm - a->mx * a->sm) / det;
        dmin = (a->sx * a->sm - a->mx * a->ss) / det;
    } else if (a->ss == 0 && a->mm > 0) {
        dmin = -a->mx / a->mm;
    }
    if (d > 0 || a->ss == 0) s->d = half_near((float)d);
    if (dmin >= 0) s->dmin = half_near((float)dmin);
}

/* Where several starts are tried, each lets the largest scale, and the largest min, be beyond the
   top multiple by one more `spread`. */
INLINE void fit_lines(super *s, float *q, const float *x, const float *w, levels range, int parts,
                      int top, window ends, float spread, int starts) {
    const int n = 256 / parts;
    part p[16];
    line ideal[16];
    float d = 0, m = 0;
    for (int j = 0; j < parts; j++) {
        p[j] = look_at(x + j * n, w + j * n, n);
        ideal[j] = fit_line(x + j * n, w + j * n, p[j], range, ends, 1, 0, n);
        d = ideal[j].d > d ? ideal[j].d : d;
        m = ideal[j].m > m ? ideal[j].m : m;
    }
    super now;
    double least = DBL_MAX;
    for (int k = 0; k < starts * starts; k++) {
        now.d = half_beyond(d / (float)top * (1 - spread * (float)(k % starts)));
        now.dmin = half_beyond(m / (float)top * (1 - spread * (float)(k / starts)));
        double error = 0;
        for (int j = 0; j < parts; j++) {
            now.scale[j] = nearest_multiple(ideal[j].d, now.d, 0, top);
            now.min[j] = nearest_multiple(ideal[j].m, now.dmin, 0, top);
            const line y = {now.d * (float)now.scale[j], now.dmin * (float)now.min[j]};
            error += attempt(x + j * n, w + j * n, y, range, n).error;
        }
        if (error < least) least = error, *s = now;
    }
    now = *s;
    for (int round = 0; round < ROUNDS; round++) {
        normal a = {0};
        for (int j = 0; j < parts; j++)
            improve_line(&now, &a, j, x + j * n, w + j * n, p[j], range, top, n);
        const int settled = round > 0 && a.error >= least * SETTLED;
        if (a.error <= least) least = a.error, *s = now;
        if (settled) break;
        refit_lines(&now, &a);
    }
    for (int j = 0; j < parts; j++) {
        const line y = {s->d * (float)s->scale[j], s->dmin * (float)s->min[j]};
        choose(q + j * n, x + j * n, y, range, n);
    }
}

/* ---- blocks of 256: parts with a signed scale ---- */

/* As improve_line; the mirror image of a scale is a neighbour too, as levels are not symmetric. */
INLINE void improve_scale(super *s, normal *a, int j, const float *x, const float *w, levels range,
                          int top, int n) {
    const int was = s->scale[j];
    float least = attempt(x, w, (line){s->d * (float)was, 0}, range, n).error;
    const int neighbours[3] = {was - 1, was + 1, -was};
    for (int k = 0; k < 3; k++) {
        const int u = neighbours[k];
        if (u < -top || u >= top) continue;
        const float error = attempt(x, w, (line){s->d * (float)u, 0}, range, n).error;
        if (error < least) least = error, s->scale[j] = u;
    }
    const line y = {s->d * (float)s->scale[j], 0};
    add_part(a, attempt(x, w, y, range, n), (part){0, 0, 0, 0}, (float)s->scale[j], 0);
}

/* As fit_lines; the largest scale becomes the multiple -top. */
INLINE void fit_scales(super *s, float *q, const float *x, const float *w, levels range, int parts,
                       int top, ladder rungs, float spread, int starts) {
    const int n = 256 / parts;
    float ideal[16], d = 0;
    for (int j = 0; j < parts; j++) {
        ideal[j] = fit_scale(x + j * n, w + j * n, range, rungs, 0, n);
        d = fabsf(ideal[j]) > fabsf(d) ? ideal[j] : d;
    }
    super now = {.d = 0};
    double least = DBL_MAX;
    for (int k = 0; k < starts; k++) {
        now.d = half_beyond(-d / (float)top * (1 - spread * (float)k));
        double error = 0;
        for (int j = 0; j < parts; j++) {
            now.scale[j] = nearest_multiple(ideal[j], now.d, -top, top - 1);
            const line y = {now.d * (float)now.scale[j], 0};
            error += attempt(x + j * n, w + j * n, y, range, n).error;
        }
        if (error < least) least = error, *s = now;
    }
    now = *s;
    for (int round = 0; round < ROUNDS; round++) {
        normal a = {0};
        for (int j = 0; j < parts; j++)
            improve_scale(&now, &a, j, x + j * n, w + j * n, range, top, n);
        const int settled = round > 0 && a.error >= least * SETTLED;
        if (a.error <= least) least = a.error, *s = now;
        if (settled) break;
        if (a.ss > 0) now.d = half_near((float)(a.sx / a.ss));
    }
    for (int j = 0; j < parts; j++)
        choose(q + j * n, x + j * n, (line){s->d * (float)s->scale[j], 0}, range, n);
}

/* ---- the formats ----
 *
 * Ladders and windows reach some way beyond the range of the codes on both sides, for coarse codes
 * and fine ones alike: where few elements are large, clipping them pays; and with many levels, a
 * wider range costs little and its levels may happen to fit better. More and closer rungs gained
 * less than 1 % on Gaussian and long-tailed rows. */

void q35_fit_q4_0(super *s, float *q, const float *x, const float *w) {
    const levels range = {-8, 7, 0};
    const float d = fit_scale(x, w, range, (ladder){-10, 0.25f, 16, 1}, 1, 32);
    *s = (super){.d = d, .scale = {1}};
    choose(q, x, (line){d, 0}, range, 32);
}

void q35_fit_q5_0(super *s, float *q, const float *x, const float *w) {
    const levels range = {-16, 15, 0};
    const float d = fit_scale(x, w, range, (ladder){-19, 0.25f, 20, 1}, 1, 32);
    *s = (super){.d = d, .scale = {1}};
    choose(q, x, (line){d, 0}, range, 32);
}

/* -128 is left unused, as everywhere: products of two int8 may count on that. */
void q35_fit_q8_0(super *s, float *q, const float *x, const float *w) {
    const levels range = {-127, 127, 0};
    const float d = fit_scale(x, w, range, (ladder){128, -0.5f, 21, 0}, 1, 32);
    *s = (super){.d = d, .scale = {1}};
    choose(q, x, (line){d, 0}, range, 32);
}

void q35_fit_iq4_nl(super *s, float *q, const float *x, const float *w) {
    const levels range = {0, 0, 1};
    const float d = fit_scale(x, w, range, (ladder){-150, 8, 10, 1}, 1, 32);
    *s = (super){.d = d, .scale = {1}};
    choose(q, x, (line){d, 0}, range, 32);
}

void q35_fit_q4_1(super *s, float *q, const float *x, const float *w) {
    const levels range = {0, 15, 0};
    const line y = fit_line(x, w, look_at(x, w, 32), range, (window){0.4f, -2, 5}, 0, 1, 32);
    *s = (super){.d = y.d, .dmin = y.m, .scale = {1}, .min = {1}};
    choose(q, x, y, range, 32);
}

void q35_fit_q5_1(super *s, float *q, const float *x, const float *w) {
    const levels range = {0, 31, 0};
    const line y = fit_line(x, w, look_at(x, w, 32), range, (window){0.5f, -3, 5}, 0, 1, 32);
    *s = (super){.d = y.d, .dmin = y.m, .scale = {1}, .min = {1}};
    choose(q, x, y, range, 32);
}

void q35_fit_q2_k(super *s, float *q, const float *x, const float *w) {
    fit_lines(s, q, x, w, (levels){0, 3, 0}, 16, 15, (window){0.3f, 0, 4}, 0.1f, 2);
}

void q35_fit_q4_k(super *s, float *q, const float *x, const float *w) {
    fit_lines(s, q, x, w, (levels){0, 15, 0}, 8, 63, (window){0.4f, -2, 5}, 0, 1);
}

void q35_fit_q5_k(super *s, float *q, const float *x, const float *w) {
    fit_lines(s, q, x, w, (levels){0, 31, 0}, 8, 63, (window){0.5f, -3, 5}, 0, 1);
}

void q35_fit_q3_k(super *s, float *q, const float *x, const float *w) {
    fit_scales(s, q, x, w, (levels){-4, 3, 0}, 16, 32, (ladder){-5, 0.25f, 10, 1}, 0.02f, 3);
}

void q35_fit_q6_k(super *s, float *q, const float *x, const float *w) {
    fit_scales(s, q, x, w, (levels){-32, 31, 0}, 16, 128, (ladder){-34, 0.5f, 11, 1}, 0, 1);
}

void q35_fit_iq4_xs(super *s, float *q, const float *x, const float *w) {
    fit_scales(s, q, x, w, (levels){0, 0, 1}, 8, 32, (ladder){-150, 8, 10, 1}, 0.02f, 3);
}
