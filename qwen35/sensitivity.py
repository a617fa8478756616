"""What an error of each matrix costs, in nats of KL on a text: measured, not derived.

A matrix is replaced by blocks of itself, and the model is asked what that did to its
distributions. The KL of small errors is a quadratic form of them, so it grows in proportion to the
squared error of the matrix's products (compensate.squared_error); the ratio is what counts here.
In large models neighbouring layers share one measurement for each kind of matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks
from .fidelity import compare

if TYPE_CHECKING:
    from . import _core

MEASUREMENTS = 64  # of the whole model, about
REFERENCE_BYTES = 1 << 30  # of logits held to compare with
WINDOWS = 4  # of the text at most


def buckets(names: Sequence[str]) -> list[list[str]]:
    """Matrices measured together: of one kind, in neighbouring layers; at most about
    MEASUREMENTS.
    """
    places = {name: _place(name) for name in names}
    layers = 1 + max((layer for layer, _ in places.values()), default=0)
    for ranges in range(layers, 0, -1):
        found: dict[tuple[int, str], list[str]] = {}
        for name, (layer, kind) in places.items():
            found.setdefault((layer * ranges // layers, kind), []).append(name)
        if len(found) <= MEASUREMENTS:
            break
    return list(found.values())


def _place(name: str) -> tuple[int, str]:
    """(layer, kind); layer 0 for what is in none."""
    number, _, kind = name.rpartition("layers.")[2].partition(".")
    return (int(number), kind) if number.isdecimal() else (0, name)


def chosen_windows(text: Sequence[NDArray[np.int32]], vocabulary: int) -> list[NDArray[np.int32]]:
    """Those that are measured on: spread over the text, their logits within REFERENCE_BYTES."""
    longest = max(map(len, text))
    count = min(len(text), WINDOWS, max(1, REFERENCE_BYTES // (4 * vocabulary * longest)))
    return [text[i * len(text) // count] for i in range(count)]


class Sensitivity:
    """Compares a model with itself, some of its matrices replaced."""

    def __init__(
        self,
        make: Callable[[Mapping[str, Any]], _core.Model],
        text: Sequence[NDArray[np.int32]],
    ) -> None:
        """make: the model with some tensors replaced, as the core takes them."""
        self._make, self._text = make, text
        self._reference = list(self._logits({}))

    def kl(self, replaced: Mapping[str, Blocks]) -> float:
        """Mean KL(model || model with these), nats a token."""
        total = count = 0.0
        for wanted, got in zip(self._reference, self._logits(replaced), strict=True):
            found = compare(wanted, got, np.zeros(len(got), np.int64)).kl
            total, count = total + float(found.sum()), count + len(found)
        return total / count

    def _logits(self, replaced: Mapping[str, Blocks]) -> Iterator[NDArray[np.float32]]:
        core = self._make({name: (blocks.type, blocks.data) for name, blocks in replaced.items()})
        for window in self._text:
            yield core.session(len(window)).logits_all(window)
