#!/usr/bin/env bash
# Builds tests/native/driver.c with what it needs of csrc, for whatever processor the compiler is for.
#   bash tests/native/build.sh COMPILER OUTPUT [FLAG ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
compiler=$1 output=$2
shift 2
needed="trial screen linear fixed pack weights formats formats_iq mem status cpu threads"
# shellcheck disable=SC2086
$compiler -std=c11 -D_GNU_SOURCE -O3 -pthread -fno-math-errno -fno-trapping-math "$@" -o "$output" \
    tests/native/driver.c $(printf 'csrc/%s.c ' $needed) csrc/kernels/*.c -lm
