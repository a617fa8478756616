"""Oracle: bytes written out by hand after ggml's docs/gguf.md, what a folder holds after a run was
stopped, and as an extra the gguf package.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen35.gguf_file import GgufFile
from qwen35.gguf_types import BY_NAME
from qwen35.gguf_write import OutTensor, Typed, write_gguf

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="sends signals, takes locks")


def tensor(name: str, x: Any, kind: str = "F32", shape: tuple[int, ...] | None = None) -> OutTensor:
    return OutTensor(name, BY_NAME[kind], shape or x.shape, lambda share: [x])


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes(tmp_path: Path) -> None:
    """Every field of a small file: two keys, a vector of 3 (12 bytes and 20 of padding), a matrix
    of one Q8_0 block.
    """
    path = tmp_path / "x.gguf"
    block = np.arange(34, dtype=np.uint8)
    size = write_gguf(
        path,
        {"a.b": 7, "c": ["x", "yz"]},
        [
            tensor("one", np.array([1, 2, 3], np.float32)),
            tensor("two", block, "Q8_0", (1, 32)),
        ],
    )
    want = b"GGUF" + struct.pack("<IQQ", 3, 2, 2)
    want += struct.pack("<Q", 3) + b"a.b" + struct.pack("<II", 4, 7)
    want += struct.pack("<Q", 1) + b"c" + struct.pack("<IIQ", 9, 8, 2)
    want += struct.pack("<Q", 1) + b"x" + struct.pack("<Q", 2) + b"yz"
    want += struct.pack("<Q", 3) + b"one" + struct.pack("<IQIQ", 1, 3, 0, 0)
    want += struct.pack("<Q", 3) + b"two" + struct.pack("<IQQIQ", 2, 32, 1, 8, 32)
    want += bytes(-len(want) % 32)
    want += struct.pack("<3f", 1, 2, 3) + bytes(20) + bytes(range(34)) + bytes(30)
    assert path.read_bytes() == want
    assert (size, left_in(tmp_path)) == (len(want), ["x.gguf"])


VALUES = {
    "bool": True,
    "int": 4294967295,
    "long": 1 << 40,
    "float": 0.1,
    "text": "größer",
    "none": Typed(8, []),
    "ints": [3, -4],
    "bools": [True, False],
    "floats": [0.5, 1e-6],
    "typed": Typed(5, -1),
    "bytes": Typed(0, np.array([1, 255], np.uint8)),
}


def test_values_read_back(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", VALUES, [tensor("t", np.zeros(1, np.float32))])
    found = GgufFile(tmp_path / "x.gguf").metadata
    assert {k: list(v) if isinstance(v, np.ndarray) else v for k, v in found.items()} == {
        **VALUES,
        "none": [],
        "floats": [0.5, np.float32(1e-6)],
        "typed": -1,
        "bytes": [1, 255],
    }


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    write_gguf(tmp_path / "x.gguf", VALUES, [tensor("m", x), tensor("n", x[0])])
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert reader.fields["text"].contents() == "größer"
    assert reader.fields["ints"].contents() == [3, -4]
    assert np.array_equal(reader.tensors[0].data, x)
    assert np.array_equal(reader.tensors[1].data, x[0])


def test_existing_files(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.gguf", [tensor("t", np.ones(1, np.float32))]
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"x\.gguf: exists already; --overwrite"):
        write_gguf(path, {}, tensors)
    assert path.read_bytes() == b"old"
    write_gguf(path, {}, tensors, overwrite=True)
    assert list(GgufFile(path)) == ["t"]
    with pytest.raises(IsADirectoryError, match="a folder"):
        write_gguf(tmp_path, {}, tensors, overwrite=True)
    with pytest.raises(FileNotFoundError):
        write_gguf(tmp_path / "absent" / "x.gguf", {}, tensors)
    with pytest.raises(NotADirectoryError):
        write_gguf(path / "x.gguf", {}, tensors)


def test_somebody_else_was_faster(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"

    def make(share: Any) -> Any:
        path.write_bytes(b"theirs")
        return [np.ones(1, np.float32)]

    with pytest.raises(FileExistsError):
        write_gguf(path, {}, [OutTensor("t", BY_NAME["F32"], (1,), make)])
    assert path.read_bytes() == b"theirs"
    assert left_in(tmp_path) == ["x.gguf"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            write_gguf(tmp_path / "x.gguf", {}, [])
    finally:
        tmp_path.chmod(0o700)


def test_disk_too_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 4_000))
    made = []
    with pytest.raises(OSError, match=r"4,\d{3} bytes are to be written but the disk has 4,000"):
        zeros = OutTensor("t", BY_NAME["F32"], (1024,), lambda share: made.append(1))
        write_gguf(tmp_path / "x.gguf", {}, [zeros])
    assert (made, left_in(tmp_path)) == ([], [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_nothing_is_left_of_a_run_that_failed(tmp_path: Path, error: type) -> None:
    def make(share: Any) -> Any:
        assert len(left_in(tmp_path)) == 1
        raise error

    good = tensor("a", np.ones(1, np.float32))
    with pytest.raises(error):
        write_gguf(tmp_path / "x.gguf", {}, [good, OutTensor("t", BY_NAME["F32"], (1,), make)])
    assert left_in(tmp_path) == []


def test_tensors_that_do_not_fit_what_they_announced(tmp_path: Path) -> None:
    x = np.zeros((2, 32), np.float32)
    with pytest.raises(ValueError, match="'t': 256 bytes were made: expected 128, F16 of"):
        write_gguf(tmp_path / "x.gguf", {}, [tensor("t", x, "F16")])
    with pytest.raises(ValueError, match="expected rows of a multiple of 256, the block of Q4_K"):
        write_gguf(tmp_path / "x.gguf", {}, [tensor("t", x, "Q4_K")])
    with pytest.raises(ValueError, match="a name of 64 bytes: expected less than 64"):
        write_gguf(tmp_path / "x.gguf", {}, [tensor("t" * 64, x)])
    assert left_in(tmp_path) == []


def test_progress(tmp_path: Path) -> None:
    def make(share: Any) -> Any:
        share(0.5)
        return [np.zeros(30, np.float32), np.zeros(70, np.float32)]

    seen: list[tuple[int, int]] = []
    tensors = [OutTensor(name, BY_NAME["F32"], (100,), make) for name in "ab"]
    write_gguf(tmp_path / "x.gguf", {}, tensors, report=lambda *at: seen.append(at))
    assert seen == [(200, 800), (400, 800), (600, 800), (800, 800)]


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from qwen35.gguf_types import BY_NAME
from qwen35.gguf_write import OutTensor, write_gguf

def make(share):
    time.sleep(float(sys.argv[2]))
    yield np.full(4096, 7, np.float32)

tensors = [OutTensor(f"t{i}", BY_NAME["F32"], (4096,), make) for i in range(40)]
print("ready", flush=True)
write_gguf(Path(sys.argv[1]), {"general.architecture": "x"}, tensors, overwrite=True)
print("written", flush=True)
time.sleep(60)
"""


