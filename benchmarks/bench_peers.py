#!/usr/bin/env python3
"""qwen35 and llama.cpp on the same GGUF file, in turn: prefill and decode, medians and ratios.

    pip install llama-cpp-python==0.3.36
    qwen35 quantize CHECKPOINT_DIR model.gguf --type q4_k_m
    python benchmarks/bench_peers.py model.gguf --rounds 5 --json peers.json
    python benchmarks/bench_peers.py model.gguf --depth 16384
    python benchmarks/bench_peers.py bf16.gguf --checkpoint CHECKPOINT_DIR

--depth tokens are read first, untimed. --checkpoint: a folder with the same weights, for qwen35.

Each round starts a fresh process for each engine, alternating, so that a machine that drifts slows
both. The same random token ids go to both. Ratios are taken round by round; quote their median.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def random_ids(prompt: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200_000, prompt).astype(np.int32)


def run_qwen35(path: str, prompt: int, decode: int, depth: int, threads: int) -> dict[str, float]:
    """One warm-up prefill, then behind `depth` tokens one timed prefill and `decode` timed single
    tokens.
    """
    import qwen35

    ids = random_ids(prompt)
    room = depth + prompt + decode + 8
    with qwen35.load(path, threads=threads, context=room, progress=False) as model:
        for timed in (False, True):
            core = model.session()._core
            if timed and depth:
                core.prefill(random_ids(depth))
            start = time.perf_counter()
            core.prefill(ids if timed else ids[:64])
            middle = time.perf_counter()
            for i in range(decode if timed else 2):
                core.prefill(ids[i : i + 1])
            end = time.perf_counter()
    return {"prefill": prompt / (middle - start), "decode": decode / (end - middle)}


def llama_append(ll: Any, context: Any, ids: np.ndarray, start: int) -> None:
    batch = ll.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), start + i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, i == len(ids) - 1
    if ll.llama_decode(context, batch):
        raise SystemExit("llama_decode failed")
    ll.llama_synchronize(context)
    ll.llama_batch_free(batch)


def run_llama(path: str, prompt: int, decode: int, depth: int, threads: int) -> dict[str, float]:
    """The same work through llama.cpp's C functions."""
    import llama_cpp as ll

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    def silent(level: int, text: bytes, data: object) -> None:
        pass

    ll.llama_log_set(silent, None)
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = depth + prompt + decode + 8, 2048, 512
    params.n_threads = params.n_threads_batch = threads
    ids = random_ids(prompt)
    for timed in (False, True):
        context = ll.llama_init_from_model(model, params)
        before = depth if timed else 0
        for i in range(0, before, 2048):
            llama_append(ll, context, random_ids(before)[i : i + 2048], i)
        start = time.perf_counter()
        llama_append(ll, context, ids if timed else ids[:64], before)
        middle = time.perf_counter()
        for i in range(decode if timed else 2):
            llama_append(ll, context, ids[i : i + 1], before + (prompt if timed else 64) + i)
        end = time.perf_counter()
        ll.llama_free(context)
    return {"prefill": prompt / (middle - start), "decode": decode / (end - middle)}


ENGINES = {"qwen35": run_qwen35, "llama.cpp": run_llama}


def measure(engine: str, path: str, options: argparse.Namespace) -> dict[str, float]:
    """One engine in a process of its own."""
    sizes = [options.prompt, options.decode, options.depth, options.threads]
    done = subprocess.run(
        [sys.executable, __file__, "--child", engine, path, *map(str, sizes)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians of each engine, and the median of the ratios of each round."""
    result: dict[str, Any] = {}
    for phase in ("prefill", "decode"):
        ours = [r["qwen35"][phase] for r in rounds]
        theirs = [r["llama.cpp"][phase] for r in rounds]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        result[phase] = {
            "qwen35": round(statistics.median(ours), 2),
            "llama.cpp": round(statistics.median(theirs), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(r, 3) for r in ratios],
        }
    return result


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        engine, path, *sizes = sys.argv[2:]
        print(json.dumps(ENGINES[engine](path, *map(int, sizes))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", help="for both")
    parser.add_argument("--checkpoint", help="a folder with the same weights, for qwen35")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--depth", type=int, default=0, help="tokens in the context before")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()

    from machine_limits import describe

    machine = describe(options.threads)
    print(json.dumps(machine), file=sys.stderr)
    rounds = []
    for i in range(options.rounds):
        order = list(ENGINES) if i % 2 == 0 else list(ENGINES)[::-1]
        paths = {"qwen35": options.checkpoint or options.gguf, "llama.cpp": options.gguf}
        rounds.append({engine: measure(engine, paths[engine], options) for engine in order})
        print(json.dumps(rounds[-1]), file=sys.stderr)
    figures = {"machine": machine, "prompt": options.prompt, "decode": options.decode}
    figures |= {"depth": options.depth, "file": Path(options.gguf).name}
    figures |= {"tokens_per_s": summary(rounds), "rounds": rounds}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    print(
        f"{'':8} {'qwen35':>10} {'llama.cpp':>10} {'ratio':>7}   tokens/s, prompt {options.prompt}"
    )
    for phase, row in figures["tokens_per_s"].items():
        print(f"{phase:8} {row['qwen35']:10.1f} {row['llama.cpp']:10.1f} {row['ratio']:7.2f}")


if __name__ == "__main__":
    main()
