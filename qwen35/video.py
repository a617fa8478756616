"""Anything a caller calls a video -> resized uint8 frames and the second at which each is shown.

Frames (ndarray or list) are used as they are, `fps` apart; a file or bytes go to video_file.py,
which picks frames. Every frame is resized as soon as it is there, so memory holds small frames
only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MediaError
from .media import MediaLimits, array_hint, check_pixels, read_image
from .pixel_array import check_array, check_frame_shape, resized, rgb_frame
from .video_sampling import Clip, Fit, Progress, Sampling, check_sampling
from .vision_settings import VisionSettings

ASSUMED_FPS = 2.0


def read_video(
    video: Any,
    settings: VisionSettings,
    ask: Sampling,
    fit: Fit,
    *,
    where: str,
    limits: MediaLimits,
    progress: Progress | None = None,
) -> Clip:
    """The frames of a video; `fit` tells their size, `where` opens every message.

    Raises MediaError for what cannot be read or is outside the limits, ValueError or TypeError for
    wrong arguments, OSError for a file that cannot be opened.
    """
    ask = check_sampling(ask, limits, where)
    if isinstance(video, (str, os.PathLike, bytes, bytearray, memoryview)):
        if ask.fps is not None:
            raise ValueError(
                f"{where}: fps is for given frames, a file has its own; pass sample_fps to "
                "choose how many frames a second are taken"
            )
        from .video_file import read_video_file

        return read_video_file(
            video, settings, ask, fit, where=where, limits=limits, progress=progress
        )
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
