"""Images and videos of an example as patches, placeholder text and 3-D positions.

    part of a message -> smart_resize -> PIL bicubic -> [n, 1536] patches in merge order
                      -> <|image_pad|> * n or "<t seconds>" and <|video_pad|> * n per frame pair

What transformers' Qwen2VL image processor, Qwen3VL processor and `get_rope_index` do, for uint8
arrays alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

PATCH, MERGE = 16, 2
FACTOR = PATCH * MERGE
PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}


@dataclass
class Frame:
    """What the tower attends over at once: an image, or one pair of video frames."""

    pixels: np.ndarray  # [h * w, 1536] f32 from -1 to 1
    grid: tuple[int, int]  # h, w in patches
    labels: list = field(default_factory=list)  # for training: scenes.Scene.labels

    @property
    def tokens(self) -> int:
        return len(self.pixels) // MERGE**2


def target_size(height: int, width: int, frames: int, size: dict) -> tuple[int, int]:
    """Height and width as multiples of 32 whose product with `frames` lies within size's limits."""
    h, w = (max(1, round(n / FACTOR)) * FACTOR for n in (height, width))
    low, high, pixels = size["shortest_edge"], size["longest_edge"], frames * height * width
    if frames * h * w > high:
        shrink = math.sqrt(pixels / high) * FACTOR
        h, w = (max(1, math.floor(n / shrink)) * FACTOR for n in (height, width))
    elif frames * h * w < low:
        grow = math.sqrt(low / pixels) / FACTOR
        h, w = (math.ceil(n * grow) * FACTOR for n in (height, width))
    return h, w


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Image [H, W, 3] uint8 to size (height, width), bicubic."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.BICUBIC))


def patch(pair: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """(patches, grid) of two frames [2, H, W, 3] uint8, each patch as (channel, frame, row,
    column), patches in 2 x 2 blocks."""
    _, H, W, C = pair.shape
    h, w = H // PATCH, W // PATCH
    x = pair.astype(np.float32) / 127.5 - 1
    x = x.reshape(2, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH, C)
    return x.transpose(1, 4, 2, 5, 7, 0, 3, 6).reshape(h * w, -1), (h, w)


def parts(messages: Iterable[dict], sizes: dict) -> Iterator[tuple[str, list[Frame]]]:
    """(text in place of the placeholder, frames) of every image and video, in their order; `sizes`
    holds the processors' size under "image" and "video"."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if part["type"] == "image":
                image = part["image"]
                image = resize(image, target_size(*image.shape[:2], 1, sizes["image"]))
                frame = Frame(*patch(np.stack([image, image])))
                yield PADS["image"] * frame.tokens, [frame]
            elif part["type"] == "video":
                yield video(part["video"], part["fps"], sizes["video"])


def video(frames: np.ndarray, fps: float, size: dict) -> tuple[str, list[Frame]]:
    """`parts` of one video [T, H, W, 3] uint8; an odd last frame is doubled."""
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    to = target_size(*frames.shape[1:3], len(frames), size)
    text, out = "", []
    for i in range(0, len(frames), 2):
        out.append(Frame(*patch(np.stack([resize(f, to) for f in frames[i : i + 2]]))))
        seconds = (i / fps + (i + 1) / fps) / 2
        pads = PADS["video"] * out[-1].tokens
        text += f"<{seconds:.1f} seconds><|vision_start|>{pads}<|vision_end|>"
    return text, out


def positions(ids: list[int], pads: set[int], grids: Iterable[tuple[int, int]]) -> np.ndarray:
    """mRoPE positions [3, T]: text counts on; a grid of merged h x w takes max(h, w) steps."""
    out, grid, at, i = np.empty((3, len(ids)), np.int64), iter(grids), 0, 0
    while i < len(ids):
        if ids[i] not in pads:
            out[:, i] = at
            at, i = at + 1, i + 1
            continue
        h, w = (n // MERGE for n in next(grid))
        out[0, i : i + h * w] = at
        out[1, i : i + h * w] = at + np.repeat(np.arange(h), w)
        out[2, i : i + h * w] = at + np.tile(np.arange(w), h)
        at, i = at + max(h, w), i + h * w
    return out
