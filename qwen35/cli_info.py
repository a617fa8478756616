"""What a model is and what it needs, read from config.json and the weight files' headers alone.

examples:
  qwen35 info tiny
  qwen35 info ~/models/Qwen3.5-4B --context 32768 --json
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from typing import Any

from .blocks import stored_type
from .cli import add_traceback


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qwen35 info`."""
    parser.add_argument("model", metavar="MODEL", help="'tiny', a folder, or a hub id")
    parser.add_argument("--context", type=int, metavar="N", help="tokens to plan memory for")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--offline", action="store_true", help="use the hub's cache alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_traceback(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts."""
    from .loading import open_checkpoint

    if args.context is not None and args.context < 1:
        raise ValueError(f"--context {args.context}: expected at least 1 token")
    checkpoint = open_checkpoint(args.model, revision=args.revision, local_files_only=args.offline)
    facts = describe(checkpoint, context=args.context)
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


def describe(checkpoint: Any, *, context: int | None = None) -> dict[str, Any]:
    """Facts about a checkpoint; bytes are bytes. Nothing of the weights is read."""
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
        "memory": memory_plan(checkpoint.config, spans, context=context),
    }


def memory_plan(config: Any, spans: dict[str, Any], *, context: int | None) -> dict[str, int]:
    """Bytes that answering takes: weights, one session's K/V (16 bits) and recurrent state
    (f32).
    """
    text = config.text
    tokens = min(config.context_limit, 32_768) if context is None else context
    attention = text.layer_types.count("full_attention")
    deltanet = len(text.layer_types) - attention
    per_token = 2 * 2 * attention * text.num_key_value_heads * text.head_dim
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    matrix = text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim
    tail = (text.linear_conv_kernel_dim - 1) * (2 * keys + values)
    weights = sum(s.nbytes for n, s in spans.items() if not n.startswith("mtp."))
    plan = {
        "context (tokens)": tokens,
        "weights": weights,
        "K/V per token": per_token,
        "K/V": per_token * tokens,
        "state": 4 * deltanet * (matrix + tail),
    }
    return {**plan, "total": plan["weights"] + plan["K/V"] + plan["state"]}


def _shown(name: str, value: Any) -> str:
    """Numbers with separators; bytes in MiB where they are many."""
    if not isinstance(value, int):
        return str(value)
    if name in ("weights", "K/V per token", "K/V", "state", "total"):
        return f"{value / 2**20:,.1f} MiB" if value >= 2**20 else f"{value:,} bytes"
    return f"{value:,}"
