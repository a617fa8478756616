"""When the frames of a video are taken: what a caller may ask for, and which frames of a file that
names.

Numbers and times are those of transformers' Qwen3VL video processor (`sample_frames`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import MediaError
from .media import MediaLimits
from .vision_settings import VisionSettings

MAX_FPS = 1e6
MAX_SECONDS = 1e7

Progress = Callable[[int, int], object]  # frames done, frames in all
Fit = Callable[[int, int, int], tuple[int, int]]  # frames, height, width -> height, width


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a caller may say about time. `fps` is of given frames, the rest is of files."""

    fps: float | None = None  # frames a second of the frames given
    sample_fps: float | None = None  # frames to take from a second of a file
    num_frames: int | None = None  # or how many in all
    start: float | None = None  # seconds
    end: float | None = None


class Clip(NamedTuple):
    """The frames of a video, resized."""

    frames: NDArray[np.uint8]  # [T, h, w, 3]
    times: tuple[float, ...]  # seconds, one a frame
    source_size: tuple[int, int]  # height and width before resizing
    note: str | None


def check_sampling(ask: Sampling, limits: MediaLimits, where: str) -> Sampling:
    """The same request with plain numbers, every one in its range."""
    if ask.num_frames is not None and ask.sample_fps is not None:
        raise ValueError(f"{where}: sample_fps and num_frames are both given, expected one of them")
    checked = Sampling(
        fps=_number(ask.fps, f"{where}: fps", 0, MAX_FPS, above=True),
        sample_fps=_number(ask.sample_fps, f"{where}: sample_fps", 0, MAX_FPS, above=True),
        num_frames=None
        if ask.num_frames is None
        else whole(ask.num_frames, f"{where}: num_frames", limits.frames),
        start=_number(ask.start, f"{where}: start", 0, MAX_SECONDS),
        end=_number(ask.end, f"{where}: end", 0, MAX_SECONDS, above=True),
    )
    if checked.end is not None and (checked.start or 0.0) >= checked.end:
        raise ValueError(
            f"{where}: start={checked.start or 0.0:g} is not before end={checked.end:g} (seconds)"
        )
    return checked


def whole(value: Any, name: str, high: int = 2**40) -> int:
    """An integer of 1 to `high`. Raises TypeError or ValueError that opens with `name`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: {type(value).__name__}, expected an integer")
    if not 1 <= value <= high:
        raise ValueError(f"{name}={value}: expected an integer of 1 to {high}")
    return int(value)


def _number(value: Any, name: str, low: float, high: float, *, above: bool = False) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: {type(value).__name__}, expected a number")
    good = math.isfinite(value) and low <= value <= high and not (above and value == low)
    if not good:
        words = f"above {low:g} and at most {high:g}" if above else f"of {low:g} to {high:g}"
        raise ValueError(f"{name}={value:g}: expected a number {words}")
    return float(value)


def sample_indices(
    total: int,
    rate: float,
    settings: VisionSettings,
    ask: Sampling,
    *,
    where: str,
    limits: MediaLimits,
) -> list[int]:
    """Numbers of the frames to take of `total` at `rate` frames a second: evenly spread, the first
    and the last among them. As transformers' Qwen3VLVideoProcessor.sample_frames over the range
    asked for.
    """
    first = 0 if ask.start is None else math.ceil(ask.start * rate - 1e-6)
    stop = total if ask.end is None else min(total, math.ceil(ask.end * rate - 1e-6))
    length = stop - first
    if length < 1:
        raise MediaError(
            f"{where}: no frame at start={ask.start or 0:g}, end={ask.end} (seconds); "
            f"the video lasts {total / rate:.2f} s"
        )
    count = ask.num_frames
    if count is None:
        wanted = int(length / rate * (ask.sample_fps or settings.fps))
        most = min(settings.max_frames, limits.frames, length)
        count = min(max(wanted, settings.min_frames), most)
    return [first + int(i) for i in np.linspace(0, length - 1, count).round()]
