"""What a text makes of a model: the second moments of everything its matrices are multiplied with.

text -> windows of tokens, each read from an empty session -> H = mean of a a^T over the inputs a of
each matrix, summed up while the engine runs (`_core.Session.observe`). An error e in a row of
weights costs e^T H e in the square of that row's product, so H is all that a fit has to know
(compensate.py). Matrices that read the same vectors share one H.

Where a matrix has more columns than WIDTH, H is kept in diagonal blocks of that size: 12,288
columns of the 9B take 200 MB instead of 600.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from . import _core
    from .checkpoint import Checkpoint

WIDTH = 4096  # columns of a block of H at most
CONTEXT = 512  # tokens of a window
MIN_TOKENS = 1024
MAX_TOKENS = 16384  # read of a longer text by default: windows spread over all of it
# Which matrix stands for those that read the same vectors.
SAME_INPUT = {
    "linear_attn.in_proj_z.weight": "linear_attn.in_proj_qkv.weight",
    "linear_attn.in_proj_b.weight": "linear_attn.in_proj_qkv.weight",
    "linear_attn.in_proj_a.weight": "linear_attn.in_proj_qkv.weight",
    "self_attn.k_proj.weight": "self_attn.q_proj.weight",
    "self_attn.v_proj.weight": "self_attn.q_proj.weight",
    "mlp.up_proj.weight": "mlp.gate_proj.weight",
}


def input_of(name: str) -> str:
    """The matrix whose inputs are also those of `name`."""
    head, dot, rest = name.rpartition("layers.")
    number, _, kind = rest.partition(".")
    return f"{head}{dot}{number}.{SAME_INPUT[kind]}" if kind in SAME_INPUT else name


@dataclass
class Moments:
    """Sums of a a^T over the inputs of one matrix, in diagonal blocks; float32 [n, n] each."""

    blocks: list[NDArray[np.float32]]
    count: int = 0

    @classmethod
    def empty(cls, columns: int) -> Moments:
        """Of no inputs yet."""
        return cls([np.zeros((end - begin,) * 2, np.float32) for begin, end in cuts(columns)])

    @property
    def columns(self) -> int:
        """Of the matrix."""
        return sum(len(block) for block in self.blocks)

    def add(self, x: NDArray[np.float32]) -> None:
        """More inputs, [T, columns]."""
        begin = 0
        for block in self.blocks:
            part = x[:, begin : begin + len(block)]
            block += part.T @ part
            begin += len(block)
        self.count += len(x)

    def mean_squares(self) -> NDArray[np.float32]:
        """Of each column: what an imatrix holds; float32 [columns]."""
        diagonal = np.concatenate([np.diagonal(block) for block in self.blocks])
        return diagonal / np.float32(max(self.count, 1))


def cuts(columns: int) -> list[tuple[int, int]]:
    """The diagonal blocks of H, as (first column, end): whole blocks of 256, alike in size."""
    parts = -(-columns // WIDTH)
    each = -(-columns // parts // 256) * 256 if parts > 1 else columns
    return [(begin, min(columns, begin + each)) for begin in range(0, columns, each)]


def token_ids(
    checkpoint: Checkpoint, text: str | Sequence[int] | NDArray[Any], *, special: bool = False
) -> NDArray[np.int32]:
    """A text as the checkpoint's tokenizer cuts it; ids are taken as given. special: tokens such as
    <|im_end|> are spelt out in it. ValueError for ids that are none.
    """
    from .loading import tokenizer_of
    from .prompt import check_ids

    rows = checkpoint.config.text.vocab_size
    if isinstance(text, str):
        text = tokenizer_of(checkpoint).encode(text, special=special)
    if len(text) == 0:
        raise ValueError(f"calibration text: it is empty, expected at least {MIN_TOKENS:,} tokens")
    return check_ids(text, vocab_size=rows, where="calibration text")


def windows(ids: NDArray[np.int32], limit: int = MAX_TOKENS) -> list[NDArray[np.int32]]:
    """The text cut into windows; of a longer one than `limit` tokens, as many windows spread evenly
    over it. ValueError for a text, or a limit, that is too small.
    """
    if limit < MIN_TOKENS:
        raise ValueError(
            f"{limit:,} tokens of the calibration text: expected at least {MIN_TOKENS:,}"
        )
    if len(ids) < MIN_TOKENS:
        raise ValueError(
            f"calibration text: {len(ids):,} tokens, expected at least {MIN_TOKENS:,}; some pages "
            "of what the model will be used for do"
        )
    count = -(-len(ids) // CONTEXT)
    kept = range(count)
    if len(ids) > limit:
        wanted = max(1, limit // CONTEXT)
        kept = [i * (count - 1) // wanted for i in range(wanted)]
    return [ids[i * CONTEXT : (i + 1) * CONTEXT] for i in kept]


def collect(
    core: _core.Model,
    text: Sequence[NDArray[np.int32]],
    columns: Mapping[str, int],
    *,
    orders: Mapping[str, NDArray[np.intp]],
    report: Callable[[int, int], object] | None = None,
) -> dict[str, Moments]:
    """The moments of the matrices named in `columns` (names that `input_of` returns), over all
    windows.

    orders: of the columns of some of them, as the moments shall have them. report: called with
    tokens done and in all.
    """
    found = {name: Moments.empty(count) for name, count in columns.items()}

    def see(name: str, x: NDArray[np.float32]) -> None:
        if name in found:
            found[name].add(x[:, orders[name]] if name in orders else x)

    total, done = sum(map(len, text)), 0
    for window in text:
        core.session(len(window)).observe(window, see)
        done += len(window)
        if report is not None:
            report(done, total)
    return found
