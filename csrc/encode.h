/* encode.h: the search for codes and scales, apart from where their bits go.
 *
 * Every format stands for x[i] ~ y[i] = d q[i] - m, with q[i] the level of a code. What is sought
 * makes sum_i w[i] (x[i] - y[i])^2 small. All of x is 0 or between 2^-30 and 2^30 in magnitude, and
 * w between 1e-6 and 1, so that no sum here leaves the range of f32. */
#ifndef Q35_ENCODE_H
#define Q35_ENCODE_H

/* Blocks of 32 with one scale: returns d, an f16, and the levels q [32]. */
float q35_scale_q4_0(float *q, const float *x, const float *w);
float q35_scale_q5_0(float *q, const float *x, const float *w);
float q35_scale_q8_0(float *q, const float *x, const float *w);
float q35_scale_iq4_nl(float *q, const float *x, const float *w);

/* Blocks of 32 with a scale and a shift, both f16: y = d q - m, q [32] in 0..hi. */
typedef struct line {
    float d, m;
} line;
line q35_line_q4_1(float *q, const float *x, const float *w);
line q35_line_q5_1(float *q, const float *x, const float *w);

/* Blocks of 256 in `parts`: y = d scale[j] q - dmin min[j] in part j; q [256]. */
typedef struct super {
    float d, dmin;          /* f16 */
    int scale[16], min[16]; /* [parts] */
} super;
/* scale and min from 0 on */
void q35_super_q2_k(super *s, float *q, const float *x, const float *w);
void q35_super_q4_k(super *s, float *q, const float *x, const float *w);
void q35_super_q5_k(super *s, float *q, const float *x, const float *w);
/* scale signed, no min */
void q35_super_q3_k(super *s, float *q, const float *x, const float *w);
void q35_super_q6_k(super *s, float *q, const float *x, const float *w);
void q35_super_iq4_xs(super *s, float *q, const float *x, const float *w);

#endif
