"""Which matrix becomes which block type, and the encoding of one on all threads.

A recipe is one type for all ("q8_0", "q4_k") or a mixture by llama.cpp's names ("q4_k_m"): the base
type, and one or two finer ones for the tensors whose errors cost most. The head, attention's
values and every second `down_proj` are such; DeltaNet's gates (in_proj_a, in_proj_b), small and
exponentiated, are q8_0 in every recipe. Vectors, convolutions and the vision tower stay as stored.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks, formats
from .errors import UnsupportedModelError

PIECE = 1 << 21  # elements encoded by one task
BAND = 1 << 26  # elements in memory at once where blocks go to a file
GATES = ("in_proj_a.weight", "in_proj_b.weight")
LEAN = (*GATES, "v_proj.weight", "in_proj_qkv.weight")  # where llama.cpp gives fewer bits
# What a row that is no multiple of 256 becomes instead.
SHORT_ROWS = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "iq4_xs": "iq4_nl",
}


@dataclass(frozen=True)
class Recipe:
    """The type of most matrices, of the head (and of an embedding that is the head), of attention's
    v_proj and half of the down_proj, and of DeltaNet's in_proj_qkv.
    """

    base: str
    head: str
    fine: str
    mixer: str


def _mixture(base: str, head: str = "q6_k", fine: str = "q6_k", mixer: str = "") -> Recipe:
    return Recipe(base, head, fine, mixer or base)


RECIPES = {
    "q2_k": _mixture("q2_k", fine="q3_k", mixer="q3_k"),
    "q3_k_s": _mixture("q3_k", fine="q3_k"),
    "q3_k_m": _mixture("q3_k", fine="q5_k", mixer="q4_k"),
    "q4_k_s": _mixture("q4_k", fine="q5_k"),
    "q4_k_m": _mixture("q4_k", mixer="q5_k"),
    "q5_k_s": _mixture("q5_k", fine="q5_k"),
    "q5_k_m": _mixture("q5_k", mixer="q6_k"),
    "q6_k": _mixture("q6_k"),
    "iq4_nl": _mixture("iq4_nl", fine="q5_k"),
    "iq4_xs": _mixture("iq4_xs", fine="q5_k"),
    **{t: Recipe(t, t, t, t) for t in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")},
}


def check_recipe(name: Any) -> str:
    """The recipe's own spelling; UnsupportedModelError listing all for another word."""
    if not isinstance(name, str):
        raise TypeError(f"quantize: expected a str or None, got {type(name).__name__}")
    found = name.lower()
    if found not in RECIPES:
        raise UnsupportedModelError(f"quantize={name!r}: expected one of {', '.join(RECIPES)}")
    return found


def type_for(
    recipe: str,
    name: str,
    shape: tuple[int, ...],
    *,
    layers: int,
    tied: bool,
    lean: bool = False,
) -> str:
    """The type of the tensor `name` under a recipe; "" where it stays as it is stored.

    layers: of the text model. tied: the embedding is the head. lean: as llama.cpp's Q4_K_M and
    Q5_K_M have it, with fewer bits for gates and for most layers' values.
    """
    known, own = RECIPES[recipe], ""
    if len(shape) != 2 or name.startswith("model.visual.") or not name.endswith(".weight"):
        return own
    part = name.rpartition("layers.")[2].partition(".")[0]
    layer = int(part) if part.isdecimal() else -1
    if name == "lm_head.weight" or (tied and name.endswith("embed_tokens.weight")):
        own = known.head
    elif lean and name.endswith(LEAN):
        values = not name.endswith(GATES) and _counts_more(layer, layers)
        own = known.fine if values else known.base
    elif name.endswith(GATES):
        own = "q8_0"
    elif name.endswith("v_proj.weight"):
        own = known.fine
    elif name.endswith("down_proj.weight"):
        own = known.fine if _counts_more(layer, layers) else known.base
    elif name.endswith("in_proj_qkv.weight"):
        own = known.mixer
    else:
        own = known.base
    return _fitting(own, shape[1])


