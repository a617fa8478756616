"""What this machine can do just now: read bandwidth and float32 rate, the limits of all figures.

python benchmarks/machine_limits.py [THREADS]
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def best_seconds(work: Callable[[], object], threads: int, runs: int = 5) -> float:
    """Shortest time in which `threads` threads each do `work` once."""
    times = []
    for _ in range(runs):
        team = [threading.Thread(target=work) for _ in range(threads)]
        start = time.perf_counter()
        for t in team:
            t.start()
        for t in team:
            t.join()
        times.append(time.perf_counter() - start)
    return min(times)


def read_bandwidth(threads: int) -> float:
    """Bytes/s of dot products that read 256 MB a thread: BLAS sdot does nothing but read."""
    x = np.ones(64 << 20, np.float32)
    return threads * x.nbytes / best_seconds(lambda: np.dot(x, x), threads)


def float32_rate(threads: int) -> float:
    """Operations/s of NumPy's own float32 matrix product, one product a thread."""
    a = np.ones((768, 768), np.float32)
    return threads * 20 * 2 * 768**3 / best_seconds(lambda: [a @ a for _ in range(20)], threads)


def describe(threads: int) -> dict[str, Any]:
    """Machine, commit, and the measured limits."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "commit": commit,
    } | limits(threads)


def limits(threads: int) -> dict[str, float]:
    """The measured limits, from a process whose BLAS leaves the threads to us."""
    done = subprocess.run(
        [sys.executable, __file__, str(threads)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1
    figures = {
        "read_GB_per_s": round(read_bandwidth(threads) / 1e9, 1),
        "float32_Gop_per_s": round(float32_rate(threads) / 1e9),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
