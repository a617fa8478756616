#!/usr/bin/env python3
"""Many sequences in one forward: decode and prefill tokens/s of all together, against one alone.

    python benchmarks/bench_batch.py MODEL [--batch 1,2,4,8,16,32,64] [--json batch.json]

MODEL is what qwen35.load takes. Every round goes through all sizes, so that a machine that drifts
slows all of them; ratios are to the smallest size of the same round, per sequence of it, and
medians are reported. Greedy, random prompts that share nothing, no answer ends before the others.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import harness
from machine_limits import describe

PHASES = ("prefill", "decode")


def measure(model: Any, size: int, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Tokens/s of `size` prompts read together, then of `decode` steps."""
    from qwen35.bench import batch_s

    how = {"prompt": options.prompt, "steps": options.decode}
    prefill, decode = batch_s(model, size, seed=seed, **how)
    return {"prefill": size * options.prompt / prefill, "decode": size * options.decode / decode}


def summary(rounds: list[dict[int, dict[str, float]]], sizes: list[int]) -> list[dict[str, Any]]:
    """A row for each size: medians, and medians of the ratios of each round."""
    rows = []
    for size in sizes:
        row: dict[str, Any] = {"batch": size}
        for phase in PHASES:
            rates = [r[size][phase] for r in rounds]
            ratios = [r[size][phase] / r[sizes[0]][phase] * sizes[0] for r in rounds]
            row[f"{phase}_tokens_per_s"] = harness.median(rates)
            row[f"{phase}_ratio"] = harness.median(ratios)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument(
        "--batch", type=harness.numbers, default=[1, 2, 4, 8, 16, 32, 64], help="at most 64"
    )
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--decode", type=int, default=16, help="timed steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    import qwen35

    machine = describe(options.threads)
    rounds = []
    with qwen35.load(options.model, threads=options.threads, progress=False) as model:
        measure(model, 1, options, seed=0)
        for index in range(options.rounds):
            rounds.append(
                {size: measure(model, size, options, index + 1) for size in options.batch}
            )
            harness.tell(rounds[-1])
        state = model.memory()["state"]
    rows = summary(rounds, options.batch)
    more = {"file": Path(options.model).name, "prompt": options.prompt, "state_bytes": state}
    harness.write(options.json, harness.figures("batch", machine, rows, **more, rounds=rounds))
    head = ("batch", *(f"{phase}{what}" for phase in PHASES for what in (", tokens/s", " ratio")))
    print(harness.table(head, [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
