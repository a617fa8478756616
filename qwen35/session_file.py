"""A saved timeline: header with version, model fingerprint and checksum, then the arrays back to
back.

    "qwen35-session\\n" | header length, 8 bytes little-endian | header, JSON | the arrays' bytes

Everything is compared with the file's size and checksum before an array is made; nothing is ever
unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError
from .json_file import open_regular, parse_json, shown

MAGIC = b"qwen35-session\n"
VERSION = 2  # 1 held logits where 2 holds the last hidden state
MAX_HEADER_BYTES = 1 << 20
DTYPES = ("uint8", "uint16", "int32", "int64", "float16", "float32")


def write_session(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], *, fingerprint: str
) -> None:
    """Write `arrays` to `path`: into a temporary file of the same folder that then takes its
    place.
    """
    chunks = [np.ascontiguousarray(array) for array in arrays.values()]
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk.reshape(-1).view(np.uint8))
    header = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "sha256": digest.hexdigest(),
        "arrays": [
            {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
            for name, array in zip(arrays, chunks, strict=True)
        ],
    }
    text = json.dumps(header).encode()
    target = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + struct.pack("<Q", len(text)) + text)
            for chunk in chunks:
                file.write(chunk.reshape(-1).view(np.uint8))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def read_session(path: str | os.PathLike[str], *, fingerprint: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file by `write_session`. ModelFormatError if it is damaged, or another
    model's.
    """
    where = str(path)
    with open_regular(Path(path)) as file:
        size = os.fstat(file.fileno()).st_size
        start = len(MAGIC) + 8
        prefix = _read(file, min(start, size))
        if len(prefix) < start or not prefix.startswith(MAGIC):
            raise ModelFormatError(
                f"{where}: not a session file of this package (it starts with {shown(prefix[:16])})"
            )
        (length,) = struct.unpack("<Q", prefix[len(MAGIC) :])
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - start):
            raise ModelFormatError(
                f"{where}: header length {length}: expected 2 to {MAX_HEADER_BYTES} bytes within "
                f"{size}"
            )
        header = parse_json(_read(file, length), where=f"{where}: header")
        _check_header(header, fingerprint, where)
        places = [_place(info, where) for info in _list(header.get("arrays"))]
        expected = sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in places)
        found = size - start - length
        if found != expected:
            raise ModelFormatError(
                f"{where}: {found} bytes of data, the header asks for {expected}; save the "
                "session again"
            )
        data = _read(file, expected)
    if hashlib.sha256(data).hexdigest() != header.get("sha256"):
        raise ModelFormatError(
            f"{where}: the data do not match their checksum; save the session again"
        )
    arrays, at = {}, 0
    for name, dtype, shape in places:
        count = math.prod(shape)
        arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    return arrays


def _read(file: Any, length: int) -> bytes:
    """Exactly `length` bytes, or what the file has."""
    data = bytearray()
    while len(data) < length and (piece := file.read(length - len(data))):
        data += piece
    return bytes(data)


def _check_header(header: dict[str, Any], fingerprint: str, where: str) -> None:
    if header.get("version") != VERSION:
        raise ModelFormatError(
            f"{where}: format version {shown(header.get('version'))}: this package reads {VERSION}"
        )
    if header.get("fingerprint") != fingerprint:
        raise ModelFormatError(
            f"{where}: saved by another model (its weights or settings differ); use the one it "
            "is of"
        )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _place(info: Any, where: str) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """Name, dtype and shape of one array of the header."""
    entry = info if isinstance(info, dict) else {}
    name, dtype, shape = entry.get("name"), entry.get("dtype"), _list(entry.get("shape"))
    sizes = "shape" in entry and len(shape) <= 8 and all(type(n) is int and n >= 0 for n in shape)
    if isinstance(name, str) and dtype in DTYPES and sizes:
        return name, np.dtype(dtype), tuple(shape)
    raise ModelFormatError(
        f"{where}: header: arrays: {shown(info)}: expected name, dtype and shape"
    )
