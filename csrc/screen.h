/* screen.h: which rows of a head can have one of the largest logits, without reading all of it.
 *
 * A copy of the head in six bits gives an approximate logit of every row, and each row has its own
 * bound on the error: those whose upper end is below the k-th largest lower end are not among the
 * first k. The few that are left are multiplied as the head multiplies them, so that what is chosen
 * is chosen by the same bits. */
#ifndef Q35_SCREEN_H
#define Q35_SCREEN_H

#include <pthread.h>

#include "threads.h"
#include "weights.h"

typedef struct q35_screen {
    const q35_matrix *head;
    q35_matrix copy;             /* q6_0, packed */
    float *reach;                /* [V] |logit - approximate one| <= reach |h| */
    atomic_size_t panels;        /* of the copy that are made */
    pthread_mutex_t making;      /* held by who makes more */
    atomic_size_t chosen, given; /* draws that it decided, and that it gave to the whole head */
} q35_screen;

/* Whether a head can have one: plain numbers in whole groups of 32. Of blocks no copy is made: one
   of q8_0 would read a fifth less for a quarter more memory, and smaller types gain nothing. */
int q35_screenable(const q35_matrix *head);
size_t q35_screen_bytes(size_t V, size_t D);

/* With memory for the copy, not touched yet; NULL with a status. It borrows the head. */
q35_screen *q35_screen_new(const q35_matrix *head, qwen35_status *status);
void q35_screen_free(q35_screen *screen);

/* Whether the copy is there. Where it is not a part of it is made, so that no one token waits for
   all of it. Any thread may call. */
int q35_screen_ready(q35_screen *screen, q35_team *team);

/* approx [T, V] = products of the copy and h [T, D]; memory as q35_linear's. Nonzero: cancelled. */
int q35_screen_multiply(const q35_screen *screen, q35_team *team, float *approx, const float *h,
                        size_t T, float *memory);

#define Q35_SCREEN_TOP 64 /* the largest k */

/* Which rows are wanted: those that can be among the first k of all but `always`, or come so near
   the k-th; and `always`, in which an id may stand twice. */
typedef struct q35_screening {
    size_t k;
    float margin;
    const int32_t *always; /* [n_always] */
    size_t n_always;
} q35_screening;

/* The most rows that are found; beyond them the head is read as fast. */
size_t q35_screen_limit(size_t V);
/* rows [limit], ascending, and their number; 0 where they are more, or something is not a number.
   approx [V] are products with h
   [D], and those of rows of `always` are overwritten. Without a screen they are logits. */
size_t q35_screen_find(const q35_screen *screen, int32_t *rows, float *approx, size_t V,
                       const float *h, const q35_screening *wanted);

/* logits [n] of those rows, with the bits that the whole head gives. */
void q35_screen_logits(const q35_screen *screen, float *logits, const int32_t *rows, size_t n,
                       const float *h);

#endif
