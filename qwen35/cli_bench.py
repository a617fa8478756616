"""Measure prefill and decode on random tokens: the median of several runs.

examples:
  qwen35 bench
  qwen35 bench --model ~/models/Qwen3.5-0.8B --prompt 512 --decode 32 --threads 2 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from . import __version__
from .cli import add_model_arguments, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qwen35 bench`."""
    parser.add_argument(
        "--prompt", type=int, default=512, metavar="N", help="tokens to prefill (512)"
    )
    parser.add_argument("--decode", type=int, default=32, metavar="N", help="tokens to decode (32)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="how often (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print tokens per second."""
    for name in ("prompt", "decode", "runs"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: expected at least 1")
    context = args.context or args.prompt + args.decode + 1
    with load_model(args, context=context) as model:
        figures = measure(model, prompt=args.prompt, decode=args.decode, runs=args.runs)
    if args.json:
        print(json.dumps(figures))
        return 0
    print(f"{figures['model']}, {figures['isa']}, {figures['threads']} threads")
    for name in ("prefill", "decode"):
        runs = ", ".join(f"{value:,.1f}" for value in figures[f"{name}_runs"])
        rate = figures[f"{name}_tokens_per_s"]
        print(f"{name:<8} {figures[f'{name}_tokens']:>6} tokens  {rate:>10,.1f} tokens/s  ({runs})")
    return 0


def measure(model: Any, *, prompt: int, decode: int, runs: int) -> dict[str, Any]:
    """Tokens per second of `runs` answers to prompts that share nothing, after a short one."""
    import numpy as np

    from . import _core

    rng = np.random.default_rng(0)
    top = min(model.config.text.vocab_size, model.tokenizer.vocab_size)
    model.generate(rng.integers(0, top, 4), max_tokens=2, temperature=0).result()
    prefill, decoded = [], []
    for _ in range(runs):
        ids = rng.integers(0, top, prompt)
        stream = model.generate(ids, max_tokens=decode + 1, temperature=0, ignore_eos=True)
        timings = stream.result().timings
        prefill.append(timings.prefill_tps)
        # the first token comes out of the prompt's own forward pass
        decoded.append((timings.decode_tokens - 1) / max(timings.decode_s, 1e-9))
    return {
        "model": model.name,
        "version": __version__,
        "isa": _core.cpu()["isa"],
        "threads": model.threads,
        "dtype": model.dtype,
        "prefill_tokens": prompt,
        "prefill_tokens_per_s": statistics.median(prefill),
        "prefill_runs": prefill,
        "decode_tokens": decode,
        "decode_tokens_per_s": statistics.median(decoded),
        "decode_runs": decoded,
    }
