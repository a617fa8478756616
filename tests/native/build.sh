#!/usr/bin/env bash
# Builds tests/native/driver.c with what it needs of csrc, for whatever processor the compiler is for.
#   bash tests/native/build.sh COMPILER OUTPUT [FLAG ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
compiler=$1 output=$2
shift 2
needed="trial screen linear fixed pack weights formats formats_iq mem status cpu threads"
objects=$(mktemp -d)
trap 'rm -r "$objects"' EXIT
# shellcheck disable=SC2016,SC2086
printf '%s\n' csrc/kernels/*.c tests/native/driver.c $(printf 'csrc/%s.c ' $needed) |
    xargs -P "$(nproc)" -I{} sh -c '"$@" -c {} -o "$0/$(basename {}).o"' "$objects" \
        $compiler -std=c11 -D_GNU_SOURCE -O3 -pthread -fno-math-errno -fno-trapping-math "$@"
$compiler -pthread "$@" -o "$output" "$objects"/*.o -lm
