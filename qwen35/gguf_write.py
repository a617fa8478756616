"""GGUF files, written whole or not at all.

metadata, tensors (name, type, shape known; bytes made one tensor at a time) -> `.DST.<random>.part`
in DST's folder -> fsync -> rename. Whatever ends the process, DST is absent, the old file, or
complete. The part file is locked while its writer lives: one that can be locked belongs to a dead
run, and the next writer of the same DST removes it. Version 3, little-endian. Source: ggml's
docs/gguf.md. Does not know what keys and tensors mean (gguf_export.py).
"""

import contextlib
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .gguf_file import MAX_NAME
from .gguf_metadata import ARRAY, BOOL, FLOAT32, STRING, UINT32, scalar_types
from .gguf_types import GgmlType
from .json_file import shown

try:
    import fcntl
except ImportError:  # not a POSIX system: stale part files stay
    fcntl = None  # type: ignore[assignment]

ALIGNMENT = 32
INT32, UINT64 = 5, 10
PIECE_BYTES = 16 << 20  # written between two looks at Ctrl-C

Share = Callable[[float], None]  # how much of a tensor is made, 0 to 1
Report = Callable[[int, int], object]  # bytes done, bytes in all


@dataclass(frozen=True)
class Typed:
    """A value, or the elements of an array, as this GGUF type."""

    kind: int
    value: Any


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written. shape: elements, innermost last. make() gives arrays of `nbytes`
    bytes in all, written as they come, and may say on its way how far it is.
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    make: Callable[[Share], Iterable[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        """Bytes of the data, without padding."""
        return math.prod(self.shape) // self.type.block * self.type.block_bytes


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[OutTensor],
    *,
    overwrite: bool = False,
    report: Report | None = None,
) -> int:
    """Write a file and return its size in bytes.

    Values: bool, int (UINT32, or UINT64 where it must), float (FLOAT32), str, lists of one of them
    (integers as INT32), or Typed. Raises FileExistsError without overwrite, FileNotFoundError or
    PermissionError about the folder, OSError (with numbers) where the disk is too full; ValueError
    for a tensor whose bytes are not those it announced.
    """
    with pending_gguf(path, metadata, tensors, overwrite=overwrite, report=report) as total:
        return total


@contextlib.contextmanager
def pending_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[OutTensor],
    *,
    overwrite: bool = False,
    report: Report | None = None,
) -> Iterator[int]:
    """A file that is whole on the disk within the block, and gets its name at its end; an error in
    the block removes it. Gives its size; the rest is as of `write_gguf`.
    """
    refuse_existing(path, overwrite)
    header = _header(metadata, tensors)
    total = len(header) + sum(_padded(tensor.nbytes) for tensor in tensors)
    _remove_stale(path)
    check_space(path.parent, total)
    with _part_file(path) as file:
        file.write(header)
        _write_tensors(file, tensors, report)
        file.sync()
        yield total
        refuse_existing(path, overwrite)  # somebody else was faster
        os.replace(file.name, path)
    _sync_folder(path.parent)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """FileExistsError where there is something that may not be replaced."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder: expected the name of a file to write")
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path}: exists already; --overwrite (overwrite=True) replaces it")


def check_space(folder: Path, needed: int) -> None:
    """OSError with both numbers where the disk has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: {needed:,} bytes are to be written but the disk has {free:,} free; make "
            "room, or take a smaller type"
        )


# The part file


class _Part:
    """The open part file of `path` under its name; every write goes through whole."""

    def __init__(self, file: BinaryIO, name: str, path: Path) -> None:
        self._file, self.name, self._path = file, name, path
        self._done = 0

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        with self._explained():
            while view:
                count = self._file.write(view)
                view, self._done = view[count:], self._done + count

    def sync(self) -> None:
        with self._explained():
            os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """The system's error about a descriptor, as one about the file."""
        try:
            yield
        except OSError as error:
            found = OSError(
                f"{self._path}: writing stopped after {self._done:,} bytes: {error.strerror}; "
                "nothing is kept of the file; make room, or take a smaller type"
            )
            found.errno = error.errno
            raise found from error


