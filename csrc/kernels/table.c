/* table.c: the ladder of targets. Start from portable C, climb while the processor allows it. */
#include <string.h>

#include "../cpu.h"
#include "kernels.h"
#include "target.h"

extern const q35_kernels q35_kernels_c;
#if defined(__x86_64__)
extern const q35_kernels q35_kernels_avx2;
extern const q35_kernels q35_kernels_avx2vnni;
extern const q35_kernels q35_kernels_avx512;
extern const q35_kernels q35_kernels_avx512vnni;
#elif defined(__aarch64__)
extern const q35_kernels q35_kernels_neon;
extern const q35_kernels q35_kernels_neondotprod;
#endif

const q35_kernels *q35_kernel = &q35_kernels_c;

size_t q35_kernels_available(const q35_kernels *tables[Q35_MAX_TARGETS]) {
    q35_cpu cpu;
    q35_cpu_detect(&cpu);
    size_t n = 0;
    tables[n++] = &q35_kernels_c;
#if defined(__x86_64__)
    if (cpu.avx2) tables[n++] = &q35_kernels_avx2;
#if Q35_AVXVNNI
    if (cpu.avx2 && cpu.avxvnni) tables[n++] = &q35_kernels_avx2vnni;
#endif
    if (cpu.avx512) tables[n++] = &q35_kernels_avx512;
    if (cpu.avx512vnni) tables[n++] = &q35_kernels_avx512vnni;
#elif defined(__aarch64__)
    if (cpu.neon) tables[n++] = &q35_kernels_neon;
    if (cpu.neon && cpu.dotprod) tables[n++] = &q35_kernels_neondotprod;
#endif
    return n;
}

int q35_kernels_select(const char *name) {
    const q35_kernels *tables[Q35_MAX_TARGETS];
    size_t n = q35_kernels_available(tables);
    if (!name) {
        q35_kernel = tables[n - 1];
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        if (strcmp(tables[i]->name, name) == 0) {
            q35_kernel = tables[i];
            return 0;
        }
    }
    return 1;
}
