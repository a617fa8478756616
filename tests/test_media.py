"""Oracle: literals for pixels and messages; NumPy's copy of an array for strides and byte order."""

from __future__ import annotations

import base64
import io
import os
import socket
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from qwen35 import MediaError
from qwen35.media import ALLOWED, MediaLimits, read_image

LIMITS = MediaLimits()
RED, GREEN = (255, 0, 0), (0, 255, 0)


def read(image: Any, limits: MediaLimits = LIMITS) -> np.ndarray:
    return read_image(image, where="image", limits=limits).rgb


def levels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file that claims a size; its pixels may be missing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# ---- arrays --------------------------------------------------------------------------------------


def test_rgb_array_is_copied() -> None:
    image = levels(5, 7, 3)
    found = read(image)
    np.testing.assert_array_equal(found, image)
    assert not np.shares_memory(found, image)


def test_gray_and_alpha() -> None:
    gray = levels(5, 7)
    three = np.stack([gray] * 3, axis=2)
    np.testing.assert_array_equal(read(gray), three)
    np.testing.assert_array_equal(read(gray[:, :, None]), three)
    opaque = np.full((5, 7, 1), 255, np.uint8)
    np.testing.assert_array_equal(read(np.concatenate([gray[:, :, None], opaque], 2)), three)
    np.testing.assert_array_equal(read(np.concatenate([three, opaque], 2)), three)
    half = np.array([[[0, 100, 255, 128], [0, 0, 0, 0]]], np.uint8)
    # 255 - 128 = 127; 100 * 128 / 255 + 127 = 177.2
    np.testing.assert_array_equal(read(half), [[[127, 177, 255], [255, 255, 255]]])


def test_channels_are_last_whatever_the_size() -> None:
    image = levels(3, 3, 3)
    np.testing.assert_array_equal(read(image), image)
    assert read(np.zeros((2, 2), np.uint8)).shape == (2, 2, 3)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f2", ">f4", ">f8", ml_dtypes.bfloat16])
def test_floats_are_rounded_to_levels(dtype: Any) -> None:
    image = np.array([[0.0, 1.0, 0.5, 0.25]], np.float32).astype(dtype)
    np.testing.assert_array_equal(read(image)[0, :, 0], [0, 255, 128, 64])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_every_level_survives_division_by_255(dtype: str) -> None:
    image = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(read((image / 255).astype(dtype))[:, :, 0], image)


def test_bool_is_black_and_white() -> None:
    np.testing.assert_array_equal(read(np.array([[True, False]]))[0, :, 0], [255, 0])


@pytest.mark.parametrize(
    "dtype",
    ["i1", "i2", "u2", ">u2", "i4", "u4", "i8", "u8", "c8", "O", "U3", "S3", "M8[s]", "m8[s]"]
    + ["V3", "f4,f4", np.longdouble, ml_dtypes.float8_e4m3fn],
)
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="^image: an array of "):
        read(np.zeros((4, 4, 3), dtype))


def test_integers_ask_for_their_scale() -> None:
    with pytest.raises(TypeError, match=r"uint16 has no scale; .*\(image / 65535\)"):
        read(np.zeros((4, 4), np.uint16))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.01, 1.01, 255.0])
def test_floats_outside_their_range(bad: float) -> None:
    image = np.zeros((4, 4, 3), np.float32)
    image[1, 2, 0] = bad
    with pytest.raises(ValueError, match=r"expected 0\.\.1; scale it"):
        read(image)


def test_strides_and_alignment_do_not_matter() -> None:
    image = levels(12, 10, 3)
    read_only = image.copy()
    read_only.setflags(write=False)
    unaligned = np.frombuffer(b"x" + np.ones((4, 5), np.float32).tobytes(), np.float32, offset=1)
    for odd in (
        image[::-1, ::-2],
        image[3:9, 2:5],
        image.transpose(1, 0, 2),
        image[:, :, ::-1],
        np.asfortranarray(image),
        np.broadcast_to(image[:1, :1], (6, 7, 3)),
        read_only,
    ):
        np.testing.assert_array_equal(read(odd), odd.copy())
    assert read(unaligned.reshape(4, 5)).min() == 255


