/* trial.c: a kernel's name -> the target's table -> the call; blocks -> panels -> the product. No
 * model asks for it, and it checks shapes no further than memory needs. */
#include "trial.h"

#include <string.h>

#include "linear.h"
#include "mem.h"
#include "pack.h"

static const q35_kernels *find(const char *target, qwen35_status *status) {
    const q35_kernels *tables[Q35_MAX_TARGETS];
    size_t n = q35_kernels_available(tables);
    for (size_t i = 0; i < n; i++)
        if (strcmp(tables[i]->name, target) == 0) return tables[i];
    q35_fail(status, Q35_ARGUMENT, "this machine has no target '%s'", target);
    return NULL;
}

int q35_try_kernel(const char *target, const char *name, const q35_rows *a, size_t *n,
                   const double *number, double *result, qwen35_status *status) {
    const q35_kernels *k = find(target, status);
    if (!k) return status->code;
    const size_t given = *n;
    *n = 0;
#define IS(text, count) (strcmp(name, text) == 0 && given == (count))
    if (IS("expand", 2)) {
        k->expand[a[1].dtype](a[0].data, a[1].data, a[1].cols);
    } else if (IS("narrow", 2)) {
        k->narrow[a[0].dtype](a[0].data, a[1].data, a[1].cols);
    } else if (IS("dot", 3)) {
        k->dot[a[1].dtype](a[0].data, a[0].stride, a[1].data, a[1].stride, a[2].data, a[2].stride,
                           a[1].rows, a[2].rows, a[1].cols, number[0] != 0);
    } else if (IS("mix", 3)) {
        k->mix[a[2].dtype](a[0].data, a[0].stride, a[1].data, a[1].stride, a[2].data, a[2].stride,
                           a[1].rows, a[2].rows, a[2].cols);
    } else if (IS("fix", 3)) {
        k->fix(a[0].data, a[1].data, a[2].data, a[2].cols);
    } else if (IS("pack_fixed", 3) && k->pack_fixed) {
        k->pack_fixed(a[0].data, a[1].data, a[2].dtype, a[2].data, a[2].stride, a[2].rows,
                      a[2].cols);
    } else if (IS("dot_fixed", 5) && k->dot_fixed) {
        k->dot_fixed(a[0].data, a[1].data, a[2].data, a[3].data, a[4].data, a[0].rows,
                     (size_t)number[0]);
    } else if (IS("dot_stored", 4) && k->dot_stored) {
        k->dot_stored(a[0].data, a[0].stride, a[1].dtype, a[1].data, a[1].stride, a[2].data,
                      a[3].data, a[3].cols, a[1].rows, a[0].rows, a[1].cols, number[0] != 0);
    } else if (IS("fix_all", 2)) {
        result[0] = k->fix_all(a[0].data, a[1].data, a[1].cols, (float)number[0]);
        *n = 1;
    } else if (IS("dot_pairs", 5)) {
        k->dot_pairs(a[0].data, a[0].stride, a[1].data, a[1].cols / 2, a[4].data, a[2].data,
                     a[2].stride, a[3].data, a[2].rows, a[1].rows, number[0] != 0);
    } else if (IS("dot_pairs", 4)) {
        k->dot_pairs(a[0].data, a[0].stride, a[1].data, a[1].cols / 2, NULL, a[2].data, a[2].stride,
                     a[3].data, a[2].rows, a[1].rows, number[0] != 0);
    } else if (IS("delta", 7)) {
        if (a[1].cols > Q35_DELTA_COLS || a[1].stride != a[1].cols || a[2].stride != a[3].stride)
            return q35_fail(
                status, Q35_ARGUMENT,
                "delta: state is [Dk, cols <= %d] without gaps, q and k have one stride",
                Q35_DELTA_COLS);
        k->delta(a[0].data, a[0].stride, a[1].data, a[2].data, a[3].data, a[2].stride, a[4].data,
                 a[4].stride, a[5].data, a[6].data, a[2].rows, a[1].rows, a[1].cols);
    } else if (IS("rms_norm", 3)) {
        k->rms_norm(a[0].data, a[1].data, a[2].data, (float)number[0], a[1].cols);
    } else if (IS("layer_norm", 4)) {
        k->layer_norm(a[0].data, a[1].data, a[2].data, a[3].data, (float)number[0], a[1].cols);
    } else if (IS("gelu_bias", 2)) {
        k->gelu_bias(a[0].data, a[1].data, a[0].cols);
    } else if (IS("add", 2)) {
        k->add(a[0].data, a[1].data, a[0].cols);
    } else if (IS("l2_norm", 1)) {
        k->l2_norm(a[0].data, (float)number[0], a[0].cols);
    } else if (IS("silu_mul", 3)) {
        k->silu_mul(a[0].data, a[1].data, a[2].data, a[1].cols);
    } else if (IS("sigmoid_mul", 3)) {
        k->sigmoid_mul(a[0].data, a[1].data, a[2].data, a[1].cols);
    } else if (IS("conv_silu", 3)) {
        const float *taps[Q35_MAX_TAPS];
        if (a[1].rows > Q35_MAX_TAPS)
            return q35_fail(status, Q35_ARGUMENT, "conv_silu: %zu taps, at most %d", a[1].rows,
                            Q35_MAX_TAPS);
        for (size_t i = 0; i < a[1].rows; i++) taps[i] = (const float *)a[1].data + i * a[1].stride;
        k->conv_silu(a[0].data, taps, a[2].data, a[2].stride, a[1].rows, a[1].cols);
    } else if (IS("softmax_step", 1)) {
        float sum;
        result[0] = k->softmax_step(a[0].data, a[0].cols, (float)number[0], &sum);
        result[1] = sum;
        *n = 2;
    } else if (IS("weigh", 4)) {
        float sum;
        result[0] = k->weigh(a[0].data, a[1].data, a[2].data, a[3].data, (size_t)number[0],
                             a[2].cols, (float)number[1], (float)number[2], &sum);
        result[1] = sum;
        *n = 2;
    } else if (IS("scale", 1)) {
        k->scale(a[0].data, (float)number[0], a[0].cols);
    } else if (IS("exp", 2)) {
        k->exp(a[0].data, a[1].data, a[1].cols);
    } else {
        return q35_fail(status, Q35_ARGUMENT, "no kernel '%s' of %zu arrays", name, given);
    }
#undef IS
    return Q35_OK;
}

