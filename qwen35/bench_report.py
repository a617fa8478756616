"""What `qwen35 bench` found, to read: a table and a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

GRID = {"alpha": 0.3, "which": "both"}
OURS, LIMIT = "#3b6ea5", "#8b8b8b"


def table(figures: Mapping[str, Any]) -> str:
    """Aligned text, a line a figure, a newline at the end."""
    known = figures["read_GB_per_s"]
    read = "reads unknown" if known is None else f"reads {known:.1f} GB/s"
    gigabytes = figures["memory"]["total"] / 1e9
    lines = [
        f"{figures['model']}, {figures['isa']}, {figures['threads']} threads; the machine {read}",
        f"load      {figures['load_s']:>10.2f} s",
        f"memory    {gigabytes:>10.3f} GB with the context measured",
    ]
    for row in figures["prefill"]:
        lines.append(f"prefill   {_rate(row)}   {row['tokens']:,} tokens")
    for row in figures["decode"]:
        size = f"{row['bytes_per_token'] / 1e6:,.1f} MB a token, {row['GB_per_s']:.1f} GB/s"
        at = f"at depth {row['depth']:,}"
        lines.append(f"decode    {_rate(row)}   {at}: {size}{_share(row['share'])}")
    alone = figures["batch"][0]
    for row in figures["batch"]:
        ratio = row["tokens_per_s"] / alone["tokens_per_s"]
        lines.append(
            f"batch     {_rate(row)}   {row['size']} together, {ratio:.2f} times {alone['size']}; "
            f"prefill {row['prefill_tokens_per_s']:,.1f}"
        )
    if figures["image"] is not None:
        side = figures["image"]["side"]
        lines.append(f"image     {figures['image']['seconds']:>10.3f} s          {side} x {side}")
    return "\n".join(lines) + "\n"


def _share(share: float | None) -> str:
    if share is None:
        return ""
    if share > 1.1:
        return ", more than memory gives: from caches"
    return f", {share:.0%} of what the machine reads"


def _rate(row: Mapping[str, Any]) -> str:
    return f"{row['tokens_per_s']:>10,.1f} tokens/s"


def plot(figures: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Prefill by length, decoding by depth beside the limit, batches, written as a picture.

    Raises ImportError without matplotlib.
    """
    from .fidelity_report import figure_class

    figure = figure_class()(figsize=(12, 4), layout="constrained")
    figure.suptitle(f"{figures['model']}, {figures['isa']}, {figures['threads']} threads")
    prefill, decode, batch = figure.subplots(1, 3)
    _draw(prefill, figures["prefill"], "tokens", "prefill, tokens/s")
    _draw(decode, figures["decode"], "depth", "decoding, tokens/s")
    _draw(batch, figures["batch"], "size", "batch, tokens/s of all")
    for axes, rows, key in ((prefill, "prefill", "tokens"), (batch, "batch", "size")):
        sizes = [row[key] for row in figures[rows]]
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    if figures["read_GB_per_s"] is not None:
        limits = [1e9 * figures["read_GB_per_s"] / r["bytes_per_token"] for r in figures["decode"]]
        depths = [row["depth"] for row in figures["decode"]]
        decode.plot(depths, limits, color=LIMIT, ls="--", label="read bandwidth")
        decode.legend()
    figure.savefig(path, dpi=150)


def _draw(axes: Any, rows: list[dict[str, Any]], key: str, title: str) -> None:
    x = [row[key] for row in rows]
    middle = [row["tokens_per_s"] for row in rows]
    below = [m - min(row["runs"]) for m, row in zip(middle, rows, strict=True)]
    above = [max(row["runs"]) - m for m, row in zip(middle, rows, strict=True)]
    axes.errorbar(x, middle, yerr=[below, above], color=OURS, marker="o", capsize=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(key)
    axes.set_title(title)
    axes.grid(**GRID)
