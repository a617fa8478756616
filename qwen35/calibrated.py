"""A recipe's bytes, spent where a text says they count, and fitted to what the text does.

text -> second moments of all inputs (calibrate.py), for as many layers at a time as MEMORY holds
-> for each matrix: what each type would leave of error, tried on some of its rows
-> what an error of each matrix costs (sensitivity.py) -> types within the recipe's bytes
(allocate.py) -> every matrix fitted (compensate.py), as the file is written.
A recipe of one type alone keeps it; there the fit is all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .allocate import Choice, allocate
from .blocks import Blocks
from .calibrate import Moments, collect, cuts, input_of
from .checkpoint import Checkpoint
from .compensate import Factor, factors_of, fit, squared_error
from .load_progress import Report
from .quantize import RECIPES, block_bytes, encode, encode_in_bands, finite_rows
from .sensitivity import Sensitivity, buckets, chosen_windows

if TYPE_CHECKING:
    from . import _core

MEMORY = 2 << 30  # bytes of moments held at a time
ROWS = 64  # of each matrix, on which types are tried
# What a matrix may become, coarse to fine; those far below the recipe's own are left out.
LONG_ROWS = ("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0")
SHORT_ROWS = ("q4_0", "iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0")
COARSER = 2  # steps below the recipe's

Matrix = NDArray[Any] | Blocks


class Calibrated:
    """Decides and encodes the matrices of one file.

    text: windows of tokens (calibrate.windows). recipe_types: of the matrices to encode, by
    checkpoint name, as the recipe has them and in the order in which `encode` will be called:
    moments are held for a few layers at a time. budget: bytes for all of them, drafts included.
    matrix: gives one as the file will have it. orders: of the columns of those whose columns the
    file has in another order than the model reads them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: str,
        recipe_types: Mapping[str, str],
        text: Sequence[NDArray[np.int32]],
        *,
        budget: int,
        matrix: Callable[[str], Matrix],
        orders: Mapping[str, NDArray[np.intp]],
        threads: int,
        report: Report | None = None,
    ) -> None:
        self._checkpoint, self._matrix, self._orders = checkpoint, matrix, orders
        self._threads, self._report = threads, report
        self._text = text
        self._recipe_types = {n: t for n, t in recipe_types.items() if not n.startswith("mtp.")}
        spans = {name: checkpoint.tensors.span(name) for name in self._recipe_types}
        drafts = set(recipe_types) - set(self._recipe_types)  # the text never runs them
        self._budget = budget - sum(
            block_bytes(recipe_types[name], checkpoint.tensors.span(name).shape) for name in drafts
        )
        self._shapes: dict[str, tuple[int, ...]] = {n: tuple(s.shape) for n, s in spans.items()}
        self._core = self._model({})
        self._groups = _groups(self._fitted_names(), self._shapes)
        self._held: tuple[int, dict[str, Moments]] = (-1, {})
        self._factors: tuple[str, list[Factor]] = ("", [])
        known = RECIPES[recipe]
        self._fixed = known.base == known.head

    def types(self) -> dict[str, str]:
        """The type of every matrix, within the budget."""
        if self._fixed:
            return dict(self._recipe_types)
        costs = self._costs()
        choices = {
            name: [
                Choice(type, block_bytes(type, self._shapes[name]), cost)
                for type, cost in found.items()
            ]
            for name, found in costs.items()
        }
        return allocate(choices, self._budget)

    def encode(
        self, name: str, matrix: Matrix, type: str, *, done: Callable[[int], None] | None = None
    ) -> Iterator[Blocks]:
        """A matrix in blocks: in one piece, fitted where the text says anything about it, else in
        bands.
        """
        if name not in self._recipe_types or not self._is_product(name):
            yield from encode_in_bands(matrix, type, threads=self._threads, done=done)
            return
        yield fit(matrix, type, self._factors_of(name), threads=self._threads, done=done)

    # The model

    def _model(self, replaced: Mapping[str, Any]) -> _core.Model:
        from . import _core
        from .loading import as_core

        tensors = self._checkpoint.tensors
        geometry = self._checkpoint.config.geometry(
            vision=False, tiled_value_heads=tensors.tiled_value_heads
        )
        given = {
            name: replaced[name] if name in replaced else as_core(tensors.stored(name))
            for name, _ in _core.expected_tensors(geometry)
        }
        return _core.Model(geometry, given, threads=self._threads, kv_dtype="float32")

    def _is_product(self, name: str) -> bool:
        """Whether it is multiplied with something: not an embedding that is no head."""
        tied = self._checkpoint.config.text.tie_word_embeddings
        return tied or not name.endswith("embed_tokens.weight")

    def _fitted_names(self) -> list[str]:
        return [name for name in self._recipe_types if self._is_product(name)]

    # Moments

    def _moments(self, name: str) -> Moments:
        """Those of a matrix's inputs; measured with its whole group, which is kept till another is
        asked for.
        """
        number = next(i for i, group in enumerate(self._groups) if name in group)
        if self._held[0] != number:
            self._held = (-1, {})
            columns = {input_of(n): self._shapes[n][1] for n in self._groups[number]}
            orders = {n: order for n, order in self._orders.items() if n in columns}
            report = self._stage("calibrate")
            found = collect(self._core, self._text, columns, orders=orders, report=report)
            self._held = (number, found)
        return self._held[1][input_of(name)]

    def _factors_of(self, name: str) -> list[Factor]:
        if self._factors[0] != input_of(name):
            self._factors = ("", [])
            self._factors = (input_of(name), factors_of(self._moments(name)))
        return self._factors[1]

    def _stage(self, stage: str) -> Callable[[int, int], object] | None:
        report = self._report
        return None if report is None else lambda done, total: report(done, total, stage)

    # Costs

    def _costs(self) -> dict[str, dict[str, float]]:
        """Of every matrix, by type: nats of KL."""
        left, plain = {}, {}
        report = self._stage("try types")
        for number, name in enumerate(self._recipe_types):
            left[name], plain[name] = self._tried(name)
            if report is not None:
                report(number + 1, len(self._recipe_types))
        price = self._prices(plain)
        return {n: {t: price[n] * error for t, error in found.items()} for n, found in left.items()}

    def _tried(self, name: str) -> tuple[dict[str, float], float]:
        """The squared error that each type would leave once fitted, and that of the recipe's type
        as it is; both from some rows.
        """
        matrix, rows = self._matrix(name), self._shapes[name][0]
        count = min(ROWS, rows)
        each = [finite_rows(matrix, r * rows // count, r * rows // count + 1) for r in range(count)]
        some, scale = np.concatenate(each), rows / count
        moments = self._moments(name) if self._is_product(name) else None

        def error(blocks: Blocks) -> float:
            found = some - blocks.decode()
            if moments is None:
                return scale * float(np.vdot(found, found))
            return scale * squared_error(found, moments)

        options: dict[str, Any] = {"threads": self._threads}
        plain = error(encode(some, self._recipe_types[name], **options))
        if moments is None:
            tried = {t: error(encode(some, t, **options)) for t in self._candidates(name)}
        else:
            factors = self._factors_of(name)
            tried = {
                t: error(fit(some, t, factors, rounds=1, **options)) for t in self._candidates(name)
            }
        return tried, plain

    def _candidates(self, name: str) -> Sequence[str]:
        ladder = LONG_ROWS if self._shapes[name][1] % 256 == 0 else SHORT_ROWS
        own = self._recipe_types[name]
        at = ladder.index(own) if own in ladder else 0
        return ladder[max(0, at - COARSER) :]

    def _prices(self, plain: Mapping[str, float]) -> dict[str, float]:
        """Nats of KL for a unit of squared error, of each matrix: measured with blocks of the
        recipe's type, which leave the errors `plain`.
        """
        text = chosen_windows(self._text, self._checkpoint.config.text.vocab_size)
        sensitivity = Sensitivity(self._model, text)
        report, found = self._stage("weigh matrices"), buckets(list(plain))
        prices = {}
        for number, bucket in enumerate(found):
            stored = {name: self._checkpoint.tensors.stored(name) for name in bucket}
            replaced = {
                name: encode(matrix, self._recipe_types[name], threads=self._threads)
                for name, matrix in stored.items()
            }
            price = sensitivity.kl(replaced) / max(sum(plain[n] for n in bucket), 1e-30)
            prices |= dict.fromkeys(bucket, price)
            if report is not None:
                report(number + 1, len(found))
        return prices


def _groups(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> list[set[str]]:
    """Names in their order, cut where the moments of one group would take more than MEMORY."""
    groups: list[set[str]] = [set()]
    inputs: set[str] = set()
    held = 0
    for name in names:
        size = sum(4 * (end - begin) ** 2 for begin, end in cuts(shapes[name][1]))
        if input_of(name) not in inputs and held + size > MEMORY and groups[-1]:
            groups.append(set())
            held = 0
        if input_of(name) not in inputs:
            inputs.add(input_of(name))
            held += size
        groups[-1].add(name)
    return groups
