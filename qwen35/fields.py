"""Declared fields: a dataclass whose entries carry range and default, filled from JSON that is not
trusted.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from .errors import ModelFormatError
from .json_file import shown

_REQUIRED = object()
_WORDS = {int: "integer", float: "number", bool: "true or false", str: "string"}


def entry(
    kind: type,
    low: float | None = None,
    high: float | None = None,
    *,
    default: Any = _REQUIRED,
    optional: bool = False,
) -> Any:
    """A dataclass field read from JSON: its type, inclusive range and default. `optional` lets null
    stand for None.
    """
    return dataclasses.field(
        metadata={"kind": kind, "low": low, "high": high, "default": default, "optional": optional}
    )


def read_fields(owner: type, raw: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Values of every declared entry of the dataclass `owner`, from `raw` or the default.

    `where` (file and section) opens the ModelFormatError that a missing, mistyped or out-of-range
    value gives.
    """
    values = {}
    for field in dataclasses.fields(owner):
        if "kind" in field.metadata:
            values[field.name] = _read(field.name, raw, where=where, **field.metadata)
    return values


def _read(
    name: str,
    raw: Mapping[str, Any],
    *,
    where: str,
    kind: type,
    low: float | None,
    high: float | None,
    default: Any,
    optional: bool,
) -> Any:
    if name not in raw:
        if default is _REQUIRED:
            raise ModelFormatError(f"{where}{name} is missing: expected {_wanted(kind, low, high)}")
        return default
    value = raw[name]
    if value is None and optional:
        return default
    allowed = (int, float) if kind is float else (kind,)
    good = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    # Written so that NaN, which compares false with everything, is out of range.
    if not good or (low is not None and not low <= value <= high):
        raise ModelFormatError(
            f"{where}{name}={as_json(value)}: expected {_wanted(kind, low, high)}"
        )
    return kind(value)


def _wanted(kind: type, low: float | None, high: float | None) -> str:
    return _WORDS[kind] + (f" in [{low}, {high}]" if low is not None else "")


def as_json(value: object) -> str:
    """A value in a message, spelled as in the file: true and null rather than True and None."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shown(value)


def nearest(name: str, known: Any) -> str:
    """ "; did you mean 'x'?" for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
