#!/usr/bin/env python3
"""README's table of speed and the roofline picture, from the files that the benchmarks write.

    python benchmarks/readme_table.py benchmarks/results/*.json benchmarks/results/avx2/*.json

A table for each instruction set, the picture for the first.

bench_peers.py gives the rows against other engines, bench_growth.py those of growth,
bench_kernels.py and bench_peers.py the points of the picture. The block of README.md between
<!-- speed --> and <!-- /speed --> is written anew; where there is none yet it comes under the
heading "Measured".
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness

HOME = Path(__file__).parents[1]
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"
HEADING = "## Measured\n"
PEER = "llama.cpp"
DENSE = ("bf16", "f32")
COLOURS = {"qwen35": "#3b6ea5", PEER: "#c8553d", "kernel": "#7a9e7e"}
Files = Sequence[dict[str, Any]]


def cell(value: Any) -> str:
    return "" if value is None else harness.text_of(value)


def peer_lines(found: dict[str, Any]) -> list[str]:
    """A line for each figure of a file of bench_peers.py."""
    lines = []
    for row in found["rows"]:
        share = row.get("share_qwen35")
        ratio = row.get(f"ratio_{PEER}")
        cells = [found["file"], row["what"], cell(row["qwen35"]), cell(row.get(PEER)), cell(ratio)]
        lines.append(f"| {' | '.join([*cells, '' if share is None else f'{share:.0%}'])} |")
    return lines


def growth_lines(found: dict[str, Any]) -> list[str]:
    """ms of a token by depth, of a file of bench_growth.py."""
    depths = sorted({row["depth"] for row in found["rows"]})
    head = [f"{found['file']}, ms a token at depth", *(f"{depth:,}" for depth in depths)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * len(depths)]
    for phase in ("prefill", "decode"):
        ms = {row["depth"]: row["ms"] for row in found["rows"] if row["phase"] == phase}
        lines.append(f"| {phase} | {' | '.join(cell(ms.get(depth)) for depth in depths)} |")
    return lines


def span(machines: Sequence[dict[str, Any]], what: str) -> str:
    """The least and the largest of some machines' figures."""
    figures = [machine[what] for machine in machines if machine.get(what)]
    return " to ".join(f"{figure:g}" for figure in sorted({min(figures), max(figures)}))


def machine_line(machines: Sequence[dict[str, Any]]) -> str:
    """What stands beside the figures of runs with one instruction set."""
    first = machines[0]
    peers = {peer: None for machine in machines for peer in machine.get("peers", {}).values()}
    parts = [
        f"{first['cpu']}, {first['threads']} threads of {first['cores']} cores",
        f"`{first['isa']}`",
        "commit " + ", ".join({machine["commit"]: None for machine in machines}),
        f"reads {span(machines, 'read_GB_per_s')} GB/s",
    ]
    if first.get("int8_Gop_per_s"):
        parts.append(f"int8 peak {span(machines, 'int8_Gop_per_s')} Gop/s")
        parts.append(f"float32 peak {span(machines, 'float32_Gop_per_s')}")
    return "; ".join([*parts, *peers]) + "."


