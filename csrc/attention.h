/* Gated attention (transformers models/qwen3_5, Qwen3_5Attention). */
#ifndef Q35_ATTENTION_H
#define Q35_ATTENTION_H

#include "cache.h"
#include "scratch.h"
#include "threads.h"
#include "weights.h"

/* h [T, D] -> x [T, D] += mixer(h) for the n-th attention layer, tokens from .. T-1. K and V of all
   T tokens are written to the cache's pages behind cache->position (reserved by the caller); the
   position itself is moved by the caller. Overwrites proj and mix. Nonzero when cancelled. */
int q35_attention(q35_team *team, const qwen35_geometry *geometry, const q35_layer *layer,
                  q35_cache *cache, size_t n, q35_scratch *scratch, size_t T, size_t from);

/* Per-worker floats that q35_attention needs. */
size_t q35_attention_worker_floats(const qwen35_geometry *geometry);

#endif
