"""GGUF files, mapped read-only: header, metadata and tensor places checked in full, then zero-copy
views of the data.

The format (version 2 and 3, little-endian): magic, version, number of tensors, number of keys; the
keys (gguf_metadata.py); per tensor its name, dimensions (innermost first), type and offset; padding
to `general.alignment`; the data. Source: ggml's docs/gguf.md. A model may come in several files,
`x-00001-of-00003.gguf` and so on: all are opened, whichever is named. Nothing is trusted before it
was compared with the file's size. Does not know what the tensors mean (gguf_names.py).
"""

import itertools
import math
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError, UnsupportedModelError
from .gguf_metadata import UINT32, Cursor, Metadata, read_metadata
from .gguf_types import REFUSED, TYPES, GgmlType
from .json_file import open_regular, shown
from .mapped_file import MappedFile

MAX_DIMS = 4
MAX_NAME = 64  # bytes, the format's own limit
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
ALIGNMENTS = frozenset(1 << power for power in range(3, 17))  # 8 to 65536
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.I)
_LEAST_KEY, _LEAST_TENSOR = 14, 33  # bytes of the smallest possible entry


@dataclass(frozen=True)
class GgufSpan:
    """Where one tensor lies: `begin` is its offset in the file, in bytes. `shape` counts elements,
    innermost last (the file's order reversed).
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    begin: int
    nbytes: int

    @property
    def rows(self) -> int:
        """Rows of shape[-1] elements."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row: whole blocks."""
        return self.nbytes // self.rows


