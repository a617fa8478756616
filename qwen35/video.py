"""Anything a caller calls a video -> resized uint8 frames and the second at which each is shown.

Frames (ndarray or list) are used as they are, `fps` apart; a file or bytes go to video_file.py,
which picks frames. Every frame is resized as soon as it is there, so memory holds small frames
only.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import MediaError
from .media import MediaLimits, array_hint, check_pixels, read_image
from .pixel_array import check_array, check_frame_shape, resized, rgb_frame
from .vision_settings import VisionSettings

MAX_FPS = 1e6
MAX_SECONDS = 1e7
ASSUMED_FPS = 2.0

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


def read_video(
    video: Any,
    settings: VisionSettings,
    ask: Sampling,
    fit: Fit,
    *,
    where: str,
    limits: MediaLimits,
) -> Clip:
    """The frames of a video; `fit` tells their size, `where` opens every message.

    Raises MediaError for what cannot be read or is outside the limits, ValueError or TypeError for
    wrong arguments, OSError for a file that cannot be opened.
    """
    ask = _checked(ask, limits, where)
    if isinstance(video, (str, os.PathLike, bytes, bytearray, memoryview)):
        if ask.fps is not None:
            raise ValueError(
                f"{where}: fps is for given frames, a file has its own; pass sample_fps to "
                "choose how many frames a second are taken"
            )
        from .video_file import read_video_file

        return read_video_file(video, settings, ask, fit, where=where, limits=limits)
    if not isinstance(video, (np.ndarray, list, tuple)):
        raise TypeError(
            f"{where}: {type(video).__name__}, expected an array [T, H, W, 3], a list of frames, a "
            f"path or bytes{array_hint(video)}"
        )
    for name in ("sample_fps", "num_frames", "start", "end"):
        if getattr(ask, name) is not None:
            raise ValueError(f"{where}: {name} is for files; given frames are used as they are")
    return _from_frames(video, ask, fit, where, limits)


def _from_frames(
    video: NDArray[Any] | Sequence[Any], ask: Sampling, fit: Fit, where: str, limits: MediaLimits
) -> Clip:
    if isinstance(video, np.ndarray):
        _check_frames_array(video, where)
    count = len(video)
    if count == 0:
        raise MediaError(f"{where}: no frames, expected at least one")
    if count > limits.frames:
        raise MediaError(
            f"{where}: {count:,} frames, expected at most {limits.frames:,}; take every n-th, or "
            "raise the limit"
        )
    if ask.fps is None:
        warnings.warn(
            f"{where}: frames without fps: timestamps assume {ASSUMED_FPS:g} fps", UserWarning, 4
        )
    images = _array_frames if isinstance(video, np.ndarray) else _listed_frames
    size, frames = None, None
    for index, rgb in enumerate(images(video, where, limits)):
        if frames is None:
            size = rgb.shape[:2]
            frames = np.empty((count, *fit(count, *size), 3), np.uint8)
        if rgb.shape[:2] != size:
            raise ValueError(
                f"{where}[{index}]: a frame of {rgb.shape[0]} x {rgb.shape[1]} pixels after "
                f"frames of {size[0]} x {size[1]}; bring them to one size"
            )
        frames[index] = resized(rgb, frames.shape[1:3])
    fps = ASSUMED_FPS if ask.fps is None else ask.fps
    return Clip(frames, tuple(index / fps for index in range(count)), size, None)


def _check_frames_array(video: NDArray[Any], where: str) -> None:
    check_array(video, where=where)
    if video.ndim not in (3, 4) or (video.ndim == 3 and video.shape[2] <= 4):
        hint = "; one frame is video[None]" if video.ndim == 3 else ""
        raise ValueError(
            f"{where}: an array of shape {list(video.shape)}, expected [T, H, W, 3], or "
            f"[T, H, W] gray, [T, H, W, 1], [T, H, W, 2], [T, H, W, 4]{hint}"
        )


def _array_frames(
    video: NDArray[Any], where: str, limits: MediaLimits
) -> Iterator[NDArray[np.uint8]]:
    size = check_frame_shape(video.shape[1:], where=where)
    check_pixels(*size, limits.video_pixels, where)
    for index, frame in enumerate(video):
        yield rgb_frame(frame, where=f"{where}[{index}]")


def _listed_frames(
    video: Sequence[Any], where: str, limits: MediaLimits
) -> Iterator[NDArray[np.uint8]]:
    for index, frame in enumerate(video):
        rgb = read_image(frame, where=f"{where}[{index}]", limits=limits).rgb
        check_pixels(*rgb.shape[:2], limits.video_pixels, f"{where}[{index}]")
        yield rgb


# ---- arguments -----------------------------------------------------------------------------------


def _checked(ask: Sampling, limits: MediaLimits, where: str) -> Sampling:
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
