"""One image or video, ready for the vision tower: resized frames, their grid of patches, and the
patches themselves when asked for.

image or video --media, video--> uint8 RGB frames --smart_resize, bicubic--> VisionInput --> float32
patches. Frames stay uint8 (a sixth of what the patches take, which repeat an image in time);
patches are equal to those of transformers' Qwen2VL image processor (Pillow) and Qwen3VL video
processor.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .media import MediaLimits, read_image
from .pixel_array import resized
from .video import read_video
from .video_sampling import Progress, Sampling, whole
from .vision_settings import VisionSettings, read_settings, smart_resize

__all__ = [
    "MediaLimits",
    "VisionInput",
    "VisionSettings",
    "image_input",
    "read_settings",
    "smart_resize",
    "video_input",
]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class VisionInput:
    """One image or one video as the vision tower sees it. Immutable."""

    kind: Literal["image", "video"]
    frames: NDArray[
        np.uint8
    ]  # [T, H, W, 3], read-only; T is 1 for an image, full pairs for a video
    timestamps: tuple[float, ...]  # seconds of each temporal patch of a video; () for an image
    source_size: tuple[int, int]  # height and width before resizing
    settings: VisionSettings
    note: str | None = None  # what was left out or assumed

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Patches in time, height and width."""
        depth, height, width = self.frames.shape[:3]
        settings = self.settings
        times = 1 if self.kind == "image" else depth // settings.temporal_patch_size
        return times, height // settings.patch_size, width // settings.patch_size

    @property
    def tokens(self) -> int:
        """Positions the image or video takes in the prompt, timestamps and markers not counted."""
        times, height, width = self.grid_thw
        return times * height * width // self.settings.merge_size**2

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all that the features depend on: inputs of the same digest have the same
        features.
        """
        s = self.settings
        head = (self.kind, self.frames.shape, self.frames.dtype.str, s.patch_size, s.merge_size)
        found = hashlib.sha256(repr((*head, s.temporal_patch_size, s.mean, s.std)).encode())
        found.update(self.frames)
        return found.hexdigest()

    @property
    def pixels(self) -> NDArray[np.float32]:
        """All patches [t*h*w, 3 * temporal_patch * patch * patch], read-only, made at every
        reading.

        Rows go in time, then merge blocks line by line, then the patches of a block; the elements
        of a row are [channel, time, y, x].
        """
        times, height, width = self.grid_thw
        pixels = np.empty((times, height * width, self._patch_length), np.float32)
        for t in range(times):
            self._fill(pixels[t], t)
        pixels = pixels.reshape(-1, self._patch_length)
        pixels.setflags(write=False)
        return pixels

    def patches(self, t: int) -> NDArray[np.float32]:
        """The patches [h*w, 3 * temporal_patch * patch * patch] of one temporal position: memory
        does not grow with the length of a video. Raises IndexError outside 0..grid_t-1.
        """
        times, height, width = self.grid_thw
        if not 0 <= t < times:
            raise IndexError(f"t={t}: expected 0 to {times - 1}")
        patches = np.empty((height * width, self._patch_length), np.float32)
        self._fill(patches, t)
        return patches

    @property
    def _patch_length(self) -> int:
        return 3 * self.settings.temporal_patch_size * self.settings.patch_size**2

    def _fill(self, out: NDArray[np.float32], t: int) -> None:
        """Write the patches of temporal position t to `out`, level by level through a table."""
        _, height, width = self.grid_thw
        patch, merge = self.settings.patch_size, self.settings.merge_size
        depth = self.settings.temporal_patch_size
        frames = self.frames if self.kind == "image" else self.frames[t * depth : (t + 1) * depth]
        blocks = (height // merge, merge, patch, width // merge, merge, patch)
        levels = frames.reshape(len(frames), *blocks, 3).transpose(1, 4, 2, 5, 7, 0, 3, 6)
        shaped = out.reshape(*levels.shape[:5], depth, patch, patch)
        for channel, table in enumerate(_level_table(self.kind, self.settings)):
            shaped[:, :, :, :, channel] = table[levels[:, :, :, :, channel]]

    def _repr_html_(self) -> str:
        from .notebook_media import media_html

        return media_html(self)

    def __repr__(self) -> str:
        return f"VisionInput({self.kind}, grid_thw={self.grid_thw}, tokens={self.tokens})"


def _level_table(kind: str, settings: VisionSettings) -> NDArray[np.float32]:
    """What each of the 256 levels becomes: [3, 256] float32, (level / 255 - mean) / std, in the
    order of operations of transformers: its Pillow processor for images, its fused one for videos.
    """
    levels = np.arange(256)
    mean = np.array(settings.mean, np.float32)[:, None]
    std = np.array(settings.std, np.float32)[:, None]
    if kind == "image":
        return ((levels * (1 / 255)).astype(np.float32) - mean) / std
    scale = np.float32(1 / (1 / 255))
    return (levels.astype(np.float32) - mean * scale) / (std * scale)


def image_input(
    image: Any,
    settings: VisionSettings,
    *,
    where: str = "image",
    limits: MediaLimits | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> VisionInput:
    """An image made ready: an ndarray [H, W, 3] uint8 (also gray, gray and alpha, RGBA, bool, or
    floats in 0..1), a PIL image, a path, bytes or a data URI.

    `min_pixels` and `max_pixels` of the resized image replace those of `settings`; `limits` are
    MediaLimits() unless given. `where` opens the messages. Raises MediaError for what cannot be
    read or is outside the limits, ValueError and TypeError for wrong arguments, OSError for a file
    that cannot be opened.
    """
    settings = _with_range(settings, min_pixels, max_pixels)
    rgb, note = read_image(image, where=where, limits=limits or MediaLimits())
    size = smart_resize(
        *rgb.shape[:2],
        factor=settings.factor,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        where=where,
    )
    return VisionInput(
        kind="image",
        frames=_sealed(resized(rgb, size)[None]),
        timestamps=(),
        source_size=rgb.shape[:2],
        settings=settings,
        note=note,
    )


def video_input(
    video: Any,
    settings: VisionSettings,
    *,
    fps: float | None = None,
    sample_fps: float | None = None,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    where: str = "video",
    limits: MediaLimits | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    progress: Progress | None = None,
) -> VisionInput:
    """A video made ready. Frames (an ndarray [T, H, W, 3] or a list, each anything an image may be)
    are used as they are, `fps` apart. A path or bytes are decoded through PyAV and sampled:
    `sample_fps` frames a second (`settings.fps` unless given) or `num_frames` in all, of the
    seconds `start` to `end`.

    `min_pixels` and `max_pixels` count all frames together. One frame stands for two. Without `fps`
    frames get timestamps of 2 fps and a UserWarning. `progress(done, total)` is called as frames of
    a file are read. Errors as of image_input.
    """
    settings = _with_range(settings, min_pixels, max_pixels)
    pair = settings.temporal_patch_size

    def fit(frames: int, height: int, width: int) -> tuple[int, int]:
        return smart_resize(
            height,
            width,
            factor=settings.factor,
            min_pixels=settings.min_pixels,
            max_pixels=settings.max_pixels,
            frames=max(frames, pair),
            temporal_factor=pair,
            where=where,
        )

    ask = Sampling(fps=fps, sample_fps=sample_fps, num_frames=num_frames, start=start, end=end)
    limits = limits or MediaLimits()
    clip = read_video(video, settings, ask, fit, where=where, limits=limits, progress=progress)
    missing = -len(clip.times) % pair
    times = clip.times + clip.times[-1:] * missing
    frames = (
        np.concatenate([clip.frames, *[clip.frames[-1:]] * missing]) if missing else clip.frames
    )
    return VisionInput(
        kind="video",
        frames=_sealed(frames),
        timestamps=tuple((times[i] + times[i + pair - 1]) / 2 for i in range(0, len(times), pair)),
        source_size=clip.source_size,
        settings=settings,
        note=clip.note,
    )


def _with_range(
    settings: VisionSettings, min_pixels: int | None, max_pixels: int | None
) -> VisionSettings:
    """The settings with a caller's range of pixels; one end given alone may move the other.

    Raises ValueError or TypeError for a wrong one.
    """
    low = settings.min_pixels if min_pixels is None else whole(min_pixels, "min_pixels")
    high = settings.max_pixels if max_pixels is None else whole(max_pixels, "max_pixels")
    if low > high and None not in (min_pixels, max_pixels):
        raise ValueError(f"min_pixels={low} is above max_pixels={high}")
    low, high = (low, max(low, high)) if max_pixels is None else (min(low, high), high)
    return dataclasses.replace(settings, min_pixels=low, max_pixels=high)


def _sealed(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    frames.setflags(write=False)
    return frames
