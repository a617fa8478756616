#!/usr/bin/env python3
"""Many sequences in one forward: decode and prefill tokens/s of all together, against one alone.

    python benchmarks/bench_batch.py MODEL [--batch 1,2,4,8,16,32,64] [--json batch.json]

MODEL is what qwen35.load takes. Every round goes through all sizes, so that a machine that drifts
slows all of them; ratios are to the smallest size of the same round, per sequence of it, and
medians are reported. Greedy, random prompts that share nothing, no answer ends before the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PHASES = ("prefill", "decode")


def measure(model: Any, size: int, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Tokens/s of `size` prompts read together, then of `decode` steps."""
    core, rng = model._native(), np.random.default_rng(seed)
    top = min(model.config.text.vocab_size, model.tokenizer.vocab_size)
    context = options.prompt + options.decode + 2
    streams = [
        core.session(context).generate(rng.integers(0, top, options.prompt).astype(np.int32))
        for _ in range(size)
    ]
    batch, reading = core.batch(size), list(streams)
    start = time.perf_counter()
    while reading:  # those that have read all of their prompt wait for the others
        said = batch.step(reading)
        reading = [s for s, token in zip(reading, said, strict=True) if token is None]
    middle = time.perf_counter()
    for _ in range(options.decode):
        batch.step(streams)
    end = time.perf_counter()
    return {
        "prefill": size * options.prompt / (middle - start),
        "decode": size * options.decode / (end - middle),
    }


def summary(rounds: list[dict[int, dict[str, float]]], sizes: list[int]) -> list[dict[str, Any]]:
    """A row for each size: medians, and medians of the ratios of each round."""
    rows = []
    for size in sizes:
        row: dict[str, Any] = {"batch": size}
        for phase in PHASES:
            rates = [r[size][phase] for r in rounds]
            ratios = [r[size][phase] / r[sizes[0]][phase] * sizes[0] for r in rounds]
            row[f"{phase}_tokens_per_s"] = round(statistics.median(rates), 2)
            row[f"{phase}_ratio"] = round(statistics.median(ratios), 3)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--batch", default="1,2,4,8,16,32,64", help="sizes, at most 64")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--decode", type=int, default=16, help="timed steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    sizes = sorted({int(size) for size in options.batch.split(",")})

    from machine_limits import describe

    import qwen35
    import qwen35._core

    machine = describe(options.threads) | {"isa": qwen35._core.cpu()["isa"]}
    print(json.dumps(machine), file=sys.stderr)
    rounds = []
    with qwen35.load(options.model, threads=options.threads, progress=False) as model:
        measure(model, 1, options, seed=0)
        for index in range(options.rounds):
            rounds.append({size: measure(model, size, options, index + 1) for size in sizes})
            print(json.dumps(rounds[-1]), file=sys.stderr)
        memory = model.memory(context=options.prompt + options.decode)
    figures = {"machine": machine, "model": options.model, "prompt": options.prompt}
    figures |= {"state_bytes": memory["state"], "rows": summary(rounds, sizes), "rounds": rounds}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    print(f"{'batch':>5} {'decode':>9} {'ratio':>6} {'prefill':>9} {'ratio':>6}   tokens/s, all")
    for row in figures["rows"]:
        print(
            f"{row['batch']:5} {row['decode_tokens_per_s']:9.1f} {row['decode_ratio']:6.2f} "
            f"{row['prefill_tokens_per_s']:9.1f} {row['prefill_ratio']:6.2f}"
        )


if __name__ == "__main__":
    main()
