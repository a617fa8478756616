"""What a notebook shows of models, prompts and answers: small HTML with inline styles, no scripts.

Everything that came from a file, a user or a model is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generation import TokenStream
    from .model import Model
    from .prompt import Prompt
    from .results import Generation, ToolCall, Usage

DELTANET, ATTENTION = "#4c9f70", "#d97706"
PARTS = {
    "weights": "#3b6ea5",
    "kv": "#d97706",
    "state": "#4c9f70",
    "scratch": "#8b8b8b",
    "screen": "#b07aa1",
}
LABELS = {part: "K/V" if part == "kv" else part for part in PARTS}
BOX = "font:13px/1.45 system-ui,sans-serif;border:1px solid #8884;border-radius:6px;padding:10px"
CELL = "display:inline-block;width:14px;height:18px;margin:1px;border-radius:2px"
CARD = "border-left:3px solid #3b6ea5;padding:4px 8px;margin:6px 0"
MONO = "font-family:ui-monospace,monospace"
CHIP = "white-space:nowrap;background:#3b6ea5;color:#fff;border-radius:3px;padding:0 4px"
PRE = f"{MONO};white-space:pre-wrap;margin:4px 0"
SHOWN_TOKENS = 400


def model_html(model: Model) -> str:
    """Name, size, where it computes, memory bar and layer map."""
    if model._gate.closed:
        return box(f"<b>{escape(model.name)}</b> closed")
    from . import _core

    text = model.config.text
    facts = {
        "parameters": f"{model.parameters:,}",
        "layers": f"{len(text.layer_types)}, hidden {text.hidden_size:,}",
        "dtype": f"{model.dtype}, K/V {model.kv_dtype}",
        "instructions": _core.cpu()["isa"],
        "threads": _threads(model),
        "context": f"{model.context:,} tokens",
    }
    head = f"<b>{escape(model.name)}</b> <span style='opacity:.6'>qwen35</span>"
    return box(head, _table(facts), _memory_bar(model), _layer_map(model))


def generation_html(result: Generation) -> str:
    """Text, folded reasoning, tool calls as cards, counts and rates."""
    return box(*_answer(result), _footer(result.finish_reason, result))


def stream_html(stream: TokenStream, so_far: Generation) -> str:
    """An answer that may still be running."""
    state = stream._record.reason or "running: iterate over it, or call result()"
    return box(*_answer(so_far), _footer(state, so_far))


def prompt_html(prompt: Prompt) -> str:
    """Images and videos, then the tokens of a prompt, ids as tooltips; only the first and last of a
    long one.
    """
    from .notebook_media import media_figure

    shown = list(_spans(prompt))
    cut = len(shown) - SHOWN_TOKENS
    if cut > 0:
        half = SHOWN_TOKENS // 2
        shown[half:-half] = [f" <i>... {cut:,} more ...</i> "]
    kind = "chat" if prompt.from_messages else "text" if prompt.text is not None else "ids"
    thinking = ", thinking" if prompt.thinking else ""
    figures = [
        media_figure(media, f"{media.kind} {index}")
        for all_of in (prompt.images, prompt.videos)
        for index, media in enumerate(all_of, 1)
    ]
    return box(
        f"<b>Prompt</b> <span style='opacity:.6'>{len(prompt.ids):,} tokens, {kind}{thinking}"
        "</span>",
        *figures,
        f"<div style='{MONO};white-space:pre-wrap'>{''.join(shown)}</div>",
    )


def _spans(prompt: Prompt) -> Iterable[str]:
    """One <span> a token; the tokens of an image, or of a time of a video, are one together."""
    runs = {} if prompt.layout is None else {run.start: run for run in prompt.layout.runs}
    index = 0
    while index < len(prompt.ids):
        run = runs.get(index)
        if run is None:
            yield _token(prompt, int(prompt.ids[index]), index)
            index += 1
            continue
        count = run.stop - run.start
        yield f"<span style='{CHIP}'>{run.media.kind}: {run.cols} x {run.rows} = {count:,}</span>"
        index = run.stop


def _token(prompt: Prompt, token: int, index: int) -> str:
    text = str(token)
    special = ""
    if prompt.tokenizer is not None:
        text = prompt.tokenizer.decode([token])
        special = "font-weight:bold;" if token in prompt.tokenizer.added_ids else ""
    shade = "#8882" if index % 2 else "#8884"
    return f"<span title='{token}' style='{special}background:{shade}'>{escape(text)}</span>"


def _answer(result: Generation) -> Iterable[str]:
    if result.reasoning:
        count = result.usage.reasoning_tokens
        yield (
            f"<details><summary style='opacity:.6'>reasoning, {count:,} tokens</summary>"
            f"<div style='{PRE};opacity:.7'>{escape(result.reasoning)}</div></details>"
        )
    if result.text:
        yield f"<div style='white-space:pre-wrap;margin:4px 0'>{escape(result.text)}</div>"
    for call in result.tool_calls:
        yield _call(call)


def _call(call: ToolCall) -> str:
    arguments = json.dumps(call.arguments, ensure_ascii=False, indent=1)
    return (
        f"<div style='{CARD}'><b>{escape(call.name)}</b>"
        f"<div style='{PRE}'>{escape(arguments)}</div></div>"
    )


def _footer(state: str, result: Generation) -> str:
    rate = result.timings.decode_tps
    parts = [state, _usage(result.usage), f"{rate:,.1f} tokens/s" if rate else ""]
    line = " &middot; ".join(escape(part) for part in parts if part)
    return f"<div style='opacity:.6;font-size:smaller'>{line}</div>"


def _usage(usage: Usage) -> str:
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    return f"{usage.prompt_tokens:,}{cached} + {usage.completion_tokens:,} tokens"


def _threads(model: Model) -> str:
    from .machine import default_threads, thread_reason

    reason = thread_reason() if model.threads == default_threads() else "as asked for"
    return f"{model.threads} ({reason})"


def _memory_bar(model: Model) -> str:
    memory = model.memory()
    total = max(memory["total"], 1)
    cells, legend = [], []
    for name, colour in PARTS.items():
        size = _size(memory[name])
        width = f"width:{100 * memory[name] / total:.2f}%;background:{colour}"
        cells.append(f"<div title='{LABELS[name]}: {size}' style='{width}'></div>")
        legend.append(f"<span style='color:{colour}'>&#9632;</span> {LABELS[name]} {size}")
    bar = "display:flex;height:12px;border-radius:3px;overflow:hidden;margin:6px 0 2px"
    note = f"{' &nbsp; '.join(legend)} (K/V at the full context)"
    return f"<div style='{bar}'>{''.join(cells)}</div><div style='font-size:smaller'>{note}</div>"


def _layer_map(model: Model) -> str:
    """One cell a layer."""
    sizes = _layer_bytes(model)
    cells = []
    for index, kind in enumerate(model.config.text.layer_types):
        is_attention = kind == "full_attention"
        name = "attention" if is_attention else "DeltaNet"
        title = f"layer {index}: {name}, {_size(sizes.get(index, 0))}"
        colour = ATTENTION if is_attention else DELTANET
        cells.append(f"<span title='{title}' style='{CELL};background:{colour}'></span>")
    legend = (
        f"<span style='color:{DELTANET}'>&#9632;</span> DeltaNet &nbsp; "
        f"<span style='color:{ATTENTION}'>&#9632;</span> attention"
    )
    style = "font-size:smaller"
    return f"<div style='margin-top:6px'>{''.join(cells)}</div><div style='{style}'>{legend}</div>"


def _layer_bytes(model: Model) -> dict[int, int]:
    """Bytes of the weights of each layer."""
    sizes: dict[int, int] = {}
    tensors = model._checkpoint.tensors
    for name in tensors:
        head, _, rest = name.partition(".layers.")
        index = rest.partition(".")[0]
        if index.isdigit() and not head.startswith("mtp"):
            sizes[int(index)] = sizes.get(int(index), 0) + tensors.span(name).nbytes
    return sizes


def _table(facts: dict[str, Any]) -> str:
    rows = (
        f"<div style='opacity:.6'>{escape(name)}</div><div>{escape(str(value))}</div>"
        for name, value in facts.items()
    )
    grid = "display:grid;grid-template-columns:max-content 1fr;gap:0 12px;margin:4px 0"
    return f"<div style='{grid}'>{''.join(rows)}</div>"


def _size(size: int) -> str:
    if size >= 2**30:
        return f"{size / 2**30:,.2f} GiB"
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"


def box(*parts: str) -> str:
    """The frame around everything shown."""
    return f"<div style='{BOX}'>{''.join(parts)}</div>"
