/* Gated DeltaNet (arXiv 2412.06464; transformers models/qwen3_5, Qwen3_5GatedDeltaNet). */
#ifndef Q35_DELTANET_H
#define Q35_DELTANET_H

#include "cache.h"
#include "scratch.h"
#include "threads.h"
#include "weights.h"

/* h [T, D] -> x [T, D] += mixer(h) for tokens from .. T-1. state: this layer's recurrent matrices,
   tail: its last K - 1 raw columns; both move T tokens on. Overwrites proj, mix, gates. Nonzero
   when cancelled: then state and tail are half done. */
int q35_deltanet(q35_team *team, const qwen35_geometry *geometry, const q35_layer *layer,
                 float *state, float *tail, q35_scratch *scratch, size_t T, size_t from);

/* Per-worker floats that q35_deltanet needs. */
size_t q35_deltanet_worker_floats(const qwen35_geometry *geometry);

#endif
