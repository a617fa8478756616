/* Matrices of blocks laid out for the integer kernels (kernels/panel.h). */
#ifndef Q35_PACK_H
#define Q35_PACK_H

#include "kernels/kernels.h"
#include "threads.h"
#include "weights.h"

/* Whether matrices of this type are packed. The others, codebook formats, would grow by it: their
   panels are made anew whenever they are multiplied. */
int q35_packable(q35_dtype dtype);

/* Bytes that a matrix of a packable type takes when packed. */
size_t q35_packed_bytes(const q35_matrix *w);

/* Packs all rows into `packed`. Nonzero when the team was cancelled. */
int q35_pack(q35_team *team, const q35_matrix *w, uint8_t *packed);

/* Puts 32 stored codes of a row among those of its panel (kernels/panel.h). */
void q35_put_codes(uint8_t *x, const uint8_t *stored, size_t bits, size_t row);

/* The records of the p-th 16 rows of a packed matrix from column k on, a multiple of the block. */
const uint8_t *q35_packed_at(const q35_matrix *w, size_t p, size_t k);

/* As q35_matrix_read, from a packed matrix; the same bits. */
void q35_packed_read(float *y, const q35_matrix *w, size_t row, size_t col, size_t n);

/* Columns k .. k + n of the p-th 16 rows of a matrix of any block type, from its rows; n at most
   Q35_PIECE, k and n multiples of the block. */
void q35_panel_read(q35_panel *panel, const q35_matrix *w, size_t p, size_t k, size_t n);

#endif
