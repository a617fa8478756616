#!/usr/bin/env python3
"""The product kernels by weight type: a token at a time against the memory's speed, 256 at once
against the processor's.

    python benchmarks/bench_kernels.py [--types q8_0,q4_k] [--threads 1,2] --json kernels.json

Both are timed inside the core, layout of the weights apart. T = 1 runs over a matrix larger than
the caches: GB/s are of weight bytes, "share" is of the measured read bandwidth. T = 256 runs over
one of 4,096 rows: Gop/s count a multiply-add as two, "share" is of the int8 peak for blocks and of
the float32 peak for f32 and bf16. "fine" tokens have 16 bits and take two products of 8, so that
half the peak is theirs. Limits are measured anew in every round, medians of all rounds are shown.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import harness
import numpy as np
from machine_limits import describe, limits
from numpy.typing import NDArray

TYPES = ("q8_0", "q4_0", "q4_k", "q6_k", "bf16", "f32")
DENSE = {"bf16": 2, "f32": 4}
COLUMNS, ROWS, TOKENS = 2048, 4096, 256
TILE = 64  # rows that are encoded; the matrix repeats them
DECODE_BYTES = 256 << 20


def weights(name: str, rows: int | None, nbytes: int = DECODE_BYTES) -> NDArray[np.uint8]:
    """Random weights [rows, bytes of a row] of a type; without rows so many as nbytes hold."""
    from qwen35 import _core

    x = np.random.default_rng(0).standard_normal((TILE, COLUMNS), np.float32)
    if name == "f32":
        tile = x.view(np.uint8)
    elif name == "bf16":
        tile = (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        tile = _core.encode_blocks(name, x)
    wanted = nbytes // tile.shape[1] if rows is None else rows
    return np.tile(tile, (max(1, wanted // TILE), 1))


def best_s(name: str, w: NDArray[np.uint8], tokens: int, repeat: int, **how: Any) -> float:
    """Seconds of the fastest of `repeat` products, after one that is not counted."""
    from qwen35 import _core

    x = np.random.default_rng(1).standard_normal((tokens, COLUMNS), np.float32)
    y = np.zeros((tokens, len(w)), np.float32)
    return min(_core.run_product(_core.cpu()["isa"], name, w, x, y, repeat=repeat + 1, **how)[1:])


def measure(name: str, fine: bool, threads: int, options: argparse.Namespace) -> dict[str, float]:
    """GB/s of one token, Gop/s of many."""
    how: dict[str, Any] = {"fine": fine, "threads": threads}
    large = weights(name, None, options.megabytes << 20)
    alone = best_s(name, large, 1, options.repeat, **how)
    decode = {"decode_GB_per_s": large.nbytes / alone / 1e9}
    decode["decode_Gop_per_s"] = 2 * len(large) * COLUMNS / alone / 1e9
    del large
    many = best_s(name, weights(name, ROWS), TOKENS, options.repeat, **how)
    return decode | {"prefill_Gop_per_s": 2 * ROWS * COLUMNS * TOKENS / many / 1e9}


def row_of(key: tuple[str, bool, int], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a type, and of its shares of what was measured in the same round."""
    name, fine, threads = key
    peak = "float32_Gop_per_s" if name in DENSE else "int8_Gop_per_s"
    mine = [(r["figures"][key], r["limits"][threads]) for r in rounds]
    row: dict[str, Any] = {"type": name, "fine": fine, "threads": threads}
    row |= {what: harness.median(f[what] for f, _ in mine) for what in mine[0][0]}
    row["decode_share"] = harness.median(
        harness.share(f["decode_GB_per_s"], limit["read_GB_per_s"]) for f, limit in mine
    )
    row["prefill_share"] = harness.median(
        harness.share(f["prefill_Gop_per_s"], limit[peak]) for f, limit in mine
    )
    row |= {limit: harness.median(found[limit] for _, found in mine) for limit in mine[0][1]}
    return row


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All types in every round."""
    keys = [
        (name, fine, threads)
        for threads in options.threads
        for name in options.types.split(",")
        for fine in ((False,) if name in DENSE else (False, True))
    ]
    rounds = []
    for index in range(options.rounds):
        found = {threads: limits(threads) for threads in options.threads}
        rounds.append({"limits": found, "figures": {k: measure(*k, options) for k in keys}})
        harness.tell(f"round {index + 1} of {options.rounds}: {found}")
    return [row_of(key, rounds) for key in keys]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument(
        "--threads", type=harness.numbers, default=sorted({1, os.cpu_count() or 1}), metavar="N,N"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=5, help="the fastest of so many counts")
    parser.add_argument("--megabytes", type=int, default=256, help="of weights at T = 1")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    rows = run(options)
    machine = describe(max(options.threads))
    harness.write(options.json, harness.figures("kernels", machine, rows))
    head = ("type", "tokens", "threads", "T=1 GB/s", "share", f"T={TOKENS} Gop/s", "share")
    shown = [
        (
            row["type"],
            "16 bit" if row["fine"] else "float32" if row["type"] in DENSE else "8 bit",
            row["threads"],
            row["decode_GB_per_s"],
            row["decode_share"],
            row["prefill_Gop_per_s"],
            row["prefill_share"],
        )
        for row in rows
    ]
    print(harness.table(head, shown))


if __name__ == "__main__":
    main()
