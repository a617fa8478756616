"""Matrices in GGUF's block types: bytes as the core runs them, float32 when read."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


@functools.cache
def formats() -> dict[str, tuple[int, int, int, bool]]:
    """Type -> (number in GGUF files, elements and bytes of a block, whether it can be made)."""
    from . import _core

    return _core.formats()


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix of one block type ("q4_k"); data is uint8 [rows, bytes of a row], read-only."""

    type: str
    data: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in elements."""
        _, elements, size, _ = formats()[self.type]
        return self.data.shape[0], self.data.shape[1] // size * elements

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks."""
        return self.data.nbytes

    def decode(self) -> NDArray[np.float32]:
        """The numbers, float32 [rows, columns]."""
        from . import _core

        rows, columns = self.shape
        return _core.decode_blocks(self.type, self.data, rows * columns).reshape(rows, columns)


@dataclasses.dataclass(frozen=True)
class BlockSpan:
    """Shape, type and size of a matrix in blocks: what `Span` is for other tensors."""

    name: str
    dtype: str  # "q4_k"
    shape: tuple[int, ...]
    nbytes: int
    aligned: bool = True  # blocks are read byte by byte


@dataclasses.dataclass(frozen=True, eq=False)
class PackedBlocks(Blocks):
    """Blocks made in memory that the core alone has now, laid out anew: `data` is empty.

    given: shape and bytes of the blocks that they were. read: the numbers, float32 [rows, columns].
    """

    given: BlockSpan
    read: Callable[[], NDArray[np.float32]]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in elements."""
        rows, columns = self.given.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """Bytes that the blocks had."""
        return self.given.nbytes

    def decode(self) -> NDArray[np.float32]:
        """The numbers, float32 [rows, columns]."""
        return self.read()


def stored_type(span: Any) -> str:
    """The span's type as users know it: "bfloat16", "q4_k"."""
    return span.dtype if isinstance(span.dtype, str) else span.dtype.name
