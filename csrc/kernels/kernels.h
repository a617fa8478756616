/* kernels.h: the contract every target fulfils.
 *
 * A kernel is single-threaded, allocates nothing, keeps no state, and reads and writes exactly the
 * elements its shapes name: any size from 1 up, any row stride not smaller than the row. Strides
 * (ld*) count elements. Storage types are f32, f16 or bf16; arithmetic is f32 where nothing else is
 * said.
 *
 * Bit-identity: a result depends on the inputs of its own row and token alone, never on how many
 * rows or tokens share the call. Prefill split anywhere, decode and batches thus give the same bits
 * on one target. */
#ifndef Q35_KERNELS_H
#define Q35_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "../formats.h"
#include "panel.h"

/* Columns of the value dimension that one delta call handles: two AVX-512 registers. The recurrent
   state is stored in such column blocks, so that a block of 128 rows stays in the first-level
   cache. */
#define Q35_DELTA_COLS 32

/* Fixed point: elements along a sum that become 16-bit integers with one factor, a block; rows that
   are packed side by side for `dot_fixed`; and tokens that `dot_stored` takes. */
#define Q35_FIXED 128
#define Q35_FIXED_ROWS 64
#define Q35_FIXED_FEW 4

/* Convolution taps that a caller's table of row pointers has room for. */
#define Q35_MAX_TAPS 16

/* y[i] = (float)x[i] */
typedef void q35_expand_fn(float *y, const void *x, size_t n);
/* y[i] = (storage)x[i], rounded to nearest even */
typedef void q35_narrow_fn(void *y, const float *x, size_t n);

/* y[t, r] = (add ? y[t, r] : 0) + sum_k w[r, k] x[t, k]        w [rows, n], x [tokens, n] f32, y
 * [tokens, rows] f32 */
typedef void q35_dot_fn(float *y, size_t ldy, const void *w, size_t ldw, const float *x, size_t ldx,
                        size_t rows, size_t tokens, size_t n, int add);

/* y[t, j] += sum_s p[t, s] v[s, j]        p [tokens, positions] f32, v [positions, n], y [tokens,
 * n] f32 */
typedef void q35_mix_fn(float *y, size_t ldy, const float *p, size_t ldp, const void *v, size_t ldv,
                        size_t tokens, size_t positions, size_t n);

/* Tokens in fixed point: x[i] = factor[i / Q35_FIXED] y[i]. A block of y has a Euclidean norm of
   46000, or of 32767 where a single value might leave int16 otherwise; weights' blocks (below) one
   of at most 2^12 sqrt(128) = 46341, so that by Cauchy-Schwarz no product of two blocks leaves
   int32. The rounding errors of a block together are thus below 1.8e-4 of its norm, whatever its
   values are. An odd n gets one more y, 0. */
typedef void q35_fix_fn(int16_t *y, float *factor, const float *x, size_t n);

/* Weights in fixed point: w[r, i] = factor[r] y[r, i]. The factor is a power of two for which the
   largest |y| of a row is from 2^11 to 2^12: bf16 down to 1/16 of the largest stay exact. y
   [Q35_FIXED / 2, Q35_FIXED_ROWS, 2] packed by pairs, of w [rows, n] f16 or bf16, rows at most
   Q35_FIXED_ROWS, n at most Q35_FIXED; what is missing of either becomes zeros. */
typedef void q35_pack_fixed_fn(int16_t *y, float *factor, q35_dtype dtype, const void *w,
                               size_t ldw, size_t rows, size_t n);

/* sum[t, r] += w_factor[r] x_factor[t] sum_i w[r, i] x[t, i], one block of all Q35_FIXED_ROWS. sum
   [T, Q35_FIXED_ROWS], w as pack_fixed makes it, x [T, Q35_FIXED] as `fix`. The sum over i is
   exact. */
typedef void q35_dot_fixed_fn(float *sum, const int16_t *w, const float *w_factor, const int16_t *x,
                              const float *x_factor, size_t T, size_t n);

/* y[t, r] = (add ? y[t, r] : 0) + sum_k w[r, k] x[t, k] for T <= Q35_FIXED_FEW tokens: what
   pack_fixed and dot_fixed give block after block, to the bit, from where w [rows, n] is stored. x
   [blocks, ldx, Q35_FIXED] and x_factor [blocks, ldx], of which the first T tokens count; x zeros
   beyond n. */
typedef void q35_dot_stored_fn(float *y, size_t ldy, q35_dtype dtype, const void *w, size_t ldw,
                               const int16_t *x, const float *x_factor, size_t ldx, size_t rows,
                               size_t T, size_t n, int add);

/* All of x [n] with one factor, which is returned: y has the given Euclidean norm, or 32767 where a
   value might leave int16 otherwise. Not written beyond n. */
typedef float q35_fix_all_fn(int16_t *y, const float *x, size_t n, float norm);

/* y[t, c] = (add ? y[t, c] : 0) + x_factor[t] w_factor[c] sum_i w[i, c, 0] x[t, 2 i] + w[i, c, 1]
   x[t, 2 i + 1]. w [pairs, width, 2], width a multiple of 16; w_factor NULL: 1. No sum may leave
   int32. */
typedef void q35_dot_pairs_fn(float *y, size_t ldy, const int16_t *w, size_t width,
                              const float *w_factor, const int16_t *x, size_t ldx,
                              const float *x_factor, size_t tokens, size_t pairs, int add);

