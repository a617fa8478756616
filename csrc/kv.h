/* How the K and V rows of one head lie on a page.
 *
 * Of a dense or block type, row after row [Q35_PAGE, Dh]. Of Q35_INT16 in fixed point, as dot_pairs
 * reads them: K [ceil(Dh / 2), Q35_PAGE, 2], pairs of dimensions with the positions side by side; V
 * in blocks of up to 64 dimensions, each [Q35_PAGE / 2, width, 2], pairs of positions with the
 * dimensions side by side; and behind either the factors [Q35_PAGE] of the positions. A vector of
 * 256 numbers is kept to 1e-4 of its norm there, as close as f16 keeps it, in as many bytes but for
 * the factor. */
#ifndef Q35_KV_H
#define Q35_KV_H

#include "formats.h"

#define Q35_PAGE 64     /* positions */
#define Q35_KV_BLOCK 64 /* dimensions of V side by side */

/* Integers of K and of P (the weights of V) have these Euclidean norms, V as K does. |k| |q| <=
   46000^2 and, V's integers being at most 32767 and 64 of them meeting one P, |p| sqrt(64) 32767
   stay below 2^31, rounding included (kernels.h). */
#define Q35_KV_NORM 46000.0f
#define Q35_WEIGHT_NORM 8000.0f

#define Q35_MAX_HEAD 1024 /* dimensions */

/* Dh in int16: padded by zeros to whole vectors. */
static inline size_t q35_kv_dims(size_t Dh) { return (Dh + 15) / 16 * 16; }

/* Of K, or of V, of a head on a page. */
size_t q35_kv_bytes(q35_dtype type, size_t Dh);

/* Stores x [Dh] as K (which = 0) or V (1) of one position of the page. */
void q35_kv_store(void *head, q35_dtype type, int which, size_t position, const float *x,
                  size_t Dh);

/* Where the factors [Q35_PAGE] are. */
static inline const float *q35_kv_factors(const void *head, size_t Dh) {
    return (const float *)((const int16_t *)head + Q35_PAGE * q35_kv_dims(Dh));
}

#endif