class GgufFile(MappedFile[GgufSpan]):
    """The tensors of one file, in file order: read-only views, made when asked for.

    Plain types come in their shape; block types as uint8 [rows, row_bytes]. `spans` and `metadata`
    are there without touching the data.
    """

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise ModelFormatError(
                    f"{path}: header truncated: the file has {size} bytes, a GGUF file at least "
                    "24; download it again"
                )
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        super().__init__(path, data)
        cursor = Cursor(data, str(path))
        tensors, keys = _read_header(cursor)
        self.metadata: Metadata = read_metadata(cursor, keys)
        self.spans = {span.name: span for span in _read_spans(cursor, tensors, self.metadata)}

    def __getitem__(self, name: str) -> NDArray[Any]:
        span = self.spans[name]
        kind = span.type
        dtype = np.dtype(np.uint8) if kind.dtype is None else kind.dtype
        shape = (span.rows, span.row_bytes) if kind.dtype is None else span.shape
        flat = np.frombuffer(self.opened(), dtype, span.nbytes // dtype.itemsize, span.begin)
        array = flat.reshape(shape)
        array.flags.writeable = False
        return array


class GgufModel(Mapping[str, NDArray[Any]]):
    """All tensors of a model, from one file or from its parts, in file order.

    `metadata` is that of the first part, where the format keeps it.
    """

    def __init__(self, files: list[GgufFile]) -> None:
        self.files = files
        self.path = files[0].path
        self.metadata = files[0].metadata
        self._homes: dict[str, GgufFile] = {}
        for file in files:
            for name in file:
                if name in self._homes:
                    raise ModelFormatError(
                        f"{file.path}: tensor {shown(name)} is also in {self._homes[name].path}; "
                        "expected it once"
                    )
                self._homes[name] = file
        self.spans = {name: file.spans[name] for name, file in self._homes.items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._homes[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def let_go(self, name: str) -> None:
        """As of GgufFile."""
        self._homes[name].let_go(name)

    def check_unchanged(self) -> None:
        """As of GgufFile, for every part."""
        for file in self.files:
            file.check_unchanged()

    def close(self) -> None:
        """Let go of the files; views that are still held stay valid."""
        for file in self.files:
            file.close()


def open_gguf(path: Path) -> GgufModel:
    """Map a GGUF file, or all parts of the model that it is a part of.

    Raises FileNotFoundError, ModelFormatError (broken, truncated, parts that do not fit) or
    UnsupportedModelError (a tensor type that is not read).
    """
    file = GgufFile(path)
    count = file.metadata.integer("split.count", 0, 99999, default=1)
    if count < 2:
        return GgufModel([file])
    named = SPLIT.fullmatch(path.name)
    number = file.metadata.integer("split.no", 0, count - 1)
    if named is None or (int(named["number"]), int(named["count"])) != (number + 1, count):
        raise ModelFormatError(
            f"{path}: split.no={number} and split.count={count}: expected a file name that ends in "
            f"-{number + 1:05d}-of-{count:05d}.gguf; give the parts their names back"
        )
    total = file.metadata.integer("split.tensors.count", 0, MAX_TENSORS)
    model = GgufModel([_part(file, named, n, number, count) for n in range(count)])
    if len(model) != total:
        raise ModelFormatError(
            f"{path}: split.tensors.count={total}, but the {count} parts hold {len(model)} "
            "tensors; download them again"
        )
    return model


def _part(given: GgufFile, named: re.Match[str], n: int, number: int, count: int) -> GgufFile:
    """Part `n` (from 0) of the model `given` is part `number` of."""
    if n == number:
        return given
    name = f"{named['stem']}-{n + 1:05d}-of-{count:05d}{named['suffix']}"
    path = given.path.with_name(name)
    if not path.exists():
        raise ModelFormatError(
            f"{given.path}: part {n + 1} of {count} is missing: expected {shown(name)} in the same "
            "folder; download it too"
        )
    file = GgufFile(path)
    found = tuple(file.metadata.integer(f"split.{key}", 0, 99999) for key in ("no", "count"))
    if found != (n, count):
        raise ModelFormatError(
            f"{path}: split.no={found[0]} and split.count={found[1]}: expected {n} and {count}; it "
            "belongs to another model, or was renamed"
        )
    return file


def _read_header(cursor: Cursor) -> tuple[int, int]:
    """Numbers of tensors and keys, each possible in a file of this size."""
    magic = bytes(cursor.data[:4])
    cursor.at = 4
    if magic != b"GGUF":
        raise cursor.fail(f"starts with {shown(magic)}: expected b'GGUF'; not a GGUF file")
    version = cursor.unpack("<I", "version")
    if version not in (2, 3):
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3):
            raise cursor.fail("a big-endian file: expected a little-endian one; convert it again")
        raise cursor.fail(f"version {version}: expected 2 or 3; convert the model again")
    tensors = cursor.unpack("<Q", "number of tensors")
    keys = cursor.unpack("<Q", "number of keys")
    for count, what, most, least in (
        (tensors, "tensors", MAX_TENSORS, _LEAST_TENSOR),
        (keys, "keys", MAX_KEYS, _LEAST_KEY),
    ):
        if count > min(most, cursor.left // least):
            raise cursor.fail(
                f"{count} {what}: expected at most {most}, of {least} bytes or more each in the "
                f"{cursor.left} bytes that follow"
            )
    return tensors, keys


def _read_spans(cursor: Cursor, count: int, metadata: Metadata) -> list[GgufSpan]:
    """Every tensor's place in the file, in file order, none across another or past the end."""
    align = _alignment(metadata)
    found: dict[str, GgufSpan] = {}
    for index in range(count):
        span = _read_span(cursor, index, count, align)
        if span.name in found:
            raise cursor.fail(f"tensor {shown(span.name)} appears twice")
        found[span.name] = span
    start = -(-cursor.at // align) * align
    spans = sorted(found.values(), key=lambda span: span.begin)
    for before, after in itertools.pairwise(spans):
        if before.begin + before.nbytes > after.begin:
            raise cursor.fail(
                f"tensors {shown(before.name)} and {shown(after.name)} overlap: the first ends at "
                f"{before.begin + before.nbytes} of the data, the second begins at {after.begin}"
            )
    end = start + spans[-1].begin + spans[-1].nbytes if spans else 0
    if end > cursor.size:
        raise cursor.fail(
            f"tensor {shown(spans[-1].name)}: the file is {end - cursor.size} bytes short "
            f"({cursor.size} of {end} bytes); download it again"
        )
    return [
        GgufSpan(span.name, span.type, span.shape, start + span.begin, span.nbytes)
        for span in found.values()
    ]


def _alignment(metadata: Metadata) -> int:
    field = metadata.fields.get("general.alignment")
    if field is None:
        return 32
    if field.type != UINT32 or field.value not in ALIGNMENTS:
        raise ModelFormatError(
            f"{metadata.where}: general.alignment={field}: expected a UINT32, a power of two in "
            f"[{min(ALIGNMENTS)}, {max(ALIGNMENTS)}]"
        )
    return field.value


def _read_span(cursor: Cursor, index: int, count: int, align: int) -> GgufSpan:
    """One entry; `begin` still counts from the start of the data."""
    name = cursor.name(f"name of tensor {index} of {count}", MAX_NAME)
    where = f"tensor {shown(name)}"
    dims = cursor.unpack("<I", f"{where}: number of dimensions")
    if not 1 <= dims <= MAX_DIMS:
        raise cursor.fail(f"{where}: {dims} dimensions: expected 1 to {MAX_DIMS}")
    shape = tuple(cursor.unpack("<Q", f"{where}: dimensions") for _ in range(dims))[::-1]
    kind = cursor.unpack("<I", f"{where}: type")
    begin = cursor.unpack("<Q", f"{where}: offset")
    if not all(0 < extent < 2**63 for extent in shape):
        raise cursor.fail(f"{where}: shape {shown(shape)}: expected dimensions of 1 or more")
    if kind not in TYPES:
        what = f", {REFUSED[kind]}" if kind in REFUSED else ""
        raise UnsupportedModelError(
            f"{cursor.where}: {where}: type {kind}{what}: supported are "
            f"{', '.join(known.name for known in TYPES.values())}"
        )
    known = TYPES[kind]
    if shape[-1] % known.block:
        raise cursor.fail(
            f"{where}: rows of {shape[-1]} elements: expected a multiple of {known.block}, the "
            f"block of {known}"
        )
    nbytes = math.prod(shape) // known.block * known.block_bytes  # Python integers: no overflow
    if nbytes > cursor.size or begin > cursor.size:
        raise cursor.fail(
            f"{where}: shape {shown(shape)} in {known} takes {nbytes} bytes at offset {begin}, the "
            f"file has {cursor.size}; download it again"
        )
    if begin % align:
        raise cursor.fail(f"{where}: offset {begin}: expected a multiple of {align}")
    return GgufSpan(name, known, shape, begin, nbytes)
