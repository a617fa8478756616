"""A video file or its bytes -> the sampled frames, resized, and their seconds. Decodes through
PyAV.

container --sample_indices--> frame numbers --number / average rate--> seconds --Player--> the frame
on screen at that second. Numbers and timestamps are those of transformers' Qwen3VL video processor;
where the rate varies its frame n need not be on screen at n / rate, here the one on screen is
taken. Frames far apart are reached by seeking. The file is opened here and handed to FFmpeg, which
may read nothing else: formats and codecs are from a list, playlists are not among them.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import MediaError
from .media import MediaLimits, bytes_of_data_uri, check_pixels, decoder_errors, open_media
from .pixel_array import resized
from .video_sampling import MAX_FPS, MAX_SECONDS, Clip, Fit, Progress, Sampling, sample_indices
from .vision_settings import VisionSettings

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

FORMATS = "mov,matroska,avi,mpegts,mpeg,ogg,gif"  # names of FFmpeg's demuxers; mov is mp4 too
CODECS = (
    *("h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "libvpx", "libvpx-vp9"),
    *("mpeg4", "mpeg2video", "mpeg1video", "h263", "theora", "mjpeg", "gif", "ffv1", "rawvideo"),
)
_THREADS = 4  # of the decoder; each may hold a frame
_GRACE = 1.0  # seconds that a file may end before its header says


def read_video_file(
    video: Any,
    settings: VisionSettings,
    ask: Sampling,
    fit: Fit,
    *,
    where: str,
    limits: MediaLimits,
    progress: Progress | None = None,
) -> Clip:
    """The frames of a path, bytes or data URI that `ask` names, or `settings.fps` of them a second.

    Raises MediaError for what cannot be read or is outside the limits, OSError for a file that
    cannot be opened.
    """
    with _opened(video, where, limits) as container, decoder_errors(f"{where}: this video"):
        stream = _video_stream(container, where, limits)
        rate, total = _rate_and_length(container, stream, where)
        indices = sample_indices(total, rate, settings, ask, where=where, limits=limits)
        player = Player(container, stream, rate, where=where, limits=limits)
        size = player.size
        small = np.empty((len(indices), *fit(len(indices), *size), 3), np.uint8)
        previous = None
        for place, index in enumerate(indices):
            frame = player.frame_at(index / rate)
            if frame is previous:
                small[place] = small[place - 1]
            else:
                small[place] = resized(player.upright(frame), small.shape[1:3])
            previous = frame
            if progress is not None:
                progress(place + 1, len(indices))
        note = None if len(indices) == total else f"{len(indices)} of {total:,} frames"
        return Clip(small, tuple(index / rate for index in indices), size, note)


@contextlib.contextmanager
def _opened(video: Any, where: str, limits: MediaLimits) -> Iterator[InputContainer]:
    """The container of a path, bytes or data URI; container and file are closed afterwards."""
    try:
        import av
    except ImportError:
        raise MediaError(
            f"{where}: reading a video file needs PyAV: pip install 'qwen35[video]'; or pass "
            "its frames and fps"
        ) from None
    with contextlib.ExitStack() as stack:
        if isinstance(video, (str, os.PathLike)):
            path = os.fspath(video)
            if isinstance(path, str) and path[:5].lower() == "data:":
                file: Any = io.BytesIO(bytes_of_data_uri(path, "video", where, limits))
            else:
                file = _Reader(stack.enter_context(open_media(path, where)))
        else:
            file = io.BytesIO(video)
        options = {
            "format_whitelist": FORMATS,
            "codec_whitelist": ",".join(CODECS),
            "protocol_whitelist": "none",
        }
        try:
            container = stack.enter_context(av.open(file, options=options))
        except MemoryError:
            raise
        except Exception:
            raise MediaError(
                f"{where}: not a video of a known format, expected MP4, MOV, Matroska, WebM, AVI, "
                "MPEG, Ogg or GIF"
            ) from None
        yield container


class _Reader:
    """What FFmpeg gets to see of a file: no name, only bytes."""

    def __init__(self, file: io.RawIOBase) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _video_stream(container: InputContainer, where: str, limits: MediaLimits) -> VideoStream:
    """The first video stream, checked before anything of it is decoded, and made ready."""
    if not container.streams.video:
        raise MediaError(f"{where}: no video stream in this file")
    stream = container.streams.video[0]
    codec = stream.codec_context
    if codec is None or codec.codec.name not in CODECS:
        name = "unknown" if codec is None else codec.codec.name
        raise MediaError(f"{where}: video codec {name}, expected one of {', '.join(CODECS)}")
    if not (codec.height and codec.width):
        raise MediaError(f"{where}: the header of this video does not tell its size")
    check_pixels(codec.height, codec.width, limits.video_pixels, where)
    codec.thread_type = "AUTO"
    codec.thread_count = _THREADS
    codec.options = {"max_pixels": str(limits.video_pixels)}  # the size may change on the way
    return stream


def _rate_and_length(
    container: InputContainer, stream: VideoStream, where: str
) -> tuple[float, int]:
    """Frames a second, on average, and frames in all: as the header says, else counted (without
    decoding them).
    """
    found = stream.average_rate or stream.guessed_rate
    rate = float(found) if found else 0.0
    if not 1 / MAX_SECONDS <= rate <= MAX_FPS:
        raise MediaError(f"{where}: {rate:g} frames a second, expected up to {MAX_FPS:g}")
    total = stream.frames
    if total < 1:
        total = sum(1 for packet in container.demux(stream) if packet.size)
        container.seek(0)
    if total < 1:
        raise MediaError(f"{where}: no frames in this video")
    if total / rate > MAX_SECONDS:
        raise MediaError(f"{where}: its header claims {total / rate:.3g} seconds of video")
    return rate, total


class Player:
    """One video stream played forward: which frame is on screen at a given second.

    Seconds count from the first frame. Seeks where that skips frames: a seek that lands behind the
    present frame (its key frame was further back) makes later ones rarer, so that no more than a
    part of the file is decoded twice.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        rate: float,
        *,
        where: str,
        limits: MediaLimits,
    ) -> None:
        self._container, self._stream = container, stream
        self._rate, self._where, self._limits = rate, where, limits
        self._reach = 2.0  # seconds ahead that are decoded rather than sought
        self._frames = container.decode(stream)
        self._origin = 0.0
        self._time = -1 / rate
        self._ahead = next(self._frames, None)  # decoded, not yet on screen
        if self._ahead is None:
            raise MediaError(f"{where}: no frames in this video")
        self._shown = self._ahead
        self._origin = self._seconds(self._ahead)
        self._ahead_time = self._time = 0.0
        self._turns = round(self._ahead.rotation / 90) % 4  # counterclockwise
        size = (self._ahead.height, self._ahead.width)
        self.size = size[::-1] if self._turns % 2 else size

    def frame_at(self, second: float) -> VideoFrame:
        """The frame on screen at a second not before the last one asked for."""
        if second - self._ahead_time > self._reach and self._ahead is not None:
            self._seek(second)
        while self._ahead is not None and self._is_due(second):
            self._shown, self._time = self._ahead, self._ahead_time
            self._advance()
        if self._ahead is None and second > self._time + self._lasts(self._shown) + _GRACE:
            raise MediaError(
                f"{self._where}: its frames end at {self._time:.2f} s, expected one at "
                f"{second:.2f} s; the file is cut off"
            )
        return self._shown

    def upright(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """The pixels [H, W, 3] of a frame, turned as the file says."""
        check_pixels(frame.height, frame.width, self._limits.video_pixels, self._where)
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), self._turns))

    def _is_due(self, second: float) -> bool:
        """Is the frame ahead on screen by then? Half a frame of slack, since time stamps are
        rounded and the average rate is not exact; less where frames follow each other faster than
        on average.
        """
        gap = min(self._ahead_time - self._time, 1 / self._rate)
        return self._ahead_time - second <= gap / 2

    def _advance(self) -> None:
        self._ahead = next(self._frames, None)
        if self._ahead is not None:
            self._ahead_time = self._seconds(self._ahead)

    def _seconds(self, frame: VideoFrame) -> float:
        """When a frame is shown. Without a time stamp: one frame after the last, and no seeking."""
        if frame.pts is None:
            self._reach = math.inf
            return self._ahead_time + 1 / self._rate
        return float(frame.pts * self._stream.time_base) - self._origin

    def _lasts(self, frame: VideoFrame) -> float:
        return max(float((frame.duration or 0) * self._stream.time_base), 1 / self._rate)

    def _seek(self, second: float) -> None:
        """Go on from a key frame at or before `second`: further back where the first frame that
        comes out is already later.
        """
        from av import FFmpegError

        before = self._ahead_time
        for margin in (0.0, 1.0, 5.0, 25.0, math.inf):
            target = max(0.0, second - margin) + self._origin
            try:
                self._container.seek(round(target / self._stream.time_base), stream=self._stream)
            except FFmpegError:  # this format cannot
                self._reach = math.inf
                return
            self._frames = self._container.decode(self._stream)
            self._advance()
            if self._ahead is not None and self._ahead_time <= second:
                break
        if self._ahead_time <= before:
            self._reach = max(2 * self._reach, 4 * (second - self._ahead_time))
