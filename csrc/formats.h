/* formats.h: storage types of weights and of the K/V cache.
 *
 * Dense types hold each element by itself. Block types, those of GGUF files, hold a fixed number of
 * consecutive elements of a row in a fixed number of bytes: small codes and the scales that turn
 * them back into numbers. Layouts and formulae stand beside the decoders: formats.c, formats_iq.c.
 */
#ifndef Q35_FORMATS_H
#define Q35_FORMATS_H

#include <stddef.h>
#include <stdint.h>

typedef enum q35_dtype {
    Q35_F32 = 0,
    Q35_F16 = 1,
    Q35_BF16 = 2,
    Q35_DTYPES = 3, /* dense types: what kernel tables are indexed by */
    Q35_Q4_0 = Q35_DTYPES,
    Q35_Q4_1,
    Q35_Q5_0,
    Q35_Q5_1,
    Q35_Q8_0,
    Q35_Q2_K,
    Q35_Q3_K,
    Q35_Q4_K,
    Q35_Q5_K,
    Q35_Q6_K,
    Q35_IQ1_S,
    Q35_IQ1_M,
    Q35_IQ2_XXS,
    Q35_IQ2_XS,
    Q35_IQ2_S,
    Q35_IQ3_XXS,
    Q35_IQ3_S,
    Q35_IQ4_NL,
    Q35_IQ4_XS,
    Q35_MXFP4,
    Q35_FORMATS, /* all that files hold */
    Q35_Q6_0 =
        Q35_FORMATS, /* 32 codes of 6 bits, as in q4_0: of screens alone (screen.c), packed */
    Q35_LAYOUTS,
    Q35_INT16 = Q35_LAYOUTS /* of the K/V cache alone: kv.h */
} q35_dtype;

/* Of one element of a dense type. */
static inline size_t q35_dtype_bytes(q35_dtype dtype) { return dtype == Q35_F32 ? 4 : 2; }

typedef struct q35_format {
    const char *name;       /* as users write it: "q4_k" */
    int ggml_type;          /* number in GGUF files */
    size_t elements, bytes; /* of a block */
    int encodable;          /* q35_encode makes it */
} q35_format;

extern const q35_format q35_formats[Q35_LAYOUTS]; /* by q35_dtype */

/* Bytes of a row of n elements, n a multiple of the block. */
size_t q35_row_bytes(q35_dtype dtype, size_t n);

/* What a block says, of any block type: every format's numbers are
 *   y[i] = (d scale[i / 16]) code[i] - dmin min[i / 16]
 * with whole scales, mins and codes. Where a scale serves more than 16 elements it stands there
 * several times; a block of 32 fills the first 32 codes and two scales. */
#define Q35_PART 16
typedef struct q35_parts {
    float d, dmin;
    int8_t scale[16];
    uint8_t min[16];
    int8_t code[256];
} q35_parts;

void q35_split(q35_parts *parts, q35_dtype dtype, const void *block);

/* y[i] = the i-th number that x holds; n a multiple of the block, x at any address. Exact: every
   format's numbers are sums and products of few bits, and the last operation alone may round. */
void q35_decode(float *y, q35_dtype dtype, const void *x, size_t n);

/* The levels of iq4_nl and iq4_xs, by code. */
extern const int8_t q35_iq4_levels[16];

/* The block bytes whose numbers come close to x in sum_i importance[i] (x[i] - y[i])^2; importance
   NULL: all alike. x finite, importance finite and not negative, n a multiple of the block, y at
   any address. What no block can hold becomes the nearest number that one can. Nonzero where the
   type is not encodable; nothing is written then. */
int q35_encode(void *y, q35_dtype dtype, const float *x, const float *importance, size_t n);

/* ---- errors that make up for each other (compensate.c), for a window of n <= 256 columns of one
 * row; nonzero where the type is not encodable ---- */

typedef struct q35_fitted q35_fitted; /* a block, its scales and levels apart */
size_t q35_fitted_bytes(void);

/* fitted [blocks] and error [n] = x - y. fed: x and what the errors of earlier windows add to it.
   u [n, n]: what an error of column i adds to the target of column k > i. importance: as above. */
int q35_feed_window(q35_fitted *fitted, float *error, q35_dtype dtype, const float *x,
                    const float *fed, const float *importance, const float *u, size_t n);

/* Up to `sweeps` times every code and scale to where error^T H error is least. h [n, n]: the
   window's part of H; error and gradient [n]: of H error, over all windows; both follow. */
int q35_polish_window(q35_fitted *fitted, float *error, float *gradient, q35_dtype dtype,
                      const float *h, size_t n, int sweeps);

/* The bytes of n elements. */
int q35_pack_fitted(void *y, q35_dtype dtype, const q35_fitted *fitted, size_t n);

#endif