@contextlib.contextmanager
def _part_file(path: Path) -> Iterator[_Part]:
    """A new locked file beside `path`; gone at the end of the block unless renamed in it."""
    head = f".{path.name}."
    while True:
        descriptor, name = tempfile.mkstemp(prefix=head, suffix=".part", dir=path.parent)
        file = open(descriptor, "wb", buffering=0)
        try:
            _lock(descriptor)
            if os.path.exists(name):  # not taken for a dead run's before it was locked
                os.chmod(name, 0o666 & ~_umask())
                yield _Part(file, name, path)
                return
        finally:
            file.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def _umask() -> int:
    """The process's mask of permission bits; mkstemp ignores it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Whether the file is locked now; False where another process has it or locks do not work."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _remove_stale(path: Path) -> None:
    """Remove part files of this DST whose writers are dead."""
    head, tail = f".{path.name}.", ".part"
    for found in path.parent.iterdir():
        random = found.name[len(head) : -len(tail)]
        if not (found.name.startswith(head) and found.name.endswith(tail)) or "." in random:
            continue
        with contextlib.suppress(OSError), open(found, "rb") as file:
            if _lock(file.fileno(), wait=False):
                found.unlink()


def _sync_folder(folder: Path) -> None:
    """Have the rename itself survive a power cut, where folders can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# Bytes


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _write_tensors(file: _Part, tensors: Sequence[OutTensor], report: Report | None) -> None:
    total, before = sum(tensor.nbytes for tensor in tensors), 0
    for tensor in tensors:

        def share(part: float, before: int = before, size: int = tensor.nbytes) -> None:
            if report is not None:
                report(before + int(part * size), total)

        made = 0
        for part in tensor.make(share):
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            made += data.nbytes
            for begin in range(0, data.nbytes, PIECE_BYTES):
                file.write(data[begin : begin + PIECE_BYTES])
        if made != tensor.nbytes:
            raise ValueError(
                f"tensor {shown(tensor.name)}: {made} bytes were made: expected {tensor.nbytes}, "
                f"{tensor.type} of {list(tensor.shape)}"
            )
        file.write(bytes(_padded(tensor.nbytes) - tensor.nbytes))
        share(1.0)
        before += tensor.nbytes


def _header(metadata: Mapping[str, Any], tensors: Sequence[OutTensor]) -> bytes:
    """All before the data, padded."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key) + _value(key, value)
    offset = 0
    for tensor in tensors:
        if len(tensor.name.encode()) >= MAX_NAME:
            raise ValueError(
                f"tensor {shown(tensor.name)}: a name of {len(tensor.name.encode())} bytes: "
                f"expected less than {MAX_NAME}, the format's limit"
            )
        if not tensor.shape or tensor.shape[-1] % tensor.type.block:
            raise ValueError(
                f"tensor {shown(tensor.name)}: shape {list(tensor.shape)}: expected rows of a "
                f"multiple of {tensor.type.block}, the block of {tensor.type}"
            )
        shape = tensor.shape[::-1]
        out += _string(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        out += struct.pack("<IQ", tensor.type.id, offset)
        offset += _padded(tensor.nbytes)
    return bytes(out) + bytes(_padded(len(out)) - len(out))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    """Type and value of one key."""
    kind, value = (value.kind, value.value) if isinstance(value, Typed) else (None, value)
    if isinstance(value, list | tuple | np.ndarray):
        kind = _kind(key, value[0], INT32) if kind is None else kind
        head = struct.pack("<IIQ", ARRAY, kind, len(value))
        if kind == STRING:
            return head + b"".join(map(_string, value))
        return head + np.asarray(value, scalar_types()[kind][1]).tobytes()
    if kind is None:
        kind = _kind(key, value, UINT32 if not isinstance(value, int) or value < 2**32 else UINT64)
    head = struct.pack("<I", kind)
    if kind == STRING:
        return head + _string(value)
    return head + struct.pack(scalar_types()[kind][0], value)


def _kind(key: str, value: Any, integer: int) -> int:
    for known, kind in ((bool, BOOL), (int, integer), (float, FLOAT32), (str, STRING)):
        if isinstance(value, known):
            return kind
    raise TypeError(f"{key}: expected a bool, int, float or str, got {type(value).__name__}")
