"""How pixels become patches: what preprocessor_config.json and video_preprocessor_config.json say,
and the size an image or video is brought to.

Reads no file: the parsed objects come in. The arithmetic of sizes is that of transformers' Qwen2VL
image processor and Qwen3VL video processor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import MediaError, ModelFormatError, UnsupportedModelError
from .fields import as_json, entry, read_fields

IMAGE_FILE, VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"
IMAGE_PIXELS = (65_536, 16_777_216)  # the released sizes: 64 to 16,384 tokens an image
VIDEO_PIXELS = (4_096, 25_165_824)  # over all frames of a video
MAX_ASPECT_RATIO = 200
_MOST_PIXELS = 2**40  # far above any picture; keeps products exact in floating point
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


@dataclass(frozen=True, kw_only=True)
class VisionSettings:
    """How pixels become patches. A model has one for images and one for videos."""

    patch_size: int = 16  # pixels
    temporal_patch_size: int = 2  # frames
    merge_size: int = 2  # patches a side that become one token
    min_pixels: int = IMAGE_PIXELS[0]  # of the resized image, or of all frames of a video together
    max_pixels: int = IMAGE_PIXELS[1]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of levels scaled to 0..1
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fps: float = 2.0  # frames sampled from a second of a video file
    min_frames: int = 4  # fewest sampled, where the file has them
    max_frames: int = 768

    @property
    def factor(self) -> int:
        """Height and width are brought to multiples of this many pixels: the side of one token."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True, kw_only=True)
class _File:
    """The fields read from either file; None where the file does not say."""

    patch_size: int = entry(int, 1, 256, default=None, optional=True)
    temporal_patch_size: int = entry(int, 1, 16, default=None, optional=True)
    merge_size: int = entry(int, 1, 16, default=None, optional=True)
    min_pixels: int = entry(int, 1, _MOST_PIXELS, default=None, optional=True)
    max_pixels: int = entry(int, 1, _MOST_PIXELS, default=None, optional=True)
    fps: float = entry(float, 1e-6, 1e6, default=2.0, optional=True)
    min_frames: int = entry(int, 1, 2**20, default=4, optional=True)
    max_frames: int = entry(int, 1, 2**20, default=768, optional=True)


@dataclass(frozen=True, kw_only=True)
class _Size:
    """The object under "size"; its edges are counts of pixels."""

    shortest_edge: int = entry(int, 1, _MOST_PIXELS)
    longest_edge: int = entry(int, 1, _MOST_PIXELS)


# What every released file says or leaves out; another value asks for a step that is not done here.
_FIXED: dict[str, tuple[Any, ...]] = {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_convert_rgb": (True,),
    "do_center_crop": (False,),
    "do_pad": (False,),
    "cap_pixels_per_frame": (False,),
    "resample": (_BICUBIC, "bicubic"),
    "rescale_factor": (1 / 255,),
}


def read_settings(
    preprocessor: Mapping[str, Any] | None,
    video_preprocessor: Mapping[str, Any] | None,
    *,
    patch_size: int,
    temporal_patch_size: int,
    merge_size: int,
    where: str,
) -> tuple[VisionSettings, VisionSettings]:
    """The settings of images and of videos, from the parsed files of the folder `where`.

    None stands for a file that is not there: the values of the released sizes. The patch sizes are
    those of config.json, with which the files must agree. Raises ModelFormatError for a wrong or
    contradictory value, UnsupportedModelError for a step these models do not have.
    """
    patches = {
        "patch_size": patch_size,
        "temporal_patch_size": temporal_patch_size,
        "merge_size": merge_size,
    }
    image = _read(preprocessor or {}, IMAGE_PIXELS, patches, f"{where}/{IMAGE_FILE}: ")
    video = _read(video_preprocessor or {}, VIDEO_PIXELS, patches, f"{where}/{VIDEO_FILE}: ")
    return image, video


