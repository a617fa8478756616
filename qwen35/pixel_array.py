"""Arrays of pixels that a caller hands in -> one uint8 RGB frame that is ours.

Channels come last, always: [H, W], [H, W, 1], [H, W, 2] (gray, alpha), [H, W, 3] or [H, W, 4]
(RGBA). uint8 is taken as it is; bool is black and white; floats are 0..1. Strides, byte order and
alignment do not matter; what comes out is a copy. Alpha is laid over white, as transformers does
it.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MediaError

SHAPES = "[H, W, 3], or [H, W] gray, [H, W, 1], [H, W, 2] gray and alpha, [H, W, 4] RGBA"
_FLOATS = ("float16", "float32", "float64", "bfloat16")


def check_array(array: NDArray[Any], *, where: str) -> None:
    """Refuse arrays whose elements are not levels, or cannot be read safely. Looks at no element.

    Raises TypeError for a masked array, another subclass or a dtype without a scale; MediaError for
    a memory map whose file has become shorter.
    """
    if type(array) not in (np.ndarray, np.memmap):
        raise TypeError(
            f"{where}: {type(array).__name__}, expected a plain numpy array; pass "
            "numpy.asarray(image), for a masked array image.filled(0)"
        )
    name = array.dtype.name
    if array.dtype.kind in "iu" and name != "uint8":
        raise TypeError(
            f"{where}: an array of {name} has no scale; pass image.astype(numpy.uint8) if its "
            "values are 0..255, (image / 65535).astype(numpy.float32) if they are 0..65535"
        )
    if name not in ("uint8", "bool", *_FLOATS):
        raise TypeError(
            f"{where}: an array of dtype {name[:40]}, expected uint8, bool, or one of "
            f"{', '.join(_FLOATS)} with values 0..1"
        )
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and _file_bytes(base) < len(base):
        raise MediaError(f"{where}: the file this array is mapped from has become shorter")


def _file_bytes(mapped: mmap.mmap) -> int:
    try:
        return mapped.size()
    except (OSError, ValueError):  # an anonymous map has no file to be cut
        return len(mapped)


def check_frame_shape(shape: tuple[int, ...], *, where: str) -> tuple[int, int]:
    """Height and width of a frame of this shape. Raises ValueError for another rank, no pixels, or
    a number of channels that means nothing.
    """
    if len(shape) not in (2, 3) or (len(shape) == 3 and not 1 <= shape[2] <= 4):
        hint = ""
        if len(shape) == 3 and 1 <= shape[0] <= 4:
            hint = "; channels come last, image.transpose(1, 2, 0) moves them there"
        raise ValueError(f"{where}: an array of shape {list(shape)}, expected {SHAPES}{hint}")
    if 0 in shape:
        raise MediaError(f"{where}: an array of shape {list(shape)} has no pixels")
    return shape[0], shape[1]


def rgb_frame(array: NDArray[Any], *, where: str) -> NDArray[np.uint8]:
    """A new uint8 array [H, W, 3] of a checked frame.

    Raises ValueError for floats outside 0..1 or NaN.
    """
    levels = _levels(np.array(array, order="C", subok=False), where)
    if levels.ndim == 2:
        levels = levels[:, :, None]
    channels = levels.shape[2]
    color = levels[:, :, : 3 if channels >= 3 else 1]
    if channels in (2, 4):
        color = _over_white(color, levels[:, :, -1:])
    height, width = levels.shape[:2]
    return np.ascontiguousarray(np.broadcast_to(color, (height, width, 3)))


def _levels(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """0..255 from a private array of any accepted dtype."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    wide = array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)
    low, high = float(wide.min()), float(wide.max())
    if not (low >= 0 and high <= 1):  # so that NaN is refused
        raise ValueError(
            f"{where}: a float image with values from {low:.4g} to {high:.4g}, expected 0..1; "
            "scale it, for 0..255 with image / 255"
        )
    return np.rint(wide * 255).astype(np.uint8)


def _over_white(color: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """alpha * color + (1 - alpha) * white, rounded: whole numbers, and never halfway, since 255 is
    odd.
    """
    a = alpha.astype(np.uint16)
    return ((a * color + (255 - a) * 255 + 127) // 255).astype(np.uint8)


def resized(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A frame [H, W, 3] brought to `size` (height, width) by Pillow's bicubic filter, which widens
    when it shrinks (antialias). A new array.
    """
    from PIL import Image

    height, width = size
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)
