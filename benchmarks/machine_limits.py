"""What this machine can do just now: read bandwidth, float32 and int8 peaks, the limits of all
figures.

    python benchmarks/machine_limits.py [THREADS]

machine_limits.c measures them, compiled on the spot for this processor by CC, cc, gcc or clang.
Without a compiler NumPy measures the bandwidth; peaks are null then, and shares of them left out.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(
    str(Path(__file__).parents[1])
)  # the source tree's package, where none is installed

HERE = Path(__file__).parent
NAMES = {
    "read": "read_GB_per_s",
    "float32": "float32_Gop_per_s",
    "int8": "int8_Gop_per_s",
}


@functools.cache
def program() -> Path | None:
    """machine_limits.c, compiled for as long as this process lives; None without a compiler."""
    compilers = (os.environ.get("CC", "").split()[:1] or [""])[0], "cc", "gcc", "clang"
    compiler = next((found for name in compilers if name and (found := shutil.which(name))), None)
    if compiler is None:
        return None
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "machine_limits"
    flags = ["-O3", "-march=native", "-std=gnu11", "-pthread", "-o", str(path)]
    done = subprocess.run(
        [compiler, *flags, str(HERE / "machine_limits.c")], capture_output=True, text=True
    )
    if done.returncode:
        print(f"no peaks: {compiler} refused machine_limits.c\n{done.stderr}", file=sys.stderr)
    return path if done.returncode == 0 else None


def limits(threads: int) -> dict[str, float | None]:
    """GB/s read and Gop/s of float32 and int8 (a multiply-add is two) of that many threads."""
    path = program()
    if path is None:
        from qwen35.bandwidth import read_bandwidth

        rates = {"read": read_bandwidth(threads)}
    else:
        done = subprocess.run([path, str(threads)], stdout=subprocess.PIPE, text=True, check=True)
        rates = json.loads(done.stdout)
    return {
        name: None if (rate := rates.get(key)) is None else round(rate / 1e9, 2)
        for key, name in NAMES.items()
    }


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def commit() -> str:
    """Of the source tree, with a + where files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, cwd=HERE
    )
    return done.stdout.strip()


def describe(threads: int) -> dict[str, Any]:
    """Machine, instruction set, commit, and the measured limits."""
    from qwen35 import _core

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if load is not None and load > 0.5:
        print(
            f"load {load:.1f}: others compute here, figures are not to be quoted", file=sys.stderr
        )
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "isa": _core.cpu()["isa"],
        "commit": commit(),
        "load": load,
    } | limits(threads)


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1
    print(json.dumps(limits(threads)))


if __name__ == "__main__":
    main()
