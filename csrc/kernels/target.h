/* target.h: compile what stands between the two marks for an instruction set that the rest of the
 * file, and the machine that builds it, need not have. Include every system header before
 * TARGET_BEGIN. */
#ifndef Q35_TARGET_H
#define Q35_TARGET_H

#define Q35_PRAGMA(x) _Pragma(#x)
#if defined(Q35_TEST_EMULATED) /* tests/native/emulated/immintrin.h: needs nothing more */
#define TARGET_BEGIN(features)
#define TARGET_END
#elif defined(__clang__)
#define TARGET_BEGIN(features) \
    Q35_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_BEGIN(features) _Pragma("GCC push_options") Q35_PRAGMA(GCC target(features))
#define TARGET_END _Pragma("GCC pop_options")
#endif

/* Compilers hold the vector in a register here. Between sums it makes them add up in the order that
 * is written: the one they would choose takes more registers than there are. */
#ifdef Q35_TEST_EMULATED
#define IN_REGISTER(v) ((void)0)
#else
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#endif

/* Whether the compiler knows AVX-VNNI. */
#if defined(__clang__)
#define Q35_AVXVNNI (__clang_major__ >= 12)
#else
#define Q35_AVXVNNI (__GNUC__ >= 11)
#endif

#endif