def _counts_more(layer: int, layers: int) -> bool:
    """The first and last eighth, and every third layer between: llama.cpp's choice."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(type: str, columns: int) -> str:
    if columns % formats()[type][1]:
        type = SHORT_ROWS.get(type, "")
    return type if type and columns % formats()[type][1] == 0 else ""


def encode(
    matrix: NDArray[Any] | Blocks,
    type: str,
    *,
    importance: NDArray[np.float32] | None = None,
    threads: int | None = None,
    done: Callable[[int], None] | None = None,
    rows: range | None = None,
) -> Blocks:
    """A matrix [rows, columns] in blocks, or some rows of it.

    importance: float32 [columns], how much an error in each column costs. done: called with the
    elements finished so far. Raises ValueError for NaN or infinity, naming its place.
    """
    from . import _core

    columns = matrix.shape[1]
    rows = range(matrix.shape[0]) if rows is None else rows
    each = max(1, PIECE // columns)
    _, elements, size, _ = formats()[type]
    out = np.empty((len(rows), columns // elements * size), np.uint8)

    def one(begin: int) -> int:
        piece = finite_rows(matrix, begin, min(rows.stop, begin + each))
        at = begin - rows.start
        out[at : at + each] = _core.encode_blocks(type, piece, importance)
        return piece.size

    finished = 0
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    try:
        for count in pool.map(one, rows[::each]):
            finished += count
            if done is not None:
                done(finished)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the pieces under way alone
    return Blocks(type, out)


def encode_in_bands(
    matrix: NDArray[Any] | Blocks,
    type: str,
    *,
    importance: NDArray[np.float32] | None = None,
    threads: int | None = None,
    done: Callable[[int], None] | None = None,
) -> Iterator[Blocks]:
    """As `encode`, some rows at a time: memory for BAND elements, however large the matrix is."""
    count, columns = matrix.shape
    each = max(1, BAND // columns)
    for begin in range(0, count, each):

        def so_far(elements: int, before: int = begin * columns) -> None:
            if done is not None:
                done(before + elements)

        rows = range(begin, min(count, begin + each))
        yield encode(matrix, type, importance=importance, threads=threads, done=so_far, rows=rows)


def finite_rows(matrix: NDArray[Any] | Blocks, begin: int, end: int) -> NDArray[np.float32]:
    """Rows begin to end as float32; ValueError for NaN or infinity, naming its place."""
    if isinstance(matrix, Blocks):
        piece = Blocks(matrix.type, matrix.data[begin:end]).decode()
    else:
        piece = np.ascontiguousarray(matrix[begin:end], np.float32)
    bad = np.argwhere(~np.isfinite(piece))
    if len(bad):
        row, column = map(int, bad[0])
        raise ValueError(
            f"row {begin + row}, column {column} is {piece[row, column]}: expected a finite number"
        )
    return piece


def block_bytes(type: str, shape: tuple[int, ...]) -> int:
    """Bytes of a matrix in blocks."""
    _, elements, size, _ = formats()[type]
    return shape[0] * shape[1] // elements * size


def plan(tensors: Any, recipe: str, *, layers: int, tied: bool) -> Iterator[tuple[str, str]]:
    """(name, type) of every tensor that a recipe makes smaller. Those that are stored in fewer
    bytes already stay.
    """
    for name in tensors:
        span = tensors.span(name)
        type = type_for(recipe, name, span.shape, layers=layers, tied=tied)
        if type and block_bytes(type, span.shape) < span.nbytes:
            yield name, type


def budget_bytes(types: Mapping[str, str], tensors: Any, recipe: str, **options: Any) -> int:
    """Bytes that the matrices in `types` may take together: those of these types, or those that
    llama.cpp's mixture of the name takes, where that is less. options: layers and tied.
    """
    own = lean = 0
    for name, type in types.items():
        shape = tensors.span(name).shape
        own += block_bytes(type, shape)
        lean += block_bytes(type_for(recipe, name, shape, lean=True, **options), shape)
    return min(own, lean)
