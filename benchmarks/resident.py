"""Resident memory of this process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

KINDS = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


def resident_bytes(kind: str) -> int:
    """VmHWM (peak), VmRSS (now), or its parts: RssAnon (allocated), RssFile (mapped files, counted
    once read).
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status: no line {kind}")


def resident() -> dict[str, int]:
    """All of them."""
    return {kind: resident_bytes(kind) for kind in KINDS}


def forget_peak() -> None:
    """Let VmHWM start again from what is resident now (proc(5): 5 into clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
