/* cpu.c: processor features, as the compiler's run-time library reads them (CPUID and XGETBV), or
 * as the system tells them (ARM). */
#include "cpu.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>

/* Not every compiler's run-time library knows these bits by name. */
static int has_f16c(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
static int has_avxvnni(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

#define ASIMD (1ul << 1) /* HWCAP_ of asm/hwcap.h, which is the kernel's */
#define ASIMDDP (1ul << 20)
#endif

void q35_cpu_detect(q35_cpu *cpu) {
    memset(cpu, 0, sizeof *cpu);
#if defined(__x86_64__)
    __builtin_cpu_init();
    cpu->avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    cpu->avxvnni = cpu->avx2 && has_avxvnni();
    cpu->avx512 = cpu->avx2 && __builtin_cpu_supports("avx512f") &&
                  __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512dq");
    cpu->avx512vnni = cpu->avx512 && __builtin_cpu_supports("avx512vnni");
    cpu->avx512bf16 = cpu->avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef Q35_TEST_EMULATED
    cpu->avxvnni = cpu->avx512 = cpu->avx512vnni = cpu->avx2;
#endif
#ifdef Q35_TEST_AVXVNNI
    cpu->avxvnni = cpu->avx512vnni; /* avx2.c is encoded for it then */
#endif
#elif defined(__aarch64__) && defined(__linux__)
    unsigned long features = getauxval(AT_HWCAP);
    cpu->neon = (features & ASIMD) != 0;
    cpu->dotprod = (features & ASIMDDP) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    cpu->neon = cpu->dotprod = 1; /* every Mac with such a processor has both */
#endif
}
