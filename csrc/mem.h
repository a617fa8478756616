/* Aligned memory whose sizes cannot wrap. */
#ifndef Q35_MEM_H
#define Q35_MEM_H

#include <stddef.h>

#include "status.h"

#define Q35_ALIGN 64 /* one cache line, one AVX-512 register */

/* count x size bytes, zeroed, 64-byte aligned; NULL with Q35_MEMORY when they cannot be had. */
void *q35_alloc(size_t count, size_t size, const char *what, qwen35_status *status);
void q35_free(void *memory);

/* Tells the system that these bytes of a mapped file are not needed in memory for now. */
void q35_let_go(const void *mapped, size_t bytes);

#endif
