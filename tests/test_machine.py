"""Oracle: literals; the system's files are written into a folder that stands for the root."""

from pathlib import Path
from typing import Any

import pytest

from qwen35 import machine


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def topology(processors: int, per_core: int) -> dict[str, str]:
    """Files that say which logical processors share a core."""
    folder = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = processors // per_core
    return {
        folder.format(n): ",".join(str(n % cores + k * cores) for k in range(per_core)) + "\n"
        for n in range(processors)
    }


def limits(root: Path, monkeypatch: Any, processors: int) -> dict[str, int]:
    monkeypatch.setattr(machine, "_allowed_processors", lambda: set(range(processors)))
    return machine._limits(root)


def test_physical_cores(tmp_path: Path, monkeypatch: Any) -> None:
    root = write(tmp_path, **topology(8, 2))
    assert limits(root, monkeypatch, 8) == {"physical cores": 4, "affinity": 8}
    assert limits(root, monkeypatch, 3) == {"physical cores": 3, "affinity": 3}


def test_unknown_topology_counts_processors(tmp_path: Path, monkeypatch: Any) -> None:
    assert limits(tmp_path, monkeypatch, 6)["physical cores"] == 6


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/cpu.max": "800000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/0123\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "rubbish\n::\n0::/../../etc\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"}, None),
    ],
)
def test_quota(tmp_path: Path, monkeypatch: Any, files: dict[str, str], wanted: int | None) -> None:
    root = write(tmp_path, **topology(16, 2), **files)
    assert limits(root, monkeypatch, 16).get("cgroup quota") == wanted


@pytest.mark.parametrize(
    ("found", "threads", "reason"),
    [
        ({"physical cores": 2, "affinity": 2}, 2, "physical cores"),
        ({"physical cores": 8, "affinity": 16, "cgroup quota": 3}, 3, "cgroup quota"),
        ({"physical cores": 1, "affinity": 1, "cgroup quota": 1}, 1, "physical cores"),
    ],
)
def test_reason(monkeypatch: Any, found: dict[str, int], threads: int, reason: str) -> None:
    monkeypatch.setattr(machine, "_limits", lambda: found)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 64)
    assert machine.default_threads() == threads
    assert machine.thread_reason() == f"{threads} of 64: {reason}"


def test_this_machine() -> None:
    assert machine.default_threads() >= 1
    free = machine.available_memory()
    assert free is None or free > 0


def test_memory(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        **{
            "proc/meminfo": "MemTotal:       2048 kB\nMemAvailable:    1000 kB\n",
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": "900000\n",
            "sys/fs/cgroup/a/memory.current": "500000\n",
            "sys/fs/cgroup/a/memory.stat": "anon 7\nactive_file 100000\ninactive_file 50000\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
    )
    assert machine._free_memory(root) == 1000 * 1024
    assert machine._cgroup_memory(root) == 900_000 - (500_000 - 150_000)
    assert machine._free_memory(tmp_path / "nowhere") is None
    assert machine._cgroup_memory(tmp_path / "nowhere") is None
