"""What this machine and installation offer, and what would be used.

examples:
  qwen35 doctor
  QWEN35_ISA=avx2 qwen35 doctor
"""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from pathlib import Path

from . import __version__
from .cli import add_traceback

NEEDED = ("numpy", "tokenizers", "huggingface-hub", "jinja2", "pillow", "ml_dtypes", "tqdm")
OPTIONAL = {
    "ipykernel": "notebooks: pip install 'qwen35[notebook]'",
    "nbclient": "running notebooks in tests: pip install 'qwen35[notebook]'",
    "transformers": "parity tests: pip install 'qwen35[parity]'",
}
VARIABLES = ("QWEN35_ISA", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "HF_HOME", "HF_HUB_OFFLINE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `qwen35 doctor`."""
    add_traceback(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line a fact; 1 if something needed is missing."""
    rows, missing = examine()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 1 if missing else 0


def examine() -> tuple[list[tuple[str, str]], list[str]]:
    """(name and value of every fact, names of needed packages that are missing)."""
    from . import _core
    from .machine import available_memory, thread_reason

    cpu = _core.cpu()
    free = available_memory()
    rows = [
        ("qwen35", f"{__version__} in {Path(__file__).parent}"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("processor", _processor()),
        ("isa", f"{cpu['isa']} (of {', '.join(cpu['available'])})"),
        ("features", ", ".join(cpu["features"]) or "none beyond the baseline"),
        ("threads", thread_reason()),
        ("memory", "unknown" if free is None else f"{free / 2**30:.1f} GiB available"),
        ("blas", cpu["blas"]),
        ("tiny", _tiny()),
    ]
    versions = {name: _version(name) for name in NEEDED}
    rows += [(name, version or "MISSING: pip install qwen35") for name, version in versions.items()]
    for name, use in OPTIONAL.items():
        rows.append((name, _version(name) or f"not installed ({use})"))
    rows += [(name, os.environ[name]) for name in VARIABLES if name in os.environ]
    return rows, [name for name, version in versions.items() if version is None]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name."""
    try:
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _tiny() -> str:
    weights = Path(__file__).parent / "tiny" / "model.safetensors"
    if not weights.exists():
        return "not in this installation"
    return f"{weights.stat().st_size / 2**20:.1f} MiB, inside the package"
