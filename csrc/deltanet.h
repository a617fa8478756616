/* Gated DeltaNet (arXiv 2412.06464; transformers models/qwen3_5, Qwen3_5GatedDeltaNet). */
#ifndef Q35_DELTANET_H
#define Q35_DELTANET_H

#include "scratch.h"
#include "span.h"
#include "threads.h"
#include "weights.h"

/* h [T, D] -> x [outputs, D] += mixer(h) for the n-th DeltaNet layer. The recurrent matrices and
   convolution tails of the spans' caches move on. Overwrites proj, mix, gates. Nonzero when
   cancelled: then state and tails are half done. */
int q35_deltanet(q35_team *team, const qwen35_geometry *geometry, const q35_layer *layer,
                 const q35_batch *batch, size_t n, q35_scratch *scratch);

/* Per-worker floats that q35_deltanet needs. */
size_t q35_deltanet_worker_floats(const qwen35_geometry *geometry);

#endif
