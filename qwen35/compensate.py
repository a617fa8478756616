"""Blocks fitted to what a matrix does on a text, not to its numbers: errors make up for each other.

rows of W, H = mean of a a^T over its inputs (calibrate.py) -> columns in order, each rounded after
the errors before it were fed to it -> every code and scale moved to where e^T H e is least, again
and again -> block bytes. What is done inside a window of 256 columns is csrc/compensate.c, which
has the formulae; here are the factors of H and the products between windows, which are NumPy's and
use as many threads as its BLAS does. Rows are independent.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks, formats
from .calibrate import Moments

WINDOW = 256  # columns that csrc/compensate.c takes at once
PIECE = 1 << 22  # elements of the rows fitted at a time
TASK = 1 << 15  # elements of one task: some 10 ms, so that Ctrl-C is not kept waiting
# Off H's diagonal this share is taken away: what a text shows of how columns go together is part
# chance, and part its own. Best on held-out text of 0.1, 0.3, and larger FLOORs of 0.03 to 1.
SHRINKAGE = 0.3
FLOOR = 0.01  # of the mean of H's diagonal, added to it: columns the text never used are not free
ROUNDS, SWEEPS = 2, 2  # of polishing all windows; of each window in a round

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Factor:
    """A diagonal block of H, and what feeding takes: H = (U + 1) D (U + 1)^T, U strictly upper."""

    h: Array  # [n, n], damped
    u: Array  # [n, n], U + 1
    importance: Array  # [1, n], D

    @classmethod
    def of(cls, sums: Array, count: int) -> Factor:
        """From sums over `count` inputs."""
        h = sums.astype(np.float64) / max(count, 1)
        own = np.diagonal(h).copy()
        h *= 1 - SHRINKAGE
        h[np.diag_indices_from(h)] = own + max(FLOOR * float(own.mean()), 1e-12)
        upper = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
        pivots = np.diagonal(upper)
        u, importance = (upper / pivots).astype(np.float32), (pivots**2).astype(np.float32)
        return cls(h.astype(np.float32), u, importance[None])


def factors_of(moments: Moments) -> list[Factor]:
    """Of each diagonal block."""
    return [Factor.of(block, moments.count) for block in moments.blocks]


def squared_error(error: Array, moments: Moments) -> float:
    """What errors [rows, columns] do to a product: the mean over inputs of its squared error,
    summed over rows.
    """
    total, begin = 0.0, 0
    for block in moments.blocks:
        part = error[:, begin : begin + len(block)]
        total += float(np.vdot(part @ block, part))
        begin += len(block)
    return total / max(moments.count, 1)


def fit(
    matrix: NDArray[Any] | Blocks,
    type: str,
    factors: list[Factor],
    *,
    threads: int,
    rounds: int = ROUNDS,
    done: Callable[[int], None] | None = None,
) -> Blocks:
    """A matrix [rows, columns] in blocks. done: called with the elements finished so far.

    Raises ValueError for NaN or infinity, naming its place.
    """
    from .quantize import finite_rows

    rows, columns = matrix.shape
    _, elements, size, _ = formats()[type]
    each = max(1, PIECE // columns)
    out = np.empty((rows, columns // elements * size), np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, rows, each):
            piece = finite_rows(matrix, begin, min(rows, begin + each))
            out[begin : begin + each] = _Rows(piece, type, pool).fitted_to(factors, rounds)
            if done is not None:
                done(min(rows, begin + each) * columns)
    return Blocks(type, out)


class _Rows:
    """Some rows on their way to blocks; tasks of a few rows each run on the pool."""

    def __init__(self, w: Array, type: str, pool: ThreadPoolExecutor) -> None:
        from . import _core

        self.w, self.type, self.pool = w, type, pool
        self.error = np.zeros_like(w)
        _, self.elements, _, _ = formats()[type]
        self.size = _core.fitted_bytes()
        rows, columns = w.shape
        self.fitted = np.empty((rows, columns // self.elements * self.size), np.uint8)

    def fitted_to(self, factors: list[Factor], rounds: int) -> NDArray[np.uint8]:
        """The bytes of all rows."""
        from . import _core

        begin = 0
        for factor in factors:
            self._feed(factor, begin)
            for _ in range(rounds):
                self._polish(factor, begin)
            begin += len(factor.h)
        return _core.pack_fitted(self.type, self.fitted, self.w.shape[1])

    def _feed(self, factor: Factor, base: int) -> None:
        from . import _core

        for begin, end in _windows(len(factor.h)):
            own, at = slice(begin, end), slice(base + begin, base + end)
            fed = self.w[:, at] + self.error[:, base : base + begin] @ factor.u[:begin, own]
            u = np.ascontiguousarray(factor.u[own, own])
            self._on_all(_core.feed_window, at, self.w[:, at], fed, (factor.importance[:, own], u))

    def _polish(self, factor: Factor, base: int) -> None:
        from . import _core

        gradient = self.error[:, base : base + len(factor.h)] @ factor.h
        for begin, end in _windows(len(factor.h)):
            own, at = slice(begin, end), slice(base + begin, base + end)
            before = self.error[:, at].copy()
            h = np.ascontiguousarray(factor.h[own, own])
            self._on_all(_core.polish_window, at, gradient[:, own], None, (h, SWEEPS))
            gradient[:, end:] += (self.error[:, at] - before) @ factor.h[own, end:]

    def _on_all(
        self, task: Callable[..., None], at: slice, a: Array, b: Array | None, rest: tuple[Any, ...]
    ) -> None:
        """task(type, fitted, error, a, b, *rest) of a window, for all rows; b may be left out."""
        place = slice(at.start // self.elements * self.size, at.stop // self.elements * self.size)

        def one(begin: int) -> None:
            here = slice(begin, begin + each)
            own = (a[here],) if b is None else (a[here], b[here])
            task(self.type, self.fitted[here, place], self.error[here, at], *own, *rest)

        each = max(1, TASK // (at.stop - at.start))
        for _ in self.pool.map(one, range(0, len(self.w), each)):
            pass


def _windows(columns: int) -> list[tuple[int, int]]:
    return [(begin, min(columns, begin + WINDOW)) for begin in range(0, columns, WINDOW)]