@pytest.mark.parametrize(
    "shape", [(), (5,), (3, 4, 5), (3, 40, 50), (1, 4, 4, 3), (1,) * 7, (4, 4, 5)]
)
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[H, W, 3\], or \[H, W\] gray"):
        read(np.zeros(shape, np.uint8))


def test_channels_first_get_a_hint() -> None:
    with pytest.raises(ValueError, match=r"image.transpose\(1, 2, 0\)"):
        read(np.zeros((3, 40, 50), np.uint8))


@pytest.mark.parametrize("shape", [(0, 0), (0, 4, 3), (4, 0, 3)])
def test_no_pixels(shape: tuple[int, ...]) -> None:
    with pytest.raises(MediaError, match="has no pixels"):
        read(np.zeros(shape, np.uint8))


def test_huge_arrays_are_refused_before_they_are_touched() -> None:
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2**31, 2**31), (0, 0))
    with pytest.raises(MediaError, match="pixels, expected at most 50,000,000"):
        read(huge)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_subclasses_and_other_libraries() -> None:
    class Lying:
        __array_interface__ = {"shape": (9, 9), "typestr": "|u1", "data": (1, True), "version": 3}

        def __array__(self) -> None:
            raise AssertionError("asked for its array")

    with pytest.raises(TypeError, match="MaskedArray, expected a plain numpy array"):
        read(np.ma.zeros((4, 4), np.uint8))
    with pytest.raises(TypeError, match="matrix, expected a plain numpy array"):
        read(np.asmatrix(np.zeros((4, 4), np.uint8)))
    with pytest.raises(TypeError, match=r"Lying, expected .*tensor\.cpu\(\)\.numpy\(\)"):
        read(Lying())
    for nothing in (None, 3, [[0]], {"a": 1}):
        with pytest.raises(TypeError, match="expected a numpy array"):
            read(nothing)


def test_memory_map_and_one_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "image"
    levels(64, 64, 3).tofile(path)
    mapped = np.memmap(path, np.uint8, "r", shape=(64, 64, 3))
    np.testing.assert_array_equal(read(mapped), levels(64, 64, 3))
    os.truncate(path, 100)
    for cut in (mapped, mapped[2:], np.asarray(mapped)):
        with pytest.raises(MediaError, match="has become shorter"):
            read(cut)


# ---- PIL images ----------------------------------------------------------------------------------


def test_pil_images_lie_over_white() -> None:
    assert read(Image.new("RGB", (3, 2), RED))[0, 0].tolist() == [255, 0, 0]
    assert read(Image.new("RGBA", (3, 2), (0, 0, 0, 0)))[0, 0].tolist() == [255, 255, 255]
    assert read(Image.new("LA", (3, 2), (7, 255)))[0, 0].tolist() == [7, 7, 7]
    assert read(Image.new("1", (3, 2), 1))[0, 0].tolist() == [255, 255, 255]
    assert read(Image.new("CMYK", (3, 2), (0, 255, 255, 0)))[0, 0].tolist() == [255, 0, 0]
    clear = Image.new("P", (3, 2), 1)
    clear.putpalette([*RED, *GREEN])
    clear.info["transparency"] = 1
    assert read(clear)[0, 0].tolist() == [255, 255, 255]


def test_pil_image_is_not_turned_and_not_changed() -> None:
    image = Image.new("RGB", (3, 2), RED)
    image.getexif()[274] = 6
    assert read(image).shape == (2, 3, 3)
    assert image.size == (3, 2)


def test_pil_images_outside_the_limits() -> None:
    with pytest.raises(MediaError, match=r"2 x 3 = 6 pixels, expected at most 5;"):
        read(Image.new("RGB", (3, 2)), MediaLimits(image_pixels=5))
    with pytest.raises(MediaError, match="expected at least 1 x 1"):
        read(Image.new("RGB", (0, 2)))


