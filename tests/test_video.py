"""Oracle: literals. Every frame of a made video shows its number in black and white squares."""

from __future__ import annotations

import base64
import io
import os
import sys
import threading
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen35 import MediaError
from qwen35.media import MediaLimits
from qwen35.vision_input import VisionInput, VisionSettings, video_input

SETTINGS = VisionSettings(min_pixels=4096, max_pixels=25_165_824)
BITS, SIDE = 16, 16


def numbered(number: int) -> np.ndarray:
    """A frame [32, 256, 3] that shows a number of 16 bits."""
    bits = (number >> np.arange(BITS)) & 1
    return np.broadcast_to(np.repeat(bits * 255, SIDE)[None, :, None], (32, 256, 3)).astype(
        np.uint8
    )


def numbers(found: VisionInput) -> list[int]:
    bits = found.frames[:, 16, SIDE // 2 :: SIDE, 1] > 127
    return [int(row @ (1 << np.arange(BITS))) for row in bits]


def make(
    file: Any,
    count: int,
    *,
    rate: int | Fraction = 10,
    codec: str = "mpeg4",
    kind: str | None = None,
    key_frames: int = 12,
    turn: int = 0,
    at_ms: list[int] | None = None,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
) -> Any:
    """Write a video of `count` numbered frames; `at_ms` are their times where the rate varies."""
    av = pytest.importorskip("av")
    target = str(file) if isinstance(file, Path) else file
    with av.open(target, "w", format=kind, options=muxing or {}) as container:
        try:
            stream = container.add_stream(codec, rate=rate, options=options or {})
        except (ValueError, OSError):
            pytest.skip(f"this PyAV cannot write {codec}")
        stream.height, stream.width = 32, 256
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.gop_size = key_frames
        stream.codec_context.bit_rate = 2_000_000
        if at_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            if at_ms:
                frame.pts, frame.time_base = at_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


# ---- frames --------------------------------------------------------------------------------------


def test_frames_are_used_as_they_are() -> None:
    video = np.stack([numbered(n) for n in (3, 1, 4, 1)])
    for given in (video, list(video), tuple(Image.fromarray(f) for f in video), video[::-1][::-1]):
        found = video_input(given, SETTINGS, fps=2)
        assert numbers(found) == [3, 1, 4, 1]
        assert found.timestamps == (0.25, 1.25)
        assert found.source_size == (32, 256)


def test_gray_alpha_bool_and_float_frames() -> None:
    gray = np.stack([numbered(n)[:, :, 0] for n in (5, 6)])
    alpha = np.full_like(gray, 255)
    for given in (
        gray,
        gray[..., None],
        gray > 0,
        (gray / 255).astype(np.float16),
        (gray / 255).astype(">f4"),
        np.stack([gray, alpha], -1),
        np.stack([gray, gray, gray, alpha], -1),
    ):
        assert numbers(video_input(given, SETTINGS, fps=1)) == [5, 6]


def test_frames_without_fps_warn_and_get_two_a_second() -> None:
    with pytest.warns(
        UserWarning, match="^video: frames without fps: timestamps assume 2 fps"
    ) as got:
        found = video_input([numbered(0), numbered(1)], SETTINGS)
    assert found.timestamps == (0.25,)
    assert got[0].filename == __file__


def test_frames_are_resized_within_the_budget_of_all_frames() -> None:
    video = np.zeros((6, 200, 300, 3), np.uint8)
    assert video_input(video, SETTINGS, fps=1).frames.shape == (6, 192, 288, 3)
    assert video_input(video, SETTINGS, fps=1, max_pixels=60_000).frames.shape == (6, 64, 96, 3)


@pytest.mark.parametrize(
    "shape", [(4,), (4, 4), (8, 8, 3), (8, 8, 4), (2, 8, 8, 5), (2, 8, 8, 8, 3), (2, 3, 8, 8)]
)
def test_arrays_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"video: an array of shape .*expected \[.*H, W, 3\]"):
        video_input(np.zeros(shape, np.uint8), SETTINGS, fps=1)


def test_frames_of_mixed_sizes() -> None:
    with pytest.raises(
        ValueError, match=r"video\[1\]: a frame of 32 x 64 pixels after frames of 32"
    ):
        video_input([numbered(0), numbered(1)[:, :64]], SETTINGS, fps=1)


@pytest.mark.parametrize("video", [[], (), np.zeros((0, 8, 8, 3), np.uint8)])
def test_no_frames(video: Any) -> None:
    with pytest.raises(MediaError, match="no frames"):
        video_input(video, SETTINGS, fps=1)


