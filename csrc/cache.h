/* Per-layer state of one timeline: K/V pages, convolution tails, recurrent matrices.
 *
 * K/V lie in pages of Q35_PAGE positions over all attention layers, counted by reference: a
 * snapshot or fork shares them, and a page is copied only when a timeline writes into one that it
 * shares. */
#ifndef Q35_CACHE_H
#define Q35_CACHE_H

#include <stdatomic.h>

#include "kv.h"
#include "qwen35.h"

typedef struct q35_page {
    atomic_size_t references;
    _Alignas(64) unsigned char data[]; /* [attention layer][K, V][Hkv], each as kv.h says */
} q35_page;

/* Sizes that all caches of one model share. */
typedef struct q35_cache_shape {
    q35_dtype kv_dtype;
    size_t Hkv, Dh, page_bytes;
    size_t head_bytes;                /* of one head of one layer in one page */
    size_t state_floats, conv_floats; /* of one DeltaNet layer */
    size_t n_full, n_linear;
} q35_cache_shape;

typedef struct q35_cache {
    const q35_cache_shape *shape;
    q35_page **pages; /* [n_pages] */
    size_t n_pages, page_capacity;
    float *state;      /* [n_linear][Hv][column block][Dk][cols], see kernels.h; then [n_linear][K -
                          1][C] conv tails */
    size_t position;   /* tokens in the timeline */
    int32_t rope_next; /* rotary position of the next text token */
} q35_cache;

void q35_cache_shape_init(q35_cache_shape *shape, const qwen35_geometry *geometry,
                          q35_dtype kv_dtype);
int q35_cache_init(q35_cache *cache, const q35_cache_shape *shape, qwen35_status *status);
void q35_cache_free(q35_cache *cache);
/* Back to the start: no positions, no state, no pages. */
void q35_cache_clear(q35_cache *cache);

/* Makes room for T more positions: afterwards the pages behind them are there and unshared. */
int q35_cache_reserve(q35_cache *cache, size_t T, qwen35_status *status);
/* Makes `to` (initialised) the same point in time as `from`: shares pages, copies state. */
int q35_cache_copy(q35_cache *to, const q35_cache *from, qwen35_status *status);

size_t q35_cache_state_floats(const q35_cache_shape *shape); /* state and tails of all layers */
size_t q35_cache_bytes(const q35_cache *cache);

/* Recurrent state of the n-th DeltaNet layer, and its convolution tail [K - 1, C]. */
static inline float *q35_cache_state(const q35_cache *cache, size_t n) {
    return cache->state + n * cache->shape->state_floats;
}
static inline float *q35_cache_conv(const q35_cache *cache, size_t n) {
    const q35_cache_shape *s = cache->shape;
    return cache->state + s->n_linear * s->state_floats + n * s->conv_floats;
}
/* K (which = 0) or V (1) of one head in the n-th attention layer, of one page. */
static inline void *q35_cache_kv(const q35_cache *cache, size_t page, size_t n, int which,
                                 size_t head) {
    const q35_cache_shape *s = cache->shape;
    return cache->pages[page]->data + ((2 * n + (size_t)which) * s->Hkv + head) * s->head_bytes;
}

#endif