def _read(
    raw: Mapping[str, Any], pixels: tuple[int, int], patches: Mapping[str, int], where: str
) -> VisionSettings:
    for name, allowed in _FIXED.items():
        if raw.get(name) is not None and raw[name] not in allowed:
            raise UnsupportedModelError(
                f"{where}{name}={as_json(raw[name])}: expected {as_json(allowed[0])}"
            )
    found = read_fields(_File, raw, where=where)
    for name, expected in patches.items():
        if found[name] not in (None, expected):
            raise ModelFormatError(
                f"{where}{name}={found[name]}: config.json says {expected}; one of them is wrong"
            )
    low, high = _pixel_range(raw, found, pixels, where)
    if found["min_frames"] > found["max_frames"]:
        raise ModelFormatError(
            f"{where}min_frames={found['min_frames']} is above max_frames={found['max_frames']}"
        )
    return VisionSettings(
        **patches,
        min_pixels=low,
        max_pixels=high,
        mean=_three(raw, "image_mean", where),
        std=_three(raw, "image_std", where, positive=True),
        fps=found["fps"],
        min_frames=found["min_frames"],
        max_frames=found["max_frames"],
    )


def _pixel_range(
    raw: Mapping[str, Any], found: Mapping[str, Any], default: tuple[int, int], where: str
) -> tuple[int, int]:
    """Fewest and most pixels: `min_pixels` and `max_pixels`, then `size`, then the default."""
    low, high = default
    size = raw.get("size")
    if size is not None:
        if not isinstance(size, Mapping):
            raise ModelFormatError(f"{where}size={as_json(size)}: expected an object")
        edges = read_fields(_Size, size, where=f"{where}size.")
        low, high = edges["shortest_edge"], edges["longest_edge"]
    low = low if found["min_pixels"] is None else found["min_pixels"]
    high = high if found["max_pixels"] is None else found["max_pixels"]
    if low > high:
        raise ModelFormatError(f"{where}size: at least {low} pixels and at most {high}")
    return low, high


def _three(
    raw: Mapping[str, Any], name: str, where: str, *, positive: bool = False
) -> tuple[float, float, float]:
    value = raw.get(name)
    if value is None:
        return (0.5, 0.5, 0.5)
    numbers = isinstance(value, (list, tuple)) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in value
    )
    if not numbers or len(value) != 3 or (positive and min(value) <= 0):
        kind = "positive numbers" if positive else "numbers"
        raise ModelFormatError(f"{where}{name}={as_json(value)}: expected three {kind}")
    return (float(value[0]), float(value[1]), float(value[2]))


def smart_resize(
    height: int,
    width: int,
    *,
    factor: int = 32,
    min_pixels: int = IMAGE_PIXELS[0],
    max_pixels: int = IMAGE_PIXELS[1],
    frames: int | None = None,
    temporal_factor: int = 2,
    where: str = "image",
) -> tuple[int, int]:
    """Height and width, in pixels, that a picture is resized to: multiples of `factor`, close to
    its own shape, `min_pixels` to `max_pixels` in all. `frames` is None for an image; for a video
    the pixels of all frames count.

    As `smart_resize` of transformers' Qwen2VL image processor and of its Qwen3VL video processor.
    Raises MediaError for an empty picture, or one more than 200 times as long as wide.
    """
    if min(height, width) < 1:
        raise MediaError(f"{where}: {height} x {width} pixels, expected at least 1 x 1")
    if frames is not None and min(height, width) < factor:  # videos alone are first scaled up
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise MediaError(
            f"{where}: {height} x {width} pixels (height x width), one side more than "
            f"{MAX_ASPECT_RATIO} times the other; crop or split it"
        )
    deep = 1 if frames is None else frames
    rounded = 1 if frames is None else round(frames / temporal_factor) * temporal_factor
    new_height, new_width = (round(side / factor) * factor for side in (height, width))
    if rounded * new_height * new_width > max_pixels:
        shrink = math.sqrt((deep * height * width) / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif rounded * new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (deep * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width
