/* SwiGLU: x += W_down (silu(W_gate h) * (W_up h)) */
#ifndef Q35_MLP_H
#define Q35_MLP_H

#include "scratch.h"
#include "threads.h"
#include "weights.h"

/* h [T, D] -> x [T, D] += ...; overwrites proj. Nonzero when cancelled. */
int q35_mlp(q35_team *team, const qwen35_geometry *geometry, const q35_layer *layer,
            q35_scratch *scratch, size_t T);

#endif
