/* Draws of one session or many, for batch.c. */
#ifndef Q35_DRAW_H
#define Q35_DRAW_H

#include "session.h"

/* n draws, QWEN35_MAX_BATCH at most, of sessions of this model. rows [n, V] is overwritten; NULL
   will do for one of them. */
int q35_draw(qwen35_model *model, float *rows, qwen35_draw *draws, size_t n,
             const qwen35_watch *watch, qwen35_status *status);

#endif
