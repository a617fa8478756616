"""Which type each matrix gets, so that the whole stays within a number of bytes.

Each matrix has choices, (bytes, cost) by type, and costs add up: errors of different matrices are
all but independent. Choices that a mixture of two others beats are dropped; what is left is a curve
of falling cost per byte for each matrix, and the steepest step of all is taken next while it fits.
That is the optimum of the problem in fractions; what the last steps leave over is filled with what
still fits.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """A type for a matrix, what it takes and what it costs: nats of KL, or anything that adds."""

    type: str
    nbytes: int
    cost: float


def allocate(choices: Mapping[str, list[Choice]], budget: int) -> dict[str, str]:
    """A type for every matrix, the sum of bytes at most `budget` and the sum of costs small.

    Raises ValueError where even the smallest choices take more.
    """
    curves = {name: _hull(found) for name, found in choices.items()}
    taken = dict.fromkeys(curves, 0)
    left = budget - sum(curve[0].nbytes for curve in curves.values())
    if left < 0:
        raise ValueError(f"{budget:,} bytes: expected at least {budget - left:,} for these types")
    heap = [(-_slope(curve, 0), name) for name, curve in curves.items() if len(curve) > 1]
    heapq.heapify(heap)
    while heap:
        _, name = heapq.heappop(heap)
        curve, at = curves[name], taken[name]
        more = curve[at + 1].nbytes - curve[at].nbytes
        if more > left:
            continue  # this matrix stays; smaller ones may still move
        left -= more
        taken[name] = at + 1
        if at + 2 < len(curve):
            heapq.heappush(heap, (-_slope(curve, at + 1), name))
    return {name: curves[name][at].type for name, at in taken.items()}


def _hull(found: list[Choice]) -> list[Choice]:
    """The choices that no mixture of two others beats, by bytes."""
    hull: list[Choice] = []
    for one in sorted(found, key=lambda choice: (choice.nbytes, choice.cost)):
        if hull and one.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _fall(hull[-1], one) >= _fall(hull[-2], hull[-1]):
            hull.pop()
        hull.append(one)
    return hull


def _fall(a: Choice, b: Choice) -> float:
    """Cost saved a byte from a to b, which takes more."""
    return (a.cost - b.cost) / max(b.nbytes - a.nbytes, 1)


def _slope(curve: list[Choice], at: int) -> float:
    return _fall(curve[at], curve[at + 1])
