/* mem.c: zeroed, cache-line aligned blocks. Large ones come from the system untouched (lazily
 * zero). */
#include "mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Above this the C library serves fresh zero pages, which memset would only fault in for nothing.
 */
#define LAZY_BYTES ((size_t)64 << 20)

void *q35_alloc(size_t count, size_t size, const char *what, qwen35_status *status) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX - 2 * Q35_ALIGN) {
        q35_fail(status, Q35_MEMORY, "%s: %zu x %zu bytes is more than an address can hold", what,
                 count, size);
        return NULL;
    }
    /* The block's own address is kept in the word before the aligned one. */
    size_t padded = bytes + Q35_ALIGN + sizeof(void *);
    void *block = padded >= LAZY_BYTES ? calloc(1, padded) : malloc(padded);
    if (!block) {
        q35_fail(status, Q35_MEMORY, "%s: no memory for %zu bytes", what, bytes);
        return NULL;
    }
    uintptr_t start =
        ((uintptr_t)block + sizeof(void *) + Q35_ALIGN - 1) & ~(uintptr_t)(Q35_ALIGN - 1);
    ((void **)start)[-1] = block;
    if (padded < LAZY_BYTES) memset((void *)start, 0, bytes);
    return (void *)start;
}

void q35_free(void *memory) {
    if (memory) free(((void **)memory)[-1]);
}
