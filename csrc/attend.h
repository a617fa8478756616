/* Softmax attention over the K/V pages: the part of a layer between its projections. */
#ifndef Q35_ATTEND_H
#define Q35_ATTEND_H

#include "scratch.h"
#include "span.h"
#include "threads.h"

/* For every output of the batch and every query head h of it
 *   mix[out, h] = sigmoid(gate) softmax(q k^T / sqrt(Dh)) v
 * over the positions up to its own of the n-th attention layer, whose K and V are there. Query and
 * gate stand in s->proj, [outputs, ld]: Dh of either for each head. */
int q35_attend(q35_team *team, const qwen35_geometry *g, const q35_batch *batch, size_t n,
               q35_scratch *s, size_t ld);

/* Floats of scratch: of each worker, and of all together. */
size_t q35_attend_worker_floats(const qwen35_geometry *g);
size_t q35_attend_floats(const qwen35_geometry *g);

#endif
