"""Where quantizing costs most: the error of every matrix in blocks against the reference's tensor.

No forward pass: decoded numbers against numbers, summed up by layer and by kind of matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .blocks import BlockSpan

if TYPE_CHECKING:
    from .model import Model

PIECE = 1 << 20  # numbers that are float64 at a time


@dataclass(frozen=True)
class MatrixError:
    """One quantized matrix: the squares of its errors and of the reference's numbers, summed."""

    name: str
    type: str  # "q4_k"
    layer: int | None  # None outside the text model's layers: embedding, head, drafts, vision
    kind: str  # "mlp.down_proj"; outside the layers the whole name, shortened
    squared_error: float
    squared_norm: float

    @property
    def error(self) -> float:
        """Relative squared error: sum (decoded - reference)^2 / sum reference^2."""
        return _ratio([self])


@dataclass(frozen=True)
class LayerErrors:
    """All quantized matrices of a model, in the checkpoint's order."""

    matrices: tuple[MatrixError, ...]

    @property
    def layers(self) -> dict[int, float]:
        """Relative squared error of each layer's matrices together."""
        inside = [matrix for matrix in self.matrices if matrix.layer is not None]
        return _grouped(inside, lambda matrix: matrix.layer)

    @property
    def kinds(self) -> dict[str, float]:
        """The same of each kind of matrix, over all layers."""
        return _grouped(self.matrices, lambda matrix: matrix.kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: by layer, by kind, and matrix by matrix."""
        return {
            "layers": self.layers,
            "kinds": self.kinds,
            "matrices": [
                {
                    "name": m.name,
                    "type": m.type,
                    "layer": m.layer,
                    "kind": m.kind,
                    "error": m.error,
                }
                for m in self.matrices
            ],
        }

    def __str__(self) -> str:
        """Two tables: by kind, by layer."""
        if not self.matrices:
            return "no quantized matrices"
        types = {
            kind: _types(m for m in self.matrices if m.kind == kind) for kind in sorted(self.kinds)
        }
        wide = max(len("matrix"), *map(len, types))
        broad = max(len("types"), *map(len, types.values()))
        lines = [f"{'matrix':<{wide}}  {'types':<{broad}}  relative squared error"]
        for kind, type in types.items():
            lines.append(f"{kind:<{wide}}  {type:<{broad}}  {self.kinds[kind]:.3e}")
        lines += [
            f"{f'layer {layer}':<{wide + broad + 2}}  {error:.3e}"
            for layer, error in self.layers.items()
        ]
        return "\n".join(lines)


def layer_errors(model: Model, reference: Model) -> LayerErrors:
    """Relative squared error of every matrix that `model` holds in blocks, against the tensor of
    the same name in `reference`.

    Tensors that the reference lacks (drafts, vision) are left out. Raises ValueError where shapes
    differ: models of other sizes have no common layers.
    """
    tensors, expected = model._checkpoint.tensors, reference.tensors
    found = []
    for name in tensors:
        span = tensors.span(name)
        if not isinstance(span, BlockSpan) or name not in expected:
            continue
        want = expected[name]
        if tuple(want.shape) != tuple(span.shape):
            raise ValueError(
                f"{model.name}: tensor {name!r} is {list(span.shape)}, in {reference.name} "
                f"{list(want.shape)}: expected a model quantized from the reference"
            )
        squares = _squares(model.tensors[name], want)
        found.append(MatrixError(name, span.dtype, *_place(name), *squares))
    return LayerErrors(tuple(found))


def _squares(got: NDArray[Any], want: NDArray[Any]) -> tuple[float, float]:
    """Sums of (got - want)^2 and want^2, in float64."""
    error = norm = 0.0
    count = max(1, PIECE // max(1, want.shape[1]))
    for begin in range(0, len(want), count):
        one = np.asarray(want[begin : begin + count], np.float32).astype(np.float64)
        norm += float(np.square(one).sum())
        error += float(np.square(got[begin : begin + count] - one).sum())
    return error, norm


def _place(name: str) -> tuple[int | None, str]:
    """(layer, kind) of a tensor."""
    short = name.removesuffix(".weight").removeprefix("model.language_model.")
    head, _, rest = short.partition(".")
    number, _, kind = rest.partition(".")
    return (int(number), kind) if head == "layers" and number.isdecimal() else (None, short)


def _types(matrices: Any) -> str:
    return ", ".join(sorted({matrix.type for matrix in matrices}))


def _grouped(matrices: Any, key: Callable[[MatrixError], Any]) -> dict[Any, float]:
    groups: dict[Any, list[MatrixError]] = {}
    for matrix in matrices:
        groups.setdefault(key(matrix), []).append(matrix)
    return {name: _ratio(group) for name, group in groups.items()}


def _ratio(matrices: list[MatrixError]) -> float:
    """0 for what is zero throughout and came out so."""
    error, norm = sum(m.squared_error for m in matrices), sum(m.squared_norm for m in matrices)
    return error / norm if norm > 0 else (0.0 if error == 0 else float("inf"))
