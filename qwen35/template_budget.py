"""What a chat template may use of time and memory: a budget, and how large a result will be before
it is computed.

template_sandbox.py calls in here before and after every step of a template that can repeat or grow.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_OUTPUT_CHARS = 8 << 20
MAX_SECONDS = 2.0
_MAX_VALUE = 64 << 20  # characters of one value, its parts included
_MAX_WORK = 128 << 20  # characters of all values made on the way
_MAX_INT_BITS = 8192
_MAX_COUNTS = {"batch": 100_000, "slice": 100_000, "round": 300}  # the number these filters take
_MAX_PATTERN = 1000  # characters, where the time is the product of pattern and text
_PER_ITEM = 64  # what a place in a list or dict counts, in characters
_ENCODINGS = frozenset({"utf-8", "utf8", "utf-16", "utf-32", "ascii", "latin-1"})
_LINEAR = frozenset({"length", "count", "string", "safe", "default", "d", "upper", "lower"})
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


class LimitError(Exception):
    """The template ran over one of its limits."""


class Budget:
    """What one rendering may still use. Counts characters made, and looks at the clock whenever it
    counts."""

    def __init__(self, *, seconds: float = MAX_SECONDS):
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._thread_deadline = time.thread_time() + seconds
        self._work = 0
        self._weights: dict[
            int, tuple[Any, int]
        ] = {}  # by id; the value is kept, so that its id stays its own

    def tick(self) -> None:
        """Time that other threads and programs take is not the template's, so both clocks count."""
        if time.monotonic() > self._deadline and time.thread_time() > self._thread_deadline:
            raise LimitError(f"rendering took over {self._seconds:g} s")

    def charge(self, chars: int) -> None:
        """Count what was made."""
        self._work += chars
        if self._work > _MAX_WORK:
            raise LimitError(
                f"over {_MAX_WORK >> 20} MiB of text made on the way to an output that may have "
                f"{MAX_OUTPUT_CHARS >> 20} MiB"
            )
        self.tick()

    def need(self, chars: float) -> None:
        """Refuse a value of so many characters."""
        if chars > _MAX_VALUE:
            raise LimitError(
                f"a value of about {chars:.3g} characters, where the whole output may have "
                f"{MAX_OUTPUT_CHARS >> 20} MiB"
            )

    def weight(self, value: Any) -> int:
        """About how many characters `value` is when written out; LimitError when too many.

        What occurs twice counts twice, so a small structure of shared parts cannot stand for an
        enormous one.
        """
        if isinstance(value, (str, bytes)):
            return len(value)
        if isinstance(value, int):
            return 4 + value.bit_length() // 3
        if not isinstance(value, (list, tuple, Mapping, *_VIEWS)):
            return 32
        known = self._weights.get(id(value))
        if known is not None:
            return known[1]
        total = _PER_ITEM
        parts = (p for pair in value.items() for p in pair) if isinstance(value, Mapping) else value
        for part in parts:
            total += _PER_ITEM + self.weight(part)
            self.need(total)
        self.tick()
        self._weights[id(value)] = (value, total)
        return total

    def made(self, value: Any) -> Any:
        """`value`, checked and counted; a lazy one is counted as it is read."""
        if isinstance(value, (str, bytes)):
            self.need(len(value))
            self.charge(len(value))
        elif isinstance(value, int):
            if value.bit_length() > _MAX_INT_BITS:
                raise LimitError(f"an integer of {value.bit_length()} bits, over {_MAX_INT_BITS}")
        elif isinstance(value, (list, tuple, Mapping)):
            self.need(self.weight(value))
            self.charge(_PER_ITEM * len(value))
        elif isinstance(value, Iterator):
            return self.each(value, _PER_ITEM)
        return value

    def each(self, values: Iterable[Any], chars: int) -> Iterator[Any]:
        """The same items, `chars` charged for each."""
        for value in values:
            self.charge(chars)
            yield value

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """A list of the items, checked while it is made."""
        result, total = [], 0
        for value in self.each(values, _PER_ITEM):
            total += _PER_ITEM + self.weight(value)
            self.need(total)
            result.append(value)
        return result

    # Before an operation: sizes of results from sizes of operands.

    def before_binop(self, operator: str, left: Any, right: Any) -> None:
        """left operator right, for + * ** and %."""
        if operator == "%" and isinstance(left, (str, bytes)):
            self.before_percent(left, right)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(value, (str, bytes, list, tuple)):
                    self.need(self.weight(value) * max(0, times))
        elif operator == "+" and isinstance(left, (str, bytes, list, tuple)):
            self.need(self.weight(left) + self.weight(right))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits, more = left.bit_length(), right.bit_length()
            if (bits + more if operator == "*" else bits * right) > _MAX_INT_BITS:
                raise LimitError(f"an integer of over {_MAX_INT_BITS} bits")

    def before_percent(self, text: Any, args: Any) -> None:
        """text % args: the widths in the text, and the largest argument for each conversion."""
        text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
        widths = [int(number) for number in re.findall(r"\d{1,18}", text)]
        if "*" in text and "%" in text:
            widths += [
                abs(a) for a in (args if isinstance(args, tuple) else (args,)) if isinstance(a, int)
            ]
        self.need(len(text) + sum(widths))
        values = (
            args.values()
            if isinstance(args, Mapping)
            else args
            if isinstance(args, tuple)
            else (args,)
        )
        self.need(text.count("%") * 4 * max(map(self.weight, values), default=0))

    def before_method(
        self, owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """owner.name(*args, **kwargs), for the methods of str, bytes and int that can grow or take
        long."""
        values = [*args, *kwargs.values()]
        numbers = [abs(value) for value in values if isinstance(value, int)]
        texts = [value for value in values if isinstance(value, (str, bytes))]
        if name in ("center", "ljust", "rjust", "zfill", "to_bytes"):
            self.need(max(numbers, default=0))
        elif name == "expandtabs":
            tab = "\t" if isinstance(owner, str) else b"\t"
            self.need(len(owner) + owner.count(tab) * max(numbers, default=8))
        elif name == "replace" and len(texts) == 2:
            self.need(len(owner) + _occurrences(owner, texts[0]) * len(texts[1]))
        elif name == "translate" and values and isinstance(values[0], Mapping):
            self.need(len(owner) * max(map(self.weight, values[0].values()), default=1))
        elif name == "join" and values:
            self.need(self.weight(values[0]) + len(owner) * len(values[0]))
        elif name in ("split", "rsplit", "splitlines"):
            self.need(_PER_ITEM * (_occurrences(owner, texts[0]) if texts else len(owner) // 2))
        elif name in ("encode", "decode") and not _ENCODINGS.issuperset(
            t.lower() for t in texts[:1]
        ):
            raise LimitError(f"{name}: only {', '.join(sorted(_ENCODINGS))} are available")
        elif name == "striptags":
            raise LimitError("striptags is not available")
        if name in ("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"):
            self._short(name, texts)

    def before_filter(self, name: str, args: list[Any], kwargs: Mapping[str, Any]) -> None:
        """args[0]|name(*args[1:], **kwargs); a lazy args[0] of join is replaced by its list."""
        value, rest = args[0] if args else "", [*args[1:], *kwargs.values()]
        numbers = [abs(n) for n in rest if isinstance(n, int)]
        texts = [t for t in rest if isinstance(t, str)]
        if name == "center":
            self.need(max(numbers, default=80))
        elif name == "indent":
            width = max([*numbers, *map(len, texts), 4])
            self.need(len(str(value)) + (len(str(value).splitlines()) + 1) * width)
        elif name == "replace" and len(texts) >= 2:
            self.need(len(str(value)) + _occurrences(str(value), texts[0]) * len(texts[1]))
        elif name == "join":
            args[0] = value = self.listed(value)
            self.need(self.weight(value) + len(value) * max(map(len, texts), default=0))
        elif name == "format":
            for given in (tuple(args[1:]), dict(kwargs)):
                self.before_percent(value, given)
        elif name in _MAX_COUNTS and max(numbers, default=0) > _MAX_COUNTS[name]:
            raise LimitError(f"{name}({max(numbers)}): over {_MAX_COUNTS[name]}")
        elif name == "trim":
            self._short(name, texts)
        elif name in ("escape", "e"):
            self.need(5 * self.weight(value))
        elif name == "tojson":
            self._before_tojson(value, rest)
        elif isinstance(value, str) and name not in _LINEAR:
            self.need(_PER_ITEM * len(value))  # it may become a list of its characters or words
        self.weight(value)

    def _before_tojson(self, value: Any, rest: list[Any]) -> None:
        indent = max(
            [
                0,
                *(n for n in rest if isinstance(n, int)),
                *(len(t) for t in rest if isinstance(t, str)),
            ]
        )
        separators = sum(
            len(str(p)) for pair in rest if isinstance(pair, (list, tuple)) for p in pair
        )
        if indent > 16 or separators > 64:
            raise LimitError("tojson: indent over 16 or long separators")
        weight = self.weight(value)
        self.need(2 * weight + (weight // _PER_ITEM * indent * _depth(value) if indent else 0))

    @staticmethod
    def _short(name: str, texts: list[Any]) -> None:
        if any(len(text) > _MAX_PATTERN for text in texts):
            raise LimitError(f"{name}: a pattern of over {_MAX_PATTERN} characters")


def _occurrences(text: Any, part: Any) -> int:
    return (text.count(part) if part else len(text)) + 1


def _depth(value: Any) -> int:
    """How deep the lists and dicts of `value` are nested."""
    parts = value.values() if isinstance(value, Mapping) else value
    return (
        1 + max(map(_depth, parts), default=0) if isinstance(value, (list, tuple, Mapping)) else 0
    )
