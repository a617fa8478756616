"""What a model is and what it needs, read from the headers of its files alone: no weight is loaded.

Memory is what Model.memory() says once it is loaded: weights as they are used, the K/V cache of one
session at the whole context, its recurrent state, and the scratch of one forward pass. "mapped"
weights stay in their file and share the system's cache; others are allocated.

examples:
  qwen35 info tiny
  qwen35 info ~/models/Qwen3.5-4B --context 32768 --json
  qwen35 info qwen3.5-4b-q4_k_m.gguf --context 32768 --kv-dtype q8_0
  qwen35 info ~/models/Qwen3.5-4B --quantize q4_k_m
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from typing import Any

from .blocks import stored_type
from .cli import add_traceback
from .dtypes import KV_DTYPES

BYTES = ("weights", "of them mapped", "K/V per token", "K/V", "state", "scratch", "screen", "total")
BYTES += ("available",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qwen35 info`."""
    parser.add_argument("model", metavar="MODEL", help="'tiny', a folder, a GGUF file, or a hub id")
    parser.add_argument("--mmproj", help="vision file of a GGUF file; default: one beside it")
    parser.add_argument(
        "--context", type=int, metavar="N", help="tokens to plan memory for; default: as load()"
    )
    parser.add_argument("--kv-dtype", default="auto", choices=KV_DTYPES, help="of the K/V cache")
    parser.add_argument("--quantize", metavar="T", help="plan for blocks made at load")
    parser.add_argument("--threads", type=int, metavar="N", help="threads that compute")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--offline", action="store_true", help="use the hub's cache alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_traceback(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts."""
    from .checkpoint import open_checkpoint
    from .loading import settle_kv_dtype
    from .quantize import check_recipe

    for name in ("context", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: expected at least 1")
    recipe = None if args.quantize is None else check_recipe(args.quantize)
    options = {"revision": args.revision, "local_files_only": args.offline, "mmproj": args.mmproj}
    checkpoint = open_checkpoint(args.model, **options)
    try:
        facts = describe(
            checkpoint,
            context=args.context,
            kv_dtype=settle_kv_dtype(args.kv_dtype),
            recipe=recipe,
            threads=args.threads,
        )
    finally:
        checkpoint.close()
    if args.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, part in value.items():
                print(f"  {key:<22} {_shown(key, part)}")
        else:
            print(f"{name:<24} {_shown(name, value)}")
    return 0


def describe(checkpoint: Any, **planned: Any) -> dict[str, Any]:
    """Facts about a checkpoint; bytes are bytes. Nothing of the weights is read. planned: as of
    `memory`.
    """
    text = checkpoint.config.text
    tensors = checkpoint.tensors
    spans = {name: tensors.span(name) for name in tensors}
    sizes = {name: math.prod(span.shape) for name, span in spans.items()}
    dtypes = Counter(map(stored_type, spans.values()))
    kinds = Counter(text.layer_types)
    return {
        "model": checkpoint.name,
        "path": str(checkpoint.path),
        "parameters": sum(sizes.values()),
        "dtypes": dict(dtypes),
        "layers": {
            "DeltaNet": kinds["linear_attention"],
            "attention": kinds["full_attention"],
            "draft (MTP)": text.mtp_num_hidden_layers if checkpoint.has_mtp else 0,
            "vision": checkpoint.config.vision.depth if checkpoint.has_vision else 0,
        },
        "shape": {
            "hidden": text.hidden_size,
            "intermediate": text.intermediate_size,
            "vocabulary": text.vocab_size,
            "attention heads": f"{text.num_attention_heads} / {text.num_key_value_heads} kv",
            "head dim": text.head_dim,
            "DeltaNet heads": (f"{text.linear_num_key_heads} k / {text.linear_num_value_heads} v"),
            "head tied": "yes" if text.tie_word_embeddings else "no",
        },
        "trained context": checkpoint.config.context_limit,
        "memory": memory(checkpoint, **planned),
    }


def memory(
    checkpoint: Any,
    *,
    context: int | None = None,
    kv_dtype: str = "float16",
    recipe: str | None = None,
    threads: int | None = None,
) -> dict[str, int]:
    """What `load` with these arguments would take; without a context the one it would give."""
    from .machine import available_memory, default_threads
    from .memory_plan import default_context, fitted, make_plan

    plan = make_plan(
        checkpoint,
        context=default_context(checkpoint.config) if context is None else context,
        threads=threads or default_threads(),
        kv_dtype=kv_dtype,
        recipe=recipe,
    )
    available = available_memory()
    if context is None and available is not None:
        plan = fitted(plan, available)
    found = {
        "context (tokens)": plan.context,
        "weights": plan.weights,
        "of them mapped": plan.mapped,
        "K/V per token": plan.kv_per_token,
        "K/V": plan.kv,
        "state": plan.state,
        "scratch": plan.scratch,
        "screen": plan.screen,
        "total": plan.total,
    }
    return found if available is None else {**found, "available": available}


def _shown(name: str, value: Any) -> str:
    """Numbers with separators; bytes in MiB where they are many."""
    if not isinstance(value, int):
        return str(value)
    if name in BYTES:
        return f"{value / 2**20:,.1f} MiB" if value >= 2**20 else f"{value:,} bytes"
    return f"{value:,}"
