#!/usr/bin/env python3
"""qwen35 and llama.cpp on the same GGUF file, in turn: prefill, decode, batches, at depth.

    pip install llama-cpp-python==0.3.36
    qwen35 quantize CHECKPOINT_DIR model.gguf --type q4_k_m
    python benchmarks/bench_peers.py model.gguf --json peers.json
    python benchmarks/bench_peers.py model.gguf --prompt "" --decode-after "" --batch "" \\
        --depth 16384 --rounds 3
    python benchmarks/bench_peers.py bf16.gguf --checkpoint CHECKPOINT_DIR --transformers

Each engine loads the file once, in a process of its own, with the same number of threads, and waits
while another is timed; every round asks all of them for every figure, every other round backwards.
Ratios are taken round by round; medians are shown. "of limit" is a share of what the machine can
do, measured in the same round: for decoding of its read bandwidth, by the bytes of weights, state
and K/V that a token reads; for prefill of its int8 peak, by the operations of the matrices.
--transformers runs the folder of --checkpoint as well; --own lets qwen35 read that folder, not the
GGUF file.
"""

from __future__ import annotations

import argparse
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import harness
from engines import Worker
from machine_limits import describe, limits

OURS, THEIRS, SLOW = "qwen35", "llama.cpp", "transformers"
PACKAGES = {THEIRS: "llama-cpp-python", SLOW: "transformers"}
BATCH_PROMPT = 64
Task = dict[str, Any]


def tasks(options: argparse.Namespace) -> list[Task]:
    """What is measured: "what" and "how" an engine is asked, tokens of all, a name."""
    found: list[Task] = []

    def add(name: str, what: str, total: int, **how: int) -> None:
        found.append({"name": name, "what": what, "how": how, "tokens": total})

    for n in options.prompt:
        add(f"prefill {n:,}", "prefill_s", n, tokens=n, depth=0)
    for n in options.decode_after:
        add(f"decode after {n:,}", "decode_s", options.decode, tokens=options.decode, depth=n)
    for n in options.batch:
        steps = options.decode
        add(f"batch of {n}", "batch_s", n * steps, size=n, prompt=BATCH_PROMPT, steps=steps)
    for n in options.depth:
        add(f"prefill 512 at {n:,}", "prefill_s", 512, tokens=512, depth=n)
        add(f"decode at {n:,}", "decode_s", options.decode, tokens=options.decode, depth=n)
    return found


def row_of(task: Task, rounds: list[dict[str, Any]], cost: dict[str, int]) -> dict[str, Any]:
    """Medians of a task: tokens/s by engine, ratios, share of the bandwidth, operations/s."""
    mine = [r["tokens_per_s"][task["name"]] for r in rounds]
    row: dict[str, Any] = {"what": task["name"], **task["how"]}
    for engine in mine[0]:
        row[engine] = harness.median(r.get(engine) for r in mine)
    for other in [engine for engine in mine[0] if engine != OURS]:
        ratios = harness.ratios(mine, OURS, other)
        row[f"ratio_{other}"] = harness.median(ratios)
        row[f"ratios_{other}"] = [round(ratio, 3) for ratio in ratios]
    if task["what"] == "batch_s":
        return row
    depth, tokens = task["how"]["depth"], task["how"]["tokens"]
    if task["what"] == "decode_s":
        row["ops_per_token"] = cost["layer_ops"] + cost["head_ops"]
        context = cost["kv_per_token"] * (depth + tokens // 2)
        row["bytes_per_token"] = cost["weight_bytes"] + cost["state_bytes"] + context
        need, limit = row["bytes_per_token"], "read_GB_per_s"
    else:
        row["ops_per_token"] = cost["layer_ops"] + cost["head_ops"] // tokens
        row["bytes_per_token"] = cost["weight_bytes"] // tokens
        need, limit = row["ops_per_token"], "int8_Gop_per_s"
    for engine in mine[0]:
        row[f"share_{engine}"] = harness.median(
            harness.share(r["tokens_per_s"][task["name"]][engine] * need / 1e9, r["limits"][limit])
            for r in rounds
        )
    return row


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, as a file's content."""
    wanted = tasks(options)
    room = max((sum(t["how"].get(k, 0) for k in ("tokens", "depth")) for t in wanted), default=0)
    how = {"threads": options.threads, "room": room + 80}
    paths = {OURS: options.checkpoint if options.own else options.gguf, THEIRS: options.gguf}
    if options.transformers:
        paths[SLOW] = options.checkpoint
    machine = describe(options.threads)
    machine["peers"] = {e: f"{PACKAGES[e]} {version(PACKAGES[e])}" for e in paths if e in PACKAGES}
    workers = {engine: Worker(engine, str(path), **how) for engine, path in paths.items()}
    cost = workers[OURS].about
    rounds = []
    for index in range(options.rounds):
        found: dict[str, Any] = {"limits": limits(options.threads), "tokens_per_s": {}}
        for task in wanted:
            rates = found["tokens_per_s"].setdefault(task["name"], {})
            for engine in harness.in_turn(list(workers), index):
                rates[engine] = task["tokens"] / workers[engine].ask(task["what"], **task["how"])
            harness.tell(index + 1, task["name"], {e: round(r, 1) for e, r in rates.items()})
        rounds.append(found)
    for worker in workers.values():
        worker.close()
    machine |= {k: harness.median(r["limits"][k] for r in rounds) for k in rounds[0]["limits"]}
    rows = [row_of(task, rounds, cost) for task in wanted]
    more = {"file": Path(options.gguf).name, "costs": cost, "rounds": rounds}
    return harness.figures("peers", machine, rows, **more)


def shown(found: dict[str, Any]) -> str:
    """The table."""
    engines = [e for e in (OURS, THEIRS, SLOW) if e in found["rows"][0]]
    others = engines[1:]
    head = [found["file"], *engines, *(f"/ {e}" for e in others), "of limit", "theirs"]
    rows = [
        [
            row["what"],
            *(row[e] for e in engines),
            *(row[f"ratio_{e}"] for e in others),
            row.get(f"share_{OURS}"),
            row.get(f"share_{THEIRS}"),
        ]
        for row in found["rows"]
    ]
    machine = found["machine"]
    note = (
        f"tokens/s, {machine['threads']} threads, {machine['isa']}, {len(found['rounds'])} rounds"
    )
    read, peak = machine["read_GB_per_s"], machine["int8_Gop_per_s"]
    return f"{harness.table(head, rows)}\n{note}; read {read} GB/s, int8 peak {peak} Gop/s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path, metavar="GGUF", help="for both")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="the same weights")
    parser.add_argument("--own", action="store_true", help="qwen35 reads FOLDER, not GGUF")
    parser.add_argument("--transformers", action="store_true", help="run it too, on FOLDER")
    lists = {"type": harness.numbers, "metavar": "N,N"}
    parser.add_argument("--prompt", default=[128, 512, 4096], help="tokens of a prefill", **lists)
    parser.add_argument("--decode-after", default=[512], help="tokens before decoding", **lists)
    parser.add_argument("--batch", default=[1, 16], help="sequences at once", **lists)
    parser.add_argument("--depth", default=[], help="prefill 512 and decode there", **lists)
    parser.add_argument("--decode", type=int, default=32, help="tokens decoded (32)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    if (options.own or options.transformers) and not options.checkpoint:
        parser.error("--own and --transformers need --checkpoint")
    if not tasks(options):
        parser.error("nothing to measure")
    found = run(options)
    harness.write(options.json, found)
    print(shown(found))


if __name__ == "__main__":
    main()