def by_isa(files: Files) -> list[list[dict[str, Any]]]:
    """The files of each instruction set, in the order in which they are given."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in files:
        groups.setdefault(found["machine"]["isa"], []).append(found)
    return list(groups.values())


def block(files: Files, picture: str | None) -> str:
    """What stands between the markers."""
    parts = []
    for group in by_isa(files):
        peers = [found for found in group if found["kind"] == "peers"]
        if peers:
            parts.append(machine_line([found["machine"] for found in peers]))
            head = f"| file | what, tokens/s | qwen35 | {PEER} | ratio | of the machine's limit |"
            lines = [line for found in peers for line in peer_lines(found)]
            parts.append("\n".join([head, "|---|---|---:|---:|---:|---:|", *lines]))
        growth = [found for found in group if found["kind"] == "growth"]
        parts += ["\n".join(growth_lines(found)) for found in growth]
    if any(found["kind"] == "peers" for found in files):
        parts.append(
            "The limit is the int8 peak for prefill, the read bandwidth for decoding "
            "(`python benchmarks/bench_peers.py FILE`)."
        )
    if picture:
        parts.append(f"![operations a second by operations per byte]({picture})")
    return "\n\n".join(parts)


def rewritten(readme: str, text: str) -> str:
    """README with the block put in; SystemExit where it has no place."""
    new = f"{BEGIN}\n{text}\n{END}"
    before, begin, rest = readme.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if begin and end:
        return before + new + after
    if begin or HEADING not in readme:
        raise SystemExit(f"README.md: expected {BEGIN} and {END}, or the heading 'Measured'")
    return readme.replace(HEADING, f"{HEADING}\n{new}\n", 1)


def points(files: Files) -> list[dict[str, Any]]:
    """x operations per byte of weights, y Gop/s, of kernels and of whole models."""
    found = []
    for file in files:
        for row in file["rows"]:
            if file["kind"] == "kernels" and row["threads"] == file["machine"]["threads"]:
                per_byte = row["decode_Gop_per_s"] / row["decode_GB_per_s"]
                name = f"{row['type']}{' 16 bit' if row['fine'] else ''}"
                for x, phase in ((per_byte, "decode"), (256 * per_byte, "prefill")):
                    y = row[f"{phase}_Gop_per_s"]
                    found.append({"who": "kernel", "name": name, "phase": phase, "x": x, "y": y})
            elif file["kind"] == "peers" and "ops_per_token" in row:
                ops, phase = row["ops_per_token"], row["what"].split()[0]
                for who, name in (("qwen35", Path(file["file"]).stem), (PEER, "")):
                    if row.get(who):
                        x, y = ops / max(row["bytes_per_token"], 1), row[who] * ops / 1e9
                        found.append({"who": who, "name": name, "phase": phase, "x": x, "y": y})
    return found


def draw(files: Files, path: Path) -> None:
    """The machine's roofs and the points under them."""
    from matplotlib.figure import Figure

    machine, shown = files[0]["machine"], points(files)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    low, high = min(p["x"] for p in shown) / 2, max(p["x"] for p in shown) * 2
    read = machine["read_GB_per_s"]
    for name, style in (("int8", "-"), ("float32", "--")):
        peak = machine.get(f"{name}_Gop_per_s")
        if peak and read:
            x = [low, max(low, peak / read), high]
            y = [min(peak, value * read) for value in x]
            axes.plot(x, y, style, color="black", lw=1, label=f"{name} peak, {read} GB/s")
    for who, colour in COLOURS.items():
        for phase, marker in (("decode", "o"), ("prefill", "s")):
            mine = [p for p in shown if (p["who"], p["phase"]) == (who, phase)]
            if mine:
                x, y = [p["x"] for p in mine], [p["y"] for p in mine]
                axes.scatter(x, y, c=colour, marker=marker, s=25, label=f"{who}, {phase}")
            for p in mine:
                axes.annotate(
                    p["name"], (p["x"], p["y"]), xytext=(4, 3), textcoords="offset points", size=5
                )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte of weights")
    axes.set_ylabel("Gop/s")
    axes.set_title(f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--readme", type=Path, default=HOME / "README.md")
    parser.add_argument("--picture", type=Path, default=HOME / "benchmarks/results/roofline.png")
    options = parser.parse_args()
    files = [harness.read(path) for path in options.files]
    picture, first = None, by_isa(files)[0]
    if points(first):
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        draw(first, options.picture)
        if options.picture.is_relative_to(options.readme.parent):
            picture = options.picture.relative_to(options.readme.parent).as_posix()
    text = block(files, picture)
    if not text:
        raise SystemExit("no file of bench_peers.py or bench_growth.py among them")
    options.readme.write_text(rewritten(options.readme.read_text(), text))


if __name__ == "__main__":
    main()