def test_pil_image_whose_file_is_broken() -> None:
    image = Image.open(io.BytesIO(file_of(Image.fromarray(levels(64, 64, 3)), "PNG")[:2000]))
    with pytest.raises(MediaError, match="this PIL image cannot be decoded") as caught:
        read(image)
    assert_discreet(caught.value)


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WebP"])
def test_lossless_files(kind: str, tmp_path: Path) -> None:
    pixels = levels(20, 30, 3)
    data = file_of(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WebP" else {}))
    path = tmp_path / "no.suffix"
    path.write_bytes(data)
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    for given in (
        data,
        bytearray(data),
        memoryview(data),
        path,
        str(path),
        uri,
    ):
        found = read_image(given, where="image", limits=LIMITS)
        np.testing.assert_array_equal(found.rgb, pixels)
        assert found.note is None


def test_jpeg_and_gif() -> None:
    flat = Image.new("RGB", (40, 24), (200, 100, 50))
    assert np.abs(read(file_of(flat, "JPEG")).astype(int) - [200, 100, 50]).max() <= 2
    assert read(file_of(flat, "GIF")).shape == (24, 40, 3)


def test_files_lose_their_alpha() -> None:
    clear = Image.new("RGBA", (3, 2), (1, 2, 3, 0))
    assert read(file_of(clear, "PNG"))[0, 0].tolist() == [1, 2, 3]


def test_palette_with_alpha_does_not_warn() -> None:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([*RED, *GREEN])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read(file_of(image, "PNG", transparency=bytes([9, 0])))
    assert found[0, 0].tolist() == list(GREEN)


def test_files_are_turned_upright() -> None:
    image = Image.new("RGB", (3, 2), RED)
    image.putpixel((0, 0), GREEN)
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise
    found = read(file_of(image, "PNG", exif=exif))
    assert found.shape == (3, 2, 3)
    assert found[0, 1].tolist() == list(GREEN)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("GIF", "first frame of an animated GIF"),
        ("WebP", "first frame of an animated WebP"),
        ("PNG", "first frame of an animated PNG"),
        ("TIFF", "first page of several"),
    ],
)
def test_animations_and_pages_give_the_first_and_a_note(kind: str, note: str) -> None:
    pages = [Image.new("RGB", (32, 24), color) for color in (RED, GREEN, (0, 0, 255))]
    data = file_of(pages[0], kind, save_all=True, append_images=pages[1:])
    found = read_image(data, where="image", limits=LIMITS)
    assert np.abs(found.rgb.astype(int) - RED).max() <= 2
    assert found.note == note


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("SVG or XML", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("SVG or XML", b"\n <svg onload='x'/>"),
        ("PDF", b"%PDF-1.7 ..."),
        ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0"),
        ("PSD", b"8BPS\0\1" + bytes(20)),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("JPEG 2000", b"\xff\x4f\xff\x51" + bytes(40)),
        ("AVIF", b"\0\0\0\x1cftypavif" + bytes(20)),
        ("HEIC", b"\0\0\0\x1cftypheic" + bytes(20)),
        ("HTML", b"<!DOCTYPE html><html>"),
        ("ICO", b"\0\0\x01\0\x01\0"),
        ("video", b"\0\0\0\x20ftypisom" + bytes(20)),
    ],
)
def test_other_formats_are_refused_by_name(name: str, data: bytes) -> None:
    with pytest.raises(MediaError, match=f"^image: {name}, expected {ALLOWED}"):
        read(data)


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", bytes(1000), b"\xff\xd8", os.urandom(500)])
def test_no_format(data: bytes) -> None:
    with pytest.raises(MediaError, match=f"expected {ALLOWED}"):
        read(data)


