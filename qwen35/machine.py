"""What this process may use of the machine: processor cores and memory, cgroup limits of a
container included.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def default_threads() -> int:
    """min(allowed logical processors, whole processors of the cgroup quota, physical cores), at
    least 1.

    A second thread on a core or a thread beyond the quota makes decoding slower, not faster.
    """
    return max(1, min(_limits().values()))


def thread_reason() -> str:
    """Why that many, as in "2 of 2: physical cores" or "4 of 64: cgroup quota"."""
    limits = _limits()
    lowest = min(limits, key=lambda name: limits[name])
    return f"{max(1, limits[lowest])} of {os.cpu_count() or 1}: {lowest}"


def available_memory() -> int | None:
    """Bytes this process can still take, within its cgroup; None where the system does not say."""
    found = [limit for limit in (_free_memory(ROOT), _cgroup_memory(ROOT)) if limit is not None]
    return min(found, default=None)


def release_free_memory() -> None:
    """Give memory that was freed back to the system, where the C library (glibc) keeps it instead.

    Parsing a tokenizer.json of 33 MB leaves about 190 MB behind that nothing would use again.
    """
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _limits(root: Path = ROOT) -> dict[str, int]:
    allowed = _allowed_processors()
    quota = _cgroup_processors(root)
    limits = {"physical cores": _physical_cores(allowed, root), "affinity": len(allowed)}
    return limits if quota is None else limits | {"cgroup quota": max(1, int(quota))}


def _allowed_processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(processors: set[int], root: Path) -> int:
    """Cores behind these logical processors; where the system does not tell, each counts as one."""
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({_text(root / topology.format(n)) or str(n) for n in processors})


def _cgroup_processors(root: Path) -> float | None:
    """Processors the tightest quota from this process's cgroup up to the root allows."""
    found = []
    for folder in _cgroups(root, "cpu"):
        quota, _, period = (_text(folder / "cpu.max") or "").partition(" ")  # version 2
        if not quota:
            quota = _text(folder / "cpu.cfs_quota_us") or ""
            period = _text(folder / "cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _cgroup_memory(root: Path) -> int | None:
    """Bytes left below the tightest memory limit; file pages that can be dropped count as free."""
    found = []
    for folder in _cgroups(root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _text(folder / limit_name) or "", _text(folder / used_name) or ""
            if limit.isdecimal() and used.isdecimal():
                pages = _table(folder / "memory.stat", " ")
                dropped = pages.get("active_file", 0) + pages.get("inactive_file", 0)
                found.append(max(0, int(limit) - max(0, int(used) - dropped)))
    return min(found, default=None)


def _free_memory(root: Path) -> int | None:
    kilobytes = _table(root / "proc/meminfo", ":").get("MemAvailable")
    return None if kilobytes is None else kilobytes * 1024


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup and all above it, for version 2 and for a controller of
    version 1.
    """
    if root == ROOT and sys.platform != "linux":
        return
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, inner = (line.split(":", 2) + ["", ""])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        parts = [part for part in inner.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:depth])


def _table(path: Path, separator: str) -> dict[str, int]:
    rows = (line.partition(separator) for line in (_text(path) or "").splitlines())
    return {key: int(number) for key, _, rest in rows if (number := rest.split()[0]).isdecimal()}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
