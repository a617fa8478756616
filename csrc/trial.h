/* trial.h: one kernel or one product of a target by name, on whatever arrays, for tests: what
 * py/testing.c and tests/native/driver.c share. */
#ifndef Q35_TRIAL_H
#define Q35_TRIAL_H

#include "kernels/kernels.h"
#include "screen.h"
#include "status.h"
#include "weights.h"

/* One argument as the kernels see it. */
typedef struct q35_rows {
    void *data;
    size_t rows, cols, stride; /* stride in elements */
    q35_dtype dtype;
} q35_rows;

#define Q35_TRIAL_ARRAYS 8
#define Q35_TRIAL_NUMBERS 3

/* Arrays, numbers and outputs stand in py/testing.c. result [2] is what softmax_step returns; *n
   counts the arrays and becomes the number of results. Returns the status' code. */
int q35_try_kernel(const char *target, const char *name, const q35_rows *a, size_t *n,
                   const double *number, double *result, qwen35_status *status);

/* y [T, rows] = (add ? y : 0) + x [T, cols] W^T, packed beforehand where the type is packable and
   `packed` is set. `repeat` times, and what each took without packing: seconds [repeat]. */
int q35_try_product(const char *target, q35_matrix *w, const float *x, float *y, size_t T,
                    int packed, int add, int threads, double *seconds, int repeat,
                    qwen35_status *status);

/* What a screen of a head [V, D], made whole, makes of h [D]. */
typedef struct q35_screen_trial {
    float *approx, *reach; /* [V] */
    float *logits;         /* [V] those of the head itself */
    int32_t *rows;         /* [V / 16] */
    float *chosen;         /* [V] logits of those rows */
    size_t found;          /* their number */
} q35_screen_trial;

int q35_try_screen(const char *target, const q35_matrix *head, const float *h,
                   const q35_screening *wanted, q35_screen_trial *y, qwen35_status *status);

#endif
