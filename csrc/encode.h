/* encode.h: the search for codes and scales, apart from where their bits go.
 *
 * Every format stands for x[i] ~ y[i] = d q[i] - m, with q[i] the level of a code. What is sought
 * makes sum_i w[i] (x[i] - y[i])^2 small. All of x is 0 or between 2^-30 and 2^30 in magnitude, and
 * w between 1e-6 and 1, so that no sum here leaves the range of f32. */
#ifndef Q35_ENCODE_H
#define Q35_ENCODE_H

#include <stdint.h>

#include "formats.h"

/* y = d q - m, in one part of a block */
typedef struct line {
    float d, m;
} line;

/* A block in `parts`: y = d scale[j] q - dmin min[j] in part j; d and dmin are f16. Blocks of 32
   have one part, scale 1 and min 1. */
typedef struct super {
    float d, dmin;
    int scale[16], min[16]; /* [parts] */
} super;

/* What the codes of a format stand for: the integers lo..hi, or the 16 levels of iq4_nl. */
typedef struct levels {
    float lo, hi;
    int curved;
} levels;

/* Scales of a block, and the levels q [elements] nearest to x. */
void q35_fit_q4_0(super *s, float *q, const float *x, const float *w);
void q35_fit_q4_1(super *s, float *q, const float *x, const float *w);
void q35_fit_q5_0(super *s, float *q, const float *x, const float *w);
void q35_fit_q5_1(super *s, float *q, const float *x, const float *w);
void q35_fit_q8_0(super *s, float *q, const float *x, const float *w);
void q35_fit_iq4_nl(super *s, float *q, const float *x, const float *w);
/* scale and min from 0 on */
void q35_fit_q2_k(super *s, float *q, const float *x, const float *w);
void q35_fit_q4_k(super *s, float *q, const float *x, const float *w);
void q35_fit_q5_k(super *s, float *q, const float *x, const float *w);
/* scale signed, no min */
void q35_fit_q3_k(super *s, float *q, const float *x, const float *w);
void q35_fit_q6_k(super *s, float *q, const float *x, const float *w);
void q35_fit_iq4_xs(super *s, float *q, const float *x, const float *w);

/* How a format is encoded, for those who choose codes by other errors than the sum above. */
typedef struct q35_codec {
    void (*fit)(super *s, float *q, const float *x, const float *w);
    void (*pack)(uint8_t *y, const super *s, const float *q);
    levels range;
    int parts, least, most; /* multiples of d are from `least` to `most`; of dmin from 0 */
    int shifts;             /* there is a dmin; 2: of either sign */
} q35_codec;

/* NULL where the type is not encodable. */
const q35_codec *q35_codec_of(q35_dtype dtype);

/* x and importance (or NULL) of n elements as v and w within the ranges above. */
void q35_take_block(float *v, float *w, const float *x, const float *importance, size_t n);

#endif
