"""The typed key-value section of a GGUF file: checked in one pass, scalars read, arrays left in
place until asked for.

The bytes (a mapping of the file) -> Cursor, which refuses to step past the end -> Metadata. Every
count is compared with the bytes that remain before anything is done with it. Strings of an array
are walked once to find its end and decoded only when asked for.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFormatError
from .json_file import shown

MAX_KEY = 1024  # bytes
MAX_STRING = 16 << 20  # bytes of one string value; a chat template has some kB
MAX_STRINGS = (
    1 << 22
)  # in all arrays of a file; the family's vocabulary and merges have 0.5 million

STRING, ARRAY = 8, 9
_SCALARS = {  # number in the file -> (struct code, NumPy type)
    0: ("<B", "u1"),
    1: ("<b", "i1"),
    2: ("<H", "<u2"),
    3: ("<h", "<i2"),
    4: ("<I", "<u4"),
    5: ("<i", "<i4"),
    6: ("<f", "<f4"),
    7: ("<B", "u1"),
    10: ("<Q", "<u8"),
    11: ("<q", "<i8"),
    12: ("<d", "<f8"),
}
_WORDS = {
    **dict(enumerate("UINT8 INT8 UINT16 INT16 UINT32 INT32 FLOAT32 BOOL STRING ARRAY".split())),
    10: "UINT64",
    11: "INT64",
    12: "FLOAT64",
}
UINT32, FLOAT32, BOOL = 4, 6, 7
INTEGERS, NUMBERS = frozenset((0, 1, 2, 3, 4, 5, 10, 11)), frozenset((6, 12))
_U64 = struct.Struct("<Q")
_REQUIRED: Any = object()


def scalar_types() -> Mapping[int, tuple[str, str]]:
    """Number in the file -> (struct code, NumPy type) of every scalar."""
    return _SCALARS


class Cursor:
    """A position in the bytes of a file. `where`, the file, opens every message."""

    def __init__(self, data: Any, where: str) -> None:
        self.data, self.where = data, where
        self.size = len(data)
        self.at = 0

    def fail(self, what: str) -> ModelFormatError:
        """The error to raise about `what`."""
        return ModelFormatError(f"{self.where}: {what}")

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size - self.at

    def unpack(self, code: str, what: str) -> Any:
        """The number here; `what` names it when the file ends before."""
        length = struct.calcsize(code)
        if length > self.left:
            raise self.fail(
                f"{what}: the file ends at byte {self.size}, {length - self.left} bytes short; "
                "download it again"
            )
        (value,) = struct.unpack_from(code, self.data, self.at)
        self.at += length
        return value

    def text(self, what: str, limit: int, least: int = 0) -> str:
        """The UTF-8 string here: its length, then its bytes."""
        length = self.unpack("<Q", f"length of {what}")
        if not least <= length <= limit:
            raise self.fail(f"{what}: length {length}: expected {least} to {limit} bytes")
        if length > self.left:
            raise self.fail(f"{what}: length {length}, but {self.left} bytes of the file are left")
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(
                f"{what}: byte 0x{raw[error.start]:02x} at position {error.start} is not UTF-8"
            ) from None

    def name(self, what: str, limit: int) -> str:
        """A string that may stand in a message: printable, not empty."""
        found = self.text(what, limit, least=1)
        if not found.isprintable():
            raise self.fail(f"{what}: {shown(found)}: expected printable characters")
        return found


@dataclass(frozen=True)
class Field:
    """One key's value. A scalar is in `value`; an array is `count` elements of type `element` from
    byte `begin` on.
    """

    type: int
    value: Any = None
    element: int = -1
    count: int = 0
    begin: int = 0

    def __str__(self) -> str:
        if self.type != ARRAY:
            return f"{shown(self.value)} ({_WORDS[self.type]})"
        return f"an array of {self.count} {_WORDS[self.element]}"


class Metadata(Mapping[str, Any]):
    """The values of a file by key: int, float, bool, str, an array (read-only) or a list of str.

    The methods below read one key as what it must be; their errors name file and key, what was
    found and what was expected. `default` stands for a key that is absent.
    """

    def __init__(self, data: Any, fields: dict[str, Field], where: str) -> None:
        self._data, self.fields, self.where = data, fields, where

    def __getitem__(self, key: str) -> Any:
        field = self.fields[key]
        if field.type != ARRAY:
            return field.value
        if field.element == STRING:
            return self._strings(key, field)
        dtype = _SCALARS[field.element][1]
        array = np.frombuffer(self._data, dtype, field.count, field.begin)
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def _strings(self, key: str, field: Field) -> list[str]:
        data, at, found = self._data, field.begin, []
        length_at = _U64.unpack_from
        try:
            for _ in range(field.count):
                begin = at + 8
                at = begin + length_at(data, at)[0]
                found.append(data[begin:at].decode())
        except UnicodeDecodeError as error:
            raise ModelFormatError(
                f"{self.where}: {key}[{len(found)}] is not UTF-8 ({error.reason})"
            ) from None
        return found

    def _wrong(self, key: str, expected: str) -> ModelFormatError:
        if key not in self.fields:
            return ModelFormatError(f"{self.where}: {key} is missing: expected {expected}")
        return ModelFormatError(f"{self.where}: {key}={self.fields[key]}: expected {expected}")

    def integer(self, key: str, low: int, high: int, *, default: Any = _REQUIRED) -> Any:
        """An integer of any width in [low, high]."""
        if key not in self.fields and default is not _REQUIRED:
            return default
        field = self.fields.get(key)
        if field is None or field.type not in INTEGERS or not low <= field.value <= high:
            raise self._wrong(key, f"an integer in [{low}, {high}]")
        return field.value

    def number(self, key: str, low: float, high: float, *, default: Any = _REQUIRED) -> Any:
        """A FLOAT32, FLOAT64 or integer in [low, high]; NaN is outside."""
        if key not in self.fields and default is not _REQUIRED:
            return default
        field = self.fields.get(key)
        if field is None or field.type not in INTEGERS | NUMBERS or not low <= field.value <= high:
            raise self._wrong(key, f"a number in [{low}, {high}]")
        return float(field.value)

    def flag(self, key: str, *, default: Any = _REQUIRED) -> Any:
        """A BOOL."""
        if key not in self.fields and default is not _REQUIRED:
            return default
        field = self.fields.get(key)
        if field is None or field.type != BOOL:
            raise self._wrong(key, "true or false")
        return field.value

    def string(self, key: str, *, default: Any = _REQUIRED) -> Any:
        """A STRING."""
        if key not in self.fields and default is not _REQUIRED:
            return default
        field = self.fields.get(key)
        if field is None or field.type != STRING:
            raise self._wrong(key, "a string")
        return field.value

    def strings(self, key: str, most: int) -> list[str]:
        """An array of at most `most` strings, decoded now."""
        field = self._array(key, frozenset((STRING,)), f"an array of at most {most} strings", most)
        return self._strings(key, field)

    def array(self, key: str, types: frozenset[int], expected: str, most: int) -> NDArray[Any]:
        """A numeric array of one of `types`, at most `most` long, read-only, in place."""
        self._array(key, types, expected, most)
        return self[key]

    def _array(self, key: str, types: frozenset[int], expected: str, most: int) -> Field:
        field = self.fields.get(key)
        if field is None or field.type != ARRAY or field.element not in types or field.count > most:
            raise self._wrong(key, expected)
        return field


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """`count` keys and values from the cursor on, which then stands behind them.

    Raises ModelFormatError naming the key.
    """
    fields: dict[str, Field] = {}
    strings = 0
    for index in range(count):
        key = cursor.name(f"key {index} of {count}", MAX_KEY)
        if key in fields:
            raise cursor.fail(f"key {shown(key)} appears twice")
        fields[key] = field = _field(cursor, shown(key)[1:-1], MAX_STRINGS - strings)
        strings += field.count if field.element == STRING else 0
    return Metadata(cursor.data, fields, cursor.where)


def _field(cursor: Cursor, key: str, strings_left: int) -> Field:
    kind = cursor.unpack("<I", f"{key}: value type")
    if kind in _SCALARS:
        return Field(kind, _scalar(cursor, key, kind))
    if kind == STRING:
        return Field(kind, cursor.text(key, MAX_STRING))
    if kind != ARRAY:
        raise cursor.fail(f"{key}: value type {kind}: expected 0 to 12, as GGUF defines them")
    element = cursor.unpack("<I", f"{key}: element type")
    count = cursor.unpack("<Q", f"{key}: length")
    if element not in _SCALARS and element != STRING:
        what = "an array of arrays" if element == ARRAY else f"element type {element}"
        raise cursor.fail(f"{key}: {what}: expected an array of numbers or strings")
    least = 8 if element == STRING else struct.calcsize(_SCALARS[element][0])
    if count > cursor.left // least:
        raise cursor.fail(
            f"{key}: an array of {count} {_WORDS[element]}, but {cursor.left} bytes of the file "
            "are left"
        )
    begin = cursor.at
    if element != STRING:
        cursor.at += count * least
    elif count > strings_left:
        raise cursor.fail(f"{key}: more than {MAX_STRINGS} strings in arrays: {count} more")
    else:
        _skip_strings(cursor, key, count)
    return Field(kind, None, element, count, begin)


def _scalar(cursor: Cursor, key: str, kind: int) -> Any:
    value = cursor.unpack(_SCALARS[kind][0], key)
    if kind == BOOL:
        if value > 1:
            raise cursor.fail(f"{key}: {value} as BOOL: expected 0 or 1")
        return bool(value)
    if kind == FLOAT32:  # the shortest decimal that means it: 1e-06, as it was before it was stored
        return float(str(np.float32(value)))
    return value


def _skip_strings(cursor: Cursor, key: str, count: int) -> None:
    """Step over strings: a length, then as many bytes, `count` times."""
    data, at, length_at = cursor.data, cursor.at, _U64.unpack_from
    index = 0
    try:
        for index in range(count):  # noqa: B007
            at += 8 + length_at(data, at)[0]
    except (struct.error, OverflowError):
        at = cursor.size + 1
    if at > cursor.size:
        raise cursor.fail(
            f"{key}: string {index} of {count} or the one before ends behind the file's "
            f"{cursor.size} bytes; download it again"
        )
    cursor.at = at
