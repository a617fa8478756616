"""Anything a caller calls an image -> one uint8 RGB frame [H, W, 3] that is ours.

ndarray | PIL image | path | bytes | data URI -> pixels, and a note where something was left out
(the other frames of an animation). Nothing is ever fetched from a network. Files are checked before
they are decoded: kind (an allow-list, by their first bytes), size, pixels. What a decoder says in
its errors stays inside; only the file and the kind are named.

Equal to transformers, whose two ways in differ about transparency: an array or a PIL image is laid
over white, a file loses its alpha channel. A file is turned upright by its EXIF orientation, a PIL
image is taken as it is.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import MediaError, ModelFormatError
from .json_file import open_regular, shown
from .pixel_array import check_array, check_frame_shape, rgb_frame

if TYPE_CHECKING:
    from PIL.Image import Image

ALLOWED = "PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"
_MAX_PATH = 4096  # characters; a longer string is data that lost its prefix
_URL = re.compile(r"[a-z][a-z0-9+.-]*:[/\\]{2}|(?:file|https?|ftp|blob|about):", re.IGNORECASE)
_DATA_URI = re.compile(r"data:([a-z0-9.+/-]*)((?:;[^;,]*)*),", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What one request may hold; pass larger values to allow more."""

    image_pixels: int = 50_000_000  # of one image, height x width; checked before it is decoded
    file_bytes: int = 256 << 20  # of one image file, of bytes, or of a data URI once decoded
    images: int = 256  # images and videos of one request
    frames: int = 768  # of one video, after sampling
    video_pixels: int = 7680 * 4320  # of one frame of a video, before resizing


class Picture(NamedTuple):
    """A decoded image."""

    rgb: NDArray[np.uint8]  # [H, W, 3]
    note: str | None  # what was left out


class _Kind(NamedTuple):
    """How a kind of file begins, and Pillow's class for it; no module: known by name alone."""

    name: str
    start: re.Pattern[bytes]
    module: str = ""
    opener: str = ""


