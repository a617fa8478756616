#!/usr/bin/env python3
"""What a token costs as the context grows, in all and by part of the model.

    python benchmarks/bench_growth.py MODEL --depth 1024,4096,16384,65536 --plot growth.png \\
        --json growth.json

At each depth: --prompt tokens read at once (ms a token) and --decode tokens read one by one,
medians of --runs. The parts are those of one forward call that tells of each matrix product as it
comes, for prefill without the last layer and the head, which are asked for the last token alone.
Telling costs microseconds, so that parts may add up to a little more than the whole.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import harness
from machine_limits import describe

PARTS = ("DeltaNet", "attention", "MLP", "head")
COLOURS = ("#3b6ea5", "#c8553d", "#7a9e7e", "#b8b8b8")
PIECE = 256  # tokens of one forward call
WARM = 64  # tokens read before anything is timed


def measure(timeline: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for prefill and one for decoding, where the timeline stands."""
    rows = []
    for phase, tokens, seconds in (
        ("prefill", options.prompt, timeline.prefill_s),
        ("decode", options.decode, timeline.decode_s),
    ):
        piece = min(tokens, PIECE) if phase == "prefill" else 1
        parts = [timeline.parts_s(piece, seed) for seed in range(options.runs + 1)][1:]
        row: dict[str, Any] = {"phase": phase, "depth": timeline.depth}
        row["ms"] = harness.median(1e3 * seconds(tokens, i) / tokens for i in range(options.runs))
        for part in PARTS:
            if phase == "decode" or part != "head":
                row[part] = harness.median(1e3 * found[part] / piece for found in parts)
        rows.append(row)
    return rows


def plot(found: dict[str, Any], path: Path) -> None:
    """Parts stacked, the whole as a line, against the depth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    machine = found["machine"]
    figure.suptitle(f"{found['file']}, {machine['isa']}, {machine['threads']} threads")
    for axes, phase in zip(figure.subplots(1, 2), ("prefill", "decode"), strict=True):
        rows = [row for row in found["rows"] if row["phase"] == phase]
        parts = [part for part in PARTS if part in rows[0]]
        depths = [row["depth"] for row in rows]
        stacks = [[row[part] for row in rows] for part in parts]
        axes.stackplot(depths, stacks, labels=parts, colors=COLOURS, alpha=0.8)
        axes.plot(depths, [row["ms"] for row in rows], "o-", color="black", label="measured whole")
        axes.set_ylim(bottom=0)
        axes.set_xticks(depths, [f"{depth:,}" for depth in depths], rotation=30, ha="right")
        axes.set_xlabel("tokens in the context")
        axes.set_title(f"{phase}, ms a token")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=150)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One timeline that grows from depth to depth."""
    import qwen35
    from qwen35.bench import Timeline

    machine, rows = describe(options.threads), []
    context = options.depth[-1] + max(options.prompt, options.decode + 1, WARM)
    how = {"threads": options.threads, "context": context, "kv_dtype": options.kv_dtype}
    with qwen35.load(options.model, vision=False, progress=False, **how) as model:
        timeline = Timeline(model, 0, context)
        timeline.prefill_s(WARM)
        for depth in options.depth:
            timeline.deepen(depth)
            rows += measure(timeline, options)
            harness.tell(rows[-2], rows[-1], sep="\n")
    return harness.figures("growth", machine, rows, file=Path(options.model).name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="what qwen35.load takes")
    parser.add_argument(
        "--depth", type=harness.numbers, default=[1024, 4096, 16384, 65536], metavar="N,N"
    )
    parser.add_argument("--prompt", type=int, default=512, help="tokens read at once (512)")
    parser.add_argument("--decode", type=int, default=16, help="tokens read one by one (16)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--plot", type=Path, help="draw them here (PNG)")
    options = parser.parse_args()
    options.depth.sort()
    found = run(options)
    harness.write(options.json, found)
    head = ("phase", "depth", "ms a token", *PARTS)
    rows = [
        [row["phase"], row["depth"], row["ms"], *(row.get(part) for part in PARTS)]
        for row in found["rows"]
    ]
    print(harness.table(head, rows))
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
