"""The kernels that test_kernels.py and test_products.py test: the extension module's, or those of
tests/native/driver.c, compiled for another processor and run by an emulator:

  bash tests/native/build.sh aarch64-linux-gnu-gcc driver -static
  QWEN35_TEST_DRIVER="qemu-aarch64 -cpu cortex-a72 ./driver" python -m pytest tests/test_kernels.py

A request is a line of words, a line for each array, and for each buffer a line with its size and
the bytes; the answer is a line, and all buffers. Arrays over the same memory share a buffer. The
driver lays buffers before a forbidden page, and then again behind one: the answers have to be the
same to the bit.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from qwen35 import _core

Array = NDArray[Any]
DTYPES = {"float32": 0, "float16": 1, "uint16": 2, "int16": 2, "uint8": 0}  # uint8: blocks


class Driver:
    """The functions of `_core` that those tests use, by way of the driver. What reads files'
    formats is the module's own: an oracle there.
    """

    formats = staticmethod(_core.formats)
    decode_blocks = staticmethod(_core.decode_blocks)

    def __init__(self, command: str) -> None:
        self._command = shlex.split(command)
        self._process: subprocess.Popen[bytes] | None = None

    def kernels(self) -> tuple[str, ...]:
        """Targets of the processor that the driver sees, best last."""
        return tuple(self._ask("kernels", "-", "-", 0, [], [], []).split())

    def run_kernel(self, target: str, name: str, *args: Any) -> tuple[float, ...] | None:
        """As `_core.run_kernel`."""
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        for array in arrays:
            if array.dtype.name not in DTYPES:
                raise ValueError(f"run_kernel: {array.dtype} is no type of kernels")
        numbers = [float(a) for a in args if not isinstance(a, np.ndarray)]
        return self._run("kernel", target, name, arrays, numbers)

    def run_product(
        self,
        target: str,
        type: str,
        blocks: Array,
        x: Array,
        y: Array,
        *,
        packed: bool = True,
        fine: bool = False,
        add: bool = False,
        threads: int = 1,
    ) -> None:
        """As `_core.run_product`."""
        _, elements, size, _ = self.formats()[type]
        if blocks.shape[1] * elements != x.shape[1] * size:
            raise ValueError("run_product: types or shapes do not fit")
        self._run("product", target, type, [blocks, x, y], [packed, fine, add, threads])

    def _run(
        self, kind: str, target: str, name: str, arrays: list[Array], numbers: list[Any]
    ) -> tuple[float, ...] | None:
        lines, flat, places = [], [], {}
        for array in arrays:
            rows = array.shape[0] if array.ndim == 2 else 1
            columns = array.shape[-1]
            stride = array.strides[0] // array.itemsize if rows > 1 else columns
            where = array.__array_interface__["data"][0]
            if where not in places:
                places[where] = len(flat)
                flat.append(as_strided(array, ((rows - 1) * stride + columns,), (array.itemsize,)))
            dtype = DTYPES[array.dtype.name]
            lines.append(f"{places[where]} {rows} {columns} {stride} {dtype}")
        numbers = [float(n) for n in (*numbers, 0, 0, 0, 0)][:4]
        given = [f.tobytes() for f in flat]
        answers = []
        for at_end in (1, 0):
            line = self._ask(kind, target, name, at_end, given, lines, numbers)
            if line.startswith("error"):
                raise ValueError(line.removeprefix("error ").strip())
            answers.append((line, [self._read(len(g)) for g in given]))
        line, after = answers[0]
        for i, changed in enumerate(after):
            if not same(changed, answers[1][1][i], flat[i].dtype):
                raise AssertionError(f"{target} {name}: buffer {i} depends on where it lies")
            if changed != given[i]:
                flat[i][...] = np.frombuffer(changed, flat[i].dtype)
        count = int(line.split()[1])
        results = line.split()[2 : 2 + count]
        return tuple(map(float.fromhex, results)) or None

    def _ask(
        self,
        kind: str,
        target: str,
        name: str,
        at_end: int,
        buffers: list[bytes],
        lines: list[str],
        numbers: list[float],
    ) -> str:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        ask, tell = self._process.stdin, self._process.stdout
        assert ask and tell
        spoken = " ".join(f"{n!r}" for n in (*numbers, 0, 0, 0, 0)[:4])
        head = f"{kind} {target} {name} {at_end} {len(buffers)} {len(lines)} {spoken}"
        text = "".join(f"{line}\n" for line in (head, *lines)).encode()
        try:
            ask.write(text + b"".join(b"%d\n" % len(b) + b for b in buffers))
            ask.flush()
            line = tell.readline().decode()
        except BrokenPipeError:
            line = ""
        if not line:
            code, self._process = self._process.wait(), None
            raise RuntimeError(f"{target} {name}: the driver ended with {code}")
        return line

    def _read(self, bytes: int) -> bytes:
        assert self._process and self._process.stdout
        return self._process.stdout.read(bytes)


def same(a: bytes, b: bytes, dtype: np.dtype[Any]) -> bool:
    """The same bits, or NaN in the same places: which NaN an operation on two of them gives is the
    compiler's choice.
    """
    if a == b:
        return True
    x, y = np.frombuffer(a, dtype), np.frombuffer(b, dtype)
    return dtype.kind == "f" and np.array_equal(x, y, equal_nan=True)


core: Any = _core
if os.environ.get("QWEN35_TEST_DRIVER"):
    core = Driver(os.environ["QWEN35_TEST_DRIVER"])
