/* What this processor and operating system can run. */
#ifndef Q35_CPU_H
#define Q35_CPU_H

typedef struct q35_cpu {
    int avx2;       /* AVX2, FMA and F16C, and the system saves ymm */
    int avxvnni;    /* VNNI in the encoding of AVX2 */
    int avx512;     /* AVX-512 F, BW, VL, DQ, and the system saves zmm */
    int avx512vnni; /* AVX-512 as above with VNNI */
    int avx512bf16; /* AVX-512 as above with BF16 */
    int neon;       /* Advanced SIMD */
    int dotprod;    /* and its products of bytes */
} q35_cpu;

void q35_cpu_detect(q35_cpu *cpu);

#endif
