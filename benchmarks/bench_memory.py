#!/usr/bin/env python3
"""What a model takes of memory, beside what Model.memory() says, and its speed at that depth.

    python benchmarks/bench_memory.py qwen3.5-9b-q4_k_m.gguf --context 4096 --json memory.json

A fresh process loads FILE for --context tokens, reads all of them but --decode (--fill: fewer), and
decodes --decode tokens at the end. GB are 10^9 bytes. "beyond" is the peak over weights, K/V, state
and scratch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PARTS = ("weights", "kv", "state", "scratch", "screen", "total")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one load, in this process."""
    import numpy as np
    from resident import resident

    import qwen35
    from qwen35 import _core

    start = time.perf_counter()
    model = qwen35.load(
        options.file,
        context=options.context,
        threads=options.threads,
        kv_dtype=options.kv_dtype,
        quantize=options.quantize,
        vision=options.vision,
        progress=False,
    )
    loaded, after_load = time.perf_counter(), resident()
    fill = options.context - options.decode if options.fill is None else options.fill
    ids = np.random.default_rng(0).integers(0, model.config.text.vocab_size, fill, np.int32)
    core = model.session()._core
    filling = time.perf_counter()
    core.prefill(ids)
    filled = time.perf_counter()
    for _ in core.generate(ids[:1], max_tokens=options.decode):
        pass
    decoded = time.perf_counter()
    memory, at_end = model.memory(), resident()
    return {
        "file": Path(options.file).name,
        "isa": _core.cpu()["isa"],
        "threads": model.threads,
        "context": model.context,
        "kv_dtype": model.kv_dtype,
        "depth": core.position,
        "load_s": loaded - start,
        "prefill_tokens_per_s": fill / (filled - filling),
        "decode_tokens_per_s": options.decode / (decoded - filled),
        "memory": memory,
        "resident_after_load": after_load,
        "resident_at_end": at_end,
        "beyond": at_end["VmHWM"] / memory["total"] - 1,
    }


def show(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    for name, value in figures.items():
        if isinstance(value, dict) and name != "machine":
            print(f"{name}:")
            for key, size in value.items():
                print(f"  {key:<20} {size / 1e9:8.3f} GB")
        else:
            print(f"{name:<22} {f'{value:.3f}' if isinstance(value, float) else value}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE", help="a GGUF file or a folder")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--fill", type=int, help="tokens read before decoding")
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--quantize", metavar="T", help="make blocks at load")
    parser.add_argument("--vision", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 0 < options.decode < options.context:
        parser.error(f"--decode {options.decode}: expected 1 to less than --context")
    if options.fill is not None and not options.decode <= options.fill:
        parser.error(f"--fill {options.fill}: expected at least --decode")
    if options.child:
        print(json.dumps(measure(options)))
        return
    from machine_limits import describe

    command = [sys.executable, __file__, "--child", *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures = {"machine": describe(options.threads)} | json.loads(done.stdout.splitlines()[-1])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    show(figures)


if __name__ == "__main__":
    main()
