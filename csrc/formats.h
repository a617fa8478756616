/* Storage types of weights and of the K/V cache. */
#ifndef Q35_FORMATS_H
#define Q35_FORMATS_H

#include <stddef.h>

typedef enum q35_dtype { Q35_F32 = 0, Q35_F16 = 1, Q35_BF16 = 2, Q35_DTYPES = 3 } q35_dtype;

static inline size_t q35_dtype_bytes(q35_dtype dtype) { return dtype == Q35_F32 ? 4 : 2; }

#endif
