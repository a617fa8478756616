"""Safetensors files, mapped read-only: header checked in full, then zero-copy views of the data.

The format: 8 bytes little-endian header length N, N bytes of JSON {name: {"dtype", "shape",
"data_offsets": [begin, end]}}, then the data. Tensors lie back to back in the order of the header
and end with the file, so a truncated, padded or overlapping file is found before its first weight
is used. Nothing is trusted before it was compared with the file's size.
"""

import itertools
import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError, UnsupportedModelError
from .json_file import open_regular, parse_json, shown
from .mapped_file import MappedFile

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMS = 8
MAX_NAME = 256
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}


@dataclass(frozen=True)
class Span:
    """Where one tensor lies: `begin` is its offset in the file, in bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    nbytes: int

    @property
    def aligned(self) -> bool:
        """Whether a view of the mapping is aligned for its dtype (the mapping starts on a page)."""
        return self.begin % self.dtype.itemsize == 0


class SafetensorsFile(MappedFile[Span]):
    """The tensors of one file, in file order: read-only views, made when asked for.

    A tensor whose data is not aligned for its dtype is copied at its first use. `spans` tells
    shapes and dtypes without touching the data.
    """

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _read_header(file, size, str(path))
            self.spans = {span.name: span for span in _spans(header, start, size, str(path))}
            super().__init__(path, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
        self._copies: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        span = self.spans[name]
        if name in self._copies:
            return self._copies[name]
        data = self.opened()
        if span.nbytes == 0:
            array = np.empty(span.shape, span.dtype)
        elif span.aligned:
            flat = np.frombuffer(data, span.dtype, span.nbytes // span.dtype.itemsize, span.begin)
            array = flat.reshape(span.shape)
        else:
            array = np.empty(span.shape, span.dtype)
            raw = np.frombuffer(data, np.uint8, span.nbytes, span.begin)
            array.reshape(-1).view(np.uint8)[:] = raw
            self._copies[name] = array
        array.flags.writeable = False
        return array

    def let_go(self, name: str) -> None:
        """As of MappedFile; a copy made because the tensor is misaligned goes too."""
        super().let_go(name)
        self._copies.pop(name, None)

    def close(self) -> None:
        """Let go of the mapping; it goes away with its last view."""
        super().close()
        self._copies = {}


def open_safetensors(path: Path) -> SafetensorsFile:
    """Map a file. Raises FileNotFoundError, ModelFormatError (broken file), UnsupportedModelError
    (another dtype).
    """
    return SafetensorsFile(path)


def _read_header(file: Any, size: int, where: str) -> tuple[dict[str, Any], int]:
    """The parsed header and the offset where the data starts."""
    prefix = file.read(8) if size >= 8 else b""
    if len(prefix) < 8:
        raise ModelFormatError(
            f"{where}: header truncated: the file has {size} bytes, a safetensors file at least 8; "
            "download it again"
        )
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise ModelFormatError(
            f"{where}: header length {length}: expected 2 to {MAX_HEADER_BYTES} bytes; not a "
            "safetensors file?"
        )
    if 8 + length > size:
        raise ModelFormatError(
            f"{where}: header truncated: it needs {8 + length} bytes, the file has {size}; "
            "download it again"
        )
    text = b""
    while len(text) < length and (piece := file.read(length - len(text))):
        text += piece
    if len(text) < length:
        raise ModelFormatError(f"{where}: header truncated at {8 + len(text)} bytes while reading")
    if not text.startswith(b"{"):
        raise ModelFormatError(f"{where}: header starts with {shown(text[:8])}: expected '{{'")
    return parse_json(text, where=f"{where}: header"), 8 + length


def _spans(header: dict[str, Any], start: int, size: int, where: str) -> list[Span]:
    """Every tensor's place, checked against its neighbours and the file's size."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelFormatError(f"{where}: header: __metadata__ must map strings to strings")
    spans = [_span(name, info, start, where) for name, info in header.items()]
    if spans and spans[0].begin != start:
        raise ModelFormatError(
            f"{where}: tensor {shown(spans[0].name)} starts {spans[0].begin - start} bytes into "
            "the data: expected the first tensor at 0"
        )
    for before, after in itertools.pairwise(spans):
        end = before.begin + before.nbytes
        if after.begin != end:
            kind = (
                "unordered"
                if after.begin < before.begin
                else "overlap"
                if after.begin < end
                else "a hole"
            )
            raise ModelFormatError(
                f"{where}: tensors {shown(before.name)} and {shown(after.name)}: {kind}: the first "
                f"ends at {end - start}, the second begins at {after.begin - start}; expected one "
                "right after the other"
            )
    end = spans[-1].begin + spans[-1].nbytes if spans else start
    if end > size:
        raise ModelFormatError(
            f"{where}: file is {end - size} bytes short ({size} of {end} bytes); download it again"
        )
    if end < size:
        raise ModelFormatError(f"{where}: {size - end} bytes follow the last tensor; expected none")
    return spans


def _span(name: str, info: Any, start: int, where: str) -> Span:
    where = f"{where}: tensor {shown(name)}"
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise ModelFormatError(f"{where}: expected a printable name of 1 to {MAX_NAME} characters")
    if not isinstance(info, dict):
        raise ModelFormatError(f"{where}: expected an object, found {shown(info)}")
    dtype, shape, offsets = (info.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str):
        raise ModelFormatError(f"{where}: dtype={shown(dtype)}: expected a string")
    if not _sizes(shape) or len(shape) > MAX_DIMS:
        raise ModelFormatError(
            f"{where}: shape={shown(shape)}: expected at most {MAX_DIMS} integers, none below 0"
        )
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelFormatError(
            f"{where}: data_offsets={shown(offsets)}: expected [begin, end] with 0 <= begin <= end"
        )
    if dtype not in DTYPES:
        raise UnsupportedModelError(
            f"{where}: dtype {shown(dtype)}: only {', '.join(DTYPES)} weights are read; take the "
            "unquantized checkpoint"
        )
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize  # Python integers: no overflow
    if offsets[1] - offsets[0] != nbytes:
        raise ModelFormatError(
            f"{where}: shape {shown(shape)} in {dtype} takes {nbytes} bytes, data_offsets "
            f"{shown(offsets)} hold {offsets[1] - offsets[0]}"
        )
    return Span(name, DTYPES[dtype], tuple(shape), start + offsets[0], nbytes)


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)
