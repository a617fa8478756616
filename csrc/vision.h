/* The vision tower (transformers models/qwen3_5, Qwen3_5VisionModel). */
#ifndef Q35_VISION_H
#define Q35_VISION_H

#include "qwen35.h"
#include "threads.h"
#include "weights.h"

/* The relations that the tower's loops rely on. */
int q35_vision_check(const qwen35_vision_geometry *geometry, qwen35_status *status);

/* pixels [grid[0] grid[1] grid[2], patch floats] -> features [tokens, ldf]: of every token D floats
   of the text model for its embedding, then D for each DeepStack layer. Memory for one frame is
   taken for the call. Q35_CANCELLED when the team was stopped. */
int q35_vision_encode(q35_team *team, const qwen35_vision_geometry *geometry,
                      const q35_vision_weights *weights, const float *pixels, const size_t grid[3],
                      float *features, size_t ldf, qwen35_status *status);

#endif
