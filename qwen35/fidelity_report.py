"""What `fidelity.measure` found, to read: a table, JSON, HTML for notebooks, a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fidelity import Fidelity
    from .layer_errors import LayerErrors

HEAD = (
    "model",
    "mostly",
    "weights",
    "bits",
    "perplexity",
    "mean KL",
    "95 %",
    "max KL",
    "same top",
    "tokens/s",
)
WORDS = 2  # columns of text, on the left


def table(results: Iterable[Fidelity]) -> str:
    """Aligned text, one line a model: KL in nats, +- one standard error."""
    known = list(results)
    rows = [HEAD, *map(_cells, known)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = []
    for row in rows:
        words = [cell.ljust(width) for cell, width in zip(row[:WORDS], widths, strict=False)]
        numbers = [
            cell.rjust(width) for cell, width in zip(row[WORDS:], widths[WORDS:], strict=True)
        ]
        lines.append("  ".join([*words, *numbers]).rstrip())
    return "\n".join([*lines, *_notes(known)])


def html(results: Iterable[Fidelity]) -> str:
    """The same for a notebook."""
    from .notebook import box

    known = list(results)
    align = ["left"] * WORDS + ["right"] * (len(HEAD) - WORDS)

    def line(cells: Sequence[str], weight: str) -> str:
        inside = "".join(
            f"<div style='text-align:{side};font-weight:{weight}'>{escape(cell)}</div>"
            for cell, side in zip(cells, align, strict=True)
        )
        return inside

    grid = f"display:grid;grid-template-columns:repeat({len(HEAD)},max-content);gap:2px 14px"
    rows = line(HEAD, "bold") + "".join(line(_cells(result), "normal") for result in known)
    note = f"<div style='opacity:.6;font-size:smaller'>{escape(' '.join(_notes(known)))}</div>"
    return box(f"<div style='{grid}'>{rows}</div>", note)


def to_json(results: Iterable[Fidelity], *, layers: Mapping[str, LayerErrors] | None = None) -> str:
    """JSON text: the processor's instruction set, a list `results`, and by model's name the
    `layers` of `layer_errors`.
    """
    from . import __version__, _core

    found: dict[str, Any] = {
        "version": __version__,
        "isa": _core.cpu()["isa"],
        "results": [result.to_dict() for result in results],
    }
    if layers is not None:
        found["layers"] = {name: errors.to_dict() for name, errors in layers.items()}
    return json.dumps(found, ensure_ascii=False, indent=1)


def plot(results: Iterable[Fidelity], path: str | os.PathLike[str] | None = None) -> Any:
    """Mean KL (log scale) against the size of the weights, a point a model, as a matplotlib Figure;
    written to `path` too. A model without error has no place on a log scale and is a vertical line.

    Raises ImportError without matplotlib.
    """
    figure = figure_class()(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for result in results:
        size = result.weights_bytes / 2**20
        if result.kl > 0:
            fill = "#3b6ea5" if result.same_size else "none"
            axes.errorbar(size, result.kl, yerr=result.kl_error, color="#3b6ea5", lw=1)
            axes.scatter(size, result.kl, s=30, facecolor=fill, edgecolor="#3b6ea5", zorder=3)
            axes.annotate(result.name, (size, result.kl), xytext=(6, 4), textcoords="offset points")
        else:
            axes.axvline(size, color="#8b8b8b", lw=1, ls=":")
            place = axes.get_xaxis_transform()
            axes.annotate(
                f"{result.name} (KL 0)",
                (size, 0.98),
                xycoords=place,
                rotation=90,
                ha="right",
                va="top",
                color="#8b8b8b",
            )
    axes.set_yscale("log")
    axes.set_xlabel("weights, MiB")
    axes.set_ylabel("mean KL(reference || model), nats a token")
    axes.margins(x=0.15, y=0.1)
    axes.grid(alpha=0.3, which="both")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def figure_class() -> Any:
    """matplotlib's Figure, which draws without a window; ImportError says how to get it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install 'qwen35[eval]'") from None
    return Figure


def _cells(result: Fidelity) -> tuple[str, ...]:
    mark = "" if result.same_size else "*"
    return (
        result.name,
        result.type,
        size_text(result.weights_bytes),
        f"{result.bits_per_weight:.2f}",
        f"{result.perplexity:.4f} ±{result.perplexity_error:.4f}",
        f"{mark}{_nats(result.kl)} ±{_nats(result.kl_error)}",
        _nats(result.kl_p95),
        _nats(result.kl_max),
        f"{100 * result.agreement:.2f} %",
        f"{result.tokens_per_s:,.1f}",
    )


def _notes(results: list[Fidelity]) -> list[str]:
    notes = []
    if results:
        one = results[0]
        notes.append(
            f"{one.scored:,} tokens scored, the second half of windows of {one.context:,}; KL in "
            "nats against the reference; ± one standard error."
        )
    if any(not result.same_size for result in results):
        notes.append("* another number of parameters than the reference: compare perplexity.")
    return notes


def _nats(value: float) -> str:
    return "0" if value == 0 else f"{value:.2e}" if value < 1e-3 else f"{value:.4f}"


def size_text(size: int) -> str:
    """Bytes in GiB or MiB."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