def assert_discreet(error: Exception) -> None:
    """No address, no repr of an object, and no chain of errors that would print them."""
    assert "0x" not in str(error)
    assert "<" not in str(error)
    assert error.__context__ is None or error.__suppress_context__


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WebP", "TIFF", "BMP", "PPM"])
def test_damaged_files(kind: str) -> None:
    """Cut anywhere and with bytes overwritten: pixels or a MediaError, and always the latter when
    half of the file is missing.
    """
    whole = file_of(Image.fromarray(levels(40, 50, 3)), kind)
    rng = np.random.default_rng(1)
    with pytest.raises(MediaError) as caught:
        read(whole[: len(whole) // 2])
    assert_discreet(caught.value)
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.5 else whole)
        for at in rng.integers(0, min(len(data), 200), 3):
            data[at] = rng.integers(0, 256)
        try:
            with warnings.catch_warnings():  # Pillow's remarks on damaged TIFF files
                warnings.simplefilter("ignore")
                assert read(bytes(data)).dtype == np.uint8
        except MediaError as error:
            assert_discreet(error)


def test_bomb_is_refused_before_decoding() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for side in (65_535, 10_000):
            with pytest.raises(MediaError, match=f"{side} x {side} = .* pixels, expected at most"):
                read(png(side, side, zlib.compress(bytes(100_000), 9)))


def test_limit_above_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's limit counts; Pillow's own neither refuses nor warns."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("PNG", "JPEG", "BMP", "PPM", "GIF"):
            assert read(file_of(Image.new("RGB", (40, 30)), kind)).shape == (30, 40, 3)


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "http://127.0.0.1/x.png",
        "HTTPS://example.org/x.png",
        "http://169.254.169.254/latest",
        "http://a\\@b/x.png",
        "http://[::ffff:127.0.0.1]/",
        "http:\\\\host\\x",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "ftp://host/x",
        "s3://bucket/x.png",
        "\\\\host\\share\\x.png",
        "//host/share/x.png",
        Path("https://example.org/x.png"),
        Path("//host/share/x.png"),
    ],
)
def test_nothing_is_fetched(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(MediaError, match="URLs are not fetched|network path"):
        read(name)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError):
        read("../missing.png")
    with pytest.raises(MediaError, match="not a regular file but a directory"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaError, match="not a regular file but a FIFO"):
        read(tmp_path / "pipe")
    with pytest.raises(MediaError, match="not a regular file but a device"):
        read("/dev/zero")
    with pytest.raises(MediaError, match="is not a path; base64 needs"):
        read(base64.b64encode(bytes(9000)).decode())
    with pytest.raises(MediaError, match="is not a path"):
        read("a\0b.png")


def test_file_limit(tmp_path: Path) -> None:
    data = file_of(Image.new("RGB", (40, 30)), "BMP")
    path = tmp_path / "x.bmp"
    path.write_bytes(data)
    small = MediaLimits(file_bytes=len(data) - 1)
    uri = f"data:image/bmp;base64,{base64.b64encode(data).decode()}"
    for given in (data, path, uri):
        with pytest.raises(MediaError, match="bytes, expected at most"):
            read(given, small)
        assert read(given, MediaLimits(file_bytes=len(data))).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:image/png;base64,!!!!", "not valid base64"),
        ("data:image/png;base64,iVBORw0KGg", "not valid base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png,abc", "and base64"),
        ("data:;base64,aGVsbG8=", "of type ''"),
        ("data:text/html;base64,aGVsbG8=", "of type 'text/html'"),
        ("data:" + "a" * 10_000, "and base64"),
        ("data:image/png;base64,aGVsbG8=", "of no known format"),
        ("data:image/png;base64,ä", "not valid base64"),
    ],
)
def test_wrong_data_uris(uri: str, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        read(uri)
    assert len(str(caught.value)) < 200


def test_errors_keep_nothing() -> None:
    """The caller's objects have as many references after an error as before."""
    bad: list[Any] = [
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((4, 4), np.uint16),
        np.full((4, 4), np.nan),
        np.zeros((0, 4), np.uint8),
        np.ma.zeros((4, 4)),
        Image.new("RGB", (0, 5)),
        png(70_000, 70_000),
        bytearray(b"\xff\xd8\xff" + bytes(50)),
        "".join(["http://", "host/x"]),
        object(),
    ]
    for value in bad:
        before = sys.getrefcount(value)
        for _ in range(3):
            with pytest.raises((ValueError, TypeError)):
                read(value)
        assert sys.getrefcount(value) == before