/* One column block of one head's gated delta rule (arXiv 2412.06464), token after token:
 *   S <- decay_t S;  d = beta_t (v_t - S^T k_t);  S <- S + k_t d^T;  out_t = S^T q_t
 * state [Dk, cols] f32 without gaps, cols <= Q35_DELTA_COLS; q, k [tokens, Dk]; v, out [tokens,
 * cols]; decay, beta [tokens]. out may be v: a token's v is read before its out is written. */
typedef void q35_delta_fn(float *out, size_t ldo, float *state, const float *q, const float *k,
                          size_t ldqk, const float *v, size_t ldv, const float *decay,
                          const float *beta, size_t tokens, size_t Dk, size_t cols);

/* The t-th token from x [columns]: each 32 of its numbers get a scale by their largest magnitude.
 */
typedef void q35_quantize_fn(const q35_tokens *tokens, size_t t, const float *x);

/* sum[t, r] = (add ? sum[t, r] : 0) + sum_k w[r, k] x[t, k]        sum [T, 16], ld elements apart;
   w n columns of 16 rows as records, which meet columns k .. k + n of the tokens; n a multiple of
   the record. The integer sums of a group are exact; groups are added up in their order, so that
   bits do not depend on how columns are cut into pieces. */
typedef void q35_dot_packed_fn(float *sum, size_t ld, int add, q35_dtype dtype, const void *packed,
                               const q35_tokens *tokens, size_t k, size_t n);

/* The same from a panel, n a multiple of 32. */
typedef void q35_dot_panel_fn(float *sum, size_t ld, int add, const q35_panel *panel,
                              const q35_tokens *tokens, size_t k, size_t n);

typedef struct q35_kernels {
    const char *name;
    /* From this many tokens on OpenBLAS multiplies faster than `dot` of this target; 0: never.
     * Measured. */
    size_t blas_tokens;
    q35_expand_fn *expand[Q35_DTYPES];
    q35_narrow_fn *narrow[Q35_DTYPES];
    q35_dot_fn *dot[Q35_DTYPES];
    q35_mix_fn *mix[Q35_DTYPES];
    q35_delta_fn *delta;
    q35_fix_fn *fix;
    /* All three, or NULL where f32 is as fast. */
    q35_pack_fixed_fn *pack_fixed;
    q35_dot_fixed_fn *dot_fixed;
    q35_dot_stored_fn *dot_stored;
    q35_fix_all_fn *fix_all;
    q35_dot_pairs_fn *dot_pairs;
    /* Whether bytes are multiplied as words: then tokens of 16 bits cost signed bytes (q35_is_wide)
       no more than those of 8, and these meet no others. */
    int words;
    q35_quantize_fn *quantize;
    q35_dot_packed_fn *dot_packed;
    q35_dot_panel_fn *dot_panel;

    /* y = x * rsqrt(mean(x^2) + eps) * scale        y may be x */
    void (*rms_norm)(float *y, const float *x, const float *scale, float eps, size_t n);
    /* y = (x - mean(x)) * rsqrt(var(x) + eps) * scale + shift        y may be x */
    void (*layer_norm)(float *y, const float *x, const float *scale, const float *shift, float eps,
                       size_t n);
    /* x <- x * rsqrt(sum(x^2) + 1e-6) * scale */
    void (*l2_norm)(float *x, float scale, size_t n);
    /* y = silu(gate) * up, silu(a) = a / (1 + exp(-a))        y may be gate or up */
    void (*silu_mul)(float *y, const float *gate, const float *up, size_t n);
    /* y = sigmoid(gate) * x        y may be x */
    void (*sigmoid_mul)(float *y, const float *gate, const float *x, size_t n);
    /* x <- gelu(x + bias), by tanh */
    void (*gelu_bias)(float *x, const float *bias, size_t n);
    /* y <- y + x */
    void (*add)(float *y, const float *x, size_t n);
    /* y[c] = silu(sum_j w[j * ldw + c] * taps[j][c]), j < K        y may be any of the taps */
    void (*conv_silu)(float *y, const float *const *taps, const float *w, size_t ldw, size_t K,
                      size_t n);
    /* One step of online softmax over n scores: returns the new running maximum m' = max(m,
       max(s)), replaces s by exp(s - m') and stores their sum. */
    float (*softmax_step)(float *s, size_t n, float m, float *sum);
    /* softmax_step over n scores, and what of them meets V in fixed point: y [all] = factor exp(s -
       m') v_factor, 0 from n on, with the given Euclidean norm, at most 32767. all is a multiple of
       16; s [all] is overwritten. */
    float (*weigh)(int16_t *y, float *factor, float *s, const float *v_factor, size_t n, size_t all,
                   float norm, float m, float *sum);
    /* x <- a x */
    void (*scale)(float *x, float a, size_t n);
    /* exp(x) elementwise, within 2 ulp for -87 <= x <= 88, clamped outside */
    void (*exp)(float *y, const float *x, size_t n);
} q35_kernels;

/* The table in use, chosen once when the module is loaded. */
extern const q35_kernels *q35_kernel;

/* Targets this machine can run, slowest first; returns their number. */
#define Q35_MAX_TARGETS 8
size_t q35_kernels_available(const q35_kernels *tables[Q35_MAX_TARGETS]);
/* Puts the named target (NULL: the best) in use; nonzero when this machine cannot run it. */
int q35_kernels_select(const char *name);

#endif