/* With the target's kernels in place of the process's own. */
int q35_try_product(const char *target, q35_matrix *w, const float *x, float *y, size_t T,
                    int packed, int add, int threads, double *seconds, int repeat,
                    qwen35_status *status) {
    if (!find(target, status)) return status->code;
    const char *own = q35_kernel->name;
    q35_kernels_select(target);
    q35_team team;
    q35_pool *pool = q35_pool_new(threads, status);
    q35_team_init(&team, pool, NULL, NULL);
    uint8_t *bytes = NULL;
    float *memory = q35_alloc(q35_linear_floats(w->cols, T, threads, 1), 4, "scratch", status);
    if (packed && q35_packable(w->dtype)) {
        bytes = q35_alloc(q35_packed_bytes(w), 1, "packed weights", status);
        if (bytes) q35_pack(&team, w, bytes);
        w->packed = bytes;
    }
    q35_product product = {w, y, w->rows};
    for (int i = 0; i < repeat && !status->code; i++) {
        const double start = q35_monotonic_s();
        q35_linear(&team, &product, 1, x, w->cols, T, add, memory);
        seconds[i] = q35_monotonic_s() - start;
    }
    q35_pool_free(pool);
    q35_free(bytes);
    q35_free(memory);
    q35_kernels_select(own);
    return status->code;
}

int q35_try_screen(const char *target, const q35_matrix *head, const float *h,
                   const q35_screening *wanted, q35_screen_trial *y, qwen35_status *status) {
    if (!find(target, status)) return status->code;
    const size_t V = head->rows, D = head->cols;
    const char *own = q35_kernel->name;
    q35_kernels_select(target);
    q35_team team;
    q35_team_init(&team, NULL, NULL, NULL);
    q35_screen *screen = q35_screen_new(head, status);
    float *memory = q35_alloc(q35_linear_floats(D, 1, 1, 1), 4, "scratch", status);
    if (!status->code) {
        while (!q35_screen_ready(screen, &team)) continue;
        q35_product product = {head, y->logits, V};
        q35_linear(&team, &product, 1, h, D, 1, 0, memory);
        q35_screen_multiply(screen, &team, y->approx, h, 1, memory);
        memcpy(y->reach, screen->reach, V * sizeof *y->reach);
        memcpy(y->chosen, y->approx, V * sizeof *y->chosen);
        y->found = q35_screen_find(screen, y->rows, y->chosen, V, h, wanted);
        q35_screen_logits(screen, y->chosen, y->rows, y->found, h);
    }
    q35_screen_free(screen);
    q35_free(memory);
    q35_kernels_select(own);
    return status->code;
}