def test_frames_outside_the_limits() -> None:
    video = np.zeros((5, 64, 64, 3), np.uint8)
    with pytest.raises(MediaError, match="5 frames, expected at most 4"):
        video_input(video, SETTINGS, fps=1, limits=MediaLimits(frames=4))
    for given in (video, list(video)):
        with pytest.raises(MediaError, match="64 x 64 = 4,096 pixels, expected at most 4,095"):
            video_input(given, SETTINGS, fps=1, limits=MediaLimits(video_pixels=4095))
    huge = np.lib.stride_tricks.as_strided(video, (2, 2**30, 2**30), (0, 0, 0))
    with pytest.raises(MediaError, match="pixels, expected at most"):
        video_input(huge, SETTINGS, fps=1)


def test_wrong_frames_are_named() -> None:
    with pytest.raises(TypeError, match=r"^video\[1\]: NoneType, expected a numpy array"):
        video_input([numbered(0), None], SETTINGS, fps=1)
    with pytest.raises(TypeError, match="^video: an array of int64 has no scale"):
        video_input(np.zeros((2, 8, 8, 3), np.int64), SETTINGS, fps=1)
    bad = np.zeros((2, 32, 32, 3), np.float32)
    bad[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"^video\[1\]: a float image"):
        video_input(bad, SETTINGS, fps=1)
    for given in (None, 3, iter([]), Image.new("RGB", (8, 8))):
        with pytest.raises(TypeError, match=r"^video: .*, expected an array \[T, H, W, 3\]"):
            video_input(given, SETTINGS, fps=1)


def test_frames_that_change_while_they_are_read() -> None:
    video = np.zeros((24, 64, 64, 3), np.float32)
    done = threading.Event()

    def scribble() -> None:
        while not done.is_set():
            video[:] = 1 - video

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        found = [video_input(video, SETTINGS, fps=1) for _ in range(3)]
    finally:
        done.set()
        thread.join()
    assert {one.frames.shape for one in found} == {(24, 64, 64, 3)}


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e9])
def test_rates_out_of_range(value: float) -> None:
    for name in ("fps", "sample_fps"):
        with pytest.raises(ValueError, match=f"{name}=.*: expected a number above 0"):
            video_input([numbered(0)], SETTINGS, **{name: value})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fps": "2"}, TypeError, "fps: str, expected a number"),
        ({"fps": True}, TypeError, "fps: bool"),
        ({"num_frames": 0}, ValueError, "num_frames=0: expected an integer of 1 to 768"),
        ({"num_frames": 769}, ValueError, "num_frames=769"),
        ({"num_frames": 2.0}, TypeError, "num_frames: float"),
        ({"num_frames": 2, "sample_fps": 2}, ValueError, "both given"),
        ({"start": 2, "end": 2}, ValueError, "start=2 is not before end=2"),
        ({"start": 3, "end": 2.5}, ValueError, "start=3 is not before end=2.5"),
        ({"start": -1}, ValueError, "start=-1: expected a number of 0"),
        ({"end": float("nan")}, ValueError, "end=nan"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type, message: str) -> None:
    for video in (b"", [numbered(0)]):
        with pytest.raises(error, match=message):
            video_input(video, SETTINGS, **arguments)


