"""What the benchmarks share: rounds that alternate, medians, tables, files with all that a figure
needs beside it.

A file is {"kind", "machine", "rows", ...}: `machine` as machine_limits.describe says, `rows` a list
of flat objects. readme_table.py reads them.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

MACHINE = ("cpu", "cores", "threads", "isa", "commit", "read_GB_per_s")


def in_turn(names: Sequence[str], index: int) -> list[str]:
    """The order of a round: every other one backwards, so that nobody is always first."""
    return list(names) if index % 2 == 0 else list(names)[::-1]


def median(values: Iterable[float | None], digits: int = 4) -> float | None:
    """Median of those that are numbers, to so many significant digits; None where there is none."""
    known = [value for value in values if value is not None]
    return float(f"{statistics.median(known):.{digits}g}") if known else None


def ratios(rounds: Sequence[Mapping[str, float]], one: str, other: str) -> list[float]:
    """one / other of every round that has both."""
    return [r[one] / r[other] for r in rounds if r.get(one) and r.get(other)]


def share(rate: float | None, limit: float | None) -> float | None:
    """rate / limit where both are known."""
    return rate / limit if rate is not None and limit else None


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned text: the first column to the left, None as a dash."""
    lines = [list(head), *([text_of(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def text_of(cell: Any) -> str:
    """A cell: three or four digits of a number."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def figures(kind: str, machine: Mapping[str, Any], rows: Sequence[Any], **more: Any) -> dict:
    """A file's content."""
    return {"kind": kind, "machine": dict(machine), **more, "rows": list(rows)}


def check(found: Any, where: str) -> dict[str, Any]:
    """A file's content if it is one; SystemExit says what is missing."""
    if not isinstance(found, dict) or not {"kind", "machine", "rows"} <= found.keys():
        raise SystemExit(f"{where}: no file of these benchmarks: expected kind, machine and rows")
    missing = [name for name in MACHINE if name not in found["machine"]]
    if missing or not found["rows"]:
        raise SystemExit(f"{where}: expected rows and in machine {', '.join(missing or MACHINE)}")
    return found


def write(path: Path | None, found: Mapping[str, Any]) -> None:
    """As JSON, where a path was given."""
    if path is not None:
        check(found, str(path))
        path.write_text(json.dumps(found, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote."""
    try:
        return check(json.loads(path.read_text()), str(path))
    except ValueError as error:
        raise SystemExit(f"{path}: {error}") from None


def numbers(text: str) -> list[int]:
    """'1,16' -> [1, 16], for arguments."""
    return [int(part) for part in text.split(",") if part.strip()]


def tell(*what: Any, sep: str = " ") -> None:
    """To those who watch; results alone go to stdout."""
    print(*what, sep=sep, file=sys.stderr, flush=True)
