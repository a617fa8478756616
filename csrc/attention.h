/* Gated attention (transformers models/qwen3_5, Qwen3_5Attention). */
#ifndef Q35_ATTENTION_H
#define Q35_ATTENTION_H

#include "scratch.h"
#include "span.h"
#include "threads.h"
#include "weights.h"

/* h [T, D] -> x [outputs, D] += mixer(h) for the n-th attention layer. K and V of all T tokens are
   written to the pages behind their cache's position (reserved by the caller); the position itself
   is moved by the caller. Overwrites h, proj and mix. Nonzero when cancelled. */
int q35_attention(q35_team *team, const qwen35_geometry *geometry, const q35_layer *layer,
                  const q35_batch *batch, size_t n, q35_scratch *scratch);

#endif