def test_arguments_that_do_not_fit_the_kind_of_video() -> None:
    with pytest.raises(ValueError, match="fps is for given frames"):
        video_input(b"", SETTINGS, fps=2)
    for arguments in ({"num_frames": 2}, {"sample_fps": 2}, {"start": 1}, {"end": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} is for files"):
            video_input([numbered(0)], SETTINGS, fps=2, **arguments)


def test_errors_keep_no_frames() -> None:
    frame, wrong = numbered(0), np.zeros((4, 4, 3), np.uint8)
    video = [frame, wrong]
    before = sys.getrefcount(frame), sys.getrefcount(wrong), sys.getrefcount(video)
    for _ in range(3):
        with pytest.raises(ValueError, match="bring them to one size"):
            video_input(video, SETTINGS, fps=1)
    assert (sys.getrefcount(frame), sys.getrefcount(wrong), sys.getrefcount(video)) == before


# ---- files ---------------------------------------------------------------------------------------

KINDS = [
    ("mp4", "libx264", {}),
    ("mp4", "mpeg4", {"bf": "2"}),
    ("mov", "mjpeg", {}),
    ("matroska", "libx264", {}),
    ("webm", "libvpx", {"deadline": "realtime"}),
    ("avi", "mpeg4", {}),
    ("mpegts", "libx264", {}),
    ("mpeg", "mpeg2video", {}),
    ("gif", "gif", {}),
]


@pytest.mark.parametrize(("kind", "codec", "options"), KINDS)
def test_sampled_frames_of_every_container(kind: str, codec: str, options: dict) -> None:
    """60 frames at 25 a second are 2.4 s: int(4.8) = 4 frames, spread over 0..59."""
    file = make(io.BytesIO(), 60, rate=25, codec=codec, kind=kind, options=options)
    found = video_input(file.getvalue(), SETTINGS)
    assert numbers(found) == [0, 20, 39, 59]
    assert found.timestamps == pytest.approx((0.4, 1.96))
    assert found.source_size == (32, 256)
    assert found.note == "4 of 60 frames"


def test_path_bytes_and_data_uri_are_the_same(tmp_path: Path) -> None:
    path = make(tmp_path / "video.mp4", 20)
    data = path.read_bytes()
    uri = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    found = {
        video_input(v, SETTINGS).digest
        for v in (path, str(path), data, bytearray(data), memoryview(data), uri)
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0, 5, 11, 16, 22, 27, 33, 38, 44, 49]),  # 5 s, at 2 a second
        ({"sample_fps": 1}, [0, 12, 24, 37, 49, 49]),
        ({"sample_fps": 0.1}, [0, 16, 33, 49]),  # never fewer than min_frames
        ({"num_frames": 3}, [0, 24, 49, 49]),
        ({"num_frames": 1}, [0, 0]),
        ({"start": 1, "end": 1.5}, [10, 11, 13, 14]),
        ({"start": 4.75}, [48, 49]),
        ({"end": 0.1}, [0, 0]),
        ({"start": 2, "end": 100, "num_frames": 2}, [20, 49]),
    ],
)
def test_which_frames_are_taken(arguments: dict, expected: list[int]) -> None:
    """numpy.linspace(0, n - 1, count).round() of the range asked for; an odd last one repeats."""
    data = make(io.BytesIO(), 50, kind="mp4").getvalue()
    found = video_input(data, SETTINGS, **arguments)
    assert numbers(found) == expected
    seconds = np.array(expected) / 10
    assert found.timestamps == pytest.approx(seconds.reshape(-1, 2).mean(axis=1))


def test_most_frames_of_settings_and_limits() -> None:
    data = make(io.BytesIO(), 50, kind="mp4").getvalue()
    few = VisionSettings(min_pixels=4096, max_pixels=25_165_824, max_frames=6)
    assert len(video_input(data, few).frames) == 6
    assert len(video_input(data, SETTINGS, limits=MediaLimits(frames=8)).frames) == 8


@pytest.mark.parametrize(
    ("kind", "codec", "key_frames"),
    [
        ("mp4", "mpeg4", 12),
        ("mp4", "libx264", 600),  # a seek goes back to the start, so they become rare
        ("matroska", "libx264", 20),
        ("mpegts", "libx264", 20),
        ("avi", "mpeg4", 20),
        ("gif", "gif", 12),
    ],
)
def test_frames_far_apart_are_sought(kind: str, codec: str, key_frames: int) -> None:
    """600 frames at 10 a second are 60 s; 9 of them are 7.5 s apart."""
    from qwen35.video_file import Player

    decoded = []

    class Counting(Player):
        def _advance(self) -> None:
            super()._advance()
            decoded.append(self._ahead)

    file = make(io.BytesIO(), 600, codec=codec, kind=kind, key_frames=key_frames)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qwen35.video_file.Player", Counting)
        found = video_input(file.getvalue(), SETTINGS, num_frames=9)
    assert numbers(found)[:9] == [0, 75, 150, 225, 300, 374, 449, 524, 599]
    if key_frames < 100 and kind != "gif":
        assert len(decoded) < 300


def test_rate_that_varies_shows_what_is_on_screen() -> None:
    """8 frames in 10.08 s by the header: a step is 10.08 / 8 = 1.26 s."""
    at_ms = [0, 40, 80, 120, 1000, 2000, 10_000, 10_040]
    file = make(io.BytesIO(), 8, codec="libx264", kind="mp4", at_ms=at_ms)
    found = video_input(file.getvalue(), SETTINGS, num_frames=8)
    shown = numbers(found)
    assert shown[0] == 0
    assert shown == sorted(shown)
    step = found.timestamps[0] * 2
    for index, number in enumerate(shown):
        assert at_ms[number] / 1000 <= index * step + 0.5 * step
        if number < 5:
            assert index * step < at_ms[number + 1] / 1000 + 0.02


