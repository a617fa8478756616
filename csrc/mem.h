/* Aligned memory whose sizes cannot wrap. */
#ifndef Q35_MEM_H
#define Q35_MEM_H

#include <stddef.h>

#include "status.h"

#define Q35_ALIGN 64 /* one cache line, one AVX-512 register */

/* count x size bytes, zeroed, 64-byte aligned; NULL with Q35_MEMORY when they cannot be had. */
void *q35_alloc(size_t count, size_t size, const char *what, qwen35_status *status);
void q35_free(void *memory);

/* One of the buffers that lie side by side in one block of memory. */
typedef struct q35_buffer {
    void *pointer; /* the address of a pointer, whatever it points to */
    size_t floats; /* 0: none, and the pointer becomes NULL */
} q35_buffer;

/* Points every part at its place in `memory`, on a cache line of its own; with NULL sets none.
   Returns the floats that all of them take. */
size_t q35_lay_out(const q35_buffer *parts, size_t n, float *memory);

/* Tells the system that these bytes of a mapped file are not needed in memory for now. */
void q35_let_go(const void *mapped, size_t bytes);

#endif
