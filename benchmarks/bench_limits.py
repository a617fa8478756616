#!/usr/bin/env python3
"""What is not tokens/s: import time, load to first token, memory, how soon Ctrl-C is obeyed.

    python benchmarks/bench_limits.py CHECKPOINT_DIR [--interrupt-tokens 8000] [--json limits.json]

Every figure comes from fresh processes; medians of --runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from resident import resident_bytes

IMPORT = """
import sys, time
start = time.perf_counter()
import qwen35
qwen35.load, qwen35.Model, qwen35.SamplingParams  # attributes load on first use
print(time.perf_counter() - start, "torch" in sys.modules or "transformers" in sys.modules)
"""


def in_child(name: str, *args: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, *args]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def first_token(path: str) -> dict[str, Any]:
    """Seconds from `import qwen35` to a chat's first token; memory after 512 tokens more."""
    start = time.perf_counter()
    import qwen35

    model = qwen35.load(path, progress=False)
    loaded = time.perf_counter()
    stream = model.chat(
        [{"role": "user", "content": "Hello"}], temperature=0, max_tokens=2, enable_thinking=False
    )
    next(iter(stream))
    first = time.perf_counter()
    stream.result()
    ids = list(range(1000, 1512))
    model.generate(ids, max_tokens=4, ignore_eos=True).result()
    plan = model.memory()
    return {
        "load_s": loaded - start,
        "first_token_s": first - start,
        "peak_resident": resident_bytes("VmHWM"),
        "resident": resident_bytes("VmRSS"),
        "weights": plan["weights"],
        "plan": plan,
    }


def interrupt(path: str, tokens: str) -> dict[str, Any]:
    """Seconds from SIGINT, 1 s into a prefill, to KeyboardInterrupt; is the next answer right?"""
    import numpy as np

    import qwen35

    model = qwen35.load(path, progress=False)
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    before = (
        model.chat(question, temperature=0, max_tokens=8, enable_thinking=False).result().token_ids
    )
    ids = np.random.default_rng(1).integers(0, model.tokenizer.vocab_size, int(tokens))
    sent = 0.0

    def send() -> None:
        nonlocal sent
        sent = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Timer(1.0, send).start()
    try:
        model.generate(ids, max_tokens=1).result()
    except KeyboardInterrupt:
        delay = time.perf_counter() - sent
    else:
        raise SystemExit("the prefill ended before the signal: give more --interrupt-tokens")
    after = (
        model.chat(question, temperature=0, max_tokens=8, enable_thinking=False).result().token_ids
    )
    return {"interrupt_s": delay, "same_answer_after": list(before) == list(after)}


CHILDREN = {"first_token": first_token, "interrupt": interrupt}


def median_of(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--interrupt-tokens", type=int, default=8000)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    from machine_limits import describe

    imports = [
        subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        for _ in range(options.runs + 1)
    ][1:]
    starts = [in_child("first_token", options.checkpoint) for _ in range(options.runs + 1)][1:]
    stops = [
        in_child("interrupt", options.checkpoint, str(options.interrupt_tokens))
        for _ in range(options.runs)
    ]
    weights = starts[0]["weights"]
    figures = {
        "machine": describe(os.cpu_count() or 1),
        "import_s": statistics.median(float(run.stdout.split()[0]) for run in imports),
        "imports_torch_or_transformers": any("True" in run.stdout for run in imports),
        "load_s": median_of(starts, "load_s"),
        "first_token_s": median_of(starts, "first_token_s"),
        "peak_resident_over_weights": median_of(starts, "peak_resident") / weights,
        "resident_over_weights": median_of(starts, "resident") / weights,
        "peak_resident_GB": median_of(starts, "peak_resident") / 1e9,
        "weights_GB": weights / 1e9,
        "interrupt_s": max(run["interrupt_s"] for run in stops),
        "same_answer_after": all(run["same_answer_after"] for run in stops),
    }
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    for name, value in figures.items():
        print(f"{name:32} {value:.3f}" if isinstance(value, float) else f"{name:32} {value}")


if __name__ == "__main__":
    main()