def test_rotation_is_applied() -> None:
    """Turned by 90 degrees counterclockwise, the first bit (left) is at the bottom."""
    data = make(io.BytesIO(), 5, kind="mp4", turn=90).getvalue()
    found = video_input(data, SETTINGS)
    assert found.source_size == (256, 32)
    assert found.frames.shape == (4, 256, 32, 3)
    last = found.frames[3, :, 16, 1]  # number 4: the third square from the bottom is white
    assert (last[SIDE // 2 :: SIDE][::-1] > 127).tolist() == [i == 2 for i in range(BITS)]


def test_file_of_one_frame() -> None:
    found = video_input(make(io.BytesIO(), 1, kind="mp4").getvalue(), SETTINGS)
    assert numbers(found) == [0, 0]
    assert found.timestamps == (0.0,)


def test_sound_alone() -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
        frame.rate = 44100
        for _ in range(20):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="no video stream in this file"):
        video_input(file.getvalue(), SETTINGS)


def test_file_outside_the_limits() -> None:
    data = make(io.BytesIO(), 5, kind="mp4").getvalue()
    with pytest.raises(MediaError, match="32 x 256 = 8,192 pixels, expected at most 8,191"):
        video_input(data, SETTINGS, limits=MediaLimits(video_pixels=8191))
    with pytest.raises(MediaError, match=r"no frame at start=7, end=None .*lasts 0.50 s"):
        video_input(data, SETTINGS, start=7)


def test_codec_that_is_not_on_the_list() -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream = container.add_stream("jpeg2000", rate=5)
        stream.height, stream.width, stream.pix_fmt = 32, 256, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(0), format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="video codec jpeg2000, expected one of h264"):
        video_input(file.getvalue(), SETTINGS)


# ---- hostile files -------------------------------------------------------------------------------


def test_cut_files(tmp_path: Path) -> None:
    """The index of a plain MP4 is at its end; one with the index first tells how long it was."""
    data = make(io.BytesIO(), 100, kind="mp4").getvalue()
    with pytest.raises(MediaError, match="not a video of a known format"):
        video_input(data[: len(data) // 2], SETTINGS)
    data = make(tmp_path / "v.mp4", 100, muxing={"movflags": "faststart"}).read_bytes()
    with pytest.raises(MediaError, match="the file is cut off|cannot be decoded"):
        video_input(data[: len(data) // 2], SETTINGS)


@pytest.mark.parametrize(("kind", "codec", "options"), KINDS)
def test_damaged_files(kind: str, codec: str, options: dict) -> None:
    """Overwritten and cut at random: frames or a MediaError that says nothing of the insides."""
    file = make(io.BytesIO(), 12, rate=25, codec=codec, kind=kind, options=options)
    whole, rng = file.getvalue(), np.random.default_rng(2)
    for _ in range(25):
        data = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.3 else whole)
        for at in rng.integers(0, len(data), 20):
            data[at] = rng.integers(0, 256)
        try:
            assert video_input(bytes(data), SETTINGS).kind == "video"
        except MediaError as error:
            assert str(error).startswith("video: ")
            assert "0x" not in str(error)
            assert "<none>" not in str(error)


def test_playlists_open_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "video.ts", 5, kind="mpegts")
    playlists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {path}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ]
    for number, text in enumerate(playlists):
        named = tmp_path / f"{number}.m3u8"
        named.write_text(text)
        for given in (text.encode(), named):
            with pytest.raises(MediaError, match="not a video of a known format"):
                video_input(given, SETTINGS)


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, os.urandom(5000), b"<html></html>"])
def test_no_video(data: bytes) -> None:
    pytest.importorskip("av")
    with pytest.raises(MediaError, match="not a video of a known format"):
        video_input(data, SETTINGS)


def test_names_that_are_no_files(tmp_path: Path) -> None:
    pytest.importorskip("av")
    for name in ("https://example.org/v.mp4", "rtsp://127.0.0.1/v", "concat:a|b", "//host/v.mp4"):
        error = FileNotFoundError if name.startswith("concat") else MediaError
        with pytest.raises(error, match="concat|URLs are not fetched|network path"):
            video_input(name, SETTINGS)
    with pytest.raises(MediaError, match="not a regular file but a directory"):
        video_input(tmp_path, SETTINGS)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_errors_leave_no_file_open(tmp_path: Path) -> None:
    path = make(tmp_path / "video.mp4", 100, muxing={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:-2000])
    before = sys.getrefcount(path), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(MediaError):
            video_input(path, SETTINGS)
        with pytest.raises(MediaError):
            video_input(path, SETTINGS, limits=MediaLimits(video_pixels=1))
    assert (sys.getrefcount(path), len(os.listdir("/proc/self/fd"))) == before


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r"needs PyAV: pip install 'qwen35\[video\]'"):
        video_input(b"", SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        video_input([numbered(0)], SETTINGS, fps=1)


def test_progress_of_a_file() -> None:
    """Called once a sampled frame, with how many there will be."""
    told: list[tuple[int, int]] = []
    data = make(io.BytesIO(), 20, kind="mp4").getvalue()
    video_input(data, SETTINGS, num_frames=6, progress=lambda *at: told.append(at))
    assert told == [(i, 6) for i in range(1, 7)]
