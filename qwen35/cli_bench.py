"""Measure a model on random tokens: prefill by length, decoding by depth, batches, an image, load
time and memory. Medians of several runs; decoding beside what the measured memory bandwidth allows.

examples:
  qwen35 bench
  qwen35 bench qwen3.5-0.8b-q4_k_m.gguf --threads 2
  qwen35 bench ~/models/Qwen3.5-0.8B --full --max-tokens 8192 --json bench.json --plot bench.png
  qwen35 bench small.gguf --prompt 512,4096 --depth 0,16384 --batch 1,16
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import __version__
from .cli import add_model_arguments, load_model

QUICK = {"prompt": "128,512", "depth": "0,1024", "batch": "1,4,16", "image": 256}
FULL = {
    "prompt": "128,512,2048,8192,32768",
    "depth": "0,1024,4096,16384",
    "batch": "1,2,4,8,16,32,64",
    "image": 768,
}
BATCH_PROMPT = 32  # tokens
STDOUT = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qwen35 bench`."""
    parser.add_argument("source", nargs="?", metavar="MODEL", help="the same as --model MODEL")
    lists = {"type": _numbers, "metavar": "N,N"}
    told = "({}; --full: {})".format
    parser.add_argument("--full", action="store_true", help="more of everything: many minutes")
    parser.add_argument(
        "--prompt", help=f"tokens to prefill {told(QUICK['prompt'], FULL['prompt'])}", **lists
    )
    parser.add_argument(
        "--depth",
        help=f"tokens before those decoded {told(QUICK['depth'], FULL['depth'])}",
        **lists,
    )
    parser.add_argument(
        "--batch", help=f"sequences at once, 1 to 64 {told(QUICK['batch'], FULL['batch'])}", **lists
    )
    parser.add_argument(
        "--image",
        type=int,
        metavar="SIDE",
        help=f"pixels, 0: none {told(QUICK['image'], FULL['image'])}",
    )
    parser.add_argument("--decode", type=int, default=16, metavar="N", help="tokens to decode (16)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="how often (3)")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="leave out prompts and depths beyond"
    )
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="write all figures as JSON; without FILE to stdout, in place of the table",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (PNG)")
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the files asked for."""
    from .bench_report import plot, table

    _settle(args)
    longest = max(*args.prompt, *(depth + args.decode + 1 for depth in args.depth))
    start = time.perf_counter()
    with load_model(args, context=args.context or max(longest, (args.image // 32 + 1) ** 2)) as m:
        loaded = time.perf_counter() - start
        figures = measure(m, args)
    figures["load_s"] = loaded
    text = json.dumps(figures, indent=1) + "\n"
    if args.json is not None and args.json != STDOUT:
        args.json.write_text(text, encoding="utf-8")
    print(text if args.json == STDOUT else table(figures), end="")
    if args.plot is not None:
        plot(figures, args.plot)
    return 0


def measure(model: Any, args: argparse.Namespace) -> dict[str, Any]:
    """All figures but the load time; a bar shows how far it is."""
    from . import _core, bench
    from .bandwidth import read_bandwidth
    from .progress import bar_for

    rows: dict[str, Any] = {"prefill": [], "decode": [], "batch": [], "image": None}
    cost, bandwidth = bench.costs(model), read_bandwidth(model.threads)
    steps = [
        *(lambda n=n: rows["prefill"].append(_prefill(model, n, args.runs)) for n in args.prompt),
        *(
            lambda n=n: rows["decode"].append(_decode(model, n, args, cost, bandwidth))
            for n in args.depth
        ),
        *(lambda n=n: rows["batch"].append(_batch(model, n, args)) for n in args.batch),
        *([lambda: rows.update(image=_image(model, args))] if _sees(model, args) else []),
    ]
    bar = bar_for(None, "bench", "step")
    try:
        warm = bench.Timeline(model, 0, 80)
        warm.prefill_s(64)
        warm.decode_s(2)
        for i, step in enumerate(steps):
            if bar is not None:
                bar(i, len(steps))
            step()
    finally:
        if bar is not None:
            bar.close()
    return {
        "kind": "bench",
        "model": model.name,
        "version": __version__,
        "isa": _core.cpu()["isa"],
        "threads": model.threads,
        "dtype": model.dtype,
        "kv_dtype": model.kv_dtype,
        "read_GB_per_s": None if bandwidth is None else bandwidth / 1e9,
        "costs": cost,
        "memory": model.memory(),
        **rows,
    }


def _prefill(model: Any, tokens: int, runs: int) -> dict[str, Any]:
    from .bench import Timeline

    timeline = Timeline(model, 0, tokens)
    rates = [tokens / timeline.prefill_s(tokens, seed) for seed in range(runs)]
    return {"tokens": tokens, **_rates(rates)}


def _decode(
    model: Any, depth: int, args: argparse.Namespace, cost: dict[str, int], bandwidth: float | None
) -> dict[str, Any]:
    """Bytes are those read at the middle of the decoded tokens."""
    from .bench import Timeline, decode_bytes

    timeline = Timeline(model, depth, args.decode + 1)
    found = _rates([args.decode / timeline.decode_s(args.decode, i) for i in range(args.runs)])
    read = decode_bytes(cost, depth + args.decode // 2)
    moved = found["tokens_per_s"] * read
    return {
        "depth": depth,
        **found,
        "bytes_per_token": read,
        "GB_per_s": moved / 1e9,
        "share": None if bandwidth is None else moved / bandwidth,
    }


def _batch(model: Any, size: int, args: argparse.Namespace) -> dict[str, Any]:
    from .bench import batch_s

    how = {"prompt": BATCH_PROMPT, "steps": args.decode}
    pairs = [batch_s(model, size, seed=seed, **how) for seed in range(args.runs)]
    prefill = _rates([size * BATCH_PROMPT / pair[0] for pair in pairs])
    decode = _rates([size * args.decode / pair[1] for pair in pairs])
    return {"size": size, **decode, "prefill_tokens_per_s": prefill["tokens_per_s"]}


def _image(model: Any, args: argparse.Namespace) -> dict[str, Any]:
    from .bench import image_s

    found = [image_s(model, args.image, seed) for seed in range(args.runs + 1)][1:]
    return {"side": args.image, "seconds": statistics.median(found), "runs": found}


def _sees(model: Any, args: argparse.Namespace) -> bool:
    return args.image > 0 and model._native().feature_shape is not None


def _rates(rates: list[float]) -> dict[str, Any]:
    return {"tokens_per_s": statistics.median(rates), "runs": rates}


def _settle(args: argparse.Namespace) -> None:
    """Defaults, quick or full; ValueError for what cannot be measured, before anything is."""
    args.model = args.source or args.model
    for name, default in (FULL if args.full else QUICK).items():
        if getattr(args, name) is None:
            setattr(args, name, _numbers(default) if isinstance(default, str) else default)
    limit = args.max_tokens or args.context
    for name in ("decode", "runs", "max_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: expected 1 or more"
            )
    fits: dict[str, Callable[[int], bool]] = {
        "prompt": lambda n: limit is None or n <= limit,
        "depth": lambda n: limit is None or n + args.decode + 1 <= limit,
        "batch": lambda n: n <= 64,
    }
    for name, fit in fits.items():
        least = 0 if name == "depth" else 1
        if min(getattr(args, name)) < least:
            raise ValueError(f"--{name}: expected numbers from {least} on")
        kept = [n for n in getattr(args, name) if fit(n)]
        if not kept:
            raise ValueError(f"--{name} {getattr(args, name)}: all beyond the limit")
        setattr(args, name, kept)
    if args.plot is not None:
        from .fidelity_report import figure_class

        figure_class()  # says now what is missing, not after an hour
    for path in (args.json, args.plot):
        if path not in (None, STDOUT) and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ValueError(f"{path}: expected a file in a folder that exists")


def _numbers(text: str) -> list[int]:
    """'128,512' -> [128, 512]"""
    return sorted({int(part) for part in text.split(",")})
