"""Arrays that touch a page nobody may read or write: one element too far is a crash, not a lucky
number.

With at_end=True an array ends where a forbidden page starts, otherwise it starts where one ends.
Rows may have gaps between them; after the last row there is none.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

PAGE = mmap.PAGESIZE
_PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _fence(area: mmap.mmap, offset_bytes: int) -> None:
    """Forbid the page at this offset."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if _libc.mprotect(start + offset_bytes, PAGE, _PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect of a guard page failed")


def _fenced_bytes(size: int, *, at_end: bool) -> NDArray[np.uint8]:
    """`size` bytes with a forbidden page right after (at_end) or right before them. The map lives
    as long as the array.
    """
    room = -(-size // PAGE) * PAGE
    area = mmap.mmap(-1, room + PAGE)
    _fence(area, room if at_end else 0)
    first = room - size if at_end else PAGE
    return np.frombuffer(area, np.uint8, size, first)


def poisoned(
    shape: tuple[int, ...], dtype: DTypeLike, *, at_end: bool, gap: int = 0
) -> NDArray[Any]:
    """A fenced output of shape [n] or [rows, n] with `gap` elements between rows.

    Every byte is 0xFF, in the gaps too: NaN in each float type, so that what is not written shows,
    and what is written in a gap as well.
    """
    item, n = np.dtype(dtype).itemsize, shape[-1]
    rows = shape[0] if len(shape) == 2 else 1
    raw = _fenced_bytes(((rows - 1) * (n + gap) + n) * item, at_end=at_end)
    raw[:] = 0xFF
    flat = raw.view(dtype)
    return flat if len(shape) == 1 else as_strided(flat, shape, ((n + gap) * item, item))


def like(x: NDArray[Any], *, at_end: bool, gap: int = 0) -> NDArray[Any]:
    """A fenced copy of x, [n] or [rows, n], with `gap` elements between rows."""
    out = poisoned(x.shape, x.dtype, at_end=at_end, gap=gap)
    out[...] = x
    return out


def gaps(x: NDArray[Any]) -> NDArray[Any]:
    """What lies between the rows of a fenced [rows, n] array, [rows - 1, gap]: a kernel leaves it
    as it was.
    """
    rows, n = x.shape
    gap = x.strides[0] // x.itemsize - n
    return as_strided(x[:, n - 1 :], (rows - 1, gap + 1), x.strides)[:, 1:]