def _starts(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


# Opened by class and not through Image.open, which would warn about large images on its own
# account.
_KINDS = (
    _Kind("PNG", _starts(rb"\x89PNG\r\n\x1a\n"), "PngImagePlugin", "PngImageFile"),
    _Kind("JPEG", _starts(rb"\xff\xd8\xff"), "JpegImagePlugin", "JpegImageFile"),
    _Kind("WebP", _starts(rb"RIFF....WEBP"), "WebPImagePlugin", "WebPImageFile"),
    _Kind("GIF", _starts(rb"GIF8[79]a"), "GifImagePlugin", "GifImageFile"),
    _Kind("BMP", _starts(rb"BM"), "BmpImagePlugin", "BmpImageFile"),
    _Kind("TIFF", _starts(rb"II[*+]\0|MM\0[*+]"), "TiffImagePlugin", "TiffImageFile"),
    _Kind("PPM", _starts(rb"P[1-6fy]\s"), "PpmImagePlugin", "PpmImageFile"),
    _Kind("AVIF", _starts(rb"....ftypavi[fs]")),
    _Kind("HEIC", _starts(rb"....ftyp(?:hei|hev|mif|msf)")),
    _Kind("JPEG 2000", _starts(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    _Kind("PSD", _starts(rb"8BPS")),
    _Kind("PDF", _starts(rb"%PDF")),
    _Kind("EPS", _starts(rb"%!PS|\xc5\xd0\xd3\xc6")),
    _Kind("SVG or XML", _starts(rb"(?i)\s*<(?:svg|\?xml|!--|!DOCTYPE svg)")),
    _Kind("HTML", _starts(rb"(?i)\s*<(?:!DOCTYPE )?html")),
    _Kind("video", _starts(rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ")),
    _Kind("ICO", _starts(rb"\0\0\x01\0")),
)


def read_image(image: Any, *, where: str, limits: MediaLimits) -> Picture:
    """The pixels of an image; `where` opens every message.

    Raises MediaError for what cannot be read or is outside the limits, ValueError or TypeError for
    an array of the wrong shape, values or dtype, OSError for a file that cannot be opened.
    """
    if isinstance(image, np.ndarray):
        check_array(image, where=where)
        check_pixels(*check_frame_shape(image.shape, where=where), limits.image_pixels, where)
        return Picture(rgb_frame(image, where=where), None)
    if isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        return _decoded(_file_bytes(image, where, limits), where, limits)
    from PIL.Image import Image

    if isinstance(image, Image):
        _check_size(image, where, limits)
        with decoder_errors(f"{where}: this PIL image"):
            return Picture(_over_white(image), None)
    raise TypeError(
        f"{where}: {type(image).__name__}, expected a numpy array [H, W, 3], a PIL image, a path, "
        f"bytes, or a data URI{array_hint(image)}"
    )


def array_hint(value: Any) -> str:
    """How to make a numpy array of another library's array, or an empty string."""
    foreign = hasattr(value, "__array__") or hasattr(value, "__dlpack__")
    return "; pass a numpy array, of a tensor tensor.cpu().numpy()" if foreign else ""


def check_pixels(height: int, width: int, limit: int, where: str) -> None:
    """Refuse a picture of more than `limit` pixels."""
    if height * width > limit:
        raise MediaError(
            f"{where}: {height} x {width} = {height * width:,} pixels, expected at most {limit:,}; "
            "make it smaller, or raise the limit"
        )


# ---- Pillow --------------------------------------------------------------------------------------


@contextlib.contextmanager
def decoder_errors(what: str) -> Iterator[None]:
    """Whatever a decoder raises inside becomes a MediaError without its words: they may hold
    addresses.
    """
    try:
        yield
    except (MediaError, MemoryError):
        raise
    except Exception:
        raise MediaError(f"{what} cannot be decoded: it is damaged, cut off or too large") from None


def _decoded(data: bytes, where: str, limits: MediaLimits) -> Picture:
    """As transformers' load_image (upright, alpha dropped), and then what a PIL image gets."""
    kind = _kind_of(data, where)
    from PIL import ImageOps

    opener = getattr(importlib.import_module(f"PIL.{kind.module}"), kind.opener)
    with decoder_errors(f"{where}: this {kind.name} image"), opener(io.BytesIO(data)) as image:
        _check_size(image, where, limits)
        upright = ImageOps.exif_transpose(image)
        if isinstance(upright.info.get("transparency"), bytes):
            del upright.info["transparency"]  # of a palette; convert() would drop it and warn
        return Picture(_over_white(upright.convert("RGB")), _left_out(image, kind.name))


def _left_out(image: Image, kind: str) -> str | None:
    """A note about further frames or pages; those that cannot be read do not count. Goes no further
    than the second, since a file may hold millions.
    """
    with contextlib.suppress(Exception):
        if kind == "TIFF":  # its is_animated walks through all pages
            image.seek(1)
            return "first page of several"
        if getattr(image, "is_animated", False):
            return f"first frame of an animated {kind}"
    return None


def _over_white(image: Image) -> NDArray[np.uint8]:
    """As transformers' convert_to_rgb: transparent pixels, or pixels of that color, are white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        from PIL import Image as pillow

        white = pillow.new("RGBA", image.size, (255, 255, 255, 255))
        image = pillow.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _check_size(image: Image, where: str, limits: MediaLimits) -> None:
    width, height = image.size
    check_pixels(height, width, limits.image_pixels, where)
    if 0 in image.size:
        raise MediaError(f"{where}: {height} x {width} pixels, expected at least 1 x 1")


def _kind_of(data: bytes, where: str) -> _Kind:
    if not data:
        raise MediaError(f"{where}: empty, expected {ALLOWED}")
    head = data[:1024]
    kind = next((kind for kind in _KINDS if kind.start.match(head)), None)
    if kind is None:
        raise MediaError(f"{where}: of no known format, expected {ALLOWED}")
    if not kind.module:
        hint = "; pass it as a video" if kind.name == "video" else "; convert it first"
        raise MediaError(f"{where}: {kind.name}, expected {ALLOWED}{hint}")
    return kind


# ---- files ---------------------------------------------------------------------------------------


def _file_bytes(image: Any, where: str, limits: MediaLimits) -> bytes:
    if isinstance(image, (bytes, bytearray, memoryview)):
        _check_bytes(memoryview(image).nbytes, where, limits)
        return bytes(image)
    text = os.fspath(image)
    if isinstance(text, str) and text[:5].lower() == "data:":
        return bytes_of_data_uri(text, "image", where, limits)
    with open_media(text, where) as file:
        _check_bytes(os.fstat(file.fileno()).st_size, where, limits)
        pieces, total = [], 0
        while piece := file.read(1 << 20):
            total += len(piece)
            _check_bytes(total, where, limits)  # it grew, or its size is not told
            pieces.append(piece)
    return b"".join(pieces)


def _check_bytes(size: int, where: str, limits: MediaLimits) -> None:
    if size > limits.file_bytes:
        raise MediaError(f"{where}: {size:,} bytes, expected at most {limits.file_bytes:,}")


def open_media(path: str | bytes, where: str) -> BinaryIO:
    """Open a local, regular file. Raises MediaError for a URL, a network share or something that is
    not a file; FileNotFoundError, PermissionError as the system says.
    """
    path = os.fsdecode(path)
    if _URL.match(path):
        raise MediaError(
            f"{where}: {shown(path)} is a URL, and URLs are not fetched; download it, pass a "
            "path or bytes"
        )
    if path[:2] in ("\\\\", "//"):
        raise MediaError(
            f"{where}: {shown(path)} is a network path; copy the file, pass a local path"
        )
    if len(path) > _MAX_PATH or "\0" in path:
        raise MediaError(
            f"{where}: {shown(path)} is not a path; base64 needs 'data:image/png;base64,' before it"
        )
    try:
        return open_regular(Path(path))
    except ModelFormatError as error:
        raise MediaError(f"{where}: {error}") from None


def bytes_of_data_uri(text: str, kind: str, where: str, limits: MediaLimits) -> bytes:
    """What a base64 data URI of type `kind`/... holds. Raises MediaError."""
    match = _DATA_URI.match(text[:256])
    if match is None or "base64" not in match[2].lower().split(";"):
        raise MediaError(
            f"{where}: {shown(text, 40)}: expected 'data:{kind}/...;base64,' and base64"
        )
    if not match[1].lower().startswith(f"{kind}/"):
        raise MediaError(f"{where}: a data URI of type {shown(match[1])}, expected {kind}/...")
    _check_bytes((len(text) - match.end()) * 3 // 4, where, limits)
    try:
        return base64.b64decode("".join(text[match.end() :].split()), validate=True)
    except ValueError:
        raise MediaError(f"{where}: the data URI is not valid base64") from None