def start(path: Path, pause_s: float = 0.002) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, str(path), str(pause_s)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    return run


def whole(path: Path) -> bool:
    file = GgufFile(path)
    return len(file) == 40 and all((x == 7).all() for x in file.values())


@POSIX
def test_what_dead_runs_left_is_cleared(tmp_path: Path) -> None:
    """By the next run of the same file, and nothing else is. Kills: test_gguf_kill.py."""
    path = tmp_path / "x.gguf"
    others = [tmp_path / ".x.gguf.two.gguf.abcd.part", tmp_path / ".y.gguf.abcd.part"]
    for other in (*others, tmp_path / ".x.gguf.abcd.part", tmp_path / ".x.gguf.efgh.part"):
        other.touch()
    write_gguf(path, {}, [tensor("t", np.ones(1, np.float32))], overwrite=True)
    assert left_in(tmp_path) == [*sorted(other.name for other in others), "x.gguf"]


@POSIX
def test_runs_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    runs = [start(path), start(path)]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "written\n"
        run.kill()
        run.wait()
    assert whole(path)
    assert left_in(tmp_path) == ["x.gguf"]


@POSIX
def test_ctrl_c(tmp_path: Path) -> None:
    run = start(tmp_path / "x.gguf", pause_s=0.5)
    while not left_in(tmp_path):
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    run.wait(20)
    assert run.returncode != 0
    assert left_in(tmp_path) == []
