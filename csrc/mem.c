/* mem.c: zeroed, cache-line aligned blocks. Fresh pages are zero already: calloc does not touch
 * them. */
#include "mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Blocks this large are asked for in huge pages: a forward call walks all of its scratch once a
   layer, and with small pages it waits for address translation. */
#define HUGE_BYTES ((size_t)8 << 20)
#define PAGE_BYTES ((uintptr_t)4096)

/* About the whole pages within; a wish: refused, nothing is lost. */
static void advise(const void *block, size_t bytes, int advice) {
    uintptr_t start = ((uintptr_t)block + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
    uintptr_t end = ((uintptr_t)block + bytes) & ~(PAGE_BYTES - 1);
    if (end > start) madvise((void *)start, end - start, advice);
}

static void want_huge_pages(void *block, size_t bytes) {
#ifdef MADV_HUGEPAGE
    advise(block, bytes, MADV_HUGEPAGE);
#else
    (void)block, (void)bytes;
#endif
}

void q35_let_go(const void *mapped, size_t bytes) { advise(mapped, bytes, MADV_DONTNEED); }

void *q35_alloc(size_t count, size_t size, const char *what, qwen35_status *status) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX - 2 * Q35_ALIGN) {
        q35_fail(status, Q35_MEMORY, "%s: %zu x %zu bytes is more than an address can hold", what,
                 count, size);
        return NULL;
    }
    /* The block's own address is kept in the word before the aligned one. */
    size_t padded = bytes + Q35_ALIGN + sizeof(void *);
    void *block = calloc(1, padded);
    if (!block) {
        q35_fail(status, Q35_MEMORY, "%s: no memory for %zu bytes", what, bytes);
        return NULL;
    }
    if (padded >= HUGE_BYTES) want_huge_pages(block, padded);
    uintptr_t start =
        ((uintptr_t)block + sizeof(void *) + Q35_ALIGN - 1) & ~(uintptr_t)(Q35_ALIGN - 1);
    ((void **)start)[-1] = block;
    return (void *)start;
}

size_t q35_lay_out(const q35_buffer *parts, size_t n, float *memory) {
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        void *start = memory && parts[i].floats ? memory + used : NULL;
        if (memory) memcpy(parts[i].pointer, &start, sizeof start);
        used += (parts[i].floats + 15) / 16 * 16;
    }
    return used;
}

void q35_free(void *memory) {
    if (memory) free(((void **)memory)[-1]);
}
