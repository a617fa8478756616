/* cache.c: who owns which page. Data flow: reserve -> layers write -> position moves; copy shares
 * what was written. */
#include "cache.h"

#include <string.h>

#include "mem.h"

void q35_cache_shape_init(q35_cache_shape *shape, const qwen35_geometry *g, q35_dtype kv_dtype) {
    memset(shape, 0, sizeof *shape);
    shape->kv_dtype = kv_dtype;
    shape->Hkv = g->Hkv;
    shape->Dh = g->Dh;
    for (size_t l = 0; l < g->L; l++)
        if (g->kinds[l] == QWEN35_FULL) shape->n_full++;
    shape->n_linear = g->L - shape->n_full;
    shape->head_bytes = q35_kv_bytes(kv_dtype, g->Dh);
    shape->page_bytes = shape->n_full * 2 * g->Hkv * shape->head_bytes;
    shape->state_floats = g->Hv * g->Dk * g->Dv;
    shape->conv_floats = (g->K - 1) * (2 * g->Hk * g->Dk + g->Hv * g->Dv);
}

size_t q35_cache_state_floats(const q35_cache_shape *s) {
    return s->n_linear * (s->state_floats + s->conv_floats);
}

int q35_cache_init(q35_cache *cache, const q35_cache_shape *shape, qwen35_status *status) {
    memset(cache, 0, sizeof *cache);
    cache->shape = shape;
    cache->state =
        q35_alloc(q35_cache_state_floats(shape) + 1, sizeof(float), "recurrent state", status);
    return cache->state ? Q35_OK : status->code;
}

static q35_page *page_new(const q35_cache_shape *shape, qwen35_status *status) {
    q35_page *page = q35_alloc(1, sizeof *page + shape->page_bytes, "K/V page", status);
    if (page) atomic_init(&page->references, 1);
    return page;
}

static void page_release(q35_page *page) {
    if (atomic_fetch_sub(&page->references, 1) == 1) q35_free(page);
}

static void drop_pages(q35_cache *cache) {
    for (size_t i = 0; i < cache->n_pages; i++) page_release(cache->pages[i]);
    cache->n_pages = 0;
}

void q35_cache_free(q35_cache *cache) {
    drop_pages(cache);
    q35_free(cache->pages);
    q35_free(cache->state);
    memset(cache, 0, sizeof *cache);
}

void q35_cache_clear(q35_cache *cache) {
    drop_pages(cache);
    memset(cache->state, 0, q35_cache_state_floats(cache->shape) * sizeof(float));
    cache->position = 0;
    cache->rope_next = 0;
}

/* Room for n page pointers, doubling so that a long timeline grows in few steps. */
static int grow_table(q35_cache *cache, size_t n, qwen35_status *status) {
    if (n <= cache->page_capacity) return Q35_OK;
    size_t capacity = cache->page_capacity * 2 > n ? cache->page_capacity * 2 : n;
    q35_page **pages = q35_alloc(capacity, sizeof *pages, "K/V page table", status);
    if (!pages) return status->code;
    if (cache->n_pages) memcpy(pages, cache->pages, cache->n_pages * sizeof *pages);
    q35_free(cache->pages);
    cache->pages = pages;
    cache->page_capacity = capacity;
    return Q35_OK;
}

int q35_cache_reserve(q35_cache *cache, size_t T, qwen35_status *status) {
    if (T == 0) return Q35_OK;
    size_t first = cache->position / Q35_PAGE, last = (cache->position + T - 1) / Q35_PAGE;
    if (grow_table(cache, last + 1, status)) return status->code;
    for (size_t i = first; i <= last; i++) {
        if (i < cache->n_pages && atomic_load(&cache->pages[i]->references) == 1) continue;
        q35_page *page = page_new(cache->shape, status);
        if (!page) return status->code;
        if (i < cache->n_pages) {
            if (cache->position > i * Q35_PAGE) /* the timeline has positions in it: keep them */
                memcpy(page->data, cache->pages[i]->data, cache->shape->page_bytes);
            page_release(cache->pages[i]);
        } else {
            cache->n_pages = i + 1;
        }
        cache->pages[i] = page;
    }
    return Q35_OK;
}

int q35_cache_copy(q35_cache *to, const q35_cache *from, qwen35_status *status) {
    size_t used = (from->position + Q35_PAGE - 1) / Q35_PAGE;
    if (grow_table(to, used, status)) return status->code;
    for (size_t i = 0; i < used; i++) atomic_fetch_add(&from->pages[i]->references, 1);
    drop_pages(to);
    if (used) memcpy(to->pages, from->pages, used * sizeof *to->pages);
    to->n_pages = used;
    memcpy(to->state, from->state, q35_cache_state_floats(from->shape) * sizeof(float));
    to->position = from->position;
    to->rope_next = from->rope_next;
    return Q35_OK;
}

size_t q35_cache_bytes(const q35_cache *cache) {
    return q35_cache_state_floats(cache->shape) * sizeof(float) +
           cache->n_pages * (sizeof(q35_page) + cache->shape->page_bytes);
}
