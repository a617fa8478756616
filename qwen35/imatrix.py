"""Importance matrices: how much each column of a matrix counts, measured by llama.cpp on a text.

A file -> {name of a tensor in GGUF: float32 [columns]}, the mean square of what the column was
multiplied with. Two formats: GGUF (`NAME.in_sum2` over `NAME.counts`) and the older .dat, read byte
by byte with every length compared with the file. Columns are in the order of GGUF files. Source:
llama.cpp's tools/imatrix.
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError
from .gguf_file import GgufFile
from .json_file import read_bytes, shown

MAX_DAT_BYTES = 1 << 30
MAX_ENTRIES, MAX_NAME_BYTES = 1 << 16, 1 << 10

Importance = dict[str, NDArray[np.float32]]


def read_imatrix(path: Path) -> Importance:
    """The importance of every tensor the file has.

    Raises FileNotFoundError, or ModelFormatError for a file that is neither format, or damaged.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    found = _from_gguf(path) if start == b"GGUF" else _from_dat(path)
    for name, values in found.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ModelFormatError(
                f"{path}: importance of {shown(name)}: expected finite numbers from 0 up"
            )
    if not found:
        raise ModelFormatError(f"{path}: no importance of any tensor; not an imatrix file")
    return {name: values for name, values in found.items() if values.any()}


def importance_of(imatrix: Importance, name: str, columns: int) -> NDArray[np.float32] | None:
    """What is known about a matrix; ModelFormatError where it is of another model."""
    values = imatrix.get(name)
    if values is not None and values.size != columns:
        raise ModelFormatError(
            f"imatrix: {name} has {values.size} columns: expected {columns}; it was measured on "
            "another model"
        )
    return values


def _from_gguf(path: Path) -> Importance:
    file, found = GgufFile(path), {}
    try:
        for name in file:
            stem = name.removesuffix(".in_sum2")
            if stem == name:
                continue
            counts = file.get(f"{stem}.counts")
            if counts is None or counts.size != 1:
                raise ModelFormatError(
                    f"{path}: {shown(stem)}.counts: expected one number, as dense models have"
                )
            count = float(counts.reshape(-1)[0])
            if count > 0:
                sums = file[name].reshape(-1).astype(np.float32)
                found[stem] = sums / np.float32(count)
        return found
    finally:
        file.close()


def _from_dat(path: Path) -> Importance:
    data, at, found = read_bytes(path, limit=MAX_DAT_BYTES), 0, {}

    def number(what: str, low: int, high: int) -> int:
        nonlocal at
        if at + 4 > len(data):
            raise ModelFormatError(f"{path}: {what}: the file ends at byte {len(data)}")
        (value,) = struct.unpack_from("<i", data, at)
        if not low <= value <= high:
            raise ModelFormatError(
                f"{path}: {what} is {value}: expected {low} to {high}; not an imatrix file"
            )
        at += 4
        return value

    def take(what: str, size: int) -> bytes:
        nonlocal at
        if size > len(data) - at:
            raise ModelFormatError(
                f"{path}: {what}: {size} bytes, but {len(data) - at} of the file are left"
            )
        at += size
        return data[at - size : at]

    for index in range(number("number of entries", 1, MAX_ENTRIES)):
        where = f"entry {index}"
        raw = take(where, number(f"{where}: length of its name", 1, MAX_NAME_BYTES))
        calls = number(f"{where}: calls", 0, 2**31 - 1)
        count = number(f"{where}: number of values", 1, 2**24)
        values = np.frombuffer(take(where, 4 * count), "<f4").astype(np.float32)
        found[raw.decode("utf-8", "replace")] = values / np.float32(max(calls, 1))
    return found
