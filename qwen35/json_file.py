"""Small files that nobody vouches for: opened only when regular, read up to a limit, JSON checked
before it is parsed.

Used for config.json, the shard index, generation_config.json, tokenizer_config.json, the chat
template and the headers of safetensors files. Every failure is a ModelFormatError that names the
file, and for JSON the line and column.
"""

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from .errors import ModelFormatError

MAX_BYTES = 16 << 20  # a config.json has 4 kB; the shard index of the largest size 100 kB
MAX_DEPTH = 64
MAX_TOKENS = 1_000_000  # strings, numbers and brackets; bounds the memory that parsing takes
MAX_DIGITS = 64  # digits in a row; keeps the conversion of an integer linear

# A string (also one that never ends), a bracket, a run of digits, a constant JSON does not have.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]|[0-9]+|-?(?:NaN|Infinity)', re.DOTALL)
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))


class _Duplicate(ValueError):
    """A key that appears twice in one object."""


def shown(value: object, limit: int = 80) -> str:
    """`value` as it may appear in a message: repr (so control characters are escaped), cut to
    `limit` characters.
    """
    if isinstance(value, str) and len(value) > limit:
        return f"{value[:limit]!r}... ({len(value)} characters)"
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, unbuffered; never blocks on a FIFO and never reads a device.

    Raises FileNotFoundError when there is nothing, PermissionError as the system says,
    ModelFormatError for anything that is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ModelFormatError(
                f"{path}: not a regular file: its symbolic links form a loop"
            ) from None
        if error.errno in (
            errno.ENXIO,
            errno.EISDIR,
        ):  # a socket; a directory where open() refuses it
            raise ModelFormatError(f"{path}: not a regular file") from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((word for test, word in _KINDS if test(mode)), "a device")
        raise ModelFormatError(f"{path}: not a regular file but {kind}")
    return open(descriptor, "rb", buffering=0)


def read_bytes(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """All bytes of a regular file of at most `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ModelFormatError(f"{path}: {size} bytes, larger than {limit >> 20} MiB")
        data = b""
        while len(data) <= limit and (piece := file.read(limit + 1 - len(data))):
            data += piece
    if len(data) > limit:  # it grew, or its size is not told (as in /proc)
        raise ModelFormatError(f"{path}: larger than {limit >> 20} MiB")
    return data


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file of at most `limit` bytes."""
    return decode(read_bytes(path, limit=limit), where=str(path))


def read_json(path: Path, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The object a JSON file holds."""
    return parse_json(read_bytes(path, limit=limit), where=str(path))


def decode(data: bytes, *, where: str) -> str:
    """Strict UTF-8 without a byte order mark; errors say line and column."""
    for mark, name in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise ModelFormatError(
                f"{where}: line 1 col 1: starts with a {name} byte order mark; expected plain UTF-8"
            )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        found = f"byte 0x{data[error.start]:02x} is not UTF-8 ({error.reason})"
        raise ModelFormatError(f"{where}: {_place(before, len(before))}: {found}") from None


def parse_json(data: bytes, *, where: str) -> dict[str, Any]:
    """Parse a JSON object within the limits above. `where` opens every message.

    Stricter than Python's json: no NaN or Infinity, no duplicate keys, no byte order mark, an
    object at the top.
    """
    text = decode(data, where=where)
    _scan(text, where)
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except _Duplicate as error:
        raise ModelFormatError(f"{where}: key {shown(error.args[0])} appears twice") from None
    except json.JSONDecodeError as error:
        message = "file is empty" if not text.strip() else error.msg
        raise ModelFormatError(
            f"{where}: line {error.lineno} col {error.colno}: {message}"
        ) from None
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string"}.get(type(value), shown(value))
        raise ModelFormatError(f"{where}: line 1 col 1: expected a JSON object, found {kind}")
    return value


def _scan(text: str, where: str) -> None:
    """Refuse what Python's parser would accept or choke on: depth, count, long numbers, constants
    that are not JSON.
    """

    def fail(at: int, message: str) -> NoReturn:
        raise ModelFormatError(f"{where}: {_place(text, at)}: {message}")

    depth = 0
    for count, match in enumerate(_TOKEN.finditer(text)):
        token = match[0]
        if count >= MAX_TOKENS:
            fail(match.start(), f"more than {MAX_TOKENS} strings, numbers and brackets")
        if token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                fail(match.start(), f"nested deeper than {MAX_DEPTH}")
        elif token in "]}":
            depth -= 1
        elif token[0] in "-NI":
            fail(match.start(), f"{token} is not JSON")
        elif len(token) > MAX_DIGITS and token[0] != '"':
            fail(match.start(), f"a number of more than {MAX_DIGITS} digits")


def _place(text: str, at: int) -> str:
    line_start = text.rfind("\n", 0, at) + 1
    return f"line {text.count(chr(10), 0, at) + 1} col {at - line_start + 1}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Duplicate(key)
            seen.add(key)
    return found
